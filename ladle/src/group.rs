//! A replication group as the tools reach it: its cluster data in the store, and its master.

use crate::context::Context;
use crate::error::Error;
use model::clusterspec::ClusterSpec;
use model::layout::RepGroupDoc;
use model::spec::StoreConnInfo;
use model::stolon::ClusterData;
use model::stolon::keys::{DEFAULT_PREFIX, Keys};
use model::{RepGroupId, RepGroupName};
use pg::{Endpoint, Login, Session};
use std::time::Duration;
use stolon::access::{self, AccessError};
use store::SharedStore;

/// Limit of one of the tools' statements. Waits for the extension lock have one of their own.
const STATEMENT_LIMIT: Duration = Duration::from_secs(120);

/// Where a group's stolon cluster is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the stolon cluster.
    pub name: RepGroupName,
    /// Its store; empty endpoints mean Shardman's own.
    pub store: StoreConnInfo,
    /// stolon's store prefix.
    pub prefix: String,
}

impl Place {
    /// A group that ladle made: in Shardman's own store.
    pub fn own(name: RepGroupName) -> Self {
        Place { name, store: StoreConnInfo::default(), prefix: DEFAULT_PREFIX.to_owned() }
    }

    /// A registered group.
    pub fn of(doc: &RepGroupDoc) -> Self {
        Place { name: doc.stolon_name.clone(), store: doc.store_conn_info.clone(), prefix: doc.store_prefix.clone() }
    }
}

/// A group that can be asked.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name.
    pub name: RepGroupName,
    /// The store that holds its cluster data.
    pub store: SharedStore,
    /// The keys of its cluster data.
    pub keys: Keys,
}

impl Group {
    /// Opens the group's store if it is another one than Shardman's.
    ///
    /// # Errors
    /// Its options can't be used.
    pub async fn open(ctx: &Context, place: &Place) -> Result<Self, Error> {
        let store = store::open_place(&ctx.store, &place.store).await?;
        Ok(Group { name: place.name.clone(), store, keys: Keys::new(&place.prefix, &place.name) })
    }

    /// The cluster data now.
    ///
    /// # Errors
    /// There is none, or it can't be read.
    pub async fn data(&self) -> Result<ClusterData, Error> {
        let read = access::read(&self.store, &self.keys).await;
        let found = read.and_then(|data| data.ok_or(AccessError::Absent));
        found.map(|versioned| versioned.data).map_err(|source| self.stolon(source))
    }

    /// Writes a group's number into its PostgreSQL configuration.
    ///
    /// # Errors
    /// The cluster data can't be read or written.
    pub async fn stamp(&self, id: RepGroupId) -> Result<(), Error> {
        let change = |data: &mut ClusterData| {
            let spec = data.cluster.spec.get_or_insert_default();
            spec.pg_parameters.insert(model::clusterspec::RGID_PARAMETER.to_owned(), id.to_string());
            Ok::<(), AccessError>(())
        };
        access::update(&self.store, &self.keys, change).await.map_err(|source| self.stolon(source))?;
        Ok(())
    }

    /// A session on the group's master.
    ///
    /// # Errors
    /// There is no master now, or it can't be reached.
    pub async fn connect(&self, login: &Login) -> Result<Session, Error> {
        let data = self.data().await?;
        let master = pg::endpoints::master(&data).map_err(|e| self.not_now(e.to_string()))?;
        self.connect_to(&master, login).await
    }

    /// A session on the server that is thought to be the master.
    ///
    /// # Errors
    /// It can't be reached, or it is a standby.
    pub async fn connect_to(&self, master: &Endpoint, login: &Login) -> Result<Session, Error> {
        let endpoints = pg::Endpoints(vec![master.clone()]);
        let session = pg::connect(&endpoints, login, pg::connect::TIMEOUT)
            .await
            .map_err(|source| Error::Connect { group: self.name.clone(), source })?;
        // A round trip of its own, before any statement that holds a secret.
        session.batch_execute(&session_settings()).await.map_err(self.sql("set up a session"))?;
        let row =
            session.query_one("SELECT pg_is_in_recovery()", &[]).await.map_err(self.sql("look for the master"))?;
        if row.get(0) {
            return Err(self.not_now(format!("{master} is a standby")));
        }
        Ok(session)
    }

    fn not_now(&self, state: String) -> Error {
        Error::NotReady { group: self.name.clone(), state, after: Duration::ZERO }
    }

    fn stolon(&self, source: AccessError) -> Error {
        Error::Stolon { group: self.name.clone(), source }
    }

    /// Makes an error out of PostgreSQL's: `what` says what the statement was to do.
    pub fn sql(&self, what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Error + use<> {
        let group = self.name.clone();
        move |source| Error::Sql { what, group, source }
    }
}

/// Settings of a superuser's session that writes nothing of its statements and their parameters into the server's
/// log, whatever the cluster's configuration asks for.
const QUIET_SETTINGS: [(&str, &str); 8] = [
    ("log_statement", "none"),
    ("log_min_error_statement", "panic"),
    ("log_min_duration_statement", "-1"),
    ("log_min_duration_sample", "-1"),
    ("log_transaction_sample_rate", "0"),
    ("log_duration", "off"),
    ("log_parameter_max_length", "0"),
    ("log_parameter_max_length_on_error", "0"),
];

/// [`QUIET_SETTINGS`] for `PGOPTIONS`.
pub(crate) fn quiet_options() -> String {
    QUIET_SETTINGS.map(|(name, value)| format!("-c {name}={value}")).join(" ")
}

/// The tools' own statements are not for other groups, contain passwords that no log may show, and must not depend
/// on what the cluster's configuration says about sessions.
fn session_settings() -> String {
    let quiet = QUIET_SETTINGS.map(|(name, value)| format!("SET {name} = '{value}'")).join("; ");
    format!(
        "{quiet}; SET shardman.broadcast_utility = off; SET search_path = public; SET statement_timeout = {}; SET lock_timeout = 0; \
         SET idle_in_transaction_session_timeout = 0; SET default_transaction_isolation = 'read committed'; \
         SET default_transaction_read_only = off",
        STATEMENT_LIMIT.as_millis()
    )
}

/// The superuser under the tools' application name.
pub fn login(spec: &ClusterSpec) -> Login {
    Login::superuser(spec, "ladle")
}
