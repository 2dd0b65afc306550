//! Errors for people: what, why, and what to do.

use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::prelude::*;

/// Ends the statement.
pub(crate) fn fail(
    code: PgSqlErrorCode,
    what: impl Into<String>,
    why: impl Into<String>,
    hint: impl Into<String>,
) -> ! {
    ErrorReport::new(code, what.into(), "shardman").set_detail(why).set_hint(hint).report(PgLogLevel::ERROR);
    unreachable!("an error report does not return")
}

/// For errors of the server programming interface itself: statements that it runs raise their own errors.
pub(crate) fn spi_failed(doing: &str, error: &pgrx::spi::Error) -> ! {
    fail(
        PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        format!("cannot {doing}"),
        error.to_string(),
        "This is a defect of the extension shardman; report it with the statement that showed it.",
    )
}

/// Raises an error of another group again, saying which: people read the same message on three servers otherwise.
pub(crate) fn on_group(group: i32, error: CaughtError) -> ! {
    let CaughtError::PostgresError(report) = error else { error.rethrow() };
    let place = format!("This happened on replication group {group}.");
    let detail = report.detail().map_or_else(|| place.clone(), |detail| format!("{detail} {place}"));
    let mut named =
        ErrorReport::new(report.sql_error_code(), report.message().to_owned(), "shardman").set_detail(detail);
    if let Some(hint) = report.hint() {
        named = named.set_hint(hint);
    }
    named.report(PgLogLevel::ERROR);
    unreachable!("an error report does not return")
}
