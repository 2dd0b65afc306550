//! Until when bytes may be written to a server.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Until when bytes may be written to a server. Asked before every write, because a process that was suspended may
/// run any task first when it wakes up, also one that knows nothing of deadlines.
#[derive(Debug)]
pub struct Gate {
    base: Instant,
    open_until: AtomicU64,
}

impl Default for Gate {
    fn default() -> Self {
        Gate { base: Instant::now(), open_until: AtomicU64::new(0) }
    }
}

impl Gate {
    /// Opens it until `deadline`; `None` shuts it.
    pub fn set(&self, deadline: Option<Instant>) {
        let micros = deadline.map_or(0, |deadline| self.micros(deadline));
        self.open_until.store(micros, Ordering::Relaxed);
    }

    /// Bytes may be written now.
    pub fn is_open(&self) -> bool {
        self.micros(Instant::now()) < self.open_until.load(Ordering::Relaxed)
    }

    fn micros(&self, instant: Instant) -> u64 {
        u64::try_from(instant.saturating_duration_since(self.base).as_micros()).unwrap_or(u64::MAX)
    }
}
