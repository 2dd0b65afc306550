//! One pass: what the store says becomes what runs on this node.

use crate::applied::Applied;
use crate::apply::{apply_steps, failed_daemons, observe_node};
use crate::diff::{FoundUnit, deferred, keep_passwords, plan_steps};
use crate::identity::default_data_dir;
use crate::manager::ServiceManager;
use crate::observe::{Hold, Intent, Orders, chain, interpret};
use crate::plan::{Facts, plan_wanted};
use model::keys::ClusterKeys;
use model::layout::{DaemonStatus, FORMAT_VERSION, NodeStatus};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::View;
use tokio::sync::watch;
use tracing::{error, info, warn};

/// Opens the service manager of a data directory once that is known.
pub type OpenManager = Box<dyn Fn(&Path) -> Result<Arc<dyn ServiceManager>, String> + Send + Sync>;

/// The node's data directory with its daemons.
#[derive(Clone, Debug)]
struct Host {
    data_dir: PathBuf,
    manager: Arc<dyn ServiceManager>,
}

/// Facts of the node that don't depend on the data directory, which may be known later.
pub struct NodeConfig {
    /// With an empty data directory when only the specification tells it.
    pub facts: Facts,
    /// The operator named the data directory.
    pub fixed_data_dir: bool,
    /// Opens the data directory.
    pub open: OpenManager,
}

/// The node as bowl sees it.
pub struct Node {
    config: NodeConfig,
    keys: ClusterKeys,
    host: Option<Host>,
    applied: Applied,
    /// What went wrong in the last pass; empty when nothing did.
    problem: String,
    /// The last reason to leave everything as it is, to say it once only.
    said: Option<Hold>,
}

impl Node {
    /// A node whose directory is not opened yet.
    pub fn new(config: NodeConfig) -> Self {
        let keys = ClusterKeys::new(&config.facts.cluster);
        let applied = Applied::nothing(&config.facts.cluster, &config.facts.node);
        Node { config, keys, host: None, applied, problem: String::new(), said: None }
    }

    /// Opens the data directory: daemons that run are taken over, daemons that are to run are started.
    ///
    /// # Errors
    /// It can't be used, or is another bowl's.
    pub fn open(&mut self, data_dir: &Path) -> Result<(), String> {
        let Facts { cluster, node, .. } = &self.config.facts;
        let applied = Applied::read(data_dir, cluster, node).map_err(|error| chain(&error))?;
        let manager = (self.config.open)(data_dir)?;
        self.applied = applied;
        self.host = Some(Host { data_dir: data_dir.to_owned(), manager });
        self.config.facts.data_dir = data_dir.to_owned();
        Ok(())
    }

    /// The service manager, once the directory is known.
    pub fn manager(&self) -> Option<Arc<dyn ServiceManager>> {
        self.host.as_ref().map(|host| host.manager.clone())
    }

    /// Wakes when a daemon's state changes.
    pub fn changes(&self) -> Option<watch::Receiver<u64>> {
        self.host.as_ref().map(|host| host.manager.changes())
    }

    /// Observes, plans and applies. True when there is nothing to try again.
    pub async fn pass(&mut self, view: &View) -> bool {
        let problem = match interpret(view, &self.keys, &self.config.facts.node, self.applied.generation) {
            Intent::Apply(orders) => {
                self.said = None;
                self.obey(&orders).await
            }
            Intent::Hold(hold) => return self.hold(hold),
        };
        let (done, problem) = match problem {
            Ok(unheeded) => (true, unheeded.unwrap_or_default()),
            Err(problem) => (false, problem),
        };
        if problem != self.problem && !problem.is_empty() {
            let next =
                if done { "the specification is not applied" } else { "the layout is not applied, will try again" };
            error!(problem, "{next}");
        }
        self.problem = problem;
        done
    }

    /// Leaves everything as it is. Only a change of the store helps, so nothing is tried again.
    fn hold(&mut self, hold: Hold) -> bool {
        if self.said.as_ref() != Some(&hold) {
            match &hold {
                Hold::Idle(reason) => info!(reason, "nothing to apply"),
                Hold::Problem(problem) => error!(problem, "daemons stay as they are"),
            }
        }
        self.problem = match &hold {
            Hold::Idle(_) => String::new(),
            Hold::Problem(problem) => problem.clone(),
        };
        self.said = Some(hold);
        true
    }

    /// Gives what of the specification is not heeded, for good or until it changes.
    async fn obey(&mut self, orders: &Orders) -> Result<Option<String>, String> {
        self.open_for(orders)?;
        let Some(Host { data_dir, manager }) = self.host.clone() else { return Ok(None) };
        let mut wanted =
            plan_wanted(&orders.layout, &orders.spec, &self.config.facts).map_err(|error| chain(&error))?;
        let found = observe_node(manager.as_ref(), &wanted, &data_dir).await?;
        let unheeded = keep_passwords(&mut wanted, &found);
        let steps = plan_steps(&wanted, &found, &self.config.facts.cluster);
        for (unit, variables) in deferred(&wanted, &found, &steps) {
            warn!(%unit, ?variables, "a changed setting takes effect at the keeper's next start");
        }
        let errors = apply_steps(manager.as_ref(), &steps, &wanted, &data_dir).await;
        if !errors.is_empty() {
            return Err(errors.join("; "));
        }
        self.note_applied(orders, unheeded.is_none(), &data_dir).await?;
        Ok(unheeded)
    }

    async fn note_applied(&mut self, orders: &Orders, whole_spec: bool, data_dir: &Path) -> Result<(), String> {
        let mut applied = self.applied.clone();
        applied.generation = orders.layout.generation;
        if whole_spec {
            applied.spec_revision = orders.spec_revision;
        }
        if applied != self.applied {
            applied.write(data_dir).await.map_err(|error| chain(&error))?;
            info!(generation = applied.generation.0, spec_revision = applied.spec_revision, "applied");
            self.applied = applied;
        }
        Ok(())
    }

    /// Opens the directory that the specification names, or checks that it still is the one that is open.
    fn open_for(&mut self, orders: &Orders) -> Result<(), String> {
        if self.config.fixed_data_dir && self.host.is_some() {
            return Ok(());
        }
        let named = PathBuf::from(&orders.spec.ladle_spec.data_dir);
        if !self.config.fixed_data_dir && !named.is_absolute() {
            return Err(format!("LadleSpec.DataDir \"{}\" is not an absolute path", named.display()));
        }
        let wanted = named.join(self.config.facts.cluster.as_str());
        match &self.host {
            // New, empty directories for keepers would look like a loss of all data.
            Some(host) if host.data_dir != wanted => Err(format!(
                "LadleSpec.DataDir asks for {}, this node's data is in {}; it can't be moved, set DataDir back",
                wanted.display(),
                host.data_dir.display()
            )),
            Some(_) => Ok(()),
            None => {
                let directory = if self.config.fixed_data_dir { self.config.facts.data_dir.clone() } else { wanted };
                self.open(&directory)?;
                if !self.config.fixed_data_dir && directory != default_data_dir(&self.config.facts.cluster) {
                    warn!(
                        directory = %directory.display(),
                        "only the store tells this data directory: if this node starts while etcd is out of reach, \
                         its daemons wait; give --data-dir to start them at once"
                    );
                }
                if orders.layout.generation < self.applied.generation {
                    return Err(format!(
                        "the store's layout has generation {}, this node has applied {}",
                        orders.layout.generation, self.applied.generation
                    ));
                }
                Ok(())
            }
        }
    }

    /// What the node tells the cluster of itself; without the time.
    pub async fn status(&self) -> NodeStatus {
        let units = match &self.host {
            Some(host) => host.manager.list().await.unwrap_or_else(|error| {
                warn!(%error, "the service manager does not answer");
                Vec::new()
            }),
            None => Vec::new(),
        };
        let units: Vec<FoundUnit> =
            units.into_iter().filter(|unit| unit.cluster == self.config.facts.cluster).collect();
        let problems = [Some(self.problem.clone()).filter(|text| !text.is_empty()), failed_daemons(&units)];
        NodeStatus {
            format_version: FORMAT_VERSION,
            node: self.config.facts.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: self.applied.generation,
            spec_revision: self.applied.spec_revision,
            last_error: problems.into_iter().flatten().collect::<Vec<_>>().join("; "),
            time: String::new(),
            daemons: units.into_iter().map(describe).collect(),
        }
    }
}

fn describe(unit: FoundUnit) -> DaemonStatus {
    DaemonStatus { unit: unit.unit.to_string(), state: unit.state.word().to_owned(), restarts: unit.restarts }
}
