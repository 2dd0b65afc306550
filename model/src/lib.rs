//! The shared words of Shardman: identifiers, specifications, layouts and stolon's cluster data.
//!
//! Types and pure rules only. Nothing here opens a file or a socket, reads a clock or knows etcd, so that
//! every decision of the daemons can be tested by giving it values.
//!
//! * A **replication group** ([`RepGroupName`], [`RepGroupId`]) is one shard: one stolon cluster.
//! * A **clover** ([`layout::CloverDoc`]) is a set of `Repfactor + 1` nodes that carry as many groups.
//! * A **keeper** is the stolon process that owns one PostgreSQL instance.
//! * A **layout** ([`layout::NodeLayout`]) says which daemons run on one node.

pub mod clusterspec;
pub mod conninfo;
pub mod duration;
pub mod ids;
pub mod keys;
pub mod layout;
pub mod spec;
pub mod stolon;
mod strict;
pub mod time;

pub use duration::GoDuration;
pub use ids::{CloverId, ClusterName, DbUid, Generation, KeeperUid, NodeName, ProxyUid, RepGroupId, RepGroupName};
pub use strict::SpecError;
pub use time::GoTime;
