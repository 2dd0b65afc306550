//! An etcd of three members, one of which is frozen: what was connected to it goes on elsewhere.

#![expect(clippy::unwrap_used, reason = "a test that can not go on stops")]

use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{EtcdStore, Follower, KeptLease, SharedStore, StoreOptions, Target};
use testkit::etcds::Etcds;

/// Far above what is aimed at: the machine may be busy.
const GENEROUS: Duration = Duration::from_secs(4);

async fn open(etcds: &Etcds) -> SharedStore {
    let options = StoreOptions { endpoints: etcds.endpoints(), ..Default::default() };
    Arc::new(EtcdStore::connect(&options).await.unwrap())
}

/// Repeats a write until it is done, as every daemon does.
async fn put_at_last(store: &SharedStore, key: &str, value: &[u8]) {
    while let Err(error) = store.put(key, value, None).await {
        eprintln!("put: {error}");
    }
}

#[tokio::test]
async fn a_frozen_member_holds_nobody_up() {
    let etcds = Etcds::start(3, &[]).await.unwrap();
    let store = open(&etcds).await;
    let mut lease = KeptLease::start(store.clone(), Duration::from_secs(3));
    let id = lease.granted().await;
    store.put("leased", b"", Some(id)).await.unwrap();
    let follower = Follower::start(store.clone(), vec![Target::Prefix("k".into())]);
    let mut views = follower.subscribe();
    views.wait_for(|view| view.loaded).await.unwrap();

    // The first endpoint is the one in use. It may be the members' leader, whose loss takes them another second.
    etcds.freeze(0);
    let begun = Instant::now();
    put_at_last(&store, "k/1", b"written").await;
    eprintln!("written after {:?}", begun.elapsed());
    assert!(begun.elapsed() < 2 * GENEROUS, "a write took {:?}", begun.elapsed());
    let begun = Instant::now();
    assert!(store.get("k/1").await.unwrap().is_some());
    eprintln!("read after {:?}", begun.elapsed());
    assert!(begun.elapsed() < GENEROUS, "a read took {:?}", begun.elapsed());
    // The watch was on the frozen member.
    let seen = views.wait_for(|view| view.entries.contains_key("k/1"));
    tokio::time::timeout(GENEROUS, seen).await.expect("the follower sees the write").unwrap();
    eprintln!("followed after {:?}", begun.elapsed());

    // Longer than the lease lives without keep-alives.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(lease.state().id, Some(id), "the lease was kept");
    assert!(store.get("leased").await.unwrap().is_some());

    etcds.thaw(0);
    etcds.freeze(1);
    let begun = Instant::now();
    put_at_last(&store, "k/2", b"written").await;
    assert!(begun.elapsed() < 2 * GENEROUS, "a write took {:?}", begun.elapsed());
    let seen = views.wait_for(|view| view.entries.contains_key("k/2"));
    tokio::time::timeout(GENEROUS, seen).await.expect("the follower sees the write").unwrap();
}

#[tokio::test]
async fn endpoints_that_are_not_there_are_passed_over() {
    let etcds = Etcds::start(1, &[]).await.unwrap();
    let endpoints = format!("http://127.0.0.1:1,http://127.0.0.1:2,{}", etcds.endpoints());
    let store = EtcdStore::connect(&StoreOptions { endpoints, ..Default::default() }).await.unwrap();
    let store: SharedStore = Arc::new(store);
    // Nothing was sent where nobody listens, so that even the first write succeeds.
    store.put("k", b"v", None).await.unwrap();
    assert!(store.get("k").await.unwrap().is_some());
}
