//! A client that commits rows and keeps books of what it was told.

use super::endpoint::Endpoint;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, NoTls};

/// A client that waits longer than this gives up and connects anew.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two rows: enough of them to notice a loss, few enough not to disturb other tests.
const PACE: Duration = Duration::from_millis(5);
/// After a write that failed for good.
const PAUSE: Duration = Duration::from_millis(50);

/// The table that rows go to.
pub const TABLE: &str = "acknowledged";

/// A writer in the background. It inserts 1, 2, 3, … one per transaction, and never tries a number again: so one
/// that was acknowledged must be there exactly once, and any other at most once. A write that fails is tried once more
/// over a new connection, with the next number.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    task: JoinHandle<Written>,
}

/// What a writer was told.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Numbers whose commit was confirmed, and when.
    pub acknowledged: BTreeMap<i32, Instant>,
    /// The last number that was tried.
    pub last: i32,
    /// Connections that were lost, or gave no answer, in the middle of a write.
    pub cut: usize,
    /// Writes that failed although they were tried once more over a new connection.
    pub failed: usize,
}

impl Writer {
    /// Makes the table and begins to write through these endpoints, the next one after each failure.
    ///
    /// # Panics
    /// The table can't be made within the limit.
    pub async fn start(endpoints: &[&Endpoint]) -> Self {
        let first = endpoints.first().expect("at least one endpoint");
        // Without a unique index: a row that is there twice must be seen, not prevented.
        first.one(&format!("CREATE TABLE IF NOT EXISTS {TABLE} (id int)")).await;
        let configs = endpoints.iter().map(|endpoint| endpoint.config()).collect();
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let task = tokio::spawn(write(configs, stop.clone(), count.clone()));
        Writer { stop, count, task }
    }

    /// Number of acknowledged rows so far.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits until so many more rows were acknowledged.
    ///
    /// # Panics
    /// They were not within the limit.
    pub async fn progress(&self, rows: usize) {
        let wanted = self.count() + rows;
        super::eventually(&format!("{rows} more rows acknowledged"), async || self.count() >= wanted).await;
    }

    /// Ends it; gives what was acknowledged.
    ///
    /// # Panics
    /// The writer panicked.
    pub async fn finish(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the writer ends")
    }
}

impl Written {
    /// Numbers that were acknowledged and are not there, and numbers that are there more than once.
    ///
    /// # Panics
    /// The table can't be read within the limit.
    pub async fn faults(&self, endpoint: &Endpoint) -> (Vec<i32>, Vec<i32>) {
        let client = endpoint.connect().await;
        let rows = client.query(&format!("SELECT id, count(*) FROM {TABLE} GROUP BY id"), &[]).await;
        let found: BTreeMap<i32, i64> =
            rows.expect("read the table").iter().map(|row| (row.get(0), row.get(1))).collect();
        let lost = self.acknowledged.keys().filter(|id| !found.contains_key(id)).copied().collect();
        let twice = found.iter().filter(|(_, count)| **count > 1).map(|(id, _)| *id).collect();
        (lost, twice)
    }

    /// Every acknowledged row is there exactly once, and no row more than once.
    ///
    /// # Panics
    /// One is not.
    pub async fn check(&self, endpoint: &Endpoint) {
        assert!(!self.acknowledged.is_empty(), "nothing was acknowledged");
        let (lost, twice) = self.faults(endpoint).await;
        let total = self.acknowledged.len();
        assert!(lost.is_empty(), "{} of {total} acknowledged rows are lost: {lost:?}", lost.len());
        assert!(twice.is_empty(), "rows that are there more than once: {twice:?}");
    }

    /// The longest time without an acknowledgement that began at or went on after `event`; `None` if none came after it.
    pub fn outage(&self, event: Instant) -> Option<Duration> {
        let times: Vec<Instant> = self.acknowledged.values().copied().collect();
        let after = times.iter().position(|at| *at > event)?;
        times[after.saturating_sub(1)..].windows(2).map(|pair| pair[1] - pair[0]).max()
    }
}

async fn write(configs: Vec<Config>, stop: Arc<AtomicBool>, count: Arc<AtomicUsize>) -> Written {
    let sql = format!("INSERT INTO {TABLE} VALUES ($1)");
    let mut written = Written::default();
    let mut client = Connected { configs, session: None, place: 0 };
    while !stop.load(Ordering::Relaxed) {
        let mut done = client.attempt(&sql, &mut written).await;
        if !done {
            // What a client does that tries again once, at once and over a new connection. It is a row of its own, since the
            // first one's fate is unknown.
            done = client.attempt(&sql, &mut written).await;
            written.failed += usize::from(!done);
        }
        if done {
            count.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(if done { PACE } else { PAUSE }).await;
    }
    written
}

/// A client with its connection, if it has one.
struct Connected {
    configs: Vec<Config>,
    session: Option<Client>,
    place: usize,
}

impl Connected {
    /// One attempt to commit the next row; connects first if need be. True when it was confirmed.
    async fn attempt(&mut self, sql: &str, written: &mut Written) -> bool {
        if self.session.is_none() {
            self.session = connect(&self.configs[self.place % self.configs.len()]).await;
        }
        let Some(session) = &self.session else {
            self.place += 1;
            return false;
        };
        written.last += 1;
        let confirmed =
            matches!(tokio::time::timeout(PATIENCE, session.execute(sql, &[&written.last])).await, Ok(Ok(_)));
        if confirmed {
            written.acknowledged.insert(written.last, Instant::now());
        } else {
            // Whatever happened, the row's fate is unknown, and this session has served.
            self.session = None;
            self.place += 1;
            written.cut += 1;
        }
        confirmed
    }
}

async fn connect(config: &Config) -> Option<Client> {
    let (client, connection) = tokio::time::timeout(PATIENCE, config.connect(NoTls)).await.ok()?.ok()?;
    tokio::spawn(connection);
    Some(client)
}
