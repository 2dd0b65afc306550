//! What this process has experienced with etcd, for its metrics: counted over all stores it opened.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

static REQUESTS: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);
static MOVES: AtomicU64 = AtomicU64::new(0);
/// Milliseconds after `BASE`, plus one; zero: never.
static ANSWERED: AtomicU64 = AtomicU64::new(0);
static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Requests that were made.
pub fn requests() -> u64 {
    REQUESTS.load(Ordering::Relaxed)
}

/// Requests that no member answered well.
pub fn failed() -> u64 {
    FAILED.load(Ordering::Relaxed)
}

/// How often another member was used from then on.
pub fn moves() -> u64 {
    MOVES.load(Ordering::Relaxed)
}

/// How long ago the last answer came; `None` before the first.
pub fn silent_for() -> Option<Duration> {
    let millis = ANSWERED.load(Ordering::Relaxed).checked_sub(1)?;
    Some(BASE.elapsed().saturating_sub(Duration::from_millis(millis)))
}

pub(crate) fn count_request(answered: bool) {
    REQUESTS.fetch_add(1, Ordering::Relaxed);
    if answered {
        let millis = u64::try_from(BASE.elapsed().as_millis()).unwrap_or(u64::MAX);
        ANSWERED.store(millis.saturating_add(1), Ordering::Relaxed);
    } else {
        FAILED.fetch_add(1, Ordering::Relaxed);
    }
}

pub(crate) fn count_move() {
    MOVES.fetch_add(1, Ordering::Relaxed);
}
