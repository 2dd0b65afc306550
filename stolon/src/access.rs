//! Reading and changing cluster data in the store.

use model::stolon::keys::Keys;
use model::stolon::{ClusterData, DataError};
use std::collections::BTreeMap;
use store::{Compare, Entry, Op, SharedStore, StoreError};

/// Why cluster data was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is stored can't be worked with.
    #[error(transparent)]
    Data(#[from] DataError),
    /// There is none.
    #[error("there is no cluster data for this cluster name; run `stolonctl init` first")]
    Absent,
    /// Somebody else wrote first, several times in a row.
    #[error("the cluster data was changed by someone else; try again")]
    Conflict,
}

/// Cluster data with the revision that a compare-and-set needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Versioned {
    /// The document.
    pub data: ClusterData,
    /// etcd's mod revision of it.
    pub revision: i64,
}

/// Reads cluster data; `None` when there is none.
///
/// # Errors
/// The store failed, or the document is unusable.
pub async fn read(store: &SharedStore, keys: &Keys) -> Result<Option<Versioned>, AccessError> {
    store.get(&keys.clusterdata()).await?.map(|entry| parse(&entry)).transpose()
}

/// Reads cluster data out of an entry that was followed.
///
/// # Errors
/// The document is unusable.
pub fn parse(entry: &Entry) -> Result<Versioned, AccessError> {
    Ok(Versioned { data: ClusterData::parse(&entry.value)?, revision: entry.mod_revision })
}

/// Replaces cluster data if it still has `revision` (`None`: if there still is none).
///
/// # Errors
/// [`AccessError::Conflict`] when somebody else wrote meanwhile.
pub async fn replace(
    store: &SharedStore,
    keys: &Keys,
    revision: Option<i64>,
    data: &ClusterData,
) -> Result<i64, AccessError> {
    let key = keys.clusterdata();
    let condition = match revision {
        Some(revision) => Compare::Unchanged(key.clone(), revision),
        None => Compare::Absent(key.clone()),
    };
    let outcome = store.txn(vec![condition], vec![Op::put(key, encode(data))]).await?;
    if outcome.succeeded { Ok(outcome.revision) } else { Err(AccessError::Conflict) }
}

/// Cluster data as it is stored.
pub fn encode(data: &ClusterData) -> Vec<u8> {
    // Maps with string keys and plain values only: serialising can't fail.
    serde_json::to_vec(data).expect("cluster data is plain JSON")
}

/// How often a command tries again when somebody else writes at the same moment.
const UPDATE_ATTEMPTS: usize = 10;

/// Reads, changes and replaces cluster data, again when somebody else was faster.
///
/// # Errors
/// The change's own error, or those of [`read`] and [`replace`].
pub async fn update<E: From<AccessError>>(
    store: &SharedStore,
    keys: &Keys,
    mut change: impl FnMut(&mut ClusterData) -> Result<(), E>,
) -> Result<ClusterData, E> {
    for _ in 0..UPDATE_ATTEMPTS {
        let Versioned { mut data, revision } = read(store, keys).await?.ok_or(AccessError::Absent)?;
        change(&mut data)?;
        match replace(store, keys, Some(revision), &data).await {
            Ok(_) => return Ok(data),
            Err(AccessError::Conflict) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(AccessError::Conflict.into())
}

/// Reads the records of a listing. A record that can't be read is reported and does not hide the others.
pub fn records<T: serde::de::DeserializeOwned>(entries: &[&Entry]) -> BTreeMap<String, T> {
    let mut records = BTreeMap::new();
    for entry in entries {
        match serde_json::from_slice(&entry.value) {
            Ok(record) => {
                records.insert(entry.key.clone(), record);
            }
            Err(error) => tracing::warn!(key = entry.key, %error, "skip a record that can't be read"),
        }
    }
    records
}

/// A random identifier as stolon uses for clusters, dbs, sentinels, proxies and publications: 8 hexadecimal digits.
pub fn random_uid() -> String {
    format!("{:08x}", rand::random::<u32>())
}
