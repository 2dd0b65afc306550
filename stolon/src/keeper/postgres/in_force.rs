//! When a changed `synchronous_standby_names` makes commits wait.
//!
//! A session shows the new value as soon as it has read the file itself. But no commit waits before the checkpointer has
//! read it too and has said so in shared memory, and a checkpointer may be late. So it gets its own signal, and the names
//! count as in force when that signal was taken and the checkpointer sleeps again: it reads the file in between.
//!
//! Nor is that all: who lets a commit return is the sender that gets a standby's confirmation, by the names that it has read
//! itself. One that still knows the shorter list would let a commit pass that the new member lacks. So the senders are
//! asked as well, and what they release from then on has everybody's word.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;

/// A process of PostgreSQL as its own statistics show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its process.
    pub pid: i32,
    /// What it waits for; empty if it works.
    pub wait: String,
}

/// Where the checkpointer sleeps without owing a look at the configuration.
const RESTS: [&str; 2] = ["CheckpointerMain", "CheckpointWriteDelay"];

/// The checkpointer sleeps in its main loop, or between the writes of a slow checkpoint.
pub fn rests(checkpointer: &Backend) -> bool {
    RESTS.contains(&checkpointer.wait.as_str())
}

/// It sleeps between the writes of a slow checkpoint.
pub fn is_writing(checkpointer: &Backend) -> bool {
    checkpointer.wait == RESTS[1]
}

/// Where a sender waits at the end of each round: the next thing it does is to look whether there is a new configuration,
/// before it takes any confirmation.
const SENDER_WAITS: &str = "WalSenderMain";

/// Senders to standbys that were asked to read the files, and how far each of them is.
#[derive(Debug, Default)]
pub struct Senders {
    asked: BTreeSet<i32>,
    took: BTreeSet<i32>,
    read: BTreeSet<i32>,
}

impl Senders {
    /// Takes in what was just seen of all senders, asks those that were not asked yet, and says whether all have read the
    /// files, or will before they release another commit. `took` tells whether a process has taken its signal.
    pub fn update(&mut self, senders: &[Backend], ask: impl Fn(i32) -> bool, took: impl Fn(i32) -> bool) -> bool {
        for Backend { pid, wait } in senders {
            // What was seen is newer than the signal.
            if self.took.contains(pid) && wait == SENDER_WAITS {
                self.read.insert(*pid);
            }
            if !self.asked.contains(pid) && ask(*pid) {
                self.asked.insert(*pid);
            }
            if self.asked.contains(pid) && took(*pid) {
                self.took.insert(*pid);
            }
        }
        senders.iter().all(|sender| self.read.contains(&sender.pid))
    }
}

/// Signals a process directly: the postmaster's signal may come to it later than to others.
pub fn ask(pid: i32) -> bool {
    kill(Pid::from_raw(pid), Signal::SIGHUP).is_ok()
}

/// The process took the signal, and sleeps.
pub fn took_signal_and_sleeps(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| is_calm(&status))
}

/// The process took the signal, whatever it does.
pub fn took_signal(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| has_taken(&status))
}

/// A stopped process (`T`) has its signals pending, and one that was just woken runs (`R`).
fn is_calm(status: &str) -> bool {
    field(status, "State").is_some_and(|state| state.starts_with('S')) && has_taken(status)
}

fn has_taken(status: &str) -> bool {
    let hup = 1_u64 << (Signal::SIGHUP as u32 - 1);
    let mask = |name| field(status, name).and_then(|mask| u64::from_str_radix(mask, 16).ok());
    ["SigPnd", "ShdPnd"].into_iter().all(|name| mask(name).is_some_and(|mask| mask & hup == 0))
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sleeping_process_without_the_signal_is_calm() {
        let status = |state: &str, own: &str, shared: &str| {
            format!("Name:\tpostgres\nState:\t{state}\nSigQ:\t0/1\nSigPnd:\t{own}\nShdPnd:\t{shared}\nSigBlk:\t00\n")
        };
        let none = "0000000000000000";
        assert!(is_calm(&status("S (sleeping)", none, none)));
        assert!(is_calm(&status("S (sleeping)", none, "0000000000000002")), "another signal");
        for (state, own, shared) in [
            ("T (stopped)", none, none),
            ("R (running)", none, none),
            ("D (disk sleep)", none, none),
            ("S (sleeping)", "0000000000000001", none),
            ("S (sleeping)", none, "0000000000000003"),
            ("S (sleeping)", none, "x"),
        ] {
            assert!(!is_calm(&status(state, own, shared)), "{state} {own} {shared}");
        }
        assert!(!is_calm("") && !has_taken(""));
        assert!(has_taken(&status("R (running)", none, none)) && !has_taken(&status("R (running)", none, "1")));
    }

    #[test]
    fn a_sender_has_read_when_it_waits_after_it_took_its_signal() {
        let backend = |pid, wait: &str| Backend { pid, wait: wait.into() };
        let mut senders = Senders::default();
        assert!(Senders::default().update(&[], |_| true, |_| true), "nobody to wait for");
        let (b, c) = (backend(2, SENDER_WAITS), backend(3, ""));
        let both = [b.clone(), c];
        // That it waits was seen before it was asked.
        assert!(!senders.update(&both, |_| true, |pid| pid == 2));
        assert!(!senders.update(&both, |_| panic!("once is enough"), |pid| pid == 2));
        let both = [b.clone(), backend(3, SENDER_WAITS)];
        assert!(!senders.update(&both, |_| false, |_| true), "the signal may be newer than the look");
        assert!(senders.update(&both, |_| false, |_| true));
        // One that began before it was asked is waited for, one that ended is not.
        assert!(!senders.update(&[b.clone(), backend(4, SENDER_WAITS)], |_| true, |_| true));
        assert!(senders.update(&[b], |_| true, |_| true));
    }

    #[test]
    fn resting_places() {
        let backend = |wait: &str| Backend { pid: 2, wait: wait.into() };
        assert!(rests(&backend("CheckpointerMain")) && rests(&backend("CheckpointWriteDelay")));
        assert!(!rests(&backend("")) && !rests(&backend("DataFileSync")) && !rests(&backend("SyncRep")));
    }
}
