//! `update`: another specification.

use crate::ctl::{ChangeError, input, merge, try_update_cluster};
use common::exit::UsageError;
use model::stolon::keys::Keys;
use model::stolon::{InvalidSpec, StolonSpec, canonical_user_spec, parse_user_spec};
use serde_json::Value;
use std::path::PathBuf;
use store::SharedStore;

/// Arguments of `update`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The specification or the patch, in JSON
    #[arg(conflicts_with = "file")]
    pub spec: Option<String>,
    /// File with it; - is standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Merge it into the present specification; null removes a member
    #[arg(short, long)]
    pub patch: bool,
}

pub(super) async fn command(store: &SharedStore, keys: &Keys, args: &Args) -> anyhow::Result<()> {
    let Some(document) = input::spec_document(args.spec.as_deref(), args.file.as_deref())? else {
        return Err(UsageError("give a specification as an argument or with --file".into()).into());
    };
    Ok(run(store, keys, document, args.patch).await?)
}

/// Replaces the specification by a document, or merges it into the specification.
///
/// # Errors
/// See [`ChangeError`].
pub async fn run(store: &SharedStore, keys: &Keys, document: Value, patch: bool) -> Result<(), ChangeError> {
    try_update_cluster(store, keys, |spec| {
        *spec = updated(spec, document.clone(), patch)?;
        Ok(())
    })
    .await
}

/// The specification after an update.
///
/// # Errors
/// The document, or what it makes of the specification, is not one.
pub fn updated(spec: &StolonSpec, document: Value, patch: bool) -> Result<StolonSpec, InvalidSpec> {
    if !document.is_object() {
        return Err(InvalidSpec::Malformed("it must be a JSON object".into()));
    }
    if !patch {
        return parse_user_spec(document);
    }
    let present = serde_json::to_value(spec).map_err(|error| InvalidSpec::Malformed(error.to_string()))?;
    parse_user_spec(merge::merge(present, canonical_user_spec(document)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn patches_merge_and_documents_replace() {
        let old = parse_user_spec(json!({"initMode": "new", "pgParameters": {"a": "1", "B": "2"}, "maxStandbys": 4,
            "pgHBA": ["x"], "novelty": 1}))
        .unwrap();
        let patch =
            json!({"PGPARAMETERS": {"a": null, "c.d": "3", "b": "4"}, "maxstandbys": null, "pgHBA": ["y", "z"]});
        let expected = parse_user_spec(json!({"initMode": "new", "pgParameters": {"B": "2", "c.d": "3", "b": "4"},
            "pgHBA": ["y", "z"], "novelty": 1}))
        .unwrap();
        assert_eq!(updated(&old, patch, true).unwrap(), expected);
        let replaced = updated(&old, json!({"initMode": "new"}), false).unwrap();
        assert_eq!(replaced, parse_user_spec(json!({"initMode": "new"})).unwrap());
    }

    #[test]
    fn broken_documents_are_refused() {
        let old = parse_user_spec(json!({"initMode": "new"})).unwrap();
        for bad in [json!(null), json!([]), json!("x"), json!({"maxStandbys": 65536}), json!({"pgParameters": []})] {
            for patch in [true, false] {
                assert!(updated(&old, bad.clone(), patch).is_err(), "{bad} {patch}");
            }
        }
    }
}
