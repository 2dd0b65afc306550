//! `failkeeper`: treat a keeper as failed, once.

use crate::ctl::{ChangeError, change_data};
use model::KeeperUid;
use model::stolon::ClusterData;
use model::stolon::keys::Keys;
use store::SharedStore;

/// Arguments of `failkeeper`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The keeper
    pub uid: String,
}

/// Marks a keeper as failed until the next check of the leading sentinel. If its db is the master, another one takes
/// over if one can; otherwise it stays master.
///
/// # Errors
/// There is no such keeper; see [`ChangeError`].
pub async fn run(store: &SharedStore, keys: &Keys, uid: &str) -> Result<(), ChangeError> {
    let uid = KeeperUid::from(uid);
    change_data(store, keys, |data| {
        keeper(data, &uid)?.status.force_fail = true;
        Ok(())
    })
    .await
}

/// A keeper that must be there.
pub(super) fn keeper<'a>(
    data: &'a mut ClusterData,
    uid: &KeeperUid,
) -> Result<&'a mut model::stolon::Keeper, ChangeError> {
    data.keepers.get_mut(uid).ok_or_else(|| {
        ChangeError::Refused(format!("there is no keeper \"{uid}\"; `stolonctl status` lists those there are"))
    })
}
