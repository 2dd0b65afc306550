//! The node agent: makes the daemons of one node what the cluster's layout says.
//!
//! In: three keys of the store (specification, layout revision, this node's layout), the node's service manager and
//! its data directory. Out: environment files, running daemons, the node's status in the store.
//!
//! One loop: [`observe`] reads what the store says, [`plan`] turns it into wanted daemons, [`diff`] into steps,
//! [`apply`] takes them, [`status`] publishes the result. It wakes at a change of the store, at a change of a daemon,
//! and 2 s after a failure.
//!
//! Whatever is wrong with the store (out of reach, empty, stale, documents that can't be read), daemons stay as they
//! are. A node that starts while the store is out of reach starts what ran before. Bowl never deletes data.

pub mod applied;
pub mod apply;
pub mod cli;
pub mod diff;
mod digest;
pub mod envfile;
pub mod files;
pub mod identity;
pub mod manager;
pub mod node;
pub mod observe;
pub mod plan;
pub mod status;
pub mod units;

use anyhow::{Context as _, anyhow, bail};
use cli::{BowlArgs, ServiceManagerKind};
use common::runtime::Termination;
use manager::ServiceManager;
use manager::process::ProcessManager;
use model::keys::ClusterKeys;
use node::{Node, NodeConfig};
use plan::Facts;
use status::Publisher;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use store::{EtcdStore, Follower, SharedStore};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{Instrument as _, info, info_span};

/// Pause after a pass that failed.
const RETRY: Duration = Duration::from_secs(2);

/// Runs bowl until SIGTERM or SIGINT. Started by root, it first becomes another user, so this must be called before
/// the process has other threads.
///
/// # Errors
/// Unusable options, or a data directory that can't be used.
pub fn run(args: BowlArgs) -> anyhow::Result<()> {
    check_service_manager(&args)?;
    // Checks the names and paths before root makes a directory of them.
    let cluster = facts(&args)?.cluster;
    let data_dir = args.data_dir.clone().unwrap_or_else(|| identity::default_data_dir(&cluster));
    identity::leave_root(args.user.as_deref(), &data_dir)?;
    common::runtime::block_on(serve(args))
}

/// As [`run`], without changing the user, inside a runtime.
///
/// # Errors
/// As [`run`].
pub async fn serve(args: BowlArgs) -> anyhow::Result<()> {
    let mut termination = Termination::listen()?;
    // The end of a terminal's session must not end PostgreSQL.
    let _ignored = signal(SignalKind::hangup())?;
    let store: SharedStore = Arc::new(EtcdStore::connect(&args.common.store.options()).await?);
    serve_until(args, store, termination.wait()).await
}

/// As [`serve`], on a given store, until `end`.
///
/// # Errors
/// As [`run`].
pub async fn serve_until(args: BowlArgs, store: SharedStore, end: impl Future<Output = ()>) -> anyhow::Result<()> {
    check_service_manager(&args)?;
    let facts = facts(&args)?;
    let span = info_span!("bowl", cluster = %facts.cluster, node = %facts.node);
    let leave_running = args.leave_running;
    let (fixed, known) = match &args.data_dir {
        Some(data_dir) => (true, Some(data_dir.clone())),
        // The specification may name another directory; before it is read, only one that was used before counts.
        None => (false, Some(identity::default_data_dir(&facts.cluster)).filter(|path| path.join("run").is_dir())),
    };
    let cluster = facts.cluster.clone();
    let open = move |data_dir: &Path| -> Result<Arc<dyn ServiceManager>, String> {
        match ProcessManager::open(&cluster, data_dir, identity::base_environment()) {
            Ok(manager) => Ok(Arc::new(manager)),
            Err(error) => Err(observe::chain(&error)),
        }
    };
    let mut node = Node::new(NodeConfig { facts: facts.clone(), fixed_data_dir: fixed, open: Box::new(open) });
    async {
        info!(version = env!("CARGO_PKG_VERSION"), "bowl starts");
        tokio::spawn(identity::check_address(facts.advertise_address.clone()));
        if let Some(data_dir) = known {
            node.open(&data_dir).map_err(|reason| anyhow!(reason))?;
        }
        let keys = ClusterKeys::new(&facts.cluster);
        let follower = Follower::start(store.clone(), observe::targets(&keys, &facts.node));
        let publisher = Publisher::start(store, keys.status(&facts.node));
        tokio::select! {
            // Passes are made of steps that can be repeated, and daemons are owned by the service manager's own
            // tasks: a pass may be dropped at any moment.
            never = follow(&mut node, follower, &publisher) => match never {},
            () = end => {}
        }
        info!(leave_running, "bowl ends");
        if let Some(manager) = node.manager() {
            manager.shutdown(leave_running).await;
        }
        publisher.finish().await;
        Ok(())
    }
    .instrument(span)
    .await
}

fn check_service_manager(args: &BowlArgs) -> anyhow::Result<()> {
    match args.service_manager.unwrap_or(ServiceManagerKind::Process) {
        ServiceManagerKind::Process => Ok(()),
        ServiceManagerKind::Systemd => {
            bail!("the service manager systemd is not available yet; give --service-manager process")
        }
    }
}

fn facts(args: &BowlArgs) -> anyhow::Result<Facts> {
    let node = identity::node_name(args)?;
    let program = std::env::current_exe().context("ask for bowl's own path")?;
    if let Some(path) = [&args.data_dir, &args.bin_dir].into_iter().flatten().find(|path| !path.is_absolute()) {
        bail!(common::exit::UsageError(format!("{} is not an absolute path", path.display())));
    }
    Ok(Facts {
        cluster: identity::cluster_name(args)?,
        advertise_address: args.advertise_address.clone().unwrap_or_else(|| node.to_string()),
        node,
        listen_address: args.listen_address.clone(),
        data_dir: args.data_dir.clone().unwrap_or_default(),
        bin_dir: args.bin_dir.clone(),
        runtime_dir: identity::runtime_dir(),
        own_dir: program.parent().map(PathBuf::from).unwrap_or_default(),
        log_level: args.common.log.log_level,
        log_format: args.common.log.log_format,
    })
}

/// Why the loop goes round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    Store,
    Daemon,
    Retry,
}

async fn follow(node: &mut Node, follower: Follower, publisher: &Publisher) -> std::convert::Infallible {
    let mut wake = Wake::Store;
    let mut retry = None;
    let mut views = follower.subscribe();
    loop {
        if wake != Wake::Daemon {
            let view = views.borrow_and_update().clone();
            let done = node.pass(&view).await;
            retry = (!done).then(|| tokio::time::Instant::now() + RETRY);
        }
        let mut changes = node.changes();
        if let Some(changes) = &mut changes {
            changes.mark_unchanged();
        }
        publisher.set(node.status().await);
        // All branches are cancel-safe.
        wake = tokio::select! {
            _ = views.changed() => Wake::Store,
            () = daemon_changed(&mut changes) => Wake::Daemon,
            () = retry_due(retry) => Wake::Retry,
        };
        tracing::debug!(?wake, "woke up");
    }
}

/// A moment, not a pause: a daemon that changes again and again must not put it off.
async fn retry_due(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn daemon_changed(changes: &mut Option<watch::Receiver<u64>>) {
    match changes {
        Some(changes) => {
            let _ = changes.changed().await;
        }
        None => std::future::pending().await,
    }
}
