//! Beginning, replacement of masters, the fence, and the switch by priority.

use super::world::World;
use crate::sentinel::plan::Reason;
use model::stolon::{ClusterPhase, DbInitMode, Role};
use serde_json::json;
use std::time::Duration;

const FAST: &str = r#"{"initMode":"new","failInterval":"5s","sleepInterval":"1s"}"#;

fn fast() -> serde_json::Value {
    serde_json::from_str(FAST).unwrap()
}

fn sync() -> serde_json::Value {
    json!({"initMode":"new","failInterval":"5s","sleepInterval":"1s","synchronousReplication":true})
}

#[test]
fn the_first_master_waits_for_keepers_and_prefers_priority() {
    let mut world = World::new(fast(), 2);
    world.info("k2").priority = Some(3);
    world.plan();
    assert!(world.data.dbs.is_empty() && world.said(|r| *r == Reason::WaitForKeepers));
    assert_eq!(world.wake, Some(world.clock + std::time::Duration::from_secs(1)));
    world.pass(1);
    world.plan();
    assert_eq!(world.master(), "k2");
    assert_eq!(world.db("k2").spec.init_mode, Some(DbInitMode::New));
    world.settle();
    assert_eq!(world.data.cluster.status.phase, Some(ClusterPhase::Normal));
    assert_eq!(world.proxied(), Some("k2"));
    assert_eq!(world.db("k1").spec.role, Some(Role::Standby));
    assert_eq!(world.db("k2").spec.followers, [world.uid("k1")]);
}

#[test]
fn a_keeper_that_can_not_be_master_is_not_the_first_one() {
    let mut world = World::new(fast(), 2);
    world.info("k1").can_be_master = Some(false);
    world.plan();
    world.pass(1);
    world.settle();
    assert_eq!(world.master(), "k2");
}

#[test]
fn nobody_there_and_the_wrong_one_there() {
    let mut world = World::new(fast(), 0);
    world.plan();
    assert!(world.data.dbs.is_empty() && world.said(|r| matches!(r, Reason::NoFirstMaster(_))));
    let spec = json!({"initMode":"existing","existingConfig":{"keeperUID":"k9"}});
    let mut world = World::new(spec, 1);
    world.plan();
    world.pass(2);
    world.plan();
    assert!(world.data.dbs.is_empty() && world.data.keepers.len() == 1);
    world.start_keeper("k9");
    world.plan();
    assert_eq!(world.db("k9").spec.init_mode, Some(DbInitMode::Existing));
}

#[test]
fn a_failed_initialization_goes_to_another_keeper() {
    let mut world = World::new(json!({"initMode":"new","initTimeout":"60s"}), 2);
    world.plan();
    world.pass(1);
    world.plan();
    let first = world.uid("k1");
    world.plan();
    world.pass(60);
    world.plan();
    assert_eq!(world.master(), "k2");
    assert!(!world.data.dbs.contains_key(&first));
}

#[test]
fn a_vanished_record_fails_over_at_once() {
    let mut world = World::running(fast(), 3);
    world.set_position("k2", 2000);
    world.set_position("k3", 3000);
    world.set_position("k1", 3000);
    world.plan();
    world.kill("k1");
    world.plan();
    assert_eq!(world.master(), "k3", "the most advanced one");
    assert_eq!(world.proxied(), None);
    world.settle();
    assert_eq!(world.proxied(), Some("k3"));
    assert!(world.data.db_of_keeper(&"k1".into()).is_none(), "the old master's db is gone");
    world.start_keeper("k1");
    world.settle();
    let db = world.db("k1");
    assert_eq!((db.spec.role, db.spec.init_mode, db.generation), (Some(Role::Standby), Some(DbInitMode::None), 2));
}

#[test]
fn a_lease_below_the_fail_interval_waits_for_the_rest() {
    let mut world = World::running(json!({"initMode":"new","failInterval":"8s"}), 2);
    world.kill("k1");
    assert!(!world.plan(), "five of eight seconds have passed");
    assert_eq!(world.wake, Some(world.clock + std::time::Duration::from_secs(3)));
    world.pass(3);
    world.plan();
    assert_eq!(world.master(), "k2");
}

#[test]
fn a_new_leader_needs_no_new_fail_interval() {
    let mut world = World::running(fast(), 3);
    world.kill("k1");
    world.new_leader();
    world.plan();
    assert_ne!(world.master(), "k1");
}

#[test]
fn after_a_power_cut_the_old_master_gets_its_time_to_come_back() {
    let mut world = World::running(fast(), 2);
    for uid in ["k1", "k2"] {
        world.kill(uid);
    }
    world.new_leader();
    world.plan();
    world.pass(60);
    world.plan();
    world.start_keeper("k2");
    world.plan();
    world.keepers_work();
    world.plan();
    assert_eq!(world.master(), "k1");
    world.start_keeper("k1");
    world.settle();
    assert_eq!(world.proxied(), Some("k1"));
    // The same with a sentinel that starts after the first keeper.
    for uid in ["k1", "k2"] {
        world.kill(uid);
    }
    world.start_keeper("k2");
    world.new_leader();
    world.settle();
    assert_eq!(world.master(), "k1");
    world.pass(9);
    world.settle();
    assert_eq!(world.master(), "k1", "longer than the fail interval");
    assert!(world.said(|r| *r == Reason::WaitForReturn("k1".into())));
    world.pass(1);
    world.settle();
    assert_eq!(world.master(), "k2");
}

#[test]
fn after_a_power_cut_nobody_is_waited_for_in_vain() {
    let cut = |spec, revived: &[&str]| {
        let mut world = World::running(spec, 3);
        for uid in ["k1", "k2", "k3"] {
            world.kill(uid);
        }
        world.plan();
        for uid in revived {
            world.start_keeper(uid);
        }
        world.settle();
        world.pass(5);
        world.settle();
        world
    };
    // All have come back, and the master failed later: an ordinary failover.
    let mut world = cut(fast(), &["k1", "k2", "k3"]);
    world.kill("k1");
    world.settle();
    assert_ne!(world.master(), "k1");
    // Who has every commit need not wait for anybody.
    let synchronous = cut(sync(), &["k2", "k3"]);
    assert_ne!(synchronous.master(), "k1");
    // An operator's word is enough.
    let mut world = cut(fast(), &["k2", "k3"]);
    assert_eq!(world.master(), "k1");
    world.data.keepers.get_mut("k1").unwrap().status.force_fail = true;
    world.settle();
    assert_ne!(world.master(), "k1");
}

#[test]
fn an_instance_that_reports_errors_has_the_fail_interval() {
    let mut world = World::running(fast(), 2);
    let state = world.info("k1").postgres_state.as_mut().unwrap();
    state.healthy = false;
    assert!(!world.plan());
    world.pass(4);
    assert!(!world.plan());
    world.pass(1);
    world.plan();
    assert_eq!(world.master(), "k2");
}

#[test]
fn go_keepers_have_the_info_uid_rule() {
    let mut world = World::running(fast(), 2);
    world.go();
    for _ in 0..3 {
        world.pass(1);
        world.publish();
        world.plan();
    }
    let dead = world.info("k1").clone();
    for _ in 0..5 {
        world.pass(1);
        world.publish();
        *world.info("k1") = dead.clone();
        world.plan();
        assert_eq!(world.master(), "k1");
    }
    // Published last 6 s ago, stale for 5 s.
    world.pass(1);
    world.publish();
    *world.info("k1") = dead;
    world.plan();
    assert_eq!(world.master(), "k2");
}

#[test]
fn a_new_leader_judges_go_keepers_only_after_the_fail_interval() {
    let mut world = World::running(fast(), 2);
    world.go();
    world.new_leader();
    for _ in 0..6 {
        world.plan();
        assert!(world.data.keepers.values().all(|keeper| keeper.status.healthy));
        world.pass(1);
    }
    world.plan();
    assert!(world.data.keepers.values().all(|keeper| !keeper.status.healthy));
}

#[test]
fn an_outage_of_the_store_is_nobodys_silence() {
    let mut world = World::running(fast(), 2);
    world.go();
    world.publish();
    world.plan();
    world.pass(300);
    world.observed.connected_since = world.clock;
    world.plan();
    world.pass(4);
    world.plan();
    assert!(world.data.keepers.values().all(|keeper| keeper.status.healthy));
}

#[test]
fn proxies_open_only_when_all_confirmed_and_the_master_is_ready() {
    let mut world = World::running(fast(), 2);
    world.proxy("p2");
    world.settle();
    assert_eq!(world.data.proxy.spec.enabled_proxies, world.active_proxies());
    world.kill("k1");
    world.plan();
    let closed = world.data.proxy.generation;
    world.keepers_work();
    world.plan();
    assert_eq!(world.proxied(), None, "proxies still forward");
    world.observed.proxies.get_mut("p1").unwrap().as_mut().unwrap().generation = closed;
    world.plan();
    assert_eq!(world.proxied(), None, "one proxy still forwards");
    // Its lease has expired, so it has cut everything off.
    world.observed.proxies.remove("p2");
    world.plan();
    assert_eq!(world.proxied(), Some("k2"));
    assert_eq!(world.data.proxy.generation, closed + 1);
    assert_eq!(world.data.proxy.spec.enabled_proxies, ["p1"]);
}

#[test]
fn a_master_that_is_not_ready_is_not_opened() {
    let mut world = World::running(fast(), 2);
    world.kill("k1");
    world.plan();
    world.proxies_work();
    world.plan();
    assert_eq!(world.proxied(), None);
    world.keepers_work();
    world.plan();
    assert_eq!(world.proxied(), Some("k2"));
}

#[test]
fn a_go_proxy_counts_for_two_timeouts_and_an_unreadable_one_for_ever() {
    let mut world = World::running(fast(), 2);
    world.go();
    for uid in ["k1", "k2"] {
        world.info(uid).lease_seconds = Some(5);
    }
    world.publish();
    world.plan();
    world.kill("k1");
    world.plan();
    world.keepers_work();
    world.pass(30);
    world.plan();
    assert_eq!(world.proxied(), None);
    world.pass(1);
    world.plan();
    assert_eq!(world.proxied(), Some("k2"));

    let mut world = World::running(fast(), 2);
    world.observed.proxies.insert("p9".into(), None);
    world.kill("k1");
    world.plan();
    world.keepers_work();
    world.proxies_work();
    world.pass(1000);
    world.plan();
    assert_eq!(world.proxied(), None);
    world.observed.proxies.remove("p9");
    world.plan();
    assert_eq!(world.proxied(), Some("k2"));
}

#[test]
fn no_proxies_no_generations() {
    let mut world = World::new(fast(), 1);
    world.observed.proxies.clear();
    world.plan();
    world.pass(1);
    world.settle();
    let generation = world.data.proxy.generation;
    for _ in 0..5 {
        world.pass(1);
        world.settle();
    }
    assert_eq!(world.data.proxy.generation, generation);
}

#[test]
fn too_far_behind_unable_or_on_another_timeline() {
    for (lag, able, timeline, elected) in
        [(1_232_896, None, 1, true), (1_232_897, None, 1, false), (0, Some(false), 1, false), (0, None, 2, false)]
    {
        let mut world = World::running(fast(), 2);
        world.set_position("k1", 10_000_000);
        world.set_position("k2", 10_000_000 - lag);
        world.info("k2").can_be_master = able;
        world.info("k2").postgres_state.as_mut().unwrap().timeline_id = timeline;
        let uid = world.uid("k1");
        // Not converged: no housekeeping, which would make the standby anew.
        world.data.dbs.get_mut(&uid).unwrap().generation += 1;
        world.plan();
        world.kill("k1");
        world.plan();
        assert_eq!(world.master() == "k2", elected, "{lag} {able:?} {timeline}");
    }
}

#[test]
fn a_standby_on_an_older_generation_is_not_elected() {
    let mut world = World::running(fast(), 2);
    world.set_spec(|spec| spec.max_standbys = Some(9));
    world.plan();
    world.keeper_works("k1");
    world.kill("k1");
    world.plan();
    assert_eq!(world.master(), "k1");
    world.keepers_work();
    world.plan();
    assert_eq!(world.master(), "k2");
}

#[test]
fn a_master_that_does_not_converge_is_replaced() {
    let mut world = World::running(fast(), 2);
    world.set_spec(|spec| spec.max_standbys = Some(9));
    world.plan();
    world.keeper_works("k2");
    world.plan();
    world.pass(30);
    world.plan();
    assert_eq!(world.master(), "k2");
}

#[test]
fn a_former_master_that_returns_in_time_is_elected_again() {
    for spec in [fast(), sync()] {
        let mut world = World::running(spec, 2);
        let info = world.info("k1").clone();
        world.kill("k1");
        world.plan();
        assert_eq!(world.master(), "k2");
        world.kill("k2");
        world.observed.keepers.insert("k1".into(), Some(info));
        world.plan();
        world.keeper_works("k1");
        world.plan();
        assert_eq!(world.master(), "k1", "{:?}", world.reasons);
        world.proxies_work();
        world.settle();
        assert_eq!(world.proxied(), Some("k1"));
    }
}

#[test]
fn a_keeper_taken_as_failed() {
    let mut world = World::running(fast(), 2);
    world.data.keepers.get_mut("k1").unwrap().status.force_fail = true;
    world.plan();
    assert_eq!(world.master(), "k2");
    assert!(!world.data.keepers["k1"].status.force_fail);
    world.settle();
    assert_eq!(world.proxied(), Some("k2"));

    let mut world = World::running(fast(), 1);
    world.data.keepers.get_mut("k1").unwrap().status.force_fail = true;
    world.settle();
    assert_eq!(world.proxied(), Some("k1"));
    assert!(!world.data.keepers["k1"].status.force_fail && world.data.keepers["k1"].status.healthy);
}

/// Both keepers ready, the standby with higher priority, everything settled.
fn preferring(spec: serde_json::Value) -> World {
    let mut world = World::running(spec, 2);
    world.set_priority("k2", 1);
    world.settle();
    assert_eq!(world.proxied(), Some("k1"), "not before it was ready for a while");
    world
}

fn steps(world: &mut World) {
    for _ in 0..40 {
        world.clock += std::time::Duration::from_millis(100);
        world.plan();
        world.keepers_work();
        world.proxies_work();
    }
}

#[test]
fn priority_switches_a_healthy_master_cleanly() {
    for spec in [fast(), sync()] {
        let mut world = preferring(spec);
        world.pass(2);
        world.plan();
        assert_eq!((world.proxied(), world.master()), (None, "k1"), "closed first");
        steps(&mut world);
        world.settle();
        assert_eq!(world.proxied(), Some("k2"), "{:?}", world.reasons);
        assert!(world.said(|r| matches!(r, Reason::SwitchCatchUp(..) | Reason::SwitchMasterPosition(_))));
        steps(&mut world);
        assert_eq!(world.proxied(), Some("k2"), "and stays");
    }
}

#[test]
fn a_switch_waits_for_the_last_byte() {
    let mut world = preferring(fast());
    world.set_position("k1", 5000);
    world.set_position("k2", 4000);
    world.pass(2);
    world.plan();
    world.proxies_work();
    world.plan();
    world.pass(2);
    world.plan();
    assert_eq!(world.master(), "k1");
    // Written just before the proxies closed, reported only now.
    world.set_position("k1", 6000);
    world.keeper_works("k1");
    world.set_position("k2", 5999);
    world.keeper_works("k2");
    world.plan();
    assert_eq!(world.master(), "k1");
    assert!(world.said(|r| matches!(r, Reason::SwitchCatchUp(_, 6000))), "{:?}", world.reasons);
    world.set_position("k2", 6000);
    world.plan();
    assert_eq!(world.master(), "k2");
}

#[test]
fn a_switch_that_takes_too_long_is_given_up() {
    let mut world = preferring(fast());
    world.set_position("k1", 5000);
    world.set_position("k2", 4000);
    world.pass(2);
    for _ in 0..80 {
        world.clock += std::time::Duration::from_millis(100);
        world.plan();
        world.keepers_work();
        world.proxies_work();
        assert_eq!(world.master(), "k1");
    }
    assert_eq!(world.proxied(), Some("k1"));
    assert!(world.said(|r| matches!(r, Reason::SwitchAbandoned { .. })));
    let closings = |world: &World| world.reasons.iter().filter(|r| **r == Reason::ProxiesClosed).count();
    assert_eq!(closings(&world), 1);
    world.set_position("k2", 5000);
    world.pass(30);
    world.plan();
    steps(&mut world);
    assert_eq!(world.proxied(), Some("k2"));
}

#[test]
fn proxies_that_do_not_confirm_end_a_switch() {
    let mut world = preferring(fast());
    world.pass(2);
    world.plan();
    assert_eq!(world.proxied(), None);
    world.pass(10);
    world.plan();
    assert_eq!(world.proxied(), Some("k1"));
}

#[test]
fn a_candidate_that_fails_ends_a_switch() {
    let mut world = preferring(fast());
    world.pass(2);
    world.plan();
    world.kill("k2");
    world.plan();
    assert_eq!((world.proxied(), world.master()), (Some("k1"), "k1"));
}

#[test]
fn a_leader_that_dies_in_a_switch_is_followed_by_one_that_opens_again() {
    let mut world = preferring(fast());
    world.pass(2);
    world.plan();
    assert_eq!(world.proxied(), None);
    world.new_leader();
    world.plan();
    assert_eq!(world.proxied(), None, "not before the proxies confirmed");
    world.proxies_work();
    world.plan();
    assert_eq!(world.proxied(), Some("k1"));
    world.settle();
    world.pass(2);
    world.settle();
    steps(&mut world);
    assert_eq!(world.proxied(), Some("k2"));
}

#[test]
fn a_master_that_dies_in_a_switch_is_replaced() {
    let mut world = preferring(fast());
    world.pass(2);
    world.plan();
    world.kill("k1");
    world.plan();
    assert_eq!(world.master(), "k2");
}

#[test]
fn readiness_must_last() {
    let mut world = preferring(fast());
    for _ in 0..5 {
        world.pass(1);
        world.info("k2").postgres_state.as_mut().unwrap().healthy = false;
        world.plan();
        world.info("k2").postgres_state.as_mut().unwrap().healthy = true;
        world.pass(1);
        world.plan();
        assert_eq!(world.proxied(), Some("k1"));
    }
}

#[test]
fn who_followed_a_promotion_that_was_given_up_gets_new_data() {
    let mut world = World::running(json!({"initMode":"new","failInterval":"5s"}), 3);
    let stray = world.uid("k3");
    // It has received a timeline that its source did not live to tell of.
    world.info("k3").postgres_state.as_mut().unwrap().timeline_id = 2;
    world.set_position("k2", 9000);
    world.plan();
    world.kill("k1");
    for _ in 0..10 {
        world.pass(2);
        world.plan();
        world.keeper_works("k2");
        world.proxies_work();
    }
    assert_eq!(world.proxied(), Some("k2"));
    assert_ne!(world.uid("k3"), stray);
}

#[test]
fn a_successor_that_dies_before_it_is_ready_is_replaced_by_another_holder() {
    let mut world = World::running(sync(), 3);
    world.set_spec(|spec| spec.max_synchronous_standbys = Some(2));
    world.settle();
    assert_eq!(world.db("k1").status.synchronous_standbys.as_ref().unwrap().len(), 2);
    for master in ["k1", "k2"] {
        world.kill(master);
        world.pass(6);
        world.plan();
        assert_ne!(world.master(), master, "{:?}", world.reasons);
    }
    assert_eq!(world.master(), "k3");
    world.settle();
    assert_eq!(world.proxied(), Some("k3"));
}

#[test]
fn standbys_are_asked_for_the_positions_they_have_now() {
    let spec = json!({"initMode":"new","failInterval":"5s","sleepInterval":"1s","usePgrewind":true});
    let lost = || {
        let mut world = World::running(spec.clone(), 3);
        world.modern();
        world.settle();
        // As last told, k2 is ahead; in truth k3 is.
        world.set_position("k2", 6000);
        world.set_position("k3", 5000);
        world.plan();
        world.kill("k1");
        world.pass(1);
        world.plan();
        assert_eq!(world.master(), "k1");
        assert!(world.said(|r| matches!(r, Reason::WaitForPositions(_))));
        world.set_position("k3", 7000);
        world.keeper_works("k3");
        world
    };
    let mut world = lost();
    world.plan();
    assert_eq!(world.master(), "k1", "k2 has not answered");
    world.keeper_works("k2");
    world.plan();
    assert_eq!(world.master(), "k3");
    world.settle();
    assert_eq!(world.proxied(), Some("k3"));
    // One that does not answer is not waited for.
    let mut world = lost();
    world.clock += Duration::from_millis(500);
    world.plan();
    assert_eq!(world.master(), "k3");
    // An operator's word counts at once, and for one check only.
    let mut world = World::running(spec, 3);
    world.modern();
    world.settle();
    world.data.keepers.get_mut("k1").unwrap().status.force_fail = true;
    world.plan();
    assert_ne!(world.master(), "k1");
}

#[test]
fn an_old_copy_of_the_store_leads_nobody_to_a_former_master() {
    for spec in [fast(), sync()] {
        let mut world = World::running(spec, 3);
        let old = world.data.clone();
        world.kill("k1");
        world.pass(6);
        world.settle();
        let new = world.master().to_owned();
        assert_eq!(world.proxied(), Some(new.as_str()));
        world.data = old;
        world.new_leader();
        world.start_keeper("k1");
        for _ in 0..10 {
            world.plan();
            world.keeper_works("k1");
            world.proxies_work();
            world.pass(2);
        }
        assert_eq!(world.proxied(), None);
        assert!(world.said(|r| matches!(r, Reason::OldStore { .. })));
        assert_eq!(world.master(), "k1", "nothing else is decided");
    }
}
