//! Restores and standby clusters.

use super::world::World;
use crate::sentinel::plan::Reason;
use model::stolon::{ClusterPhase, ClusterRole, DbInitMode, FollowType, PitrConfig, Role, TimelineHistory};
use serde_json::json;

fn standby_cluster() -> serde_json::Value {
    json!({"initMode": "pitr", "role": "standby", "sleepInterval": "1s", "failInterval": "2s", "initTimeout": "60s",
        "pitrConfig": {"dataRestoreCommand": "x"},
        "standbyConfig": {"standbySettings": {"primaryConninfo": "host=far"}}})
}

fn external(world: &World, keeper: &str) -> bool {
    let spec = &world.db(keeper).spec;
    spec.role == Some(Role::Standby)
        && spec.follow_config.as_ref().is_some_and(|follow| {
            follow.kind == Some(FollowType::External)
                && follow.standby_settings.as_ref().is_some_and(|settings| settings.primary_conninfo.contains("host="))
        })
}

#[test]
fn a_standby_cluster_elects_follows_and_is_promoted() {
    let mut world = World::running(standby_cluster(), 3);
    assert!(external(&world, "k1") && !external(&world, "k2"));
    assert!(!world.db("k1").spec.synchronous_replication);
    // Another address of the server outside.
    world.set_spec(|spec| {
        let settings = &mut spec.standby_config.as_mut().unwrap().standby_settings;
        settings.as_mut().unwrap().primary_conninfo = "host=near".into();
    });
    world.settle();
    let follow = world.db("k1").spec.follow_config.clone().unwrap();
    assert_eq!(follow.standby_settings.unwrap().primary_conninfo, "host=near");
    // Its first db dies: another one follows the server, and the rest follow that one.
    world.kill("k1");
    world.pass(10);
    world.settle();
    assert_eq!(world.master(), "k2");
    assert!(external(&world, "k2"));
    world.start_keeper("k1");
    world.settle();
    world.pass(1);
    world.settle();
    let new = world.uid("k2");
    for keeper in ["k1", "k3"] {
        let follow = world.db(keeper).spec.follow_config.clone().unwrap();
        assert_eq!((follow.kind, follow.db_uid), (Some(FollowType::Internal), new.clone()), "{keeper}");
    }
    // Promotion, with synchronous replication from then on.
    world.set_spec(|spec| {
        spec.role = Some(ClusterRole::Master);
        spec.synchronous_replication = Some(true);
    });
    world.settle();
    let master = &world.db("k2").spec;
    assert_eq!((master.role, &master.follow_config), (Some(Role::Master), &None));
    assert!(master.synchronous_replication);
}

#[test]
fn a_timeline_that_a_standby_told_of_first_is_no_other_branch() {
    let mut world = World::running(standby_cluster(), 2);
    world.reasons.clear();
    let uid = world.uid("k2");
    let position = world.info("k1").postgres_state.as_ref().unwrap().xlog_pos;
    let mut tell = |end: u64| {
        let state = world.info("k2").postgres_state.as_mut().unwrap();
        (state.timeline_id, state.xlog_pos) = (2, end + 100);
        state.timelines_history = vec![TimelineHistory { timeline_id: 1, switch_point: end, ..Default::default() }];
        world.plan();
        world.data.dbs.contains_key(&uid)
    };
    assert!(tell(position), "deleted for following first");
    assert!(!tell(position - 1), "the master went on where the standby's timeline turned off");
}

#[test]
fn a_restore_is_waited_for_and_corrected_and_moves_only_for_a_dead_keeper() {
    let spec = json!({"initMode": "pitr", "sleepInterval": "1s", "failInterval": "2s", "initTimeout": "60s",
        "pitrConfig": {"dataRestoreCommand": "x", "archiveRecoverySettings": {"restoreCommand": "wrong"}}});
    let mut world = World::new(spec, 2);
    world.plan();
    world.pass(1);
    world.plan();
    assert_eq!((world.master(), world.db("k1").spec.init_mode), ("k1", Some(DbInitMode::Pitr)));
    for _ in 0..20 {
        world.pass(100);
        world.plan();
    }
    assert_eq!(world.master(), "k1", "it takes as long as it takes");
    let uid = world.uid("k1");
    world.set_spec(|spec| {
        let config = PitrConfig { data_restore_command: "x".into(), ..Default::default() };
        spec.pitr_config = Some(config);
    });
    world.plan();
    assert_eq!((world.uid("k1"), world.db("k1").generation), (uid.clone(), 2));
    assert_eq!(world.db("k1").spec.pitr_config.clone().unwrap().archive_recovery_settings, None);
    // A keeper that restarts goes on.
    world.kill("k1");
    world.plan();
    world.pass(30);
    world.plan();
    world.start_keeper("k1");
    world.plan();
    assert_eq!(world.uid("k1"), uid);
    world.kill("k1");
    world.plan();
    world.pass(63);
    world.plan();
    assert_eq!(world.master(), "k2");
    assert!(world.said(|reason| matches!(reason, Reason::FirstMasterFailed(keeper) if *keeper == *"k1")));
    world.settle();
    assert_eq!(world.data.cluster.status.phase, Some(ClusterPhase::Normal));
}

#[test]
fn existing_data_is_waited_for() {
    let spec = json!({"initMode": "existing", "existingConfig": {"keeperUID": "k9"}, "initTimeout": "1s"});
    let mut world = World::new(spec, 2);
    world.plan();
    world.pass(100);
    world.plan();
    assert!(world.data.dbs.is_empty());
    assert!(
        world.said(|reason| reason.to_string().contains("\"k9\"") && reason.to_string().contains("these have: k1, k2"))
    );
    world.start_keeper("k9");
    world.plan();
    assert_eq!((world.master(), world.db("k9").spec.init_mode), ("k9", Some(DbInitMode::Existing)));
    // Nobody else has it, so nobody else is tried.
    world.kill("k9");
    for _ in 0..5 {
        world.pass(100);
        world.plan();
    }
    assert_eq!(world.master(), "k9");
}

#[test]
fn what_the_user_said_of_managed_parameters_outlives_the_merge() {
    let parameters = json!({"wal_keep_size": "1GB", "port": "7", "work_mem": "5MB"});
    let world = World::running(json!({"initMode": "new", "pgParameters": parameters}), 1);
    let merged = world.data.spec().pg_parameters;
    // The pretend keeper reports nothing.
    assert_eq!(merged, [("wal_keep_size".to_owned(), "1GB".to_owned())].into());
}

#[test]
fn there_are_no_more_standbys_than_slots() {
    let world = |max: u16| {
        let mut world = World::new(
            json!({"initMode": "new", "maxStandbys": max, "maxStandbysPerSender": 4, "failInterval": "2s"}),
            4,
        );
        world.settle();
        world.pass(1);
        world.settle();
        world.data.dbs.len()
    };
    assert_eq!((world(1), world(2), world(20)), (2, 3, 4));
}
