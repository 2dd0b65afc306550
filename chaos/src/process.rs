//! Daemons that are killed, suspended and started again, and the processes of a PostgreSQL instance.

use crate::sandbox::Host;
use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A daemon as it is to be started, and the process if it runs.
#[derive(Debug)]
pub struct Daemon {
    /// Its name in logs.
    pub name: String,
    host: Host,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Daemon {
    /// A daemon that is not started yet; its log is `<name>.log` in `logs`.
    pub fn new(name: &str, host: &Host, program: PathBuf, arguments: Vec<String>, logs: &Path) -> Self {
        Daemon {
            name: name.to_owned(),
            host: host.clone(),
            program,
            arguments,
            environment: Vec::new(),
            log: logs.join(format!("{name}.log")),
            child: Mutex::default(),
        }
    }

    /// Adds variables to its environment.
    #[must_use]
    pub fn with_environment(mut self, variables: &[(String, String)]) -> Self {
        self.environment.extend_from_slice(variables);
        self
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it unless it runs.
    ///
    /// # Errors
    /// The program can't be run.
    pub fn start(&self) -> anyhow::Result<()> {
        let mut child = self.child();
        if child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None))) {
            return Ok(());
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).context("open a log")?;
        let mut command = self.host.command(&self.program);
        command.args(&self.arguments).envs(self.environment.iter().cloned()).current_dir("/");
        // Ctrl-C is for us: we end them in order.
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        *child = Some(command.spawn().with_context(|| format!("run {}", self.program.display()))?);
        Ok(())
    }

    /// Its process, if it runs.
    pub fn pid(&self) -> Option<i32> {
        let mut child = self.child();
        let child = child.as_mut()?;
        let runs = matches!(child.try_wait(), Ok(None));
        runs.then(|| child.id().cast_signed())
    }

    /// Sends a signal, if it runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Kills it and waits for its end.
    pub fn kill(&self) {
        if let Some(mut child) = self.child().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to end, and kills it if it does not within `limit`. Gives false if it had to be killed.
    pub async fn stop(&self, limit: Duration) -> bool {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + limit;
        while self.pid().is_some() {
            if Instant::now() > deadline {
                self.kill();
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }
}

/// The postmaster of a data directory, if one runs.
pub fn postmaster(pgdata: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(pgdata.join("postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    let here = std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == pgdata);
    here.then_some(pid)
}

/// All processes that work in a data directory: those of PostgreSQL, also of one whose postmaster is dead.
pub fn postgres(pgdata: &Path) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut found: Vec<i32> =
        pids.filter(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == pgdata)).collect();
    // The postmaster first: suspended later it would replace children that were killed before it.
    let first = postmaster(pgdata);
    found.sort_by_key(|pid| (Some(*pid) != first, *pid));
    found
}

/// A process of PostgreSQL by what `ps` shows, such as `checkpointer`.
pub fn postgres_child(pgdata: &Path, title: &str) -> Option<i32> {
    postgres(pgdata).into_iter().find(|pid| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(title))
    })
}

/// Sends a signal to processes; those that have ended meanwhile are no error.
pub fn signal_all(pids: &[i32], signal: Signal) {
    for pid in pids {
        let _ = kill(Pid::from_raw(*pid), signal);
    }
}
