//! What every command works with.

use crate::error::Error;
use crate::report::Progress;
use model::ClusterName;
use model::ids::is_plain_name;
use model::keys::ClusterKeys;
use std::time::Duration;
use store::lock::Holder;
use store::{Lock, SharedStore};
use tracing::debug;

/// How long a command waits for another one. Longer waits are better seen than slept through.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// A bowl applies a change within a few seconds; a node that is just starting up takes longer.
const BOWL_PATIENCE: Duration = Duration::from_secs(60);

/// A cluster in a store.
#[derive(Clone, Debug)]
pub struct Context {
    /// The store.
    pub store: SharedStore,
    /// The cluster's name.
    pub cluster: ClusterName,
    /// The cluster's keys.
    pub keys: ClusterKeys,
    /// The command, as other commands see it while this one holds the lock; no arguments that could be secret.
    pub command: String,
    /// How long all bowls together may take to report that they have applied what is in force.
    pub bowl_patience: Duration,
}

impl Context {
    /// A command's view of a cluster, which need not exist yet.
    ///
    /// # Errors
    /// The name can't be part of keys, unit names and file names.
    pub fn new(store: SharedStore, cluster: &str, command: &str) -> Result<Self, Error> {
        if !is_plain_name(cluster) {
            return Err(Error::Refused(format!(
                "\"{cluster}\" can't be a cluster's name; use 1 to 63 letters, digits, '.', '-' and '_'"
            )));
        }
        let cluster = ClusterName::from(cluster);
        Ok(Context {
            keys: ClusterKeys::new(&cluster),
            store,
            cluster,
            command: command.to_owned(),
            bowl_patience: BOWL_PATIENCE,
        })
    }

    /// Takes the metadata lock.
    ///
    /// # Errors
    /// The store is out of reach, or another command holds the lock for too long.
    pub async fn lock(&self, progress: &dyn Progress) -> Result<Lock, Error> {
        debug!("Waiting for metadata lock...");
        // The kernel's file instead of a system call of its own: the name only helps people.
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let holder =
            Holder { process: format!("{}:{}", host.trim(), std::process::id()), command: self.command.clone() };
        let waiting = |other: &str| progress.info(&format!("Waiting for {other}, which holds the metadata lock"));
        Ok(Lock::acquire(self.store.clone(), &self.keys.metadata_lock(), &holder, LOCK_PATIENCE, waiting).await?)
    }
}

/// Gives the lock back; a store that is out of reach just lets it expire.
pub async fn release(lock: Lock) {
    if let Err(error) = lock.release().await {
        debug!(%error, "the metadata lock is left to expire");
    }
}
