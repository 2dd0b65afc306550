//! Processes of this machine, as `/proc` shows them.

use serde::{Deserialize, Serialize};
use std::path::Path;
use std::{fs, io};

/// A process, told from a later one with the same number by its start time, and from one of an earlier life of the
/// machine by the boot's id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ProcessId {
    /// Its number.
    pub(super) pid: i32,
    /// Clock ticks from boot to its start.
    pub(super) start_time: u64,
    /// The kernel's random id of this boot.
    pub(super) boot_id: String,
}

impl ProcessId {
    /// The living process of that number.
    pub(super) fn of(pid: i32) -> Option<ProcessId> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let start_time = parse_stat(&stat)?;
        Some(ProcessId { pid, start_time, boot_id: boot_id() })
    }

    /// Whether it still lives. Where that can't be found out, for want of descriptors for example, it does: a second
    /// server over the same data would be worse than one that is missing.
    pub(super) fn lives(&self) -> bool {
        let stat = match fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            Ok(stat) => stat,
            Err(error) => return !is_gone(&error),
        };
        let boot_id = boot_id();
        parse_stat(&stat) == Some(self.start_time) && (boot_id == self.boot_id || boot_id.is_empty())
    }
}

/// Without a process there is no file, and none that can be read once it is being removed.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
}

/// Empty when it can't be read.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The start time of a process that is not dead. The program's name in parentheses may contain anything.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    // Zombies and the dead only wait to be collected.
    if matches!(fields.next()?, "Z" | "X" | "x") {
        return None;
    }
    // Field 22 of the line; the state was field 3.
    fields.nth(18)?.parse().ok()
}

/// Finds a process by a variable that it was started with and its program: a bowl that was killed between starting a
/// daemon and recording it has left only this trace. Children of a daemon bear the same variable, but run another
/// program. Gives the value of `report` too.
///
/// # Errors
/// Processes could not be looked at, so there may be one.
pub(super) fn find(variable: &str, program: &Path, report: &str) -> io::Result<Option<(ProcessId, String)>> {
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Some(environment) = items_with(&entry.path().join("environ"), variable.as_bytes())? else { continue };
        if items_with(&entry.path().join("cmdline"), program.as_os_str().as_encoded_bytes())?.is_none() {
            continue;
        }
        let prefix = format!("{report}=");
        let value = environment.split(|byte| *byte == 0).find_map(|item| item.strip_prefix(prefix.as_bytes()));
        if let Some(process) = ProcessId::of(pid) {
            return Ok(Some((process, String::from_utf8_lossy(value.unwrap_or_default()).into_owned())));
        }
    }
    Ok(None)
}

/// A file of items that end with zero bytes, if `wanted` is among them. Processes of other users are not ours.
fn items_with(path: &Path, wanted: &[u8]) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) if bytes.split(|byte| *byte == 0).any(|item| item == wanted) => Ok(Some(bytes)),
        Ok(_) => Ok(None),
        Err(error) if is_gone(&error) || error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn start_times() {
        let line = |state: &str| format!("7 (a) b (c) {state} 1 7 7 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 4242 99 0");
        assert_eq!(parse_stat(&line("S")), Some(4242));
        assert_eq!(parse_stat(&line("Z")), None);
        for broken in ["", ")", "7 (a)", "7 (a) S 1", "7 a S"] {
            assert_eq!(parse_stat(broken), None);
        }
    }

    #[test]
    fn we_live() {
        let me = ProcessId::of(std::process::id().cast_signed()).unwrap();
        assert!(me.lives());
        assert!(!ProcessId { start_time: me.start_time + 1, ..me.clone() }.lives());
        assert!(!ProcessId { boot_id: "another".into(), ..me }.lives());
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = parse_stat(&text);
        }
    }
}
