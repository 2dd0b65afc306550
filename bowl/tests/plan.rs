//! Plans and their differences: golden environment files, tables, properties.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use bowl::diff::{Found, FoundUnit, RunState, Step, deferred, keep_passwords, plan_steps};
use bowl::envfile::EnvFile;
use bowl::plan::{Facts, FileText, Wanted, plan_wanted};
use bowl::units::{Kind, UnitName};
use common::cli::{LogFormat, LogLevel};
use model::Generation;
use model::clusterspec::{AuthMethod, ClusterSpec};
use model::layout::{FORMAT_VERSION, KeeperId, KeeperSlot, NodeLayout, ProxySlot, SpecDoc};
use model::spec::{LadleSpec, StoreConnInfo};
use proptest::prelude::*;
use std::fmt::Write as _;

fn facts() -> Facts {
    Facts {
        cluster: "cluster0".into(),
        node: "n1".into(),
        advertise_address: "n1.example".into(),
        listen_address: "0.0.0.0".into(),
        data_dir: "/var/lib/shardman/cluster0".into(),
        bin_dir: None,
        runtime_dir: None,
        own_dir: "/usr/local/bin".into(),
        log_level: LogLevel::Info,
        log_format: LogFormat::Text,
    }
}

fn spec() -> SpecDoc {
    SpecDoc {
        format_version: FORMAT_VERSION,
        ladle_spec: LadleSpec {
            store_conn_info: StoreConnInfo {
                endpoints: "https://e1:2379,https://e2:2379".into(),
                ca_file: "/etc/shardman/tls/ca.crt".into(),
                ..Default::default()
            },
            data_dir: "/var/lib/shardman".into(),
            pg_bin_path: "/usr/lib/postgresql/15/bin".into(),
            ..Default::default()
        },
        cluster_spec: ClusterSpec {
            pg_su_auth_method: AuthMethod::ScramSha256,
            pg_su_password: "hidden one".into(),
            pg_su_username: "postgres".into(),
            pg_repl_auth_method: AuthMethod::ScramSha256,
            pg_repl_password: "hidden two".into(),
            pg_repl_username: "repluser".into(),
            use_proxy: true,
            ..Default::default()
        },
    }
}

fn keeper(group: &str, uid: u32, preferred: bool, pg_port: u16) -> KeeperSlot {
    KeeperSlot { id: KeeperId { rep_group: group.into(), uid }, preferred, pg_port }
}

fn layout() -> NodeLayout {
    NodeLayout {
        format_version: FORMAT_VERSION,
        generation: Generation(3),
        keepers: vec![keeper("clover-1-n1", 0, true, 5442), keeper("clover-1-n2", 1, false, 5443)],
        monitor: true,
        proxies: vec![
            ProxySlot { rep_group: "clover-1-n1".into(), port: 5432 },
            ProxySlot { rep_group: "clover-1-n2".into(), port: 5433 },
        ],
    }
}

fn wanted(spec: &SpecDoc, facts: &Facts) -> Wanted {
    plan_wanted(&layout(), spec, facts).unwrap()
}

/// The node after all was applied.
fn settled(wanted: &Wanted) -> Found {
    let units = wanted.daemons.iter().map(|daemon| FoundUnit {
        unit: daemon.unit.clone(),
        kind: daemon.kind,
        cluster: "cluster0".into(),
        env_file: daemon.env_file.clone(),
        config: daemon.config.clone(),
        enabled: true,
        state: RunState::Running,
        restarts: 0,
        problem: String::new(),
    });
    let files = wanted.secrets.iter().chain(&wanted.env_files);
    Found { units: units.collect(), files: files.map(|(name, text)| (name.clone(), text.clone())).collect() }
}

fn steps(wanted: &Wanted, found: &Found) -> Vec<Step> {
    plan_steps(wanted, found, &"cluster0".into())
}

fn restarted(steps: &[Step]) -> Vec<String> {
    let unit = |step: &Step| match step {
        Step::Restart(unit) => Some(unit.to_string()),
        _ => None,
    };
    steps.iter().filter_map(unit).collect()
}

#[test]
fn a_fresh_node_gets_seven_daemons() {
    let wanted = wanted(&spec(), &facts());
    let mut text = String::new();
    for daemon in &wanted.daemons {
        let _ = writeln!(text, "{} {}", daemon.unit, daemon.program.display());
        for (key, value) in &daemon.environment {
            let _ = writeln!(text, "    {key}={value}");
        }
    }
    for step in steps(&wanted, &Found::default()) {
        let _ = writeln!(text, "{step:?}");
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/fresh.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(path).unwrap(), "run again with UPDATE_GOLDEN=1 and look at the change");
    assert_eq!((wanted.daemons.len(), wanted.env_files.len()), (7, 7));
    let all = format!("{wanted:?}{:?}", wanted.daemons);
    assert!(!all.contains("hidden"), "a password shows");
    for FileText(text) in wanted.env_files.values() {
        assert!(!text.contains("hidden"), "a password is in an environment file");
    }
    assert_eq!(wanted.secrets["pg-su.password"], FileText("hidden one".into()));
}

#[test]
fn nothing_changes_where_nothing_changed() {
    let wanted = wanted(&spec(), &facts());
    assert_eq!(steps(&wanted, &settled(&wanted)), []);
}

#[test]
fn a_new_password_is_refused_and_locks_nobody_out() {
    let old = wanted(&spec(), &facts());
    let mut found = settled(&old);
    let mut spec = spec();
    spec.cluster_spec.pg_su_password = "hidden three".into();
    let mut new = wanted(&spec, &facts());
    let problem = keep_passwords(&mut new, &found).unwrap();
    assert!(problem.starts_with("passwords can't be changed yet: ") && problem.contains("pg-su.password"), "{problem}");
    assert!(!problem.contains("hidden") && !problem.contains("pg-repl"), "{problem}");
    assert_eq!(steps(&new, &found), []);
    // A file that is lost is written again.
    found.files.remove("pg-su.password");
    let mut new = wanted(&spec, &facts());
    assert_eq!(keep_passwords(&mut new, &found), None);
    assert_eq!(steps(&new, &found), [Step::WriteSecret("pg-su.password".into())]);
}

#[test]
fn a_new_store_address_restarts_no_keeper() {
    let found = settled(&wanted(&spec(), &facts()));
    let mut spec = spec();
    spec.ladle_spec.store_conn_info.endpoints = "https://e3:2379".into();
    spec.ladle_spec.store_conn_info.ca_file = String::new();
    let wanted = wanted(&spec, &facts());
    let steps = steps(&wanted, &found);
    assert_eq!(restarted(&steps).len(), 5);
    assert!(restarted(&steps).iter().all(|unit| !unit.contains("keeper")), "{steps:?}");
    assert_eq!(steps.iter().filter(|step| matches!(step, Step::WriteEnv { .. })).count(), 7);
    let told = deferred(&wanted, &found, &steps);
    assert_eq!(told.len(), 2);
    assert_eq!(told[0].1, ["STKEEPER_STORE_CA_FILE", "STKEEPER_STORE_ENDPOINTS"]);
    let log = plan_wanted(&layout(), &spec, &Facts { log_level: LogLevel::Debug, ..facts() }).unwrap();
    assert_eq!(deferred(&log, &settled(&wanted), &[]), [], "nobody waits for log lines");
}

#[test]
fn a_new_log_level_restarts_all_but_keepers() {
    let found = settled(&wanted(&spec(), &facts()));
    let wanted = wanted(&spec(), &Facts { log_level: LogLevel::Debug, ..facts() });
    let steps = steps(&wanted, &found);
    let restarted = restarted(&steps);
    assert_eq!(restarted.len(), 5);
    assert!(restarted.iter().all(|unit| !unit.contains("keeper")), "{restarted:?}");
    let written = steps.iter().filter(|step| matches!(step, Step::WriteEnv { .. })).count();
    assert_eq!(written, 7);
}

#[test]
fn a_new_program_restarts_what_runs_it() {
    let found = settled(&wanted(&spec(), &facts()));
    let mut spec = spec();
    spec.ladle_spec.stolon_bin_path = "/opt/stolon/bin".into();
    let changed = wanted(&spec, &facts());
    assert_eq!(restarted(&steps(&changed, &found)).len(), 6, "all but the monitor");
    assert_eq!(changed.daemons[0].program.to_str(), Some("/opt/stolon/bin/stolon-keeper"));
    assert_eq!(changed.daemons[6].program.to_str(), Some("/usr/local/bin/monitor"));
    let flag = wanted(&spec, &Facts { bin_dir: Some("/b".into()), ..facts() });
    assert!(flag.daemons.iter().all(|daemon| daemon.program.starts_with("/b")));
}

#[test]
fn with_trust_keepers_get_no_password() {
    let mut spec = spec();
    spec.cluster_spec.pg_su_auth_method = AuthMethod::Trust;
    spec.cluster_spec.pg_repl_auth_method = AuthMethod::Trust;
    let wanted = wanted(&spec, &facts());
    assert!(wanted.secrets.is_empty());
    assert!(wanted.daemons[0].environment.keys().all(|key| !key.contains("PASSWORD")));
}

#[test]
fn fewer_proxies_stop_only_those() {
    let found = settled(&wanted(&spec(), &facts()));
    let mut layout = layout();
    layout.proxies.pop();
    let wanted = plan_wanted(&layout, &spec(), &facts()).unwrap();
    let unit = UnitName::from("shardman-proxy@cluster0-clover-1-n2");
    let env_file = "proxy-cluster0-clover-1-n2.env".to_owned();
    assert_eq!(steps(&wanted, &found), [Step::Stop(unit.clone()), Step::Forget { unit, env_file }]);
}

#[test]
fn a_node_without_daemons_is_emptied_but_for_its_data() {
    let found = settled(&wanted(&spec(), &facts()));
    let empty = NodeLayout { keepers: vec![], proxies: vec![], monitor: false, ..layout() };
    let steps = steps(&plan_wanted(&empty, &spec(), &facts()).unwrap(), &found);
    assert_eq!(steps.iter().filter(|step| matches!(step, Step::Stop(_))).count(), 7);
    let deletes_data = |step: &Step| matches!(step, Step::Forget { env_file, .. } if !env_file.ends_with(".env"));
    assert!(!steps.iter().any(deletes_data));
}

#[test]
fn daemons_of_clusters_with_similar_names_are_left_alone() {
    let wanted = wanted(&spec(), &facts());
    let mut found = settled(&wanted);
    for (cluster, unit) in
        [("cluster0-clover", "shardman-keeper@cluster0-clover-1-n9-0"), ("cluster01", "shardman-monitor@cluster01")]
    {
        found.units.push(FoundUnit { unit: unit.into(), cluster: cluster.into(), ..found.units[0].clone() });
    }
    assert_eq!(steps(&wanted, &found), []);
}

#[test]
fn states_decide_what_is_done() {
    let wanted = wanted(&spec(), &facts());
    let unit = wanted.daemons[0].unit.clone();
    for (enabled, state, config, expected) in [
        (true, RunState::Running, "same", None),
        (true, RunState::Starting, "same", None),
        (true, RunState::Failed, "same", None),
        (true, RunState::Running, "old", Some(Step::Restart(unit.clone()))),
        (true, RunState::Failed, "old", Some(Step::Restart(unit.clone()))),
        (true, RunState::Stopped, "same", Some(Step::Start(unit.clone()))),
        (false, RunState::Stopped, "same", Some(Step::Start(unit.clone()))),
        (false, RunState::Running, "same", Some(Step::Start(unit.clone()))),
    ] {
        let mut found = settled(&wanted);
        found.units[0].enabled = enabled;
        found.units[0].state = state;
        if config == "old" {
            found.units[0].config = config.into();
        }
        assert_eq!(steps(&wanted, &found), Vec::from_iter(expected), "{enabled} {state:?} {config}");
    }
}

#[test]
fn a_crash_between_file_and_restart_is_made_good() {
    let old = settled(&wanted(&spec(), &facts()));
    let mut spec = spec();
    spec.cluster_spec.pg_su_username = "another".into();
    let new = wanted(&spec, &facts());
    // All files are new, no daemon was restarted.
    let found = Found { units: old.units, files: settled(&new).files };
    assert_eq!(restarted(&steps(&new, &found)).len(), 2);
}

#[test]
fn a_long_directory_gets_a_short_socket_path() {
    let directory = |data_dir: String| {
        let wanted = wanted(&spec(), &Facts { data_dir: data_dir.into(), ..facts() });
        wanted.daemons[0].environment["STKEEPER_PG_UNIX_SOCKET_DIR"].clone()
    };
    // The keeper's own part is "/keeper-cluster0-clover-1-n1-0/.s.PGSQL.5442": 44 bytes.
    let fits = format!("/{}", "d".repeat(55));
    assert_eq!(directory(fits.clone()), format!("{fits}/keeper-cluster0-clover-1-n1-0"));
    for length in [56, 79] {
        let data_dir = format!("/{}", "d".repeat(length));
        assert_eq!(directory(data_dir.clone()), format!("{data_dir}/s5442"));
    }
    let long = directory(format!("/{}", "d".repeat(80)));
    assert!(long.starts_with("/tmp/shardman-") && long.len() == "/tmp/shardman-".len() + 8, "{long}");
    assert_eq!(long, directory(format!("/{}", "d".repeat(80))));
    assert_ne!(long, directory(format!("/{}", "e".repeat(80))));
    let data_dir = format!("/{}", "d".repeat(80)).into();
    let with_run = wanted(&spec(), &Facts { data_dir, runtime_dir: Some("/run/user/7".into()), ..facts() });
    let short = &with_run.daemons[0].environment["STKEEPER_PG_UNIX_SOCKET_DIR"];
    assert!(short.starts_with("/run/user/7/shardman-"), "{short}");
}

#[test]
fn unusable_layouts_are_refused() {
    let two = |slot: KeeperSlot| NodeLayout { keepers: vec![keeper("g", 0, true, 5442), slot], ..layout() };
    for (layout, part) in [
        (two(keeper("../x", 0, true, 5443)), "unusable name"),
        (two(keeper("", 0, true, 5443)), "unusable name"),
        (two(keeper("h", 0, true, 5442)), "port 5442"),
        (two(keeper("h", 0, true, 0)), "port 0"),
        (two(keeper("h", 0, true, 5432)), "port 5432"),
        (two(keeper("g", 1, true, 5443)), "two keepers"),
    ] {
        let error = plan_wanted(&layout, &spec(), &facts()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let mut spec = spec();
    spec.cluster_spec.pg_su_username = "a\nSTKEEPER_UID=b".into();
    let error = plan_wanted(&layout(), &spec, &facts()).unwrap_err().to_string();
    assert!(error.contains("STKEEPER_PG_SU_USERNAME") && !error.contains('\n'), "{error}");
}

#[test]
fn kinds_are_stopped_with_patience() {
    assert_eq!(Kind::ALL.map(|kind| kind.stop_grace().as_secs()), [5, 5, 5, 60]);
    let mut sorted = Kind::ALL;
    sorted.sort();
    assert_eq!(sorted, Kind::ALL);
}

proptest! {
    /// Whatever ran before, after the steps exactly what is wanted runs, with the wanted files.
    #[test]
    fn steps_lead_to_what_is_wanted(before: u8, after: u8, debug: bool) {
        let cut = |bits: u8| {
            let full = layout();
            let keep = |bit: u8| bits & (1 << bit) != 0;
            NodeLayout {
                keepers: (0..2).filter(|i| keep(*i)).map(|i| full.keepers[usize::from(i)].clone()).collect(),
                proxies: (0..2).filter(|i| keep(i + 2)).map(|i| full.proxies[usize::from(i)].clone()).collect(),
                monitor: keep(4),
                ..full
            }
        };
        let mut found = settled(&plan_wanted(&cut(before), &spec(), &facts()).unwrap());
        let level = if debug { LogLevel::Debug } else { LogLevel::Info };
        let wanted = plan_wanted(&cut(after), &spec(), &Facts { log_level: level, ..facts() }).unwrap();
        for step in steps(&wanted, &found) {
            take(step, &wanted, &mut found);
        }
        prop_assert_eq!(steps(&wanted, &found), []);
        let names = |units: Vec<&UnitName>| { let mut names: Vec<String> = units.iter().map(ToString::to_string).collect(); names.sort(); names };
        prop_assert_eq!(
            names(found.units.iter().map(|unit| &unit.unit).collect()),
            names(wanted.daemons.iter().map(|daemon| &daemon.unit).collect())
        );
    }
}

/// A node in miniature.
fn take(step: Step, wanted: &Wanted, found: &mut Found) {
    match step {
        Step::Stop(unit) => found.units.iter_mut().filter(|u| u.unit == unit).for_each(|u| u.state = RunState::Stopped),
        Step::Forget { unit, env_file } => {
            found.units.retain(|found| found.unit != unit);
            found.files.remove(&env_file);
        }
        Step::WriteSecret(name) => {
            found.files.insert(name.clone(), wanted.secrets[&name].clone());
        }
        Step::WriteEnv { env_file, .. } => {
            found.files.insert(env_file.clone(), wanted.env_files[&env_file].clone());
        }
        Step::Start(unit) | Step::Restart(unit) => {
            let mut new = settled(wanted).units.into_iter().find(|found| found.unit == unit).unwrap();
            // A daemon starts with what its file says.
            new.config = EnvFile::parse(&found.files[&new.env_file].0).config;
            found.units.retain(|found| found.unit != unit);
            found.units.push(new);
        }
    }
}
