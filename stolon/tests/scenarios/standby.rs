//! Clusters that follow a server outside, and their promotion.

use crate::lab;
use crate::outside::{Outside, own};
use model::stolon::{ClusterData, FollowType};
use serde_json::{Value, json};
use std::time::Duration;
use testkit::stolon::{Builder, Lab};

const NUMBERS: &str = "SELECT string_agg(n::text, ',' ORDER BY n) FROM t";

fn standby_cluster(outside: &Outside, config: Value) -> Builder {
    lab().spec(json!({"initMode": "pitr", "role": "standby", "standbyConfig": config,
        "pitrConfig": {"dataRestoreCommand": outside.fetch_command()}}))
}

/// The keeper that follows the server outside.
fn follower(lab: &Lab, data: &ClusterData) -> Option<usize> {
    let external = |db: &&model::stolon::Db| {
        db.spec.follow_config.as_ref().is_some_and(|follow| follow.kind == Some(FollowType::External))
    };
    let mut all = data.dbs.values().filter(external);
    let first = all.next()?;
    if all.next().is_some() { None } else { lab.index(first.spec.keeper_uid.as_str()) }
}

async fn all_have(lab: &Lab, numbers: &str) {
    for keeper in lab.keepers().iter().filter(|keeper| keeper.process.pid().is_some()) {
        keeper.pg.wait_for(NUMBERS, numbers).await;
    }
}

#[tokio::test]
async fn a_standby_cluster_follows_elects_and_is_promoted() {
    let outside = Outside::start(&["wal_keep_size = '64MB'", "wal_log_hints = on"]);
    outside.insert(1);
    outside.back_up();
    outside.insert(2);
    let settings = json!({"standbySettings": {"primaryConninfo": outside.conninfo()}});
    let lab = standby_cluster(&outside, settings).keepers(3).up().await;
    outside.insert(3);
    all_have(&lab, "1,2,3").await;
    let first = follower(&lab, &lab.data().await).unwrap();
    assert_eq!(Some(first), lab.master_in(&lab.data().await));
    // One of them bothers the server outside; the others follow it.
    assert_eq!(
        outside.sql("SELECT count(*) || ' walsender' FROM pg_stat_replication").matches("1 walsender").count(),
        1
    );
    lab.keeper(first)
        .pg
        .wait_for("SELECT count(*) FROM pg_stat_replication WHERE application_name LIKE 'stolon\\_%'", "2")
        .await;
    assert_eq!(lab.proxy(0).pg.one("SELECT pg_is_in_recovery()").await, "t");

    // The first one is stopped: another one follows the server outside. It comes back and rewinds from a standby.
    lab.keeper(first).stop().await;
    let second = lab.wait_for_other_master(first).await;
    outside.insert(4);
    all_have(&lab, "1,2,3,4").await;
    lab.keeper(first).start();
    lab.ready().await;
    outside.insert(5);
    all_have(&lab, "1,2,3,4,5").await;
    assert_eq!(follower(&lab, &lab.data().await), Some(second));
    assert!(!lab.keeper(first).log().contains("the rewind failed"), "{}", lab.keeper(first).log());

    // The second one dies. Then the cluster is promoted, and has synchronous replication from then on.
    lab.keeper(second).kill();
    let third = lab.wait_for_other_master(second).await;
    lab.keeper(second).start();
    lab.ready().await;
    lab.ctl(&["update", "--patch", r#"{"synchronousReplication": true}"#]).await;
    lab.ctl(&["promote", "--yes"]).await;
    let proxy = &lab.proxy(0).pg;
    proxy.wait_for("SELECT pg_is_in_recovery()", "f").await;
    lab.ready().await;
    assert_eq!(lab.master().await, third);
    proxy.one("INSERT INTO t VALUES (6)").await;
    outside.insert(7);
    all_have(&lab, "1,2,3,4,5,6").await;
    assert_eq!(lab.keeper(third).pg.one("SHOW primary_conninfo").await, "");
    // For good.
    assert!(!lab.try_ctl(&["update", "--patch", r#"{"role": "standby"}"#]).await.status.success());
    assert!(lab.try_ctl(&["promote", "--yes"]).await.status.success());
}

#[tokio::test]
async fn a_standby_cluster_lives_from_an_archive_and_replays_it_before_its_promotion() {
    let outside = Outside::start(&[]);
    outside.insert(1);
    let lab =
        standby_cluster(&outside, json!({"archiveRecoverySettings": {"restoreCommand": outside.restore_command()}}))
            .spec(json!({"initMode": "existing", "existingConfig": {"keeperUID": "keeper0"}, "pitrConfig": null}))
            .prepare()
            .await;
    let keeper = lab.keeper(0);
    std::fs::create_dir(keeper.root()).unwrap();
    own(keeper.root());
    outside.copy_to(&keeper.pgdata());
    lab.init().await;
    lab.start_all();
    lab.ready().await;
    outside.insert(2);
    outside.archive_all();
    all_have(&lab, "1,2").await;
    // PostgreSQL looks for new files of the archive every few seconds; nobody has to wait for that.
    outside.insert(3);
    outside.archive_all();
    outside.insert(4);
    lab.ctl(&["promote", "--yes"]).await;
    lab.proxy(0).pg.wait_for("SELECT pg_is_in_recovery()", "f").await;
    assert_eq!(lab.proxy(0).pg.one(NUMBERS).await, "1,2,3");
    lab.ready().await;
    all_have(&lab, "1,2,3").await;
    assert_eq!(lab.keeper(0).pg.one("SHOW restore_command").await, "");
}

#[tokio::test]
async fn settings_of_a_standby_cluster_change_without_a_restart() {
    let outside = Outside::start(&[]);
    outside.sql("SELECT pg_create_physical_replication_slot('us', true)");
    outside.insert(1);
    outside.back_up();
    let settings = json!({"standbySettings": {"primaryConninfo": outside.conninfo(), "primarySlotName": "us"}});
    let lab = standby_cluster(&outside, settings).keepers(1).up().await;
    let keeper = lab.keeper(0);
    all_have(&lab, "1").await;
    assert!(outside.sql("SELECT 'active ' || active FROM pg_replication_slots").contains("active true"));
    let postmaster = keeper.postmaster_pid();
    lab.ctl(&["update", "--patch", r#"{"standbyConfig": {"standbySettings": {"recoveryMinApplyDelay": "1h"}}}"#]).await;
    keeper.pg.wait_for("SHOW recovery_min_apply_delay", "1h").await;
    outside.insert(2);
    let received = "SELECT pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()";
    keeper.pg.wait_for(received, "t").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(keeper.pg.one(NUMBERS).await, "1");
    assert_eq!(keeper.postmaster_pid(), postmaster);
    // What was received counts at a promotion, late or not.
    lab.ctl(&["promote", "--yes"]).await;
    keeper.pg.wait_for("SELECT pg_is_in_recovery()", "f").await;
    assert_eq!(keeper.pg.one(NUMBERS).await, "1,2");
    assert_eq!(keeper.postmaster_pid(), postmaster);
}

#[tokio::test]
async fn a_standby_cluster_follows_another_cluster_through_its_switchover() {
    let upstream = lab().up().await;
    let writer = &upstream.proxy(0).pg;
    writer.one("CREATE TABLE t (n int)").await;
    writer.one("INSERT INTO t VALUES (1)").await;
    let place = format!("-h 127.0.0.1 -p {} -U repl", writer.port());
    let program = testkit::postgres::bin_dir().unwrap().join("pg_basebackup");
    let lab = lab().spec(json!({"initMode": "pitr", "role": "standby",
        "pitrConfig": {"dataRestoreCommand":
            format!("{} {place} -D %d -X stream --checkpoint=fast --no-sync", program.display())},
        "standbyConfig": {"standbySettings":
            {"primaryConninfo": format!("host=127.0.0.1 port={} user=repl", writer.port())}}}));
    let lab = lab.up().await;
    all_have(&lab, "1").await;
    let before = lab.data().await;
    let next = upstream.standbys().await[0];
    upstream.ctl(&["switchover", "-y", "--to", &upstream.keeper(next).uid]).await;
    // An answer may be lost on the way, and then it is asked for again.
    writer.one("INSERT INTO t SELECT 2 WHERE NOT EXISTS (SELECT FROM t WHERE n = 2)").await;
    all_have(&lab, "1,2").await;
    let after = lab
        .wait("all are on the next timeline", |data| {
            data.dbs.values().all(|db| db.status.timeline_id == 2 && db.status.healthy)
        })
        .await;
    assert_eq!(after.cluster.status.master, before.cluster.status.master);
    assert!(after.dbs.keys().eq(before.dbs.keys()), "nobody was made again");
    // It goes its own way from there.
    lab.ctl(&["promote", "--yes"]).await;
    lab.proxy(0).pg.wait_for("SELECT pg_is_in_recovery()", "f").await;
    lab.ready().await;
    lab.proxy(0).pg.one("INSERT INTO t VALUES (3)").await;
    all_have(&lab, "1,2,3").await;
    assert_eq!(writer.one(NUMBERS).await, "1,2");
}

#[tokio::test]
async fn existing_data_of_a_primary_makes_no_standby_cluster() {
    let outside = Outside::start(&[]);
    let settings = json!({"standbySettings": {"primaryConninfo": outside.conninfo()}});
    let lab = standby_cluster(&outside, settings)
        .spec(json!({"initMode": "existing", "existingConfig": {"keeperUID": "keeper0"}, "pitrConfig": null}))
        .keepers(1)
        .prepare()
        .await;
    let keeper = lab.keeper(0);
    std::fs::create_dir(keeper.root()).unwrap();
    own(keeper.root());
    outside.copy_to(&keeper.pgdata());
    // Not a copy any more once it says that it is none.
    std::fs::remove_file(keeper.pgdata().join("backup_label")).unwrap();
    lab.init().await;
    lab.start_all();
    testkit::stolon::eventually("the refusal", async || keeper.log().contains("holds a primary")).await;
    assert!(keeper.pgdata().join("global/pg_control").exists() && keeper.postmaster_pid().is_none());
}
