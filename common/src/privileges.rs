//! PostgreSQL refuses to run as root: programs that start it switch to another user first.

use anyhow::{Context as _, bail};
use nix::unistd::{Gid, Uid, User};

/// The user that PostgreSQL runs as when we are root.
pub const POSTGRES_USER: &str = "postgres";

/// A user of the operating system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OsUser {
    /// Login name.
    pub name: String,
    /// Number.
    pub uid: u32,
    /// Number of the primary group.
    pub gid: u32,
}

/// True for root.
pub fn is_root() -> bool {
    Uid::effective().is_root()
}

/// The user that this process runs as.
///
/// # Errors
/// The user's number has no name.
pub fn current_user() -> anyhow::Result<OsUser> {
    let uid = Uid::effective();
    let user = User::from_uid(uid)?.with_context(|| format!("user number {uid} has no name in the user database"))?;
    Ok(OsUser { name: user.name, uid: uid.as_raw(), gid: Gid::effective().as_raw() })
}

/// Looks a user up.
///
/// # Errors
/// There is no such user.
pub fn user(name: &str) -> anyhow::Result<OsUser> {
    match User::from_name(name)? {
        Some(user) => Ok(OsUser { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() }),
        None => bail!("there is no user \"{name}\"; install PostgreSQL, which makes it, or name another user"),
    }
}

/// Becomes the user for good. Must be called before other threads start.
///
/// # Errors
/// We are not root, or the kernel refuses.
pub fn become_user(user: &OsUser) -> anyhow::Result<()> {
    let name = std::ffi::CString::new(user.name.as_str())?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    nix::unistd::initgroups(&name, gid)
        .and_then(|()| nix::unistd::setgid(gid))
        .and_then(|()| nix::unistd::setuid(uid))
        .with_context(|| format!("switch to user {}", user.name))
}

/// When root, becomes `postgres` for good. Must be called before other threads start.
///
/// # Errors
/// There is no such user.
pub fn leave_root() -> anyhow::Result<()> {
    if is_root() { become_user(&user(POSTGRES_USER)?) } else { Ok(()) }
}
