//! One file per command.

pub mod config;
pub mod forall;
pub mod getconnstr;
pub mod init;
pub mod nodes;
pub mod status;
