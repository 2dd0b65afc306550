//! Clients that connect past the proxies.

use crate::lab;
use serde_json::json;
use testkit::stolon::eventually;

#[tokio::test]
async fn they_lose_a_master_that_was_given_up_though_it_runs() {
    // The elected one does nothing, but is not given up either: so the situation lasts.
    let lab = lab().spec(json!({"failInterval": "20s", "pgHBA": ["host all all all trust"]})).up().await;
    let (master, other) = (lab.master().await, lab.standbys().await[0]);
    let pg = &lab.keeper(master).pg;
    pg.one("CREATE ROLE app LOGIN").await;
    let mut config = pg.config();
    config.user("app");
    lab.caught_up(other).await;
    let client = pg.try_connect_as(&config).await.unwrap();
    lab.keeper(other).process.freeze();
    lab.ctl(&["failkeeper", &lab.keeper(master).uid]).await;
    lab.wait("another one is elected", |data| lab.master_in(data) == Some(other)).await;
    eventually("the session is ended", async || client.is_closed()).await;
    eventually("users are refused", async || pg.try_connect_as(&config).await.is_err()).await;
    assert_eq!(pg.one("SELECT pg_is_in_recovery()").await, "f", "it runs as before");
    lab.keeper(other).process.thaw();
    lab.wait_for_other_master(master).await;
    lab.ready().await;
    assert!(lab.keeper(other).pg.try_connect_as(lab.keeper(other).pg.config().user("app")).await.is_ok());
}
