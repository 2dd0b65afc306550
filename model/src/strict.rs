//! Reading documents that people write: unknown members are refused with their path and the nearest known name.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// A specification that can't be used: what is wrong, and what to write instead.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct SpecError(pub String);

impl SpecError {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        SpecError(text.into())
    }
}

/// The members that an object may have, each with the members of the object inside, if it is one of ours.
pub(crate) struct Known(pub(crate) &'static [(&'static str, Option<&'static Known>)]);

/// Refuses members that `known` does not list, then reads the value.
pub(crate) fn read<T: DeserializeOwned>(value: &Value, path: &str, known: &Known) -> Result<T, SpecError> {
    refuse_unknown(value, path, known)?;
    serde_path(value, path)
}

fn serde_path<T: DeserializeOwned>(value: &Value, path: &str) -> Result<T, SpecError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let inner = error.path().to_string();
        let place: Vec<&str> = [path, &inner].into_iter().filter(|part| !part.is_empty() && *part != ".").collect();
        let place = if place.is_empty() { "the specification".to_owned() } else { place.join(".") };
        SpecError::new(format!("{place}: {}", error.into_inner()))
    })
}

fn refuse_unknown(value: &Value, path: &str, known: &Known) -> Result<(), SpecError> {
    let place = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let Value::Object(object) = value else {
        let what = if path.is_empty() { "the specification" } else { path };
        return Err(SpecError::new(format!("{what} must be an object, it is {}", kind(value))));
    };
    for (name, value) in object {
        match known.0.iter().find(|(known, _)| known == name) {
            Some((_, Some(inner))) if !value.is_null() => refuse_unknown(value, &place(name), inner)?,
            Some(_) => {}
            None => {
                let names = known.0.iter().map(|(name, _)| *name);
                return Err(SpecError::new(match nearest(name, names) {
                    Some(near) => format!("unknown member {}; did you mean {near}?", place(name)),
                    None => format!("unknown member {}; remove it", place(name)),
                }));
            }
        }
    }
    Ok(())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The name closest to `text`, if one is close enough to be a slip of the pen: a third of its length.
pub(crate) fn nearest<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = text.to_lowercase();
    names
        .map(|name| (distance(&lower, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= name.len().div_ceil(3))
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's edit distance, by characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found() {
        let names = ["Repfactor", "DataDir", "MonitorsNum"];
        assert_eq!(nearest("RepFacter", names.into_iter()), Some("Repfactor"));
        assert_eq!(nearest("datadirs", names.into_iter()), Some("DataDir"));
        assert_eq!(nearest("Colour", names.into_iter()), None);
    }
}
