//! `init`: new cluster data.

use crate::access::AccessError;
use crate::ctl::{ChangeError, confirm, init_cluster, input};
use model::stolon::keys::Keys;
use model::stolon::{InvalidSpec, StolonSpec, parse_user_spec};
use serde_json::{Value, json};
use std::path::PathBuf;
use store::SharedStore;

/// Arguments of `init`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The cluster specification, in JSON; without it and --file: {"initMode": "new"}
    #[arg(conflicts_with = "file")]
    pub spec: Option<String>,
    /// File with the specification; - is standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

pub(super) async fn command(store: &SharedStore, keys: &Keys, args: &Args) -> anyhow::Result<()> {
    let document = input::spec_document(args.spec.as_deref(), args.file.as_deref())?;
    let spec = spec(document)?;
    if !args.yes && !confirm::confirm_on_terminal(&question(store, keys).await?)? {
        return Ok(());
    }
    Ok(run(store, keys, spec).await?)
}

/// Writes new cluster data, whatever was there before.
///
/// # Errors
/// The specification is invalid, or the store failed.
pub async fn run(store: &SharedStore, keys: &Keys, spec: StolonSpec) -> Result<(), ChangeError> {
    spec.effective()?;
    Ok(init_cluster(store, keys, spec).await?)
}

fn spec(document: Option<Value>) -> Result<StolonSpec, InvalidSpec> {
    let spec = parse_user_spec(document.unwrap_or_else(|| json!({"initMode": "new"})))?;
    spec.effective()?;
    Ok(spec)
}

async fn question(store: &SharedStore, keys: &Keys) -> Result<String, AccessError> {
    // Whatever is stored, readable or not, is replaced: only its presence matters.
    let there = store.get(&keys.clusterdata()).await?.is_some();
    let replaced = if there { "WARNING: this cluster has cluster data already, which will be replaced.\n" } else { "" };
    Ok(format!(
        "{replaced}WARNING: depending on initMode, the databases of the keepers may be overwritten.\nInitialise the cluster?"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifications_are_checked() {
        assert!(spec(None).is_ok());
        assert!(spec(Some(json!({"INITMODE": "new"}))).is_ok());
        for bad in [json!({}), json!([]), json!(null), json!({"initMode": "old"}), json!({"initMode": "existing"})] {
            assert!(spec(Some(bad.clone())).is_err(), "{bad}");
        }
    }
}
