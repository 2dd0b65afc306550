//! `addnodes` from end to end.

use crate::cluster::{Loaded, load_existing};
use crate::context::{Context, release};
use crate::error::Error;
use crate::group::Place;
use crate::plan::Plan;
use crate::register::{self, Outside, Step, groups_in_order, plan_step, register};
use crate::report::{Progress, item};
use crate::show::names;
use crate::{repgroup, wait};
use model::layout::RepGroupState;
use model::{NodeName, RepGroupName};
use std::time::Duration;
use store::Lock;

/// How to add nodes.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Overwrite stolon data that lies under a new group's name.
    pub force: bool,
    /// How long the stolon daemons of all new groups may take to start.
    pub timeout: Duration,
}

/// Default of [`Options::timeout`]: a base backup of an empty server takes seconds, slow disks take minutes.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

impl Default for Options {
    fn default() -> Self {
        Options { force: false, timeout: DEFAULT_TIMEOUT }
    }
}

/// What adding these nodes would write; `None` when an earlier run has written it and only groups may be missing.
///
/// # Errors
/// As for [`run`]; nothing is changed.
pub async fn dry_run(ctx: &Context, nodes: &[NodeName]) -> Result<Option<Plan>, Error> {
    match plan_step(&load_existing(ctx).await?, nodes)? {
        Step::Begin(plan) | Step::Register(plan) => Ok(Some(plan)),
        Step::Attach => Ok(None),
    }
}

/// Adds nodes and registers their replication groups. Killed at any point, the same call finishes the work.
///
/// # Errors
/// The nodes can't be placed, a bowl or a group is not ready in time, the store or a server failed.
pub async fn run(ctx: &Context, nodes: &[NodeName], options: &Options, progress: &dyn Progress) -> Result<(), Error> {
    // Slips in the list must not wait for another command to end.
    plan_step(&load_existing(ctx).await?, nodes)?;
    let lock = ctx.lock(progress).await?;
    let result = run_locked(ctx, &lock, nodes, options, progress).await;
    release(lock).await;
    result?;
    progress.info(&format!("Successfully added nodes {} to the cluster", names(nodes)));
    Ok(())
}

pub(crate) async fn run_locked(
    ctx: &Context,
    lock: &Lock,
    nodes: &[NodeName],
    options: &Options,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let loaded = load_existing(ctx).await?;
    plan_step(&loaded, nodes)?;
    progress.info("Checking if shardmand on all nodes have applied current cluster configuration");
    // Who gives the daemons less time than bowls usually have does not want to wait longer for these either.
    let patient = Context { bowl_patience: ctx.bowl_patience.min(options.timeout), ..ctx.clone() };
    wait::bowls(&patient, &loaded, nodes, progress).await?;
    repgroup::recover(ctx, lock, progress).await?;
    progress.info("Initting Stolon instances...");
    let now = chrono::Utc::now();
    register(ctx, lock, nodes, Outside { force: options.force, now }).await?;
    let loaded = load_existing(ctx).await?;
    let groups = missing_groups(&loaded, |node| nodes.contains(node));
    add_groups(ctx, lock, &loaded, &groups, options.timeout, progress).await?;
    register::finish(ctx, lock).await
}

/// The groups that are laid out and not part of the cluster yet, in the order in which they are numbered.
pub(crate) fn missing_groups(loaded: &Loaded, wanted: impl Fn(&NodeName) -> bool) -> Vec<RepGroupName> {
    let active =
        |name: &RepGroupName| loaded.repgroup(name).is_some_and(|(_, group)| group.doc.state == RepGroupState::Active);
    groups_in_order(&loaded.current(), wanted).filter(|name| !active(name)).collect()
}

/// Waits for the groups' daemons, then makes them part of the cluster one by one.
pub(crate) async fn add_groups(
    ctx: &Context,
    lock: &Lock,
    loaded: &Loaded,
    groups: &[RepGroupName],
    patience: Duration,
    progress: &dyn Progress,
) -> Result<(), Error> {
    progress.info("Waiting for Stolon daemons to start... make sure shardmand daemons are running on the nodes");
    let limit = wait::Limit::start(patience);
    for group in groups {
        let what = format!("Waiting for Stolon daemons of rg {group}");
        item(progress, &what, "success", wait::daemons(ctx, loaded, group, limit, progress)).await?;
    }
    progress.info("Adding repgroups...");
    for group in groups {
        repgroup::add(ctx, lock, &Place::own(group.clone()), progress).await?;
    }
    Ok(())
}
