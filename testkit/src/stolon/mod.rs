//! A whole stolon cluster for a test: real etcd, and keepers, sentinels and proxies as processes.
//!
//! ```no_run
//! # use testkit::stolon::{Bins, Lab};
//! # async fn example() {
//! let lab = Lab::builder(Bins::new("/path/to/programs")).keepers(3).synchronous(1, 1).up().await;
//! let writer = lab.writer().await;
//! writer.progress(20).await;
//! let old = lab.master().await;
//! lab.keeper(old).kill();
//! lab.wait_for_other_master(old).await;
//! writer.progress(20).await;
//! writer.finish().await.check(&lab.proxy(0).pg).await;
//! # }
//! ```
//!
//! All of it panics on failure, and then prints the end of each log. The lab stops everything and removes its files when
//! it is dropped; with `LAB_KEEP` in the environment the files stay. `LAB_LOG_LEVEL` sets the level of the daemons' logs.

mod bins;
mod builder;
mod endpoint;
mod keeper;
mod postmaster;
mod process;
mod relay;
mod view;
mod writer;

pub use bins::{Bins, Kind};
pub use builder::{Auth, Builder};
pub use endpoint::Endpoint;
pub use keeper::Keeper;
pub use process::Process;
pub use relay::Relay;
pub use writer::{TABLE, Writer, Written};

use crate::etcd::Etcd;
use crate::port::Port;
use model::stolon::keys::Keys;
use relay::Network;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use store::SharedStore;
use tempfile::TempDir;

/// Name of the cluster in a lab.
pub const CLUSTER: &str = "lab";
/// How long a test waits for anything. Generous: several labs share two cores.
pub const LIMIT: Duration = Duration::from_secs(120);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(40);
/// How much of each log a failed test shows.
const TAIL: usize = 40;

/// A running cluster.
#[derive(Debug)]
pub struct Lab {
    // In the order of their end: what depends on others first.
    keepers: Vec<Keeper>,
    sentinels: Vec<Process>,
    proxies: Vec<Proxy>,
    builder: Builder,
    store: SharedStore,
    keys: Keys,
    network: Network,
    dir: Option<TempDir>,
    /// The store's server.
    pub etcd: Etcd,
}

/// A proxy.
#[derive(Debug)]
pub struct Proxy {
    /// The process.
    pub process: Process,
    /// Through it to the master.
    pub pg: Endpoint,
    _port: Port,
}

impl Lab {
    /// Describes a lab.
    pub fn builder(bins: Bins) -> Builder {
        Builder::new(bins)
    }

    /// Starts all components that don't run.
    ///
    /// # Panics
    /// One can't be started.
    pub fn start_all(&self) {
        self.keepers.iter().for_each(Keeper::start);
        self.sentinels.iter().for_each(Process::start);
        self.proxies.iter().for_each(|proxy| proxy.process.start());
    }

    /// `stolonctl init` with the lab's specification.
    ///
    /// # Panics
    /// It fails.
    pub async fn init(&self) {
        self.ctl(&["init", "--yes", &self.wanted_spec().to_string()]).await;
    }

    /// A keeper, by index.
    pub fn keeper(&self, index: usize) -> &Keeper {
        &self.keepers[index]
    }

    /// All keepers.
    pub fn keepers(&self) -> &[Keeper] {
        &self.keepers
    }

    /// A sentinel, by index.
    pub fn sentinel(&self, index: usize) -> &Process {
        &self.sentinels[index]
    }

    /// All sentinels.
    pub fn sentinels(&self) -> &[Process] {
        &self.sentinels
    }

    /// A proxy, by index.
    pub fn proxy(&self, index: usize) -> &Proxy {
        &self.proxies[index]
    }

    /// All proxies.
    pub fn proxies(&self) -> &[Proxy] {
        &self.proxies
    }

    /// The lab's directory.
    pub fn path(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new("/nonexistent"), TempDir::path)
    }

    /// The store, for what the lab has no method for.
    pub fn store(&self) -> &SharedStore {
        &self.store
    }

    /// The cluster's keys in the store.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Begins to write through all proxies.
    ///
    /// # Panics
    /// No proxy leads to a master within the limit.
    pub async fn writer(&self) -> Writer {
        Writer::start(&self.proxies.iter().map(|proxy| &proxy.pg).collect::<Vec<_>>()).await
    }
}

/// Waits until a condition holds.
///
/// # Panics
/// It does not within the limit.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < LIMIT, "did not happen: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let processes = self.sentinels.iter().chain(self.proxies.iter().map(|proxy| &proxy.process));
        processes.for_each(Process::kill);
        self.keepers.iter().for_each(Keeper::end);
        self.keepers.iter().for_each(Keeper::finish);
        if std::thread::panicking() {
            self.print_logs();
        }
        if std::env::var_os("LAB_KEEP").is_some()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("the lab's files stay in {}", dir.keep().display());
        }
    }
}

impl Lab {
    fn print_logs(&self) {
        let logs: Vec<PathBuf> = self
            .keepers
            .iter()
            .map(|keeper| &keeper.process)
            .chain(&self.sentinels)
            .chain(self.proxies.iter().map(|proxy| &proxy.process))
            .map(|process| process.log_file().to_owned())
            .collect();
        for log in logs {
            let text = String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {}\n{}", log.display(), lines[lines.len().saturating_sub(TAIL)..].join("\n"));
        }
    }
}
