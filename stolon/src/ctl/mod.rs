//! The operator's command line, and the same operations for other programs.
//!
//! In: arguments and the store. Out: text or JSON on stdout, changed cluster data in the store. Every change of cluster
//! data that is read before is a compare-and-set, tried again when a sentinel writes at the same moment.
//!
//! [`commands`] has one file per command; [`merge`] and [`render`] are pure.

pub mod args;
pub mod commands;
pub mod confirm;
pub mod input;
pub mod merge;
pub mod operation;
pub mod render;

pub use args::CtlArgs;
pub use commands::run;

use crate::access::{self, AccessError, Versioned, random_uid};
use model::GoTime;
use model::stolon::keys::Keys;
use model::stolon::{ClusterData, InvalidSpec, StolonSpec};
use store::SharedStore;

/// Why cluster data was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// It could not be read or written.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The specification breaks a rule.
    #[error(transparent)]
    Spec(#[from] InvalidSpec),
    /// The command can't be carried out as things are.
    #[error("{0}")]
    Refused(String),
}

fn new_cluster(spec: StolonSpec) -> ClusterData {
    ClusterData::new(&random_uid(), spec, GoTime::from(chrono::Utc::now()))
}

/// Writes new cluster data, whatever was there before. The specification is not checked.
///
/// # Errors
/// The store failed.
pub async fn init_cluster(store: &SharedStore, keys: &Keys, spec: StolonSpec) -> Result<(), AccessError> {
    store.put(&keys.clusterdata(), &access::encode(&new_cluster(spec)), None).await?;
    Ok(())
}

/// Writes new cluster data if there is none; says whether it did. The specification is not checked.
///
/// # Errors
/// The store failed.
pub async fn init_cluster_if_absent(store: &SharedStore, keys: &Keys, spec: StolonSpec) -> Result<bool, AccessError> {
    match access::replace(store, keys, None, &new_cluster(spec)).await {
        Ok(_) => Ok(true),
        Err(AccessError::Conflict) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Changes the specification of a cluster; `change` may run more than once. What it makes must be valid and keep the
/// rules of updates. Nothing is written when nothing changes.
///
/// # Errors
/// See [`ChangeError`]; there must be cluster data.
pub async fn update_cluster(
    store: &SharedStore,
    keys: &Keys,
    mut change: impl FnMut(&mut StolonSpec),
) -> Result<(), ChangeError> {
    try_update_cluster(store, keys, |spec| {
        change(spec);
        Ok(())
    })
    .await
}

/// As [`update_cluster`], with a change that may refuse.
///
/// # Errors
/// See [`ChangeError`], and the change's own.
pub async fn try_update_cluster(
    store: &SharedStore,
    keys: &Keys,
    mut change: impl FnMut(&mut StolonSpec) -> Result<(), ChangeError>,
) -> Result<(), ChangeError> {
    change_data(store, keys, |data| {
        let old = data.spec();
        let mut new = old.clone();
        change(&mut new)?;
        old.check_update(&new)?;
        data.cluster.spec = Some(new);
        Ok(())
    })
    .await
}

/// Changes cluster data; nothing is written when nothing changes.
pub(crate) async fn change_data(
    store: &SharedStore,
    keys: &Keys,
    mut change: impl FnMut(&mut ClusterData) -> Result<(), ChangeError>,
) -> Result<(), ChangeError> {
    let Versioned { data, .. } = load(store, keys).await?;
    let mut changed = data.clone();
    change(&mut changed)?;
    if changed != data {
        access::update(store, keys, change).await?;
    }
    Ok(())
}

/// Reads cluster data that must be there.
pub(crate) async fn load(store: &SharedStore, keys: &Keys) -> Result<Versioned, AccessError> {
    access::read(store, keys).await?.ok_or(AccessError::Absent)
}
