//! Why a db can't become master: the same answers for elections, clean switches and people who ask.

use super::Planner;
use super::judge::{Convergence, Validity};
use super::switch::MAX_LAG;
use model::DbUid;
use model::stolon::{Db, DbInitMode};

/// What stands between a db and becoming master.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// There is no such db.
    #[error("it does not exist")]
    Gone,
    /// Nothing was reported of it yet.
    #[error("it is still being made")]
    BeingMade,
    /// Another system identifier or another branch of timelines.
    #[error("its data is no copy of the master's")]
    OtherData,
    /// Its keeper is not heard of.
    #[error("its keeper is not heard of")]
    KeeperSilent,
    /// Its keeper does not report it.
    #[error("its keeper holds another db")]
    NotHeld,
    /// Its PostgreSQL does not work.
    #[error("its PostgreSQL is not healthy")]
    Unhealthy,
    /// A change is being applied.
    #[error("it has not applied the wanted generation yet")]
    Converging,
    /// A change was not applied in time.
    #[error("it did not apply the wanted generation in time")]
    NotConverged,
    /// It has not followed the master to its timeline.
    #[error("it is not on the master's timeline")]
    OtherTimeline,
    /// Too much could be lost, or the interruption would be long.
    #[error("it is more than {0} bytes behind")]
    Lag(u64),
    /// Its keeper was started so.
    #[error("its keeper must not become master (--can-be-master=false)")]
    MustNot,
    /// Commits did not wait for it, or it was not seen in sync since.
    #[error("it is not known to hold every acknowledged commit")]
    NotSynchronous,
    /// It was master until a moment ago.
    #[error("it was master before")]
    FormerMaster,
    /// It is master.
    #[error("it is the master")]
    IsMaster,
}

impl Obstacle {
    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Obstacle::Gone => "db_gone",
            Obstacle::BeingMade => "db_being_made",
            Obstacle::OtherData => "other_data",
            Obstacle::KeeperSilent => "keeper_silent",
            Obstacle::NotHeld => "db_not_held",
            Obstacle::Unhealthy => "postgres_unhealthy",
            Obstacle::Converging => "converging",
            Obstacle::NotConverged => "not_converged",
            Obstacle::OtherTimeline => "other_timeline",
            Obstacle::Lag(_) => "lag",
            Obstacle::MustNot => "can_not_be_master",
            Obstacle::NotSynchronous => "not_synchronous",
            Obstacle::FormerMaster => "former_master",
            Obstacle::IsMaster => "is_master",
        }
    }
}

impl Planner<'_> {
    /// Why `uid` may not replace a master that failed.
    pub(super) fn obstacle_to_election(&mut self, uid: &DbUid, master: &DbUid) -> Option<Obstacle> {
        if let Some(obstacle) = self.obstacle_to_use(uid, master) {
            return Some(obstacle);
        }
        let (Some(db), Some(old)) = (self.db(uid), self.db(master)) else { return Some(Obstacle::Gone) };
        let limit: u64 = self.spec.max_standby_lag.into();
        let synchronous = old.spec.synchronous_replication;
        if !self.is_on_timeline(db, old) {
            Some(Obstacle::OtherTimeline)
        } else if !synchronous && self.lag(db, master) > limit {
            Some(Obstacle::Lag(limit))
        } else if self.must_not_be_master(db) {
            Some(Obstacle::MustNot)
        } else if synchronous && !self.holders_of_all_commits(master).contains(uid) {
            Some(Obstacle::NotSynchronous)
        } else {
            None
        }
    }

    /// Why a healthy master can't be moved to `uid` now.
    pub(super) fn obstacle_to_switch(&mut self, uid: &DbUid, master: &DbUid) -> Option<Obstacle> {
        if uid == master {
            return Some(Obstacle::IsMaster);
        }
        if let Some(obstacle) = self.obstacle_to_use(uid, master) {
            return Some(obstacle);
        }
        self.obstacle_to_take_over(uid, master)
    }

    /// As [`Self::obstacle_to_switch`], for a switch that has begun: its own steps let dbs converge.
    pub(super) fn obstacle_to_take_over(&self, uid: &DbUid, master: &DbUid) -> Option<Obstacle> {
        let (Some(db), Some(old)) = (self.db(uid), self.db(master)) else { return Some(Obstacle::Gone) };
        let synchronous = old.spec.synchronous_replication || self.sync_mode();
        if uid == master {
            Some(Obstacle::IsMaster)
        } else if db.is_master_type() {
            Some(Obstacle::FormerMaster)
        } else if !self.keeper_of(db).is_some_and(|keeper| keeper.status.healthy) {
            Some(Obstacle::KeeperSilent)
        } else if !db.status.healthy || !self.reporting(db) {
            Some(Obstacle::Unhealthy)
        } else if self.validity(uid, master) != Validity::Valid {
            Some(Obstacle::OtherData)
        } else if db.status.timeline_id != old.status.timeline_id {
            Some(Obstacle::OtherTimeline)
        } else if self.lag(db, master) > MAX_LAG {
            Some(Obstacle::Lag(MAX_LAG))
        } else if self.must_not_be_master(db) {
            Some(Obstacle::MustNot)
        } else if synchronous && !self.holders_of_all_commits(master).contains(uid) {
            Some(Obstacle::NotSynchronous)
        } else {
            None
        }
    }

    /// Why `uid` is of no use as a copy now.
    pub(super) fn obstacle_to_use(&mut self, uid: &DbUid, master: &DbUid) -> Option<Obstacle> {
        let Some(db) = self.db(uid) else { return Some(Obstacle::Gone) };
        let healthy = db.status.healthy;
        let heard = self.keeper_of(db).is_some_and(|keeper| keeper.status.healthy);
        let resync = db.generation == 1 && db.spec.init_mode == Some(DbInitMode::Resync);
        let limit = if resync { self.spec.sync_timeout } else { self.spec.convergence_timeout };
        let held = self.reports(db);
        let validity = self.validity(uid, master);
        if !heard {
            return Some(Obstacle::KeeperSilent);
        }
        match (validity, self.convergence(uid, limit)) {
            (Validity::Invalid, _) => Some(Obstacle::OtherData),
            (_, Convergence::Failed) => Some(Obstacle::NotConverged),
            (Validity::Unknown, _) => Some(Obstacle::BeingMade),
            (_, Convergence::Converging) if !held => Some(Obstacle::NotHeld),
            (_, Convergence::Converging) => Some(Obstacle::Converging),
            (_, Convergence::Converged) => (!healthy).then_some(Obstacle::Unhealthy),
        }
    }

    fn reports(&self, db: &Db) -> bool {
        super::memory::state_of(&self.data, self.observed, db).is_some()
    }

    fn must_not_be_master(&self, db: &Db) -> bool {
        self.keeper_of(db).is_some_and(|keeper| keeper.status.can_be_master == Some(false))
    }
}
