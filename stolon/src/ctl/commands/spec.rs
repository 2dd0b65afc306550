//! `spec`: the specification, as given or with defaults.

use crate::ctl::{ChangeError, load, render};
use model::stolon::StolonSpec;
use model::stolon::keys::Keys;
use serde_json::Value;
use store::SharedStore;

/// Arguments of `spec`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Print every member, with its default where it is not set
    #[arg(long)]
    pub defaults: bool,
}

pub(super) async fn command(store: &SharedStore, keys: &Keys, args: &Args) -> anyhow::Result<()> {
    let spec = load(store, keys).await.map_err(ChangeError::from)?.data.spec();
    Ok(render::print(&text(&spec, args.defaults)?)?)
}

pub(crate) fn text(spec: &StolonSpec, defaults: bool) -> anyhow::Result<String> {
    if defaults {
        return Ok(render::json(&spec.effective()?));
    }
    let mut document = serde_json::to_value(spec)?;
    if let Value::Object(members) = &mut document {
        // Some members are stored as `null` when they are not set.
        members.retain(|_, value| !value.is_null());
    }
    Ok(render::json(&document))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::stolon::parse_user_spec;
    use serde_json::json;

    #[test]
    fn unset_members_are_left_out_or_shown_with_defaults() {
        let spec = parse_user_spec(json!({"initMode": "new", "synchronousReplication": false, "pgHBA": []})).unwrap();
        assert_eq!(
            text(&spec, false).unwrap(),
            "{\n\t\"initMode\": \"new\",\n\t\"pgHBA\": [],\n\t\"synchronousReplication\": false\n}\n"
        );
        assert_eq!(text(&spec, true).unwrap(), DEFAULTS);
    }

    const DEFAULTS: &str = include_str!("../golden/spec-defaults.json");
}
