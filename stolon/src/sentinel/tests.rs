//! Sentinels on a real etcd, with keepers and proxies that a test plays.

use super::daemon::serve;
use super::election::{Candidacy, leader};
use crate::access;
use model::stolon::keys::Keys;
use model::stolon::{ClusterData, KeeperInfo, PostgresState, ProxyInfo, StolonSpec};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{EtcdStore, Follower, KeptLease, Moment, SharedStore, StoreOptions, Target};
use testkit::etcd::Etcd;
use tokio::sync::oneshot;

async fn open(etcd: &Etcd) -> SharedStore {
    let options = StoreOptions { endpoints: etcd.endpoints(), ..Default::default() };
    Arc::new(EtcdStore::connect(&options).await.unwrap())
}

fn keys() -> Keys {
    Keys::new("stolon/cluster", &"c".into())
}

struct Runner {
    candidacy: Candidacy,
    follower: Follower,
}

impl Runner {
    fn start(store: &SharedStore, uid: &str) -> Self {
        let follower = Follower::start(store.clone(), vec![Target::Prefix(format!("{}/", keys().base()))]);
        Runner { candidacy: Candidacy::new(store.clone(), keys(), uid.into()), follower }
    }

    /// Waits until the candidate leads or does not, whichever is wanted.
    async fn until(&mut self, leads: bool) {
        let wait = async {
            loop {
                let view = self.follower.view();
                self.candidacy.enter(&view.entries, view.revision).await.unwrap();
                if view.connected && self.candidacy.leads(&view.entries, Moment::now()) == leads {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap();
    }
}

#[tokio::test]
async fn leadership_passes_on_by_revocation_and_by_expiry() {
    let etcd = Etcd::start().await.unwrap();
    let store = open(&etcd).await;
    let mut first = Runner::start(&store, "s1");
    first.until(true).await;
    let mut second = Runner::start(&store, "s2");
    let entered = async {
        while store.get(&keys().sentinel_info("s2")).await.unwrap().is_none() {
            second.until(false).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), entered).await.unwrap();
    assert_eq!(leader(&second.follower.view().entries, &keys()).map(|e| e.value.clone()), Some(b"s1".to_vec()));
    let resigned = Instant::now();
    first.candidacy.resign().await.unwrap();
    second.until(true).await;
    assert!(resigned.elapsed() < Duration::from_secs(1), "{:?}", resigned.elapsed());

    let mut third = Runner::start(&store, "s3");
    third.until(false).await;
    // Dies without a word: its lease expires.
    drop(second);
    third.until(true).await;
    let name = format!("{}{:x}", keys().election(), 0);
    assert!(!third.follower.view().entries.contains_key(&name));
}

/// Pretend keepers and one pretend proxy that do what cluster data says.
struct Players {
    store: SharedStore,
    keepers: BTreeMap<String, KeptLease>,
    proxy: KeptLease,
    last: BTreeMap<String, Vec<u8>>,
}

impl Players {
    async fn start(store: &SharedStore, keepers: &[&str]) -> Self {
        let lease = || KeptLease::start(store.clone(), Duration::from_secs(5));
        let keepers = keepers.iter().map(|uid| ((*uid).to_owned(), lease())).collect();
        Players { store: store.clone(), keepers, proxy: lease(), last: BTreeMap::new() }
    }

    async fn put(&mut self, key: String, value: Vec<u8>, lease: store::LeaseId) {
        if self.last.get(&key) != Some(&value) {
            self.store.put(&key, &value, Some(lease)).await.unwrap();
            self.last.insert(key, value);
        }
    }

    async fn work(&mut self, data: &ClusterData) {
        let mut puts = Vec::new();
        for (uid, lease) in &mut self.keepers {
            let state = data.db_of_keeper(&uid.as_str().into()).map(|db| PostgresState {
                uid: db.uid.clone(),
                generation: db.generation,
                healthy: true,
                system_id: "77".into(),
                timeline_id: 1,
                xlog_pos: 1000,
                ..Default::default()
            });
            let info = KeeperInfo {
                uid: uid.as_str().into(),
                cluster_uid: data.cluster.uid.clone(),
                boot_uuid: "b".into(),
                lease_seconds: Some(5),
                postgres_state: state,
                ..Default::default()
            };
            let key = keys().keeper_info(&uid.as_str().into());
            puts.push((key, serde_json::to_vec(&info).unwrap(), lease.granted().await));
        }
        let info = ProxyInfo {
            uid: "p1".into(),
            generation: data.proxy.generation,
            lease_seconds: Some(5),
            ..Default::default()
        };
        puts.push((keys().proxy_info(&"p1".into()), serde_json::to_vec(&info).unwrap(), self.proxy.granted().await));
        for (key, value, lease) in puts {
            self.put(key, value, lease).await;
        }
    }

    /// Works until cluster data is as wanted.
    async fn until(&mut self, what: &str, done: impl Fn(&ClusterData) -> bool) -> ClusterData {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(versioned) = access::read(&self.store, &keys()).await.unwrap() {
                if done(&versioned.data) {
                    return versioned.data;
                }
                self.work(&versioned.data).await;
            }
            assert!(Instant::now() < deadline, "{what} does not happen");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn proxied(data: &ClusterData) -> Option<&str> {
    data.proxied_master().map(|db| db.spec.keeper_uid.as_str())
}

#[tokio::test]
async fn two_sentinels_begin_fail_over_and_take_over() {
    let etcd = Etcd::start().await.unwrap();
    let store = open(&etcd).await;
    let spec: StolonSpec = serde_json::from_str(r#"{"initMode":"new","failInterval":"5s"}"#).unwrap();
    let mut sentinels = Vec::new();
    for _ in 0..2 {
        let (stop, stopped) = oneshot::channel::<()>();
        let (store, spec) = (store.clone(), spec.clone());
        let task = tokio::spawn(async move {
            serve(store, keys(), "c", Some(spec), async { drop(stopped.await) }).await;
        });
        sentinels.push((stop, task));
        // The first one shall lead.
        let prefix = keys().election();
        while store_len(&open(&etcd).await, &prefix).await < sentinels.len() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let mut players = Players::start(&store, &["k1", "k2", "k3"]).await;
    let data = players.until("the beginning", |data| proxied(data).is_some() && data.dbs.len() == 3).await;
    let ready = |data: &ClusterData| data.dbs.values().all(|db| db.converged() && db.generation > 1);
    players.until("rest", ready).await;
    let revision = access::read(&store, &keys()).await.unwrap().unwrap().revision;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(access::read(&store, &keys()).await.unwrap().unwrap().revision, revision, "an idle sentinel writes");

    let old = proxied(&data).unwrap().to_owned();
    players.keepers.remove(&old).unwrap().revoke().await.unwrap();
    let gone = Instant::now();
    let elected = |data: &ClusterData| data.dbs[&data.cluster.status.master].spec.keeper_uid.as_str() != old;
    players.until("an election", elected).await;
    let after = gone.elapsed();
    assert!(after < Duration::from_millis(500), "elected after {after:?}");
    players.until("service", |data| proxied(data).is_some_and(|keeper| keeper != old)).await;
    println!("elected after {after:?}, in service after {:?}", gone.elapsed());

    // The leader stops; the other one has watched all along.
    let (stop, task) = sentinels.remove(0);
    stop.send(()).unwrap();
    task.await.unwrap();
    let data = players.until("rest", ready).await;
    let second = proxied(&data).unwrap().to_owned();
    players.keepers.remove(&second).unwrap().revoke().await.unwrap();
    players.until("service", |data| proxied(data).is_some_and(|keeper| keeper != second)).await;
    let (stop, task) = sentinels.remove(0);
    stop.send(()).unwrap();
    task.await.unwrap();
    assert_eq!(store_len(&store, &keys().election()).await, 0);
}

async fn store_len(store: &SharedStore, prefix: &str) -> usize {
    store.list(prefix).await.unwrap().entries.len()
}

#[tokio::test]
async fn lost_cluster_data_is_not_made_again() {
    let etcd = Etcd::start().await.unwrap();
    let store = open(&etcd).await;
    let info = KeeperInfo { uid: "k1".into(), cluster_uid: "old".into(), ..Default::default() };
    store.put(&keys().keeper_info(&"k1".into()), &serde_json::to_vec(&info).unwrap(), None).await.unwrap();
    let spec: StolonSpec = serde_json::from_str(r#"{"initMode":"new"}"#).unwrap();
    serve(store.clone(), keys(), "c", Some(spec), tokio::time::sleep(Duration::from_secs(2))).await;
    assert!(access::read(&store, &keys()).await.unwrap().is_none());
}
