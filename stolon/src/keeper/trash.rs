//! Where data goes instead of being deleted: `trash/<UTC time>-<reason>` in the keeper's directory.
//!
//! Only what this keeper itself began to make and never finished is deleted outright. What an operator has to fear
//! losing is moved, which costs nothing; but as each resync moves a whole copy, only the last ones of those are kept, and
//! only while there is room.

use super::datadir::make_private_dir;
use super::error::{KeeperError, Result, io};
use super::postgres::{control, process};
use super::waldir;
use chrono::{DateTime, Utc};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use tracing::warn;

/// Entries with this reason are copies that the cluster had decided to replace, so old ones may go.
pub(super) const RESYNC: &str = "resync";
/// What is being deleted begins with this.
const DELETING: &str = ".deleting-";
/// How many of them stay: the copy that was replaced last, and one more for a mistake that is noticed late.
pub(super) const KEEP_RESYNC: usize = 2;

/// Moves a data directory to trash; a missing or empty one stays as it is.
///
/// # Errors
/// It is a link or a mount point, a server runs in it, or it can't be renamed.
pub(super) fn move_away(root: &Path, directory: &Path, reason: &str, now: DateTime<Utc>) -> Result<()> {
    if !is_ours_and_idle(directory)? || is_empty(directory)? {
        return Ok(());
    }
    if is_mount_point(directory)? {
        return Err(KeeperError::Other(format!(
            "{} is a mount point, so its data can't be moved to trash; empty it by hand, or mount the volume at {}",
            directory.display(),
            root.display()
        )));
    }
    let trash = root.join("trash");
    make_private_dir(&trash)?;
    let target = free_name(&trash, reason, now);
    warn!(from = %directory.display(), to = %target.display(), "moving the data directory to trash");
    io(std::fs::rename(directory, &target), "move to trash", directory)?;
    for changed in [&trash, root] {
        io(std::fs::File::open(changed).and_then(|file| file.sync_all()), "sync", changed)?;
    }
    Ok(())
}

/// Deletes what this keeper began to make and never finished; never through a link, never under a running server.
///
/// # Errors
/// As [`move_away`].
pub(super) fn delete_garbage(directory: &Path) -> Result<()> {
    if !is_ours_and_idle(directory)? {
        return Ok(());
    }
    warn!(directory = %directory.display(), "deleting what an interrupted initialisation left");
    waldir::remove_of(directory);
    // A mount point can be emptied but not removed.
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => Ok(()),
        other => io(other, "delete", directory),
    }
}

/// Deletes a directory of the keeper's own that nobody needs.
///
/// # Errors
/// It can't be deleted.
pub(super) fn delete_scratch(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => io(other, "delete", directory),
    }
}

/// Deletes the oldest replaced copies until no more than `keep` are left.
///
/// # Errors
/// One can't be deleted.
pub(super) fn prune(root: &Path, keep: usize) -> Result<()> {
    finish_deleting(root);
    let copies = replaced_copies(root);
    copies[..copies.len().saturating_sub(keep)].iter().try_for_each(|old| delete_copy(old))
}

/// Deletes replaced copies of a system, the oldest first, while room is `wanted`. The caller knows an instance of that
/// system that is complete. What belongs to another system, or to none that can be told, may be the last copy and stays.
///
/// # Errors
/// One can't be deleted.
pub(super) fn make_room(root: &Path, system_id: u64, wanted: impl Fn() -> bool) -> Result<()> {
    finish_deleting(root);
    for copy in replaced_copies(root) {
        if !wanted() {
            break;
        }
        if control::read(&copy).is_some_and(|control| control.system_id == system_id) {
            delete_copy(&copy)?;
        }
    }
    Ok(())
}

/// Under another name: half of a copy could no longer be told from anything else.
fn delete_copy(copy: &Path) -> Result<()> {
    warn!(directory = %copy.display(), "deleting an old replaced copy from trash");
    let name = copy.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let doomed = copy.with_file_name(format!("{DELETING}{name}"));
    io(std::fs::rename(copy, &doomed), "rename", copy)?;
    waldir::remove_of(&doomed);
    delete_scratch(&doomed)
}

/// Goes on where a keeper was killed in the middle.
fn finish_deleting(root: &Path) {
    let entries = std::fs::read_dir(root.join("trash")).into_iter().flatten().flatten();
    for doomed in entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(DELETING))) {
        waldir::remove_of(&doomed.path());
        if let Err(error) = delete_scratch(&doomed.path()) {
            warn!(%error, "a part of an old replaced copy stays in trash");
        }
    }
}

/// Oldest first.
fn replaced_copies(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root.join("trash")).into_iter().flatten().flatten();
    let mut copies: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_replaced_copy(path)).collect();
    // The time in the name sorts.
    copies.sort();
    copies
}

fn is_replaced_copy(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (time, rest) = name.split_once('-').unwrap_or_default();
    time.ends_with('Z') && (rest == RESYNC || rest.starts_with("resync."))
}

fn free_name(trash: &Path, reason: &str, now: DateTime<Utc>) -> PathBuf {
    let stem = format!("{}-{reason}", now.format("%Y%m%dT%H%M%S%.3fZ"));
    let numbered = (1..).map(|number| trash.join(format!("{stem}.{number}")));
    let mut names = std::iter::once(trash.join(&stem)).chain(numbered);
    names.find(|path| path.symlink_metadata().is_err()).unwrap_or_else(|| trash.join(stem))
}

/// `false` if there is nothing; an error if touching it would touch something else.
fn is_ours_and_idle(directory: &Path) -> Result<bool> {
    let metadata = match std::fs::symlink_metadata(directory) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return io(Err(error), "look at", directory),
    };
    if metadata.is_symlink() {
        return Err(KeeperError::Other(format!(
            "{} is a symbolic link, so its data is left alone; make it a directory or mount the volume there",
            directory.display()
        )));
    }
    if process::find(directory).is_some() {
        return Err(KeeperError::Other(format!(
            "postgres runs in {}, so its data is left alone; stop it",
            directory.display()
        )));
    }
    Ok(true)
}

fn is_empty(directory: &Path) -> Result<bool> {
    Ok(io(std::fs::read_dir(directory), "list", directory)?.next().is_none())
}

/// It is the root of another file system than its parent's.
pub(super) fn is_mount_point(directory: &Path) -> Result<bool> {
    let device = |path: &Path| io(std::fs::metadata(path), "look at", path).map(|metadata| metadata.dev());
    if !directory.exists() {
        return Ok(false);
    }
    Ok(device(directory)? != device(directory.parent().unwrap_or(directory))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(root: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(root.join("trash")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn data_is_moved_and_only_replaced_copies_are_ever_pruned() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("postgres");
        let time = |second: i64| DateTime::from_timestamp(1_700_000_000 + second, 0).unwrap();
        let fill = || {
            std::fs::create_dir_all(&data).unwrap();
            std::fs::write(data.join("PG_VERSION"), "15\n").unwrap();
        };
        move_away(root.path(), &data, RESYNC, time(0)).unwrap();
        std::fs::create_dir(&data).unwrap();
        move_away(root.path(), &data, RESYNC, time(0)).unwrap();
        assert!(data.exists() && names(root.path()).is_empty(), "nothing there is nothing to keep");
        for (second, reason) in [(0, "initdb"), (1, RESYNC), (1, RESYNC), (2, RESYNC)] {
            fill();
            move_away(root.path(), &data, reason, time(second)).unwrap();
            assert!(!data.exists());
        }
        std::fs::create_dir(root.path().join("trash/mine-resync")).unwrap();
        prune(root.path(), KEEP_RESYNC).unwrap();
        let left = [
            "20231114T221320.000Z-initdb",
            "20231114T221321.000Z-resync.1",
            "20231114T221322.000Z-resync",
            "mine-resync",
        ];
        assert_eq!(names(root.path()), left);
        assert!(root.path().join("trash").join(left[2]).join("PG_VERSION").exists());
    }

    #[test]
    fn links_are_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let (elsewhere, data) = (root.path().join("elsewhere"), root.path().join("postgres"));
        std::fs::create_dir(&elsewhere).unwrap();
        std::fs::write(elsewhere.join("x"), "").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &data).unwrap();
        assert!(move_away(root.path(), &data, "x", Utc::now()).is_err() && delete_garbage(&data).is_err());
        assert!(elsewhere.join("x").exists());
    }

    #[test]
    fn room_is_made_by_replaced_copies_of_the_same_system_only() {
        let root = tempfile::tempdir().unwrap();
        let copy = |name: &str, system_id: Option<u64>| {
            let copy = root.path().join("trash").join(name);
            std::fs::create_dir_all(copy.join("global")).unwrap();
            let mut control = vec![0; 8192];
            control[..8].copy_from_slice(&system_id.unwrap_or_default().to_ne_bytes());
            control[8..12].copy_from_slice(&1300_u32.to_ne_bytes());
            control[16] = 1;
            control[48] = 1;
            if system_id.is_some() {
                std::fs::write(copy.join("global/pg_control"), control).unwrap();
            }
        };
        let all = ["20260101T000000.000Z-resync", "20260102T000000.000Z-resync", "20260103T000000.000Z-resync"];
        for (name, system_id) in [(all[0], Some(7)), (all[1], Some(8)), (all[2], Some(7))] {
            copy(name, system_id);
        }
        copy("20260101T000000.000Z-init", Some(7));
        copy("20260104T000000.000Z-resync", None);
        copy(".deleting-20250101T000000.000Z-resync", None);
        make_room(root.path(), 7, || false).unwrap();
        assert_eq!(names(root.path()).len(), 5, "what was begun is finished, and no more is needed");
        let calls = std::cell::Cell::new(0);
        let once = || calls.replace(calls.get() + 1) == 0;
        make_room(root.path(), 7, once).unwrap();
        assert!(!names(root.path()).contains(&all[0].to_owned()), "the oldest first");
        make_room(root.path(), 7, || true).unwrap();
        assert_eq!(
            names(root.path()),
            ["20260101T000000.000Z-init", all[1], "20260104T000000.000Z-resync"],
            "another system's and what is no replaced copy stay"
        );
        make_room(&root.path().join("missing"), 7, || true).unwrap();
    }
}
