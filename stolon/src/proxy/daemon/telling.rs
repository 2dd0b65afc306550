//! What the proxy says of itself.

use super::Proxy;
use crate::proxy::plan::{Reason, Silence};
use store::Moment;
use tracing::{info, warn};

impl Proxy {
    /// Logs why nothing is forwarded, once per reason.
    pub(super) fn tell(&mut self, reason: &Reason, now: Moment) {
        if self.forwarding.is_none() && *reason != Reason::Ready && self.told.as_ref() != Some(reason) {
            info!(%reason, "not forwarding");
            self.told = Some(reason.clone());
        }
        // A destination that is wanted but not reached yet: the proxy waits for the store to take its record.
        let waiting = self.forwarding.is_none() && *reason == Reason::Ready;
        let shown = if waiting { &Reason::Unpublished } else { reason };
        self.show_reason(&shown.clone(), now);
    }

    /// Logs that connections are about to be cut off, early enough for somebody to look at the store.
    pub(super) fn tell_silence(&mut self, silence: Option<Silence>, now: Moment) {
        if let Some(silence) = silence.filter(|_| !self.silent) {
            let silent = silence.lasts(now).as_millis();
            let left = silence.cut_at.saturating_duration_since(now).as_millis();
            warn!(
                "the store has been silent for {silent} ms; all connections are cut off in {left} ms unless it answers"
            );
        } else if self.silent && silence.is_none() && self.forwarding.is_some() {
            info!("the store answers again");
        }
        self.silent = silence.is_some();
        self.status.change(|state| state.silence = silence);
    }

    pub(super) fn show_reason(&self, reason: &Reason, now: Moment) {
        self.status.change(|state| {
            if state.reason != *reason {
                state.reason = reason.clone();
                state.since = now;
            }
        });
    }

    /// Brings what is shown up to date.
    pub(super) fn show(&self) {
        let replicas = self.replicas.as_ref();
        let waiting = self.door.waiting() + replicas.map_or(0, |port| port.door.waiting());
        let states = replicas.map(|port| port.pools.states()).unwrap_or_default();
        self.status.change(|state| {
            state.generation = self.published.as_ref().map(|published| published.order.generation);
            state.destination = self.forwarding.as_ref().map(|destination| destination.endpoint.to_string());
            state.waiting = waiting;
            state.replicas = states;
        });
    }
}
