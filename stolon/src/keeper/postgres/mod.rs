//! One PostgreSQL instance: its programs, process, files and connections.

pub mod binaries;
pub mod conf;
pub mod conninfo;
pub mod control;
pub mod hba;
pub mod in_force;
pub mod process;
pub mod recovery;
pub mod slots;
pub mod sql;

/// What the name of every slot and every standby of the cluster begins with.
pub const PREFIX: &str = "stolon_";
