//! The words of planning: what is known, what can be done.

use super::super::args::Access;
use super::super::datadir::{DbState, RestoreState};
use super::super::postgres::conf::Parameters;
use super::super::postgres::conninfo::Source;
use super::super::postgres::control::Control;
use model::stolon::ext::Work;
use model::stolon::{HandedOver, NewConfig};
use model::{DbUid, KeeperUid};
use pg::Tls;
use std::collections::BTreeSet;
use std::time::Duration;

/// What does not change while the keeper runs.
#[derive(Clone, Debug)]
pub struct Setup {
    /// This keeper.
    pub uid: KeeperUid,
    /// Its directory, for messages.
    pub directory: String,
    /// This start of it.
    pub boot_uuid: String,
    /// `listen_addresses`.
    pub listen_address: String,
    /// `port`.
    pub port: u16,
    /// `unix_socket_directories`.
    pub socket_dir: String,
    /// Superuser's name and how it is let in.
    pub su: (String, Access),
    /// Replication user's name and how it is let in.
    pub repl: (String, Access),
    /// Passwords for libpq; `None` when there are none.
    pub passfile: Option<String>,
    /// TLS to the other members.
    pub tls: Tls,
    /// A standby whose data are gone gets a new copy without being told to.
    pub rebuild_lost_standby: bool,
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
        /// It is a standby's.
        standby: bool,
        /// Files that PostgreSQL goes by when it starts.
        files: RoleFiles,
    },
}

/// Files in a data directory that PostgreSQL goes by when it starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoleFiles {
    /// `standby.signal`.
    pub standby: bool,
    /// `recovery.signal`.
    pub recovery: bool,
    /// `backup_label`: a base backup that has not run yet.
    pub backup_label: bool,
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
    /// The synchronous standbys that commits were proven to wait for since this start, as the parameter names them.
    pub names_in_force: Option<String>,
    /// Promoted, and no checkpoint since.
    pub checkpoint_owed: bool,
    /// How far the restore of a backup has come.
    pub restored: Option<RestoreState>,
    /// Parameters that PostgreSQL would not start with.
    pub refused: Option<Refused>,
    /// What the leading sentinel wants done, while it is not done.
    pub order: Option<Ordered>,
}

/// An order for this db and this start of the keeper, and how far it is carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordered {
    /// Of the order.
    pub id: String,
    /// What is wanted.
    pub work: Work,
    /// How far it is.
    pub stage: OrderStage,
}

/// How far an order is carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OrderStage {
    /// Nothing was done.
    #[default]
    New,
    /// A checkpoint is being made.
    CheckpointRuns,
    /// A checkpoint was made, or could not be.
    CheckpointEnded,
    /// PostgreSQL was stopped.
    Stopped,
}

/// Parameters that PostgreSQL would not start with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The specification's parameters.
    pub parameters: Parameters,
    /// The user's part of the last good file.
    pub instead: String,
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
    /// The current master, the source of a rewind; the followed db if there is none.
    pub master: (DbUid, Source),
    /// The followed db, the source of a base backup.
    pub followed: Source,
    /// The followed db's last reported timeline.
    pub timeline: u64,
    /// The cluster's master is a standby itself, of a server outside: its recovery does not end.
    pub standby_master: bool,
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

/// How to recover what was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recover {
    /// The db that is being made.
    pub db: DbUid,
    /// The db's files.
    pub files: Files,
    /// Where WAL comes from and where it ends; for a standby that is in the files.
    pub parameters: Parameters,
    /// It stays a standby.
    pub standby: bool,
    /// How long it may take; `None` for any time.
    pub limit: Option<Duration>,
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
    /// Tell the cluster where the instance ended that is handed over, and remember it; `None`: it is not, or no longer.
    TellHandedOver(Option<HandedOver>),
    /// Move the data directory to trash; why.
    MoveAway(&'static str),
    /// Delete the data directory, which an interrupted initialisation of the same db left.
    DeleteGarbage,
    /// Make a new instance.
    Initdb(NewConfig),
    /// Start, reachable over the Unix socket only, with the previous configuration underneath.
    StartForSetup(Files),
    /// Remember the parameters in force as those right after initialisation.
    ReadParameters,
    /// Create the replication user.
    SetUpRoles,
    /// Keep copies of the configuration files that were here before this keeper, and of what ALTER SYSTEM set.
    KeepConfiguration,
    /// Warn if the users that the keeper works as are missing or lack rights.
    CheckRoles,
    /// Fill the data directory, by the operator's command (with `%d` and the like), for this db.
    Restore {
        /// The db.
        db: DbUid,
        /// The command.
        command: String,
    },
    /// Recover what was restored, to its end or as a standby.
    Recover(Box<Recover>),
    /// Ask the source of a resync whether it can give what is wanted, before anything here is stopped.
    CheckSource(Box<Resync>),
    /// Become a standby with the followed db's data.
    Resync(Box<Resync>),
    /// Keep normal users out, or not.
    SetSyncWait(bool),
    /// End the sessions of those who are to be kept out.
    EndSessions,
    /// Mark the data as a standby's.
    MarkStandby,
    /// Remove what would make PostgreSQL start as anything else than a primary.
    MarkPrimary,
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
        /// Names of all.
        wanted: BTreeSet<String>,
        /// Those of them that the user asked for: no follower waits for them, so a lack is told and nothing more.
        additional: BTreeSet<String>,
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
    /// Begin to carry out this order: a checkpoint, in the background.
    PrepareOrder(String),
    /// Make sure that PostgreSQL would start, and stop it for this order.
    StopForOrder(String),
    /// Tell the cluster that this order is carried out.
    TellObeyed(String),
}

impl Step {
    /// Its kind, for logs: other parts may be long or private.
    pub fn name(&self) -> &'static str {
        match self {
            Step::SaveClusterUid(_) => "save cluster uid",
            Step::SaveState(_) => "save state",
            Step::MarkInitialized(_) => "mark initialized",
            Step::Stop(_) => "stop",
            Step::TellHandedOver(_) => "tell that it is handed over",
            Step::MoveAway(_) => "move away",
            Step::DeleteGarbage => "delete garbage",
            Step::CheckSource(_) => "check source",
            Step::Initdb(_) => "initdb",
            Step::StartForSetup(_) => "start for setup",
            Step::ReadParameters => "read parameters",
            Step::SetUpRoles => "set up roles",
            Step::KeepConfiguration => "keep configuration",
            Step::CheckRoles => "check roles",
            Step::Restore { .. } => "restore",
            Step::Recover(_) => "recover",
            Step::Resync(_) => "resync",
            Step::SetSyncWait(_) => "set sync wait",
            Step::EndSessions => "end sessions",
            Step::MarkStandby => "mark standby",
            Step::MarkPrimary => "mark primary",
            Step::WriteFiles(_) => "write files",
            Step::Start => "start",
            Step::WaitReady(_) => "wait ready",
            Step::Reload { .. } => "reload",
            Step::Promote => "promote",
            Step::EnsureSlots { .. } => "ensure slots",
            Step::RestartIfPending { .. } => "restart if pending",
            Step::Checkpoint => "checkpoint",
            Step::PrepareOrder(_) => "prepare order",
            Step::StopForOrder(_) => "stop for order",
            Step::TellObeyed(_) => "tell that an order is obeyed",
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
    pub(super) fn then_again(steps: impl IntoIterator<Item = Step>) -> Self {
        Plan { steps: steps.into_iter().collect(), again: true, ..Default::default() }
    }
    pub(super) fn problem(text: impl Into<String>) -> Self {
        Plan { problem: Some(text.into()), ..Default::default() }
    }
    pub(super) fn waiting(text: &'static str) -> Self {
        Plan { waiting: Some(text), ..Default::default() }
    }
    pub(super) fn before(mut self, step: Step) -> Self {
        self.steps.insert(0, step);
        self
    }
}
