//! Small files that are replaced as a whole and that only their owner can read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// A file that can't be written or deleted.
#[derive(Debug, thiserror::Error)]
#[error("{act} {path}; check the directory's owner and the disk's free space")]
pub struct FileError {
    act: &'static str,
    path: String,
    #[source]
    source: io::Error,
}

impl FileError {
    pub(crate) fn new(act: &'static str, path: &Path, source: io::Error) -> Self {
        FileError { act, path: path.display().to_string(), source }
    }
}

/// Replaces a file, mode 0600: a reader sees the old or the new text, also after a power failure.
/// The work is done on another thread: a slow disk must not hold up the renewal of bowl's lease.
///
/// # Errors
/// The system's.
pub async fn replace(path: PathBuf, text: Vec<u8>) -> Result<(), FileError> {
    let written = tokio::task::spawn_blocking(move || {
        replace_now(&path, &text).map_err(|source| FileError::new("write", &path, source))
    });
    // It panics only if the closure does, or at the end of the runtime.
    written.await.unwrap_or_else(|error| Err(FileError::new("write", Path::new("a file"), io::Error::other(error))))
}

fn replace_now(path: &Path, text: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    // What a killed bowl left is not trusted to have our mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}

/// Deletes a file if it is there.
///
/// # Errors
/// The system's.
pub fn delete(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::new("delete", path, error)),
        _ => Ok(()),
    }
}

/// Makes a directory, mode 0700, with its parents.
///
/// # Errors
/// The system's.
pub fn make_directory(path: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let parents = path.parent().map_or(Ok(()), fs::create_dir_all);
    let made = parents.and_then(|()| match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    });
    made.map_err(|source| FileError::new("make directory", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[tokio::test]
    async fn files_are_private_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.env");
        fs::write(dir.path().join("a.env.new"), "left over").unwrap();
        for text in ["one", "two"] {
            replace(path.clone(), text.into()).await.unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = replace(dir.path().join("none/a"), vec![]).await.unwrap_err().to_string();
        assert!(error.starts_with("write ") && error.contains("none/a"), "{error}");
    }
}
