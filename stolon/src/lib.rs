//! stolon-compatible high availability for one replication group: four programs over one library.
//!
//! * [`keeper`] owns one PostgreSQL instance and makes it what the cluster data says.
//! * [`sentinel`] decides: keepers' and proxies' records in, new cluster data out. One of them leads.
//! * [`proxy`] forwards TCP connections to the master, and cuts everything off when it can't be sure who that is.
//! * [`ctl`] is the operator's command line.
//!
//! They share nothing but etcd ([`access`]), in the format of the Go programs, so that both kinds can be mixed.
//! Beyond it a keeper and a sentinel only look whether anybody listens where PostgreSQL should ([`reach`]).

pub mod access;
pub mod cli;
pub mod ctl;
#[cfg(test)]
mod fuzz;
pub mod keeper;
pub mod metrics;
pub mod proxy;
pub mod reach;
pub mod sentinel;
