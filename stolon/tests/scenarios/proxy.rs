//! What proxies do while masters change.

use crate::lab;
use std::time::{Duration, Instant};
use testkit::port::Port;
use testkit::stolon::Lab;
use tokio_postgres::Client;

const IS_STANDBY: &str = "SELECT pg_is_in_recovery()";

/// A session through the port for readers.
async fn reader(lab: &Lab, port: &Port) -> Option<Client> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(port.number()).user("postgres").dbname("postgres");
    lab.proxy(0).pg.try_connect_as(&config).await.ok()
}

/// Which keeper's server a session is at.
async fn server(client: &Client) -> Option<String> {
    let row = client.query_one("SHOW port", &[]).await.ok()?;
    Some(row.get(0))
}

async fn readers_at(lab: &Lab, port: &Port, wanted: usize) -> Vec<(Client, String)> {
    let started = Instant::now();
    loop {
        let mut found = Vec::new();
        for _ in 0..2 * wanted {
            let Some(client) = reader(lab, port).await else { continue };
            let Some(server) = server(&client).await else { continue };
            found.push((client, server));
        }
        let mut servers: Vec<&String> = found.iter().map(|(_, server)| server).collect();
        servers.sort();
        servers.dedup();
        if servers.len() == wanted {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "readers are at {servers:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn readers_stay_on_standbys_through_a_failover() {
    let port = Port::reserve().unwrap();
    let number = port.number().to_string();
    let lab = lab().keepers(3).proxy_arguments(&["--replica-port", &number]).up().await;
    let old = lab.master().await;
    let readers = readers_at(&lab, &port, 2).await;
    for (client, server) in &readers {
        let row = client.query_one(IS_STANDBY, &[]).await.unwrap();
        assert!(row.get::<_, bool>(0) && *server != lab.keeper(old).pg.port().to_string());
    }
    lab.keeper(old).kill();
    let new = lab.wait_for_other_master(old).await;
    let elected = lab.keeper(new).pg.port().to_string();
    // Who read from the elected standby was cut off, so that it does not write to a master by this port; the other
    // standby's readers were not.
    for (client, server) in &readers {
        let result = client.query_one(IS_STANDBY, &[]).await;
        assert_eq!(result.is_ok(), *server != elected, "{server}: {result:?}");
    }
    let (_, server) = readers_at(&lab, &port, 1).await.pop().unwrap();
    assert_ne!(server, elected);
    lab.keeper(old).start();
    readers_at(&lab, &port, 2).await;
}

#[tokio::test]
async fn who_tries_again_once_sees_no_error_of_a_failover() {
    let lab = lab().keepers(3).synchronous(1, 1).proxy_arguments(&["--hold-connections", "50s"]).up().await;
    let old = lab.master().await;
    let client = lab.proxy(0).pg.connect().await;
    client.batch_execute("CREATE TABLE t(i int)").await.unwrap();
    lab.keeper(old).kill();
    assert!(client.batch_execute("INSERT INTO t VALUES (1)").await.is_err());
    // The one attempt: no loop. It waits until there is a master again.
    let mut config = lab.proxy(0).pg.config();
    config.connect_timeout(Duration::from_secs(60));
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    assert_ne!(lab.master().await, old);
}

#[tokio::test]
async fn a_suspended_proxy_forwards_nothing_to_the_deposed_master_when_it_wakes_up() {
    let lab = lab().proxies(2).up().await;
    let old = lab.master().await;
    let client = lab.proxy(0).pg.connect().await;
    client.batch_execute("CREATE TABLE t(i int)").await.unwrap();
    lab.proxy(0).process.freeze();
    // A statement is in the proxy's socket.
    let late = tokio::spawn(async move { client.batch_execute("INSERT INTO t VALUES (1)").await.is_err() });
    tokio::time::sleep(Duration::from_millis(200)).await;
    // The keeper only: its PostgreSQL lives on, and would take the statement.
    lab.keeper(old).process.freeze();
    lab.wait_for_other_master(old).await;
    lab.proxy(0).process.thaw();
    assert!(late.await.unwrap());
    assert_eq!(lab.keeper(old).pg.one("SELECT count(*) FROM t").await, "0");
    assert_eq!(lab.proxy(0).pg.one("SELECT pg_is_in_recovery()").await, "f");
    assert_eq!(lab.keeper(old).pg.one("SELECT count(*) FROM t").await, "0");
    lab.keeper(old).process.thaw();
}

#[tokio::test]
async fn the_servers_last_words_reach_the_client() {
    let lab = lab().keepers(1).up().await;
    let client = lab.proxy(0).pg.connect().await;
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let busy = async { client.batch_execute("SELECT pg_sleep(60)").await.unwrap_err() };
    let end = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        lab.keeper(0).pg.one(&format!("SELECT pg_terminate_backend({pid})")).await
    };
    let (error, _) = tokio::join!(busy, end);
    assert_eq!(error.code(), Some(&tokio_postgres::error::SqlState::ADMIN_SHUTDOWN), "{error:?}");
}
