//! How a lab is made.

use super::bins::{Bins, Kind, server_user};
use super::endpoint::Endpoint;
use super::keeper::{Keeper, Relays};
use super::process::{Parts, Process};
use super::relay::Network;
use super::{CLUSTER, Lab, Proxy};
use crate::etcd::Etcd;
use crate::port::Port;
use crate::postgres::bin_dir;
use anyhow::{Context as _, Result};
use model::stolon::keys::{DEFAULT_PREFIX, Keys};
use nix::unistd::chown;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, Mutex};
use store::{EtcdStore, SharedStore, StoreOptions};

/// How users of PostgreSQL prove who they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// Not at all.
    #[default]
    Trust,
    /// By passwords (SCRAM; what Go's keepers call md5).
    Scram,
}

/// Names and passwords of the users that keepers work as.
const SU: &str = "postgres";
const REPL: &str = "repl";
const SU_PASSWORD: &str = "su-secret";
const REPL_PASSWORD: &str = "repl-secret";

/// What a lab is to consist of.
#[derive(Clone, Debug)]
pub struct Builder {
    bins: Bins,
    keepers: usize,
    sentinels: usize,
    proxies: usize,
    auth: Auth,
    relays: bool,
    spec: Value,
    keeper_arguments: Vec<(Option<usize>, Vec<String>)>,
    sentinel_arguments: Vec<String>,
    proxy_arguments: Vec<String>,
}

impl Builder {
    /// Two keepers, one sentinel and one proxy, with the intervals of docs/intervals.md.
    pub fn new(bins: Bins) -> Self {
        Builder {
            bins,
            keepers: 2,
            sentinels: 1,
            proxies: 1,
            auth: Auth::default(),
            relays: false,
            spec: json!({
                "initMode": "new", "sleepInterval": "2s", "failInterval": "2s", "proxyCheckInterval": "1s",
                "proxyTimeout": "2500ms", "usePgrewind": true, "automaticPgRestart": true,
                // Nobody loses power here, and thirty tests share one disk.
                "pgParameters": {"fsync": "off", "shared_buffers": "16MB", "log_checkpoints": "off"},
            }),
            keeper_arguments: Vec::new(),
            sentinel_arguments: Vec::new(),
            proxy_arguments: Vec::new(),
        }
    }

    /// Number of keepers.
    pub fn keepers(mut self, number: usize) -> Self {
        self.keepers = number;
        self
    }

    /// Number of sentinels.
    pub fn sentinels(mut self, number: usize) -> Self {
        self.sentinels = number;
        self
    }

    /// Number of proxies.
    pub fn proxies(mut self, number: usize) -> Self {
        self.proxies = number;
        self
    }

    /// Authentication; trust by default.
    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth = auth;
        self
    }

    /// Puts a relay between each keeper and the store, and before each PostgreSQL, so that a test can cut them.
    pub fn relays(mut self) -> Self {
        self.relays = true;
        self
    }

    /// Merges members into the specification, as RFC 7386 says: `null` removes one.
    pub fn spec(mut self, members: Value) -> Self {
        merge(&mut self.spec, members);
        self
    }

    /// Synchronous replication with these limits of the number of synchronous standbys.
    pub fn synchronous(self, min: u16, max: u16) -> Self {
        self.spec(json!({
            "synchronousReplication": true, "minSynchronousStandbys": min, "maxSynchronousStandbys": max,
        }))
    }

    /// More flags for one keeper.
    pub fn keeper_arguments(mut self, index: usize, arguments: &[&str]) -> Self {
        self.keeper_arguments.push((Some(index), owned(arguments)));
        self
    }

    /// More flags for all keepers.
    pub fn all_keeper_arguments(mut self, arguments: &[&str]) -> Self {
        self.keeper_arguments.push((None, owned(arguments)));
        self
    }

    /// More flags for all sentinels.
    pub fn sentinel_arguments(mut self, arguments: &[&str]) -> Self {
        self.sentinel_arguments.extend(owned(arguments));
        self
    }

    /// More flags for all proxies.
    pub fn proxy_arguments(mut self, arguments: &[&str]) -> Self {
        self.proxy_arguments.extend(owned(arguments));
        self
    }

    /// Starts etcd and makes everything else without starting it.
    ///
    /// # Panics
    /// Something is not installed, or the system has no ports left.
    pub async fn prepare(self) -> Lab {
        self.try_prepare().await.expect("make a lab")
    }

    /// Starts etcd and all components; the cluster is not initialized.
    ///
    /// # Panics
    /// Something is not installed, or the system has no ports left.
    pub async fn start(self) -> Lab {
        let lab = self.prepare().await;
        lab.start_all();
        lab
    }

    /// Starts everything, initializes the cluster and waits until it is whole.
    ///
    /// # Panics
    /// It does not come up.
    pub async fn up(self) -> Lab {
        let lab = self.prepare().await;
        lab.init().await;
        lab.start_all();
        lab.ready().await;
        lab
    }

    async fn try_prepare(self) -> Result<Lab> {
        let etcd = Etcd::start().await?;
        let options = StoreOptions { endpoints: etcd.endpoints(), ..StoreOptions::default() };
        let store: SharedStore = Arc::new(EtcdStore::connect(&options).await?);
        let dir = tempfile::Builder::new().prefix("lab-").tempdir()?;
        if let Some(user) = server_user() {
            chown(dir.path(), Some(user.uid), Some(user.gid)).context("give the lab to postgres")?;
        }
        let network = Network::start()?;
        let site = Site { builder: &self, dir: dir.path(), etcd: &etcd, network: &network };
        let keepers = (0..self.keepers).map(|index| site.keeper(index)).collect::<Result<_>>()?;
        let sentinels = (0..self.sentinels).map(|index| site.sentinel(index)).collect();
        let proxies = (0..self.proxies).map(|index| site.proxy(index)).collect::<Result<_>>()?;
        let keys = Keys::new(DEFAULT_PREFIX, &CLUSTER.into());
        Ok(Lab { keepers, sentinels, proxies, builder: self, store, keys, network, dir: Some(dir), etcd })
    }
}

impl Lab {
    /// Adds a keeper with more flags and starts it; gives its index.
    ///
    /// # Panics
    /// It can't be started.
    pub fn add_keeper(&mut self, arguments: &[&str]) -> usize {
        let index = self.keepers.len();
        self.builder.keeper_arguments.push((Some(index), owned(arguments)));
        let site = Site { builder: &self.builder, dir: self.path(), etcd: &self.etcd, network: &self.network };
        let keeper = site.keeper(index).expect("make a keeper");
        keeper.start();
        self.keepers.push(keeper);
        index
    }

    /// Adds a sentinel and starts it, ours or that of another stolon in a directory; gives its index.
    ///
    /// # Panics
    /// It can't be started.
    pub fn add_sentinel(&mut self, theirs: Option<&Path>) -> usize {
        let index = self.sentinels.len();
        let site = Site { builder: &self.builder, dir: self.path(), etcd: &self.etcd, network: &self.network };
        let mut sentinel = site.sentinel(index);
        if let Some(theirs) = theirs {
            sentinel.set_program(Bins::of_theirs(theirs, Kind::Sentinel));
        }
        sentinel.start();
        self.sentinels.push(sentinel);
        index
    }

    pub(super) fn wanted_spec(&self) -> &Value {
        &self.builder.spec
    }

    pub(super) fn bins(&self) -> &Bins {
        &self.builder.bins
    }
}

/// Where components are made.
struct Site<'a> {
    builder: &'a Builder,
    dir: &'a Path,
    etcd: &'a Etcd,
    network: &'a Network,
}

impl Site<'_> {
    fn process(&self, (kind, index): (Kind, usize), name: String, endpoints: &str, arguments: Vec<String>) -> Process {
        let level = std::env::var("LAB_LOG_LEVEL").unwrap_or_else(|_| "info".into());
        let mut all = owned(&["--cluster-name", CLUSTER, "--store-backend", "etcdv3", "--log-level", &level]);
        all.extend(owned(&["--store-endpoints", endpoints]));
        all.extend(arguments);
        let secrets = [("STKEEPER_PG_SU_PASSWORD", SU_PASSWORD), ("STKEEPER_PG_REPL_PASSWORD", REPL_PASSWORD)];
        let environment = match (kind, self.builder.auth) {
            (Kind::Keeper, Auth::Scram) => secrets.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            _ => Vec::new(),
        };
        let program = self.builder.bins.program(kind, index);
        Process::new(Parts { name, program, dir: self.dir.to_owned(), arguments: all, environment })
    }

    fn keeper(&self, index: usize) -> Result<Keeper> {
        let Builder { bins, auth, relays, keeper_arguments, .. } = self.builder;
        let uid = format!("keeper{index}");
        let (root, port) = (self.dir.join(&uid), Port::reserve()?);
        let relays = match relays {
            true => Some(Relays {
                store: self.network.relay(self.etcd.port())?,
                postgres: self.network.relay(port.number())?,
            }),
            false => None,
        };
        let theirs = bins.program(Kind::Keeper, index).is_theirs;
        let method = match auth {
            Auth::Trust => "trust",
            Auth::Scram if theirs => "md5",
            Auth::Scram => "scram-sha-256",
        };
        let mut arguments = owned(&["--uid", &uid, "--data-dir", &root.display().to_string()]);
        arguments.extend(owned(&["--pg-listen-address", "127.0.0.1", "--pg-port", &port.number().to_string()]));
        arguments.extend(owned(&["--pg-su-username", SU, "--pg-su-auth-method", method]));
        arguments.extend(owned(&["--pg-repl-username", REPL, "--pg-repl-auth-method", method]));
        arguments.extend(owned(&["--pg-bin-path", &bin_dir()?.display().to_string()]));
        if !theirs {
            arguments.extend(owned(&["--pg-unix-socket-dir", &self.dir.join("s").display().to_string()]));
        }
        let mut endpoints = self.etcd.endpoints();
        if let Some(relays) = &relays {
            arguments.extend(owned(&["--pg-advertise-port", &relays.postgres.port().to_string()]));
            endpoints = format!("http://127.0.0.1:{}", relays.store.port());
        }
        let own = keeper_arguments.iter().filter(|(of, _)| of.is_none_or(|of| of == index));
        arguments.extend(own.flat_map(|(_, arguments)| arguments.clone()));
        let process = self.process((Kind::Keeper, index), uid.clone(), &endpoints, arguments);
        Ok(Keeper { uid, process, pg: self.endpoint(&port), root, port: Mutex::new(port), relays })
    }

    fn sentinel(&self, index: usize) -> Process {
        let arguments = self.builder.sentinel_arguments.clone();
        self.process((Kind::Sentinel, index), format!("sentinel{index}"), &self.etcd.endpoints(), arguments)
    }

    fn proxy(&self, index: usize) -> Result<Proxy> {
        let port = Port::reserve()?;
        let mut arguments = owned(&["--port", &port.number().to_string()]);
        arguments.extend(self.builder.proxy_arguments.clone());
        let process = self.process((Kind::Proxy, index), format!("proxy{index}"), &self.etcd.endpoints(), arguments);
        Ok(Proxy { process, pg: self.endpoint(&port), _port: port })
    }

    fn endpoint(&self, port: &Port) -> Endpoint {
        Endpoint::new(port.number(), SU, (self.builder.auth == Auth::Scram).then_some(SU_PASSWORD))
    }
}

fn owned(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|&argument| argument.to_owned()).collect()
}

fn merge(target: &mut Value, patch: Value) {
    match patch {
        Value::Object(members) => {
            if !target.is_object() {
                *target = json!({});
            }
            for (name, member) in members {
                if member.is_null() {
                    target.as_object_mut().map(|object| object.remove(&name));
                } else {
                    merge(&mut target[&name], member);
                }
            }
        }
        other => *target = other,
    }
}
