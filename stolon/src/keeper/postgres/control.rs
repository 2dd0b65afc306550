//! `global/pg_control`, as far as the keeper needs it while the server is down.

use std::path::Path;

/// Facts from the control file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// System identifier.
    pub system_id: u64,
    /// How the server was left.
    pub state: ControlState,
    /// Timeline of the last checkpoint.
    pub timeline: u32,
    /// Position of the last checkpoint.
    pub checkpoint: u64,
}

/// How the server was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlState {
    /// Never ran, or is starting.
    Startup,
    /// A primary, cleanly shut down.
    ShutDown,
    /// A standby, cleanly shut down.
    ShutDownInRecovery,
    /// A primary that was shutting down.
    ShuttingDown,
    /// A primary in crash recovery.
    CrashRecovery,
    /// A standby, running or crashed.
    ArchiveRecovery,
    /// A primary, running or crashed.
    Production,
}

impl Control {
    /// The server was stopped cleanly with its last record at this position, and has been nothing but a standby since.
    pub fn ended_at(self, position: u64) -> bool {
        let standby = self.state.is_standby() || self.state == ControlState::ShutDown;
        standby && self.checkpoint == position
    }
}

impl ControlState {
    /// No recovery is needed before other programs may change the files.
    pub fn is_clean(self) -> bool {
        matches!(self, ControlState::ShutDown | ControlState::ShutDownInRecovery)
    }
    /// The data was written by a standby.
    pub fn is_standby(self) -> bool {
        matches!(self, ControlState::ShutDownInRecovery | ControlState::ArchiveRecovery)
    }
}

/// Reads the control file of a data directory; `None` if it is missing or makes no sense.
pub fn read(pgdata: &Path) -> Option<Control> {
    parse(&std::fs::read(pgdata.join("global/pg_control")).ok()?)
}

/// The layout of these members is the same since PostgreSQL 11 (control version 1100), in the machine's byte order.
fn parse(bytes: &[u8]) -> Option<Control> {
    let number = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    if !(1100..10_000).contains(&number(8)?) {
        return None;
    }
    let state = match number(16)? {
        0 => ControlState::Startup,
        1 => ControlState::ShutDown,
        2 => ControlState::ShutDownInRecovery,
        3 => ControlState::ShuttingDown,
        4 => ControlState::CrashRecovery,
        5 => ControlState::ArchiveRecovery,
        6 => ControlState::Production,
        _ => return None,
    };
    let long = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    Some(Control { system_id: long(0)?, state, timeline: number(48)?, checkpoint: long(32)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clean_end_that_nothing_followed_is_one() {
        let control = |state, checkpoint| Control { system_id: 7, state, timeline: 1, checkpoint };
        for state in [ControlState::ShutDown, ControlState::ShutDownInRecovery, ControlState::ArchiveRecovery] {
            assert!(control(state, 77).ended_at(77) && !control(state, 78).ended_at(77), "{state:?}");
        }
        for state in [ControlState::Production, ControlState::CrashRecovery, ControlState::ShuttingDown] {
            assert!(!control(state, 77).ended_at(77), "{state:?}");
        }
    }
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let mut bytes = vec![0; 8192];
        bytes[..8].copy_from_slice(&7_710_245_038_574_424_763_u64.to_ne_bytes());
        bytes[8..12].copy_from_slice(&1300_u32.to_ne_bytes());
        bytes[16..20].copy_from_slice(&5_u32.to_ne_bytes());
        bytes[32..40].copy_from_slice(&0x300_0028_u64.to_ne_bytes());
        bytes[48..52].copy_from_slice(&3_u32.to_ne_bytes());
        bytes
    }

    #[test]
    fn members_are_found() {
        let control = parse(&sample()).unwrap();
        let wanted = Control {
            system_id: 7_710_245_038_574_424_763,
            state: ControlState::ArchiveRecovery,
            timeline: 3,
            checkpoint: 0x300_0028,
        };
        assert_eq!(control, wanted);
        assert!(control.state.is_standby() && !control.state.is_clean());
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>, cut in 0..60_usize) {
            let _ = parse(&bytes);
            prop_assert!(cut >= 52 || parse(&sample()[..cut]).is_none());
        }
    }
}
