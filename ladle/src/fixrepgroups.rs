//! `fixrepgroups`: finishes what an interrupted command has left undone. Run twice, it does nothing the second time.

use crate::addnodes::{self, Options, add_groups, missing_groups};
use crate::cluster::{Loaded, load_existing};
use crate::context::{Context, release};
use crate::error::Error;
use crate::register::init_stolon_if_absent;
use crate::repgroup;
use crate::report::Progress;
use model::RepGroupName;
use model::stolon::ClusterData;
use store::Lock;

/// Finishes an unfinished `addnodes`, then adds every group that is laid out and missing.
///
/// # Errors
/// As for `addnodes`.
pub async fn run(ctx: &Context, options: &Options, progress: &dyn Progress) -> Result<(), Error> {
    load_existing(ctx).await?;
    let lock = ctx.lock(progress).await?;
    let result = run_locked(ctx, &lock, options, progress).await;
    release(lock).await;
    result
}

async fn run_locked(ctx: &Context, lock: &Lock, options: &Options, progress: &dyn Progress) -> Result<(), Error> {
    let loaded = load_existing(ctx).await?;
    if let Some(operation) = &loaded.operation {
        addnodes::run_locked(ctx, lock, &operation.doc.nodes, options, progress).await?;
    } else {
        repgroup::recover(ctx, lock, progress).await?;
    }
    let loaded = load_existing(ctx).await?;
    let groups = missing_groups(&loaded, |_| true);
    if groups.is_empty() {
        progress.info("All replication groups are part of the cluster");
        return Ok(());
    }
    init_missing(lock, &loaded, &groups).await?;
    add_groups(ctx, lock, &loaded, &groups, options.timeout, progress).await
}

async fn init_missing(lock: &Lock, loaded: &Loaded, groups: &[RepGroupName]) -> Result<(), Error> {
    let spec = &loaded.spec.doc.cluster_spec.stolon_spec;
    for group in groups {
        let uid = stolon::access::random_uid();
        let data = ClusterData::new(&uid, spec.clone(), chrono::Utc::now().into());
        init_stolon_if_absent(lock, group, &data).await?;
    }
    Ok(())
}
