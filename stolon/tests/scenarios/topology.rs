//! How many standbys there are, who they are, and how they come and go.

use crate::lab;
use serde_json::json;
use std::path::Path;
use std::time::Duration;
use testkit::stolon::{Lab, eventually};

/// The keeper without a db.
fn idle(lab: &Lab, data: &model::stolon::ClusterData) -> Option<usize> {
    (0..lab.keepers().len()).find(|keeper| lab.db(data, *keeper).is_none())
}

/// Slots of standbys on the master.
async fn slots(lab: &Lab, wanted: &str) {
    let sql = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'stolon_%'";
    lab.keeper(lab.master().await).pg.wait_for(sql, wanted).await;
}

#[tokio::test]
async fn standbys_in_excess_go_and_come_back_with_the_limit() {
    let lab = lab().keepers(3).synchronous(1, 1).up().await;
    lab.proxy(0).pg.one("CREATE TABLE t AS SELECT 1 AS n").await;
    let member = lab.confirmed(&lab.data().await);
    lab.ctl(&["update", "--patch", r#"{"maxStandbysPerSender": 1}"#]).await;
    let data = lab.wait("one standby is gone", |data| data.dbs.len() == 2 && lab.is_whole(data)).await;
    assert_eq!(lab.confirmed(&data), member, "the standby that commits wait for was removed");
    let idle = idle(&lab, &data).unwrap();
    eventually("its postgres is stopped", async || lab.keeper(idle).postmaster_pid().is_none()).await;
    assert!(lab.keeper(idle).pgdata().join("PG_VERSION").exists(), "its data is gone");
    slots(&lab, "1").await;

    lab.proxy(0).pg.one("INSERT INTO t VALUES (2)").await;
    lab.ctl(&["update", "--patch", r#"{"maxStandbysPerSender": 2}"#]).await;
    lab.wait("the standby is back", |data| data.dbs.len() == 3 && lab.is_whole(data)).await;
    slots(&lab, "2").await;
    lab.caught_up(idle).await;
    assert_eq!(lab.keeper(idle).pg.one("SELECT count(*) FROM t").await, "2");
}

#[tokio::test]
async fn a_failed_standby_is_replaced_by_a_keeper_without_db() {
    let lab = lab().keepers(3).spec(json!({"maxStandbysPerSender": 1})).up().await;
    lab.proxy(0).pg.one("CREATE TABLE t AS SELECT 1 AS n").await;
    let data = lab.data().await;
    let spare = idle(&lab, &data).unwrap();
    let dead = lab.standbys().await.into_iter().find(|standby| *standby != spare).unwrap();
    lab.keeper(dead).kill();
    lab.wait("the spare keeper took its place", |data| {
        lab.db(data, dead).is_none() && lab.db(data, spare).is_some_and(|db| db.status.healthy && db.generation > 1)
    })
    .await;
    slots(&lab, "1").await;
    lab.caught_up(spare).await;
    assert_eq!(lab.keeper(spare).pg.one("SELECT count(*) FROM t").await, "1");
    // The dead one comes back as a spare, and its old standby does not run.
    lab.keeper(dead).start();
    let uid = lab.keeper(dead).uid.as_str();
    lab.wait("it is known again", |data| data.keepers[uid].status.healthy).await;
    lab.never("it gets a db", Duration::from_secs(2), |data| lab.db(data, dead).is_some()).await;
    assert_eq!(lab.keeper(dead).postmaster_pid(), None);
}

#[tokio::test]
async fn a_standby_whose_wal_is_gone_is_made_again() {
    let parameters = json!({"max_slot_wal_keep_size": "16MB", "wal_keep_size": "16MB", "max_wal_size": "32MB", "min_wal_size": "32MB"});
    let lab = lab().spec(json!({"sleepInterval": "500ms", "pgParameters": parameters})).up().await;
    lab.proxy(0).pg.one("CREATE TABLE t AS SELECT 1 AS n").await;
    let (master, standby) = (lab.master().await, lab.standbys().await[0]);
    let before = lab.db(&lab.data().await, standby).unwrap().uid.clone();
    let pg = &lab.keeper(master).pg;
    lab.keeper(standby).stop_receiving().await;
    pg.one("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active").await;
    pg.one("INSERT INTO t VALUES (2)").await;
    eventually("the standby's WAL is removed", async || {
        pg.one("SELECT pg_logical_emit_message(false, 'lab', 'x'); SELECT pg_switch_wal()").await;
        pg.one("CHECKPOINT").await;
        pg.one("SELECT wal_status FROM pg_replication_slots").await == "lost"
    })
    .await;
    lab.keeper(standby).thaw();
    let data = lab
        .wait("it has a new db", |data| lab.is_whole(data) && lab.db(data, standby).is_some_and(|db| db.uid != before));
    data.await;
    assert_eq!(lab.master().await, master);
    lab.caught_up(standby).await;
    assert_eq!(lab.keeper(standby).pg.one("SELECT count(*) FROM t").await, "2");
}

/// A volume that was lost while the keeper was down.
async fn lose_data(lab: &Lab, keeper: usize, away: &str) {
    let pgdata = lab.keeper(keeper).pgdata();
    std::fs::rename(&pgdata, lab.path().join(away)).unwrap();
    assert!(!Path::new(&pgdata).exists());
}

#[tokio::test]
async fn a_lost_data_directory_is_made_again_on_the_old_master_and_on_command_for_a_standby() {
    let lab = lab().up().await;
    lab.proxy(0).pg.one("CREATE TABLE t AS SELECT 1 AS n").await;
    let old = lab.master().await;
    lab.caught_up(lab.standbys().await[0]).await;
    lab.keeper(old).kill();
    lose_data(&lab, old, "lost1").await;
    let new = lab.wait_for_other_master(old).await;
    lab.keeper(old).start();
    lab.ready().await;
    lab.caught_up(old).await;
    assert_eq!(lab.keeper(old).pg.one("SELECT count(*) FROM t").await, "1");

    // The standby that it is now must not be taken for one with data, nor the master be disturbed.
    lab.keeper(old).stop().await;
    lose_data(&lab, old, "lost2").await;
    lab.keeper(old).start();
    eventually("the keeper says so", async || lab.keeper(old).log().contains("is missing")).await;
    lab.never("the master changes", Duration::from_secs(2), |data| lab.master_in(data) != Some(new)).await;
    lab.ctl(&["removekeeper", &lab.keeper(old).uid]).await;
    lab.ready().await;
    lab.caught_up(old).await;
    assert_eq!(lab.keeper(old).pg.one("SELECT count(*) FROM t").await, "1");
}

#[tokio::test]
async fn lost_data_of_a_standby_are_copied_anew_where_that_is_allowed() {
    let lab = lab().all_keeper_arguments(&["--rebuild-lost-standby"]).up().await;
    lab.proxy(0).pg.one("CREATE TABLE t AS SELECT 1 AS n").await;
    let standby = lab.standbys().await[0];
    let keeper = lab.keeper(standby);
    for everything in [false, true] {
        let master = lab.master().await;
        keeper.stop().await;
        if everything {
            std::fs::rename(keeper.root(), keeper.root().with_extension("lost")).unwrap();
        } else {
            lose_data(&lab, standby, "lost").await;
        }
        keeper.start();
        lab.ready().await;
        lab.caught_up(standby).await;
        assert_eq!(keeper.pg.one("SELECT count(*) FROM t").await, "1");
        assert_eq!(lab.master().await, master);
    }
}

#[tokio::test]
async fn keepers_are_removed_by_time_and_by_command() {
    let spec = json!({"maxStandbysPerSender": 1, "deadKeeperRemovalInterval": "2s"});
    let lab = lab().keepers(3).spec(spec).up().await;
    let data = lab.data().await;
    let (master, spare) = (lab.master().await, idle(&lab, &data).unwrap());
    let standby = lab.standbys().await.into_iter().find(|standby| *standby != spare).unwrap();
    lab.keeper(spare).kill();
    let uid = lab.keeper(spare).uid.as_str();
    let data = lab.wait("a dead keeper without db is forgotten", |data| !data.keepers.contains_key(uid)).await;
    assert_eq!(data.keepers.len(), 2);
    lab.keeper(spare).start();
    lab.wait("it is back", |data| data.keepers.get(uid).is_some_and(|keeper| keeper.status.healthy)).await;

    let before = lab.db(&lab.data().await, standby).unwrap().uid.clone();
    let refused = lab.try_ctl(&["removekeeper", &lab.keeper(master).uid]).await;
    assert_eq!(refused.status.code(), Some(1), "the master's keeper was removed");
    lab.keeper(spare).kill();
    lab.ctl(&["removekeeper", &lab.keeper(standby).uid]).await;
    let data = lab.wait("it is made again", |data| {
        lab.is_whole(data) && lab.db(data, standby).is_some_and(|db| db.uid != before)
    });
    assert_eq!(lab.master_in(&data.await), Some(master));
}
