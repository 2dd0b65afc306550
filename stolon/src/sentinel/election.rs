//! Leadership among sentinels, by the protocol that Go's sentinels and etcd's own election service use: every
//! candidate has a key on its own lease, and the oldest key leads.

use super::observe::Entries;
use model::stolon::SentinelInfo;
use model::stolon::keys::Keys;
use std::time::Duration;
use store::{Compare, KeptLease, LeaseId, LeaseState, Moment, Op, SharedStore, StoreError};
use tokio::sync::watch;

/// A dead leader is replaced after so long. Go's sentinels take 20 s; the protocol does not depend on it.
pub const LEADER_TTL: Duration = Duration::from_secs(3);
/// Pause after an error, before the next attempt.
pub const RETRY: Duration = Duration::from_secs(1);

/// One candidate.
#[derive(Debug)]
pub struct Candidacy {
    store: SharedStore,
    keys: Keys,
    uid: String,
    lease: KeptLease,
    states: watch::Receiver<LeaseState>,
    /// The lease with which our keys were written, and the store's revision after that.
    entered: Option<(LeaseId, i64)>,
}

impl Candidacy {
    /// Starts to keep a lease; the candidate's keys are written by [`Candidacy::enter`].
    pub fn new(store: SharedStore, keys: Keys, uid: String) -> Self {
        let lease = KeptLease::start(store.clone(), LEADER_TTL);
        let states = lease.subscribe();
        Candidacy { store, keys, uid, lease, states, entered: None }
    }

    /// Waits until the lease is another one. Cancel-safe.
    pub async fn lease_changed(&mut self) {
        // The sender lives as long as the lease, which ends with this candidacy only.
        let _ = self.states.changed().await;
    }

    /// Writes the candidate's key and the sentinel's record where the present lease has not got them yet.
    /// `entries` is a copy of the store at `revision`.
    ///
    /// # Errors
    /// The store failed. The session is then given up, so that an old key can't block later elections; call
    /// again after [`RETRY`].
    pub async fn enter(&mut self, entries: &Entries, revision: i64) -> Result<(), StoreError> {
        let Some(lease) = self.states.borrow_and_update().id else { return Ok(()) };
        if let Some((entered, written)) = self.entered {
            let there =
                entries.contains_key(&self.key(lease)) && entries.contains_key(&self.keys.sentinel_info(&self.uid));
            if entered == lease && (there || revision < written) {
                return Ok(());
            }
        }
        match self.write(lease).await {
            Ok(revision) => {
                self.entered = Some((lease, revision));
                Ok(())
            }
            Err(error) => {
                self.give_up().await;
                Err(error)
            }
        }
    }

    async fn write(&self, lease: LeaseId) -> Result<i64, StoreError> {
        let info = SentinelInfo { uid: self.uid.clone() };
        // A string in an object: serialising can't fail.
        let info = serde_json::to_vec(&info).expect("a sentinel's record is plain JSON");
        let key = self.key(lease);
        let put = Op::Put { key: key.clone(), value: self.uid.clone().into_bytes(), lease: Some(lease) };
        // If the key exists it is ours, by its name: an earlier attempt got through without an answer.
        self.store.txn(vec![Compare::Absent(key)], vec![put]).await?;
        self.store.put(&self.keys.sentinel_info(&self.uid), &info, Some(lease)).await
    }

    async fn give_up(&mut self) {
        self.entered = None;
        let next = KeptLease::start(self.store.clone(), LEADER_TTL);
        self.states = next.subscribe();
        let old = std::mem::replace(&mut self.lease, next);
        // If this fails too, the lease expires.
        let _ = old.revoke().await;
    }

    fn key(&self, lease: LeaseId) -> String {
        format!("{}{lease:x}", self.keys.election())
    }

    /// True if this candidate leads, and surely still does at `now`.
    pub fn leads(&self, entries: &Entries, now: Moment) -> bool {
        let state = self.lease.state();
        let Some(lease) = state.id.filter(|_| now < state.alive_until) else { return false };
        let oldest = leader(entries, &self.keys);
        oldest.is_some_and(|entry| entry.key == self.key(lease))
    }

    /// The lease of this candidate, for what is to vanish with it.
    pub fn lease(&self) -> Option<LeaseId> {
        self.lease.state().id
    }

    /// Ends the candidacy: the next candidate leads at once.
    ///
    /// # Errors
    /// The store is out of reach; the lease then expires by itself.
    pub async fn resign(self) -> Result<(), StoreError> {
        self.lease.revoke().await
    }
}

/// The key of the sentinel that leads.
pub fn leader<'a>(entries: &'a Entries, keys: &Keys) -> Option<&'a store::Entry> {
    let prefix = keys.election();
    let candidates = entries.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
    candidates.map(|(_, entry)| entry).min_by_key(|entry| entry.create_revision)
}
