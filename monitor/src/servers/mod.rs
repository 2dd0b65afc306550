//! Duty 1: on every group's master, the foreign servers of all other groups point to where those groups are.

pub mod apply;
pub mod plan;
pub mod sql;
mod worker;

use crate::picture::Picture;
use model::RepGroupId;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A worker; ends when it is dropped.
struct Worker(JoinHandle<()>);

impl Drop for Worker {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Keeps one worker per group of the picture. Never ends, and stops the workers when it is dropped.
pub async fn run(mut pictures: watch::Receiver<Arc<Picture>>) {
    let mut workers: BTreeMap<RepGroupId, Worker> = BTreeMap::new();
    loop {
        let picture = pictures.borrow_and_update().clone();
        workers.retain(|id, _| picture.groups.contains_key(id));
        for id in picture.groups.keys() {
            workers.entry(*id).or_insert_with(|| Worker(tokio::spawn(worker::run(*id, pictures.clone()))));
        }
        if pictures.changed().await.is_err() {
            return;
        }
    }
}
