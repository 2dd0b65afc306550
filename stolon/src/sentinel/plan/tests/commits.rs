//! No acknowledged commit is lost in synchronous mode, whatever dies and whoever leads.

use super::world::World;
use model::DbUid;
use model::stolon::Role;
use model::stolon::ext::Action;
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

/// What instances really do, as far as commits are concerned.
#[derive(Default)]
struct Instance {
    /// The db that the directory belongs to.
    db: DbUid,
    /// Up to here it has everything.
    position: u64,
    /// The db that it streams from.
    follows: DbUid,
    /// For a primary: whom its commits wait for, and whether they wait for somebody who never comes.
    waits: (Vec<DbUid>, bool),
}

struct Cluster {
    world: World,
    instances: BTreeMap<String, Instance>,
    /// Where clients' connections go.
    forward: DbUid,
    /// The last commit that a client was told of.
    acknowledged: u64,
}

impl Cluster {
    fn alive(&self, keeper: &str) -> bool {
        self.world.observed.keepers.contains_key(keeper)
    }

    /// The living instance that holds a db and streams from `primary`.
    fn standby_of(&self, primary: &DbUid, db: &DbUid) -> Option<String> {
        let found = self.instances.iter().find(|(_, instance)| instance.db == *db && instance.follows == *primary);
        found.map(|(keeper, _)| keeper.clone()).filter(|keeper| self.alive(keeper))
    }

    fn work(&mut self, keeper: &str) {
        if !self.alive(keeper) {
            return;
        }
        self.world.keeper_works(keeper);
        let Some(db) = self.world.data.db_of_keeper(&keeper.into()).cloned() else {
            *self.instances.entry(keeper.into()).or_default() = Instance::default();
            return;
        };
        let master = db.spec.role == Some(Role::Master);
        let follows = db.spec.follow_config.as_ref().map(|follow| follow.db_uid.clone()).unwrap_or_default();
        let source = self.instances.iter().find(|(k, i)| i.db == follows && self.alive(k)).map(|(_, i)| i.position);
        let instance = self.instances.entry(keeper.into()).or_default();
        if instance.db != db.uid {
            // A new copy is as new as its source.
            *instance = Instance { db: db.uid.clone(), position: source.unwrap_or_default(), ..Default::default() };
        }
        instance.follows = if master { DbUid::default() } else { follows };
        let blocked = db.spec.external_synchronous_standbys.iter().flatten().next().is_some();
        instance.waits = (db.spec.synchronous_standbys.clone().unwrap_or_default(), blocked);
        let position = instance.position;
        let (waits, _) = instance.waits.clone();
        let streaming: Vec<(DbUid, String)> =
            waits.into_iter().filter_map(|uid| Some((uid.clone(), self.standby_of(&db.uid, &uid)?))).collect();
        for (_, standby) in &streaming {
            self.receive(standby, position);
        }
        let handed_over = self.world.info(keeper).handed_over.as_mut().filter(|done| done.db == db.uid);
        if let Some(done) = handed_over {
            done.xlog_pos = position.saturating_sub(1);
            // Stopping cleanly it has sent everything to those that were connected.
            let connected = self.instances.iter().filter(|(k, i)| i.follows == db.uid && self.alive(k));
            let connected: Vec<String> = connected.map(|(keeper, _)| keeper.clone()).collect();
            connected.iter().for_each(|standby| self.receive(standby, position));
        }
        let state = self.world.info(keeper).postgres_state.as_mut().unwrap();
        state.xlog_pos = position;
        state.synchronous_standbys = Some(streaming.into_iter().map(|(uid, _)| uid).collect());
    }

    fn receive(&mut self, keeper: &str, position: u64) {
        let instance = self.instances.get_mut(keeper).unwrap();
        instance.position = instance.position.max(position);
    }

    /// A client commits; the standbys in `lucky` receive it although nobody waits for them.
    fn commit(&mut self, lucky: u8) {
        let primary = self.forward.clone();
        // Nobody forwards. An instance without a db has an empty uid too, and no clients.
        if primary.is_empty() {
            return;
        }
        let found = self.instances.iter().find(|(_, i)| i.db == primary && i.follows.is_empty());
        let Some(keeper) = found.map(|(keeper, _)| keeper.clone()).filter(|keeper| self.alive(keeper)) else { return };
        let instance = self.instances.get_mut(&keeper).unwrap();
        instance.position += 10;
        let (position, (waits, blocked)) = (instance.position, instance.waits.clone());
        let members: Vec<Option<String>> = waits.iter().map(|uid| self.standby_of(&primary, uid)).collect();
        for standby in members.iter().flatten() {
            self.receive(standby, position);
        }
        for number in (1..=3).filter(|number| lucky & (1 << number) != 0) {
            let name = format!("k{number}");
            if self.alive(&name) && self.instances.get(&name).is_some_and(|i| i.follows == primary) {
                self.receive(&name, position);
            }
        }
        if !blocked && members.iter().all(Option::is_some) {
            self.acknowledged = position;
        }
    }

    fn plan(&mut self) {
        let old = self.world.data.cluster.status.master.clone();
        let synchronous = self.world.data.dbs[&old].spec.synchronous_replication;
        self.world.plan();
        let new = self.world.data.cluster.status.master.clone();
        if old == new {
            return;
        }
        let position = self.instances.values().find(|i| i.db == new).map_or(0, |i| i.position);
        if synchronous {
            let said = &self.world.reasons[self.world.reasons.len().saturating_sub(5)..];
            assert!(position >= self.acknowledged, "commits lost: {said:?}");
        }
        self.acknowledged = position.min(self.acknowledged);
    }

    fn proxies(&mut self) {
        self.forward = self.world.data.proxy.spec.master_db_uid.clone();
        self.world.proxies_work();
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Kill(u8),
    Start(u8),
    Work(u8),
    Commit(u8),
    Proxies,
    Plan,
    Pass(u16),
    NewLeader,
    Priority(u8, i8),
    Parameters(u16),
    Synchronous(bool),
    Ask(u8),
    Withdraw,
}

fn event() -> impl Strategy<Value = Event> {
    use Event::*;
    let keeper = 1..=3_u8;
    prop_oneof![
        3 => keeper.clone().prop_map(Kill),
        4 => keeper.clone().prop_map(Start),
        12 => keeper.clone().prop_map(Work),
        8 => any::<u8>().prop_map(Commit),
        5 => Just(Proxies),
        10 => Just(Plan),
        3 => (1..4000_u16).prop_map(Pass),
        1 => Just(NewLeader),
        2 => keeper.clone().prop_map(Ask),
        1 => Just(Withdraw),
        1 => (keeper, -2..3_i8).prop_map(|(k, p)| Priority(k, p)),
        1 => (5..50_u16).prop_map(Parameters),
        1 => any::<bool>().prop_map(Synchronous),
    ]
}

impl Cluster {
    fn happen(&mut self, event: Event) {
        let name = |number: u8| format!("k{number}");
        match event {
            Event::Kill(k) => self.world.kill(&name(k)),
            Event::Start(k) if !self.alive(&name(k)) => self.world.start_keeper(&name(k)),
            Event::Start(_) => {}
            Event::Work(k) => self.work(&name(k)),
            Event::Commit(lucky) => self.commit(lucky),
            Event::Proxies => self.proxies(),
            Event::Plan => self.plan(),
            Event::Pass(millis) => self.world.clock += Duration::from_millis(millis.into()),
            Event::NewLeader => self.world.new_leader(),
            Event::Priority(k, priority) => self.world.set_priority(&name(k), priority.into()),
            Event::Ask(k) => self.world.ask(Action::Switchover(name(k).as_str().into())),
            Event::Withdraw => self.world.observed.operation = None,
            Event::Parameters(number) => self.world.set_spec(|spec| spec.max_standbys = Some(number)),
            Event::Synchronous(on) => self.world.set_spec(|spec| spec.synchronous_replication = Some(on)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 2, ..Default::default() })]

    #[test]
    fn commits_survive(modern: bool, min in 0..3_u16, extra in 0..2_u16, events in prop::collection::vec(event(), 1..250)) {
        let spec = json!({"initMode":"new","failInterval":"5s","sleepInterval":"1s","synchronousReplication":true,
            "minSynchronousStandbys":min,"maxSynchronousStandbys":(min + extra).max(1)});
        let mut cluster = Cluster {
            world: World::running(spec, 3),
            instances: BTreeMap::new(),
            forward: DbUid::default(),
            acknowledged: 0,
        };
        for _ in 0..3 {
            (1..=3).for_each(|k| cluster.happen(Event::Work(k)));
            cluster.plan();
            cluster.proxies();
        }
        if modern {
            cluster.world.modern();
        }
        for event in events {
            cluster.happen(event);
        }
    }
}
