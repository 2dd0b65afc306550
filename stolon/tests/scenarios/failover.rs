//! The master dies, hangs, or is cut off.

use crate::lab;

#[tokio::test]
async fn a_dead_master_is_replaced_without_losing_what_was_acknowledged() {
    let lab = lab().keepers(3).proxies(2).synchronous(1, 1).up().await;
    let writer = lab.writer().await;
    writer.progress(50).await;
    let old = lab.master().await;
    lab.keeper(old).kill();
    let new = lab.wait_for_other_master(old).await;
    writer.progress(50).await;
    let written = writer.finish().await;
    written.check(&lab.proxy(1).pg).await;
    assert_eq!(lab.keeper(new).pg.one("SELECT pg_is_in_recovery()").await, "f");
    // It comes back as a standby of the new master.
    lab.keeper(old).start();
    lab.ready().await;
    lab.caught_up(old).await;
    written.check(&lab.keeper(old).pg).await;
    assert_eq!(lab.keeper(old).pg.try_one("SELECT pg_is_in_recovery()").await.unwrap(), "t");
}
