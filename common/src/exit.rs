//! Exit status and the one line that explains a failure.

use std::io::Write as _;
use std::process::ExitCode;

/// The command was used wrongly: exit status 2 instead of 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// A failure that knows what to do about it; printed as `hint: …` below the error.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Hinted {
    /// What and why.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// Turns the result of a program into its exit status: 0 done, 1 failed, 2 usage. The whole chain of causes is
/// one line on stderr.
pub fn report(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if reader_is_gone(&error) {
        return ExitCode::SUCCESS;
    }
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "error: {}", one_line(&error));
    if let Some(hinted) = error.downcast_ref::<Hinted>() {
        let _ = writeln!(stderr, "hint: {}", hinted.hint);
    }
    ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
}

/// The reader of our output has seen enough, as `head` does. Errors of connections are wrapped in their libraries'
/// own: what is an I/O error by itself comes from writing to stdout.
fn reader_is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The chain of causes in one line; a cause whose text is already part of the line is not said again.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().replace('\n', " ");
        if !line.contains(&text) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(text.trim());
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn only_our_own_reader_may_leave_silently() {
        let broken = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert!(reader_is_gone(&anyhow::Error::from(broken()).context("write to stdout")));
        assert!(!reader_is_gone(&std::io::Error::from(std::io::ErrorKind::StorageFull).into()));

        #[derive(Debug, thiserror::Error)]
        #[error("connection")]
        struct Connection(#[source] std::io::Error);
        assert!(!reader_is_gone(&Connection(broken()).into()));
    }

    #[test]
    fn causes_are_one_line_without_repetition() {
        let error = Err::<(), _>(anyhow::anyhow!("connection refused\n(os error 111)"))
            .context("connect to etcd")
            .context("connect to etcd")
            .unwrap_err();
        assert_eq!(one_line(&error), "connect to etcd: connection refused (os error 111)");
    }
}
