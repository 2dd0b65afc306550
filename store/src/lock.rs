//! The lock that commands hold while they change a cluster: a key on a lease, with the holder in it.

use crate::{Compare, KeptLease, Op, SharedStore, StoreError, Target, TxnOutcome, WatchEvent};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Time after which the lock of a command that died becomes free.
pub const LOCK_TTL: Duration = Duration::from_secs(10);

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Holder {
    /// Host and process id.
    pub process: String,
    /// The command, without arguments that could be secret.
    pub command: String,
}

/// Why a lock was not taken, or why a write under it was not done.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Waited too long.
    #[error("the metadata lock is held by {holder} for longer than {} s; wait for that command or stop it", .waited.as_secs())]
    Held {
        /// Who holds it.
        holder: String,
        /// How long we waited.
        waited: Duration,
    },
    /// The lease ran out while the command worked: nothing was written.
    #[error("the metadata lock was lost, nothing was written; run the command again")]
    Lost,
    /// Another writer was faster: nothing was written.
    #[error("the cluster was changed by someone else meanwhile, nothing was written; run the command again")]
    Conflict,
}

/// A held lock. Writes go through [`Lock::write`], which fails once the lock is lost.
#[derive(Debug)]
pub struct Lock {
    store: SharedStore,
    key: String,
    created: i64,
    lease: KeptLease,
}

impl Lock {
    /// Takes the lock, waiting for its holder up to `patience`. `waiting` is told who holds it, once per holder.
    ///
    /// # Errors
    /// See [`LockError`].
    pub async fn acquire(
        store: SharedStore,
        key: &str,
        holder: &Holder,
        patience: Duration,
        mut waiting: impl FnMut(&str),
    ) -> Result<Self, LockError> {
        let mut lease = KeptLease::start(store.clone(), LOCK_TTL);
        let mut seen = String::from("someone");
        let attempt = async {
            // Without this a store that is out of reach would look like a lock that is held.
            store.get(key).await?;
            let id = lease.granted().await;
            loop {
                let value = serde_json::to_vec(holder).unwrap_or_default();
                let put = Op::Put { key: key.to_owned(), value, lease: Some(id) };
                let outcome = store.txn(vec![Compare::Absent(key.to_owned())], vec![put]).await?;
                if outcome.succeeded {
                    return Ok::<i64, LockError>(outcome.revision);
                }
                let now = describe(&store, key).await?;
                if now != seen {
                    waiting(&now);
                    seen = now;
                }
                wait_deleted(&store, key, outcome.revision).await?;
            }
        };
        let taken = tokio::time::timeout(patience, attempt).await;
        match taken {
            Ok(created) => Ok(Lock { created: created?, key: key.to_owned(), store, lease }),
            Err(_) => Err(LockError::Held { holder: seen, waited: patience }),
        }
    }

    /// Does the writes if all conditions hold and the lock is still ours, otherwise none.
    ///
    /// # Errors
    /// [`LockError::Lost`] or [`LockError::Conflict`] when a condition does not hold.
    pub async fn write(&self, mut conditions: Vec<Compare>, writes: Vec<Op>) -> Result<TxnOutcome, LockError> {
        conditions.push(Compare::CreatedAt(self.key.clone(), self.created));
        let outcome = self.store.txn(conditions, writes).await?;
        if outcome.succeeded {
            return Ok(outcome);
        }
        match self.store.get(&self.key).await? {
            Some(entry) if entry.create_revision == self.created => Err(LockError::Conflict),
            _ => Err(LockError::Lost),
        }
    }

    /// Gives the lock back at once.
    ///
    /// # Errors
    /// The store is out of reach; the lock then becomes free after [`LOCK_TTL`].
    pub async fn release(self) -> Result<(), StoreError> {
        self.lease.revoke().await
    }
}

async fn describe(store: &SharedStore, key: &str) -> Result<String, StoreError> {
    let entry = store.get(key).await?;
    let holder = entry.and_then(|entry| serde_json::from_slice::<Holder>(&entry.value).ok());
    Ok(holder.map_or_else(|| "someone".to_owned(), |h| format!("{} (\"{}\")", h.process, h.command)))
}

async fn wait_deleted(store: &SharedStore, key: &str, revision: i64) -> Result<(), StoreError> {
    let mut events = store.watch(Target::Key(key.to_owned()), revision).await?;
    while let Some(batch) = events.next().await {
        if batch?.events.iter().any(|event| matches!(event, WatchEvent::Delete(_))) {
            break;
        }
    }
    Ok(())
}
