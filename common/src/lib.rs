//! What every Shardman program shares: command line and environment, logging, metrics, signals, exit status, privileges.

pub mod cli;
pub mod exit;
pub mod logging;
pub mod metrics;
pub mod privileges;
pub mod runtime;
