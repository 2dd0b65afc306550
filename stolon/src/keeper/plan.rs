//! What to do next: a pure function of what is on this host and what the cluster data says.
//!
//! A plan is the shortest list of steps whose outcome is known beforehand. Where a later decision depends on what
//! a step finds or makes, the plan ends with `again` and the next one starts from a new look.

use super::args::AuthMethod;
use super::datadir::DbState;
use super::postgres::conf::{self, ConfInput, Recovery};
use super::postgres::conninfo::{self, Source};
use super::postgres::control::Control;
use super::postgres::hba::{self, HbaInput};
use super::postgres::slots;
use model::stolon::{ClusterData, Db, DbInitMode, EffectiveSpec, FollowType, NewConfig, Role, SuReplAccess};
use model::{DbUid, KeeperUid};
use std::collections::BTreeSet;
use std::time::Duration;

/// What does not change while the keeper runs.
#[derive(Clone, Debug)]
pub struct Setup {
    /// This keeper.
    pub uid: KeeperUid,
    /// This start of it.
    pub boot_uuid: String,
    /// `listen_addresses`.
    pub listen_address: String,
    /// `port`.
    pub port: u16,
    /// `unix_socket_directories`.
    pub socket_dir: String,
    /// Superuser's name and method.
    pub su: (String, AuthMethod),
    /// Replication user's name and method.
    pub repl: (String, AuthMethod),
    /// Passwords for libpq; `None` when there are none.
    pub passfile: Option<String>,
}

/// The data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Missing or without a complete instance.
    Missing,
    /// An instance.
    Present {
        /// From the control file.
        control: Control,
        /// It is, or would start as, a standby.
        standby: bool,
    },
}

/// The running postmaster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// It takes connections.
    pub ready: bool,
    /// Port and socket directory are the wanted ones.
    pub same_place: bool,
}

/// What is on this host.
#[derive(Clone, Debug)]
pub struct Local {
    /// The remembered stolon cluster.
    pub cluster_uid: String,
    /// What the data directory belongs to.
    pub state: DbState,
    /// The data directory.
    pub data: Data,
    /// The postmaster.
    pub running: Option<Running>,
    /// Content of `postgresql.conf`.
    pub conf: Option<String>,
    /// Content of `pg_hba.conf`.
    pub hba: Option<String>,
    /// Normal users are kept out until all synchronous standbys are back. `None` when not known: the instance was adopted.
    pub sync_wait: Option<bool>,
    /// Synchronous standbys now, if known.
    pub in_sync: Option<BTreeSet<DbUid>>,
    /// The files may be newer than what the server has read.
    pub reload_owed: bool,
    /// Promoted, and no checkpoint since.
    pub checkpoint_owed: bool,
}

/// Both configuration files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// `postgresql.conf`.
    pub conf: String,
    /// `pg_hba.conf`.
    pub hba: String,
}

/// How to become a standby of another db.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resync {
    /// The new db.
    pub db: DbUid,
    /// What to try before a base backup.
    pub attempt: Attempt,
    /// The current master, the source of a rewind.
    pub master: Option<Source>,
    /// The followed db, the source of a base backup.
    pub followed: Source,
    /// The followed db's last reported timeline.
    pub timeline: u64,
    /// The slot on the followed db.
    pub slot: String,
    /// The standby's files.
    pub files: Files,
    /// How long a rewound instance may take to accept connections.
    pub ready_limit: Duration,
}

/// What to try before a base backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// Nothing: the data is missing, foreign, or rewinding is off.
    BaseBackup,
    /// pg_rewind.
    Rewind,
    /// Start it as it is: a crashed standby can't be recovered without becoming a primary, so pg_rewind is not possible,
    /// but usually nothing has to be rewound.
    Start,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Remember the stolon cluster.
    SaveClusterUid(String),
    /// Replace `dbstate`.
    SaveState(DbState),
    /// The data is that of this db, complete, with the parameters that were read meanwhile.
    MarkInitialized(DbUid),
    /// Stop PostgreSQL; why.
    Stop(&'static str),
    /// Delete the data directory.
    Wipe,
    /// Make a new instance.
    Initdb(NewConfig),
    /// Start, reachable over the Unix socket only, with the previous configuration underneath.
    StartForSetup(Files),
    /// Remember the parameters in force as those right after initialisation.
    ReadParameters,
    /// Create the replication user.
    SetUpRoles,
    /// Become a standby with the followed db's data.
    Resync(Box<Resync>),
    /// Keep normal users out, or not.
    SetSyncWait(bool),
    /// Mark the data as a standby's.
    MarkStandby,
    /// Write the configuration files.
    WriteFiles(Files),
    /// Start.
    Start,
    /// Wait until it takes connections.
    WaitReady(Duration),
    /// Make PostgreSQL read its files, and wait until it has.
    Reload {
        /// The value of `synchronous_standby_names` that must be in force afterwards.
        sync_names: String,
    },
    /// Make the standby a primary.
    Promote,
    /// Make the slots with our prefix exactly these.
    EnsureSlots {
        /// Names.
        wanted: BTreeSet<String>,
        /// A failure ends the pass.
        required: bool,
    },
    /// Restart if a changed parameter needs it, or just tell.
    RestartIfPending {
        /// Restart.
        automatic: bool,
    },
    /// Write a checkpoint, in the background.
    Checkpoint,
}

impl Step {
    /// Its kind, for logs: other parts may be long or private.
    pub fn name(&self) -> &'static str {
        match self {
            Step::SaveClusterUid(_) => "save cluster uid",
            Step::SaveState(_) => "save state",
            Step::MarkInitialized(_) => "mark initialized",
            Step::Stop(_) => "stop",
            Step::Wipe => "wipe",
            Step::Initdb(_) => "initdb",
            Step::StartForSetup(_) => "start for setup",
            Step::ReadParameters => "read parameters",
            Step::SetUpRoles => "set up roles",
            Step::Resync(_) => "resync",
            Step::SetSyncWait(_) => "set sync wait",
            Step::MarkStandby => "mark standby",
            Step::WriteFiles(_) => "write files",
            Step::Start => "start",
            Step::WaitReady(_) => "wait ready",
            Step::Reload { .. } => "reload",
            Step::Promote => "promote",
            Step::EnsureSlots { .. } => "ensure slots",
            Step::RestartIfPending { .. } => "restart if pending",
            Step::Checkpoint => "checkpoint",
        }
    }
}

/// Steps to take now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In this order; a failed one ends the pass.
    pub steps: Vec<Step>,
    /// Plan again at once when they are done.
    pub again: bool,
    /// Why nothing further is done.
    pub problem: Option<String>,
    /// What the wait is for; not worth a warning.
    pub waiting: Option<&'static str>,
}

impl Plan {
    fn then_again(steps: impl IntoIterator<Item = Step>) -> Self {
        Plan { steps: steps.into_iter().collect(), again: true, ..Default::default() }
    }
    fn problem(text: impl Into<String>) -> Self {
        Plan { problem: Some(text.into()), ..Default::default() }
    }
    fn waiting(text: &'static str) -> Self {
        Plan { waiting: Some(text), ..Default::default() }
    }
    fn before(mut self, step: Step) -> Self {
        self.steps.insert(0, step);
        self
    }
}

/// Plans one pass. The specification must be that of `data`.
pub fn plan(setup: &Setup, local: &Local, data: &ClusterData, spec: &EffectiveSpec) -> Plan {
    let plan = plan_keeper(setup, local, data, spec);
    if !data.cluster.uid.is_empty() && data.cluster.uid != local.cluster_uid {
        return plan.before(Step::SaveClusterUid(data.cluster.uid.clone()));
    }
    plan
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
    if local.state.initializing {
        return context.discard();
    }
    if local.state.uid != db.uid {
        return context.initialize();
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
    /// An initialisation that was interrupted left garbage.
    fn discard(&self) -> Plan {
        let mut steps: Vec<Step> =
            self.local.running.map(|_| Step::Stop("its initialisation was interrupted")).into_iter().collect();
        steps.extend([Step::Wipe, Step::SaveState(DbState::default())]);
        Plan::then_again(steps)
    }

    fn initialize(&self) -> Plan {
        if self.local.running.is_some() {
            // Stopped first, so that the next look sees how it was left.
            return Plan::then_again([Step::Stop("a new db is assigned to this keeper")]);
        }
        match self.db.spec.init_mode {
            Some(DbInitMode::New) => self.init_new(),
            Some(DbInitMode::Existing) => self.init_existing(),
            Some(DbInitMode::Resync) => self.resync(),
            Some(DbInitMode::Pitr) => Plan::problem("not implemented yet: init mode pitr"),
            Some(DbInitMode::None) | None => Plan::problem(format!(
                "this directory holds {}, but db {} of this keeper is to be there already; restore the directory, or run `stolonctl removekeeper`",
                if self.local.state.uid.is_empty() {
                    "no db".to_owned()
                } else {
                    format!("db {}", self.local.state.uid)
                },
                self.db.uid
            )),
        }
    }

    fn init_new(&self) -> Plan {
        let mut steps = vec![
            Step::SaveState(DbState { uid: self.db.uid.clone(), initializing: true, ..Default::default() }),
            Step::Wipe,
            Step::Initdb(self.db.spec.new_config.clone().unwrap_or_default()),
            Step::StartForSetup(self.files(None, true)),
            Step::WaitReady(self.ready_limit()),
        ];
        if self.db.spec.include_previous_config {
            steps.push(Step::ReadParameters);
        }
        steps.extend([Step::SetUpRoles, Step::Stop("its setup is complete")]);
        Plan::then_again(steps.into_iter().chain([Step::MarkInitialized(self.db.uid.clone())]))
    }

    fn init_existing(&self) -> Plan {
        if self.local.data == Data::Missing {
            return Plan::problem("init mode existing, but there is no instance in the data directory; put it there");
        }
        let mut steps = vec![];
        if self.db.spec.include_previous_config {
            steps.extend([Step::StartForSetup(self.files(None, true)), Step::WaitReady(self.ready_limit())]);
            steps.extend([Step::ReadParameters, Step::Stop("its setup is complete")]);
        }
        Plan::then_again(steps.into_iter().chain([Step::MarkInitialized(self.db.uid.clone())]))
    }

    fn resync(&self) -> Plan {
        let (followed, source) = match self.followed() {
            Ok(found) => found,
            Err(problem) => return problem,
        };
        let master =
            self.data.dbs.get(&self.data.cluster.status.master).filter(|db| !db.status.listen_address.is_empty());
        let attempt = match self.local.data {
            Data::Present { control, standby }
                if self.db.spec.use_pgrewind
                    && master.is_some()
                    && control.system_id.to_string() == followed.status.system_id =>
            {
                if standby && !control.state.is_clean() { Attempt::Start } else { Attempt::Rewind }
            }
            _ => Attempt::BaseBackup,
        };
        let recovery = self.recovery(&source);
        let resync = Resync {
            db: self.db.uid.clone(),
            attempt,
            master: master.map(source_of),
            followed: source,
            timeline: followed.status.timeline_id,
            slot: slots::name(&self.db.uid),
            files: self.files(Some(&recovery), false),
            ready_limit: self.ready_limit(),
        };
        Plan::then_again([Step::Resync(Box::new(resync)), Step::MarkInitialized(self.db.uid.clone())])
    }

    fn master(&self) -> Plan {
        let Data::Present { standby, .. } = self.local.data else {
            return Plan::problem(format!(
                "the data of master db {} is missing; restore the data directory",
                self.db.uid
            ));
        };
        let sync = self.db.spec.synchronous_replication;
        let Some(running) = self.local.running else {
            // Restarting made commits visible that still waited for a standby, so nobody may see them before
            // the standbys have them.
            let files = self.files(None, sync);
            let mut steps = vec![Step::SetSyncWait(sync)];
            steps.extend(standby.then_some(Step::MarkStandby));
            steps.extend([Step::WriteFiles(files), Step::Start, Step::WaitReady(self.ready_limit())]);
            return Plan::then_again(steps);
        };
        if let Some(plan) = self.settle(running) {
            return plan;
        }
        if standby {
            // The synchronous standbys are in force before the first commit can happen.
            let files = self.files(None, false);
            let mut steps = self.configure(&files);
            steps.push(Step::Promote);
            return Plan::then_again(steps);
        }
        let waiting = self.still_waiting();
        let files = self.files(None, waiting);
        let mut steps = Vec::new();
        if self.local.sync_wait != Some(waiting) {
            steps.push(Step::SetSyncWait(waiting));
        }
        steps.push(Step::EnsureSlots { wanted: self.slots(), required: true });
        steps.extend(self.configure(&files));
        self.finish(steps)
    }

    fn standby(&self) -> Plan {
        let Data::Present { standby, .. } = self.local.data else {
            return Plan::problem(format!(
                "the data of standby db {} is missing; run `stolonctl removekeeper` to have it made again",
                self.db.uid
            ));
        };
        if !standby {
            return Plan::problem(
                "this instance is a primary but shall be a standby; the sentinel has to assign a new db",
            );
        }
        let source = match self.followed() {
            Ok((_, source)) => source,
            Err(problem) => return problem,
        };
        let files = self.files(Some(&self.recovery(&source)), false);
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
        let mut steps = self.configure(&files);
        steps.push(Step::EnsureSlots { wanted: BTreeSet::new(), required: false });
        self.finish(steps)
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
    fn finish(&self, mut steps: Vec<Step>) -> Plan {
        steps.push(Step::RestartIfPending { automatic: self.spec.automatic_pg_restart });
        let state = DbState { generation: self.db.generation, initializing: false, ..self.local.state.clone() };
        if state != self.local.state {
            steps.push(Step::SaveState(state));
        }
        if self.local.checkpoint_owed {
            steps.push(Step::Checkpoint);
        }
        Plan { steps, ..Default::default() }
    }

    fn still_waiting(&self) -> bool {
        if !self.db.spec.synchronous_replication {
            return false;
        }
        let wanted: BTreeSet<DbUid> = self.db.spec.synchronous_standbys.iter().flatten().cloned().collect();
        // A keeper that died while it kept users out left the restricted file behind.
        let waited = self.local.sync_wait.unwrap_or_else(|| self.local.hba.as_deref() == Some(&self.hba(true)));
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
        Files { conf: conf::render(&parameters), hba: self.hba(restricted) }
    }

    fn hba(&self, restricted: bool) -> String {
        let strict = self.spec.default_su_repl_access_mode == SuReplAccess::Strict;
        let others = self.data.dbs.values().filter(|db| strict && db.uid != self.db.uid);
        hba::render(&HbaInput {
            su: (&self.setup.su.0, self.setup.su.1),
            repl: (&self.setup.repl.0, self.setup.repl.1),
            access: self.spec.default_su_repl_access_mode,
            master_type: self.db.is_master_type(),
            others: others.map(|db| db.status.listen_address.as_str()).collect(),
            lines: self.db.spec.pg_hba.as_deref(),
            restricted,
        })
    }

    fn slots(&self) -> BTreeSet<String> {
        let additional = self.db.spec.additional_replication_slots.iter().flatten();
        slots::wanted(&self.db.uid, &self.db.spec.followers, additional)
    }

    fn recovery(&self, source: &Source) -> Recovery {
        let slot = slots::name(&self.db.uid);
        let conninfo = conninfo::primary(source, &self.setup.repl.0, &slot, self.setup.passfile.as_deref());
        Recovery { primary_conninfo: conninfo, primary_slot_name: slot }
    }

    /// The followed db and how to reach it.
    fn followed(&self) -> Result<(&Db, Source), Plan> {
        let follow = self.db.spec.follow_config.clone().unwrap_or_default();
        if follow.kind != Some(FollowType::Internal) {
            return Err(Plan::problem("not implemented yet: a standby cluster, which follows a server outside"));
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

    fn ready_limit(&self) -> Duration {
        self.spec.db_wait_ready_timeout.to_std()
    }
}

fn source_of(db: &Db) -> Source {
    Source { host: db.status.listen_address.clone(), port: db.status.port.clone() }
}
