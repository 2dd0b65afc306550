//! The master is alive, but others can't reach it.

use crate::{lab, published_only_when_promoted};
use std::time::Duration;
use testkit::stolon::Lab;

/// Commits that wait are given so long to show that they don't.
const WAITS: Duration = Duration::from_millis(1500);

/// Both sides must agree in the end, and nothing that was confirmed may be missing.
async fn reunited(lab: &Lab, old: usize, new: usize, written: &testkit::stolon::Written) {
    let data = lab.ready().await;
    assert_eq!(lab.master_in(&data), Some(new));
    lab.caught_up(old).await;
    for pg in [&lab.proxy(0).pg, &lab.keeper(old).pg, &lab.keeper(new).pg] {
        written.check(pg).await;
        assert_eq!(pg.one("SELECT count(*) FROM pg_class WHERE relname = 'of_the_deposed'").await, "0");
    }
}

#[tokio::test]
async fn a_master_cut_off_from_all_is_replaced_and_confirms_nothing_more() {
    let lab = lab().relays().keepers(3).synchronous(1, 1).up().await;
    let revision = lab.revision().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let old = lab.master().await;
    lab.keeper(old).cut();
    let new = lab.wait_for_other_master(old).await;
    writer.progress(20).await;
    // It still believes to be master; a client on its side of the cut must not be told of a commit.
    let deposed = &lab.keeper(old).pg;
    assert_eq!(deposed.try_one("SELECT pg_is_in_recovery()").await.unwrap(), "f");
    assert!(!deposed.confirms("CREATE TABLE of_the_deposed ()", WAITS).await, "a deposed master confirmed a commit");
    lab.keeper(old).mend();
    reunited(&lab, old, new, &writer.finish().await).await;
    published_only_when_promoted(&lab.history(revision).await);
}

#[tokio::test]
async fn a_master_that_only_its_standbys_and_clients_can_reach_is_replaced() {
    let lab = lab().relays().synchronous(1, 1).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let old = lab.master().await;
    let session = lab.proxy(0).pg.connect().await;
    lab.keeper(old).cut_store();
    let new = lab.wait_for_other_master(old).await;
    assert!(session.simple_query("SELECT 1").await.is_err(), "a connection to the deposed master was left open");
    let deposed = &lab.keeper(old).pg;
    assert!(!deposed.confirms("CREATE TABLE of_the_deposed ()", WAITS).await, "a deposed master confirmed a commit");
    lab.keeper(old).mend();
    writer.progress(20).await;
    reunited(&lab, old, new, &writer.finish().await).await;
}

#[tokio::test]
async fn a_master_on_a_host_that_hangs_for_a_while_is_replaced() {
    let lab = lab().keepers(3).synchronous(1, 1).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let old = lab.master().await;
    lab.keeper(old).freeze();
    let new = lab.wait_for_other_master(old).await;
    writer.progress(20).await;
    lab.keeper(old).thaw();
    reunited(&lab, old, new, &writer.finish().await).await;
}
