//! Until when bytes may be written to a server.

use std::sync::atomic::{AtomicU64, Ordering};
use store::Moment;

/// Until when bytes may be written to a server. Asked before every write, because a process that was suspended, or
/// whose machine was, may run any task first when it wakes up, also one that knows nothing of deadlines.
#[derive(Debug, Default)]
pub struct Gate {
    open_until: AtomicU64,
}

impl Gate {
    /// Opens it until `deadline`; `None` shuts it.
    pub fn set(&self, deadline: Option<Moment>) {
        self.open_until.store(deadline.map_or(0, Moment::as_micros), Ordering::Relaxed);
    }

    /// Bytes may be written now.
    pub fn is_open(&self) -> bool {
        Moment::now().as_micros() < self.open_until.load(Ordering::Relaxed)
    }
}
