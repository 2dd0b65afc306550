//! The record of an operation that is under way, so that a killed command can be finished by running it again.

use crate::error::Error;
use crate::show::names;
use model::keys::ClusterKeys;
use model::layout::{Document, FORMAT_VERSION};
use model::{Generation, NodeName};
use serde::{Deserialize, Serialize};

/// Where the record is. At most one operation on a cluster's nodes is unfinished at a time; every command that
/// changes layouts must refuse to work beside one.
pub fn operation_key(keys: &ClusterKeys) -> String {
    format!("{}operations/addnodes", keys.prefix())
}

/// An `addnodes` that has begun. The plan is not stored: it would grow with each node's layout, and it follows from
/// the nodes and from what was in force before, which stays readable until the layouts become visible.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Operation {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// `addnodes`.
    pub command: String,
    /// Random, for logs.
    pub id: String,
    /// The new nodes in their order.
    pub nodes: Vec<NodeName>,
    /// The generation of their layouts: while [`model::layout::RevisionDoc`] is below it, they have to be written.
    pub generation: Generation,
}
impl Document for Operation {}

impl Operation {
    /// A new record.
    pub fn addnodes(id: String, nodes: &[NodeName], generation: Generation) -> Self {
        Operation {
            format_version: FORMAT_VERSION,
            command: "addnodes".to_owned(),
            id,
            nodes: nodes.to_vec(),
            generation,
        }
    }

    /// Why another command can't work now.
    pub fn unfinished(&self) -> Error {
        Error::Refused(format!(
            "adding nodes {} is unfinished; run `ladle fixrepgroups`, or `addnodes` with exactly these nodes, first",
            names(&self.nodes)
        ))
    }

    /// The same nodes, in whatever order.
    pub fn is_about(&self, nodes: &[NodeName]) -> bool {
        let sorted = |nodes: &[NodeName]| {
            let mut nodes = nodes.to_vec();
            nodes.sort();
            nodes
        };
        sorted(&self.nodes) == sorted(nodes)
    }
}
