//! Init modes `existing` and `pitr`, and following a server outside of the cluster.

use super::super::datadir::RestoreState;
use super::super::postgres::control::ControlState;
use super::tests::{Case, RUNNING, present, present_with};
use super::*;
use model::stolon::{DbInitMode, FollowConfig};
use serde_json::json;

const EXTERNAL: &str = r#"{"type": "external", "standbySettings": {"primaryConninfo": "host=far", "primarySlotName": "us",
    "recoveryMinApplyDelay": "1min"}, "archiveRecoverySettings": {"restoreCommand": "cp '/a b/%f' %p"}}"#;

fn external() -> FollowConfig {
    serde_json::from_str(EXTERNAL).unwrap()
}

fn fresh(mode: DbInitMode) -> Case {
    let mut case = Case::new("a");
    case.local.state = DbState::default();
    case.local.data = Data::Missing;
    case.local.running = None;
    case.db().init_mode = Some(mode);
    case
}

fn pitr() -> Case {
    let mut case = fresh(DbInitMode::Pitr);
    case.db().pitr_config = Some(
        serde_json::from_value(
            json!({"dataRestoreCommand": "fetch %d", "recoveryTargetSettings": {"recoveryTargetName": "x"}}),
        )
        .unwrap(),
    );
    case
}

fn signals(standby: bool, recovery: bool, backup_label: bool) -> RoleFiles {
    RoleFiles { standby, recovery, backup_label }
}

#[test]
fn existing_data_is_adopted_as_what_it_is() {
    let steps = |state, standby, files, follow: Option<FollowConfig>| {
        let mut case = fresh(DbInitMode::Existing);
        case.local.data = present_with(state, standby, files);
        if follow.is_some() {
            (case.db().role, case.db().follow_config) = (Some(Role::Standby), follow);
        }
        (case.steps(), case.plan().problem)
    };
    let rest = "start for setup, wait ready, check roles, stop, mark initialized, …";
    let none = RoleFiles::default();
    assert_eq!(steps(ControlState::ShutDown, false, none, None).0, format!("keep configuration, {rest}"));
    let left_over = signals(true, false, false);
    assert_eq!(
        steps(ControlState::Production, false, left_over, None).0,
        format!("keep configuration, mark primary, {rest}")
    );
    // A standby stays one until it is promoted, also without its file.
    let standby = format!("keep configuration, mark standby, {rest}");
    assert_eq!(steps(ControlState::ShutDownInRecovery, true, none, None).0, standby);
    assert_eq!(steps(ControlState::ShutDownInRecovery, true, none, Some(external())).0, standby);
    // A standby cluster takes a copy, even if it is not marked as a standby, or what the operator marked; not a primary.
    assert_eq!(steps(ControlState::Production, false, signals(false, false, true), Some(external())).0, standby);
    assert_eq!(steps(ControlState::ShutDown, false, signals(true, false, false), Some(external())).0, standby);
    let (steps, problem) = steps(ControlState::ShutDown, false, none, Some(external()));
    assert!(steps.is_empty() && problem.unwrap().contains("holds a primary"));
}

#[test]
fn existing_data_survives_everything() {
    for state in [DbState::default(), DbState { uid: "x".into(), ..Default::default() }] {
        for running in [RUNNING, None] {
            for include in [false, true] {
                let mut case = fresh(DbInitMode::Existing);
                case.local.data = present(ControlState::ShutDown, false);
                (case.local.state, case.local.running) = (state.clone(), running);
                case.db().include_previous_config = include;
                // Never marked as garbage on the way.
                let steps = case.plan().steps;
                assert!(!steps.iter().any(|step| matches!(
                    step,
                    Step::SaveState(_) | Step::MoveAway(_) | Step::DeleteGarbage | Step::Initdb(_) | Step::Resync(_)
                )));
            }
        }
    }
    let missing = fresh(DbInitMode::Existing).plan();
    assert!(missing.steps.is_empty() && missing.problem.unwrap().contains("/d/postgres; put it there"));
}

#[test]
fn a_backup_is_restored_and_recovered() {
    let whole = "move away, save state, restore, recover, check roles, stop, mark initialized, …";
    assert_eq!(pitr().steps(), whole);
    let mut case = pitr();
    case.db().include_previous_config = true;
    assert!(case.steps().contains("recover, check roles, read parameters, stop"));
    let plan = pitr().plan();
    assert_eq!(plan.steps[2], Step::Restore { db: "m".into(), command: "fetch %d".into() });
    let Step::Recover(recover) = &plan.steps[3] else { panic!("{plan:?}") };
    assert!(!recover.standby && recover.limit.is_none() && recover.parameters["recovery_target_action"] == "promote");
    assert!(!recover.files.hba.contains("host all all"), "nobody looks at it before it is complete");
    let mut case = pitr();
    case.data.cluster.spec.as_mut().unwrap().sync_timeout = Some(model::GoDuration::from_secs(9));
    (case.db().role, case.db().follow_config) = (Some(Role::Standby), Some(external()));
    let Step::Recover(recover) = case.plan().steps.remove(3) else { panic!() };
    assert_eq!((recover.standby, recover.limit), (true, Some(std::time::Duration::from_secs(9))));
    assert!(recover.files.conf.contains("primary_conninfo = 'host=far'"), "{}", recover.files.conf);
    let mut case = pitr();
    case.db().pitr_config = None;
    assert!(case.steps().is_empty() && case.plan().problem.is_some());
}

#[test]
fn a_restore_takes_no_place_of_data() {
    for uid in ["", "x", "old"] {
        for running in [RUNNING, None] {
            let mut case = pitr();
            case.local.data = present(ControlState::ShutDown, false);
            case.local.state.uid = uid.into();
            case.local.running = running;
            assert!(case.steps().is_empty() && case.plan().problem.unwrap().contains("move it away"));
        }
    }
}

#[test]
fn what_was_restored_once_is_not_fetched_again() {
    let interrupted = |uid: &str, restored: Option<(&str, &str)>, data: Data| {
        let mut case = pitr();
        case.local.state = DbState { uid: uid.into(), initializing: true, ..Default::default() };
        case.local.data = data;
        case.local.restored = restored.map(|(uid, command)| RestoreState {
            uid: uid.into(),
            command: command.into(),
            recovering: true,
            wal_dir: None,
        });
        case
    };
    let there = present(ControlState::ArchiveRecovery, true);
    let resumed = "recover, check roles, stop, mark initialized, …";
    assert_eq!(interrupted("m", Some(("m", "fetch %d")), there).steps(), resumed);
    let mut running = interrupted("m", Some(("m", "fetch %d")), there);
    running.local.running = RUNNING;
    assert_eq!(running.steps(), "stop, …");
    // Interrupted in the middle, of another db, by another command, or lost: all anew.
    for (uid, restored, data, first) in [
        ("m", None, there, "delete garbage"),
        ("m", Some(("x", "fetch %d")), there, "delete garbage"),
        ("m", Some(("m", "fetch elsewhere %d")), there, "delete garbage"),
        ("m", Some(("m", "fetch %d")), Data::Missing, "delete garbage"),
        ("x", Some(("x", "fetch %d")), there, "move away"),
    ] {
        let steps = interrupted(uid, restored, data).steps();
        assert!(steps.starts_with(&format!("{first}, save state, restore, recover")), "{steps}");
    }
}

#[test]
fn a_new_cluster_may_replace_an_interrupted_initialisation() {
    let mut case = pitr();
    case.local.cluster_uid = "before".into();
    case.local.state = DbState { uid: "x".into(), initializing: true, ..Default::default() };
    case.local.data = present(ControlState::ArchiveRecovery, true);
    assert!(case.steps().starts_with("save cluster uid, move away, save state"), "{}", case.steps());
    case.local.state.initializing = false;
    assert!(case.steps().is_empty());
}

/// A standby cluster's first db, in operation.
fn outside() -> Case {
    let mut case = Case::new("a");
    (case.db().role, case.db().follow_config) = (Some(Role::Standby), Some(external()));
    case.local.data = present(ControlState::ArchiveRecovery, true);
    case
}

#[test]
fn following_a_server_outside() {
    let mut case = outside();
    case.local.running = None;
    assert_eq!(case.steps(), "set sync wait, mark standby, write files, start, wait ready, …");
    let case = outside().settled();
    assert_eq!(case.steps(), "ensure slots, restart if pending");
    let conf = case.local.conf.clone().unwrap();
    for line in [
        "primary_conninfo = 'host=far'",
        "primary_slot_name = 'us'",
        "recovery_min_apply_delay = '1min'",
        "restore_command = 'cp ''/a b/%f'' %p'",
    ] {
        assert!(conf.contains(line), "{conf}");
    }
    // It keeps the WAL of its own followers.
    let wanted = ["stolon_s".to_owned()].into();
    assert_eq!(case.plan().steps[0], Step::EnsureSlots { wanted, additional: BTreeSet::new(), required: true });
    let mut case = outside().settled();
    case.db().follow_config.as_mut().unwrap().standby_settings.as_mut().unwrap().primary_conninfo = "host=near".into();
    assert_eq!(case.steps(), "write files, reload, ensure slots, restart if pending");
}

#[test]
fn slots_of_the_user_are_told_from_those_of_followers() {
    let mut case = Case::new("a").settled();
    case.db().additional_replication_slots = Some(vec!["backup".into()]);
    let Step::EnsureSlots { wanted, additional, required } = &case.plan().steps[0] else { panic!() };
    assert_eq!(*wanted, ["stolon_backup".to_owned(), "stolon_s".to_owned()].into());
    assert_eq!((additional, required), (&["stolon_backup".to_owned()].into(), &true));
}

#[test]
fn a_standby_cluster_is_promoted_after_its_archive_is_replayed() {
    let mut case = outside().settled();
    (case.db().role, case.db().follow_config) = (Some(Role::Master), None);
    let plan = case.plan();
    let [Step::WriteFiles(files), Step::Reload { .. }, Step::Promote] = &plan.steps[..] else { panic!("{plan:?}") };
    assert!(
        files.conf.contains("restore_command = 'cp ''/a b/%f'' %p'") && files.conf.contains("primary_conninfo = ''")
    );
    (case.local.conf, case.local.hba) = (Some(files.conf.clone()), Some(files.hba.clone()));
    assert_eq!(case.steps(), "promote, …");
    case.local.data = present(ControlState::Production, false);
    let conf = case.settled().local.conf.unwrap();
    assert!(!conf.contains("restore_command"), "{conf}");
}

#[test]
fn members_of_a_standby_cluster_follow_a_standby() {
    let mut case = Case::new("b").resync();
    case.data.dbs.get_mut("m").unwrap().spec.role = Some(Role::Standby);
    case.data.dbs.get_mut("m").unwrap().spec.follow_config = Some(external());
    case.local.data = present(ControlState::ShutDown, false);
    let Step::Resync(resync) = case.plan().steps.remove(0) else { panic!() };
    assert!(resync.standby_master && resync.attempt == Attempt::Rewind, "{resync:?}");
    // One that was a standby only has to go on.
    case.local.data = present(ControlState::ShutDownInRecovery, true);
    let Step::Resync(resync) = case.plan().steps.remove(0) else { panic!() };
    assert_eq!(resync.attempt, Attempt::Start);
    let Step::Resync(resync) = Case::new("b").resync().plan().steps.remove(0) else { panic!() };
    assert!(!resync.standby_master);
    // A copy of a server outside is made by the other modes only.
    let mut case = Case::new("a").resync();
    case.db().follow_config = Some(external());
    assert!(case.steps().is_empty() && case.plan().problem.is_some());
}

#[test]
fn left_over_signal_files_do_not_decide_the_role() {
    for (state, files) in [
        (ControlState::Production, signals(true, false, false)),
        (ControlState::ShutDown, signals(false, true, false)),
        (ControlState::Production, signals(true, true, false)),
    ] {
        let mut master = Case::new("a");
        master.local.running = None;
        master.local.data = present_with(state, false, files);
        assert_eq!(master.steps(), "set sync wait, mark primary, write files, start, wait ready, …");
        // It wrote as a primary: only one that was stopped cleanly may be handed over.
        let mut standby = Case::new("b");
        standby.local.running = None;
        standby.local.state.primary = Some(true);
        standby.local.data = present_with(state, false, files);
        if state == ControlState::ShutDown {
            assert!(standby.steps().starts_with("tell that it is handed over"), "{}", standby.steps());
        } else {
            assert_eq!(standby.steps(), "resync, mark initialized, …");
        }
    }
    let mut standby = Case::new("b");
    standby.local.running = None;
    standby.local.data = present_with(ControlState::ArchiveRecovery, true, signals(false, true, false));
    assert_eq!(standby.steps(), "set sync wait, mark standby, write files, start, wait ready, …");
}
