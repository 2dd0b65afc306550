//! Numbers about a running program, and whether it does its work, for those who watch over it.
//!
//! A program declares its metrics in one list with [`metrics!`](crate::metrics); each is a static that holds its values,
//! so that whoever knows a number says it where it is known. [`serve`] shows them over HTTP if the operator asks for it:
//! `/metrics` in Prometheus' text format, `/healthz` (the process lives) and `/readyz` (it does its work, or why not).

mod page;
mod ready;
mod serve;

pub use page::{braces, document, render};
pub use ready::{NotReady, Readiness};
pub use serve::{Listener, Shown};

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What a number does over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It goes up and down.
    Gauge,
    /// It only grows while the process lives.
    Counter,
}

impl Kind {
    /// As Prometheus calls it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Value {
    Number(f64),
    /// Seconds left until then; zero afterwards.
    Until(Instant),
}

/// One metric with its values, one for each combination of labels that was told.
#[derive(Debug)]
pub struct Metric {
    /// Full name.
    pub name: &'static str,
    /// Gauge or counter.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
    values: Mutex<BTreeMap<Vec<String>, Value>>,
}

impl Metric {
    /// For [`metrics!`](crate::metrics).
    pub const fn new(name: &'static str, kind: Kind, labels: &'static [&'static str], help: &'static str) -> Self {
        Metric { name, kind, labels, help, values: Mutex::new(BTreeMap::new()) }
    }

    /// Tells its value now.
    pub fn set(&self, value: f64) {
        self.tell(&[], Value::Number(value));
    }

    /// Tells the value of a combination of labels.
    pub fn set_for(&self, labels: &[&str], value: f64) {
        self.tell(labels, Value::Number(value));
    }

    /// Sets one combination of a single label to 1 and all others to 0.
    pub fn set_one_of(&self, all: &[&str], current: &str) {
        for label in all {
            self.set_for(&[label], f64::from(u8::from(*label == current)));
        }
    }

    /// Adds to a counter.
    pub fn add(&self, more: f64) {
        if let Value::Number(number) = self.values().entry(Vec::new()).or_insert(Value::Number(0.0)) {
            *number += more;
        }
    }

    /// Tells seconds since the beginning of 1970, now.
    pub fn set_now(&self) {
        // A clock before 1970 is not worth more than a zero.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        self.set(now.as_secs_f64());
    }

    /// Shows the seconds left until then; `None` shows zero.
    pub fn set_until(&self, moment: Option<Instant>) {
        self.tell(&[], moment.map_or(Value::Number(0.0), Value::Until));
    }

    fn tell(&self, labels: &[&str], value: Value) {
        debug_assert_eq!(labels.len(), self.labels.len(), "labels of {}", self.name);
        self.values().insert(labels.iter().map(|&label| label.to_owned()).collect(), value);
    }

    fn values(&self) -> MutexGuard<'_, BTreeMap<Vec<String>, Value>> {
        // Values are whole at any moment: a panic elsewhere does not spoil them.
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Declares a program's metrics: a static for each, and `LIST` of all in this order.
///
/// ```
/// common::metrics! {
///     CONNECTIONS: Gauge "stolon_proxy_connections" [] "Connections that are open";
///     ROLE: Gauge "stolon_keeper_local_role" ["role"] "1 for the role that PostgreSQL has";
/// }
/// CONNECTIONS.set(1.0);
/// assert_eq!(LIST.len(), 2);
/// ```
#[macro_export]
macro_rules! metrics {
    ($($id:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            #[allow(unreachable_pub, reason = "whether they can be reached depends on where the list is")]
            pub static $id: $crate::metrics::Metric =
                $crate::metrics::Metric::new($name, $crate::metrics::Kind::$kind, &[$($label),*], $help);
        )*
        /// All of them, in the order of the documentation.
        #[allow(unreachable_pub, reason = "whether they can be reached depends on where the list is")]
        pub static LIST: &[&$crate::metrics::Metric] = &[$(&$id),*];
    };
}
