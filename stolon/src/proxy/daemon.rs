//! The loop: observe, decide, act.

mod clients;
mod telling;

use super::args::ProxyArgs;
use super::door::{Door, OnTheWay, Refused, Wants};
use super::forward::Route;
use super::gate::Gate;
use super::lease::HeldLease;
use super::plan::{self, Destination, Document, Facts, Master, Order, Published, RETRY, Reason, Step, Timing};
use super::publish::{Outcome, Publisher};
use super::replica_port::{self, ReplicaPort};
use super::resolve::Resolver;
use super::sockets::{self, SocketOptions};
use super::status::Status;
use crate::access;
use crate::metrics;
use common::runtime::Termination;
use futures::future::BoxFuture;
use model::ProxyUid;
use model::stolon::keys::Keys;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use store::{Entry, Follower, LeaseId, Moment, SharedStore, Target, View};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

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
    // What it holds is also for those who watch over this proxy.
    let status = Arc::new(Status::default());
    metrics::start_proxy(&args.common, status.clone()).await?;
    let mut proxy = Proxy::new(args, store, keys, status);
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
    unusable_since: Option<Moment>,
    lease: Option<HeldLease>,
    next_lease: Option<HeldLease>,
    next_tried: Option<LeaseId>,
    door: Door,
    replicas: Option<ReplicaPort>,
    resolver: Resolver,
    publishing: Option<BoxFuture<'static, Outcome>>,
    /// What entitles to forward to the master. A cut takes it away.
    published: Option<Published>,
    /// The last record that was written, whatever happened since.
    record: Option<Published>,
    retry_at: Option<Moment>,
    forwarding: Option<Destination>,
    gate: Arc<Gate>,
    route: Option<Arc<Route>>,
    options: Arc<SocketOptions>,
    connections: JoinSet<Result<(), Refused>>,
    on_the_way: OnTheWay,
    status: Arc<Status>,
    told: Option<Reason>,
    silent: bool,
    trouble: Option<String>,
}

enum Event {
    View,
    Lease,
    Published(Outcome),
    Resolved(Result<(), String>),
    Accepted(io::Result<TcpStream>),
    Ended(Option<Refused>),
    Replicas(replica_port::Event),
    Time,
}

impl Proxy {
    fn new(args: ProxyArgs, store: SharedStore, keys: Keys, status: Arc<Status>) -> Self {
        let follower = Follower::start(store.clone(), vec![Target::Key(keys.clusterdata())]);
        let options = Arc::new(SocketOptions::new(&args));
        let replicas = (args.replica_port != 0).then(|| ReplicaPort::new(&args, &store, &keys, &options, &status));
        let (host, port, hold) = (&args.listen_address, args.port, args.hold_connections);
        Proxy {
            door: Door::new(host, port, hold, Wants::Master, status.master.clone()),
            replicas,
            options,
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
            resolver: Resolver::default(),
            publishing: None,
            published: None,
            record: None,
            retry_at: None,
            forwarding: None,
            gate: Arc::default(),
            route: None,
            connections: JoinSet::new(),
            on_the_way: OnTheWay::default(),
            status,
            told: None,
            silent: false,
            trouble: None,
        }
    }

    async fn work(&mut self) {
        loop {
            let moment = self.settle().await;
            match self.next_event(moment).await {
                Event::View => self.see_view(),
                Event::Published(outcome) => self.see_outcome(outcome),
                Event::Resolved(result) => result.unwrap_or_else(|error| self.complain(error)),
                Event::Accepted(result) => self.see_client(result),
                Event::Ended(refused) => self.see_end(refused),
                Event::Replicas(event) => self.see_replicas(event),
                Event::Lease | Event::Time => {}
            }
        }
    }

    /// Takes steps until there is nothing to do before the moment that is returned.
    async fn settle(&mut self) -> Moment {
        loop {
            self.keep_lease(Moment::now());
            self.resolve(Moment::now());
            // First of all: nothing may be published while a reader is where it must not be.
            self.enforce_replicas().await;
            let now = Moment::now();
            let target = plan::target(&self.document, self.resolver.resolved());
            let facts = self.facts(now, &target);
            let (step, silence, reason) = (plan::next_step(&facts), facts.silence(), facts.reason());
            let open_until = facts.forward_until().filter(|_| self.forwarding.is_some());
            self.gate.set(open_until);
            self.tell_silence(silence, now);
            match step {
                Step::Cut(reason) => self.cut(&reason).await,
                Step::StopListening => self.stop_listening(),
                Step::Listen => self.listen().await,
                Step::Publish(order) => self.publish(order),
                Step::Forward(destination) => self.forward(destination),
                Step::Wait(moment) => {
                    self.tell(&reason, now);
                    return self.rest(moment, now).await;
                }
            }
        }
    }

    /// What is to be done when no step is: leads waiting clients on. Gives the moment to wake up at.
    async fn rest(&mut self, moment: Moment, now: Moment) -> Moment {
        if self.door.is_open()
            && let Some(port) = &mut self.replicas
            && let Err(text) = port.open(now).await
        {
            self.complain(text);
        }
        let leads_to_master = self.leads_to_master();
        let mut clients = self.door.due(now, leads_to_master);
        clients.extend(self.replicas.iter_mut().flat_map(|port| port.due(now, leads_to_master)));
        for client in clients {
            self.lead(client, now);
        }
        let mut moments = vec![moment];
        moments.extend(self.resolver.next_moment());
        moments.extend(self.door.next_moment(now));
        if let Some(port) = &mut self.replicas {
            moments.extend(port.next_moment(now));
            // Keep-alives move the readers' deadline without a sign.
            moments.push(now + self.timing().own / 3);
            moments.extend(self.readers_until(now).filter(|until| now < *until));
        }
        self.show();
        moments.into_iter().fold(moment, Moment::min)
    }

    /// Readers may be connected until then: the sentinels know this proxy, and wait for it to confirm before anything
    /// that a reader must not see happens to a replica.
    fn readers_until(&self, now: Moment) -> Option<Moment> {
        let Document::Orders(orders) = &self.document else { return None };
        let record = self.record.as_ref().filter(|_| orders.enabled && self.door.is_open())?;
        let target = plan::target(&self.document, self.resolver.resolved());
        self.facts(now, &target).entitled_until(record)
    }

    async fn enforce_replicas(&mut self) {
        let until = self.readers_until(Moment::now());
        if let Some(port) = &mut self.replicas {
            port.enforce(until).await;
        }
    }

    fn stop_listening(&mut self) {
        warn!("the store is silent, the listening socket is closed until it is back");
        self.door.shut();
        if let Some(port) = &mut self.replicas {
            port.door.shut();
        }
    }

    fn timing(&self) -> Timing {
        match (&self.document, &self.lease) {
            (Document::Orders(orders), _) => Timing::new(orders.proxy_timeout),
            (_, Some(lease)) => lease.timing(),
            (_, None) => Timing::new(Duration::from_secs(15)),
        }
    }

    fn facts<'a>(&'a self, now: Moment, target: &'a plan::Target) -> Facts<'a> {
        Facts {
            now,
            target,
            revision: self.entry.as_ref().map_or(0, |entry| entry.mod_revision),
            unusable_since: self.unusable_since,
            timing: self.timing(),
            lease: self.lease.as_ref().map(HeldLease::times),
            next_lease: self.next_lease.as_ref().map(HeldLease::times),
            next_tried: self.next_tried,
            listening: self.door.is_open(),
            stop_listening: self.args.stop_listening,
            forwarding: self.forwarding.as_ref(),
            published: self.published.as_ref(),
            publishing: self.publishing.is_some(),
            retry_at: self.retry_at,
        }
    }

    /// Takes the first lease, and another one when the specification wants another length.
    fn keep_lease(&mut self, now: Moment) {
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
        let back = connected && !self.connected;
        self.connected = connected;
        if back && self.lease.as_ref().is_some_and(|l| l.is_silent(Moment::now())) {
            self.take_another_lease(self.timing());
        }
    }

    fn see_entry(&mut self, entry: Option<&Entry>) {
        if entry == self.entry.as_ref() && self.document != Document::Unread {
            return;
        }
        self.entry = entry.cloned();
        let (document, data) = match entry.map(access::parse) {
            None => (Document::Absent, None),
            Some(Ok(versioned)) => (Document::Orders(plan::orders(&versioned.data, &self.uid)), Some(versioned.data)),
            Some(Err(error)) => {
                warn!(error = common::exit::one_line(&error.into()), "the cluster data can't be used");
                (Document::Unusable, None)
            }
        };
        self.document = document;
        if let Some(port) = &mut self.replicas {
            port.see_data(data);
        }
        let unusable = self.document == Document::Unusable;
        self.unusable_since = unusable.then(|| self.unusable_since.unwrap_or_else(Moment::now));
    }

    /// Closes every socket that carries data, and returns when they are closed.
    async fn cut(&mut self, reason: &Reason) {
        self.gate.set(None);
        self.forwarding = None;
        self.route = None;
        // What was published before doesn't entitle to forward any more.
        self.published = None;
        let number = self.connections.len();
        self.connections.shutdown().await;
        self.take_back();
        self.status.master.cut.add(number as u64);
        warn!(connections = number, %reason, "all connections are cut off");
        self.told = Some(reason.clone());
        self.show_reason(reason, Moment::now());
    }

    async fn listen(&mut self) {
        let (host, port) = (&self.args.listen_address, self.args.port);
        match self.door.open().await {
            Ok(()) => {
                info!(host, port, "listening");
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
        let replica = self.replicas.as_ref().map(|port| {
            let other = !self.args.replica_listen_address.is_empty();
            let address = if other { self.args.replica_host() } else { self.args.advertised() };
            (address.to_owned(), port.door.port())
        });
        let publisher = Publisher {
            store: self.store.clone(),
            keys: self.keys.clone(),
            uid: self.uid.clone(),
            address: self.args.advertised().to_owned(),
            port: self.door.port(),
            replica,
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
                let published = Published { order, sent };
                self.record = Some(published.clone());
                self.published = Some(published);
                self.trouble = None;
                self.resolver.refresh();
            }
            Outcome::Stale(entry) => self.see_entry(entry.as_ref()),
            Outcome::Failed(error) => {
                let error = common::exit::one_line(&error.into());
                self.fail(format!("can't publish: {error}"));
            }
        }
    }

    fn resolve(&mut self, now: Moment) {
        if let Document::Orders(plan::Orders { master: Master::At(endpoint), .. }) = &self.document {
            self.resolver.want(endpoint, now);
        }
    }

    fn fail(&mut self, text: String) {
        self.retry_at = Some(Moment::now() + RETRY);
        self.complain(text);
    }

    /// Logs trouble once, not at each attempt.
    fn complain(&mut self, text: String) {
        if self.trouble.as_ref() != Some(&text) {
            warn!("{text}");
            self.trouble = Some(text);
        }
    }

    /// Waits for whatever comes first. Each branch is cancel-safe: channels and accepting lose nothing, futures under
    /// way stay in their fields until they have ended.
    async fn next_event(&mut self, moment: Moment) -> Event {
        tokio::select! {
            _ = self.view.changed() => Event::View,
            () = lease_changed(self.lease.as_mut()) => Event::Lease,
            () = lease_changed(self.next_lease.as_mut()) => Event::Lease,
            outcome = ended(&mut self.publishing) => Event::Published(outcome),
            result = self.resolver.answer() => Event::Resolved(result),
            client = self.door.accept() => Event::Accepted(client),
            Some(result) = self.connections.join_next() => Event::Ended(result.ok().and_then(Result::err)),
            event = replica_event(self.replicas.as_mut()) => Event::Replicas(event),
            () = moment.wait() => Event::Time,
        }
    }

    async fn stop(mut self) {
        self.gate.set(None);
        self.door.shut();
        self.publishing = None;
        self.connections.shutdown().await;
        if let Some(port) = &mut self.replicas {
            port.pools.shut_down().await;
        }
        for lease in [self.lease, self.next_lease].into_iter().flatten() {
            match tokio::time::timeout(REVOKE_TIMEOUT, lease.revoke()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(%error, "the proxy's record stays until its lease expires"),
                Err(_) => warn!("the store is silent: the proxy's record stays until its lease expires"),
            }
        }
    }
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

async fn replica_event(port: Option<&mut ReplicaPort>) -> replica_port::Event {
    match port {
        Some(port) => port.next_event().await,
        None => std::future::pending().await,
    }
}
