//! Keepers as processes, with real etcd and PostgreSQL. The test plays the sentinel by writing cluster data.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and tells how long things took"
)]

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

const LIMIT: Duration = Duration::from_secs(60);

/// How users prove who they are in a test.
#[derive(Clone, Copy, PartialEq)]
enum Auth {
    Trust,
    Scram,
}

/// A password that needs every kind of quoting.
const SU_PASSWORD: &str = r"s'u:\ p w";
const REPL_PASSWORD: &str = r"re'pl:\";

struct Lab {
    etcd: Etcd,
    store: SharedStore,
    keys: Keys,
    dir: TempDir,
    auth: Auth,
}

impl Lab {
    async fn new(auth: Auth, spec: serde_json::Value) -> Self {
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

    fn keeper(&self, uid: &str) -> Process {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        self.keeper_at(uid, port)
    }

    fn keeper_at(&self, uid: &str, port: u16) -> Process {
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

    async fn info(&self, uid: &str) -> Option<KeeperInfo> {
        let entry = self.store.get(&self.keys.keeper_info(&uid.into())).await.unwrap()?;
        Some(serde_json::from_slice(&entry.value).unwrap())
    }

    /// Waits until a keeper's record is as wanted, and tells how long it took.
    async fn wait(&self, what: &str, uid: &str, wanted: impl Fn(&KeeperInfo) -> bool) -> KeeperInfo {
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

    async fn update(&self, mut change: impl FnMut(&mut ClusterData)) {
        let change = |data: &mut ClusterData| {
            change(data);
            Ok::<(), AccessError>(())
        };
        access::update(&self.store, &self.keys, change).await.unwrap();
    }

    /// What a sentinel does with a new keeper.
    async fn register(&self, uid: &str) {
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
    async fn copy_status(&self, uid: &str) {
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
    async fn add_db(&self, uid: &str, keeper: &str, change: impl Fn(&mut DbSpec)) {
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

    async fn change_db(&self, uid: &str, change: impl Fn(&mut DbSpec)) {
        self.update(|data| {
            let db = data.dbs.get_mut(uid).unwrap();
            change(&mut db.spec);
            db.generation += 1;
        })
        .await;
    }

    /// A master on the keeper `a`, ready.
    async fn master(&self) -> Process {
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
    async fn standby(&self) -> Process {
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

fn follow(master: &'static str) -> impl Fn(&mut DbSpec) {
    move |spec| {
        spec.role = Some(Role::Standby);
        spec.init_mode = Some(DbInitMode::Resync);
        spec.follow_config = Some(FollowConfig::internal(master.into()));
    }
}

fn applied(info: &KeeperInfo, db: &str, generation: i64) -> bool {
    info.postgres_state
        .as_ref()
        .is_some_and(|state| state.healthy && state.uid == *db && state.generation >= generation)
}

fn in_sync(info: &KeeperInfo, wanted: &[&str]) -> bool {
    let wanted: Vec<DbUid> = wanted.iter().map(|&db| db.into()).collect();
    info.postgres_state.as_ref().and_then(|state| state.synchronous_standbys.clone()) == Some(wanted)
}

struct Process {
    uid: String,
    child: Child,
    root: PathBuf,
    port: u16,
    log_file: PathBuf,
    auth: Auth,
}

impl Process {
    fn postmaster(&self) -> Option<i32> {
        let text = std::fs::read_to_string(self.root.join("postgres/postmaster.pid")).ok()?;
        text.lines().next()?.parse().ok()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    async fn exit(&mut self) -> Option<i32> {
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

    async fn sql(&self) -> Client {
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

    async fn one(&self, sql: &str) -> String {
        let rows = self.sql().await.simple_query(sql).await.unwrap();
        let row = rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        row.unwrap_or_default()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log_file).unwrap_or_default()
    }

    fn file(&self, name: &str) -> String {
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

fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn a_cluster_is_made_fails_over_and_the_old_master_rewinds() {
    for auth in [Auth::Trust, Auth::Scram] {
        let lab =
            Lab::new(auth, serde_json::json!({"initMode": "new", "usePgrewind": true, "sleepInterval": "2s", "automaticPgRestart": true,
                "pgParameters": {"log_statement": "all", "log_min_duration_statement": "0"}})).await;
        let a = lab.master().await;
        let state = lab.info("a").await.unwrap().postgres_state.unwrap();
        assert_eq!((state.timeline_id, state.port.as_str()), (1, a.port.to_string().as_str()));
        assert!(state.pg_parameters.contains_key("shared_buffers"), "{:?}", state.pg_parameters);
        assert!(!state.pg_parameters.contains_key("wal_receiver_timeout") && !state.pg_parameters.contains_key("port"));
        a.one("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await;
        let b = lab.standby().await;
        let started = Instant::now();
        while b.one("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'").await != "1" {
            assert!(started.elapsed() < LIMIT, "the standby does not stream: {}", b.log());
        }
        assert_eq!(b.one("SELECT n FROM t").await, "1");
        assert_eq!(a.one("SELECT slot_name FROM pg_replication_slots WHERE active").await, "stolon_d2");

        let promoted = b.postmaster();
        // The standby becomes master; the old one is still up and writes what nobody else gets.
        lab.change_db("d2", |spec| {
            spec.role = Some(Role::Master);
            spec.follow_config = None;
            spec.init_mode = Some(DbInitMode::None);
        })
        .await;
        lab.update(|data| data.cluster.status.master = "d2".into()).await;
        lab.wait("promotion", "b", |info| {
            applied(info, "d2", 2) && info.postgres_state.as_ref().unwrap().timeline_id == 2
        })
        .await;
        b.one("INSERT INTO t VALUES (2)").await;
        assert_eq!(b.postmaster(), promoted);
        a.one("INSERT INTO t VALUES (99)").await;
        lab.copy_status("b").await;
        let old = a.postmaster().unwrap();
        if auth == Auth::Scram {
            // A crash: pg_rewind has to recover it first.
            a.signal(Signal::SIGSTOP);
            kill(Pid::from_raw(old), Signal::SIGKILL).unwrap();
        }
        lab.add_db("d3", "a", follow("d2")).await;
        lab.change_db("d2", |spec| spec.followers = vec!["d3".into()]).await;
        a.signal(Signal::SIGCONT);
        lab.wait("resync by rewind", "a", |info| applied(info, "d3", 1)).await;
        assert!(!is_alive(old));
        assert!(a.log().contains("rewound to the primary's history"), "{}", a.log());
        assert!(!a.log().contains("made a base backup"), "{}", a.log());
        b.one("INSERT INTO t VALUES (3)").await;
        let started = Instant::now();
        while a.one("SELECT string_agg(n::text, ',' ORDER BY n) FROM t").await != "1,2,3" {
            assert!(started.elapsed() < LIMIT, "{}", a.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for process in [&a, &b] {
            for file in ["postgres/postgresql.conf", "postgres/pg_hba.conf"] {
                assert!(!process.file(file).contains(REPL_PASSWORD) && !process.file(file).contains("password="));
            }
            // PostgreSQL's own log is in it, and shows statements already when roles are set up.
            assert!(process.uid != "a" || process.log().contains("statement: SET log_statement"), "{}", process.log());
            assert!(process.log().contains("statement: INSERT INTO t"), "{}", process.log());
            for secret in [SU_PASSWORD, REPL_PASSWORD, "s''u", "re''pl"] {
                assert!(!process.log().contains(secret), "a secret is in the log:\n{}", process.log());
            }
        }
    }
}

#[tokio::test]
async fn postgres_survives_store_and_keeper_and_ends_with_a_clean_stop() {
    let lab_spec = serde_json::json!({"initMode": "new", "failInterval": "3s", "sleepInterval": "1s"});
    let mut lab = Lab::new(Auth::Trust, lab_spec).await;
    let mut a = lab.master().await;
    assert_eq!(lab.info("a").await.unwrap().lease_seconds, Some(3));
    let postmaster = a.postmaster().unwrap();

    lab.etcd.stop();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(is_alive(postmaster));
    assert_eq!(a.one("SELECT pg_is_in_recovery()").await, "f");
    lab.etcd.resume().await.unwrap();
    lab.wait("publication after the store came back", "a", |info| applied(info, "d1", 1)).await;

    // PostgreSQL dies: seen and started again at once.
    kill(Pid::from_raw(postmaster), Signal::SIGKILL).unwrap();
    lab.wait("end of postgres published", "a", |info| info.postgres_state.as_ref().is_some_and(|state| !state.healthy))
        .await;
    lab.wait("postgres running again", "a", |info| applied(info, "d1", 1)).await;
    let postmaster = a.postmaster().unwrap();

    // The keeper dies: its successor adopts PostgreSQL.
    let boot = lab.info("a").await.unwrap().boot_uuid;
    a.signal(Signal::SIGKILL);
    a.exit().await;
    assert!(is_alive(postmaster));
    let mut a = {
        let port = a.port;
        // Not dropped the usual way: that would stop PostgreSQL.
        std::mem::forget(a);
        lab.keeper_at("a", port)
    };
    lab.wait("adoption", "a", |info| info.boot_uuid != boot && applied(info, "d1", 1)).await;
    assert_eq!(a.postmaster(), Some(postmaster));
    lab.register("a").await;
    lab.change_db("d1", |spec| {
        spec.pg_parameters.insert("work_mem".into(), "7MB".into());
    })
    .await;
    lab.wait("a parameter applied by the successor", "a", |info| applied(info, "d1", 3)).await;
    assert_eq!(a.one("SHOW work_mem").await, "7MB");
    assert_eq!(a.postmaster(), Some(postmaster));

    // A second keeper in the same directory is refused.
    let mut second = lab.keeper_at("a", a.port);
    assert_eq!(second.exit().await, Some(1));
    std::mem::forget(second);

    // The adopted one dies too.
    kill(Pid::from_raw(postmaster), Signal::SIGKILL).unwrap();
    lab.wait("end of the adopted postgres published", "a", |info| {
        info.postgres_state.as_ref().is_some_and(|state| !state.healthy)
    })
    .await;
    lab.wait("adopted postgres running again", "a", |info| applied(info, "d1", 3)).await;

    let postmaster = a.postmaster().unwrap();
    a.signal(Signal::SIGTERM);
    assert_eq!(a.exit().await, Some(0));
    assert!(!is_alive(postmaster));
    assert_eq!(lab.info("a").await, None);
}

#[tokio::test]
async fn synchronous_standbys_hold_back_users_after_a_restart() {
    let lab_spec = serde_json::json!({"initMode": "new", "sleepInterval": "2s", "automaticPgRestart": true});
    let lab = Lab::new(Auth::Trust, lab_spec).await;
    let a = lab.master().await;
    let b = lab.standby().await;
    lab.change_db("d1", |spec| {
        spec.synchronous_replication = true;
        spec.synchronous_standbys = Some(vec!["d2".into()]);
        spec.external_synchronous_standbys = Some(vec![]);
    })
    .await;
    lab.wait("standby in sync", "a", |info| applied(info, "d1", 4) && in_sync(info, &["d2"])).await;
    assert_eq!(a.one("SHOW synchronous_standby_names").await, "stolon_d2");

    // Without its standby the master must not let users in after a restart.
    kill(Pid::from_raw(b.child.id().cast_signed()), Signal::SIGSTOP).unwrap();
    let standby = b.postmaster().unwrap();
    kill(Pid::from_raw(standby), Signal::SIGKILL).unwrap();
    let (open, running) = (a.file("postgres/pg_hba.conf"), a.postmaster());
    lab.change_db("d1", |spec| {
        spec.pg_parameters.insert("max_connections".into(), "77".into());
    })
    .await;
    // No sentinel says when, so it restarts by itself after some seconds.
    let healthy = |info: &KeeperInfo| info.postgres_state.as_ref().is_some_and(|state| state.healthy);
    let again = |info: &KeeperInfo| applied(info, "d1", 5) && healthy(info) && info.problems.is_empty();
    lab.wait("restart for a parameter", "a", |info| a.postmaster() != running && again(info)).await;
    assert_eq!(a.one("SHOW max_connections").await, "77");
    let restricted = a.file("postgres/pg_hba.conf");
    assert!(open.contains("host all all") && !restricted.contains("host all all"), "{restricted}");
    kill(Pid::from_raw(b.child.id().cast_signed()), Signal::SIGCONT).unwrap();
    let started = Instant::now();
    while a.file("postgres/pg_hba.conf") != open {
        assert!(started.elapsed() < LIMIT, "{}", a.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("users let in again: {} ms", started.elapsed().as_millis());
    a.one("CREATE TABLE t ()").await;
}

#[tokio::test]
async fn a_synchronous_set_is_confirmed_only_when_commits_wait() {
    let lab = Lab::new(Auth::Trust, serde_json::json!({"initMode": "new", "sleepInterval": "2s"})).await;
    let a = lab.master().await;
    let _b = lab.standby().await;
    let of_kind = |kind: &str| format!("SELECT pid FROM pg_stat_activity WHERE backend_type = '{kind}'");
    let checkpointer = Pid::from_raw(a.one(&of_kind("checkpointer")).await.parse().unwrap());
    kill(checkpointer, Signal::SIGSTOP).unwrap();
    lab.change_db("d1", |spec| {
        spec.synchronous_replication = true;
        spec.synchronous_standbys = Some(vec!["d2".into()]);
        spec.external_synchronous_standbys = Some(vec![]);
    })
    .await;
    let started = Instant::now();
    while a.one("SHOW synchronous_standby_names").await != "stolon_d2" {
        assert!(started.elapsed() < LIMIT, "{}", a.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Longer than one attempt to prove it.
    let shown = Instant::now();
    while shown.elapsed() < Duration::from_secs(7) {
        let info = lab.info("a").await.unwrap();
        assert!(!applied(&info, "d1", 4) && !in_sync(&info, &["d2"]), "confirmed while no commit waits: {info:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(a.log().contains("commits may not wait"), "{}", a.log());
    kill(checkpointer, Signal::SIGCONT).unwrap();
    lab.wait("synchronous set in force", "a", |info| applied(info, "d1", 4) && in_sync(info, &["d2"])).await;

    // A crash of one backend ends the server; the keeper, which knows what has to hold, starts it again.
    let postmaster = a.postmaster().unwrap();
    let victim = a.sql().await;
    let pid: i32 = victim.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let crashed = Instant::now();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    while is_alive(postmaster) {
        assert!(crashed.elapsed() < LIMIT, "{}", a.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    lab.wait("restart after the crash of a backend", "a", |info| {
        a.postmaster().is_some_and(|pid| pid != postmaster) && applied(info, "d1", 4) && in_sync(info, &["d2"])
    })
    .await;
    println!("in sync after the crash of a backend: {} ms", crashed.elapsed().as_millis());
    a.one("CREATE TABLE t ()").await;
}

#[tokio::test]
async fn data_is_kept_when_the_source_or_the_store_is_not_what_it_was() {
    let spec = serde_json::json!({"initMode": "new", "usePgrewind": false, "sleepInterval": "1s"});
    let lab = Lab::new(Auth::Trust, spec).await;
    let a = lab.master().await;
    let b = lab.standby().await;
    lab.change_db("d2", |spec| {
        spec.role = Some(Role::Master);
        spec.follow_config = None;
        spec.init_mode = Some(DbInitMode::None);
    })
    .await;
    lab.update(|data| data.cluster.status.master = "d2".into()).await;
    lab.wait("promotion", "b", |info| applied(info, "d2", 2)).await;
    lab.copy_status("b").await;

    // Nobody answers where the new master is said to be: what runs goes on.
    let (old, closed) =
        (a.postmaster().unwrap(), TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
    lab.update(|data| data.dbs.get_mut(&DbUid::from("d2")).unwrap().status.port = closed.to_string()).await;
    lab.add_db("d3", "a", follow("d2")).await;
    lab.change_db("d2", |spec| spec.followers = vec!["d3".into()]).await;
    lab.wait("the keeper being at work", "a", |info| {
        info.postgres_state.as_ref().is_some_and(|state| state.uid == *"d3" && !state.healthy)
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(is_alive(old), "{}", a.log());
    lab.copy_status("b").await;
    lab.wait("resync by copying", "a", |info| applied(info, "d3", 1)).await;
    let trash: Vec<_> = std::fs::read_dir(a.root.join("trash")).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(trash.len() == 1 && trash[0].join("global/pg_control").exists(), "{trash:?}");
    assert!(!a.root.join("postgres.new").exists());

    // The store is made again: nobody gives up its data, whatever it says.
    let running = (a.postmaster(), b.postmaster());
    lab.update(|data| {
        data.cluster.uid = "c2".into();
        data.cluster.status.phase = Some(ClusterPhase::Initializing);
        data.cluster.status.master = DbUid::default();
        data.dbs.clear();
    })
    .await;
    lab.add_db("n1", "a", |spec| {
        spec.role = Some(Role::Master);
        spec.init_mode = Some(DbInitMode::New);
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((a.postmaster(), b.postmaster()), running);
    assert!(is_alive(running.0.unwrap()) && is_alive(running.1.unwrap()));
    for keeper in [&a, &b] {
        assert!(keeper.log().contains("belongs to stolon cluster c1, but the store describes c2"), "{}", keeper.log());
    }
}
