//! Why a plan is what it is, in words for the log.

use model::{DbUid, KeeperUid};

/// One decision, or one thing that is being waited for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Nothing can be decided.
    #[error("the cluster data can't be worked with, nothing is changed: {0}")]
    Unusable(String),
    /// The plan itself broke an invariant and was thrown away.
    #[error("a plan was thrown away, since it would make the cluster data inconsistent: {0}; please report this")]
    Rejected(String),
    /// The store has no cluster data.
    #[error("there is no cluster data; run `stolonctl init`")]
    NoClusterData,
    /// The store has lost its cluster data.
    #[error(
        "the cluster data is gone although keepers belong to a cluster; nothing is done: restore it with \
         `stolonctl clusterdata write`, or begin a new cluster with `stolonctl init`, which may overwrite databases"
    )]
    ClusterDataLost,
    /// The store's contents are older than what keepers have applied.
    #[error(
        "db \"{db}\" of keeper \"{keeper}\" has applied generation {applied}, but {stored} is stored, and is on a later timeline \
         than the master's: an old copy of the store was restored; proxies are closed and nobody is elected until the cluster \
         data is corrected with `stolonctl clusterdata write`, or that keeper's record is gone"
    )]
    OldStore {
        /// The db.
        db: DbUid,
        /// Its keeper.
        keeper: KeeperUid,
        /// The generation that it reports.
        applied: i64,
        /// The generation in the cluster data.
        stored: i64,
    },
    /// Cluster data was made.
    #[error("cluster data was made from the initial specification")]
    Created,
    /// A record can't be read.
    #[error("the record of {0} \"{1}\" can't be read; if its program is gone, delete the record")]
    Unreadable(&'static str, String),
    /// A keeper registered.
    #[error("keeper \"{0}\" is new")]
    NewKeeper(KeeperUid),
    /// A keeper is healthy again.
    #[error("keeper \"{0}\" is healthy")]
    KeeperHealthy(KeeperUid),
    /// A keeper is silent for too long.
    #[error("keeper \"{0}\" is unhealthy: silent for longer than the fail interval")]
    KeeperUnhealthy(KeeperUid),
    /// Signs that the master's server is gone.
    #[error("connections to master db \"{0}\" are refused, asking keeper \"{1}\" for a sign of life")]
    MasterSuspected(DbUid, KeeperUid),
    /// A keeper is given up before its lease ends.
    #[error(
        "keeper \"{0}\" is unhealthy: connections to its server are refused, all its synchronous standbys have lost it, \
         and the keeper does not answer"
    )]
    KeeperGone(KeeperUid),
    /// An operator said that a keeper failed.
    #[error("keeper \"{0}\" is taken as failed, as an operator wishes")]
    ForceFail(KeeperUid),
    /// A db is healthy again.
    #[error("db \"{0}\" is healthy")]
    DbHealthy(DbUid),
    /// A db reported errors, or nothing, for too long.
    #[error("db \"{0}\" is unhealthy: not reported healthy for longer than the fail interval")]
    DbUnhealthy(DbUid),
    /// A keeper without db was dead for long.
    #[error("keeper \"{0}\" is removed: dead for longer than the dead keeper removal interval")]
    KeeperRemoved(KeeperUid),
    /// There is nobody to make the first master.
    #[error("no keeper can become the first master yet: {0}")]
    NoFirstMaster(String),
    /// More keepers may register.
    #[error("waiting a moment for more keepers before choosing the first master")]
    WaitForKeepers,
    /// The first master was chosen.
    #[error("keeper \"{0}\" is to make the first master, db \"{1}\"")]
    FirstMaster(KeeperUid, DbUid),
    /// The first master was not made.
    #[error("keeper \"{0}\" did not make the first master")]
    FirstMasterFailed(KeeperUid),
    /// The first master is there.
    #[error("the cluster is initialised, db \"{0}\" is its master")]
    Initialized(DbUid),
    /// The master is to be replaced.
    #[error("master db \"{0}\" failed: {1}")]
    MasterFailed(DbUid, String),
    /// Standbys are asked for the positions they have now.
    #[error("asking the standbys of db \"{0}\" for their positions")]
    WaitForPositions(DbUid),
    /// All hosts were gone, and some are still.
    #[error("all keepers were gone: waiting a moment for the others, who may have more of the data: {0}")]
    WaitForReturn(String),
    /// Nobody may replace the master.
    #[error("no standby may replace master db \"{0}\": {1}")]
    NoCandidate(DbUid, String),
    /// A new master was chosen.
    #[error("db \"{to}\" of keeper \"{keeper}\" becomes master instead of db \"{from}\"")]
    NewMaster {
        /// The master until now.
        from: DbUid,
        /// The new one.
        to: DbUid,
        /// The new one's keeper.
        keeper: KeeperUid,
    },
    /// Proxies were told to cut everything off.
    #[error("proxies are closed")]
    ProxiesClosed,
    /// Not every proxy has cut everything off.
    #[error("waiting for proxies to confirm that they are closed: {0}")]
    WaitForProxies(String),
    /// The new master is not ready for clients.
    #[error("waiting for master db \"{0}\" to be ready before proxies are opened")]
    WaitForMaster(DbUid),
    /// Proxies may forward.
    #[error("proxies are opened to db \"{0}\"")]
    ProxiesOpened(DbUid),
    /// The proxies that may forward are others.
    #[error("{0} proxies may forward")]
    ProxiesEnabled(usize),
    /// A preferred keeper is ready.
    #[error("clean switch from db \"{from}\" to db \"{to}\" begins")]
    SwitchBegins {
        /// The master.
        from: DbUid,
        /// The preferred one.
        to: DbUid,
    },
    /// The switch has not begun yet.
    #[error("switch: waiting for a checkpoint of master db \"{0}\", so that it can be stopped fast")]
    SwitchCheckpoint(DbUid),
    /// The switch begins anyway.
    #[error("switch: the checkpoint of master db \"{0}\" takes too long, going on without it")]
    SwitchWithoutCheckpoint(DbUid),
    /// The switch waits for the master's last position.
    #[error("switch: waiting for the last position of master db \"{0}\"")]
    SwitchMasterPosition(DbUid),
    /// The switch waits for the master's keeper.
    #[error("switch: waiting for master db \"{0}\" to be stopped")]
    SwitchHandOver(DbUid),
    /// The switch waits for the candidate.
    #[error("switch: waiting for db \"{0}\" to receive everything up to {1}")]
    SwitchCatchUp(DbUid, u64),
    /// The switch was given up.
    #[error("switch to db \"{to}\" is given up, the master stays: {why}")]
    SwitchAbandoned {
        /// The preferred one.
        to: DbUid,
        /// What went wrong.
        why: String,
    },
    /// PostgreSQL is restarted.
    #[error("PostgreSQL of db \"{0}\" is restarted by keeper \"{1}\"")]
    Restarting(DbUid, KeeperUid),
    /// The next restart has to wait.
    #[error("the next restart of PostgreSQL waits: {0}")]
    RestartWaits(String),
    /// An operator has a db elected that may lack acknowledged commits.
    #[error(
        "db \"{to}\" of keeper \"{keeper}\" is elected although it may lack acknowledged commits, as {by} wishes; the \
         master's last reported position was {lost} bytes ahead"
    )]
    ForcedElection {
        /// The new master.
        to: DbUid,
        /// Its keeper.
        keeper: KeeperUid,
        /// Who asked.
        by: String,
        /// Bytes between the last reported positions.
        lost: u64,
    },
    /// What an operator asked for is done.
    #[error("{what}, asked for by {by}: done")]
    RequestDone {
        /// In words.
        what: String,
        /// Who asked.
        by: String,
    },
    /// What an operator asked for was refused or given up.
    #[error("{what}, asked for by {by}: {why}")]
    RequestFailed {
        /// In words.
        what: String,
        /// Who asked.
        by: String,
        /// Why.
        why: String,
    },
    /// The keeper that an operator had moved the master to is preferred no longer.
    #[error(
        "keeper \"{0}\", to which an operator had moved the master, is no longer preferred: it is not master any more"
    )]
    FavouriteFailed(KeeperUid),
    /// A db was deleted.
    #[error("db \"{0}\" of keeper \"{1}\" is deleted: {2}")]
    DbDeleted(DbUid, KeeperUid, &'static str),
    /// A standby was added.
    #[error("keeper \"{0}\" gets the new standby db \"{1}\"")]
    DbAdded(KeeperUid, DbUid),
    /// The synchronous set changed.
    #[error("commits on db \"{0}\" now wait for: {1}")]
    SyncSet(DbUid, String),
    /// A wanted member is not in sync yet.
    #[error("waiting for synchronous standbys of db \"{0}\" to get in sync: {1}")]
    SyncWait(DbUid, String),
}

impl Reason {
    /// A stable word for programs: part of what `stolonctl` prints.
    pub fn code(&self) -> &'static str {
        match self {
            Reason::Unusable(_) => "cluster_data_unusable",
            Reason::Rejected(_) => "plan_rejected",
            Reason::NoClusterData => "no_cluster_data",
            Reason::ClusterDataLost => "cluster_data_lost",
            Reason::OldStore { .. } => "cluster_data_old",
            Reason::Created => "cluster_data_created",
            Reason::Unreadable(..) => "record_unreadable",
            Reason::NewKeeper(_) => "keeper_new",
            Reason::KeeperHealthy(_) => "keeper_healthy",
            Reason::KeeperUnhealthy(_) => "keeper_unhealthy",
            Reason::MasterSuspected(..) => "master_suspected",
            Reason::KeeperGone(_) => "keeper_gone",
            Reason::ForceFail(_) => "keeper_taken_as_failed",
            Reason::DbHealthy(_) => "db_healthy",
            Reason::DbUnhealthy(_) => "db_unhealthy",
            Reason::KeeperRemoved(_) => "keeper_removed",
            Reason::NoFirstMaster(_) => "no_first_master",
            Reason::WaitForKeepers => "wait_for_keepers",
            Reason::FirstMaster(..) => "first_master",
            Reason::FirstMasterFailed(_) => "first_master_failed",
            Reason::Initialized(_) => "initialized",
            Reason::MasterFailed(..) => "master_failed",
            Reason::WaitForPositions(_) => "wait_for_positions",
            Reason::WaitForReturn(_) => "wait_for_return",
            Reason::NoCandidate(..) => "no_candidate",
            Reason::NewMaster { .. } => "new_master",
            Reason::ProxiesClosed => "proxies_closed",
            Reason::WaitForProxies(_) => "wait_for_proxies",
            Reason::WaitForMaster(_) => "wait_for_master",
            Reason::ProxiesOpened(_) => "proxies_opened",
            Reason::ProxiesEnabled(_) => "proxies_enabled",
            Reason::SwitchBegins { .. } => "switch_begins",
            Reason::SwitchCheckpoint(_) => "switch_wait_for_checkpoint",
            Reason::SwitchWithoutCheckpoint(_) => "switch_without_checkpoint",
            Reason::SwitchMasterPosition(_) => "switch_wait_for_position",
            Reason::SwitchHandOver(_) => "switch_wait_for_stop",
            Reason::SwitchCatchUp(..) => "switch_wait_for_candidate",
            Reason::SwitchAbandoned { .. } => "switch_abandoned",
            Reason::Restarting(..) => "restart",
            Reason::RestartWaits(_) => "restart_waits",
            Reason::ForcedElection { .. } => "forced_election",
            Reason::RequestDone { .. } => "request_done",
            Reason::RequestFailed { .. } => "request_failed",
            Reason::FavouriteFailed(_) => "favourite_failed",
            Reason::DbDeleted(..) => "db_deleted",
            Reason::DbAdded(..) => "db_added",
            Reason::SyncSet(..) => "synchronous_set",
            Reason::SyncWait(..) => "wait_for_synchronous_standbys",
        }
    }

    /// Worth keeping in the history: decisions and changes of health, not what is merely waited for.
    pub fn is_decision(&self) -> bool {
        !matches!(
            self,
            Reason::Unusable(_)
                | Reason::NoClusterData
                | Reason::ClusterDataLost
                | Reason::OldStore { .. }
                | Reason::Unreadable(..)
                | Reason::NoFirstMaster(_)
                | Reason::WaitForKeepers
                | Reason::MasterSuspected(..)
                | Reason::ProxiesClosed
                | Reason::WaitForProxies(_)
                | Reason::WaitForMaster(_)
                | Reason::ProxiesEnabled(_)
                | Reason::SwitchCheckpoint(_)
                | Reason::SwitchMasterPosition(_)
                | Reason::WaitForPositions(_)
                | Reason::WaitForReturn(_)
                | Reason::SwitchHandOver(_)
                | Reason::RestartWaits(_)
                | Reason::SwitchCatchUp(..)
                | Reason::SyncWait(..)
        )
    }

    /// Nothing can go on without a person, or the program is at fault.
    pub fn is_problem(&self) -> bool {
        matches!(self, Reason::Unusable(_) | Reason::Rejected(_) | Reason::ClusterDataLost | Reason::OldStore { .. })
    }
}

/// Uids in one line, `nobody` for none.
pub(super) fn list<'a, T: AsRef<str> + 'a>(uids: impl IntoIterator<Item = &'a T>) -> String {
    let uids: Vec<&str> = uids.into_iter().map(AsRef::as_ref).collect();
    if uids.is_empty() { "nobody".to_owned() } else { uids.join(", ") }
}
