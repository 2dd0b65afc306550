//! The proxy's command line.

use crate::cli::CommonArgs;
use clap::{ArgAction, Parser};

/// Forwards connections to the master of a stolon cluster
#[derive(Clone, Debug, Parser)]
#[command(name = "stolon-proxy", version)]
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
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    pub advertise_address: String,
    /// Close the listening socket too while the store is out of reach
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
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
}

impl ProxyArgs {
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
    fn negative_and_senseless_numbers_are_refused() {
        for bad in ["--tcp-keepalive-idle=-1", "--port=65536", "--tcp-keepalive-count=x"] {
            assert!(parse(&[bad]).is_err(), "{bad}");
        }
    }
}
