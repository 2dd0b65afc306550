//! `getconnstr`: one connection string for all entry points of the cluster.

use crate::topology::{self, Topology};
use common::exit::Hinted;
use model::clusterspec::{ClusterSpec, DATABASE};
use model::keys::ClusterKeys;
use pg::{Endpoints, Login};
use rand::seq::SliceRandom as _;
use std::io::Write;
use store::SharedStore;
use tracing::warn;

/// Prints the string. The order of groups differs from call to call: libpq tries hosts in the order given, and not all
/// clients should meet at the first group.
///
/// # Errors
/// No such cluster, no groups, or none of them has a master.
pub async fn run(
    store: SharedStore,
    keys: &ClusterKeys,
    direct_masters: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let topology = topology::read(&store, keys).await?;
    let (mut reachable, without) = entry_points(&topology, direct_masters);
    for name in without {
        warn!("group {name} has no master now, it is left out");
    }
    if reachable.is_empty() {
        anyhow::bail!(Hinted {
            message: "no replication group has a master".into(),
            hint: "see shardmanctl status for what is wrong".into(),
        });
    }
    reachable.shuffle(&mut rand::rng());
    writeln!(out, "{}", connection_string(&topology.spec, &reachable))?;
    Ok(())
}

/// The entry points of each group in the order of groups, and the names of groups that have none.
pub fn entry_points(topology: &Topology, direct_masters: bool) -> (Vec<Endpoints>, Vec<&str>) {
    let (mut reachable, mut without) = (Vec::new(), Vec::new());
    for group in topology.groups.values() {
        let use_proxy = topology.spec.use_proxy && !direct_masters;
        match group.data.as_ref().map(|data| pg::endpoints::entry_points(data, use_proxy)) {
            Some(Ok(endpoints)) => reachable.push(endpoints),
            Some(Err(pg::NoMaster)) | None => without.push(group.doc.stolon_name.as_str()),
        }
    }
    (reachable, without)
}

/// The string: each group's endpoints stay together.
pub fn connection_string(spec: &ClusterSpec, groups: &[Endpoints]) -> String {
    let login = Login::superuser(spec, topology::APPLICATION);
    let join = |part: fn(&Endpoints) -> String| groups.iter().map(part).collect::<Vec<_>>().join(",");
    let (hosts, ports) = (join(Endpoints::hosts), join(Endpoints::ports));
    model::conninfo::render([
        ("user", login.user.as_str()),
        ("dbname", DATABASE),
        ("host", hosts.as_str()),
        ("port", ports.as_str()),
        ("password", login.password.reveal()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::tests::{cluster_data, repgroup, spec};
    use model::RepGroupId;
    use std::sync::Arc;
    use store::MemoryStore;

    async fn cluster(use_proxy: bool) -> (SharedStore, ClusterKeys) {
        let store: SharedStore = Arc::new(MemoryStore::new());
        let keys = ClusterKeys::new(&"c".into());
        store.put(&keys.spec(), &spec(use_proxy), None).await.unwrap();
        for (id, host) in [(1, "sdm01"), (2, "sdm02")] {
            let name = format!("clover-1-{host}");
            store.put(&keys.repgroup(RepGroupId(id)), &repgroup(&name, "active"), None).await.unwrap();
            let data = cluster_data("d", host, 5432, &[5433, 10_000]);
            store.put(&format!("stolon/cluster/{name}/clusterdata"), &data, None).await.unwrap();
        }
        (store, keys)
    }

    async fn printed(store: &SharedStore, keys: &ClusterKeys, direct: bool) -> anyhow::Result<String> {
        let mut out = Vec::new();
        run(store.clone(), keys, direct, &mut out).await?;
        Ok(String::from_utf8(out)?)
    }

    #[tokio::test]
    async fn the_sample_of_the_quick_start() {
        let (store, keys) = cluster(false).await;
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..64 {
            seen.insert(printed(&store, &keys, false).await.unwrap());
        }
        let line = |hosts: &str| {
            format!("dbname=postgres host={hosts} password=!!!CHANGE_ME!!! port=5432,5432 user=postgres\n")
        };
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [line("sdm01,sdm02"), line("sdm02,sdm01")]);
    }

    #[tokio::test]
    async fn proxies_of_a_group_stay_together_unless_masters_are_wanted() {
        let (store, keys) = cluster(true).await;
        let text = printed(&store, &keys, false).await.unwrap();
        assert!(text.contains("port=5433,10000,5433,10000"), "{text}");
        assert!(text.contains("sdm01,sdm01,sdm02,sdm02") || text.contains("sdm02,sdm02,sdm01,sdm01"), "{text}");
        assert!(printed(&store, &keys, true).await.unwrap().contains("port=5432,5432"));
    }

    #[tokio::test]
    async fn groups_without_a_master_are_left_out_unless_all_are() {
        let (store, keys) = cluster(false).await;
        let data = cluster_data("", "sdm01", 5432, &[]);
        store.put("stolon/cluster/clover-1-sdm01/clusterdata", &data, None).await.unwrap();
        assert!(printed(&store, &keys, false).await.unwrap().contains("host=sdm02 "));
        store.delete("stolon/cluster/clover-1-sdm02/clusterdata").await.unwrap();
        let error = printed(&store, &keys, false).await.unwrap_err();
        assert_eq!(error.to_string(), "no replication group has a master");
    }
}
