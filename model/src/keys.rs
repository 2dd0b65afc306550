//! Names of Shardman's keys in the store: `shardman/<cluster>/…`.

use crate::{CloverId, ClusterName, NodeName, RepGroupId};

/// The keys of one Shardman cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterKeys {
    base: String,
}

impl ClusterKeys {
    /// Keys of the cluster of that name.
    pub fn new(cluster: &ClusterName) -> Self {
        ClusterKeys { base: format!("shardman/{cluster}") }
    }
    /// Common prefix of all keys, with a trailing slash.
    pub fn prefix(&self) -> String {
        format!("{}/", self.base)
    }
    /// [`crate::layout::SpecDoc`]: both specifications. Its absence means that the cluster does not exist.
    pub fn spec(&self) -> String {
        format!("{}/spec", self.base)
    }
    /// [`crate::layout::RevisionDoc`], written last: makes a change of many nodes visible at once.
    pub fn revision(&self) -> String {
        format!("{}/revision", self.base)
    }
    /// Prefix of all nodes' layouts.
    pub fn layouts(&self) -> String {
        format!("{}/layout/", self.base)
    }
    /// [`crate::layout::NodeLayout`] of one node.
    pub fn layout(&self, node: &NodeName) -> String {
        format!("{}/layout/{node}", self.base)
    }
    /// Prefix of all clovers.
    pub fn clovers(&self) -> String {
        format!("{}/clovers/", self.base)
    }
    /// [`crate::layout::CloverDoc`].
    pub fn clover(&self, id: CloverId) -> String {
        format!("{}/clovers/{id}", self.base)
    }
    /// Prefix of all replication groups.
    pub fn repgroups(&self) -> String {
        format!("{}/repgroups/", self.base)
    }
    /// [`crate::layout::RepGroupDoc`].
    pub fn repgroup(&self, id: RepGroupId) -> String {
        format!("{}/repgroups/{id}", self.base)
    }
    /// Prefix of all nodes' status records.
    pub fn statuses(&self) -> String {
        format!("{}/status/", self.base)
    }
    /// [`crate::layout::NodeStatus`], on a lease of the node's bowl.
    pub fn status(&self, node: &NodeName) -> String {
        format!("{}/status/{node}", self.base)
    }
    /// The lock that commands hold while they change the cluster.
    pub fn metadata_lock(&self) -> String {
        format!("{}/locks/metadata", self.base)
    }
}
