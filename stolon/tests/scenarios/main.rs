//! Whole clusters as processes, with real etcd and PostgreSQL, and what must come out when parts of them fail.
//!
//! One module per topic. Each test has a cluster of its own; they mostly wait, so several run at once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod connections;
mod disk;
mod failover;
mod fast;
mod operate;
mod parameters;
mod proxy;
mod rewind;
mod tls;

use testkit::stolon::{Bins, Builder, Lab};

/// A lab of the programs of this build.
fn lab() -> Builder {
    Lab::builder(Bins::beside(env!("CARGO_BIN_EXE_stolon-keeper")))
}
