//! The cluster data document: every decision of a stolon cluster is made by rewriting it atomically.

use super::spec::{ArchiveRecoverySettings, NewConfig, PitrConfig, StandbySettings, StolonSpec};
use super::{Extra, InvalidSpec, PostgresBinaryVersion, is_default, null_default};
use crate::{DbUid, GoDuration, GoTime, KeeperUid, ProxyUid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The only format version in existence; every component refuses others.
pub const FORMAT_VERSION: u64 = 1;
/// A keeper's generation never changes.
pub const KEEPER_GENERATION: i64 = 1;

/// The whole declared and observed state of one stolon cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClusterData {
    /// Must be [`FORMAT_VERSION`].
    #[serde(deserialize_with = "null_default")]
    pub format_version: u64,
    /// Time of the last write by a sentinel.
    pub change_time: GoTime,
    /// The cluster.
    #[serde(deserialize_with = "null_default")]
    pub cluster: Cluster,
    /// Known keepers.
    #[serde(deserialize_with = "null_default")]
    pub keepers: BTreeMap<KeeperUid, Keeper>,
    /// Assignments of data directories to keepers.
    #[serde(deserialize_with = "null_default")]
    pub dbs: BTreeMap<DbUid, Db>,
    /// What proxies are to do, and which ones live.
    #[serde(deserialize_with = "null_default")]
    pub proxy: Proxies,
    /// Members unknown to this version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Cluster data that can't be worked with.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The text is not JSON of the expected shape.
    #[error("cluster data can't be read")]
    Malformed(#[from] serde_json::Error),
    /// Another format.
    #[error("cluster data has format version {0}, this program knows {FORMAT_VERSION} only; use a matching version")]
    Format(u64),
    /// The declared specification is invalid.
    #[error("cluster data holds an invalid cluster specification")]
    Spec(#[from] InvalidSpec),
    /// Parts contradict each other.
    #[error("cluster data is inconsistent: {0}")]
    Inconsistent(String),
}

impl ClusterData {
    /// Reads cluster data and checks everything that its users rely on, so that no later step can stumble.
    ///
    /// # Errors
    /// See [`DataError`]. Never panics, whatever the bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, DataError> {
        let data: ClusterData = serde_json::from_slice(bytes)?;
        if data.format_version != FORMAT_VERSION {
            return Err(DataError::Format(data.format_version));
        }
        data.cluster.spec.clone().unwrap_or_default().effective()?;
        data.check().map_err(DataError::Inconsistent)?;
        Ok(data)
    }

    /// New cluster data as `stolonctl init` writes it.
    pub fn new(cluster_uid: &str, spec: StolonSpec, now: GoTime) -> Self {
        ClusterData {
            format_version: FORMAT_VERSION,
            cluster: Cluster {
                uid: cluster_uid.to_owned(),
                generation: 1,
                change_time: now,
                spec: Some(spec),
                status: ClusterStatus { phase: Some(ClusterPhase::Initializing), ..Default::default() },
                extra: Extra::new(),
            },
            ..Default::default()
        }
    }

    /// The invariants that every writer keeps (and without which Go's programs crash).
    ///
    /// # Errors
    /// Says which invariant is broken and where.
    pub fn check(&self) -> Result<(), String> {
        for (uid, keeper) in &self.keepers {
            if *uid != keeper.uid {
                return Err(format!("keeper \"{uid}\" calls itself \"{}\"", keeper.uid));
            }
        }
        let mut owners = BTreeMap::new();
        for (uid, db) in &self.dbs {
            if *uid != db.uid {
                return Err(format!("db \"{uid}\" calls itself \"{}\"", db.uid));
            }
            if !self.keepers.contains_key(&db.spec.keeper_uid) {
                return Err(format!("db \"{uid}\" belongs to the unknown keeper \"{}\"", db.spec.keeper_uid));
            }
            if let Some(other) = owners.insert(&db.spec.keeper_uid, uid) {
                return Err(format!("keeper \"{}\" has two dbs, \"{other}\" and \"{uid}\"", db.spec.keeper_uid));
            }
            if db.spec.role.is_none() {
                return Err(format!("db \"{uid}\" has no role"));
            }
            if db.spec.role == Some(Role::Standby) && db.spec.follow_config.is_none() {
                return Err(format!("standby db \"{uid}\" follows nobody"));
            }
        }
        let master = &self.cluster.status.master;
        if self.cluster.status.phase == Some(ClusterPhase::Normal) && !self.dbs.contains_key(master) {
            return Err(format!("the master db \"{master}\" does not exist"));
        }
        Ok(())
    }

    /// The declared specification; unset counts as empty.
    pub fn spec(&self) -> StolonSpec {
        self.cluster.spec.clone().unwrap_or_default()
    }

    /// The db of a keeper.
    pub fn db_of_keeper(&self, uid: &KeeperUid) -> Option<&Db> {
        self.dbs.values().find(|db| db.spec.keeper_uid == *uid)
    }

    /// The db that proxies forward to: the master that clients use now.
    pub fn proxied_master(&self) -> Option<&Db> {
        self.dbs.get(&self.proxy.spec.master_db_uid)
    }

    /// The keeper that runs the db which proxies forward to.
    pub fn proxied_master_keeper(&self) -> Option<&Keeper> {
        self.keepers.get(&self.proxied_master()?.spec.keeper_uid)
    }
}

/// The cluster's declared specification and its phase.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Cluster {
    /// Random at init; infos that name another one are ignored.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub uid: String,
    /// 1, never changed.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub generation: i64,
    /// Time of the last change.
    pub change_time: GoTime,
    /// As the user gave it; defaults are applied at use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spec: Option<StolonSpec>,
    /// Phase and master.
    #[serde(deserialize_with = "null_default")]
    pub status: ClusterStatus,
    /// Members unknown to this version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Phase and master of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClusterStatus {
    /// Set by nobody; kept.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub current_generation: i64,
    /// Where the cluster stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<ClusterPhase>,
    /// The wanted master; empty until one is chosen.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub master: DbUid,
    /// Members unknown to this version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Phase of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClusterPhase {
    /// The first master is being made.
    Initializing,
    /// In operation.
    Normal,
}

/// A keeper as the sentinel knows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Keeper {
    /// The keeper.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub uid: KeeperUid,
    /// Always [`KEEPER_GENERATION`].
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub generation: i64,
    /// Time of the last change.
    pub change_time: GoTime,
    /// Wanted properties; always written, even when empty.
    #[serde(deserialize_with = "null_default")]
    pub spec: KeeperSpec,
    /// Observed properties.
    #[serde(deserialize_with = "null_default")]
    pub status: KeeperStatus,
    /// Members unknown to this version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Wanted properties of a keeper.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeeperSpec {
    /// Higher is preferred as master.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub priority: i64,
    /// Members unknown to this version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Observed properties of a keeper.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KeeperStatus {
    /// Heard of within the fail interval.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub healthy: bool,
    /// Last time it was healthy.
    pub last_healthy_time: GoTime,
    /// The start of the keeper that the sentinel has seen; the keeper waits for its own value here.
    #[serde(rename = "bootUUID", deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub boot_uuid: String,
    /// Version of its PostgreSQL.
    #[serde(deserialize_with = "null_default")]
    pub postgres_binary_version: PostgresBinaryVersion,
    /// Set by `failkeeper`, cleared by the next check.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub force_fail: bool,
    /// Absent means true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_be_master: Option<bool>,
    /// Absent means true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_be_synchronous_replica: Option<bool>,
    /// Members unknown to this version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// An assignment of a data directory to a keeper.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Db {
    /// The db.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub uid: DbUid,
    /// From 1; one more at each write that changes `spec`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub generation: i64,
    /// Time of the last change.
    pub change_time: GoTime,
    /// Wanted state.
    #[serde(deserialize_with = "null_default")]
    pub spec: DbSpec,
    /// Observed state.
    #[serde(deserialize_with = "null_default")]
    pub status: DbStatus,
    /// Members unknown to this version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Db {
    /// The wanted generation is applied.
    pub fn converged(&self) -> bool {
        self.status.current_generation == self.generation
    }

    /// A primary, or a standby that follows a server outside the cluster.
    pub fn is_master_type(&self) -> bool {
        match (&self.spec.role, &self.spec.follow_config) {
            (Some(Role::Master), _) => true,
            (_, Some(follow)) => follow.kind == Some(FollowType::External),
            _ => false,
        }
    }
}

/// What a data directory is to be made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DbInitMode {
    /// Nothing: the data is there.
    None,
    /// Adopt the data that is there.
    Existing,
    /// initdb.
    New,
    /// Restore a backup and recover to a point in time.
    Pitr,
    /// Become a standby, by pg_rewind or base backup.
    Resync,
}

/// Role of a db.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read-write.
    Master,
    /// Follows another server.
    Standby,
}

/// Wanted state of a db.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DbSpec {
    /// The owner.
    #[serde(rename = "keeperUID", deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub keeper_uid: KeeperUid,
    /// Copied from the cluster specification. `null` is not allowed here.
    pub request_timeout: GoDuration,
    /// Copied from the cluster specification.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub max_standbys: u16,
    /// Commits wait for standbys.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub synchronous_replication: bool,
    /// Copied from the cluster specification.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub use_pgrewind: bool,
    /// Copied from the cluster specification.
    #[serde(deserialize_with = "null_default")]
    pub additional_wal_senders: u16,
    /// Copied for master-type dbs, otherwise `None`.
    pub additional_replication_slots: Option<Vec<String>>,
    /// What the data is to be made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_mode: Option<DbInitMode>,
    /// For init mode `new`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_config: Option<NewConfig>,
    /// For init mode `pitr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pitr_config: Option<PitrConfig>,
    /// Copied from the cluster specification.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub pg_parameters: BTreeMap<String, String>,
    /// Copied from the cluster specification.
    #[serde(rename = "pgHBA")]
    pub pg_hba: Option<Vec<String>>,
    /// Never absent in a valid document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Whom a standby follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follow_config: Option<FollowConfig>,
    /// Dbs that follow this one and need a replication slot here; sorted. Go writes `[]`, never `null`.
    #[serde(deserialize_with = "null_default")]
    pub followers: Vec<DbUid>,
    /// Start from the instance's previous parameters.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub include_previous_config: bool,
    /// Standbys that commits wait for, sorted; `None` when synchronous replication is off.
    pub synchronous_standbys: Option<Vec<DbUid>>,
    /// Raw names that commits wait for as well.
    pub external_synchronous_standbys: Option<Vec<String>>,
    /// Members unknown to this version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Whom a standby follows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FollowConfig {
    /// Never absent in a valid document.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<FollowType>,
    /// For `internal`: the followed db.
    #[serde(rename = "dbuid", deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub db_uid: DbUid,
    /// For `external`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standby_settings: Option<StandbySettings>,
    /// For `external`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive_recovery_settings: Option<ArchiveRecoverySettings>,
    /// Members unknown to this version.
    #[serde(flatten)]
    pub extra: Extra,
}

impl FollowConfig {
    /// Follow a db of this cluster.
    pub fn internal(db_uid: DbUid) -> Self {
        FollowConfig { kind: Some(FollowType::Internal), db_uid, ..Default::default() }
    }
}

/// Kind of a followed server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FollowType {
    /// A db of this cluster.
    Internal,
    /// A server outside.
    External,
}

/// Observed state of a db.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DbStatus {
    /// Reported healthy within the fail interval.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub healthy: bool,
    /// Last generation reported as applied; 0 = nothing yet.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub current_generation: i64,
    /// Advertised address.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub listen_address: String,
    /// Advertised port, as text.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub port: String,
    /// PostgreSQL's system identifier. The spelling is the stored one.
    #[serde(rename = "systemdID", deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub system_id: String,
    /// Current timeline.
    #[serde(rename = "timelineID", deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub timeline_id: u64,
    /// Position in bytes, see [`super::PostgresState::xlog_pos`].
    #[serde(rename = "xLogPos", deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub xlog_pos: u64,
    /// The last two entries of the timeline's history.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub timelines_history: Vec<TimelineHistory>,
    /// Reported parameters.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub pg_parameters: BTreeMap<String, String>,
    /// Standbys known to have been in sync since they were wanted, even if they are down now.
    pub synchronous_standbys: Option<Vec<DbUid>>,
    /// Name of the oldest WAL segment present.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub older_wal_file: String,
    /// Members unknown to this version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Where a timeline ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TimelineHistory {
    /// The timeline.
    #[serde(rename = "timelineID", deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub timeline_id: u64,
    /// Position at which the next timeline left it, in bytes.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub switch_point: u64,
    /// PostgreSQL's words.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub reason: String,
}

/// What proxies are to do, and which ones live.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Proxies {
    /// Never set; kept.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub uid: String,
    /// One more at each change of `spec`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub generation: i64,
    /// Time of the last change.
    pub change_time: GoTime,
    /// Where to forward and who may.
    #[serde(deserialize_with = "null_default")]
    pub spec: ProxySpec,
    /// Living proxies and their addresses. Always written; upstream programs write `{}`.
    #[serde(deserialize_with = "null_default")]
    pub status: BTreeMap<ProxyUid, ProxyAddress>,
    /// Members unknown to this version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Where to forward and who may.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxySpec {
    /// The db to forward to; empty = nobody may forward.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub master_db_uid: DbUid,
    /// Proxies that may forward, sorted.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub enabled_proxies: Vec<ProxyUid>,
    /// Members unknown to this version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A living proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProxyAddress {
    /// Advertised address.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub listen_address: String,
    /// Port, as text.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub port: String,
    /// Generation that the proxy has applied.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub generation: i64,
}

#[cfg(test)]
mod tests;
