//! Forms of output.

use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};
use std::io::Write;

/// JSON indented by tabs, with a line break at its end.
pub fn json(value: &impl Serialize) -> String {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(b"\t"));
    // Our own documents have string keys and no failing serialisers, and a vector takes all bytes.
    value.serialize(&mut serializer).expect("our documents are plain JSON");
    let mut text = String::from_utf8(bytes).expect("JSON is UTF-8");
    text.push('\n');
    text
}

/// Writes to stdout. A reader that went away is no failure of ours: it has what it wanted.
///
/// # Errors
/// stdout can't be written, a full disk for example.
pub fn print(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

const TAB: usize = 8;

/// Rows whose columns are aligned by tabs.
pub fn table(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if column + 1 == row.len() {
                break;
            }
            let widest = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
            let width = (widest.unwrap_or(0) / TAB + 1) * TAB;
            let tabs = (width - cell.chars().count()).div_ceil(TAB);
            text.extend(std::iter::repeat_n('\t', tabs));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["UID", "X"], ["12345678", "1"], ["1234567", "2"]];
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect();
        assert_eq!(table(&rows), "UID\t\tX\n12345678\t1\n1234567\t\t2\n");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn json_is_indented_by_tabs() {
        assert_eq!(json(&serde_json::json!({"a": [1], "b": {}})), "{\n\t\"a\": [\n\t\t1\n\t],\n\t\"b\": {}\n}\n");
    }
}
