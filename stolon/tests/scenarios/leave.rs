//! Keepers that are replaced while their PostgreSQL goes on.

use crate::lab;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};
use testkit::stolon::{Lab, eventually};

/// Several times as long as a keeper's lease.
const LONG: Duration = Duration::from_secs(4);

/// Tells a keeper to end alone, and waits until it has.
async fn leave(lab: &Lab, keeper: usize) {
    let process = &lab.keeper(keeper).process;
    process.signal(Signal::SIGUSR1);
    eventually("the keeper has left", async || process.pid().is_none()).await;
}

#[tokio::test]
async fn a_masters_keeper_is_replaced_without_anybody_noticing() {
    let lab = lab().keepers(3).synchronous(1, 1).up().await;
    let master = lab.master().await;
    let postmaster = lab.keeper(master).postmaster_pid().unwrap();
    let moved = |data: &model::stolon::ClusterData| lab.published_in(data) != Some(master);
    let writer = lab.writer().await;
    writer.progress(20).await;

    leave(&lab, master).await;
    lab.never("a failover while the next keeper is waited for", LONG, moved).await;
    lab.keeper(master).start();
    lab.ready().await;
    lab.never("another master afterwards", Duration::from_secs(1), moved).await;
    writer.progress(20).await;
    assert_eq!(lab.keeper(master).postmaster_pid(), Some(postmaster));
    assert!(lab.keeper(master).log().contains("adopting the running postgres"));
    let written = writer.finish().await;
    assert_eq!((written.cut, written.failed), (0, 0), "no write failed");
    written.check(&lab.proxy(0).pg).await;

    // Nobody waits for a PostgreSQL that dies meanwhile.
    leave(&lab, master).await;
    let died = Instant::now();
    lab.keeper(master).kill_postgres();
    lab.wait_for_other_master(master).await;
    println!("replaced after {:?}", died.elapsed());
    let gave_up = lab.sentinels().iter().any(|sentinel| sentinel.log().contains("the keeper does not answer"));
    assert!(gave_up, "before its record was gone");
    lab.keeper(master).start();
    lab.ready().await;
}
