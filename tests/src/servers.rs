//! How soon the other groups' foreign servers lead to a new master.

use crate::playground::{Playground, connect};
use anyhow::Context as _;
use model::stolon::ClusterData;
use model::stolon::keys::{DEFAULT_PREFIX, Keys};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{EtcdStore, SharedStore, StoreOptions};
use tokio_postgres::Client;

/// Looks on while a group's master is replaced.
#[derive(Debug)]
pub struct Onlooker {
    store: SharedStore,
    keys: Keys,
    old_master: model::DbUid,
    server: String,
    others: Vec<Client>,
}

impl Onlooker {
    /// Prepares to look on the group with the given number and name; to be called before its master dies.
    ///
    /// # Errors
    /// The cluster is not whole.
    pub async fn new(playground: &Playground, rgid: u32, group: &str) -> anyhow::Result<Self> {
        let options = StoreOptions { endpoints: playground.endpoints(), ..StoreOptions::default() };
        let store: SharedStore = Arc::new(EtcdStore::connect(&options).await?);
        let keys = Keys::new(DEFAULT_PREFIX, &group.into());
        let old_master = clusterdata(&store, &keys).await?.proxy.spec.master_db_uid;
        let connstr = playground.connstr()?;
        let secret = connstr.split(' ').filter(|pair| !pair.starts_with("host=") && !pair.starts_with("port="));
        let login = secret.collect::<Vec<_>>().join(" ");
        let mut others = Vec::new();
        for (_, _, other, node) in playground.status()?.rows("MASTER").into_iter().filter(|row| row.2 != group) {
            let (host, port) = node.split_once(':').with_context(|| format!("{other} has no master"))?;
            others.push(connect(&format!("{login} host={host} port={port}")).await?);
        }
        Ok(Onlooker { store, keys, old_master, server: format!("shardman_rg_{rgid}"), others })
    }

    /// Waits until another master is published; gives the time from there until every other group's foreign
    /// server names exactly the entry points of the group.
    ///
    /// # Errors
    /// It does not happen within half a minute.
    pub async fn servers_follow(self) -> anyhow::Result<Duration> {
        tokio::time::timeout(Duration::from_secs(30), self.watch())
            .await
            .context("no new master, or servers stay behind")?
    }

    async fn watch(self) -> anyhow::Result<Duration> {
        let published = loop {
            let master = clusterdata(&self.store, &self.keys).await?.proxy.spec.master_db_uid;
            if !master.is_empty() && master != self.old_master {
                break Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        loop {
            if self.all_right().await? {
                return Ok(published.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn all_right(&self) -> anyhow::Result<bool> {
        let Ok(wanted) = pg::endpoints::proxies(&clusterdata(&self.store, &self.keys).await?) else { return Ok(false) };
        let wanted = [format!("host={}", wanted.hosts()), format!("port={}", wanted.ports())];
        for client in &self.others {
            let sql = "select srvoptions from pg_foreign_server where srvname = $1";
            let options: Vec<String> = client.query_one(sql, &[&self.server]).await?.get(0);
            if !wanted.iter().all(|option| options.contains(option)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

async fn clusterdata(store: &SharedStore, keys: &Keys) -> anyhow::Result<ClusterData> {
    let entry = store.get(&keys.clusterdata()).await?.context("the group has no cluster data")?;
    Ok(ClusterData::parse(&entry.value)?)
}
