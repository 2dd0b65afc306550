//! Two hosts with the same keeper.

use crate::lab;
use model::stolon::Problem;
use serde_json::json;
use std::time::Duration;
use testkit::stolon::{Lab, eventually};

async fn is_told(lab: &Lab) -> bool {
    let info = lab.info(0).await;
    info.is_some_and(|info| info.problems.iter().any(|problem| problem.code == Problem::UID_IN_USE))
}

#[tokio::test]
async fn the_second_one_is_kept_out_until_the_first_is_gone() {
    // However slow the machine is, no lease ends here by itself.
    let lab = lab().spec(json!({"failInterval": "20s"})).prepare().await;
    lab.keeper(1).process.set_argument("--uid", &lab.keeper(0).uid);
    lab.init().await;
    lab.sentinel(0).start();
    lab.proxy(0).process.start();
    lab.keeper(0).start();
    let whole = lab.wait("proxies lead to the first one", |data| lab.published_in(data) == Some(0)).await;
    let before = lab.info(0).await.unwrap();
    lab.keeper(1).start();
    eventually("the first one tells it", async || is_told(&lab).await).await;
    let (boot, address) = (before.boot_uuid, before.postgres_state.unwrap().port);
    lab.never("another keeper is taken for it", Duration::from_secs(1), |data| {
        let keeper = &data.keepers[whole.keepers.keys().next().unwrap()];
        keeper.status.boot_uuid != boot || data.dbs.values().any(|db| db.status.port != address)
    })
    .await;
    assert!(lab.keeper(1).postmaster_pid().is_none());
    assert_eq!(lab.proxy(0).pg.one("SELECT 1").await, "1");
    // Its own next start is nobody else.
    lab.keeper(0).kill();
    lab.keeper(0).start();
    lab.wait("proxies lead to it again", |data| {
        let boots = data.keepers.values().all(|keeper| keeper.status.boot_uuid != boot);
        boots && lab.published_in(data) == Some(0) && data.dbs.values().all(|db| db.status.healthy)
    })
    .await;
    lab.keeper(1).stop().await;
    eventually("nobody complains any more", async || !is_told(&lab).await).await;
}
