//! What the proxy does next, out of what it knows. No sockets, no clock: time comes in as an argument.

use model::ProxyUid;
use model::stolon::ClusterData;
use pg::endpoints::Endpoint;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use store::{LeaseId, Moment};

/// All doors are shut this long before the lease can end, to be sure against clocks that run differently fast and
/// against the time that shutting takes.
pub const MARGIN: Duration = Duration::from_millis(500);
/// etcd grants nothing shorter by default.
const SHORTEST_LEASE: Duration = Duration::from_secs(2);
/// A Go sentinel forgets a proxy whose record did not change for twice the announced timeout.
pub const REPUBLISH: Duration = Duration::from_secs(300);
/// Never announced less. Announcing more than the timeout in force is always safe: it only makes a sentinel wait longer
/// before it forgets a proxy whose record does not change though its lease is kept; that of a dead one is gone with the
/// lease. So much lets idle proxies write every few minutes, and leaves as long again to try it.
const LEAST_ANNOUNCED: Duration = Duration::from_secs(300);
/// Stolon's default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// Pause after something failed that is tried again.
pub const RETRY: Duration = Duration::from_secs(1);

/// The proxy's own limits, out of the specification's `proxyTimeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Everything is cut off so long after the last word from the store.
    pub own: Duration,
    /// Length of the lease.
    pub ttl: Duration,
}

impl Timing {
    /// Whole seconds for the lease, as etcd wants them, and at least [`MARGIN`] longer than the timeout. A timeout that
    /// even etcd's shortest lease can't serve becomes the longest one it can: keep-alives come four times per lease.
    pub fn new(proxy_timeout: Duration) -> Self {
        // An absurd timeout must not overflow; a day is as good as for ever here.
        let wanted = proxy_timeout.min(Duration::from_secs(86_400));
        let own = wanted.max(SHORTEST_LEASE - MARGIN);
        let ttl = own + MARGIN;
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        Timing { own, ttl: Duration::from_secs(seconds) }
    }
}

/// What is announced as this proxy's timeout: never below the one in force nor below the one that comes (F6).
pub fn announced(in_force: Duration, coming: Duration) -> Duration {
    in_force.max(coming).max(LEAST_ANNOUNCED)
}

/// A lease with its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTimes {
    /// `None`: there is none now.
    pub id: Option<LeaseId>,
    /// It surely lives until then.
    pub alive_until: Moment,
    /// What it was taken for.
    pub timing: Timing,
}

impl LeaseTimes {
    /// When the last request that the store answered was sent.
    pub fn contact(&self) -> Moment {
        self.alive_until.checked_sub(self.timing.ttl).unwrap_or(self.alive_until)
    }

    /// Without another word from the store everything is shut at this moment.
    pub fn deadline(&self) -> Moment {
        let before_end = self.alive_until.checked_sub(MARGIN).unwrap_or(self.alive_until);
        before_end.min(self.contact() + self.timing.own)
    }
}

/// What the cluster data says to this proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orders {
    /// Generation of the proxy object.
    pub generation: i64,
    /// The db to forward to.
    pub master: Master,
    /// The sentinel has seen this proxy and lets it forward.
    pub enabled: bool,
    /// The specification's timeout.
    pub proxy_timeout: Duration,
}

/// The db to forward to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Master {
    /// There is none yet.
    None,
    /// Another one is taking over.
    Switching,
    /// There is one, but not where.
    NoAddress,
    /// Here.
    At(Endpoint),
}

/// The cluster data as this proxy sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// The store was not read yet.
    Unread,
    /// There is no cluster data.
    Absent,
    /// There is, but it can't be worked with.
    Unusable,
    /// Read.
    Orders(Orders),
}

/// Picks out what concerns this proxy.
pub fn orders(data: &ClusterData, uid: &ProxyUid) -> Orders {
    let master = match (data.proxied_master(), pg::endpoints::master(data)) {
        (None, _) if data.cluster.status.master.is_empty() => Master::None,
        (None, _) => Master::Switching,
        (Some(_), Ok(endpoint)) => Master::At(endpoint),
        (Some(_), Err(_)) => Master::NoAddress,
    };
    // Cluster data is valid here; should it not be, the default timeout is stolon's.
    let proxy_timeout = data.spec().effective().map_or(DEFAULT_TIMEOUT, |spec| spec.proxy_timeout.to_std());
    Orders {
        generation: data.proxy.generation,
        master,
        enabled: data.proxy.spec.enabled_proxies.contains(uid),
        proxy_timeout,
    }
}

/// Where to forward to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// As the cluster data names it.
    pub endpoint: Endpoint,
    /// What that resolves to, sorted.
    pub addresses: Arc<Vec<SocketAddr>>,
}

/// Why the proxy forwards, or doesn't; for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the texts below say it")]
pub enum Reason {
    Unread,
    NoData,
    UnusableData,
    NoMaster,
    Switching,
    NoAddress,
    Unresolved,
    NotEnabled,
    StoreSilent,
    MasterMoved,
    Unpublished,
    Ready,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Unread => "the store was not read yet",
            Reason::NoData => "there is no cluster data",
            Reason::UnusableData => "the cluster data can't be used",
            Reason::NoMaster => "no master was chosen yet",
            Reason::Switching => "closed until the chosen master is ready",
            Reason::NoAddress => "the master has not reported its address",
            Reason::Unresolved => "the master's host name can't be resolved",
            Reason::NotEnabled => "no sentinel has enabled this proxy yet",
            Reason::StoreSilent => "the store is silent",
            Reason::MasterMoved => "the master has moved",
            Reason::Unpublished => "the store has not taken this proxy's record yet",
            Reason::Ready => "ready",
        })
    }
}

impl Reason {
    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Reason::Unread => "store_unread",
            Reason::NoData => "no_cluster_data",
            Reason::UnusableData => "unusable_cluster_data",
            Reason::NoMaster => "no_master",
            Reason::Switching => "switching",
            Reason::NoAddress => "no_address",
            Reason::Unresolved => "unresolved_address",
            Reason::NotEnabled => "not_enabled",
            Reason::StoreSilent => "store_silent",
            Reason::MasterMoved => "master_moved",
            Reason::Unpublished => "unpublished",
            Reason::Ready => "ready",
        }
    }
}

/// What the cluster data asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The generation to publish; `None`: nothing.
    pub publish: Option<i64>,
    /// Where to forward to.
    pub destination: Option<Destination>,
    /// Why.
    pub reason: Reason,
}

/// What the cluster data asks for, given what the master's name resolves to.
pub fn target(document: &Document, resolved: Option<&Destination>) -> Target {
    let nowhere = |publish, reason| Target { publish, destination: None, reason };
    let orders = match document {
        Document::Unread => return nowhere(None, Reason::Unread),
        Document::Absent => return nowhere(None, Reason::NoData),
        Document::Unusable => return nowhere(None, Reason::UnusableData),
        Document::Orders(orders) => orders,
    };
    match &orders.master {
        Master::None => nowhere(Some(orders.generation), Reason::NoMaster),
        Master::Switching => nowhere(Some(orders.generation), Reason::Switching),
        Master::NoAddress => nowhere(None, Reason::NoAddress),
        Master::At(endpoint) => match resolved.filter(|destination| destination.endpoint == *endpoint) {
            None => nowhere(None, Reason::Unresolved),
            Some(_) if !orders.enabled => nowhere(Some(orders.generation), Reason::NotEnabled),
            Some(destination) => Target {
                publish: Some(orders.generation),
                destination: Some(destination.clone()),
                reason: Reason::Ready,
            },
        },
    }
}

/// A publication to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Generation that is applied.
    pub generation: i64,
    /// Revision of the cluster data that says so.
    pub revision: i64,
    /// The lease that the record is to hang on.
    pub lease: LeaseId,
    /// Length of that lease.
    pub ttl: Duration,
    /// Announced timeout.
    pub announced: Duration,
}

/// A publication that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// What it said.
    pub order: Order,
    /// When it was sent.
    pub sent: Moment,
}

/// Everything that the next step depends on.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The time.
    pub now: Moment,
    /// What the cluster data asks for.
    pub target: &'a Target,
    /// The cluster data's revision.
    pub revision: i64,
    /// The cluster data has been unusable since.
    pub unusable_since: Option<Moment>,
    /// The specification's timing.
    pub timing: Timing,
    /// The lease in force.
    pub lease: Option<LeaseTimes>,
    /// A lease that is to replace it.
    pub next_lease: Option<LeaseTimes>,
    /// The record may hang on this id of the next lease, because a publication on it was sent.
    pub next_tried: Option<LeaseId>,
    /// The listening socket is open.
    pub listening: bool,
    /// It is to be closed while the store is silent.
    pub stop_listening: bool,
    /// Where connections are forwarded to now.
    pub forwarding: Option<&'a Destination>,
    /// The last publication that still counts.
    pub published: Option<&'a Published>,
    /// A publication is under way.
    pub publishing: bool,
    /// Nothing that failed is tried again before.
    pub retry_at: Option<Moment>,
}

/// The store does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// Since this last word.
    pub since: Moment,
    /// All connections are cut off then, unless it answers.
    pub cut_at: Moment,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Close every connection and forward nothing.
    Cut(Reason),
    /// Close the listening socket.
    StopListening,
    /// Open the listening socket.
    Listen,
    /// Publish.
    Publish(Order),
    /// Forward connections from now on.
    Forward(Destination),
    /// Nothing, unless something changes or this moment comes.
    Wait(Moment),
}

impl Facts<'_> {
    /// Connections may be forwarded until then; `None`: not at all.
    pub fn forward_until(&self) -> Option<Moment> {
        self.entitled_until(self.published?)
    }

    /// A sentinel that takes a db's role away surely waits for this proxy until then, because of this record of it.
    pub fn entitled_until(&self, published: &Published) -> Option<Moment> {
        let lease = self.lease?;
        if lease.id != Some(published.order.lease) {
            return None;
        }
        // The second limit bites where records can't be written though leases are kept, as in an etcd that is full.
        let record = (published.sent + published.order.announced * 2).checked_sub(MARGIN)?;
        let deadline = lease.deadline().min(record);
        // Without an answer the record may hang on either lease: both must live.
        let Some(tried) = self.next_tried else { return Some(deadline) };
        let next = self.next_lease.filter(|next| next.id == Some(tried))?;
        Some(deadline.min(next.deadline()))
    }

    /// The store is silent though keep-alives are due, and connections are open that this will cost.
    pub fn silence(&self) -> Option<Silence> {
        let (lease, cut_at) = (self.lease?, self.forward_until()?);
        self.forwarding?;
        // Keep-alives are sent four times per lease: the second one in a row is missing.
        let silent = lease.contact() + lease.timing.own / 2 <= self.now;
        silent.then(|| Silence { since: lease.contact(), cut_at })
    }

    /// The listening socket stays open until then.
    fn listen_until(&self) -> Option<Moment> {
        let silent = self.leases().map(|lease| lease.deadline()).max()?;
        Some(self.unusable_since.map_or(silent, |since| silent.min(since + self.timing.own)))
    }

    fn leases(&self) -> impl Iterator<Item = LeaseTimes> {
        [self.lease, self.next_lease].into_iter().flatten()
    }

    /// The store has answered lately.
    fn hears(&self) -> bool {
        self.listen_until().is_some_and(|deadline| self.now < deadline)
    }

    /// Why nothing is forwarded, for people; [`Reason::Ready`] while nothing stands in the way. What the store said
    /// before it fell silent is not the reason any more.
    pub fn reason(&self) -> Reason {
        // Before the first grant there is nothing that silence could be told from.
        let granted = self.leases().filter(|lease| lease.id.is_some());
        let silent = granted.map(|lease| lease.deadline()).max().is_some_and(|deadline| self.now >= deadline);
        if silent { Reason::StoreSilent } else { self.target.reason.clone() }
    }

    /// The publication that is due, whether it may be made now or not.
    fn due(&self) -> Option<Order> {
        let (generation, current) = (self.target.publish?, self.lease?);
        let lease = self.next_lease.filter(|next| next.id.is_some() && self.now < next.deadline()).unwrap_or(current);
        let order = Order {
            generation,
            revision: self.revision,
            lease: lease.id?,
            ttl: lease.timing.ttl,
            announced: announced(current.timing.own.max(lease.timing.own), self.timing.own),
        };
        let Some(published) = self.published else { return Some(order) };
        // The cluster data changes without touching proxies too: its revision alone is no reason, except for
        // beginning to forward.
        let begins = self.target.destination.is_some() && self.forwarding.is_none();
        let same = Order { revision: published.order.revision, ..order.clone() } == published.order
            && (!begins || published.order.revision == self.revision);
        let old = published.sent + REPUBLISH <= self.now;
        (!same || old).then_some(order)
    }

    fn next_moment(&self) -> Moment {
        let mut moments = vec![self.now + Duration::from_secs(30)];
        moments.extend(self.retry_at);
        if self.lease.is_some() && !self.hears() {
            // A keep-alive that goes well again gives no sign.
            moments.push(self.now + RETRY);
        }
        if self.listening {
            moments.extend(self.listen_until().filter(|_| self.stop_listening));
        }
        moments.extend(self.published.map(|published| published.sent + REPUBLISH).filter(|_| !self.publishing));
        if self.forwarding.is_some() {
            moments.extend(self.forward_until());
            // Keep-alives move the deadline without a sign, and the gate has to be told in time: well before it shuts.
            moments.push(self.now + self.timing.own / 3);
        }
        let future = moments.into_iter().filter(|moment| *moment > self.now).min();
        future.unwrap_or(self.now + RETRY)
    }
}

/// Decides the next step. The order of the rules is the guarantee: closing comes before everything else (F2, F4),
/// publishing before forwarding (F3).
pub fn next_step(facts: &Facts<'_>) -> Step {
    let may_forward = facts.forward_until().is_some_and(|deadline| facts.now < deadline);
    if let Some(destination) = facts.forwarding {
        if !may_forward {
            return Step::Cut(Reason::StoreSilent);
        }
        if facts.target.destination.as_ref() != Some(destination) {
            let moved = facts.target.reason == Reason::Ready;
            return Step::Cut(if moved { Reason::MasterMoved } else { facts.target.reason.clone() });
        }
    }
    let heard = facts.hears();
    if facts.listening && !heard && facts.stop_listening {
        return Step::StopListening;
    }
    let patient = facts.retry_at.is_some_and(|moment| facts.now < moment);
    if !facts.listening && heard && facts.target.reason != Reason::Unread && !patient {
        return Step::Listen;
    }
    let due = facts.due();
    if let Some(order) = &due
        && facts.listening
        && heard
        && !facts.publishing
        && !patient
    {
        return Step::Publish(order.clone());
    }
    match (&facts.target.destination, facts.forwarding) {
        (Some(destination), None) if facts.listening && due.is_none() && may_forward => {
            Step::Forward(destination.clone())
        }
        _ => Step::Wait(facts.next_moment()),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
