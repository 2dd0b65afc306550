//! Programs that fill or change the data directory, and what a killed keeper left of them.
//!
//! A keeper that is killed can't end the programs that it started. One that goes on copying while the next keeper makes the
//! same directory anew would mix two copies. So each of them gets, as its standard input, a file that is locked: the
//! lock lasts as long as any of them, or of their own children, lives.

use super::error::{KeeperError, Result, io};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgrp};
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tracing::warn;

/// How long killed programs may take to end: they may sit in a slow disk's queue.
const LIMIT: Duration = Duration::from_secs(30);
/// Pause between attempts to take the lock.
const POLL: Duration = Duration::from_millis(20);

/// The lock that programs inherit.
#[derive(Debug)]
pub(super) struct WorkLock {
    file: File,
    path: PathBuf,
}

impl WorkLock {
    /// Takes the lock, after it has ended all programs that an earlier keeper left. The caller holds the directory. Without
    /// `locking` it does neither: then nobody knows whether the programs are not those of a keeper that lives, and the file
    /// system may have no locks.
    ///
    /// # Errors
    /// The file can't be used, or such a program does not end.
    pub(super) fn take(root: &Path, locking: bool) -> Result<Self> {
        let path = root.join(".work.lock");
        let file = OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(&path);
        let lock = WorkLock { file: io(file, "open", &path)?, path };
        if !locking {
            return Ok(lock);
        }
        let deadline = Instant::now() + LIMIT;
        loop {
            match lock.file.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return io(Err(error), "lock", &lock.path),
            }
            let holders = holders(&lock.path);
            end(&holders);
            if Instant::now() > deadline {
                return Err(KeeperError::Other(format!(
                    "programs that an earlier keeper started still work in {} and do not end (processes {holders:?}); \
                     end them and start this keeper again",
                    root.display()
                )));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Standard input for a program that works on the data directory: empty, and it shows that the program lives.
    ///
    /// # Errors
    /// There are too many open files.
    pub(super) fn stdin(&self) -> Result<Stdio> {
        io(self.file.try_clone(), "use", &self.path).map(Stdio::from)
    }
}

/// Processes whose standard input is this file.
fn holders(path: &Path) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| holds(*pid, path)).collect()
}

fn holds(pid: i32, path: &Path) -> bool {
    std::fs::read_link(format!("/proc/{pid}/fd/0")).is_ok_and(|target| target == path)
}

fn end(holders: &[i32]) {
    for pid in holders {
        let process = Pid::from_raw(*pid);
        let group = nix::unistd::getpgid(Some(process)).unwrap_or(process);
        warn!(pid, "ending a program that an earlier keeper left at work");
        // A shell's pipeline has members with other inputs; its group is that of the program only if it leads it.
        let own_group = group != getpgrp() && holders.contains(&group.as_raw());
        // An error means that it has ended by itself.
        let _ = if own_group { killpg(group, Signal::SIGKILL) } else { kill(process, Signal::SIGKILL) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    #[test]
    fn programs_of_an_earlier_keeper_end_before_the_next_one_begins() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let first = WorkLock::take(&root, true).unwrap();
        let mark = root.join("mark");
        // The last member of the pipeline has another standard input.
        let line = format!("sleep 100 | while true; do date > {}; sleep 0.01; done", mark.display());
        // The command itself, which holds the file as well, ends with the block.
        let mut shell = {
            let mut command = Command::new("/bin/sh");
            command.arg("-c").arg(line).stdin(first.stdin().unwrap()).process_group(0).spawn().unwrap()
        };
        while !mark.exists() {
            std::thread::sleep(POLL);
        }
        drop(first);
        WorkLock::take(&root, false).unwrap();
        assert!(shell.try_wait().unwrap().is_none(), "without locks nobody knows whose it is");
        WorkLock::take(&root, true).unwrap();
        assert!(!shell.wait().unwrap().success());
        // Whatever was killed may take a moment to be gone.
        std::thread::sleep(Duration::from_millis(200));
        std::fs::remove_file(&mark).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        assert!(!mark.exists(), "a member of the pipeline lives");
    }

    #[test]
    fn the_input_of_programs_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let lock = WorkLock::take(&dir.path().canonicalize().unwrap(), true).unwrap();
        let output = Command::new("cat").stdin(lock.stdin().unwrap()).output().unwrap();
        assert!(output.status.success() && output.stdout.is_empty());
    }
}
