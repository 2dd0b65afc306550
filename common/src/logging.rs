//! Log lines on stderr: time, level, place, message, fields, separated by tabs; or JSON.

use crate::cli::{LogArgs, LogFormat, LogLevel};
use std::fmt;
use std::io::IsTerminal as _;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// Starts logging; later calls change nothing.
pub fn init(args: &LogArgs) {
    let level = match args.log_level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(false);
    // An error means that a subscriber is set already, as in a test.
    let _ = match args.log_format {
        LogFormat::Text => {
            let tabs = Tabs { colored: args.log_color.unwrap_or_else(wants_color) };
            tracing::subscriber::set_global_default(builder.event_format(Ours(tabs)).finish())
        }
        LogFormat::Json => {
            let builder = builder.json().with_timer(Utc).flatten_event(true).map_event_format(Ours);
            tracing::subscriber::set_global_default(builder.finish())
        }
    };
}

/// On a terminal whose user has not forbidden it, see <https://no-color.org>.
fn wants_color() -> bool {
    let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !forbidden && std::io::stderr().is_terminal()
}

struct Utc;

impl FormatTime for Utc {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{}", chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
    }
}

/// Libraries tell their inner life at our debug level; only our own crates are worth it.
struct Ours<F>(F);

impl<S, N, F> FormatEvent<S, N> for Ours<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        if *metadata.level() >= Level::DEBUG && is_library(metadata.target()) {
            return Ok(());
        }
        self.0.format_event(context, writer, event)
    }
}

struct Tabs {
    colored: bool,
}

impl Tabs {
    /// Escape sequences before and after a level: trouble stands out, the rest stays as it is.
    fn colors(&self, level: Level) -> (&'static str, &'static str) {
        match level {
            Level::ERROR if self.colored => ("\x1b[31m", "\x1b[0m"),
            Level::WARN if self.colored => ("\x1b[33m", "\x1b[0m"),
            _ => ("", ""),
        }
    }
}

impl<S, N> FormatEvent<S, N> for Tabs
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let mut line = Line::default();
        event.record(&mut line);
        Utc.format_time(&mut writer)?;
        let (begin, end) = self.colors(*metadata.level());
        write!(
            writer,
            "\t{begin}{}{end}\t{}\t{}",
            metadata.level(),
            place(metadata.file(), metadata.line()),
            line.message
        )?;
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>().filter(|fields| !fields.is_empty()) {
                write!(writer, "\t{fields}")?;
            }
        }
        if !line.fields.is_empty() {
            write!(writer, "\t{}", serde_json::Value::Object(line.fields))?;
        }
        writeln!(writer)
    }
}

fn is_library(target: &str) -> bool {
    const OURS: [&str; 10] =
        ["bowl", "common", "ladle", "model", "monitor", "pg", "shardmanctl", "stolon", "store", "testkit"];
    !OURS.contains(&target.split("::").next().unwrap_or(target))
}

/// The file with its directory, or with its crate where the directory says nothing, and the line.
fn place(file: Option<&str>, line: Option<u32>) -> String {
    let line = line.unwrap_or(0);
    let mut parts = file.unwrap_or("?").rsplit('/');
    let name = parts.next().unwrap_or_default();
    match parts.find(|dir| *dir != "src") {
        Some(dir) => format!("{dir}/{name}:{line}"),
        None => format!("{name}:{line}"),
    }
}

#[derive(Default)]
struct Line {
    message: String,
    fields: serde_json::Map<String, serde_json::Value>,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            // One line per event, whatever a message contains.
            self.message = text.replace(['\n', '\t'], " ");
        } else {
            self.fields.insert(field.name().to_owned(), text.into());
        }
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = value.replace(['\n', '\t'], " ");
        } else {
            self.fields.insert(field.name().to_owned(), value.into());
        }
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.fields.insert(field.name().to_owned(), value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.fields.insert(field.name().to_owned(), value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.fields.insert(field.name().to_owned(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn places_name_a_directory_that_tells_something() {
        for (file, wanted) in [
            ("ladle/src/report.rs", "ladle/report.rs:95"),
            ("stolon/src/ctl/commands/status.rs", "commands/status.rs:95"),
            ("src/main.rs", "main.rs:95"),
            ("main.rs", "main.rs:95"),
        ] {
            assert_eq!(place(Some(file), Some(95)), wanted);
        }
        assert_eq!(place(None, None), "?:0");
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn debug_lines_of_libraries_are_left_out_of_both_forms() {
        let sink = Sink::default();
        let writer = sink.clone();
        let builder = || {
            let writer = writer.clone();
            tracing_subscriber::fmt().with_max_level(LevelFilter::DEBUG).with_writer(move || writer.clone())
        };
        let events = || {
            tracing::debug!(target: "h2::proto", "theirs");
            tracing::debug!(target: "bowl::node", "ours");
            tracing::warn!(target: "h2::proto", "grave");
        };
        tracing::subscriber::with_default(builder().event_format(Ours(Tabs { colored: false })).finish(), events);
        tracing::subscriber::with_default(builder().json().map_event_format(Ours).finish(), events);
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 4, "{text}");
        assert_eq!((text.matches("ours").count(), text.matches("grave").count()), (2, 2), "{text}");
    }
}
