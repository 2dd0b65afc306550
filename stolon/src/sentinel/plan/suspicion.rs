//! The master's server is gone: known before its keeper's lease ends.
//!
//! A lease says that a keeper was silent for two seconds at least. Three things together say sooner that a host's
//! keeper and its PostgreSQL were killed:
//!
//! 1. Every synchronous standby that watches the master has lost its stream and is refused when it connects.
//! 2. This sentinel is refused too.
//! 3. The master's keeper, asked for a sign of life through the store, gives none for a moment.
//!
//! None of them alone means anything. A keeper that restarts its PostgreSQL answers. So does one behind a firewall that
//! refuses, for whose sake nobody must fail over. A host that is cut off refuses nothing: the lease decides, as before.
//! And what follows is an ordinary failover with all its fences: a mistake here costs a moment of service, no data.

use super::memory::{Memory, info_of};
use super::{Observed, Reason, mix};
use model::stolon::{ClusterData, ClusterPhase, Db, KeeperInfo, Role};
use model::{DbUid, KeeperUid};
use std::time::Duration;

/// How long the keeper may take for a sign of life, from the moment it was asked and connections were refused. A keeper
/// that lives takes about 10 ms.
const PATIENCE: Duration = Duration::from_millis(400);
/// When a keeper has answered once it is known to live: it may be busy restarting its PostgreSQL.
const LATER_PATIENCE: Duration = Duration::from_secs(1);
/// A store that takes long for the question takes long for the answer too.
const STORE_ROUNDS: u32 = 3;
/// A refusal counts as present for so long; attempts have to come more often.
pub const PRESENT: Duration = Duration::from_millis(600);
/// Pause after a sign of life before the keeper is asked again; doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Doublings of the pause: a minute at most. A firewall may refuse for days.
const MAX_DOUBLINGS: u32 = 7;

/// What the sentinel is to find out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inquiry {
    /// What to ask the keeper with: new for each question.
    pub token: String,
    /// The keeper to ask.
    pub keeper: KeeperUid,
    /// Where its server listens, to be tried again and again.
    pub host: String,
    /// The port there.
    pub port: u16,
}

/// What it has found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inquired {
    /// The question's.
    pub token: String,
    /// When the store had taken the question, and how long that took.
    pub asked: Option<(Duration, Duration)>,
    /// Connections are refused: since when, and when the last time. `None`: the last attempt said something else.
    pub refused: Option<(Duration, Duration)>,
}

/// A question under way.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Suspicion {
    db: DbUid,
    keeper: KeeperUid,
    token: String,
    /// The keeper's record when it was asked.
    record: String,
    /// Answers so far.
    answers: u32,
    /// It has answered, and is left alone until then.
    rest_until: Option<Duration>,
}

/// The outcome.
pub(super) struct Weighed {
    pub(super) memory: Memory,
    pub(super) inquiry: Option<Inquiry>,
    pub(super) wake: Option<Duration>,
    pub(super) reasons: Vec<Reason>,
}

/// Weighs the signs that there are now.
pub(super) fn weigh(now: Duration, data: &ClusterData, observed: &Observed, memory: &Memory) -> Weighed {
    let mut weighed = Weighed { memory: memory.clone(), inquiry: None, wake: None, reasons: Vec::new() };
    let old = weighed.memory.suspicion.take();
    let Some(suspect) = Suspect::find(data, observed, memory) else { return weighed };
    let old = old.filter(|old| old.db == suspect.db.uid && old.keeper == suspect.info.uid);
    let mut suspicion = old.unwrap_or_else(|| suspect.ask(observed.seed, 0));
    suspicion.take_answer(&suspect.info.info_uid, now);
    match suspicion.rest_until {
        Some(until) if now < until => {
            weighed.wake = Some(until);
            weighed.memory.suspicion = Some(suspicion);
            return weighed;
        }
        Some(_) => suspicion = suspect.ask(observed.seed, suspicion.answers),
        None => {}
    }
    let inquired = observed.inquired.as_ref().filter(|inquired| inquired.token == suspicion.token);
    match inquired.and_then(|inquired| suspicion.due(inquired, now)) {
        Some(due) if due <= now => {
            weighed.memory.condemned = Some((suspicion.keeper, suspicion.record));
            return weighed;
        }
        due => weighed.wake = due,
    }
    weighed.reasons.push(Reason::MasterSuspected(suspicion.db.clone(), suspicion.keeper.clone()));
    weighed.inquiry = Some(suspect.inquiry(suspicion.token.clone()));
    weighed.memory.suspicion = Some(suspicion);
    weighed
}

impl Suspicion {
    /// Any record that was written since the question is a sign of life.
    fn take_answer(&mut self, record: &str, now: Duration) {
        if self.record != record && self.rest_until.is_none() {
            let pause = FIRST_PAUSE * 2_u32.pow(self.answers.min(MAX_DOUBLINGS));
            self.answers = self.answers.saturating_add(1);
            self.rest_until = Some(now + pause);
        }
    }

    /// When the keeper has been silent for long enough; `None` while nothing may be concluded from silence.
    fn due(&self, inquired: &Inquired, now: Duration) -> Option<Duration> {
        let (asked, took) = inquired.asked?;
        let (since, _) = inquired.refused.filter(|(_, last)| now <= *last + PRESENT)?;
        let patience = if self.answers == 0 { PATIENCE } else { LATER_PATIENCE };
        Some(asked.max(since) + patience + took.saturating_mul(STORE_ROUNDS))
    }
}

/// A master that its standbys miss, and whose keeper can be asked.
struct Suspect<'a> {
    db: &'a Db,
    info: &'a KeeperInfo,
    host: &'a str,
    port: u16,
}

impl<'a> Suspect<'a> {
    fn find(data: &'a ClusterData, observed: &'a Observed, memory: &Memory) -> Option<Self> {
        if data.cluster.status.phase != Some(ClusterPhase::Normal) {
            return None;
        }
        // A master with the role of a standby is being handed over: its server stops because it was told to. Should its
        // keeper die then, the switch gives up in time, and the lease decides.
        let db = data.dbs.get(&data.cluster.status.master).filter(|db| db.spec.role == Some(Role::Master))?;
        // Go's keepers have no such member: nothing can be asked of them.
        let info = info_of(data, observed, &db.spec.keeper_uid).filter(|info| info.answered.is_some())?;
        if memory.condemned.as_ref().is_some_and(|(_, record)| *record == info.info_uid) {
            return None;
        }
        let (host, port) = (db.status.listen_address.as_str(), db.status.port.parse().ok()?);
        let missed = is_missed(data, observed, db);
        (missed && !host.is_empty()).then_some(Suspect { db, info, host, port })
    }

    fn ask(&self, seed: u64, answers: u32) -> Suspicion {
        // Apart from the numbers that make uids.
        let token = format!("{:08x}{:08x}", mix(!seed, u64::from(answers)), mix(!seed, u64::from(answers) + (1 << 32)));
        Suspicion {
            db: self.db.uid.clone(),
            keeper: self.info.uid.clone(),
            token,
            record: self.info.info_uid.clone(),
            answers,
            rest_until: None,
        }
    }

    fn inquiry(&self, token: String) -> Inquiry {
        Inquiry { token, keeper: self.info.uid.clone(), host: self.host.to_owned(), port: self.port }
    }
}

/// Standbys that follow this very db, and have received from it, say that it is gone: all of those that commits wait
/// for, and at least one. One that still receives proves the opposite. Without synchronous replication all followers
/// count alike. A standby that is dead itself says nothing until its record goes; then the others decide.
fn is_missed(data: &ClusterData, observed: &Observed, master: &Db) -> bool {
    let counts = |db: &&Db| {
        let waited_for = || master.spec.synchronous_standbys.iter().flatten().any(|uid| *uid == db.uid);
        db.uid != master.uid && (!master.spec.synchronous_replication || waited_for())
    };
    let infos = data.dbs.values().filter(counts).filter_map(|db| info_of(data, observed, &db.spec.keeper_uid));
    let mut words =
        infos.filter_map(|info| info.upstream.as_ref()).filter(|upstream| upstream.db == master.uid).peekable();
    words.peek().is_some() && words.all(|upstream| upstream.refused)
}
