//! Decides which daemons run on which node, and makes new nodes' replication groups parts of the cluster.
//!
//! In: the specification and the names of nodes. Out: clovers, layouts and groups in the store, which bowls turn into
//! daemons, and the groups' databases connected with each other.
//!
//! * [`plan`] decides (pure), [`check`] judges what was decided by rules of its own (pure), [`show`] prints it;
//! * [`cluster`] reads and writes the documents, [`operation`] is the record that makes a killed command resumable;
//! * [`init`], [`addnodes`], [`fixrepgroups`] are the commands, [`register`], [`wait`], [`repgroup`] their parts;
//! * [`report`] is how commands tell what they do. `shardmanctl` runs the same commands.

pub mod addnodes;
pub mod check;
pub mod cli;
pub mod cluster;
pub mod context;
pub mod error;
pub mod fixrepgroups;
pub mod group;
pub mod init;
pub mod operation;
pub mod plan;
pub mod register;
pub mod repgroup;
pub mod report;
pub mod show;
pub mod wait;

pub use context::Context;
pub use error::Error;
