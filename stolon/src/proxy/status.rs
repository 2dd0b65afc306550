//! What the proxy shows of itself: whether it is ready, why not, and its counts. Read by the metrics endpoint.

use super::counters::Counters;
use super::plan::{Reason, Silence};
use super::pools::ReplicaState;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::Moment;

/// Shared between the proxy and who shows it.
#[derive(Debug)]
pub struct Status {
    /// Counts of the port that leads to the master.
    pub master: Arc<Counters>,
    /// Counts of the port that leads to replicas.
    pub replica: Arc<Counters>,
    state: Mutex<State>,
}

/// The proxy at one moment.
#[derive(Clone, Debug)]
pub struct State {
    /// Why it forwards to the master, or doesn't.
    pub reason: Reason,
    /// Since when.
    pub since: Moment,
    /// The last generation that it has published.
    pub generation: Option<i64>,
    /// Where it forwards to, as `host:port`.
    pub destination: Option<String>,
    /// The store is silent, while connections are open.
    pub silence: Option<Silence>,
    /// Clients that wait for a destination, at both ports.
    pub waiting: usize,
    /// Replicas, where a port leads to them.
    pub replicas: Vec<ReplicaState>,
}

/// A value to show.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name of the metric.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
    /// It only grows; otherwise it goes up and down.
    pub is_counter: bool,
    /// Labels with their values.
    pub labels: Vec<(&'static str, String)>,
    /// Its value.
    pub value: f64,
}

impl Default for Status {
    fn default() -> Self {
        let state = State {
            reason: Reason::Unread,
            since: Moment::now(),
            generation: None,
            destination: None,
            silence: None,
            waiting: 0,
            replicas: Vec::new(),
        };
        Status { master: Arc::default(), replica: Arc::default(), state: Mutex::new(state) }
    }
}

impl Status {
    /// The proxy now.
    pub fn state(&self) -> State {
        // A panic while writing leaves a state that is as good as any.
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes it.
    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Connections to the master are forwarded.
    pub fn is_ready(&self) -> bool {
        self.state().reason == Reason::Ready
    }

    /// For a readiness check: a code, and a sentence with the time since when.
    pub fn readiness(&self, now: Moment) -> (bool, &'static str, String) {
        let state = self.state();
        let since = now.saturating_duration_since(state.since).as_secs();
        (state.reason == Reason::Ready, state.reason.code(), format!("{} (for {since} s)", state.reason))
    }

    /// All metrics.
    pub fn samples(&self, now: Moment) -> Vec<Sample> {
        let state = self.state();
        let gauge = |name, help, labels, value| Sample { name, help, is_counter: false, labels, value };
        let mut samples = vec![
            gauge(
                "stolon_proxy_ready",
                "1 while connections to the master are forwarded; the label says why not",
                vec![("reason", state.reason.code().to_owned())],
                f64::from(u8::from(state.reason == Reason::Ready)),
            ),
            gauge(
                "stolon_proxy_generation",
                "Generation last confirmed to the sentinels",
                vec![],
                number(state.generation),
            ),
            gauge(
                "stolon_proxy_store_silent_seconds",
                "How long the store has been silent; 0 while it answers",
                vec![],
                state.silence.map_or(0.0, |silence| silence.lasts(now).as_secs_f64()),
            ),
            gauge("stolon_proxy_waiting_clients", "Clients that wait for a destination", vec![], state.waiting as f64),
        ];
        for (port, counters) in [("master", &self.master), ("replica", &self.replica)] {
            samples.extend(counts(port, counters));
        }
        for replica in &state.replicas {
            let labels = vec![("db", replica.db.to_string()), ("address", replica.endpoint.to_string())];
            let fit = f64::from(u8::from(replica.unfit.is_none()));
            samples.push(gauge(
                "stolon_proxy_replica_fit",
                "1 while the replica gets new connections",
                labels.clone(),
                fit,
            ));
            let connections = replica.connections as f64;
            samples.push(gauge("stolon_proxy_replica_connections", "Connections to the replica", labels, connections));
        }
        samples
    }
}

fn number(generation: Option<i64>) -> f64 {
    generation.unwrap_or_default() as f64
}

fn counts(port: &str, counters: &Counters) -> Vec<Sample> {
    let Counters { accepted, active, turned_away, failed, cut, bytes_up, bytes_down } = counters;
    let sample = |name, help, is_counter, value: u64| Sample {
        name,
        help,
        is_counter,
        labels: vec![("port", port.to_owned())],
        value: value as f64,
    };
    vec![
        sample("stolon_proxy_connections", "Connections that are forwarded now", false, active.get()),
        sample("stolon_proxy_accepted_total", "Connections that were accepted", true, accepted.get()),
        sample(
            "stolon_proxy_turned_away_total",
            "Connections closed for lack of a destination",
            true,
            turned_away.get(),
        ),
        sample("stolon_proxy_failed_total", "Connections whose server could not be reached", true, failed.get()),
        sample("stolon_proxy_cut_total", "Connections that were cut off", true, cut.get()),
        sample("stolon_proxy_sent_bytes_total", "Bytes from clients to servers", true, bytes_up.get()),
        sample("stolon_proxy_received_bytes_total", "Bytes from servers to clients", true, bytes_down.get()),
    ]
}

impl Silence {
    /// How long it has lasted.
    pub fn lasts(&self, now: Moment) -> Duration {
        now.saturating_duration_since(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn it_says_why_it_is_not_ready() {
        let status = Status::default();
        let later = Moment::now() + Duration::from_secs(7);
        assert_eq!(status.readiness(later), (false, "store_unread", "the store was not read yet (for 7 s)".to_owned()));
        status.change(|state| state.reason = Reason::Ready);
        assert!(status.is_ready());
        assert_eq!(status.readiness(later).1, "ready");
    }

    #[test]
    fn names_and_labels_are_told_apart() {
        let status = Status::default();
        status.master.accepted.add(3);
        let samples = status.samples(Moment::now());
        let keys: BTreeSet<String> = samples.iter().map(|s| format!("{}{:?}", s.name, s.labels)).collect();
        assert_eq!(keys.len(), samples.len());
        let accepted = samples.iter().find(|s| s.name == "stolon_proxy_accepted_total").unwrap();
        assert_eq!((accepted.value, accepted.labels.clone()), (3.0, vec![("port", "master".to_owned())]));
        assert!(samples.iter().all(|s| s.is_counter == s.name.ends_with("_total")));
    }
}
