//! What to do next: a pure function of what is on this host and what the cluster data says.
//!
//! A plan is the shortest list of steps whose outcome is known beforehand. Where a later decision depends on what
//! a step finds or makes, the plan ends with `again` and the next one starts from a new look.

mod init;
#[cfg(test)]
mod init_tests;
mod step;
#[cfg(test)]
mod tests;

pub use step::{
    Attempt, Data, Files, Local, OrderStage, Ordered, Plan, Recover, Refused, Resync, RoleFiles, Running, Setup, Step,
};

use super::datadir::DbState;
use super::postgres::conf::{self, ConfInput, Recovery};
use super::postgres::conninfo::{self, Secrets, Source};
use super::postgres::control::{Control, ControlState};
use super::postgres::hba::{self, HbaInput};
use super::postgres::slots;
use model::DbUid;
use model::stolon::ext::Work;
use model::stolon::{ClusterData, Db, EffectiveSpec, FollowType, HandedOver, InitMode, Role, SuReplAccess};
use std::collections::BTreeSet;

/// Plans one pass. The specification must be that of `data`.
pub fn plan(setup: &Setup, local: &Local, data: &ClusterData, spec: &EffectiveSpec) -> Plan {
    if data.cluster.uid.is_empty() || data.cluster.uid == local.cluster_uid {
        return plan_keeper(setup, local, data, spec);
    }
    if is_foreign(setup, local, spec) {
        return Plan::problem(format!(
            "this data directory belongs to stolon cluster {}, but the store describes {}; postgres is left as it is; \
             to join the new cluster stop this keeper and move {} away",
            local.cluster_uid, data.cluster.uid, setup.directory
        ));
    }
    plan_keeper(setup, local, data, spec).before(Step::SaveClusterUid(data.cluster.uid.clone()))
}

/// The store was made again, and our data is of the cluster before. Joining would mean to give the data up, which a lost
/// or mistaken store must not be able to demand of all copies at once. An operator who names this keeper as the one
/// whose data goes on is believed.
fn is_foreign(setup: &Setup, local: &Local, spec: &EffectiveSpec) -> bool {
    // What an interrupted initialisation left was never anybody's data, and goes to trash if anything replaces it.
    let holds_data = !local.state.initializing && (local.data != Data::Missing || !local.state.uid.is_empty());
    let named = spec.init_mode == InitMode::Existing
        && spec.existing_config.as_ref().is_some_and(|config| config.keeper_uid == setup.uid);
    !local.cluster_uid.is_empty() && holds_data && !named
}

fn plan_keeper(setup: &Setup, local: &Local, data: &ClusterData, spec: &EffectiveSpec) -> Plan {
    let Some(keeper) = data.keepers.get(&setup.uid) else {
        return Plan::waiting("the sentinel does not know this keeper yet");
    };
    let Some(db) = data.db_of_keeper(&setup.uid) else {
        let stop = local.running.map(|_| Step::Stop("no db is assigned to this keeper"));
        return Plan {
            steps: stop.into_iter().collect(),
            waiting: Some("no db is assigned to this keeper"),
            ..Default::default()
        };
    };
    if keeper.status.boot_uuid != setup.boot_uuid {
        // A running instance stays as the previous keeper process left it.
        return Plan::waiting("the sentinel does not know this start of the keeper yet");
    }
    let context = Context { setup, local, data, spec, db };
    if local.state.initializing || local.state.uid != db.uid {
        return context.initialize();
    }
    if db.generation < local.state.generation {
        return Plan::problem(format!(
            "the store asks for generation {} of db {}, but {} was applied here already, so an older copy of the store was \
             restored; if its contents are right, stop this keeper, set Generation in {}/dbstate to {} and start it",
            db.generation, db.uid, local.state.generation, setup.directory, db.generation
        ));
    }
    match db.spec.role {
        Some(Role::Master) => context.master(),
        Some(Role::Standby) => context.standby(),
        None => Plan::problem(format!("db {} has no role", db.uid)),
    }
}

struct Context<'a> {
    setup: &'a Setup,
    local: &'a Local,
    data: &'a ClusterData,
    spec: &'a EffectiveSpec,
    db: &'a Db,
}

impl Context<'_> {
    fn resync(&self) -> Plan {
        let (followed, source) = match self.followed() {
            Ok(found) => found,
            Err(problem) => return problem,
        };
        let master =
            self.data.dbs.get(&self.data.cluster.status.master).filter(|db| !db.status.listen_address.is_empty());
        let standby_master = master.is_some_and(|db| db.spec.role == Some(Role::Standby));
        let attempt = match self.local.data {
            Data::Present { control, standby, .. }
                if self.db.spec.use_pgrewind
                    && master.is_some()
                    && control.system_id.to_string() == followed.status.system_id =>
            {
                match &self.local.state {
                    // An interrupted rewind is repeated with its source; a done one need not be.
                    DbState { initializing: true, rewinding: Some(begun), .. }
                        if master.is_some_and(|db| db.uid == begun.source) =>
                    {
                        if begun.done {
                            Attempt::Start
                        } else {
                            Attempt::Rewind
                        }
                    }
                    // Another interrupted change of the files can't be taken up again.
                    DbState { initializing: true, .. } => Attempt::BaseBackup,
                    // Where nobody writes, a standby has nothing that would have to be rewound.
                    _ if standby && (standby_master || !control.state.is_clean()) => Attempt::Start,
                    _ => Attempt::Rewind,
                }
            }
            _ => Attempt::BaseBackup,
        };
        let recovery = self.recovery(&source);
        let resync = Resync {
            db: self.db.uid.clone(),
            attempt,
            master: master.map_or_else(|| (followed.uid.clone(), source.clone()), |db| (db.uid.clone(), source_of(db))),
            followed: source,
            timeline: followed.status.timeline_id,
            standby_master,
            slot: slots::name(&self.db.uid),
            files: self.files(Some(&recovery), false),
            ready_limit: self.ready_limit(),
        };
        Plan::then_again([Step::Resync(Box::new(resync)), Step::MarkInitialized(self.db.uid.clone())])
    }

    fn master(&self) -> Plan {
        let Data::Present { standby, files: marks, .. } = self.local.data else {
            return Plan::problem(format!(
                "the data of master db {} is missing; restore the data directory",
                self.db.uid
            ));
        };
        let sync = self.db.spec.synchronous_replication;
        let Some(running) = self.local.running else {
            // Restarting made commits visible that still waited for a standby, so nobody may see them before
            // the standbys have them.
            // Nor may anybody write to a master that the cluster has given up meanwhile.
            let restricted = sync || self.is_given_up();
            let files = self.files(None, restricted);
            let mut steps = vec![Step::SetSyncWait(restricted)];
            if !standby {
                steps.extend(self.take_hand_over_back());
            }
            if standby {
                steps.push(Step::MarkStandby);
            } else if marks.standby || marks.recovery {
                steps.push(Step::MarkPrimary);
            }
            steps.extend([Step::WriteFiles(files), Step::Start, Step::WaitReady(self.ready_limit())]);
            return Plan::then_again(steps);
        };
        if let Some(plan) = self.settle(running) {
            return plan;
        }
        if standby && self.is_given_up() {
            // Promoted now it would take the number of its successor's timeline, and the two be taken for one.
            return Plan::waiting("another db was elected before this one was promoted");
        }
        if standby {
            // The synchronous standbys are in force before the first commit can happen. What is in an archive is replayed
            // before it: the master that wrote it may be gone.
            let restore_command = self.local.conf.as_deref().and_then(|conf| conf::unquoted(conf, "restore_command"));
            let recovery = restore_command.map(|restore_command| Recovery { restore_command, ..Default::default() });
            let files = self.files(recovery.as_ref(), self.still_waiting());
            if self.is_equipped(&files) {
                return Plan::then_again(self.take_hand_over_back().into_iter().chain([Step::Promote]));
            }
            let mut steps = self.configure(&files);
            steps.extend(self.take_hand_over_back());
            steps.push(Step::Promote);
            return Plan::then_again(steps);
        }
        let waiting = self.still_waiting();
        let files = self.files(None, waiting || self.is_given_up());
        let mut steps = Vec::new();
        if self.local.sync_wait != Some(waiting) {
            steps.push(Step::SetSyncWait(waiting));
        }
        let slots = self.ensure_slots(true, true);
        if self.local.checkpoint_owed && self.local.sync_wait == Some(waiting) && self.is_equipped(&files) {
            // Promoted a moment ago: clients wait for it to be told, and what is left can be done afterwards.
            steps.push(slots);
            return Plan { again: true, ..self.finish(steps, false) };
        }
        let configure = self.configure(&files);
        // A new standby needs its slot before commits wait for it. But a lack of slots must not keep commits waiting for
        // one that leaves.
        if self.only_leaves(&files) {
            steps.extend(configure.into_iter().chain([slots]));
        } else {
            steps.extend([slots].into_iter().chain(configure));
        }
        if self.is_given_up() {
            // Proxies have left it, or are about to. What clients of its own write from now on would be lost, even if they
            // are told otherwise, as where commits wait for nobody.
            steps.push(Step::EndSessions);
        }
        self.finish(steps, false)
    }

    /// Before an instance becomes a primary again, or follows somebody: what follows was not there when it was handed over.
    fn take_hand_over_back(&self) -> Option<Step> {
        self.local.state.handed_over.as_ref().map(|_| Step::TellHandedOver(None))
    }

    /// Its commits will wait for the right standbys, and it lets the right users in; all that is left to change is what
    /// only standbys look at.
    fn is_equipped(&self, files: &Files) -> bool {
        let standby = |conf: &str| conf::without(conf, &["primary_conninfo", "primary_slot_name"]);
        let names = conf::value(&files.conf, "synchronous_standby_names").unwrap_or_default();
        !self.local.reload_owed
            && self.local.names_in_force.as_deref() == Some(names)
            && self.local.hba.as_ref() == Some(&files.hba)
            && self.local.conf.as_deref().map(standby) == Some(standby(&files.conf))
    }

    /// The synchronous set gets smaller, and nobody joins it.
    fn only_leaves(&self, files: &Files) -> bool {
        let dbs =
            |conf: &str| conf::synchronous_dbs(conf::value(conf, "synchronous_standby_names").unwrap_or_default());
        let (old, new) = (dbs(self.local.conf.as_deref().unwrap_or_default()), dbs(&files.conf));
        old != new && new.is_subset(&old)
    }

    /// Another db is to be master, and this one was not told yet what to become.
    fn is_given_up(&self) -> bool {
        let master = &self.data.cluster.status.master;
        !master.is_empty() && *master != self.db.uid
    }

    fn standby(&self) -> Plan {
        let Data::Present { standby, control, .. } = self.local.data else {
            if self.setup.rebuild_lost_standby {
                return self.stopped_before("its data are gone", self.resync());
            }
            return Plan::problem(format!(
                "the data of standby db {} is missing; run `stolonctl removekeeper` to have it made again, or start the keeper \
                 with --rebuild-lost-standby",
                self.db.uid
            ));
        };
        let external = self.follows_external();
        let (recovery, settled) = if external {
            (self.external_recovery(), true)
        } else {
            let (followed, source) = match self.followed() {
                Ok(found) => found,
                Err(problem) => return problem,
            };
            if !standby {
                return self.hand_over(control, &source);
            }
            let settled =
                followed.uid == self.data.cluster.status.master && followed.is_master_type() && followed.converged();
            (self.recovery(&source), settled)
        };
        if !standby {
            return Plan::problem(format!(
                "this instance is, or was, a primary, but db {} is to follow a server outside; restore the directory, or run \
                 `stolonctl removekeeper` to have it made again",
                self.db.uid
            ));
        }
        let files = self.files(Some(&recovery), false);
        let Some(running) = self.local.running else {
            let steps = [Step::SetSyncWait(false), Step::MarkStandby, Step::WriteFiles(files), Step::Start];
            return Plan::then_again(steps.into_iter().chain([Step::WaitReady(self.ready_limit())]));
        };
        // Not ready yet is no reason to wait with a new primary_conninfo: it may be what it needs.
        if !running.ready && running.same_place && self.differs(&files) {
            return Plan::then_again([Step::WriteFiles(files), Step::Reload { sync_names: String::new() }]);
        }
        if let Some(plan) = self.settle(running) {
            return plan;
        }
        let mut steps: Vec<Step> = self.take_hand_over_back().filter(|_| settled).into_iter().collect();
        let configure = self.configure(&files);
        // One that stands for a master has followers of its own. So has one that is about to become the master: they find
        // their slots when they come, even before it is promoted. One that may have to be the master again keeps what its
        // followers have not received.
        let successor = !external && self.is_successor();
        let waits = !settled && self.local.state.handed_over.is_some();
        let slots = (!waits).then(|| self.ensure_slots(external || successor, external));
        if successor {
            steps.extend(slots.into_iter().chain(configure));
        } else {
            steps.extend(configure.into_iter().chain(slots));
        }
        self.finish(steps, waits)
    }

    /// A primary that is to follow its successor. Stopped cleanly it has sent everything to its standbys, and the
    /// sentinel chooses as successor only one that has all of it: then nothing has to be rewound.
    fn hand_over(&self, control: Control, successor: &Source) -> Plan {
        // Somebody promoted it who was not told to by the cluster, or was too late.
        if self.local.state.primary == Some(false) && self.is_given_up() {
            return self.stopped_before("it is a primary that the cluster does not want", self.resync());
        }
        match self.local.running {
            // Started as a standby a moment ago, which its control file says only when it has got so far.
            Some(running) if self.local.state.handed_over.is_some() && !running.ready => {
                return Plan::then_again([Step::WaitReady(self.ready_limit())]);
            }
            Some(_) => return Plan::then_again([Step::Stop("it is handed over to its successor")]),
            None => {}
        }
        if control.state != ControlState::ShutDown {
            // It died on the way, and may have what its successor has not.
            return if self.is_given_up() {
                self.resync()
            } else {
                Plan::waiting("this primary crashed while it was handed over; the sentinel has to decide who goes on")
            };
        }
        // The successor has a slot for it since it was chosen, and leads it to its next timeline when it is promoted.
        let files = self.files(Some(&self.recovery(successor)), false);
        let done = HandedOver { db: self.db.uid.clone(), xlog_pos: control.checkpoint };
        let steps =
            [Step::TellHandedOver(Some(done)), Step::SetSyncWait(false), Step::MarkStandby, Step::WriteFiles(files)];
        Plan::then_again(steps.into_iter().chain([Step::Start, Step::WaitReady(self.ready_limit())]))
    }

    /// A running instance that can't be worked with yet.
    fn settle(&self, running: Running) -> Option<Plan> {
        if !running.same_place {
            return Some(Plan::then_again([Step::Stop("its port or socket directory has changed")]));
        }
        let listens = self.local.conf.as_deref().and_then(|conf| conf::value(conf, "listen_addresses"));
        if listens.is_some_and(|listens| listens != self.setup.listen_address) {
            return Some(Plan::then_again([Step::Stop("its listen address has changed")]));
        }
        (!running.ready).then(|| Plan::then_again([Step::WaitReady(self.ready_limit())]))
    }

    /// Last steps of a pass that reached the wanted role.
    fn finish(&self, mut steps: Vec<Step>, waits_for_successor: bool) -> Plan {
        let mut told = None;
        match &self.local.order {
            Some(Ordered { id, work: Work::Restart, stage: OrderStage::CheckpointEnded }) => {
                return Plan::then_again(steps.into_iter().chain([Step::StopForOrder(id.clone())]));
            }
            Some(Ordered { id, work: Work::Restart, stage: OrderStage::Stopped })
            | Some(Ordered { id, work: Work::Checkpoint, stage: OrderStage::CheckpointEnded }) => {
                told = Some(Step::TellObeyed(id.clone()));
            }
            Some(Ordered { id, work: Work::Restart | Work::Checkpoint, stage: OrderStage::New }) => {
                steps.push(Step::PrepareOrder(id.clone()));
            }
            _ => {}
        }
        // Who is told when to restart does not restart by itself.
        let automatic = self.spec.automatic_pg_restart && self.local.order.is_none();
        steps.push(Step::RestartIfPending { automatic });
        let primary = self.db.spec.role == Some(Role::Master);
        let state = DbState {
            generation: self.db.generation,
            initializing: false,
            primary: Some(primary),
            announced: primary.then_some(self.db.status.timeline_id),
            handed_over: self.local.state.handed_over.clone().filter(|_| waits_for_successor),
            ..self.local.state.clone()
        };
        if state != self.local.state {
            steps.push(Step::SaveState(state));
        }
        if self.local.checkpoint_owed {
            steps.push(Step::Checkpoint);
        }
        // Last: what else the record says must be newer.
        steps.extend(told);
        Plan { steps, ..Default::default() }
    }

    fn still_waiting(&self) -> bool {
        // A keeper that died while it kept users out left the restricted file behind.
        let waited = self.local.sync_wait.unwrap_or_else(|| self.local.hba.as_deref() == Some(&self.hba(true)));
        if waited && self.is_given_up() {
            return true;
        }
        if !self.db.spec.synchronous_replication {
            return false;
        }
        let wanted: BTreeSet<DbUid> = self.db.spec.synchronous_standbys.iter().flatten().cloned().collect();
        waited && !wanted.is_empty() && self.local.in_sync.as_ref() != Some(&wanted)
    }

    fn differs(&self, files: &Files) -> bool {
        self.local.conf.as_deref() != Some(&files.conf) || self.local.hba.as_deref() != Some(&files.hba)
    }

    fn configure(&self, files: &Files) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.differs(files) {
            steps.push(Step::WriteFiles(files.clone()));
        }
        if self.differs(files) || self.local.reload_owed {
            let sync_names = conf::value(&files.conf, "synchronous_standby_names").unwrap_or_default().to_owned();
            steps.push(Step::Reload { sync_names });
        }
        steps
    }

    fn files(&self, recovery: Option<&Recovery>, restricted: bool) -> Files {
        let parameters = conf::parameters(&ConfInput {
            spec: &self.db.spec,
            init: self.local.state.init_pg_parameters.as_ref(),
            listen_address: &self.setup.listen_address,
            port: self.setup.port,
            socket_dir: &self.setup.socket_dir,
            recovery,
        });
        let conf = conf::render(&parameters);
        let conf = match &self.local.refused {
            Some(refused) if refused.parameters == self.db.spec.pg_parameters => {
                conf::with_users_part(&conf, &refused.instead)
            }
            _ => conf,
        };
        Files { conf, hba: self.hba(restricted) }
    }

    fn hba(&self, restricted: bool) -> String {
        let strict = self.spec.default_su_repl_access_mode == SuReplAccess::Strict;
        let others = self.data.dbs.values().filter(|db| strict && db.uid != self.db.uid);
        hba::render(&HbaInput {
            su: (&self.setup.su.0, self.setup.su.1),
            repl: (&self.setup.repl.0, self.setup.repl.1),
            access: self.spec.default_su_repl_access_mode,
            master_type: self.db.is_master_type() || self.is_successor(),
            others: others.map(|db| db.status.listen_address.as_str()).collect(),
            lines: self.db.spec.pg_hba.as_deref(),
            restricted,
        })
    }

    /// A standby that others will follow soon.
    fn is_successor(&self) -> bool {
        let slots = self.db.spec.additional_replication_slots.as_ref();
        !self.db.is_master_type() && slots.is_some_and(|slots| !slots.is_empty())
    }

    /// A master has slots for its followers and for the user, others have none.
    fn ensure_slots(&self, serves: bool, required: bool) -> Step {
        if !serves {
            return Step::EnsureSlots { wanted: BTreeSet::new(), additional: BTreeSet::new(), required: false };
        }
        let named = || self.db.spec.additional_replication_slots.iter().flatten();
        let wanted = slots::wanted(&self.db.uid, &self.db.spec.followers, named());
        let followers = slots::wanted(&self.db.uid, &self.db.spec.followers, []);
        let additional = wanted.difference(&followers).cloned().collect();
        Step::EnsureSlots { wanted, additional, required }
    }

    fn recovery(&self, source: &Source) -> Recovery {
        let slot = slots::name(&self.db.uid);
        let (user, parameters) = (&self.setup.repl.0, &self.db.spec.pg_parameters);
        let conninfo = conninfo::primary(source, user, &slot, &self.secrets(), parameters);
        Recovery { primary_conninfo: conninfo, primary_slot_name: slot, ..Default::default() }
    }

    fn secrets(&self) -> Secrets<'_> {
        Secrets { passfile: self.setup.passfile.as_deref(), tls: &self.setup.tls }
    }

    /// The followed db and how to reach it.
    fn followed(&self) -> Result<(&Db, Source), Plan> {
        let follow = self.db.spec.follow_config.clone().unwrap_or_default();
        if follow.kind != Some(FollowType::Internal) {
            return Err(Plan::problem(format!(
                "db {} is to copy a server outside of the cluster, which is the work of init mode pitr or existing",
                self.db.uid
            )));
        }
        let Some(followed) = self.data.dbs.get(&follow.db_uid) else {
            return Err(Plan::problem(format!(
                "db {} is to follow db {}, which does not exist",
                self.db.uid, follow.db_uid
            )));
        };
        if followed.status.listen_address.is_empty() {
            return Err(Plan::waiting("the followed db has not reported its address yet"));
        }
        Ok((followed, source_of(followed)))
    }
}

fn source_of(db: &Db) -> Source {
    Source { host: db.status.listen_address.clone(), port: db.status.port.clone() }
}
