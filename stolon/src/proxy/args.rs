//! The proxy's command line.

use super::replicas::ReplicaRole;
use crate::cli::{CommonArgs, VERSION};
use clap::{ArgAction, Parser};
use common::cli::parse_bool;
use model::GoDuration;
use std::time::Duration;

/// Forwards connections to the master of a stolon cluster
#[derive(Clone, Debug, Parser)]
#[command(name = "stolon-proxy", version = VERSION)]
pub struct ProxyArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its doc comment would become the help text of the flags")]
    pub common: CommonArgs,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub listen_address: String,
    /// Port to listen on
    #[arg(long, value_name = "PORT", default_value = "5432")]
    pub port: u16,
    /// Address that is published for clients, if it is not the one to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    pub advertise_address: String,
    /// Close the listening socket too while the store is out of reach
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        value_parser = parse_bool,
        default_value = "true",
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true
    )]
    pub stop_listening: bool,
    /// Seconds of silence before the first keep-alive probe; 0 = the system's default
    #[arg(long, value_name = "SECONDS", default_value = "0")]
    pub tcp_keepalive_idle: u32,
    /// Unanswered keep-alive probes before a connection is dead; 0 = the system's default
    #[arg(long, value_name = "NUMBER", default_value = "0")]
    pub tcp_keepalive_count: u32,
    /// Seconds between keep-alive probes; 0 = the system's default
    #[arg(long, value_name = "SECONDS", default_value = "0")]
    pub tcp_keepalive_interval: u32,
    /// Seconds after which a connection is dead whose other side takes no bytes; 0 = never. A client that stops
    /// reading for so long (a pager) is cut off too
    #[arg(long, value_name = "SECONDS", default_value = "0")]
    pub tcp_user_timeout: u32,
    /// Lets clients that come while there is no master wait so long, instead of closing their connections at once;
    /// seconds or a duration like 5s, 0 = not at all
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = parse_hold)]
    pub hold_connections: Duration,
    /// Port for reading, led to standbys; 0 = none
    #[arg(long, value_name = "PORT", default_value = "0")]
    pub replica_port: u16,
    /// Address of the port for reading, if it is not the one of --listen-address
    #[arg(long, value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    pub replica_listen_address: String,
    /// Standbys that are read from: any, or only synchronous ones
    #[arg(long, value_enum, value_name = "ROLE", default_value = "any")]
    pub replica_role: ReplicaRole,
    /// Bytes of WAL that a standby may lack to get new connections; at twice as many it loses those that it has;
    /// 0 = any number
    #[arg(long, value_name = "BYTES", default_value = "67108864")]
    pub replica_max_lag: u64,
    /// Lead readers to the master while no standby is fit
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        value_parser = parse_bool,
        default_value = "false",
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true
    )]
    pub replica_fallback_to_master: bool,
}

/// Longest time that a client may wait: a connection that nobody answers for longer is of no use to anybody.
const LONGEST_HOLD: Duration = Duration::from_secs(600);

fn parse_hold(text: &str) -> Result<Duration, String> {
    let malformed = || "write seconds or a duration, like 5, 500ms or 1m30s".to_owned();
    let hold = match text.trim().parse::<u32>() {
        Ok(seconds) => Duration::from_secs(seconds.into()),
        Err(_) => {
            let duration: GoDuration = text.trim().parse().map_err(|_| malformed())?;
            if duration < GoDuration::ZERO {
                return Err(malformed());
            }
            duration.to_std()
        }
    };
    if hold > LONGEST_HOLD { Err("that is too long; the most is 10m".to_owned()) } else { Ok(hold) }
}

impl ProxyArgs {
    /// The address to listen on for readers.
    pub fn replica_host(&self) -> &str {
        if self.replica_listen_address.is_empty() { &self.listen_address } else { &self.replica_listen_address }
    }

    /// The address that clients are told.
    pub fn advertised(&self) -> &str {
        if self.advertise_address.is_empty() { &self.listen_address } else { &self.advertise_address }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<ProxyArgs, clap::Error> {
        ProxyArgs::try_parse_from([&["stolon-proxy"], arguments].concat())
    }

    #[test]
    fn booleans_are_those_of_go() {
        assert!(parse(&[]).unwrap().stop_listening);
        assert!(parse(&["--stop-listening"]).unwrap().stop_listening);
        assert!(!parse(&["--stop-listening=false"]).unwrap().stop_listening);
        assert!(parse(&["--stop-listening=maybe"]).is_err());
    }

    #[test]
    fn the_advertised_address_defaults_to_the_one_to_listen_on() {
        assert_eq!(parse(&["--listen-address", "10.0.0.1"]).unwrap().advertised(), "10.0.0.1");
        assert_eq!(parse(&["--advertise-address", "db.example"]).unwrap().advertised(), "db.example");
    }

    #[test]
    fn waiting_is_off_unless_asked_for_and_never_endless() {
        assert_eq!(parse(&[]).unwrap().hold_connections, Duration::ZERO);
        for (text, millis) in [("0", 0), ("5", 5000), ("500ms", 500), ("1m30s", 90_000), ("0s", 0), ("10m", 600_000)] {
            let hold = parse(&["--hold-connections", text]).unwrap().hold_connections;
            assert_eq!(hold, Duration::from_millis(millis), "{text}");
        }
        for bad in ["-1", "-1s", "x", "", "11m", "4294967295", "99999999999999999999h"] {
            assert!(parse(&[&format!("--hold-connections={bad}")]).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_port_for_reading_is_off_unless_asked_for() {
        let args = parse(&["--listen-address", "10.0.0.1"]).unwrap();
        assert_eq!((args.replica_port, args.replica_host(), args.replica_role), (0, "10.0.0.1", ReplicaRole::Any));
        assert!(!args.replica_fallback_to_master);
        let flags = ["--replica-port=5433", "--replica-listen-address=10.0.0.2", "--replica-role", "sync"];
        let args = parse(&flags).unwrap();
        assert_eq!((args.replica_port, args.replica_host(), args.replica_role), (5433, "10.0.0.2", ReplicaRole::Sync));
        assert!(parse(&["--replica-role", "master"]).is_err() && parse(&["--replica-max-lag=-1"]).is_err());
    }

    #[test]
    fn negative_and_senseless_numbers_are_refused() {
        for bad in ["--tcp-keepalive-idle=-1", "--port=65536", "--tcp-keepalive-count=x"] {
            assert!(parse(&[bad]).is_err(), "{bad}");
        }
    }
}
