//! The proxy as a process, with a real etcd and an echo server as master. The test plays the sentinel.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod replicas;
mod waiting;

use model::stolon::keys::Keys;
use model::stolon::{ClusterData, ProxyInfo};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use store::{EtcdStore, SharedStore, StoreOptions};
use testkit::etcd::Etcd;

/// A master that sends back what it gets, with a byte of its own before it, and counts what it has got.
struct Echo {
    address: SocketAddr,
    bytes: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
}

impl Echo {
    fn start(mark: u8) -> Echo {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let echo = Echo { address: listener.local_addr().unwrap(), bytes: Arc::default(), ended: Arc::default() };
        let (bytes, ended) = (echo.bytes.clone(), echo.ended.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, bytes, ended) = (stream.unwrap(), bytes.clone(), ended.clone());
                std::thread::spawn(move || {
                    let mut buffer = [0; 1024];
                    while let Ok(length @ 1..) = stream.read(&mut buffer) {
                        bytes.fetch_add(length, Ordering::SeqCst);
                        let answer = [&[mark], &buffer[..length]].concat();
                        if stream.write_all(&answer).is_err() {
                            break;
                        }
                    }
                    ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        echo
    }
}

struct Proxy {
    child: Child,
    port: u16,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    fn start(etcd: &Etcd, flags: &[&str]) -> Proxy {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(env!("CARGO_BIN_EXE_stolon-proxy"))
            .args(["--cluster-name", "c", "--store-backend", "etcdv3", "--port", &port.to_string()])
            .args(["--log-level", "debug"])
            .args(flags)
            .env("STPROXY_STORE_ENDPOINTS", etcd.endpoints())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Proxy { child, port }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        connect(self.port)
    }

    /// The mark of the master that a new connection leads to; `None` when it leads nowhere.
    fn leads_to(&self) -> Option<u8> {
        ask(&mut self.connect().ok()?)
    }

    /// Resident memory in KiB.
    fn resident(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

/// Sends a byte and takes the mark of who answers.
fn ask(stream: &mut TcpStream) -> Option<u8> {
    stream.write_all(b"?").ok()?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).ok()?;
    Some(answer[0])
}

/// The connection has ended, within the time limit of its reads.
fn is_cut(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 1]) {
        Ok(0) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        Ok(_) => false,
    }
}

/// The store with the test in the sentinel's place.
struct Lab {
    etcd: Etcd,
    store: SharedStore,
    keys: Keys,
    spec: serde_json::Value,
}

impl Lab {
    async fn start(proxy_timeout: &str) -> Lab {
        let etcd = Etcd::start().await.unwrap();
        let options = StoreOptions { endpoints: etcd.endpoints(), ..StoreOptions::default() };
        let store: SharedStore = Arc::new(EtcdStore::connect(&options).await.unwrap());
        // An etcd that accepts connections may not have written its own membership yet: stopped now it never starts
        // again.
        until("answer from etcd", async || store.list("x").await.is_ok()).await;
        let spec = json!({"initMode": "new", "proxyCheckInterval": "100ms", "proxyTimeout": proxy_timeout});
        Lab { etcd, store, keys: Keys::new("stolon/cluster", &"c".into()), spec }
    }

    /// Orders proxies; gives the revision of the order.
    async fn order(&self, generation: i64, master: Option<(&str, &Echo)>, enabled: &[&str]) -> i64 {
        self.put(self.document(generation, master, enabled)).await
    }

    fn document(&self, generation: i64, master: Option<(&str, &Echo)>, enabled: &[&str]) -> serde_json::Value {
        let mut data = json!({"formatVersion": 1, "cluster": {"uid": "u", "spec": self.spec, "status": {"phase": "initializing"}},
            "keepers": {"k": {"uid": "k"}}, "dbs": {}, "proxy": {"generation": generation, "spec": {"enabledProxies": enabled}}});
        if let Some((uid, echo)) = master {
            data["dbs"][uid] = json!({"uid": uid, "spec": {"keeperUID": "k", "role": "master"},
                "status": {"listenAddress": echo.address.ip().to_string(), "port": echo.address.port().to_string()}});
            data["proxy"]["spec"]["masterDbUid"] = uid.into();
        }
        data
    }

    async fn put(&self, data: serde_json::Value) -> i64 {
        let text = data.to_string();
        ClusterData::parse(text.as_bytes()).unwrap();
        self.store.put(&self.keys.clusterdata(), text.as_bytes(), None).await.unwrap()
    }

    /// Waits until the only proxy has published a generation; gives its record and the revision of that.
    async fn published(&self, generation: i64) -> (ProxyInfo, i64) {
        let mut found = None;
        until("the record", async || {
            for entry in self.store.list(&self.keys.proxies_info()).await.unwrap().entries {
                let info: ProxyInfo = serde_json::from_slice(&entry.value).unwrap();
                if info.generation == generation {
                    found = Some((info, entry.mod_revision));
                }
            }
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    async fn records(&self) -> usize {
        self.store.list(&self.keys.proxies_info()).await.unwrap().entries.len()
    }

    /// A proxy that forwards to `echo` at generation 2.
    async fn serving(&self, echo: &Echo, flags: &[&str]) -> (Proxy, String) {
        self.order(1, None, &[]).await;
        let proxy = Proxy::start(&self.etcd, flags);
        let uid = self.published(1).await.0.uid.to_string();
        self.order(2, Some(("a", echo)), &[&uid]).await;
        until("service", async || proxy.leads_to() == Some(b'a')).await;
        (proxy, uid)
    }
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "no {what} within 20 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn it_listens_after_the_first_read_and_forwards_when_enabled() {
    let mut lab = Lab::start("3s").await;
    let echo = Echo::start(b'a');
    lab.etcd.stop();
    let proxy = Proxy::start(&lab.etcd, &["--advertise-address", "db.example"]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(proxy.connect().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    lab.etcd.resume().await.unwrap();
    until("listening without cluster data", async || proxy.connect().is_ok()).await;
    assert_eq!((proxy.leads_to(), lab.records().await), (None, 0));

    lab.order(1, Some(("a", &echo)), &["somebody"]).await;
    let (info, _) = lab.published(1).await;
    assert_eq!((info.listen_address.as_str(), info.port), ("db.example", proxy.port.to_string()));
    assert!(info.proxy_timeout >= model::GoDuration::from_secs(15) && info.lease_seconds.is_some());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((proxy.leads_to(), echo.bytes.load(Ordering::SeqCst)), (None, 0));

    lab.order(2, Some(("a", &echo)), &["somebody", info.uid.as_str()]).await;
    until("service", async || proxy.leads_to() == Some(b'a')).await;
    let (info, _) = lab.published(2).await;
    until("the lease of the specification's timeout", async || {
        let entry = lab.store.get(&lab.keys.proxy_info(&info.uid)).await.unwrap().unwrap();
        serde_json::from_slice::<ProxyInfo>(&entry.value).unwrap().lease_seconds == Some(4)
    })
    .await;
    assert_eq!(proxy.leads_to(), Some(b'a'));
}

#[tokio::test]
async fn a_change_of_the_master_cuts_before_it_is_published() {
    let lab = Lab::start("15s").await;
    let (old, new) = (Echo::start(b'a'), Echo::start(b'b'));
    let (proxy, uid) = lab.serving(&old, &[]).await;
    let mut client = proxy.connect().unwrap();
    assert_eq!(ask(&mut client), Some(b'a'));
    let ended = old.ended.load(Ordering::SeqCst);

    let began = Instant::now();
    let ordered = lab.order(3, None, &[&uid]).await;
    let (_, published) = lab.published(3).await;
    // Who sees the generation finds all sockets closed: asked now, the kernel has no more of them.
    assert!(published > ordered);
    client.set_nonblocking(true).unwrap();
    assert!(is_cut(&mut client));
    assert!(connections_to(old.address).is_empty(), "{:?}", connections_to(old.address));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    until("the master's end of the connection", async || old.ended.load(Ordering::SeqCst) > ended).await;
    assert_eq!(proxy.leads_to(), None);

    lab.order(4, Some(("b", &new)), &[&uid]).await;
    until("the new master", async || proxy.leads_to() == Some(b'b')).await;
    lab.order(5, Some(("b", &new)), &[]).await;
    lab.published(5).await;
    assert_eq!(proxy.leads_to(), None);
}

/// States of TCP connections whose remote side is `address`, out of the kernel's table; only living ones.
fn connections_to(address: SocketAddr) -> Vec<String> {
    let remote = format!("0100007F:{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    // 06 is TIME_WAIT: a connection that is no more.
    rows.filter(|row| row[2] == remote && row[3] != "06").map(|row| row[3].to_owned()).collect()
}

#[tokio::test]
async fn without_the_store_it_cuts_off_and_comes_back_by_itself() {
    let mut lab = Lab::start("2s").await;
    let echo = Echo::start(b'a');
    let (proxy, uid) = lab.serving(&echo, &[]).await;
    let mut client = proxy.connect().unwrap();
    assert_eq!(ask(&mut client), Some(b'a'));
    let began = Instant::now();
    lab.etcd.stop();
    // A short outage is sat out; the last contact may be three quarters of a second old when it begins.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(ask(&mut client), Some(b'a'));
    assert!(is_cut(&mut client));
    assert!(began.elapsed() < Duration::from_millis(2500), "{:?}", began.elapsed());
    until("a closed port", async || proxy.connect().is_err()).await;
    lab.etcd.resume().await.unwrap();
    let began = Instant::now();
    until("service", async || proxy.leads_to() == Some(b'a')).await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(lab.published(2).await.0.uid.as_str(), uid);
}

#[tokio::test]
async fn the_port_stays_open_on_demand() {
    let mut lab = Lab::start("1500ms").await;
    let echo = Echo::start(b'a');
    let (proxy, _) = lab.serving(&echo, &["--stop-listening=false"]).await;
    let mut client = proxy.connect().unwrap();
    lab.etcd.stop();
    assert!(is_cut(&mut client));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(proxy.connect().is_ok());
    assert_eq!(proxy.leads_to(), None);
}

#[tokio::test]
async fn a_clean_stop_removes_the_record() {
    let lab = Lab::start("15s").await;
    let echo = Echo::start(b'a');
    let (mut proxy, _) = lab.serving(&echo, &[]).await;
    let mut client = proxy.connect().unwrap();
    assert_eq!(ask(&mut client), Some(b'a'));
    proxy.signal(Signal::SIGTERM);
    assert!(proxy.child.wait().unwrap().success());
    assert!(is_cut(&mut client));
    assert_eq!(lab.records().await, 0);
}

#[tokio::test]
async fn a_suspended_proxy_forwards_nothing_when_it_wakes_up() {
    let lab = Lab::start("2s").await;
    let (old, new) = (Echo::start(b'a'), Echo::start(b'b'));
    let (proxy, uid) = lab.serving(&old, &[]).await;
    let mut clients: Vec<TcpStream> = (0..20).map(|_| proxy.connect().unwrap()).collect();
    for client in &mut clients {
        assert_eq!(ask(client), Some(b'a'));
    }
    let before = old.bytes.load(Ordering::SeqCst);
    proxy.signal(Signal::SIGSTOP);
    // Requests wait in the proxy's sockets, both of known clients and of new ones.
    for client in &mut clients {
        client.write_all(b"COMMIT").unwrap();
    }
    let mut late: Vec<TcpStream> = (0..5).map(|_| proxy.connect().unwrap()).collect();
    for client in &mut late {
        client.write_all(b"COMMIT").unwrap();
    }
    until("an expired record", async || lab.records().await == 0).await;
    lab.order(3, None, &[&uid]).await;
    lab.order(4, Some(("b", &new)), &[&uid]).await;
    proxy.signal(Signal::SIGCONT);
    for client in clients.iter_mut().chain(&mut late) {
        assert!(is_cut(client));
    }
    assert_eq!(old.bytes.load(Ordering::SeqCst), before);
    until("the new master", async || proxy.leads_to() == Some(b'b')).await;
    assert_eq!(old.bytes.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn a_wiped_store_and_bad_data_end_the_service() {
    let mut lab = Lab::start("3s").await;
    let echo = Echo::start(b'a');
    let (proxy, uid) = lab.serving(&echo, &[]).await;
    let mut client = proxy.connect().unwrap();
    lab.store.put(&lab.keys.clusterdata(), b"{\"formatVersion\": 2}", None).await.unwrap();
    assert!(is_cut(&mut client));
    lab.order(5, Some(("a", &echo)), &[&uid]).await;
    until("service", async || proxy.leads_to() == Some(b'a')).await;
    let mut client = proxy.connect().unwrap();
    lab.etcd.stop();
    lab.etcd.wipe().unwrap();
    lab.etcd.resume().await.unwrap();
    assert!(is_cut(&mut client));
    lab.order(1, Some(("a", &echo)), &[&uid]).await;
    until("service", async || proxy.leads_to() == Some(b'a')).await;
}

#[tokio::test]
async fn idle_connections_are_cheap() {
    let lab = Lab::start("15s").await;
    let (proxy, _) = lab.serving(&Echo::start(b'a'), &[]).await;
    let few = proxy.resident();
    let mut clients = Vec::new();
    for _ in 0..400 {
        let mut client = proxy.connect().unwrap();
        assert_eq!(ask(&mut client), Some(b'a'));
        clients.push(client);
    }
    let many = proxy.resident();
    eprintln!("resident: {few} KiB, with 400 connections {many} KiB");
    assert!(many < few + 400 * 8, "{few} KiB, {many} KiB");
}

#[test]
fn usage_errors_have_status_2() {
    for (flags, text) in [
        (&["--cluster-name", "c"][..], "--store-backend"),
        (&["--store-backend", "etcdv3"], "--cluster-name"),
        (&["--cluster-name", "c", "--store-backend", "consul"], "consul"),
        (&["--cluster-name", "c", "--store-backend", "etcdv3", "--port", "x"], "--port"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_stolon-proxy")).args(flags).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(text), "{flags:?}");
    }
}

#[tokio::test]
async fn a_lower_timeout_opens_no_gap() {
    let mut lab = Lab::start("5s").await;
    let echo = Echo::start(b'a');
    let (proxy, uid) = lab.serving(&echo, &[]).await;
    let mut client = proxy.connect().unwrap();
    assert_eq!(ask(&mut client), Some(b'a'));
    lab.spec["proxyTimeout"] = "2s".into();
    lab.order(3, Some(("a", &echo)), &[&uid]).await;
    // From the moment that the record hangs on the shorter lease, the shorter timeout is obeyed; what is announced to
    // sentinels that count by themselves never falls below either of them.
    let mut info = ProxyInfo::default();
    until("the shorter lease", async || {
        let entry = lab.store.get(&lab.keys.proxy_info(&uid.as_str().into())).await.unwrap().unwrap();
        info = serde_json::from_slice(&entry.value).unwrap();
        assert!(info.proxy_timeout >= model::GoDuration::from_secs(5), "{info:?}");
        info.lease_seconds == Some(3)
    })
    .await;
    assert_eq!(ask(&mut client), Some(b'a'));
    let began = Instant::now();
    lab.etcd.stop();
    assert!(is_cut(&mut client));
    assert!(began.elapsed() < Duration::from_millis(2500), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_thousand_idle_connections_take_less_than_30_mib() {
    let lab = Lab::start("15s").await;
    let (proxy, _) = lab.serving(&Echo::start(b'a'), &[]).await;
    let mut clients = Vec::new();
    for _ in 0..1000 {
        let mut client = proxy.connect().unwrap();
        assert_eq!(ask(&mut client), Some(b'a'));
        clients.push(client);
    }
    let resident = proxy.resident();
    assert!(resident < 30 * 1024, "{resident} KiB");
}
