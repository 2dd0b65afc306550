//! One synchronous cluster with its etcd: hosts, daemons, and what can be asked of it.

mod setup;

use crate::process::{self, Daemon};
use crate::sandbox::{Host, ROOT};
use anyhow::{Context as _, ensure};
use model::stolon::ClusterData;
use model::stolon::keys::{DEFAULT_PREFIX, Keys};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};

/// Ports are the same on every host: each has an address of its own.
const ETCD_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
const PG_PORT: u16 = 5433;
const PROXY_PORT: u16 = 5432;
/// Passwords of a cluster that lives for an hour inside of its own namespaces.
const SU_PASSWORD: &str = "su-secret";
/// How long anything may take until the cluster serves for the first time.
const START_LIMIT: Duration = Duration::from_secs(120);

/// Where programs are and logs go.
#[derive(Clone, Debug)]
pub struct Places {
    /// Our programs.
    pub bin: PathBuf,
    /// Logs, one per daemon.
    pub logs: PathBuf,
}

/// What a cluster consists of.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Its name.
    pub name: String,
    /// Hosts of etcd's members.
    pub members: Vec<Host>,
    /// Hosts with a keeper each.
    pub nodes: Vec<Host>,
    /// The first so many nodes have a sentinel and a proxy too.
    pub front: usize,
    /// Least and most synchronous standbys.
    pub sync: (u16, u16),
    /// pg_rewind is used.
    pub rewind: bool,
    /// Size of each keeper's file system in MiB. A keeper has up to four copies of the data: its own, one that is being
    /// made, and two in trash.
    pub disk: u32,
    /// The real-time clock of each node can be moved.
    pub clocks: bool,
}

/// A host with a keeper, and perhaps a sentinel and a proxy.
#[derive(Debug)]
pub struct Node {
    /// The host.
    pub host: Host,
    /// The keeper.
    pub keeper: Daemon,
    /// The sentinel, if there is one.
    pub sentinel: Option<Daemon>,
    /// The proxy, if there is one.
    pub proxy: Option<Daemon>,
    /// The keeper's file system.
    pub disk: PathBuf,
    /// The file with the offset of the node's clock.
    clock: PathBuf,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// What it consists of.
    pub shape: Shape,
    /// Programs and logs.
    pub places: Places,
    /// Members of etcd.
    pub members: Vec<Daemon>,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Its keys in the store.
    pub keys: Keys,
}

impl Node {
    /// PostgreSQL's data directory.
    pub fn pgdata(&self) -> PathBuf {
        self.disk.join("data/postgres")
    }

    /// Moves the clock of all processes of this node; zero is the real time.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn set_clock(&self, seconds: i64) -> anyhow::Result<()> {
        let (file, new) = (&self.clock, self.clock.with_extension("new"));
        std::fs::write(&new, format!("{seconds:+}\n")).context("write a clock")?;
        std::fs::rename(new, file).context("set a clock")
    }

    /// Takes all space that is left on the keeper's file system.
    ///
    /// # Errors
    /// For another reason than a full file system.
    pub fn fill_disk(&self) -> anyhow::Result<()> {
        use std::io::Write as _;
        let mut file = std::fs::File::create(self.disk.join("filler")).context("create the filler")?;
        let mut size = 1 << 20;
        while size > 0 {
            match file.write(&vec![0; size]) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => size /= 2,
                Err(error) => return Err(error).context("fill a file system"),
            }
        }
        Ok(())
    }

    /// Gives the space back.
    pub fn free_disk(&self) {
        let _ = std::fs::remove_file(self.disk.join("filler"));
    }

    /// Everything that runs on it, but PostgreSQL.
    pub fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        [Some(&self.keeper), self.sentinel.as_ref(), self.proxy.as_ref()].into_iter().flatten()
    }
}

impl Cluster {
    /// Makes the hosts' files and starts everything; gives the cluster once it takes commits.
    ///
    /// # Errors
    /// Something does not start.
    pub async fn start(shape: Shape, places: &Places) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&places.logs).context("make the directory of logs")?;
        let root = Path::new(ROOT).join(&shape.name);
        std::fs::create_dir_all(&root)?;
        setup::write_secret(&root.join("su"), SU_PASSWORD)?;
        setup::write_secret(&root.join("repl"), "repl-secret")?;
        let members = shape.members.iter().map(|host| setup::member(&shape, host, places)).collect();
        let nodes = (0..shape.nodes.len())
            .map(|index| setup::node(&shape, index, places))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let keys = Keys::new(DEFAULT_PREFIX, &shape.name.as_str().into());
        let cluster = Cluster { shape, places: places.clone(), members, nodes, keys };
        for member in &cluster.members {
            member.start()?;
        }
        cluster.initialize().await?;
        for daemon in cluster.nodes.iter().flat_map(Node::daemons) {
            daemon.start()?;
        }
        cluster.wait_whole(START_LIMIT).await.context("the new cluster does not become whole")?;
        cluster.make_table().await?;
        Ok(cluster)
    }

    async fn initialize(&self) -> anyhow::Result<()> {
        let (min, max) = self.shape.sync;
        let spec = serde_json::json!({
            "initMode": "new", "synchronousReplication": true,
            "minSynchronousStandbys": min, "maxSynchronousStandbys": max,
            "usePgrewind": self.shape.rewind, "automaticPgRestart": true,
            // As `init` of Shardman sets them.
            "sleepInterval": "2s", "failInterval": "2s", "proxyCheckInterval": "1s", "proxyTimeout": "2500ms",
            "pgHBA": ["host all app 0.0.0.0/0 trust"],
            "pgParameters": {"max_connections": "60", "shared_buffers": "16MB", "min_wal_size": "32MB",
                             "max_wal_size": "64MB", "log_line_prefix": "%m [%p] %q%a ", "log_checkpoints": "off"},
        });
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match self.ctl(&["init", "--yes", &spec.to_string()]) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    async fn make_table(&self) -> anyhow::Result<()> {
        let sql = "create role app login; create table journal(client int not null, seq bigint not null);
                   grant insert, select on journal to app";
        // A machine that is busy starting seven clusters may need more than one attempt to connect.
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match self.admin(&self.proxies()[0]).await {
                Ok(client) => return client.batch_execute(sql).await.context("make the table"),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// etcd's client URLs.
    pub fn endpoints(&self) -> Vec<String> {
        self.shape.members.iter().map(|host| format!("http://{}:{ETCD_PORT}", host.address)).collect()
    }

    /// Addresses and ports of the proxies.
    pub fn proxies(&self) -> Vec<(String, u16)> {
        let nodes = self.nodes.iter().filter(|node| node.proxy.is_some());
        nodes.map(|node| (node.host.address.clone(), PROXY_PORT)).collect()
    }

    /// Where a node's PostgreSQL listens.
    pub fn server(&self, node: usize) -> (String, u16) {
        (self.nodes[node].host.address.clone(), PG_PORT)
    }

    /// A superuser's session.
    ///
    /// # Errors
    /// No connection within some seconds.
    pub async fn admin(&self, (host, port): &(String, u16)) -> anyhow::Result<Client> {
        connect(&format!("host={host} port={port} user=postgres password={SU_PASSWORD} dbname=postgres")).await
    }

    /// Begins a new segment of WAL, which takes 16 MiB on every server. Nothing happens where nobody answers soon.
    pub async fn switch_wal(&self) {
        let switch = async {
            for proxy in self.proxies() {
                if let Ok(client) = self.admin(&proxy).await
                    && client.batch_execute("select pg_switch_wal()").await.is_ok()
                {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), switch).await;
    }

    /// Runs `stolonctl`; gives its output.
    ///
    /// # Errors
    /// It fails, or takes longer than half a minute.
    pub fn ctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new("timeout")
            .arg("30")
            .arg(self.places.bin.join("stolonctl"))
            .args(["--cluster-name", &self.shape.name, "--store-backend", "etcdv3"])
            .args(["--store-endpoints", &self.endpoints().join(",")])
            .args(arguments)
            .output()
            .context("run stolonctl")?;
        ensure!(output.status.success(), "stolonctl: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A new connection to etcd.
    ///
    /// # Errors
    /// No member answers.
    pub async fn etcd(&self) -> anyhow::Result<etcd_client::Client> {
        let limit = Duration::from_secs(3);
        let options = etcd_client::ConnectOptions::new().with_connect_timeout(limit).with_timeout(limit);
        let connect = etcd_client::Client::connect(self.endpoints(), Some(options));
        tokio::time::timeout(limit * 2, connect).await.context("etcd does not answer")?.context("connect to etcd")
    }

    /// The cluster data as it is now.
    ///
    /// # Errors
    /// etcd does not answer, or there is none.
    pub async fn data(&self) -> anyhow::Result<ClusterData> {
        let answer = self.etcd().await?.get(self.keys.clusterdata(), None).await?;
        let value = answer.kvs().first().context("there is no cluster data")?.value().to_vec();
        Ok(ClusterData::parse(&value)?)
    }

    /// The node of the master, as cluster data has it.
    ///
    /// # Errors
    /// There is no master.
    pub async fn master(&self) -> anyhow::Result<usize> {
        self.node_of(&self.data().await?).context("there is no master")
    }

    /// The node of the wanted master.
    pub fn node_of(&self, data: &ClusterData) -> Option<usize> {
        let keeper = &data.dbs.get(&data.cluster.status.master)?.spec.keeper_uid;
        self.nodes.iter().position(|node| node.host.name.as_str() == keeper.as_str())
    }

    /// Why the cluster is not whole: every keeper with a good copy, every proxy serving, the set in sync.
    pub fn not_whole(&self, data: &ClusterData) -> Option<String> {
        let master = data.dbs.get(&data.cluster.status.master).map_or(String::new(), |db| db.uid.to_string());
        for node in &self.nodes {
            let db = data.dbs.values().find(|db| db.spec.keeper_uid.as_str() == node.host.name);
            let Some(db) = db else { return Some(format!("{} has no db", node.host.name)) };
            if !db.status.healthy || !db.converged() {
                return Some(format!("db {} of {} is not healthy or not converged", db.uid, node.host.name));
            }
        }
        if data.proxy.spec.master_db_uid.as_str() != master || master.is_empty() {
            return Some("proxies have no master".into());
        }
        let serving = data.proxy.spec.enabled_proxies.len();
        if serving != self.proxies().len() {
            return Some(format!("{serving} of {} proxies are enabled", self.proxies().len()));
        }
        let db = data.dbs.values().find(|db| db.uid.as_str() == master)?;
        let wanted = db.spec.synchronous_standbys.clone().unwrap_or_default();
        let known = db.status.synchronous_standbys.clone().unwrap_or_default();
        let enough = !wanted.is_empty() && wanted == known;
        (!enough).then(|| format!("synchronous standbys wanted {wanted:?}, known {known:?}"))
    }

    /// Waits until the cluster is whole.
    ///
    /// # Errors
    /// It takes longer; says what is missing.
    pub async fn wait_whole(&self, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let missing = match self.data().await {
                Ok(data) => self.not_whole(&data),
                Err(error) => Some(format!("{error:#}")),
            };
            match missing {
                None => return Ok(()),
                Some(missing) => ensure!(Instant::now() < deadline, "after {} s: {missing}", limit.as_secs()),
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Ends everything by force.
    pub fn end(&self) {
        for node in &self.nodes {
            node.daemons().for_each(Daemon::kill);
            process::signal_all(&process::postgres(&node.pgdata()), nix::sys::signal::Signal::SIGKILL);
        }
        self.members.iter().for_each(Daemon::kill);
    }
}

/// A session that is driven by a task of its own.
///
/// # Errors
/// No connection within 3 s.
pub async fn connect(conninfo: &str) -> anyhow::Result<Client> {
    let connecting = tokio_postgres::connect(conninfo, NoTls);
    let (client, connection) =
        tokio::time::timeout(Duration::from_secs(3), connecting).await.context("no answer in 3 s")??;
    tokio::spawn(connection);
    Ok(client)
}
