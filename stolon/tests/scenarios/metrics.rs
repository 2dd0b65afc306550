//! What the programs tell those who watch over them, while things go well and while they don't.

use crate::lab;
use std::time::Duration;
use store::Entry;
use testkit::port::Port;
use testkit::stolon::{Lab, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Status and body.
async fn get(port: &Port, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port.number())).await.ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

async fn value(port: &Port, name: &str) -> Option<f64> {
    let (_, body) = get(port, "/metrics").await?;
    let line = body.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit(' ').next()?.parse().ok()
}

async fn is_ready(port: &Port) -> bool {
    get(port, "/readyz").await.is_some_and(|(status, _)| status == 200)
}

async fn is_not_ready(port: &Port, code: &str) -> bool {
    get(port, "/readyz").await.is_some_and(|(status, body)| status == 503 && body.starts_with(&format!("{code}: ")))
}

/// No program writes what it wrote before, for longer than one would wait that did it again and again.
async fn stays_calm(lab: &Lab) {
    let base = format!("{}/", lab.keys().base());
    // Keepers answer a change of the cluster data with such a write: the last steps of the start may be in the way.
    eventually("nothing is written where nothing changes", async || {
        let before = lab.store().list(&base).await.unwrap().entries;
        tokio::time::sleep(Duration::from_secs(11)).await;
        let after = lab.store().list(&base).await.unwrap().entries;
        let idle = |old: &Entry, new: &Entry| old.mod_revision != new.mod_revision && content(old) == content(new);
        !after.iter().any(|new| before.iter().any(|old| old.key == new.key && idle(old, new)))
    })
    .await;
}

/// A document without its marks and times of writing.
fn content(entry: &Entry) -> serde_json::Value {
    fn strip(value: &mut serde_json::Value) {
        if let Some(members) = value.as_object_mut() {
            members.retain(|name, _| !["infoUID", "changeTime", "lastHealthyTime"].contains(&name.as_str()));
            members.values_mut().for_each(strip);
        }
    }
    let mut value = serde_json::from_slice(&entry.value).unwrap_or_default();
    strip(&mut value);
    value
}

#[tokio::test]
async fn programs_say_how_they_are() {
    let [keeper, sentinel, proxy] = std::array::from_fn(|_| Port::reserve().unwrap());
    let address = |port: &Port| format!("127.0.0.1:{}", port.number());
    let mut lab = lab()
        .keepers(1)
        .sentinels(1)
        .proxies(1)
        .keeper_arguments(0, &["--metrics-listen-address", &address(&keeper)])
        .sentinel_arguments(&["--metrics-listen-address", &address(&sentinel)])
        .proxy_arguments(&["--metrics-listen-address", &address(&proxy)])
        .up()
        .await;
    for port in [&keeper, &sentinel, &proxy] {
        eventually("it is ready", async || is_ready(port).await).await;
        assert_eq!(get(port, "/healthz").await.unwrap().0, 200);
        let (_, body) = get(port, "/metrics").await.unwrap();
        assert!(body.contains("stolon_cluster_identifier{cluster_name=\"lab\",component=\""), "{body}");
        assert!(value(port, "stolon_store_requests_total").await.unwrap() > 0.0);
    }
    assert_eq!(value(&sentinel, "stolon_sentinel_is_leader").await, Some(1.0));
    for name in ["stolon_keeper_local_role{role=\"master\"}", "stolon_keeper_target_role{role=\"master\"}"] {
        assert_eq!(value(&keeper, name).await, Some(1.0), "{name}");
    }
    assert!(value(&keeper, "stolon_keeper_last_sync_success_seconds").await.unwrap() > 1.0e9);
    stays_calm(&lab).await;
    let client = lab.proxy(0).pg.connect().await;
    eventually("the connection is counted", async || {
        value(&proxy, "stolon_proxy_connections{port=\"master\"}").await == Some(1.0)
    })
    .await;

    lab.etcd.stop();
    eventually("the proxy says why it cut off", async || is_not_ready(&proxy, "store_silent").await).await;
    assert_eq!(value(&proxy, "stolon_proxy_connections{port=\"master\"}").await, Some(0.0));
    eventually("the sentinel is blind", async || is_not_ready(&sentinel, "store_silent").await).await;
    assert!(is_ready(&keeper).await, "PostgreSQL goes on without a store");
    eventually("failures are counted", async || value(&keeper, "stolon_store_failed_requests_total").await > Some(0.0))
        .await;
    drop(client);
    lab.etcd.resume().await.unwrap();
    for port in [&keeper, &sentinel, &proxy] {
        eventually("it is ready again", async || is_ready(port).await).await;
    }
    assert!(value(&proxy, "stolon_proxy_cut_total{port=\"master\"}").await.unwrap() >= 1.0);
}
