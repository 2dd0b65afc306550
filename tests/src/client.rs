//! A client that commits rows one by one and remembers which ones were acknowledged, and when.

use crate::playground::connect;
use anyhow::Context as _;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// A commit that the server confirmed.
#[derive(Clone, Copy, Debug)]
pub struct Acknowledged {
    /// The row's key.
    pub id: i32,
    /// When the confirmation came.
    pub at: Instant,
}

/// A writer in the background.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    task: JoinHandle<Vec<Acknowledged>>,
}

/// A client that waits longer than this for one statement gives up and connects anew.
const PATIENCE: Duration = Duration::from_secs(3);

impl Writer {
    /// Inserts the given keys into `table(id int primary key, t text)`, one per transaction, trying each again
    /// until it is confirmed or turns out to be there.
    pub fn start(connstr: String, table: &'static str, ids: Vec<i32>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(write(connstr, table, ids, stop.clone(), count.clone()));
        Writer { stop, count, task }
    }

    /// Waits for so many more acknowledged rows.
    ///
    /// # Errors
    /// They do not come within `limit`.
    pub async fn progress(&self, more: usize, limit: Duration) -> anyhow::Result<()> {
        let goal = self.count.load(Ordering::Relaxed) + more;
        let reached = async {
            while self.count.load(Ordering::Relaxed) < goal {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(limit, reached).await.with_context(|| format!("no {more} commits within {limit:?}"))
    }

    /// Ends it; gives what was acknowledged, in order.
    ///
    /// # Errors
    /// The writer panicked.
    pub async fn finish(self) -> anyhow::Result<Vec<Acknowledged>> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.task.await?)
    }
}

async fn write(
    connstr: String,
    table: &str,
    ids: Vec<i32>,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
) -> Vec<Acknowledged> {
    let sql = format!("insert into {table} values ($1, 'a row')");
    let mut acknowledged = Vec::new();
    let mut session = None;
    let mut ids = ids.into_iter().peekable();
    while let Some(&id) = ids.peek() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if session.is_none() {
            session = connect(&connstr).await.ok();
        }
        let Some(client) = &session else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        match tokio::time::timeout(PATIENCE, client.execute(&sql, &[&id])).await {
            Ok(Ok(_)) => {
                acknowledged.push(Acknowledged { id, at: Instant::now() });
                count.store(acknowledged.len(), Ordering::Relaxed);
                ids.next();
            }
            // A commit whose answer was lost: the row is there, but nobody promised it.
            Ok(Err(error)) if error.code() == Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION) => {
                ids.next();
            }
            Ok(Err(error)) => {
                // Syntax, types, missing tables: trying again would hide a broken test.
                assert!(error.code().is_none_or(|code| !code.code().starts_with("42")), "{sql}: {error:?}");
                if error.is_closed() || error.code().is_none_or(|code| code.code().starts_with("57P")) {
                    session = None;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(_) => session = None,
        }
    }
    acknowledged
}

/// The longest time between two acknowledgements around `event`: the last before and the first after it.
pub fn outage(acknowledged: &[Acknowledged], event: Instant) -> Option<Duration> {
    let after = acknowledged.iter().position(|commit| commit.at > event)?;
    // The commit that was under way when the event happened may still have been confirmed right after it:
    // the longest pause from there on is the outage.
    let pauses = acknowledged[after.saturating_sub(1)..].windows(2).map(|pair| pair[1].at - pair[0].at);
    pauses.max()
}

/// Acknowledged keys that a table does not hold.
pub fn missing(acknowledged: &[Acknowledged], found: &BTreeSet<i32>) -> Vec<i32> {
    acknowledged.iter().map(|commit| commit.id).filter(|id| !found.contains(id)).collect()
}
