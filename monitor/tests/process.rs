//! Two monitors at once against a real etcd and real PostgreSQL servers.

use anyhow::{Context as _, Result, ensure};
use model::keys::ClusterKeys;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use store::{EtcdStore, Store as _, StoreOptions};
use testkit::etcd::Etcd;
use testkit::postgres::Postgres;

/// A monitor process; ends with the value.
struct Monitor(Child);

impl Monitor {
    fn start(etcd: &Etcd, log: &std::path::Path) -> Result<Self> {
        let child = Command::new(env!("CARGO_BIN_EXE_monitor"))
            .args(["--cluster-name", "c", "--store-endpoints", &etcd.endpoints()])
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(log)?)
            .spawn()?;
        Ok(Monitor(child))
    }

    /// SIGTERM; gives the exit status.
    fn stop(mut self) -> Result<Option<i32>> {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM)?;
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status.code());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        anyhow::bail!("the monitor did not end")
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn clusterdata(port: u16) -> Vec<u8> {
    json!({"formatVersion": 1, "cluster": {"spec": {"initMode": "new"}}, "keepers": {"keeper_0": {"uid": "keeper_0"}},
        "dbs": {"d": {"uid": "d", "spec": {"keeperUID": "keeper_0", "role": "master"},
                      "status": {"listenAddress": "127.0.0.1", "port": port.to_string()}}},
        "proxy": {"spec": {"masterDbUid": "d"}}})
    .to_string()
    .into_bytes()
}

struct Cluster {
    etcd: Etcd,
    store: EtcdStore,
    keys: ClusterKeys,
}

impl Cluster {
    async fn start() -> Result<Self> {
        let etcd = Etcd::start().await?;
        let options = StoreOptions { endpoints: etcd.endpoints(), ..StoreOptions::default() };
        let cluster = Cluster { store: EtcdStore::connect(&options).await?, keys: ClusterKeys::new(&"c".into()), etcd };
        cluster.spec("postgres", "").await?;
        Ok(cluster)
    }

    async fn spec(&self, user: &str, password: &str) -> Result<()> {
        let method = if password.is_empty() { "trust" } else { "scram-sha-256" };
        let spec = json!({"FormatVersion": 1, "LadleSpec": {}, "ClusterSpec": {"PgSuUsername": user,
            "PgSuPassword": password, "PgSuAuthMethod": method, "StolonSpec": {}}});
        self.store.put(&self.keys.spec(), spec.to_string().as_bytes(), None).await?;
        Ok(())
    }

    async fn group(&self, id: u32, port: u16) -> Result<()> {
        let doc = json!({"FormatVersion": 1, "StolonName": format!("g{id}"), "StorePrefix": "stolon/cluster",
            "SysId": id, "State": "active"});
        self.store.put(&self.keys.repgroup(model::RepGroupId(id)), doc.to_string().as_bytes(), None).await?;
        self.master(id, port).await
    }

    async fn master(&self, id: u32, port: u16) -> Result<()> {
        self.store.put(&format!("stolon/cluster/g{id}/clusterdata"), &clusterdata(port), None).await?;
        Ok(())
    }
}

/// Servers that lead nowhere yet, for all groups but `own`.
fn create_servers(postgres: &Postgres, own: u32, groups: u32) -> Result<()> {
    let mut sql = String::from("CREATE EXTENSION postgres_fdw;");
    for id in (1..=groups).filter(|id| *id != own) {
        sql += &format!(
            "CREATE SERVER shardman_rg_{id} FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'nowhere', fetch_size '77',
             options '-c statement_timeout=0');
             CREATE USER MAPPING FOR postgres SERVER shardman_rg_{id} OPTIONS (user 'nobody', password_required 'false');"
        );
    }
    postgres.psql(&sql).map(drop)
}

fn options(postgres: &Postgres, id: u32) -> Result<String> {
    let sql = format!(
        "SELECT array_to_string(s.srvoptions, ' ') || ' / ' || array_to_string(m.umoptions, ' ') FROM pg_foreign_server s \
         JOIN pg_user_mapping m ON m.umserver = s.oid WHERE srvname = 'shardman_rg_{id}'"
    );
    Ok(postgres.psql(&sql)?.trim().to_owned())
}

/// Waits until the options contain a text; gives the time it took.
async fn until(postgres: &Postgres, id: u32, part: &str, limit: Duration) -> Result<Duration> {
    let start = Instant::now();
    let mut last = String::new();
    while start.elapsed() < limit {
        last = options(postgres, id)?;
        if last.contains(part) {
            return Ok(start.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("the server of group {id} has no {part} after {limit:?}: {last}")
}

#[tokio::test]
async fn two_monitors_follow_failovers() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (one, two, standby) = (Postgres::start(&[])?, Postgres::start(&[])?, Postgres::start(&[])?);
    create_servers(&one, 1, 3)?;
    create_servers(&two, 2, 3)?;
    let dir = tempfile::tempdir()?;
    let logs = [dir.path().join("a"), dir.path().join("b")];
    let monitors = [Monitor::start(&cluster.etcd, &logs[0])?, Monitor::start(&cluster.etcd, &logs[1])?];
    // Started before there is any group; a group without master and a broken document must not disturb the others.
    cluster.store.put("stolon/cluster/g3/clusterdata", b"{", None).await?;
    cluster.group(1, one.port()).await?;
    cluster.group(2, two.port()).await?;
    let limit = Duration::from_secs(10);
    until(&one, 2, &format!("port={}", two.port()), limit).await?;
    until(&two, 1, &format!("port={}", one.port()), limit).await?;
    let text = options(&one, 2)?;
    for part in
        ["host=127.0.0.1", "dbname=postgres", "fetch_size=77", "options=-c statement_timeout=0", "user=postgres"]
    {
        ensure!(text.contains(part), "{part}: {text}");
    }
    ensure!(options(&one, 3)?.contains("host=nowhere"), "group 3 has no master");
    let oid = one.psql("SELECT oid FROM pg_foreign_server WHERE srvname = 'shardman_rg_2'")?;

    // Failover of group 2: within a second from the moment it is published.
    let mut slowest = Duration::ZERO;
    for port in [standby.port(), two.port(), standby.port()] {
        cluster.master(2, port).await?;
        slowest = slowest.max(until(&one, 2, &format!("port={port}"), limit).await?);
    }
    ensure!(slowest < Duration::from_secs(1), "a failover was seen only after {slowest:?}");
    ensure!(oid == one.psql("SELECT oid FROM pg_foreign_server WHERE srvname = 'shardman_rg_2'")?);

    // A change of the password reaches mappings; group 1's server trusts, so the login still works.
    cluster.spec("postgres", "it's").await?;
    until(&one, 2, "password=it's", limit).await?;
    cluster.spec("postgres", "").await?;
    let start = Instant::now();
    while options(&one, 2)?.contains("password=it") {
        ensure!(start.elapsed() < limit, "the password is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    for monitor in monitors {
        ensure!(monitor.stop()? == Some(0));
    }
    check_logs(&logs, standby.port())
}

/// Each change was made by one of the two, without a quarrel and without a secret.
fn check_logs(logs: &[std::path::PathBuf], port: u16) -> Result<()> {
    let text = logs.iter().map(std::fs::read_to_string).collect::<Result<Vec<_>, _>>()?.concat();
    let to_port = text.lines().filter(|line| line.contains("altered") && line.contains(&format!(":{port}"))).count();
    // Twice by a failover, twice by a change of the password.
    ensure!(to_port == 4, "{to_port} alterations to port {port}:\n{text}");
    ensure!(!text.contains("it's"), "a secret in the log:\n{text}");
    ensure!(!text.contains("concurrently"), "{text}");
    Ok(())
}

#[tokio::test]
async fn what_is_missing_or_down_is_taken_up_later() -> Result<()> {
    let cluster = Cluster::start().await?;
    let one = Postgres::start(&[])?;
    one.psql("CREATE EXTENSION postgres_fdw")?;
    cluster.group(1, one.port()).await?;
    // Nothing listens there: its worker fails, the other one must not care.
    cluster.group(2, 1).await?;
    cluster.group(3, 2).await?;
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("log");
    let monitor = Monitor::start(&cluster.etcd, &log)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !std::fs::read_to_string(&log)?.contains("shardman_rg_2, shardman_rg_3 does not exist") {
        ensure!(Instant::now() < deadline, "{}", std::fs::read_to_string(&log)?);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    one.psql("CREATE SERVER shardman_rg_2 FOREIGN DATA WRAPPER postgres_fdw; CREATE USER MAPPING FOR postgres SERVER shardman_rg_2")?;
    until(&one, 2, "port=1", Duration::from_secs(5)).await?;
    // etcd is gone: PostgreSQL stays as it is; the monitor lives on and ends when it is told to.
    let mut cluster = cluster;
    cluster.etcd.stop();
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure!(options(&one, 2)?.contains("port=1"));
    ensure!(monitor.stop().context("stop")? == Some(0));
    Ok(())
}
