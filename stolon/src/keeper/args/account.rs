//! The users of PostgreSQL that the keeper works as, and how they prove who they are.

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use common::exit::UsageError;
use model::clusterspec::Password;
use std::path::{Path, PathBuf};
use tracing::warn;

/// How a user of PostgreSQL proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuthMethod {
    /// Password; PostgreSQL uses SCRAM by itself where the stored secret is one.
    Md5,
    /// Password by SCRAM only.
    #[value(name = "scram-sha-256")]
    ScramSha256,
    /// Anybody who reaches the server.
    Trust,
    /// TLS client certificate with the user's name; over the Unix socket the operating system's word.
    Cert,
    /// The word of an ident server; over the Unix socket the operating system's word.
    Ident,
    /// The operating system's word; over the Unix socket only.
    Peer,
}

impl AuthMethod {
    /// As it stands in pg_hba.conf.
    pub fn as_str(self) -> &'static str {
        match self {
            AuthMethod::Md5 => "md5",
            AuthMethod::ScramSha256 => "scram-sha-256",
            AuthMethod::Trust => "trust",
            AuthMethod::Cert => "cert",
            AuthMethod::Ident => "ident",
            AuthMethod::Peer => "peer",
        }
    }

    fn wants_password(self) -> bool {
        matches!(self, AuthMethod::Md5 | AuthMethod::ScramSha256)
    }
}

/// Which connections over TCP a line of pg_hba.conf is for; its first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConnectionType {
    /// All.
    Host,
    /// With TLS.
    Hostssl,
    /// Without TLS.
    Hostnossl,
    /// With encryption by GSSAPI.
    Hostgssenc,
    /// Without encryption by GSSAPI.
    Hostnogssenc,
}

impl ConnectionType {
    /// As it stands in pg_hba.conf.
    pub fn as_str(self) -> &'static str {
        match self {
            ConnectionType::Host => "host",
            ConnectionType::Hostssl => "hostssl",
            ConnectionType::Hostnossl => "hostnossl",
            ConnectionType::Hostgssenc => "hostgssenc",
            ConnectionType::Hostnogssenc => "hostnogssenc",
        }
    }
}

/// How a user is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Over TCP.
    pub method: AuthMethod,
    /// Over the Unix socket.
    pub local: AuthMethod,
    /// Over which connections.
    pub connection: ConnectionType,
}

impl From<AuthMethod> for Access {
    fn from(method: AuthMethod) -> Self {
        let local = if method == AuthMethod::Cert { AuthMethod::Peer } else { method };
        let connection = if method == AuthMethod::Cert { ConnectionType::Hostssl } else { ConnectionType::Host };
        Access { method, local, connection }
    }
}

impl Access {
    /// Checks what was asked for; what was not follows from the method. `who` is `su` or `repl`, as in the flags.
    pub(super) fn new(
        who: &str,
        method: AuthMethod,
        local: Option<AuthMethod>,
        connection: Option<ConnectionType>,
    ) -> Result<Self, UsageError> {
        let default = Access::from(method);
        let local = match local {
            Some(AuthMethod::Cert) => AuthMethod::Peer,
            Some(local) => local,
            None => default.local,
        };
        let access = Access { method, local, connection: connection.unwrap_or(default.connection) };
        if method == AuthMethod::Peer {
            return Err(UsageError(format!(
                "--pg-{who}-auth-method peer works over Unix sockets only, but keepers reach each other over TCP; give another \
                 method, and --pg-{who}-local-auth-method peer"
            )));
        }
        if method == AuthMethod::Cert && access.connection != ConnectionType::Hostssl {
            return Err(UsageError(format!(
                "--pg-{who}-auth-method cert needs TLS, so --pg-{who}-connection-type can only be hostssl"
            )));
        }
        Ok(access)
    }
}

/// A user of PostgreSQL that the keeper works as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Role name.
    pub user: String,
    /// Empty where no method needs one.
    pub password: Password,
    /// Authentication.
    pub access: Access,
}

pub(super) fn password(
    who: &str,
    access: Access,
    given: &Option<String>,
    file: &Option<PathBuf>,
) -> anyhow::Result<Password> {
    if !access.method.wants_password() && !access.local.wants_password() {
        if given.is_none() && file.is_none() {
            return Ok(Password::default());
        }
        bail!(UsageError(format!(
            "--pg-{who}-auth-method is {}, which needs no password; leave --pg-{who}-password and --pg-{who}-passwordfile out",
            access.method.as_str()
        )));
    }
    match (given, file) {
        (Some(password), None) if !password.is_empty() => Ok(Password::from(password.as_str())),
        (None, Some(file)) => read_password(file),
        _ => bail!(UsageError(format!("give either --pg-{who}-password or --pg-{who}-passwordfile"))),
    }
}

fn read_password(file: &Path) -> anyhow::Result<Password> {
    use std::os::unix::fs::PermissionsExt as _;
    let read = || anyhow::Ok((std::fs::read_to_string(file)?, std::fs::metadata(file)?.permissions().mode()));
    let (text, mode) = read().with_context(|| format!("read the password file {}", file.display()))?;
    if mode & 0o077 != 0 {
        warn!(file = %file.display(), "others may read the password file; chmod 0600 it");
    }
    let password = text.trim_end_matches(['\r', '\n']);
    if password.len() != text.len() {
        warn!(file = %file.display(), "the password file ends with a line break, which is not taken as part of the password");
    }
    if password.is_empty() {
        bail!("the password file {} is empty; write the password into it", file.display());
    }
    if password.contains(['\n', '\0']) {
        bail!("the password file {} has more than one line; write the password only", file.display());
    }
    Ok(Password::from(password))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_follows_from_the_method() {
        let access = |method, local, connection| Access::new("su", method, local, connection).ok();
        assert_eq!(access(AuthMethod::Md5, None, None), Some(AuthMethod::Md5.into()));
        let cert = access(AuthMethod::Cert, None, None).unwrap();
        assert_eq!((cert.local, cert.connection), (AuthMethod::Peer, ConnectionType::Hostssl));
        let mixed = access(AuthMethod::ScramSha256, Some(AuthMethod::Cert), Some(ConnectionType::Hostgssenc)).unwrap();
        assert_eq!((mixed.local, mixed.connection), (AuthMethod::Peer, ConnectionType::Hostgssenc));
        assert_eq!(access(AuthMethod::Peer, None, None), None);
        assert_eq!(access(AuthMethod::Cert, None, Some(ConnectionType::Host)), None);
    }

    #[test]
    fn a_password_is_there_exactly_if_a_method_wants_one() {
        let given = Some("p".to_owned());
        let with = |access: Access, given: &Option<String>| password("su", access, given, &None).is_ok();
        for method in [AuthMethod::Trust, AuthMethod::Cert, AuthMethod::Ident] {
            assert!(with(method.into(), &None) && !with(method.into(), &given), "{method:?}");
            let local = Access { local: AuthMethod::Md5, ..method.into() };
            assert!(with(local, &given) && !with(local, &None), "{method:?}");
        }
        let access = Access { local: AuthMethod::Peer, ..AuthMethod::ScramSha256.into() };
        assert!(with(access, &given) && !with(access, &None));
    }

    #[test]
    fn password_files_lose_their_line_end_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p");
        for (text, wanted) in [("a b\r\n", Some("a b")), (" x", Some(" x")), ("\n", None), ("", None), ("a\nb", None)] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(read_password(&file).ok().map(|p| p.reveal().to_owned()).as_deref(), wanted, "{text:?}");
        }
    }
}
