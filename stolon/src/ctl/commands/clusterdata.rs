//! `clusterdata read` and `clusterdata write`.

use crate::access::{self, AccessError};
use crate::ctl::{ChangeError, input, load, render};
use common::exit::Hinted;
use model::stolon::ClusterData;
use model::stolon::keys::Keys;
use std::path::{Path, PathBuf};
use store::SharedStore;
use tracing::warn;

/// The commands under `clusterdata`.
#[derive(clap::Subcommand, Clone, Debug)]
#[allow(missing_docs, reason = "each command's doc comment is its help text")]
pub enum Command {
    /// Print the cluster data
    Read {
        /// Indent it
        #[arg(long)]
        pretty: bool,
    },
    /// Replace the cluster data; only its form is checked
    Write {
        /// File with it; - is standard input
        #[arg(short, long, value_name = "FILE", default_value = "-")]
        file: PathBuf,
        /// Replace what is there
        #[arg(short, long)]
        yes: bool,
    },
}

pub(super) async fn command(store: &SharedStore, keys: &Keys, command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Read { pretty } => Ok(render::print(&text(&load(store, keys).await?.data, *pretty))?),
        Command::Write { file, yes } => write(store, keys, file, *yes).await,
    }
}

fn text(data: &ClusterData, pretty: bool) -> String {
    if pretty {
        return render::json(data);
    }
    String::from_utf8_lossy(&access::encode(data)).into_owned() + "\n"
}

async fn write(store: &SharedStore, keys: &Keys, file: &Path, yes: bool) -> anyhow::Result<()> {
    let data = parse(&input::read_file(file)?)?;
    if yes {
        store.put(&keys.clusterdata(), &access::encode(&data), None).await?;
        return Ok(());
    }
    match access::replace(store, keys, None, &data).await {
        Ok(_) => Ok(()),
        Err(AccessError::Conflict) => Err(Hinted {
            message: "there is cluster data already".into(),
            hint: "give --yes to replace it; `stolonctl clusterdata read` keeps a copy".into(),
        }
        .into()),
        Err(error) => Err(error.into()),
    }
}

/// Types are checked too, since one value of another type would make the whole document unreadable for everyone.
/// Broken rules are only reported: to repair them is what this command is for.
fn parse(bytes: &[u8]) -> Result<ClusterData, ChangeError> {
    let data: ClusterData = serde_json::from_slice(bytes)
        .map_err(|error| ChangeError::Refused(format!("this is not cluster data: {error}")))?;
    if let Err(error) = ClusterData::parse(bytes) {
        warn!(error = common::exit::one_line(&error.into()), "no program will work with this cluster data");
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_form_is_checked() {
        assert!(parse(br#"{"formatVersion": 1}"#).is_ok());
        for bad in ["", "[]", "7", r#"{"keepers": 1}"#, r#"{"dbs": {"a": {"status": {"xLogPos": -1}}}}"#] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
