//! A cluster in operation: one check of the leader.

use super::judge::Convergence;
use super::memory::{Freshness, state_of};
use super::switch::Switching;
use super::{Planner, Reason};
use model::stolon::{ClusterRole, FollowType, Keeper, Role};
use model::{DbUid, KeeperUid};
use std::time::Duration;

/// A master that a clean switch stopped is waited for so long: its last checkpoint, and a start.
const STOPPED_LIMIT: Duration = Duration::from_secs(30);

impl Planner<'_> {
    pub(super) fn operate(&mut self) {
        let master = self.data.cluster.status.master.clone();
        if let Some(proof) = self.proof_of_old_store(&master) {
            self.say(proof);
            self.close_proxies();
            return;
        }
        self.remove_dead_keepers();
        self.take_request(&master);
        self.hold_restarts();
        let switching = match self.master_failure(&master) {
            Some(why) => {
                self.say(Reason::MasterFailed(master.clone(), why));
                self.forget_switch();
                let known = !self.is_reviving(&master) && self.knows_positions(&master);
                let new = if known { self.elect(&master) } else { None };
                let new = if known { new.or_else(|| self.elect_by_force(&master)) } else { None };
                new.map_or(Switching::None, Switching::Appoint)
            }
            None => {
                self.memory.asked = None;
                self.refuse_force(&master);
                let restarts = self.restart_in_order(&master);
                self.switch_cleanly(&master, &restarts)
            }
        };
        match switching {
            Switching::Appoint(new) => self.appoint(&master, &new),
            Switching::Hold => {}
            Switching::None => {
                self.serve_proxies(&master);
                self.keep_master(&master);
            }
        }
        self.finish_request();
        self.list_followers(&master);
    }

    /// Generations only grow, and a later timeline is a later master's: whoever has both was told so by a newer document
    /// than this one, and the master named here is a former one.
    fn proof_of_old_store(&self, master: &DbUid) -> Option<Reason> {
        let timeline = self.db(master)?.status.timeline_id;
        self.data.dbs.values().find_map(|db| {
            let state = state_of(&self.data, self.observed, db)?;
            let stored = self.before.dbs.get(&db.uid)?.generation;
            let newer = state.generation > stored && state.timeline_id > timeline;
            let (db, keeper) = (db.uid.clone(), db.spec.keeper_uid.clone());
            newer.then_some(Reason::OldStore { db, keeper, applied: state.generation, stored })
        })
    }

    fn remove_dead_keepers(&mut self) {
        let busy: Vec<KeeperUid> = self.data.dbs.values().map(|db| db.spec.keeper_uid.clone()).collect();
        let keepers = self.data.keepers.values();
        let gone: Vec<KeeperUid> = keepers
            .filter(|keeper| !busy.contains(&keeper.uid) && self.is_to_be_removed(keeper))
            .map(|keeper| keeper.uid.clone())
            .collect();
        for uid in gone {
            self.data.keepers.remove(&uid);
            self.say(Reason::KeeperRemoved(uid));
        }
    }

    /// It was dead for longer than the dead keeper removal interval.
    pub(super) fn is_to_be_removed(&self, keeper: &Keeper) -> bool {
        let limit = self.spec.dead_keeper_removal_interval.to_std();
        let silence = self.now.wall.utc() - keeper.status.last_healthy_time.utc();
        !keeper.status.healthy && silence.to_std().is_ok_and(|silence| silence > limit)
    }

    fn master_failure(&mut self, master: &DbUid) -> Option<String> {
        let healthy = self.db(master).is_some_and(|db| db.status.healthy);
        let limit = self.spec.convergence_timeout;
        if self.is_stopped_on_purpose(master) && !healthy {
            None
        } else if !healthy {
            Some(self.evidence(master).to_owned())
        } else if self.convergence(master, limit) == Convergence::Failed {
            Some(format!("it did not apply the wanted generation within {limit}"))
        } else {
            None
        }
    }

    /// It is not well because a clean switch stops it, or has stopped it and was given up. Without synchronous
    /// replication nobody but itself surely has every commit, so its keeper gets the time to bring it back, as long as
    /// that keeper lives. A leader that knows nothing of the switch sees it in the role, or in the keeper's record.
    fn is_stopped_on_purpose(&mut self, master: &DbUid) -> bool {
        let Some(db) = self.db(master) else { return false };
        let follow = db.spec.follow_config.as_ref().and_then(|follow| follow.kind);
        let handed_over = db.spec.role == Some(Role::Standby) && follow == Some(FollowType::Internal);
        let resumed = !handed_over && db.status.healthy && db.converged();
        let alone = !db.spec.synchronous_replication;
        let lives = self.keeper_of(db).is_some_and(|keeper| keeper.status.healthy);
        let seen = handed_over || (!resumed && self.is_handed_over(db));
        let since = self.memory.switch.stopped.take().filter(|(uid, _)| uid == master && !resumed);
        let since = since.or_else(|| seen.then(|| (master.clone(), self.now.clock)));
        self.memory.switch.stopped.clone_from(&since);
        lives && alone && since.is_some_and(|(_, since)| !self.passed(since, STOPPED_LIMIT))
    }

    /// What shows that the master is not healthy.
    pub(super) fn evidence(&self, master: &DbUid) -> &'static str {
        let Some(db) = self.db(master) else { return "it is gone" };
        let keeper = &db.spec.keeper_uid;
        let forced = self.reasons.iter().any(|reason| matches!(reason, Reason::ForceFail(uid) if uid == keeper));
        match (self.observed.keepers.get(keeper), state_of(&self.data, self.observed, db)) {
            _ if forced => "an operator asked to take its keeper as failed",
            (None, _) => "its keeper's record is gone: the keeper ended, or could not keep its lease",
            (Some(None), _) => "its keeper's record can't be read",
            (Some(Some(_)), _) if self.memory.freshness(keeper) != Freshness::Fresh => {
                "its keeper does not publish any more"
            }
            (_, None) => "its keeper does not hold this db",
            (_, Some(state)) if !state.healthy => "its keeper reports that PostgreSQL does not work",
            _ => "it was not reported healthy for longer than the fail interval",
        }
    }

    /// The master stays. In a cluster that was promoted it stops to follow the server outside.
    fn keep_master(&mut self, master: &DbUid) {
        if self.spec.role == ClusterRole::Master
            && let Some(db) = self.data.dbs.get_mut(master)
        {
            db.spec.role = Some(Role::Master);
            db.spec.follow_config = None;
        }
        if self.db(master).is_some_and(|db| db.status.healthy && db.converged()) {
            self.keep_house(master);
        }
    }

    fn list_followers(&mut self, master: &DbUid) {
        let wanted = &self.data.cluster.status.master;
        let follows = |uid: &&DbUid| {
            self.data.dbs[*uid]
                .spec
                .follow_config
                .as_ref()
                .is_some_and(|follow| follow.kind == Some(FollowType::Internal) && follow.db_uid == *wanted)
        };
        // Uids are sorted in the map.
        let followers: Vec<DbUid> = self.data.dbs.keys().filter(follows).cloned().collect();
        let wanted = wanted.clone();
        // One that was handed over follows its successor from the beginning.
        if wanted != *master
            && let Some(db) = self.data.dbs.get_mut(master)
        {
            db.spec.followers.clear();
        }
        if let Some(db) = self.data.dbs.get_mut(&wanted) {
            db.spec.followers = followers;
        }
    }
}
