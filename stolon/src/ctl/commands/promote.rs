//! `promote`: a standby cluster becomes a primary one.

use crate::ctl::{ChangeError, confirm, load, update_cluster};
use model::stolon::keys::Keys;
use model::stolon::{ClusterRole, StolonSpec};
use store::SharedStore;
use tracing::info;

/// Arguments of `promote`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

pub(super) async fn command(store: &SharedStore, keys: &Keys, args: &Args) -> anyhow::Result<()> {
    if is_primary(&load(store, keys).await?.data.spec()) {
        info!("the cluster is a primary one already");
        return Ok(());
    }
    let question = "WARNING: the cluster will stop to follow its primary, for good.\nPromote it?";
    if args.yes || confirm::confirm_on_terminal(question)? {
        run(store, keys).await?;
    }
    Ok(())
}

/// Sets the cluster's role to master.
///
/// # Errors
/// See [`ChangeError`].
pub async fn run(store: &SharedStore, keys: &Keys) -> Result<(), ChangeError> {
    // An unset role is that of a primary already, and stays unset.
    update_cluster(store, keys, |spec| {
        if !is_primary(spec) {
            spec.role = Some(ClusterRole::Master);
        }
    })
    .await
}

fn is_primary(spec: &StolonSpec) -> bool {
    spec.role.unwrap_or_default() == ClusterRole::Master
}
