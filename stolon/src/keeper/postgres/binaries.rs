//! PostgreSQL's programs and their version.

use crate::keeper::error::{KeeperError, Result};
use model::stolon::PostgresBinaryVersion;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use tokio::process::Command;

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// The given directory; else the first one in `PATH` that has a `postgres`; else Debian's newest version,
    /// which is not in `PATH`.
    ///
    /// # Errors
    /// There is no `postgres`.
    pub fn find(given: Option<&Path>) -> Result<Self> {
        let has = |dir: &PathBuf| dir.join("postgres").is_file();
        let dir = match given {
            Some(dir) => Some(dir.to_owned()).filter(has),
            None => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                std::env::split_paths(&path).find(has).or_else(|| newest_of_debian().filter(has))
            }
        };
        let place = given.map_or("PATH".to_owned(), |dir| dir.display().to_string());
        dir.map(|dir| Binaries { dir })
            .ok_or_else(|| KeeperError::Other(format!("there is no postgres in {place}; set --pg-bin-path")))
    }

    /// A program by name, with a predictable language and without variables that would redirect libpq.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.dir.join(name));
        command.env("LC_MESSAGES", "C").stdin(Stdio::null());
        // The programs call each other, and a restore_command may name one of them.
        let others = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(self.dir.clone()).chain(std::env::split_paths(&others));
        if let Ok(path) = std::env::join_paths(path) {
            command.env("PATH", path);
        }
        for variable in ["PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGDATA", "PGSERVICE", "PGOPTIONS", "PGAPPNAME"] {
            command.env_remove(variable);
        }
        command
    }

    /// The version of `postgres`.
    ///
    /// # Errors
    /// The program does not run or says something unexpected.
    pub async fn version(&self) -> Result<PostgresBinaryVersion> {
        let output = self.command("postgres").arg("-V").output().await;
        let output = output.map_err(|source| KeeperError::Io { what: "run postgres -V".into(), source })?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        parse_version(&text)
            .ok_or_else(|| KeeperError::Other(format!("postgres -V printed \"{}\", not a version", text.trim())))
    }
}

fn newest_of_debian() -> Option<PathBuf> {
    let number = |dir: &Path| dir.file_name()?.to_str()?.parse::<u32>().ok();
    let found = std::fs::read_dir("/usr/lib/postgresql").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    found.filter_map(|dir| Some((number(&dir)?, dir.join("bin")))).max().map(|(_, dir)| dir)
}

/// Reads `postgres (PostgreSQL) 15.20 (Debian …)`, also `18beta1` and `19devel`.
fn parse_version(text: &str) -> Option<PostgresBinaryVersion> {
    let version = text.split_whitespace().nth(2)?;
    let digits = |text: &str| text[..text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len())].parse().ok();
    let mut parts = version.splitn(2, '.');
    let major = digits(parts.next()?)?;
    Some(PostgresBinaryVersion { major, minor: parts.next().and_then(digits).unwrap_or(0) })
}

/// Runs a program to its end; it dies if this future is dropped.
///
/// # Errors
/// It can't be run or fails; the error has the last lines that it wrote.
pub async fn run(tool: &'static str, mut command: Command) -> Result<()> {
    let child = command.kill_on_drop(true).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let child = child.map_err(|source| KeeperError::Io { what: format!("run {tool}"), source })?;
    let output = child.wait_with_output().await;
    let output = output.map_err(|source| KeeperError::Io { what: format!("run {tool}"), source })?;
    tracing::debug!(tool, output = %String::from_utf8_lossy(&output.stderr).trim(), "ended");
    if output.status.success() {
        return Ok(());
    }
    Err(KeeperError::Tool { tool, status: describe_status(output.status), tail: tail(&output.stderr) })
}

pub(in crate::keeper) fn describe_status(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown status".to_owned(),
    }
}

/// The last lines of a program's output, in one line.
pub(in crate::keeper) fn tail(output: &[u8]) -> String {
    const LINES: usize = 4;
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let version = |text| parse_version(text).map(|v| (v.major, v.minor));
        assert_eq!(version("postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)\n"), Some((15, 20)));
        assert_eq!(version("postgres (PostgreSQL) 18beta1"), Some((18, 0)));
        assert_eq!(version("postgres (PostgreSQL) 19devel"), Some((19, 0)));
        for broken in ["", "postgres", "a b c", "a b .", "a b -1.2"] {
            assert_eq!(version(broken), None, "{broken}");
        }
    }

    #[test]
    fn only_the_end_of_the_output_is_told() {
        assert_eq!(tail(b"1\n2\n\n3\n4\n5\n"), "2; 3; 4; 5");
        assert_eq!(tail(b"\xff"), "\u{fffd}");
    }
}
