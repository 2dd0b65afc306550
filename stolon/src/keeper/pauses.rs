//! Pauses while waiting for our own PostgreSQL.

use std::time::Duration;
use tokio::time::Instant;

/// Most of what it is asked for takes a few milliseconds.
const SHORTEST: Duration = Duration::from_millis(1);
/// What takes long may take a moment longer.
const LONGEST: Duration = Duration::from_millis(20);
/// A wait gets longer by this part of itself at most.
const SHARE: u32 = 16;

/// Pauses that grow with the wait: a look costs next to nothing, but hundreds of them should not be needed.
#[derive(Debug)]
pub(super) struct Pauses(Instant);

impl Pauses {
    /// The first one is the shortest.
    pub(super) fn new() -> Self {
        Pauses(Instant::now())
    }

    /// Waits for a while. Cancel-safe.
    pub(super) async fn pause(&mut self) {
        tokio::time::sleep((self.0.elapsed() / SHARE).clamp(SHORTEST, LONGEST)).await;
    }
}
