//! Restarts of PostgreSQL in order.

use super::world::World;
use crate::sentinel::plan::{Memory, Reason};
use model::stolon::ext::{Action, Phase, Restart, Work};
use model::stolon::{Problem, Role};
use serde_json::json;
use std::time::Duration;

fn spec(synchronous: bool, automatic: bool) -> serde_json::Value {
    json!({"initMode":"new","failInterval":"5s","sleepInterval":"1s","usePgrewind":true,
        "synchronousReplication":synchronous,"automaticPgRestart":automatic})
}

/// Three keepers of ours, each of which tells that parameters wait for a restart.
fn pending(spec: serde_json::Value) -> World {
    let mut world = World::running(spec, 3);
    world.modern();
    world.settle();
    for keeper in ["k1", "k2", "k3"] {
        wait_for_restart(&mut world, keeper);
    }
    world
}

fn wait_for_restart(world: &mut World, keeper: &str) {
    let problem = Problem { code: Problem::RESTART_PENDING.into(), text: "max_connections".into() };
    world.info(keeper).problems.push(problem);
}

fn is_pending(world: &mut World, keeper: &str) -> bool {
    !world.info(keeper).problems.is_empty()
}

/// Lets everybody work, and tells in which order keepers were restarted; never two at the same time.
fn restarted(world: &mut World, steps: usize) -> Vec<String> {
    let mut order = Vec::new();
    for _ in 0..steps {
        world.clock += Duration::from_millis(100);
        world.plan();
        let now: Vec<String> = world
            .observed
            .orders
            .iter()
            .filter(|(keeper, order)| {
                let info = world.observed.keepers[*keeper].as_ref().unwrap();
                order.work == Some(Work::Restart) && info.obeyed.as_ref() != Some(&order.id)
            })
            .map(|(keeper, _)| keeper.to_string())
            .collect();
        assert!(now.len() <= 1, "{now:?}");
        for keeper in ["k1", "k2", "k3"] {
            // What was handed over was stopped, too.
            if world.db(keeper).spec.role == Some(Role::Standby) && world.observed.orders.is_empty() && keeper == "k1" {
                world.info(keeper).problems.clear();
            }
        }
        order.extend(now);
        world.keepers_work();
        world.proxies_work();
    }
    order
}

fn ask(world: &mut World, all: bool, in_place: bool) {
    world.ask(Action::Restart(Restart { all, in_place }));
}

fn outcome(world: &World) -> (Phase, &str) {
    world.progress().unwrap()
}

#[test]
fn standbys_come_first_and_the_master_moves() {
    for synchronous in [false, true] {
        let mut world = pending(spec(synchronous, false));
        let waited = world.db("k1").spec.synchronous_standbys.clone().unwrap_or_default();
        let last = world.data.dbs.values().find(|db| waited.contains(&db.uid)).map(|db| db.spec.keeper_uid.to_string());
        ask(&mut world, false, false);
        let order = restarted(&mut world, 80);
        assert_eq!(order.len(), 2, "{order:?} {:?}", world.reasons);
        assert!(!order.contains(&"k1".to_owned()));
        assert!(last.is_none_or(|last| order[1] == last), "commits wait for it");
        assert_ne!(world.proxied(), Some("k1"));
        assert!(world.proxied().is_some());
        assert_eq!(outcome(&world), (Phase::Done, "PostgreSQL of 3 keepers was restarted"));
    }
}

#[test]
fn in_place_the_master_stays() {
    let mut world = pending(spec(true, false));
    ask(&mut world, false, true);
    let order = restarted(&mut world, 80);
    assert_eq!((order.len(), order[2].as_str()), (3, "k1"));
    assert_eq!((world.proxied(), outcome(&world).0), (Some("k1"), Phase::Done));
    assert!(["k1", "k2", "k3"].iter().all(|keeper| !is_pending(&mut world, keeper)));
}

#[test]
fn a_single_keeper_restarts_where_it_is() {
    let mut world = World::running(spec(false, false), 1);
    world.modern();
    wait_for_restart(&mut world, "k1");
    ask(&mut world, false, false);
    for _ in 0..20 {
        world.clock += Duration::from_millis(100);
        world.plan();
        world.keepers_work();
        world.proxies_work();
    }
    assert_eq!(outcome(&world), (Phase::Done, "PostgreSQL of 1 keeper was restarted"));
}

#[test]
fn only_where_it_is_needed_unless_all_are_asked_for() {
    let mut world = World::running(spec(false, false), 3);
    world.modern();
    world.settle();
    wait_for_restart(&mut world, "k3");
    ask(&mut world, false, false);
    assert_eq!(restarted(&mut world, 40), ["k3"]);
    assert_eq!((world.proxied(), outcome(&world).0), (Some("k1"), Phase::Done));
    ask(&mut world, false, false);
    assert!(restarted(&mut world, 40).is_empty());
    assert_eq!(outcome(&world), (Phase::Done, "no parameter waits for a restart"));
    ask(&mut world, true, true);
    assert_eq!(restarted(&mut world, 60).len(), 3);
    assert_eq!(outcome(&world), (Phase::Done, "PostgreSQL of 3 keepers was restarted"));
}

#[test]
fn the_next_leader_goes_on() {
    let mut world = pending(spec(true, false));
    ask(&mut world, true, true);
    let mut order = Vec::new();
    for _ in 0..12 {
        order.extend(restarted(&mut world, 4));
        world.memory = Memory::default();
    }
    order.extend(restarted(&mut world, 60));
    assert_eq!(outcome(&world), (Phase::Done, "PostgreSQL of 3 keepers was restarted"), "{order:?}");
    order.dedup();
    assert_eq!(order.len(), 3, "{order:?}");
}

#[test]
fn each_is_waited_for() {
    let mut world = pending(spec(true, false));
    ask(&mut world, false, false);
    world.plan();
    let first = world.observed.orders.keys().next().unwrap().to_string();
    world.keeper_works(&first);
    assert!(!is_pending(&mut world, &first));
    // It is back, but does not receive yet.
    world.info(&first).upstream.as_mut().unwrap().receiving = false;
    for _ in 0..30 {
        world.pass(1);
        world.plan();
        assert!(world.observed.orders.is_empty(), "{:?}", world.observed.orders);
    }
    assert!(outcome(&world).1.contains("does not receive"), "{:?}", outcome(&world));
    world.keeper_works(&first);
    world.plan();
    assert_eq!(world.observed.orders.len(), 1);
}

#[test]
fn a_keeper_that_goes_away_ends_it() {
    let mut world = pending(spec(true, false));
    ask(&mut world, false, false);
    world.plan();
    let first = world.observed.orders.keys().next().unwrap().to_string();
    world.kill(&first);
    for _ in 0..10 {
        world.pass(1);
        world.plan();
    }
    assert_eq!(outcome(&world).0, Phase::Failed, "{:?}", world.reasons);
    assert!(world.observed.orders.is_empty());
}

#[test]
fn keepers_that_would_restart_by_themselves_wait_for_their_turn() {
    for synchronous in [false, true] {
        let mut world = pending(spec(synchronous, true));
        world.plan();
        let works: Vec<_> = world.observed.orders.values().filter_map(|order| order.work).collect();
        assert_eq!(works.len(), 3);
        assert_eq!(works.iter().filter(|work| **work == Work::Restart).count(), 1);
        let order = restarted(&mut world, 80);
        assert_eq!((order.len(), order[2].as_str(), world.proxied()), (3, "k1", Some("k1")), "{order:?}");
        assert!(world.observed.orders.is_empty());
        // Parameters that wait again right afterwards do not make it restart again and again.
        wait_for_restart(&mut world, "k2");
        assert!(restarted(&mut world, 100).is_empty());
        world.pass(60);
        assert_eq!(restarted(&mut world, 20), ["k2"]);
        assert!(!world.said(|r| matches!(r, Reason::MasterFailed(..))));
    }
}

#[test]
fn keepers_of_go_are_named_and_left_alone() {
    let mut world = World::running(spec(false, true), 2);
    wait_for_restart(&mut world, "k2");
    ask(&mut world, true, false);
    for _ in 0..20 {
        world.clock += Duration::from_millis(100);
        world.plan();
        world.keepers_work();
        world.proxies_work();
    }
    assert!(world.observed.orders.is_empty());
    let (phase, text) = outcome(&world);
    assert!(phase == Phase::Done && text.contains("k1, k2"), "{text}");
}

#[test]
fn what_gets_lower_is_restarted_at_the_master_first() {
    for automatic in [false, true] {
        let mut world = pending(spec(true, automatic));
        let problem = Problem { code: Problem::RESTART_LOWERS.into(), ..Default::default() };
        world.info("k1").problems.push(problem);
        if !automatic {
            ask(&mut world, false, false);
        }
        let order = restarted(&mut world, 80);
        assert_eq!((order.len(), order[0].as_str(), world.proxied()), (3, "k1", Some("k1")), "{order:?}");
    }
}
