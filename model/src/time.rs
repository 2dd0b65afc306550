//! Points in time as stolon's documents carry them.

use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// A time in RFC 3339 with up to nine digits of a second. Its default is Go's zero time,
/// `0001-01-01T00:00:00Z`, which is written and not left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoTime(DateTime<Utc>);

impl Default for GoTime {
    fn default() -> Self {
        let zero = NaiveDate::from_ymd_opt(1, 1, 1).and_then(|day| day.and_hms_opt(0, 0, 0)).unwrap_or_default();
        GoTime(zero.and_utc())
    }
}

impl GoTime {
    /// True for Go's zero time, which stands for "never".
    pub fn is_zero(self) -> bool {
        self == GoTime::default()
    }
    /// The time itself.
    pub fn utc(self) -> DateTime<Utc> {
        self.0
    }
}

impl From<DateTime<Utc>> for GoTime {
    fn from(value: DateTime<Utc>) -> Self {
        GoTime(value)
    }
}

impl fmt::Display for GoTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_rfc3339_opts(SecondsFormat::AutoSi, true))
    }
}

impl Serialize for GoTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Some(text) = Option::<std::borrow::Cow<'de, str>>::deserialize(deserializer)? else {
            return Ok(GoTime::default());
        };
        let time = DateTime::parse_from_rfc3339(&text)
            .map_err(|e| D::Error::custom(format!("\"{text}\" is not a time in RFC 3339: {e}")))?;
        Ok(GoTime(time.to_utc()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_time_is_written() {
        assert_eq!(serde_json::to_string(&GoTime::default()).unwrap(), "\"0001-01-01T00:00:00Z\"");
        assert!(serde_json::from_str::<GoTime>("\"0001-01-01T00:00:00Z\"").unwrap().is_zero());
        assert!(serde_json::from_str::<GoTime>("null").unwrap().is_zero());
    }

    #[test]
    fn offsets_are_read() {
        let time: GoTime = serde_json::from_str("\"2026-11-20T13:28:30.125875603+03:00\"").unwrap();
        assert_eq!(time.to_string(), "2026-11-20T10:28:30.125875603Z");
    }

    #[test]
    fn broken_times_are_refused() {
        for text in ["\"\"", "\"yesterday\"", "17", "\"2026-13-01T00:00:00Z\""] {
            assert!(serde_json::from_str::<GoTime>(text).is_err(), "{text}");
        }
    }
}
