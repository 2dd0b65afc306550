//! A bowl without free descriptors. A program of its own: the limit holds for the whole process.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use bowl::diff::RunState;
use bowl::envfile::{EnvFile, Environment};
use bowl::manager::process::ProcessManager;
use bowl::manager::{Service, ServiceManager};
use bowl::units::Kind;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

fn open(data: &Path) -> ProcessManager {
    let base = Environment::from([("PATH".into(), "/usr/bin:/bin".into())]);
    ProcessManager::open(&"c".into(), data, base).unwrap()
}

/// Takes all descriptors.
fn exhaust() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

async fn eventually(what: &str, check: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !check() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_daemon_that_cannot_be_watched_is_neither_doubled_nor_forgotten() {
    let limit = Rlimit { current: Some(200), maximum: getrlimit(Resource::Nofile).maximum };
    setrlimit(Resource::Nofile, limit).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (program, starts) = (dir.path().join("daemon"), dir.path().join("starts"));
    let script = "trap 'exit 0' TERM\nwhile :; do sleep 0.05; done\n";
    fs::write(&program, format!("#!/bin/sh\necho $$ >> {}\n{script}", starts.display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let service = Service { unit: "shardman-keeper@c-a".into(), kind: Kind::Keeper, program, env_file: "a.env".into() };
    let first = open(&data);
    fs::write(data.join("a.env"), EnvFile::default().render().unwrap()).unwrap();
    first.start(&service).await.unwrap();
    let started = || fs::read_to_string(&starts).unwrap_or_default();
    eventually("it starts", || started().ends_with('\n')).await;
    let pid: i32 = started().trim().parse().unwrap();
    let lives = || nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).is_ok();
    first.shutdown(true).await;
    drop(first);

    let second = open(&data);
    // Before the task of the supervisor runs for the first time.
    let taken = exhaust();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(second.stop(&service.unit).await.is_err());
    let error = second.remove(&service.unit).await.unwrap_err().to_string();
    drop(taken);
    assert!(error.contains("can't be watched") && error.contains(&pid.to_string()), "{error}");
    assert!(lives(), "{error}");
    assert!(data.join("run/shardman-keeper@c-a.json").exists());
    let found = second.list().await.unwrap().remove(0);
    assert_ne!(found.state, RunState::Running, "{error}");
    // With descriptors it is stopped for good.
    second.stop(&service.unit).await.unwrap();
    second.remove(&service.unit).await.unwrap();
    eventually("it ends", || !lives()).await;
    assert_eq!(started().lines().count(), 1);
}
