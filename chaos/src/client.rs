//! Clients that append rows through the proxies, and remember every attempt.

use crate::checker::{Attempt, Mark, Outcome};
use crate::cluster::connect;
use crate::transcript::Transcript;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

/// One commit, and where it was done: the server's own address, not that of the proxy.
const SQL: &str = "insert into journal values ($1, $2) returning
    substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8), pg_current_wal_insert_lsn()::text, host(inet_server_addr())";
/// A client that waits longer than this for one answer gives up and connects anew.
const PATIENCE: Duration = Duration::from_secs(6);
/// Pause of a client that can't connect.
const RETRY: Duration = Duration::from_millis(50);

/// All attempts of all clients so far.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Vec<Attempt>>>);

impl History {
    fn add(&self, attempt: Attempt) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(attempt);
    }

    /// A copy.
    pub fn attempts(&self) -> Vec<Attempt> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A commit that was sent after `since` was acknowledged.
    pub fn written_since(&self, since: Duration) -> bool {
        let attempts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = attempts.iter().rev().take_while(|attempt| attempt.ended >= since);
        recent.into_iter().any(|attempt| attempt.started >= since && attempt.mark().is_some())
    }

    /// Times without any acknowledgement between two moments: the longest ones, each with its begin.
    pub fn waits(&self, from: Duration, to: Duration, most: usize) -> Vec<(Duration, Duration)> {
        let mut ends: Vec<Duration> = self.attempts().iter().filter(|a| a.mark().is_some()).map(|a| a.ended).collect();
        ends.retain(|end| *end >= from && *end <= to);
        ends.extend([from, to]);
        ends.sort();
        let mut waits: Vec<(Duration, Duration)> = ends.windows(2).map(|pair| (pair[0], pair[1] - pair[0])).collect();
        waits.sort_by_key(|(_, length)| std::cmp::Reverse(*length));
        waits.truncate(most);
        waits
    }
}

/// Clients at work.
#[derive(Debug)]
pub struct Clients {
    /// What they did.
    pub history: History,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts `count` clients; each prefers another proxy, pauses between rows, and goes on with the next proxy
    /// when one does not lead to a master.
    pub fn start(count: i32, proxies: &[(String, u16)], pause: Duration, transcript: &Transcript) -> Self {
        let clients = Clients { history: History::default(), stop: Arc::default(), tasks: Vec::new() };
        let start = |client| {
            let worker = Worker {
                client,
                proxies: proxies.to_vec(),
                pause,
                transcript: transcript.clone(),
                history: clients.history.clone(),
            };
            tokio::spawn(worker.work(clients.stop.clone()))
        };
        let tasks = (0..count).map(start).collect();
        Clients { tasks, ..clients }
    }

    /// Ends them and gives all attempts.
    pub async fn finish(self) -> Vec<Attempt> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let _ = task.await;
        }
        self.history.attempts()
    }
}

struct Worker {
    client: i32,
    proxies: Vec<(String, u16)>,
    pause: Duration,
    transcript: Transcript,
    history: History,
}

impl Worker {
    async fn work(self, stop: Arc<AtomicBool>) {
        let mut session = None;
        let mut place = usize::try_from(self.client).unwrap_or_default();
        let mut seq = 0;
        while !stop.load(Ordering::Relaxed) {
            let Some(client) = &session else {
                let (host, port) = &self.proxies[place % self.proxies.len()];
                session = connect(&format!("host={host} port={port} user=app dbname=postgres")).await.ok();
                if session.is_none() {
                    place += 1;
                    tokio::time::sleep(RETRY).await;
                }
                continue;
            };
            seq += 1;
            if !self.append(client, seq).await {
                session = None;
            }
            tokio::time::sleep(self.pause).await;
        }
    }

    /// Gives false when the session is of no more use.
    async fn append(&self, client: &Client, seq: i64) -> bool {
        let started = self.transcript.now();
        let answer = tokio::time::timeout(PATIENCE, client.query_one(SQL, &[&self.client, &seq])).await;
        let ended = self.transcript.now();
        let outcome = match answer {
            Ok(Ok(row)) => match parse_mark(row.get(0), row.get(1), row.get(2)) {
                Some(mark) => Outcome::Acknowledged(mark),
                None => Outcome::Unknown("an answer without sense".into()),
            },
            Ok(Err(error)) => Outcome::Unknown(error.to_string()),
            Err(_) => Outcome::Unknown("no answer".into()),
        };
        let good = matches!(outcome, Outcome::Acknowledged(_));
        self.history.add(Attempt { client: self.client, seq, started, ended, outcome });
        good
    }
}

/// The timeline in hexadecimal, the position as `high/low`, the address.
fn parse_mark(timeline: &str, lsn: &str, server: &str) -> Option<Mark> {
    let (high, low) = lsn.split_once('/')?;
    let lsn = u64::from(u32::from_str_radix(high, 16).ok()?) << 32 | u64::from(u32::from_str_radix(low, 16).ok()?);
    Some(Mark { server: server.to_owned(), timeline: u32::from_str_radix(timeline, 16).ok()?, lsn })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks() {
        let mark = parse_mark("0000000B", "1/0000A0FF", "10.0.0.1").unwrap();
        assert_eq!(mark, Mark { server: "10.0.0.1".into(), timeline: 11, lsn: 0x1_0000_a0ff });
        for (timeline, lsn) in [("", "0/1"), ("1", ""), ("1", "0"), ("x", "0/1"), ("1", "0/1ffffffff")] {
            assert_eq!(parse_mark(timeline, lsn, ""), None, "{timeline} {lsn}");
        }
    }

    #[test]
    fn waits_are_the_longest_times_without_an_acknowledgement() {
        let history = History::default();
        let seconds = Duration::from_secs;
        for (seq, ended) in [(1, 1), (2, 2), (3, 6), (4, 7)] {
            let mark = Mark { server: String::new(), timeline: 1, lsn: 1 };
            let (started, ended) = (seconds(ended - 1), seconds(ended));
            history.add(Attempt { client: 1, seq, started, ended, outcome: Outcome::Acknowledged(mark) });
        }
        assert_eq!(history.waits(seconds(0), seconds(10), 2), [(seconds(2), seconds(4)), (seconds(7), seconds(3))]);
        assert!(history.written_since(seconds(6)) && !history.written_since(seconds(7)));
    }
}
