//! Finding a PostgreSQL that has our extension.

use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Oldest major version that is served.
const OLDEST: u32 = 15;
/// Where Debian puts each major version.
const DEBIAN_DIRS: &str = "/usr/lib/postgresql";

/// The given directory of PostgreSQL's programs, or the newest installed one; checked for version and extension.
///
/// # Errors
/// None found, too old, or without the extension: each with what to do.
pub(crate) fn find(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let candidates = match given {
        Some(dir) => vec![std::path::absolute(dir)?],
        None => installed(),
    };
    let mut last = None;
    for dir in candidates {
        match check(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| {
        anyhow::anyhow!(
            "no PostgreSQL is installed below {DEBIAN_DIRS}; install it, or name its programs with --pg-bin-path"
        )
    }))
}

/// Debian's versions, newest first.
fn installed() -> Vec<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir(DEBIAN_DIRS)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let major = path.file_name()?.to_str()?.parse().ok()?;
            path.join("bin/postgres").exists().then(|| (major, path.join("bin")))
        })
        .collect();
    versions.sort_by(|a, b| b.cmp(a));
    versions.into_iter().map(|(_, path)| path).collect()
}

fn check(dir: &Path) -> anyhow::Result<()> {
    for program in ["postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_ctl"] {
        if !dir.join(program).exists() {
            bail!("{} has no {program}; it is not a directory of PostgreSQL's server programs", dir.display());
        }
    }
    let version = output(&dir.join("postgres"), "-V")?;
    let major = parse_major(&version).with_context(|| format!("\"{version}\" is not a version of PostgreSQL"))?;
    if major < OLDEST {
        bail!("{} is PostgreSQL {major}; {OLDEST} or newer is needed", dir.display());
    }
    let share = output(&dir.join("pg_config"), "--sharedir")?;
    if !Path::new(&share).join("extension/shardman.control").exists() {
        bail!("PostgreSQL {major} in {} has no extension shardman; run `make install-extension`", dir.display());
    }
    Ok(())
}

fn output(program: &Path, argument: &str) -> anyhow::Result<String> {
    let output = Command::new(program).arg(argument).output().with_context(|| format!("run {}", program.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// `postgres (PostgreSQL) 15.4 (Debian …)`, also `17beta1` and `18devel`.
fn parse_major(text: &str) -> Option<u32> {
    let version = text.strip_prefix("postgres (PostgreSQL) ")?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_major("postgres (PostgreSQL) 15.4 (Debian 15.4-1)"), Some(15));
        assert_eq!(parse_major("postgres (PostgreSQL) 18devel"), Some(18));
        for broken in ["", "postgres", "postgres (PostgreSQL) x", "postgres (PostgreSQL) 99999999999"] {
            assert_eq!(parse_major(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_wrong_directory_is_explained() {
        let error = find(Some(Path::new("/nonexistent"))).unwrap_err().to_string();
        assert!(error.contains("/nonexistent has no postgres"), "{error}");
    }
}
