//! The keeper's own files: lock, `keeperstate`, `dbstate`, and where PostgreSQL's data is.

use super::disk;
use super::error::{KeeperError, Result, io};
use super::leftover::WorkLock;
use super::postgres::process::remove_file;
use model::stolon::HandedOver;
use model::{DbUid, KeeperUid};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// `keeperstate`: who this directory's keeper is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeeperState {
    /// The keeper.
    #[serde(rename = "UID")]
    pub uid: KeeperUid,
    /// The stolon cluster it belongs to; empty until known.
    #[serde(rename = "ClusterUID")]
    pub cluster_uid: String,
}

/// `dbstate`: what the data directory holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DbState {
    /// The db that the data belongs to; empty for none.
    #[serde(rename = "UID")]
    pub uid: DbUid,
    /// The last fully applied generation.
    #[serde(rename = "Generation")]
    pub generation: i64,
    /// Data is being made; found after a restart it is garbage.
    #[serde(rename = "Initializing")]
    pub initializing: bool,
    /// Parameters that the instance had right after it was made.
    #[serde(rename = "InitPGParameters")]
    pub init_pg_parameters: Option<BTreeMap<String, String>>,
    /// The applied generation made it a primary. Unknown in a file that Go wrote.
    #[serde(rename = "Primary", skip_serializing_if = "Option::is_none")]
    pub primary: Option<bool>,
    /// The timeline that the cluster data had last for it as a primary. A newer one the cluster was never told of.
    #[serde(rename = "AnnouncedTimeline", skip_serializing_if = "Option::is_none")]
    pub announced: Option<u64>,
    /// The data is being rewound, or was and has not followed yet. Go takes it for what [`Self::initializing`] says.
    #[serde(rename = "Rewinding", skip_serializing_if = "Option::is_none")]
    pub rewinding: Option<Rewinding>,
    /// It was stopped as a primary to become its successor's standby, and has followed nobody since.
    #[serde(rename = "HandedOver", skip_serializing_if = "Option::is_none")]
    pub handed_over: Option<HandedOver>,
}

/// A rewind that was begun. Until it is done PostgreSQL must not start in the data, and it can only be done again with
/// the same source: blocks that came from one primary may never have happened for another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rewinding {
    /// The source's db.
    #[serde(rename = "Source")]
    pub source: DbUid,
    /// The timeline that the source was writing.
    #[serde(rename = "Timeline")]
    pub timeline: u64,
    /// pg_rewind succeeded, and its work is durable.
    #[serde(rename = "Done")]
    pub done: bool,
}

/// `restorestate`: how far the restore of a backup has come, so that a keeper that was killed goes on instead of
/// fetching everything again. Ours only; it means nothing without a `dbstate` that says `Initializing`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestoreState {
    /// The db that is being made.
    #[serde(rename = "UID")]
    pub uid: DbUid,
    /// The command that brought everything; empty while it runs.
    #[serde(rename = "Command")]
    pub command: String,
    /// The directory that the command was given for WAL.
    #[serde(rename = "WALDir", skip_serializing_if = "Option::is_none")]
    pub wal_dir: Option<PathBuf>,
    /// The recovery was begun: where its signal file is gone, it has ended.
    #[serde(rename = "Recovering")]
    pub recovering: bool,
}

/// The keeper's directory, locked for the life of the process.
#[derive(Debug)]
pub struct KeeperDir {
    root: PathBuf,
    // A POSIX lock ends when any descriptor of the file is closed, so this one is the only one ever opened.
    _lock: Option<File>,
    work: WorkLock,
}

impl KeeperDir {
    /// Creates the directory if it is missing and takes the lock.
    ///
    /// # Errors
    /// The directory can't be used, or another keeper has it.
    pub fn open(root: &Path, locking: bool) -> Result<Self> {
        make_private_dir(root)?;
        let root = io(root.canonicalize(), "resolve", root)?;
        let lock = if locking { Some(take_lock(&root.join("lock"))?) } else { None };
        let work = WorkLock::take(&root, locking)?;
        Ok(KeeperDir { root, _lock: lock, work })
    }

    /// The directory itself, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// PostgreSQL's data directory.
    pub fn pgdata(&self) -> PathBuf {
        self.root.join("postgres")
    }
    /// Where a copy is made that will take the data directory's place.
    pub fn fresh_pgdata(&self) -> PathBuf {
        self.root.join("postgres.new")
    }
    /// Passwords for libpq, so that they appear neither in arguments nor in PostgreSQL's configuration.
    pub fn passfile(&self) -> PathBuf {
        self.root.join("pgpass")
    }

    /// The user's part of the last configuration that PostgreSQL started with.
    pub fn good_conf(&self) -> PathBuf {
        self.root.join("postgresql.conf.good")
    }
    /// Standard input for a program that works on the data directory: without it the next keeper could not know of it.
    ///
    /// # Errors
    /// There are too many open files.
    pub(super) fn work_stdin(&self) -> Result<Stdio> {
        self.work.stdin()
    }

    /// Reads `keeperstate`; `None` if there is none.
    ///
    /// # Errors
    /// The file is damaged: guessing an identity could make two keepers look like one.
    pub fn load_keeper(&self) -> Result<Option<KeeperState>> {
        load(&self.root.join("keeperstate"))
    }
    /// Replaces `keeperstate`.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save_keeper(&self, state: &KeeperState) -> Result<()> {
        save(&self.root.join("keeperstate"), state)
    }
    /// Reads `dbstate`; none counts as "no data".
    ///
    /// # Errors
    /// The file is damaged: guessing could make good data look like garbage.
    pub fn load_db(&self) -> Result<DbState> {
        Ok(load(&self.root.join("dbstate"))?.unwrap_or_default())
    }
    /// Reads `restorestate`. One that can't be read counts as none: then everything is fetched again.
    pub fn load_restore(&self) -> Option<RestoreState> {
        load(&self.root.join("restorestate")).unwrap_or_default()
    }
    /// Replaces or removes `restorestate`.
    ///
    /// # Errors
    /// The file can't be written or removed.
    pub fn save_restore(&self, state: Option<&RestoreState>) -> Result<()> {
        let path = self.root.join("restorestate");
        match state {
            Some(state) => save(&path, state),
            None => remove_file(&path),
        }
    }
    /// Replaces `dbstate`.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save_db(&self, state: &DbState) -> Result<()> {
        save(&self.root.join("dbstate"), state)
    }
}

/// Creates a directory that only we can read, with its parents.
pub(super) fn make_private_dir(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    io(DirBuilder::new().recursive(true).mode(0o700).create(path), "create", path)
}

/// Makes sure that only we can put a socket into this directory: whoever can would be taken for PostgreSQL, and could
/// stand between it and us. `/tmp` is everybody's, but there the sticky bit keeps a socket that exists.
pub(super) fn ensure_socket_dir(path: &Path, own: &Path) -> Result<()> {
    if path == Path::new("/tmp") {
        return Ok(());
    }
    if std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        make_private_dir(path)?;
    } else if path.canonicalize().is_ok_and(|path| path == own) {
        // The keeper's own directory.
        return io(std::fs::set_permissions(own, Permissions::from_mode(0o700)), "change the mode of", own);
    }
    let metadata = io(std::fs::symlink_metadata(path), "look at", path)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw() && mode == 0o700 {
        return Ok(());
    }
    Err(KeeperError::Other(format!(
        "the socket directory {} is not a directory of ours with mode 0700; give another --pg-unix-socket-dir, or correct it",
        path.display()
    )))
}

fn take_lock(path: &Path) -> Result<File> {
    let file = io(OpenOptions::new().create(true).append(true).mode(0o644).open(path), "open", path)?;
    let whole = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETLK(&whole)) {
        Ok(_) => Ok(file),
        Err(nix::errno::Errno::EACCES | nix::errno::Errno::EAGAIN) => Err(KeeperError::Other(format!(
            "{} is locked: another keeper uses this directory; stop it or choose another --data-dir",
            path.display()
        ))),
        Err(error) => io(Err(error.into()), "lock", path),
    }
}

fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => parse(&bytes).map(Some).map_err(|error| {
            KeeperError::Other(format!(
                "{} can't be read: {error}; restore it or start with an empty directory",
                path.display()
            ))
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => io(Err(error), "read", path),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    // Not straight into the struct: that would take an empty list for a state without values.
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(bytes)?;
    serde_json::from_value(object.into())
}

fn save(path: &Path, value: &impl Serialize) -> Result<()> {
    // Strings, numbers and maps with string keys only: serialising can't fail.
    let bytes = serde_json::to_vec(value).expect("state is plain JSON");
    write_file(path, &bytes)
}

/// Replaces a file atomically and durably; mode 0600.
pub(super) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let temporary = directory.join(format!(".{name}.new"));
    let write = || {
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    };
    match write() {
        // This is what the reserve is for.
        Err(error) if disk::is_full(&error) && release_near(directory) => io(write(), "write", path),
        other => io(other, "write", path),
    }
}

/// The keeper's directory is this one or the one above.
fn release_near(directory: &Path) -> bool {
    disk::release_reserve(directory) || directory.parent().is_some_and(disk::release_reserve)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_go_are_read_and_written_alike() {
        let text = r#"{"UID":"ab","Generation":3,"Initializing":false,"InitPGParameters":{"a":"b"}}"#;
        let state: DbState = parse(text.as_bytes()).unwrap();
        assert_eq!((state.uid.as_str(), state.generation), ("ab", 3));
        assert_eq!(serde_json::to_string(&state).unwrap(), text);
        let mut rewinding = DbState { initializing: true, ..state.clone() };
        rewinding.rewinding = Some(Rewinding { source: "m".into(), timeline: 2, done: false });
        let text = serde_json::to_string(&rewinding).unwrap();
        assert!(text.ends_with(r#""Rewinding":{"Source":"m","Timeline":2,"Done":false}}"#), "{text}");
        assert_eq!(parse::<DbState>(text.as_bytes()).unwrap(), rewinding);
        let handed_over = Some(HandedOver { db: "ab".into(), xlog_pos: 77 });
        let told = DbState { handed_over, ..state.clone() };
        let text = serde_json::to_string(&told).unwrap();
        assert!(text.ends_with(r#""HandedOver":{"db":"ab","xLogPos":77}}"#), "{text}");
        assert_eq!(parse::<DbState>(text.as_bytes()).unwrap(), told);
        let none = r#"{"UID":"","Generation":0,"Initializing":false,"InitPGParameters":null}"#;
        assert_eq!(serde_json::to_string(&DbState::default()).unwrap(), none);
        let keeper: KeeperState = parse(br#"{"UID":"k1","ClusterUID":"c"}"#).unwrap();
        assert_eq!(keeper, KeeperState { uid: "k1".into(), cluster_uid: "c".into() });
    }

    #[test]
    fn damaged_state_is_an_error_not_an_empty_directory() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = KeeperDir::open(dir.path(), true).unwrap();
        assert_eq!(keeper.load_db().unwrap(), DbState::default());
        assert_eq!(keeper.load_keeper().unwrap(), None);
        for broken in ["", "{", "[]", "7", "{\"UID\":3}", "{\"Generation\":\"x\"}", "\u{0}"] {
            std::fs::write(dir.path().join("dbstate"), broken).unwrap();
            assert!(keeper.load_db().is_err(), "{broken:?}");
        }
    }

    #[test]
    fn sockets_are_in_a_directory_of_ours_only() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().canonicalize().unwrap();
        let check = |path: &Path| ensure_socket_dir(path, &own).is_ok();
        assert!(check(Path::new("/tmp")) && check(&own));
        let made = own.join("a/b");
        assert!(check(&made) && check(&made), "created, then found");
        assert_eq!(std::fs::metadata(&made).unwrap().permissions().mode() & 0o7777, 0o700);
        for mode in [0o755, 0o770, 0o1777, 0o2700] {
            std::fs::set_permissions(&made, Permissions::from_mode(mode)).unwrap();
            assert!(!check(&made), "{mode:o}");
        }
        std::fs::set_permissions(&made, Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(&made, own.join("link")).unwrap();
        assert!(!check(&own.join("link")));
        std::fs::write(own.join("file"), "").unwrap();
        assert!(!check(&own.join("file")));
        if nix::unistd::geteuid().is_root() {
            nix::unistd::chown(&made, Some(nix::unistd::Uid::from_raw(65534)), None).unwrap();
            assert!(!check(&made), "somebody else's");
        }
    }

    #[test]
    fn saved_state_comes_back_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = KeeperDir::open(&dir.path().join("a/b"), true).unwrap();
        let state = DbState { uid: "x".into(), generation: 7, initializing: true, ..Default::default() };
        keeper.save_db(&state).unwrap();
        assert_eq!(keeper.load_db().unwrap(), state);
        let mode = std::fs::metadata(keeper.root().join("dbstate")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mode = std::fs::metadata(keeper.root()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
