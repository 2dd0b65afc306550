//! etcd behind a small trait, so that logic can be tested against [`memory::MemoryStore`] and faults can be made.
//!
//! * [`Store`]: get, list, put, transactions, watches, leases. Every call has a deadline.
//! * [`etcd::EtcdStore`]: the real one. Reads are linearizable.
//! * [`follow::Follower`]: a live copy of some keys, kept by a watch and re-read when the watch breaks.
//! * [`lease::KeptLease`]: a lease that is kept alive, with the moment until which it surely lives.
//! * [`Moment`]: a clock that goes on while the machine sleeps.
//! * [`lock::Lock`]: the lock that commands hold while they change a cluster.

pub mod etcd;
pub mod follow;
pub mod lease;
pub mod lock;
pub mod memory;
mod moment;
pub mod stats;

use async_trait::async_trait;
use futures::stream::BoxStream;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use etcd::{EtcdStore, StoreOptions, open_place};
pub use follow::{Follower, Target, View};
pub use lease::{KeptLease, LeaseState};
pub use lock::Lock;
pub use memory::MemoryStore;
pub use moment::Moment;

/// A store that can be shared by tasks.
pub type SharedStore = Arc<dyn Store>;

/// Largest number of operations in one etcd transaction (etcd's default `--max-txn-ops`).
pub const MAX_TXN_OPS: usize = 128;

/// Why a call to the store did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No answer in time. A write may have happened.
    #[error("etcd at {endpoints} did not answer within {} s; check that it runs and is reachable", .after.as_secs_f32())]
    Timeout {
        /// Where we tried.
        endpoints: String,
        /// The deadline.
        after: Duration,
    },
    /// The store can't be used now.
    #[error(
        "etcd at {endpoints} can't be used: {reason}; check that etcd runs and that --store-endpoints \
         (SDM_STORE_ENDPOINTS) is right"
    )]
    Unavailable {
        /// Where we tried.
        endpoints: String,
        /// The client's words.
        reason: String,
    },
    /// The store does not let us in, or not everywhere.
    #[error(
        "etcd at {endpoints} refuses: {reason}; check --store-user, the password in --store-password-file and the \
         rights of that user"
    )]
    Denied {
        /// Where we tried.
        endpoints: String,
        /// The store's words.
        reason: String,
    },
    /// The lease does not exist any more.
    #[error("the etcd lease has expired")]
    LeaseExpired,
    /// The options can't be used.
    #[error("{0}")]
    Options(String),
    /// The store answered what it must not.
    #[error("etcd answered unexpectedly: {0}")]
    Protocol(String),
}

/// Shorthand for results of the store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A lease's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl fmt::LowerHex for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// Revision of the key's creation.
    pub create_revision: i64,
    /// Revision of the key's last change: what compare-and-set compares.
    pub mod_revision: i64,
    /// The lease that the key hangs on.
    pub lease: Option<LeaseId>,
}

/// All keys with a prefix at one revision of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Sorted by key.
    pub entries: Vec<Entry>,
    /// The store's revision at that moment.
    pub revision: i64,
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(String),
    /// The key exists and was last changed at this revision.
    Unchanged(String, i64),
    /// The key exists and was created at this revision: the holder of a lock still holds it.
    CreatedAt(String, i64),
}

/// A write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets a key.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
        /// The lease that the key is to hang on.
        lease: Option<LeaseId>,
    },
    /// Deletes a key.
    Delete(String),
}

impl Op {
    /// Sets a key without a lease.
    pub fn put(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Op::Put { key: key.into(), value: value.into(), lease: None }
    }
}

/// What a transaction did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxnOutcome {
    /// The conditions held and the writes were done.
    pub succeeded: bool,
    /// The store's revision after it.
    pub revision: i64,
}

/// What changed, in the order of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    /// The store's revision.
    pub revision: i64,
    /// Changes.
    pub events: Vec<WatchEvent>,
}

/// A change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// The key has a new value.
    Put(Entry),
    /// The key is gone.
    Delete(String),
}

/// A member of the store's cluster, as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its client URLs.
    pub urls: Vec<String>,
    /// It answered a status request.
    pub healthy: bool,
}

/// A key-value store with revisions, leases and watches. Every call ends by the store's deadline.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Reads one key.
    async fn get(&self, key: &str) -> Result<Option<Entry>>;
    /// Reads a key or all keys with a prefix, with the store's revision at that moment.
    async fn read(&self, target: &Target) -> Result<Listing>;
    /// Reads all keys that begin with `prefix`.
    async fn list(&self, prefix: &str) -> Result<Listing> {
        self.read(&Target::Prefix(prefix.to_owned())).await
    }
    /// Sets a key unconditionally; gives the store's revision after it.
    async fn put(&self, key: &str, value: &[u8], lease: Option<LeaseId>) -> Result<i64>;
    /// Deletes a key; says whether it existed.
    async fn delete(&self, key: &str) -> Result<bool>;
    /// Does all writes if all conditions hold, otherwise none.
    async fn txn(&self, conditions: Vec<Compare>, writes: Vec<Op>) -> Result<TxnOutcome>;
    /// Changes of a key or prefix after `revision`. The stream ends, with or without an error, when the watch
    /// breaks; the follower then reads anew.
    async fn watch(&self, target: Target, revision: i64) -> Result<BoxStream<'static, Result<WatchBatch>>>;
    /// A new lease.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId>;
    /// Prolongs a lease to its full time.
    ///
    /// # Errors
    /// [`StoreError::LeaseExpired`] when it does not exist any more.
    async fn keep_alive(&self, lease: LeaseId) -> Result<()>;
    /// Ends a lease and deletes its keys. No error when it does not exist.
    async fn revoke(&self, lease: LeaseId) -> Result<()>;
    /// The members of the store's cluster.
    async fn members(&self) -> Result<Vec<Member>>;
}
