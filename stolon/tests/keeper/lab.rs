//! An etcd, and keepers as processes whose sentinel is the test.

use model::stolon::keys::Keys;
use model::stolon::{
    ClusterData, ClusterPhase, Db, DbInitMode, DbSpec, DbStatus, FollowConfig, Keeper, KeeperInfo, Role, StolonSpec,
};
use model::{DbUid, GoTime};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, chown, geteuid};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use stolon::access::{self, AccessError};
use store::{EtcdStore, SharedStore, StoreOptions};
use tempfile::TempDir;
use testkit::etcd::Etcd;
use tokio_postgres::{Client, NoTls};

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// How users prove who they are in a test.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Auth {
    Trust,
    Scram,
}

/// A password that needs every kind of quoting.
pub(crate) const SU_PASSWORD: &str = r"s'u:\ p w";
pub(crate) const REPL_PASSWORD: &str = r"re'pl:\";

pub(crate) struct Lab {
    pub(crate) etcd: Etcd,
    pub(crate) store: SharedStore,
    pub(crate) keys: Keys,
    pub(crate) dir: TempDir,
    pub(crate) auth: Auth,
}

impl Lab {
    pub(crate) async fn new(auth: Auth, spec: serde_json::Value) -> Self {
        let etcd = Etcd::start().await.unwrap();
        let options = StoreOptions { endpoints: etcd.endpoints(), ..StoreOptions::default() };
        let store: SharedStore = Arc::new(EtcdStore::connect(&options).await.unwrap());
        let keys = Keys::new("stolon/cluster", &"test".into());
        let dir = TempDir::with_prefix("keeper-").unwrap();
        if geteuid().is_root() {
            let user = User::from_name("postgres").unwrap().unwrap();
            chown(dir.path(), Some(user.uid), Some(user.gid)).unwrap();
        }
        let lab = Lab { etcd, store, keys, dir, auth };
        let spec: StolonSpec = serde_json::from_value(spec).unwrap();
        let data = ClusterData::new("c1", spec, GoTime::default());
        access::replace(&lab.store, &lab.keys, None, &data).await.unwrap();
        lab
    }

    pub(crate) fn keeper(&self, uid: &str) -> Process {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        self.keeper_at(uid, port)
    }

    pub(crate) fn keeper_at(&self, uid: &str, port: u16) -> Process {
        let root = self.dir.path().join(uid);
        let sockets = self.dir.path().join("s");
        let log_file = self.dir.path().join(format!("{uid}.log"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_file).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_stolon-keeper"));
        command
            .args(["--cluster-name", "test", "--store-backend", "etcdv3", "--uid", uid, "--log-level", "debug"])
            .args(["--store-endpoints", &self.etcd.endpoints(), "--pg-listen-address", "127.0.0.1"])
            .args(["--pg-port", &port.to_string(), "--pg-repl-username", "repl", "--pg-su-username", "postgres"])
            .arg("--data-dir")
            .arg(&root)
            .arg("--pg-unix-socket-dir")
            .arg(&sockets)
            .arg("--pg-bin-path")
            .arg(testkit::postgres::bin_dir().unwrap());
        match self.auth {
            Auth::Trust => command.args(["--pg-su-auth-method", "trust", "--pg-repl-auth-method", "trust"]),
            Auth::Scram => command
                .args(["--pg-su-auth-method", "scram-sha-256", "--pg-repl-auth-method", "scram-sha-256"])
                .env("STKEEPER_PG_SU_PASSWORD", SU_PASSWORD)
                .env("STKEEPER_PG_REPL_PASSWORD", REPL_PASSWORD),
        };
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Process { uid: uid.into(), child, root, port, log_file, auth: self.auth }
    }

    pub(crate) async fn info(&self, uid: &str) -> Option<KeeperInfo> {
        let entry = self.store.get(&self.keys.keeper_info(&uid.into())).await.unwrap()?;
        Some(serde_json::from_slice(&entry.value).unwrap())
    }

    /// Waits until a keeper's record is as wanted, and tells how long it took.
    pub(crate) async fn wait(&self, what: &str, uid: &str, wanted: impl Fn(&KeeperInfo) -> bool) -> KeeperInfo {
        let started = Instant::now();
        loop {
            let info = self.info(uid).await;
            if let Some(info) = info.as_ref().filter(|info| wanted(info)) {
                println!("{what}: {} ms", started.elapsed().as_millis());
                return info.clone();
            }
            if started.elapsed() > LIMIT {
                let log = std::fs::read_to_string(self.dir.path().join(format!("{uid}.log"))).unwrap_or_default();
                panic!("{what} did not happen; last record {info:?}; log:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn update(&self, mut change: impl FnMut(&mut ClusterData)) {
        let change = |data: &mut ClusterData| {
            change(data);
            Ok::<(), AccessError>(())
        };
        access::update(&self.store, &self.keys, change).await.unwrap();
    }

    /// What a sentinel does with a new keeper.
    pub(crate) async fn register(&self, uid: &str) {
        let info = self.wait("registration", uid, |_| true).await;
        self.update(|data| {
            let keeper = data.keepers.entry(uid.into()).or_insert_with(|| Keeper {
                uid: uid.into(),
                generation: 1,
                ..Default::default()
            });
            keeper.status.boot_uuid.clone_from(&info.boot_uuid);
            keeper.status.healthy = true;
        })
        .await;
    }

    /// What a sentinel does with a state: copies it into the db's status.
    pub(crate) async fn copy_status(&self, uid: &str) {
        let state = self.info(uid).await.unwrap().postgres_state.unwrap();
        self.update(|data| {
            let db = data.dbs.get_mut(&state.uid).unwrap();
            db.status = DbStatus {
                healthy: state.healthy,
                current_generation: state.generation,
                listen_address: state.listen_address.clone(),
                port: state.port.clone(),
                system_id: state.system_id.clone(),
                timeline_id: state.timeline_id,
                xlog_pos: state.xlog_pos,
                ..Default::default()
            };
        })
        .await;
    }

    /// A db of the cluster's specification.
    pub(crate) async fn add_db(&self, uid: &str, keeper: &str, change: impl Fn(&mut DbSpec)) {
        self.update(|data| {
            let spec = data.spec().effective().unwrap();
            let mut spec = DbSpec {
                keeper_uid: keeper.into(),
                request_timeout: spec.request_timeout,
                max_standbys: spec.max_standbys,
                use_pgrewind: spec.use_pgrewind,
                additional_wal_senders: spec.additional_wal_senders,
                pg_parameters: spec.pg_parameters.unwrap_or_default(),
                ..Default::default()
            };
            change(&mut spec);
            data.dbs.retain(|_, db| db.spec.keeper_uid != *keeper);
            data.dbs.insert(uid.into(), Db { uid: uid.into(), generation: 1, spec, ..Default::default() });
        })
        .await;
    }

    pub(crate) async fn change_db(&self, uid: &str, change: impl Fn(&mut DbSpec)) {
        self.update(|data| {
            let db = data.dbs.get_mut(uid).unwrap();
            change(&mut db.spec);
            db.generation += 1;
        })
        .await;
    }

    /// What a sentinel does with a standby that is to be master.
    pub(crate) async fn appoint(&self, uid: &'static str) {
        self.change_db(uid, |spec| {
            spec.role = Some(Role::Master);
            spec.follow_config = None;
            spec.init_mode = Some(DbInitMode::None);
        })
        .await;
        self.update(|data| data.cluster.status.master = uid.into()).await;
    }

    /// A master on the keeper `a`, ready.
    pub(crate) async fn master(&self) -> Process {
        let a = self.keeper("a");
        self.register("a").await;
        self.add_db("d1", "a", |spec| {
            spec.role = Some(Role::Master);
            spec.init_mode = Some(DbInitMode::New);
            spec.include_previous_config = true;
        })
        .await;
        self.wait("init of the first master", "a", |info| applied(info, "d1", 1)).await;
        self.copy_status("a").await;
        let reported = self.info("a").await.unwrap().postgres_state.unwrap().pg_parameters;
        self.update(|data| {
            data.cluster.status.phase = Some(ClusterPhase::Normal);
            data.cluster.status.master = "d1".into();
            data.cluster.spec.as_mut().unwrap().pg_parameters.clone_from(&reported);
            let db = data.dbs.get_mut("d1").unwrap();
            db.generation += 1;
            let spec = &mut db.spec;
            spec.pg_parameters.clone_from(&reported);
            spec.init_mode = Some(DbInitMode::None);
            spec.include_previous_config = false;
        })
        .await;
        a
    }

    /// A standby on the keeper `b` that follows `d1`.
    pub(crate) async fn standby(&self) -> Process {
        let b = self.keeper("b");
        self.register("b").await;
        let started = Instant::now();
        self.add_db("d2", "b", follow("d1")).await;
        self.change_db("d1", |spec| spec.followers = vec!["d2".into()]).await;
        self.wait("base backup", "b", |info| applied(info, "d2", 1)).await;
        println!("standby made: {} ms", started.elapsed().as_millis());
        self.copy_status("b").await;
        b
    }
}

pub(crate) fn follow(master: &'static str) -> impl Fn(&mut DbSpec) {
    move |spec| {
        spec.role = Some(Role::Standby);
        spec.init_mode = Some(DbInitMode::Resync);
        spec.follow_config = Some(FollowConfig::internal(master.into()));
    }
}

pub(crate) fn applied(info: &KeeperInfo, db: &str, generation: i64) -> bool {
    info.postgres_state
        .as_ref()
        .is_some_and(|state| state.healthy && state.uid == *db && state.generation >= generation)
}

pub(crate) fn in_sync(info: &KeeperInfo, wanted: &[&str]) -> bool {
    let wanted: Vec<DbUid> = wanted.iter().map(|&db| db.into()).collect();
    info.postgres_state.as_ref().and_then(|state| state.synchronous_standbys.clone()) == Some(wanted)
}

pub(crate) struct Process {
    pub(crate) uid: String,
    pub(crate) child: Child,
    pub(crate) root: PathBuf,
    pub(crate) port: u16,
    pub(crate) log_file: PathBuf,
    pub(crate) auth: Auth,
}

impl Process {
    pub(crate) fn postmaster(&self) -> Option<i32> {
        let text = std::fs::read_to_string(self.root.join("postgres/postmaster.pid")).ok()?;
        text.lines().next()?.parse().ok()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    pub(crate) async fn exit(&mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                println!("end of keeper {}: {} ms", self.uid, started.elapsed().as_millis());
                return status.code();
            }
            assert!(started.elapsed() < LIMIT, "keeper {} does not end", self.uid);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn sql(&self) -> Client {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").dbname("postgres");
        if self.auth == Auth::Scram {
            config.password(SU_PASSWORD);
        }
        let started = Instant::now();
        loop {
            match config.connect(NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return client;
                }
                Err(error) => assert!(started.elapsed() < LIMIT, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn one(&self, sql: &str) -> String {
        let rows = self.sql().await.simple_query(sql).await.unwrap();
        let row = rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        row.unwrap_or_default()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log_file).unwrap_or_default()
    }

    pub(crate) fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.root.join(name)).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(pid) = self.postmaster() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
            let deadline = Instant::now() + Duration::from_secs(10);
            while Path::new(&format!("/proc/{pid}/cwd")).exists() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}
