//! What a sentinel has watched, which is not in cluster data: clocks of silence, errors and convergence.

use super::{Moment, Observed};
use model::stolon::{ClusterData, ClusterPhase, Db, KeeperInfo, PostgresState, ProxyInfo};
use model::{DbUid, GoDuration, GoTime, KeeperUid, ProxyUid};
use std::collections::BTreeMap;
use std::time::Duration;

/// Go's programs publish with leases of at least 20 s: a record that is gone has not been renewed for so long.
const GO_LEASE: Duration = Duration::from_secs(20);
/// Member of a keeper's status in which the kind of its record is kept for a successor.
pub const LEASE_HINT: &str = "leaseSeconds";

/// What a sentinel has watched.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// The cluster that all the rest is about; another one starts anew.
    cluster_uid: String,
    pub(super) keepers: BTreeMap<KeeperUid, KeeperMemory>,
    pub(super) dbs: BTreeMap<DbUid, DbMemory>,
    pub(super) proxies: BTreeMap<ProxyUid, ProxyMemory>,
    /// No keeper had a record.
    nobody: bool,
    /// When the first keeper came back after all were gone, while others are missing.
    pub(super) revived: Option<Duration>,
    /// When the first keeper of a new cluster was seen.
    pub(super) first_keeper: Option<Duration>,
    /// How often a keeper did not manage to make the first master.
    pub(super) failed_inits: BTreeMap<KeeperUid, u32>,
    /// The change time of the stored document, and when it was first seen.
    pub(super) document: (GoTime, Duration),
    pub(super) switch: super::switch::SwitchMemory,
    pub(super) restart: super::restart::RestartMemory,
    /// Standbys were asked for their positions.
    pub(super) asked: Option<super::positions::Asked>,
    /// The master's server may be gone: its keeper is being asked.
    pub(super) suspicion: Option<super::suspicion::Suspicion>,
    /// A keeper that is given up although its lease has not ended, and the last record it wrote: the next one clears it.
    pub(super) condemned: Option<(KeeperUid, String)>,
    /// Standbys that left the synchronous set because their master lost touch with them; that master, and the position
    /// that proves that it has found them again.
    pub(super) detached: BTreeMap<DbUid, (DbUid, u64)>,
}

/// How a keeper's record is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// It tells the present.
    Fresh,
    /// It may be old: it has not changed since this sentinel began to watch, but not for long.
    Unproven,
    /// It is old, or there is none.
    Stale,
}

/// An error that lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timer {
    since: Duration,
    /// It surely lasted so long already when it was noticed.
    credit: Duration,
    /// Nothing is known about the time before: until it has lasted, all counts as healthy.
    pub(super) grace: bool,
}

impl Timer {
    fn new(since: Duration, credit: Duration) -> Self {
        Timer { since, credit, grace: false }
    }
    fn grace(since: Duration) -> Self {
        Timer { since, credit: Duration::ZERO, grace: true }
    }
    pub(super) fn age(self, now: Duration) -> Duration {
        now.saturating_sub(self.since) + self.credit
    }
    /// When it has lasted for `limit`.
    pub(super) fn due(self, limit: Duration) -> Duration {
        self.since + limit.saturating_sub(self.credit)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct KeeperMemory {
    info_uid: String,
    /// When `info_uid` was first seen.
    since: Duration,
    /// A change was watched, so that `since` is about the moment of publication.
    watched: bool,
    /// The record hangs on a lease of so many seconds that is kept alive: ours. `None`: Go's kind.
    pub(super) lease: Option<u32>,
    pub(super) freshness: Freshness,
    pub(super) error: Option<Timer>,
    /// It did not answer when its server was gone.
    pub(super) condemned: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct DbMemory {
    /// The wanted generation, and since when it is wanted.
    pub(super) convergence: (i64, Duration),
    pub(super) error: Option<Timer>,
    /// The last position reported.
    pub(super) xlog_pos: u64,
    /// Since when the position has not moved.
    pub(super) xlog_since: Duration,
    /// Standbys last reported in sync.
    pub(super) in_sync: Vec<DbUid>,
    /// Standbys that commits wait for and that are not reported in sync, and since when.
    pub(super) missing: BTreeMap<DbUid, Duration>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct ProxyMemory {
    info_uid: String,
    /// When `info_uid` was first seen.
    pub(super) since: Duration,
}

/// Brings memory up to date. Sentinels that do not lead do only this.
pub fn track(now: Moment, data: &ClusterData, observed: &Observed, memory: &Memory) -> Memory {
    let mut next = memory.clone();
    let first = next.cluster_uid != data.cluster.uid || next.cluster_uid.is_empty();
    if first {
        next = Memory { cluster_uid: data.cluster.uid.clone(), ..Memory::default() };
    }
    if first || next.document.0 != data.change_time {
        next.document = (data.change_time, now.clock);
    }
    let sleep = sleep_interval(data);
    let credited = !first || is_warm(data, observed);
    // All were gone, as after a power cut, and the first one is back: the others get their fail interval to follow,
    // or the keeper that boots first would always become the master.
    let reviving = std::mem::replace(&mut next.nobody, observed.keepers.is_empty()) && !next.nobody;
    let uids: Vec<KeeperUid> = data.keepers.keys().chain(observed.keepers.keys()).cloned().collect();
    next.keepers = BTreeMap::new();
    for uid in uids {
        let old = if first { None } else { memory.keepers.get(&uid) };
        let watch = Watch { now: now.clock, observed, sleep, first, credited, reviving };
        if let Some(kept) = watch.keeper(data, &uid, old) {
            next.keepers.insert(uid, kept);
        }
    }
    next.apply_condemnation(now.clock, memory);
    // A sentinel that starts along with the first keepers has not seen that they were gone.
    next.revived = super::revival::track(now.clock, data, observed, &next, reviving || !credited);
    if data.cluster.status.phase == Some(ClusterPhase::Initializing) && !next.keepers.is_empty() {
        next.first_keeper.get_or_insert(now.clock);
    }
    next.dbs = track_dbs(now.clock, data, observed, &next, reviving);
    // Another master may have been elected at an earlier position, and may be in touch with them.
    next.detached.retain(|uid, (master, _)| data.dbs.contains_key(uid) && *master == data.cluster.status.master);
    next.proxies = track_proxies(now.clock, observed, &next);
    next
}

fn sleep_interval(data: &ClusterData) -> Duration {
    let given = data.cluster.spec.as_ref().and_then(|spec| spec.sleep_interval);
    given.unwrap_or(GoDuration::from_secs(5)).to_std()
}

/// The record of a keeper that belongs to this cluster.
pub(super) fn info_of<'a>(data: &ClusterData, observed: &'a Observed, uid: &KeeperUid) -> Option<&'a KeeperInfo> {
    observed.keepers.get(uid)?.as_ref().filter(|info| info.cluster_uid == data.cluster.uid)
}

/// The state that a keeper reports for this very db.
pub(super) fn state_of<'a>(data: &ClusterData, observed: &'a Observed, db: &Db) -> Option<&'a PostgresState> {
    let info = info_of(data, observed, &db.spec.keeper_uid)?;
    info.postgres_state.as_ref().filter(|state| state.uid == db.uid)
}

/// A sentinel that starts may take a missing record as proof of silence only if some keeper has been running for
/// longer than itself. Otherwise the whole site may be starting, and the master's keeper come up a moment later.
fn is_warm(data: &ClusterData, observed: &Observed) -> bool {
    data.keepers.values().any(|keeper| {
        info_of(data, observed, &keeper.uid).is_some_and(|info| info.boot_uuid == keeper.status.boot_uuid)
    })
}

struct Watch<'a> {
    now: Duration,
    observed: &'a Observed,
    sleep: Duration,
    first: bool,
    credited: bool,
    reviving: bool,
}

impl Watch<'_> {
    fn keeper(&self, data: &ClusterData, uid: &KeeperUid, old: Option<&KeeperMemory>) -> Option<KeeperMemory> {
        if let Some(info) = info_of(data, self.observed, uid) {
            return Some(match info.lease_seconds {
                Some(_) => self.fresh(info),
                None => self.published(info, old),
            });
        }
        let hint = data.keepers.get(uid).and_then(|keeper| keeper.status.extra.get(LEASE_HINT)?.as_u64());
        let hint = hint.and_then(|seconds| u32::try_from(seconds).ok());
        // Neither in cluster data nor with a record of this cluster: not one of ours.
        if !data.keepers.contains_key(uid) {
            return None;
        }
        let lease = old.map_or(hint, |old| old.lease);
        let absent = !self.observed.keepers.contains_key(uid);
        let known_absent = old.filter(|old| old.info_uid.is_empty()).and_then(|old| old.error);
        let error = match known_absent {
            Some(timer) if !self.reviving => self.after_outage(timer),
            Some(_) => Timer::grace(self.now),
            None if absent && !self.credited => Timer::grace(self.now),
            None => {
                let silent = lease.map_or(GO_LEASE, |seconds| Duration::from_secs(seconds.into()));
                // A record that is there but can't be used proves nothing about its past.
                let credit = if absent { silent } else { Duration::ZERO };
                old.and_then(|old| old.error).map_or(Timer::new(self.now, credit), |timer| {
                    let timer = self.after_outage(timer);
                    if timer.age(self.now) >= credit { timer } else { Timer::new(self.now, credit) }
                })
            }
        };
        // Only an absent record has no uid: one that can't be used may become absent later.
        let info_uid = if absent { String::new() } else { "?".to_owned() };
        let freshness = Freshness::Stale;
        let error = Some(error);
        Some(KeeperMemory { info_uid, since: self.now, watched: false, lease, freshness, error, condemned: false })
    }

    fn fresh(&self, info: &KeeperInfo) -> KeeperMemory {
        KeeperMemory {
            info_uid: info.info_uid.clone(),
            since: self.now,
            watched: true,
            lease: info.lease_seconds,
            freshness: Freshness::Fresh,
            error: None,
            condemned: false,
        }
    }

    /// A record without a lease of its own is fresh while its `infoUID` changes.
    fn published(&self, info: &KeeperInfo, old: Option<&KeeperMemory>) -> KeeperMemory {
        let Some(old) = old.filter(|old| old.info_uid == info.info_uid) else {
            let mut kept = self.fresh(info);
            if self.first {
                kept.watched = false;
                kept.freshness = Freshness::Unproven;
            }
            return kept;
        };
        let mut kept = old.clone();
        let stale_at = (old.since + self.sleep).max(self.observed.connected_since);
        if self.now > old.since + self.sleep {
            kept.freshness = Freshness::Stale;
            kept.error = Some(self.after_outage(old.error.unwrap_or(Timer::new(stale_at, Duration::ZERO))));
        } else {
            kept.freshness = if old.watched { Freshness::Fresh } else { Freshness::Unproven };
        }
        kept
    }

    fn after_outage(&self, timer: Timer) -> Timer {
        Timer { since: timer.since.max(self.observed.connected_since), ..timer }
    }
}

impl Memory {
    /// The record of a keeper that was given up is as good as gone until the keeper writes another one.
    fn apply_condemnation(&mut self, now: Duration, before: &Memory) {
        let Some((uid, record)) = &self.condemned else { return };
        let error = before.keepers.get(uid).and_then(|keeper| keeper.error);
        match self.keepers.get_mut(uid).filter(|keeper| keeper.info_uid == *record) {
            Some(keeper) => {
                keeper.freshness = Freshness::Stale;
                keeper.error = Some(error.unwrap_or(Timer::new(now, Duration::ZERO)));
                keeper.condemned = true;
            }
            None => self.condemned = None,
        }
    }

    pub(super) fn freshness(&self, uid: &KeeperUid) -> Freshness {
        self.keepers.get(uid).map_or(Freshness::Stale, |keeper| keeper.freshness)
    }

    /// The next moment at which a record without lease turns stale.
    pub(super) fn next_stale(&self, sleep: Duration) -> Option<Duration> {
        let waiting = self.keepers.values().filter(|k| k.lease.is_none() && k.freshness != Freshness::Stale);
        // A record is stale after more than the interval.
        waiting.map(|keeper| keeper.since + sleep + Duration::from_millis(1)).min()
    }

    /// A proxy that may still forward, as far as this sentinel can tell.
    pub(super) fn proxy_lives(&self, info: &ProxyInfo, now: Duration) -> bool {
        info.lease_seconds.is_some() || self.proxy_silent_at(info).is_none_or(|at| now <= at)
    }

    /// When a proxy without lease of its own has surely cut everything off.
    pub(super) fn proxy_silent_at(&self, info: &ProxyInfo) -> Option<Duration> {
        if info.lease_seconds.is_some() {
            return None;
        }
        let since = self.proxies.get(&info.uid)?.since;
        Some(since.saturating_add(info.proxy_timeout.to_std().saturating_mul(2)))
    }
}

impl DbMemory {
    /// Whom commits wait for in vain. While the keeper still applies the list, nobody is to blame; nor for a time in
    /// which the store could not be followed.
    fn track_missing(&mut self, now: Duration, connected_since: Duration, db: &Db, applied: i64) {
        let wanted = db.spec.synchronous_standbys.iter().flatten().filter(|_| applied == db.generation);
        let missing = wanted.filter(|uid| !self.in_sync.contains(uid));
        let since = |uid| self.missing.get(uid).copied().unwrap_or(now).max(connected_since);
        self.missing = missing.map(|uid| (uid.clone(), since(uid))).collect();
    }
}

fn track_dbs(
    now: Duration,
    data: &ClusterData,
    observed: &Observed,
    memory: &Memory,
    reviving: bool,
) -> BTreeMap<DbUid, DbMemory> {
    let mut dbs = BTreeMap::new();
    for (uid, db) in &data.dbs {
        let mut kept = memory.dbs.get(uid).cloned().unwrap_or_else(|| DbMemory {
            convergence: (db.generation, now),
            error: None,
            xlog_pos: db.status.xlog_pos,
            xlog_since: now,
            in_sync: Vec::new(),
            missing: BTreeMap::new(),
        });
        if kept.convergence.0 != db.generation {
            kept.convergence = (db.generation, now);
        }
        if let Some(timer) = &mut kept.error {
            timer.since = timer.since.max(observed.connected_since);
            if reviving {
                *timer = Timer::grace(now);
            }
        }
        let state = state_of(data, observed, db);
        match (memory.freshness(&db.spec.keeper_uid), state.filter(|state| state.healthy)) {
            (Freshness::Unproven, _) => {}
            (Freshness::Fresh, Some(state)) => {
                kept.error = None;
                if state.xlog_pos != kept.xlog_pos {
                    (kept.xlog_pos, kept.xlog_since) = (state.xlog_pos, now);
                }
                kept.in_sync = state.synchronous_standbys.clone().unwrap_or_default();
                kept.track_missing(now, observed.connected_since, db, state.generation);
            }
            (Freshness::Fresh | Freshness::Stale, _) => {
                // Who was in sync with an instance that is ill now proves nothing about what it committed since.
                kept.in_sync.clear();
                kept.missing.clear();
                kept.error.get_or_insert(Timer::new(now, Duration::ZERO));
            }
        }
        dbs.insert(uid.clone(), kept);
    }
    dbs
}

fn track_proxies(now: Duration, observed: &Observed, memory: &Memory) -> BTreeMap<ProxyUid, ProxyMemory> {
    let mut proxies = BTreeMap::new();
    for info in observed.proxies.values().flatten() {
        let old = memory.proxies.get(&info.uid).filter(|old| old.info_uid == info.info_uid);
        let kept = old.cloned().unwrap_or_else(|| ProxyMemory { info_uid: info.info_uid.clone(), since: now });
        proxies.insert(info.uid.clone(), kept);
    }
    proxies
}
