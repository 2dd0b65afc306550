//! Why a step of the keeper did not succeed.

use std::path::Path;

/// An error of one step. Texts hold no secret.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// A file or process operation failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation and its object.
        what: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// One of PostgreSQL's programs failed.
    #[error("{tool} failed ({status}): {tail}")]
    Tool {
        /// Its name.
        tool: &'static str,
        /// How it ended.
        status: String,
        /// The last lines that it wrote.
        tail: String,
    },
    /// A query failed.
    #[error("{what}: {}", describe(.source))]
    Sql {
        /// The query's purpose.
        what: &'static str,
        /// PostgreSQL's words.
        source: tokio_postgres::Error,
    },
    /// Something else has to happen first, soon and by itself: try again quickly and quietly.
    #[error("{0}")]
    NotYet(String),
    /// Anything else: what, why, what to do.
    #[error("{0}")]
    Other(String),
}

/// Shorthand for results of the keeper.
pub type Result<T> = std::result::Result<T, KeeperError>;

/// Adds the operation and the path to an I/O error.
pub(super) fn io<T>(result: std::io::Result<T>, verb: &str, path: &Path) -> Result<T> {
    result.map_err(|source| KeeperError::Io { what: format!("{verb} {}", path.display()), source })
}

/// The server's own message; the client library's text alone is just "db error".
pub(super) fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{}: {}", db.severity(), db.message());
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = inner.source();
    }
    text
}
