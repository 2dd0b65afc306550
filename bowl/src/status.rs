//! Publishes the node's status under bowl's lease. A task of its own: the store may be slow, daemons may not wait.

use chrono::{SecondsFormat, Utc};
use model::layout::{Document, NodeStatus};
use std::time::Duration;
use store::{KeptLease, SharedStore};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

/// The status vanishes this long after bowl does. `ladle` counts a node without status as absent.
const TTL: Duration = Duration::from_secs(10);
/// Changes that come together are written together.
const GATHER: Duration = Duration::from_millis(100);
const RETRY: Duration = Duration::from_secs(1);
/// A clean end does not wait longer for a store that is out of reach.
const FAREWELL: Duration = Duration::from_secs(2);

/// Writes each new status, and the same one again when the lease is a new one.
#[derive(Debug)]
pub struct Publisher {
    sender: watch::Sender<Option<NodeStatus>>,
    end: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Publisher {
    /// Starts to publish under `key`.
    pub fn start(store: SharedStore, key: String) -> Self {
        let (sender, receiver) = watch::channel(None);
        let (end, ending) = watch::channel(false);
        let task = tokio::spawn(publish(store, key, receiver, ending));
        Publisher { sender, end, task }
    }

    /// Publishes a status; its time is set when it is written, and alone is no change.
    pub fn set(&self, status: NodeStatus) {
        self.sender.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&status);
            *current = Some(status);
            changed
        });
    }

    /// Removes the status: bowl ends.
    pub async fn finish(mut self) {
        self.end.send_replace(true);
        let _ = tokio::time::timeout(FAREWELL, &mut self.task).await;
    }
}

async fn publish(
    store: SharedStore,
    key: String,
    mut status: watch::Receiver<Option<NodeStatus>>,
    mut ending: watch::Receiver<bool>,
) {
    let lease = KeptLease::start(store.clone(), TTL);
    let mut leases = lease.subscribe();
    let mut failing = false;
    loop {
        status.mark_unchanged();
        let now = status.borrow().clone();
        let id = leases.borrow_and_update().id;
        let mut written = true;
        if let (Some(mut now), Some(_)) = (now, id) {
            now.time = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
            let result = store.put(&key, &now.to_bytes(), id).await;
            written = result.is_ok();
            match result {
                Ok(_) => failing = false,
                Err(error) if !failing => {
                    warn!(%error, "the node's status was not written");
                    failing = true;
                }
                Err(error) => debug!(%error, "the node's status was not written"),
            }
        }
        // All branches are cancel-safe.
        let ended = tokio::select! {
            _ = status.changed() => false,
            _ = leases.changed() => false,
            () = tokio::time::sleep(RETRY), if !written => false,
            _ = ending.wait_for(|end| *end) => true,
        };
        if ended {
            let _ = lease.revoke().await;
            return;
        }
        tokio::time::sleep(GATHER).await;
    }
}
