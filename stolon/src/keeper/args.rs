//! The keeper's command line, and what it means after its rules were checked.

mod account;

pub use account::{Access, Account, AuthMethod, ConnectionType};

use crate::cli::{CommonArgs, VERSION};
use account::password;
use clap::{ArgAction, Parser};
use common::cli::parse_bool;
use common::exit::UsageError;
use model::KeeperUid;
use pg::{SslMode, Tls};
use std::path::PathBuf;
use tracing::warn;

/// Owns one PostgreSQL instance and makes it what the cluster data says
#[derive(Debug, Parser)]
#[command(name = "stolon-keeper", version = VERSION)]
#[command(
    after_help = "SIGTERM stops PostgreSQL and the keeper. SIGUSR1 ends the keeper alone: the next one, which has to \
start within 15 s, takes the running PostgreSQL over, as for an upgrade."
)]
#[allow(missing_docs, reason = "doc comments of members become help texts; that of the flattened one must not")]
pub struct Args {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Keeper UID (a-z, 0-9 and _); generated and remembered if not given
    #[arg(long, alias = "id", value_name = "UID")]
    pub uid: Option<String>,
    /// The keeper's directory (required); PostgreSQL's data is in its subdirectory postgres
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Directory for PostgreSQL's WAL; by default it stays with the data. Existing WAL is moved at the next start
    #[arg(long, value_name = "DIR")]
    pub wal_dir: Option<PathBuf>,
    /// PostgreSQL's listen_addresses (required)
    #[arg(long, value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    pub pg_listen_address: String,
    /// PostgreSQL's port
    #[arg(long, value_name = "PORT", default_value_t = 5432)]
    pub pg_port: u16,
    /// Address that others use; by default the listen address
    #[arg(long, value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    pub pg_advertise_address: String,
    /// Port that others use; by default --pg-port
    #[arg(long, value_name = "PORT")]
    pub pg_advertise_port: Option<u16>,
    /// Directory of PostgreSQL's programs; by default PATH is searched
    #[arg(long, value_name = "DIR")]
    pub pg_bin_path: Option<PathBuf>,
    /// Directory of PostgreSQL's Unix socket; created with mode 0700 if it is missing
    #[arg(long, value_name = "DIR", default_value = "/tmp")]
    pub pg_unix_socket_dir: PathBuf,
    /// Superuser; by default the user that the keeper runs as
    #[arg(long, value_name = "NAME")]
    pub pg_su_username: Option<String>,
    /// The superuser's password; visible to others in the process list; prefer the file
    #[arg(long, value_name = "PASSWORD", hide_env_values = true)]
    pub pg_su_password: Option<String>,
    /// File with the superuser's password
    #[arg(long, value_name = "FILE")]
    pub pg_su_passwordfile: Option<PathBuf>,
    /// The superuser's authentication
    #[arg(long, value_enum, value_name = "METHOD", default_value = "md5")]
    pub pg_su_auth_method: AuthMethod,
    /// The superuser's authentication over the Unix socket; by default the same, and peer in place of cert
    #[arg(long, value_enum, value_name = "METHOD")]
    pub pg_su_local_auth_method: Option<AuthMethod>,
    /// Which TCP connections the superuser may use; by default host, and hostssl with cert
    #[arg(long, value_enum, value_name = "TYPE")]
    pub pg_su_connection_type: Option<ConnectionType>,
    /// Replication user (required)
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub pg_repl_username: String,
    /// The replication user's password; visible to others in the process list; prefer the file
    #[arg(long, value_name = "PASSWORD", hide_env_values = true)]
    pub pg_repl_password: Option<String>,
    /// File with the replication user's password
    #[arg(long, value_name = "FILE")]
    pub pg_repl_passwordfile: Option<PathBuf>,
    /// The replication user's authentication
    #[arg(long, value_enum, value_name = "METHOD", default_value = "md5")]
    pub pg_repl_auth_method: AuthMethod,
    /// The replication user's authentication over the Unix socket; by default the same, and peer in place of cert
    #[arg(long, value_enum, value_name = "METHOD")]
    pub pg_repl_local_auth_method: Option<AuthMethod>,
    /// Which TCP connections the replication user may use; by default host, and hostssl with cert
    #[arg(long, value_enum, value_name = "TYPE")]
    pub pg_repl_connection_type: Option<ConnectionType>,
    /// TLS to the other members' PostgreSQL: disable, prefer, require, verify-ca or verify-full
    #[arg(long, value_name = "MODE", default_value_t = SslMode::Prefer)]
    pub pg_repl_ssl_mode: SslMode,
    /// Certificates (PEM) that the other members' certificates are verified against
    #[arg(long, value_name = "FILE")]
    pub pg_ssl_root_cert: Option<PathBuf>,
    /// Client certificate (PEM) for the other members
    #[arg(long, value_name = "FILE")]
    pub pg_ssl_cert: Option<PathBuf>,
    /// Its key (PEM), readable for PostgreSQL's user only
    #[arg(long, value_name = "FILE")]
    pub pg_ssl_key: Option<PathBuf>,
    /// May be chosen as new master
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = true, action = ArgAction::Set,
          value_parser = parse_bool)]
    pub can_be_master: bool,
    /// May be added to the synchronous set
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = true, action = ArgAction::Set,
          value_parser = parse_bool)]
    pub can_be_synchronous_replica: bool,
    /// Don't lock the data directory
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set,
          value_parser = parse_bool)]
    pub disable_data_dir_locking: bool,
    /// Copy a standby's data anew when they are gone. Not by default: a disk that is not mounted looks the same, and the
    /// copy would fill the one below it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set,
          value_parser = parse_bool)]
    pub rebuild_lost_standby: bool,
    /// Priority as master, higher is preferred; if not given the stored one stays
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub priority: Option<i64>,
}

/// The checked command line.
#[derive(Clone, Debug)]
pub struct Config {
    /// Wanted keeper UID.
    pub uid: Option<KeeperUid>,
    /// The keeper's directory.
    pub data_dir: PathBuf,
    /// Where WAL goes; `None` leaves it with the data.
    pub wal_dir: Option<PathBuf>,
    /// `listen_addresses`.
    pub listen_address: String,
    /// `port`.
    pub port: u16,
    /// Published address.
    pub advertise_address: String,
    /// Published port.
    pub advertise_port: u16,
    /// Where the binaries are; `None` searches.
    pub bin_path: Option<PathBuf>,
    /// `unix_socket_directories`.
    pub socket_dir: PathBuf,
    /// Superuser.
    pub su: Account,
    /// Replication user.
    pub repl: Account,
    /// TLS to the other members.
    pub tls: Tls,
    /// See the flag.
    pub can_be_master: bool,
    /// See the flag.
    pub can_be_synchronous_replica: bool,
    /// Lock the directory.
    pub locking: bool,
    /// Copy a standby's lost data anew.
    pub rebuild_lost_standby: bool,
    /// See the flag.
    pub priority: Option<i64>,
}

impl Args {
    /// Checks the rules of the flags. `os_user` is the user that the keeper runs as.
    ///
    /// # Errors
    /// Says which flag breaks which rule.
    pub fn config(&self, os_user: &str) -> anyhow::Result<Config> {
        let usage = |text: String| anyhow::Error::from(UsageError(text));
        if let Some(uid) = &self.uid
            && !is_uid(uid)
        {
            return Err(usage(format!("--uid \"{uid}\" is not valid; use a-z, 0-9 and _ only")));
        }
        if let Some(dir) = self.wal_dir.as_ref().filter(|dir| !dir.is_absolute()) {
            return Err(usage(format!("--wal-dir {} is not an absolute path", dir.display())));
        }
        let data_dir = self.data_dir.clone().ok_or_else(|| usage("--data-dir is missing; name a directory".into()))?;
        if self.wal_dir.as_ref().is_some_and(|dir| dir.starts_with(data_dir.join("postgres"))) {
            return Err(usage("--wal-dir is inside PostgreSQL's own directory; name another one".into()));
        }
        for (flag, value) in
            [("--pg-listen-address", &self.pg_listen_address), ("--pg-repl-username", &self.pg_repl_username)]
        {
            if value.is_empty() {
                return Err(usage(format!("{flag} is missing")));
            }
        }
        if self.pg_advertise_address.is_empty() && self.pg_listen_address.contains(['*', ',']) {
            return Err(usage("--pg-listen-address names several addresses; give --pg-advertise-address too".into()));
        }
        let (su, repl) = self.accounts(os_user)?;
        if su.user == repl.user {
            warn!("superuser and replication user are the same; two users are better");
            if su != repl {
                return Err(usage(
                    "superuser and replication user are the same, so --pg-su-… and --pg-repl-… must give the same method and password".into(),
                ));
            }
        }
        let pick = |given: &String, default: &String| if given.is_empty() { default.clone() } else { given.clone() };
        Ok(Config {
            uid: self.uid.as_deref().map(KeeperUid::from),
            data_dir,
            wal_dir: self.wal_dir.clone(),
            listen_address: self.pg_listen_address.clone(),
            port: self.pg_port,
            advertise_address: pick(&self.pg_advertise_address, &self.pg_listen_address),
            advertise_port: self.pg_advertise_port.unwrap_or(self.pg_port),
            bin_path: self.pg_bin_path.clone(),
            socket_dir: self.pg_unix_socket_dir.clone(),
            su,
            repl,
            tls: self.tls().map_err(usage)?,
            can_be_master: self.can_be_master,
            can_be_synchronous_replica: self.can_be_synchronous_replica,
            locking: !self.disable_data_dir_locking,
            rebuild_lost_standby: self.rebuild_lost_standby,
            priority: self.priority,
        })
    }

    fn accounts(&self, os_user: &str) -> anyhow::Result<(Account, Account)> {
        let su = (self.pg_su_auth_method, self.pg_su_local_auth_method, self.pg_su_connection_type);
        let su = Access::new("su", su.0, su.1, su.2)?;
        let repl = (self.pg_repl_auth_method, self.pg_repl_local_auth_method, self.pg_repl_connection_type);
        let repl = Access::new("repl", repl.0, repl.1, repl.2)?;
        let su = Account {
            user: self.pg_su_username.clone().unwrap_or_else(|| os_user.to_owned()),
            password: password("su", su, &self.pg_su_password, &self.pg_su_passwordfile)?,
            access: su,
        };
        let repl = Account {
            user: self.pg_repl_username.clone(),
            password: password("repl", repl, &self.pg_repl_password, &self.pg_repl_passwordfile)?,
            access: repl,
        };
        Ok((su, repl))
    }

    /// The files themselves are read later, as PostgreSQL's user, who has to be able to read them.
    fn tls(&self) -> Result<Tls, String> {
        let absolute = |file: &Option<PathBuf>| file.as_ref().map(std::path::absolute).transpose();
        let tls = || {
            std::io::Result::Ok(Tls {
                mode: self.pg_repl_ssl_mode,
                root_cert: absolute(&self.pg_ssl_root_cert)?,
                cert: absolute(&self.pg_ssl_cert)?,
                key: absolute(&self.pg_ssl_key)?,
            })
        };
        let tls = tls().map_err(|error| format!("a file of --pg-ssl-… can't be found: {error}"))?;
        if tls.cert.is_some() != tls.key.is_some() {
            return Err("give both --pg-ssl-cert and --pg-ssl-key or none of them".into());
        }
        for (user, method) in [("su", self.pg_su_auth_method), ("repl", self.pg_repl_auth_method)] {
            if method == AuthMethod::Cert && (tls.cert.is_none() || tls.mode == SslMode::Disable) {
                return Err(format!(
                    "--pg-{user}-auth-method cert needs --pg-ssl-cert, --pg-ssl-key and a --pg-repl-ssl-mode other than disable"
                ));
            }
        }
        if matches!(tls.mode, SslMode::VerifyCa | SslMode::VerifyFull) && tls.root_cert.is_none() {
            return Err(format!("--pg-repl-ssl-mode {} needs --pg-ssl-root-cert", tls.mode));
        }
        Ok(tls)
    }

    /// Warns about a doubtful advertised address.
    pub fn warn(&self) {
        let address =
            if self.pg_advertise_address.is_empty() { &self.pg_listen_address } else { &self.pg_advertise_address };
        match address.parse::<std::net::IpAddr>() {
            Ok(ip) if ip.is_loopback() => warn!(address, "other hosts can't reach the advertised loopback address"),
            Ok(_) => {}
            Err(_) => {
                warn!(address, "the advertised address is a host name; PostgreSQL will depend on name resolution")
            }
        }
    }
}

fn is_uid(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: &[&str]) -> anyhow::Result<Config> {
        let mut line = vec!["stolon-keeper", "--cluster-name", "c", "--store-backend", "etcdv3", "--data-dir", "/d"];
        line.extend(["--pg-listen-address", "127.0.0.1", "--pg-repl-username", "repl"]);
        line.extend(extra);
        Args::try_parse_from(line)?.config("postgres")
    }

    const TRUST: [&str; 4] = ["--pg-su-auth-method", "trust", "--pg-repl-auth-method", "trust"];

    #[test]
    fn defaults_follow_other_flags() {
        let config = parse(&TRUST).unwrap();
        assert_eq!((config.su.user.as_str(), config.advertise_address.as_str()), ("postgres", "127.0.0.1"));
        assert_eq!((config.advertise_port, config.locking, config.priority), (5432, true, None));
        let config =
            parse(&[&TRUST[..], &["--can-be-master=false", "--priority", "-3", "--pg-port=7"]].concat()).unwrap();
        assert_eq!((config.can_be_master, config.priority, config.advertise_port), (false, Some(-3), 7));
    }

    #[test]
    fn tls_is_preferred_and_checked() {
        let tls = parse(&TRUST).unwrap().tls;
        assert_eq!(tls, Tls::default());
        let files = ["--pg-ssl-root-cert", "r", "--pg-ssl-cert", "/c", "--pg-ssl-key", "/k"];
        let tls = parse(&[&TRUST[..], &files, &["--pg-repl-ssl-mode", "verify-full"]].concat()).unwrap().tls;
        assert_eq!((tls.mode, tls.cert), (SslMode::VerifyFull, Some("/c".into())));
        assert!(tls.root_cert.is_some_and(|file| file.is_absolute()), "PostgreSQL works in another directory");
        let cert = ["--pg-su-auth-method", "cert", "--pg-repl-auth-method", "cert"];
        assert_eq!(parse(&[&cert[..], &files].concat()).unwrap().repl.access, AuthMethod::Cert.into());
        for bad in [
            [&TRUST[..], &["--pg-repl-ssl-mode", "verify-ca"]].concat(),
            [&TRUST[..], &["--pg-repl-ssl-mode", "always"]].concat(),
            [&TRUST[..], &["--pg-ssl-key", "/k"]].concat(),
            cert.to_vec(),
            [&cert[..], &files, &["--pg-repl-ssl-mode", "disable"]].concat(),
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn rules_are_checked() {
        let su_trust = ["--pg-su-auth-method", "trust"];
        for bad in [
            vec![],
            [&TRUST[..], &["--uid", "A-b"]].concat(),
            [&TRUST[..], &["--wal-dir", "wal"]].concat(),
            [&TRUST[..], &["--wal-dir", "/d/postgres/wal"]].concat(),
            [&TRUST[..], &["--pg-su-password", "x"]].concat(),
            [&su_trust[..], &["--pg-repl-password", "x", "--pg-repl-passwordfile", "/f"]].concat(),
            [&su_trust[..], &["--pg-repl-passwordfile", "/nonexistent/file"]].concat(),
            [&TRUST[..], &["--pg-listen-address", "*"]].concat(),
            vec!["--pg-su-username", "repl", "--pg-su-password", "a", "--pg-repl-password", "b"],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }
}
