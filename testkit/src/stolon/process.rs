//! A program under a test's control.

use super::LIMIT;
use super::bins::Program;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A component that can be started, stopped, killed and frozen, again and again. Its log goes on in one file.
#[derive(Debug)]
pub struct Process {
    name: String,
    program: Program,
    log: PathBuf,
    arguments: Mutex<Vec<String>>,
    environment: Vec<(String, String)>,
    child: Mutex<Option<Child>>,
}

/// What a process is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) name: String,
    pub(super) program: Program,
    pub(super) dir: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(String, String)>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A test that panicked elsewhere still has to stop its processes.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { name, program, dir, arguments, environment } = parts;
        let log = dir.join(format!("{name}.log"));
        Process { name, program, log, arguments: Mutex::new(arguments), environment, child: Mutex::new(None) }
    }

    pub(super) fn set_program(&mut self, program: Program) {
        self.program = program;
    }

    /// Its name in logs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts it; nothing happens if it runs.
    ///
    /// # Panics
    /// It can't be started.
    pub fn start(&self) {
        let mut child = locked(&self.child);
        if child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None))) {
            return;
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("open a component's log");
        let mut command = self.program.command();
        command
            .args(locked(&self.arguments).iter())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env_remove("RUST_BACKTRACE")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("open a component's log twice"))
            .stderr(log);
        let started = command.spawn().unwrap_or_else(|error| panic!("start {}: {error}", self.name));
        *child = Some(started);
    }

    /// Replaces an argument's value at the next start, or adds the argument.
    pub fn set_argument(&self, flag: &str, value: &str) {
        let mut arguments = locked(&self.arguments);
        match arguments.iter().position(|argument| argument == flag) {
            Some(at) => arguments[at + 1] = value.to_owned(),
            None => arguments.extend([flag.to_owned(), value.to_owned()]),
        }
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<Pid> {
        let mut child = locked(&self.child);
        let child = child.as_mut()?;
        matches!(child.try_wait(), Ok(None)).then(|| Pid::from_raw(child.id().cast_signed()))
    }

    /// Sends a signal; nothing happens if it does not run.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            let _ = kill(pid, signal);
        }
    }

    /// SIGKILL; returns when it is gone.
    pub fn kill(&self) {
        if let Some(mut child) = locked(&self.child).take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM; returns when it has ended by itself.
    ///
    /// # Panics
    /// It does not end.
    pub async fn stop(&self) -> Option<ExitStatus> {
        self.signal(Signal::SIGTERM);
        let started = Instant::now();
        loop {
            match locked(&self.child).as_mut().map(Child::try_wait) {
                None | Some(Err(_)) => return None,
                Some(Ok(Some(status))) => return Some(status),
                Some(Ok(None)) => assert!(started.elapsed() < LIMIT, "{} does not end", self.name),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// SIGSTOP: it does nothing more until [`Process::thaw`], but its connections stay.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// All it has logged since the lab began, with what its PostgreSQL logged.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Where its log is.
    pub fn log_file(&self) -> &Path {
        &self.log
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
