//! WAL on a file system of its own.
//!
//! Each instance's WAL gets a directory of its own below `--wal-dir`, with `pg_wal` linked to it: an instance that is
//! moved to trash keeps its own WAL, and a copy that is being made does not disturb the one that runs.

use super::datadir::{make_private_dir, write_file};
use super::error::{KeeperError, Result, io};
use super::postgres::process;
use chrono::{DateTime, Utc};
use nix::unistd::syncfs;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};
use tracing::{info, warn};

/// Directories with this name are ours: what they hold goes with the instance.
const PREFIX: &str = "stolon-wal-";

/// Where a new instance's WAL goes. Several keepers of a host may share `wal_dir`.
pub(super) fn fresh(wal_dir: &Path, now: DateTime<Utc>) -> PathBuf {
    wal_dir.join(format!("{PREFIX}{}-{}", now.format("%Y%m%dT%H%M%S%.6fZ"), std::process::id()))
}

/// Where WAL is and where it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Move {
    Stay,
    Out(PathBuf),
    Home,
}

/// `link` is where `pg_wal` leads to, if it is a link. A link that others made stays as it is when nobody asks for
/// another place.
fn plan(link: Option<&Path>, wal_dir: Option<&Path>, now: DateTime<Utc>) -> Move {
    let ours =
        |link: &Path| link.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PREFIX));
    match (link, wal_dir) {
        (Some(link), Some(wal_dir)) if link.starts_with(wal_dir) => Move::Stay,
        (_, Some(wal_dir)) => Move::Out(fresh(wal_dir, now)),
        (Some(link), None) if ours(link) => Move::Home,
        (_, None) => Move::Stay,
    }
}

/// Finishes or undoes a move that was interrupted: without `pg_wal` an instance would look incomplete.
///
/// The names tell how far it was: `pg_wal.new` alone is, or leads to, a copy that may be incomplete; `pg_wal.old` without
/// `pg_wal` is the original; `pg_wal.old` beside `pg_wal` has been replaced by a complete and durable copy.
///
/// # Errors
/// The file system refuses.
pub(super) fn recover(pgdata: &Path) -> Result<()> {
    let Names { pg_wal, new, old } = Names::of(pgdata);
    let exists = |path: &Path| std::fs::symlink_metadata(path).is_ok();
    if exists(&old) {
        if exists(&pg_wal) {
            remove(&old)?;
        } else {
            io(std::fs::rename(&old, &pg_wal), "put back", &old)?;
        }
    }
    // Never the last copy: only what was being made beside the original.
    if exists(&new) && exists(&pg_wal) { remove(&new) } else { Ok(()) }
}

struct Names {
    pg_wal: PathBuf,
    new: PathBuf,
    old: PathBuf,
}

impl Names {
    fn of(pgdata: &Path) -> Self {
        Names { pg_wal: pgdata.join("pg_wal"), new: pgdata.join("pg_wal.new"), old: pgdata.join("pg_wal.old") }
    }
}

/// Moves the WAL of an instance that does not run to where the flag says. The old place is emptied last, so that at any
/// time one complete WAL is there.
///
/// # Errors
/// A file can't be copied; the WAL then stays where it was.
pub(super) fn settle(pgdata: &Path, wal_dir: Option<&Path>, now: DateTime<Utc>) -> Result<()> {
    if process::find(pgdata).is_some() {
        return Ok(());
    }
    recover(pgdata)?;
    let pg_wal = Names::of(pgdata).pg_wal;
    let link = std::fs::read_link(&pg_wal).ok();
    let target = match plan(link.as_deref(), wal_dir, now) {
        Move::Stay => return Ok(()),
        _ if !pg_wal.is_dir() => return Ok(()),
        Move::Out(target) => Some(target),
        Move::Home => None,
    };
    info!(from = %link.as_deref().unwrap_or(&pg_wal).display(), to = ?target, "moving the WAL");
    let result = relocate(pgdata, target.as_deref());
    if result.is_err() {
        // The same that a keeper does which finds this after it was killed.
        recover(pgdata)?;
    }
    result
}

/// Copies the WAL to `target`, or into the data directory, and puts the copy in place.
fn relocate(pgdata: &Path, target: Option<&Path>) -> Result<()> {
    let Names { pg_wal, new, old } = Names::of(pgdata);
    if let Some(target) = target {
        // The link comes first: whoever finds it after a crash knows what is to be removed.
        io(symlink(target, &new), "link", &new)?;
        sync_dir(pgdata)?;
    }
    copy(&pg_wal, target.unwrap_or(&new))?;
    io(std::fs::rename(&pg_wal, &old), "rename", &pg_wal)?;
    io(std::fs::rename(&new, &pg_wal), "put in place", &new)?;
    sync_dir(pgdata)?;
    remove(&old)
}

fn sync_dir(path: &Path) -> Result<()> {
    io(File::open(path).and_then(|file| file.sync_all()), "sync", path)
}

/// Into a directory that must not exist yet, and durably.
fn copy(from: &Path, to: &Path) -> Result<()> {
    io(DirBuilder::new().mode(0o700).create(to), "create", to)?;
    for entry in io(std::fs::read_dir(from), "list", from)? {
        let entry = io(entry, "list", from)?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy(&source, &target)?;
        } else {
            io(std::fs::copy(&source, &target), "copy", &source)?;
        }
    }
    io(File::open(to).and_then(|file| Ok(syncfs(file)?)), "sync", to)
}

/// Deletes a directory, or a link together with what it leads to if that is ours.
///
/// # Errors
/// The file system refuses.
pub(super) fn remove(path: &Path) -> Result<()> {
    if let Ok(link) = std::fs::read_link(path) {
        if plan(Some(&link), None, DateTime::UNIX_EPOCH) == Move::Home {
            remove(&link)?;
        }
        return process::remove_file(path);
    }
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => io(other, "delete", path),
    }
}

/// Deletes the WAL of an instance that is about to be deleted, if it is elsewhere and ours.
pub(super) fn remove_of(pgdata: &Path) {
    let pg_wal = pgdata.join("pg_wal");
    if std::fs::read_link(&pg_wal).is_ok()
        && let Err(error) = remove(&pg_wal)
    {
        warn!(%error, "the WAL of a deleted instance stays");
    }
}

/// Checks at the start that the directory can be used.
pub(super) fn check(wal_dir: &Path) -> Result<()> {
    make_private_dir(wal_dir)?;
    let probe = wal_dir.join(".probe");
    write_file(&probe, b"")?;
    process::remove_file(&probe)?;
    match wal_dir.is_absolute() {
        true => Ok(()),
        false => Err(KeeperError::Other(format!("--wal-dir {} is not an absolute path", wal_dir.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(root: &Path) -> PathBuf {
        let pgdata = root.join("postgres");
        std::fs::create_dir_all(pgdata.join("pg_wal/archive_status")).unwrap();
        std::fs::write(pgdata.join("pg_wal/000000010000000000000001"), "wal").unwrap();
        std::fs::write(pgdata.join("pg_wal/archive_status/x.ready"), "").unwrap();
        pgdata
    }

    fn is_complete(pgdata: &Path) -> bool {
        let read = std::fs::read_to_string(pgdata.join("pg_wal/000000010000000000000001"));
        read.is_ok_and(|text| text == "wal") && pgdata.join("pg_wal/archive_status/x.ready").is_file()
    }

    #[test]
    fn wal_goes_out_and_comes_home() {
        let root = tempfile::tempdir().unwrap();
        let (one, two) = (root.path().join("one"), root.path().join("two"));
        for dir in [&one, &two] {
            make_private_dir(dir).unwrap();
        }
        let pgdata = instance(root.path());
        let time = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        let place = || std::fs::read_link(pgdata.join("pg_wal")).ok();
        settle(&pgdata, None, time(0)).unwrap();
        assert!(place().is_none() && is_complete(&pgdata));
        for (seconds, wal_dir) in [(1, &one), (2, &one), (3, &two)] {
            settle(&pgdata, Some(wal_dir), time(seconds)).unwrap();
            assert!(place().unwrap().starts_with(wal_dir) && is_complete(&pgdata));
        }
        assert_eq!(std::fs::read_dir(&one).unwrap().count(), 0, "nothing stays behind");
        settle(&pgdata, None, time(4)).unwrap();
        assert!(place().is_none() && is_complete(&pgdata));
        assert_eq!(std::fs::read_dir(&two).unwrap().count(), 0);
        settle(&pgdata, Some(&one), time(5)).unwrap();
        assert!(place().unwrap().starts_with(&one) && is_complete(&pgdata));
        remove_of(&pgdata);
        assert_eq!(std::fs::read_dir(&one).unwrap().count(), 0, "goes with its instance");
    }

    #[test]
    fn a_move_that_was_interrupted_anywhere_loses_nothing() {
        for out in [true, false] {
            for stage in 0..5 {
                let root = tempfile::tempdir().unwrap();
                let (from, to) = (root.path().join("from"), root.path().join("to"));
                make_private_dir(&from).unwrap();
                make_private_dir(&to).unwrap();
                let pgdata = instance(root.path());
                settle(&pgdata, Some(&from), DateTime::UNIX_EPOCH).unwrap();
                let Names { pg_wal, new, old } = Names::of(&pgdata);
                let target = if out { fresh(&to, DateTime::UNIX_EPOCH) } else { new.clone() };
                if out {
                    symlink(&target, &new).unwrap();
                }
                if stage == 1 {
                    // Not complete.
                    std::fs::create_dir(&target).unwrap();
                    std::fs::write(target.join("000000010000000000000001"), "w").unwrap();
                }
                if stage > 1 {
                    copy(&pg_wal, &target).unwrap();
                }
                if stage > 2 {
                    std::fs::rename(&pg_wal, &old).unwrap();
                }
                if stage > 3 {
                    std::fs::rename(&new, &pg_wal).unwrap();
                }
                recover(&pgdata).unwrap();
                assert!(is_complete(&pgdata), "out {out}, stage {stage}");
                assert!(
                    !new.exists()
                        && std::fs::symlink_metadata(&new).is_err()
                        && std::fs::symlink_metadata(&old).is_err()
                );
                let left = |dir: &Path| std::fs::read_dir(dir).unwrap().count();
                assert_eq!(
                    (left(&from), left(&to)),
                    match (stage, out) {
                        (4, true) => (0, 1),
                        (4, false) => (0, 0),
                        _ => (1, 0),
                    },
                    "out {out}, stage {stage}"
                );
                settle(&pgdata, Some(&to), DateTime::UNIX_EPOCH).unwrap();
                assert!(is_complete(&pgdata));
            }
        }
    }

    #[test]
    fn links_of_others_stay() {
        let root = tempfile::tempdir().unwrap();
        let (pgdata, theirs) = (instance(root.path()), root.path().join("theirs"));
        std::fs::rename(pgdata.join("pg_wal"), &theirs).unwrap();
        symlink(&theirs, pgdata.join("pg_wal")).unwrap();
        settle(&pgdata, None, DateTime::UNIX_EPOCH).unwrap();
        assert_eq!(std::fs::read_link(pgdata.join("pg_wal")).unwrap(), theirs);
        settle(&pgdata, Some(&theirs), DateTime::UNIX_EPOCH).unwrap();
        assert!(is_complete(&pgdata), "already there");
        remove_of(&pgdata);
        assert!(theirs.join("000000010000000000000001").exists());
        // A copy that fails leaves everything as it was.
        let (pgdata, file) = (instance(&root.path().join("b")), root.path().join("file"));
        std::fs::write(&file, "").unwrap();
        assert!(settle(&pgdata, Some(&file), DateTime::UNIX_EPOCH).is_err());
        assert!(is_complete(&pgdata));
    }
}
