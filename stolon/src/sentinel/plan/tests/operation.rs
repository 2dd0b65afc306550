//! Switchovers that an operator asks for.

use super::world::World;
use crate::sentinel::plan::Reason;
use model::stolon::Role;
use model::stolon::ext::{Action, Phase, Work};
use serde_json::json;
use std::time::Duration;

fn asynchronous() -> serde_json::Value {
    json!({"initMode":"new","failInterval":"5s","sleepInterval":"1s","usePgrewind":true})
}

fn synchronous() -> serde_json::Value {
    json!({"initMode":"new","failInterval":"5s","sleepInterval":"1s","usePgrewind":true,"synchronousReplication":true})
}

/// Three keepers, and one of them is asked to become master.
fn asked(spec: serde_json::Value, keeper: &str) -> World {
    let mut world = World::running(spec, 3);
    world.ask(Action::Switchover(keeper.into()));
    world
}

fn steps(world: &mut World, number: usize) {
    for _ in 0..number {
        world.clock += Duration::from_millis(100);
        world.plan();
        world.keepers_work();
        world.proxies_work();
    }
}

#[test]
fn every_keeper_can_be_asked_for() {
    for (spec, modern) in
        [(asynchronous(), false), (synchronous(), false), (asynchronous(), true), (synchronous(), true)]
    {
        for keeper in ["k2", "k3"] {
            let mut world = asked(spec.clone(), keeper);
            let old = world.uid("k1");
            if modern {
                world.modern();
            }
            steps(&mut world, 60);
            assert_eq!(world.proxied(), Some(keeper), "{:?}", world.reasons);
            assert_eq!(world.progress().map(|(phase, _)| phase), Some(Phase::Done));
            assert!(world.said(|r| matches!(r, Reason::RequestDone { .. })));
            assert_eq!(world.observed.preference, None, "nobody outranks it");
            assert_eq!(world.uid("k1") == old, modern, "what was handed over goes on as a standby");
            // It is done once.
            world.observed.operation.as_mut().unwrap().requested_by = "the same".into();
            steps(&mut world, 60);
            assert_eq!(world.proxied(), Some(keeper));
        }
    }
}

#[test]
fn the_fence_comes_first() {
    let mut world = asked(asynchronous(), "k2");
    world.plan();
    assert_eq!((world.proxied(), world.master()), (None, "k1"), "no hysteresis, but closed first");
    for _ in 0..5 {
        world.pass(1);
        world.plan();
        world.keepers_work();
        assert_eq!(world.master(), "k1", "the proxies have not confirmed");
    }
}

#[test]
fn lower_priority_is_not_undone_until_released() {
    let mut world = World::running(synchronous(), 3);
    world.set_priority("k1", 5);
    world.settle();
    world.ask(Action::Switchover("k2".into()));
    steps(&mut world, 60);
    assert_eq!(world.proxied(), Some("k2"));
    assert_eq!(world.observed.preference.as_ref().map(|p| p.keeper.as_str()), Some("k2"));
    world.observed.operation = None;
    world.new_leader();
    steps(&mut world, 100);
    assert_eq!(world.proxied(), Some("k2"), "not even by a new leader");
    world.observed.preference = None;
    steps(&mut world, 100);
    assert_eq!(world.proxied(), Some("k1"));
}

#[test]
fn a_favourite_that_fails_is_none_any_more() {
    let mut world = World::running(synchronous(), 3);
    world.set_priority("k1", 5);
    world.settle();
    world.ask(Action::Switchover("k2".into()));
    steps(&mut world, 60);
    world.observed.operation = None;
    world.kill("k2");
    steps(&mut world, 60);
    assert_eq!(world.proxied(), Some("k1"), "{:?}", world.reasons);
    assert_eq!(world.observed.preference, None);
    assert!(world.said(|r| *r == Reason::FavouriteFailed("k2".into())));
}

#[test]
fn impossible_requests_are_refused_at_once() {
    let refusal = |spec: serde_json::Value, keeper: &str, prepare: fn(&mut World)| {
        let mut world = World::running(spec, 3);
        prepare(&mut world);
        world.ask(Action::Switchover(keeper.into()));
        world.plan();
        let (phase, text) = world.progress().unwrap();
        assert_eq!((phase, world.proxied()), (Phase::Failed, Some("k1")), "{text}");
        text.to_owned()
    };
    assert!(refusal(asynchronous(), "k9", |_| {}).contains("there is no keeper \"k9\""));
    let dead = refusal(asynchronous(), "k2", |world| {
        world.kill("k2");
        world.plan();
    });
    assert!(dead.contains("not healthy"), "{dead}");
    let must_not = refusal(asynchronous(), "k2", |world| world.info("k2").can_be_master = Some(false));
    assert!(must_not.contains("--can-be-master"), "{must_not}");
    let not_sync = refusal(synchronous(), "k2", |world| world.info("k2").can_be_synchronous_replica = Some(false));
    assert!(not_sync.contains("--can-be-synchronous-replica"), "{not_sync}");
}

#[test]
fn the_master_itself_is_done_at_once() {
    let mut world = asked(asynchronous(), "k1");
    world.plan();
    assert_eq!(world.progress().map(|(phase, _)| phase), Some(Phase::Done));
    assert_eq!(world.proxied(), Some("k1"));
}

#[test]
fn a_candidate_that_is_not_ready_is_waited_for() {
    let mut world = World::running(asynchronous(), 2);
    world.info("k2").postgres_state.as_mut().unwrap().healthy = false;
    world.ask(Action::Switchover("k2".into()));
    world.plan();
    let (phase, text) = world.progress().unwrap();
    assert!(phase == Phase::Running && text.contains("PostgreSQL is not healthy"), "{text}");
    assert_eq!(world.proxied(), Some("k1"));
    steps(&mut world, 40);
    assert_eq!(world.proxied(), Some("k2"));
}

#[test]
fn a_request_that_is_withdrawn_leaves_the_master() {
    let mut world = asked(asynchronous(), "k2");
    world.plan();
    assert_eq!(world.proxied(), None);
    world.observed.operation = None;
    steps(&mut world, 20);
    assert_eq!((world.proxied(), world.master()), (Some("k1"), "k1"));
}

#[test]
fn a_switchover_that_is_given_up_is_not_begun_again() {
    let mut world = asked(asynchronous(), "k2");
    world.plan();
    world.kill("k2");
    steps(&mut world, 20);
    assert_eq!(world.progress().map(|(phase, _)| phase), Some(Phase::Failed));
    world.start_keeper("k2");
    steps(&mut world, 60);
    assert_eq!(world.proxied(), Some("k1"));
}

#[test]
fn a_leader_that_dies_in_the_middle_is_followed_by_one_that_goes_on() {
    let mut world = asked(synchronous(), "k2");
    world.plan();
    world.new_leader();
    steps(&mut world, 60);
    assert_eq!(world.proxied(), Some("k2"));
    assert_eq!(world.progress().map(|(phase, _)| phase), Some(Phase::Done));
}

#[test]
fn a_master_that_dies_in_the_middle_is_replaced() {
    let mut world = asked(synchronous(), "k2");
    world.plan();
    world.kill("k1");
    steps(&mut world, 20);
    assert_ne!(world.master(), "k1");
}

#[test]
fn requests_of_another_cluster_or_time_are_not_obeyed() {
    let mut world = asked(asynchronous(), "k2");
    world.observed.operation.as_mut().unwrap().cluster_uid = "c0".into();
    steps(&mut world, 20);
    assert_eq!((world.proxied(), world.progress()), (Some("k1"), None));
    let mut world = asked(asynchronous(), "k2");
    world.observed.operation.as_mut().unwrap().action = None;
    world.plan();
    assert_eq!(world.progress().map(|(phase, _)| phase), Some(Phase::Failed));
}

#[test]
fn somebody_is_elected_by_force_only_when_nobody_else_can_be() {
    let mut world = World::running(synchronous(), 3);
    let member = world.db("k1").spec.synchronous_standbys.clone().unwrap()[0].clone();
    let member = world.data.dbs[&member].spec.keeper_uid.clone();
    let other = if member == *"k2" { "k3" } else { "k2" };
    world.ask(Action::Elect(other.into()));
    world.plan();
    assert_eq!(world.progress().map(|(phase, _)| phase), Some(Phase::Failed), "the master is healthy");
    world.kill(member.as_str());
    world.kill("k1");
    steps(&mut world, 20);
    assert_eq!(world.proxied().or(Some("k1")), Some("k1"));
    assert!(world.said(|r| matches!(r, Reason::NoCandidate(..))));
    world.ask(Action::Elect("k1".into()));
    world.plan();
    assert_eq!(world.progress().map(|(phase, _)| phase), Some(Phase::Failed), "it is dead");
    world.ask(Action::Elect(other.into()));
    world.data.check().unwrap();
    let planned = crate::sentinel::plan::plan(world.moment(), &world.data, &world.observed, &world.memory);
    assert_eq!(planned.data.dbs[&planned.data.cluster.status.master].spec.keeper_uid, *other);
    assert!(planned.data.proxy.spec.master_db_uid.is_empty(), "the fence holds");
    assert!(planned.reasons.iter().any(|r| matches!(r, Reason::ForcedElection { .. })));
}

/// A switchover in which the master was asked to stop.
fn handing_over(spec: serde_json::Value) -> World {
    let mut world = asked(spec, "k2");
    world.modern();
    world.plan();
    world.keeper_works("k1");
    world.plan();
    world.proxies_work();
    world.plan();
    let db = world.db("k1");
    assert_eq!((db.spec.role, world.master()), (Some(Role::Standby), "k1"));
    assert_eq!(db.spec.follow_config.as_ref().map(|follow| &follow.db_uid), Some(&world.uid("k2")));
    world
}

#[test]
fn the_successor_needs_the_last_record() {
    for spec in [asynchronous(), synchronous()] {
        let mut world = handing_over(spec);
        let others = |world: &World| {
            let mut others = vec![world.uid("k1"), world.uid("k3")];
            others.sort();
            others
        };
        let names: Vec<String> = others(&world).iter().map(ToString::to_string).collect();
        let successor = world.db("k2").spec.clone();
        assert_eq!(successor.additional_replication_slots, Some(names), "their slots are there when they come");
        assert_eq!(
            successor.synchronous_standbys,
            world.sync_mode().then(|| vec![world.uid("k1")]),
            "and this is in force"
        );
        world.set_position("k1", 6000);
        world.set_position("k2", 5999);
        world.keeper_works("k1");
        world.plan();
        assert_eq!(world.master(), "k1");
        world.set_position("k2", 6000);
        world.plan();
        assert_eq!(world.master(), "k2");
        assert_eq!(world.db("k2").spec.followers, others(&world));
        assert_eq!(world.db("k2").spec.synchronous_standbys, successor.synchronous_standbys);
        let followed = world.db("k3").spec.follow_config.as_ref().map(|follow| follow.db_uid.clone());
        assert_eq!(followed, Some(world.uid("k2")), "through its promotion");
        steps(&mut world, 30);
        assert_eq!(world.proxied(), Some("k2"), "{:?}", world.reasons);
    }
}

#[test]
fn a_hand_over_that_fails_is_taken_back() {
    for spec in [asynchronous(), synchronous()] {
        // The master does not stop; the candidate does not get the last record; the request is withdrawn; the leader dies.
        for case in 0..4 {
            let mut world = handing_over(spec.clone());
            let old = world.uid("k1");
            if case == 1 {
                world.set_position("k1", 6000);
                world.keeper_works("k1");
                world.plan();
            }
            if case == 2 {
                world.observed.operation = None;
            }
            if case == 3 {
                world.observed.operation = None;
                world.new_leader();
            }
            for _ in 0..120 {
                world.clock += Duration::from_millis(100);
                world.plan();
                if world.db("k1").spec.role == Some(Role::Master) {
                    break;
                }
                assert_eq!(world.proxied(), None, "not before it is master again");
            }
            assert_eq!(world.db("k1").spec.role, Some(Role::Master), "case {case}");
            assert_eq!(world.proxied(), None, "not before it has applied that");
            steps(&mut world, 20);
            assert_eq!((world.proxied(), world.uid("k1")), (Some("k1"), old), "case {case}: {:?}", world.reasons);
        }
    }
}

#[test]
fn a_successor_that_is_lost_before_it_could_tell_of_its_promotion_is_replaced() {
    let all = json!({"initMode":"new","failInterval":"5s","sleepInterval":"1s","synchronousReplication":true,
        "maxSynchronousStandbys":2});
    for spec in [asynchronous(), synchronous(), all.clone()] {
        // Who has followed it to its timeline.
        for followed in [&["k1", "k3"][..], &["k3"], &["k1"], &[]] {
            let mut world = handing_over(spec.clone());
            world.keeper_works("k1");
            world.plan();
            assert_eq!(world.master(), "k2");
            world.keeper_works("k2");
            followed.iter().for_each(|keeper| world.keeper_works(keeper));
            world.kill("k2");
            steps(&mut world, 150);
            let new = world.proxied().unwrap_or_else(|| panic!("{followed:?}: {:#?}", world.reasons));
            // Both have every commit, and whoever is on the later timeline keeps the other from being copied anew.
            assert!(spec != all || followed.is_empty() || followed.contains(&new), "{new} of {followed:?}");
        }
    }
}

#[test]
fn what_was_handed_over_can_become_master_again_when_the_successor_dies() {
    let mut world = handing_over(synchronous());
    world.keeper_works("k1");
    world.plan();
    assert_eq!(world.master(), "k2");
    world.kill("k2");
    steps(&mut world, 40);
    assert_ne!(world.proxied(), None, "{:?}", world.reasons);
}

#[test]
fn a_master_that_is_slow_to_stop_is_not_replaced_by_one_that_may_lack_commits() {
    for new_leader in [false, true] {
        let mut world = handing_over(asynchronous());
        world.set_position("k1", 9000);
        world.info("k1").postgres_state.as_mut().unwrap().healthy = false;
        if new_leader {
            world.new_leader();
            // It would go on with the switch as soon as the master is well.
            world.observed.operation = None;
        }
        // It stops for a while, the switch is given up, and it takes a while to start again.
        for _ in 0..25 {
            world.pass(1);
            world.plan();
            assert_eq!(world.master(), "k1", "{:?}", world.reasons);
        }
        assert_eq!(world.db("k1").spec.role, Some(Role::Master));
        let mut copy = world.clone();
        copy.keepers_work();
        copy.settle();
        assert_eq!(copy.proxied(), Some("k1"), "{:?}", copy.reasons);
        // An end of its keeper ends the patience, and so does time.
        let mut copy = world.clone();
        copy.kill("k1");
        copy.settle();
        assert_ne!(copy.master(), "k1");
        for _ in 0..10 {
            world.pass(1);
            world.plan();
            world.keeper_works("k2");
            world.keeper_works("k3");
        }
        assert_ne!(world.master(), "k1");
    }
}

#[test]
fn a_new_leader_sees_that_the_master_was_stopped_on_purpose() {
    let mut world = handing_over(asynchronous());
    world.set_position("k1", 9000);
    world.keeper_works("k1");
    world.plan();
    world.info("k1").postgres_state.as_mut().unwrap().healthy = false;
    // The candidate does not catch up, the role is given back, and the leader dies.
    for _ in 0..15 {
        world.pass(1);
        world.plan();
    }
    assert_eq!(world.db("k1").spec.role, Some(Role::Master));
    world.new_leader();
    for _ in 0..25 {
        world.pass(1);
        world.plan();
        assert_eq!(world.master(), "k1", "{:?}", world.reasons);
    }
    for _ in 0..10 {
        world.pass(1);
        world.plan();
    }
    assert_ne!(world.master(), "k1");
}

#[test]
fn the_master_makes_a_checkpoint_while_clients_still_work() {
    for spec in [asynchronous(), synchronous()] {
        let mut world = asked(spec, "k2");
        world.modern();
        world.plan();
        assert_eq!(world.observed.orders["k1"].work, Some(Work::Checkpoint));
        for _ in 0..5 {
            world.pass(10);
            world.keeper_works("k2");
            world.plan();
            assert_eq!(world.proxied(), Some("k1"));
        }
        world.keeper_works("k1");
        world.plan();
        assert_eq!((world.proxied(), world.observed.orders.len()), (None, 0));
        assert!(!world.said(|r| matches!(r, Reason::SwitchWithoutCheckpoint(_))));
    }
}

#[test]
fn a_checkpoint_is_not_waited_for_forever() {
    let mut world = asked(synchronous(), "k2");
    world.modern();
    world.plan();
    world.pass(60);
    world.plan();
    assert_eq!((world.proxied(), world.observed.orders.len()), (None, 0));
    assert!(world.said(|r| matches!(r, Reason::SwitchWithoutCheckpoint(_))));
}

#[test]
fn an_order_that_nobody_wants_any_more_is_withdrawn() {
    let mut world = asked(synchronous(), "k2");
    world.modern();
    world.plan();
    world.observed.operation = None;
    world.plan();
    assert_eq!((world.proxied(), world.observed.orders.len()), (Some("k1"), 0));
}

#[test]
fn a_hand_over_with_refused_connections_is_no_failure() {
    for spec in [asynchronous(), synchronous()] {
        let mut world = handing_over(spec);
        // PostgreSQL is being stopped: standbys are refused, its keeper is busy and gives no sign of life.
        for _ in 0..30 {
            world.clock += Duration::from_millis(100);
            world.refuse("k2");
            world.refuse("k3");
            world.inquire(true);
            world.plan();
            assert!(!world.said(|r| matches!(r, Reason::KeeperGone(_) | Reason::MasterSuspected(..))));
            assert_eq!(world.master(), "k1");
        }
        steps(&mut world, 40);
        assert_eq!(world.proxied(), Some("k2"), "{:?}", world.reasons);
    }
}
