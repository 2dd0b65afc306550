//! Words of the rules: converged, valid, good.

use super::Planner;
use model::stolon::{Db, DbInitMode, Role, TimelineHistory};
use model::{DbUid, GoDuration};

/// How far a db is with the wanted generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Convergence {
    Converged,
    Converging,
    Failed,
}

/// Whether a db's data can be a copy of the master's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validity {
    /// Nothing was reported yet.
    Unknown,
    Valid,
    Invalid,
}

/// Use that a standby is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Good,
    Converging,
    Failed,
}

/// WAL segments have 16 MiB in the names that are compared, as in Go's programs.
const SEGMENT: u64 = 16 << 20;
/// A position that did not move for so many sleep intervals stands still.
const STILL_INTERVALS: u32 = 10;

impl Planner<'_> {
    /// A limit of zero is none.
    pub(super) fn convergence(&mut self, uid: &DbUid, limit: GoDuration) -> Convergence {
        if self.db(uid).is_some_and(Db::converged) {
            return Convergence::Converged;
        }
        let start = self.memory.dbs.get(uid).map(|db| db.convergence.1);
        match start {
            Some(start) if !limit.is_zero() && self.passed(start, limit.to_std()) => Convergence::Failed,
            _ => Convergence::Converging,
        }
    }

    pub(super) fn class(&mut self, uid: &DbUid) -> Class {
        let Some(db) = self.db(uid) else { return Class::Failed };
        if !self.keeper_of(db).is_some_and(|keeper| keeper.status.healthy) {
            return Class::Failed;
        }
        let healthy = db.status.healthy;
        let resync = db.generation == 1 && db.spec.init_mode == Some(DbInitMode::Resync);
        let limit = if resync { self.spec.sync_timeout } else { self.spec.convergence_timeout };
        match self.convergence(uid, limit) {
            Convergence::Failed => Class::Failed,
            Convergence::Converging => Class::Converging,
            Convergence::Converged if healthy => Class::Good,
            Convergence::Converged => Class::Failed,
        }
    }

    pub(super) fn validity(&self, uid: &DbUid, master: &DbUid) -> Validity {
        let (Some(db), Some(master)) = (self.db(uid), self.db(master)) else { return Validity::Invalid };
        if db.status.current_generation == 0 {
            Validity::Unknown
        } else if (!db.status.system_id.is_empty()
            && !master.status.system_id.is_empty()
            && db.status.system_id != master.status.system_id)
            || other_branch(master, db)
                // Both may have followed their server to its next timeline; the standby only told of it first.
                && !((master.spec.role == Some(Role::Standby) || self.may_be_promoted(master)) && is_ahead(master, db))
        {
            Validity::Invalid
        } else {
            Validity::Valid
        }
    }

    /// It was appointed and has not told yet whether it was promoted: its standbys may be on its next timeline before it is
    /// known to be.
    fn may_be_promoted(&self, master: &Db) -> bool {
        !master.converged() && self.data.proxy.spec.master_db_uid != master.uid
    }

    /// The standby is where the master was told to go, or on the next timeline that the master made before it could tell.
    pub(super) fn is_on_timeline(&self, db: &Db, master: &Db) -> bool {
        db.status.timeline_id == master.status.timeline_id || (self.may_be_promoted(master) && is_ahead(master, db))
    }

    /// False if the master has already removed WAL that the standby needs.
    pub(super) fn can_sync(&self, uid: &DbUid, master: &DbUid) -> bool {
        let (Some(db), Some(master)) = (self.db(uid), self.db(master)) else { return true };
        let Some(memory) = self.memory.dbs.get(uid) else { return true };
        let still = self.now.clock.saturating_sub(memory.xlog_since)
            > self.spec.sleep_interval.to_std().saturating_mul(STILL_INTERVALS);
        let position = db.status.xlog_pos;
        if db.is_master_type()
            || db.generation <= 1
            || !db.status.healthy
            || position == master.status.xlog_pos
            || !still
        {
            return true;
        }
        let oldest = &master.status.older_wal_file;
        let Some(oldest) = oldest.len().checked_sub(16).and_then(|start| oldest.get(start..)) else { return true };
        let needed = format!("{:08X}{:08X}", position >> 32, (position & 0xffff_ffff) / SEGMENT);
        needed.as_str() >= oldest
    }

    /// How many bytes the db is behind the master; zero when it is ahead.
    pub(super) fn lag(&self, db: &Db, master: &DbUid) -> u64 {
        self.db(master).map_or(0, |master| master.status.xlog_pos.saturating_sub(db.status.xlog_pos))
    }
}

/// True if `db` is on a later timeline that went on from what `followed` has.
fn is_ahead(followed: &Db, db: &Db) -> bool {
    let history = &db.status.timelines_history;
    let end = history.iter().find(|entry| entry.timeline_id == followed.status.timeline_id);
    followed.status.timeline_id < db.status.timeline_id
        && end.is_some_and(|end| followed.status.xlog_pos <= end.switch_point)
}

/// True if `db` has WAL that is not part of the history of `followed`.
fn other_branch(followed: &Db, db: &Db) -> bool {
    let (ours, theirs) = (followed.status.timeline_id, db.status.timeline_id);
    let end_of = |history: &[TimelineHistory], timeline: u64| {
        history.iter().find(|entry| entry.timeline_id == timeline).map(|entry| entry.switch_point)
    };
    match ours.cmp(&theirs) {
        std::cmp::Ordering::Less => true,
        std::cmp::Ordering::Equal if ours > 1 => {
            let ends =
                (end_of(&followed.status.timelines_history, ours - 1), end_of(&db.status.timelines_history, ours - 1));
            matches!(ends, (Some(a), Some(b)) if a != b)
        }
        std::cmp::Ordering::Equal => false,
        std::cmp::Ordering::Greater => {
            end_of(&followed.status.timelines_history, theirs).is_some_and(|end| end < db.status.xlog_pos)
        }
    }
}
