//! Whole scenarios, played against pretend keepers and proxies.

mod commits;
mod failover;
mod housekeeping;
mod properties;
mod sync;
mod world;
