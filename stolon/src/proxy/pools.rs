//! Connections to replicas.

use super::counters::Counters;
use super::door::{self, Client, OnTheWay, Refused};
use super::forward::Route;
use super::gate::Gate;
use super::replicas::{Unfit, Verdict};
use super::sockets::{SocketOptions, Upstream};
use model::DbUid;
use pg::endpoints::Endpoint;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use store::Moment;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

/// A replica that could not be connected to gets no other client for this time, if there is another replica.
const AVOID: Duration = Duration::from_secs(1);

/// The replicas with their connections.
#[derive(Debug)]
pub struct Pools {
    options: Arc<SocketOptions>,
    counters: Arc<Counters>,
    gate: Arc<Gate>,
    pools: BTreeMap<DbUid, Pool>,
    turn: u64,
    ended: Arc<Notify>,
}

/// A replica with its connections.
#[derive(Debug)]
struct Pool {
    endpoint: Endpoint,
    route: Arc<Route>,
    connections: JoinSet<Result<(), Refused>>,
    on_the_way: OnTheWay,
    unfit: Option<Unfit>,
    avoid_until: Moment,
    /// Among equally loaded ones the one that has waited longest is next.
    turn: u64,
}

impl Pool {
    fn load(&self, now: Moment) -> (bool, usize, u64) {
        (now < self.avoid_until, self.connections.len(), self.turn)
    }
}

/// A replica as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaState {
    /// Its db.
    pub db: DbUid,
    /// Where it is.
    pub endpoint: Endpoint,
    /// Connections to it.
    pub connections: usize,
    /// Why it gets no new ones.
    pub unfit: Option<Unfit>,
}

impl Pools {
    /// No replicas yet.
    pub fn new(options: Arc<SocketOptions>, counters: Arc<Counters>) -> Self {
        Pools { options, counters, gate: Arc::default(), pools: BTreeMap::new(), turn: 0, ended: Arc::default() }
    }

    /// Connections are allowed until then; `None`: not at all. To be followed by [`Pools::apply`].
    pub fn allow(&self, until: Option<Moment>) {
        self.gate.set(until);
    }

    /// Makes the pools what was judged. When it returns, every socket to a replica that must not have any is closed.
    /// Gives readers back whom no byte has been exchanged for yet.
    pub async fn apply(&mut self, verdicts: &BTreeMap<DbUid, Verdict>) -> Vec<Client> {
        let open = self.gate.is_open();
        let mut leaving = Vec::new();
        for (uid, pool) in &self.pools {
            let verdict = verdicts.get(uid).unwrap_or(&Verdict::Unfit(Unfit::Gone));
            if !open {
                leaving.push((uid.clone(), "the store is silent or no sentinel has enabled this proxy".to_owned()));
            } else if let Verdict::Unfit(unfit) = verdict {
                leaving.push((uid.clone(), unfit.to_string()));
            } else if verdict.endpoint() != Some(&pool.endpoint) {
                leaving.push((uid.clone(), "it has moved".to_owned()));
            }
        }
        let mut back = Vec::new();
        for (uid, reason) in leaving {
            let Some(mut pool) = self.pools.remove(&uid) else { continue };
            let number = pool.connections.len();
            pool.connections.shutdown().await;
            back.extend(pool.on_the_way.give_back());
            self.counters.cut.add(number as u64);
            warn!(db = uid.as_str(), replica = %pool.endpoint, connections = number, reason, "a replica is left");
        }
        if open {
            verdicts.iter().for_each(|(uid, verdict)| self.adopt(uid, verdict));
        }
        back
    }

    fn adopt(&mut self, uid: &DbUid, verdict: &Verdict) {
        let (endpoint, unfit) = match verdict {
            Verdict::Fit(endpoint) => (endpoint, None),
            Verdict::Keep(endpoint, unfit) => (endpoint, Some(*unfit)),
            Verdict::Unfit(_) => return,
        };
        if let Some(pool) = self.pools.get_mut(uid) {
            let changed =
                pool.unfit.map(|unfit| std::mem::discriminant(&unfit)) != unfit.map(|u| std::mem::discriminant(&u));
            pool.unfit = unfit;
            if changed {
                match unfit {
                    Some(unfit) => {
                        info!(db = uid.as_str(), %endpoint, reason = %unfit, "a replica gets no new connections")
                    }
                    None => info!(db = uid.as_str(), %endpoint, "a replica gets connections again"),
                }
            }
        } else if unfit.is_none() {
            info!(db = uid.as_str(), %endpoint, "a replica gets connections");
            self.pools.insert(uid.clone(), self.pool(endpoint));
        }
    }

    fn pool(&self, endpoint: &Endpoint) -> Pool {
        let upstream = match endpoint.host.parse::<IpAddr>() {
            Ok(address) => Upstream::Addresses(Arc::new(vec![SocketAddr::new(address, endpoint.port)])),
            Err(_) => Upstream::Name(endpoint.clone()),
        };
        let route =
            Route { upstream, gate: self.gate.clone(), options: self.options.clone(), counters: self.counters.clone() };
        Pool {
            endpoint: endpoint.clone(),
            route: Arc::new(route),
            connections: JoinSet::new(),
            on_the_way: OnTheWay::default(),
            unfit: None,
            avoid_until: Moment::now(),
            turn: 0,
        }
    }

    /// There is a replica for a client, now.
    pub fn leads_somewhere(&self) -> bool {
        self.gate.is_open() && self.pools.values().any(|pool| pool.unfit.is_none())
    }

    /// Leads a client to the replica with the fewest connections; gives it back if there is none.
    ///
    /// # Errors
    /// There is no replica now.
    pub fn lead(&mut self, client: Client, now: Moment) -> Result<(), Client> {
        if !self.leads_somewhere() {
            return Err(client);
        }
        let fit = self.pools.values_mut().filter(|pool| pool.unfit.is_none());
        let Some(pool) = fit.min_by_key(|pool| pool.load(now)) else { return Err(client) };
        self.turn += 1;
        pool.turn = self.turn;
        let (route, ended) = (pool.route.clone(), self.ended.clone());
        let slot = pool.on_the_way.add(client);
        pool.connections.spawn(async move {
            let result = door::lead(slot, route).await;
            ended.notify_one();
            result
        });
        Ok(())
    }

    /// Forgets connections that have ended; gives clients whose replica could not be connected to.
    pub fn reap(&mut self, now: Moment) -> Vec<Client> {
        let mut refused = Vec::new();
        for (uid, pool) in &mut self.pools {
            while let Some(ended) = pool.connections.try_join_next() {
                if let Ok(Err(Refused { client, error })) = ended {
                    if pool.avoid_until <= now {
                        warn!(db = uid.as_str(), replica = %pool.endpoint, %error, "can't connect to a replica");
                    }
                    debug!(%error, "a client of a replica is refused");
                    pool.avoid_until = now + AVOID;
                    refused.push(client);
                }
            }
        }
        refused
    }

    /// Waits until a connection has ended; it is for [`Pools::reap`] to take. Cancel-safe.
    pub async fn ended(&self) {
        self.ended.notified().await;
    }

    /// Closes all connections.
    pub async fn shut_down(&mut self) {
        self.gate.set(None);
        self.apply(&BTreeMap::new()).await;
    }

    /// What there is to show.
    pub fn states(&self) -> Vec<ReplicaState> {
        let state = |(db, pool): (&DbUid, &Pool)| ReplicaState {
            db: db.clone(),
            endpoint: pool.endpoint.clone(),
            connections: pool.connections.len(),
            unfit: pool.unfit,
        };
        self.pools.iter().map(state).collect()
    }
}

#[cfg(test)]
#[path = "pools_tests.rs"]
mod tests;
