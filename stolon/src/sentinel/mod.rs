//! The sentinel: watches keepers and proxies, decides who is master, and writes that into cluster data.
//!
//! Any number of sentinels may run; one leads ([`election`]). In: one live copy of all keys of the cluster
//! ([`observe`]). Decision: [`plan`], which is pure. Out: a compare-and-set of cluster data ([`daemon`]), which is
//! also what keeps two sentinels that both believe to lead from contradicting each other.

pub mod args;
pub mod daemon;
pub mod election;
pub mod history;
pub mod inquirer;
pub mod observe;
pub mod plan;
#[cfg(test)]
mod tests;

pub use args::SentinelArgs;
pub use daemon::run;
