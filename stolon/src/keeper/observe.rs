//! What is on this host: files, the postmaster, its role.

use super::plan::{Data, Running};
use super::postgres::control::{self, Control};
use super::postgres::process::PidFile;
use std::path::Path;

/// Directories that every instance has; one without them was not made completely.
const PARTS: [&str; 5] = ["base", "global", "pg_wal", "pg_multixact", "pg_tblspc"];

/// Looks at a data directory. `recovering` is the running server's own word on its role, if it could be asked.
pub fn observe_data(pgdata: &Path, recovering: Option<bool>) -> Data {
    let complete = pgdata.join("PG_VERSION").is_file() && PARTS.iter().all(|part| pgdata.join(part).is_dir());
    let Some(control) = control::read(pgdata).filter(|_| complete) else { return Data::Missing };
    let signal = pgdata.join("standby.signal").exists();
    Data::Present { control, standby: is_standby(recovering, signal, control) }
}

/// A lost signal file must not turn a standby into a second primary, so the control file counts as well.
fn is_standby(recovering: Option<bool>, signal: bool, control: Control) -> bool {
    recovering.unwrap_or(signal || control.state.is_standby())
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
    use super::super::postgres::control::ControlState;
    use super::*;

    #[test]
    fn the_role_is_decided_by_more_than_one_file() {
        let control = |state| Control { system_id: 1, state, timeline: 1, checkpoint: 0 };
        let production = control(ControlState::Production);
        let recovery = control(ControlState::ShutDownInRecovery);
        assert!(!is_standby(None, false, production));
        assert!(is_standby(None, true, production));
        assert!(is_standby(None, false, recovery));
        assert!(!is_standby(Some(false), true, recovery));
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
