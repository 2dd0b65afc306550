//! The synchronous set.

use super::world::World;
use crate::sentinel::plan::Reason;
use model::DbUid;
use serde_json::json;

fn spec(min: u16, max: u16) -> serde_json::Value {
    json!({"initMode":"new","failInterval":"5s","sleepInterval":"1s","synchronousReplication":true,
        "minSynchronousStandbys":min,"maxSynchronousStandbys":max})
}

fn wanted(world: &World) -> Vec<DbUid> {
    world.data.dbs[&world.data.cluster.status.master].spec.synchronous_standbys.clone().unwrap()
}

fn known(world: &World) -> Vec<DbUid> {
    world.data.dbs[&world.data.cluster.status.master].status.synchronous_standbys.clone().unwrap()
}

fn blocked(world: &World) -> bool {
    let db = &world.data.dbs[&world.data.cluster.status.master];
    db.spec.external_synchronous_standbys == Some(vec!["stolonfakestandby".to_owned()])
}

fn uids(world: &World, keepers: &[&str]) -> Vec<DbUid> {
    let mut uids: Vec<DbUid> = keepers.iter().map(|keeper| world.uid(keeper)).collect();
    uids.sort();
    uids
}

#[test]
fn switched_on_and_off() {
    let mut world = World::running(json!({"initMode":"new","sleepInterval":"1s"}), 2);
    assert_eq!(world.db("k1").spec.synchronous_standbys, None);
    world.set_spec(|spec| spec.synchronous_replication = Some(true));
    world.plan();
    assert_eq!((wanted(&world), known(&world)), (uids(&world, &["k2"]), vec![]));
    world.settle();
    assert_eq!(known(&world), uids(&world, &["k2"]));
    world.set_spec(|spec| spec.synchronous_replication = Some(false));
    world.settle();
    let db = world.db("k1");
    assert!(!db.spec.synchronous_replication && db.spec.synchronous_standbys.is_none());
    assert!(db.spec.external_synchronous_standbys.is_none() && db.status.synchronous_standbys.is_none());
}

#[test]
fn a_dead_member_without_replacement() {
    // Too few: commits wait for the dead one, or for nobody.
    let mut world = World::running(spec(1, 1), 2);
    let member = uids(&world, &["k2"]);
    world.kill("k2");
    world.settle();
    assert_eq!((wanted(&world), blocked(&world)), (member, false));
    let mut world = World::running(spec(0, 1), 2);
    world.kill("k2");
    world.settle();
    assert_eq!((wanted(&world), blocked(&world)), (vec![], false));
    let mut world = World::running(spec(1, 1), 1);
    world.settle();
    assert_eq!((wanted(&world), blocked(&world)), (vec![], true));
}

#[test]
fn two_members_lost_of_two() {
    let mut world = World::running(spec(2, 2), 3);
    let members = uids(&world, &["k2", "k3"]);
    assert_eq!((wanted(&world), known(&world)), (members.clone(), members.clone()));
    world.kill("k2");
    world.kill("k3");
    world.settle();
    assert_eq!(wanted(&world), members);
}

#[test]
fn a_member_is_replaced_in_two_steps() {
    let mut world = World::running(spec(1, 1), 3);
    let first = wanted(&world);
    let (member, other) = if first == uids(&world, &["k2"]) { ("k2", "k3") } else { ("k3", "k2") };
    world.kill(member);
    world.plan();
    assert_eq!(wanted(&world), uids(&world, &["k2", "k3"]), "old and new together");
    assert_eq!(known(&world), first);
    // The master dies now: only the one that both lists share would do, and it is dead.
    let mut copy = world.clone();
    copy.kill("k1");
    copy.plan();
    assert_eq!(copy.master(), "k1");
    assert!(copy.said(|r| matches!(r, Reason::NoCandidate(..))));
    world.settle();
    assert_eq!((wanted(&world), known(&world)), (uids(&world, &[other]), uids(&world, &[other])));
    world.kill("k1");
    world.plan();
    assert_eq!(world.master(), other);
}

#[test]
fn a_new_member_that_never_gets_in_sync_leaves_again() {
    let mut world = World::running(spec(1, 2), 2);
    world.start_keeper("k3");
    let member = uids(&world, &["k2"]);
    for _ in 0..10 {
        world.plan();
        world.keepers_work();
        world.proxies_work();
        world.info("k1").postgres_state.as_mut().unwrap().synchronous_standbys = Some(member.clone());
    }
    assert_eq!(wanted(&world), uids(&world, &["k2", "k3"]));
    assert_eq!(known(&world), member);
    world.kill("k3");
    world.plan();
    assert_eq!(wanted(&world), member);
    world.kill("k1");
    world.plan();
    assert_eq!(world.master(), "k2");
}

#[test]
fn only_members_are_elected_however_advanced_others_are() {
    let mut world = World::running(spec(1, 1), 3);
    let member = world.data.dbs[&wanted(&world)[0]].spec.keeper_uid.clone();
    let other = if member == "k2" { "k3" } else { "k2" };
    world.set_position(other, 900_000);
    world.set_priority(other, -1);
    world.plan();
    world.kill("k1");
    world.plan();
    assert_eq!(world.master(), member.as_str());
    assert_eq!(wanted(&world), [world.uid("k1")], "commits wait for the old master until the set is made anew");
    world.settle();
    assert_eq!(wanted(&world), [world.uid(other)]);
    assert_eq!(world.proxied(), Some(member.as_str()));
}

#[test]
fn priority_decides_among_members() {
    let mut world = World::running(spec(1, 2), 3);
    world.set_position("k2", 5000);
    world.set_priority("k1", 9);
    world.set_priority("k3", 5);
    world.settle();
    world.kill("k1");
    world.plan();
    assert_eq!(world.master(), "k3");
}

#[test]
fn master_and_member_dead_elects_nobody() {
    let mut world = World::running(spec(1, 1), 3);
    let member = world.data.dbs[&wanted(&world)[0]].spec.keeper_uid.clone();
    world.kill("k1");
    world.kill(member.as_str());
    world.settle();
    assert_eq!(world.master(), "k1");
    world.set_spec(|spec| spec.synchronous_replication = Some(false));
    world.settle();
    assert_eq!(world.master(), "k1", "the db's own flag counts");
}

#[test]
fn a_keeper_that_can_not_be_synchronous_is_not_added() {
    let mut world = World::new(spec(0, 2), 3);
    world.info("k2").can_be_synchronous_replica = Some(false);
    world.plan();
    world.pass(1);
    world.settle();
    assert_eq!(wanted(&world), uids(&world, &["k3"]));
}

#[test]
fn members_stay_while_they_apply_a_change() {
    let mut world = World::running(spec(0, 1), 2);
    let member = wanted(&world);
    world.set_spec(|spec| spec.max_standbys = Some(7));
    world.plan();
    world.keeper_works("k1");
    world.plan();
    assert_eq!((wanted(&world), known(&world)), (member.clone(), member));
}

#[test]
fn a_preferred_keeper_gets_into_the_set_and_becomes_master() {
    let mut world = World::running(spec(1, 1), 3);
    let member = world.data.dbs[&wanted(&world)[0]].spec.keeper_uid.clone();
    let other = if member == "k2" { "k3" } else { "k2" };
    world.set_priority(other, 1);
    world.settle();
    assert_eq!((wanted(&world), known(&world)), (uids(&world, &[other]), uids(&world, &[other])));
    for _ in 0..10 {
        world.pass(1);
        world.settle();
    }
    assert_eq!(world.proxied(), Some(other));
}

/// The master reports these keepers in sync, again and again, for so many seconds.
fn report_for(world: &mut World, seconds: u64, in_sync: &[&str]) {
    for _ in 0..seconds {
        world.pass(1);
        world.keepers_work();
        world.proxies_work();
        let uids = uids(world, in_sync);
        let master = world.master().to_owned();
        let state = world.info(&master).postgres_state.as_mut().unwrap();
        state.synchronous_standbys.as_mut().unwrap().retain(|uid| uids.contains(uid));
        world.plan();
    }
}

#[test]
fn a_member_that_the_master_lost_touch_with_leaves_and_comes_back_when_it_has_caught_up() {
    let mut world = World::running(spec(0, 2), 3);
    world.set_position("k1", 5000);
    report_for(&mut world, 4, &["k2"]);
    assert_eq!(wanted(&world), uids(&world, &["k2", "k3"]), "not for a short break");
    report_for(&mut world, 3, &["k2"]);
    assert_eq!(wanted(&world), uids(&world, &["k2"]));
    // It is healthy all the time, but has not got what the master wrote.
    report_for(&mut world, 30, &["k2"]);
    assert_eq!(wanted(&world), uids(&world, &["k2"]));
    let mut copy = world.clone();
    copy.kill("k1");
    copy.plan();
    assert_eq!(copy.master(), "k2");
    world.set_position("k3", 5000);
    world.settle();
    assert_eq!((wanted(&world), known(&world)), (uids(&world, &["k2", "k3"]), uids(&world, &["k2", "k3"])));
}

#[test]
fn a_member_out_of_touch_stays_if_there_are_too_few() {
    let mut world = World::running(spec(1, 1), 2);
    world.set_position("k1", 5000);
    report_for(&mut world, 30, &[]);
    assert_eq!((wanted(&world), blocked(&world)), (uids(&world, &["k2"]), false));
}

#[test]
fn a_new_member_without_touch_to_the_master_does_not_hold_up_commits() {
    let mut world = World::running(spec(1, 2), 2);
    world.set_position("k1", 5000);
    world.set_position("k2", 5000);
    world.start_keeper("k3");
    world.plan();
    world.keeper_works("k3");
    world.set_position("k3", 1000);
    report_for(&mut world, 20, &["k2"]);
    assert_eq!((wanted(&world), known(&world)), (uids(&world, &["k2"]), uids(&world, &["k2"])));
}

#[test]
fn nobody_is_blamed_while_the_master_itself_is_not_heard_of() {
    let mut world = World::running(spec(0, 1), 2);
    let member = wanted(&world);
    world.set_position("k1", 5000);
    report_for(&mut world, 3, &[]);
    world.info("k1").postgres_state.as_mut().unwrap().healthy = false;
    world.plan();
    world.pass(4);
    world.plan();
    assert_eq!(wanted(&world), member);
}

#[test]
fn a_standby_that_still_catches_up_is_not_waited_for() {
    for (min, expected) in [(0, &["k2"][..]), (1, &["k2"]), (2, &["k2", "k3"])] {
        let mut world = World::running(spec(min, 2), 2);
        let first = uids(&world, &["k2"]);
        world.info("k1").streaming = Some(first);
        world.start_keeper("k3");
        for _ in 0..5 {
            world.plan();
            world.keepers_work();
        }
        assert_eq!(wanted(&world), uids(&world, expected), "min {min}");
        let both = uids(&world, &["k2", "k3"]);
        world.info("k1").streaming = Some(both.clone());
        world.settle();
        assert_eq!((wanted(&world), known(&world)), (both.clone(), both));
        // A member that is there is not judged by this.
        world.info("k1").streaming = Some(Vec::new());
        world.settle();
        assert_eq!(wanted(&world).len(), 2);
    }
}
