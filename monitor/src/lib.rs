//! Keeps every replication group informed about where the others are. Stateless; any number may run at once.
//!
//! * In: the specification, the registered groups and each group's stolon cluster data, followed by watches
//!   ([`observe`]); out of them comes a [`picture::Picture`], handed on through a watch channel, so that a slow
//!   duty holds up neither the others nor the store.
//! * Duty 1, [`servers`]: one worker per group compares the foreign servers on the group's master with the picture
//!   and alters those that differ.
//! * The duties that finish hanging prepared transactions and break distributed deadlocks will be tasks over the
//!   same channel; their switches are in [`Options`].

pub mod cli;
pub mod observe;
pub mod picture;
pub mod servers;

use crate::picture::Picture;
use model::keys::ClusterKeys;
use std::sync::Arc;
use std::time::Duration;
use store::{EtcdStore, SharedStore};
use tokio::sync::watch;
use tracing::info;

/// What the monitor is to do besides duty 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Finish transactions that hang prepared.
    pub resolve_transactions: bool,
    /// Period of the search for distributed deadlocks; none for no search.
    pub deadlock_period: Option<Duration>,
}

impl From<&cli::Cli> for Options {
    fn from(cli: &cli::Cli) -> Self {
        Options {
            resolve_transactions: !cli.no_xact_resolver,
            deadlock_period: (!cli.no_deadlock_detector).then_some(cli.deadlock_timeout),
        }
    }
}

/// The program: runs until SIGTERM or SIGINT.
///
/// # Errors
/// Unusable options.
pub async fn main(cli: cli::Cli) -> anyhow::Result<()> {
    let mut termination = common::runtime::Termination::listen()?;
    let store: SharedStore = Arc::new(EtcdStore::connect(&cli.common.store.options()).await?);
    let keys = ClusterKeys::new(&cli.common.cluster_name.as_str().into());
    info!(cluster = cli.common.cluster_name, "the monitor starts");
    tokio::select! {
        () = run(store, keys, Options::from(&cli)) => {}
        () = termination.wait() => info!("the monitor ends"),
    }
    Ok(())
}

/// All duties; never ends, and stops everything when it is dropped.
pub async fn run(store: SharedStore, keys: ClusterKeys, _options: Options) {
    let (sender, pictures) = watch::channel(Arc::new(Picture::default()));
    // One task for both: each part's own tasks end with it.
    tokio::join!(observe::observe(store, keys, sender), servers::run(pictures));
}
