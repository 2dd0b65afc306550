//! `removekeeper`: forget a keeper and its db.

use super::failkeeper::keeper;
use crate::ctl::{ChangeError, change_data};
use model::KeeperUid;
use model::stolon::ClusterData;
use model::stolon::keys::Keys;
use store::SharedStore;

/// Arguments of `removekeeper`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The keeper
    pub uid: String,
}

/// Removes a keeper and its db. A living keeper registers again and gets a new db with a full resync.
///
/// # Errors
/// There is no such keeper, or its db is the master; see [`ChangeError`].
pub async fn run(store: &SharedStore, keys: &Keys, uid: &str) -> Result<(), ChangeError> {
    let uid = KeeperUid::from(uid);
    change_data(store, keys, |data| remove(data, &uid)).await
}

fn remove(data: &mut ClusterData, uid: &KeeperUid) -> Result<(), ChangeError> {
    keeper(data, uid)?;
    if let Some(db) = data.db_of_keeper(uid).map(|db| db.uid.clone()) {
        // The db that clients are led to counts as master too, should the two differ during a change of master.
        if db == data.cluster.status.master || db == data.proxy.spec.master_db_uid {
            return Err(ChangeError::Refused(format!(
                "keeper \"{uid}\" has the master; let another one take over first, for example with `stolonctl failkeeper {uid}`"
            )));
        }
        data.dbs.remove(&db);
    }
    data.keepers.remove(uid);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_db_goes_too_and_the_master_stays() {
        let mut data: ClusterData = serde_json::from_value(json!({
            "cluster": {"status": {"master": "a"}}, "proxy": {"spec": {"masterDbUid": "b"}},
            "keepers": {"k": {}, "l": {}, "m": {}, "n": {}},
            "dbs": {"a": {"uid": "a", "spec": {"keeperUID": "k"}}, "b": {"uid": "b", "spec": {"keeperUID": "l"}},
                    "c": {"uid": "c", "spec": {"keeperUID": "m"}}}}))
        .unwrap();
        for kept in ["k", "l", "nobody"] {
            assert!(remove(&mut data, &kept.into()).is_err(), "{kept}");
        }
        remove(&mut data, &"m".into()).unwrap();
        remove(&mut data, &"n".into()).unwrap();
        assert_eq!((data.keepers.len(), data.dbs.len(), data.dbs.contains_key("c")), (2, 2, false));
    }
}
