//! Pretend keepers and proxies that do what cluster data says, step by step.

use crate::sentinel::plan::{Inquired, Inquiry, Memory, Moment, Notes, Observed, PRESENT, Planned, Reason, plan};
use chrono::{TimeZone, Utc};
use model::stolon::ext::{Action, Operation, Order, Phase, Work};
use model::stolon::{
    ClusterData, Db, HandedOver, KeeperInfo, PostgresState, ProxyInfo, Role, StolonSpec, TimelineHistory, Upstream,
};
use model::{DbUid, GoDuration, KeeperUid, ProxyUid};
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone)]
pub(super) struct World {
    pub(super) clock: Duration,
    pub(super) data: ClusterData,
    pub(super) memory: Memory,
    pub(super) observed: Observed,
    pub(super) reasons: Vec<Reason>,
    pub(super) wake: Option<Duration>,
    pub(super) writes: usize,
    /// What the last plan asked for.
    pub(super) inquiry: Option<Inquiry>,
    /// What keepers were asked.
    challenges: BTreeMap<KeeperUid, String>,
    /// Instances by keeper: role and position survive what the sentinel believes.
    pub(super) timelines: BTreeMap<KeeperUid, (bool, u64, Vec<TimelineHistory>)>,
    counter: u64,
    modern: bool,
}

impl World {
    /// A new cluster with keepers `k1`…`kN` that have ours' leases, and one proxy of ours.
    pub(super) fn new(spec: serde_json::Value, keepers: usize) -> Self {
        let spec: StolonSpec = serde_json::from_value(spec).unwrap();
        let mut world = World {
            clock: Duration::from_secs(1000),
            data: ClusterData::new("c1", spec, Default::default()),
            memory: Memory::default(),
            observed: Observed { seed: 7, ..Default::default() },
            reasons: Vec::new(),
            wake: None,
            writes: 0,
            inquiry: None,
            challenges: BTreeMap::new(),
            timelines: BTreeMap::new(),
            counter: 0,
            modern: false,
        };
        for number in 1..=keepers {
            world.start_keeper(&format!("k{number}"));
        }
        world.proxy("p1");
        world
    }

    /// The same, already in operation with all standbys good.
    pub(super) fn running(spec: serde_json::Value, keepers: usize) -> Self {
        let mut world = World::new(spec, keepers);
        world.settle();
        world.pass(1);
        world.settle();
        assert_eq!(world.proxied(), Some("k1"), "{:?} {:#?}", world.reasons, world.data);
        assert_eq!(world.data.dbs.len(), keepers);
        world.reasons.clear();
        world
    }

    pub(super) fn start_keeper(&mut self, uid: &str) {
        self.counter += 1;
        let info = KeeperInfo {
            info_uid: format!("i{}", self.counter),
            uid: uid.into(),
            cluster_uid: "c1".into(),
            boot_uuid: format!("boot{}", self.counter),
            lease_seconds: Some(5),
            handed_over: self.modern.then(HandedOver::default),
            obeyed: self.modern.then(String::new),
            answered: Some(String::new()),
            ..Default::default()
        };
        self.observed.keepers.insert(uid.into(), Some(info));
        self.timelines.entry(uid.into()).or_insert((false, 1, Vec::new()));
    }

    /// All keepers can hand their primary over.
    pub(super) fn modern(&mut self) {
        self.modern = true;
        for info in self.observed.keepers.values_mut().flatten() {
            info.handed_over = Some(HandedOver::default());
            info.obeyed = Some(String::new());
        }
    }

    pub(super) fn kill(&mut self, uid: &str) {
        self.observed.keepers.remove(uid);
    }

    pub(super) fn info(&mut self, uid: &str) -> &mut KeeperInfo {
        self.observed.keepers.get_mut(uid).unwrap().as_mut().unwrap()
    }

    pub(super) fn proxy(&mut self, uid: &str) {
        let info = ProxyInfo { uid: uid.into(), lease_seconds: Some(5), ..Default::default() };
        self.observed.proxies.insert(uid.into(), Some(info));
    }

    pub(super) fn moment(&self) -> Moment {
        let seconds = 1_700_000_000 + i64::try_from(self.clock.as_secs()).unwrap();
        let wall = Utc.timestamp_opt(seconds, self.clock.subsec_nanos()).unwrap();
        Moment { clock: self.clock, wall: wall.into() }
    }

    /// One plan of the sentinel, with every invariant checked. Says whether something was written.
    pub(super) fn plan(&mut self) -> bool {
        let planned = plan(self.moment(), &self.data, &self.observed, &self.memory);
        super::properties::check_step(self, &planned);
        let Planned { data, memory, notes, reasons, wake_at, inquiry } = planned;
        self.apply_notes(notes);
        let wrote = data != self.data;
        self.writes += usize::from(wrote);
        (self.data, self.memory, self.wake) = (data, memory, wake_at);
        if let Some(inquiry) = &inquiry {
            self.challenges.insert(inquiry.keeper.clone(), inquiry.token.clone());
        }
        self.inquiry = inquiry;
        self.reasons.extend(reasons);
        wrote
    }

    fn apply_notes(&mut self, notes: Notes) {
        if let Some(progress) = notes.progress {
            self.observed.progress = Some(progress);
        }
        for (keeper, order) in notes.orders {
            match order {
                Some(order) => drop(self.observed.orders.insert(keeper, order)),
                None => drop(self.observed.orders.remove(&keeper)),
            }
        }
        if let Some(preference) = notes.preference {
            self.observed.preference = preference;
        }
    }

    /// An operator asks for something.
    pub(super) fn ask(&mut self, action: Action) {
        self.counter += 1;
        let id = format!("r{}", self.counter);
        self.observed.operation =
            Some(Operation { id, cluster_uid: "c1".into(), action: Some(action), ..Default::default() });
    }

    /// How the last request stands, and its last step.
    pub(super) fn progress(&self) -> Option<(Phase, &str)> {
        let progress = self.observed.progress.as_ref()?;
        Some((progress.phase, progress.steps.last()?.text.as_str()))
    }

    /// All living keepers do what cluster data says, and report it.
    pub(super) fn keepers_work(&mut self) {
        for uid in self.observed.keepers.keys().cloned().collect::<Vec<_>>() {
            self.keeper_works(uid.as_str());
        }
    }

    pub(super) fn keeper_works(&mut self, uid: &str) {
        let Some(db) = self.data.db_of_keeper(&uid.into()).cloned() else {
            self.report(&uid.into(), |info| info.postgres_state = None);
            return;
        };
        let master = self.data.dbs.get(&self.data.cluster.status.master).map(|db| db.spec.keeper_uid.clone());
        let followed = master.and_then(|keeper| self.timelines.get(&keeper).cloned());
        let position = self.position(&db, uid);
        let was_primary = self.timelines[uid].0;
        let (primary, timeline, history) = self.timelines.get_mut(uid).unwrap();
        match db.spec.role {
            Some(Role::Master) if !*primary => {
                *primary = true;
                if db.spec.init_mode == Some(model::stolon::DbInitMode::None) {
                    let end = TimelineHistory { timeline_id: *timeline, switch_point: position, ..Default::default() };
                    history.push(end);
                    *timeline += 1;
                }
            }
            Some(Role::Standby) => {
                *primary = false;
                if let Some((true, followed_timeline, followed_history)) = followed {
                    (*timeline, *history) = (followed_timeline, followed_history);
                }
            }
            _ => {}
        }
        let is_own = db.uid == self.data.cluster.status.master;
        let (primary, ..) = self.timelines[uid];
        let waits = is_own || !self.data.dbs.get(&self.data.cluster.status.master).is_some_and(Db::converged);
        if let Some(info) = self.observed.keepers.get_mut(uid).and_then(Option::as_mut).filter(|_| self.modern) {
            if was_primary && !primary {
                info.handed_over = Some(HandedOver { db: db.uid.clone(), xlog_pos: position.saturating_sub(1) });
            } else if primary || !waits {
                info.handed_over = Some(HandedOver::default());
            }
        }
        let in_sync = db.spec.synchronous_standbys.clone().unwrap_or_default();
        let alive = |uid: &DbUid| {
            let keeper = self.data.dbs.get(uid).map(|db| db.spec.keeper_uid.clone());
            keeper.is_some_and(|keeper| self.observed.keepers.contains_key(&keeper))
        };
        let in_sync: Vec<DbUid> = in_sync.into_iter().filter(alive).collect();
        let (_, timeline, history) = self.timelines[uid].clone();
        let follow = db.spec.follow_config.as_ref().filter(|_| db.spec.role == Some(Role::Standby));
        let upstream = follow.map(|follow| Upstream { db: follow.db_uid.clone(), refused: false, receiving: true });
        let state = PostgresState {
            uid: db.uid.clone(),
            generation: db.generation,
            listen_address: "127.0.0.1".into(),
            port: "5432".into(),
            healthy: true,
            system_id: "77".into(),
            timeline_id: timeline,
            xlog_pos: position,
            timelines_history: history,
            synchronous_standbys: Some(in_sync),
            ..Default::default()
        };
        self.report(&uid.into(), |info| (info.upstream, info.postgres_state) = (upstream, Some(state)));
    }

    /// A living keeper publishes what changed, and what it was asked for.
    fn report(&mut self, keeper: &KeeperUid, change: impl FnOnce(&mut KeeperInfo)) {
        self.counter += 1;
        let challenge = self.challenges.get(keeper);
        let Some(Some(info)) = self.observed.keepers.get_mut(keeper) else { return };
        let before = info.clone();
        info.answered = info.answered.as_ref().map(|old| challenge.unwrap_or(old).clone());
        change(info);
        let order = self.observed.orders.get(keeper).filter(|order| order.boot_uuid == info.boot_uuid);
        if let Some(Order { id, work: Some(work @ (Work::Checkpoint | Work::Restart)), .. }) = order {
            info.obeyed = Some(id.clone());
            info.problems.retain(|_| *work == Work::Checkpoint);
        }
        if *info != before {
            info.info_uid = format!("i{}", self.counter);
        }
    }

    fn position(&self, db: &Db, keeper: &str) -> u64 {
        let info = self.observed.keepers.get(keeper).and_then(Option::as_ref);
        let state = info.and_then(|info| info.postgres_state.as_ref());
        state.map_or(db.status.xlog_pos.max(1000), |state| state.xlog_pos.max(1000))
    }

    /// The keeper's standby has lost the master, and is refused there.
    pub(super) fn refuse(&mut self, keeper: &str) {
        self.counter += 1;
        let record = format!("i{}", self.counter);
        if let Some(Some(info)) = self.observed.keepers.get_mut(keeper)
            && let Some(upstream) = &mut info.upstream
        {
            (upstream.refused, upstream.receiving) = (true, false);
            info.info_uid = record;
        }
    }

    /// The sentinel has asked what the last plan wanted to know, and tried to connect.
    pub(super) fn inquire(&mut self, refused: bool) {
        let now = self.clock;
        let token = self.inquiry.as_ref().map(|inquiry| inquiry.token.clone());
        let old = self.observed.inquired.take().filter(|old| Some(&old.token) == token.as_ref());
        let asked = old.as_ref().and_then(|old| old.asked).or(Some((now, Duration::ZERO)));
        let still = old.and_then(|old| old.refused).filter(|(_, last)| now <= *last + PRESENT);
        let since = still.map_or(now, |(since, _)| since);
        let refused = refused.then_some((since, now));
        self.observed.inquired = token.map(|token| Inquired { token, asked, refused });
    }

    /// Another process leads, which has watched and asked nothing yet.
    pub(super) fn new_leader(&mut self) {
        self.memory = Memory::default();
        self.inquiry = None;
        self.observed.inquired = None;
    }

    pub(super) fn set_position(&mut self, keeper: &str, position: u64) {
        self.info(keeper).postgres_state.as_mut().unwrap().xlog_pos = position;
    }

    pub(super) fn proxies_work(&mut self) {
        let generation = self.data.proxy.generation;
        for info in self.observed.proxies.values_mut().flatten() {
            info.generation = generation;
        }
    }

    /// Everybody works until nothing changes any more; time stands still.
    pub(super) fn settle(&mut self) {
        for _ in 0..50 {
            let before = (self.data.clone(), self.observed.clone());
            self.plan();
            self.keepers_work();
            self.proxies_work();
            if before == (self.data.clone(), self.observed.clone()) {
                return;
            }
        }
        panic!("never settles: {:#?}", &self.reasons[self.reasons.len().saturating_sub(20)..]);
    }

    pub(super) fn pass(&mut self, seconds: u64) {
        self.clock += Duration::from_secs(seconds);
    }

    pub(super) fn master(&self) -> &str {
        self.data.dbs[&self.data.cluster.status.master].spec.keeper_uid.as_str()
    }

    pub(super) fn proxied(&self) -> Option<&str> {
        self.data.proxied_master().map(|db| db.spec.keeper_uid.as_str())
    }

    pub(super) fn db(&self, keeper: &str) -> &Db {
        self.data.db_of_keeper(&keeper.into()).unwrap()
    }

    pub(super) fn uid(&self, keeper: &str) -> DbUid {
        self.db(keeper).uid.clone()
    }

    pub(super) fn sync_mode(&self) -> bool {
        self.data.spec().effective().unwrap().synchronous_replication
    }

    pub(super) fn set_priority(&mut self, keeper: &str, priority: i64) {
        self.data.keepers.get_mut(keeper).unwrap().spec.priority = priority;
    }

    pub(super) fn set_spec(&mut self, change: impl FnOnce(&mut StolonSpec)) {
        change(self.data.cluster.spec.as_mut().unwrap());
    }

    /// Turns all records into those of Go's programs.
    pub(super) fn go(&mut self) {
        for info in self.observed.keepers.values_mut().flatten() {
            info.lease_seconds = None;
        }
        for info in self.observed.proxies.values_mut().flatten() {
            info.lease_seconds = None;
            info.proxy_timeout = GoDuration::from_secs(15);
        }
    }

    /// Go's programs publish.
    pub(super) fn publish(&mut self) {
        self.counter += 1;
        for info in self.observed.keepers.values_mut().flatten() {
            info.info_uid = format!("i{}", self.counter);
        }
        for info in self.observed.proxies.values_mut().flatten() {
            info.info_uid = format!("i{}", self.counter);
        }
    }

    pub(super) fn said(&self, what: impl Fn(&Reason) -> bool) -> bool {
        self.reasons.iter().any(what)
    }

    pub(super) fn active_proxies(&self) -> Vec<ProxyUid> {
        self.observed.proxies.keys().cloned().collect()
    }
}
