//! `init`: makes a cluster in the store, without nodes.

use crate::cluster::{Loaded, load, unchanged};
use crate::context::{Context, release};
use crate::error::Error;
use crate::plan::Current;
use crate::report::Progress;
use crate::wait::earlier_daemons;
use model::Generation;
use model::clusterspec::Password;
use model::layout::{Document, FORMAT_VERSION, NodeStatus, SpecDoc};
use model::spec::{CheckedSpec, InitSpec};
use store::{Compare, Lock, Op};

/// How to make a cluster.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Overwrite the specification of a cluster that exists and has no nodes.
    pub yes: bool,
}

/// Writes the documents of a new cluster in one transaction under the metadata lock. An existing cluster is
/// overwritten only with `yes`, and never while it has nodes: their data hangs on it.
///
/// # Errors
/// The store failed, or the cluster exists.
pub async fn run(ctx: &Context, spec: &CheckedSpec, options: Options, progress: &dyn Progress) -> Result<(), Error> {
    let lock = ctx.lock(progress).await?;
    let result = run_locked(ctx, &lock, spec, options, progress).await;
    release(lock).await;
    result
}

async fn run_locked(
    ctx: &Context,
    lock: &Lock,
    spec: &CheckedSpec,
    options: Options,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let existing = load(&ctx.store, &ctx.keys).await?;
    if let Some(loaded) = &existing {
        if !options.yes {
            return Err(Error::Refused(format!(
                "cluster {} exists already; add --yes to overwrite its specification, or choose another --cluster-name",
                ctx.cluster
            )));
        }
        refuse_nodes(ctx, loaded)?;
        progress.warn(&format!("overwriting the specification of cluster {}", ctx.cluster));
    } else {
        refuse_remains(ctx).await?;
        refuse_earlier_daemons(ctx).await?;
    }
    // Only now: nobody minds the details of a specification that is refused as a whole.
    for warning in &spec.warnings {
        progress.warn(warning);
    }
    let (conditions, writes) = documents(ctx, &spec.spec, existing.as_ref());
    lock.write(conditions, writes).await?;
    progress.info(&format!("Cluster {} is initialised", ctx.cluster));
    Ok(())
}

fn refuse_nodes(ctx: &Context, loaded: &Loaded) -> Result<(), Error> {
    if loaded.layouts.is_empty() && loaded.repgroups.is_empty() && loaded.operation.is_none() {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "cluster {} has nodes, so it can't be initialised again; use `shardmanctl update` to change its specification, \
         or remove its nodes first",
        ctx.cluster
    )))
}

/// Without a specification there is no cluster, but layouts and groups would still concern data on nodes.
async fn refuse_remains(ctx: &Context) -> Result<(), Error> {
    for prefix in [ctx.keys.layouts(), ctx.keys.repgroups()] {
        if let Some(entry) = ctx.store.list(&prefix).await?.entries.first() {
            return Err(Error::Refused(format!(
                "cluster {} has no specification but there is {} in the store; restore etcd from a backup, or choose \
                 another --cluster-name",
                ctx.cluster, entry.key
            )));
        }
    }
    Ok(())
}

/// A store that was wiped and made anew knows nothing of the data on nodes, but living bowls still tell of it.
async fn refuse_earlier_daemons(ctx: &Context) -> Result<(), Error> {
    let prefix = ctx.keys.statuses();
    let entries = ctx.store.list(&prefix).await?.entries;
    // A status that can't be read is that of a node with a past until someone has looked.
    let used = |entry: &store::Entry| {
        NodeStatus::parse("status", &entry.value).map_or(true, |status| status.generation > Generation(0))
    };
    let nodes: Vec<String> = entries.iter().filter(|e| used(e)).map(|e| e.key[prefix.len()..].to_owned()).collect();
    if nodes.is_empty() { Ok(()) } else { Err(Error::Refused(earlier_daemons(&nodes))) }
}

fn documents(ctx: &Context, spec: &InitSpec, existing: Option<&Loaded>) -> (Vec<Compare>, Vec<Op>) {
    let (spec_key, revision_key) = (ctx.keys.spec(), ctx.keys.revision());
    // Counters of an earlier life go on: numbers of clovers and groups are never used again.
    let revision = existing.map_or_else(|| Current::empty().revision, |loaded| loaded.revision.doc.clone());
    let conditions = vec![
        unchanged(spec_key.clone(), existing.map(|loaded| &loaded.spec)),
        unchanged(revision_key.clone(), existing.map(|loaded| &loaded.revision)),
    ];
    let writes = vec![Op::put(spec_key, spec_document(spec).to_bytes()), Op::put(revision_key, revision.to_bytes())];
    (conditions, writes)
}

/// The document that `init` stores.
pub fn spec_document(spec: &InitSpec) -> SpecDoc {
    SpecDoc {
        format_version: FORMAT_VERSION,
        ladle_spec: spec.ladle_spec.clone(),
        cluster_spec: spec.cluster_spec.clone(),
    }
}

/// The document as `--dry-run` shows it: passwords are hidden.
pub fn shown(spec: &InitSpec) -> SpecDoc {
    let mut document = spec_document(spec);
    for password in [&mut document.cluster_spec.pg_su_password, &mut document.cluster_spec.pg_repl_password] {
        if !password.is_empty() {
            *password = Password::from("***");
        }
    }
    document
}
