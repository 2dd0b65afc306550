//! Takes the steps. One that fails never keeps another daemon from its own.

use crate::diff::{Found, FoundUnit, Step};
use crate::files;
use crate::manager::{Service, ServiceManager};
use crate::observe::chain;
use crate::plan::{Daemon, FileText, Wanted};
use crate::units::{Kind, UnitName};
use futures::future::join_all;
use std::collections::BTreeMap;
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

/// Takes all steps: units that go, then secrets, then each daemon's own steps side by side, so that a keeper that
/// takes long to stop holds up no other. Gives what went wrong, one line each.
pub async fn apply_steps(
    manager: &dyn ServiceManager,
    steps: &[Step],
    wanted: &Wanted,
    data_dir: &Path,
) -> Vec<String> {
    let applier = Applier { manager, wanted, data_dir };
    let mut going: BTreeMap<&UnitName, Vec<&Step>> = BTreeMap::new();
    let mut coming: Vec<(&Daemon, Vec<&Step>)> = Vec::new();
    let mut errors = Vec::new();
    let mut keepers_blocked = false;
    for step in steps {
        match step {
            Step::Stop(unit) | Step::Forget { unit, .. } => going.entry(unit).or_default().push(step),
            Step::WriteSecret(_) => {}
            Step::WriteEnv { unit, .. } | Step::Start(unit) | Step::Restart(unit) => {
                let Some(daemon) = wanted.daemons.iter().find(|daemon| daemon.unit == *unit) else { continue };
                match coming.iter_mut().find(|(known, _)| known.unit == *unit) {
                    Some((_, steps)) => steps.push(step),
                    None => coming.push((daemon, vec![step])),
                }
            }
        }
    }
    errors.extend(join_all(going.values().map(|steps| applier.take_all(steps))).await.into_iter().flatten());
    for step in steps.iter().filter(|step| matches!(step, Step::WriteSecret(_))) {
        if let Err(error) = applier.take(step).await {
            keepers_blocked = true;
            errors.push(error);
        }
    }
    // A keeper without its password would only fail, and one that runs is better left alone.
    let ready = coming.iter().filter(|(daemon, _)| !(keepers_blocked && daemon.kind == Kind::Keeper));
    errors.extend(join_all(ready.map(|(_, steps)| applier.take_all(steps))).await.into_iter().flatten());
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
                warn!(?step, error, "a step was not taken, will try again");
                return Some(error);
            }
        }
        None
    }

    async fn take(&self, step: &Step) -> Result<(), String> {
        info!(?step, "apply");
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

/// What is wrong with daemons that do not run, one line for all.
pub fn failed_daemons(units: &[FoundUnit]) -> Option<String> {
    let lines: Vec<String> = units
        .iter()
        .filter(|unit| !unit.problem.is_empty())
        .map(|unit| format!("{} does not run: {}", unit.unit, unit.problem))
        .collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}
