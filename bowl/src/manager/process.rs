//! Daemons as child processes of bowl, for machines without systemd and for the playground.
//!
//! In the data directory: `run/<unit>.json` is each daemon's record, `log/<unit>.log` its output (moved to `.1` at
//! 10 MiB), `bowl.lock` is held while bowl runs.

use super::board::Shared;
use super::record::Record;
use super::supervisor::{Handle, Verb, supervise};
use super::{ManagerError, Service, ServiceManager};
use crate::diff::FoundUnit;
use crate::envfile::Environment;
use crate::files::{self, FileError};
use crate::units::{Kind, UnitName};
use async_trait::async_trait;
use futures::future::join_all;
use model::ClusterName;
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

/// A log that has grown to this is moved aside.
const LOG_LIMIT: u64 = 10 * 1024 * 1024;
/// Often enough that a busy log stays near its limit, seldom enough to cost nothing.
const LOG_CHECK: Duration = Duration::from_secs(60);

/// Runs daemons as child processes. They outlive it unless it is shut down.
#[derive(Debug)]
pub struct ProcessManager {
    cluster: ClusterName,
    shared: Arc<Shared>,
    handles: Mutex<BTreeMap<UnitName, Handle>>,
    rotation: JoinHandle<()>,
    /// Held as long as we live, so that no second bowl starts the same daemons again.
    _lock: File,
}

impl Drop for ProcessManager {
    fn drop(&mut self) {
        self.rotation.abort();
    }
}

impl ProcessManager {
    /// Opens a data directory, which is made if needed: daemons that run are taken over, daemons that are to run
    /// are started from their stored environment. `base` is their environment beside their own files.
    ///
    /// # Errors
    /// The directory can't be used, or another bowl uses it.
    pub fn open(cluster: &ClusterName, data_dir: &Path, base: Environment) -> Result<Self, ManagerError> {
        for directory in [data_dir.to_owned(), data_dir.join("run"), data_dir.join("log")] {
            files::make_directory(&directory)?;
        }
        let lock = take_lock(&data_dir.join("bowl.lock"))?;
        let shared = Arc::new(Shared::new(data_dir.to_owned(), base));
        let mut handles = BTreeMap::new();
        for record in read_records(&data_dir.join("run"))? {
            if record.cluster != *cluster {
                warn!(unit = %record.unit, owner = %record.cluster, "leave a daemon of another cluster alone");
                continue;
            }
            handles.insert(record.unit.clone(), supervise(shared.clone(), record, true));
        }
        let rotation = tokio::spawn(rotate_logs(shared.clone()));
        Ok(ProcessManager { cluster: cluster.clone(), shared, handles: Mutex::new(handles), rotation, _lock: lock })
    }

    fn handles(&self) -> MutexGuard<'_, BTreeMap<UnitName, Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, unit: &UnitName) -> Option<Handle> {
        self.handles().get(unit).cloned()
    }

    fn handle_for(&self, service: &Service) -> Handle {
        let mut handles = self.handles();
        let new = || supervise(self.shared.clone(), Record::new(&self.cluster, service), false);
        handles.entry(service.unit.clone()).or_insert_with(new).clone()
    }
}

#[async_trait]
impl ServiceManager for ProcessManager {
    async fn list(&self) -> Result<Vec<FoundUnit>, ManagerError> {
        Ok(self.shared.units())
    }

    async fn start(&self, service: &Service) -> Result<(), ManagerError> {
        self.handle_for(service).order(Verb::Start(service.clone())).await
    }

    async fn restart(&self, service: &Service) -> Result<(), ManagerError> {
        self.handle_for(service).order(Verb::Restart(service.clone())).await
    }

    async fn stop(&self, unit: &UnitName) -> Result<(), ManagerError> {
        match self.handle(unit) {
            Some(handle) => handle.order(Verb::Stop).await,
            None => Ok(()),
        }
    }

    async fn remove(&self, unit: &UnitName) -> Result<(), ManagerError> {
        if let Some(handle) = self.handle(unit) {
            handle.order(Verb::Halt).await?;
            self.handles().remove(unit);
        }
        files::delete(&Record::path(&self.shared.data_dir, unit))?;
        self.shared.forget(unit);
        Ok(())
    }

    async fn shutdown(&self, leave_running: bool) {
        let handles: Vec<Handle> = std::mem::take(&mut *self.handles()).into_values().collect();
        for kind in Kind::ALL {
            let orders = handles.iter().filter(|handle| handle.kind == kind).map(|handle| {
                let verb = if leave_running { Verb::Release } else { Verb::Halt };
                handle.order(verb)
            });
            for error in join_all(orders).await.into_iter().filter_map(Result::err) {
                warn!(%error, "stop a daemon");
            }
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.subscribe()
    }
}

/// A process that is just being started holds copies of all our descriptors for a moment, until it runs its own
/// program: a bowl that was killed right then seems to live a little longer.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(25);

fn take_lock(path: &Path) -> Result<File, ManagerError> {
    let fail = |error| FileError::new("lock", path, error);
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(fail)?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            // Bowl has nothing else to do yet.
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(fail(error).into()),
        }
    }
    Err(ManagerError::Busy(format!(
        "another bowl holds {}; stop it, or give this one another --data-dir",
        path.display()
    )))
}

/// A record that can't be read is left alone: its daemon may run, and is found by its mark when it is to start.
fn read_records(directory: &Path) -> Result<Vec<Record>, ManagerError> {
    let mut records = Vec::new();
    for entry in fs::read_dir(directory).map_err(|error| FileError::new("read", directory, error))?.flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let record = fs::read(&path).map_err(|error| error.to_string()).and_then(|bytes| Record::parse(&bytes));
        match record {
            Ok(record) if Record::path(directory.parent().unwrap_or(directory), &record.unit) == path => {
                records.push(record);
            }
            Ok(_) => warn!(path = %path.display(), "skip a daemon's record that has another unit's name"),
            Err(error) => warn!(path = %path.display(), error, "skip a daemon's record that can't be read"),
        }
    }
    records.sort_by(|a, b| b.kind.cmp(&a.kind).then_with(|| a.unit.cmp(&b.unit)));
    Ok(records)
}

async fn rotate_logs(shared: Arc<Shared>) {
    loop {
        let paths: Vec<PathBuf> = shared.units().iter().map(|found| shared.log_path(&found.unit)).collect();
        // Copying may take a moment, which must not hold up the lease.
        let rotated = tokio::task::spawn_blocking(move || {
            for path in paths {
                match rotate(&path, LOG_LIMIT) {
                    Ok(true) => info!(path = %path.display(), "moved a log aside"),
                    Ok(false) => {}
                    Err(error) => warn!(path = %path.display(), %error, "move a log aside"),
                }
            }
        });
        let _ = rotated.await;
        tokio::time::sleep(LOG_CHECK).await;
    }
}

/// Copies a log that is too long to `.1` and empties it. It is not renamed, since the daemon holds it open, perhaps
/// longer than bowl lives; it appends, so that it goes on at the new end. Lines written between are lost.
fn rotate(path: &Path, limit: u64) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() >= limit => {}
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    let mut old = path.as_os_str().to_owned();
    old.push(".1");
    fs::copy(path, old)?;
    File::options().write(true).open(path)?.set_len(0)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn long_logs_are_moved_aside_under_their_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        assert!(!rotate(&path, 4).unwrap());
        let mut writer = File::options().append(true).create(true).open(&path).unwrap();
        writer.write_all(b"old").unwrap();
        assert!(!rotate(&path, 4).unwrap());
        writer.write_all(b"er\n").unwrap();
        assert!(rotate(&path, 4).unwrap());
        writer.write_all(b"new\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
        assert_eq!(fs::read_to_string(dir.path().join("x.log.1")).unwrap(), "older\n");
    }

    #[tokio::test]
    async fn one_bowl_per_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = ProcessManager::open(&"c".into(), dir.path(), Environment::new()).unwrap();
        let error = ProcessManager::open(&"c".into(), dir.path(), Environment::new()).unwrap_err().to_string();
        assert!(error.contains("another bowl"), "{error}");
        drop(first);
        ProcessManager::open(&"c".into(), dir.path(), Environment::new()).unwrap();
    }
}
