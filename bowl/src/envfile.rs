//! Environment files as systemd reads them: one `KEY=VALUE` per line, quoted where a value needs it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Variables, sorted by name so that equal environments give equal files.
pub type Environment = BTreeMap<String, String>;

/// A value that no environment file can carry. The value itself is not shown: it may be secret.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the value of {0} contains a line break or a zero byte; change it in the specification")]
pub struct EnvError(pub String);

/// A daemon's environment file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvFile {
    /// Digest of everything that a restart is worth. It stands in the same file as the variables, so that both
    /// always change together, whatever moment bowl is killed at.
    pub config: String,
    /// The variables.
    pub variables: Environment,
}

const CONFIG_LINE: &str = "# config ";

impl EnvFile {
    /// The file's text.
    ///
    /// # Errors
    /// A value can't be written.
    pub fn render(&self) -> Result<String, EnvError> {
        let mut text = format!("{CONFIG_LINE}{}\n", self.config);
        for (key, value) in &self.variables {
            if value.contains(['\n', '\r', '\0']) {
                return Err(EnvError(key.clone()));
            }
            let _ = writeln!(text, "{key}={}", quote(value));
        }
        Ok(text)
    }

    /// Reads a file. Lines without a `=` are ignored, as systemd does.
    pub fn parse(text: &str) -> EnvFile {
        let mut file = EnvFile::default();
        for line in text.lines() {
            if let Some(config) = line.strip_prefix(CONFIG_LINE) {
                config.trim().clone_into(&mut file.config);
            } else if !line.trim_start().starts_with(['#', ';'])
                && let Some((key, value)) = line.split_once('=')
                && !key.trim().is_empty()
            {
                file.variables.insert(key.trim().to_owned(), unquote(value.trim()));
            }
        }
        file
    }
}

/// Characters that systemd takes a backslash off from inside double quotes.
const ESCAPED: [char; 4] = ['"', '\\', '`', '$'];

fn quote(value: &str) -> String {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '\'' && !ESCAPED.contains(&c);
    if value.chars().all(plain) {
        return value.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in value.chars() {
        if ESCAPED.contains(&c) {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted
}

fn unquote(text: &str) -> String {
    let Some(inner) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else { return text.to_owned() };
    let mut value = String::new();
    let mut chars = inner.chars().peekable();
    while let Some(c) = chars.next() {
        match chars.peek() {
            Some(&next) if c == '\\' && ESCAPED.contains(&next) => {
                value.push(next);
                chars.next();
            }
            _ => value.push(c),
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn render(value: &str) -> Result<String, EnvError> {
        EnvFile { config: "c".into(), variables: Environment::from([("K".into(), value.into())]) }.render()
    }

    #[test]
    fn only_what_needs_quotes_has_them() {
        for (value, line) in [
            ("http://127.0.0.1:2379,http://b:2379", "K=http://127.0.0.1:2379,http://b:2379"),
            ("", "K="),
            ("a b", "K=\"a b\""),
            (" a", "K=\" a\""),
            ("it's", "K=\"it's\""),
            (r#"a"b\c$d`"#, r#"K="a\"b\\c\$d\`""#),
        ] {
            assert_eq!(render(value).unwrap(), format!("# config c\n{line}\n"));
        }
        assert_eq!(render("a\nb"), Err(EnvError("K".into())));
    }

    #[test]
    fn odd_lines_are_ignored() {
        let file = EnvFile::parse("\n# note\n;A=1\nB\n C = x=y \n=z\n# config 7\nD=\"\n");
        assert_eq!(file.config, "7");
        assert_eq!(file.variables, Environment::from([("C".into(), "x=y".into()), ("D".into(), "\"".into())]));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(value: String) {
            if let Ok(text) = render(&value) {
                prop_assert_eq!(&EnvFile::parse(&text).variables["K"], &value);
            }
        }

        #[test]
        fn never_panics(text: String) {
            let _ = EnvFile::parse(&text);
        }
    }
}
