//! Kinds and names of the daemons on a node.

use model::layout::KeeperId;
use model::{ClusterName, RepGroupName};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// What a daemon is. The order is that in which kinds are stopped together with bowl: first those that let clients
/// in, PostgreSQL last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Forwards connections to a group's master.
    Proxy,
    /// Keeps the whole cluster consistent.
    Monitor,
    /// Decides for a group.
    Sentinel,
    /// Owns a PostgreSQL instance.
    Keeper,
}

impl Kind {
    /// All kinds, in the order of stopping.
    pub const ALL: [Kind; 4] = [Kind::Proxy, Kind::Monitor, Kind::Sentinel, Kind::Keeper];

    /// The word in unit and file names.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Proxy => "proxy",
            Kind::Monitor => "monitor",
            Kind::Sentinel => "sentinel",
            Kind::Keeper => "keeper",
        }
    }

    /// How long a daemon may take to end when it is asked to. A keeper first shuts PostgreSQL down, which writes a
    /// checkpoint; the others have nothing to save.
    pub fn stop_grace(self) -> Duration {
        Duration::from_secs(if self == Kind::Keeper { 60 } else { 5 })
    }

    /// A change of this variable alone is no reason to restart: restarting a keeper restarts PostgreSQL, and all
    /// nodes would do it at the same moment. The amount of log lines is not worth that, a keeper goes on with the
    /// store that it reached so far, and with the socket that PostgreSQL has.
    pub fn is_soft(self, variable: &str) -> bool {
        self == Kind::Keeper && (is_about_log(variable) || is_awaited(variable))
    }
}

fn is_about_log(variable: &str) -> bool {
    variable.ends_with("_LOG_LEVEL") || variable.ends_with("_LOG_FORMAT")
}

/// Soft, and somebody waits for the change to take effect.
pub(crate) fn is_awaited(variable: &str) -> bool {
    variable.contains("_STORE_") || variable.ends_with("_PG_UNIX_SOCKET_DIR")
}

/// Name of a unit without `.service`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnitName(String);

impl UnitName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for UnitName {
    fn from(text: &str) -> Self {
        UnitName(text.to_owned())
    }
}

/// Names of one daemon: everything else is derived from its instance. The instance is never taken apart again, since
/// cluster and group names may contain the separator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonName {
    kind: Kind,
    instance: String,
}

impl DaemonName {
    /// Names of a keeper.
    pub fn keeper(cluster: &ClusterName, id: &KeeperId) -> Self {
        DaemonName { kind: Kind::Keeper, instance: format!("{cluster}-{}-{}", id.rep_group, id.uid) }
    }
    /// Names of a group's sentinel.
    pub fn sentinel(cluster: &ClusterName, group: &RepGroupName) -> Self {
        DaemonName { kind: Kind::Sentinel, instance: format!("{cluster}-{group}") }
    }
    /// Names of a group's proxy.
    pub fn proxy(cluster: &ClusterName, group: &RepGroupName) -> Self {
        DaemonName { kind: Kind::Proxy, instance: format!("{cluster}-{group}") }
    }
    /// Names of the monitor.
    pub fn monitor(cluster: &ClusterName) -> Self {
        DaemonName { kind: Kind::Monitor, instance: cluster.to_string() }
    }
    /// `shardman-keeper@cluster0-clover-1-n1-0`.
    pub fn unit(&self) -> UnitName {
        UnitName(format!("shardman-{}@{}", self.kind.word(), self.instance))
    }
    /// `keeper-cluster0-clover-1-n1-0`: a keeper's directory.
    pub fn stem(&self) -> String {
        format!("{}-{}", self.kind.word(), self.instance)
    }
    /// `keeper-cluster0-clover-1-n1-0.env`.
    pub fn env_file(&self) -> String {
        format!("{}.env", self.stem())
    }
}
