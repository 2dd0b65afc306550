//! Connections with deadlines.

use crate::Endpoints;
use crate::tls::{self, OpenError, Tls, TlsError};
use model::clusterspec::{AuthMethod, ClusterSpec, DATABASE, Password};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config};

/// Limit of connecting and of each of the tools' own statements: a hung server must not hang a daemon.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Who connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Role.
    pub user: String,
    /// Its password; empty for none.
    pub password: Password,
    /// Shown in `pg_stat_activity`. Must not contain `postgres_fdw` or `pgfdw:`, which mark a coordinator's sessions.
    pub application: String,
}

impl Login {
    /// The superuser of a cluster.
    pub fn superuser(spec: &ClusterSpec, application: &str) -> Self {
        let password =
            if spec.pg_su_auth_method == AuthMethod::Trust { Password::default() } else { spec.pg_su_password.clone() };
        Login { user: spec.pg_su_username.clone(), password, application: application.to_owned() }
    }
}

/// No connection. The text holds no secret.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server or the network refused.
    #[error("connect to PostgreSQL at {endpoints}")]
    Refused {
        /// Where.
        endpoints: String,
        /// Why.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The TLS settings, which come from libpq's variables, can't be used.
    #[error("connect to PostgreSQL at {endpoints}")]
    Tls {
        /// Where.
        endpoints: String,
        /// Why.
        #[source]
        source: TlsError,
    },
    /// No answer.
    #[error("PostgreSQL at {endpoints} did not answer within {} s", .after.as_secs())]
    Timeout {
        /// Where.
        endpoints: String,
        /// The limit.
        after: Duration,
    },
}

/// A connection with its background task, which ends when this is dropped.
#[derive(Debug)]
pub struct Session {
    client: Client,
    task: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::ops::Deref for Session {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl std::ops::DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// Connects to the first endpoint that answers, to the database `postgres`, with `statement_timeout` set to `timeout`.
/// libpq's variables `PGSSL…` decide about TLS, see [`Tls::from_env`].
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(endpoints: &Endpoints, login: &Login, timeout: Duration) -> Result<Session, ConnectError> {
    let mut config = Config::new();
    for endpoint in &endpoints.0 {
        config.host(&endpoint.host).port(endpoint.port);
    }
    config.user(&login.user).dbname(DATABASE).application_name(&login.application).connect_timeout(timeout);
    config.options(format!("-c statement_timeout={}", timeout.as_millis()));
    config.keepalives(true).keepalives_idle(timeout);
    if !login.password.is_empty() {
        config.password(login.password.reveal());
    }
    let names = || endpoints.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let open = async { tls::open(&config, &Tls::from_env()?, || ()).await };
    match tokio::time::timeout(timeout, open).await {
        Ok(Ok((client, task))) => Ok(Session { client, task }),
        Ok(Err(OpenError::Postgres(source))) => Err(ConnectError::Refused { endpoints: names(), source }),
        Ok(Err(OpenError::Tls(source))) => Err(ConnectError::Tls { endpoints: names(), source }),
        Err(_) => Err(ConnectError::Timeout { endpoints: names(), after: timeout }),
    }
}
