//! The first master of a cluster.

use super::judge::Convergence;
use super::reason::list;
use super::{Planner, Reason};
use model::stolon::{
    ClusterPhase, ClusterRole, Db, DbInitMode, DbSpec, FollowConfig, FollowType, InitMode, Keeper, Role,
};
use model::{DbUid, GoDuration, KeeperUid};
use std::time::Duration;

/// Time for keepers to register before the first master is chosen: all start at about the same moment, and the
/// one with the highest priority should be among those to choose from.
const GATHER: Duration = Duration::from_secs(1);

/// Managed parameters for which a user's value counts.
const KEPT: [&str; 3] = ["wal_keep_size", "wal_keep_segments", "wal_log_hints"];
/// Doublings of the time that one keeper has.
const MAX_DOUBLINGS: u32 = 6;

impl Planner<'_> {
    pub(super) fn initialize(&mut self) {
        let master = self.data.cluster.status.master.clone();
        if self.data.dbs.contains_key(&master) {
            self.watch_first_master(&master);
        } else {
            // A master that does not exist can't be waited for.
            self.data.cluster.status.master = DbUid::default();
            self.choose_first_master();
        }
    }

    fn choose_first_master(&mut self) {
        if let Some(keeper) = self.first_keeper() {
            // Nobody else may hold data for this cluster yet.
            self.data.dbs.clear();
            let uid = self.new_db_uid();
            let db = self.first_db(uid.clone(), keeper.clone());
            self.data.dbs.insert(uid.clone(), db);
            self.data.cluster.status.master = uid.clone();
            self.say(Reason::FirstMaster(keeper, uid));
        }
    }

    fn first_keeper(&mut self) -> Option<KeeperUid> {
        if self.spec.init_mode == InitMode::Existing {
            let uid = self.spec.existing_config.clone().unwrap_or_default().keeper_uid;
            if self.data.keepers.contains_key(&uid) {
                return Some(uid);
            }
            let others: Vec<&KeeperUid> = self.data.keepers.keys().collect();
            self.say(Reason::NoFirstMaster(format!(
                "keeper \"{uid}\", which existingConfig.keeperUID names, has not registered; these have: {}; start it, or \
                 begin again with another name",
                list(others)
            )));
            return None;
        }
        if self.data.keepers.is_empty() {
            self.say(Reason::NoFirstMaster("none has registered".into()));
            return None;
        }
        let first_seen = self.memory.first_keeper.unwrap_or(self.now.clock);
        if !self.passed(first_seen, GATHER) {
            self.say(Reason::WaitForKeepers);
            return None;
        }
        let best = self.best_first_keeper();
        if best.is_none() {
            self.say(Reason::NoFirstMaster("none of the registered ones is healthy and can be master".into()));
        }
        best
    }

    /// Whoever failed least, then the highest priority, then the first by uid.
    fn best_first_keeper(&self) -> Option<KeeperUid> {
        let failures = |uid: &KeeperUid| self.memory.failed_inits.get(uid).copied().unwrap_or_default();
        let able = |keeper: &&Keeper| keeper.status.healthy && keeper.status.can_be_master != Some(false);
        let keepers = self.data.keepers.values().filter(able);
        keepers
            .min_by_key(|keeper| (failures(&keeper.uid), std::cmp::Reverse(keeper.spec.priority), keeper.uid.clone()))
            .map(|keeper| keeper.uid.clone())
    }

    fn first_db(&self, uid: DbUid, keeper_uid: KeeperUid) -> Db {
        let mode = self.spec.init_mode;
        let mut spec = DbSpec {
            keeper_uid,
            init_mode: Some(match mode {
                InitMode::New => DbInitMode::New,
                InitMode::Existing => DbInitMode::Existing,
                InitMode::Pitr => DbInitMode::Pitr,
            }),
            role: Some(Role::Master),
            include_previous_config: self.spec.merge_pg_parameters,
            ..Default::default()
        };
        if mode == InitMode::New {
            spec.new_config.clone_from(&self.spec.new_config);
        }
        if mode == InitMode::Pitr {
            spec.pitr_config.clone_from(&self.spec.pitr_config);
        }
        if self.spec.role == ClusterRole::Standby {
            spec.role = Some(Role::Standby);
            spec.follow_config = Some(self.follow_external());
        }
        Db { uid, generation: 1, spec, ..Default::default() }
    }

    /// Follow the server outside that a standby cluster replicates from.
    pub(super) fn follow_external(&self) -> FollowConfig {
        let config = self.spec.standby_config.clone().unwrap_or_default();
        FollowConfig {
            kind: Some(FollowType::External),
            standby_settings: config.standby_settings,
            archive_recovery_settings: config.archive_recovery_settings,
            ..Default::default()
        }
    }

    fn watch_first_master(&mut self, master: &DbUid) {
        let Some(db) = self.db(master) else { return };
        if db.converged() && db.status.healthy {
            self.finish_initialization(master);
            return;
        }
        let keeper = db.spec.keeper_uid.clone();
        let dead = self.is_given_up(&keeper);
        self.refresh_restore(master);
        // Only `new` can begin again elsewhere: existing data is on one keeper only, and a restore may take days.
        let limit = match self.spec.init_mode {
            InitMode::New => self.patience_with(&keeper),
            InitMode::Existing | InitMode::Pitr => GoDuration::ZERO,
        };
        let others = self.best_first_keeper().is_some_and(|best| best != keeper);
        let gone = dead && others && self.spec.init_mode != InitMode::Existing;
        if gone || self.convergence(master, limit) == Convergence::Failed {
            *self.memory.failed_inits.entry(keeper.clone()).or_default() += 1;
            self.say(Reason::FirstMasterFailed(keeper));
            self.data.dbs.clear();
            self.data.cluster.status.master = DbUid::default();
            self.choose_first_master();
        } else {
            self.say(Reason::WaitForMaster(master.clone()));
        }
    }

    /// Twice as much after each failure: where all are slow, one of them has to be let finish.
    fn patience_with(&self, keeper: &KeeperUid) -> GoDuration {
        let failures = self.memory.failed_inits.get(keeper).copied().unwrap_or_default();
        let nanos = self.spec.init_timeout.as_nanos().saturating_mul(1 << failures.min(MAX_DOUBLINGS));
        GoDuration::from_nanos(nanos)
    }

    /// A keeper that will not finish. One that restores a backup may restart meanwhile and goes on then: a restore that has
    /// taken hours is not begun again elsewhere for that.
    fn is_given_up(&mut self, keeper: &KeeperUid) -> bool {
        if self.data.keepers.get(keeper).is_some_and(|keeper| keeper.status.healthy) {
            return false;
        }
        let silent = self.memory.keepers.get(keeper).and_then(|keeper| keeper.error);
        match (self.spec.init_mode, silent) {
            (InitMode::Pitr, Some(timer)) => {
                let due = timer.due(self.spec.fail_interval.to_std()) + self.spec.init_timeout.to_std();
                self.passed(due, Duration::ZERO)
            }
            _ => true,
        }
    }

    /// What an operator corrects in the settings of a restore, such as where WAL comes from, counts for the one under way.
    fn refresh_restore(&mut self, master: &DbUid) {
        let config = self.spec.pitr_config.clone();
        if let Some(db) = self.data.dbs.get_mut(master)
            && db.spec.init_mode == Some(DbInitMode::Pitr)
            && self.spec.init_mode == InitMode::Pitr
        {
            db.spec.pitr_config = config;
        }
    }

    fn finish_initialization(&mut self, master: &DbUid) {
        let Some(db) = self.data.dbs.get_mut(master) else { return };
        db.spec.init_mode = Some(DbInitMode::None);
        db.spec.include_previous_config = false;
        if self.spec.merge_pg_parameters {
            let mut parameters = db.status.pg_parameters.clone();
            // Not reported, since stolon has values of its own for them, but the user's word stands.
            let given = self.spec.pg_parameters.iter().flatten();
            let kept = given.filter(|(name, _)| KEPT.contains(&name.as_str()));
            parameters.extend(kept.map(|(name, value)| (name.clone(), value.clone())));
            self.data.cluster.spec.get_or_insert_default().pg_parameters = parameters.clone();
            self.spec.pg_parameters = (!parameters.is_empty()).then_some(parameters);
        }
        self.data.cluster.status.phase = Some(ClusterPhase::Normal);
        self.say(Reason::Initialized(master.clone()));
    }
}
