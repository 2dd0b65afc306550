//! An in-memory double of etcd for tests of logic: same revisions, conditions, leases and watches, and faults on demand.

use crate::{
    Compare, Entry, LeaseId, Listing, Member, Op, Result, Store, StoreError, Target, TxnOutcome, WatchBatch, WatchEvent,
};
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast;

#[derive(Debug, Default)]
struct State {
    revision: i64,
    entries: BTreeMap<String, Entry>,
    leases: BTreeSet<LeaseId>,
    next_lease: i64,
    log: Vec<WatchBatch>,
    down: bool,
}

/// The double. Leases expire only when a test says so.
#[derive(Debug)]
pub struct MemoryStore {
    state: Mutex<State>,
    changes: broadcast::Sender<Option<WatchBatch>>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        MemoryStore {
            state: Mutex::new(State { next_lease: 1, ..State::default() }),
            changes: broadcast::channel(1024).0,
        }
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on every call fails, or works again; going down breaks all watches.
    pub fn set_down(&self, down: bool) {
        self.lock().down = down;
        if down {
            let _ = self.changes.send(None);
        }
    }

    /// Forgets all data, as an etcd whose data directory was removed.
    pub fn wipe(&self) {
        let mut state = self.lock();
        *state = State { next_lease: state.next_lease, down: state.down, ..State::default() };
        let _ = self.changes.send(None);
    }

    /// Lets a lease expire.
    pub fn expire(&self, lease: LeaseId) {
        let mut state = self.lock();
        state.leases.remove(&lease);
        let gone: Vec<Op> =
            state.entries.values().filter(|e| e.lease == Some(lease)).map(|e| Op::Delete(e.key.clone())).collect();
        self.apply(&mut state, gone);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn up(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.lock();
        if state.down {
            return Err(StoreError::Unavailable { endpoints: "memory".into(), reason: "made to fail".into() });
        }
        Ok(state)
    }

    fn apply(&self, state: &mut State, writes: Vec<Op>) {
        if writes.is_empty() {
            return;
        }
        let revision = state.revision + 1;
        let mut events = Vec::new();
        for op in writes {
            match op {
                Op::Put { key, value, lease } => {
                    let create_revision = state.entries.get(&key).map_or(revision, |old| old.create_revision);
                    let entry = Entry { key: key.clone(), value, create_revision, mod_revision: revision, lease };
                    state.entries.insert(key, entry.clone());
                    events.push(WatchEvent::Put(entry));
                }
                Op::Delete(key) => {
                    if state.entries.remove(&key).is_some() {
                        events.push(WatchEvent::Delete(key));
                    }
                }
            }
        }
        if !events.is_empty() {
            state.revision = revision;
            let batch = WatchBatch { revision, events };
            state.log.push(batch.clone());
            let _ = self.changes.send(Some(batch));
        }
    }
}

fn holds(state: &State, condition: &Compare) -> bool {
    match condition {
        Compare::Absent(key) => !state.entries.contains_key(key),
        Compare::Unchanged(key, revision) => state.entries.get(key).is_some_and(|e| e.mod_revision == *revision),
        Compare::CreatedAt(key, revision) => state.entries.get(key).is_some_and(|e| e.create_revision == *revision),
    }
}

fn wanted(target: &Target, key: &str) -> bool {
    match target {
        Target::Key(wanted) => key == wanted,
        Target::Prefix(prefix) => key.starts_with(prefix),
    }
}

fn concerns(target: &Target, batch: &WatchBatch) -> Option<WatchBatch> {
    let events: Vec<_> = batch
        .events
        .iter()
        .filter(|event| match event {
            WatchEvent::Put(entry) => wanted(target, &entry.key),
            WatchEvent::Delete(key) => wanted(target, key),
        })
        .cloned()
        .collect();
    (!events.is_empty()).then_some(WatchBatch { revision: batch.revision, events })
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        Ok(self.up()?.entries.get(key).cloned())
    }

    async fn read(&self, target: &Target) -> Result<Listing> {
        let state = self.up()?;
        let entries = state.entries.values().filter(|e| wanted(target, &e.key)).cloned().collect();
        Ok(Listing { entries, revision: state.revision })
    }

    async fn put(&self, key: &str, value: &[u8], lease: Option<LeaseId>) -> Result<i64> {
        let mut state = self.up()?;
        if lease.is_some_and(|lease| !state.leases.contains(&lease)) {
            return Err(StoreError::LeaseExpired);
        }
        self.apply(&mut state, vec![Op::Put { key: key.to_owned(), value: value.to_vec(), lease }]);
        Ok(state.revision)
    }

    async fn delete(&self, key: &str) -> Result<bool> {
        let mut state = self.up()?;
        let existed = state.entries.contains_key(key);
        self.apply(&mut state, vec![Op::Delete(key.to_owned())]);
        Ok(existed)
    }

    async fn txn(&self, conditions: Vec<Compare>, writes: Vec<Op>) -> Result<TxnOutcome> {
        let mut state = self.up()?;
        let succeeded = conditions.iter().all(|condition| holds(&state, condition));
        if succeeded {
            self.apply(&mut state, writes);
        }
        Ok(TxnOutcome { succeeded, revision: state.revision })
    }

    async fn watch(&self, target: Target, revision: i64) -> Result<BoxStream<'static, Result<WatchBatch>>> {
        let state = self.up()?;
        let receiver = self.changes.subscribe();
        let missed: Vec<_> =
            state.log.iter().filter(|b| b.revision > revision).filter_map(|b| concerns(&target, b)).map(Ok).collect();
        let live = futures::stream::unfold((receiver, target), |(mut receiver, target)| async move {
            loop {
                match receiver.recv().await {
                    Ok(Some(batch)) => {
                        if let Some(batch) = concerns(&target, &batch) {
                            return Some((Ok(batch), (receiver, target)));
                        }
                    }
                    Ok(None) | Err(_) => return None,
                }
            }
        });
        Ok(futures::stream::iter(missed).chain(live).boxed())
    }

    async fn grant(&self, _ttl: Duration) -> Result<LeaseId> {
        let mut state = self.up()?;
        let id = LeaseId(state.next_lease);
        state.next_lease += 1;
        state.leases.insert(id);
        Ok(id)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<()> {
        if self.up()?.leases.contains(&lease) { Ok(()) } else { Err(StoreError::LeaseExpired) }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        drop(self.up()?);
        self.expire(lease);
        Ok(())
    }

    async fn members(&self) -> Result<Vec<Member>> {
        drop(self.up()?);
        Ok(vec![Member { name: "memory".into(), urls: Vec::new(), healthy: true }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::{Holder, Lock, LockError};
    use crate::{Follower, SharedStore};
    use std::sync::Arc;

    async fn until(follower: &mut Follower, what: impl Fn(&crate::View) -> bool) {
        let wait = async {
            while !what(&follower.view()) {
                follower.changed().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
    }

    #[tokio::test]
    async fn a_follower_sees_changes_outages_and_wipes() {
        let store = Arc::new(MemoryStore::new());
        store.put("a/1", b"x", None).await.unwrap();
        let mut follower = Follower::start(store.clone(), vec![Target::Prefix("a/".into()), Target::Key("b".into())]);
        until(&mut follower, |view| view.loaded && view.value("a/1") == Some(b"x")).await;
        store.put("b", b"y", None).await.unwrap();
        store.put("bb", b"not followed", None).await.unwrap();
        store.delete("a/1").await.unwrap();
        until(&mut follower, |view| view.value("b") == Some(b"y") && view.value("a/1").is_none()).await;
        assert!(follower.view().value("bb").is_none());
        store.set_down(true);
        until(&mut follower, |view| !view.connected).await;
        assert_eq!(follower.view().value("b"), Some(b"y".as_slice()));
        store.set_down(false);
        store.put("a/2", b"z", None).await.unwrap();
        until(&mut follower, |view| view.connected && view.value("a/2") == Some(b"z")).await;
        store.wipe();
        until(&mut follower, |view| view.connected && view.entries.is_empty()).await;
    }

    #[tokio::test]
    async fn a_lock_excludes_and_guards() {
        let store: SharedStore = Arc::new(MemoryStore::new());
        let holder = |command: &str| Holder { process: "host:1".into(), command: command.into() };
        let short = Duration::from_millis(50);
        let first = Lock::acquire(store.clone(), "l", &holder("first"), short, |_| {}).await.unwrap();
        let second = Lock::acquire(store.clone(), "l", &holder("second"), short, |_| {}).await;
        assert!(matches!(second, Err(LockError::Held { holder, .. }) if holder.contains("first")));
        first.write(vec![Compare::Absent("k".into())], vec![Op::put("k", "1")]).await.unwrap();
        let again = first.write(vec![Compare::Absent("k".into())], vec![Op::put("k", "2")]).await;
        assert!(matches!(again, Err(LockError::Conflict)));
        store.delete("l").await.unwrap();
        assert!(matches!(first.write(vec![], vec![Op::put("k", "3")]).await, Err(LockError::Lost)));
        assert_eq!(store.get("k").await.unwrap().unwrap().value, b"1");
    }
}
