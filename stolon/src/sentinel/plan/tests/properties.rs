//! What must hold after every single plan, and random histories to find one after which it does not.

use super::world::World;
use crate::sentinel::plan::{Planned, Reason, plan};
use model::DbUid;
use model::stolon::ClusterPhase;
use model::stolon::ext::Action;
use proptest::prelude::*;
use serde_json::json;

/// Called for each plan of each test.
pub(super) fn check_step(world: &World, planned: &Planned) {
    assert_eq!(planned.data.check(), Ok(()));
    assert!(!planned.reasons.iter().any(|r| matches!(r, Reason::Rejected(_))), "{:?}", planned.reasons);
    check_generations(world, planned);
    check_fence(world, planned);
    check_election(world, planned);
    check_rest(world, planned);
    check_condemnation(world, planned);
    assert!(planned.wake_at.is_none_or(|wake| wake > world.clock));
}

/// Planning on the outcome comes to rest: at once where nothing was decided, and after a few steps where one
/// decision makes room for the next one.
fn check_rest(world: &World, planned: &Planned) {
    let mut last = planned.clone();
    for _ in 0..4 {
        let again = plan(world.moment(), &last.data, &world.observed, &last.memory);
        if again.data == last.data {
            return;
        }
        assert!(planned.data != world.data, "decided only when asked again: {:?}", again.reasons);
        last = again;
    }
    panic!("does not come to rest: {:?} … {:?}", planned.reasons, last.reasons);
}

fn check_generations(world: &World, planned: &Planned) {
    let (before, after) = (&world.data, &planned.data);
    for (uid, db) in &after.dbs {
        match before.dbs.get(uid) {
            Some(old) if old.spec != db.spec => assert_eq!(db.generation, old.generation + 1),
            Some(old) => assert!(db.generation == old.generation || db.generation == old.generation + 1),
            None => assert_eq!(db.generation, 1),
        }
    }
    let step = i64::from(before.proxy.spec != after.proxy.spec);
    assert_eq!(after.proxy.generation, before.proxy.generation + step);
}

/// F1: from one master to another only by way of none, and only when every proxy has confirmed that.
fn check_fence(world: &World, planned: &Planned) {
    let (old, new) = (&world.data.proxy.spec.master_db_uid, &planned.data.proxy.spec.master_db_uid);
    if old != new {
        assert!(old.is_empty() || new.is_empty(), "no fence between {old} and {new}");
    }
    // A switch that is given up opens to the master that was never left.
    let given_up = planned.reasons.iter().any(|r| matches!(r, Reason::SwitchAbandoned { .. }));
    if old.is_empty() && !new.is_empty() && !given_up {
        let generation = world.data.proxy.generation;
        for info in world.observed.proxies.values().flatten().filter(|info| info.lease_seconds.is_some()) {
            assert_eq!(info.generation, generation, "proxy {} has not confirmed", info.uid);
        }
        assert_eq!(planned.data.dbs[new].status.current_generation, world.data.dbs[new].generation);
    }
    let master = &planned.data.cluster.status.master;
    assert!(new.is_empty() || new == master);
}

/// With synchronous replication only dbs with every commit are elected.
fn check_election(world: &World, planned: &Planned) {
    let (before, after) = (&world.data, &planned.data);
    if before.cluster.status.phase != Some(ClusterPhase::Normal) {
        return;
    }
    let (old, new) = (&before.cluster.status.master, &after.cluster.status.master);
    let Some(master) = before.dbs.get(old).filter(|_| old != new) else { return };
    let keeper = &before.dbs[new].spec.keeper_uid;
    assert!(before.keepers[keeper].status.can_be_master != Some(false));
    if master.spec.synchronous_replication {
        let holds = |list: &Option<Vec<DbUid>>| list.iter().flatten().any(|uid| uid == new);
        let info = world.observed.keepers.get(keeper).and_then(Option::as_ref);
        let handed_over = info.and_then(|info| info.handed_over.as_ref()).is_some_and(|done| done.db == *new);
        let former = (before.dbs[new].is_master_type() || handed_over) && before.proxy.spec.master_db_uid.is_empty();
        assert!(holds(&master.spec.synchronous_standbys));
        assert!(holds(&master.status.synchronous_standbys) || former);
    }
}

/// A keeper that still holds its lease is given up only for a server that nobody can connect to.
fn check_condemnation(world: &World, planned: &Planned) {
    for reason in &planned.reasons {
        let Reason::KeeperGone(keeper) = reason else { continue };
        let master = &world.data.dbs[&world.data.cluster.status.master];
        assert_eq!(master.spec.keeper_uid, *keeper);
        assert!(world.observed.inquired.as_ref().is_some_and(|inquired| inquired.refused.is_some()));
        let words = world.observed.keepers.values().flatten().filter_map(|info| info.upstream.as_ref());
        assert!(words.clone().any(|upstream| upstream.db == master.uid && upstream.refused));
        let mut members = master.spec.synchronous_standbys.iter().flatten();
        assert!(members.all(|uid| {
            let keeper = world.data.dbs.get(uid).map(|db| &db.spec.keeper_uid);
            let info = keeper.and_then(|keeper| world.observed.keepers.get(keeper)).and_then(Option::as_ref);
            info.and_then(|info| info.upstream.as_ref()).is_none_or(|up| up.db != master.uid || up.refused)
        }));
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Kill(u8),
    Start(u8),
    Sick(u8),
    Work(u8),
    Advance(u8, u16),
    Proxies,
    ProxyComes(u8),
    ProxyGoes(u8),
    Plan,
    NewLeader,
    Pass(u16),
    Priority(u8, i8),
    ForceFail(u8),
    Parameters(u16),
    Synchronous(bool),
    Ask(u8),
    Withdraw,
    Refuse(u8),
    Inquire(bool),
}

fn event() -> impl Strategy<Value = Event> {
    use Event::*;
    let keeper = 1..=3_u8;
    prop_oneof![
        2 => keeper.clone().prop_map(Kill),
        3 => keeper.clone().prop_map(Start),
        1 => keeper.clone().prop_map(Sick),
        8 => keeper.clone().prop_map(Work),
        2 => (keeper.clone(), 1..5000_u16).prop_map(|(k, n)| Advance(k, n)),
        5 => Just(Proxies),
        1 => (1..=2_u8).prop_map(ProxyComes),
        1 => (1..=2_u8).prop_map(ProxyGoes),
        8 => Just(Plan),
        1 => Just(NewLeader),
        5 => (1..4000_u16).prop_map(Pass),
        1 => (keeper.clone(), -2..3_i8).prop_map(|(k, p)| Priority(k, p)),
        1 => keeper.clone().prop_map(ForceFail),
        2 => keeper.clone().prop_map(Ask),
        1 => Just(Withdraw),
        4 => keeper.prop_map(Refuse),
        4 => prop::bool::weighted(0.8).prop_map(Inquire),
        1 => (5..50_u16).prop_map(Parameters),
        1 => any::<bool>().prop_map(Synchronous),
    ]
}

fn happen(world: &mut World, event: Event) {
    let name = |number: u8| format!("k{number}");
    match event {
        Event::Kill(k) => world.kill(&name(k)),
        Event::Start(k) => {
            if !world.observed.keepers.contains_key(name(k).as_str()) {
                world.start_keeper(&name(k));
            }
        }
        Event::Sick(k) => {
            if let Some(Some(info)) = world.observed.keepers.get_mut(name(k).as_str())
                && let Some(state) = &mut info.postgres_state
            {
                state.healthy = false;
            }
        }
        Event::Work(k) => world.keeper_works(&name(k)),
        Event::Advance(k, bytes) => {
            if let Some(Some(info)) = world.observed.keepers.get_mut(name(k).as_str())
                && let Some(state) = &mut info.postgres_state
            {
                state.xlog_pos += u64::from(bytes);
            }
        }
        Event::Proxies => world.proxies_work(),
        Event::ProxyComes(p) => world.proxy(&format!("p{p}")),
        Event::ProxyGoes(p) => {
            world.observed.proxies.remove(format!("p{p}").as_str());
        }
        Event::Plan => {
            world.plan();
        }
        Event::NewLeader => world.new_leader(),
        Event::Pass(millis) => world.clock += std::time::Duration::from_millis(millis.into()),
        Event::Priority(k, priority) => {
            if world.data.keepers.contains_key(name(k).as_str()) {
                world.set_priority(&name(k), priority.into());
            }
        }
        Event::ForceFail(k) => {
            if let Some(keeper) = world.data.keepers.get_mut(name(k).as_str()) {
                keeper.status.force_fail = true;
            }
        }
        Event::Ask(k) => world.ask(Action::Switchover(name(k).as_str().into())),
        Event::Withdraw => world.observed.operation = None,
        Event::Parameters(number) => world.set_spec(|spec| spec.max_standbys = Some(number)),
        Event::Refuse(k) => world.refuse(&name(k)),
        Event::Inquire(refused) => world.inquire(refused),
        Event::Synchronous(on) => world.set_spec(|spec| spec.synchronous_replication = Some(on)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 2, ..Default::default() })]

    #[test]
    fn every_history_keeps_the_invariants(sync: bool, min in 0..2_u16, events in prop::collection::vec(event(), 1..120)) {
        let spec = json!({"initMode":"new","failInterval":"5s","sleepInterval":"1s","usePgrewind":true,
            "synchronousReplication":sync,"minSynchronousStandbys":min});
        let mut world = World::running(spec, 3);
        if events.len() % 2 == 0 {
            world.modern();
        }
        for event in events {
            happen(&mut world, event);
        }
        // When all is well again the cluster serves again, and then there is nothing more to write.
        for keeper in 1..=3 {
            happen(&mut world, Event::Start(keeper));
        }
        for _ in 0..30 {
            world.pass(2);
            world.settle();
        }
        prop_assert!(world.proxied().is_some(), "{:#?}", &world.reasons[world.reasons.len().saturating_sub(10)..]);
        prop_assert_eq!(world.data.dbs.len(), 3);
    }
}
