//! The port that leads to replicas.
//!
//! What a reader may see: a state of the past, as old as the limit of the lag allows and WAL that is received but not
//! replayed yet; after an asynchronous failover also transactions that were lost in it, until its replica has joined the
//! new master. What a reader can't do is write to a deposed master: a replica that is elected loses its readers before
//! this proxy confirms the election, as the master's port does with its connections, and without word from the store
//! all readers are cut off at the same moment as writers.

use super::args::ProxyArgs;
use super::door::{Client, Door, Wants};
use super::plan::RETRY;
use super::pools::Pools;
use super::replicas::{self, Rules, Verdict};
use super::sockets::SocketOptions;
use super::status::Status;
use model::stolon::keys::Keys;
use model::stolon::{ClusterData, KeeperInfo};
use model::{DbUid, KeeperUid};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use store::{Follower, Moment, SharedStore, Target, View};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tracing::{info, warn};

/// The port with its connections, and what they depend on.
pub struct ReplicaPort {
    /// Where readers come in.
    pub door: Door,
    /// Where they are led to.
    pub pools: Pools,
    /// Without a fit replica they are led to the master.
    pub fallback: bool,
    rules: Rules,
    // Kept for its task.
    _follower: Follower,
    view: watch::Receiver<View>,
    prefix: String,
    /// By key: the record's revision, and what it says if it can be read.
    records: BTreeMap<String, (i64, Option<KeeperInfo>)>,
    data: Option<ClusterData>,
    verdicts: BTreeMap<DbUid, Verdict>,
    open_after: Option<Moment>,
}

/// What happened at the port.
pub enum Event {
    /// A reader came, or could not be accepted.
    Accepted(io::Result<TcpStream>),
    /// Keepers' records changed.
    Records,
    /// A connection ended.
    Ended,
}

impl ReplicaPort {
    /// The port that the flags ask for.
    pub fn new(
        args: &ProxyArgs,
        store: &SharedStore,
        keys: &Keys,
        options: &Arc<SocketOptions>,
        status: &Status,
    ) -> Self {
        let counters = status.replica.clone();
        let prefix = keys.keepers_info();
        let follower = Follower::start(store.clone(), vec![Target::Prefix(prefix.clone())]);
        ReplicaPort {
            door: Door::new(
                args.replica_host(),
                args.replica_port,
                args.hold_connections,
                Wants::Replica,
                counters.clone(),
            ),
            pools: Pools::new(options.clone(), counters),
            fallback: args.replica_fallback_to_master,
            rules: Rules { role: args.replica_role, max_lag: args.replica_max_lag },
            view: follower.subscribe(),
            _follower: follower,
            prefix,
            records: BTreeMap::new(),
            data: None,
            verdicts: BTreeMap::new(),
            open_after: None,
        }
    }

    /// Takes new cluster data in; `None`: there is none that can be used.
    pub fn see_data(&mut self, data: Option<ClusterData>) {
        self.data = data;
        self.judge();
    }

    /// Takes in what keepers say of themselves.
    pub fn see_records(&mut self) {
        let view = self.view.borrow_and_update().clone();
        self.records.retain(|key, _| view.entries.contains_key(key));
        for entry in view.under(&self.prefix) {
            if self.records.get(&entry.key).is_some_and(|(revision, _)| *revision == entry.mod_revision) {
                continue;
            }
            let record = serde_json::from_slice(&entry.value)
                .inspect_err(|error| warn!(key = entry.key, %error, "skip a record that can't be read"));
            self.records.insert(entry.key.clone(), (entry.mod_revision, record.ok()));
        }
        self.judge();
    }

    fn judge(&mut self) {
        let infos: BTreeMap<KeeperUid, KeeperInfo> =
            self.records.values().filter_map(|(_, info)| info.clone()).map(|info| (info.uid.clone(), info)).collect();
        self.verdicts = self.data.as_ref().map_or_else(BTreeMap::new, |data| replicas::judge(data, &infos, self.rules));
    }

    /// Allows connections until then, and closes those that must not be, before it returns.
    pub async fn enforce(&mut self, until: Option<Moment>) {
        self.pools.allow(until);
        let now = Moment::now();
        for client in self.pools.apply(&self.verdicts).await {
            self.door.hold(client, now);
        }
    }

    /// Listens, if it doesn't; gives an error's text. What happens here never hinders the master's port.
    ///
    /// # Errors
    /// The port is taken, or the address is not ours.
    pub async fn open(&mut self, now: Moment) -> Result<(), String> {
        if self.door.is_open() || self.open_after.is_some_and(|moment| now < moment) {
            return Ok(());
        }
        match self.door.open().await {
            Ok(()) => {
                info!(port = self.door.port(), "listening for readers");
                self.open_after = None;
                Ok(())
            }
            Err(error) => {
                self.open_after = Some(now + RETRY);
                Err(format!("can't listen for readers: {error}; free the port of --replica-port or give another one"))
            }
        }
    }

    /// Readers who may be led on now.
    pub fn due(&mut self, now: Moment, leads_to_master: bool) -> Vec<Client> {
        for client in self.pools.reap(now) {
            self.door.hold_refused(client, now);
        }
        self.door.due(now, self.pools.leads_somewhere() || (self.fallback && leads_to_master))
    }

    /// When something is to be done here by itself.
    pub fn next_moment(&mut self, now: Moment) -> Option<Moment> {
        self.open_after = self.open_after.filter(|moment| now < *moment);
        [self.open_after, self.door.next_moment(now)].into_iter().flatten().min()
    }

    /// Waits for the next event. Cancel-safe.
    pub async fn next_event(&mut self) -> Event {
        tokio::select! {
            client = self.door.accept() => Event::Accepted(client),
            _ = self.view.changed() => Event::Records,
            () = self.pools.ended() => Event::Ended,
        }
    }
}
