//! The PostgreSQL server of a keeper, as the operating system shows it.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long an immediate shutdown may take before it is enforced.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// The postmaster that works in a data directory, and its children.
#[derive(Clone, Debug)]
pub(super) struct Postmaster {
    pub(super) pid: i32,
    shared_memory: Option<String>,
    pgdata: PathBuf,
}

impl Postmaster {
    /// The one that runs there now.
    pub(super) fn find(pgdata: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(pgdata.join("postmaster.pid")).ok()?;
        let pid: i32 = text.lines().next()?.trim().parse().ok()?;
        // Key and id of the segment that marks the data directory as in use.
        let shared_memory = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)).map(str::to_owned);
        let postmaster = Postmaster { pid, shared_memory, pgdata: pgdata.to_owned() };
        postmaster.is_alive().then_some(postmaster)
    }

    /// It still works in its directory: the pid alone may be another process's by now.
    pub(super) fn is_alive(&self) -> bool {
        let here = std::fs::read_link(format!("/proc/{}/cwd", self.pid));
        here.is_ok_and(|cwd| self.pgdata.canonicalize().is_ok_and(|pgdata| pgdata == cwd))
    }

    fn children(&self) -> Vec<i32> {
        let list = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid)).unwrap_or_default();
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Sends a signal to the postmaster and all its children.
    pub(super) fn signal_all(&self, signal: Signal) {
        // The postmaster first: it must not start anew what we stop. Its children are to be known before that.
        let children = self.children();
        for pid in std::iter::once(self.pid).chain(children) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// The child whose title contains a word, such as `walreceiver`.
    pub(super) fn child(&self, title: &str) -> Option<Pid> {
        let is = |pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|command| command.contains(title))
        };
        self.children().into_iter().find(is).map(Pid::from_raw)
    }

    /// SIGKILL to all; returns when the postmaster is gone.
    pub(super) fn kill(&self) {
        self.signal_all(Signal::SIGKILL);
        while self.is_alive() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks for an immediate shutdown.
    pub(super) fn quit(&self) {
        self.signal_all(Signal::SIGCONT);
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGQUIT);
    }

    /// Waits for the end of a shutdown.
    pub(super) fn finish(&self) {
        let deadline = Instant::now() + SHUTDOWN;
        while self.is_alive() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.is_alive() {
            self.kill();
            remove_shared_memory(self.shared_memory.as_deref());
        }
    }
}

/// What a killed postmaster leaves in the kernel, when no later one will clean it up.
pub(super) fn remove_leftovers(pgdata: &Path) {
    let text = std::fs::read_to_string(pgdata.join("postmaster.pid")).unwrap_or_default();
    remove_shared_memory(text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)));
}

fn remove_shared_memory(id: Option<&str>) {
    if let Some(id) = id.filter(|id| id.parse::<u32>().is_ok()) {
        let _ = Command::new("ipcrm").args(["-m", id]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}
