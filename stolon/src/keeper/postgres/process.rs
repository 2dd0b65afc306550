//! The postmaster: found, started, adopted, stopped, and its end noticed.

use super::binaries::Binaries;
use crate::keeper::error::{KeeperError, Result, io};
use crate::keeper::pauses::Pauses;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

/// An adopted postmaster is not our child: its end is noticed by the loss of our session, and by this at the latest.
const ADOPTED_POLL: Duration = Duration::from_millis(500);
/// How long a started postmaster may take to write its pid.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a fast stop may take (it waits for standbys and the archiver), and then an immediate one.
const FAST_LIMIT: Duration = Duration::from_secs(30);
const IMMEDIATE_LIMIT: Duration = Duration::from_secs(10);

/// `postmaster.pid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PidFile {
    /// The postmaster's process.
    pub pid: i32,
    /// Its port; `None` before it chose one.
    pub port: Option<u16>,
    /// Directory of its Unix socket.
    pub socket_dir: Option<String>,
    /// It takes connections.
    pub ready: bool,
}

/// Reads `postmaster.pid`; `None` if there is none that makes sense.
pub fn read_pid_file(pgdata: &Path) -> Option<PidFile> {
    parse_pid_file(&std::fs::read_to_string(pgdata.join("postmaster.pid")).ok()?)
}

/// Lines: pid, data directory, start time, port, socket directory, listen address, shared memory, status.
fn parse_pid_file(text: &str) -> Option<PidFile> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let line = |at: usize| lines.get(at).copied().filter(|line| !line.is_empty());
    // A single-user backend writes its pid as a negative number.
    let pid: i32 = line(0)?.parse().ok()?;
    Some(PidFile {
        pid: pid.checked_abs().filter(|pid| *pid > 1)?,
        port: line(3).and_then(|port| port.parse().ok()),
        socket_dir: line(4).map(str::to_owned),
        ready: line(7) == Some("ready"),
    })
}

/// The postmaster of a data directory, if one really runs there.
pub fn find(pgdata: &Path) -> Option<PidFile> {
    read_pid_file(pgdata).filter(|file| is_alive(file.pid, pgdata))
}

/// True if the process exists, is no zombie, and works in this data directory: pids are used again.
pub fn is_alive(pid: i32, pgdata: &Path) -> bool {
    let Ok(()) = kill(Pid::from_raw(pid), None) else { return false };
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let zombie = std::fs::read_to_string(proc.join("stat")).is_ok_and(|stat| is_zombie(&stat));
    // Only root may look at another user's process; a postmaster of this directory has our user.
    let elsewhere = std::fs::read_link(proc.join("cwd")).is_ok_and(|cwd| pgdata.canonicalize().is_ok_and(|p| p != cwd));
    !zombie && !elsewhere
}

/// The state is the first letter after the name, which is in parentheses and may contain some itself.
fn is_zombie(stat: &str) -> bool {
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// A postmaster under watch.
#[derive(Clone, Debug)]
pub struct Postmaster {
    /// Its process.
    pub pid: i32,
    ended: watch::Receiver<bool>,
}

impl Postmaster {
    /// It has ended.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }
    /// Waits for its end. Cancel-safe.
    pub async fn ended(&mut self) {
        // An error means that the watching task is gone, which happens at the end of the program only.
        let _ = self.ended.wait_for(|ended| *ended).await;
    }
}

/// Takes over a postmaster that somebody else started.
pub fn adopt(pid: i32, pgdata: &Path) -> Postmaster {
    let (sender, ended) = watch::channel(false);
    let pgdata = pgdata.to_owned();
    tokio::spawn(async move {
        while is_alive(pid, &pgdata) {
            tokio::time::sleep(ADOPTED_POLL).await;
        }
        let _ = sender.send(true);
    });
    Postmaster { pid, ended }
}

/// How to start a postmaster.
#[derive(Clone, Debug)]
pub struct StartOptions<'a> {
    /// Programs.
    pub binaries: &'a Binaries,
    /// Data directory.
    pub pgdata: &'a Path,
    /// Directory of the Unix socket.
    pub socket_dir: &'a Path,
    /// Further `-c name=value`.
    pub settings: Vec<String>,
}

/// Starts a postmaster and waits until its pid is in `postmaster.pid`.
///
/// # Errors
/// It ends before that, or takes too long.
pub async fn start(options: &StartOptions<'_>) -> Result<Postmaster> {
    forbid_alter_system(options.pgdata)?;
    let mut command = options.binaries.command("postgres");
    command.arg("-D").arg(options.pgdata);
    command.arg("-c").arg(format!("unix_socket_directories={}", options.socket_dir.display()));
    for setting in &options.settings {
        command.arg("-c").arg(setting);
    }
    // A process group of its own: Ctrl-C in the keeper's terminal must not reach it. It outlives the keeper.
    command.process_group(0).kill_on_drop(false);
    let child = command.spawn();
    let mut child = child.map_err(|source| KeeperError::Io { what: "run postgres".into(), source })?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let Some(pid) = pid else { return Err(KeeperError::Other("postgres ended at once; see its log".into())) };
    let (sender, ended) = watch::channel(false);
    tokio::spawn(async move {
        match child.wait().await {
            Ok(status) => info!(pid, %status, "postgres ended"),
            Err(error) => warn!(pid, %error, "wait for postgres"),
        }
        let _ = sender.send(true);
    });
    let mut guard = Unfinished { pid, armed: true };
    let (deadline, mut pauses) = (Instant::now() + START_LIMIT, Pauses::new());
    while read_pid_file(options.pgdata).is_none_or(|file| file.pid != pid) {
        if *ended.borrow() {
            return Err(KeeperError::Other("postgres did not start; its own messages above say why".into()));
        }
        if Instant::now() > deadline {
            return Err(KeeperError::Other("postgres started but wrote no postmaster.pid within 60 s".into()));
        }
        pauses.pause().await;
    }
    guard.armed = false;
    Ok(Postmaster { pid, ended })
}

/// A postmaster that can't be found by its pid file yet, and would be forgotten if we were interrupted.
struct Unfinished {
    pid: i32,
    armed: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.armed {
            // An error means that it has ended by itself.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGINT);
        }
    }
}

/// ALTER SYSTEM would change one member behind the cluster's back: its file becomes a link to nowhere, which
/// also voids what a base backup brought along.
fn forbid_alter_system(pgdata: &Path) -> Result<()> {
    let auto = pgdata.join("postgresql.auto.conf");
    let nowhere = Path::new("/dev/null");
    if std::fs::read_link(&auto).is_ok_and(|target| target == nowhere) {
        return Ok(());
    }
    remove_file(&auto)?;
    io(std::os::unix::fs::symlink(nowhere, &auto), "replace", &auto)
}

/// Removes a file that may be missing.
pub fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => io(Err(error), "remove", path),
        _ => Ok(()),
    }
}

/// Waits until the postmaster takes connections.
///
/// # Errors
/// It ended, or `limit` has passed.
pub async fn wait_ready(postmaster: &Postmaster, pgdata: &Path, limit: Duration) -> Result<()> {
    let (deadline, mut pauses) = (Instant::now() + limit, Pauses::new());
    while !read_pid_file(pgdata).is_some_and(|file| file.ready && file.pid == postmaster.pid) {
        if postmaster.has_ended() {
            return Err(KeeperError::Other("postgres ended while starting; its own messages above say why".into()));
        }
        if Instant::now() > deadline {
            return Err(KeeperError::Other(format!(
                "postgres takes no connections after {} s (dbWaitReadyTimeout); it is left running",
                limit.as_secs()
            )));
        }
        pauses.pause().await;
    }
    Ok(())
}

/// Waits until nobody has the pid that a crashed postmaster left behind: PostgreSQL's own programs take even a process
/// that has ended, but was not reaped yet, for a running server. They are the ones to complain if it stays.
pub async fn wait_gone(pgdata: &Path, limit: Duration) {
    let Some(file) = read_pid_file(pgdata) else { return };
    let (deadline, mut pauses) = (Instant::now() + limit, Pauses::new());
    while kill(Pid::from_raw(file.pid), None).is_ok() && Instant::now() < deadline {
        pauses.pause().await;
    }
}

/// Stops whatever runs in the data directory: fast, then immediately, then by force.
///
/// # Errors
/// It does not end, or belongs to somebody else.
pub async fn stop(pgdata: &Path) -> Result<()> {
    let Some(file) = find(pgdata) else { return Ok(()) };
    let stages = [(Signal::SIGINT, FAST_LIMIT), (Signal::SIGQUIT, IMMEDIATE_LIMIT), (Signal::SIGKILL, IMMEDIATE_LIMIT)];
    // A fast stop in the middle of a crash recovery leaves a control file that says "shut down" although WAL beyond it
    // was written, and pg_rewind would believe it. An immediate stop leaves the crash visible.
    let skip = usize::from(!file.ready);
    for (signal, limit) in stages.into_iter().skip(skip) {
        if signal != stages[skip].0 {
            warn!(pid = file.pid, %signal, "postgres does not stop, asking harder");
        }
        match kill(Pid::from_raw(file.pid), signal) {
            Ok(()) => {}
            Err(nix::errno::Errno::ESRCH) => return Ok(()),
            Err(error) => return Err(KeeperError::Other(format!("stop postgres (pid {}): {error}", file.pid))),
        }
        let (deadline, mut pauses) = (Instant::now() + limit, Pauses::new());
        while Instant::now() < deadline {
            if !is_alive(file.pid, pgdata) {
                return Ok(());
            }
            pauses.pause().await;
        }
    }
    Err(KeeperError::Other(format!("postgres (pid {}) does not stop, not even by force", file.pid)))
}

/// Makes the postmaster read its configuration again.
///
/// # Errors
/// There is no such process.
pub fn reload(pid: i32) -> Result<()> {
    kill(Pid::from_raw(pid), Signal::SIGHUP)
        .map_err(|error| KeeperError::Other(format!("reload postgres (pid {pid}): {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAMPLE: &str = "4711\n/d/postgres\n1700000000\n5442\n/tmp\n127.0.0.1\n  5432001  0\nready   \n";

    #[test]
    fn pid_files() {
        let wanted = PidFile { pid: 4711, port: Some(5442), socket_dir: Some("/tmp".into()), ready: true };
        assert_eq!(parse_pid_file(SAMPLE), Some(wanted));
        assert!(!parse_pid_file(&SAMPLE.replace("ready", "standby")).unwrap().ready);
        let early = parse_pid_file("4711\n/d\n1700000000\n").unwrap();
        assert_eq!((early.port, early.ready), (None, false));
        assert_eq!(parse_pid_file("-12\n").unwrap().pid, 12);
        for broken in ["", "\n", "x\n", "0\n", "1\n", "-2147483648\n", "99999999999\n"] {
            assert_eq!(parse_pid_file(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn zombies() {
        assert!(is_zombie("1 (a) b) Z 1 2"));
        assert!(!is_zombie("1 (Z) S 1 2"));
        assert!(!is_zombie(""));
    }

    #[test]
    fn another_process_with_the_same_pid_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(is_alive(pid, &std::env::current_dir().unwrap()));
        assert!(!is_alive(pid, dir.path()));
        std::fs::write(dir.path().join("postmaster.pid"), format!("{pid}\n")).unwrap();
        assert_eq!(find(dir.path()), None);
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = parse_pid_file(&text);
            let _ = is_zombie(&text);
        }
    }
}
