//! Daemons as real child processes: small shell scripts.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use bowl::diff::{FoundUnit, RunState};
use bowl::envfile::{EnvFile, Environment};
use bowl::manager::process::ProcessManager;
use bowl::manager::{Service, ServiceManager};
use bowl::units::Kind;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Runs until it is asked to end.
const PATIENT: &str = "trap 'exit 0' TERM\nwhile :; do sleep 0.05; done\n";
/// Ends only by force.
const STUBBORN: &str = "trap '' TERM\nwhile :; do sleep 0.05; done\n";

struct Fixture {
    dir: TempDir,
}

impl Fixture {
    fn new() -> Self {
        Fixture { dir: tempfile::tempdir().unwrap() }
    }
    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }
    fn open(&self) -> ProcessManager {
        let base = Environment::from([("PATH".into(), "/usr/bin:/bin".into())]);
        ProcessManager::open(&"c".into(), &self.data(), base).unwrap()
    }
    /// A daemon that runs a script, which first writes its pid and a variable.
    fn service(&self, kind: Kind, name: &str, script: &str) -> Service {
        let program = self.dir.path().join(name);
        let head = format!("#!/bin/sh\necho \"$$ $VALUE\" >> {}\n", self.starts_file(name).display());
        fs::write(&program, head + script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let unit = format!("shardman-{}@c-{name}", kind.word());
        Service { unit: unit.as_str().into(), kind, program, env_file: format!("{name}.env") }
    }
    fn configure(&self, service: &Service, value: &str) {
        let variables = Environment::from([("VALUE".into(), value.into())]);
        let text = EnvFile { config: value.into(), variables }.render().unwrap();
        fs::write(self.data().join(&service.env_file), text).unwrap();
    }
    fn starts_file(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.starts"))
    }
    /// Pid and variable of each start.
    fn starts(&self, name: &str) -> Vec<(i32, String)> {
        let text = fs::read_to_string(self.starts_file(name)).unwrap_or_default();
        let line = |line: &str| line.split_once(' ').map(|(pid, value)| (pid.parse().unwrap(), value.to_owned()));
        text.lines().filter_map(line).collect()
    }
}

impl Drop for Fixture {
    /// A test that failed leaves no process behind.
    fn drop(&mut self) {
        for entry in fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            for (pid, _) in name.strip_suffix(".starts").map(|name| self.starts(name)).unwrap_or_default() {
                let cmdline = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                if cmdline.contains(&*self.dir.path().to_string_lossy()) {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                }
            }
        }
    }
}

fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !check() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn unit(manager: &ProcessManager, service: &Service) -> FoundUnit {
    manager.list().await.unwrap().into_iter().find(|found| found.unit == service.unit).unwrap()
}

async fn end(pid: i32) {
    let kill = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
    let _ = kill(nix::sys::signal::Signal::SIGKILL);
    eventually("a process is gone", || !lives(pid)).await;
}

#[tokio::test]
async fn start_restart_stop() {
    let fixture = Fixture::new();
    let manager = fixture.open();
    let service = fixture.service(Kind::Keeper, "a", PATIENT);
    fixture.configure(&service, "one");
    manager.start(&service).await.unwrap();
    manager.start(&service).await.unwrap();
    eventually("it starts once", || fixture.starts("a").len() == 1).await;
    let first = fixture.starts("a")[0].0;
    let found = unit(&manager, &service).await;
    assert_eq!((found.state, found.enabled, found.config.as_str()), (RunState::Running, true, "one"));
    fixture.configure(&service, "two");
    manager.restart(&service).await.unwrap();
    eventually("it starts again", || fixture.starts("a").len() == 2).await;
    assert!(!lives(first));
    assert_eq!(fixture.starts("a")[1].1, "two");
    assert_eq!(unit(&manager, &service).await.config, "two");
    manager.stop(&service.unit).await.unwrap();
    assert!(!lives(fixture.starts("a")[1].0));
    let found = unit(&manager, &service).await;
    assert_eq!((found.state, found.enabled), (RunState::Stopped, false));
    manager.remove(&service.unit).await.unwrap();
    assert_eq!(manager.list().await.unwrap(), []);
    assert_eq!(fs::read_dir(fixture.data().join("run")).unwrap().count(), 0);
}

#[tokio::test]
async fn one_that_ends_is_started_again_with_pauses() {
    let fixture = Fixture::new();
    let manager = fixture.open();
    let service = fixture.service(Kind::Proxy, "a", "echo some last words >&2\nexit 3\n");
    fixture.configure(&service, "x");
    let begin = Instant::now();
    manager.start(&service).await.unwrap();
    // At once, at once, after 0.5 s, after 1 s more.
    eventually("it starts four times", || fixture.starts("a").len() == 4).await;
    let took = begin.elapsed();
    assert!(took > Duration::from_millis(1400) && took < Duration::from_secs(4), "{took:?}");
    eventually("the failure is noted", || {
        let found = futures::executor::block_on(unit(&manager, &service));
        found.state == RunState::Failed && found.problem.contains("exit status: 3") && found.restarts >= 3
    })
    .await;
    let log = fs::read_to_string(fixture.data().join("log").join(format!("{}.log", service.unit))).unwrap();
    assert!(log.contains("some last words"), "{log}");
    manager.stop(&service.unit).await.unwrap();
    let starts = fixture.starts("a").len();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(fixture.starts("a").len(), starts, "it was started after it was stopped");
}

#[tokio::test]
async fn one_that_dies_is_started_again_at_once() {
    let fixture = Fixture::new();
    let manager = fixture.open();
    let service = fixture.service(Kind::Keeper, "a", PATIENT);
    fixture.configure(&service, "x");
    manager.start(&service).await.unwrap();
    eventually("it starts", || fixture.starts("a").len() == 1).await;
    let begin = Instant::now();
    end(fixture.starts("a")[0].0).await;
    eventually("it starts again", || fixture.starts("a").len() == 2).await;
    assert!(begin.elapsed() < Duration::from_millis(500));
    manager.shutdown(false).await;
}

#[tokio::test]
async fn a_missing_program_is_a_problem_of_its_own() {
    let fixture = Fixture::new();
    let manager = fixture.open();
    let service = Service { program: "/nowhere/keeper".into(), ..fixture.service(Kind::Keeper, "a", PATIENT) };
    fixture.configure(&service, "x");
    manager.start(&service).await.unwrap();
    eventually("the problem is noted", || {
        let found = futures::executor::block_on(unit(&manager, &service));
        found.state == RunState::Failed && found.problem.contains("start /nowhere/keeper")
    })
    .await;
    manager.shutdown(false).await;
}

#[tokio::test]
async fn the_stubborn_are_stopped_by_force() {
    let fixture = Fixture::new();
    let manager = fixture.open();
    let service = fixture.service(Kind::Sentinel, "a", STUBBORN);
    fixture.configure(&service, "x");
    manager.start(&service).await.unwrap();
    eventually("it starts", || fixture.starts("a").len() == 1).await;
    // The shell must have set its trap.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begin = Instant::now();
    manager.stop(&service.unit).await.unwrap();
    let took = begin.elapsed();
    assert!(took > Duration::from_millis(4900) && took < Duration::from_secs(8), "{took:?}");
    assert!(!lives(fixture.starts("a")[0].0));
}

#[tokio::test]
async fn a_later_manager_takes_over_what_runs() {
    let fixture = Fixture::new();
    let (runs, died, off) = (
        fixture.service(Kind::Keeper, "runs", PATIENT),
        fixture.service(Kind::Proxy, "died", PATIENT),
        fixture.service(Kind::Monitor, "off", PATIENT),
    );
    let manager = fixture.open();
    for service in [&runs, &died, &off] {
        fixture.configure(service, "one");
        manager.start(service).await.unwrap();
    }
    eventually("all start", || ["runs", "died", "off"].iter().all(|name| fixture.starts(name).len() == 1)).await;
    manager.stop(&off.unit).await.unwrap();
    manager.shutdown(true).await;
    drop(manager);
    end(fixture.starts("died")[0].0).await;
    let pid = fixture.starts("runs")[0].0;
    assert!(lives(pid), "it was to be left running");

    let manager = fixture.open();
    eventually("what died is started", || fixture.starts("died").len() == 2).await;
    assert_eq!(fixture.starts("runs").len(), 1, "a second one was started");
    assert_eq!(fixture.starts("off").len(), 1, "one that is off was started");
    let found = unit(&manager, &runs).await;
    assert_eq!((found.state, found.config.as_str()), (RunState::Running, "one"));
    // The end of one that is not our child is noticed too.
    end(pid).await;
    eventually("it starts again", || fixture.starts("runs").len() == 2).await;
    manager.shutdown(false).await;
    for name in ["runs", "died"] {
        assert!(!lives(fixture.starts(name)[1].0), "{name}");
    }
    drop(manager);
    // They stay enabled: the next bowl starts them.
    let manager = fixture.open();
    eventually("both start", || ["runs", "died"].iter().all(|name| fixture.starts(name).len() == 3)).await;
    manager.shutdown(false).await;
}

#[tokio::test]
async fn taken_over_daemons_can_be_stopped() {
    let fixture = Fixture::new();
    let service = fixture.service(Kind::Proxy, "a", PATIENT);
    let manager = fixture.open();
    fixture.configure(&service, "one");
    manager.start(&service).await.unwrap();
    eventually("it starts", || fixture.starts("a").len() == 1).await;
    manager.shutdown(true).await;
    drop(manager);
    let manager = fixture.open();
    manager.stop(&service.unit).await.unwrap();
    eventually("it is gone", || !lives(fixture.starts("a")[0].0)).await;
}

#[tokio::test]
async fn a_daemon_without_a_record_is_found() {
    let fixture = Fixture::new();
    let service = fixture.service(Kind::Keeper, "a", PATIENT);
    let manager = fixture.open();
    fixture.configure(&service, "one");
    manager.start(&service).await.unwrap();
    eventually("it starts", || fixture.starts("a").len() == 1).await;
    manager.shutdown(true).await;
    drop(manager);
    // As after a crash of bowl between start and record, or the loss of the record.
    fs::remove_file(fixture.data().join("run").join(format!("{}.json", service.unit))).unwrap();
    let manager = fixture.open();
    fixture.configure(&service, "two");
    manager.start(&service).await.unwrap();
    let found = unit(&manager, &service).await;
    assert_eq!((found.state, found.config.as_str()), (RunState::Running, "one"), "what it was started with");
    assert_eq!(fixture.starts("a").len(), 1, "a second one was started");
    manager.shutdown(false).await;
    assert!(!lives(fixture.starts("a")[0].0));
}

#[tokio::test]
async fn a_reused_process_number_is_not_taken_over() {
    let fixture = Fixture::new();
    let service = fixture.service(Kind::Keeper, "a", PATIENT);
    let manager = fixture.open();
    fixture.configure(&service, "one");
    manager.start(&service).await.unwrap();
    eventually("it starts", || fixture.starts("a").len() == 1).await;
    manager.shutdown(false).await;
    drop(manager);
    // The record of an earlier boot, whose number is now ours.
    let path = fixture.data().join("run").join(format!("{}.json", service.unit));
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record["Process"] = serde_json::json!({"Pid": std::process::id(), "StartTime": 1, "BootId": "x"});
    fs::write(&path, record.to_string()).unwrap();
    let manager = fixture.open();
    eventually("a new one is started", || fixture.starts("a").len() == 2).await;
    manager.shutdown(false).await;
}

#[tokio::test]
async fn only_known_variables_are_passed_on() {
    let fixture = Fixture::new();
    let manager = fixture.open();
    let service = fixture.service(Kind::Keeper, "a", "env\ntrap 'exit 0' TERM\nwhile :; do sleep 0.05; done\n");
    fixture.configure(&service, "a b");
    manager.start(&service).await.unwrap();
    let log = fixture.data().join("log").join(format!("{}.log", service.unit));
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    eventually("it writes its environment", || read(&log).contains("VALUE=a b")).await;
    assert!(!read(&log).contains("CARGO"), "{}", read(&log));
    manager.shutdown(false).await;
}
