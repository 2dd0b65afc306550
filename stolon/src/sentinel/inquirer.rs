//! Finds out whether a master's server is really gone: asks its keeper, and tries to connect. Never in the sentinel's way.

use super::plan::{Inquired, Inquiry, PRESENT};
use crate::reach::{Reach, reach};
use model::stolon::keys::Keys;
use std::time::{Duration, Instant};
use store::{LeaseId, SharedStore};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::debug;

/// How long an attempt to connect may take; one that takes longer says nothing.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(1);
/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause once the host does not refuse: then nothing is decided by it.
const CALM_PAUSE: Duration = Duration::from_secs(1);
/// Pause after the store did not take the question.
const RETRY: Duration = Duration::from_millis(200);

/// One inquiry at a time.
#[derive(Debug)]
pub struct Inquirer {
    store: SharedStore,
    keys: Keys,
    /// Zero of the plan's clock.
    origin: Instant,
    current: Option<(Inquiry, JoinHandle<()>)>,
    sender: watch::Sender<Option<Inquired>>,
    receiver: watch::Receiver<Option<Inquired>>,
}

impl Drop for Inquirer {
    fn drop(&mut self) {
        self.pursue(None, None);
    }
}

impl Inquirer {
    /// Knows nothing and does nothing yet.
    pub fn new(store: SharedStore, keys: Keys, origin: Instant) -> Self {
        let (sender, receiver) = watch::channel(None);
        Inquirer { store, keys, origin, current: None, sender, receiver }
    }

    /// Goes on with this inquiry, begins it, or stops. What is written hangs on the lease.
    pub fn pursue(&mut self, wanted: Option<Inquiry>, lease: Option<LeaseId>) {
        if self.current.as_ref().map(|(inquiry, _)| inquiry) == wanted.as_ref() {
            return;
        }
        if let Some((_, task)) = self.current.take() {
            task.abort();
            self.sender.send_replace(None);
            self.receiver.mark_unchanged();
        }
        let Some((inquiry, lease)) = wanted.zip(lease) else { return };
        let key = self.keys.challenge(&inquiry.keeper);
        let found = Found { origin: self.origin, sender: self.sender.clone(), token: inquiry.token.clone() };
        let task = tokio::spawn(run(self.store.clone(), key, lease, inquiry.clone(), found));
        self.current = Some((inquiry, task));
    }

    /// What was found out so far.
    pub fn inquired(&self) -> Option<Inquired> {
        self.receiver.borrow().clone()
    }

    /// Waits until that is something else. Cancel-safe.
    pub async fn changed(&mut self) {
        // The sender lives as long as this.
        let _ = self.receiver.changed().await;
    }
}

/// Never ends.
async fn run(store: SharedStore, key: String, lease: LeaseId, inquiry: Inquiry, found: Found) {
    tokio::join!(ask(&store, &key, lease, &inquiry, &found), attempts(&inquiry, &found));
}

async fn ask(store: &SharedStore, key: &str, lease: LeaseId, inquiry: &Inquiry, found: &Found) {
    loop {
        let begun = Instant::now();
        match store.put(key, inquiry.token.as_bytes(), Some(lease)).await {
            Ok(_) => return found.asked(begun.elapsed()),
            Err(error) => debug!(%error, "ask a keeper for a sign of life"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn attempts(inquiry: &Inquiry, found: &Found) {
    loop {
        let refused = reach(&inquiry.host, inquiry.port, ATTEMPT_LIMIT).await == Reach::Refused;
        found.tried(refused);
        tokio::time::sleep(if refused { PAUSE } else { CALM_PAUSE }).await;
    }
}

/// Where the results of one inquiry go.
struct Found {
    origin: Instant,
    sender: watch::Sender<Option<Inquired>>,
    token: String,
}

impl Found {
    fn asked(&self, took: Duration) {
        let now = self.origin.elapsed();
        self.sender.send_modify(|all| self.mine(all).asked = Some((now, took)));
    }

    /// Wakes the sentinel for what changes its conclusions only.
    fn tried(&self, refused: bool) {
        let now = self.origin.elapsed();
        self.sender.send_if_modified(|all| {
            let inquired = self.mine(all);
            let before = inquired.refused.filter(|(_, last)| now <= *last + PRESENT);
            let since = before.map_or(now, |(since, _)| since);
            inquired.refused = refused.then_some((since, now));
            before.is_some() != refused
        });
    }

    fn mine<'a>(&self, all: &'a mut Option<Inquired>) -> &'a mut Inquired {
        all.get_or_insert_with(|| Inquired { token: self.token.clone(), asked: None, refused: None })
    }
}
