//! `init`: the same as `ladle init`, but a missing `DataDir` gets a default.

use anyhow::{Context as _, bail};
use common::exit::UsageError;
use ladle::context::Context;
use ladle::report::Progress;
use model::spec::{DEFAULT_DATA_DIR, InitDefaults, InitSpec};
use std::io::Read as _;
use std::path::Path;
use store::StoreOptions;

/// The text of a specification from a file (`-` is stdin), from the command line, or empty.
///
/// # Errors
/// Both are given, or the file can't be read.
pub fn text(file: Option<&Path>, argument: Option<&str>) -> anyhow::Result<String> {
    match (file, argument) {
        (Some(_), Some(_)) => {
            bail!(UsageError("give the specification as a file or as an argument, not both".into()))
        }
        (None, Some(text)) => Ok(text.to_owned()),
        (None, None) => Ok("{}".to_owned()),
        (Some(path), None) if path == Path::new("-") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("read the specification from stdin")?;
            Ok(text)
        }
        (Some(path), None) => {
            std::fs::read_to_string(path).with_context(|| format!("read the specification {}", path.display()))
        }
    }
}

/// What the specification may leave out. `os_user` becomes the superuser.
pub fn defaults(store: &StoreOptions, os_user: String) -> InitDefaults {
    InitDefaults { store: store.place(), os_user, data_dir: DEFAULT_DATA_DIR.to_owned() }
}

/// Checks the specification and makes the cluster.
///
/// # Errors
/// The specification breaks a rule, or the cluster exists; nothing is written then.
pub async fn create(
    ctx: &Context,
    text: &str,
    defaults: &InitDefaults,
    options: ladle::init::Options,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    let checked = InitSpec::parse(text, defaults)?;
    Ok(ladle::init::run(ctx, &checked, options, progress).await?)
}
