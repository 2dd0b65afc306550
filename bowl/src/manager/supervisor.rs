//! One task per daemon: starts it, waits for its end, starts it again.

use super::board::Shared;
use super::proc::{self, ProcessId};
use super::record::Record;
use super::running::Running;
use super::{ManagerError, Service};
use crate::diff::{FoundUnit, RunState};
use crate::envfile::EnvFile;
use crate::files;
use crate::units::Kind;
use nix::sys::signal::Signal;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{error, info, warn};

/// A daemon that ran so long ended by a new cause: its next restart is the first one again. Longer than the longest
/// pause, so that one that lives for moments never looks stable.
const STABLE: Duration = Duration::from_secs(20);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// The kernel ends a process within moments of SIGKILL unless it hangs on a device.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// The pause before a restart after so many failures in a row: at once, 0.5 s, doubling to 10 s.
pub(super) fn pause(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_PAUSE.saturating_mul(1 << doublings.min(8)).min(MAX_PAUSE),
    }
}

/// What a supervisor is asked to do.
#[derive(Debug)]
pub(super) enum Verb {
    Start(Service),
    Restart(Service),
    /// Stop and disable.
    Stop,
    /// Stop, stay enabled, end the task.
    Halt,
    /// Leave the daemon alone, end the task.
    Release,
}

#[derive(Debug)]
struct Order {
    verb: Verb,
    done: oneshot::Sender<Result<(), ManagerError>>,
}

/// The way to a supervisor.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    pub(super) kind: Kind,
    orders: mpsc::Sender<Order>,
}

impl Handle {
    /// Gives an order and waits until it is done.
    pub(super) async fn order(&self, verb: Verb) -> Result<(), ManagerError> {
        let (done, result) = oneshot::channel();
        self.orders.send(Order { verb, done }).await.map_err(|_| ManagerError::Ending)?;
        result.await.map_err(|_| ManagerError::Ending)?
    }
}

/// Starts to supervise what a record says. One that was `recorded` by an earlier bowl is taken over if it lives and
/// started if it is to run; a new one waits for the order to start.
pub(super) fn supervise(shared: Arc<Shared>, record: Record, recorded: bool) -> Handle {
    let (orders, receiver) = mpsc::channel(8);
    let kind = record.kind;
    let supervisor = Supervisor {
        shared,
        record,
        running: None,
        failures: 0,
        next: None,
        started: Instant::now(),
        restarts: 0,
        problem: String::new(),
        searched: false,
    };
    // Shown from the first moment on, so that a pass that comes before the task compares its configuration.
    supervisor.publish();
    tokio::spawn(supervisor.run(receiver, recorded));
    Handle { kind, orders }
}

struct Supervisor {
    shared: Arc<Shared>,
    record: Record,
    running: Option<Running>,
    /// Ends in a row.
    failures: u32,
    /// When to start it.
    next: Option<Instant>,
    started: Instant,
    restarts: u32,
    /// Why it does not run.
    problem: String,
    /// We looked for a process that nobody recorded.
    searched: bool,
}

enum Wake {
    Order(Option<Order>),
    Ended(Option<ExitStatus>),
    Due,
}

impl Supervisor {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>, recorded: bool) {
        if recorded {
            self.take_over().await;
        }
        loop {
            self.publish();
            // All branches are cancel-safe; a branch whose precondition is false is not polled.
            let wake = tokio::select! {
                order = orders.recv() => Wake::Order(order),
                status = wait(&mut self.running) => Wake::Ended(status),
                () = until(self.next) => Wake::Due,
            };
            match wake {
                Wake::Order(None) => return,
                Wake::Order(Some(order)) => {
                    let last = matches!(order.verb, Verb::Halt | Verb::Release);
                    let result = self.obey(order.verb).await;
                    self.publish();
                    // A daemon that was not stopped still needs its supervisor.
                    let last = last && result.is_ok();
                    let _ = order.done.send(result);
                    if last {
                        return;
                    }
                }
                Wake::Ended(status) => self.note_end(status).await,
                Wake::Due => {
                    self.restarts += 1;
                    self.spawn().await;
                }
            }
        }
    }

    /// After a start of bowl: what runs goes on running, what is to run is started from its stored environment.
    async fn take_over(&mut self) {
        if let Some(process) = self.record.process.clone()
            && self.adopt(&process)
        {
            info!(unit = %self.record.unit, pid = process.pid, "took over a running daemon");
            return;
        }
        if self.record.enabled {
            self.spawn().await;
        }
    }

    fn adopt(&mut self, process: &ProcessId) -> bool {
        // The handle first, then the look: so it can't belong to a later process of the same number.
        let running = Running::adopt(process.pid);
        match running {
            Ok(running) if process.lives() => {
                self.running = Some(running);
                self.started = Instant::now();
                self.problem.clear();
                self.next = None;
                true
            }
            Ok(_) => false,
            Err(error) if process.lives() => {
                // Not to start a second one is what matters most; it is looked at again after a pause.
                self.problem = format!("process {} can't be watched: {error}", process.pid);
                self.next = Some(Instant::now() + MAX_PAUSE);
                false
            }
            Err(_) => false,
        }
    }

    async fn obey(&mut self, verb: Verb) -> Result<(), ManagerError> {
        match verb {
            Verb::Start(service) => {
                self.record.enable(&service);
                self.save().await?;
                if self.running.is_none() {
                    self.failures = 0;
                    self.spawn().await;
                }
                Ok(())
            }
            Verb::Restart(service) => {
                self.record.enable(&service);
                self.save().await?;
                if let Err(error) = self.end().await {
                    // It goes on with its old environment; the next pass orders the restart again.
                    self.next = self.running.is_none().then(|| Instant::now() + MAX_PAUSE);
                    return Err(error);
                }
                self.failures = 0;
                self.spawn().await;
                Ok(())
            }
            Verb::Stop => {
                self.record.enabled = false;
                self.save().await?;
                self.end().await
            }
            Verb::Halt => self.end().await,
            Verb::Release => Ok(()),
        }
    }

    /// Starts the process unless it lives already; plans the next try when that fails.
    async fn spawn(&mut self) {
        self.next = None;
        match self.find_unrecorded().await {
            Ok(true) => return,
            // Only to look after one that lives: it was stopped meanwhile.
            Ok(false) if !self.record.enabled => return,
            Ok(false) => {}
            Err(error) => {
                self.searched = false;
                self.problem = format!("look for a process that runs already: {error}");
                self.plan_restart();
                return;
            }
        }
        match self.spawn_child() {
            Ok(child) => {
                self.record.process = child.id().and_then(|pid| ProcessId::of(pid.cast_signed()));
                self.running = Some(Running::Child(child));
                self.started = Instant::now();
                self.problem.clear();
                info!(unit = %self.record.unit, pid = self.record.process.as_ref().map(|p| p.pid), "started");
            }
            Err(reason) => {
                self.problem = reason;
                self.plan_restart();
            }
        }
        self.save_or_log().await;
    }

    /// Looks once for the process of a bowl that was killed before it could record it, or whose record was lost.
    async fn find_unrecorded(&mut self) -> io::Result<bool> {
        if let Some(process) = self.record.process.clone()
            && process.lives()
        {
            return Ok(self.adopt(&process) || self.next.is_some());
        }
        if std::mem::replace(&mut self.searched, true) {
            return Ok(false);
        }
        let variable = format!("{UNIT_VARIABLE}={}", self.record_path().display());
        let Some((process, config)) = proc::find(&variable, &self.record.program, CONFIG_VARIABLE)? else {
            return Ok(false);
        };
        if !self.adopt(&process) {
            return Ok(self.next.is_some());
        }
        warn!(unit = %self.record.unit, pid = process.pid, "took over a daemon that was running without a record");
        self.record.process = Some(process);
        self.record.config = config;
        self.save_or_log().await;
        Ok(true)
    }

    fn spawn_child(&mut self) -> Result<Child, String> {
        let Record { unit, program, env_file, .. } = &self.record;
        let env_path = self.shared.data_dir.join(env_file);
        let text = fs::read_to_string(&env_path).map_err(|e| format!("read {}: {e}", env_path.display()))?;
        let file = EnvFile::parse(&text);
        let log = open_log(&self.shared.log_path(unit)).map_err(|e| format!("open the log of {unit}: {e}"))?;
        let error_log = log.try_clone().map_err(|e| format!("open the log of {unit}: {e}"))?;
        let child = Command::new(program)
            .env_clear()
            .envs(&self.shared.base)
            .envs(&file.variables)
            .env(UNIT_VARIABLE, self.record_path())
            .env(CONFIG_VARIABLE, &file.config)
            .current_dir(&self.shared.data_dir)
            // A group of its own: Ctrl-C at bowl's terminal must not reach PostgreSQL.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(error_log)
            .spawn()
            .map_err(|e| format!("start {}: {e}", program.display()));
        self.record.config = file.config;
        child
    }

    async fn note_end(&mut self, status: Option<ExitStatus>) {
        self.running = None;
        self.record.process = None;
        let how = status.map_or_else(|| "ended".to_owned(), |status| status.to_string());
        self.problem = format!("{how}; see {}", self.shared.log_path(&self.record.unit).display());
        if self.record.enabled {
            if self.started.elapsed() >= STABLE {
                self.failures = 0;
            }
            self.plan_restart();
        }
        self.save_or_log().await;
    }

    fn plan_restart(&mut self) {
        let pause = pause(self.failures);
        self.failures += 1;
        self.next = Some(Instant::now() + pause);
        warn!(unit = %self.record.unit, problem = self.problem, pause_seconds = pause.as_secs_f32(), "will start again");
    }

    /// Stops the process: first asks, then forces.
    async fn end(&mut self) -> Result<(), ManagerError> {
        self.next = None;
        self.watch_again()?;
        let Some(mut running) = self.running.take() else { return Ok(()) };
        let grace = self.record.kind.stop_grace();
        running.signal(Signal::SIGTERM);
        if timeout(grace, running.ended()).await.is_err() {
            warn!(unit = %self.record.unit, seconds = grace.as_secs(), "does not end, using force");
            running.signal(Signal::SIGKILL);
            if timeout(KILL_WAIT, running.ended()).await.is_err() {
                self.running = Some(running);
                let pid = self.record.process.as_ref().map_or(0, |process| process.pid);
                return Err(ManagerError::Unstoppable { unit: self.record.unit.clone(), pid });
            }
        }
        info!(unit = %self.record.unit, "stopped");
        self.record.process = None;
        self.save().await
    }

    /// A process that could not be watched lives on unseen: before it may count as stopped, it must be taken over.
    fn watch_again(&mut self) -> Result<(), ManagerError> {
        let Some(process) = self.record.process.clone().filter(|_| self.running.is_none()) else { return Ok(()) };
        if !process.lives() || self.adopt(&process) || !process.lives() {
            return Ok(());
        }
        if !self.record.enabled {
            self.next = None;
        }
        Err(ManagerError::Unwatched { unit: self.record.unit.clone(), pid: process.pid, reason: self.problem.clone() })
    }

    fn record_path(&self) -> PathBuf {
        Record::path(&self.shared.data_dir, &self.record.unit)
    }

    async fn save(&self) -> Result<(), ManagerError> {
        Ok(files::replace(self.record_path(), self.record.to_bytes()).await?)
    }

    /// The daemon is more important than its record, which can be found again by the process's environment.
    async fn save_or_log(&self) {
        if let Err(error) = self.save().await {
            error!(unit = %self.record.unit, %error, "the daemon's record was not written");
        }
    }

    fn publish(&self) {
        let state = match (&self.running, self.record.enabled) {
            (Some(_), _) => RunState::Running,
            (None, true) if self.next.is_some() => RunState::Failed,
            (None, true) => RunState::Starting,
            (None, false) => RunState::Stopped,
        };
        self.shared.publish(FoundUnit {
            unit: self.record.unit.clone(),
            kind: self.record.kind,
            cluster: self.record.cluster.clone(),
            env_file: self.record.env_file.clone(),
            config: self.record.config.clone(),
            enabled: self.record.enabled,
            state,
            restarts: self.restarts,
            problem: if state == RunState::Failed { self.problem.clone() } else { String::new() },
        });
    }
}

/// Marks a daemon's process with its record, to find it again.
const UNIT_VARIABLE: &str = "SHARDMAN_UNIT_RECORD";
/// The configuration that the process was started with.
const CONFIG_VARIABLE: &str = "SHARDMAN_UNIT_CONFIG";

async fn wait(running: &mut Option<Running>) -> Option<ExitStatus> {
    match running {
        Some(running) => running.ended().await,
        None => std::future::pending().await,
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn open_log(path: &Path) -> io::Result<fs::File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        let millis: Vec<u128> = (0..8).map(|failures| pause(failures).as_millis()).collect();
        assert_eq!(millis, [0, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        assert_eq!(pause(u32::MAX), MAX_PAUSE);
    }
}
