//! A master's server that refuses connections while its keeper's lease still lives.

use super::world::World;
use crate::sentinel::plan::Reason;
use model::stolon::Role;
use serde_json::json;
use std::time::Duration;

/// Three keepers, and every standby is waited for.
fn three() -> World {
    World::running(
        json!({"initMode":"new","failInterval":"2s","sleepInterval":"2s","synchronousReplication":true,
            "minSynchronousStandbys":0,"maxSynchronousStandbys":2}),
        3,
    )
}

fn lose(world: &mut World, keepers: &[&str]) {
    for keeper in keepers {
        world.refuse(keeper);
    }
    world.plan();
    world.inquire(true);
    world.plan();
}

/// Time goes on, and connections are refused all along.
fn wait(world: &mut World, millis: u64) {
    for _ in 0..millis / 100 {
        world.clock += Duration::from_millis(100);
        world.inquire(true);
        world.plan();
    }
}

fn gone(world: &World) -> bool {
    world.said(|reason| matches!(reason, Reason::KeeperGone(_)))
}

#[test]
fn refused_by_all_and_a_silent_keeper() {
    let mut world = three();
    lose(&mut world, &["k2", "k3"]);
    let inquiry = world.inquiry.clone().unwrap();
    assert_eq!((inquiry.keeper.as_str(), inquiry.port), ("k1", 5432));
    assert_eq!(world.wake, Some(world.clock + Duration::from_millis(400)));
    wait(&mut world, 300);
    assert_eq!(world.proxied(), Some("k1"), "its keeper still has time to answer");
    wait(&mut world, 100);
    assert!(gone(&world) && world.master() != "k1" && world.proxied().is_none());
    assert!(world.inquiry.is_none());
    let new = world.master().to_owned();
    // The dead keeper's record is still there for a while, and is not worked on.
    for _ in 0..5 {
        world.plan();
        world.keeper_works("k2");
        world.keeper_works("k3");
        world.proxies_work();
    }
    assert_eq!(world.proxied(), Some(new.as_str()));
    assert!(world.data.db_of_keeper(&"k1".into()).is_none(), "a keeper that is given up gets no new db");
    world.kill("k1");
    world.settle();
    assert_eq!(world.proxied(), Some(new.as_str()));
    world.start_keeper("k1");
    world.settle();
    assert_eq!(world.db("k1").spec.role, Some(Role::Standby));
}

#[test]
fn a_keeper_that_answers_is_left_in_peace_for_longer_and_longer() {
    let mut world = three();
    lose(&mut world, &["k2", "k3"]);
    wait(&mut world, 300);
    // PostgreSQL died, and the keeper says so while it starts it again.
    let first = world.inquiry.clone().unwrap().token;
    world.info("k1").postgres_state.as_mut().unwrap().healthy = false;
    world.info("k1").info_uid = "restarting".into();
    world.plan();
    assert!(world.inquiry.is_none());
    assert_eq!(world.wake, Some(world.clock + Duration::from_millis(500)));
    wait(&mut world, 500);
    assert_ne!(world.inquiry.as_ref().unwrap().token, first);
    // Now it died as well.
    wait(&mut world, 900);
    assert_eq!(world.master(), "k1");
    wait(&mut world, 200);
    assert_ne!(world.master(), "k1");
}

#[test]
fn a_firewall_that_refuses_fails_nobody_over() {
    let mut world = three();
    lose(&mut world, &["k2", "k3"]);
    let mut questions = 0;
    for _ in 0..600 {
        let asked = world.inquiry.is_some();
        wait(&mut world, 100);
        questions += usize::from(!asked && world.inquiry.is_some());
        if world.inquiry.is_some() {
            // A keeper that lives answers, and its standbys still see nothing.
            world.keeper_works("k1");
        }
    }
    assert_eq!((world.proxied(), gone(&world)), (Some("k1"), false));
    assert!((3..10).contains(&questions), "{questions} questions in a minute");
}

#[test]
fn what_does_not_suffice() {
    let ask = |change: fn(&mut World)| {
        let mut world = three();
        change(&mut world);
        world.plan();
        let asked = world.inquiry.is_some();
        wait(&mut world, 1500);
        assert_eq!(world.master(), "k1");
        asked
    };
    assert!(!ask(|_| {}), "nothing happened");
    assert!(!ask(|world| world.refuse("k2")), "the other synchronous standby still receives");
    let stale = |world: &mut World| {
        for keeper in ["k2", "k3"] {
            world.refuse(keeper);
            world.info(keeper).upstream.as_mut().unwrap().db = "0ldmaster".into();
        }
    };
    assert!(!ask(stale), "about another master");
    let go = |world: &mut World| {
        for keeper in ["k2", "k3"] {
            world.refuse(keeper);
        }
        world.info("k1").answered = None;
    };
    assert!(!ask(go), "Go's keepers can't be asked");
    let back = |world: &mut World| {
        for keeper in ["k2", "k3"] {
            world.refuse(keeper);
        }
        world.plan();
        assert!(world.inquiry.is_some());
        world.inquire(true);
        world.keeper_works("k2");
    };
    assert!(!ask(back), "one standby receives again");
}

#[test]
fn a_standby_that_does_not_watch_does_not_count() {
    let mut world = three();
    world.info("k3").upstream = None;
    lose(&mut world, &["k2"]);
    wait(&mut world, 400);
    assert_ne!(world.master(), "k1");
}

#[test]
fn the_sentinel_itself_must_be_refused() {
    let mut world = three();
    world.refuse("k2");
    world.refuse("k3");
    world.plan();
    for _ in 0..20 {
        world.clock += Duration::from_millis(100);
        world.inquire(false);
        world.plan();
    }
    assert_eq!(world.master(), "k1");
    // A refusal that is not tried again is no longer one.
    world.inquire(true);
    world.pass(1);
    world.plan();
    assert_eq!(world.master(), "k1");
    // From the first refusal on, not from the question.
    wait(&mut world, 300);
    assert_eq!(world.master(), "k1");
    wait(&mut world, 400);
    assert_ne!(world.master(), "k1");
}

#[test]
fn a_slow_store_gives_the_keeper_more_time() {
    let mut world = three();
    world.refuse("k2");
    world.refuse("k3");
    world.plan();
    world.inquire(true);
    let now = world.clock;
    world.observed.inquired.as_mut().unwrap().asked = Some((now, Duration::from_millis(200)));
    world.plan();
    assert_eq!(world.wake, Some(now + Duration::from_millis(1000)));
    wait(&mut world, 900);
    assert_eq!(world.master(), "k1");
    wait(&mut world, 100);
    assert_ne!(world.master(), "k1");
}

#[test]
fn without_a_candidate_the_keeper_is_believed_when_it_comes_back() {
    let mut world = three();
    lose(&mut world, &["k2", "k3"]);
    for keeper in ["k2", "k3"] {
        world.info(keeper).can_be_master = Some(false);
    }
    wait(&mut world, 500);
    assert!(gone(&world) && world.said(|r| matches!(r, Reason::NoCandidate(..))));
    assert_eq!(world.master(), "k1");
    assert!(!world.db("k1").status.healthy);
    world.observed.inquired = None;
    world.info("k1").info_uid = "late".into();
    world.keepers_work();
    world.plan();
    assert!(world.db("k1").status.healthy && world.master() == "k1");
}
