//! Whole scenarios, played against pretend keepers and proxies.

mod commits;
mod failover;
mod housekeeping;
mod operation;
mod properties;
mod restart;
mod standby;
mod suspicion;
mod sync;
mod world;
