//! Flags.

use clap::Parser;
use clap::builder::BoolishValueParser;
use common::cli::{CommonArgs, SDM_PREFIX};
use std::time::Duration;

/// Environment prefixes of the flags, the first one wins.
pub const PREFIXES: [&str; 2] = ["SHMNMONITOR", SDM_PREFIX];

/// Keeps every replication group informed about where the others' masters are
///
/// Each option can be given in the environment as well: --cluster-name as SDM_CLUSTER_NAME, and so on.
#[derive(Clone, Debug, Parser)]
#[command(name = "monitor", version)]
pub struct Cli {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its doc comment would become the help text of the flags")]
    pub common: CommonArgs,
    /// Do not finish transactions that hang prepared (not available yet)
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub no_xact_resolver: bool,
    /// Do not look for deadlocks over several groups (not available yet)
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub no_deadlock_detector: bool,
    /// Period of the search for deadlocks: a number with ms, s, min, h or d; without a unit it is in ms (not available
    /// yet)
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_period)]
    pub deadlock_timeout: Duration,
}

const UNITS: [(&str, u64); 6] =
    [("", 1), ("ms", 1), ("s", 1_000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Reads a period as PostgreSQL's settings write it: an integer, blanks if wanted, a unit.
///
/// # Errors
/// Another form, or zero, which would mean to search without a pause.
pub fn parse_period(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let malformed = || format!("\"{text}\" is not a duration: write a whole number with ms, s, min, h or d");
    let number: u64 = number.parse().map_err(|_| malformed())?;
    let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit.trim_start()).ok_or_else(malformed)?;
    let total = number.checked_mul(*millis).ok_or_else(|| format!("\"{text}\" is too long"))?;
    if total == 0 {
        return Err("the period must be longer than zero".to_owned());
    }
    Ok(Duration::from_millis(total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;
    use proptest::prelude::*;

    #[test]
    fn periods_are_written_as_in_postgresql() {
        for (text, millis) in [
            ("2s", 2_000),
            ("250", 250),
            ("250 ms", 250),
            (" 1  min ", 60_000),
            ("2min", 120_000),
            ("1h", 3_600_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(parse_period(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "s", "0", "0min", "-1s", "1.5s", "1 m", "1S", "1 s s", "99999999999999999999", "999999999999999d"]
        {
            assert!(parse_period(text).is_err(), "{text}");
        }
    }

    #[test]
    fn flags_fit_together() {
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["monitor", "--no-xact-resolver", "--deadlock-timeout", "1min"]);
        assert!(cli.no_xact_resolver && !cli.no_deadlock_detector);
        assert_eq!(cli.deadlock_timeout, Duration::from_secs(60));
        assert_eq!(Cli::parse_from(["monitor"]).deadlock_timeout, Duration::from_secs(2));
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = parse_period(&text);
        }
    }
}
