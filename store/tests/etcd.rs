//! The store on a real etcd: conditions, leases, watches over an outage, the lock.

#![expect(clippy::unwrap_used, reason = "a test that can not go on stops")]

use std::sync::Arc;
use std::time::Duration;
use store::lock::{Holder, LOCK_TTL, Lock};
use store::{Compare, EtcdStore, Follower, KeptLease, Op, SharedStore, StoreError, StoreOptions, Target};
use testkit::etcd::Etcd;

async fn open(etcd: &Etcd) -> SharedStore {
    let options = StoreOptions { endpoints: etcd.endpoints(), timeout: Duration::from_secs(2), ..Default::default() };
    Arc::new(EtcdStore::connect(&options).await.unwrap())
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..300 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("did not happen within 15 s: {what}");
}

#[tokio::test]
async fn conditions_guard_writes() {
    let etcd = Etcd::start().await.unwrap();
    let store = open(&etcd).await;
    let first = store.txn(vec![Compare::Absent("a".into())], vec![Op::put("a", "1"), Op::put("b", "1")]).await.unwrap();
    assert!(first.succeeded);
    let entry = store.get("a").await.unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.mod_revision), (b"1".as_slice(), first.revision));
    assert!(!store.txn(vec![Compare::Absent("a".into())], vec![Op::put("a", "2")]).await.unwrap().succeeded);
    let unchanged = Compare::Unchanged("a".into(), first.revision);
    assert!(store.txn(vec![unchanged.clone()], vec![Op::put("a", "3")]).await.unwrap().succeeded);
    assert!(!store.txn(vec![unchanged], vec![Op::Delete("b".into())]).await.unwrap().succeeded);
    assert_eq!(store.list("").await.unwrap().entries.len(), 2);
    assert!(store.delete("a").await.unwrap() && !store.delete("a").await.unwrap());
    assert_eq!(store.members().await.unwrap().iter().filter(|member| member.healthy).count(), 1);
}

#[tokio::test]
async fn leases_expire_and_are_replaced() {
    let etcd = Etcd::start().await.unwrap();
    let store = open(&etcd).await;
    let mut kept = KeptLease::start(store.clone(), Duration::from_secs(2));
    let id = kept.granted().await;
    store.put("k", b"v", Some(id)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(store.get("k").await.unwrap().is_some(), "a kept lease lives on");
    store.revoke(id).await.unwrap();
    assert!(matches!(store.keep_alive(id).await, Err(StoreError::LeaseExpired)));
    assert!(matches!(store.put("k", b"v", Some(id)).await, Err(StoreError::LeaseExpired)));
    eventually("a new lease", async || kept.state().id.is_some_and(|new| new != id)).await;
    let id = kept.granted().await;
    store.put("k", b"v", Some(id)).await.unwrap();
    drop(kept);
    eventually("expiry", async || store.get("k").await.unwrap().is_none()).await;
}

#[tokio::test]
async fn a_follower_survives_an_outage_and_a_wipe() {
    let mut etcd = Etcd::start().await.unwrap();
    let store = open(&etcd).await;
    store.put("x/1", b"a", None).await.unwrap();
    let follower = Follower::start(store.clone(), vec![Target::Prefix("x/".into()), Target::Key("y".into())]);
    eventually("first read", async || follower.view().value("x/1") == Some(b"a")).await;
    store.put("y", b"b", None).await.unwrap();
    eventually("watch", async || follower.view().value("y") == Some(b"b")).await;
    etcd.stop();
    eventually("outage seen", async || !follower.view().connected).await;
    assert_eq!(follower.view().value("y"), Some(b"b".as_slice()), "what was known stays");
    etcd.resume().await.unwrap();
    eventually("etcd is back", async || store.put("x/2", b"c", None).await.is_ok()).await;
    eventually("watch again", async || follower.view().connected && follower.view().value("x/2") == Some(b"c")).await;
    etcd.stop();
    etcd.wipe().unwrap();
    etcd.resume().await.unwrap();
    eventually("empty store seen", async || follower.view().connected && follower.view().entries.is_empty()).await;
}

#[tokio::test]
async fn a_lock_passes_on_when_its_holder_dies() {
    let etcd = Etcd::start().await.unwrap();
    let store = open(&etcd).await;
    let holder = |command: &str| Holder { process: "host:1".into(), command: command.into() };
    let first = Lock::acquire(store.clone(), "lock", &holder("first"), LOCK_TTL, |_| {}).await.unwrap();
    let mut told = Vec::new();
    let waiting = holder("second");
    let short = Lock::acquire(store.clone(), "lock", &waiting, Duration::from_secs(1), |who| told.push(who.to_owned()));
    assert!(short.await.is_err());
    assert_eq!(told, ["host:1 (\"first\")"]);
    // Dropped without a release, as when the process is killed.
    drop(first);
    let second = Lock::acquire(store.clone(), "lock", &holder("second"), LOCK_TTL * 2, |_| {}).await.unwrap();
    second.write(vec![], vec![Op::put("k", "v")]).await.unwrap();
    second.release().await.unwrap();
    assert!(store.get("lock").await.unwrap().is_none(), "a released lock is free at once");
}

#[tokio::test]
async fn an_unreachable_store_is_an_error_in_time() {
    let options =
        StoreOptions { endpoints: "127.0.0.1:1".into(), timeout: Duration::from_secs(1), ..Default::default() };
    let store: SharedStore = Arc::new(EtcdStore::connect(&options).await.unwrap());
    let begun = std::time::Instant::now();
    let error = store.get("k").await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    let holder = Holder { process: "p".into(), command: "c".into() };
    let lock = Lock::acquire(store, "lock", &holder, Duration::from_secs(30), |_| {}).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(6));
    assert!(lock.to_string().contains("127.0.0.1:1"), "{lock}");
}

#[tokio::test]
async fn listings_larger_than_a_message_are_whole() {
    let etcd = Etcd::start().await.unwrap();
    let store = open(&etcd).await;
    // Together more than the 4 MiB that one message may have, also in a page of any fixed number of keys.
    let large = vec![b'x'; 1 << 20];
    for number in 0..6 {
        store.put(&format!("large/{number}"), &large, None).await.unwrap();
    }
    for chunk in (0..1100).collect::<Vec<_>>().chunks(100) {
        let writes = chunk.iter().map(|number| Op::put(format!("small/{number:04}"), "x")).collect();
        store.txn(Vec::new(), writes).await.unwrap();
    }
    store.put("smalm", b"", None).await.unwrap();
    assert_eq!(store.list("large/").await.unwrap().entries.len(), 6);
    let small = store.list("small/").await.unwrap();
    assert_eq!(small.entries.len(), 1100);
    assert!(small.entries.is_sorted_by(|a, b| a.key < b.key));
    let all = store.list("").await.unwrap();
    assert_eq!((all.entries.len(), all.revision), (1107, small.revision));
}
