//! What keepers, sentinels and proxies publish about themselves.

use super::{Extra, TimelineHistory, is_default, null_default};
use crate::{DbUid, GoDuration, KeeperUid, ProxyUid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of PostgreSQL's binaries; 0.0 when unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct PostgresBinaryVersion {
    /// Major version: 15 of 15.4.
    #[serde(rename = "Maj", deserialize_with = "null_default")]
    pub major: i64,
    /// Minor version: 4 of 15.4.
    #[serde(rename = "Min", deserialize_with = "null_default")]
    pub minor: i64,
}

/// Record under `keepers/info/`: what a keeper says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KeeperInfo {
    /// New random value at every publication; a Go sentinel judges freshness by its change.
    #[serde(rename = "infoUID", deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub info_uid: String,
    /// The keeper.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub uid: KeeperUid,
    /// The stolon cluster that the keeper believes to be in.
    #[serde(rename = "clusterUID", deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub cluster_uid: String,
    /// New at each start of the keeper.
    #[serde(rename = "bootUUID", deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub boot_uuid: String,
    /// Version of the PostgreSQL binaries that the keeper uses.
    #[serde(deserialize_with = "null_default")]
    pub postgres_binary_version: PostgresBinaryVersion,
    /// Present only if the keeper was given a priority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// State of the instance; absent until it was collected once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres_state: Option<PostgresState>,
    /// False: never to be chosen as new master. Absent means true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_be_master: Option<bool>,
    /// False: never to be added to the synchronous set. Absent means true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_be_synchronous_replica: Option<bool>,
    /// Ours only: the record hangs on a lease of this many seconds that the keeper keeps alive, so that the
    /// record's absence alone proves that the keeper has been silent for that long.
    #[serde(rename = "leaseSeconds", skip_serializing_if = "Option::is_none")]
    pub lease_seconds: Option<u32>,
    /// Ours only: what an operator should know and may have to do something about.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub problems: Vec<Problem>,
    /// Ours only: present means that the keeper can hand its primary over to another one, see [`HandedOver`].
    #[serde(rename = "handedOver", skip_serializing_if = "Option::is_none")]
    pub handed_over: Option<HandedOver>,
    /// Ours only: the last challenge that the keeper has answered; empty before the first one. Present means that the
    /// keeper can be asked for a sign of life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answered: Option<String>,
    /// Ours only: the last order that the keeper has carried out, see [`super::ext::Order`]; empty before the first one.
    /// Present means that the keeper can be given orders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub obeyed: Option<String>,
    /// Ours only: the server that this keeper's standby gets its WAL from, once it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Upstream>,
    /// Ours only: standbys that have caught up with this keeper's primary and stream from it. Commits would not wait
    /// long for them. Absent where the keeper does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streaming: Option<Vec<DbUid>>,
    /// Ours only: which start of which machine, and which directory. Another record with the same uid is from another host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Members unknown to this version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Something that keeps a keeper from doing what it should, or will sooner or later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Problem {
    /// For programs; one of the constants below, or one that this version does not know.
    #[serde(deserialize_with = "null_default")]
    pub code: String,
    /// For people: what, why, what to do. No secrets.
    #[serde(deserialize_with = "null_default")]
    pub text: String,
}

impl Problem {
    /// Replication slots that the user asked for could not be created.
    pub const SLOTS_LACKING: &str = "slots_lacking";
    /// There is no room left where the data is.
    pub const DISK_FULL: &str = "disk_full";
    /// Files can't be written and read where the data is, or not in time.
    pub const FILE_SYSTEM: &str = "file_system";
    /// PostgreSQL would not start with the wanted parameters; it goes on with the last good ones.
    pub const PARAMETERS_REFUSED: &str = "parameters_refused";
    /// Lines of pg_hba.conf are wrong: the old ones hold as long as PostgreSQL runs, and it would not start again.
    pub const HBA_REFUSED: &str = "hba_refused";
    /// Changed parameters wait for a restart.
    pub const RESTART_PENDING: &str = "restart_pending";
    /// One of them gets lower, and a standby must not have less of it than its primary.
    pub const RESTART_LOWERS: &str = "restart_lowers";
    /// The keeper can't make PostgreSQL what the cluster data says.
    pub const NOT_CONVERGING: &str = "not_converging";
    /// A standby receives nothing from the server that it follows.
    pub const NOT_STREAMING: &str = "not_streaming";
    /// Another keeper was started with the same uid; it is kept out.
    pub const UID_IN_USE: &str = "uid_in_use";
}

/// A primary that was stopped cleanly, to become the standby of its successor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HandedOver {
    /// The db; empty for none.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub db: DbUid,
    /// Where its last record begins, which a standby that is to be the successor must have.
    #[serde(rename = "xLogPos", deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub xlog_pos: u64,
}

/// How a standby finds the server that it follows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Upstream {
    /// The db that it follows, and has received WAL from.
    pub db: DbUid,
    /// The stream broke, and the operating system over there refuses new connections: nobody listens.
    pub refused: bool,
    /// The stream is there.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub receiving: bool,
}

/// State of a keeper's PostgreSQL.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PostgresState {
    /// The db that the data directory belongs to.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub uid: DbUid,
    /// Last generation of that db which is fully applied.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub generation: i64,
    /// Advertised address.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub listen_address: String,
    /// Advertised port, as text.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub port: String,
    /// Every probe succeeded.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub healthy: bool,
    /// PostgreSQL's system identifier.
    #[serde(rename = "systemID", deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub system_id: String,
    /// Current timeline.
    #[serde(rename = "timelineID", deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub timeline_id: u64,
    /// Flushed position on a master, received or replayed position on a standby, in bytes.
    #[serde(rename = "xLogPos", deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub xlog_pos: u64,
    /// The last two entries of the timeline's history.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub timelines_history: Vec<TimelineHistory>,
    /// Parameters from the configuration files, without those that stolon manages.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub pg_parameters: BTreeMap<String, String>,
    /// Standbys now reported as `sync`; `None` when not collected.
    pub synchronous_standbys: Option<Vec<DbUid>>,
    /// Name of the oldest WAL segment present.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub older_wal_file: String,
    /// Members unknown to this version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Record under `sentinels/info/`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SentinelInfo {
    /// The sentinel; new at each start.
    #[serde(rename = "UID", deserialize_with = "null_default")]
    pub uid: String,
}

/// Record under `proxies/info/`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxyInfo {
    /// New random value at every publication.
    #[serde(rename = "infoUID", deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub info_uid: String,
    /// The proxy; new at each start.
    #[serde(rename = "UID", deserialize_with = "null_default")]
    pub uid: ProxyUid,
    /// Generation of the cluster data's proxy object that the proxy has applied.
    #[serde(rename = "Generation", deserialize_with = "null_default")]
    pub generation: i64,
    /// The proxy cuts everything off after so long without a good check; in nanoseconds.
    #[serde(rename = "ProxyTimeout", with = "nanos")]
    pub proxy_timeout: GoDuration,
    /// Advertised address.
    #[serde(rename = "listenAddress", deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub listen_address: String,
    /// Listening port, as text.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_default")]
    pub port: String,
    /// Ours only: as [`KeeperInfo::lease_seconds`]; the proxy cuts everything off before such a lease can expire.
    #[serde(rename = "leaseSeconds", skip_serializing_if = "Option::is_none")]
    pub lease_seconds: Option<u32>,
    /// Members unknown to this version.
    #[serde(flatten)]
    pub extra: Extra,
}

mod nanos {
    use crate::GoDuration;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &GoDuration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_i64(value.as_nanos())
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<GoDuration, D::Error> {
        Ok(GoDuration::from_nanos(Option::<i64>::deserialize(d)?.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEEPER: &str = r#"{"infoUID":"1cee75d1","uid":"keeper4","clusterUID":"aeb79fb4","bootUUID":"2e8e7eee-74d3-4692-80c0-2fd188888dc5","postgresBinaryVersion":{"Maj":15,"Min":20},"priority":5,"postgresState":{"uid":"faff023c","generation":2,"listenAddress":"127.0.0.1","port":"15444","healthy":true,"systemID":"7710247381535795200","timelineID":1,"xLogPos":22098672,"pgParameters":{"wal_level":"replica"},"synchronousStandbys":[],"olderWalFile":"000000010000000000000001"},"canBeMaster":true,"canBeSynchronousReplica":true}"#;
    const PROXY: &str = r#"{"infoUID":"4f1e931f","UID":"4cd2b261","Generation":2,"ProxyTimeout":15000000000,"listenAddress":"10.1.2.3","port":"15434"}"#;

    #[test]
    fn captured_records_come_back_byte_for_byte() {
        let keeper: KeeperInfo = serde_json::from_str(KEEPER).unwrap();
        assert_eq!(serde_json::to_string(&keeper).unwrap(), KEEPER);
        let proxy: ProxyInfo = serde_json::from_str(PROXY).unwrap();
        assert_eq!(proxy.proxy_timeout, GoDuration::from_secs(15));
        assert_eq!(serde_json::to_string(&proxy).unwrap(), PROXY);
        assert_eq!(serde_json::to_string(&SentinelInfo { uid: "ab".into() }).unwrap(), r#"{"UID":"ab"}"#);
    }

    #[test]
    fn unknown_members_survive() {
        let text = r#"{"uid":"k","postgresBinaryVersion":{"Maj":0,"Min":0},"novelty":{"a":[1,null]}}"#;
        let keeper: KeeperInfo = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&keeper).unwrap(), text);
    }

    #[test]
    fn broken_records_are_errors() {
        for text in ["", "{", "[]", "7", r#"{"uid":3}"#, r#"{"postgresState":{"xLogPos":-1}}"#, r#"{"priority":1.5}"#] {
            assert!(serde_json::from_str::<KeeperInfo>(text).is_err(), "{text}");
        }
        assert!(serde_json::from_str::<ProxyInfo>(r#"{"ProxyTimeout":"15s"}"#).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = serde_json::from_str::<KeeperInfo>(&text);
            let _ = serde_json::from_str::<ProxyInfo>(&text);
        }
    }
}
