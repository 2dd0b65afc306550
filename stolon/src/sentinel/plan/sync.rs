//! The synchronous set of the master.
//!
//! Three lists of one db: *wanted* (`spec`) is what its commits wait for once the keeper has applied it; *known*
//! (`status`) are those of them that were seen in sync since they were wanted; *current* is what the keeper
//! reports now. Only a db that is wanted and known holds every commit. A set changes in two steps: the old and
//! the new members together first, the old ones leave when all are known.

use super::judge::{Class, Validity};
use super::memory::info_of;
use super::reason::list;
use super::{Planner, Reason};
use model::DbUid;
use model::stolon::PostgresBinaryVersion;
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// Name of a standby that never comes: commits block while it is waited for.
pub(super) const FAKE_STANDBY: &str = "stolonfakestandby";
/// Up to this version PostgreSQL waits for one standby only.
const ONE_STANDBY: PostgresBinaryVersion = PostgresBinaryVersion { major: 9, minor: 5 };

/// A possible member.
#[derive(Clone, Debug)]
struct Member {
    uid: DbUid,
    class: Class,
    healthy: bool,
    priority: i64,
    position: u64,
    /// May be added.
    eligible: bool,
    /// The master does not get its confirmations.
    detached: bool,
    /// The master reports that it streams, or is of a kind that does not tell: commits would not wait long for it.
    ready: bool,
}

struct Limits {
    min: usize,
    max: usize,
    merge: bool,
}

impl Planner<'_> {
    /// Sets the master's lists; `standbys` are the valid standbys.
    pub(super) fn keep_synchronous_set(&mut self, master: &DbUid) {
        let wanted = if self.sync_mode() { self.synchronous_set(master) } else { None };
        if !self.sync_mode()
            && let Some(db) = self.data.dbs.get_mut(master)
        {
            db.spec.synchronous_replication = false;
            db.spec.synchronous_standbys = None;
            db.spec.external_synchronous_standbys = None;
            db.status.synchronous_standbys = None;
        }
        if let Some((wanted, fake)) = wanted
            && let Some(db) = self.data.dbs.get_mut(master)
        {
            let changed = db.spec.synchronous_standbys.as_ref() != Some(&wanted);
            let known = db.status.synchronous_standbys.take().unwrap_or_default();
            db.status.synchronous_standbys = Some(known.into_iter().filter(|uid| wanted.contains(uid)).collect());
            db.spec.synchronous_replication = true;
            let text =
                list(wanted.iter().map(DbUid::as_str).chain(fake.then_some(FAKE_STANDBY)).collect::<Vec<_>>().iter());
            db.spec.synchronous_standbys = Some(wanted);
            db.spec.external_synchronous_standbys = Some(if fake { vec![FAKE_STANDBY.to_owned()] } else { Vec::new() });
            if changed {
                self.say(Reason::SyncSet(master.clone(), text));
            }
        }
    }

    /// The new wanted list and whether commits must block; `None` while members are not known in sync.
    fn synchronous_set(&mut self, master: &DbUid) -> Option<(Vec<DbUid>, bool)> {
        let members = self.members(master);
        let previous = self.settled_set(master, &members)?;
        let limits = self.sync_limits(master);
        let mut new = self.chosen_set(master, &previous, &members, &limits);
        // Too few: rather wait for one that may come back than for nobody.
        for uid in &previous {
            if new.len() < limits.min && self.data.dbs.contains_key(uid) {
                new.insert(uid.clone());
            }
        }
        if limits.merge && new.iter().any(|uid| !previous.contains(uid)) {
            new.extend(previous.iter().filter(|uid| self.data.dbs.contains_key(*uid)).cloned());
        }
        let fake = new.len() < limits.min;
        Some((new.into_iter().collect(), fake))
    }

    fn sync_limits(&self, master: &DbUid) -> Limits {
        let keeper = self.db(master).and_then(|db| self.keeper_of(db));
        let version = keeper.map(|keeper| keeper.status.postgres_binary_version).unwrap_or_default();
        if version != PostgresBinaryVersion::default() && version <= ONE_STANDBY {
            return Limits { min: 1, max: 1, merge: false };
        }
        let (min, max) = (self.spec.min_synchronous_standbys, self.spec.max_synchronous_standbys);
        Limits { min: min.into(), max: max.into(), merge: true }
    }

    fn members(&mut self, master: &DbUid) -> Vec<Member> {
        let timeline = self.db(master).map(|db| db.status.timeline_id);
        let info = self.db(master).and_then(|db| info_of(&self.data, self.observed, &db.spec.keeper_uid));
        let streaming = info.and_then(|info| info.streaming.as_ref());
        let uids: Vec<DbUid> = self.data.dbs.keys().filter(|uid| *uid != master).cloned().collect();
        let mut members = Vec::new();
        for uid in uids {
            let class = self.class(&uid);
            let valid = self.validity(&uid, master) == Validity::Valid;
            let detached = self.detached(&uid, master);
            let Some(db) = self.db(&uid) else { continue };
            let able = self.keeper_of(db).is_some_and(|k| k.status.can_be_synchronous_replica != Some(false));
            members.push(Member {
                class: if valid && !db.is_master_type() { class } else { Class::Failed },
                healthy: db.status.healthy,
                priority: self.priority(db),
                position: db.status.xlog_pos,
                eligible: able && class == Class::Good && valid && !detached && Some(db.status.timeline_id) == timeline,
                detached,
                ready: streaming.is_none_or(|streaming| streaming.contains(&uid)),
                uid,
            });
        }
        // Whom to take first: the most advanced, as in an election.
        members.sort_by_key(|m| (Reverse(m.position), Reverse(m.priority), m.uid.clone()));
        members
    }

    /// The link between this standby and the master is broken, though both are well. Commits would wait for it as long
    /// as that lasts, so it leaves if it may, and comes back once it has reached the position that the master had then.
    fn detached(&mut self, uid: &DbUid, master: &DbUid) -> bool {
        let limit = self.spec.fail_interval.to_std();
        let since = self.memory.dbs.get(master).and_then(|memory| memory.missing.get(uid)).copied();
        if since.is_some_and(|since| self.passed(since, limit)) {
            let position = self.db(master).map_or(0, |db| db.status.xlog_pos);
            self.memory.detached.entry(uid.clone()).or_insert((master.clone(), position));
        } else if let Some((_, position)) = self.memory.detached.get(uid)
            && since.is_none()
            && self.db(uid).is_none_or(|db| db.status.xlog_pos >= *position)
        {
            self.memory.detached.remove(uid);
        }
        self.memory.detached.contains_key(uid)
    }

    /// Takes what is reported in sync into the known list. Gives the wanted list when all of it is known.
    fn settled_set(&mut self, master: &DbUid, members: &[Member]) -> Option<BTreeSet<DbUid>> {
        let current = self.memory.dbs.get(master).map(|db| db.in_sync.clone()).unwrap_or_default();
        let db = self.data.dbs.get_mut(master)?;
        let set = |list: &Option<Vec<DbUid>>| list.iter().flatten().cloned().collect::<BTreeSet<_>>();
        let (mut wanted, mut known) = (set(&db.spec.synchronous_standbys), set(&db.status.synchronous_standbys));
        if known != wanted {
            known = wanted.iter().filter(|uid| known.contains(*uid) || current.contains(uid)).cloned().collect();
            let stays = |uid: &&DbUid| members.iter().any(|member| member.uid == **uid && member.stays());
            if !wanted.difference(&known).all(|uid| stays(&uid)) {
                wanted.clone_from(&known);
            }
            db.status.synchronous_standbys = Some(known.iter().cloned().collect());
            db.spec.synchronous_standbys = Some(wanted.iter().cloned().collect());
        }
        if known == wanted {
            return Some(wanted);
        }
        db.spec.synchronous_replication = true;
        let missing = list(wanted.difference(&known));
        self.say(Reason::SyncWait(master.clone(), missing));
        None
    }

    fn chosen_set(
        &self,
        master: &DbUid,
        previous: &BTreeSet<DbUid>,
        members: &[Member],
        limits: &Limits,
    ) -> BTreeSet<DbUid> {
        let least = self.db(master).map_or(0, |db| self.priority(db));
        let mut staying: Vec<&Member> = members.iter().filter(|m| previous.contains(&m.uid) && m.stays()).collect();
        let mut coming: Vec<&Member> = members.iter().filter(|m| m.eligible && !previous.contains(&m.uid)).collect();
        // A keeper that should be master can become it only as a member, so it may take another one's place.
        coming.sort_by_key(|m| Reverse(m.priority.max(least)));
        // One that still catches up would hold up every commit. Only where commits have to wait anyway it may as well be
        // waited for.
        let (mut coming, late): (Vec<&Member>, Vec<&Member>) = coming.into_iter().partition(|m| m.ready);
        coming.extend(late.into_iter().take(limits.min.saturating_sub(staying.len().min(limits.max) + coming.len())));
        staying.sort_by_key(|m| Reverse(m.priority));
        staying.truncate(limits.max);
        if let (Some(first), Some(last)) = (coming.first(), staying.last())
            && staying.len() == limits.max
            && first.priority > least.max(last.priority)
        {
            staying.pop();
        }
        let free = limits.max - staying.len();
        staying.into_iter().chain(coming.into_iter().take(free)).map(|member| member.uid.clone()).collect()
    }
}

impl Member {
    /// Need not leave. A member that applies a new generation is as good as before: without this, every change
    /// of a parameter would empty the set for a moment, and nobody could be elected in it.
    fn stays(&self) -> bool {
        match self.class {
            _ if self.detached => false,
            Class::Good => true,
            Class::Converging => self.healthy,
            Class::Failed => false,
        }
    }
}
