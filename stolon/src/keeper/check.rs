//! Whether PostgreSQL would start with a configuration, found out before it is used.
//!
//! `postgres -C` with a parameter that is computed at the start goes most of the way of a start: it reads the files, checks
//! values against each other, loads libraries and certificates. It refuses a data directory in which a server runs, so it
//! gets a directory of its own that looks like the real one.

use super::datadir::{make_private_dir, write_file};
use super::error::{KeeperError, Result, io};
use super::machine::Machine;
use super::plan::{Files, Refused};
use super::postgres::binaries::Binaries;
use super::postgres::conf;
use super::{observe, trash};
use model::stolon::Problem;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tracing::warn;

/// A check takes less than a tenth of a second; a library that hangs while it is loaded must not hang the keeper.
const LIMIT: Duration = Duration::from_secs(20);
/// Files that the copy of the directory has its own ones of, or must not have.
const NOT_LINKED: [&str; 8] = [
    "PG_VERSION",
    "postgresql.conf",
    "postgresql.auto.conf",
    "postmaster.pid",
    "postmaster.opts",
    "standby.signal",
    "recovery.signal",
    "backup_label",
];

impl Machine {
    /// Lets nothing pass that PostgreSQL would not start with. What stolon itself sets is not checked: a new primary must
    /// not wait for it.
    pub(super) async fn check_files(&mut self, files: &Files) -> Result<()> {
        let current = observe::read_text(&self.dir.pgdata().join("postgresql.conf"));
        let current = current.as_deref().map(conf::users_part).unwrap_or_default();
        if conf::users_part(&files.conf) == current {
            return Ok(());
        }
        match check(&self.binaries, self.dir.root(), &self.dir.pgdata(), &files.conf).await {
            Ok(None) => Ok(()),
            Ok(Some(why)) => Err(self.refuse(current, &why)),
            // The check itself did not work: no reason to refuse anything.
            Err(error) => {
                warn!(%error, "the changed parameters could not be checked");
                Ok(())
            }
        }
    }

    /// As [`Self::check_files`], for a copy that has its source's configuration: gives the one to use.
    pub(super) async fn check_copied(&mut self, copy: &Path, conf: &str) -> String {
        match check(&self.binaries, self.dir.root(), copy, conf).await {
            Ok(Some(why)) => {
                let theirs = observe::read_text(&copy.join("postgresql.conf"));
                let instead = theirs.as_deref().map(conf::users_part).unwrap_or_default();
                let _ = self.refuse(instead.clone(), &why);
                conf::with_users_part(conf, &instead)
            }
            Ok(None) => conf.to_owned(),
            Err(error) => {
                warn!(%error, "the parameters could not be checked");
                conf.to_owned()
            }
        }
    }

    /// From now on these parameters of the specification are left out of the files, in favour of the last good ones.
    fn refuse(&mut self, instead: String, why: &str) -> KeeperError {
        let text = format!("postgres would not start with the new parameters, so the last good ones stay: {why}");
        warn!("{text}");
        self.report(Problem::PARAMETERS_REFUSED, Some(text));
        let parameters = self.watched.borrow().user_parameters.clone();
        self.refused = Some(Refused { parameters, instead });
        KeeperError::NotYet("going on with the last good parameters".into())
    }

    /// The specification has changed: another look is due.
    pub(super) fn forget_refusal(&mut self) {
        let wanted = self.watched.borrow().user_parameters.clone();
        if self.refused.as_ref().is_some_and(|refused| refused.parameters != wanted) {
            self.refused = None;
            self.report(Problem::PARAMETERS_REFUSED, None);
        }
    }

    /// A server that runs proves its configuration good; what it was is kept.
    pub(super) fn keep_good_conf(&self) -> Result<()> {
        let Some(conf) = observe::read_text(&self.dir.pgdata().join("postgresql.conf")) else { return Ok(()) };
        let (good, part) = (self.dir.good_conf(), conf::users_part(&conf));
        if observe::read_text(&good).as_deref() == Some(&part) { Ok(()) } else { write_file(&good, part.as_bytes()) }
    }

    /// PostgreSQL ended while it started: if its parameters have changed since it last ran, they are to blame.
    pub(super) fn blame_parameters(&mut self) {
        let Some(conf) = observe::read_text(&self.dir.pgdata().join("postgresql.conf")) else { return };
        let Some(good) = observe::read_text(&self.dir.good_conf()) else { return };
        if self.refused.is_none() && conf::users_part(&conf) != good {
            let _ = self.refuse(good, "it ended while starting; its own messages say why");
        }
    }
}

/// `None` if PostgreSQL would start; else why not, in the same words each time.
async fn check(binaries: &Binaries, root: &Path, pgdata: &Path, conf: &str) -> Result<Option<String>> {
    let scratch = root.join("postgres.check");
    prepare(&scratch, pgdata, conf)?;
    let mut command = binaries.command("postgres");
    command.arg("-D").arg(&scratch).args(["-C", "shared_memory_size"]);
    command.kill_on_drop(true).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = tokio::time::timeout(LIMIT, command.output()).await;
    let output = output.map_err(|_| KeeperError::Other("postgres -C does not end".into()))?;
    let output = output.map_err(|source| KeeperError::Io { what: "run postgres -C".into(), source })?;
    trash::delete_scratch(&scratch)?;
    let said = String::from_utf8_lossy(&output.stderr).replace(&scratch.display().to_string(), "");
    Ok((!output.status.success()).then(|| messages(&said)))
}

fn prepare(scratch: &Path, pgdata: &Path, conf: &str) -> Result<()> {
    trash::delete_scratch(scratch)?;
    make_private_dir(&scratch.join("global"))?;
    for name in ["PG_VERSION", "global/pg_control"] {
        io(std::fs::copy(pgdata.join(name), scratch.join(name)), "copy", &pgdata.join(name))?;
    }
    // Certificates and the like are named relative to the data directory.
    for entry in io(std::fs::read_dir(pgdata), "list", pgdata)?.flatten() {
        let name = entry.file_name();
        if entry.path().is_file() && !NOT_LINKED.iter().any(|other| *other == name) {
            let link = scratch.join(&name);
            io(std::os::unix::fs::symlink(entry.path(), &link), "link", &link)?;
        }
    }
    write_file(&scratch.join("postgresql.auto.conf"), b"")?;
    write_file(&scratch.join("postgresql.conf"), conf.as_bytes())
}

/// What PostgreSQL complained of, without times and process ids.
fn messages(output: &str) -> String {
    const WORDS: [&str; 5] = ["LOG:", "ERROR:", "FATAL:", "PANIC:", "postgres:"];
    let message = |line: &str| {
        let rest = WORDS.iter().find_map(|word| Some(line.split_once(word)?.1.trim().to_owned()))?;
        let noise = rest.is_empty() || rest.contains("contains errors");
        (!noise).then_some(rest)
    };
    let found: Vec<String> = output.lines().filter_map(message).collect();
    if found.is_empty() { output.lines().last().unwrap_or_default().trim().to_owned() } else { found.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_have_no_times() {
        let text = "2026-11-21 11:31:56 GMT [7] LOG:  invalid value for parameter \"work_mem\": \"1 lb\"\n\
                    2026-11-21 11:31:56 GMT [7] HINT:  Valid units are \"B\".\n\
                    2026-11-21 11:31:56 GMT [7] FATAL:  configuration file \"/postgresql.conf\" contains errors\n";
        assert_eq!(messages(text), "invalid value for parameter \"work_mem\": \"1 lb\"");
        let text = "postgres: superuser_reserved_connections (3) must be less than max_connections (3)\n";
        assert_eq!(messages(text), "superuser_reserved_connections (3) must be less than max_connections (3)");
        assert_eq!((messages("a\nKilled\n").as_str(), messages("").as_str()), ("Killed", ""));
    }
}
