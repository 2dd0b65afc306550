use super::super::args::AuthMethod;
use super::super::datadir::Rewinding;
use super::super::postgres::control::{Control, ControlState};
use super::*;
use model::stolon::{ClusterPhase, DbInitMode, DbSpec, FollowConfig, Keeper, StolonSpec};
use serde_json::json;

/// A cluster with the master db `m` on keeper `a` and the standby db `s` on keeper `b`.
#[derive(Clone)]
pub(super) struct Case {
    pub(super) setup: Setup,
    pub(super) local: Local,
    pub(super) data: ClusterData,
}

pub(super) fn present(state: ControlState, standby: bool) -> Data {
    present_with(state, standby, RoleFiles { standby, ..Default::default() })
}

pub(super) fn present_with(state: ControlState, standby: bool, files: RoleFiles) -> Data {
    Data::Present { control: Control { system_id: 7, state, timeline: 1, checkpoint: 77 }, standby, files }
}

pub(super) const RUNNING: Option<Running> = Some(Running { ready: true, same_place: true });

impl Case {
    pub(super) fn new(keeper: &str) -> Self {
        let setup = Setup {
            uid: keeper.into(),
            directory: "/d".into(),
            boot_uuid: "boot".into(),
            listen_address: "127.0.0.1".into(),
            port: 5442,
            socket_dir: "/tmp".into(),
            su: ("postgres".into(), AuthMethod::Md5.into()),
            repl: ("repl".into(), AuthMethod::Md5.into()),
            passfile: Some("/d/pgpass".into()),
            tls: Default::default(),
            rebuild_lost_standby: false,
        };
        let spec: StolonSpec = serde_json::from_value(json!({"initMode": "new"})).unwrap();
        let mut data = ClusterData::new("cluster", spec, Default::default());
        for uid in ["a", "b"] {
            let mut keeper = Keeper { uid: uid.into(), ..Default::default() };
            keeper.status.boot_uuid = "boot".into();
            data.keepers.insert(uid.into(), keeper);
        }
        let db = |uid: &str, keeper: &str, role| Db {
            uid: uid.into(),
            generation: 3,
            spec: DbSpec {
                keeper_uid: keeper.into(),
                role: Some(role),
                init_mode: Some(DbInitMode::None),
                max_standbys: 20,
                use_pgrewind: true,
                ..Default::default()
            },
            ..Default::default()
        };
        let mut master = db("m", "a", Role::Master);
        master.spec.followers = vec!["s".into()];
        master.status.listen_address = "10.0.0.1".into();
        master.status.port = "5442".into();
        master.status.system_id = "7".into();
        master.status.timeline_id = 2;
        let mut standby = db("s", "b", Role::Standby);
        standby.spec.follow_config = Some(FollowConfig::internal("m".into()));
        data.dbs = [("m".into(), master), ("s".into(), standby)].into();
        data.cluster.status.phase = Some(ClusterPhase::Normal);
        data.cluster.status.master = "m".into();
        let own = if keeper == "a" { "m" } else { "s" };
        let local = Local {
            cluster_uid: "cluster".into(),
            state: DbState { uid: own.into(), generation: 2, primary: Some(own == "m"), ..Default::default() },
            data: present(ControlState::Production, own == "s"),
            running: RUNNING,
            conf: None,
            hba: None,
            sync_wait: Some(false),
            in_sync: Some(BTreeSet::new()),
            reload_owed: false,
            names_in_force: None,
            checkpoint_owed: false,
            refused: None,
            restored: None,
            order: None,
        };
        Case { setup, local, data }
    }

    pub(super) fn db(&mut self) -> &mut DbSpec {
        let own = if self.setup.uid == *"a" { "m" } else { "s" };
        &mut self.data.dbs.get_mut(own).unwrap().spec
    }

    pub(super) fn resync(mut self) -> Self {
        self.db().init_mode = Some(DbInitMode::Resync);
        self.local.state = DbState { uid: "old".into(), generation: 9, ..Default::default() };
        self.local.running = None;
        self
    }

    pub(super) fn plan(&self) -> Plan {
        plan(&self.setup, &self.local, &self.data, &self.data.spec().effective().unwrap())
    }

    /// Names of the steps, with `…` at the end if there will be another plan.
    pub(super) fn steps(&self) -> String {
        let plan = self.plan();
        let mut names: Vec<&str> = plan.steps.iter().map(Step::name).collect();
        names.extend(plan.again.then_some("…"));
        names.join(", ")
    }

    /// Takes over the files that the plan would write, as if it had been carried out.
    pub(super) fn settled(mut self) -> Self {
        let plan = self.plan();
        for step in plan.steps {
            match step {
                Step::WriteFiles(files) => {
                    self.local.conf = Some(files.conf);
                    self.local.hba = Some(files.hba);
                }
                Step::SaveState(state) => self.local.state = state,
                _ => {}
            }
        }
        self
    }
}

fn steps(keeper: &str, change: impl Fn(&mut Case)) -> String {
    let mut case = Case::new(keeper);
    change(&mut case);
    case.steps()
}

#[test]
fn before_there_is_a_db() {
    assert_eq!(steps("a", |c| drop(c.data.keepers.remove("a"))), "");
    assert_eq!(steps("a", |c| drop(c.data.dbs.remove("m"))), "stop");
    assert_eq!(
        steps("a", |c| {
            c.data.dbs.remove("m");
            c.local.running = None;
        }),
        ""
    );
    // A start that the sentinel has not seen touches nothing, but takes up the cluster's uid.
    assert_eq!(steps("a", |c| c.setup.boot_uuid = "new".into()), "");
    assert_eq!(
        steps("a", |c| {
            c.setup.boot_uuid = "new".into();
            c.local.cluster_uid.clear();
        }),
        "save cluster uid"
    );
}

#[test]
fn init_modes() {
    let fresh = |c: &mut Case, mode| {
        c.local.state = DbState::default();
        c.local.data = Data::Missing;
        c.local.running = None;
        c.db().init_mode = Some(mode);
    };
    assert_eq!(
        steps("a", |c| fresh(c, DbInitMode::New)),
        "move away, save state, initdb, start for setup, wait ready, set up roles, stop, mark initialized, …"
    );
    let merged = steps("a", |c| {
        fresh(c, DbInitMode::New);
        c.db().include_previous_config = true;
    });
    assert!(merged.contains("wait ready, read parameters, set up roles"), "{merged}");
    // What runs is stopped first and looked at again.
    assert_eq!(
        steps("a", |c| {
            fresh(c, DbInitMode::New);
            c.local.running = RUNNING;
        }),
        "stop, …"
    );
    assert_eq!(steps("a", |c| fresh(c, DbInitMode::Existing)), "");
    // Existing data is never deleted.
    assert_eq!(
        steps("a", |c| {
            fresh(c, DbInitMode::Existing);
            c.local.data = present(ControlState::ShutDown, false);
            c.db().include_previous_config = true;
        }),
        "keep configuration, start for setup, wait ready, check roles, read parameters, stop, mark initialized, …"
    );
    let mut case = Case::new("a");
    fresh(&mut case, DbInitMode::None);
    assert_eq!(case.steps(), "");
    assert!(case.plan().problem.is_some());
}

#[test]
fn an_interrupted_initialisation_is_left_to_the_next_one() {
    let interrupted = |mode: DbInitMode, uid: &str, change: &dyn Fn(&mut Case)| {
        let mut case = Case::new("b");
        case.db().init_mode = Some(mode);
        case.local.state = DbState { uid: uid.into(), initializing: true, ..Default::default() };
        case.local.data = present(ControlState::ArchiveRecovery, true);
        case.local.running = None;
        change(&mut case);
        case
    };
    let init = "save state, initdb, start for setup, wait ready, set up roles, stop, mark initialized, …";
    // Its own leftover is garbage; that of another one might hold something.
    assert_eq!(interrupted(DbInitMode::New, "s", &|_| {}).steps(), format!("delete garbage, {init}"));
    assert_eq!(interrupted(DbInitMode::New, "x", &|_| {}).steps(), format!("move away, {init}"));
    assert_eq!(interrupted(DbInitMode::New, "s", &|c| c.local.running = RUNNING).steps(), "stop, …");
    // A resync begins anew with a copy, which asks the source before anything changes.
    for uid in ["s", "x"] {
        let plan = interrupted(DbInitMode::Resync, uid, &|_| {}).plan();
        let [Step::Resync(resync), Step::MarkInitialized(_)] = &plan.steps[..] else { panic!("{plan:?}") };
        assert_eq!(resync.attempt, Attempt::BaseBackup);
    }
    let running = interrupted(DbInitMode::Resync, "s", &|c| c.local.running = RUNNING);
    assert_eq!(running.steps(), "check source, stop, …");
    // So does one of a standby that has been in operation before.
    let running = |mode, uid| interrupted(mode, uid, &|c| c.local.running = RUNNING);
    assert_eq!(running(DbInitMode::None, "s").steps(), "check source, stop, …");
    for case in [running(DbInitMode::None, "x"), running(DbInitMode::Existing, "s")] {
        assert_eq!(case.steps(), "");
        assert!(case.plan().problem.is_some());
    }
    // Nothing happens before the sentinel knows this start.
    assert_eq!(interrupted(DbInitMode::New, "s", &|c| c.setup.boot_uuid = "new".into()).steps(), "");
}

#[test]
fn a_store_that_was_made_again_takes_no_data() {
    type Change = fn(&mut Case);
    let holds: [(&str, Change); 3] = [
        ("data and state", |_| {}),
        ("data only", |c| c.local.state = DbState::default()),
        ("state only", |c| c.local.data = Data::Missing),
    ];
    for mode in [DbInitMode::New, DbInitMode::Existing, DbInitMode::Resync, DbInitMode::None] {
        for (what, change) in holds {
            for running in [RUNNING, None] {
                let mut case = Case::new("b");
                case.db().init_mode = Some(mode);
                case.local.running = running;
                case.local.cluster_uid = "before".into();
                change(&mut case);
                let plan = case.plan();
                assert!(plan.steps.is_empty(), "{what}: {:?}", plan.steps);
                assert!(plan.problem.is_some_and(|text| text.contains("before") && text.contains("move /d away")));
            }
        }
    }
    let adopts = |change: Change| {
        let mut case = Case::new("b");
        case.local.cluster_uid = "before".into();
        change(&mut case);
        case.plan().steps.first() == Some(&Step::SaveClusterUid("cluster".into()))
    };
    assert!(adopts(|c| (c.local.state, c.local.data) = (DbState::default(), Data::Missing)), "nothing to lose");
    assert!(adopts(|c| c.local.cluster_uid.clear()), "data of nobody");
    // The operator named this keeper as the one whose data goes on.
    let named = |keeper: &str| {
        let spec = json!({"initMode": "existing", "existingConfig": {"keeperUID": keeper}});
        let mut case = Case::new("b");
        case.local.cluster_uid = "before".into();
        *case.data.cluster.spec.as_mut().unwrap() = serde_json::from_value(spec).unwrap();
        case.plan().problem.is_none()
    };
    assert!(named("b") && !named("a"));
}

#[test]
fn an_older_copy_of_the_store_is_noticed() {
    for running in [RUNNING, None] {
        let mut case = Case::new("a");
        case.local.running = running;
        case.local.state.generation = 4;
        assert!(case.steps().is_empty() && case.plan().problem.is_some());
    }
}

#[test]
fn new_instances_take_no_place_of_others() {
    let mut case = Case::new("a");
    case.db().init_mode = Some(DbInitMode::New);
    for uid in ["", "x"] {
        for running in [RUNNING, None] {
            (case.local.state, case.local.running) = (DbState { uid: uid.into(), ..Default::default() }, running);
            assert!(case.steps().is_empty() && case.plan().problem.is_some());
        }
    }
}

#[test]
fn nothing_but_init_and_garbage_deletes_data() {
    let states = [
        ControlState::ShutDown,
        ControlState::Production,
        ControlState::ArchiveRecovery,
        ControlState::ShutDownInRecovery,
    ];
    for keeper in ["a", "b"] {
        for mode in [DbInitMode::None, DbInitMode::Existing, DbInitMode::Pitr] {
            for state in states {
                for (standby, running) in [(false, RUNNING), (true, RUNNING), (false, None), (true, None)] {
                    for uid in ["m", "s", "x", ""] {
                        let mut case = Case::new(keeper);
                        case.db().init_mode = Some(mode);
                        case.local.data = present(state, standby);
                        case.local.running = running;
                        case.local.state.uid = uid.into();
                        let steps = case.plan().steps;
                        // A primary that the cluster did not want asks its successor what may be done with its data.
                        let stray = (keeper, uid, standby) == ("b", "s", false);
                        assert!(
                            !steps.iter().any(|step| match step {
                                Step::MoveAway(_) | Step::DeleteGarbage | Step::Initdb(_) => true,
                                Step::Resync(_) => !stray,
                                _ => false,
                            }),
                            "{steps:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_master_is_started_configured_and_confirmed() {
    let stopped = |c: &mut Case| c.local.running = None;
    assert_eq!(steps("a", stopped), "set sync wait, write files, start, wait ready, …");
    // A stopped standby is started as one and promoted, so that it gets a new timeline.
    assert_eq!(
        steps("a", |c| {
            stopped(c);
            c.local.data = present(ControlState::ShutDownInRecovery, true);
        }),
        "set sync wait, mark standby, write files, start, wait ready, …"
    );
    assert_eq!(
        steps("a", |c| c.local.data = present(ControlState::ArchiveRecovery, true)),
        "write files, reload, promote, …"
    );
    assert_eq!(steps("a", |_| {}), "ensure slots, write files, reload, restart if pending, save state");
    let settled = Case::new("a").settled();
    assert_eq!(settled.steps(), "ensure slots, restart if pending");
    let Step::EnsureSlots { wanted, .. } = &settled.plan().steps[0] else { panic!("no slots") };
    assert_eq!(*wanted, ["stolon_s".to_owned()].into());
    assert_eq!(
        steps("a", |c| c.local.checkpoint_owed = true),
        "ensure slots, write files, reload, restart if pending, save state, checkpoint"
    );
    assert_eq!(steps("a", |c| c.local.data = Data::Missing), "");
}

#[test]
fn an_instance_at_another_place_is_stopped() {
    assert_eq!(steps("a", |c| c.local.running = Some(Running { ready: true, same_place: false })), "stop, …");
    assert_eq!(steps("a", |c| c.local.conf = Some("listen_addresses = '0.0.0.0'\n".into())), "stop, …");
    assert_eq!(steps("a", |c| c.local.running = Some(Running { ready: false, same_place: true })), "wait ready, …");
}

#[test]
fn users_wait_after_the_start_of_a_synchronous_master() {
    let mut case = Case::new("a");
    case.db().synchronous_replication = true;
    case.db().synchronous_standbys = Some(vec!["s".into()]);
    case.local.running = None;
    let steps = case.plan().steps;
    assert!(steps.contains(&Step::SetSyncWait(true)));
    let Some(Step::WriteFiles(restricted)) = steps.iter().find(|step| matches!(step, Step::WriteFiles(_))) else {
        panic!()
    };
    assert!(
        !restricted.hba.contains("host all all") && restricted.conf.contains("synchronous_standby_names = 'stolon_s'")
    );

    // Still waiting: nothing to write. In sync: users may come in.
    case.local.running = RUNNING;
    case.local.sync_wait = Some(true);
    (case.local.conf, case.local.hba) = (Some(restricted.conf.clone()), Some(restricted.hba.clone()));
    assert_eq!(case.steps(), "ensure slots, restart if pending, save state");
    // The keeper's successor finds the restricted file and goes on waiting.
    case.local.sync_wait = None;
    assert_eq!(case.steps(), "set sync wait, ensure slots, restart if pending, save state");
    case.local.in_sync = Some(["s".into()].into());
    case.local.sync_wait = Some(true);
    let steps = case.plan().steps;
    assert!(steps.contains(&Step::SetSyncWait(false)));
    assert!(steps.iter().any(|step| matches!(step, Step::WriteFiles(files) if files.hba.contains("host all all"))));
    // Switched off, or nobody listed: no wait.
    case.local.in_sync = None;
    case.db().synchronous_standbys = Some(vec![]);
    assert!(case.plan().steps.contains(&Step::SetSyncWait(false)));
    case.db().synchronous_replication = false;
    assert!(case.plan().steps.contains(&Step::SetSyncWait(false)));
}

#[test]
fn a_master_that_was_given_up_starts_without_users() {
    let mut case = Case::new("a");
    case.data.cluster.status.master = "s".into();
    // It runs: whoever came past the proxies must go.
    assert_eq!(case.steps(), "ensure slots, write files, reload, end sessions, restart if pending, save state");
    let mut case = case.settled();
    assert!(!case.local.hba.as_ref().unwrap().contains("host all all"));
    // Elected again without having been restarted, it has shown nobody what standbys lack.
    case.data.cluster.status.master = "m".into();
    case.db().synchronous_replication = true;
    case.db().synchronous_standbys = Some(vec!["s".into()]);
    assert!(case.settled().local.hba.unwrap().contains("host all all"));
    let mut case = Case::new("a");
    case.data.cluster.status.master = "s".into();
    case.local.running = None;
    assert!(case.plan().steps.contains(&Step::SetSyncWait(true)));
    let mut case = case.settled();
    assert!(!case.local.hba.as_ref().unwrap().contains("host all all"));
    (case.local.running, case.local.sync_wait) = (RUNNING, Some(true));
    assert_eq!(case.steps(), "ensure slots, end sessions, restart if pending, save state");
    // The keeper's successor goes on; a change of mind lets users in.
    case.local.sync_wait = None;
    assert!(case.plan().steps.contains(&Step::SetSyncWait(true)));
    case.data.cluster.status.master = "m".into();
    assert!(case.plan().steps.contains(&Step::SetSyncWait(false)));
    assert!(case.settled().local.hba.unwrap().contains("host all all"));
}

#[test]
fn names_go_first_where_a_standby_only_leaves() {
    let order = |old: &[&str], new: &[&str]| {
        let list = |names: &[&str]| Some(names.iter().map(|&name| DbUid::from(name)).collect::<Vec<_>>());
        let mut case = Case::new("a");
        case.db().synchronous_replication = true;
        case.db().synchronous_standbys = list(old);
        let mut case = case.settled();
        case.db().synchronous_standbys = list(new);
        case.steps()
    };
    let (slots_first, names_first) = ("ensure slots, write files, reload, ", "write files, reload, ensure slots, ");
    assert!(order(&["s"], &["s", "t"]).starts_with(slots_first));
    assert!(order(&["s"], &["t"]).starts_with(slots_first));
    assert!(order(&["s", "t"], &["t"]).starts_with(names_first));
    assert!(order(&["s"], &[]).starts_with(names_first));
}

#[test]
fn a_promoted_standby_has_its_synchronous_set_in_force_before() {
    let mut case = Case::new("a");
    case.db().synchronous_replication = true;
    case.db().synchronous_standbys = Some(vec!["s".into()]);
    case.local.data = present(ControlState::ArchiveRecovery, true);
    let steps = case.plan().steps;
    assert_eq!(steps[1], Step::Reload { sync_names: "stolon_s".into() });
    assert_eq!(steps[2], Step::Promote);
}

#[test]
fn a_standby_is_started_and_follows_by_reload() {
    let stopped = |c: &mut Case| c.local.running = None;
    assert_eq!(steps("b", stopped), "set sync wait, mark standby, write files, start, wait ready, …");
    let mut case = Case::new("b").settled();
    assert_eq!(case.steps(), "ensure slots, restart if pending");
    let conf = case.local.conf.clone().unwrap();
    assert!(conf.contains("primary_conninfo = 'application_name=stolon_s connect_timeout=3 host=10.0.0.1 options=''-c tcp_user_timeout=5s -c wal_sender_timeout=5s'' passfile=/d/pgpass port=5442 sslmode=prefer tcp_user_timeout=5000 user=repl'"), "{conf}");
    // Another address of the master: no restart.
    case.data.dbs.get_mut("m").unwrap().status.listen_address = "10.0.0.9".into();
    assert_eq!(case.steps(), "write files, reload, ensure slots, restart if pending");
    case.local.running = Some(Running { ready: false, same_place: true });
    assert_eq!(case.steps(), "write files, reload, …");
    // A primary becomes a standby without being rewound only when it was stopped cleanly.
    let mut case = Case::new("b");
    case.local.state.primary = Some(true);
    case.local.data = present(ControlState::Production, false);
    assert_eq!(case.steps(), "stop, …");
    case.local.running = None;
    assert_eq!(case.steps(), "resync, mark initialized, …");
    let mut case = Case::new("b");
    case.data.dbs.get_mut("m").unwrap().status.listen_address.clear();
    assert!(case.plan().waiting.is_some());
}

#[test]
fn resync_rewinds_where_it_can() {
    let attempt = |change: &dyn Fn(&mut Case)| {
        let mut case = Case::new("b").resync();
        change(&mut case);
        assert_eq!(case.steps(), "resync, mark initialized, …");
        let Step::Resync(resync) = case.plan().steps.remove(0) else { panic!("no resync") };
        assert_eq!((resync.slot.as_str(), resync.timeline, resync.followed.host.as_str()), ("stolon_s", 2, "10.0.0.1"));
        resync.attempt
    };
    let mut running = Case::new("b").resync();
    running.local.running = RUNNING;
    assert_eq!(running.steps(), "check source, stop, …");
    let data = |state, standby| move |c: &mut Case| c.local.data = present(state, standby);
    assert_eq!(attempt(&data(ControlState::Production, false)), Attempt::Rewind);
    assert_eq!(attempt(&data(ControlState::ShutDown, false)), Attempt::Rewind);
    assert_eq!(attempt(&data(ControlState::ShutDownInRecovery, true)), Attempt::Rewind);
    assert_eq!(attempt(&data(ControlState::ArchiveRecovery, true)), Attempt::Start);
    assert_eq!(attempt(&|c| c.local.data = Data::Missing), Attempt::BaseBackup);
    assert_eq!(attempt(&|c| c.db().use_pgrewind = false), Attempt::BaseBackup);
    assert_eq!(attempt(&|c| c.data.dbs.get_mut("m").unwrap().status.system_id = "8".into()), Attempt::BaseBackup);
}

#[test]
fn an_interrupted_rewind_is_repeated_with_its_source_and_nothing_is_started_before() {
    let attempt = |source: &str, done, data: Data| {
        let mut case = Case::new("b").resync();
        let rewinding = Some(Rewinding { source: source.into(), timeline: 2, done });
        case.local.state = DbState { uid: "x".into(), initializing: true, rewinding, ..Default::default() };
        case.local.data = data;
        // Nothing else is done, whatever the data looks like.
        assert_eq!(case.steps(), "resync, mark initialized, …");
        let Step::Resync(resync) = case.plan().steps.remove(0) else { panic!("no resync") };
        resync.attempt
    };
    for state in [ControlState::ShutDown, ControlState::Production, ControlState::ArchiveRecovery] {
        for standby in [false, true] {
            assert_eq!(attempt("m", false, present(state, standby)), Attempt::Rewind);
            assert_eq!(attempt("m", true, present(state, standby)), Attempt::Start);
            assert_eq!(attempt("n", false, present(state, standby)), Attempt::BaseBackup);
            assert_eq!(attempt("n", true, present(state, standby)), Attempt::BaseBackup);
        }
    }
    assert_eq!(attempt("m", false, Data::Missing), Attempt::BaseBackup);
}

#[test]
fn a_primary_is_handed_over_to_its_successor() {
    let mut case = Case::new("a");
    case.db().role = Some(Role::Standby);
    case.db().follow_config = Some(FollowConfig::internal("s".into()));
    let successor = case.data.dbs.get_mut("s").unwrap();
    successor.status.listen_address = "10.0.0.2".into();
    successor.status.port = "5442".into();
    assert_eq!(case.steps(), "stop, …");
    case.local.running = None;
    case.local.data = present(ControlState::Production, false);
    assert!(case.plan().waiting.is_some(), "one that crashed may have more than its successor");
    let mut crashed = case.clone();
    crashed.data.cluster.status.master = "s".into();
    assert!(matches!(crashed.plan().steps[0], Step::Resync(_)), "unless that was promoted meanwhile");
    crashed.local.state.initializing = true;
    assert!(matches!(crashed.plan().steps[0], Step::Resync(_)), "and this is taken up again");
    case.local.data = present(ControlState::ShutDown, false);
    let told = HandedOver { db: "m".into(), xlog_pos: 77 };
    assert_eq!(case.plan().steps[0], Step::TellHandedOver(Some(told.clone())));
    let Some(Step::WriteFiles(files)) = case.plan().steps.into_iter().find(|step| matches!(step, Step::WriteFiles(_)))
    else {
        panic!("no files")
    };
    assert!(
        conf::value(&files.conf, "primary_conninfo").unwrap().contains("10.0.0.2"),
        "it follows from the beginning"
    );
    // While it starts, its control file says what it was.
    case.local.running = Some(Running { ready: false, same_place: true });
    case.local.state.handed_over = Some(told.clone());
    assert_eq!(case.steps(), "wait ready, …");
    case.local.running = RUNNING;
    assert_eq!(case.steps(), "stop, …", "unless it says itself that it is a primary");
    // It can be the master again until its successor is in service.
    let mut case = case.settled();
    (case.local.running, case.local.state.handed_over) = (RUNNING, Some(told));
    case.local.data = present(ControlState::ArchiveRecovery, true);
    let mut case = case.settled();
    assert!(!case.plan().steps.iter().any(|step| matches!(step, Step::WriteFiles(_) | Step::TellHandedOver(_))));
    // Meanwhile it keeps its slots, for it may become master again; and what it wrote down, for the next keeper.
    assert_eq!(case.steps(), "restart if pending");
    assert!(case.local.state.handed_over.is_some());
    let mut back = case.clone();
    back.db().role = Some(Role::Master);
    back.db().follow_config = None;
    assert!(back.steps().ends_with("tell that it is handed over, promote, …"), "{}", back.steps());
    back.local.data = present(ControlState::Production, false);
    assert!(back.settled().local.state.handed_over.is_none());
    case.data.cluster.status.master = "s".into();
    let successor = case.data.dbs.get_mut("s").unwrap();
    successor.spec.role = Some(Role::Master);
    successor.status.current_generation = 3;
    assert!(case.steps().starts_with("tell that it is handed over, "), "{}", case.steps());
    assert!(case.settled().local.state.handed_over.is_none());
}

#[test]
fn a_standby_has_slots_for_those_who_will_follow_it() {
    let mut case = Case::new("b").settled();
    let slots = |case: &Case| {
        case.plan().steps.into_iter().find_map(|step| match step {
            Step::EnsureSlots { wanted, required, .. } => Some((wanted, required)),
            _ => None,
        })
    };
    assert_eq!(slots(&case), Some((BTreeSet::new(), false)));
    case.db().additional_replication_slots = Some(vec!["m".into()]);
    case.db().synchronous_replication = true;
    case.db().synchronous_standbys = Some(vec!["m".into()]);
    // Waits for nobody: as a standby it commits nothing.
    assert_eq!(slots(&case), Some((["stolon_m".to_owned()].into(), false)));
    assert_eq!(case.steps(), "ensure slots, write files, reload, restart if pending");
    let mut case = case.settled();
    case.db().role = Some(Role::Master);
    case.db().followers = vec!["m".into()];
    case.db().additional_replication_slots = None;
    case.data.cluster.status.master = "s".into();
    case.data.dbs.get_mut("s").unwrap().generation += 1;
    assert_eq!(case.steps(), "write files, reload, promote, …", "not before it is proven that commits wait");
    case.local.names_in_force = Some("stolon_m".into());
    assert_eq!(case.steps(), "promote, …");
    // It is told as soon as it is promoted, and tidied up then.
    case.local.data = present(ControlState::Production, false);
    case.local.checkpoint_owed = true;
    assert_eq!(case.steps(), "ensure slots, restart if pending, save state, checkpoint, …");
    let mut case = case.settled();
    case.local.checkpoint_owed = false;
    assert_eq!(case.steps(), "ensure slots, write files, reload, restart if pending");
}

proptest::proptest! {
    /// Cluster data of all kinds: a plan, or none, but no panic, and no step that gives data up for another reason than a
    /// db that is new to this directory.
    #[test]
    fn foreign_cluster_data_is_planned_or_refused(bytes in crate::fuzz::clusterdata(), keeper in "k[1-4]") {
        let Ok(data) = ClusterData::parse(&bytes) else { return Ok(()) };
        let spec = data.spec().effective().unwrap();
        let mut case = Case::new("a");
        case.setup.uid = keeper.as_str().into();
        case.local.cluster_uid = "c".into();
        let own = data.db_of_keeper(&case.setup.uid).map(|db| db.uid.clone());
        for state in [own.clone().unwrap_or_default(), "other".into(), Default::default()] {
            case.local.state.uid = state.clone();
            for data_dir in [present(ControlState::Production, false), present(ControlState::ArchiveRecovery, true), Data::Missing] {
                case.local.data = data_dir;
                let plan = plan(&case.setup, &case.local, &data, &spec);
                let gives_up = plan.steps.iter().any(|step| matches!(step.name(), "initdb" | "resync" | "delete garbage"));
                let kept = own.as_ref() == Some(&state) && data_dir != Data::Missing;
                proptest::prop_assert!(!(gives_up && kept), "{:?}", plan.steps);
            }
        }
    }
}

#[test]
fn who_was_given_up_is_not_promoted_any_more() {
    let mut case = Case::new("b");
    case.db().role = Some(Role::Master);
    assert!(case.plan().waiting.is_some());
    case.data.cluster.status.master = "s".into();
    assert!(case.plan().steps.contains(&Step::Promote));
}

#[test]
fn a_promotion_that_nobody_asked_for_is_undone() {
    let mut case = Case::new("b");
    let master = case.data.dbs.get_mut("m").unwrap();
    master.status.current_generation = 3;
    case.local.data = present(ControlState::Production, false);
    let steps = case.plan().steps;
    assert!(matches!(steps[..], [Step::CheckSource(_), Step::Stop(_)]), "{steps:?}");
    case.local.running = None;
    assert!(matches!(case.plan().steps[0], Step::Resync(_)));
}

#[test]
fn timelines_count_as_announced_when_cluster_data_has_them() {
    let case = Case::new("a").settled();
    assert_eq!((case.local.state.primary, case.local.state.announced), (Some(true), Some(2)));
    let case = Case::new("b").settled();
    assert_eq!((case.local.state.primary, case.local.state.announced), (Some(false), None));
}

#[test]
fn lost_data_of_a_standby_are_copied_only_if_that_is_allowed() {
    for uid in ["s", ""] {
        let mut case = Case::new("b");
        case.local.data = Data::Missing;
        case.local.running = None;
        case.local.state = DbState { uid: uid.into(), ..Default::default() };
        assert!(case.plan().problem.is_some() && case.steps().is_empty());
        case.setup.rebuild_lost_standby = true;
        assert_eq!(case.steps(), "resync, mark initialized, …");
        // Never the master's, and nothing in place of another db.
        case.db().role = Some(Role::Master);
        assert!(case.plan().problem.is_some() && case.steps().is_empty());
    }
    let mut case = Case::new("b");
    case.setup.rebuild_lost_standby = true;
    case.local.running = None;
    case.local.state.uid = "x".into();
    assert!(case.plan().problem.is_some() && case.steps().is_empty());
}
