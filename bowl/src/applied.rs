//! What this node applied last: `<data dir>/bowl.json`. It outlives bowl and the store, so that a store that was
//! wiped or restored from an old copy is recognised.

use crate::files::{self, FileError};
use model::{ClusterName, Generation, NodeName};
use serde::{Deserialize, Serialize};
use std::path::Path;

const FILE: &str = "bowl.json";
const FORMAT_VERSION: u32 = 1;

/// What was applied last without error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Applied {
    format_version: u32,
    /// Whose directory it is.
    pub cluster: ClusterName,
    /// Whose directory it is.
    pub node: NodeName,
    /// Generation of the layout; 0 before the first.
    pub generation: Generation,
    /// etcd's mod revision of the specification; 0 before the first.
    pub spec_revision: i64,
}

/// A state file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum AppliedError {
    /// It can't be read.
    #[error("{path} can't be read ({reason}); if its content is lost for good, remove it")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// It is another node's.
    #[error("{path} belongs to node {node} of cluster {cluster}; give this bowl another --data-dir")]
    Foreign {
        /// The file.
        path: String,
        /// Whose it is.
        cluster: ClusterName,
        /// Whose it is.
        node: NodeName,
    },
}

impl Applied {
    /// Nothing was applied yet.
    pub fn nothing(cluster: &ClusterName, node: &NodeName) -> Self {
        Applied {
            format_version: FORMAT_VERSION,
            cluster: cluster.clone(),
            node: node.clone(),
            generation: Generation(0),
            spec_revision: 0,
        }
    }

    /// Reads the state of a data directory; nothing was applied when there is none.
    ///
    /// # Errors
    /// It is there and can't be used. Taking that for "nothing" would let a stale layout in.
    pub fn read(data_dir: &Path, cluster: &ClusterName, node: &NodeName) -> Result<Self, AppliedError> {
        let path = data_dir.join(FILE);
        let unreadable = |reason: String| AppliedError::Unreadable { path: path.display().to_string(), reason };
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::nothing(cluster, node)),
            Err(error) => return Err(unreadable(error.to_string())),
        };
        let state: Applied = serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
        if state.format_version != FORMAT_VERSION {
            return Err(unreadable(format!("format version {}", state.format_version)));
        }
        if state.cluster != *cluster || state.node != *node {
            let (cluster, node) = (state.cluster, state.node);
            return Err(AppliedError::Foreign { path: path.display().to_string(), cluster, node });
        }
        Ok(state)
    }

    /// Writes the state.
    ///
    /// # Errors
    /// The system's.
    pub async fn write(&self, data_dir: &Path) -> Result<(), FileError> {
        let bytes = serde_json::to_vec(self).expect("the state is plain JSON");
        files::replace(data_dir.join(FILE), bytes).await
    }
}
