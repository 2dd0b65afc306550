//! Takes the steps. One that fails never keeps another daemon from its own.

use crate::diff::{Found, FoundUnit, Step};
use crate::files;
use crate::manager::{Service, ServiceManager};
use crate::observe::chain;
use crate::plan::{Daemon, FileText, Wanted};
use crate::units::{Kind, UnitName};
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tracing::{info, warn};

/// Reads what is on the node: the units, and those files that the plan names.
///
/// # Errors
/// The service manager does not answer. A file that can't be read counts as missing and is written anew.
pub async fn observe_node(manager: &dyn ServiceManager, wanted: &Wanted, data_dir: &Path) -> Result<Found, String> {
    let units = manager.list().await.map_err(|error| chain(&error))?;
    let names = wanted.secrets.keys().chain(wanted.env_files.keys());
    let read = |name: &String| Some((name.clone(), FileText(std::fs::read_to_string(data_dir.join(name)).ok()?)));
    Ok(Found { units, files: names.filter_map(read).collect() })
}

/// Takes all steps: units that go, then files, then starts and restarts side by side, so that a keeper that takes
/// long to stop holds up no other. Gives what went wrong, one line each.
pub async fn apply_steps(
    manager: &dyn ServiceManager,
    steps: &[Step],
    wanted: &Wanted,
    data_dir: &Path,
) -> Vec<String> {
    let applier = Applier { manager, wanted, data_dir };
    let mut errors = Vec::new();
    // Stop and Forget of one unit, in this order.
    let mut going: BTreeMap<&UnitName, Vec<&Step>> = BTreeMap::new();
    for step in steps {
        if let Step::Stop(unit) | Step::Forget { unit, .. } = step {
            going.entry(unit).or_default().push(step);
        }
    }
    errors.extend(join_all(going.values().map(|steps| applier.take_all(steps))).await.into_iter().flatten());
    let mut blocked: BTreeSet<&UnitName> = BTreeSet::new();
    for step in steps {
        let concerned: Vec<&UnitName> = match step {
            Step::WriteEnv { unit, .. } => vec![unit],
            // A keeper without its password would only fail, and one that runs is better left alone.
            Step::WriteSecret(_) => wanted.daemons.iter().filter(|d| d.kind == Kind::Keeper).map(|d| &d.unit).collect(),
            _ => continue,
        };
        if let Some(error) = applier.take_all(&[step]).await {
            blocked.extend(concerned);
            errors.push(error);
        }
    }
    let starts = steps.iter().filter(|step| match step {
        Step::Start(unit) | Step::Restart(unit) => !blocked.contains(unit),
        _ => false,
    });
    let starts: Vec<[&Step; 1]> = starts.map(|step| [step]).collect();
    errors.extend(join_all(starts.iter().map(|step| applier.take_all(step))).await.into_iter().flatten());
    errors
}

struct Applier<'a> {
    manager: &'a dyn ServiceManager,
    wanted: &'a Wanted,
    data_dir: &'a Path,
}

impl Applier<'_> {
    /// Steps of one unit, each of which needs the one before.
    async fn take_all(&self, steps: &[&Step]) -> Option<String> {
        for step in steps {
            if let Err(error) = self.take(step).await {
                warn!(step = shown(step), error, "a step was not taken, will try again");
                return Some(error);
            }
        }
        None
    }

    async fn take(&self, step: &Step) -> Result<(), String> {
        info!(step = shown(step), "apply");
        let done = match step {
            Step::Stop(unit) => self.manager.stop(unit).await,
            Step::Forget { unit, env_file } => match self.manager.remove(unit).await {
                Ok(()) => files::delete(&self.data_dir.join(env_file)).map_err(Into::into),
                error => error,
            },
            Step::WriteSecret(name) => self.write(name, self.wanted.secrets.get(name)).await,
            Step::WriteEnv { unit: _, env_file } => self.write(env_file, self.wanted.env_files.get(env_file)).await,
            Step::Start(unit) => match self.service(unit) {
                Some(service) => self.manager.start(&service).await,
                None => Ok(()),
            },
            Step::Restart(unit) => match self.service(unit) {
                Some(service) => self.manager.restart(&service).await,
                None => Ok(()),
            },
        };
        done.map_err(|error| chain(&error))
    }

    async fn write(&self, name: &str, text: Option<&FileText>) -> Result<(), crate::manager::ManagerError> {
        let Some(FileText(text)) = text else { return Ok(()) };
        Ok(files::replace(self.data_dir.join(name), text.clone().into_bytes()).await?)
    }

    fn service(&self, unit: &UnitName) -> Option<Service> {
        let daemon = self.wanted.daemons.iter().find(|daemon| daemon.unit == *unit)?;
        let Daemon { unit, kind, program, environment: _, env_file, config: _ } = daemon.clone();
        Some(Service { unit, kind, program, env_file })
    }
}

/// A step in words, for logs.
fn shown(step: &Step) -> String {
    match step {
        Step::Stop(unit) => format!("stop {unit}"),
        Step::Forget { unit, env_file } => format!("forget {unit} and delete {env_file}"),
        Step::WriteSecret(name) => format!("write the secret {name}"),
        Step::WriteEnv { unit, env_file } => format!("write {env_file} of {unit}"),
        Step::Start(unit) => format!("start {unit}"),
        Step::Restart(unit) => format!("restart {unit}"),
    }
}

/// What is wrong with daemons that do not run, one line for all.
pub fn failed_daemons(units: &[FoundUnit]) -> Option<String> {
    let lines: Vec<String> = units
        .iter()
        .filter(|unit| !unit.problem.is_empty())
        .map(|unit| format!("{} does not run: {}", unit.unit, unit.problem))
        .collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}
