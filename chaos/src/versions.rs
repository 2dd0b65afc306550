//! Every version of the cluster data, out of etcd's own memory of all revisions: nothing is missed, also while etcd
//! or this program were away for a while.

use crate::cluster::Cluster;
use anyhow::Context as _;
use etcd_client::GetOptions;
use model::stolon::ClusterData;

/// One version.
#[derive(Clone, Debug)]
pub struct Version {
    /// The store's revision that made it.
    pub revision: i64,
    /// The document.
    pub data: ClusterData,
}

/// A change of the wanted master: a failover, or a switchover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The revision that made it.
    pub revision: i64,
    /// When, by the sentinel's clock.
    pub at: String,
    /// Keeper that was master.
    pub from: String,
    /// Keeper that is master now.
    pub to: String,
}

/// All versions after a revision, oldest first, and one before them to compare with.
///
/// # Errors
/// etcd does not answer.
pub async fn after(cluster: &Cluster, revision: i64) -> anyhow::Result<Vec<Version>> {
    let mut etcd = cluster.etcd().await?;
    let key = cluster.keys.clusterdata();
    let mut versions = Vec::new();
    let mut options = None;
    loop {
        let answer = etcd.get(key.as_str(), options.take()).await.context("read a version of the cluster data")?;
        let Some(entry) = answer.kvs().first() else { break };
        let seen = entry.mod_revision();
        versions.push(Version { revision: seen, data: ClusterData::parse(entry.value())? });
        if seen <= revision || entry.version() == 1 {
            break;
        }
        options = Some(GetOptions::new().with_revision(seen - 1));
    }
    versions.reverse();
    Ok(versions)
}

/// Changes from one existing master to another db. The same keeper with a new db counts: its data are others.
pub fn changes(versions: &[Version]) -> Vec<Change> {
    let keeper = |data: &ClusterData| {
        data.dbs.get(&data.cluster.status.master).map_or_else(String::new, |db| db.spec.keeper_uid.to_string())
    };
    let changed = versions.windows(2).filter(|pair| {
        let (old, new) = (&pair[0].data.cluster.status.master, &pair[1].data.cluster.status.master);
        old != new && !old.is_empty()
    });
    let change = |pair: &[Version]| Change {
        revision: pair[1].revision,
        at: pair[1].data.change_time.to_string(),
        from: keeper(&pair[0].data),
        to: keeper(&pair[1].data),
    };
    changed.map(change).collect()
}

/// The number of the last revision that changed the cluster data.
///
/// # Errors
/// etcd does not answer.
pub async fn latest(cluster: &Cluster) -> anyhow::Result<i64> {
    let answer = cluster.etcd().await?.get(cluster.keys.clusterdata(), None).await?;
    Ok(answer.kvs().first().context("there is no cluster data")?.mod_revision())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(revision: i64, master: &str) -> Version {
        let phase = if master.is_empty() { "initializing" } else { "normal" };
        let text = serde_json::json!({
            "formatVersion": 1, "changeTime": "2026-01-02T03:04:05Z",
            "cluster": {"uid": "c", "spec": {"initMode": "new"}, "status": {"phase": phase, "master": master}},
            "keepers": {"k1": {"uid": "k1"}, "k2": {"uid": "k2"}},
            "dbs": {"a": {"uid": "a", "spec": {"keeperUID": "k1", "role": "master"}},
                    "b": {"uid": "b", "spec": {"keeperUID": "k2", "role": "master"}}},
            "proxy": {"spec": {}}});
        Version { revision, data: ClusterData::parse(text.to_string().as_bytes()).unwrap() }
    }

    #[test]
    fn only_changes_of_a_master_count() {
        let versions = [version(1, ""), version(2, "a"), version(3, "a"), version(4, "b"), version(5, "b")];
        let found = changes(&versions);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].revision, found[0].from.as_str(), found[0].to.as_str()), (4, "k1", "k2"));
    }
}
