//! All connections are in use, or a standby does not get one.

use crate::lab;
use model::stolon::Problem;
use serde_json::json;
use std::time::Duration;
use testkit::stolon::{Endpoint, Lab, eventually};
use tokio_postgres::Client;

/// Three times the fail interval.
const LONG_ENOUGH: Duration = Duration::from_secs(6);

async fn fill(endpoint: &Endpoint, user: &str) -> Vec<Client> {
    let mut config = endpoint.config();
    config.user(user);
    let mut clients = Vec::new();
    while let Ok(client) = endpoint.try_connect_as(&config).await {
        clients.push(client);
    }
    clients
}

async fn stays_master(lab: &Lab, master: usize) {
    let trouble = |data: &model::stolon::ClusterData| {
        lab.published_in(data) != Some(master) || lab.db(data, master).is_none_or(|db| !db.status.healthy)
    };
    lab.never("the master is given up or ill", LONG_ENOUGH, trouble).await;
}

#[tokio::test]
async fn used_up_connections_are_no_failure() {
    let lab = lab().spec(json!({"pgParameters": {"max_connections": "12"}, "pgHBA": ["host all all all trust"]}));
    let lab = lab.up().await;
    let master = lab.master().await;
    let pg = &lab.keeper(master).pg;
    pg.one("CREATE ROLE app LOGIN").await;
    let users = fill(pg, "app").await;
    assert!(users.len() >= 8, "{}", users.len());
    stays_master(&lab, master).await;
    // Superusers take the rest, and the keeper loses its session to one of them.
    let mut all = fill(pg, "postgres").await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'stolon-keeper'";
    all[0].batch_execute(end).await.unwrap();
    all.extend(fill(pg, "postgres").await);
    stays_master(&lab, master).await;
    // Nor is it one for a keeper that starts just then.
    let pid = lab.keeper(master).postmaster_pid();
    lab.keeper(master).process.kill();
    lab.keeper(master).start();
    stays_master(&lab, master).await;
    assert_eq!(lab.keeper(master).postmaster_pid(), pid, "adopted");
    drop((users, all));
    lab.ready().await;
    lab.proxy(0).pg.one("CREATE TABLE after (n int)").await;
}

/// The problem that a keeper tells, and the record that it is in.
async fn told(lab: &Lab, keeper: usize) -> Option<String> {
    let problems = lab.info(keeper).await?.problems;
    problems.into_iter().find(|problem| problem.code == Problem::NOT_STREAMING).map(|problem| problem.text)
}

#[tokio::test]
async fn a_standby_that_is_not_let_in_says_so_and_why() {
    let lab = lab().keepers(2).sentinels(1).proxies(1).up().await;
    let (master, standby) = (lab.master().await, lab.standbys().await[0]);
    lab.keeper(master).pg.one("ALTER ROLE repl NOLOGIN").await;
    lab.keeper(master).pg.one("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication").await;
    eventually("the standby says why", async || {
        told(&lab, standby).await.is_some_and(|text| text.contains("is not permitted to log in"))
    })
    .await;
    assert!(lab.ctl(&["why"]).await.contains(Problem::NOT_STREAMING));
    assert_eq!(told(&lab, master).await, None);
    lab.keeper(master).pg.one("ALTER ROLE repl LOGIN").await;
    eventually("it streams again", async || told(&lab, standby).await.is_none()).await;
    lab.caught_up(standby).await;
}
