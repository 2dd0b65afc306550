//! Standbys, parameters, and what is not worth a write.

use super::world::World;
use crate::sentinel::plan::{Moment, Observed, Reason, plan};
use model::stolon::{ClusterData, FollowType, Role};
use serde_json::json;
use std::time::Duration;

fn spec() -> serde_json::Value {
    json!({"initMode":"new","failInterval":"5s","sleepInterval":"1s","maxStandbysPerSender":2})
}

#[test]
fn standbys_are_as_many_as_wanted() {
    let mut world = World::new(spec(), 5);
    world.plan();
    world.pass(1);
    world.settle();
    assert_eq!(world.data.dbs.len(), 3);
    assert_eq!(world.db("k2").generation, 2, "a standby settles at its second generation");
    world.set_spec(|spec| spec.max_standbys_per_sender = Some(1));
    world.settle();
    assert_eq!(world.data.dbs.len(), 2);
    world.set_spec(|spec| spec.max_standbys_per_sender = Some(4));
    world.settle();
    assert_eq!(world.data.dbs.len(), 5);
}

#[test]
fn standbys_that_are_being_made_count() {
    let mut world = World::new(spec(), 5);
    world.plan();
    world.pass(1);
    for _ in 0..10 {
        world.plan();
        world.keeper_works("k1");
        world.proxies_work();
    }
    assert_eq!(world.data.dbs.len(), 3);
}

#[test]
fn a_failed_standby_is_replaced() {
    let mut world = World::new(spec(), 4);
    world.plan();
    world.pass(1);
    world.settle();
    world.kill("k3");
    world.settle();
    assert!(world.data.db_of_keeper(&"k3".into()).is_none());
    assert!(world.data.db_of_keeper(&"k4".into()).is_some());
}

#[test]
fn a_forked_or_foreign_standby_is_made_anew() {
    for foreign in [true, false] {
        let mut world = World::running(spec(), 2);
        let old = world.uid("k2");
        let state = world.info("k2").postgres_state.as_mut().unwrap();
        if foreign {
            state.system_id = "other".into();
        } else {
            state.timeline_id = 9;
        }
        world.plan();
        assert_ne!(world.uid("k2"), old);
    }
}

#[test]
fn a_standby_whose_wal_is_gone_is_made_anew() {
    let mut world = World::running(spec(), 2);
    let old = world.uid("k2");
    world.set_position("k1", 64 << 20);
    world.set_position("k2", 16 << 20);
    world.info("k1").postgres_state.as_mut().unwrap().older_wal_file = "000000010000000000000002".into();
    world.plan();
    world.pass(10);
    world.plan();
    assert_eq!(world.uid("k2"), old);
    world.pass(1);
    world.plan();
    assert_ne!(world.uid("k2"), old);
}

#[test]
fn dead_keepers_are_forgotten() {
    let mut world = World::running(spec(), 2);
    world.start_keeper("k9");
    world.plan();
    world.data.dbs.retain(|_, db| db.spec.keeper_uid != "k9");
    world.kill("k9");
    world.set_spec(|spec| spec.max_standbys_per_sender = Some(1));
    world.settle();
    assert!(world.data.keepers.contains_key("k9"));
    world.pass(48 * 3600 + 10);
    world.settle();
    assert!(!world.data.keepers.contains_key("k9"));
    assert!(world.data.keepers.contains_key("k2"));
}

#[test]
fn a_changed_specification_reaches_every_db_once() {
    let mut world = World::running(spec(), 2);
    let before = world.db("k2").generation;
    world.set_spec(|spec| {
        spec.pg_parameters.insert("work_mem".into(), "4MB".into());
        spec.additional_master_replication_slots = Some(vec!["a".into()]);
    });
    world.settle();
    assert_eq!(world.db("k2").generation, before + 1);
    assert_eq!(world.db("k2").spec.pg_parameters["work_mem"], "4MB");
    assert_eq!(world.db("k2").spec.additional_replication_slots, None);
    assert_eq!(world.db("k1").spec.additional_replication_slots, Some(vec!["a".into()]));
}

#[test]
fn noise_is_written_once_a_minute() {
    let mut world = World::running(spec(), 2);
    let writes = world.writes;
    for second in 1..59 {
        world.pass(1);
        world.set_position("k1", 2000 + second);
        world.set_position("k2", 2000 + second);
        world.info("k1").postgres_state.as_mut().unwrap().older_wal_file = format!("{second:024X}");
        assert!(!world.plan());
    }
    assert_eq!(world.writes, writes);
    world.pass(2);
    assert!(world.plan());
    assert_eq!(world.db("k1").status.xlog_pos, 2058);
    assert!(!world.plan());
}

#[test]
fn where_nothing_happens_nothing_is_written_for_an_hour() {
    let mut world = World::running(spec(), 2);
    for _ in 0..59 {
        world.pass(60);
        assert!(!world.plan());
        assert!(world.wake.is_some_and(|at| at > world.clock + Duration::from_secs(10)), "{:?}", world.wake);
    }
    let before = world.data.keepers["k2"].status.last_healthy_time;
    world.pass(120);
    assert!(world.plan());
    assert!(world.data.keepers["k2"].status.last_healthy_time > before);
    // A keeper that dies meanwhile was healthy until then, whatever was written last.
    world.pass(1800);
    assert!(!world.plan());
    world.kill("k2");
    assert!(world.plan());
    let status = &world.data.keepers["k2"].status;
    assert!(!status.healthy);
    assert_eq!(status.last_healthy_time, world.moment().wall);
}

#[test]
fn times_that_short_intervals_are_counted_from_are_written_more_often() {
    let mut world = World::running(spec(), 2);
    world.set_spec(|spec| spec.dead_keeper_removal_interval = Some("8m".parse().unwrap()));
    world.settle();
    let writes = world.writes;
    world.pass(119);
    assert!(!world.plan());
    world.pass(1);
    assert!(world.plan());
    assert_eq!(world.writes, writes + 1);
}

#[test]
fn a_standby_cluster_follows_outside_and_is_promoted() {
    let spec = json!({"initMode":"pitr","role":"standby","failInterval":"5s","sleepInterval":"1s",
        "pitrConfig":{"dataRestoreCommand":"x"},
        "standbyConfig":{"standbySettings":{"primaryConninfo":"host=a"}}});
    let mut world = World::new(spec, 2);
    world.plan();
    world.pass(1);
    world.settle();
    let follow = world.db("k1").spec.follow_config.clone().unwrap();
    assert_eq!((world.db("k1").spec.role, follow.kind), (Some(Role::Standby), Some(FollowType::External)));
    assert_eq!(world.proxied(), Some("k1"));
    world.set_spec(|spec| spec.role = Some(model::stolon::ClusterRole::Master));
    world.settle();
    assert_eq!((world.db("k1").spec.role, world.db("k1").spec.follow_config.clone()), (Some(Role::Master), None));
}

#[test]
fn keepers_of_another_cluster_and_broken_records_are_skipped() {
    let mut world = World::running(spec(), 2);
    world.start_keeper("k8");
    world.info("k8").cluster_uid = "c0".into();
    world.observed.keepers.insert("k9".into(), None);
    assert!(!world.plan());
    assert!(world.said(|r| matches!(r, Reason::Unreadable("keeper", _))));
}

#[test]
fn priorities_follow_the_keeper_at_its_start_only() {
    let mut world = World::running(spec(), 2);
    world.info("k2").priority = Some(-5);
    assert!(!world.plan(), "it has not started anew");
    world.start_keeper("k2");
    world.info("k2").priority = Some(-5);
    world.plan();
    assert_eq!(world.data.keepers["k2"].spec.priority, -5);
    world.start_keeper("k2");
    world.plan();
    assert_eq!(world.data.keepers["k2"].spec.priority, -5, "unset means: as it is");
}

#[test]
fn inconsistent_data_is_left_alone() {
    let world = World::running(spec(), 2);
    type Damage = fn(&mut ClusterData);
    let damages: [Damage; 5] = [
        |data| data.cluster.status.master = "none".into(),
        |data| data.cluster.spec = None,
        |data| data.keepers.clear(),
        |data| data.cluster.status.phase = None,
        |data| data.dbs.values_mut().for_each(|db| db.spec.role = None),
    ];
    for damage in damages {
        let mut data = world.data.clone();
        damage(&mut data);
        let moment = Moment { clock: world.clock + Duration::from_secs(1), wall: world.moment().wall };
        for observed in [&world.observed, &Observed::default()] {
            let planned = plan(moment, &data, observed, &world.memory);
            assert!(planned.reasons.iter().any(Reason::is_problem));
        }
    }
}

#[test]
fn a_standby_that_is_dead_for_long_keeps_no_wal() {
    for synchronous in [false, true] {
        let mut world = World::running(
            json!({"initMode":"new","failInterval":"5s","sleepInterval":"1s","usePgrewind":true,
                "synchronousReplication":synchronous,"deadKeeperRemovalInterval":"1h"}),
            3,
        );
        let waited = world.db("k1").spec.synchronous_standbys.clone().unwrap_or_default();
        let dead = if waited.contains(&world.uid("k2")) { "k3" } else { "k2" };
        world.kill(dead);
        world.plan();
        world.pass(3599);
        world.settle();
        assert_eq!((world.data.dbs.len(), world.db("k1").spec.followers.len()), (3, 2));
        world.pass(10);
        world.settle();
        assert_eq!((world.data.dbs.len(), world.db("k1").spec.followers.len()), (2, 1), "its slot goes with its db");
        world.start_keeper(dead);
        world.settle();
        world.pass(1);
        world.settle();
        assert_eq!(world.data.dbs.len(), 3, "it comes back with a copy made anew");
    }
}
