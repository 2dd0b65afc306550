//! What operators do to a cluster while it works.

use crate::lab;
use serde_json::json;
use std::time::Duration;
use testkit::stolon::{Lab, Written, eventually};

/// The longest time between two acknowledged commits.
fn longest_wait(written: &Written) -> Duration {
    let times: Vec<_> = written.acknowledged.values().collect();
    times.windows(2).map(|pair| pair[1].duration_since(*pair[0])).max().unwrap_or_default()
}

#[tokio::test]
async fn a_switchover_loses_nothing_and_lasts() {
    let lab = lab().keepers(3).proxies(2).synchronous(1, 1).up().await;
    let old = lab.master().await;
    lab.ctl(&["setkeeperpriority", &lab.keeper(old).uid, "10"]).await;
    let writer = lab.writer().await;
    for new in lab.standbys().await {
        writer.progress(50).await;
        let before = lab.master().await;
        let said = lab.ctl(&["switchover", "-y", "--to", &lab.keeper(new).uid]).await;
        assert!(said.contains("is master and in service"), "{said}");
        assert_eq!(lab.master().await, new);
        assert!(lab.keeper(before).log().contains("made a checkpoint as ordered"), "before it is stopped");
        writer.progress(50).await;
        // Longer than the hysteresis of priorities.
        lab.ready().await;
        lab.never("the switchover undone", Duration::from_secs(3), |data| lab.master_in(data) != Some(new)).await;
    }
    let written = writer.finish().await;
    println!("longest wait {:?}", longest_wait(&written));
    written.check(&lab.proxy(0).pg).await;

    let why = lab.ctl(&["why", "master"]).await;
    assert!(why.contains("because clean switch from db") && why.contains("request_done"), "{why}");
    lab.ctl(&["switchover", "--release"]).await;
    lab.wait("the preferred keeper is master again", |data| lab.published_in(data) == Some(old)).await;
}

#[tokio::test]
async fn a_switchover_that_is_impossible_says_why() {
    let lab = lab().up().await;
    let master = lab.master().await;
    let standby = lab.standbys().await[0];
    let refused = async |arguments: &[&str]| {
        let output = lab.try_ctl(arguments).await;
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused(&["switchover", "-y", "--to", "nobody"]).await.contains("there is no keeper \"nobody\""));
    lab.keeper(standby).kill();
    lab.wait("the standby is given up", |data| !data.keepers[lab.keeper(standby).uid.as_str()].status.healthy).await;
    let said = refused(&["switchover", "-y", "--to", &lab.keeper(standby).uid]).await;
    assert!(said.contains("is not healthy"), "{said}");
    let why = lab.ctl(&["why", "failover"]).await;
    assert!(why.contains("could not become master: its keeper is not heard of (keeper_silent)"), "{why}");
    assert!(why.contains("nobody_eligible"), "{why}");
    let status = lab.ctl(&["status"]).await;
    assert!(status.contains("=== Problems ===") && status.contains("keeper_record_gone"), "{status}");
    lab.sentinel(0).stop().await;
    assert!(lab.ctl(&["status", "-f", "json"]).await.contains("\"no_leader\""));
    let said = refused(&["switchover", "-y", "--timeout", "1s", "--to", &lab.keeper(standby).uid]).await;
    assert!(said.contains("no sentinel answered"), "{said}");
    assert_eq!(lab.master().await, master);
}

#[tokio::test]
async fn a_named_keeper_is_elected_when_data_loss_is_accepted() {
    let lab = lab().keepers(3).synchronous(1, 1).up().await;
    let old = lab.master().await;
    let data = lab.ready().await;
    let members = lab.confirmed(&data);
    let other = lab.standbys().await.into_iter().find(|keeper| !members.contains(keeper)).unwrap();
    let uid = &lab.keeper(other).uid;
    let refused = lab.try_ctl(&["elect", "-y", "--accept-data-loss", uid]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the master is healthy"), "{refused:?}");
    assert_eq!(lab.try_ctl(&["elect", "-y", uid]).await.status.code(), Some(2), "loss must be accepted in words");
    for keeper in members.iter().copied().chain([old]) {
        lab.keeper(keeper).kill();
    }
    lab.wait("the master is given up", |data| !data.keepers[lab.keeper(old).uid.as_str()].status.healthy).await;
    let why = lab.ctl(&["why", "failover"]).await;
    assert!(why.contains("not known to hold every acknowledged commit (not_synchronous)"), "{why}");
    // The member's lease may end a moment after the master's.
    assert_ne!(lab.master().await, other, "it is not elected by itself");
    let said = lab.ctl(&["elect", "-y", "--accept-data-loss", uid]).await;
    assert!(said.contains("is master and in service"), "{said}");
    assert!(lab.ctl(&["why", "master"]).await.contains("forced_election"));
    // The old master joins the new history.
    for keeper in lab.keepers().iter().filter(|keeper| keeper.uid != *uid) {
        keeper.start();
    }
    let data = lab.ready().await;
    assert_eq!(lab.published_in(&data), Some(other));
    assert_eq!(lab.keeper(old).pg.one("SELECT pg_is_in_recovery()").await, "t");
    lab.writer().await.progress(5).await;
}

/// When each keeper's PostgreSQL was started, on its own clock.
async fn started(lab: &Lab) -> Vec<f64> {
    let mut times = Vec::new();
    for keeper in lab.keepers() {
        let text = keeper.pg.one("SELECT extract(epoch FROM pg_postmaster_start_time())::text").await;
        times.push(text.parse().unwrap());
    }
    times
}

async fn set_connections(lab: &Lab, number: u32) {
    let patch = json!({"pgParameters": {"max_connections": number.to_string()}}).to_string();
    lab.ctl(&["update", "--patch", &patch]).await;
}

async fn all_have(lab: &Lab, number: u32) {
    for keeper in lab.keepers() {
        keeper.pg.wait_for("SHOW max_connections", &number.to_string()).await;
    }
}

#[tokio::test]
async fn a_rolling_restart_keeps_the_order_and_loses_nothing() {
    let lab = lab().keepers(3).sentinels(2).synchronous(1, 1).spec(json!({"automaticPgRestart": false})).up().await;
    lab.ready().await;
    let old = lab.master().await;
    assert!(lab.ctl(&["restart", "-y"]).await.contains("no parameter waits for a restart"));
    let before = started(&lab).await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    set_connections(&lab, 120).await;
    let said = lab.ctl(&["restart", "-y"]).await;
    assert!(said.contains("PostgreSQL of 3 keepers was restarted"), "{said}");
    all_have(&lab, 120).await;
    let new = lab.master().await;
    assert_ne!(new, old, "the master moved");
    let after = started(&lab).await;
    assert!((0..3).all(|keeper| after[keeper] > before[keeper] && after[keeper] <= after[old]), "{before:?} {after:?}");
    writer.progress(20).await;
    // What gets lower is restarted at the master first, where it is.
    set_connections(&lab, 110).await;
    let said = lab.ctl(&["restart", "-y"]).await;
    assert!(said.contains("PostgreSQL of 3 keepers was restarted"), "{said}");
    all_have(&lab, 110).await;
    let last = started(&lab).await;
    assert!((0..3).all(|keeper| last[keeper] > after[keeper] && last[keeper] >= last[new]), "{after:?} {last:?}");
    assert_eq!(lab.master().await, new);
    writer.progress(20).await;
    writer.finish().await.check(&lab.proxy(0).pg).await;
}

/// Index of the sentinel that leads: its log says so last.
fn leading(lab: &Lab) -> usize {
    let leads =
        |log: &str| log.lines().rfind(|line| line.contains("this sentinel")).is_some_and(|l| l.contains("leads"));
    let found = lab.sentinels().iter().position(|sentinel| sentinel.pid().is_some() && leads(&sentinel.log()));
    found.expect("a leading sentinel")
}

#[tokio::test]
async fn a_rolling_restart_survives_the_loss_of_a_sentinel_and_of_a_keeper() {
    let lab = lab().keepers(3).sentinels(2).synchronous(1, 1).up().await;
    lab.ready().await;
    let old = lab.master().await;
    let before = started(&lab).await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let disturb = async {
        let standbys = lab.standbys().await;
        let told = |keeper: &usize| lab.keeper(*keeper).log().contains("as ordered");
        eventually("a standby was told to restart", async || standbys.iter().any(told)).await;
        let keeper = standbys.iter().copied().find(told).unwrap();
        lab.keeper(keeper).process.kill();
        lab.keeper(keeper).start();
        let leader = leading(&lab);
        lab.sentinel(leader).kill();
        lab.sentinel(leader).start();
    };
    let (said, ()) = tokio::join!(lab.ctl(&["restart", "-y", "--all"]), disturb);
    assert!(said.contains("PostgreSQL of 3 keepers was restarted"), "{said}");
    let data = lab.ready().await;
    let new = lab.published_in(&data).unwrap();
    assert_ne!(new, old, "the master moved, as it does in a rolling restart");
    let after = started(&lab).await;
    assert!((0..3).all(|keeper| after[keeper] > before[keeper]), "{before:?} {after:?}");
    writer.progress(20).await;
    writer.finish().await.check(&lab.proxy(0).pg).await;
}

#[tokio::test]
async fn automatic_restarts_come_one_after_the_other() {
    let lab = lab().keepers(3).synchronous(1, 1).up().await;
    lab.ready().await;
    let master = lab.master().await;
    let before = started(&lab).await;
    set_connections(&lab, 120).await;
    all_have(&lab, 120).await;
    let after = started(&lab).await;
    assert!(
        (0..3).all(|keeper| after[keeper] > before[keeper] && after[keeper] <= after[master]),
        "{before:?} {after:?}"
    );
    let log = lab.sentinel(0).log();
    assert_eq!(log.matches("is restarted by keeper").count(), 3, "the sentinel told them: {log}");
    lab.ready().await;
    assert_eq!(lab.master().await, master);
}
