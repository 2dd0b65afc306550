//! Documents given as an argument, in a file, or on standard input.

use super::ChangeError;
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// Reads a file, or standard input for `-`.
///
/// # Errors
/// It can't be read.
pub fn read_file(path: &Path) -> Result<Vec<u8>, ChangeError> {
    let mut bytes = Vec::new();
    let result = if path == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| ())
    } else {
        std::fs::read(path).map(|content| bytes = content)
    };
    match result {
        Ok(()) => Ok(bytes),
        Err(error) => Err(ChangeError::Refused(format!("read {}: {error}", path.display()))),
    }
}

/// Reads JSON.
///
/// # Errors
/// It is not JSON; says where.
pub fn parse_json(bytes: &[u8], what: &str) -> Result<Value, ChangeError> {
    serde_json::from_slice(bytes).map_err(|error| ChangeError::Refused(format!("{what} is not valid JSON: {error}")))
}

/// The specification that a command was given.
///
/// # Errors
/// Both or unreadable.
pub fn spec_document(argument: Option<&str>, file: Option<&Path>) -> Result<Option<Value>, ChangeError> {
    match (argument, file) {
        (Some(_), Some(_)) => {
            Err(ChangeError::Refused("give the specification as an argument or in a file, not both".into()))
        }
        (Some(text), None) => parse_json(text.as_bytes(), "the specification").map(Some),
        (None, Some(path)) => parse_json(&read_file(path)?, "the specification").map(Some),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_come_from_one_place() {
        assert_eq!(spec_document(None, None).unwrap(), None);
        assert_eq!(spec_document(Some("{}"), None).unwrap(), Some(serde_json::json!({})));
        assert!(spec_document(Some("{}"), Some(Path::new("x"))).is_err());
        assert!(spec_document(None, Some(Path::new("/nonexistent"))).is_err());
        for broken in ["", "{", "{} {}", "\u{0}"] {
            assert!(spec_document(Some(broken), None).is_err(), "{broken}");
        }
    }
}
