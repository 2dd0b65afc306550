//! Who may become master, and what changes when somebody does.

use super::memory::{Freshness, info_of};
use super::sync::FAKE_STANDBY;
use super::{Planner, Reason};
use model::DbUid;
use model::stolon::{ClusterRole, Db, Role};
use std::cmp::Reverse;

/// A db that may become master.
#[derive(Clone, Debug)]
struct Candidate {
    uid: DbUid,
    /// Its keeper reports it healthy right now; otherwise it is only not yet given up.
    reporting: bool,
    /// Later than others' where it has followed a master that was promoted and lost before it could say so.
    timeline: u64,
    priority: i64,
    position: u64,
}

impl Planner<'_> {
    pub(super) fn sync_mode(&self) -> bool {
        self.spec.synchronous_replication && self.spec.role == ClusterRole::Master
    }

    /// Without synchronous replication the most advanced one wins, since every byte may be a commit. With it all
    /// that are allowed have every commit, so priority decides.
    pub(super) fn elect(&mut self, master: &DbUid) -> Option<DbUid> {
        let db = self.db(master)?;
        let synchronous = db.spec.synchronous_replication;
        let (candidates, obstacles) = self.candidates(master);
        let rank = |c: &Candidate| {
            let order = if synchronous {
                (i128::from(c.priority), c.position.into())
            } else {
                (c.position.into(), i128::from(c.priority))
            };
            (Reverse(c.reporting), Reverse(c.timeline), Reverse(order), c.uid.clone())
        };
        let best = candidates.into_iter().min_by_key(rank).map(|candidate| candidate.uid);
        if best.is_none() {
            let why = if obstacles.is_empty() { "there is no other db".to_owned() } else { obstacles.join("; ") };
            self.say(Reason::NoCandidate(master.clone(), why));
        }
        best
    }

    /// Dbs that hold every commit that the master acknowledged: those that its commits wait for and that were
    /// seen in sync since. And while a new master is not ready yet, the old one, if the new one's commits wait
    /// for it: the new one then can't have acknowledged any alone.
    pub(super) fn holders_of_all_commits(&self, master: &DbUid) -> Vec<DbUid> {
        let Some(db) = self.db(master) else { return Vec::new() };
        let wanted = db.spec.synchronous_standbys.as_deref().unwrap_or_default();
        let known = db.status.synchronous_standbys.as_deref().unwrap_or_default();
        let closed = self.data.proxy.spec.master_db_uid.is_empty();
        let old_master =
            |uid: &DbUid| closed && self.db(uid).is_some_and(|db| db.is_master_type() || self.is_handed_over(db));
        wanted.iter().filter(|uid| known.contains(uid) || old_master(uid)).cloned().collect()
    }

    /// It was stopped as the master, and has followed nobody since.
    pub(super) fn is_handed_over(&self, db: &Db) -> bool {
        let info = info_of(&self.data, self.observed, &db.spec.keeper_uid);
        info.and_then(|info| info.handed_over.as_ref()).is_some_and(|done| done.db == db.uid)
    }

    /// Who may replace the master, and of the others why not.
    fn candidates(&mut self, master: &DbUid) -> (Vec<Candidate>, Vec<String>) {
        let uids: Vec<DbUid> = self.data.dbs.keys().filter(|uid| *uid != master).cloned().collect();
        let (mut candidates, mut obstacles) = (Vec::new(), Vec::new());
        for uid in uids {
            let obstacle = self.obstacle_to_election(&uid, master);
            let Some(db) = self.db(&uid) else { continue };
            match obstacle {
                Some(why) => obstacles.push(format!("db \"{uid}\" of keeper \"{}\": {why}", db.spec.keeper_uid)),
                None => candidates.push(Candidate {
                    reporting: self.reporting(db),
                    timeline: db.status.timeline_id,
                    priority: self.priority(db),
                    position: db.status.xlog_pos,
                    uid,
                }),
            }
        }
        (candidates, obstacles)
    }

    /// The keeper reports this db healthy right now.
    pub(super) fn reporting(&self, db: &Db) -> bool {
        self.memory.freshness(&db.spec.keeper_uid) == Freshness::Fresh
            && self.memory.dbs.get(&db.uid).is_some_and(|memory| memory.error.is_none())
    }

    /// Makes `new` the wanted master. Its role only changes; who forwards to it is decided when it is ready.
    pub(super) fn appoint(&mut self, old: &DbUid, new: &DbUid) {
        let Some(keeper) = self.db(new).map(|db| db.spec.keeper_uid.clone()) else { return };
        self.close_proxies();
        let (waiting, external_standbys) = self.inherited_set(old, new);
        let known = waiting.as_ref().map(|list| self.inherited_holders(old, list));
        let external = (self.spec.role == ClusterRole::Standby).then(|| self.follow_external());
        self.data.cluster.status.master = new.clone();
        if let Some(db) = self.data.dbs.get_mut(new) {
            db.spec.role = Some(if external.is_some() { Role::Standby } else { Role::Master });
            db.spec.follow_config = external;
            db.spec.synchronous_replication = waiting.is_some();
            db.spec.external_synchronous_standbys = external_standbys;
            db.spec.synchronous_standbys = waiting;
            // Not those that were in sync with this db when it was master long ago.
            db.status.synchronous_standbys = known;
        }
        if let Some(db) = self.data.dbs.get_mut(old).filter(|db| !db.is_master_type()) {
            // It was to be handed over: it is a standby like any other from now on.
            db.spec.synchronous_replication = false;
            db.spec.synchronous_standbys = None;
            db.spec.external_synchronous_standbys = None;
            db.status.synchronous_standbys = None;
        }
        self.delete_followers_of_nobody(old, new);
        self.forget_switch();
        self.renew_preference(new);
        if let Some(keeper) = self.db(old).map(|db| db.spec.keeper_uid.clone()) {
            // Whether it was stopped for the switch, or failed: it is started anew.
            self.note_restarted(&keeper);
        }
        self.say(Reason::NewMaster { from: old.clone(), to: new.clone(), keeper });
    }

    /// Who has every commit of the old master, and is waited for from the first commit of the new one.
    fn inherited_holders(&self, old: &DbUid, waited_for: &[DbUid]) -> Vec<DbUid> {
        let Some(old) = self.db(old).filter(|db| db.spec.synchronous_replication) else { return Vec::new() };
        let known = old.status.synchronous_standbys.iter().flatten();
        known.filter(|uid| waited_for.contains(uid)).cloned().collect()
    }

    /// A standby on a later timeline than the new master followed one that was promoted and given up before it could say
    /// so. The new master's timeline will have the same number, and then the two can't be told apart any more.
    fn delete_followers_of_nobody(&mut self, old: &DbUid, new: &DbUid) {
        let Some(timeline) = self.db(new).map(|db| db.status.timeline_id) else { return };
        let strays = self.data.dbs.values().filter(|db| !db.is_master_type() && db.uid != *old && db.uid != *new);
        let strays: Vec<DbUid> =
            strays.filter(|db| db.status.timeline_id > timeline).map(|db| db.uid.clone()).collect();
        for uid in strays {
            self.delete(&uid, "it followed a promotion that was given up");
        }
    }

    /// Whom the commits of `new` are to wait for from the first one, and names of others that never come.
    pub(super) fn inherited_set(&self, old: &DbUid, new: &DbUid) -> (Option<Vec<DbUid>>, Option<Vec<String>>) {
        let waiting = self.sync_mode().then(|| self.inherited_standbys(old, new));
        let fake = |list: &Vec<DbUid>| list.is_empty() && self.spec.min_synchronous_standbys > 0;
        let names = |list| if fake(list) { vec![FAKE_STANDBY.to_owned()] } else { Vec::new() };
        let external = waiting.as_ref().map(names);
        (waiting, external)
    }

    /// The old master's list with the new one replaced by the old one.
    fn inherited_standbys(&self, old: &DbUid, new: &DbUid) -> Vec<DbUid> {
        let wanted = self.db(old).and_then(|db| db.spec.synchronous_standbys.clone()).unwrap_or_default();
        let mut list: Vec<DbUid> = wanted
            .into_iter()
            .map(|uid| if uid == *new { old.clone() } else { uid })
            .filter(|uid| uid != new)
            .collect();
        list.sort();
        list.dedup();
        list
    }
}
