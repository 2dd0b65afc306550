//! Measured times beside what is promised.

use std::fmt;
use std::time::Duration;

/// Times of one kind.
pub(crate) struct Figures {
    kind: String,
    median: f64,
    max: Option<f64>,
    seconds: Vec<f64>,
    failed: usize,
    cut: usize,
}

impl Figures {
    /// None yet; what is promised for the median and the longest, in seconds.
    pub(crate) fn new(kind: impl Into<String>, median: f64, max: Option<f64>) -> Self {
        Figures { kind: kind.into(), median, max, seconds: Vec::new(), failed: 0, cut: 0 }
    }

    /// One more.
    pub(crate) fn add(&mut self, time: Duration) {
        self.seconds.push(time.as_secs_f64());
    }

    /// Writes that failed although they were tried again once, and connections that were cut under a write.
    pub(crate) fn add_failed(&mut self, writes: usize, cut: usize) {
        self.failed += writes;
        self.cut += cut;
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else {
            return write!(f, "{}: nothing was measured", self.kind);
        };
        let median = sorted[sorted.len() / 2];
        write!(f, "{:48} median {median:5.2} s (promised {:.1}", self.kind, self.median)?;
        if let Some(max) = self.max {
            write!(f, ", at most {max:.0}")?;
        }
        write!(
            f,
            "), {least:.2} to {most:.2} s; writes that failed twice: {}, connections cut: {}",
            self.failed, self.cut
        )
    }
}
