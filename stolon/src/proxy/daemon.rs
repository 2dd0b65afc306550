//! The loop: observe, decide, act.

use super::args::ProxyArgs;
use super::counters::Counters;
use super::forward::{self, Route};
use super::gate::Gate;
use super::lease::HeldLease;
use super::plan::{self, Destination, Document, Facts, Master, Order, Published, RETRY, Reason, Step, Timing};
use super::publish::{Outcome, Publisher};
use super::sockets::{self, SocketOptions, Upstream};
use crate::access;
use common::runtime::Termination;
use futures::future::BoxFuture;
use model::ProxyUid;
use model::stolon::keys::Keys;
use pg::endpoints::Endpoint;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{Entry, Follower, LeaseId, SharedStore, Target, View};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

/// When the system has no descriptors left, trying at once again would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A resolver that is silent this long is taken as one that doesn't know.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);
/// A clean stop must not hang on a store that is out of reach; the lease then expires by itself.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs the proxy until SIGTERM or SIGINT.
///
/// # Errors
/// Unusable options.
pub async fn run(args: ProxyArgs) -> anyhow::Result<()> {
    let keys = args.common.keys()?;
    let mut termination = Termination::listen()?;
    sockets::raise_descriptor_limit();
    let store = args.common.open_store().await?;
    let mut proxy = Proxy::new(args, store, keys);
    info!(uid = proxy.uid.as_str(), "the proxy starts");
    // Cancel-safe where it matters: what is dropped half-way here is closed right below.
    tokio::select! {
        () = proxy.work() => {}
        () = termination.wait() => {}
    }
    info!("the proxy stops");
    proxy.stop().await;
    Ok(())
}

type Resolving = BoxFuture<'static, (Endpoint, io::Result<Vec<SocketAddr>>)>;

struct Proxy {
    args: ProxyArgs,
    store: SharedStore,
    keys: Keys,
    uid: ProxyUid,
    // Kept for its task.
    _follower: Follower,
    view: watch::Receiver<View>,
    connected: bool,
    entry: Option<Entry>,
    document: Document,
    unusable_since: Option<Instant>,
    lease: Option<HeldLease>,
    next_lease: Option<HeldLease>,
    next_tried: Option<LeaseId>,
    listener: Option<TcpListener>,
    accept_after: Option<Instant>,
    resolved: Option<Destination>,
    resolving: Option<Resolving>,
    resolve_after: Option<Instant>,
    publishing: Option<BoxFuture<'static, Outcome>>,
    published: Option<Published>,
    retry_at: Option<Instant>,
    forwarding: Option<Destination>,
    gate: Arc<Gate>,
    options: Arc<SocketOptions>,
    counters: Arc<Counters>,
    connections: JoinSet<io::Result<()>>,
    told: Option<Reason>,
    trouble: Option<String>,
}

enum Event {
    View,
    Lease,
    Published(Outcome),
    Resolved(Endpoint, io::Result<Vec<SocketAddr>>),
    Accepted(io::Result<TcpStream>),
    Ended,
    Time,
}

impl Proxy {
    fn new(args: ProxyArgs, store: SharedStore, keys: Keys) -> Self {
        let follower = Follower::start(store.clone(), vec![Target::Key(keys.clusterdata())]);
        Proxy {
            options: Arc::new(SocketOptions::new(&args)),
            counters: Arc::default(),
            args,
            store,
            keys,
            uid: access::random_uid().into(),
            view: follower.subscribe(),
            _follower: follower,
            connected: false,
            entry: None,
            document: Document::Unread,
            unusable_since: None,
            lease: None,
            next_lease: None,
            next_tried: None,
            listener: None,
            accept_after: None,
            resolved: None,
            resolving: None,
            resolve_after: None,
            publishing: None,
            published: None,
            retry_at: None,
            forwarding: None,
            gate: Arc::default(),
            connections: JoinSet::new(),
            told: None,
            trouble: None,
        }
    }

    async fn work(&mut self) {
        loop {
            let moment = self.settle().await;
            match self.next_event(moment).await {
                Event::View => self.see_view(),
                Event::Published(outcome) => self.see_outcome(outcome),
                Event::Resolved(endpoint, result) => self.see_addresses(endpoint, result),
                Event::Accepted(result) => self.see_client(result),
                Event::Lease | Event::Ended | Event::Time => {}
            }
        }
    }

    /// Takes steps until there is nothing to do before the moment that is returned.
    async fn settle(&mut self) -> Instant {
        loop {
            let now = Instant::now();
            self.keep_lease(now);
            self.resolve(now);
            let target = plan::target(&self.document, self.resolved.as_ref());
            let facts = self.facts(now, &target);
            let step = plan::next_step(&facts);
            let open_until = facts.forward_until().filter(|_| self.forwarding.is_some());
            self.gate.set(open_until);
            match step {
                Step::Cut(reason) => self.cut(&reason).await,
                Step::StopListening => {
                    warn!("the store is silent, the listening socket is closed until it is back");
                    self.listener = None;
                }
                Step::Listen => self.listen().await,
                Step::Publish(order) => self.publish(order),
                Step::Forward(destination) => self.forward(destination),
                Step::Wait(moment) => {
                    self.tell(&target.reason);
                    return [self.accept_after, self.resolve_after].into_iter().flatten().fold(moment, Instant::min);
                }
            }
        }
    }

    fn timing(&self) -> Timing {
        match (&self.document, &self.lease) {
            (Document::Orders(orders), _) => Timing::new(orders.proxy_timeout),
            (_, Some(lease)) => lease.timing(),
            (_, None) => Timing::new(Duration::from_secs(15)),
        }
    }

    fn facts<'a>(&'a self, now: Instant, target: &'a plan::Target) -> Facts<'a> {
        Facts {
            now,
            target,
            revision: self.entry.as_ref().map_or(0, |entry| entry.mod_revision),
            unusable_since: self.unusable_since,
            timing: self.timing(),
            lease: self.lease.as_ref().map(HeldLease::times),
            next_lease: self.next_lease.as_ref().map(HeldLease::times),
            next_tried: self.next_tried,
            listening: self.listener.is_some(),
            stop_listening: self.args.stop_listening,
            forwarding: self.forwarding.as_ref(),
            published: self.published.as_ref(),
            publishing: self.publishing.is_some(),
            retry_at: self.retry_at,
        }
    }

    /// Takes the first lease, and another one when the specification wants another length.
    fn keep_lease(&mut self, now: Instant) {
        self.retry_at = self.retry_at.filter(|moment| now < *moment);
        if self.document == Document::Unread {
            return;
        }
        let timing = self.timing();
        match &self.lease {
            None => self.lease = Some(HeldLease::start(self.store.clone(), timing)),
            Some(lease) if lease.timing() != timing => self.take_another_lease(timing),
            Some(_) => {}
        }
    }

    /// Takes a lease that is to replace the one in force. One that waits to do so stays: the record may hang on it.
    fn take_another_lease(&mut self, timing: Timing) {
        let store = &self.store;
        self.next_lease.get_or_insert_with(|| HeldLease::start(store.clone(), timing));
    }

    fn see_view(&mut self) {
        let (entry, loaded, connected) = {
            let view = self.view.borrow_and_update();
            (view.entries.get(&self.keys.clusterdata()).cloned(), view.loaded, view.connected)
        };
        if loaded {
            self.see_entry(entry.as_ref());
        }
        // The kept lease tries again only now and then: a new one is there at once, and the service with it.
        let back = connected && !std::mem::replace(&mut self.connected, connected);
        if back && self.lease.as_ref().is_some_and(|l| l.is_silent(Instant::now())) {
            self.take_another_lease(self.timing());
        }
    }

    fn see_entry(&mut self, entry: Option<&Entry>) {
        if entry == self.entry.as_ref() && self.document != Document::Unread {
            return;
        }
        self.entry = entry.cloned();
        self.document = match entry.map(access::parse) {
            None => Document::Absent,
            Some(Ok(versioned)) => Document::Orders(plan::orders(&versioned.data, &self.uid)),
            Some(Err(error)) => {
                warn!(error = common::exit::one_line(&error.into()), "the cluster data can't be used");
                Document::Unusable
            }
        };
        let unusable = self.document == Document::Unusable;
        self.unusable_since = unusable.then(|| self.unusable_since.unwrap_or_else(Instant::now));
    }

    /// Closes every socket that carries data, and returns when they are closed.
    async fn cut(&mut self, reason: &Reason) {
        self.gate.set(None);
        self.forwarding = None;
        // What was published before doesn't entitle to forward any more.
        self.published = None;
        let number = self.connections.len();
        self.connections.shutdown().await;
        warn!(connections = number, %reason, "all connections are cut off");
        self.told = Some(reason.clone());
    }

    async fn listen(&mut self) {
        let (host, port) = (&self.args.listen_address, self.args.port);
        match sockets::listen(host, port).await {
            Ok(listener) => {
                info!(host, port, "listening");
                self.listener = Some(listener);
                self.trouble = None;
            }
            Err(error) => {
                let text = format!("can't listen on {host}:{port}: {error}; free the port or give another one");
                self.fail(text);
            }
        }
    }

    fn publish(&mut self, order: Order) {
        if self.next_lease.as_ref().is_some_and(|next| next.times().id == Some(order.lease)) {
            self.next_tried = Some(order.lease);
        }
        let port = self.listener.as_ref().and_then(|l| l.local_addr().ok()).map_or(self.args.port, |a| a.port());
        let publisher = Publisher {
            store: self.store.clone(),
            keys: self.keys.clone(),
            uid: self.uid.clone(),
            address: self.args.advertised().to_owned(),
            port,
        };
        self.publishing = Some(Box::pin(publisher.publish(order)));
    }

    fn see_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Done(order, sent) => {
                debug!(generation = order.generation, "published");
                // Now it is known which lease the record hangs on.
                if self.next_tried.take() == Some(order.lease) {
                    // The record has moved to the new lease: the old one holds nothing any more.
                    if let Some(old) = std::mem::replace(&mut self.lease, self.next_lease.take()) {
                        old.abandon();
                    }
                }
                self.published = Some(Published { order, sent });
                self.trouble = None;
                // A name may have got other addresses meanwhile.
                self.look_up_again();
            }
            Outcome::Stale(entry) => self.see_entry(entry.as_ref()),
            Outcome::Failed(error) => {
                let error = common::exit::one_line(&error.into());
                self.fail(format!("can't publish: {error}"));
            }
        }
    }

    fn forward(&mut self, destination: Destination) {
        info!(master = %destination.endpoint, "forwarding");
        self.told = Some(Reason::Ready);
        self.forwarding = Some(destination);
    }

    fn see_client(&mut self, result: io::Result<TcpStream>) {
        match result {
            Ok(client) => {
                // Not forwarding, or woken up too late: the client is dropped, which closes its connection.
                if let Some(destination) = self.forwarding.as_ref().filter(|_| self.gate.is_open()) {
                    let route = Route {
                        upstream: Upstream::Addresses(destination.addresses.clone()),
                        gate: self.gate.clone(),
                        options: self.options.clone(),
                        counters: self.counters.clone(),
                    };
                    self.connections.spawn(forward::serve(client, Arc::new(route)));
                }
            }
            Err(error) => {
                self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
                self.complain(format!("can't accept a connection: {error}"));
            }
        }
    }

    /// Looks the master's name up if it is not known yet.
    fn resolve(&mut self, now: Instant) {
        self.accept_after = self.accept_after.filter(|moment| now < *moment);
        self.resolve_after = self.resolve_after.filter(|moment| now < *moment);
        let Document::Orders(plan::Orders { master: Master::At(endpoint), .. }) = &self.document else { return };
        if self.resolved.as_ref().is_some_and(|resolved| resolved.endpoint == *endpoint) {
            return;
        }
        if let Ok(address) = endpoint.host.parse::<IpAddr>() {
            let addresses = Arc::new(vec![SocketAddr::new(address, endpoint.port)]);
            self.resolved = Some(Destination { endpoint: endpoint.clone(), addresses });
        } else if self.resolving.is_none() && self.resolve_after.is_none() {
            self.resolving = Some(Box::pin(look_up(endpoint.clone())));
        }
    }

    fn look_up_again(&mut self) {
        let Some(resolved) = &self.resolved else { return };
        if resolved.endpoint.host.parse::<IpAddr>().is_err() && self.resolving.is_none() {
            self.resolving = Some(Box::pin(look_up(resolved.endpoint.clone())));
        }
    }

    fn see_addresses(&mut self, endpoint: Endpoint, result: io::Result<Vec<SocketAddr>>) {
        match result {
            Ok(addresses) => self.resolved = Some(Destination { endpoint, addresses: Arc::new(addresses) }),
            Err(error) => {
                // What is known stays: a resolver that is down must not cut connections off.
                self.resolve_after = Some(Instant::now() + RETRY);
                self.complain(format!("can't resolve the master's host name {}: {error}", endpoint.host));
            }
        }
    }

    fn fail(&mut self, text: String) {
        self.retry_at = Some(Instant::now() + RETRY);
        self.complain(text);
    }

    /// Logs trouble once, not at each attempt.
    fn complain(&mut self, text: String) {
        if self.trouble.as_ref() != Some(&text) {
            warn!("{text}");
            self.trouble = Some(text);
        }
    }

    fn tell(&mut self, reason: &Reason) {
        if self.forwarding.is_none() && *reason != Reason::Ready && self.told.as_ref() != Some(reason) {
            info!(%reason, "not forwarding");
            self.told = Some(reason.clone());
        }
    }

    /// Waits for whatever comes first. Each branch is cancel-safe: channels and accepting lose nothing, futures under
    /// way stay in their fields until they have ended.
    async fn next_event(&mut self, moment: Instant) -> Event {
        let accepting = self.listener.as_ref().filter(|_| self.accept_after.is_none());
        tokio::select! {
            _ = self.view.changed() => Event::View,
            () = lease_changed(self.lease.as_mut()) => Event::Lease,
            () = lease_changed(self.next_lease.as_mut()) => Event::Lease,
            outcome = ended(&mut self.publishing) => Event::Published(outcome),
            (endpoint, result) = ended(&mut self.resolving) => Event::Resolved(endpoint, result),
            client = accept(accepting) => Event::Accepted(client),
            Some(_) = self.connections.join_next() => Event::Ended,
            () = tokio::time::sleep_until(moment.into()) => Event::Time,
        }
    }

    async fn stop(mut self) {
        self.gate.set(None);
        self.listener = None;
        self.publishing = None;
        self.connections.shutdown().await;
        for lease in [self.lease, self.next_lease].into_iter().flatten() {
            match tokio::time::timeout(REVOKE_TIMEOUT, lease.revoke()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(%error, "the proxy's record stays until its lease expires"),
                Err(_) => warn!("the store is silent: the proxy's record stays until its lease expires"),
            }
        }
    }
}

async fn look_up(endpoint: Endpoint) -> (Endpoint, io::Result<Vec<SocketAddr>>) {
    let name = (endpoint.host.clone(), endpoint.port);
    let result = match tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(name)).await {
        Ok(Ok(addresses)) => {
            let mut addresses: Vec<SocketAddr> = addresses.collect();
            // Resolvers turn the order round, which must not look like a change.
            addresses.sort_unstable();
            addresses.dedup();
            if addresses.is_empty() { Err(io::Error::other("it has no address")) } else { Ok(addresses) }
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    (endpoint, result)
}

async fn lease_changed(lease: Option<&mut HeldLease>) {
    match lease {
        Some(lease) => lease.changed().await,
        None => std::future::pending().await,
    }
}

/// Waits for the end of a future that is kept in a field, and takes it out then.
async fn ended<T>(slot: &mut Option<BoxFuture<'static, T>>) -> T {
    match slot {
        Some(future) => {
            let value = future.await;
            *slot = None;
            value
        }
        None => std::future::pending().await,
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(client, _)| client),
        None => std::future::pending().await,
    }
}
