//! What the leading sentinel decides: cluster data and observations in, new cluster data out.
//!
//! [`plan`] is pure: time and randomness come in as values, nothing is read or written. The order of its steps:
//!
//! 1. [`memory`]: what this sentinel has watched: who has been silent since when, which generation is being
//!    applied since when. Sentinels that do not lead keep this up to date too ([`track`]), so that a new leader
//!    need not start its clocks anew.
//!    Before it `suspicion` weighs signs that the master's server is gone, which come sooner than silence.
//! 2. `status`: health of keepers and dbs; `proxies`: which proxies live.
//! 3. `initializing` makes the first master; `normal` keeps one: `election` replaces a dead one, `switch` moves
//!    it to a keeper with higher priority, or to the one
//!    that an operator named (`operation`), without losing a commit, `restart` restarts instances in order, `proxies` fences, `housekeeping` and `sync`
//!    look after the standbys.
//! 4. `finish` copies the specification into every db and counts generations.

mod election;
mod explain;
mod finish;
mod housekeeping;
mod initializing;
mod judge;
mod memory;
mod normal;
mod obstacle;
mod operation;
mod order;
mod positions;
mod proxies;
mod reason;
mod restart;
mod revival;
mod status;
mod suspicion;
mod switch;
mod sync;
#[cfg(test)]
mod tests;

use model::stolon::ext::{Operation, Order, Preference, Progress};
use model::stolon::{ClusterData, ClusterPhase, Db, EffectiveSpec, Keeper, KeeperInfo, ProxyInfo};
use model::{DbUid, GoTime, KeeperUid, ProxyUid};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use explain::{Explanation, Finding, explain};
pub use memory::{LEASE_HINT, Memory, track};
pub use obstacle::Obstacle;
pub use operation::Notes;
pub use reason::Reason;
pub use suspicion::{Inquired, Inquiry, PRESENT};

/// A moment on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// The monotonic clock, from any origin: all timers use it.
    pub clock: Duration,
    /// The wall clock: for the times in cluster data, and for the removal of keepers that were dead for days.
    pub wall: GoTime,
}

/// What the store says besides cluster data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Keepers' records; `None` for one that can't be read.
    pub keepers: BTreeMap<KeeperUid, Option<KeeperInfo>>,
    /// Proxies' records; `None` for one that can't be read.
    pub proxies: BTreeMap<ProxyUid, Option<ProxyInfo>>,
    /// What an operator asks for.
    pub operation: Option<Operation>,
    /// How far a sentinel is with the last request.
    pub progress: Option<Progress>,
    /// The keeper that an operator moved the master to.
    pub preference: Option<Preference>,
    /// What keepers are ordered to do.
    pub orders: BTreeMap<KeeperUid, Order>,
    /// Since when the store has been followed without a gap. Nobody is blamed for silence before that: the
    /// store itself may have been down.
    pub connected_since: Duration,
    /// What came of the last [`Planned::inquiry`].
    pub inquired: Option<Inquired>,
    /// Randomness for the uids of new dbs.
    pub seed: u64,
}

/// A decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// The cluster data wanted. Equal to the input when there is nothing to write.
    pub data: ClusterData,
    /// What to remember for the next plan; to be kept only if `data` was written or needs no writing.
    pub memory: Memory,
    /// What to write besides, together with `data`.
    pub notes: Notes,
    /// What was decided, and what is being waited for.
    pub reasons: Vec<Reason>,
    /// When to plan again although nothing changes; `None`: never.
    pub wake_at: Option<Duration>,
    /// What to find out, for as long as plans ask for it.
    pub inquiry: Option<Inquiry>,
}

/// Positions move all the time where clients write. They are refreshed after so long, since a successor uses them
/// where it has seen nothing itself.
pub const REFRESH: Duration = Duration::from_secs(60);
/// When keepers were healthy last is refreshed so often at most, though nothing else changes: a successor that finds a
/// keeper dead counts the removal interval from there.
pub const LONGEST_AGE: Duration = Duration::from_secs(3600);

/// Decides what the cluster data is to become.
pub fn plan(now: Moment, data: &ClusterData, observed: &Observed, memory: &Memory) -> Planned {
    let weighed = suspicion::weigh(now.clock, data, observed, memory);
    let memory = track(now, data, observed, &weighed.memory);
    let unchanged = |memory, reason| Planned {
        data: data.clone(),
        memory,
        notes: Notes::default(),
        reasons: vec![reason],
        wake_at: None,
        inquiry: None,
    };
    let spec = match data.spec().effective() {
        Ok(spec) => spec,
        Err(error) => return unchanged(memory, Reason::Unusable(error.to_string())),
    };
    if let Err(problem) = data.check() {
        return unchanged(memory, Reason::Unusable(problem));
    }
    let mut planner = Planner::new(now, spec, data, observed, memory);
    (planner.reasons, planner.wake, planner.inquiry) = (weighed.reasons, weighed.wake, weighed.inquiry);
    planner.report_unreadable();
    planner.update_status();
    planner.update_proxy_status();
    match planner.data.cluster.status.phase {
        Some(ClusterPhase::Initializing) => planner.initialize(),
        Some(ClusterPhase::Normal) => planner.operate(),
        None => planner.say(Reason::Unusable("the cluster has no phase".into())),
    }
    planner.finish()
}

/// A decision in the making.
struct Planner<'a> {
    now: Moment,
    spec: EffectiveSpec,
    observed: &'a Observed,
    /// The cluster data as it is stored.
    before: &'a ClusterData,
    /// The cluster data as it is to become.
    data: ClusterData,
    memory: Memory,
    reasons: Vec<Reason>,
    wake: Option<Duration>,
    inquiry: Option<Inquiry>,
    /// Uids drawn so far.
    drawn: u64,
    /// Dbs whose generation counts up without a change, so that a later report can be told from an earlier one.
    barriers: BTreeSet<DbUid>,
    /// What an operator asks for, while it goes on.
    request: Option<Operation>,
    /// The keeper that counts as preferred to all others.
    favourite: Option<KeeperUid>,
    notes: Notes,
    /// What keepers are to do now.
    orders: BTreeMap<KeeperUid, Order>,
    /// The master that is being handed over, and who gets ready to succeed it.
    successor: Option<(DbUid, DbUid)>,
}

impl<'a> Planner<'a> {
    fn new(now: Moment, spec: EffectiveSpec, data: &'a ClusterData, observed: &'a Observed, memory: Memory) -> Self {
        Planner {
            now,
            spec,
            observed,
            before: data,
            data: data.clone(),
            memory,
            reasons: Vec::new(),
            wake: None,
            inquiry: None,
            drawn: 0,
            barriers: BTreeSet::new(),
            request: None,
            favourite: None,
            notes: Notes::default(),
            orders: BTreeMap::new(),
            successor: None,
        }
    }
}

impl Planner<'_> {
    fn say(&mut self, reason: Reason) {
        self.reasons.push(reason);
    }

    fn report_unreadable(&mut self) {
        let keepers = self.observed.keepers.iter().filter(|(_, info)| info.is_none());
        let proxies = self.observed.proxies.iter().filter(|(_, info)| info.is_none());
        let keepers = keepers.map(|(uid, _)| Reason::Unreadable("keeper", uid.to_string()));
        let proxies = proxies.map(|(uid, _)| Reason::Unreadable("proxy", uid.to_string()));
        self.reasons.extend(keepers.chain(proxies));
    }

    /// Asks to be called again at that time.
    fn wake_at(&mut self, at: Duration) {
        if at > self.now.clock {
            self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
        }
    }

    /// True once `limit` has passed since `start`; asks to be called again at that moment.
    fn passed(&mut self, start: Duration, limit: Duration) -> bool {
        let due = start.saturating_add(limit);
        self.wake_at(due);
        due <= self.now.clock
    }

    fn db(&self, uid: &DbUid) -> Option<&Db> {
        self.data.dbs.get(uid)
    }

    fn keeper_of(&self, db: &Db) -> Option<&Keeper> {
        self.data.keepers.get(&db.spec.keeper_uid)
    }

    /// The favourite's is above all others.
    fn priority(&self, db: &Db) -> i64 {
        if self.favourite.as_ref() == Some(&db.spec.keeper_uid) {
            return i64::MAX;
        }
        self.keeper_of(db).map_or(0, |keeper| keeper.spec.priority)
    }

    /// A uid that no db has.
    fn new_db_uid(&mut self) -> DbUid {
        loop {
            self.drawn += 1;
            let uid = DbUid::from(format!("{:08x}", mix(self.observed.seed, self.drawn)));
            if !self.data.dbs.contains_key(&uid) && !self.before.dbs.contains_key(&uid) {
                return uid;
            }
        }
    }
}

/// The `index`th number of the sequence that belongs to a seed (the mixing step of SplitMix64).
fn mix(seed: u64, index: u64) -> u32 {
    let mut z = seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    u32::try_from((z ^ (z >> 31)) >> 32).expect("the upper half of 64 bits has 32")
}
