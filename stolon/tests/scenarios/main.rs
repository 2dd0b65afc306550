//! Whole clusters as processes, with real etcd and PostgreSQL, and what must come out when parts of them fail.
//!
//! One module per topic. Each test has a cluster of its own; they mostly wait, so several run at once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod access;
mod bypass;
mod connections;
mod disk;
mod failover;
mod fast;
mod init;
mod interop;
mod leave;
mod metrics;
mod operate;
mod outside;
mod parameters;
mod partition;
mod proxy;
mod rewind;
mod standby;
mod store;
mod sync;
mod tls;
mod topology;
mod twins;

use model::stolon::{ClusterData, Role};
use std::collections::BTreeMap;
use testkit::stolon::{Bins, Builder, Lab};

/// The programs of this build.
fn bins() -> Bins {
    Bins::beside(env!("CARGO_BIN_EXE_stolon-keeper"))
}

/// A lab of the programs of this build.
fn lab() -> Builder {
    Lab::builder(bins())
}

/// In no version of the cluster data do proxies lead to a db that had not become master yet, and between two masters
/// there is always a version in which they lead to nobody.
fn published_only_when_promoted(history: &[ClusterData]) {
    let mut last = history[0].proxy.spec.master_db_uid.clone();
    // The generation that made each db master.
    let mut appointed = BTreeMap::new();
    for data in history {
        for (uid, db) in data.dbs.iter().filter(|(_, db)| db.spec.role == Some(Role::Master)) {
            appointed.entry(uid.clone()).or_insert(db.generation);
        }
        let published = &data.proxy.spec.master_db_uid;
        if *published != last && !published.is_empty() {
            assert!(last.is_empty(), "proxies were led from {last} to {published} at once");
            let status = &data.dbs[published].status;
            assert!(status.healthy && status.current_generation >= appointed[published], "{published}: too early");
        }
        last.clone_from(published);
    }
}
