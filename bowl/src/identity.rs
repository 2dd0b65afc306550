//! Who this node is, and as which user bowl works.

use crate::cli::BowlArgs;
use anyhow::{Context as _, bail};
use common::exit::UsageError;
use common::privileges;
use model::{ClusterName, NodeName, ids};
use nix::unistd::{Gid, Uid, User, chown};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::{error, warn};

/// The node's name: the flag's, else the host's.
///
/// # Errors
/// It can't stand in unit and file names.
pub fn node_name(args: &BowlArgs) -> anyhow::Result<NodeName> {
    let name = match &args.node_name {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname()
            .context("ask for the host name; give --node-name")?
            .into_string()
            .unwrap_or_default(),
    };
    if !ids::is_plain_name(&name) {
        bail!(UsageError(format!(
            "\"{name}\" can't be a node's name: letters, digits, '.', '-', '_', at most 63; give --node-name"
        )));
    }
    Ok(name.into())
}

/// The cluster's name.
///
/// # Errors
/// It can't stand in unit and file names.
pub fn cluster_name(args: &BowlArgs) -> anyhow::Result<ClusterName> {
    let name = &args.common.cluster_name;
    if !ids::is_plain_name(name) {
        bail!(UsageError(format!(
            "\"{name}\" can't be a cluster's name: letters, digits, '.', '-', '_', at most 63; give --cluster-name"
        )));
    }
    Ok(name.as_str().into())
}

/// Where the data is unless the specification says otherwise: known before the store is.
pub fn default_data_dir(cluster: &ClusterName) -> PathBuf {
    Path::new(model::spec::DEFAULT_DATA_DIR).join(cluster.as_str())
}

/// Becomes the user that PostgreSQL is to run as, after giving it the data directory. Must be called before other
/// threads start.
///
/// # Errors
/// There is no such user, or we may not become it.
pub fn leave_root(user: Option<&str>, data_dir: &Path) -> anyhow::Result<()> {
    if !privileges::is_root() {
        let me = privileges::current_user()?;
        if user.is_some_and(|user| user != me.name) {
            bail!("--user {}: only root can become another user, and bowl runs as {}", user.unwrap_or(""), me.name);
        }
        return Ok(());
    }
    let user = privileges::user(user.unwrap_or(privileges::POSTGRES_USER))?;
    if user.uid == 0 {
        bail!("--user root: PostgreSQL refuses to run as root; name another user");
    }
    give_directory(data_dir, &user).with_context(|| format!("give {} to user {}", data_dir.display(), user.name))?;
    privileges::become_user(&user)
}

/// Makes the directory for the user. One that is there is given away only if it is root's and empty: a path that was
/// named by mistake must not change hands.
fn give_directory(path: &Path, user: &privileges::OsUser) -> anyhow::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.uid() != 0 || fs::read_dir(path)?.next().is_some() => return Ok(()),
        Ok(_) => {}
        Err(_) => crate::files::make_directory(path)?,
    }
    Ok(chown(path, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?)
}

/// A directory of our own below `/run` that stays as long as the machine runs. The one of a user goes when he logs
/// out, unless he has lingering sessions.
pub fn runtime_dir() -> Option<PathBuf> {
    let uid = Uid::effective();
    let lingers = |name: String| Path::new("/var/lib/systemd/linger").join(name).exists();
    let user = User::from_uid(uid).ok().flatten().is_some_and(|user| lingers(user.name));
    let candidates = [Some(PathBuf::from("/run/shardman")), user.then(|| format!("/run/user/{uid}").into())];
    let ours = |path: &PathBuf| {
        fs::symlink_metadata(path).is_ok_and(|m| m.is_dir() && m.uid() == uid.as_raw() && m.mode() & 0o022 == 0)
    };
    candidates.into_iter().flatten().find(ours)
}

/// The daemons' environment beside their own files: few, known variables, so that a daemon does not depend on who
/// started bowl. `RUST_BACKTRACE` is not among them: PostgreSQL's Rust extension would pay for it at each error.
pub fn base_environment() -> crate::envfile::Environment {
    const PASSED_ON: [&str; 5] = ["LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PATH"];
    const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let keep = |name: &str| PASSED_ON.contains(&name) || name.starts_with("LC_");
    let mut environment: crate::envfile::Environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| keep(name))
        .collect();
    environment.entry("PATH".into()).or_insert_with(|| DEFAULT_PATH.into());
    if let Ok(Some(user)) = User::from_uid(Uid::effective()) {
        environment.insert("HOME".into(), user.dir.display().to_string());
        environment.insert("USER".into(), user.name.clone());
        environment.insert("LOGNAME".into(), user.name);
    }
    environment
}

/// A resolver that answers later than this is as good as one that does not.
const RESOLVE: Duration = Duration::from_secs(5);

/// Complains of an address that other nodes can't reach. PostgreSQL listens on exactly this name.
pub async fn check_address(address: String) {
    if address.parse::<IpAddr>().is_ok() {
        return;
    }
    let look_up = tokio::time::timeout(RESOLVE, tokio::net::lookup_host((address.as_str(), 0))).await;
    match look_up {
        Ok(Ok(found)) => {
            if let Some(loopback) = found.map(|socket| socket.ip()).find(IpAddr::is_loopback) {
                error!(
                    address, %loopback,
                    "the advertised address is a loopback address here, other nodes can't reach this one; \
                     correct /etc/hosts or give --advertise-address"
                );
            }
        }
        Ok(Err(error)) => warn!(address, %error, "the advertised address can't be resolved"),
        Err(_) => warn!(address, "the advertised address was not resolved in time"),
    }
}
