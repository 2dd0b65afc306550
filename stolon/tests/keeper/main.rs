//! Keepers as processes, with real etcd and PostgreSQL. The test plays the sentinel by writing cluster data.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and tells how long things took"
)]

mod lab;

use lab::{Auth, LIMIT, Lab, REPL_PASSWORD, SU_PASSWORD, applied, follow, in_sync};
use model::DbUid;
use model::stolon::{ClusterPhase, DbInitMode, FollowConfig, KeeperInfo, Role};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::TcpListener;
use std::time::{Duration, Instant};

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
        lab.appoint("d2").await;
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
    lab.appoint("d2").await;
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

#[tokio::test]
async fn what_was_handed_over_is_told_by_the_next_keeper_until_it_follows() {
    let lab = Lab::new(Auth::Trust, serde_json::json!({"initMode": "new", "sleepInterval": "1s"})).await;
    let mut a = lab.master().await;
    let _b = lab.standby().await;
    lab.change_db("d1", |spec| {
        spec.role = Some(Role::Standby);
        spec.follow_config = Some(FollowConfig::internal("d2".into()));
    })
    .await;
    let is_told = |info: &KeeperInfo| info.handed_over.as_ref().is_some_and(|done| done.db == *"d1");
    let before = lab.wait("hand-over", "a", |info| is_told(info) && applied(info, "d1", 4)).await;
    a.signal(Signal::SIGKILL);
    a.exit().await;
    let port = a.port;
    // Not dropped the usual way: that would stop PostgreSQL.
    std::mem::forget(a);
    let a = lab.keeper_at("a", port);
    let next = lab.wait("a record of the next keeper", "a", |info| info.boot_uuid != before.boot_uuid).await;
    assert_eq!(next.handed_over, before.handed_over);
    lab.register("a").await;
    lab.update(|data| data.cluster.status.master = "d2".into()).await;
    lab.change_db("d2", |spec| {
        spec.role = Some(Role::Master);
        spec.init_mode = Some(DbInitMode::None);
        spec.follow_config = None;
        spec.followers = vec!["d1".into()];
    })
    .await;
    lab.wait("promotion", "b", |info| applied(info, "d2", 2)).await;
    lab.copy_status("b").await;
    lab.wait("the successor is followed", "a", |info| {
        let receives = info.upstream.as_ref().is_some_and(|upstream| upstream.receiving);
        receives && !is_told(info)
    })
    .await;
    assert!(!a.file("dbstate").contains("HandedOver"));
}
