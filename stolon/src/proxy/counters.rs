//! What the proxy counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that any task may raise. The proxy runs on one thread, so reading and writing back loses nothing, and is
/// cheaper than an atomic addition on the way of every byte.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Raises it.
    pub fn add(&self, number: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(number), Ordering::Relaxed);
    }

    /// Lowers it.
    pub fn subtract(&self, number: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(number), Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts of one listening port since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections that were accepted.
    pub accepted: Counter,
    /// Connections that are being forwarded now.
    pub active: Counter,
    /// Connections that were closed because there was nowhere to forward them to.
    pub turned_away: Counter,
    /// Connections whose server could not be connected to.
    pub failed: Counter,
    /// Connections that were cut off, because the server changed or the store was silent.
    pub cut: Counter,
    /// Bytes from clients to servers.
    pub bytes_up: Counter,
    /// Bytes from servers to clients.
    pub bytes_down: Counter,
}
