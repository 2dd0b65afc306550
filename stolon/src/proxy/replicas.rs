//! Which standbys may be read from. No sockets, no clock.

use model::stolon::{ClusterData, Db, DbInitMode, FollowType, KeeperInfo, Role};
use model::{DbUid, KeeperUid};
use pg::endpoints::Endpoint;
use std::collections::BTreeMap;
use std::fmt;

/// A replica that is further behind than so many times the limit loses the connections that it has, not only new ones:
/// one that hovers around the limit must not cut its readers off again and again.
const PATIENCE: u64 = 2;

/// Which replicas are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ReplicaRole {
    /// All standbys.
    #[default]
    Any,
    /// Only those that commits wait for.
    Sync,
}

/// What a replica must be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Which ones are wanted.
    pub role: ReplicaRole,
    /// How many bytes of WAL it may lack; 0 = any number.
    pub max_lag: u64,
}

/// Why a standby gets no connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the texts below say it")]
pub enum Unfit {
    Gone,
    Master,
    Remade,
    Unhealthy,
    NoAddress,
    NotSynchronous,
    NotConverged,
    Unheard,
    Behind(u64),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unfit::Gone => "its db was removed",
            Unfit::Master => "it is or becomes a master",
            Unfit::Remade => "its data is being made",
            Unfit::Unhealthy => "it is not healthy",
            Unfit::NoAddress => "it has not reported its address",
            Unfit::NotSynchronous => "commits do not wait for it",
            Unfit::NotConverged => "it is being reconfigured",
            Unfit::Unheard => "its keeper does not report it as healthy",
            Unfit::Behind(bytes) => return write!(f, "it is {bytes} bytes behind"),
        })
    }
}

/// What becomes of a standby's connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It takes new ones.
    Fit(Endpoint),
    /// It keeps those it has.
    Keep(Endpoint, Unfit),
    /// It loses those it has.
    Unfit(Unfit),
}

impl Verdict {
    /// Where it is, unless it must not be connected to.
    pub fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Verdict::Fit(endpoint) | Verdict::Keep(endpoint, _) => Some(endpoint),
            Verdict::Unfit(_) => None,
        }
    }
}

/// Judges all dbs. Keepers' own records say more than cluster data, where a position that moves is no reason to write.
pub fn judge(data: &ClusterData, infos: &BTreeMap<KeeperUid, KeeperInfo>, rules: Rules) -> BTreeMap<DbUid, Verdict> {
    data.dbs.iter().map(|(uid, db)| (uid.clone(), judge_one(data, infos, rules, db))).collect()
}

fn judge_one(data: &ClusterData, infos: &BTreeMap<KeeperUid, KeeperInfo>, rules: Rules, db: &Db) -> Verdict {
    if let Err(unfit) = lasting(data, rules, db) {
        return Verdict::Unfit(unfit);
    }
    let Some(endpoint) = endpoint(db) else { return Verdict::Unfit(Unfit::NoAddress) };
    let lag = lag(data, infos, db);
    if rules.max_lag > 0 && lag > rules.max_lag.saturating_mul(PATIENCE) {
        return Verdict::Unfit(Unfit::Behind(lag));
    }
    if !db.converged() {
        return Verdict::Keep(endpoint, Unfit::NotConverged);
    }
    let state = state(infos, db);
    if !state.is_some_and(|state| state.healthy) {
        return Verdict::Keep(endpoint, Unfit::Unheard);
    }
    if rules.max_lag > 0 && lag > rules.max_lag {
        return Verdict::Keep(endpoint, Unfit::Behind(lag));
    }
    Verdict::Fit(endpoint)
}

/// What a replica must be to have connections at all.
fn lasting(data: &ClusterData, rules: Rules, db: &Db) -> Result<(), Unfit> {
    let follows = db.spec.follow_config.as_ref().and_then(|follow| follow.kind);
    if db.spec.role != Some(Role::Standby)
        || follows != Some(FollowType::Internal)
        || db.uid == data.cluster.status.master
        || db.uid == data.proxy.spec.master_db_uid
    {
        return Err(Unfit::Master);
    }
    // Only a sentinel that has seen the whole copy sets it to "none".
    if db.spec.init_mode.is_some_and(|mode| mode != DbInitMode::None) || db.status.current_generation == 0 {
        return Err(Unfit::Remade);
    }
    let keeper = data.keepers.get(&db.spec.keeper_uid);
    if !db.status.healthy || !keeper.is_some_and(|keeper| keeper.status.healthy) {
        return Err(Unfit::Unhealthy);
    }
    if rules.role == ReplicaRole::Sync && !is_synchronous(data, db) {
        return Err(Unfit::NotSynchronous);
    }
    Ok(())
}

/// Commits wait for it, and it was seen in sync since then.
fn is_synchronous(data: &ClusterData, db: &Db) -> bool {
    let holds = |list: &Option<Vec<DbUid>>| list.iter().flatten().any(|uid| *uid == db.uid);
    data.dbs
        .get(&data.cluster.status.master)
        .is_some_and(|master| holds(&master.spec.synchronous_standbys) && holds(&master.status.synchronous_standbys))
}

fn endpoint(db: &Db) -> Option<Endpoint> {
    let port = db.status.port.parse().ok()?;
    (!db.status.listen_address.is_empty()).then(|| Endpoint { host: db.status.listen_address.clone(), port })
}

/// What the db's keeper says of it.
fn state<'a>(infos: &'a BTreeMap<KeeperUid, KeeperInfo>, db: &Db) -> Option<&'a model::stolon::PostgresState> {
    infos.get(&db.spec.keeper_uid)?.postgres_state.as_ref().filter(|state| state.uid == db.uid)
}

/// Bytes of WAL that the master has and this db has not, as far as reports tell.
fn lag(data: &ClusterData, infos: &BTreeMap<KeeperUid, KeeperInfo>, db: &Db) -> u64 {
    let position = |db: &Db| state(infos, db).map_or(0, |state| state.xlog_pos).max(db.status.xlog_pos);
    let master = data.dbs.get(&data.cluster.status.master).map_or(0, position);
    master.saturating_sub(position(db))
}

#[cfg(test)]
#[path = "replicas_tests.rs"]
mod tests;
