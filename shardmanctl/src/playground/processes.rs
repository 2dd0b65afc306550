//! Starting and signalling processes of a playground.

use super::plan::{Plan, PlannedNode};
use anyhow::{Context as _, bail};
use common::privileges::OsUser;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

/// Working directory and name of etcd's part of the playground.
pub(crate) const ETCD: &str = "etcd";

/// Starts a program in a session of its own, with its output in `dir/<name>.log`, working in `dir`.
pub(crate) fn spawn(command: &mut Command, dir: &Path, name: &str, user: &OsUser) -> anyhow::Result<u32> {
    std::fs::create_dir_all(dir).with_context(|| format!("make the directory {}", dir.display()))?;
    super::files::own(dir, user)?;
    let log = dir.join(format!("{name}.log"));
    let file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("open the log {}", log.display()))?;
    super::files::own(&log, user)?;
    command.current_dir(dir).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    // A Rust backtrace in the server's environment would end up in users' error messages.
    command.env_remove("RUST_BACKTRACE");
    if common::privileges::is_root() {
        command.uid(user.uid).gid(user.gid).env("HOME", dir).env("USER", &user.name);
    }
    // A group of its own: Ctrl-C in the terminal must reach us only, who then stop things in order.
    command.process_group(0);
    let child = command.spawn().with_context(|| format!("start {}", command.get_program().to_string_lossy()))?;
    Ok(child.id())
}

/// Starts etcd.
pub(crate) fn spawn_etcd(plan: &Plan, dir: &Path, user: &OsUser) -> anyhow::Result<()> {
    let client = plan.endpoints();
    let peer = format!("http://{}:{}", plan.etcd, plan.etcd_peer_port);
    let mut command = Command::new("etcd");
    command
        .args(["--name", "playground", "--data-dir", "data", "--logger", "zap", "--log-level", "warn"])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("playground={peer}")])
        // Old revisions are of no use to anybody; without this etcd's data only grows.
        .args(["--auto-compaction-mode", "periodic", "--auto-compaction-retention", "5m"]);
    spawn(&mut command, &dir.join(ETCD), ETCD, user).context("etcd is needed; install the package etcd-server")?;
    Ok(())
}

/// Starts the bowl of a pretend node, which starts everything else there.
pub(crate) fn spawn_bowl(plan: &Plan, node: &PlannedNode, dir: &Path, user: &OsUser) -> anyhow::Result<u32> {
    let node_dir = dir.join(node.name.as_str());
    let address = node.address.to_string();
    let mut command = Command::new(plan.bin_dir.join("bowl"));
    command
        .args(["--cluster-name", plan.cluster.as_str(), "--store-endpoints", &plan.endpoints()])
        .args(["--node-name", node.name.as_str(), "--advertise-address", &address, "--listen-address", &address])
        .args(["--service-manager", "process", "--data-dir"])
        .arg(&node_dir);
    spawn(&mut command, &node_dir, "bowl", user)
}

/// A process of the playground.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its number.
    pub(crate) pid: u32,
    /// File name of its program.
    pub(crate) program: String,
}

/// All processes of a part of the playground: programs of ours, of PostgreSQL or etcd that work in its directory.
/// A shell or an editor that happens to be there is none of them.
pub(crate) fn processes(plan: &Plan, part: &Path) -> Vec<Process> {
    // Without /proc nothing can be found, and nothing of this works anyway.
    let Ok(mut system) = System::new() else { return Vec::new() };
    let kind = ProcessRefreshKind::nothing().with_cwd(UpdateKind::Always).with_exe(UpdateKind::Always).without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, kind);
    let mut found: Vec<Process> = system
        .processes()
        .values()
        .filter(|process| process.thread_kind().is_none() && process.cwd().is_some_and(|cwd| cwd.starts_with(part)))
        .filter_map(|process| {
            // A program that was replaced by an upgrade is shown with this suffix.
            let exe = process.exe()?.to_str()?.trim_end_matches(" (deleted)").to_owned();
            let exe = Path::new(&exe);
            let program = exe.file_name()?.to_str()?.to_owned();
            let ours = program != "shardmanctl"
                && (exe.starts_with(&plan.bin_dir) || exe.starts_with(&plan.pg_bin_path) || program == ETCD);
            ours.then(|| Process { pid: process.pid().as_u32(), program })
        })
        .collect();
    // The bowl first: it must not have time to start again what was just killed.
    found.sort_by_key(|process| (process.program != "bowl", process.pid));
    found
}

/// The bowl of a node, if it runs.
pub(crate) fn bowl(plan: &Plan, node_dir: &Path) -> Option<u32> {
    processes(plan, node_dir).into_iter().find(|process| process.program == "bowl").map(|process| process.pid)
}

/// Kills all processes of a part at once, until none is left.
pub(crate) fn kill_all(plan: &Plan, part: &Path) -> anyhow::Result<usize> {
    let mut killed = 0;
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = processes(plan, part);
        if found.is_empty() {
            return Ok(killed);
        }
        if Instant::now() > deadline {
            bail!("processes in {} can't be killed: {found:?}", part.display());
        }
        for process in &found {
            signal(process.pid, Signal::SIGKILL);
        }
        killed += found.len();
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends a signal. A process that is gone already is none of our troubles.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
}

/// Waits until no process of a part is left.
pub(crate) async fn wait_gone(plan: &Plan, part: &Path, limit: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        reap();
        let left = processes(plan, part);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let names: Vec<String> = left.iter().map(|p| format!("{} {}", p.program, p.pid)).collect();
            bail!("still running in {} after {} s: {}", part.display(), limit.as_secs(), names.join(", "));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Takes the exit status of children that ended, so that they do not stay as zombies.
pub(crate) fn reap() {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}
