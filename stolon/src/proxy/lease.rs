//! The lease that the proxy's record hangs on.

use super::plan::{LeaseTimes, Timing};
use store::{KeptLease, LeaseState, Moment, SharedStore};
use tokio::sync::watch;
use tracing::debug;

/// A lease with the timing that it was taken for.
#[derive(Debug)]
pub struct HeldLease {
    kept: KeptLease,
    receiver: watch::Receiver<LeaseState>,
    timing: Timing,
}

impl HeldLease {
    /// Starts to take and keep a lease.
    pub fn start(store: SharedStore, timing: Timing) -> Self {
        let kept = KeptLease::start(store, timing.ttl);
        let receiver = kept.subscribe();
        HeldLease { kept, receiver, timing }
    }

    /// What it was taken for.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// The lease now.
    pub fn times(&self) -> LeaseTimes {
        let LeaseState { id, alive_until } = self.kept.state();
        LeaseTimes { id, alive_until, timing: self.timing }
    }

    /// Waits until the lease was granted or lost. Cancel-safe.
    pub async fn changed(&mut self) {
        // The sender lives as long as this lease.
        let _ = self.receiver.changed().await;
    }

    /// Ends the lease in the background, so that leases don't pile up in the store. It expires by itself otherwise.
    pub fn abandon(self) {
        tokio::spawn(async move {
            if let Err(error) = self.kept.revoke().await {
                debug!(%error, "revoke a lease that is no longer used");
            }
        });
    }

    /// Ends the lease: the record vanishes at once.
    ///
    /// # Errors
    /// The store is out of reach; the lease then expires by itself.
    pub async fn revoke(self) -> store::Result<()> {
        self.kept.revoke().await
    }

    /// Its last word from the store is older than a keep-alive that went well would leave it.
    pub fn is_silent(&self, now: Moment) -> bool {
        let times = self.times();
        times.id.is_none() || times.contact() + self.timing.ttl / 2 < now
    }
}
