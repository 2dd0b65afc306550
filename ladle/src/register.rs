//! The store's part of `addnodes`: stolon clusters, clovers, layouts, and last the revision that makes them visible.

use crate::check::check;
use crate::cluster::{Loaded, Versioned, load_existing, unchanged, write_batches};
use crate::context::Context;
use crate::error::Error;
use crate::operation::{Operation, operation_key};
use crate::plan::{Current, Plan, PlanError, group_name, plan_addnodes};
use chrono::{DateTime, Utc};
use model::layout::Document;
use model::stolon::keys::{DEFAULT_PREFIX, Keys};
use model::stolon::{ClusterData, KeeperInfo};
use model::{CloverId, NodeName, RepGroupName};
use store::lock::LockError;
use store::{Compare, Entry, Lock, Op};

/// What an `addnodes` with these nodes has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing was done yet.
    Begin(Plan),
    /// An earlier run was killed before the layouts became visible.
    Register(Plan),
    /// The layouts are visible; groups may be missing.
    Attach,
}

/// Decides where an `addnodes` stands.
///
/// # Errors
/// The nodes can't be placed, or another operation is unfinished.
pub fn plan_step(loaded: &Loaded, nodes: &[NodeName]) -> Result<Step, Error> {
    let current = loaded.current();
    let Some(Versioned { doc: operation, .. }) = &loaded.operation else {
        return Ok(Step::Begin(plan_checked(loaded, &current, nodes)?));
    };
    if !operation.is_about(nodes) {
        return Err(refuse_other(operation, &current, nodes));
    }
    if current.revision.generation >= operation.generation {
        return Ok(Step::Attach);
    }
    // The recorded order: it decides which nodes form a clover.
    Ok(Step::Register(plan_checked(loaded, &current, &operation.nodes)?))
}

fn refuse_other(operation: &Operation, current: &Current, nodes: &[NodeName]) -> Error {
    let registered = |node: &&NodeName| current.layouts.contains_key(*node) && !operation.nodes.contains(*node);
    match nodes.iter().find(registered) {
        Some(node) => PlanError::Registered(node.clone()).into(),
        None => operation.unfinished(),
    }
}

/// Plans, and has the plan's outcome judged before anybody acts on it.
fn plan_checked(loaded: &Loaded, current: &Current, nodes: &[NodeName]) -> Result<Plan, Error> {
    let (spec, use_proxy) = (&loaded.spec.doc.ladle_spec, loaded.spec.doc.cluster_spec.use_proxy);
    let plan = plan_addnodes(spec, use_proxy, current, nodes)?;
    match check(spec, use_proxy, &current.clone().after(&plan)).first() {
        None => Ok(plan),
        Some(problem) => Err(Error::Layout(problem.clone())),
    }
}

/// What the caller brings in from outside.
#[derive(Clone, Copy, Debug)]
pub struct Outside {
    /// Overwrite stolon data that lies under a new group's name.
    pub force: bool,
    /// The time that new cluster data bears.
    pub now: DateTime<Utc>,
}

/// Brings an `addnodes` to the point where the layouts are visible. Can be killed and run again at any point.
///
/// # Errors
/// The store failed, someone else wrote, or stolon data is in the way.
pub async fn register(ctx: &Context, lock: &Lock, nodes: &[NodeName], outside: Outside) -> Result<(), Error> {
    let loaded = load_existing(ctx).await?;
    match plan_step(&loaded, nodes)? {
        Step::Attach => Ok(()),
        Step::Begin(plan) => {
            make_room(ctx, lock, &plan, outside.force).await?;
            begin(ctx, lock, &loaded, &plan).await?;
            write(ctx, lock, &plan, outside).await
        }
        Step::Register(plan) => write(ctx, lock, &plan, outside).await,
    }
}

fn stolon_keys(group: &RepGroupName) -> Keys {
    Keys::new(DEFAULT_PREFIX, group)
}

/// Before the operation is recorded, stolon data under a new group's name is a stranger's; afterwards it is ours.
async fn make_room(ctx: &Context, lock: &Lock, plan: &Plan, force: bool) -> Result<(), Error> {
    for group in &plan.groups {
        let keys = stolon_keys(&group.name);
        let prefix = format!("{}/", keys.base());
        let found = ctx.store.list(&prefix).await?.entries;
        if found.is_empty() {
            continue;
        }
        refuse_keepers(group.name.as_str(), &keys, &found)?;
        // Records of other processes vanish by themselves; only cluster data decides.
        let has_data = found.iter().any(|entry| entry.key == keys.clusterdata());
        if has_data && !force {
            return Err(Error::Refused(format!(
                "stolon data of a cluster {} exists in the store; make sure that it is not in use, then add --force to overwrite it",
                group.name
            )));
        }
        let writes = found.into_iter().map(|e| (Compare::Unchanged(e.key.clone(), e.mod_revision), Op::Delete(e.key)));
        write_batches(lock, &[], writes.collect()).await?;
    }
    Ok(())
}

/// A living keeper that is in a stolon cluster has data, which new cluster data of that name would have it give up.
/// No `force` helps: the record vanishes by itself when the keeper is stopped.
fn refuse_keepers(group: &str, keys: &Keys, found: &[Entry]) -> Result<(), Error> {
    let prefix = format!("{}/", keys.keepers_info());
    for entry in found {
        let Some(uid) = entry.key.strip_prefix(&prefix) else { continue };
        // A record that can't be read may be that of any keeper.
        let idle = serde_json::from_slice(&entry.value).is_ok_and(|info: KeeperInfo| info.cluster_uid.is_empty());
        if !idle {
            return Err(Error::Refused(format!(
                "keeper {uid} of an earlier group {group} still runs; stop the bowl of its node and move its data \
                 directory away, or restore etcd from a backup"
            )));
        }
    }
    Ok(())
}

async fn begin(ctx: &Context, lock: &Lock, loaded: &Loaded, plan: &Plan) -> Result<(), Error> {
    let id = uuid::Uuid::new_v4().to_string();
    let operation = Operation::addnodes(id, &plan.nodes, plan.revision.generation);
    let key = operation_key(&ctx.keys);
    let conditions = vec![Compare::Absent(key.clone()), unchanged(ctx.keys.revision(), Some(&loaded.revision))];
    lock.write(conditions, vec![Op::put(key, operation.to_bytes())]).await?;
    Ok(())
}

async fn write(ctx: &Context, lock: &Lock, plan: &Plan, outside: Outside) -> Result<(), Error> {
    let loaded = load_existing(ctx).await?;
    let spec = &loaded.spec.doc.cluster_spec.stolon_spec;
    for group in &plan.groups {
        let data = ClusterData::new(&stolon::access::random_uid(), spec.clone(), outside.now.into());
        init_stolon_if_absent(lock, &group.name, &data).await?;
    }
    let guard = [
        unchanged(ctx.keys.revision(), Some(&loaded.revision)),
        unchanged(operation_key(&ctx.keys), loaded.operation.as_ref()),
    ];
    write_batches(lock, &guard, documents(ctx, &loaded, plan)).await?;
    let revision = Op::put(ctx.keys.revision(), plan.revision.to_bytes());
    lock.write(guard.to_vec(), vec![revision]).await?;
    Ok(())
}

fn documents(ctx: &Context, loaded: &Loaded, plan: &Plan) -> Vec<(Compare, Op)> {
    let layouts = plan.layouts.iter().map(|(node, layout)| {
        let key = ctx.keys.layout(node);
        (unchanged(key.clone(), loaded.layouts.get(node)), Op::put(key, layout.to_bytes()))
    });
    let clovers = plan.clovers.iter().map(|(id, clover)| {
        let key = ctx.keys.clover(*id);
        (unchanged(key.clone(), loaded.clovers.get(id)), Op::put(key, clover.to_bytes()))
    });
    layouts.chain(clovers).collect()
}

/// Makes a group's stolon cluster unless there is one.
///
/// # Errors
/// The store failed or the lock was lost.
pub async fn init_stolon_if_absent(lock: &Lock, group: &RepGroupName, data: &ClusterData) -> Result<(), Error> {
    let key = stolon_keys(group).clusterdata();
    let write = Op::put(key.clone(), stolon::access::encode(data));
    match lock.write(vec![Compare::Absent(key)], vec![write]).await {
        Ok(_) | Err(LockError::Conflict) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The groups of some clovers in the order in which they are numbered: clover by clover, member by member.
pub fn groups_in_order<'a>(
    current: &'a Current,
    wanted: impl Fn(&NodeName) -> bool + 'a,
) -> impl Iterator<Item = RepGroupName> + 'a {
    let members =
        |(id, clover): (&'a CloverId, &'a model::layout::CloverDoc)| clover.nodes.iter().map(move |node| (*id, node));
    current
        .clovers
        .iter()
        .flat_map(members)
        .filter(move |(_, node)| wanted(node))
        .map(|(id, node)| group_name(id, node))
}

/// Forgets the operation: everything is done.
///
/// # Errors
/// The store failed or the lock was lost.
pub async fn finish(ctx: &Context, lock: &Lock) -> Result<(), Error> {
    let key = operation_key(&ctx.keys);
    if let Some(entry) = ctx.store.get(&key).await? {
        lock.write(vec![Compare::Unchanged(key.clone(), entry.mod_revision)], vec![Op::Delete(key)]).await?;
    }
    Ok(())
}
