//! A clean switch of a healthy master to a keeper with higher priority, or to the one that an operator asks for,
//! without losing a commit:
//!
//! 1. Proxies are closed, so that no new commits come; all of them confirm.
//! 2. The master's generation counts up without a change. A report of that generation was made after the proxies
//!    closed, so its position covers every commit that a client was told of.
//! 3. The candidate reports that position, or a later one. Then it is appointed like in any election.
//!
//! If both keepers can, the master makes a checkpoint before 1, and is handed over instead of 2: its role becomes standby,
//! its keeper stops PostgreSQL cleanly, which sends everything to the standbys before it ends, and tells where its last
//! record is. Meanwhile the candidate gets ready to be master, and tells what it has when the stream ends. A candidate that
//! has the last record continues where the master ended, so that the old master follows it at once, without being rewound
//! or copied. It is started before the candidate is promoted, and goes through its promotion like the other standbys.
//!
//! Whatever goes wrong, and when the leading sentinel dies in the middle: cluster data then says that the
//! master stays and the proxies are closed. Every sentinel gives it its role back, and opens them again.

use super::memory::{info_of, state_of};
use super::reason::list;
use super::restart::Restarts;
use super::{Planner, Reason, mix};
use model::DbUid;
use model::stolon::ext::{Phase, Work};
use model::stolon::{ClusterRole, Db, FollowConfig, Role};
use std::cmp::Reverse;
use std::time::Duration;

/// The candidate must have been ready without a break for so long.
const HYSTERESIS: Duration = Duration::from_secs(2);
/// The master may take so long for a checkpoint before it is stopped; clients work meanwhile.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(60);
/// Clients are cut off for no longer than this while proxies confirm.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// Clients are cut off for no longer than this while the candidate catches up.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(5);
/// Clients are cut off for no longer than this while the master stops.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(10);
/// A keeper looks at its instance once a second at least, so a report that is asked for so long after the proxies
/// closed rests on a look that was made after it. A member of the synchronous set has every commit anyway.
const LOOK_INTERVAL: Duration = Duration::from_millis(1500);
/// Go's keepers react after up to a sleep interval for each of: seeing, probing, publishing.
const GO_ROUND: u32 = 3;
/// A candidate whose keeper tells its position by itself is asked for it only after so long.
const ASK_FIRST: Duration = Duration::from_millis(100);
/// Pause before the candidate is asked for its position again.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// Every attempt cuts clients off, so after a failed one there is a pause, which doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// Doublings of the pause: 16 minutes at most.
const MAX_DOUBLINGS: u32 = 5;
/// Streams in well under a second, so the interruption stays short.
pub(super) const MAX_LAG: u64 = 16 << 20;

/// What is remembered about switches.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SwitchMemory {
    /// The candidate, and since when it is ready.
    preferred: Option<(DbUid, Duration)>,
    preparing: Option<Preparing>,
    running: Option<Switch>,
    /// Failed attempts, and when the next one may begin.
    failures: (u32, Duration),
    /// A master that was stopped to be handed over and does not serve again yet, and since when.
    pub(super) stopped: Option<(DbUid, Duration)>,
}

/// The master's keeper makes a checkpoint.
#[derive(Clone, Debug, PartialEq)]
struct Preparing {
    from: DbUid,
    to: DbUid,
    /// Name of the order.
    order: String,
    since: Duration,
}

#[derive(Clone, Debug, PartialEq)]
struct Switch {
    from: DbUid,
    to: DbUid,
    /// The operator's request that it serves.
    request: Option<String>,
    /// Generation with which the proxies were closed.
    proxy_generation: i64,
    started: Duration,
    stage: Stage,
}

#[derive(Clone, Debug, PartialEq)]
enum Stage {
    Closing,
    /// Waiting for the master's keeper to have stopped it.
    HandOver {
        since: Duration,
    },
    /// Waiting for a report of the master with this generation.
    Position {
        generation: i64,
        since: Duration,
    },
    /// Waiting for the candidate to reach the position; when it was asked last.
    CatchUp {
        target: u64,
        since: Duration,
        asked: Option<Duration>,
    },
}

/// What becomes of the master.
#[derive(Debug)]
pub(super) enum Switching {
    /// It stays.
    None,
    /// It is being replaced; leave everything as it is.
    Hold,
    /// The other one becomes master now.
    Appoint(DbUid),
}

impl Planner<'_> {
    pub(super) fn forget_switch(&mut self) {
        self.memory.switch.running = None;
        self.memory.switch.preferred = None;
        self.memory.switch.preparing = None;
    }

    /// The next step of a switch, or the beginning of one.
    pub(super) fn switch_cleanly(&mut self, master: &DbUid, restarts: &Restarts) -> Switching {
        if let Some(switch) = self.memory.switch.running.take() {
            let proxy = &self.data.proxy;
            if switch.from == *master
                && proxy.spec.master_db_uid.is_empty()
                && proxy.generation == switch.proxy_generation
            {
                if switch.request.is_some() && switch.request != self.request_id() {
                    return self.abandon(&switch, "it is no longer asked for".to_owned());
                }
                return self.advance(switch);
            }
        }
        let to = match restarts {
            Restarts::MoveTo(to) => Some(to.clone()),
            Restarts::Going => None,
            Restarts::None if self.switchover_to().is_some() => self.asked_for(master),
            Restarts::None => self.preferred_for_long(master),
        };
        let preparing = self.memory.switch.preparing.take();
        let Some(to) = to else { return Switching::None };
        if !self.is_prepared(master, &to, preparing) {
            return Switching::None;
        }
        self.say(Reason::SwitchBegins { from: master.clone(), to: to.clone() });
        self.note_step("proxies are closed");
        self.close_proxies();
        self.memory.switch.running = Some(Switch {
            from: master.clone(),
            to,
            request: self.request_id(),
            proxy_generation: self.data.proxy.generation,
            started: self.now.clock,
            stage: Stage::Closing,
        });
        Switching::Hold
    }

    /// A master that is handed over is stopped, which takes as long as a checkpoint. So most of that is written while
    /// clients still work.
    fn is_prepared(&mut self, master: &DbUid, to: &DbUid, before: Option<Preparing>) -> bool {
        let takes_orders = |db: &Db| self.takes_orders(&db.spec.keeper_uid);
        let pays = self.can_hand_over(master) && self.can_hand_over(to) && self.db(master).is_some_and(takes_orders);
        if !pays {
            return true;
        }
        let preparing =
            before.filter(|before| before.from == *master && before.to == *to).unwrap_or_else(|| Preparing {
                from: master.clone(),
                to: to.clone(),
                order: format!("checkpoint-{:08x}", mix(!self.observed.seed, 1)),
                since: self.now.clock,
            });
        if self.order(master, Work::Checkpoint, &preparing.order) {
            return true;
        }
        if self.passed(preparing.since, CHECKPOINT_LIMIT) {
            self.orders.clear();
            self.say(Reason::SwitchWithoutCheckpoint(master.clone()));
            self.note_step(
                "the master's checkpoint takes long, the switch begins without it: writes may wait for longer",
            );
            return true;
        }
        self.say(Reason::SwitchCheckpoint(master.clone()));
        self.note_step("the master makes a checkpoint, so that it can be stopped fast; clients still work");
        self.memory.switch.preparing = Some(preparing);
        false
    }

    /// The standby that an operator asks for, as soon as it could take over.
    fn asked_for(&mut self, master: &DbUid) -> Option<DbUid> {
        let keeper = self.switchover_to()?.clone();
        let to = self.data.db_of_keeper(&keeper)?.uid.clone();
        if to == *master {
            return None;
        }
        let obstacle = self.obstacle_to_switch(&to, master);
        if let Some(obstacle) = obstacle {
            self.note_step(&format!("waiting for db \"{to}\" of keeper \"{keeper}\": {obstacle}"));
            return None;
        }
        if !self.is_settled(master) {
            self.note_step("waiting for the master to be ready and for proxies to be open");
            return None;
        }
        Some(to)
    }

    /// The standby that was preferred and ready without a break for long enough.
    fn preferred_for_long(&mut self, master: &DbUid) -> Option<DbUid> {
        let Some(to) = self.preferred(master) else {
            self.memory.switch.preferred = None;
            return None;
        };
        let since = match &self.memory.switch.preferred {
            Some((uid, since)) if *uid == to => *since,
            _ => self.now.clock,
        };
        self.memory.switch.preferred = Some((to.clone(), since));
        let patient = self.passed(since, HYSTERESIS);
        (self.passed(self.memory.switch.failures.1, Duration::ZERO) && patient).then_some(to)
    }

    pub(super) fn is_switching(&self) -> bool {
        self.memory.switch.running.is_some()
    }

    /// Nothing else is going on with the master.
    pub(super) fn is_settled(&self, master: &DbUid) -> bool {
        self.data.proxy.spec.master_db_uid == *master
            && self.db(master).is_some_and(|db| db.converged() && self.reporting(db))
            && self.unconfirmed().is_empty()
    }

    /// The standby that should be master instead, if it could take over now.
    fn preferred(&mut self, master: &DbUid) -> Option<DbUid> {
        if !self.is_settled(master) {
            return None;
        }
        let least = self.db(master).map(|db| self.priority(db))?;
        let uids: Vec<DbUid> = self.data.dbs.keys().cloned().collect();
        let mut ready: Vec<DbUid> =
            uids.into_iter().filter(|uid| self.obstacle_to_switch(uid, master).is_none()).collect();
        ready.retain(|uid| self.db(uid).is_some_and(|db| self.priority(db) > least));
        ready.sort_by_key(|uid| Reverse(self.db(uid).map(|db| self.priority(db))));
        ready.into_iter().next()
    }

    fn advance(&mut self, mut switch: Switch) -> Switching {
        if let Some(obstacle) = self.obstacle_to_take_over(&switch.to, &switch.from) {
            return self.abandon(&switch, format!("the candidate is no longer ready: {obstacle}"));
        }
        loop {
            let next = match switch.stage.clone() {
                Stage::Closing => self.closing(&switch),
                Stage::HandOver { since } => self.hand_over(&switch, since),
                Stage::Position { generation, since } => self.position(&switch, generation, since),
                Stage::CatchUp { target, since, asked } => self.catch_up(&switch, target, since, asked),
            };
            match next {
                Next::Stage(stage) => switch.stage = stage,
                Next::Wait(stage) => {
                    switch.stage = stage;
                    self.memory.switch.running = Some(switch);
                    return Switching::Hold;
                }
                Next::Done => {
                    if self.can_hand_over(&switch.from) && self.can_hand_over(&switch.to) {
                        self.lead_others(&switch);
                    }
                    self.memory.switch.failures = (0, Duration::ZERO);
                    self.note_step("the new master has every commit and is promoted");
                    return Switching::Appoint(switch.to);
                }
                Next::GiveUp(why) => return self.abandon(&switch, why.to_owned()),
            }
        }
    }

    fn closing(&mut self, switch: &Switch) -> Next {
        let missing = self.unconfirmed();
        if missing.is_empty() && self.can_hand_over(&switch.from) && self.can_hand_over(&switch.to) {
            return Next::Stage(Stage::HandOver { since: self.now.clock });
        }
        if missing.is_empty() {
            let generation = self.before.dbs.get(&switch.from).map_or(0, |db| db.generation) + 1;
            return Next::Stage(Stage::Position { generation, since: self.now.clock });
        }
        if self.passed(switch.started, CLOSE_LIMIT) {
            return Next::GiveUp("proxies did not confirm in time that they are closed");
        }
        self.say(Reason::WaitForProxies(list(&missing)));
        Next::Wait(Stage::Closing)
    }

    fn can_hand_over(&self, uid: &DbUid) -> bool {
        let info = self.db(uid).and_then(|db| info_of(&self.data, self.observed, &db.spec.keeper_uid));
        // A standby cluster's master follows a server outside: there is nothing to hand over.
        info.is_some_and(|info| info.handed_over.is_some()) && self.spec.role == ClusterRole::Master
    }

    fn hand_over(&mut self, switch: &Switch, since: Duration) -> Next {
        let Some(db) = self.data.dbs.get_mut(&switch.from) else { return Next::GiveUp("the master is gone") };
        db.spec.role = Some(Role::Standby);
        db.spec.follow_config = Some(FollowConfig::internal(switch.to.clone()));
        let keeper = db.spec.keeper_uid.clone();
        let handed_over = info_of(&self.data, self.observed, &keeper).and_then(|info| info.handed_over.as_ref());
        if let Some(done) = handed_over.filter(|done| done.db == switch.from) {
            // The position is where the last record begins: the candidate must have more than that.
            let target = done.xlog_pos.saturating_add(1);
            return Next::Stage(Stage::CatchUp { target, since: self.now.clock, asked: None });
        }
        if self.passed(since, HAND_OVER_LIMIT) {
            return Next::GiveUp("the master did not stop in time");
        }
        self.successor = Some((switch.from.clone(), switch.to.clone()));
        self.say(Reason::SwitchHandOver(switch.from.clone()));
        Next::Wait(Stage::HandOver { since })
    }

    /// While the master stops, its successor gets ready: commits will wait for the right standbys from the first one on,
    /// and everybody finds a slot there. None of it has an effect before it is promoted.
    pub(super) fn prepare_successor(&mut self) {
        let Some((from, to)) = self.successor.take() else { return };
        let (standbys, others) = self.inherited_set(&from, &to);
        // Not as followers: who prints the tree of followers would go round in a circle.
        let slots: Vec<String> = self.data.dbs.keys().filter(|uid| **uid != to).map(ToString::to_string).collect();
        if let Some(db) = self.data.dbs.get_mut(&to) {
            db.spec.synchronous_replication = standbys.is_some();
            db.spec.synchronous_standbys = standbys;
            db.spec.external_synchronous_standbys = others;
            db.spec.additional_replication_slots = Some(slots);
        }
    }

    /// All standbys follow the new master at once, through its promotion. Go's keepers come when it is done.
    fn lead_others(&mut self, switch: &Switch) {
        let others = self.data.dbs.values().filter(|db| db.uid != switch.to && db.uid != switch.from);
        let others = others.filter(|db| !db.is_master_type() && self.takes_orders(&db.spec.keeper_uid));
        for uid in others.map(|db| db.uid.clone()).collect::<Vec<_>>() {
            if let Some(db) = self.data.dbs.get_mut(&uid) {
                db.spec.follow_config = Some(FollowConfig::internal(switch.to.clone()));
            }
        }
    }

    fn position(&mut self, switch: &Switch, generation: i64, since: Duration) -> Next {
        let Some(db) = self.db(&switch.from) else { return Next::GiveUp("the master is gone") };
        let (wanted, synchronous) = (db.generation, db.spec.synchronous_replication);
        let state = state_of(&self.data, self.observed, db).filter(|state| state.healthy);
        let position = state.filter(|state| state.generation >= generation).map(|state| state.xlog_pos);
        let settled = synchronous || self.passed(since, LOOK_INTERVAL);
        if let Some(target) = position.filter(|_| settled) {
            return Next::Stage(Stage::CatchUp { target, since: self.now.clock, asked: None });
        }
        // Asked for again when a write got lost, and when someone else counted the generation up too early.
        let mut generation = generation;
        if settled && wanted < generation {
            self.barriers.insert(switch.from.clone());
        } else if !settled {
            generation = generation.max(wanted + 1);
        }
        if self.passed(since, self.patience(switch)) {
            return Next::GiveUp("the master did not report its last position in time");
        }
        self.say(Reason::SwitchMasterPosition(switch.from.clone()));
        Next::Wait(Stage::Position { generation, since })
    }

    fn catch_up(&mut self, switch: &Switch, target: u64, since: Duration, asked: Option<Duration>) -> Next {
        let Some(db) = self.db(&switch.to) else { return Next::GiveUp("the candidate is gone") };
        let state = state_of(&self.data, self.observed, db).filter(|state| state.healthy);
        if state.is_some_and(|state| state.xlog_pos >= target) {
            return Next::Done;
        }
        let converged = db.converged();
        if self.passed(since, self.patience(switch)) {
            return Next::GiveUp("the candidate did not catch up in time");
        }
        let mut asked = asked;
        self.successor = Some((switch.from.clone(), switch.to.clone()));
        // A keeper reports at once when it has applied a generation, and when the master's end broke the stream; otherwise
        // perhaps only seconds later.
        let patient = self.can_hand_over(&switch.to) && !self.passed(since, ASK_FIRST);
        if !patient && converged && asked.is_none_or(|asked| self.passed(asked, ASK_AGAIN)) {
            self.barriers.insert(switch.to.clone());
            asked = Some(self.now.clock);
        }
        self.say(Reason::SwitchCatchUp(switch.to.clone(), target));
        Next::Wait(Stage::CatchUp { target, since, asked })
    }

    fn patience(&self, switch: &Switch) -> Duration {
        let ours = [&switch.from, &switch.to].into_iter().all(|uid| {
            let info = self.db(uid).and_then(|db| info_of(&self.data, self.observed, &db.spec.keeper_uid));
            info.is_some_and(|info| info.lease_seconds.is_some())
        });
        let go = self.spec.sleep_interval.to_std().saturating_mul(GO_ROUND);
        if ours { CATCH_UP_LIMIT } else { CATCH_UP_LIMIT.saturating_add(go) }
    }

    /// The master stays. Proxies that have not confirmed still forward to this same master, so they need not be
    /// waited for before all are opened again.
    fn abandon(&mut self, switch: &Switch, why: String) -> Switching {
        let mut failures = self.memory.switch.failures;
        if switch.request.is_none() {
            let pause = FIRST_PAUSE * 2_u32.pow(failures.0.min(MAX_DOUBLINGS));
            failures = (failures.0 + 1, self.now.clock + pause);
        } else if switch.request == self.request_id() {
            self.end_request(Phase::Failed, &format!("given up: {why}; the master stays and proxies are opened again"));
        }
        let stopped = self.memory.switch.stopped.take();
        self.memory.switch = SwitchMemory { failures, stopped, ..Default::default() };
        self.say(Reason::SwitchAbandoned { to: switch.to.clone(), why });
        if self.db(&switch.from).is_some_and(|db: &Db| db.status.healthy && db.is_master_type()) {
            self.open_proxies(&switch.from);
        }
        Switching::None
    }
}

enum Next {
    /// Look at this stage at once.
    Stage(Stage),
    /// Wait in this stage.
    Wait(Stage),
    Done,
    GiveUp(&'static str),
}
