//! What all supervisors share, and where they show the state of their daemons.

use crate::diff::FoundUnit;
use crate::envfile::Environment;
use crate::units::UnitName;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// What all supervisors share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) data_dir: PathBuf,
    /// The daemons' environment beside their own files.
    pub(super) base: Environment,
    board: Mutex<BTreeMap<UnitName, FoundUnit>>,
    changes: watch::Sender<u64>,
}

impl Shared {
    pub(super) fn new(data_dir: PathBuf, base: Environment) -> Self {
        Shared { data_dir, base, board: Mutex::default(), changes: watch::channel(0).0 }
    }
    fn board(&self) -> MutexGuard<'_, BTreeMap<UnitName, FoundUnit>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(super) fn units(&self) -> Vec<FoundUnit> {
        self.board().values().cloned().collect()
    }
    pub(super) fn forget(&self, unit: &UnitName) {
        self.board().remove(unit);
        self.changes.send_modify(|count| *count += 1);
    }
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
    pub(super) fn log_path(&self, unit: &UnitName) -> PathBuf {
        self.data_dir.join("log").join(format!("{unit}.log"))
    }
    pub(super) fn publish(&self, found: FoundUnit) {
        let mut board = self.board();
        if board.get(&found.unit) != Some(&found) {
            board.insert(found.unit.clone(), found);
            drop(board);
            self.changes.send_modify(|count| *count += 1);
        }
    }
}
