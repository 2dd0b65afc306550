//! What happened when: to stdout, and to a file of its own.

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The clock and the book of a campaign; clones share both.
#[derive(Clone, Debug)]
pub struct Transcript {
    began: Instant,
    file: Arc<Mutex<File>>,
}

impl Transcript {
    /// Begins `transcript.txt` in a directory.
    ///
    /// # Errors
    /// The file can't be created.
    pub fn begin(out: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
        let file = File::create(out.join("transcript.txt")).context("create the transcript")?;
        Ok(Transcript { began: Instant::now(), file: Arc::new(Mutex::new(file)) })
    }

    /// Time since the begin.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The wall clock at a moment of the campaign, to find it in logs.
    pub fn wall(&self, at: Duration) -> DateTime<Utc> {
        let ago = self.now().saturating_sub(at);
        DateTime::from(std::time::SystemTime::now() - ago)
    }

    /// Writes a line; further lines of the text are indented.
    #[expect(clippy::print_stdout, reason = "the transcript is this program's output")]
    pub fn say(&self, text: &str) {
        let now = self.now();
        let wall = self.wall(now).format("%H:%M:%S%.3f");
        let line = format!("{wall} {:9.3} {}", now.as_secs_f64(), text.trim_end().replace('\n', "\n    "));
        println!("{line}");
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(file, "{line}");
    }
}
