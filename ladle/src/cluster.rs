//! Reading and writing the documents under `shardman/<cluster>/`.

use crate::context::Context;
use crate::error::Error;
use crate::operation::{Operation, operation_key};
use crate::plan::Current;
use model::keys::ClusterKeys;
use model::layout::{CloverDoc, Document, NodeLayout, RepGroupDoc, RevisionDoc, SpecDoc};
use model::{CloverId, NodeName, RepGroupId, RepGroupName};
use std::collections::BTreeMap;
use std::str::FromStr;
use store::{Compare, Entry, Lock, MAX_TXN_OPS, Op, SharedStore};

/// A document with the revision that compare-and-set compares.
#[derive(Clone, Debug, PartialEq)]
pub struct Versioned<T> {
    /// The document.
    pub doc: T,
    /// etcd's mod revision of its key.
    pub revision: i64,
}

/// All documents of a cluster, also those that the revision document does not make visible yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// Both specifications.
    pub spec: Versioned<SpecDoc>,
    /// Counters and the newest valid generation.
    pub revision: Versioned<RevisionDoc>,
    /// Clovers.
    pub clovers: BTreeMap<CloverId, Versioned<CloverDoc>>,
    /// Layouts.
    pub layouts: BTreeMap<NodeName, Versioned<NodeLayout>>,
    /// Replication groups.
    pub repgroups: BTreeMap<RepGroupId, Versioned<RepGroupDoc>>,
    /// The unfinished operation.
    pub operation: Option<Versioned<Operation>>,
}

impl Loaded {
    /// What is in force: without what an unfinished operation has written ahead.
    pub fn current(&self) -> Current {
        let revision = self.revision.doc.clone();
        let clovers = self.clovers.iter().filter(|(id, _)| id.0 < revision.clover_seq);
        let layouts = self.layouts.iter().filter(|(_, layout)| layout.doc.generation <= revision.generation);
        Current {
            clovers: clovers.map(|(id, clover)| (*id, clover.doc.clone())).collect(),
            layouts: layouts.map(|(node, layout)| (node.clone(), layout.doc.clone())).collect(),
            repgroups: self.repgroups.iter().map(|(id, group)| (*id, group.doc.clone())).collect(),
            revision,
        }
    }

    /// For commands that change layouts or groups: an unfinished operation has written ahead, and another generation
    /// would make half of it visible.
    ///
    /// # Errors
    /// An operation is unfinished.
    pub fn refuse_unfinished(&self) -> Result<(), Error> {
        self.operation.as_ref().map_or(Ok(()), |operation| Err(operation.doc.unfinished()))
    }

    /// The registration of a group.
    pub fn repgroup(&self, name: &RepGroupName) -> Option<(RepGroupId, &Versioned<RepGroupDoc>)> {
        self.repgroups.iter().find(|(_, group)| group.doc.stolon_name == *name).map(|(id, group)| (*id, group))
    }
}

/// Reads a cluster; `None` when it does not exist. Consistent only under the metadata lock.
///
/// # Errors
/// The store failed, or a document is unusable.
pub async fn load(store: &SharedStore, keys: &ClusterKeys) -> Result<Option<Loaded>, Error> {
    let Some(spec) = read(store, &keys.spec(), "the specification").await? else { return Ok(None) };
    let Some(revision) = read(store, &keys.revision(), "the revision").await? else {
        return Err(Error::Refused(format!(
            "{} is missing though the cluster exists; restore etcd from a backup",
            keys.revision()
        )));
    };
    Ok(Some(Loaded {
        spec,
        revision,
        clovers: list(store, &keys.clovers(), "clover", number(CloverId)).await?,
        layouts: list(store, &keys.layouts(), "the layout of", |name| Some(NodeName::from(name))).await?,
        repgroups: list(store, &keys.repgroups(), "replication group", number(RepGroupId)).await?,
        operation: read(store, &operation_key(keys), "the unfinished operation").await?,
    }))
}

/// Reads a cluster that must exist.
///
/// # Errors
/// Those of [`load`], or it does not exist.
pub async fn load_existing(ctx: &Context) -> Result<Loaded, Error> {
    load(&ctx.store, &ctx.keys).await?.ok_or_else(|| Error::NoCluster(ctx.cluster.clone()))
}

async fn read<T: Document>(store: &SharedStore, key: &str, what: &str) -> Result<Option<Versioned<T>>, Error> {
    store.get(key).await?.map(|entry| versioned(&entry, what)).transpose()
}

async fn list<I: Ord, T: Document>(
    store: &SharedStore,
    prefix: &str,
    what: &str,
    id: impl Fn(&str) -> Option<I>,
) -> Result<BTreeMap<I, Versioned<T>>, Error> {
    let mut documents = BTreeMap::new();
    for entry in store.list(prefix).await?.entries {
        let name = &entry.key[prefix.len()..];
        // A key that is none of ours must not stop every command.
        let Some(id) = id(name) else {
            tracing::warn!(key = entry.key, "skip a foreign key");
            continue;
        };
        documents.insert(id, versioned(&entry, &format!("{what} {name}"))?);
    }
    Ok(documents)
}

fn number<I>(make: impl Fn(u32) -> I) -> impl Fn(&str) -> Option<I> {
    move |text| u32::from_str(text).ok().map(&make)
}

fn versioned<T: Document>(entry: &Entry, what: &str) -> Result<Versioned<T>, Error> {
    Ok(Versioned { doc: T::parse(what, &entry.value)?, revision: entry.mod_revision })
}

/// The condition that a key is as it was read.
pub fn unchanged<T>(key: String, seen: Option<&Versioned<T>>) -> Compare {
    match seen {
        Some(seen) => Compare::Unchanged(key, seen.revision),
        None => Compare::Absent(key),
    }
}

/// Writes of one transaction; the lock's own condition and the caller's need room below etcd's limit.
const BATCH_OPS: usize = MAX_TXN_OPS - 8;
/// Bytes of one transaction, well below etcd's 1.5 MiB, which counts keys and conditions too.
const BATCH_BYTES: usize = 1 << 20;

/// Writes documents under the lock, each only if its key is as it was read, in as many transactions as needed.
/// `guard` holds for each of them.
///
/// # Errors
/// The store failed, or a condition does not hold; earlier transactions stay written.
pub async fn write_batches(lock: &Lock, guard: &[Compare], writes: Vec<(Compare, Op)>) -> Result<(), Error> {
    for batch in batches(writes) {
        let (mut conditions, operations): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        conditions.extend_from_slice(guard);
        lock.write(conditions, operations).await?;
    }
    Ok(())
}

fn batches(writes: Vec<(Compare, Op)>) -> Vec<Vec<(Compare, Op)>> {
    let mut batches = Vec::new();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for (condition, operation) in writes {
        let size = match &operation {
            // The key stands in the condition too.
            Op::Put { key, value, .. } => 2 * key.len() + value.len(),
            Op::Delete(key) => 2 * key.len(),
        };
        if !batch.is_empty() && (batch.len() == BATCH_OPS || bytes + size > BATCH_BYTES) {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        batch.push((condition, operation));
        bytes += size;
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(key: &str, size: usize) -> (Compare, Op) {
        (Compare::Absent(key.to_owned()), Op::put(key, vec![0; size]))
    }

    #[test]
    fn batches_stay_below_both_limits() {
        let many = batches((0..300).map(|i| write(&i.to_string(), 10)).collect());
        assert_eq!(many.iter().map(Vec::len).collect::<Vec<_>>(), [120, 120, 60]);
        let big = batches((0..5).map(|i| write(&i.to_string(), 400_000)).collect());
        assert_eq!(big.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
        assert!(batches(vec![]).is_empty());
        // Larger than the limit by itself: etcd's to refuse.
        assert_eq!(batches(vec![write("a", 2 << 20), write("b", 1)]).len(), 2);
    }
}
