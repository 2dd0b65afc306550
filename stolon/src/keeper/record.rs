//! The keeper's record in the store, which one keeper only may write.
//!
//! Two hosts with one keeper uid, such as a machine and its clone, would overwrite each other's record in turns, and with it the
//! address that proxies and standbys go to. So every write has a condition: that the record is the one that this keeper
//! wrote last, or that there is none. What another keeper wrote is never replaced. Whoever comes second stays out,
//! starts no PostgreSQL, since the sentinel does not learn of it, and complains in the log and to the first one.

use super::error::{Result, io};
use crate::access::random_uid;
use model::stolon::KeeperInfo;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use store::{Compare, Entry, LeaseId, Op, SharedStore};

/// Writes against somebody else in one go; more would be a quarrel.
const ATTEMPTS: usize = 3;

/// Which start of which machine this is, and which directory: what was written there before was written by this keeper's
/// predecessor, which does not run any more, because this one holds its lock.
///
/// # Errors
/// The directory can't be looked at.
pub fn place(root: &Path) -> Result<String> {
    let metadata = io(std::fs::metadata(root), "look at", root)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    // Where the kernel does not tell, no other start is the same.
    let boot = if boot.trim().is_empty() { random_uid() } else { boot.trim().to_owned() };
    Ok(format!("{boot} {:x}:{:x}", metadata.dev(), metadata.ino()))
}

/// The record's key, and what is known of it.
#[derive(Debug)]
pub struct Record {
    store: SharedStore,
    key: String,
    /// Revision of the last version that is ours; `None`: there is none.
    revision: Option<i64>,
    /// It was written once.
    begun: bool,
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The record is written.
    Written,
    /// It belongs to another keeper: who that is.
    Taken(String),
}

impl Record {
    /// A record that was not written yet.
    pub fn new(store: SharedStore, key: String) -> Self {
        Record { store, key, revision: None, begun: false }
    }

    /// Writes the record, with a new uid.
    ///
    /// # Errors
    /// The store failed; the write may have happened.
    pub async fn put(&mut self, info: &KeeperInfo, lease: LeaseId) -> store::Result<Outcome> {
        let info = KeeperInfo { info_uid: random_uid(), ..info.clone() };
        // Strings, numbers and maps with string keys only: serialising can't fail.
        let value = serde_json::to_vec(&info).expect("a keeper's record is plain JSON");
        let mut other = String::new();
        for _ in 0..ATTEMPTS {
            let condition = match self.revision {
                None => Compare::Absent(self.key.clone()),
                Some(revision) => Compare::Unchanged(self.key.clone(), revision),
            };
            let put = Op::Put { key: self.key.clone(), value: value.clone(), lease: Some(lease) };
            let outcome = self.store.txn(vec![condition], vec![put]).await?;
            if outcome.succeeded {
                (self.revision, self.begun) = (Some(outcome.revision), true);
                return Ok(Outcome::Written);
            }
            match self.store.get(&self.key).await? {
                // The lease was lost.
                None => self.revision = None,
                Some(entry) => match self.owner(&entry, &info, lease) {
                    None => self.revision = Some(entry.mod_revision),
                    Some(owner) => return Ok(Outcome::Taken(owner)),
                },
            }
            other = "one that writes at the same time".to_owned();
        }
        Ok(Outcome::Taken(other))
    }

    /// Who wrote this, if it was not this keeper: an earlier start of it counts as long as this one has written nothing, and
    /// so does a keeper that does not tell its place, as those of Go.
    fn owner(&self, entry: &Entry, own: &KeeperInfo, lease: LeaseId) -> Option<String> {
        let Ok(info) = serde_json::from_slice::<KeeperInfo>(&entry.value) else { return None };
        // A write whose answer got lost.
        let mine = entry.lease == Some(lease) || info.boot_uuid == own.boot_uuid;
        let before = info.place.is_none() || info.place == own.place;
        if mine || (before && !self.begun) {
            return None;
        }
        let state = info.postgres_state.unwrap_or_default();
        Some(format!("one with PostgreSQL at {}:{}, start {}", state.listen_address, state.port, info.boot_uuid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::stolon::PostgresState;
    use std::sync::Arc;
    use std::time::Duration;
    use store::{MemoryStore, Store as _};

    fn info(boot: &str, place: Option<&str>) -> KeeperInfo {
        KeeperInfo {
            boot_uuid: boot.into(),
            place: place.map(str::to_owned),
            postgres_state: Some(PostgresState {
                listen_address: "10.0.0.1".into(),
                port: "5432".into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    struct Scene {
        store: Arc<MemoryStore>,
        leases: Vec<LeaseId>,
    }

    impl Scene {
        async fn new() -> Self {
            let store = Arc::new(MemoryStore::new());
            let mut leases = Vec::new();
            for _ in 0..3 {
                leases.push(store.grant(Duration::from_secs(2)).await.unwrap());
            }
            Scene { store, leases }
        }

        fn keeper(&self) -> Record {
            Record::new(self.store.clone(), "k".into())
        }

        async fn boot(&self) -> String {
            let entry = self.store.get("k").await.unwrap().unwrap();
            serde_json::from_slice::<KeeperInfo>(&entry.value).unwrap().boot_uuid
        }
    }

    #[tokio::test]
    async fn a_second_host_with_the_uid_stays_out_until_the_first_is_gone() {
        let scene = Scene::new().await;
        let (mut first, mut second) = (scene.keeper(), scene.keeper());
        let (a, b) = (info("a", Some("one")), info("b", Some("two")));
        for _ in 0..2 {
            assert_eq!(first.put(&a, scene.leases[0]).await.unwrap(), Outcome::Written);
            let Outcome::Taken(who) = second.put(&b, scene.leases[1]).await.unwrap() else { panic!() };
            assert!(who.contains("10.0.0.1:5432"), "{who}");
            assert_eq!(scene.boot().await, "a");
        }
        scene.store.expire(scene.leases[0]);
        assert_eq!(second.put(&b, scene.leases[1]).await.unwrap(), Outcome::Written);
        // Back with another lease, the first one is the second one now.
        assert!(matches!(first.put(&a, scene.leases[2]).await.unwrap(), Outcome::Taken(_)));
        assert_eq!(second.put(&b, scene.leases[1]).await.unwrap(), Outcome::Written);
        assert_eq!(scene.boot().await, "b");
    }

    #[tokio::test]
    async fn another_start_at_the_same_place_goes_on_at_once() {
        let scene = Scene::new().await;
        for (number, place) in [Some("one"), None].into_iter().enumerate() {
            assert_eq!(scene.keeper().put(&info("old", place), scene.leases[0]).await.unwrap(), Outcome::Written);
            let mut next = scene.keeper();
            let new = info(&format!("new{number}"), Some("one"));
            assert_eq!(next.put(&new, scene.leases[1]).await.unwrap(), Outcome::Written);
            assert_eq!(next.put(&new, scene.leases[1]).await.unwrap(), Outcome::Written);
            scene.store.delete("k").await.unwrap();
            assert_eq!(next.put(&new, scene.leases[2]).await.unwrap(), Outcome::Written, "its lease was lost");
            scene.store.delete("k").await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_write_whose_answer_got_lost_is_no_quarrel() {
        let scene = Scene::new().await;
        let mut keeper = scene.keeper();
        let own = info("a", Some("one"));
        assert_eq!(keeper.put(&own, scene.leases[0]).await.unwrap(), Outcome::Written);
        keeper.revision = Some(1000);
        assert_eq!(keeper.put(&own, scene.leases[1]).await.unwrap(), Outcome::Written);
        // What can't be read is nobody's.
        scene.store.put("k", b"{", None).await.unwrap();
        assert_eq!(keeper.put(&own, scene.leases[1]).await.unwrap(), Outcome::Written);
    }

    #[test]
    fn directories_are_places() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("a");
        std::fs::create_dir(&other).unwrap();
        assert_eq!(place(dir.path()).unwrap(), place(dir.path()).unwrap());
        assert_ne!(place(dir.path()).unwrap(), place(&other).unwrap());
    }
}
