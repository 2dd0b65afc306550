//! How commands tell what they do: log lines, and one line per finished item.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Receives what a command tells.
pub trait Progress: Send + Sync {
    /// A stage begins or ends.
    fn info(&self, text: &str);
    /// Something the operator should know; the command goes on.
    fn warn(&self, text: &str);
    /// An item begins, e.g. `Waiting for Stolon daemons of rg clover-1-n1`.
    fn started(&self, what: &str);
    /// The item has ended: `word` is `success` or `done`.
    fn finished(&self, what: &str, word: &str, elapsed: Duration);
    /// The item has failed.
    fn failed(&self, what: &str, elapsed: Duration);
}

/// Runs a future as an item of progress.
///
/// # Errors
/// The future's own.
pub async fn item<T, E>(
    progress: &dyn Progress,
    what: &str,
    word: &str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    progress.started(what);
    let begin = Instant::now();
    let result = work.await;
    match &result {
        Ok(_) => progress.finished(what, word, begin.elapsed()),
        Err(_) => progress.failed(what, begin.elapsed()),
    }
    result
}

/// The line of an item that has ended.
pub fn finished_line(what: &str, word: &str, elapsed: Duration) -> String {
    format!("✓ {what}: {word} {:.3}s", elapsed.as_secs_f64())
}

/// The line of an item that has failed.
pub fn failed_line(what: &str, elapsed: Duration) -> String {
    format!("✗ {what}: failed {:.3}s", elapsed.as_secs_f64())
}

/// Progress on stderr: a spinner on a terminal, otherwise one line per finished item.
#[derive(Debug)]
pub struct Stderr {
    terminal: bool,
    spinner: Mutex<Option<Spinner>>,
}

impl Default for Stderr {
    fn default() -> Self {
        Stderr { terminal: std::io::stderr().is_terminal(), spinner: Mutex::new(None) }
    }
}

impl Stderr {
    fn line(text: &str) {
        // A closed stderr must not stop the work.
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    fn spinner(&self) -> std::sync::MutexGuard<'_, Option<Spinner>> {
        self.spinner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `log` with the spinner's line out of the way.
    fn around_spinner(&self, log: impl FnOnce()) {
        let what = self.spinner().take().map(Spinner::stop);
        log();
        if let Some(what) = what {
            *self.spinner() = Some(Spinner::start(&what));
        }
    }

    fn end(&self, line: &str) {
        if let Some(spinner) = self.spinner().take() {
            spinner.stop();
        }
        Self::line(line);
    }
}

impl Progress for Stderr {
    fn info(&self, text: &str) {
        self.around_spinner(|| tracing::info!("{text}"));
    }
    fn warn(&self, text: &str) {
        self.around_spinner(|| tracing::warn!("{text}"));
    }
    fn started(&self, what: &str) {
        if self.terminal {
            *self.spinner() = Some(Spinner::start(what));
        }
    }
    fn finished(&self, what: &str, word: &str, elapsed: Duration) {
        self.end(&finished_line(what, word, elapsed));
    }
    fn failed(&self, what: &str, elapsed: Duration) {
        self.end(&failed_line(what, elapsed));
    }
}

/// A turning sign before what is being waited for; a thread of its own, since the work may keep the runtime's busy.
#[derive(Debug)]
struct Spinner {
    what: String,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

const FRAMES: [char; 4] = ['|', '/', '-', '\\'];
const CLEAR: &str = "\r\x1b[K";

impl Spinner {
    fn start(what: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, text) = (stop.clone(), what.to_owned());
        let thread = std::thread::spawn(move || {
            for frame in FRAMES.into_iter().cycle() {
                if flag.load(Ordering::Relaxed) {
                    break;
                }
                let mut stderr = std::io::stderr().lock();
                let _ = write!(stderr, "{CLEAR}{frame} {text}");
                let _ = stderr.flush();
                drop(stderr);
                std::thread::park_timeout(Duration::from_millis(150));
            }
            let _ = write!(std::io::stderr().lock(), "{CLEAR}");
        });
        Spinner { what: what.to_owned(), stop, thread }
    }

    fn stop(self) -> String {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        // Only a closed stderr could have ended it early.
        let _ = self.thread.join();
        self.what
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_three_decimals() {
        let took = Duration::from_micros(31_012_300);
        assert_eq!(
            finished_line("Waiting for Stolon daemons of rg clover-1-sdm01", "success", took),
            "✓ Waiting for Stolon daemons of rg clover-1-sdm01: success 31.012s"
        );
        assert_eq!(
            finished_line("waiting rg 1 config apply", "done", took),
            "✓ waiting rg 1 config apply: done 31.012s"
        );
        assert_eq!(failed_line("x", Duration::ZERO), "✗ x: failed 0.000s");
    }
}
