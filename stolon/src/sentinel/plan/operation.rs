//! What an operator asked for: whether it can be done, and how far it is.
//!
//! A switchover makes its keeper the favourite, whose priority is above all others. Everything else follows from
//! that: it is taken into the synchronous set, and the clean switch of [`super::switch`] moves the master to it.
//! When it has become master it stays the favourite, so that priorities do not move the master back, until it fails
//! or an operator releases it.

use super::{Planner, Reason};
use model::stolon::Db;
use model::stolon::ext::{Action, Operation, OperationStep, Order, Phase, Preference, Progress};
use model::{DbUid, KeeperUid};
use std::collections::BTreeMap;

/// So many steps are kept: more than any operation has.
const STEPS: usize = 30;

/// What is to be written besides cluster data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notes {
    /// How far the operator's request is; `None`: as it is stored.
    pub progress: Option<Progress>,
    /// The favourite to store, or that there is none any more; `None`: as it is stored.
    pub preference: Option<Option<Preference>>,
    /// Orders to keepers to write, and those to delete; keepers that are not listed: as they are stored.
    pub orders: BTreeMap<KeeperUid, Option<Order>>,
}

impl Notes {
    /// Nothing is to be written.
    pub fn is_empty(&self) -> bool {
        *self == Notes::default()
    }
}

impl Planner<'_> {
    /// Looks at what is asked for and who is the favourite.
    pub(super) fn take_request(&mut self, master: &DbUid) {
        let stored = self.observed.preference.as_ref().filter(|stored| self.is_ours(&stored.cluster_uid));
        self.favourite = stored.map(|stored| stored.keeper.clone()).filter(|uid| self.data.keepers.contains_key(uid));
        let request = self.observed.operation.as_ref().filter(|request| self.is_ours(&request.cluster_uid));
        let Some(request) = request.filter(|request| !request.id.is_empty() && !self.has_ended(request)) else {
            return;
        };
        self.request = Some(request.clone());
        match &request.action {
            None => self.end_request(Phase::Failed, "this sentinel does not know what is asked for; update it"),
            Some(Action::Elect(_) | Action::Restart(_)) => {}
            Some(Action::Switchover(keeper)) => match self.refusal(keeper, master) {
                Some(why) => self.end_request(Phase::Failed, &why),
                None => self.favourite = Some(keeper.clone()),
            },
        }
    }

    fn is_ours(&self, cluster_uid: &str) -> bool {
        *cluster_uid == self.data.cluster.uid
    }

    fn has_ended(&self, request: &Operation) -> bool {
        let progress = self.observed.progress.as_ref();
        progress.is_some_and(|progress| progress.id == request.id && progress.phase != Phase::Running)
    }

    /// Why it makes no sense to wait for this keeper.
    fn refusal(&self, keeper: &KeeperUid, master: &DbUid) -> Option<String> {
        let Some(known) = self.data.keepers.get(keeper) else {
            return Some(format!("there is no keeper \"{keeper}\"; `stolonctl status` lists those there are"));
        };
        let Some(db) = self.data.db_of_keeper(keeper) else {
            return Some(format!("keeper \"{keeper}\" has no db; `stolonctl why keeper {keeper}` says more"));
        };
        if db.uid == *master {
            return None;
        }
        if !known.status.healthy {
            return Some(format!("keeper \"{keeper}\" is not healthy"));
        }
        if known.status.can_be_master == Some(false) {
            return Some(format!("keeper \"{keeper}\" must not become master (--can-be-master=false)"));
        }
        if self.sync_mode() && known.status.can_be_synchronous_replica == Some(false) {
            return Some(format!(
                "keeper \"{keeper}\" can't hold every commit: commits never wait for it (--can-be-synchronous-replica=false)"
            ));
        }
        None
    }

    /// The keeper that a switchover is asked for.
    pub(super) fn switchover_to(&self) -> Option<&KeeperUid> {
        match self.request.as_ref()?.action.as_ref()? {
            Action::Switchover(keeper) => Some(keeper),
            Action::Elect(_) | Action::Restart(_) => None,
        }
    }

    pub(super) fn request_id(&self) -> Option<String> {
        self.request.as_ref().map(|request| request.id.clone())
    }

    /// A step of the request, or what it waits for.
    pub(super) fn note_step(&mut self, text: &str) {
        self.note(Phase::Running, text);
    }

    /// The request has ended.
    pub(super) fn end_request(&mut self, phase: Phase, text: &str) {
        self.note(phase, text);
        if let Some(request) = self.request.take() {
            let what = request.action.as_ref().map_or_else(|| "an unknown request".to_owned(), Action::describe);
            let by = request.requested_by;
            self.say(match phase {
                Phase::Failed => Reason::RequestFailed { what, by, why: text.to_owned() },
                Phase::Running | Phase::Done => Reason::RequestDone { what, by },
            });
        }
    }

    fn note(&mut self, phase: Phase, text: &str) {
        let Some(request) = &self.request else { return };
        let stored = self.observed.progress.as_ref().filter(|progress| progress.id == request.id);
        let mut progress = self.notes.progress.take().or_else(|| stored.cloned()).unwrap_or_default();
        if progress.id == request.id && progress.phase == phase && progress.steps.iter().any(|step| step.text == text) {
            if stored != Some(&progress) {
                self.notes.progress = Some(progress);
            }
            return;
        }
        progress.id.clone_from(&request.id);
        progress.operation = request.action.as_ref().map(Action::describe).unwrap_or_default();
        progress.phase = phase;
        progress.steps.push(OperationStep { at: self.now.wall, text: text.to_owned() });
        let excess = progress.steps.len().saturating_sub(STEPS);
        progress.steps.drain(..excess);
        self.notes.progress = Some(progress);
    }

    /// The request's progress as it is to be stored.
    pub(super) fn progress_now(&self) -> Option<&Progress> {
        let id = &self.request.as_ref()?.id;
        let progress = self.notes.progress.as_ref().or(self.observed.progress.as_ref());
        progress.filter(|progress| progress.id == *id)
    }

    /// `new` was appointed: whom does that make the favourite.
    pub(super) fn renew_preference(&mut self, new: &DbUid) {
        // Moved for a restart, it may go back afterwards.
        if self.is_restart_asked() {
            return;
        }
        let Some(keeper) = self.db(new).map(|db| db.spec.keeper_uid.clone()) else { return };
        if self.switchover_to() == Some(&keeper) {
            let priority = |uid: &KeeperUid| self.data.keepers.get(uid).map_or(0, |keeper| keeper.spec.priority);
            let outranked = self.data.keepers.keys().any(|other| priority(other) > priority(&keeper));
            let cluster_uid = self.data.cluster.uid.clone();
            let favourite = Preference { cluster_uid, keeper, since: self.now.wall, ..Default::default() };
            // Nothing would move the master back: then nothing need be remembered, nor released later.
            self.set_preference(outranked.then_some(favourite));
        } else if self.favourite.as_ref() != Some(&keeper) {
            if let Some(favourite) = self.favourite.take() {
                self.say(Reason::FavouriteFailed(favourite));
            }
            self.set_preference(None);
        }
    }

    fn set_preference(&mut self, wanted: Option<Preference>) {
        if wanted.is_some() || self.observed.preference.is_some() {
            self.notes.preference = Some(wanted);
        }
    }

    /// Ends a request whose keeper is master and in service.
    pub(super) fn finish_request(&mut self) {
        let Some(action) = self.request.as_ref().and_then(|request| request.action.clone()) else { return };
        let (Action::Switchover(keeper) | Action::Elect(keeper)) = action else { return };
        let master = &self.data.cluster.status.master;
        if self.db(master).is_none_or(|db| db.spec.keeper_uid != keeper) {
            return;
        }
        if self.data.proxy.spec.master_db_uid == *master {
            self.end_request(Phase::Done, &format!("keeper \"{keeper}\" is master and in service"));
        } else {
            self.note_step("waiting for the new master to be promoted");
        }
    }

    /// The keeper whose db is to be elected, whatever it lacks.
    fn elect_wanted(&self) -> Option<KeeperUid> {
        match self.request.as_ref()?.action.as_ref()? {
            Action::Elect(keeper) => Some(keeper.clone()),
            Action::Switchover(_) | Action::Restart(_) => None,
        }
    }

    /// A healthy master is not replaced by force.
    pub(super) fn refuse_force(&mut self, master: &DbUid) {
        let Some(keeper) = self.elect_wanted() else { return };
        if self.db(master).is_some_and(|db| db.spec.keeper_uid != keeper) {
            self.end_request(Phase::Failed, "the master is healthy, no data need be lost: use `stolonctl switchover`");
        }
    }

    /// Nobody may become master without losing commits, and an operator named one who shall. It must at least be a
    /// running copy of this cluster's data.
    pub(super) fn elect_by_force(&mut self, master: &DbUid) -> Option<DbUid> {
        let keeper = self.elect_wanted()?;
        let refusal = match self.data.db_of_keeper(&keeper) {
            _ if !self.data.keepers.contains_key(&keeper) => Some(format!("there is no keeper \"{keeper}\"")),
            None => Some(format!("keeper \"{keeper}\" has no db")),
            Some(db) if db.uid == *master => Some("it is the master that failed; start its keeper".to_owned()),
            Some(db) if !self.reporting(db) => {
                Some(format!("keeper \"{keeper}\" does not report a healthy PostgreSQL; start it first"))
            }
            Some(db) if db.status.current_generation == 0 => Some("its db is still being made".to_owned()),
            Some(db) if self.is_foreign(db, master) => Some("its data is of another system".to_owned()),
            Some(_) => None,
        };
        if let Some(why) = refusal {
            self.end_request(Phase::Failed, &why);
            return None;
        }
        let db = self.data.db_of_keeper(&keeper)?;
        let (new, position) = (db.uid.clone(), db.status.xlog_pos);
        let lost = self.db(master).map_or(0, |old| old.status.xlog_pos.saturating_sub(position));
        let by = self.request.as_ref().map(|request| request.requested_by.clone()).unwrap_or_default();
        self.say(Reason::ForcedElection { to: new.clone(), keeper, by, lost });
        self.note_step("elected; commits that only others had are lost");
        Some(new)
    }

    fn is_foreign(&self, db: &Db, master: &DbUid) -> bool {
        let old = self.db(master).map(|db| db.status.system_id.as_str()).unwrap_or_default();
        !old.is_empty() && !db.status.system_id.is_empty() && old != db.status.system_id
    }
}
