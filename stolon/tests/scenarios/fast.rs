//! What is noticed before a lease ends, and what must not be taken for it. The leases here are long, so that nothing else
//! can be the reason.

use crate::lab;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::time::{Duration, Instant};
use testkit::stolon::{Builder, Lab};

/// Ten times as long as a failover by refused connections takes.
const LEASE: Duration = Duration::from_secs(20);

fn patient() -> Builder {
    lab().spec(json!({"failInterval": "20s"}))
}

/// The sentinel gave a keeper up that still held its lease.
fn gave_up(lab: &Lab) -> bool {
    lab.sentinels().iter().any(|sentinel| sentinel.log().contains("the keeper does not answer"))
}

#[tokio::test]
async fn a_killed_host_is_replaced_while_its_lease_lives() {
    let lab = patient().keepers(3).proxies(2).synchronous(0, 2).up().await;
    let writer = lab.writer().await;
    writer.progress(50).await;
    let old = lab.master().await;
    let killed = Instant::now();
    lab.keeper(old).kill();
    lab.wait_for_other_master(old).await;
    assert!(killed.elapsed() < LEASE / 2, "as late as {:?}", killed.elapsed());
    assert!(gave_up(&lab));
    writer.progress(50).await;
    let written = writer.finish().await;
    written.check(&lab.proxy(1).pg).await;
    lab.keeper(old).start();
    lab.ready().await;
    lab.caught_up(old).await;
    written.check(&lab.keeper(old).pg).await;
}

#[tokio::test]
async fn two_keepers_suffice_for_it() {
    let lab = patient().synchronous(0, 1).up().await;
    let writer = lab.writer().await;
    writer.progress(50).await;
    let old = lab.master().await;
    let killed = Instant::now();
    lab.keeper(old).kill();
    lab.wait_for_other_master(old).await;
    writer.progress(50).await;
    assert!(killed.elapsed() < LEASE / 2, "as late as {:?}", killed.elapsed());
    writer.finish().await.check(&lab.proxy(0).pg).await;
}

#[tokio::test]
async fn a_keeper_that_restarts_its_postgres_is_left_alone() {
    let lab = patient().keepers(3).synchronous(0, 2).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let master = lab.master().await;

    lab.keeper(master).kill_postgres();
    writer.progress(20).await;
    lab.ready().await;

    // One backend dies, and with it all sessions.
    let pid = lab.keeper(master).pg.one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'").await;
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
    writer.progress(20).await;
    lab.ready().await;

    let patch = json!({"pgParameters": {"shared_buffers": "17MB"}}).to_string();
    lab.ctl(&["update", "--patch", &patch]).await;
    lab.keeper(master).pg.wait_for("SHOW shared_buffers", "17MB").await;
    writer.progress(20).await;
    let data = lab.ready().await;

    assert_eq!(lab.master_in(&data), Some(master));
    assert!(!gave_up(&lab));
    writer.finish().await.check(&lab.proxy(0).pg).await;
}

#[tokio::test]
async fn a_server_that_hangs_or_is_full_refuses_nothing() {
    let lab = patient().synchronous(0, 1).spec(json!({"pgParameters": {"max_connections": "20"}})).up().await;
    let (master, standby) = (lab.master().await, lab.standbys().await[0]);
    let mut clients = Vec::new();
    while let Ok(client) = lab.keeper(master).pg.try_connect().await {
        clients.push(client);
    }
    assert!(clients.len() > 5);
    // The standby connects anew, and the others can't.
    let receiver = lab.keeper(standby).pg.one("SELECT pid FROM pg_stat_wal_receiver").await;
    kill(Pid::from_raw(receiver.parse().unwrap()), Signal::SIGTERM).unwrap();
    let gone = |data: &model::stolon::ClusterData| lab.master_in(data) != Some(master);
    lab.never("another master for a full one", Duration::from_secs(2), gone).await;
    drop(clients);
    let postmaster = Pid::from_raw(lab.keeper(master).postmaster_pid().unwrap());
    kill(postmaster, Signal::SIGSTOP).unwrap();
    lab.never("another master for one that hangs", Duration::from_secs(2), gone).await;
    kill(postmaster, Signal::SIGCONT).unwrap();
    lab.ready().await;
    assert!(!gave_up(&lab));
}
