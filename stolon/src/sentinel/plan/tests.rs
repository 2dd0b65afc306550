//! Whole scenarios, played against pretend keepers and proxies.

mod failover;
mod housekeeping;
mod properties;
mod sync;
mod world;
