//! Health of keepers and dbs, and what they report.

use super::memory::{Freshness, LEASE_HINT, info_of, state_of};
use super::{Planner, Reason};
use model::stolon::{DbStatus, KEEPER_GENERATION, Keeper, KeeperInfo, KeeperSpec, KeeperStatus, PostgresState};
use model::{DbUid, KeeperUid};

impl Planner<'_> {
    pub(super) fn update_status(&mut self) {
        self.add_keepers();
        let keepers: Vec<KeeperUid> = self.data.keepers.keys().cloned().collect();
        for uid in keepers {
            self.update_keeper(&uid);
        }
        let dbs: Vec<DbUid> = self.data.dbs.keys().cloned().collect();
        for uid in dbs {
            self.update_db(&uid);
        }
        if let Some(at) = self.memory.next_stale(self.spec.sleep_interval.to_std()) {
            self.wake_at(at);
        }
    }

    fn add_keepers(&mut self) {
        let observed = self.observed;
        for uid in observed.keepers.keys().filter(|uid| !uid.is_empty()) {
            let fresh = self.memory.freshness(uid) == Freshness::Fresh;
            let Some(info) = info_of(&self.data, observed, uid).filter(|_| fresh) else { continue };
            if self.data.keepers.contains_key(uid) {
                continue;
            }
            let keeper = Keeper {
                uid: uid.clone(),
                generation: KEEPER_GENERATION,
                spec: KeeperSpec { priority: info.priority.unwrap_or_default(), ..Default::default() },
                status: KeeperStatus {
                    healthy: true,
                    last_healthy_time: self.now.wall,
                    boot_uuid: info.boot_uuid.clone(),
                    ..Default::default()
                },
                ..Default::default()
            };
            self.data.keepers.insert(uid.clone(), keeper);
            self.say(Reason::NewKeeper(uid.clone()));
        }
    }

    fn update_keeper(&mut self, uid: &KeeperUid) {
        let fresh = self.memory.freshness(uid);
        let info = info_of(&self.data, self.observed, uid).filter(|_| fresh == Freshness::Fresh);
        let memory = self.memory.keepers.get(uid);
        let error = memory.and_then(|keeper| keeper.error);
        let condemned = memory.is_some_and(|keeper| keeper.condemned);
        let limit = self.spec.fail_interval.to_std();
        if let Some(timer) = error {
            self.wake_at(timer.due(limit));
        }
        let now = self.now;
        let Some(keeper) = self.data.keepers.get_mut(uid) else { return };
        if let Some(info) = info {
            adopt_info(keeper, info);
        }
        let forced = std::mem::take(&mut keeper.status.force_fail);
        let was = keeper.status.healthy;
        let healthy = match (fresh, error) {
            _ if forced || condemned => false,
            // Not watched for long enough to say anything: as the last leader left it.
            (Freshness::Unproven, None) => was,
            (_, Some(timer)) if timer.age(now.clock) >= limit => false,
            (_, Some(timer)) if timer.grace => true,
            // A keeper that was unhealthy stays so until it is heard of.
            (Freshness::Stale | Freshness::Unproven, Some(_)) => was,
            _ => true,
        };
        keeper.status.healthy = healthy;
        // The time is written now and then only: what is stored may be old where a keeper was well until now.
        if healthy || was || keeper.status.last_healthy_time.is_zero() {
            keeper.status.last_healthy_time = now.wall;
        }
        if forced {
            self.say(Reason::ForceFail(uid.clone()));
        } else if was != healthy {
            let uid = uid.clone();
            self.say(match (healthy, condemned) {
                (true, _) => Reason::KeeperHealthy(uid),
                (false, true) => Reason::KeeperGone(uid),
                (false, false) => Reason::KeeperUnhealthy(uid),
            });
        }
    }

    fn update_db(&mut self, uid: &DbUid) {
        let Some(db) = self.data.dbs.get(uid) else { return };
        let fresh = self.memory.freshness(&db.spec.keeper_uid);
        let state = state_of(&self.data, self.observed, db).filter(|_| fresh == Freshness::Fresh);
        let keeper_healthy = self.keeper_of(db).is_some_and(|keeper| keeper.status.healthy);
        let memory = self.memory.dbs.get(uid);
        let error = memory.and_then(|memory| memory.error);
        let xlog_pos = memory.map(|memory| memory.xlog_pos);
        let limit = self.spec.fail_interval.to_std();
        if let Some(timer) = error {
            self.wake_at(timer.due(limit));
        }
        let now = self.now.clock;
        let Some(db) = self.data.dbs.get_mut(uid) else { return };
        if let Some(state) = state {
            adopt_state(&mut db.status, state);
        }
        if let Some(position) = xlog_pos {
            db.status.xlog_pos = position;
        }
        let was = db.status.healthy;
        let lasting = match error {
            None if fresh == Freshness::Unproven => was,
            None => true,
            Some(timer) => (was || timer.grace) && timer.age(now) < limit,
        };
        db.status.healthy = lasting && keeper_healthy;
        if was != db.status.healthy {
            let healthy = db.status.healthy;
            let uid = uid.clone();
            self.say(if healthy { Reason::DbHealthy(uid) } else { Reason::DbUnhealthy(uid) });
        }
    }
}

fn adopt_info(keeper: &mut Keeper, info: &KeeperInfo) {
    // A keeper's own priority counts when it starts; between its starts the operator's word does.
    if let Some(priority) = info.priority.filter(|_| keeper.status.boot_uuid != info.boot_uuid) {
        keeper.spec.priority = priority;
    }
    let status = &mut keeper.status;
    status.boot_uuid.clone_from(&info.boot_uuid);
    status.postgres_binary_version = info.postgres_binary_version;
    status.can_be_master = info.can_be_master;
    status.can_be_synchronous_replica = info.can_be_synchronous_replica;
    match info.lease_seconds {
        Some(seconds) => status.extra.insert(LEASE_HINT.to_owned(), seconds.into()),
        None => status.extra.remove(LEASE_HINT),
    };
}

fn adopt_state(status: &mut DbStatus, state: &PostgresState) {
    status.listen_address.clone_from(&state.listen_address);
    status.port.clone_from(&state.port);
    status.current_generation = state.generation;
    if !state.healthy {
        return;
    }
    status.system_id.clone_from(&state.system_id);
    status.timeline_id = state.timeline_id;
    status.timelines_history.clone_from(&state.timelines_history);
    status.pg_parameters.clone_from(&state.pg_parameters);
    status.older_wal_file.clone_from(&state.older_wal_file);
}
