//! The end of a plan: the specification goes into every db, generations count, and noise is not written.

use super::{LONGEST_AGE, Notes, Planned, Planner, REFRESH, Reason};
use model::GoTime;
use model::stolon::{ClusterData, FollowType};

impl Planner<'_> {
    pub(super) fn finish(mut self) -> Planned {
        self.copy_spec();
        self.prepare_successor();
        self.count_generations();
        self.note_orders();
        let mut data = self.data.clone();
        if let Err(problem) = data.check() {
            self.reasons.push(Reason::Rejected(problem));
            self.notes = Notes::default();
            return self.done(None);
        }
        let changed = significant(&data) != significant(self.before);
        if !changed && !self.is_outdated(&data) {
            return self.done(None);
        }
        self.stamp(&mut data);
        self.done(Some(data))
    }

    /// What moves all the time was written too long ago.
    fn is_outdated(&mut self, data: &ClusterData) -> bool {
        let written = self.memory.document.1;
        // A small part of the interval that is counted from the times in there.
        let age = (self.spec.dead_keeper_removal_interval.to_std() / 4).clamp(REFRESH, LONGEST_AGE);
        let moved = without_times(data) != without_times(self.before);
        self.passed(written, if moved { REFRESH } else { age })
            && without_change_time(data) != without_change_time(self.before)
    }

    fn done(self, data: Option<ClusterData>) -> Planned {
        let data = data.unwrap_or_else(|| self.before.clone());
        Planned {
            data,
            memory: self.memory,
            notes: self.notes,
            reasons: self.reasons,
            wake_at: self.wake,
            inquiry: self.inquiry,
        }
    }

    fn copy_spec(&mut self) {
        let external = self.spec.standby_config.as_ref().map(|_| self.follow_external());
        let spec = &self.spec;
        for db in self.data.dbs.values_mut() {
            let master_type = db.is_master_type();
            let wanted = &mut db.spec;
            wanted.request_timeout = spec.request_timeout;
            wanted.max_standbys = spec.max_standbys;
            wanted.use_pgrewind = spec.use_pgrewind;
            wanted.pg_parameters = spec.pg_parameters.clone().unwrap_or_default();
            wanted.pg_hba.clone_from(&spec.pg_hba);
            wanted.additional_wal_senders = spec.additional_wal_senders;
            wanted.additional_replication_slots =
                if master_type { spec.additional_master_replication_slots.clone() } else { None };
            if let (Some(follow), Some(external)) = (&mut wanted.follow_config, &external)
                && follow.kind == Some(FollowType::External)
            {
                follow.standby_settings.clone_from(&external.standby_settings);
                follow.archive_recovery_settings.clone_from(&external.archive_recovery_settings);
            }
        }
    }

    fn count_generations(&mut self) {
        for (uid, db) in &mut self.data.dbs {
            if let Some(old) = self.before.dbs.get(uid)
                && (old.spec != db.spec || self.barriers.contains(uid))
            {
                db.generation = old.generation + 1;
            }
        }
    }

    fn stamp(&self, data: &mut ClusterData) {
        let now = self.now.wall;
        let quiet = significant(data);
        let before = significant(self.before);
        data.change_time = now;
        if quiet.cluster != before.cluster {
            data.cluster.change_time = now;
        }
        if quiet.proxy != before.proxy {
            data.proxy.change_time = now;
        }
        for (uid, keeper) in &mut data.keepers {
            if quiet.keepers.get(uid) != before.keepers.get(uid) {
                keeper.change_time = now;
            }
        }
        for (uid, db) in &mut data.dbs {
            if quiet.dbs.get(uid) != before.dbs.get(uid) {
                db.change_time = now;
            }
        }
    }
}

fn without_change_time(data: &ClusterData) -> ClusterData {
    ClusterData { change_time: GoTime::default(), ..data.clone() }
}

fn without_times(data: &ClusterData) -> ClusterData {
    let mut data = without_change_time(data);
    data.cluster.change_time = GoTime::default();
    data.proxy.change_time = GoTime::default();
    for keeper in data.keepers.values_mut() {
        keeper.change_time = GoTime::default();
        keeper.status.last_healthy_time = GoTime::default();
    }
    for db in data.dbs.values_mut() {
        db.change_time = GoTime::default();
    }
    data
}

/// Cluster data without what moves all the time.
fn significant(data: &ClusterData) -> ClusterData {
    let mut data = without_times(data);
    for db in data.dbs.values_mut() {
        db.status.xlog_pos = 0;
        db.status.older_wal_file.clear();
    }
    // Not each of several proxies that close: the next step comes when all of them have.
    if data.proxy.spec.master_db_uid.is_empty() {
        data.proxy.status.values_mut().for_each(|proxy| proxy.generation = 0);
    }
    data
}
