//! The documents under `shardman/<cluster>/`: one key per node, clover and group, so that no value grows with
//! the cluster. JSON with a `FormatVersion`; a reader that meets a higher number refuses to work.

use crate::clusterspec::ClusterSpec;
use crate::spec::{LadleSpec, StoreConnInfo};
use crate::{Generation, NodeName, RepGroupName};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Format of all documents of this module.
pub const FORMAT_VERSION: u32 = 1;

/// A document of the store that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DocError {
    /// Not JSON of the expected shape.
    #[error("{what} in the store can't be read")]
    Malformed {
        /// Which document.
        what: String,
        /// Serde's words.
        #[source]
        source: serde_json::Error,
    },
    /// Written by a newer program.
    #[error("{what} in the store has format version {found}, this program knows {FORMAT_VERSION}; use a newer one")]
    Format {
        /// Which document.
        what: String,
        /// Its version.
        found: u64,
    },
}

/// A document with a format version.
pub trait Document: Serialize + DeserializeOwned {
    /// Reads a document; `what` names it in errors.
    ///
    /// # Errors
    /// Malformed or of another format. The version is looked at first, so that a newer document is
    /// never taken for a broken one.
    fn parse(what: &str, bytes: &[u8]) -> Result<Self, DocError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Versioned {
            format_version: u64,
        }
        let malformed = |source| DocError::Malformed { what: what.to_owned(), source };
        let versioned: Versioned = serde_json::from_slice(bytes).map_err(malformed)?;
        if versioned.format_version != u64::from(FORMAT_VERSION) {
            return Err(DocError::Format { what: what.to_owned(), found: versioned.format_version });
        }
        serde_json::from_slice(bytes).map_err(malformed)
    }

    /// The document as it is stored.
    fn to_bytes(&self) -> Vec<u8> {
        // Maps with string keys and plain values only: serialising can't fail.
        serde_json::to_vec(self).expect("documents of the store are plain JSON")
    }
}

/// Both specifications with every default written out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SpecDoc {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Machines.
    pub ladle_spec: LadleSpec,
    /// Replication groups.
    pub cluster_spec: ClusterSpec,
}
impl Document for SpecDoc {}

/// Makes a change of many nodes visible at once: layouts with a higher generation than this are not yet valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RevisionDoc {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The newest valid generation of layouts.
    pub generation: Generation,
    /// Next unused clover number, from 1; never goes back.
    pub clover_seq: u32,
    /// Next unused group number, from 1; never goes back.
    pub rep_group_seq: u32,
}
impl Document for RevisionDoc {}

/// Which keeper of a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeeperId {
    /// The group.
    pub rep_group: RepGroupName,
    /// Position of the keeper's node in its clover; the stolon uid is `keeper_<Uid>`.
    pub uid: u32,
}

impl KeeperId {
    /// The uid under which stolon knows the keeper.
    pub fn stolon_uid(&self) -> crate::KeeperUid {
        format!("keeper_{}", self.uid).into()
    }
}

/// A keeper on a node, with its sentinel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeeperSlot {
    /// Which keeper.
    pub id: KeeperId,
    /// Expected to be master when all is well: priority 1, others have 0.
    pub preferred: bool,
    /// PostgreSQL's port.
    pub pg_port: u16,
}

/// A proxy on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProxySlot {
    /// The group whose master it forwards to.
    pub rep_group: RepGroupName,
    /// Its port.
    pub port: u16,
}

/// Which daemons run on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeLayout {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Valid once [`RevisionDoc::generation`] has reached it.
    pub generation: Generation,
    /// Keepers; each has a sentinel of the same group beside it.
    pub keepers: Vec<KeeperSlot>,
    /// Whether a monitor runs here.
    pub monitor: bool,
    /// Proxies.
    pub proxies: Vec<ProxySlot>,
}
impl Document for NodeLayout {}

/// The members of one clover, in the order of their keepers' uids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CloverDoc {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Members.
    pub nodes: Vec<NodeName>,
}
impl Document for CloverDoc {}

/// How far the adding of a group has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RepGroupState {
    /// Its number is reserved; nothing is committed on any group. Leftovers of the operation roll back.
    Adding,
    /// Every group has prepared its part of the operation. Leftovers commit.
    Committing,
    /// Part of the cluster.
    Active,
}

/// A replication group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RepGroupDoc {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Name of its stolon cluster.
    pub stolon_name: RepGroupName,
    /// Where the stolon cluster keeps its data; empty endpoints mean Shardman's own store.
    #[serde(default)]
    pub store_conn_info: StoreConnInfo,
    /// stolon's store prefix.
    pub store_prefix: String,
    /// PostgreSQL's system identifier; 0 until it was read.
    pub sys_id: i64,
    /// How far adding has come.
    pub state: RepGroupState,
    /// Names the prepared transactions of the adding: `shardman:addrepgroup:<uuid>`.
    #[serde(default)]
    pub operation: String,
}
impl Document for RepGroupDoc {}

/// State of one daemon on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DaemonStatus {
    /// Unit name without `.service`.
    pub unit: String,
    /// `running`, `starting`, `failed` or `stopped`.
    pub state: String,
    /// How often it was restarted since bowl started.
    pub restarts: u32,
}

/// What a bowl says of its node; hangs on the bowl's lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeStatus {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The node.
    pub node: NodeName,
    /// Version of bowl.
    pub version: String,
    /// Generation of the layout that was applied without error; 0 when the node has none.
    pub generation: Generation,
    /// etcd's mod revision of the spec document that was applied without error; 0 when absent.
    pub spec_revision: i64,
    /// What went wrong in the last pass; empty when nothing did.
    pub last_error: String,
    /// When this was written, RFC 3339.
    pub time: String,
    /// The node's daemons, by unit.
    pub daemons: Vec<DaemonStatus>,
}
impl Document for NodeStatus {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn documents_have_the_names_of_the_specification() {
        let layout = NodeLayout {
            format_version: FORMAT_VERSION,
            generation: Generation(3),
            keepers: vec![KeeperSlot {
                id: KeeperId { rep_group: "clover-1-n1".into(), uid: 0 },
                preferred: true,
                pg_port: 5442,
            }],
            monitor: true,
            proxies: vec![ProxySlot { rep_group: "clover-1-n1".into(), port: 5432 }],
        };
        let text = r#"{"FormatVersion":1,"Generation":3,"Keepers":[{"Id":{"RepGroup":"clover-1-n1","Uid":0},"Preferred":true,"PgPort":5442}],"Monitor":true,"Proxies":[{"RepGroup":"clover-1-n1","Port":5432}]}"#;
        assert_eq!(String::from_utf8(layout.to_bytes()).unwrap(), text);
        assert_eq!(NodeLayout::parse("layout", text.as_bytes()).unwrap(), layout);
    }

    #[test]
    fn other_formats_and_broken_documents_are_refused() {
        let newer = br#"{"FormatVersion":2,"Everything":"new"}"#;
        assert!(matches!(NodeLayout::parse("layout of n1", newer), Err(DocError::Format { found: 2, .. })));
        for text in ["", "{}", "[]", "null", r#"{"FormatVersion":1}"#, r#"{"FormatVersion":1,"Nodes":"n1"}"#] {
            assert!(matches!(CloverDoc::parse("clover 1", text.as_bytes()), Err(DocError::Malformed { .. })), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = RevisionDoc::parse("revision", &bytes);
            let _ = SpecDoc::parse("spec", &bytes);
        }
    }
}
