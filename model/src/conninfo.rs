//! libpq connection strings.

use std::fmt::Write as _;

/// Renders `key=value` pairs sorted by key and separated by one blank; pairs with an empty value are left out.
/// A value with blanks, `'` or `\` is put into single quotes with `'` and `\` escaped, as libpq reads it.
pub fn render<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut pairs: Vec<_> = pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    pairs.sort_unstable();
    let mut text = String::new();
    for (key, value) in pairs {
        if !text.is_empty() {
            text.push(' ');
        }
        let _ = write!(text, "{key}={}", quote(value));
    }
    text
}

fn quote(value: &str) -> String {
    if !value.contains(|c: char| c.is_whitespace() || c == '\'' || c == '\\') {
        return value.to_owned();
    }
    let mut text = String::from("'");
    for c in value.chars() {
        if matches!(c, '\'' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('\'');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorted_and_quoted() {
        let text = render([("user", "postgres"), ("host", "a,b"), ("password", "it's a \\"), ("options", "")]);
        assert_eq!(text, r"host=a,b password='it\'s a \\' user=postgres");
    }

    #[test]
    fn the_sample_password_stays_plain() {
        assert_eq!(render([("password", "!!!CHANGE_ME!!!")]), "password=!!!CHANGE_ME!!!");
    }
}
