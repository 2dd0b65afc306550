//! What is on this host: files, the postmaster, its role.

use super::plan::{Data, RoleFiles, Running};
use super::postgres::control::{self, Control, ControlState};
use super::postgres::process::PidFile;
use std::path::Path;

/// Directories that every instance has; one without them was not made completely.
const PARTS: [&str; 5] = ["base", "global", "pg_wal", "pg_multixact", "pg_tblspc"];

/// Tells PostgreSQL to start as a standby.
pub const STANDBY_SIGNAL: &str = "standby.signal";
/// Tells PostgreSQL to restore from an archive and then to become a primary.
pub const RECOVERY_SIGNAL: &str = "recovery.signal";

/// Looks at a data directory. `recovering` is the running server's own word on its role, if it could be asked.
pub fn observe_data(pgdata: &Path, recovering: Option<bool>) -> Data {
    let complete = pgdata.join("PG_VERSION").is_file() && PARTS.iter().all(|part| pgdata.join(part).is_dir());
    let Some(control) = control::read(pgdata).filter(|_| complete) else { return Data::Missing };
    let files = observe_files(pgdata);
    Data::Present { control, standby: recovering.unwrap_or_else(|| is_standby(files, control)), files }
}

fn observe_files(pgdata: &Path) -> RoleFiles {
    let exists = |name: &str| pgdata.join(name).exists();
    RoleFiles {
        standby: exists(STANDBY_SIGNAL),
        recovery: exists(RECOVERY_SIGNAL),
        backup_label: exists("backup_label"),
    }
}

/// The control file decides: a lost signal file must not turn a standby into a second primary, nor a left-over one a
/// primary into a standby. A base backup that never ran has the control file of the server it was taken from, so
/// there the signal file is all that there is.
fn is_standby(files: RoleFiles, control: Control) -> bool {
    control.state.is_standby() || (files.standby && (files.backup_label || control.state == ControlState::Startup))
}

/// How the running postmaster relates to the wanted place.
pub fn observe_running(file: &PidFile, port: u16, socket_dir: &Path) -> Running {
    let other_port = file.port.is_some_and(|actual| actual != port);
    let other_socket = file.socket_dir.as_deref().is_some_and(|actual| Path::new(actual) != socket_dir);
    Running { ready: file.ready, same_place: !other_port && !other_socket }
}

/// A text file; `None` if it is missing or unreadable.
pub fn read_text(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_role_is_decided_by_more_than_one_file() {
        use ControlState::{
            ArchiveRecovery, CrashRecovery, Production, ShutDown, ShutDownInRecovery, ShuttingDown, Startup,
        };
        let standby = |state, standby, recovery, backup_label| {
            let files = RoleFiles { standby, recovery, backup_label };
            is_standby(files, Control { system_id: 1, state, timeline: 1, checkpoint: 0 })
        };
        for recovery in [false, true] {
            for state in [Production, ShutDown, ShuttingDown, CrashRecovery] {
                assert!(!standby(state, false, recovery, false) && !standby(state, false, recovery, true), "{state:?}");
                assert!(!standby(state, true, recovery, false), "a left-over file, {state:?}");
                assert!(standby(state, true, recovery, true), "a base backup, {state:?}");
            }
            for state in [ArchiveRecovery, ShutDownInRecovery] {
                for (signal, label) in [(false, false), (true, false), (false, true), (true, true)] {
                    assert!(standby(state, signal, recovery, label), "{state:?}");
                }
            }
            assert!(standby(Startup, true, recovery, false) && !standby(Startup, false, recovery, false));
        }
    }

    #[test]
    fn an_incomplete_directory_is_no_instance() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(observe_data(dir.path(), None), Data::Missing);
        std::fs::write(dir.path().join("PG_VERSION"), "15\n").unwrap();
        assert_eq!(observe_data(dir.path(), None), Data::Missing);
        assert_eq!(observe_data(Path::new("/nonexistent"), None), Data::Missing);
    }

    #[test]
    fn another_port_or_socket_is_another_place() {
        let file = |port, socket: &str| PidFile { pid: 2, port, socket_dir: Some(socket.into()), ready: true };
        let same = |file: &PidFile| observe_running(file, 5432, Path::new("/tmp/")).same_place;
        assert!(same(&file(Some(5432), "/tmp")) && same(&file(None, "/tmp")));
        assert!(!same(&file(Some(5433), "/tmp")) && !same(&file(Some(5432), "/run")));
    }
}
