//! How a cluster begins: nothing, an instance that exists, a backup.

use crate::lab;
use crate::outside::{Outside, own};
use model::stolon::{ClusterData, ClusterPhase};
use serde_json::json;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;
use testkit::stolon::{Lab, eventually};

const NUMBERS: &str = "SELECT string_agg(n::text, ',' ORDER BY n) FROM t";

fn initialized(data: &ClusterData) -> bool {
    data.cluster.status.phase == Some(ClusterPhase::Normal)
}

/// Waits for words in a keeper's log.
async fn logged(lab: &Lab, keeper: usize, words: &str) {
    eventually(&format!("keeper{keeper} says \"{words}\""), async || lab.keeper(keeper).log().contains(words)).await;
}

fn parameter(data: &ClusterData, name: &str) -> Option<String> {
    data.spec().pg_parameters.get(name).cloned()
}

#[tokio::test]
async fn a_backup_is_recovered_to_a_named_point() {
    let outside = Outside::start(&["work_mem = '7MB'"]);
    outside.insert(1);
    outside.back_up();
    outside.insert(2);
    outside.sql("SELECT pg_create_restore_point('here')");
    outside.insert(3);
    outside.archive_all();
    let lab = lab().spec(json!({"initMode": "pitr", "syncTimeout": "60s", "pitrConfig": {
        "dataRestoreCommand": outside.fetch_command(),
        "archiveRecoverySettings": {"restoreCommand": outside.restore_command()},
        "recoveryTargetSettings": {"recoveryTargetName": "here"}}}));
    let lab = lab.up().await;
    for keeper in lab.keepers() {
        keeper.pg.wait_for(NUMBERS, "1,2").await;
    }
    assert_eq!(outside.fetches(), 1, "the standby is a copy of the master");
    // Settings of the server that was backed up are the cluster's now; those of the recovery are nobody's.
    let data = lab.data().await;
    assert_eq!(parameter(&data, "work_mem").as_deref(), Some("7MB"));
    assert!(
        data.spec().pg_parameters.keys().all(|name| !name.contains("recovery_target") && name != "restore_command")
    );
    let master = lab.master().await;
    assert_eq!(lab.keeper(master).pg.one("SHOW restore_command").await, "");
    assert_eq!(lab.proxy(0).pg.one("INSERT INTO t VALUES (4) RETURNING n").await, "4");
    assert!(!lab.keeper(master).root().join("restorestate").exists());
}

#[tokio::test]
async fn a_restore_goes_on_where_a_killed_keeper_left_it() {
    let outside = Outside::start(&[]);
    outside.insert(1);
    outside.back_up();
    outside.insert(2);
    outside.archive_all();
    // WAL goes to a place of its own.
    let place_wal = "cp -a %d/pg_wal/. %w && rm -r %d/pg_wal && ln -s %w %d/pg_wal";
    // Both wait for the test's word: bringing the backup, and bringing WAL.
    let gate = |name: &str| format!("while [ ! -e {} ]; do sleep 0.05; done", outside.path(name).display());
    let lab = lab().spec(json!({"initMode": "pitr", "mergePgParameters": false, "pitrConfig": {
        "dataRestoreCommand": format!("{}; {place_wal}; {}", outside.fetch_command(), gate("go")),
        "archiveRecoverySettings": {"restoreCommand": format!("{}; {}", gate("wal"), outside.restore_command())}}}));
    let lab = lab.keepers(1).prepare().await;
    let wal_dir = lab.path().join("wal");
    lab.keeper(0).process.set_argument("--wal-dir", wal_dir.to_str().unwrap());
    lab.init().await;
    lab.start_all();
    let keeper = lab.keeper(0);
    let db = lab.wait("the first master is chosen", |data| !data.dbs.is_empty()).await.dbs.keys().next().cloned();
    eventually("the backup is being brought", async || outside.fetches() == 1).await;
    keeper.process.kill();
    keeper.start();
    // The old command is dead, or it would mix with the new one.
    eventually("the backup is being brought again", async || outside.fetches() == 2).await;
    assert!(keeper.log().contains("ending a program that an earlier keeper left"), "{}", keeper.log());
    std::fs::write(outside.path("go"), "").unwrap();
    logged(&lab, 0, "the backup is restored").await;
    // Killed in the middle of the recovery, alone and with PostgreSQL.
    for kill in [true, false] {
        eventually("the recovery runs", async || keeper.postmaster_pid().is_some()).await;
        if kill {
            keeper.kill();
        } else {
            keeper.process.kill();
        }
        keeper.start();
        logged(&lab, 0, "keeper started").await;
    }
    std::fs::write(outside.path("wal"), "").unwrap();
    lab.ready().await;
    assert_eq!(keeper.pg.one(NUMBERS).await, "1,2");
    assert_eq!(outside.fetches(), 2, "what was restored is not fetched again");
    let places: Vec<_> = std::fs::read_dir(&wal_dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(
        places,
        [std::fs::read_link(keeper.pgdata().join("pg_wal")).unwrap()],
        "nothing is left of the first one"
    );
    let data = lab.data().await;
    assert_eq!(data.dbs.keys().next().cloned(), db, "nobody else was asked");
    assert_eq!(parameter(&data, "fsync").as_deref(), Some("off"), "the specification's own parameters stay");
    assert_eq!(parameter(&data, "archive_mode"), None);
}

#[tokio::test]
async fn a_failed_restore_says_why_and_can_be_corrected() {
    let outside = Outside::start(&[]);
    outside.insert(1);
    outside.back_up();
    let lab = lab().keepers(1).spec(json!({"initMode": "pitr", "pitrConfig": {
        "dataRestoreCommand": "echo there is no such backup >&2; exit 3"}}));
    let lab = lab.start().await;
    lab.init().await;
    logged(&lab, 0, "dataRestoreCommand failed (exit status 3): there is no such backup").await;
    // Another command that brings nothing, and then one with a target that is never reached.
    lab.ctl(&["update", "--patch", r#"{"pitrConfig": {"dataRestoreCommand": "true"}}"#]).await;
    logged(&lab, 0, "left no complete PostgreSQL data").await;
    // A copy whose WAL is another server's.
    let theirs = outside.path("stolon-wal-theirs");
    std::fs::create_dir(&theirs).unwrap();
    own(&theirs);
    std::fs::write(theirs.join("file"), "").unwrap();
    let link = format!("{} && rm -r %d/pg_wal && ln -s {} %d/pg_wal", outside.fetch_command(), theirs.display());
    lab.ctl(&["update", "--patch", &json!({"pitrConfig": {"dataRestoreCommand": link}}).to_string()]).await;
    logged(&lab, 0, "may be in use by another server").await;
    let before = outside.fetches();
    let patch = json!({"pitrConfig": {"dataRestoreCommand": outside.fetch_command(),
        "recoveryTargetSettings": {"recoveryTargetName": "nowhere"}}});
    lab.ctl(&["update", "--patch", &patch.to_string()]).await;
    logged(&lab, 0, "postgres ended during the recovery").await;
    lab.ctl(&["update", "--patch", r#"{"pitrConfig": {"recoveryTargetSettings": null}}"#]).await;
    lab.ready().await;
    assert_eq!(lab.keeper(0).pg.one(NUMBERS).await, "1");
    // The refused command may have run once more before it was replaced.
    assert!(outside.fetches() <= before + 2, "a backup that holds all its WAL was fetched once");
    assert!(theirs.join("file").exists());
}

#[tokio::test]
async fn a_recovery_has_its_time_and_an_operator_may_begin_again() {
    let outside = Outside::start(&[]);
    outside.back_up();
    let spec = |restore: &str| {
        json!({"initMode": "pitr", "syncTimeout": "2s", "pitrConfig": {
            "dataRestoreCommand": outside.fetch_command(), "archiveRecoverySettings": {"restoreCommand": restore}}})
    };
    let lab = lab().keepers(1).spec(spec("sleep 100")).start().await;
    lab.init().await;
    logged(&lab, 0, "the recovery is not complete after 2 s (syncTimeout)").await;
    // What an interrupted restore left is nobody's data: it does not stand in the way of another cluster.
    let mut again = spec("false");
    again["pgParameters"] = json!({"fsync": "off"});
    lab.ctl(&["init", "--yes", &again.to_string()]).await;
    lab.wait("the cluster is initialized", initialized).await;
    assert_eq!(outside.fetches(), 2);
    let trash = std::fs::read_dir(lab.keeper(0).root().join("trash")).unwrap().count();
    assert_eq!(trash, 1, "even that is kept");
}

#[tokio::test]
async fn an_existing_instance_is_adopted_with_its_parameters() {
    let outside = Outside::start(&["work_mem = '7MB'", "restart_after_crash = on"]);
    outside.insert(1);
    let lab = lab().spec(json!({"initMode": "existing", "existingConfig": {"keeperUID": "keeper1"}}));
    let lab = lab.prepare().await;
    let keeper = lab.keeper(1);
    std::fs::create_dir(keeper.root()).unwrap();
    own(keeper.root());
    outside.copy_to(&keeper.pgdata());
    lab.init().await;
    lab.start_all();
    // It dies in the middle of it, with PostgreSQL.
    eventually("the instance runs", async || keeper.postmaster_pid().is_some()).await;
    keeper.kill();
    keeper.start();
    lab.ready().await;
    assert_eq!(lab.master().await, 1);
    assert!(!keeper.root().join("trash").exists());
    let data = lab.data().await;
    for (name, value) in [("work_mem", Some("7MB")), ("shared_buffers", Some("16MB")), ("fsync", Some("off"))] {
        assert_eq!(parameter(&data, name).as_deref(), value, "{name}");
    }
    // Places and what the cluster decides are not merged.
    for name in ["port", "listen_addresses", "unix_socket_directories", "restart_after_crash", "hba_file"] {
        assert_eq!(parameter(&data, name), None, "{name}");
    }
    for keeper in lab.keepers() {
        keeper.pg.wait_for(NUMBERS, "1").await;
        assert_eq!(keeper.pg.one("SHOW work_mem").await, "7MB");
    }
    assert!(keeper.pgdata().join("postgresql.auto.conf.before-stolon").exists());
}

#[tokio::test]
async fn an_existing_instance_is_waited_for_and_takes_the_specification_s_parameters() {
    let outside = Outside::start(&["work_mem = '7MB'"]);
    outside.insert(1);
    let lab = lab().keepers(2).spec(json!({"initMode": "existing", "existingConfig": {"keeperUID": "keeper1"},
        "mergePgParameters": false, "pgParameters": {"work_mem": "9MB"}}));
    let lab = lab.prepare().await;
    lab.init().await;
    // The wrong one is there: it is not taken, and what is missing is said.
    lab.keeper(0).start();
    lab.sentinel(0).start();
    let words = "keeper \"keeper1\", which existingConfig.keeperUID names, has not registered; these have: keeper0";
    eventually("the sentinel names the missing one", async || lab.sentinel(0).log().contains(words)).await;
    // It comes without data.
    lab.start_all();
    logged(&lab, 1, "there is no complete instance in").await;
    assert!(lab.data().await.dbs.values().all(|db| db.spec.keeper_uid == *"keeper1"));
    lab.keeper(1).stop().await;
    outside.copy_to(&lab.keeper(1).pgdata());
    lab.keeper(1).start();
    lab.ready().await;
    let data = lab.data().await;
    assert_eq!((parameter(&data, "work_mem").as_deref(), parameter(&data, "archive_mode")), (Some("9MB"), None));
    assert_eq!(lab.keeper(1).pg.one("SHOW work_mem").await, "9MB");
    lab.keeper(0).pg.wait_for(NUMBERS, "1").await;
}

#[tokio::test]
async fn a_keeper_that_fails_to_make_an_instance_gives_way_to_another() {
    let broken = tempfile::TempDir::with_prefix("broken-").unwrap();
    for entry in std::fs::read_dir(testkit::postgres::bin_dir().unwrap()).unwrap().flatten() {
        if entry.file_name() != "initdb" {
            std::os::unix::fs::symlink(entry.path(), broken.path().join(entry.file_name())).unwrap();
        }
    }
    std::fs::write(broken.path().join("initdb"), "#!/bin/sh\necho no room for an instance >&2\nexit 1\n").unwrap();
    for path in [broken.path(), &broken.path().join("initdb")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let lab = lab().spec(json!({"initTimeout": "3s"})).keeper_arguments(0, &["--priority", "1"]).prepare().await;
    lab.keeper(0).process.set_argument("--pg-bin-path", broken.path().to_str().unwrap());
    lab.init().await;
    lab.start_all();
    logged(&lab, 0, "no room for an instance").await;
    let data = lab.wait("another keeper made it", initialized).await;
    assert_eq!(lab.master_in(&data), Some(1));
    assert!(lab.sentinel(0).log().contains("keeper \"keeper0\" did not make the first master"));
}

#[tokio::test]
async fn a_cluster_comes_up_whatever_is_killed_when() {
    let lab = lab().prepare().await;
    lab.init().await;
    lab.start_all();
    let mut whole = false;
    for round in 1..=14 {
        // Long enough to come further each time.
        tokio::time::sleep(Duration::from_millis(120 * round)).await;
        let keeper = lab.keeper(usize::from(round % 3 == 0));
        if round % 2 == 0 {
            keeper.kill();
        } else {
            keeper.process.kill();
        }
        keeper.start();
        whole = whole || lab.is_whole(&lab.data().await);
    }
    lab.ready().await;
    assert_eq!(lab.proxy(0).pg.one("CREATE TABLE IF NOT EXISTS x (); SELECT 1").await, "1");
    for keeper in lab.keepers() {
        assert!(!keeper.root().join("postgres.new").exists() && !keeper.root().join("restorestate").exists());
    }
}

#[tokio::test]
async fn a_sentinel_makes_the_cluster_and_password_files_may_end_with_a_line_break() {
    let files = tempfile::TempDir::with_prefix("files-").unwrap();
    std::fs::set_permissions(files.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (spec, password) = (files.path().join("spec"), files.path().join("password"));
    std::fs::write(&spec, r#"{"initMode": "new", "sleepInterval": "2s", "failInterval": "2s"}"#).unwrap();
    std::fs::write(&password, "s3 cret\r\n").unwrap();
    own(&password);
    let lab = lab().proxies(0).sentinel_arguments(&["--initial-cluster-spec", spec.to_str().unwrap()]).prepare().await;
    for keeper in lab.keepers() {
        for user in ["su", "repl"] {
            keeper.process.set_argument(&format!("--pg-{user}-auth-method"), "scram-sha-256");
            keeper.process.set_argument(&format!("--pg-{user}-passwordfile"), password.to_str().unwrap());
        }
    }
    // Without a keeper there is nothing to begin with.
    lab.sentinel(0).start();
    let words = "none has registered";
    eventually("the sentinel lacks keepers", async || lab.sentinel(0).log().contains(words)).await;
    let data = lab.data().await;
    assert!(!initialized(&data) && data.dbs.is_empty() && data.cluster.status.master.is_empty());
    lab.start_all();
    lab.wait("a master and its standby", |data| {
        data.dbs.len() == 2 && data.dbs.values().all(|db| db.status.healthy && db.converged())
    })
    .await;
    let endpoint = &lab.keeper(lab.master().await).pg;
    assert!(endpoint.try_connect().await.is_err(), "without a password");
    let mut config = endpoint.config();
    config.password("s3 cret");
    endpoint.try_connect_as(&config).await.unwrap();
    // A second keeper of the same directory ends at once and disturbs nothing.
    let log = lab.keeper(0).log();
    assert!(log.contains("line break"), "{log}");
    let mut second = std::process::Command::new(env!("CARGO_BIN_EXE_stolon-keeper"));
    second.args(["--cluster-name", "lab", "--store-backend", "etcdv3", "--store-endpoints", &lab.etcd.endpoints()]);
    second.args(["--pg-listen-address", "127.0.0.1", "--pg-repl-username", "repl", "--pg-su-auth-method", "trust"]);
    second.args(["--pg-repl-auth-method", "trust", "--data-dir"]).arg(lab.keeper(0).root());
    let output = second.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another keeper uses this directory"), "{output:?}");
}
