//! `setkeeperpriority`: prefer a keeper in elections.

use super::failkeeper::keeper;
use crate::ctl::{ChangeError, change_data};
use model::KeeperUid;
use model::stolon::keys::Keys;
use store::SharedStore;

/// Arguments of `setkeeperpriority`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The keeper
    pub uid: String,
    /// Its priority; the highest wins
    #[arg(allow_negative_numbers = true)]
    pub priority: i64,
}

/// Sets the priority of a keeper.
///
/// # Errors
/// There is no such keeper; see [`ChangeError`].
pub async fn run(store: &SharedStore, keys: &Keys, uid: &str, priority: i64) -> Result<(), ChangeError> {
    let uid = KeeperUid::from(uid);
    change_data(store, keys, |data| {
        keeper(data, &uid)?.spec.priority = priority;
        Ok(())
    })
    .await
}
