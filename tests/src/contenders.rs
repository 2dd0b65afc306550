//! Proxies that are measured against each other before one PostgreSQL: ours, HAProxy, and Go stolon's where it is.

use anyhow::{Context as _, bail};
use model::stolon::keys::Keys;
use serde_json::json;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{EtcdStore, SharedStore, StoreOptions};
use tempfile::TempDir;
use testkit::etcd::Etcd;

/// How long a proxy may take until it serves.
const START: Duration = Duration::from_secs(30);

/// A proxy that serves on loopback; it stops when the value is dropped.
#[derive(Debug)]
pub struct Contender {
    /// Its name in the results.
    pub name: &'static str,
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    child: Child,
}

impl Drop for Contender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Contender {
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in MiB.
    ///
    /// # Errors
    /// The process has ended.
    pub fn resident(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in /proc")?;
        let kib: f64 = line.split_whitespace().next().context("VmRSS without a number")?.parse()?;
        Ok(kib / 1024.0)
    }

    /// Seconds of processor time that it has used.
    ///
    /// # Errors
    /// The process has ended.
    pub fn processor_seconds(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        let (_, rest) = stat.rsplit_once(')').context("/proc stat has another form")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks: f64 = fields.get(11..13).context("/proc stat is short")?.iter().flat_map(|f| f.parse::<f64>()).sum();
        // The kernel's USER_HZ is 100 on every Linux that this runs on.
        Ok(ticks / 100.0)
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// An etcd in which this program plays the sentinel: it enables every proxy for one server.
#[derive(Debug)]
pub struct Stage {
    etcd: Etcd,
    store: SharedStore,
    dir: TempDir,
}

impl Stage {
    /// Starts the etcd.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start() -> anyhow::Result<Self> {
        let etcd = Etcd::start().await?;
        let options = StoreOptions { endpoints: etcd.endpoints(), ..StoreOptions::default() };
        Ok(Stage { etcd, store: Arc::new(EtcdStore::connect(&options).await?), dir: TempDir::new()? })
    }

    /// A stolon proxy (ours or Go's), forwarding to `server`.
    ///
    /// # Errors
    /// It does not serve in time.
    pub async fn stolon(&self, name: &'static str, program: &Path, server: SocketAddr) -> anyhow::Result<Contender> {
        let port = free_port()?;
        let cluster = format!("c{port}");
        let keys = Keys::new("stolon/cluster", &cluster.as_str().into());
        self.order(&keys, 1, None, &[]).await?;
        let child = Command::new(program)
            .args(["--cluster-name", &cluster, "--store-backend", "etcdv3"])
            .args(["--store-endpoints", &self.etcd.endpoints(), "--port", &port.to_string(), "--log-level", "warn"])
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let contender = Contender { name, port, child };
        let uid = self.uid(&keys).await?;
        self.order(&keys, 2, Some(server), &[&uid]).await?;
        serving(contender)
    }

    async fn order(
        &self,
        keys: &Keys,
        generation: i64,
        server: Option<SocketAddr>,
        enabled: &[&str],
    ) -> anyhow::Result<()> {
        let mut data = json!({"formatVersion": 1, "keepers": {"k": {"uid": "k", "spec": {}}}, "dbs": {},
            "cluster": {"uid": "u", "spec": {"initMode": "new", "proxyCheckInterval": "1s"}, "status": {"phase": "initializing"}},
            "proxy": {"generation": generation, "spec": {"enabledProxies": enabled}}});
        if let Some(server) = server {
            data["dbs"]["a"] = json!({"uid": "a", "spec": {"keeperUID": "k", "role": "master"},
                "status": {"listenAddress": server.ip().to_string(), "port": server.port().to_string()}});
            data["proxy"]["spec"]["masterDbUid"] = "a".into();
        }
        self.store.put(&keys.clusterdata(), data.to_string().as_bytes(), None).await?;
        Ok(())
    }

    async fn uid(&self, keys: &Keys) -> anyhow::Result<String> {
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            if let Some(entry) = self.store.list(&keys.proxies_info()).await?.entries.first() {
                let record: serde_json::Value = serde_json::from_slice(&entry.value)?;
                return Ok(record["UID"].as_str().context("a proxy's record without UID")?.to_owned());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("the proxy did not publish its record within {START:?}")
    }

    /// HAProxy in mode tcp; `threads` 0 leaves their number to HAProxy.
    ///
    /// # Errors
    /// It does not serve in time.
    pub fn haproxy(
        &self,
        name: &'static str,
        program: &Path,
        threads: u32,
        server: SocketAddr,
    ) -> anyhow::Result<Contender> {
        let port = free_port()?;
        let threads = if threads == 0 { String::new() } else { format!("    nbthread {threads}\n") };
        let config = format!(
            "global\n    maxconn 4000\n{threads}\
             defaults\n    mode tcp\n    timeout connect 3s\n    timeout client 1h\n    timeout server 1h\n    option clitcpka\n    option srvtcpka\n\
             listen postgres\n    bind 127.0.0.1:{port}\n    server master {server}\n"
        );
        let file = self.dir.path().join(format!("haproxy-{port}.cfg"));
        std::fs::write(&file, config)?;
        let child = Command::new(program).args(["-q", "-db", "-f"]).arg(&file).stdin(Stdio::null()).spawn()?;
        serving(Contender { name, port, child })
    }
}

/// Waits until a connection stays open: a proxy without a destination closes it at once.
fn serving(contender: Contender) -> anyhow::Result<Contender> {
    let deadline = Instant::now() + START;
    while Instant::now() < deadline {
        if let Ok(stream) = TcpStream::connect(("127.0.0.1", contender.port)) {
            stream.set_read_timeout(Some(Duration::from_millis(300)))?;
            if std::io::Read::read(&mut &stream, &mut [0; 1]).is_err() {
                return Ok(contender);
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("{} did not serve within {START:?}", contender.name)
}

/// A program in `PATH` or where Debian puts daemons.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    places.map(|dir| dir.join(name)).find(|file| file.is_file())
}
