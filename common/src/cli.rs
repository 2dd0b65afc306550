//! Command lines whose flags can also be given in the environment.

use clap::error::{ContextKind, ContextValue};
use clap::{Args, Command, CommandFactory, FromArgMatches, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use store::StoreOptions;

/// The environment prefix that all programs of Shardman share.
pub const SDM_PREFIX: &str = "SDM";

/// Flags that every program of Shardman has.
#[derive(Args, Clone, Debug)]
pub struct CommonArgs {
    /// Name of the cluster
    #[arg(long, value_name = "NAME", default_value = "cluster0", global = true)]
    pub cluster_name: String,
    #[command(flatten)]
    #[allow(missing_docs, reason = "its doc comment would become the help text of the flags")]
    pub store: StoreArgs,
    #[command(flatten)]
    #[allow(missing_docs, reason = "its doc comment would become the help text of the flags")]
    pub log: LogArgs,
}

/// Flags that say where the store is.
#[derive(Args, Clone, Debug)]
pub struct StoreArgs {
    /// etcd's URLs, separated by commas
    #[arg(long, value_name = "LIST", default_value = store::etcd::DEFAULT_ENDPOINTS, global = true)]
    pub store_endpoints: String,
    /// CA bundle for https endpoints
    #[arg(long, value_name = "FILE", global = true)]
    pub store_ca_file: Option<PathBuf>,
    /// Client certificate for https endpoints
    #[arg(long, value_name = "FILE", global = true)]
    pub store_cert_file: Option<PathBuf>,
    /// Private key of the client certificate
    #[arg(long, value_name = "FILE", global = true)]
    pub store_key: Option<PathBuf>,
    /// Seconds that a request to the store may take
    #[arg(long, value_name = "SECONDS", default_value = "5", global = true)]
    pub request_timeout: f64,
}

impl StoreArgs {
    /// As the store wants it. A timeout that is not a sensible number of seconds becomes the default.
    pub fn options(&self) -> StoreOptions {
        StoreOptions {
            endpoints: self.store_endpoints.clone(),
            ca_file: self.store_ca_file.clone(),
            cert_file: self.store_cert_file.clone(),
            key_file: self.store_key.clone(),
            timeout: Duration::try_from_secs_f64(self.request_timeout)
                .ok()
                .filter(|timeout| !timeout.is_zero())
                .unwrap_or(store::etcd::DEFAULT_TIMEOUT),
        }
    }
}

/// Flags that say what is logged.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// Least important level that is logged
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "info", global = true)]
    pub log_level: LogLevel,
    /// Form of log lines on stderr
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text", global = true)]
    pub log_format: LogFormat,
}

/// Levels of log lines: error needs a person, warn went on anyway, info is a change of state, debug is the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
#[allow(missing_docs, reason = "explained above")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Fields separated by tabs, for people.
    Text,
    /// One JSON object per line, for machines.
    Json,
}

/// Form of a command's data on stdout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// Reads the command line; a flag `--some-flag` may be given as `<PREFIX>_SOME_FLAG` too. Earlier prefixes win,
/// the command line wins over all, an empty variable is ignored. Prints help or a usage error and ends the
/// process (status 0 or 2) where there is nothing to run.
pub fn parse<T: CommandFactory + FromArgMatches>(prefixes: &[&str]) -> T {
    let command = with_environment(T::command(), prefixes, |name| std::env::var_os(name));
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match try_parse(command.clone(), &arguments) {
        Ok(value) => value,
        Err(error) => {
            let hint = environment_hint(&command, &error, &arguments);
            let _ = error.print();
            if let Some(hint) = hint {
                tracing_free_line(&hint);
            }
            std::process::exit(error.exit_code());
        }
    }
}

fn try_parse<T: FromArgMatches>(command: Command, arguments: &[OsString]) -> Result<T, clap::Error> {
    let matches = command.try_get_matches_from(arguments)?;
    T::from_arg_matches(&matches)
}

/// Lets each top-level flag take its value from the first variable that is not empty.
fn with_environment(command: Command, prefixes: &[&str], get: impl Fn(&str) -> Option<OsString>) -> Command {
    command.mut_args(|arg| {
        let Some(long) = arg.get_long() else { return arg };
        if matches!(long, "help" | "version") {
            return arg;
        }
        let suffix = long.to_uppercase().replace('-', "_");
        let names = prefixes.iter().map(|prefix| format!("{prefix}_{suffix}"));
        let set = names.into_iter().find(|name| get(name).is_some_and(|value| !value.is_empty()));
        match set {
            // The values of variables stay out of help texts: some are secret.
            Some(name) => arg.env(clap::builder::OsStr::from(name)).hide_env(true),
            None => arg,
        }
    })
}

/// Names the variable that an unusable value came from.
fn environment_hint(command: &Command, error: &clap::Error, arguments: &[OsString]) -> Option<String> {
    let ContextValue::String(invalid) = error.get(ContextKind::InvalidArg)? else { return None };
    let long = invalid.strip_prefix("--")?.split([' ', '=']).next()?;
    let given = |argument: &OsString| {
        argument
            .to_str()
            .and_then(|text| text.strip_prefix("--"))
            .is_some_and(|rest| rest.split('=').next() == Some(long))
    };
    if arguments.iter().any(given) {
        return None;
    }
    let arg = command.get_arguments().find(|arg| arg.get_long() == Some(long))?;
    Some(format!("hint: the value comes from the environment variable {}", arg.get_env()?.to_string_lossy()))
}

fn tracing_free_line(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Sample {
        #[command(flatten)]
        common: CommonArgs,
    }

    fn read(environment: &[(&str, &str)], arguments: &[&str]) -> Result<Sample, (clap::Error, Option<String>)> {
        let get = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        // clap reads the process's environment; tests give the value as a default instead.
        let command = with_environment(Sample::command(), &["X", SDM_PREFIX], get).mut_args(|arg| {
            match arg.get_env().and_then(|name| name.to_str()).and_then(get) {
                Some(value) => arg.default_value(value.to_string_lossy().into_owned()),
                None => arg,
            }
        });
        let arguments: Vec<OsString> = ["x"].iter().chain(arguments).map(OsString::from).collect();
        try_parse(command.clone(), &arguments).map_err(|e| {
            let hint = environment_hint(&command, &e, &arguments);
            (e, hint)
        })
    }

    #[test]
    fn flags_win_over_prefixes_in_order() {
        let env = [("SDM_CLUSTER_NAME", "sdm"), ("X_CLUSTER_NAME", ""), ("SDM_LOG_LEVEL", "debug")];
        let sample = read(&env, &[]).unwrap();
        assert_eq!((sample.common.cluster_name.as_str(), sample.common.log.log_level), ("sdm", LogLevel::Debug));
        let env = [("SDM_CLUSTER_NAME", "sdm"), ("X_CLUSTER_NAME", "x")];
        assert_eq!(read(&env, &[]).unwrap().common.cluster_name, "x");
        assert_eq!(read(&env, &["--cluster-name", "flag"]).unwrap().common.cluster_name, "flag");
        assert_eq!(read(&[], &[]).unwrap().common.cluster_name, "cluster0");
    }

    #[test]
    fn a_bad_variable_is_named() {
        let (error, hint) = read(&[("SDM_LOG_LEVEL", "loud")], &[]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert_eq!(hint.as_deref(), Some("hint: the value comes from the environment variable SDM_LOG_LEVEL"));
        let (_, hint) = read(&[], &["--log-level", "loud"]).unwrap_err();
        assert_eq!(hint, None);
    }
}
