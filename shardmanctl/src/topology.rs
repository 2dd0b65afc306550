//! What is stored about a cluster and its groups, for the commands that work with all groups.

use anyhow::Context as _;
use common::exit::Hinted;
use futures::StreamExt as _;
use model::RepGroupId;
use model::clusterspec::ClusterSpec;
use model::keys::ClusterKeys;
use model::layout::{Document as _, RepGroupDoc, RepGroupState, SpecDoc};
use model::stolon::ClusterData;
use std::collections::BTreeMap;
use store::{SharedStore, StoreError};

/// Name of the commands' sessions in `pg_stat_activity`.
pub const APPLICATION: &str = "shardmanctl";
/// How many groups are asked at the same time: all of a usual cluster, without flooding the network of a huge one.
pub const AT_ONCE: usize = 64;

/// A registered group that takes part in the cluster.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its registration.
    pub doc: RepGroupDoc,
    /// Its stolon cluster data; none when there is none yet.
    pub data: Option<ClusterData>,
}

/// A cluster and its groups.
#[derive(Clone, Debug)]
pub struct Topology {
    /// What holds for all groups.
    pub spec: ClusterSpec,
    /// Active groups, at least one.
    pub groups: BTreeMap<RepGroupId, Group>,
}

/// Reads a cluster and its active groups.
///
/// # Errors
/// The cluster or its groups don't exist, a document is unusable, or a store can't be reached.
pub async fn read(store: &SharedStore, keys: &ClusterKeys) -> anyhow::Result<Topology> {
    let entry = store.get(&keys.spec()).await?.ok_or_else(|| unknown_cluster(keys))?;
    let spec = SpecDoc::parse("the specification", &entry.value)?.cluster_spec;
    let prefix = keys.repgroups();
    let mut docs = Vec::new();
    for entry in store.list(&prefix).await?.entries {
        let Some(Ok(id)) = entry.key.strip_prefix(&prefix).map(str::parse) else { continue };
        let doc = RepGroupDoc::parse(&format!("replication group {id}"), &entry.value)?;
        if doc.state == RepGroupState::Active {
            docs.push((RepGroupId(id), doc));
        }
    }
    if docs.is_empty() {
        return Err(no_groups().into());
    }
    let read = docs.into_iter().map(|(id, doc)| async move {
        let data = clusterdata(store, &doc).await.with_context(|| format!("read group {}", doc.stolon_name))?;
        let data = data.map(|bytes| ClusterData::parse(&bytes)).transpose();
        let data = data.with_context(|| format!("read group {}", doc.stolon_name))?;
        anyhow::Ok((id, Group { doc, data }))
    });
    let groups: Vec<_> = futures::stream::iter(read).buffer_unordered(AT_ONCE).collect().await;
    Ok(Topology { spec, groups: groups.into_iter().collect::<anyhow::Result<_>>()? })
}

/// The stolon cluster data of a group, as it is stored.
///
/// # Errors
/// The group's store can't be reached.
pub async fn clusterdata(own: &SharedStore, doc: &RepGroupDoc) -> Result<Option<Vec<u8>>, StoreError> {
    let store = store::open_place(own, &doc.store_conn_info).await?;
    let key = model::stolon::keys::Keys::new(&doc.store_prefix, &doc.stolon_name).clusterdata();
    Ok(store.get(&key).await?.map(|entry| entry.value))
}

fn unknown_cluster(keys: &ClusterKeys) -> Hinted {
    let prefix = keys.prefix();
    let name = prefix.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    Hinted {
        message: format!("there is no cluster \"{name}\" in this store"),
        hint: "check --cluster-name and --store-endpoints, or run shardmanctl init".into(),
    }
}

fn no_groups() -> Hinted {
    Hinted {
        message: "the cluster has no replication groups yet".into(),
        hint: "add nodes with shardmanctl nodes add".into(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;
    use store::MemoryStore;

    /// Cluster data of a group with one keeper and proxies at these ports of node `n`.
    pub(crate) fn cluster_data(master: &str, host: &str, port: u16, proxies: &[u16]) -> Vec<u8> {
        let proxies: BTreeMap<String, _> = proxies
            .iter()
            .map(|port| (format!("p{port}"), json!({"listenAddress": host, "port": port.to_string()})))
            .collect();
        json!({"formatVersion": 1, "cluster": {"spec": {"initMode": "new"}}, "keepers": {"keeper_0": {"uid": "keeper_0",
            "status": {"healthy": true}}}, "dbs": {"d": {"uid": "d", "spec": {"keeperUID": "keeper_0", "role": "master"},
            "status": {"listenAddress": host, "port": port.to_string(), "healthy": true}}},
            "proxy": {"spec": {"masterDbUid": master}, "status": proxies}})
        .to_string()
        .into_bytes()
    }

    pub(crate) fn spec(use_proxy: bool) -> Vec<u8> {
        json!({"FormatVersion": 1, "LadleSpec": {}, "ClusterSpec": {"PgSuUsername": "postgres", "UseProxy": use_proxy,
            "PgSuAuthMethod": "scram-sha-256", "PgSuPassword": "!!!CHANGE_ME!!!", "StolonSpec": {}}})
        .to_string()
        .into_bytes()
    }

    pub(crate) fn repgroup(name: &str, state: &str) -> Vec<u8> {
        json!({"FormatVersion": 1, "StolonName": name, "StorePrefix": "stolon/cluster", "SysId": 7, "State": state})
            .to_string()
            .into_bytes()
    }

    #[tokio::test]
    async fn what_is_not_there_is_named() {
        let store: SharedStore = Arc::new(MemoryStore::new());
        let keys = ClusterKeys::new(&"c".into());
        let error = async || read(&store, &keys).await.unwrap_err().to_string();
        assert_eq!(error().await, "there is no cluster \"c\" in this store");
        store.put(&keys.spec(), &spec(false), None).await.unwrap();
        store.put(&keys.repgroup(RepGroupId(1)), &repgroup("g1", "adding"), None).await.unwrap();
        assert_eq!(error().await, "the cluster has no replication groups yet");
        store.put(&keys.repgroup(RepGroupId(2)), &repgroup("g2", "active"), None).await.unwrap();
        let groups = read(&store, &keys).await.unwrap().groups;
        assert_eq!(groups.len(), 1);
        assert!(groups[&RepGroupId(2)].data.is_none());
        store.put("stolon/cluster/g2/clusterdata", b"{", None).await.unwrap();
        assert_eq!(error().await, "read group g2");
    }
}
