//! Standbys: which dbs go, which come, whom they follow. Done while the master is healthy and converged.

use super::judge::{Class, Validity};
use super::{Planner, Reason};
use model::stolon::{Db, DbInitMode, DbSpec, FollowConfig, Role};
use model::{DbUid, KeeperUid};
use std::cmp::Reverse;

impl Planner<'_> {
    pub(super) fn keep_house(&mut self, master: &DbUid) {
        self.delete_useless(master);
        let standbys: Vec<(DbUid, Class)> = self.other_dbs(master).map(|uid| (uid.clone(), self.class(&uid))).collect();
        for (uid, class) in &standbys {
            if *class == Class::Good
                && let Some(db) = self.data.dbs.get_mut(uid)
            {
                db.spec.init_mode = Some(DbInitMode::None);
            }
        }
        self.keep_synchronous_set(master);
        self.keep_number(master, &standbys);
        self.follow_master(master);
    }

    fn other_dbs(&self, master: &DbUid) -> std::vec::IntoIter<DbUid> {
        self.data.dbs.keys().filter(|uid| *uid != master).cloned().collect::<Vec<_>>().into_iter()
    }

    pub(super) fn delete(&mut self, uid: &DbUid, why: &'static str) {
        if let Some(db) = self.data.dbs.remove(uid) {
            self.say(Reason::DbDeleted(uid.clone(), db.spec.keeper_uid, why));
        }
    }

    fn delete_useless(&mut self, master: &DbUid) {
        for uid in self.other_dbs(master) {
            if self.db(&uid).is_some_and(Db::is_master_type) {
                self.delete(&uid, "it was master before");
            } else if self.validity(&uid, master) == Validity::Invalid {
                self.delete(&uid, "its data is no copy of the master's");
            } else if !self.can_sync(&uid, master) {
                self.delete(&uid, "the master has removed WAL that it needs");
            } else if self.is_long_dead(&uid) && !self.is_waited_for(&uid, master) {
                // Its slot keeps WAL on the master's disk for as long as the db is there.
                self.delete(&uid, "its keeper is dead for longer than the dead keeper removal interval");
            }
        }
    }

    fn is_long_dead(&self, uid: &DbUid) -> bool {
        let keeper = self.db(uid).and_then(|db| self.keeper_of(db));
        keeper.is_some_and(|keeper| self.is_to_be_removed(keeper))
    }

    /// Commits wait for it, or it may hold some that nobody else does.
    fn is_waited_for(&self, uid: &DbUid, master: &DbUid) -> bool {
        let Some(master) = self.db(master) else { return true };
        let (wanted, known) = (&master.spec.synchronous_standbys, &master.status.synchronous_standbys);
        wanted.iter().chain(known).flatten().any(|member| member == uid)
    }

    /// Removes standbys in excess, or adds some. Those that are being made count, or each turn would add more.
    fn keep_number(&mut self, master: &DbUid, standbys: &[(DbUid, Class)]) {
        let wanted = usize::from(self.spec.max_standbys_per_sender);
        let of = |class| standbys.iter().filter(move |(_, c)| *c == class).map(|(uid, _)| uid.clone());
        let good: Vec<DbUid> = of(Class::Good).collect();
        let coming = of(Class::Converging).count();
        let needed = self.db(master).and_then(|db| db.spec.synchronous_standbys.clone()).unwrap_or_default();
        if good.len() >= wanted {
            for (uid, _) in standbys.iter().filter(|(uid, class)| *class != Class::Good && !needed.contains(uid)) {
                self.delete(uid, "there are enough good standbys");
            }
            let mut spare: Vec<DbUid> = good.iter().filter(|uid| !needed.contains(uid)).cloned().collect();
            // The least preferred one goes first.
            spare.sort_by_key(|uid| (self.db(uid).map(|db| self.priority(db)), Reverse(uid.clone())));
            for uid in spare.iter().take(good.len() - wanted) {
                self.delete(uid, "there are more good standbys than wanted");
            }
            return;
        }
        // Each standby needs a slot of the master's, which has maxStandbys of them: a master that lacks one is never done,
        // and would be replaced for that.
        let room = usize::from(self.spec.max_standbys).saturating_sub(standbys.len());
        let missing = wanted.saturating_sub(good.len() + coming).min(room);
        for keeper in self.free_keepers().into_iter().take(missing) {
            let uid = self.new_db_uid();
            let spec = DbSpec {
                keeper_uid: keeper.clone(),
                init_mode: Some(DbInitMode::Resync),
                role: Some(Role::Standby),
                follow_config: Some(FollowConfig::internal(master.clone())),
                ..Default::default()
            };
            self.data.dbs.insert(uid.clone(), Db { uid: uid.clone(), generation: 1, spec, ..Default::default() });
            self.say(Reason::DbAdded(keeper, uid));
        }
    }

    /// Healthy keepers without a db, the preferred ones first.
    fn free_keepers(&self) -> Vec<KeeperUid> {
        let mut free: Vec<_> = self.data.keepers.values().filter(|keeper| keeper.status.healthy).collect();
        free.retain(|keeper| self.data.db_of_keeper(&keeper.uid).is_none());
        free.sort_by_key(|keeper| (Reverse(keeper.spec.priority), &keeper.uid));
        free.into_iter().map(|keeper| keeper.uid.clone()).collect()
    }

    fn follow_master(&mut self, master: &DbUid) {
        for (uid, db) in &mut self.data.dbs {
            if uid == master || db.is_master_type() {
                continue;
            }
            let spec = &mut db.spec;
            spec.role = Some(Role::Standby);
            spec.followers.clear();
            let follow = FollowConfig::internal(master.clone());
            // Members of a newer format stay if the rest is as wanted.
            let same = |old: &FollowConfig| FollowConfig { extra: old.extra.clone(), ..follow.clone() } == *old;
            if !spec.follow_config.as_ref().is_some_and(same) {
                spec.follow_config = Some(follow);
            }
            spec.synchronous_replication = false;
            spec.synchronous_standbys = None;
            spec.external_synchronous_standbys = None;
            db.status.synchronous_standbys = None;
        }
    }
}
