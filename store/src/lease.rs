//! A lease that is kept alive in the background and replaced when it is lost.

use crate::{LeaseId, Moment, SharedStore, StoreError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

/// The lease now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseState {
    /// The lease; `None` before the first grant and between loss and replacement. A new id means that the keys
    /// of the old one are gone and must be written again.
    pub id: Option<LeaseId>,
    /// Until this moment the lease surely lives: the last successful request was sent one TTL before.
    pub alive_until: Moment,
}

/// Keeps a lease; when it is dropped the lease is left to expire, see [`KeptLease::revoke`].
#[derive(Debug)]
pub struct KeptLease {
    store: SharedStore,
    receiver: watch::Receiver<LeaseState>,
    task: JoinHandle<()>,
}

impl Drop for KeptLease {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl KeptLease {
    /// Starts to keep a lease of `ttl` (whole seconds, etcd grants no less than 2 s by default).
    pub fn start(store: SharedStore, ttl: Duration) -> Self {
        let (sender, receiver) = watch::channel(LeaseState { id: None, alive_until: Moment::now() });
        let task = tokio::spawn(keep(store.clone(), ttl, sender));
        KeptLease { store, receiver, task }
    }

    /// A receiver of the state. `alive_until` moves without waking it; a change of the id wakes it.
    pub fn subscribe(&self) -> watch::Receiver<LeaseState> {
        self.receiver.clone()
    }

    /// The lease now.
    pub fn state(&self) -> LeaseState {
        *self.receiver.borrow()
    }

    /// Waits until there is a lease. Cancel-safe.
    pub async fn granted(&mut self) -> LeaseId {
        loop {
            if let Some(id) = self.receiver.borrow_and_update().id {
                return id;
            }
            // The sender lives as long as the task, which ends with this lease only.
            let _ = self.receiver.changed().await;
        }
    }

    /// Ends the lease: its keys vanish at once. For a clean stop.
    ///
    /// # Errors
    /// The store is out of reach; the lease then expires by itself.
    pub async fn revoke(self) -> Result<(), StoreError> {
        self.task.abort();
        match self.state().id {
            Some(id) => self.store.revoke(id).await,
            None => Ok(()),
        }
    }
}

/// After a failure the next try comes sooner: a long lease must not end because of one short outage.
const RETRY: Duration = Duration::from_secs(1);

/// Below this a busy machine, not a dead member, would be the usual reason.
const SHORTEST_LIMIT: Duration = Duration::from_millis(400);

async fn keep(store: SharedStore, ttl: Duration, sender: watch::Sender<LeaseState>) {
    // Four tries per TTL: one lost or late keep-alive does no harm.
    let interval = ttl / 4;
    loop {
        let sent = Moment::now();
        let mut pause = interval;
        let current = sender.borrow().id;
        let request = async {
            match current {
                None => store.grant(ttl).await.map(Some),
                Some(id) => store.keep_alive(id).await.map(|()| None),
            }
        };
        // A request to a member of etcd that is cut off hangs. It must end while there is time to try another
        // member: the store's own deadline is longer than short leases live.
        let limit = interval.max(SHORTEST_LIMIT);
        let late = || StoreError::Timeout { endpoints: "one of its members".into(), after: limit };
        let result = tokio::time::timeout(limit, request).await.unwrap_or_else(|_| Err(late()));
        match result {
            Ok(Some(id)) => {
                sender.send_modify(|state| *state = LeaseState { id: Some(id), alive_until: sent + ttl });
            }
            Ok(None) => {
                sender.send_if_modified(|state| {
                    state.alive_until = sent + ttl;
                    false
                });
            }
            Err(StoreError::LeaseExpired) => {
                warn!("the lease has expired, taking a new one");
                sender.send_modify(|state| state.id = None);
                continue;
            }
            Err(error) => {
                debug!(%error, "keep the lease alive");
                pause = pause.min(RETRY);
            }
        }
        tokio::time::sleep(pause.saturating_sub(sent.elapsed()).max(Duration::from_millis(50))).await;
    }
}
