//! Restoring a backup by the operator's command and recovering it, and what tells PostgreSQL how to start.

use super::apply::sync_data;
use super::datadir::{RestoreState, make_private_dir, write_file};
use super::error::{KeeperError, Result, io};
use super::machine::{Interest, Machine};
use super::observe::{self, RECOVERY_SIGNAL, STANDBY_SIGNAL};
use super::plan::{Data, Recover};
use super::postgres::binaries::{describe_status, tail};
use super::postgres::{conf, process, recovery};
use super::{trash, waldir};
use chrono::Utc;
use model::DbUid;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::Instant;
use tracing::{info, warn};

/// How often a recovery, which may take hours, is looked at.
const POLL: Duration = Duration::from_millis(250);
/// So much of the end of a command's output is kept for an error.
const KEPT_OUTPUT: usize = 2048;
/// A command's own children may keep its output open after its end.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
/// Variables with passwords of ours, which the operator's command does not need.
const SECRETS: [&str; 2] = ["STKEEPER_PG_SU_PASSWORD", "STKEEPER_PG_REPL_PASSWORD"];

impl Machine {
    /// Fills the data directory by the operator's command.
    pub(super) async fn apply_restore(&mut self, db: DbUid, command: String, interest: &Interest) -> Result<()> {
        let started = Instant::now();
        let pgdata = self.dir.pgdata();
        let wal_dir = self.config.wal_dir.as_deref().map(|dir| waldir::fresh(dir, Utc::now()));
        let begun = RestoreState { uid: db, wal_dir, ..Default::default() };
        // A keeper that finds an unfinished restore has to know which WAL is part of it.
        self.dir.save_restore(Some(&begun))?;
        make_private_dir(&pgdata)?;
        io(std::fs::set_permissions(&pgdata, Permissions::from_mode(0o700)), "change the mode of", &pgdata)?;
        let wal = match &begun.wal_dir {
            Some(wal) => {
                make_private_dir(wal)?;
                Some(wal.display().to_string())
            }
            None => None,
        };
        let line = recovery::fill_in(&command, &pgdata.display().to_string(), wal.as_deref());
        info!("restoring a backup by dataRestoreCommand");
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(line).current_dir(self.dir.root()).stdin(self.dir.work_stdin()?);
        for secret in SECRETS {
            shell.env_remove(secret);
        }
        self.unless_changed(interest, run_shell(shell)).await?;
        io(std::fs::set_permissions(&pgdata, Permissions::from_mode(0o700)), "change the mode of", &pgdata)?;
        settle_wal(&pgdata, begun.wal_dir.as_deref())?;
        self.check_restored(&pgdata).await?;
        // The server that the backup was taken from is not here.
        for file in ["postmaster.pid", "postmaster.opts", STANDBY_SIGNAL, RECOVERY_SIGNAL] {
            process::remove_file(&pgdata.join(file))?;
        }
        keep_configuration(&pgdata)?;
        sync_data(pgdata).await?;
        self.dir.save_restore(Some(&RestoreState { command, ..begun }))?;
        info!(seconds = started.elapsed().as_secs(), "the backup is restored");
        Ok(())
    }

    pub(super) async fn apply_delete_garbage(&self) -> Result<()> {
        let pgdata = self.dir.pgdata();
        let begun = self.dir.load_restore().filter(|begun| begun.uid == self.state.uid);
        // A large directory takes long, and the keeper has to keep its lease meanwhile.
        let work = tokio::task::spawn_blocking(move || {
            if let Some(begun) = &begun {
                forget_foreign_wal(&pgdata, begun.wal_dir.as_deref())?;
            }
            trash::delete_garbage(&pgdata)?;
            // A command that was interrupted need not have linked to it yet.
            begun.and_then(|begun| begun.wal_dir).map_or(Ok(()), |wal| waldir::remove(&wal))
        });
        work.await.unwrap_or_else(|error| Err(KeeperError::Other(format!("delete what was left: {error}"))))
    }

    async fn check_restored(&self, pgdata: &Path) -> Result<()> {
        if observe::observe_data(pgdata, None) == Data::Missing {
            return Err(KeeperError::Other(format!(
                "dataRestoreCommand succeeded but left no complete PostgreSQL data in {}; let it restore to %d",
                pgdata.display()
            )));
        }
        let restored = observe::read_text(&pgdata.join("PG_VERSION")).unwrap_or_default();
        let ours = self.binaries.version().await?.major;
        if restored.trim() != ours.to_string() {
            return Err(KeeperError::Other(format!(
                "the restored data is of PostgreSQL {}, but the programs are of version {ours}; set --pg-bin-path",
                restored.trim()
            )));
        }
        Ok(())
    }

    /// Recovers what was restored, or goes on with it.
    pub(super) async fn apply_recover(&mut self, recover: &Recover, interest: &Interest) -> Result<()> {
        let started = Instant::now();
        let pgdata = self.dir.pgdata();
        let state = self.dir.load_restore().filter(|state| state.uid == recover.db);
        let Some(state) = state else {
            return Err(KeeperError::NotYet("the state of the restore is lost, beginning again".into()));
        };
        // Once begun, a missing signal file means that the recovery has ended, and another one would not find its target.
        if !state.recovering {
            if recover.standby {
                mark_standby(&pgdata)?;
            } else {
                mark_recovery(&pgdata)?;
            }
            self.dir.save_restore(Some(&RestoreState { recovering: true, ..state }))?;
        }
        // PostgreSQL refuses to recover without a restore command, but a backup may hold all its WAL itself.
        let before = if recover.standby { "" } else { "restore_command = '/bin/false'\n" };
        // Nobody reads while it recovers, and so the settings of the server that was backed up need not be kept.
        let more = if recover.standby { vec![] } else { vec!["hot_standby=off".to_owned()] };
        let after = conf::render(&recover.parameters);
        self.start_for_setup(&recover.files, before, &after, more).await?;
        self.unless_changed(interest, self.recovered(recover)).await?;
        self.acted();
        info!(seconds = started.elapsed().as_secs(), standby = recover.standby, "the recovery is complete");
        Ok(())
    }

    async fn recovered(&self, recover: &Recover) -> Result<()> {
        let Some(postmaster) = self.postmaster.clone() else { return Ok(()) };
        let pgdata = self.dir.pgdata();
        let started = Instant::now();
        loop {
            if postmaster.has_ended() {
                return Err(KeeperError::Other(
                    "postgres ended during the recovery; its own messages above say why; what pitrConfig says about it can be \
                     corrected by `stolonctl update`"
                        .into(),
                ));
            }
            let ready = process::read_pid_file(&pgdata).is_some_and(|file| file.ready && file.pid == postmaster.pid);
            let over = recover.standby || !pgdata.join(RECOVERY_SIGNAL).exists();
            if ready && over && self.sql().await?.in_recovery().await? == recover.standby {
                return Ok(());
            }
            if let Some(limit) = recover.limit.filter(|limit| started.elapsed() > *limit) {
                return Err(KeeperError::Other(format!(
                    "the recovery is not complete after {} s (syncTimeout); it is begun again from where it has come to; \
                     raise syncTimeout if it only needs longer",
                    limit.as_secs()
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    pub(super) async fn apply_check_roles(&mut self) -> Result<()> {
        let (su, repl) = (self.config.su.user.clone(), self.config.repl.user.clone());
        for problem in self.sql().await?.role_problems(&su, &repl).await? {
            warn!("{problem}");
        }
        Ok(())
    }
}

/// Makes the directory for WAL that the command was given part of what it restored, if it used that.
fn settle_wal(pgdata: &Path, wal_dir: Option<&Path>) -> Result<()> {
    if let Some(link) = forget_foreign_wal(pgdata, wal_dir)? {
        return Err(KeeperError::Other(format!(
            "dataRestoreCommand restored pg_wal as a link to {}, which may be in use by another server; let it restore WAL to \
             %d/pg_wal, or to %w with --wal-dir",
            link.display()
        )));
    }
    let pg_wal = pgdata.join("pg_wal");
    let Some(wal_dir) = wal_dir.filter(|_| !pg_wal.is_symlink()) else { return Ok(()) };
    // Succeeds for an empty one only.
    if std::fs::remove_dir(wal_dir).is_ok() || !wal_dir.exists() {
        return Ok(());
    }
    let present = std::fs::read_dir(&pg_wal).into_iter().flatten().flatten();
    if present.into_iter().any(|entry| !entry.path().is_dir()) {
        return Err(KeeperError::Other(
            "dataRestoreCommand restored WAL both to %w and to %d/pg_wal; let it restore all WAL to one place".into(),
        ));
    }
    waldir::remove(&pg_wal)?;
    io(std::os::unix::fs::symlink(wal_dir, &pg_wal), "link", &pg_wal)
}

/// Removes a restored link to WAL elsewhere, and says where it led: a plain copy of another data directory, which may run,
/// leads to that one's WAL, which must be neither written to nor deleted.
fn forget_foreign_wal(pgdata: &Path, wal_dir: Option<&Path>) -> Result<Option<PathBuf>> {
    let pg_wal = pgdata.join("pg_wal");
    let Ok(link) = std::fs::read_link(&pg_wal) else { return Ok(None) };
    let real = |path: &Path| path.canonicalize().ok();
    if wal_dir.is_some_and(|wal_dir| real(wal_dir).is_some() && real(wal_dir) == real(&pg_wal)) {
        return Ok(None);
    }
    process::remove_file(&pg_wal)?;
    Ok(Some(link))
}

/// Runs the operator's line to its end; it and its children die if this future is dropped.
async fn run_shell(mut shell: Command) -> Result<()> {
    let failed = |source| KeeperError::Io { what: "run dataRestoreCommand".into(), source };
    shell.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let mut child = shell.spawn().map_err(failed)?;
    let group = Group(child.id().and_then(|pid| i32::try_from(pid).ok()));
    let kept = Arc::new(Mutex::new(Vec::new()));
    let readers = [
        child.stdout.take().map(|output| tokio::spawn(keep_end(output, kept.clone()))),
        child.stderr.take().map(|output| tokio::spawn(keep_end(output, kept.clone()))),
    ];
    let status = child.wait().await.map_err(failed)?;
    for mut reader in readers.into_iter().flatten() {
        if tokio::time::timeout(LAST_OUTPUT, &mut reader).await.is_err() {
            reader.abort();
        }
    }
    if status.success() {
        group.keep();
        return Ok(());
    }
    let end = tail(&kept.lock().unwrap_or_else(PoisonError::into_inner));
    Err(KeeperError::Tool { tool: "dataRestoreCommand", status: describe_status(status), tail: end })
}

/// A program's process group, killed with this value.
struct Group(Option<i32>);

impl Group {
    /// The program has done its work; what it left running is its own affair.
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // An error means that nobody is left.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

async fn keep_end(mut output: impl AsyncRead + Unpin, kept: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = output.read(&mut buffer).await {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(&buffer[..read]);
        let excess = kept.len().saturating_sub(KEPT_OUTPUT);
        kept.drain(..excess);
    }
}

/// Makes PostgreSQL start as a standby.
pub(super) fn mark_standby(pgdata: &Path) -> Result<()> {
    mark(pgdata, Some(STANDBY_SIGNAL))
}

/// Makes PostgreSQL recover, and then become a primary.
pub(super) fn mark_recovery(pgdata: &Path) -> Result<()> {
    mark(pgdata, Some(RECOVERY_SIGNAL))
}

/// Makes PostgreSQL start as a primary.
pub(super) fn mark_primary(pgdata: &Path) -> Result<()> {
    mark(pgdata, None)
}

/// Leaves exactly this one of the signal files. The wanted one comes first: a crash in between must not leave none.
fn mark(pgdata: &Path, wanted: Option<&str>) -> Result<()> {
    if let Some(name) = wanted
        && !pgdata.join(name).exists()
    {
        write_file(&pgdata.join(name), b"")?;
    }
    let mut removed = false;
    for name in [STANDBY_SIGNAL, RECOVERY_SIGNAL] {
        let path = pgdata.join(name);
        if wanted != Some(name) && path.exists() {
            warn!(file = %path.display(), "removing a left-over signal file");
            process::remove_file(&path)?;
            removed = true;
        }
    }
    if removed {
        io(std::fs::File::open(pgdata).and_then(|directory| directory.sync_all()), "sync", pgdata)?;
    }
    Ok(())
}

/// Keeps copies of the configuration files that an instance came with, and moves the settings of ALTER SYSTEM, whose file
/// will be void, to the end of `postgresql.conf`, so that they can be read and merged. Those of a recovery stay behind:
/// they are the cluster's to decide, and a second target would stop PostgreSQL.
pub(super) fn keep_configuration(pgdata: &Path) -> Result<()> {
    let auto = pgdata.join("postgresql.auto.conf");
    for name in ["postgresql.conf", "pg_hba.conf", "postgresql.auto.conf"] {
        let (file, copy) = (pgdata.join(name), pgdata.join(format!("{name}.before-stolon")));
        // Only the first one: later ones would be copies of the keeper's own files.
        if file.is_file() && !copy.exists() {
            write_file(&copy, &io(std::fs::read(&file), "read", &file)?)?;
        }
    }
    if !auto.is_file() {
        return Ok(());
    }
    let set = io(std::fs::read(&auto), "read", &auto)?;
    let name = |line: &[u8]| {
        let name = line.trim_ascii_start().split(|c| *c == b'=' || c.is_ascii_whitespace()).next().unwrap_or_default();
        String::from_utf8_lossy(name).to_ascii_lowercase()
    };
    let lines = set.split_inclusive(|c| *c == b'\n');
    let set: Vec<u8> = lines.filter(|line| !conf::MANAGED.contains(&name(line).as_str())).flatten().copied().collect();
    let main = pgdata.join("postgresql.conf");
    let before = if main.is_file() { io(std::fs::read(&main), "read", &main)? } else { Vec::new() };
    write_file(&main, &[before, b"\n".into(), set].concat())?;
    process::remove_file(&auto)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_signal_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let present = || [STANDBY_SIGNAL, RECOVERY_SIGNAL].map(|name| path.join(name).exists());
        for left_over in [[false, false], [true, false], [false, true], [true, true]] {
            type Mark = fn(&Path) -> Result<()>;
            let marks: [(Mark, [bool; 2]); 3] =
                [(mark_standby, [true, false]), (mark_recovery, [false, true]), (mark_primary, [false, false])];
            for (mark, wanted) in marks {
                for (name, there) in [STANDBY_SIGNAL, RECOVERY_SIGNAL].into_iter().zip(left_over) {
                    if there {
                        std::fs::write(path.join(name), "").unwrap();
                    }
                }
                mark(path).unwrap();
                assert_eq!(present(), wanted);
            }
        }
    }

    #[test]
    fn wal_of_others_is_neither_used_nor_deleted() {
        let root = tempfile::tempdir().unwrap();
        let (pgdata, ours, theirs) =
            (root.path().join("postgres"), root.path().join("stolon-wal-1"), root.path().join("stolon-wal-2"));
        let pg_wal = pgdata.join("pg_wal");
        for dir in [&pgdata, &ours, &theirs] {
            std::fs::create_dir(dir).unwrap();
        }
        std::fs::write(theirs.join("segment"), "").unwrap();
        std::os::unix::fs::symlink(&theirs, &pg_wal).unwrap();
        for wal_dir in [Some(ours.as_path()), None] {
            let error = settle_wal(&pgdata, wal_dir).map_err(|error| error.to_string());
            assert_eq!(error.is_err_and(|error| error.contains("another server")), wal_dir.is_some());
            assert!(!pg_wal.is_symlink() && theirs.join("segment").exists());
        }
        // Not used, used without a link, used with one, and both at once.
        std::fs::create_dir_all(pg_wal.join("archive_status")).unwrap();
        settle_wal(&pgdata, Some(&ours)).unwrap();
        assert!(!ours.exists() && !pg_wal.is_symlink());
        std::fs::create_dir(&ours).unwrap();
        std::fs::write(ours.join("segment"), "").unwrap();
        for _ in 0..2 {
            settle_wal(&pgdata, Some(&ours)).unwrap();
            assert_eq!(std::fs::read_link(&pg_wal).unwrap(), ours);
        }
        std::fs::remove_file(&pg_wal).unwrap();
        std::fs::create_dir(&pg_wal).unwrap();
        std::fs::write(pg_wal.join("segment"), "").unwrap();
        assert!(settle_wal(&pgdata, Some(&ours)).is_err_and(|error| error.to_string().contains("both")));
        assert!(pg_wal.join("segment").exists() && ours.join("segment").exists());
    }

    #[test]
    fn configuration_is_kept_once() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        std::fs::write(dir.path().join("postgresql.conf"), "a = 1").unwrap();
        std::fs::write(dir.path().join("postgresql.auto.conf"), "Recovery_target_lsn='0/1'\na = 2\nport=1\n").unwrap();
        for _ in 0..2 {
            keep_configuration(dir.path()).unwrap();
            assert_eq!(read("postgresql.conf"), "a = 1\na = 2\n");
            assert_eq!(read("postgresql.conf.before-stolon"), "a = 1");
            assert!(!dir.path().join("postgresql.auto.conf").exists());
        }
        // What voids ALTER SYSTEM is no file of settings.
        std::os::unix::fs::symlink("/dev/null", dir.path().join("postgresql.auto.conf")).unwrap();
        keep_configuration(dir.path()).unwrap();
        assert_eq!(read("postgresql.conf"), "a = 1\na = 2\n");
    }

    #[tokio::test]
    async fn commands_tell_their_last_words_and_die_with_their_children() {
        let shell = |line: &str| {
            let mut shell = Command::new("/bin/sh");
            shell.arg("-c").arg(line);
            shell
        };
        run_shell(shell("exit 0")).await.unwrap();
        let error = run_shell(shell("yes | head -c 100000; echo; echo no such backup >&2; exit 3")).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("dataRestoreCommand failed (exit status 3)") && text.contains("no such backup"),
            "{text}"
        );
        // Something left in the background does not hold it up.
        let started = Instant::now();
        run_shell(shell("sleep 30 & exit 0")).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(10));
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let line = format!("(while true; do date > {}; sleep 0.01; done) & sleep 30", mark.display());
        let given_up = tokio::time::timeout(Duration::from_millis(300), run_shell(shell(&line))).await;
        assert!(given_up.is_err() && mark.exists());
        tokio::time::sleep(Duration::from_millis(200)).await;
        std::fs::remove_file(&mark).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!mark.exists(), "a child lives");
    }
}
