//! What stolon stores: cluster data, format version 1, and the records that its processes publish.
//!
//! The model is the superset that Shardman needs: keeper priority and the addresses of proxies are part of it.
//! Field names, the odd spellings (`systemdID`, `Maj`, `ProxyTimeout` in nanoseconds) and what is left out when
//! empty are those of the Go programs, because both kinds may share one cluster.
//!
//! Every struct keeps the members that it does not know in `extra` and writes them back, so that a document
//! written by a newer program survives being rewritten by this one.

mod cluster;
pub mod ext;
mod info;
pub mod keys;
mod spec;

pub use cluster::{
    Cluster, ClusterData, ClusterPhase, ClusterStatus, DataError, Db, DbInitMode, DbSpec, DbStatus, FORMAT_VERSION,
    FollowConfig, FollowType, KEEPER_GENERATION, Keeper, KeeperSpec, KeeperStatus, Proxies, ProxyAddress, ProxySpec,
    Role, TimelineHistory,
};
pub use info::{
    HandedOver, KeeperInfo, PostgresBinaryVersion, PostgresState, Problem, ProxyInfo, SentinelInfo, Upstream,
};
pub use spec::{
    ArchiveRecoverySettings, ClusterRole, EffectiveSpec, ExistingConfig, InitMode, InvalidSpec, NewConfig, PitrConfig,
    RecoveryTargetSettings, StandbyConfig, StandbySettings, StolonSpec, SuReplAccess, canonical_user_spec,
    parse_user_spec,
};

use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// Members that this version of the model does not know.
pub type Extra = BTreeMap<String, serde_json::Value>;

/// Go reads `null` as "leave the default", for every type.
pub(crate) fn null_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// For fields that Go leaves out when they are empty.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
