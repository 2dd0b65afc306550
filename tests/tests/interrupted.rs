//! `nodes add` is killed in the middle and run again.

#![expect(clippy::unwrap_used, reason = "a test that can not go on stops")]

use e2e::playground::Playground;
use model::keys::ClusterKeys;
use std::sync::Arc;
use std::time::Duration;
use store::{EtcdStore, SharedStore, StoreOptions};

/// Starts a playground, kills the command as soon as `reached` holds, and lets `nodes add` complete.
async fn killed_when(what: &str, reached: impl AsyncFn(&SharedStore, &ClusterKeys) -> bool) {
    let playground = Playground::unstarted().unwrap();
    let mut command = playground.spawn_shardmanctl(&playground.start_arguments(2, 1)).unwrap();
    let keys = ClusterKeys::new(&"cluster0".into());
    let mut store: Option<SharedStore> = None;
    Playground::eventually(what, Duration::from_secs(60), async || {
        if store.is_none() && playground.endpoints() != "http://127.0.0.1:1" {
            let options = StoreOptions { endpoints: playground.endpoints(), ..StoreOptions::default() };
            store = Some(Arc::new(EtcdStore::connect(&options).await.unwrap()));
        }
        match &store {
            Some(store) => reached(store, &keys).await,
            None => false,
        }
    })
    .await
    .unwrap();
    command.kill().unwrap();
    command.wait().unwrap();

    playground.shardmanctl(&["nodes", "add", "-n", "node1,node2"]).unwrap();
    Playground::eventually("all is well", Duration::from_secs(30), async || {
        playground.status().unwrap().complaints().is_empty()
    })
    .await
    .unwrap_or_else(|e| panic!("{what}: {e}: {:?}", playground.status().unwrap().complaints()));
    let client = playground.connect().await.unwrap();
    client
        .batch_execute(
            "create table x(id int primary key) with (distributed_by='id', num_parts=2);
             insert into x select generate_series(1, 100)",
        )
        .await
        .unwrap();
    let counts = playground.shardmanctl(&["forall", "--sql", "select count(*) from x"]).unwrap();
    assert_eq!(counts, "Node 1 says:\n100\nNode 2 says:\n100\n");
    let again = playground.try_shardmanctl(&["nodes", "add", "-n", "node1,node2"]).unwrap();
    assert_eq!(again.status.code(), Some(1), "complete: the nodes are registered now");
}

async fn count(store: &SharedStore, prefix: &str) -> usize {
    store.list(prefix).await.map_or(0, |listing| listing.entries.len())
}

#[tokio::test]
async fn after_the_layouts() {
    killed_when("layouts are written", async |store, keys| count(store, &keys.layouts()).await > 0).await;
}

#[tokio::test]
async fn while_the_first_group_is_added() {
    killed_when("a group is being added", async |store, keys| count(store, &keys.repgroups()).await > 0).await;
}

#[tokio::test]
async fn while_the_second_group_is_added() {
    killed_when("a second group is being added", async |store, keys| count(store, &keys.repgroups()).await > 1).await;
}
