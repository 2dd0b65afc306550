//! A clock that goes on while the machine sleeps.

use rustix::time::{ClockId, clock_gettime};
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// A moment of this machine, counted from its start, the time that it slept included. [`std::time::Instant`] stands still
/// while a machine is suspended; leases in the store don't.
///
/// Timers don't see the sleep either: what must not happen after a moment has to be checked when it is about to happen.
/// Neither can see that a virtual machine was paused, unless its host moves the clock of the guest forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// The moment now.
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::Boottime);
        // Counted from the machine's start: never negative.
        Moment(Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or_default()))
    }

    /// How long ago this was; zero if it is to come.
    pub fn elapsed(self) -> Duration {
        Moment::now().saturating_duration_since(self)
    }

    /// From the earlier moment to this one; zero if it is not earlier.
    pub fn saturating_duration_since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// `None` if the machine did not run yet.
    pub fn checked_sub(self, duration: Duration) -> Option<Self> {
        self.0.checked_sub(duration).map(Moment)
    }

    /// Microseconds from the machine's start.
    pub fn as_micros(self) -> u64 {
        u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX)
    }

    /// Waits until this moment, or longer if the machine sleeps meanwhile. Cancel-safe.
    pub async fn wait(self) {
        tokio::time::sleep(self.saturating_duration_since(Moment::now())).await;
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_add(duration))
    }
}

impl AddAssign<Duration> for Moment {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub for Moment {
    type Output = Duration;

    fn sub(self, earlier: Moment) -> Duration {
        self.saturating_duration_since(earlier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// The kernel says how long the machine has been up, its sleep included.
    fn is_uptime() {
        let text = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = text.split_whitespace().next().unwrap().parse().unwrap();
        let now = Moment::now().0.as_secs_f64();
        assert!((uptime - now).abs() < 10.0, "{uptime} {now}");
    }

    #[test]
    fn sleep_of_the_machine_counts() {
        is_uptime();
        // As if it had slept for more than a day: only what counts sleep is moved.
        let this = std::env::current_exe().unwrap();
        let mut child = Command::new("unshare");
        child.args(["--time", "--fork", "--boottime", "100000"]).arg(this);
        child.args(["--exact", "moment::tests::child", "--ignored"]);
        match child.output() {
            Ok(output) if String::from_utf8_lossy(&output.stderr).starts_with("unshare:") => {
                println!("only root can have a clock of its own: {}", String::from_utf8_lossy(&output.stderr));
            }
            Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
            Err(error) => println!("not run: unshare: {error}"),
        }
    }

    #[test]
    #[ignore = "a part of another test"]
    fn child() {
        assert!(Moment::now().0 > Duration::from_secs(100_000));
        is_uptime();
    }

    #[test]
    fn moments_are_counted_with() {
        let now = Moment::now();
        let later = now + Duration::from_millis(1500);
        assert_eq!(later - now, Duration::from_millis(1500));
        assert_eq!((now - later, later.checked_sub(Duration::from_millis(1500))), (Duration::ZERO, Some(now)));
        assert!(now < later && now.as_micros() + 1_500_000 == later.as_micros());
        assert_eq!(now.checked_sub(Duration::MAX), None);
    }
}
