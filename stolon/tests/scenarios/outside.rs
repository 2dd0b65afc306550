//! A PostgreSQL outside of the cluster, with an archive of its WAL.

use nix::unistd::{User, chown, geteuid};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use testkit::postgres::Postgres;

/// A server with a table `t (n int)`, the users that keepers work as, and an archive.
pub(super) struct Outside {
    pub(super) pg: Postgres,
    dir: TempDir,
}

impl Outside {
    pub(super) fn start(more: &[&str]) -> Self {
        let dir = TempDir::with_prefix("outside-").unwrap();
        own(dir.path());
        for part in ["archive", "backup"] {
            std::fs::create_dir(dir.path().join(part)).unwrap();
            own(&dir.path().join(part));
        }
        let archive = format!("archive_command = 'cp %p {}/archive/%f'", dir.path().display());
        let mut config = vec!["archive_mode = on", archive.as_str()];
        config.extend(more);
        let outside = Outside { pg: Postgres::start(&config).unwrap(), dir };
        outside.sql("CREATE TABLE t (n int)");
        outside.sql("CREATE ROLE repl LOGIN REPLICATION");
        outside
    }

    pub(super) fn sql(&self, sql: &str) -> String {
        self.pg.psql(sql).unwrap()
    }

    pub(super) fn insert(&self, n: i32) {
        self.sql(&format!("INSERT INTO t VALUES ({n})"));
    }

    /// A file or directory that both a test and keepers can use.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// For `restoreCommand`.
    pub(super) fn restore_command(&self) -> String {
        format!("cp {}/%f %p", self.path("archive").display())
    }

    /// Copies the server to a directory, with the WAL that makes it consistent.
    pub(super) fn copy_to(&self, directory: &Path) {
        let mut command = self.pg.client_program("pg_basebackup");
        command.arg("-D").arg(directory).args(["-X", "stream", "--checkpoint=fast", "--no-sync"]);
        as_postgres(&mut command);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Copies the server to the directory `backup`.
    pub(super) fn back_up(&self) {
        self.copy_to(&self.path("backup"));
    }

    /// For `dataRestoreCommand`: brings the backup, and leaves a line in the file `runs`.
    pub(super) fn fetch_command(&self) -> String {
        let dir = self.dir.path().display();
        format!("echo run >> {dir}/runs && cp -a {dir}/backup/. %d")
    }

    /// How often the command above has run.
    pub(super) fn fetches(&self) -> usize {
        std::fs::read_to_string(self.path("runs")).unwrap_or_default().lines().count()
    }

    /// All WAL so far is in the archive.
    pub(super) fn archive_all(&self) {
        let last = self.sql("SELECT 'segment=' || pg_walfile_name(pg_current_wal_lsn()), pg_switch_wal()");
        let name: String = last.split("segment=").nth(1).unwrap().chars().take(24).collect();
        let started = std::time::Instant::now();
        while !self.path("archive").join(&name).exists() {
            assert!(started.elapsed() < testkit::stolon::LIMIT, "{name} is not archived");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    pub(super) fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=repl application_name=standby_cluster", self.pg.port())
    }
}

fn postgres() -> Option<User> {
    geteuid().is_root().then(|| User::from_name("postgres").unwrap().unwrap())
}

/// Gives a file to the user that keepers run as.
pub(super) fn own(path: &Path) {
    if let Some(user) = postgres() {
        chown(path, Some(user.uid), Some(user.gid)).unwrap();
    }
}

/// Makes a command run as the user that keepers run as.
pub(super) fn as_postgres(command: &mut Command) {
    if let Some(user) = postgres() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).current_dir("/");
    }
}
