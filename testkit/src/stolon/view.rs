//! What stolonctl says, what the store holds, and who is what.

use super::bins::Kind;
use super::{CLUSTER, LIMIT, Lab, PAUSE};
use futures::StreamExt as _;
use model::stolon::{ClusterData, ClusterPhase, Db, KeeperInfo};
use std::collections::BTreeSet;
use std::process::Output;
use std::time::{Duration, Instant};
use store::{Compare, Op, Target, WatchEvent};

/// What stolonctl says and the store holds.
impl Lab {
    /// Runs stolonctl; gives its status and output.
    ///
    /// # Panics
    /// It can't be started.
    pub async fn try_ctl(&self, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::from(self.bins().program(Kind::Ctl, 0).command());
        command
            .args(["--cluster-name", CLUSTER, "--store-backend", "etcdv3", "--store-endpoints"])
            .arg(self.etcd.endpoints())
            .args(arguments)
            .current_dir("/")
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        command.output().await.expect("run stolonctl")
    }

    /// Runs stolonctl; gives what it prints.
    ///
    /// # Panics
    /// It fails.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        let output = self.try_ctl(arguments).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "stolonctl {arguments:?}: {} {}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// The cluster data now; `None` before `init`.
    ///
    /// # Panics
    /// It can't be read.
    pub async fn try_data(&self) -> Option<ClusterData> {
        let entry = self.store.get(&self.keys.clusterdata()).await.expect("read cluster data")?;
        Some(ClusterData::parse(&entry.value).expect("cluster data that can be read"))
    }

    /// The cluster data now.
    ///
    /// # Panics
    /// There is none, or it can't be read.
    pub async fn data(&self) -> ClusterData {
        self.try_data().await.expect("cluster data")
    }

    /// Changes the cluster data by compare-and-set; gives the outcome.
    ///
    /// # Panics
    /// There is none, or the store fails.
    pub async fn update(&self, mut change: impl FnMut(&mut ClusterData)) -> ClusterData {
        let key = self.keys.clusterdata();
        loop {
            let entry = self.store.get(&key).await.expect("read cluster data").expect("cluster data");
            let mut data = ClusterData::parse(&entry.value).expect("cluster data that can be read");
            change(&mut data);
            let unchanged = vec![Compare::Unchanged(key.clone(), entry.mod_revision)];
            let put = vec![Op::put(key.clone(), serde_json::to_vec(&data).expect("plain data"))];
            if self.store.txn(unchanged, put).await.expect("write cluster data").succeeded {
                return data;
            }
        }
    }

    /// The store's revision now, for [`Lab::history`].
    ///
    /// # Panics
    /// The store can't be read.
    pub async fn revision(&self) -> i64 {
        self.store.list(&self.keys.clusterdata()).await.expect("read the store").revision
    }

    /// All versions of the cluster data that were written after a revision, in their order.
    ///
    /// # Panics
    /// The store can't be read.
    pub async fn history(&self, since: i64) -> Vec<ClusterData> {
        let key = self.keys.clusterdata();
        let last = self.store.get(&key).await.expect("read cluster data").map_or(0, |entry| entry.mod_revision);
        let mut changes = self.store.watch(Target::Key(key), since).await.expect("watch cluster data");
        let mut history = Vec::new();
        let mut seen = since;
        while seen < last {
            let batch = changes.next().await.expect("the watch goes on").expect("changes");
            for event in batch.events {
                if let WatchEvent::Put(entry) = event {
                    seen = entry.mod_revision;
                    history.push(ClusterData::parse(&entry.value).expect("cluster data that can be read"));
                }
            }
        }
        history
    }

    /// What a keeper has published.
    ///
    /// # Panics
    /// It can't be read.
    pub async fn info(&self, keeper: usize) -> Option<KeeperInfo> {
        let key = self.keys.keeper_info(&self.keepers[keeper].uid.as_str().into());
        let entry = self.store.get(&key).await.expect("read a keeper's record")?;
        Some(serde_json::from_slice(&entry.value).expect("a record that can be read"))
    }

    /// Waits until the cluster data is as wanted, and gives it.
    ///
    /// # Panics
    /// It is not within the limit.
    pub async fn wait(&self, what: &str, mut wanted: impl FnMut(&ClusterData) -> bool) -> ClusterData {
        let started = Instant::now();
        loop {
            let data = self.try_data().await;
            if let Some(data) = data.as_ref().filter(|data| wanted(data)) {
                return data.clone();
            }
            let shown = || data.as_ref().and_then(|data| serde_json::to_string_pretty(data).ok()).unwrap_or_default();
            assert!(started.elapsed() < LIMIT, "did not happen: {what}; cluster data: {}", shown());
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// For this long the cluster data stays as wanted: for what must not happen.
    ///
    /// # Panics
    /// It does not.
    pub async fn never(&self, what: &str, time: Duration, mut unwanted: impl FnMut(&ClusterData) -> bool) {
        let started = Instant::now();
        while started.elapsed() < time {
            let data = self.data().await;
            assert!(!unwanted(&data), "happened: {what}; cluster data: {}", serde_json::json!(data));
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Who is what.
impl Lab {
    /// Index of the keeper with a uid.
    pub fn index(&self, uid: &str) -> Option<usize> {
        self.keepers.iter().position(|keeper| keeper.uid == uid)
    }

    /// Index of the keeper whose db is the wanted master.
    pub fn master_in(&self, data: &ClusterData) -> Option<usize> {
        self.index(data.dbs.get(&data.cluster.status.master)?.spec.keeper_uid.as_str())
    }

    /// Index of the keeper that proxies lead to.
    pub fn published_in(&self, data: &ClusterData) -> Option<usize> {
        self.index(data.proxied_master()?.spec.keeper_uid.as_str())
    }

    /// The db of a keeper.
    pub fn db<'a>(&self, data: &'a ClusterData, keeper: usize) -> Option<&'a Db> {
        data.db_of_keeper(&self.keepers[keeper].uid.as_str().into())
    }

    /// Index of the keeper whose db is the wanted master now.
    ///
    /// # Panics
    /// There is none.
    pub async fn master(&self) -> usize {
        self.master_in(&self.data().await).expect("a master")
    }

    /// Indexes of the keepers that are not master now.
    ///
    /// # Panics
    /// There is no master.
    pub async fn standbys(&self) -> Vec<usize> {
        let master = self.master().await;
        (0..self.keepers.len()).filter(|keeper| *keeper != master).collect()
    }

    /// Waits until proxies lead to a keeper other than this one; gives its index.
    ///
    /// # Panics
    /// They don't within the limit.
    pub async fn wait_for_other_master(&self, old: usize) -> usize {
        let data = self
            .wait("proxies lead to another master", |data| {
                self.published_in(data)
                    .is_some_and(|published| published != old && self.master_in(data) == Some(published))
            })
            .await;
        self.published_in(&data).expect("a published master")
    }

    /// Waits until the cluster is whole: as many good standbys as wanted, in sync if that is wanted, every running
    /// proxy leading to the master.
    ///
    /// # Panics
    /// It is not within the limit.
    pub async fn ready(&self) -> ClusterData {
        self.wait("the cluster is whole", |data| self.is_whole(data)).await
    }

    /// See [`Lab::ready`].
    pub fn is_whole(&self, data: &ClusterData) -> bool {
        let running = self.keepers.iter().filter(|keeper| keeper.process.pid().is_some()).count();
        let Ok(spec) = data.spec().effective() else { return false };
        let wanted = running.min(1 + usize::from(spec.max_standbys_per_sender));
        let good = |db: &&Db| db.status.healthy && db.converged();
        let standing = data.dbs.values().filter(|db| db.generation > 1 || db.is_master_type()).filter(good).count();
        let proxies = self.proxies.iter().filter(|proxy| proxy.process.pid().is_some()).count();
        let published = data.proxy.spec.master_db_uid == data.cluster.status.master;
        data.cluster.status.phase == Some(ClusterPhase::Normal)
            && standing == wanted
            && data.dbs.len() == wanted
            && published
            && data.proxy.spec.enabled_proxies.len() == proxies
            && (!spec.synchronous_replication || is_synchronous(data, usize::from(spec.max_synchronous_standbys)))
    }

    /// Waits until a keeper's PostgreSQL has replayed all that the master has written so far.
    ///
    /// # Panics
    /// It has not within the limit.
    pub async fn caught_up(&self, keeper: usize) {
        let master = self.master().await;
        let position = self.keepers[master].pg.one("SELECT pg_current_wal_flush_lsn()").await;
        let sql = format!("SELECT NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() >= '{position}'");
        self.keepers[keeper].pg.wait_for(&sql, "t").await;
    }

    /// Keepers of the master's synchronous set: those that commits wait for and that were seen in sync since then.
    pub fn confirmed(&self, data: &ClusterData) -> BTreeSet<usize> {
        let Some(master) = data.dbs.get(&data.cluster.status.master) else { return BTreeSet::new() };
        let wanted = master.spec.synchronous_standbys.iter().flatten();
        let known: BTreeSet<_> = master.status.synchronous_standbys.iter().flatten().collect();
        let dbs = wanted.filter(|db| known.contains(db)).filter_map(|db| data.dbs.get(db));
        dbs.filter_map(|db| self.index(db.spec.keeper_uid.as_str())).collect()
    }
}

/// As many synchronous standbys as wanted and there are, all seen in sync.
fn is_synchronous(data: &ClusterData, max: usize) -> bool {
    let Some(master) = data.dbs.get(&data.cluster.status.master) else { return false };
    let can = |db: &&Db| {
        let keeper = data.keepers.get(&db.spec.keeper_uid);
        !db.is_master_type() && keeper.is_some_and(|keeper| keeper.status.can_be_synchronous_replica != Some(false))
    };
    let set = |list: &Option<Vec<_>>| list.iter().flatten().cloned().collect::<BTreeSet<_>>();
    let wanted = set(&master.spec.synchronous_standbys);
    master.spec.synchronous_replication
        && wanted.len() == data.dbs.values().filter(can).count().min(max)
        && wanted == set(&master.status.synchronous_standbys)
}
