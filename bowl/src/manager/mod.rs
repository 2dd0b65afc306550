//! Who runs the daemons: systemd, or bowl itself.

mod board;
mod proc;
pub mod process;
mod record;
mod running;
mod supervisor;

use crate::diff::FoundUnit;
use crate::files::FileError;
use crate::units::{Kind, UnitName};
use async_trait::async_trait;
use std::path::PathBuf;
use tokio::sync::watch;

/// A daemon as a service manager needs it. Its environment is read from its file at each start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its unit.
    pub unit: UnitName,
    /// What it is.
    pub kind: Kind,
    /// Its program, absolute.
    pub program: PathBuf,
    /// Its environment file's name in the data directory.
    pub env_file: String,
}

/// Why a service manager did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// A file of its own.
    #[error(transparent)]
    File(#[from] FileError),
    /// A daemon that does not end, not even by force.
    #[error("{unit} does not end; look at process {pid}, which the kernel does not let go")]
    Unstoppable {
        /// The unit.
        unit: UnitName,
        /// Its process.
        pid: i32,
    },
    /// A daemon that lives and can't be watched, so that nobody would see it end.
    #[error("{unit} was not stopped: its process {pid} can't be watched ({reason}); will try again")]
    Unwatched {
        /// The unit.
        unit: UnitName,
        /// Its process.
        pid: i32,
        /// Why.
        reason: String,
    },
    /// The directory is another bowl's.
    #[error("{0}")]
    Busy(String),
    /// The manager is about to end.
    #[error("bowl is ending")]
    Ending,
}

/// Runs daemons, restarts them when they end, and remembers over restarts of the machine which are to run.
#[async_trait]
pub trait ServiceManager: Send + Sync + std::fmt::Debug {
    /// All units that it knows.
    async fn list(&self) -> Result<Vec<FoundUnit>, ManagerError>;
    /// Enables a daemon and starts it unless it runs. That it does not stay up is no error of this call.
    async fn start(&self, service: &Service) -> Result<(), ManagerError>;
    /// Enables a daemon, stops it if it runs and starts it.
    async fn restart(&self, service: &Service) -> Result<(), ManagerError>;
    /// Stops a daemon and disables it. No error when it is not known.
    async fn stop(&self, unit: &UnitName) -> Result<(), ManagerError>;
    /// Forgets a stopped daemon.
    async fn remove(&self, unit: &UnitName) -> Result<(), ManagerError>;
    /// Bowl ends for good: stops all daemons, which stay enabled, or leaves them running.
    async fn shutdown(&self, leave_running: bool);
    /// Wakes at each change of a daemon's state.
    fn changes(&self) -> watch::Receiver<u64>;
}
