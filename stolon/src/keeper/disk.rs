//! Whether files can be written and read where the data is, and a reserve for the day when they can't.
//!
//! A full disk must not keep the keeper from writing down what it does: its own files are small but must not be lost. So a
//! few MiB are set aside while there is room, and given back when there is none. PostgreSQL itself gets on by itself as
//! soon as somebody makes room: it is started again and again.
//!
//! Copies that were replaced are kept in trash only while there is room for them.

use super::datadir::write_file;
use super::error::KeeperError;
use super::probe::Probed;
use super::trash;
use model::stolon::Problem;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tracing::{info, warn};

/// Pause between looks while all is well: one small file per look is nothing to any disk.
const CALM: Duration = Duration::from_secs(20);
/// Pause while something is wrong.
const TROUBLE: Duration = Duration::from_secs(2);
/// A look that takes longer is a failure by itself.
const LIMIT: Duration = Duration::from_secs(15);
/// Size of the reserve; far more than all files of the keeper.
const RESERVE: u64 = 4 << 20;
/// The reserve is set aside only where that leaves enough for PostgreSQL.
const ROOM_FOR_RESERVE: u64 = 16 * RESERVE;
/// Less room than one WAL segment counts as full: PostgreSQL's next one would not fit.
const FULL: u64 = 16 << 20;
/// Failed looks in a row before the instance counts as ill.
const ENOUGH: u32 = 2;

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Code and text, if something is wrong.
    pub problem: Option<(&'static str, String)>,
    /// Files can't be written and read, again and again, and not for lack of room.
    pub broken: bool,
}

/// Looks again and again; ends when nobody listens. `root` is the keeper's directory.
pub async fn run(root: PathBuf, results: watch::Sender<Disk>, probed: watch::Receiver<Probed>) {
    let mut failures = 0;
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = results.closed() => return,
        }
        let look = tokio::task::spawn_blocking({
            let root = root.clone();
            move || look(&root)
        });
        // A look that hangs keeps its thread; the next one begins only when it has ended.
        let mut look = look;
        let seen = loop {
            match tokio::time::timeout(LIMIT, &mut look).await {
                Ok(seen) => break seen.unwrap_or(None),
                Err(_) => tell(&results, judge(Some(hangs(&root)), &mut failures)),
            }
        };
        tell(&results, judge(seen, &mut failures));
        let complete = complete_system(&probed.borrow());
        if let Some(system_id) = complete {
            let root = root.clone();
            // A copy may be large: beside the looks, so that they don't seem to hang.
            let pruning = tokio::task::spawn_blocking(move || trash::make_room(&root, system_id, || is_low(&root)));
            if let Ok(Err(error)) = pruning.await {
                warn!(%error, "replaced copies stay in trash although room is low");
            }
        }
        pause = if results.borrow().problem.is_some() || failures > 0 { TROUBLE } else { CALM };
    }
}

/// The system of an instance here that runs: it is complete, or it would let nobody in.
fn complete_system(probed: &Probed) -> Option<u64> {
    if !probed.healthy { None } else { probed.snapshot.system_id.parse().ok() }
}

type Seen = Option<(&'static str, String)>;

fn hangs(root: &Path) -> (&'static str, String) {
    (Problem::FILE_SYSTEM, format!("writing a file in {} does not end", root.display()))
}

/// A single failure may be anything; several are the disk. A full disk is no reason to call PostgreSQL ill while it runs.
fn judge(seen: Seen, failures: &mut u32) -> Disk {
    let broken = matches!(seen, Some((Problem::FILE_SYSTEM, _)));
    *failures = if broken { *failures + 1 } else { 0 };
    Disk { problem: seen, broken: *failures >= ENOUGH }
}

fn tell(results: &watch::Sender<Disk>, disk: Disk) {
    results.send_if_modified(|last| {
        let changed = *last != disk;
        if changed {
            match &disk.problem {
                Some((code, text)) => warn!(code, "{text}"),
                None if last.problem.is_some() => info!("files can be written again, and there is room"),
                None => {}
            }
        }
        *last = disk;
        changed
    });
}

fn look(root: &Path) -> Seen {
    let free = match room(root) {
        Ok(free) => free,
        Err(error) => return Some(broken(root, &error.to_string())),
    };
    let wal = root.join("postgres/pg_wal");
    let wal_free = room(&wal).unwrap_or(free);
    let probe = root.join(".probe");
    if let Err(error) = write_and_read(&probe) {
        return Some(match &error {
            KeeperError::Io { source, .. } if is_full(source) => full(root),
            error => broken(root, &error.to_string()),
        });
    }
    if free < FULL {
        release_reserve(root);
        return Some(full(root));
    }
    if wal_free < FULL {
        return Some(full(&wal));
    }
    if free > ROOM_FOR_RESERVE {
        set_reserve_aside(root);
    }
    None
}

fn full(path: &Path) -> (&'static str, String) {
    let text = format!("the disk of {} is full; make room, postgres goes on by itself then", path.display());
    (Problem::DISK_FULL, text)
}

fn broken(path: &Path, why: &str) -> (&'static str, String) {
    (Problem::FILE_SYSTEM, format!("files in {} can't be written and read: {why}", path.display()))
}

/// Less than an eighth is low, but not what is plenty for any server.
const PLENTY: u64 = 16 << 30;

/// The file system of the keeper's directory, or of its WAL, has little room left.
pub(super) fn is_low(root: &Path) -> bool {
    [root, &root.join("postgres/pg_wal")].into_iter().any(|path| {
        statvfs(path).is_ok_and(|stat| {
            let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
            bytes(stat.blocks_available()) < (bytes(stat.blocks()) / 8).min(PLENTY)
        })
    })
}

/// Free bytes for us.
pub(super) fn room(path: &Path) -> std::io::Result<u64> {
    let stat = statvfs(path)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Through the disk as far as a file system tells: written durably, then read by its name.
fn write_and_read(probe: &Path) -> Result<(), KeeperError> {
    let content = [b'x'; 512];
    write_file(probe, &content)?;
    let read = super::error::io(std::fs::read(probe), "read", probe)?;
    if read == content {
        return Ok(());
    }
    Err(KeeperError::Other(format!("{} reads differently than it was written", probe.display())))
}

/// The file system, or our share of it, has no room.
pub(super) fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

fn reserve(root: &Path) -> PathBuf {
    root.join("reserve")
}

fn set_reserve_aside(root: &Path) {
    let path = reserve(root);
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() >= RESERVE) {
        return;
    }
    let make = || {
        let file = std::fs::File::create(&path)?;
        // Not merely a size: the blocks have to be ours.
        match fallocate(&file, FallocateFlags::empty(), 0, RESERVE.cast_signed()) {
            Err(Errno::EOPNOTSUPP) => std::io::Write::write_all(&mut &file, &vec![0; 4 << 20]),
            other => other.map_err(std::io::Error::from),
        }
    };
    if let Err(error) = make() {
        warn!(%error, "no room could be set aside for the keeper's own files");
        let _ = std::fs::remove_file(&path);
    }
}

/// Gives the reserve of the keeper's directory back; `true` if there was one.
pub(super) fn release_reserve(root: &Path) -> bool {
    let released = std::fs::remove_file(reserve(root)).is_ok();
    if released {
        warn!("the disk is full, giving back what was set aside for the keeper's own files");
    }
    released
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_is_told_and_two_are_believed() {
        let mut failures = 0;
        let seen = || Some(broken(Path::new("/d"), "x"));
        assert!(!judge(seen(), &mut failures).broken);
        assert!(judge(seen(), &mut failures).broken);
        let disk = judge(Some(full(Path::new("/d"))), &mut failures);
        assert!(!disk.broken && disk.problem.is_some(), "no room is no damage");
        assert_eq!(judge(None, &mut failures), Disk::default());
    }

    #[test]
    fn a_look_leaves_a_reserve_that_can_be_given_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(look(dir.path()), None);
        assert_eq!(std::fs::metadata(reserve(dir.path())).unwrap().len(), RESERVE);
        assert!(release_reserve(dir.path()) && !release_reserve(dir.path()));
        let missing = look(&dir.path().join("missing")).unwrap();
        assert_eq!(missing.0, Problem::FILE_SYSTEM);
    }
}
