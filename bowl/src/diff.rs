//! Wanted against found daemons: the steps between them. Pure.

use crate::envfile::EnvFile;
use crate::plan::{Daemon, FileText, Wanted};
use crate::units::{Kind, UnitName, is_awaited};
use model::ClusterName;
use std::collections::{BTreeMap, BTreeSet};

/// What a service manager says of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// The process lives.
    Running,
    /// About to be started.
    Starting,
    /// It ended or could not be started, and will be started again after a pause.
    Failed,
    /// It does not run and is not to.
    Stopped,
}

impl RunState {
    /// The word in a node's status.
    pub fn word(self) -> &'static str {
        match self {
            RunState::Running => "running",
            RunState::Starting => "starting",
            RunState::Failed => "failed",
            RunState::Stopped => "stopped",
        }
    }
}

/// A unit that the service manager knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundUnit {
    /// Its name.
    pub unit: UnitName,
    /// What it is.
    pub kind: Kind,
    /// Whose it is, from the unit's own record: names of clusters may be prefixes of each other.
    pub cluster: ClusterName,
    /// Its environment file in the data directory.
    pub env_file: String,
    /// The configuration that it was started with.
    pub config: String,
    /// Whether it is to run, also after a reboot.
    pub enabled: bool,
    /// What it does.
    pub state: RunState,
    /// How often it was restarted since bowl started.
    pub restarts: u32,
    /// Why it failed; empty when it did not.
    pub problem: String,
}

/// What was found on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Units of all clusters that the service manager shows.
    pub units: Vec<FoundUnit>,
    /// Files of the data directory that the plan names, as far as they can be read.
    pub files: BTreeMap<String, FileText>,
}

/// One small, repeatable act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Stop a daemon and see to it that it is not started again. Its data stays.
    Stop(UnitName),
    /// Forget a stopped unit and delete its environment file. Its data stays.
    Forget {
        /// The unit.
        unit: UnitName,
        /// Its environment file.
        env_file: String,
    },
    /// Replace the file of a secret.
    WriteSecret(String),
    /// Replace a daemon's environment file.
    WriteEnv {
        /// Whose.
        unit: UnitName,
        /// The file.
        env_file: String,
    },
    /// Start a daemon that does not run.
    Start(UnitName),
    /// Restart a daemon with its new environment.
    Restart(UnitName),
}

/// The steps from what was found to what is wanted, in order: first what is not wanted any more makes room, then
/// files, then daemons in the order of the plan.
pub fn plan_steps(wanted: &Wanted, found: &Found, cluster: &ClusterName) -> Vec<Step> {
    let ours: BTreeMap<&UnitName, &FoundUnit> =
        found.units.iter().filter(|unit| unit.cluster == *cluster).map(|unit| (&unit.unit, unit)).collect();
    let mut steps = Vec::new();
    for unit in ours.values().filter(|unit| !wanted.daemons.iter().any(|daemon| daemon.unit == unit.unit)) {
        steps.push(Step::Stop(unit.unit.clone()));
        steps.push(Step::Forget { unit: unit.unit.clone(), env_file: unit.env_file.clone() });
    }
    let changed = |name: &String, text: &FileText| found.files.get(name) != Some(text);
    for (name, _) in wanted.secrets.iter().filter(|(name, text)| changed(name, text)) {
        steps.push(Step::WriteSecret(name.clone()));
    }
    for daemon in &wanted.daemons {
        if wanted.env_files.get(&daemon.env_file).is_some_and(|text| changed(&daemon.env_file, text)) {
            steps.push(Step::WriteEnv { unit: daemon.unit.clone(), env_file: daemon.env_file.clone() });
        }
        steps.extend(plan_start(daemon, ours.get(&daemon.unit).copied()));
    }
    steps
}

/// Where a password is not the one that this node uses already, keeps the old one, and says so: PostgreSQL's roles
/// have it, and a keeper that was restarted with another one could not reach its own server.
pub fn keep_passwords(wanted: &mut Wanted, found: &Found) -> Option<String> {
    let mut kept = Vec::new();
    for (name, text) in &mut wanted.secrets {
        match found.files.get(name) {
            Some(old) if old != text && !old.0.is_empty() => {
                text.clone_from(old);
                kept.push(name.as_str());
            }
            _ => {}
        }
    }
    let files = kept.join(" and ");
    (!kept.is_empty()).then(|| {
        format!("passwords can't be changed yet: the specification's differ from {files} on this node; set them back")
    })
}

/// Keepers that go on with an old environment though somebody waits for the new one: variables by unit.
pub fn deferred(wanted: &Wanted, found: &Found, steps: &[Step]) -> Vec<(UnitName, Vec<String>)> {
    let started = |unit: &UnitName| steps.iter().any(|s| matches!(s, Step::Start(u) | Step::Restart(u) if u == unit));
    let waiting = wanted.daemons.iter().filter(|daemon| !started(&daemon.unit)).filter_map(|daemon| {
        let old = EnvFile::parse(&found.files.get(&daemon.env_file)?.0).variables;
        let names = old.keys().chain(daemon.environment.keys()).collect::<BTreeSet<_>>().into_iter();
        let changed = |name: &&String| is_awaited(name) && old.get(*name) != daemon.environment.get(*name);
        let names: Vec<String> = names.filter(changed).cloned().collect();
        (!names.is_empty()).then(|| (daemon.unit.clone(), names))
    });
    waiting.collect()
}

fn plan_start(daemon: &Daemon, found: Option<&FoundUnit>) -> Option<Step> {
    match found {
        Some(unit) if unit.enabled && unit.state != RunState::Stopped => {
            // One that failed is the service manager's to try again; a pass must not undo its pauses.
            (unit.config != daemon.config).then(|| Step::Restart(daemon.unit.clone()))
        }
        _ => Some(Step::Start(daemon.unit.clone())),
    }
}
