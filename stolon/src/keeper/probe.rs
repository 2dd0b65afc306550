//! The state of the own instance: one persistent session, one query per look.

use super::error::Result;
use super::postgres::conf::{self, Parameters};
use super::postgres::control;
use super::postgres::process;
use super::postgres::sql::{Liveness, Reply, SharedSession, Snapshot, Standby, Target, liveness};
use super::upstream::Followed;
use model::DbUid;
use model::stolon::TimelineHistory;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// Pause between looks at an instance where nothing is expected to change.
const IDLE: Duration = Duration::from_secs(1);
/// Pause while a standby is expected to get in sync or to catch up.
const BUSY: Duration = Duration::from_millis(150);
/// Expected changes that do not come are no longer waited for so eagerly.
const BUSY_LIMIT: Duration = Duration::from_secs(60);
/// A server that is alive but gives no answer counts as healthy for so long.
const SLOW_LIMIT: Duration = Duration::from_secs(10);
/// A standby that owes a confirmation and sends nothing at all for so long is not in sync, though its connection still
/// stands: PostgreSQL itself gives it up only after `wal_sender_timeout`, a minute. Standbys that work reply every time
/// they write or flush.
const SILENCE_LIMIT: Duration = Duration::from_secs(2);
/// How often the WAL directory is listed.
const WAL_LISTING: Duration = Duration::from_secs(10);

/// What the state machine tells the probe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// The postmaster; `None` while there is none.
    pub pid: Option<i32>,
    /// Followers that ought to be connected, and those of them that ought to be in sync.
    pub followers: BTreeSet<DbUid>,
    /// Standbys that ought to be in sync.
    pub wanted_sync: BTreeSet<DbUid>,
    /// The user's parameters, to tell them from ours.
    pub user_parameters: Parameters,
    /// Standbys whose confirmations commits wait for, and since which position: one that has flushed so much holds
    /// every commit that anybody was told of. Not listed: it may lack some, even if PostgreSQL calls it synchronous.
    pub floors: BTreeMap<DbUid, u64>,
    /// Limit of a statement; `None` while it is not known.
    pub timeout: Option<Duration>,
    /// The machine did something: look at once, and read parameters anew.
    pub acted: u64,
    /// The server that this standby is to follow.
    pub upstream: Option<Followed>,
}

/// What the probe saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probed {
    /// The postmaster that this is about.
    pub pid: Option<i32>,
    /// The machine's last action before the look.
    pub acted: u64,
    /// It works.
    pub healthy: bool,
    /// What was known of synchronous standbys at the look.
    pub floors: BTreeMap<DbUid, u64>,
    /// State; stays the last one known while unhealthy.
    pub snapshot: Snapshot,
    /// The last two entries of the timeline's history.
    pub history: Vec<TimelineHistory>,
    /// Configured parameters that are reported.
    pub parameters: Parameters,
    /// Oldest WAL segment.
    pub older_wal_file: String,
}

impl Probed {
    /// Standbys that hold every commit and that commits wait for; `None` while nothing is known.
    pub fn in_sync(&self) -> Option<BTreeSet<DbUid>> {
        let sync = self.snapshot.standbys.iter().filter(|standby| standby.sync);
        let of = |standby: &Standby| (DbUid::from(standby.db.as_str()), standby.flushed);
        let complete = |(db, flushed): &(DbUid, u64)| self.floors.get(db).is_some_and(|floor| floor <= flushed);
        self.healthy.then(|| sync.map(of).filter(complete).map(|(db, _)| db).collect())
    }

    /// Standbys that have caught up and stream, sorted.
    pub fn streaming(&self) -> Vec<DbUid> {
        let streaming = self.snapshot.standbys.iter().filter(|standby| standby.streaming);
        let dbs: BTreeSet<DbUid> = streaming.map(|standby| DbUid::from(standby.db.as_str())).collect();
        dbs.into_iter().collect()
    }
}

/// Everything the probe works with.
#[derive(Debug)]
pub struct Probe {
    /// Data directory.
    pub pgdata: PathBuf,
    /// Own instance.
    pub target: Target,
    /// Session that is shared with the state machine.
    pub session: Arc<SharedSession>,
    /// Orders of the state machine.
    pub watched: watch::Receiver<Watched>,
    /// Results.
    pub results: watch::Sender<Probed>,
    /// Wakes the state machine when the session is lost.
    pub lost: Arc<Notify>,
    /// Asks for a look now.
    pub asked: Arc<Notify>,
}

impl Probe {
    /// Looks again and again; never ends.
    pub async fn run(mut self) {
        let mut memory = Memory::default();
        loop {
            let watched = self.watched.borrow_and_update().clone();
            let probed = self.look(&watched, &mut memory).await;
            let busy = memory.is_busy(&watched, &probed);
            self.results.send_if_modified(|last| {
                let changed = *last != probed;
                *last = probed;
                changed
            });
            let pause = if watched.pid.is_none() {
                Duration::MAX
            } else if busy {
                BUSY
            } else {
                IDLE
            };
            // All branches are cancel-safe.
            tokio::select! {
                () = tokio::time::sleep(pause.min(Duration::from_secs(3600))) => {}
                result = self.watched.changed() => if result.is_err() { return },
                () = memory.session_lost.notified() => {}
                () = self.asked.notified() => {}
            }
        }
    }

    async fn look(&self, watched: &Watched, memory: &mut Memory) -> Probed {
        let last = self.results.borrow().clone();
        let Some(pid) = watched.pid else { return Probed { pid: None, healthy: false, ..last } };
        if memory.pid != Some(pid) {
            *memory = Memory { pid: Some(pid), session_lost: memory.session_lost.clone(), ..Default::default() };
        }
        match self.query(watched, memory, &last).await {
            Ok(probed) => {
                if !last.healthy || last.pid != Some(pid) {
                    info!(pid, "postgres is healthy");
                }
                memory.answered = Some(Instant::now());
                probed
            }
            Err(error) => {
                let alive = process::is_alive(pid, &self.pgdata);
                let recent = memory.answered.is_some_and(|at| at.elapsed() < SLOW_LIMIT);
                let healthy = alive
                    && match liveness(&error) {
                        Liveness::Crowded => true,
                        Liveness::Slow => recent,
                        Liveness::Down => false,
                    };
                if last.healthy && !healthy {
                    warn!(pid, %error, "postgres is not healthy");
                } else {
                    debug!(pid, %error, "look at postgres");
                }
                if alive && last.pid != Some(pid) && liveness(&error) == Liveness::Crowded {
                    return self.unseen(pid, watched).unwrap_or(Probed { pid: Some(pid), healthy: false, ..last });
                }
                let healthy = healthy && last.pid == Some(pid);
                // What was seen before is still the best word on this server; but whether a standby has what was
                // committed since is measured against where commits wait for it now.
                Probed { pid: Some(pid), acted: watched.acted, floors: watched.floors.clone(), healthy, ..last }
            }
        }
    }

    /// A server that lets nobody in because it is full, and that this keeper never had a session with: all that is
    /// known is in its control file. Its position is older than the real one, never newer.
    fn unseen(&self, pid: i32, watched: &Watched) -> Option<Probed> {
        let control = control::read(&self.pgdata)?;
        let snapshot = Snapshot {
            in_recovery: control.state.is_standby(),
            system_id: control.system_id.to_string(),
            timeline: control.timeline.into(),
            lsn: control.checkpoint,
            ..Default::default()
        };
        let history = read_history(&self.pgdata, snapshot.timeline);
        warn!(pid, "postgres is full, so its state is known from its control file only");
        Some(Probed { pid: Some(pid), acted: watched.acted, healthy: true, snapshot, history, ..Default::default() })
    }

    async fn query(&self, watched: &Watched, memory: &mut Memory, last: &Probed) -> Result<Probed> {
        let (lost, wake) = (self.lost.clone(), memory.session_lost.clone());
        let timeout = watched.timeout.unwrap_or(self.target.timeout);
        let target = Target { timeout, ..self.target.clone() };
        let session = self.session.get(&target, move || {
            lost.notify_one();
            wake.notify_one();
        });
        let session = session.await?;
        let (mut snapshot, replies) = session.snapshot_and_replies().await?;
        let silent = memory.silence.update(&replies, Instant::now());
        for standby in snapshot.standbys.iter_mut().filter(|standby| silent.contains(&standby.db)) {
            (standby.sync, standby.streaming) = (false, false);
        }
        // A standby without a receiver knows its timeline from the control file only, which may lag behind.
        memory.timeline = memory.timeline.max(snapshot.timeline);
        snapshot.timeline = memory.timeline;
        if memory.parameters_read != Some(watched.acted) {
            memory.parameters = conf::reported(session.file_parameters().await?, &watched.user_parameters);
            memory.parameters_read = Some(watched.acted);
        }
        let history =
            if last.pid == watched.pid && last.snapshot.timeline == snapshot.timeline && !last.history.is_empty() {
                last.history.clone()
            } else {
                read_history(&self.pgdata, snapshot.timeline)
            };
        if memory.wal_listed.is_none_or(|at| at.elapsed() > WAL_LISTING) {
            memory.wal_listed = Some(Instant::now());
            memory.older_wal_file = oldest_wal(&self.pgdata);
        }
        Ok(Probed {
            pid: watched.pid,
            acted: watched.acted,
            healthy: true,
            floors: watched.floors.clone(),
            snapshot,
            history,
            parameters: memory.parameters.clone(),
            older_wal_file: memory.older_wal_file.clone(),
        })
    }
}

/// What is remembered between looks at the same postmaster.
#[derive(Debug, Default)]
struct Memory {
    pid: Option<i32>,
    answered: Option<Instant>,
    timeline: u64,
    parameters: Parameters,
    parameters_read: Option<u64>,
    wal_listed: Option<Instant>,
    older_wal_file: String,
    busy_since: Option<Instant>,
    busy_with: Option<Watched>,
    session_lost: Arc<Notify>,
    silence: Silence,
}

/// Standbys that owe a confirmation: the last reply of each, and since when there was no other.
#[derive(Debug, Default)]
struct Silence(BTreeMap<String, (String, Instant)>);

impl Silence {
    /// Takes in what was seen now. Gives those that have been silent for too long.
    fn update(&mut self, replies: &[Reply], now: Instant) -> BTreeSet<String> {
        let mut next = BTreeMap::new();
        for Reply { db, at, .. } in replies.iter().filter(|reply| reply.owes) {
            let since = self.0.get(db).filter(|(last, _)| last == at).map_or(now, |(_, since)| *since);
            next.insert(db.clone(), (at.clone(), since));
        }
        self.0 = next;
        let silent = self.0.iter().filter(|(_, (_, since))| now.duration_since(*since) >= SILENCE_LIMIT);
        silent.map(|(db, _)| db.clone()).collect()
    }
}

impl Memory {
    /// Something is about to change that the sentinel waits for.
    fn is_busy(&mut self, watched: &Watched, probed: &Probed) -> bool {
        if !expects_change(watched, probed) {
            self.busy_since = None;
            return false;
        }
        if self.busy_with.as_ref() != Some(watched) {
            self.busy_with = Some(watched.clone());
            self.busy_since = None;
        }
        self.busy_since.get_or_insert_with(Instant::now).elapsed() < BUSY_LIMIT
    }
}

fn expects_change(watched: &Watched, probed: &Probed) -> bool {
    if watched.pid.is_none() {
        return false;
    }
    if !probed.healthy {
        return true;
    }
    let standbys = &probed.snapshot.standbys;
    let in_sync = probed.in_sync().unwrap_or_default();
    let connected = |db: &DbUid| standbys.iter().any(|standby| *db == *standby.db.as_str());
    standbys.iter().any(|standby| !standby.streaming)
        || watched.followers.iter().any(|db| !connected(db))
        || !watched.wanted_sync.is_subset(&in_sync)
        || (probed.snapshot.in_recovery && !probed.snapshot.receiving)
}

fn read_history(pgdata: &Path, timeline: u64) -> Vec<TimelineHistory> {
    if timeline <= 1 {
        return Vec::new();
    }
    let text = std::fs::read_to_string(pgdata.join(format!("pg_wal/{timeline:08X}.history"))).unwrap_or_default();
    let mut entries = parse_history(&text);
    entries.split_off(entries.len().saturating_sub(2))
}

/// Lines `timeline<TAB>position<TAB>reason`; others are comments.
pub(super) fn parse_history(text: &str) -> Vec<TimelineHistory> {
    let entry = |line: &str| {
        let mut parts = line.splitn(3, '\t');
        let timeline_id = parts.next()?.trim().parse().ok()?;
        let switch_point = parse_lsn(parts.next()?.trim())?;
        Some(TimelineHistory { timeline_id, switch_point, reason: parts.next().unwrap_or_default().trim().to_owned() })
    };
    text.lines().filter_map(entry).collect()
}

/// Data at this position of its timeline can't join a server with this history: it went on where the other turned off.
pub(super) fn is_other_branch(timeline: u64, lsn: u64, history: &[TimelineHistory]) -> bool {
    history.iter().any(|entry| entry.timeline_id == timeline && entry.switch_point < lsn)
}

/// `16/B374D848` as a number.
pub(super) fn parse_lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let (high, low) = (u32::from_str_radix(high, 16).ok()?, u32::from_str_radix(low, 16).ok()?);
    Some(u64::from(high) << 32 | u64::from(low))
}

/// The oldest segment by position, whatever its timeline.
fn oldest_wal(pgdata: &Path) -> String {
    let entries = std::fs::read_dir(pgdata.join("pg_wal")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| is_segment(name)).min_by(|a, b| a[8..].cmp(&b[8..])).unwrap_or_default()
}

fn is_segment(name: &str) -> bool {
    name.len() == 24 && name.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn history_files() {
        let text = "1\t0/3000148\tno recovery target specified\n\n# x\n2\t16/B374D848\tbefore 2000-01-01\n";
        let entries = parse_history(text);
        assert_eq!(entries.len(), 2);
        assert_eq!((entries[0].timeline_id, entries[0].switch_point), (1, 0x300_0148));
        assert_eq!((entries[1].switch_point, entries[1].reason.as_str()), (0x16_B374_D848, "before 2000-01-01"));
        assert_eq!(parse_history("1\n2\t\n3\tx/y\tz\n"), []);
    }

    #[test]
    fn data_beyond_the_turn_is_on_another_branch() {
        let history = parse_history("1\t0/3000000\tx\n2\t0/5000000\tx\n");
        assert!(is_other_branch(1, 0x300_0001, &history) && is_other_branch(2, 0x600_0000, &history));
        assert!(!is_other_branch(1, 0x300_0000, &history) && !is_other_branch(3, u64::MAX, &history));
        assert!(!is_other_branch(1, 1, &[]));
    }

    #[test]
    fn segments() {
        assert!(is_segment("000000010000000000000002"));
        for other in
            ["00000002.history", "000000010000000000000002.partial", "archive_status", "00000001000000000000000g"]
        {
            assert!(!is_segment(other), "{other}");
        }
    }

    #[test]
    fn missing_standbys_are_awaited_eagerly() {
        let probed = |rows: &[(&str, bool, bool)]| Probed {
            healthy: true,
            floors: [("a".into(), 7)].into(),
            snapshot: Snapshot {
                standbys: rows
                    .iter()
                    .map(|(db, streaming, sync)| Standby {
                        db: (*db).into(),
                        streaming: *streaming,
                        sync: *sync,
                        flushed: 7,
                    })
                    .collect(),
                ..Default::default()
            },
            ..Default::default()
        };
        let one: BTreeSet<DbUid> = ["a".into()].into();
        let watched = Watched { pid: Some(7), followers: one.clone(), wanted_sync: one, ..Default::default() };
        assert!(expects_change(&watched, &probed(&[])));
        assert!(expects_change(&watched, &probed(&[("a", false, false)])));
        assert!(expects_change(&watched, &probed(&[("a", true, false)])));
        assert!(!expects_change(&watched, &probed(&[("a", true, true)])));
        assert!(!expects_change(&Watched { pid: None, ..watched }, &probed(&[])));
    }

    #[test]
    fn standbys_that_owe_a_confirmation_and_say_nothing_are_silent() {
        let mut silence = Silence::default();
        let start = Instant::now();
        let mut look = |seconds, owes, at: &str| {
            let reply = Reply { db: "a".into(), owes, at: at.into() };
            silence.update(&[reply], start + Duration::from_secs(seconds)).len()
        };
        assert_eq!((look(0, true, "1"), look(1, true, "1"), look(2, true, "1")), (0, 0, 1));
        assert_eq!((look(9, true, "2"), look(10, true, "3"), look(13, true, "3")), (0, 0, 1));
        assert_eq!((look(14, false, "3"), look(15, true, "3"), look(16, true, "3")), (0, 0, 0));
    }

    #[test]
    fn in_sync_means_that_every_commit_is_there() {
        let in_sync = |healthy, sync, flushed, floor: Option<u64>| {
            let standby = Standby { db: "a".into(), streaming: true, sync, flushed };
            let snapshot = Snapshot { standbys: vec![standby], ..Default::default() };
            let floors = floor.map(|floor| ("a".into(), floor)).into_iter().collect();
            Probed { healthy, snapshot, floors, ..Default::default() }.in_sync().map(|set| set.len())
        };
        assert_eq!(in_sync(true, true, 7, Some(7)), Some(1));
        for (sync, flushed, floor) in [(true, 6, Some(7)), (true, 7, None), (false, 7, Some(7))] {
            assert_eq!(in_sync(true, sync, flushed, floor), Some(0), "{sync} {flushed} {floor:?}");
        }
        assert_eq!(in_sync(false, true, 7, Some(7)), None);
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = parse_history(&text);
            let _ = parse_lsn(&text);
            let _ = is_segment(&text);
        }
    }
}
