//! Whether a program does its work.

use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Why a program doesn't do its work now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady {
    /// A word for machines that does not change between versions.
    pub code: &'static str,
    /// For people.
    pub text: String,
}

impl NotReady {
    /// A reason.
    pub fn new(code: &'static str, text: impl Into<String>) -> Self {
        NotReady { code, text: text.into() }
    }
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.text)
    }
}

/// What a program last said about itself. Starts as not ready, for the reason `starting`.
#[derive(Debug, Default)]
pub struct Readiness(Mutex<Option<Result<(), NotReady>>>);

impl Readiness {
    /// For a static.
    pub const fn new() -> Self {
        Readiness(Mutex::new(None))
    }

    /// Says it.
    pub fn set(&self, state: Result<(), NotReady>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }

    /// What was said last.
    ///
    /// # Errors
    /// The reason why not.
    pub fn get(&self) -> Result<(), NotReady> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        state.unwrap_or_else(|| Err(NotReady::new("starting", "nothing is known yet")))
    }
}
