//! The master dies, hangs, or does not do what it is told.

use crate::{lab, published_only_when_promoted};
use nix::sys::signal::Signal;
use serde_json::json;
use std::time::Duration;

/// Commits that wait are given so long to show that they don't.
const WAITS: Duration = Duration::from_millis(1500);

#[tokio::test]
async fn a_dead_master_is_replaced_without_losing_what_was_acknowledged() {
    let lab = lab().keepers(3).proxies(2).synchronous(1, 1).up().await;
    let revision = lab.revision().await;
    let writer = lab.writer().await;
    writer.progress(50).await;
    let old = lab.master().await;
    lab.keeper(old).kill();
    let new = lab.wait_for_other_master(old).await;
    writer.progress(50).await;
    let written = writer.finish().await;
    written.check(&lab.proxy(1).pg).await;
    assert_eq!(lab.keeper(new).pg.one("SELECT pg_is_in_recovery()").await, "f");
    published_only_when_promoted(&lab.history(revision).await);

    // It comes back as a standby of the new master.
    lab.keeper(old).start();
    lab.ready().await;
    lab.caught_up(old).await;
    written.check(&lab.keeper(old).pg).await;
    assert_eq!(lab.keeper(old).pg.try_one("SELECT pg_is_in_recovery()").await.unwrap(), "t");
}

#[tokio::test]
async fn a_master_whose_postgres_starts_again_stays_master() {
    let lab = lab().synchronous(1, 1).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let master = lab.master().await;
    let before = lab.keeper(master).postmaster_pid();
    lab.keeper(master).kill_postgres();
    writer.progress(20).await;
    assert_eq!(lab.master().await, master);
    assert!(lab.keeper(master).postmaster_pid().is_some_and(|pid| Some(pid) != before));
    writer.finish().await.check(&lab.proxy(0).pg).await;
}

#[tokio::test]
async fn a_master_whose_postgres_can_not_start_is_replaced_while_its_keeper_lives() {
    let lab = lab().synchronous(1, 1).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let old = lab.master().await;
    let control = lab.keeper(old).pgdata().join("global/pg_control");
    std::fs::rename(&control, control.with_extension("away")).unwrap();
    lab.keeper(old).kill_postgres();
    let new = lab.wait_for_other_master(old).await;
    // The old one gets its data again by itself; until then commits wait.
    writer.progress(20).await;
    let data = lab.ready().await;
    assert_eq!(lab.master_in(&data), Some(new));
    assert!(control.exists());
    let written = writer.finish().await;
    lab.caught_up(old).await;
    written.check(&lab.keeper(old).pg).await;
}

#[tokio::test]
async fn a_postgres_that_outlives_its_keeper_confirms_nothing_after_a_failover() {
    let lab = lab().synchronous(1, 1).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let old = lab.master().await;
    let deposed = lab.keeper(old);
    deposed.process.kill();
    lab.wait_for_other_master(old).await;
    assert_eq!(deposed.pg.try_one("SELECT pg_is_in_recovery()").await.unwrap(), "f");
    assert!(!deposed.pg.confirms("CREATE TABLE of_the_deposed ()", WAITS).await, "a deposed master confirmed a commit");
    deposed.start();
    writer.progress(20).await;
    lab.ready().await;
    writer.finish().await.check(&lab.proxy(0).pg).await;
    lab.caught_up(old).await;
    for pg in [&lab.proxy(0).pg, &deposed.pg] {
        assert_eq!(pg.one("SELECT count(*) FROM pg_class WHERE relname = 'of_the_deposed'").await, "0");
    }
}

#[tokio::test]
async fn a_master_that_does_not_reach_the_wanted_generation_is_replaced() {
    let lab = lab().synchronous(1, 1).spec(json!({"convergenceTimeout": "3s"})).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let old = lab.master().await;
    obstruct_configuration(lab.keeper(old));
    lab.ctl(&["update", "--patch", r#"{"pgParameters": {"work_mem": "7MB"}}"#]).await;
    let new = lab.wait_for_other_master(old).await;
    assert_eq!(lab.keeper(new).pg.one("SHOW work_mem").await, "7MB");
    writer.progress(20).await;
    lab.ready().await;
    writer.finish().await.check(&lab.proxy(0).pg).await;
}

/// Makes the configuration a file that can't be replaced, so that no new generation can be applied.
fn obstruct_configuration(keeper: &testkit::stolon::Keeper) {
    let conf = keeper.pgdata().join("postgresql.conf");
    std::fs::rename(&conf, conf.with_extension("away")).unwrap();
    std::fs::create_dir_all(conf.join("obstacle")).unwrap();
}

#[tokio::test]
async fn a_standby_that_is_too_far_behind_is_not_elected() {
    let lab = lab().spec(json!({"maxStandbyLag": 100_000})).up().await;
    let old = lab.master().await;
    let standby = lab.standbys().await[0];
    lab.keeper(standby).stop_receiving().await;
    lab.keeper(old).pg.one("CREATE TABLE far AS SELECT generate_series(1, 20000) n").await;
    let position = |data: &_, keeper| lab.db(data, keeper).unwrap().status.xlog_pos;
    // The leader knows of it only when the master has reported it.
    let far = position(&lab.data().await, standby) + 100_000;
    testkit::stolon::eventually("the master reports its position", async || {
        lab.info(old).await.and_then(|info| info.postgres_state).is_some_and(|state| state.xlog_pos > far)
    })
    .await;
    lab.keeper(old).kill();
    lab.wait("the master is given up", |data| !lab.db(data, old).unwrap().status.healthy).await;
    lab.never("a standby far behind is elected", Duration::from_secs(4), |data| lab.master_in(data) != Some(old)).await;
    lab.keeper(old).start();
    lab.keeper(standby).thaw();
    assert_eq!(lab.proxy(0).pg.one("SELECT count(*) FROM far").await, "20000");
    lab.ready().await;
    assert_eq!(lab.master().await, old);
}

#[tokio::test]
async fn a_standby_on_an_older_generation_is_not_elected() {
    let lab = lab().keepers(3).up().await;
    let old = lab.master().await;
    let [slow, quick] = lab.standbys().await[..] else { panic!("two standbys") };
    obstruct_configuration(lab.keeper(slow));
    lab.ctl(&["update", "--patch", r#"{"pgParameters": {"work_mem": "7MB"}}"#]).await;
    lab.wait("all but one have applied it", |data| {
        let lags = |keeper| lab.db(data, keeper).is_none_or(|db| !db.converged());
        !lags(old) && !lags(quick) && lags(slow)
    })
    .await;
    // Otherwise it would be preferred.
    lab.ctl(&["setkeeperpriority", &lab.keeper(slow).uid, "10"]).await;
    lab.keeper(old).kill();
    assert_eq!(lab.wait_for_other_master(old).await, quick);
}

#[tokio::test]
async fn a_former_master_that_returns_before_the_promotion_is_elected_again() {
    let lab = lab().synchronous(1, 1).spec(json!({"convergenceTimeout": "3s"})).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let (old, chosen) = (lab.master().await, lab.standbys().await[0]);
    // This standby answers, but can't be promoted.
    lab.keeper(chosen).signal_backend("startup", Signal::SIGSTOP).await;
    lab.keeper(old).kill();
    lab.wait("the standby is chosen", |data| lab.master_in(data) == Some(chosen)).await;
    let before = writer.count();
    lab.keeper(old).start();
    lab.wait("the former master is chosen again", |data| lab.master_in(data) == Some(old)).await;
    assert_eq!(writer.count(), before, "somebody confirmed commits while there was no master");
    // Now it promotes after all, and has to become a standby again.
    lab.keeper(chosen).thaw();
    writer.progress(20).await;
    let data = lab.ready().await;
    assert_eq!(lab.master_in(&data), Some(old));
    let timelines: Vec<u64> = data.dbs.values().map(|db| db.status.timeline_id).collect();
    assert_eq!(timelines, vec![timelines[0]; 2]);
    let written = writer.finish().await;
    lab.caught_up(chosen).await;
    written.check(&lab.keeper(chosen).pg).await;
    written.check(&lab.proxy(0).pg).await;
}

/// The master writes what no standby gets, dies, and comes back.
async fn an_old_master_with_a_history_of_its_own(rewind: bool) {
    let lab = lab().spec(json!({"usePgrewind": rewind})).up().await;
    lab.proxy(0).pg.one("CREATE TABLE t AS SELECT 1 AS n").await;
    let (old, standby) = (lab.master().await, lab.standbys().await[0]);
    lab.caught_up(standby).await;
    lab.keeper(standby).stop_receiving().await;
    lab.keeper(old).pg.one("INSERT INTO t VALUES (2)").await;
    lab.keeper(old).kill();
    lab.keeper(standby).signal_backend("walreceiver", Signal::SIGTERM).await;
    lab.keeper(standby).thaw();
    assert_eq!(lab.wait_for_other_master(old).await, standby);
    lab.proxy(0).pg.one("INSERT INTO t VALUES (3)").await;
    lab.keeper(old).start();
    lab.ready().await;
    lab.caught_up(old).await;
    for keeper in lab.keepers() {
        assert_eq!(keeper.pg.one("SELECT string_agg(n::text, ',' ORDER BY n) FROM t").await, "1,3", "{}", keeper.uid);
    }
    let log = lab.keeper(old).log();
    assert_eq!(
        (log.contains("rewound to the primary's history"), log.contains("made a base backup")),
        (rewind, !rewind)
    );
}

#[tokio::test]
async fn an_old_master_is_rewound() {
    an_old_master_with_a_history_of_its_own(true).await;
}

#[tokio::test]
async fn an_old_master_is_copied_anew_without_pg_rewind() {
    an_old_master_with_a_history_of_its_own(false).await;
}

#[tokio::test]
async fn a_standby_ahead_of_the_new_master_is_made_again() {
    // The one with more WAL does not want to be master.
    let ahead = 2;
    let lab = lab().keepers(3).keeper_arguments(ahead, &["--can-be-master=false"]).up().await;
    lab.proxy(0).pg.one("CREATE TABLE t AS SELECT 1 AS n").await;
    let old = lab.master().await;
    let behind = lab.standbys().await.into_iter().find(|standby| *standby != ahead).unwrap();
    lab.caught_up(behind).await;
    lab.keeper(behind).stop_receiving().await;
    lab.keeper(old).pg.one("INSERT INTO t VALUES (2)").await;
    lab.caught_up(ahead).await;
    let before = lab.db(&lab.data().await, ahead).unwrap().uid.clone();
    lab.keeper(old).kill();
    lab.keeper(behind).signal_backend("walreceiver", Signal::SIGTERM).await;
    lab.keeper(behind).thaw();
    assert_eq!(lab.wait_for_other_master(old).await, behind);
    lab.proxy(0).pg.one("INSERT INTO t VALUES (3)").await;
    let data = lab.wait("the other standby is good again", |data| lab.is_whole(data)).await;
    assert_ne!(lab.db(&data, ahead).unwrap().uid, before, "a standby on another branch must not go on");
    lab.caught_up(ahead).await;
    assert_eq!(lab.keeper(ahead).pg.one("SELECT string_agg(n::text, ',' ORDER BY n) FROM t").await, "1,3");
}

#[tokio::test]
async fn a_master_that_changes_its_address_is_followed() {
    let lab = lab().synchronous(1, 1).spec(json!({"failInterval": "30s"})).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let (master, standby) = (lab.master().await, lab.standbys().await[0]);
    let pid = lab.keeper(standby).postmaster_pid();
    lab.keeper(master).stop().await;
    lab.keeper(master).change_port();
    lab.keeper(master).start();
    let port = lab.keeper(master).pg.port().to_string();
    lab.wait("the new address is known", |data| lab.db(data, master).is_some_and(|db| db.status.port == port)).await;
    writer.progress(20).await;
    assert_eq!(lab.master().await, master);
    let conninfo = lab.keeper(standby).pg.one("SELECT conninfo FROM pg_stat_wal_receiver").await;
    assert!(conninfo.contains(&format!("port={port}")), "{conninfo}");
    assert_eq!(lab.keeper(standby).postmaster_pid(), pid, "the standby was restarted");
    writer.finish().await.check(&lab.proxy(0).pg).await;
}

#[tokio::test]
async fn failkeeper_moves_the_master_if_somebody_can_take_over() {
    let lab = lab().synchronous(1, 1).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let old = lab.master().await;
    lab.ctl(&["failkeeper", &lab.keeper(old).uid]).await;
    let new = lab.wait_for_other_master(old).await;
    writer.progress(20).await;
    let data = lab.ready().await;
    assert_eq!(lab.master_in(&data), Some(new));
    assert!(data.keepers.values().all(|keeper| keeper.status.healthy && !keeper.status.force_fail));

    // Nobody can take over now: the master stays and goes on.
    lab.keeper(old).kill();
    lab.wait("the standby is given up", |data| lab.db(data, old).is_none_or(|db| !db.status.healthy)).await;
    let before = writer.count();
    lab.ctl(&["failkeeper", &lab.keeper(new).uid]).await;
    lab.wait("the command was noticed", |data| data.keepers.values().all(|keeper| !keeper.status.force_fail)).await;
    lab.never("the only master is given up", Duration::from_secs(2), |data| lab.master_in(data) != Some(new)).await;
    assert_eq!(writer.count(), before, "commits must wait for the dead standby");
    lab.keeper(old).start();
    writer.progress(20).await;
    writer.finish().await.check(&lab.proxy(0).pg).await;
}

#[tokio::test]
async fn a_leading_sentinel_that_dies_with_the_master_is_no_hindrance() {
    let lab = lab().sentinels(2).synchronous(1, 1).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let old = lab.master().await;
    let status: serde_json::Value = serde_json::from_str(&lab.ctl(&["status", "-f", "json"]).await).unwrap();
    let leads = |sentinel: &&serde_json::Value| sentinel["leader"] == true;
    let uid = status["sentinels"].as_array().unwrap().iter().find(leads).unwrap()["uid"].as_str().unwrap();
    let leader = lab.sentinels().iter().find(|sentinel| sentinel.log().contains(uid)).unwrap();
    leader.kill();
    lab.keeper(old).kill();
    lab.wait_for_other_master(old).await;
    lab.keeper(old).start();
    writer.progress(20).await;
    writer.finish().await.check(&lab.proxy(0).pg).await;
}
