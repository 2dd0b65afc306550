//! Command lines whose flags can also be given in the environment.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Args, Command, CommandFactory, FromArgMatches, ValueEnum};
use model::GoDuration;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use store::StoreOptions;

/// The environment prefix that all programs of Shardman share.
pub const SDM_PREFIX: &str = "SDM";

/// Heading of the common flags in help texts; a command's own flags come before them.
pub const COMMON_HEADING: &str = "Common options";

/// Flags that every program of Shardman has.
#[derive(Args, Clone, Debug)]
pub struct CommonArgs {
    /// Name of the cluster
    #[arg(long, value_name = "NAME", default_value = "cluster0", global = true, value_parser = parse_cluster_name,
          help_heading = COMMON_HEADING, display_order = 900)]
    pub cluster_name: String,
    #[command(flatten)]
    #[allow(missing_docs, reason = "its doc comment would become the help text of the flags")]
    pub store: StoreArgs,
    #[command(flatten)]
    #[allow(missing_docs, reason = "its doc comment would become the help text of the flags")]
    pub log: LogArgs,
}

/// Flags that say where the store is, and how long it may take.
#[derive(Args, Clone, Debug)]
#[allow(missing_docs, reason = "the doc comments are help texts; that of a flattened one would show up in them")]
pub struct StoreArgs {
    #[command(flatten)]
    pub etcd: EtcdArgs,
    /// Limit of each request to the store: seconds, or a duration like 500ms
    #[arg(long, alias = "store-timeout", value_name = "TIME", default_value = "5", global = true,
          value_parser = parse_time_limit, allow_negative_numbers = true,
          help_heading = COMMON_HEADING, display_order = 920)]
    pub request_timeout: Duration,
}

impl StoreArgs {
    /// As the store wants it.
    pub fn options(&self) -> StoreOptions {
        self.etcd.options(self.request_timeout)
    }
}

/// Flags that say where etcd is and who we are to it. There is none for the password itself: everybody on the machine
/// can read the arguments of a process.
#[derive(Args, Clone, Debug)]
pub struct EtcdArgs {
    /// etcd's URLs, separated by commas
    #[arg(long, value_name = "LIST", default_value = store::etcd::DEFAULT_ENDPOINTS, global = true,
          value_parser = parse_endpoints, help_heading = COMMON_HEADING, display_order = 910)]
    pub store_endpoints: String,
    /// CA bundle for https endpoints
    #[arg(long, value_name = "FILE", global = true, help_heading = COMMON_HEADING, display_order = 911)]
    pub store_ca_file: Option<PathBuf>,
    /// Client certificate for https endpoints
    #[arg(long, value_name = "FILE", global = true, help_heading = COMMON_HEADING, display_order = 912)]
    pub store_cert_file: Option<PathBuf>,
    /// Private key of the client certificate
    #[arg(long, value_name = "FILE", global = true, help_heading = COMMON_HEADING, display_order = 913)]
    pub store_key: Option<PathBuf>,
    /// Take any certificate of https endpoints, also a forged one
    #[arg(long, value_name = "BOOL", global = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = false, action = ArgAction::Set, hide_default_value = true,
          value_parser = parse_bool, help_heading = COMMON_HEADING, display_order = 914)]
    pub store_skip_tls_verify: bool,
    /// User of etcd, where it asks for one
    #[arg(long, value_name = "NAME", global = true, help_heading = COMMON_HEADING, display_order = 915)]
    pub store_user: Option<String>,
    /// File with that user's password
    #[arg(long, value_name = "FILE", global = true, help_heading = COMMON_HEADING, display_order = 916)]
    pub store_password_file: Option<PathBuf>,
}

impl EtcdArgs {
    /// As the store wants it.
    pub fn options(&self, timeout: Duration) -> StoreOptions {
        let EtcdArgs {
            store_endpoints,
            store_ca_file,
            store_cert_file,
            store_key,
            store_skip_tls_verify,
            store_user,
            store_password_file,
        } = self.clone();
        StoreOptions {
            endpoints: store_endpoints,
            ca_file: store_ca_file,
            cert_file: store_cert_file,
            key_file: store_key,
            skip_tls_verify: store_skip_tls_verify,
            user: store_user,
            password_file: store_password_file,
            timeout,
        }
    }
}

/// A cluster's name, which becomes part of keys, unit names and file names.
///
/// # Errors
/// It can't be part of them.
pub fn parse_cluster_name(text: &str) -> Result<String, String> {
    match model::ids::is_plain_name(text) {
        true => Ok(text.to_owned()),
        false => Err("use 1 to 63 letters, digits, '.', '-' and '_'".to_owned()),
    }
}

/// A list of etcd's URLs.
///
/// # Errors
/// It is empty, or an item of it is no URL that can be connected to.
pub fn parse_endpoints(text: &str) -> Result<String, String> {
    let urls = StoreOptions { endpoints: text.to_owned(), ..Default::default() }.urls().map_err(|e| e.to_string())?;
    for url in &urls {
        let place = url.split_once("://").map_or("", |(_, place)| place.split('/').next().unwrap_or_default());
        // A colon inside of brackets belongs to an IPv6 address.
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse::<u16>().is_ok()),
            _ => (place, true),
        };
        if host.is_empty() || !port || place.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(format!("\"{url}\" is no URL; write each like http://127.0.0.1:2379"));
        }
    }
    Ok(text.to_owned())
}

/// A truth value in all the words that Go's flags take.
///
/// # Errors
/// Another word.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("write true or false".to_owned()),
    }
}

/// A limit of time: plain seconds, or a duration as Go writes it.
///
/// # Errors
/// Another form, or nothing that a request could be done in.
pub fn parse_time_limit(text: &str) -> Result<Duration, String> {
    let malformed = || "write seconds or a duration, like 5, 0.5, 500ms or 1m30s".to_owned();
    let text = text.trim();
    let (positive, limit) = match text.parse::<f64>() {
        Ok(seconds) if !seconds.is_finite() => return Err(malformed()),
        Ok(seconds) => (seconds > 0.0, Duration::try_from_secs_f64(seconds).ok()),
        Err(_) => {
            let duration: GoDuration = text.parse().map_err(|_| malformed())?;
            (duration > GoDuration::ZERO, Some(duration.to_std()))
        }
    };
    match limit {
        Some(limit) if positive && !limit.is_zero() => Ok(limit),
        _ if positive && limit.is_none() => Err("that is too long; the default is 5 seconds".to_owned()),
        _ => Err("it must be longer than zero".to_owned()),
    }
}

/// Flags that say what is logged.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// Least important level that is logged
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "info", global = true,
          help_heading = COMMON_HEADING, display_order = 930)]
    pub log_level: LogLevel,
    /// Form of log lines on stderr
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text", global = true,
          help_heading = COMMON_HEADING, display_order = 931)]
    pub log_format: LogFormat,
    /// Colors in log lines [default: on a terminal, unless NO_COLOR is set]
    #[arg(long, value_name = "BOOL", global = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = ArgAction::Set, value_parser = parse_bool,
          help_heading = COMMON_HEADING, display_order = 932)]
    pub log_color: Option<bool>,
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
    parse_command(T::command(), prefixes)
}

/// As [`parse`]; every flag that is on or off may also be given as `--flag=true` or `--flag=false`, as Go's can.
pub fn parse_as_go<T: CommandFactory + FromArgMatches>(prefixes: &[&str]) -> T {
    parse_command(with_go_booleans(T::command()), prefixes)
}

fn with_go_booleans(command: Command) -> Command {
    let with_value = |arg: Arg| match arg.get_action() {
        ArgAction::SetTrue => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .value_name("BOOL")
            .default_missing_value("true")
            .default_value("false")
            .hide_default_value(true)
            .value_parser(parse_bool),
        _ => arg,
    };
    command.mut_args(with_value).mut_subcommands(with_go_booleans)
}

fn parse_command<T: FromArgMatches>(command: Command, prefixes: &[&str]) -> T {
    let command = with_environment(command, prefixes, |name| std::env::var_os(name));
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match try_parse(command.clone(), &arguments) {
        Ok(value) => value,
        Err(error) => {
            match shown(&error) {
                Some(text) => tracing_free_line(&text),
                None => drop(error.print()),
            }
            if let Some(hint) = environment_hint(&command, &error, &arguments) {
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

/// A usage error without its usage line, which would name flags from the environment as if they had to be given.
/// `None` for help and versions.
fn shown(error: &clap::Error) -> Option<String> {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return None;
    }
    let text = error.render().to_string();
    let parts: Vec<&str> = text.trim_end().split("\n\n").filter(|part| !part.starts_with("Usage:")).collect();
    Some(parts.join("\n"))
}

/// Lets each top-level flag take its value from the first variable that is not empty.
fn with_environment(command: Command, prefixes: &[&str], get: impl Fn(&str) -> Option<OsString>) -> Command {
    command.mut_args(|arg| {
        let Some(long) = arg.get_long() else { return arg };
        if matches!(long, "help" | "version") {
            return arg;
        }
        let synonyms = arg.get_all_aliases().unwrap_or_default();
        let suffixes: Vec<String> =
            std::iter::once(long).chain(synonyms).map(|name| name.to_uppercase().replace('-', "_")).collect();
        let mut names =
            prefixes.iter().flat_map(|prefix| suffixes.iter().map(move |suffix| format!("{prefix}_{suffix}")));
        let set = names.find(|name| get(name).is_some_and(|value| !value.is_empty()));
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
    let long = invalid.strip_prefix("--")?.split([' ', '=', '[']).next()?;
    let arg = command.get_arguments().find(|arg| arg.get_long() == Some(long))?;
    let synonyms = arg.get_all_aliases().unwrap_or_default();
    let given = |argument: &OsString| {
        argument
            .to_str()
            .and_then(|text| text.strip_prefix("--"))
            .and_then(|rest| rest.split('=').next())
            .is_some_and(|name| name == long || synonyms.contains(&name))
    };
    if arguments.iter().any(given) {
        return None;
    }
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
        /// Own flag
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = true,
              action = clap::ArgAction::Set, value_parser = parse_bool)]
        can_be_master: bool,
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
    fn booleans_are_those_of_go() {
        for (text, value) in [("1", true), ("T", true), ("True", true), ("0", false), ("f", false), ("FALSE", false)] {
            assert_eq!(parse_bool(text), Ok(value), "{text}");
        }
        for bad in ["", "yes", "tRUE", "2", "\u{0}"] {
            assert!(parse_bool(bad).is_err(), "{bad:?}");
        }

        #[derive(Debug, Parser)]
        struct Switch {
            #[arg(short, long)]
            yes: bool,
        }
        let parse = |arguments: &[&str]| {
            let matches = with_go_booleans(Switch::command()).try_get_matches_from([&["x"], arguments].concat());
            matches.and_then(|matches| Switch::from_arg_matches(&matches)).map(|switch| switch.yes)
        };
        for (arguments, value) in
            [(&[][..], false), (&["-y"], true), (&["--yes"], true), (&["--yes=true"], true), (&["--yes=0"], false)]
        {
            assert_eq!(parse(arguments).unwrap(), value, "{arguments:?}");
        }
        assert!(parse(&["--yes=maybe"]).is_err() && parse(&["--yes", "true"]).is_err());
    }

    #[test]
    fn a_bad_variable_is_named() {
        let (error, hint) = read(&[("SDM_LOG_LEVEL", "loud")], &[]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert_eq!(hint.as_deref(), Some("hint: the value comes from the environment variable SDM_LOG_LEVEL"));
        let (_, hint) = read(&[], &["--log-level", "loud"]).unwrap_err();
        assert_eq!(hint, None);
    }

    #[test]
    fn a_bad_variable_of_a_flag_with_an_optional_value_is_named() {
        let (error, hint) = read(&[("SDM_CAN_BE_MASTER", "perhaps")], &[]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert_eq!(hint.as_deref(), Some("hint: the value comes from the environment variable SDM_CAN_BE_MASTER"));
    }

    #[test]
    fn usage_errors_have_no_usage_line() {
        let (error, _) = read(&[], &["--no-such"]).unwrap_err();
        let text = shown(&error).unwrap();
        assert!(text.starts_with("error: unexpected argument '--no-such' found\n"), "{text}");
        assert!(text.ends_with("For more information, try '--help'."), "{text}");
        assert!(!text.contains("Usage") && !text.contains("\n\n"), "{text}");
        let (error, _) = read(&[], &["--help"]).unwrap_err();
        assert_eq!(shown(&error), None);
        let help = error.render().to_string();
        let (own, common) = help.split_once("Common options:").unwrap();
        assert!(own.contains("--can-be-master") && !own.contains("--cluster-name"), "{help}");
        assert!(common.contains("--cluster-name") && common.contains("--log-format"), "{help}");
    }

    #[test]
    fn time_limits_are_seconds_or_durations() {
        for (text, millis) in [("5", 5_000), ("0.25", 250), ("300ms", 300), ("1m30s", 90_000), (" 2s ", 2_000)] {
            assert_eq!(parse_time_limit(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "x", "nan", "inf", "-inf", "0", "-0", "0s", "-1", "-5s", "1e-30", "1e300", "5 s", "5sec"] {
            assert!(parse_time_limit(text).is_err(), "{text}");
        }
        let limit = |env: &[(&str, &str)], arguments: &[&str]| {
            read(env, arguments).map(|sample| sample.common.store.options().timeout)
        };
        assert_eq!(limit(&[], &[]).unwrap(), store::etcd::DEFAULT_TIMEOUT);
        assert_eq!(limit(&[], &["--store-timeout", "1s"]).unwrap(), Duration::from_secs(1));
        assert_eq!(limit(&[("SDM_STORE_TIMEOUT", "2s")], &[]).unwrap(), Duration::from_secs(2));
        let (error, _) = limit(&[], &["--request-timeout", "-1"]).unwrap_err();
        let text = shown(&error).unwrap();
        assert!(error.exit_code() == 2 && text.contains("it must be longer than zero"), "{text}");
    }

    #[test]
    fn unusable_names_and_endpoints_are_usage_errors() {
        for arguments in [["--cluster-name", "a/b"], ["--cluster-name", ""], ["--store-endpoints", ""]] {
            assert_eq!(read(&[], &arguments).unwrap_err().0.exit_code(), 2, "{arguments:?}");
        }
        for good in ["a", "a:1,http://b:2", "https://[::1]:2379/", "http://[::1]", "http://a/b"] {
            assert_eq!(parse_endpoints(good).as_deref(), Ok(good));
        }
        for bad in
            [",", "http://", "http://:1", "http://a b:1", "http://a:x", "http://a:99999", "ftp://a", "a,https://b"]
        {
            assert!(parse_endpoints(bad).is_err(), "{bad}");
        }
    }
}
