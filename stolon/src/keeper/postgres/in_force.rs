//! When a changed `synchronous_standby_names` makes commits wait.
//!
//! A session shows the new value as soon as it has read the file itself. But no commit waits before the checkpointer has
//! read it too and has said so in shared memory, and a checkpointer may be late. So it gets its own signal, and the names
//! count as in force when that signal was taken and the checkpointer sleeps again: it reads the file in between.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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

/// Signals the checkpointer directly: the postmaster's signal may come to it later than to others.
pub fn ask(pid: i32) -> bool {
    kill(Pid::from_raw(pid), Signal::SIGHUP).is_ok()
}

/// The process took the signal, and sleeps.
pub fn took_signal_and_sleeps(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| is_calm(&status))
}

/// A stopped process (`T`) has its signals pending, and one that was just woken runs (`R`).
fn is_calm(status: &str) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let hup = 1_u64 << (Signal::SIGHUP as u32 - 1);
    let free =
        |name| field(name).and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_some_and(|mask| mask & hup == 0);
    field("State").is_some_and(|state| state.starts_with('S')) && free("SigPnd") && free("ShdPnd")
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
        assert!(!is_calm(""));
    }

    #[test]
    fn resting_places() {
        let backend = |wait: &str| Backend { pid: 2, wait: wait.into() };
        assert!(rests(&backend("CheckpointerMain")) && rests(&backend("CheckpointWriteDelay")));
        assert!(!rests(&backend("")) && !rests(&backend("DataFileSync")) && !rests(&backend("SyncRep")));
    }
}
