//! What can go wrong in the commands.

use crate::plan::PlanError;
use model::layout::DocError;
use model::{ClusterName, NodeName, RepGroupName};
use std::time::Duration;
use stolon::access::AccessError;
use store::StoreError;
use store::lock::LockError;

/// A command failed: what, why, what to do. No text holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The lock was not taken or was lost, or someone else wrote.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A document of the store is unusable.
    #[error(transparent)]
    Document(#[from] DocError),
    /// The nodes can't be placed.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A specification is unusable.
    #[error(transparent)]
    Spec(#[from] model::SpecError),
    /// There is no such cluster.
    #[error(
        "cluster {0} does not exist in the store; run `shardmanctl init` (or `ladle init`) first, or check --cluster-name"
    )]
    NoCluster(ClusterName),
    /// The planner's result, or what is stored, breaks a rule. A defect or a foreign hand.
    #[error("the layout breaks its rules, nothing was written: {0}; report this")]
    Layout(String),
    /// A rule of the command forbids it.
    #[error("{0}")]
    Refused(String),
    /// A bowl is not there or not up to date.
    #[error("shardmand on node {node} {state} within {} s; start it there and look at its log", .after.as_secs())]
    Bowl {
        /// The node.
        node: NodeName,
        /// What is missing.
        state: String,
        /// How long we waited.
        after: Duration,
    },
    /// A group is not in operation.
    #[error("group {group}: {state}; waited {} s; check shardmand and the daemons' logs on its nodes, then run `ladle fixrepgroups`", .after.as_secs())]
    NotReady {
        /// The group.
        group: RepGroupName,
        /// What was missing at the end.
        state: String,
        /// How long we waited.
        after: Duration,
    },
    /// stolon's data of a group.
    #[error("group {group}")]
    Stolon {
        /// The group.
        group: RepGroupName,
        /// Why.
        #[source]
        source: AccessError,
    },
    /// No connection to a group.
    #[error("group {group}")]
    Connect {
        /// The group.
        group: RepGroupName,
        /// Why.
        #[source]
        source: pg::ConnectError,
    },
    /// A statement failed.
    #[error("{what} on group {group}")]
    Sql {
        /// What the statement was to do.
        what: &'static str,
        /// The group.
        group: RepGroupName,
        /// PostgreSQL's words.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A program of PostgreSQL failed or is not there.
    #[error("{program}: {reason}")]
    Program {
        /// Its name.
        program: String,
        /// Its last words, or why it was not started.
        reason: String,
    },
}
