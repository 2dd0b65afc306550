//! What this keeper tells the cluster: its record in the store, on a lease that is kept alive.

use super::disk::Disk;
use super::probe::Probed;
use super::record::{Outcome, Record};
use model::stolon::{HandedOver, KeeperInfo, PostgresBinaryVersion, PostgresState, Problem, Upstream};
use model::{DbUid, GoDuration, KeeperUid};
use std::collections::BTreeMap;
use std::time::Duration;
use store::{KeptLease, LeaseId, SharedStore, View};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, warn};

/// etcd grants no shorter leases by default.
const MIN_TTL: i64 = 2;
/// What the Go programs use; a record must not outlive them.
const MAX_TTL: i64 = 20;
/// Longest challenge that is answered, in characters.
const CHALLENGE_LENGTH: usize = 64;
/// How long the record of a keeper that leaves stays: its successor takes this long to start, or the cluster takes
/// the keeper for dead.
pub const ABSENCE: Duration = Duration::from_secs(15);
/// Longest complaint of another keeper that is passed on, in characters.
const TWIN_LENGTH: usize = 200;
/// Pause after a failed put.
const RETRY: Duration = Duration::from_millis(500);

/// What does not change while the keeper runs.
#[derive(Clone, Debug)]
pub struct Identity {
    /// This keeper.
    pub uid: KeeperUid,
    /// This start of it.
    pub boot_uuid: String,
    /// See [`super::record::place`].
    pub place: String,
    /// PostgreSQL's version.
    pub version: PostgresBinaryVersion,
    /// See the flags.
    pub priority: Option<i64>,
    /// See the flags.
    pub can_be_master: bool,
    /// See the flags.
    pub can_be_synchronous_replica: bool,
    /// Advertised address.
    pub address: String,
    /// Advertised port.
    pub port: String,
}

/// What the state machine knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Empty while unknown: nothing is published.
    pub cluster_uid: String,
    /// The db of the data directory and its applied generation.
    pub db: (DbUid, i64),
    /// That db is still being made: what runs, if anything, is another one.
    pub making: bool,
    /// The postmaster now: what was seen of another one is not told.
    pub pid: Option<i32>,
    /// Number of the state machine's last action: what was seen before it is not told as its result.
    pub acted: u64,
    /// Decides the lease's TTL; `None` while the specification is unknown.
    pub fail_interval: Option<GoDuration>,
    /// Smallest pause between publications where nothing but the position changed.
    pub sleep_interval: Duration,
    /// The instance that was stopped to follow its successor.
    pub handed_over: HandedOver,
    /// The last order that was carried out.
    pub obeyed: String,
    /// Counts rewrites of the cluster data by others than our sentinels. A Go sentinel rewrites it at each check and takes
    /// a record whose uid stays the same for dead.
    pub rewrites: u64,
    /// What an operator should know, by code.
    pub problems: BTreeMap<&'static str, String>,
}

/// TTL of the record's lease, in seconds.
pub fn lease_seconds(fail_interval: Option<GoDuration>) -> u32 {
    const SECOND: i64 = 1_000_000_000;
    let nanos = fail_interval.map_or(MAX_TTL * SECOND, GoDuration::as_nanos);
    let seconds = nanos.div_euclid(SECOND) + i64::from(nanos.rem_euclid(SECOND) > 0);
    u32::try_from(seconds.clamp(MIN_TTL, MAX_TTL)).unwrap_or(20)
}

/// The record, without its random uid.
pub fn render(
    identity: &Identity,
    facts: &Facts,
    probed: &Probed,
    upstream: Option<Upstream>,
    challenge: String,
) -> KeeperInfo {
    let known = facts.pid.is_some() || !facts.db.0.is_empty();
    KeeperInfo {
        uid: identity.uid.clone(),
        cluster_uid: facts.cluster_uid.clone(),
        boot_uuid: identity.boot_uuid.clone(),
        place: Some(identity.place.clone()),
        postgres_binary_version: identity.version,
        priority: identity.priority,
        postgres_state: known.then(|| state(identity, facts, probed)),
        can_be_master: Some(identity.can_be_master),
        can_be_synchronous_replica: Some(identity.can_be_synchronous_replica),
        problems: facts.problems.iter().map(problem).collect(),
        lease_seconds: Some(lease_seconds(facts.fail_interval)),
        handed_over: Some(facts.handed_over.clone()),
        obeyed: Some(facts.obeyed.clone()),
        // That this is published is the answer.
        answered: Some(challenge),
        upstream,
        streaming: Some(if is_seen(facts, probed) { probed.streaming() } else { Vec::new() }),
        ..Default::default()
    }
}

/// A standby that receives nothing works, as far as it goes: nothing but the problem is told.
fn with_stream(mut info: KeeperInfo, stream: Option<&String>) -> KeeperInfo {
    info.problems.extend(stream.map(|text| problem((&Problem::NOT_STREAMING, text))));
    info
}

/// An instance on a disk that can't be written is not healthy, whatever it answers from its memory.
fn with_disk(mut info: KeeperInfo, disk: &Disk) -> KeeperInfo {
    info.problems.extend(disk.problem.iter().map(|(code, text)| problem((code, text))));
    if let Some(state) = info.postgres_state.as_mut().filter(|_| disk.broken) {
        state.healthy = false;
    }
    info
}

fn problem((code, text): (&&'static str, &String)) -> Problem {
    Problem { code: (*code).to_owned(), text: text.clone() }
}

/// The instance of the record's db was seen, and it works.
fn is_seen(facts: &Facts, probed: &Probed) -> bool {
    !facts.making && probed.healthy && probed.pid == facts.pid
}

fn state(identity: &Identity, facts: &Facts, probed: &Probed) -> PostgresState {
    let base = PostgresState {
        uid: facts.db.0.clone(),
        generation: facts.db.1,
        listen_address: identity.address.clone(),
        port: identity.port.clone(),
        ..Default::default()
    };
    if !is_seen(facts, probed) {
        return base;
    }
    PostgresState {
        healthy: true,
        system_id: probed.snapshot.system_id.clone(),
        timeline_id: probed.snapshot.timeline,
        xlog_pos: probed.snapshot.lsn,
        timelines_history: probed.history.clone(),
        pg_parameters: probed.parameters.clone(),
        synchronous_standbys: Some(probed.in_sync().unwrap_or_default().into_iter().collect()),
        older_wal_file: probed.older_wal_file.clone(),
        ..base
    }
}

/// The part of a record whose change is told at once.
fn essence(info: &KeeperInfo) -> KeeperInfo {
    let mut info = info.clone();
    // A standby whose stream broke has come to rest: where, is worth telling.
    let rests = info.upstream.as_ref().is_some_and(|upstream| !upstream.receiving);
    if let Some(state) = &mut info.postgres_state {
        state.xlog_pos = if rests { state.xlog_pos } else { 0 };
        state.older_wal_file.clear();
    }
    info
}

/// Takes the record out of the store.
async fn retire(lease: KeptLease) {
    if let Err(error) = lease.revoke().await {
        warn!(%error, "the keeper's record stays in the store until its lease expires");
    }
}

/// When a record is due, given the one that was put last (and when).
fn due(last: Option<&(KeeperInfo, u64, Instant)>, info: &KeeperInfo, facts: &Facts) -> Option<Instant> {
    let Some((put, rewrites, at)) = last else { return Some(Instant::now()) };
    if essence(put) != essence(info) {
        return Some(*at);
    }
    let position = (put != info).then(|| *at + facts.sleep_interval);
    // Half: the answer to a rewrite that comes a little early must not be left out.
    let answer = (*rewrites != facts.rewrites).then(|| *at + facts.sleep_interval / 2);
    [position, answer].into_iter().flatten().min()
}

/// What becomes of the record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tenure {
    /// It is kept up to date.
    #[default]
    Kept,
    /// It is left to a successor, for [`ABSENCE`].
    Left,
    /// It vanishes.
    Ended,
}

/// Everything the publisher works with.
#[derive(Debug)]
pub struct Publisher {
    /// Store.
    pub store: SharedStore,
    /// State of the disk. Its sender lives as long as the keeper.
    pub disk: watch::Receiver<Disk>,
    /// The keeper's work hangs. Its sender lives as long as the keeper.
    pub hangs: watch::Receiver<bool>,
    /// Why a standby receives nothing.
    pub stream: watch::Receiver<Option<String>>,
    /// The record's key.
    pub key: String,
    /// Constants.
    pub identity: Identity,
    /// From the state machine.
    pub facts: watch::Receiver<Facts>,
    /// From the probe.
    pub probed: watch::Receiver<Probed>,
    /// From the watch on the followed server.
    pub upstream: watch::Receiver<Option<Upstream>>,
    /// Where a sentinel asks for a sign of life.
    pub challenge_key: String,
    /// Where another keeper complains that it has the same uid.
    pub twin_key: String,
    /// A live copy of these two keys.
    pub challenges: watch::Receiver<View>,
}

impl Publisher {
    /// Publishes for as long as the record is to be kept. A record that is to be left and can't be, because the store does
    /// not take it or there is none, is kept: then `tenure` is set back.
    pub async fn run(mut self, tenure: watch::Sender<Tenure>) {
        let mut wanted = tenure.subscribe();
        let mut ttl = lease_seconds(self.facts.borrow().fail_interval);
        let mut lease: Option<KeptLease> = None;
        let mut last: Option<(KeeperInfo, u64, Instant)> = None;
        let mut put_with: Option<LeaseId> = None;
        let (mut failing, mut taken) = (false, false);
        let mut record = Record::new(self.store.clone(), self.key.clone());
        while *wanted.borrow_and_update() != Tenure::Ended {
            if *wanted.borrow() == Tenure::Left {
                match self.leave(&mut record, last.as_ref().map(|(info, ..)| info)).await {
                    Ok(()) => return,
                    Err(why) => {
                        warn!("not leaving: {why}");
                        tenure.send_replace(Tenure::Kept);
                        continue;
                    }
                }
            }
            let disk = self.disk.borrow_and_update().clone();
            let facts = self.facts.borrow_and_update().clone();
            let twin = self.twin();
            let (info, fresh) = {
                let upstream = self.upstream.borrow_and_update().clone();
                let challenge = self.challenge();
                let probed = self.probed.borrow_and_update();
                let fresh = !probed.healthy || probed.acted >= facts.acted;
                let info = render(&self.identity, &facts, &probed, upstream, challenge.clone());
                let info = with_stream(info, self.stream.borrow_and_update().as_ref());
                // A challenge is answered even while a look is under way, but then with nothing else that is new: what
                // was seen before the machine's last action must not be told as its result.
                match last.as_ref().filter(|(put, ..)| !fresh && put.answered.as_ref() != Some(&challenge)) {
                    Some((put, ..)) => (KeeperInfo { answered: Some(challenge), ..put.clone() }, true),
                    None => {
                        let mut info = with_disk(info, &disk);
                        info.problems.extend(twin);
                        (info, fresh)
                    }
                }
            };
            let hangs = *self.hangs.borrow_and_update();
            if hangs && let Some(lease) = lease.take() {
                (last, put_with) = (None, None);
                retire(lease).await;
            }
            let wanted_ttl = lease_seconds(facts.fail_interval);
            if lease.is_some()
                && wanted_ttl != ttl
                && let Some(old) = lease.take()
            {
                // The record moves to the new lease first; the old one then expires without it.
                debug!(ttl = wanted_ttl, "the fail interval has changed, taking another lease");
                drop(old);
            }
            ttl = wanted_ttl;
            let mut wait = Duration::from_secs(3600);
            // A look is under way that will show what the machine's last action did.
            if !facts.cluster_uid.is_empty() && fresh && !hangs {
                let lease =
                    lease.get_or_insert_with(|| KeptLease::start(self.store.clone(), Duration::from_secs(ttl.into())));
                let id = lease.state().id;
                let when = if id == put_with { due(last.as_ref(), &info, &facts) } else { Some(Instant::now()) };
                match (id, when) {
                    (Some(id), Some(when)) if when <= Instant::now() => {
                        match record.put(&info, id).await {
                            Ok(Outcome::Taken(owner)) => {
                                if !std::mem::replace(&mut taken, true) {
                                    self.complain(&owner, id).await;
                                }
                            }
                            Ok(Outcome::Written) => {
                                if std::mem::take(&mut taken) {
                                    warn!("the other keeper with this uid is gone");
                                    let _ = self.store.delete(&self.twin_key).await;
                                }
                                failing = false;
                                put_with = Some(id);
                                last = Some((info, facts.rewrites, Instant::now()));
                                continue;
                            }
                            Err(error) if failing => debug!(%error, "publish the keeper's state"),
                            Err(error) => {
                                warn!(%error, "publish the keeper's state");
                                failing = true;
                            }
                        }
                        wait = RETRY;
                    }
                    (Some(_), Some(when)) => wait = when - Instant::now(),
                    _ => {}
                }
            }
            let mut leases = lease.as_ref().map(KeptLease::subscribe);
            let known = lease.as_ref().and_then(|lease| lease.state().id);
            let new_lease = async {
                match &mut leases {
                    Some(leases) => {
                        let _ = leases.wait_for(|state| state.id != known).await;
                    }
                    None => std::future::pending().await,
                }
            };
            // All branches are cancel-safe: each re-reads its channel.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                result = self.facts.changed() => if result.is_err() { break },
                _ = self.probed.changed() => {}
                _ = self.disk.changed() => {}
                // Its task ends with PostgreSQL, before this one.
                Ok(()) = self.stream.changed() => {}
                _ = self.hangs.changed() => {}
                _ = self.upstream.changed() => {}
                _ = self.challenges.changed() => {}
                () = new_lease => {}
                _ = wanted.changed() => {}
            }
        }
        if let Some(lease) = lease {
            retire(lease).await;
        }
    }

    /// The last challenge, empty for none. A key that anybody could have written must not make the record grow.
    fn challenge(&mut self) -> String {
        let view = self.challenges.borrow_and_update();
        let text = view.value(&self.challenge_key).map(String::from_utf8_lossy).unwrap_or_default();
        text.chars().take(CHALLENGE_LENGTH).collect()
    }

    /// The record moves to a lease that nobody keeps alive.
    async fn leave(&self, record: &mut Record, last: Option<&KeeperInfo>) -> Result<(), String> {
        let last = last.ok_or("this keeper has no record in the store yet")?;
        let lease = self.store.grant(ABSENCE).await.map_err(|error| error.to_string())?;
        let seconds = u32::try_from(ABSENCE.as_secs()).ok();
        let info = KeeperInfo { lease_seconds: seconds, ..last.clone() };
        match record.put(&info, lease).await.map_err(|error| error.to_string())? {
            Outcome::Written => Ok(()),
            Outcome::Taken(owner) => Err(format!("the record belongs to another keeper, {owner}")),
        }
    }

    /// What another keeper with the same uid says, which is kept out.
    fn twin(&self) -> Option<Problem> {
        let view = self.challenges.borrow();
        let told = String::from_utf8_lossy(view.value(&self.twin_key)?);
        let told: String = told.chars().filter(|c| !c.is_control()).take(TWIN_LENGTH).collect();
        let text =
            format!("another keeper was started with this uid and is kept out; give each one its own --uid: {told}");
        Some(Problem { code: Problem::UID_IN_USE.to_owned(), text })
    }

    /// This keeper's uid is another one's. That one is told, for its record is what people look at.
    async fn complain(&self, owner: &str, lease: LeaseId) {
        let Identity { uid, address, port, .. } = &self.identity;
        error!(
            "keeper uid \"{uid}\" is used by another keeper, {owner}; nothing is done here until that one is gone: if this \
             host is a copy of another one, stop this keeper and give it a --uid and an empty --data-dir of its own"
        );
        let text = format!("its PostgreSQL would be at {address}:{port}");
        if let Err(error) = self.store.put(&self.twin_key, text.as_bytes(), Some(lease)).await {
            debug!(%error, "complain to the other keeper");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use store::{Follower, Store as _, Target};

    #[test]
    fn the_lease_follows_the_fail_interval() {
        let of = |text: &str| lease_seconds(Some(text.parse().unwrap()));
        assert_eq!((of("0s"), of("2s"), of("2.1s"), of("5s"), of("20s"), of("1h")), (2, 2, 3, 5, 20, 20));
        assert_eq!(lease_seconds(None), 20);
    }

    #[tokio::test]
    async fn positions_wait_and_news_do_not() {
        let now = Instant::now();
        let facts = Facts { sleep_interval: Duration::from_secs(5), ..Default::default() };
        let info = |lsn, generation| KeeperInfo {
            postgres_state: Some(PostgresState { xlog_pos: lsn, generation, ..Default::default() }),
            ..Default::default()
        };
        let last = (info(1, 1), 0, now);
        assert_eq!(due(Some(&last), &info(1, 1), &facts), None);
        assert_eq!(due(Some(&last), &info(2, 1), &facts), Some(now + Duration::from_secs(5)));
        assert_eq!(due(Some(&last), &info(1, 2), &facts), Some(now));
        let rewritten = Facts { rewrites: 1, ..facts };
        assert_eq!(due(Some(&last), &info(1, 1), &rewritten), Some(now + Duration::from_millis(2500)));
        assert!(due(None, &info(1, 1), &rewritten).is_some());
    }

    fn identity() -> Identity {
        Identity {
            uid: "k1".into(),
            boot_uuid: "b".into(),
            place: "p".into(),
            version: PostgresBinaryVersion::default(),
            priority: None,
            can_be_master: true,
            can_be_synchronous_replica: true,
            address: "127.0.0.1".into(),
            port: "5432".into(),
        }
    }

    #[tokio::test]
    async fn the_record_goes_while_the_work_hangs_and_comes_back() {
        let store = Arc::new(store::MemoryStore::new());
        let challenges = Follower::start(store.clone(), vec![Target::Key("challenge".into())]);
        let facts = watch::channel(Facts { cluster_uid: "c".into(), ..Default::default() });
        let (disk, probed) = (watch::channel(Disk::default()), watch::channel(Probed::default()));
        let (upstream, hangs, tenure) = (watch::channel(None), watch::channel(false), watch::Sender::default());
        let publisher = Publisher {
            store: store.clone(),
            disk: disk.1,
            stream: watch::channel(None).1,
            hangs: hangs.1,
            key: "k".into(),
            identity: identity(),
            facts: facts.1,
            probed: probed.1,
            upstream: upstream.1,
            challenge_key: "challenge".into(),
            twin_key: "twin".into(),
            challenges: challenges.subscribe(),
        };
        let follower = Follower::start(store.clone(), vec![Target::Key("k".into())]);
        let mut records = follower.subscribe();
        let publishing = tokio::spawn(publisher.run(tenure.clone()));
        let mut wait = async |there: bool| {
            let _ = records.wait_for(|view| view.value("k").is_some() == there).await.unwrap();
        };
        wait(true).await;
        hangs.0.send_replace(true);
        wait(false).await;
        // News don't bring it back.
        facts.0.send_modify(|facts| facts.acted = 1);
        store.put("challenge", b"x", None).await.unwrap();
        tokio::task::yield_now().await;
        assert!(store.get("k").await.unwrap().is_none());
        hangs.0.send_replace(false);
        wait(true).await;
        tenure.send_replace(Tenure::Ended);
        publishing.await.unwrap();
        assert!(store.get("k").await.unwrap().is_none());
    }
}
