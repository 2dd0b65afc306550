//! The program itself on a real etcd, with shell scripts as daemons.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use model::keys::ClusterKeys;
use model::layout::{Document, NodeStatus};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use store::{EtcdStore, Store, StoreOptions};
use tempfile::TempDir;
use testkit::etcd::Etcd;

const DAEMON: &str = "#!/bin/sh\ntrap 'exit 0' TERM\nwhile :; do sleep 0.05; done\n";
const UNITS: [&str; 4] = [
    "shardman-keeper@cluster0-clover-1-n1-0",
    "shardman-monitor@cluster0",
    "shardman-proxy@cluster0-clover-1-n1",
    "shardman-sentinel@cluster0-clover-1-n1",
];

struct Fixture {
    etcd: Etcd,
    dir: TempDir,
    bowl: Option<Child>,
}

impl Fixture {
    async fn new() -> Self {
        // The user that bowl becomes when it is started by root must get in.
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let parent = dir.path().join("data");
        fs::create_dir(&parent).unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        for name in ["stolon-keeper", "stolon-sentinel", "stolon-proxy", "monitor"] {
            let path = dir.path().join("bin").join(name);
            fs::write(&path, DAEMON).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Fixture { etcd: Etcd::start().await.unwrap(), dir, bowl: None }
    }
    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }
    fn start(&mut self, more: &[&str]) {
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("bowl.log")).unwrap();
        let bowl = Command::new(env!("CARGO_BIN_EXE_bowl"))
            .args(["--node-name", "n1", "--advertise-address", "127.0.0.1", "--service-manager", "process"])
            .args(["--store-endpoints", &self.etcd.endpoints(), "--request-timeout", "1"])
            .arg("--data-dir")
            .arg(self.data())
            .arg("--bin-dir")
            .arg(self.dir.path().join("bin"))
            .args(more)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.bowl = Some(bowl);
    }
    fn signal(&self, signal: Signal) {
        let pid = self.bowl.as_ref().unwrap().id().cast_signed();
        kill(Pid::from_raw(pid), signal).unwrap();
    }
    fn wait(&mut self) -> Option<i32> {
        self.bowl.take().unwrap().wait().unwrap().code()
    }
    async fn store(&self) -> EtcdStore {
        EtcdStore::connect(&StoreOptions { endpoints: self.etcd.endpoints(), ..Default::default() }).await.unwrap()
    }
    async fn put(&self, key: String, text: &str) -> i64 {
        self.store().await.put(&key, text.as_bytes(), None).await.unwrap()
    }
    async fn status(&self) -> Option<NodeStatus> {
        let entry = self.store().await.get(&keys().status(&"n1".into())).await.ok()??;
        assert!(entry.lease.is_some());
        Some(NodeStatus::parse("status", &entry.value).unwrap())
    }
    async fn status_with(&self, check: impl Fn(&NodeStatus) -> bool) -> NodeStatus {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let status = self.status().await;
            if let Some(status) = status.as_ref().filter(|status| check(status)) {
                return status.clone();
            }
            assert!(Instant::now() < deadline, "{status:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    async fn found(&self) {
        let spec = r#"{"FormatVersion":1,"LadleSpec":{"StoreConnInfo":{"Endpoints":"http://e:1"},"DataDir":"/d"},
            "ClusterSpec":{"PgSuUsername":"postgres","PgSuAuthMethod":"trust","PgReplUsername":"repluser",
              "PgReplAuthMethod":"trust"}}"#;
        self.put(keys().spec(), spec).await;
    }
    async fn lay_out(&self, generation: u64, port: u16) {
        let layout = format!(
            r#"{{"FormatVersion":1,"Generation":{generation},"Keepers":[{{"Id":{{"RepGroup":"clover-1-n1","Uid":0}},
            "Preferred":true,"PgPort":5442}}],"Monitor":true,"Proxies":[{{"RepGroup":"clover-1-n1","Port":{port}}}]}}"#
        );
        self.put(keys().layout(&"n1".into()), &layout).await;
    }
    async fn validate(&self, generation: u64) {
        let revision = format!(r#"{{"FormatVersion":1,"Generation":{generation},"CloverSeq":2,"RepGroupSeq":2}}"#);
        self.put(keys().revision(), &revision).await;
    }
    /// Pids of the living daemons, by unit, from their records.
    fn pids(&self) -> Vec<i32> {
        let pid = |unit: &str| {
            let bytes = fs::read(self.data().join("run").join(format!("{unit}.json"))).ok()?;
            let record: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
            i32::try_from(record["Process"]["Pid"].as_i64()?).ok().filter(|pid| lives(*pid))
        };
        UNITS.iter().filter_map(|unit| pid(unit)).collect()
    }
    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("bowl.log")).unwrap_or_default()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(mut bowl) = self.bowl.take() {
            let _ = bowl.kill();
            let _ = bowl.wait();
        }
        for pid in self.pids() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn keys() -> ClusterKeys {
    ClusterKeys::new(&"cluster0".into())
}

fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn all_run(status: &NodeStatus) -> bool {
    status.daemons.len() == 4 && status.daemons.iter().all(|daemon| daemon.state == "running")
}

async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !check() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn from_an_empty_store_to_an_empty_node() {
    let mut fixture = Fixture::new().await;
    fixture.start(&[]);
    let status = fixture.status_with(|_| true).await;
    assert_eq!((status.generation.0, status.spec_revision, status.last_error.as_str()), (0, 0, ""));
    fixture.found().await;
    fixture.lay_out(1, 5432).await;
    // Not valid yet: nothing may happen.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(fixture.pids(), Vec::<i32>::new());
    fixture.validate(1).await;
    let status = fixture.status_with(|status| status.generation.0 == 1 && all_run(status)).await;
    assert!(status.daemons.iter().map(|daemon| daemon.unit.as_str()).eq(UNITS), "{status:?}");
    assert_eq!(mode(&fixture.data().join("keeper-cluster0-clover-1-n1-0.env")), 0o600);
    // A change of the proxy's port restarts the proxy only.
    let before = fixture.pids();
    fixture.lay_out(2, 5532).await;
    fixture.validate(2).await;
    fixture.status_with(|status| status.generation.0 == 2 && all_run(status)).await;
    let after = fixture.pids();
    let same: Vec<bool> = before.iter().zip(&after).map(|(before, after)| before == after).collect();
    assert_eq!(same, [true, true, false, true]);
    fixture.signal(Signal::SIGHUP);
    tokio::time::sleep(Duration::from_millis(100)).await;
    fixture.signal(Signal::SIGTERM);
    assert_eq!(fixture.wait(), Some(0), "{}", fixture.log());
    assert_eq!(fixture.pids(), Vec::<i32>::new());
    assert!(after.iter().all(|pid| !lives(*pid)));
    assert_eq!(fixture.status().await, None, "the status vanishes at once");
}

#[tokio::test]
async fn bowls_death_and_etcds_death_touch_no_daemon() {
    let mut fixture = Fixture::new().await;
    fixture.found().await;
    fixture.lay_out(1, 5432).await;
    fixture.validate(1).await;
    fixture.start(&[]);
    fixture.status_with(|status| status.generation.0 == 1 && all_run(status)).await;
    let daemons = fixture.pids();
    fixture.signal(Signal::SIGKILL);
    fixture.wait();
    assert_eq!(fixture.pids(), daemons);
    fixture.etcd.stop();
    // The monitor died while nobody looked.
    kill(Pid::from_raw(daemons[1]), Signal::SIGKILL).unwrap();
    eventually("the monitor is gone", || !lives(daemons[1])).await;
    fixture.start(&["--leave-running"]);
    eventually("the monitor runs again, without etcd", || fixture.pids().len() == 4).await;
    let now = fixture.pids();
    assert_eq!((now[0], now[2], now[3]), (daemons[0], daemons[2], daemons[3]), "a running daemon was replaced");
    fixture.etcd.resume().await.unwrap();
    fixture.status_with(|status| status.generation.0 == 1 && all_run(status)).await;
    assert_eq!(fixture.pids(), now);
    // An etcd without data: nothing changes, and the status says so.
    fixture.etcd.stop();
    fixture.etcd.wipe().unwrap();
    fixture.etcd.resume().await.unwrap();
    let status = fixture.status_with(|status| !status.last_error.is_empty()).await;
    assert!(status.last_error.contains("check the store"), "{}", status.last_error);
    assert_eq!(fixture.pids(), now);
    fixture.signal(Signal::SIGTERM);
    assert_eq!(fixture.wait(), Some(0));
    assert_eq!(fixture.pids(), now, "--leave-running");
}

#[test]
fn systemd_is_refused_in_one_line() {
    let output = Command::new(env!("CARGO_BIN_EXE_bowl")).args(["--service-manager", "systemd"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.lines().count() == 1 && text.contains("not available yet"), "{text}");
}

#[test]
fn unusable_names_are_wrong_usage() {
    for arguments in [["--node-name", "a/b"], ["--cluster-name", ".."]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bowl"));
        command.args(["--service-manager", "process", "--data-dir", "/nonexistent/x"]).args(arguments);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
