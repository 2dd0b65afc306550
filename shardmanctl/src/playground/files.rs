//! The playground's directory: the plan, the environment file, and who may read what.

use super::plan::Plan;
use anyhow::{Context as _, bail};
use common::privileges::OsUser;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Name of the stored plan.
const PLAN: &str = "playground.json";

/// A playground's directory.
#[derive(Clone, Debug)]
pub(crate) struct Dir {
    /// Absolute.
    pub(crate) path: PathBuf,
}

impl Dir {
    /// The given directory, or the user's default one.
    pub(crate) fn new(given: Option<&Path>) -> anyhow::Result<Self> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => default_dir()?,
        };
        Ok(Dir { path: std::path::absolute(path)? })
    }

    /// The stored plan; `None` when there is no playground here.
    pub(crate) fn plan(&self) -> anyhow::Result<Option<Plan>> {
        let path = self.path.join(PLAN);
        match std::fs::read_to_string(&path) {
            Ok(text) => Plan::parse(&text, &path).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// The stored plan.
    pub(crate) fn existing_plan(&self) -> anyhow::Result<Plan> {
        self.plan()?.with_context(|| {
            format!(
                "there is no playground in {}; start one with `shardmanctl playground --data-dir …`",
                self.path.display()
            )
        })
    }

    /// Makes the directory if it is missing, for the user that will own everything in it. A directory with
    /// other things in it is refused.
    pub(crate) fn prepare(&self, owner: &OsUser) -> anyhow::Result<()> {
        let show = self.path.display();
        if self.path.exists() {
            let mut entries = std::fs::read_dir(&self.path).with_context(|| format!("use {show} as data directory"))?;
            if entries.next().is_some() {
                bail!("{show} is not empty and holds no playground; name an empty or a new directory");
            }
        }
        self.check_reachable(owner)?;
        std::fs::create_dir_all(&self.path).with_context(|| format!("make the directory {show}"))?;
        own(&self.path, owner)?;
        std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// PostgreSQL's user must be able to come to the directory: each one above that exists must let it through;
    /// those that are made on the way do.
    fn check_reachable(&self, owner: &OsUser) -> anyhow::Result<()> {
        for dir in self.path.ancestors().skip(1).filter(|dir| dir.exists()) {
            let meta = std::fs::metadata(dir)?;
            let bit = if meta.uid() == owner.uid {
                0o100
            } else if meta.gid() == owner.gid {
                0o010
            } else {
                0o001
            };
            if meta.mode() & bit == 0 {
                bail!(
                    "user {} can't reach {}, because {} is closed to it; name another directory with --data-dir",
                    owner.name,
                    self.path.display(),
                    dir.display()
                );
            }
        }
        Ok(())
    }

    /// Stores the plan; complete or not at all.
    pub(crate) fn store_plan(&self, plan: &Plan) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec_pretty(plan)?;
        text.push(b'\n');
        replace(&self.path.join(PLAN), &text)
    }

    /// Writes `env`: what a shell needs to work with the cluster.
    pub(crate) fn write_env(&self, plan: &Plan) -> anyhow::Result<()> {
        let path = format!("{}:{}", plan.bin_dir.display(), plan.pg_bin_path.display());
        let text = format!(
            "export SDM_STORE_ENDPOINTS={}\nexport SDM_CLUSTER_NAME={}\nexport PATH={}:\"$PATH\"\n",
            shell_word(&plan.endpoints()),
            shell_word(plan.cluster.as_str()),
            shell_word(&path)
        );
        replace(&self.path.join("env"), text.as_bytes())
    }
}

fn default_dir() -> anyhow::Result<PathBuf> {
    // Root's home is closed to PostgreSQL's user.
    if common::privileges::is_root() {
        return Ok(PathBuf::from("/var/lib/shardman/playground"));
    }
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let data = data.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share")));
    Ok(data.context("HOME is not set; name a directory with --data-dir")?.join("shardman/playground"))
}

/// Gives a path to a user; nothing to do when it is ours already.
pub(crate) fn own(path: &Path, owner: &OsUser) -> anyhow::Result<()> {
    if common::privileges::is_root() {
        std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid))
            .with_context(|| format!("give {} to user {}", path.display(), owner.name))?;
    }
    Ok(())
}

/// Writes a file beside the old one and puts it in its place.
fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// A word that a POSIX shell takes literally.
fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_words_are_literal() {
        assert_eq!(shell_word("it's $HOME"), r"'it'\''s $HOME'");
    }

    #[test]
    fn a_directory_with_other_things_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.txt"), "precious").unwrap();
        let user = common::privileges::current_user().unwrap();
        let dir = Dir { path: dir.path().to_owned() };
        assert!(dir.prepare(&user).unwrap_err().to_string().contains("not empty"));
        assert!(dir.plan().unwrap().is_none());
        assert_eq!(std::fs::read_to_string(dir.path.join("thesis.txt")).unwrap(), "precious");
    }
}
