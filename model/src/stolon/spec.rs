//! The specification of a stolon cluster: as the user gave it, with defaults applied, and its rules.

use super::{Extra, is_default, null_default};
use crate::{GoDuration, KeeperUid};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The user's specification. Unset members stay unset in the store; [`StolonSpec::effective`] applies defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StolonSpec {
    /// Pause between a keeper's loops and between a sentinel's checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sleep_interval: Option<GoDuration>,
    /// Limit of a keeper's SQL queries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<GoDuration>,
    /// Time for a db to reach a wanted generation in ordinary operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub convergence_timeout: Option<GoDuration>,
    /// The same while the first master is initialised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_timeout: Option<GoDuration>,
    /// The same while a standby resyncs; zero = unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_timeout: Option<GoDuration>,
    /// Wait for a started instance to accept connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub db_wait_ready_timeout: Option<GoDuration>,
    /// How long an error must last before a keeper or db is unhealthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail_interval: Option<GoDuration>,
    /// Unhealthy keepers without db are dropped after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_keeper_removal_interval: Option<GoDuration>,
    /// Pause between a proxy's checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_check_interval: Option<GoDuration>,
    /// A proxy cuts everything off after so long without a good check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_timeout: Option<GoDuration>,
    /// Sizes `max_replication_slots` and `max_wal_senders`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_standbys: Option<u16>,
    /// Wanted number of standbys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_standbys_per_sender: Option<u16>,
    /// Largest lag, in bytes, of a standby that may be elected without synchronous replication.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_standby_lag: Option<u32>,
    /// Commits wait for standbys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synchronous_replication: Option<bool>,
    /// Below so many standbys in the synchronous set, commits block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_synchronous_standbys: Option<u16>,
    /// Largest synchronous set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_synchronous_standbys: Option<u16>,
    /// Further `max_wal_senders`.
    pub additional_wal_senders: Option<u16>,
    /// Further physical slots on the master, stored without the `stolon_` prefix.
    pub additional_master_replication_slots: Option<Vec<String>>,
    /// Resync by pg_rewind where possible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_pgrewind: Option<bool>,
    /// How the cluster begins; mandatory, never changed later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_mode: Option<InitMode>,
    /// Adopt the initialised instance's parameters into the specification.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merge_pg_parameters: Option<bool>,
    /// A primary cluster, or one that replicates from a server outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<ClusterRole>,
    /// For init mode `new`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_config: Option<NewConfig>,
    /// For init mode `pitr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pitr_config: Option<PitrConfig>,
    /// For init mode `existing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub existing_config: Option<ExistingConfig>,
    /// For role `standby`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standby_config: Option<StandbyConfig>,
    /// Who may connect as superuser and for replication.
    #[serde(rename = "defaultSUReplAccessMode", skip_serializing_if = "Option::is_none")]
    pub default_su_repl_access_mode: Option<SuReplAccess>,
    /// PostgreSQL parameters.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub pg_parameters: BTreeMap<String, String>,
    /// Further lines of pg_hba.conf. Absent and `[]` differ: absent adds stolon's own two lines.
    #[serde(rename = "pgHBA")]
    pub pg_hba: Option<Vec<String>>,
    /// Restart PostgreSQL when a changed parameter needs it.
    pub automatic_pg_restart: Option<bool>,
    /// Members unknown to this version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// How a cluster begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InitMode {
    /// initdb.
    New,
    /// Adopt the data of one keeper.
    Existing,
    /// Restore a backup.
    Pitr,
}

/// Whether the cluster has a primary of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClusterRole {
    /// It has.
    #[default]
    Master,
    /// It follows a server outside.
    Standby,
}

/// Whose addresses may connect as superuser and for replication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SuReplAccess {
    /// Any.
    #[default]
    All,
    /// The cluster's own dbs.
    Strict,
}

/// initdb's options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NewConfig {
    /// Locale.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub locale: String,
    /// Encoding.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub encoding: String,
    /// Checksums on data pages.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub data_checksums: bool,
}

/// Point-in-time recovery.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PitrConfig {
    /// Shell command that fills the data directory `%d`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub data_restore_command: String,
    /// Where WAL comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive_recovery_settings: Option<ArchiveRecoverySettings>,
    /// Where to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_target_settings: Option<RecoveryTargetSettings>,
}

/// Adoption of an instance that exists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExistingConfig {
    /// The keeper that has it.
    #[serde(rename = "keeperUID", deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub keeper_uid: KeeperUid,
}

/// Following a server outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StandbyConfig {
    /// How to reach it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standby_settings: Option<StandbySettings>,
    /// Where WAL comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive_recovery_settings: Option<ArchiveRecoverySettings>,
}

/// How a standby reaches its primary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StandbySettings {
    /// `primary_conninfo`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub primary_conninfo: String,
    /// `primary_slot_name`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub primary_slot_name: String,
    /// `recovery_min_apply_delay`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub recovery_min_apply_delay: String,
}

/// Where archived WAL comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ArchiveRecoverySettings {
    /// `restore_command`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub restore_command: String,
}

/// Where recovery stops; PostgreSQL's `recovery_target…` parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RecoveryTargetSettings {
    /// `recovery_target`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub recovery_target: String,
    /// `recovery_target_lsn`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub recovery_target_lsn: String,
    /// `recovery_target_name`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub recovery_target_name: String,
    /// `recovery_target_time`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub recovery_target_time: String,
    /// `recovery_target_xid`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub recovery_target_xid: String,
    /// `recovery_target_timeline`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub recovery_target_timeline: String,
}

/// The specification with stolon's defaults applied and its rules checked.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "each member is documented at its namesake in StolonSpec")]
pub struct EffectiveSpec {
    pub sleep_interval: GoDuration,
    pub request_timeout: GoDuration,
    pub convergence_timeout: GoDuration,
    pub init_timeout: GoDuration,
    pub sync_timeout: GoDuration,
    pub db_wait_ready_timeout: GoDuration,
    pub fail_interval: GoDuration,
    pub dead_keeper_removal_interval: GoDuration,
    pub proxy_check_interval: GoDuration,
    pub proxy_timeout: GoDuration,
    pub max_standbys: u16,
    pub max_standbys_per_sender: u16,
    pub max_standby_lag: u32,
    pub synchronous_replication: bool,
    pub min_synchronous_standbys: u16,
    pub max_synchronous_standbys: u16,
    pub additional_wal_senders: u16,
    pub additional_master_replication_slots: Option<Vec<String>>,
    pub use_pgrewind: bool,
    pub init_mode: InitMode,
    pub merge_pg_parameters: bool,
    pub role: ClusterRole,
    pub new_config: Option<NewConfig>,
    pub pitr_config: Option<PitrConfig>,
    pub existing_config: Option<ExistingConfig>,
    pub standby_config: Option<StandbyConfig>,
    #[serde(rename = "defaultSUReplAccessMode")]
    pub default_su_repl_access_mode: SuReplAccess,
    pub pg_parameters: Option<BTreeMap<String, String>>,
    #[serde(rename = "pgHBA")]
    pub pg_hba: Option<Vec<String>>,
    pub automatic_pg_restart: bool,
}

/// A stolon specification that breaks a rule.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSpec {
    /// Not JSON of the expected shape.
    #[error("the stolon specification can't be read: {0}")]
    Malformed(String),
    /// A rule of the specification is broken.
    #[error("stolon specification: {0}")]
    Rule(String),
}

fn rule<T>(text: impl Into<String>) -> Result<T, InvalidSpec> {
    Err(InvalidSpec::Rule(text.into()))
}

impl StolonSpec {
    /// Applies defaults and checks every rule.
    ///
    /// # Errors
    /// The first broken rule, with the member's name and what is allowed.
    pub fn effective(&self) -> Result<EffectiveSpec, InvalidSpec> {
        let Some(init_mode) = self.init_mode else {
            return rule("initMode is missing; write \"new\", \"existing\" or \"pitr\"");
        };
        let seconds = GoDuration::from_secs;
        let spec = EffectiveSpec {
            sleep_interval: self.sleep_interval.unwrap_or(seconds(5)),
            request_timeout: self.request_timeout.unwrap_or(seconds(10)),
            convergence_timeout: self.convergence_timeout.unwrap_or(seconds(30)),
            init_timeout: self.init_timeout.unwrap_or(seconds(300)),
            sync_timeout: self.sync_timeout.unwrap_or(GoDuration::ZERO),
            db_wait_ready_timeout: self.db_wait_ready_timeout.unwrap_or(seconds(60)),
            fail_interval: self.fail_interval.unwrap_or(seconds(20)),
            dead_keeper_removal_interval: self.dead_keeper_removal_interval.unwrap_or(seconds(48 * 3600)),
            proxy_check_interval: self.proxy_check_interval.unwrap_or(seconds(5)),
            proxy_timeout: self.proxy_timeout.unwrap_or(seconds(15)),
            max_standbys: self.max_standbys.unwrap_or(20),
            max_standbys_per_sender: self.max_standbys_per_sender.unwrap_or(3),
            // Meant to be 1 MiB in Go stolon, which computes 1024 × 1204; kept, since `spec --defaults` shows it.
            max_standby_lag: self.max_standby_lag.unwrap_or(1_232_896),
            synchronous_replication: self.synchronous_replication.unwrap_or(false),
            min_synchronous_standbys: self.min_synchronous_standbys.unwrap_or(1),
            max_synchronous_standbys: self.max_synchronous_standbys.unwrap_or(1),
            additional_wal_senders: self.additional_wal_senders.unwrap_or(5),
            additional_master_replication_slots: self.additional_master_replication_slots.clone(),
            use_pgrewind: self.use_pgrewind.unwrap_or(false),
            init_mode,
            merge_pg_parameters: self.merge_pg_parameters.unwrap_or(true),
            role: self.role.unwrap_or_default(),
            new_config: self.new_config.clone(),
            pitr_config: self.pitr_config.clone(),
            existing_config: self.existing_config.clone(),
            standby_config: self.standby_config.clone(),
            default_su_repl_access_mode: self.default_su_repl_access_mode.unwrap_or_default(),
            pg_parameters: (!self.pg_parameters.is_empty()).then(|| self.pg_parameters.clone()),
            pg_hba: self.pg_hba.clone(),
            automatic_pg_restart: self.automatic_pg_restart.unwrap_or(false),
        };
        spec.check()?;
        Ok(spec)
    }

    /// Checks that the specification may become `new`.
    ///
    /// # Errors
    /// `new` is invalid, or changes what can't be changed.
    pub fn check_update(&self, new: &StolonSpec) -> Result<(), InvalidSpec> {
        new.effective()?;
        if self.init_mode != new.init_mode {
            return rule("initMode can't be changed after the cluster was made");
        }
        if self.role.unwrap_or_default() == ClusterRole::Master && new.role == Some(ClusterRole::Standby) {
            return rule("role can't go from \"master\" to \"standby\"; make a new cluster for that");
        }
        Ok(())
    }
}

impl EffectiveSpec {
    fn check(&self) -> Result<(), InvalidSpec> {
        for (name, duration) in [
            ("sleepInterval", self.sleep_interval),
            ("requestTimeout", self.request_timeout),
            ("convergenceTimeout", self.convergence_timeout),
            ("initTimeout", self.init_timeout),
            ("syncTimeout", self.sync_timeout),
            ("dbWaitReadyTimeout", self.db_wait_ready_timeout),
            ("failInterval", self.fail_interval),
            ("deadKeeperRemovalInterval", self.dead_keeper_removal_interval),
            ("proxyCheckInterval", self.proxy_check_interval),
            ("proxyTimeout", self.proxy_timeout),
        ] {
            if duration.is_negative() {
                return rule(format!("{name} is negative ({duration}); give zero or more"));
            }
        }
        if self.proxy_check_interval >= self.proxy_timeout {
            return rule(format!(
                "proxyCheckInterval ({}) must be shorter than proxyTimeout ({})",
                self.proxy_check_interval, self.proxy_timeout
            ));
        }
        for (name, number) in [
            ("maxStandbys", self.max_standbys),
            ("maxStandbysPerSender", self.max_standbys_per_sender),
            ("maxSynchronousStandbys", self.max_synchronous_standbys),
        ] {
            if number < 1 {
                return rule(format!("{name} must be at least 1"));
            }
        }
        if self.max_synchronous_standbys < self.min_synchronous_standbys {
            return rule(format!(
                "maxSynchronousStandbys ({}) must not be below minSynchronousStandbys ({})",
                self.max_synchronous_standbys, self.min_synchronous_standbys
            ));
        }
        self.check_texts()?;
        self.check_init()
    }

    fn check_texts(&self) -> Result<(), InvalidSpec> {
        for slot in self.additional_master_replication_slots.iter().flatten() {
            let plain = slot.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if slot.is_empty() || !plain || slot.starts_with("stolon_") {
                return rule(format!(
                    "additionalMasterReplicationSlots holds \"{slot}\"; a name has a-z, 0-9 and _ only and does not start with stolon_"
                ));
            }
        }
        for line in self.pg_hba.iter().flatten() {
            if line.contains('\n') {
                return rule("a line of pgHBA contains a line break; give one line per list item");
            }
        }
        Ok(())
    }

    fn check_init(&self) -> Result<(), InvalidSpec> {
        match self.init_mode {
            InitMode::New if self.role == ClusterRole::Standby => {
                return rule("initMode \"new\" can't be combined with role \"standby\"");
            }
            InitMode::New => {}
            InitMode::Existing => {
                if self.existing_config.as_ref().is_none_or(|config| config.keeper_uid.is_empty()) {
                    return rule("initMode \"existing\" needs existingConfig.keeperUID");
                }
            }
            InitMode::Pitr => {
                let config = self.pitr_config.clone().unwrap_or_default();
                if config.data_restore_command.is_empty() {
                    return rule("initMode \"pitr\" needs pitrConfig.dataRestoreCommand");
                }
                if self.role == ClusterRole::Standby && config.recovery_target_settings.is_some() {
                    return rule("pitrConfig.recoveryTargetSettings can't be combined with role \"standby\"");
                }
            }
        }
        if self.role == ClusterRole::Standby && self.standby_config.is_none() {
            return rule("role \"standby\" needs standbyConfig");
        }
        Ok(())
    }
}

/// Reads a specification that a person wrote: member names in any case, as Go reads them.
/// Numbers out of range are refused here, before they can make a stored document unreadable.
///
/// # Errors
/// [`InvalidSpec::Malformed`] with serde's words.
pub fn parse_user_spec(value: Value) -> Result<StolonSpec, InvalidSpec> {
    let value = canonical_user_spec(value);
    serde_json::from_value(value).map_err(|e| InvalidSpec::Malformed(e.to_string()))
}

/// A person's specification, or a patch of one, with every member's name in its canonical case. Unknown members and
/// values stay as they are.
pub fn canonical_user_spec(value: Value) -> Value {
    canonical(value, &SPEC_MEMBERS)
}

/// A member name in its canonical case and, for objects, the names inside.
struct Members(&'static [(&'static str, Option<&'static Members>)]);

const RECOVERY_TARGETS: Members = Members(&[
    ("recoveryTarget", None),
    ("recoveryTargetLsn", None),
    ("recoveryTargetName", None),
    ("recoveryTargetTime", None),
    ("recoveryTargetXid", None),
    ("recoveryTargetTimeline", None),
]);
const ARCHIVE: Members = Members(&[("restoreCommand", None)]);
const STANDBY: Members =
    Members(&[("primaryConninfo", None), ("primarySlotName", None), ("recoveryMinApplyDelay", None)]);
const SPEC_MEMBERS: Members = Members(&[
    ("sleepInterval", None),
    ("requestTimeout", None),
    ("convergenceTimeout", None),
    ("initTimeout", None),
    ("syncTimeout", None),
    ("dbWaitReadyTimeout", None),
    ("failInterval", None),
    ("deadKeeperRemovalInterval", None),
    ("proxyCheckInterval", None),
    ("proxyTimeout", None),
    ("maxStandbys", None),
    ("maxStandbysPerSender", None),
    ("maxStandbyLag", None),
    ("synchronousReplication", None),
    ("minSynchronousStandbys", None),
    ("maxSynchronousStandbys", None),
    ("additionalWalSenders", None),
    ("additionalMasterReplicationSlots", None),
    ("usePgrewind", None),
    ("initMode", None),
    ("mergePgParameters", None),
    ("role", None),
    ("newConfig", Some(&Members(&[("locale", None), ("encoding", None), ("dataChecksums", None)]))),
    (
        "pitrConfig",
        Some(&Members(&[
            ("dataRestoreCommand", None),
            ("archiveRecoverySettings", Some(&ARCHIVE)),
            ("recoveryTargetSettings", Some(&RECOVERY_TARGETS)),
        ])),
    ),
    ("existingConfig", Some(&Members(&[("keeperUID", None)]))),
    (
        "standbyConfig",
        Some(&Members(&[("standbySettings", Some(&STANDBY)), ("archiveRecoverySettings", Some(&ARCHIVE))])),
    ),
    ("defaultSUReplAccessMode", None),
    ("pgParameters", None),
    ("pgHBA", None),
    ("automaticPgRestart", None),
]);

fn canonical(value: Value, members: &Members) -> Value {
    let Value::Object(object) = value else { return value };
    let mut result = serde_json::Map::new();
    for (name, value) in object {
        let known = members.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(&name));
        let (canonical_name, value) = match known {
            Some((known, Some(inner))) => ((*known).to_owned(), canonical(value, inner)),
            Some((known, None)) => ((*known).to_owned(), value),
            None => (name.clone(), value),
        };
        // The exact spelling wins over another one of the same member.
        if canonical_name == name || !result.contains_key(&canonical_name) {
            result.insert(canonical_name, value);
        }
    }
    Value::Object(result)
}

#[cfg(test)]
mod tests;
