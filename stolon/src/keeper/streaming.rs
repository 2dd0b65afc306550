//! Tells when a standby receives nothing from the server that it follows, and why, as far as that can be found out.
//!
//! The reason is asked for, not read out of a log: a replication connection with the standby's own settings is tried, and
//! its slot is looked at. Nothing is streamed, so the slot stays as it is.
//!
//! A receiver that starts and ends again and again, because the WAL that it wants is gone, looks for moments as if it
//! worked. So only one that lasts counts, for the end of a problem as for its beginning.

use super::observe;
use super::postgres::binaries::{Binaries, tail};
use super::postgres::conf;
use super::probe::{Probed, Watched};
use chrono::{SecondsFormat, TimeDelta, Utc};
use pg::quote::ident;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

/// A standby that received nothing for so long has a problem. Longer than a failover or a restart of the followed
/// server takes, and than PostgreSQL's own pause of 5 s between attempts.
const PATIENCE: Duration = Duration::from_secs(12);
/// A receiver that has lasted for so long works.
const STEADY: Duration = Duration::from_secs(3);
/// Pause between questions for the reason.
const AGAIN: Duration = Duration::from_secs(30);
/// Limit of one question.
const LIMIT: Duration = Duration::from_secs(10);

/// Everything that is needed to watch the stream.
#[derive(Debug)]
pub struct StreamWatch {
    /// Data directory.
    pub pgdata: PathBuf,
    /// PostgreSQL's programs.
    pub binaries: Binaries,
    /// From the state machine: whom to follow.
    pub watched: watch::Receiver<Watched>,
    /// From the probe: the receiver.
    pub probed: watch::Receiver<Probed>,
    /// The problem's text, if there is one.
    pub results: watch::Sender<Option<String>>,
}

impl StreamWatch {
    /// Watches until nobody listens.
    pub async fn run(mut self) {
        let mut stream = Stream::default();
        let mut asked: Option<Instant> = None;
        loop {
            let now = Instant::now();
            let (seen, position) = self.wanted();
            let next = stream.update(seen, position, now);
            let wait = match next {
                Next::Fine => {
                    asked = None;
                    self.tell(None);
                    None
                }
                Next::Look(at) => Some(at),
                Next::Broken(since) => {
                    if asked.is_none_or(|at| at + AGAIN <= now) {
                        asked = Some(now);
                        let text = self.explain(since).await;
                        // It may have begun to work while the question was asked.
                        let (seen, position) = self.wanted();
                        if matches!(stream.update(seen, position, Instant::now()), Next::Broken(_)) {
                            self.tell(Some(text));
                        }
                    }
                    asked.map(|at| at + AGAIN)
                }
            };
            let timer = async {
                match wait {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // All branches are cancel-safe.
            tokio::select! {
                () = timer => {}
                result = self.watched.changed() => if result.is_err() { return },
                result = self.probed.changed() => if result.is_err() { return },
            }
        }
    }

    /// What is to be seen now: `None` where no stream is to be expected; and the position.
    fn wanted(&mut self) -> (Option<Option<i32>>, u64) {
        let (pid, followed) = {
            let watched = self.watched.borrow_and_update();
            (watched.pid, watched.upstream.clone())
        };
        let probed = self.probed.borrow_and_update();
        let works = probed.healthy && probed.pid == pid && pid.is_some() && probed.snapshot.in_recovery;
        (followed.filter(|_| works).map(|_| probed.snapshot.receiver), probed.snapshot.lsn)
    }

    fn tell(&self, text: Option<String>) {
        self.results.send_if_modified(|told| {
            let changed = *told != text;
            match &text {
                Some(text) if changed => warn!("{text}"),
                None if changed => info!("WAL is received again, or need not be any more"),
                _ => {}
            }
            *told = text;
            changed
        });
    }

    async fn explain(&self, since: Instant) -> String {
        let since = Utc::now() - TimeDelta::from_std(since.elapsed()).unwrap_or_default();
        let followed = self.watched.borrow().upstream.clone().unwrap_or_default();
        let reason = self.ask().await;
        // A text that changes with each look would make the record change with each look.
        let told = self.results.borrow().as_deref().and_then(begin).map(str::to_owned);
        let since = told.unwrap_or_else(|| since.to_rfc3339_opts(SecondsFormat::Secs, true));
        format!("since {since} no WAL is received from {}:{}: {reason}", followed.host, followed.port)
    }

    /// Why, in words.
    async fn ask(&self) -> String {
        let text = observe::read_text(&self.pgdata.join("postgresql.conf")).unwrap_or_default();
        let (Some(conninfo), Some(slot)) = (setting(&text, "primary_conninfo"), setting(&text, "primary_slot_name"))
        else {
            return "PostgreSQL is not configured to follow it yet".into();
        };
        let mut command = self.binaries.command("psql");
        // Names only: the password, if there is one, is in the file that the settings name. Under another name, so that
        // nobody takes this for a standby.
        let place = format!("{conninfo} application_name=stolon-keeper replication=true");
        command.args(["-X", "-w", "-A", "-t", "-q", "-d", &place, "-c"]);
        command.arg(format!("READ_REPLICATION_SLOT {}", ident(&slot)));
        let child = command.kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let Ok(child) = child else { return SEE_LOG.into() };
        match tokio::time::timeout(LIMIT, child.wait_with_output()).await {
            Ok(Ok(output)) if output.status.success() => {
                let position = self.probed.borrow().snapshot.lsn;
                judge_slot(&slot, &String::from_utf8_lossy(&output.stdout), position)
            }
            Ok(Ok(output)) => format!("a connection for replication fails: {}", refusal(&tail(&output.stderr))),
            Ok(Err(_)) => SEE_LOG.into(),
            Err(_) => format!("a connection for replication gets no answer within {} s", LIMIT.as_secs()),
        }
    }
}

const SEE_LOG: &str = "PostgreSQL's log on this host says why";

/// A setting as it was before it was quoted for the file.
fn setting(text: &str, name: &str) -> Option<String> {
    conf::value(text, name)
        .map(|value| value.replace("''", "'").replace("\\\\", "\\"))
        .filter(|value| !value.is_empty())
}

/// The time in a text of ours.
fn begin(text: &str) -> Option<&str> {
    text.strip_prefix("since ")?.split(' ').next()
}

/// What psql wrote, without its own name.
fn refusal(text: &str) -> &str {
    text.strip_prefix("psql: ").unwrap_or(text).trim_start_matches("error: ")
}

/// `physical|0/3000000|1`; empty fields where there is no such slot, or where it keeps no WAL.
fn judge_slot(slot: &str, answer: &str, position: u64) -> String {
    let mut fields = answer.trim().split('|');
    let (kind, kept) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
    if kind.is_empty() {
        return format!("replication slot \"{slot}\" is not there; that server's keeper makes it, see its problems");
    }
    match super::probe::parse_lsn(kept) {
        None => format!("replication slot \"{slot}\" keeps no WAL, so what is missing may be gone there; {SEE_LOG}"),
        Some(kept) if kept > position => {
            format!(
                "replication slot \"{slot}\" keeps WAL from a later position only, what is missing may be gone there"
            )
        }
        Some(_) => format!("a connection for replication works and the slot is there; {SEE_LOG}"),
    }
}

/// The course of a stream.
#[derive(Debug, Default)]
struct Stream {
    /// The receiver seen last, and since when it lasts.
    receiver: Option<(i32, Instant)>,
    /// No receiver has lasted since.
    broken: Option<Instant>,
    /// The position seen last.
    position: u64,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// It streams, or need not.
    Fine,
    /// Nothing is known before that moment.
    Look(Instant),
    /// It is broken since.
    Broken(Instant),
}

impl Stream {
    /// Takes in what is to be seen: `None` where no stream is to be expected, else the receiver if there is one.
    fn update(&mut self, seen: Option<Option<i32>>, position: u64, now: Instant) -> Next {
        let Some(receiver) = seen else {
            *self = Stream::default();
            return Next::Fine;
        };
        let last = self.receiver;
        self.receiver = receiver.map(|pid| match last {
            Some((old, since)) if old == pid => (pid, since),
            _ => (pid, now),
        });
        let changed = last.is_some_and(|(old, _)| receiver.is_some_and(|pid| pid != old));
        if receiver.is_none() || changed {
            self.broken.get_or_insert(now);
        }
        // A standby replays the WAL that it has before it asks for more.
        if std::mem::replace(&mut self.position, position) < position && receiver.is_none() {
            self.broken = Some(now);
        }
        let Some(broken) = self.broken else { return Next::Fine };
        let steady = self.receiver.map(|(_, since)| since + STEADY);
        if steady.is_some_and(|at| at <= now) {
            self.broken = None;
            return Next::Fine;
        }
        let overdue = broken + PATIENCE;
        match steady {
            // A problem stays one until a receiver has lasted.
            Some(at) => Next::Look(at),
            None if overdue <= now => Next::Broken(broken),
            None => Next::Look(overdue),
        }
    }
}

#[cfg(test)]
#[path = "streaming_tests.rs"]
mod tests;
