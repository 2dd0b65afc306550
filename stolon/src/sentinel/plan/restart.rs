//! Restarts of PostgreSQL in order, for parameters that need one: standbys one after the other, each waited for until it
//! receives again and, if commits wait for it, is in sync again; the master last.
//!
//! For an operator who asks for it the master is moved to a standby by a clean switch, which restarts it on the way. With
//! `automaticPgRestart` it stays where it is, as with Go's programs, whose keepers restart all at once; ours are told to
//! wait for their turn. How far a request is stands in its progress, so that another sentinel goes on with it.

use super::memory::info_of;
use super::{Planner, Reason, mix};
use model::stolon::ext::{Action, Phase, Restart, Work};
use model::stolon::{ClusterRole, Db, KeeperInfo, Problem};
use model::{DbUid, KeeperUid};
use std::cmp::Reverse;
use std::time::Duration;

/// A keeper may take so long for two checkpoints, the stop and the start.
const KEEPER_LIMIT: Duration = Duration::from_secs(600);
/// Parameters that wait for a restart right after one: something is wrong, and more restarts hardly help.
const AUTOMATIC_PAUSE: Duration = Duration::from_secs(60);

/// What is remembered about restarts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct RestartMemory {
    /// The keeper that restarts now, and since when.
    running: Option<(KeeperUid, Duration)>,
    /// The automatic restart that was ordered last for each keeper, and when.
    automatic: std::collections::BTreeMap<KeeperUid, (String, Duration)>,
}

/// What restarts mean for the master.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Restarts {
    /// Nothing.
    None,
    /// It stays while they go on.
    Going,
    /// It is to be moved to this db, so that it can be restarted.
    MoveTo(DbUid),
}

impl Planner<'_> {
    fn restart_asked(&self) -> Option<Restart> {
        match self.request.as_ref()?.action.as_ref()? {
            Action::Restart(restart) => Some(restart.clone()),
            Action::Switchover(_) | Action::Elect(_) => None,
        }
    }

    pub(super) fn is_restart_asked(&self) -> bool {
        self.restart_asked().is_some()
    }

    /// Keepers that would restart by themselves wait for their turn, whatever else is going on.
    pub(super) fn hold_restarts(&mut self) {
        if !self.spec.automatic_pg_restart {
            return;
        }
        let pending: Vec<DbUid> =
            self.data.dbs.values().filter(|db| self.is_pending(db)).map(|db| db.uid.clone()).collect();
        for uid in pending {
            self.order(&uid, Work::WaitWithRestart, "wait");
        }
    }

    /// The next restart, if there is one to do.
    pub(super) fn restart_in_order(&mut self, master: &DbUid) -> Restarts {
        let asked = self.restart_asked();
        if asked.is_none() && !self.spec.automatic_pg_restart {
            return Restarts::None;
        }
        let restart = asked.clone().unwrap_or(Restart { all: false, in_place: true });
        self.note_obeyed();
        let running = self.memory.restart.running.take();
        let mut targets = self.targets(&restart, master, asked.is_some());
        if let Some((keeper, since)) = running {
            if let Some(target) = targets.iter().find(|uid| self.data.dbs[*uid].spec.keeper_uid == keeper).cloned() {
                return self.go_on(&target, keeper, since, asked.is_some());
            }
            if asked.is_some() && !self.has_restarted(&keeper) && !self.is_heard(&keeper) {
                self.end_request(
                    Phase::Failed,
                    &format!("keeper \"{keeper}\" went away while it restarted PostgreSQL; the rest is left as it is"),
                );
                return Restarts::None;
            }
        }
        // One that a sentinel before this one has begun with.
        if let Some(target) = targets.iter().find(|uid| self.is_ordered(uid)).cloned() {
            let keeper = self.data.dbs[&target].spec.keeper_uid.clone();
            return self.go_on(&target, keeper, self.now.clock, asked.is_some());
        }
        if asked.is_none() {
            targets.retain(|uid| self.is_rested(uid));
            if targets.is_empty() {
                return Restarts::None;
            }
        }
        if let Some(why) = self.unsettled(master) {
            self.say(Reason::RestartWaits(why.clone()));
            self.note_step(&format!("waiting: {why}"));
            return Restarts::Going;
        }
        match targets.first() {
            Some(target) if target == master => self.restart_master(master, &restart, asked.is_some()),
            Some(target) => self.begin_restart(&target.clone(), asked.is_some()),
            None => {
                self.finish_restarts();
                Restarts::None
            }
        }
    }

    fn restart_master(&mut self, master: &DbUid, restart: &Restart, asked: bool) -> Restarts {
        let healthy = |db: &&Db| db.uid != *master && self.keeper_of(db).is_some_and(|keeper| keeper.status.healthy);
        let alone = !self.data.dbs.values().any(|db| healthy(&db));
        let lowers = self.db(master).is_some_and(|db| self.tells(db, Problem::RESTART_LOWERS));
        if restart.in_place || lowers || alone || self.spec.role == ClusterRole::Standby {
            return self.begin_restart(master, asked);
        }
        let (mut able, mut obstacles) = (Vec::new(), Vec::new());
        for uid in self.data.dbs.keys().filter(|uid| *uid != master).cloned().collect::<Vec<_>>() {
            match self.obstacle_to_switch(&uid, master) {
                None => able.push(uid),
                Some(obstacle) => obstacles.push(format!("db \"{uid}\": {obstacle}")),
            }
        }
        // Not by position, which changes all the time.
        able.sort_by_key(|uid| Reverse(self.db(uid).map(|db| self.priority(db))));
        match able.into_iter().next() {
            Some(to) => {
                let keeper = self.data.dbs[&to].spec.keeper_uid.clone();
                self.note_step(&format!("moving the master to keeper \"{keeper}\", which restarts the old one"));
                Restarts::MoveTo(to)
            }
            None => {
                let why = obstacles.join("; ");
                self.note_step(&format!(
                    "no standby can take the master over now ({why}); `--in-place` restarts it where it is"
                ));
                Restarts::Going
            }
        }
    }

    /// It was not restarted automatically a moment ago.
    fn is_rested(&mut self, db: &DbUid) -> bool {
        let last = self.db(db).and_then(|db| self.memory.restart.automatic.get(&db.spec.keeper_uid));
        let last = last.map(|(_, at)| *at);
        last.is_none_or(|at| self.passed(at, AUTOMATIC_PAUSE))
    }

    fn begin_restart(&mut self, db: &DbUid, asked: bool) -> Restarts {
        let keeper = self.data.dbs[db].spec.keeper_uid.clone();
        let role = if *db == self.data.cluster.status.master { "master" } else { "standby" };
        self.note_step(&format!("restarting the {role} of keeper \"{keeper}\""));
        self.say(Reason::Restarting(db.clone(), keeper.clone()));
        let moment = u64::try_from(self.now.clock.as_millis()).unwrap_or_default();
        let token = format!("automatic-{:08x}", mix(!self.observed.seed, moment));
        self.memory.restart.automatic.insert(keeper.clone(), (token, self.now.clock));
        self.go_on(db, keeper, self.now.clock, asked)
    }

    /// Waits until it has restarted.
    fn go_on(&mut self, db: &DbUid, keeper: KeeperUid, since: Duration, asked: bool) -> Restarts {
        let name = match (&self.request, asked) {
            (Some(request), true) => request.id.clone(),
            _ => self.automatic_name(db, &keeper),
        };
        if self.passed(since, KEEPER_LIMIT) && asked {
            let limit = KEEPER_LIMIT.as_secs() / 60;
            self.end_request(
                Phase::Failed,
                &format!(
                    "keeper \"{keeper}\" did not restart PostgreSQL within {limit} minutes; the rest is left as it is"
                ),
            );
            return Restarts::None;
        }
        if self.order(db, Work::Restart, &name) {
            // An automatic one: the parameters that wait now changed after it.
            return Restarts::None;
        }
        self.memory.restart.running = Some((keeper, since));
        Restarts::Going
    }

    /// The name of the order that is under way.
    fn automatic_name(&self, db: &DbUid, keeper: &KeeperUid) -> String {
        let stored = self.observed.orders.get(keeper).filter(|_| self.is_ordered(db));
        let stored = stored.and_then(|order| order.id.rsplit_once(':')).map(|(name, _)| name.to_owned());
        let remembered = self.memory.restart.automatic.get(keeper).map(|(name, _)| name.clone());
        stored.or(remembered).unwrap_or_default()
    }

    /// Its keeper was told to restart it, and has not done so yet.
    fn is_ordered(&self, uid: &DbUid) -> bool {
        let Some(info) = self.db(uid).and_then(|db| self.info(db)) else { return false };
        self.observed.orders.get(&info.uid).is_some_and(|order| {
            order.work == Some(Work::Restart)
                && order.db == *uid
                && order.boot_uuid == info.boot_uuid
                && info.obeyed.as_ref() != Some(&order.id)
        })
    }

    fn info(&self, db: &Db) -> Option<&KeeperInfo> {
        info_of(&self.data, self.observed, &db.spec.keeper_uid)
    }

    fn is_heard(&self, keeper: &KeeperUid) -> bool {
        info_of(&self.data, self.observed, keeper).is_some()
    }

    fn is_pending(&self, db: &Db) -> bool {
        self.tells(db, Problem::RESTART_PENDING)
    }

    fn tells(&self, db: &Db, code: &str) -> bool {
        let info = self.info(db).filter(|info| info.obeyed.is_some());
        info.is_some_and(|info| info.problems.iter().any(|problem| problem.code == code))
    }

    /// Dbs that have to be restarted, in this order.
    fn targets(&self, restart: &Restart, master: &DbUid, asked: bool) -> Vec<DbUid> {
        let wanted = |db: &&Db| {
            let keeper = &db.spec.keeper_uid;
            let known = self.takes_orders(keeper) && self.keeper_of(db).is_some_and(|keeper| keeper.status.healthy);
            known && (restart.all || self.is_pending(db)) && !(asked && self.has_restarted(keeper))
        };
        let mut targets: Vec<DbUid> = self.data.dbs.values().filter(wanted).map(|db| db.uid.clone()).collect();
        let synchronous = self.db(master).and_then(|db| db.spec.synchronous_standbys.clone()).unwrap_or_default();
        // A standby does not start with less connections than its primary has.
        let lowers = self.db(master).is_some_and(|db| self.tells(db, Problem::RESTART_LOWERS));
        targets.sort_by_key(|uid| ((uid == master) != lowers, synchronous.contains(uid)));
        targets
    }

    /// Something is not as it has to be before the next instance may be stopped.
    fn unsettled(&self, master: &DbUid) -> Option<String> {
        if self.is_switching() || !self.is_settled(master) {
            return Some("the master is not ready yet, or proxies are not open".to_owned());
        }
        let parameters = self.spec.pg_parameters.clone().unwrap_or_default();
        let alive = |db: &&Db| self.keeper_of(db).is_some_and(|keeper| keeper.status.healthy);
        for db in self.data.dbs.values().filter(alive) {
            let who = format!("db \"{}\" of keeper \"{}\"", db.uid, db.spec.keeper_uid);
            if !db.converged() || db.spec.pg_parameters != parameters {
                return Some(format!("{who} has not applied what is wanted yet"));
            }
            if !self.reporting(db) || !db.status.healthy {
                return Some(format!("{who} is not healthy"));
            }
            let receives =
                |info: &KeeperInfo| info.upstream.as_ref().is_some_and(|up| up.db == *master && up.receiving);
            let ours = self.info(db).filter(|info| info.obeyed.is_some());
            if db.uid != *master && ours.is_some_and(|info| !receives(info)) {
                return Some(format!("{who} does not receive from the master yet"));
            }
        }
        let db = self.db(master)?;
        let in_sync = self.memory.dbs.get(master).map(|memory| memory.in_sync.as_slice()).unwrap_or_default();
        let wanted = db.spec.synchronous_standbys.iter().flatten();
        let missing = db.spec.synchronous_replication && wanted.clone().any(|uid| !in_sync.contains(uid));
        missing.then(|| "not all synchronous standbys are in sync".to_owned())
    }

    fn has_restarted(&self, keeper: &KeeperUid) -> bool {
        self.progress_now().is_some_and(|progress| progress.restarted.contains(keeper))
    }

    /// Remembers who has done what the request asks for.
    fn note_obeyed(&mut self) {
        let Some(id) = self.request_id() else { return };
        let infos = self.data.dbs.values().filter_map(|db| self.info(db));
        let done = infos.filter(|info| info.obeyed.as_ref() == Some(&format!("{id}:{}", info.boot_uuid)));
        for keeper in done.map(|info| info.uid.clone()).collect::<Vec<_>>() {
            self.note_restarted(&keeper);
        }
    }

    /// Remembers that this keeper's instance was restarted for the request.
    pub(super) fn note_restarted(&mut self, keeper: &KeeperUid) {
        if !self.is_restart_asked() || self.has_restarted(keeper) {
            return;
        }
        self.note_step(&format!("keeper \"{keeper}\" has restarted its PostgreSQL"));
        if let Some(progress) = &mut self.notes.progress {
            progress.restarted.push(keeper.clone());
        }
    }

    fn finish_restarts(&mut self) {
        let done = self.progress_now().map(|progress| progress.restarted.clone()).unwrap_or_default();
        let untold = self.data.dbs.values().map(|db| &db.spec.keeper_uid);
        let mut untold: Vec<&str> =
            untold.filter(|uid| !self.takes_orders(uid) && !done.contains(uid)).map(|uid| uid.as_str()).collect();
        untold.sort_unstable();
        let still: Vec<String> =
            self.data.dbs.values().filter(|db| self.is_pending(db)).map(|db| db.spec.keeper_uid.to_string()).collect();
        if !still.is_empty() {
            let text = format!("restarted, but parameters still wait for a restart at: {}", still.join(", "));
            return self.end_request(Phase::Failed, &text);
        }
        let mut text = match done.len() {
            0 => "no parameter waits for a restart".to_owned(),
            1 => "PostgreSQL of 1 keeper was restarted".to_owned(),
            number => format!("PostgreSQL of {number} keepers was restarted"),
        };
        if !untold.is_empty() {
            text = format!(
                "{text}; not told, because they do not run, are too old or Go's: {}; their PostgreSQL takes all parameters at its next start",
                untold.join(", ")
            );
        }
        self.end_request(Phase::Done, &text);
    }
}
