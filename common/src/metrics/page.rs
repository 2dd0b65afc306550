//! The text that Prometheus reads, and the page of the documentation.

use super::{Metric, Value};
use std::fmt::Write as _;
use std::time::Instant;

/// The metrics that have a value, in Prometheus' text format.
pub fn render<'a>(list: impl IntoIterator<Item = &'a &'static Metric>) -> String {
    let now = Instant::now();
    let mut text = String::new();
    for metric in list {
        let values = metric.values();
        if values.is_empty() {
            continue;
        }
        let Metric { name, kind, help, .. } = metric;
        // Writing to a String can't fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {}", kind.word());
        for (labels, value) in values.iter() {
            let number = match value {
                Value::Number(number) => *number,
                Value::Until(moment) => moment.saturating_duration_since(now).as_secs_f64(),
            };
            let pairs: Vec<(&str, &String)> = metric.labels.iter().copied().zip(labels).collect();
            let _ = writeln!(text, "{name}{} {number}", braces(&pairs));
        }
    }
    text
}

/// Labels as Prometheus wants them.
pub fn braces<V: AsRef<str>>(labels: &[(&str, V)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let escape = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let pairs: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value.as_ref()))).collect();
    format!("{{{}}}", pairs.join(","))
}

/// A table of metrics in Markdown.
pub fn document(list: &[&'static Metric]) -> String {
    let mut text = String::from("| metric | kind | labels | meaning |\n|---|---|---|---|\n");
    for Metric { name, kind, labels, help, .. } in list {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "| `{name}` | {} | {labels} | {help} |", kind.word());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    crate::metrics! {
        PLAIN: Gauge "t_plain" [] "A number";
        MANY: Counter "t_many_total" ["a", "b"] "Some";
        UNTOLD: Gauge "t_untold" [] "Never told";
        LEFT: Gauge "t_left_seconds" [] "Time";
    }

    #[test]
    fn values_that_were_told_are_shown() {
        PLAIN.set(1.5);
        PLAIN.add(1.0);
        MANY.set_for(&["x\"\n\\", "y"], 3.0);
        LEFT.set_until(Some(Instant::now() + Duration::from_secs(100)));
        let text = render(LIST);
        assert!(text.starts_with("# HELP t_plain A number\n# TYPE t_plain gauge\nt_plain 2.5\n"), "{text}");
        assert!(text.contains("\nt_many_total{a=\"x\\\"\\n\\\\\",b=\"y\"} 3\n"), "{text}");
        assert!(text.contains("\nt_left_seconds 99."), "{text}");
        assert!(!text.contains("untold"), "{text}");
        LEFT.set_until(Instant::now().checked_sub(Duration::from_millis(1)));
        assert!(render(&[&LEFT]).ends_with("t_left_seconds 0\n"));
        assert!(document(LIST).contains("| `t_many_total` | counter | `a`, `b` | Some |\n"));
    }
}
