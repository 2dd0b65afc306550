//! The sentinel at work: wait for a change, look, plan, write.

use super::args::SentinelArgs;
use super::election::{Candidacy, RETRY};
use super::history;
use super::inquirer::Inquirer;
use super::observe::{Entries, document, keepers_know_a_cluster, observe};
use super::plan::{Memory, Moment, Notes, Observed, Planned, Reason, plan, track};
use crate::access::{self, AccessError, Versioned};
use crate::metrics::{self, Program, SENTINEL_READY};
use anyhow::Result;
use chrono::Utc;
use common::metrics::NotReady;
use common::runtime::Termination;
use model::stolon::ext::History;
use model::stolon::keys::Keys;
use model::stolon::{ClusterData, StolonSpec};
use std::time::{Duration, Instant};
use store::{Compare, Follower, Op, SharedStore, StoreError, Target, View};
use tracing::{debug, error, info, warn};

/// Changes come in bursts, such as all proxies confirming the same generation. The first one is looked at at once, since
/// clients may be waiting for what follows from it, and those that come within so long after a look together.
const COALESCE: Duration = Duration::from_millis(4);
/// Should the change that made a write fail not arrive by itself.
const AFTER_CONFLICT: Duration = Duration::from_millis(200);

/// Runs a sentinel until it is told to stop.
///
/// # Errors
/// Unusable arguments.
pub async fn run(args: SentinelArgs) -> Result<()> {
    let keys = args.common.keys()?;
    let initial = args.initial_spec()?;
    let mut termination = Termination::listen()?;
    metrics::start(&args.common, Program::Sentinel).await?;
    let store = args.common.open_store().await?;
    serve(store, keys, &args.common.cluster_name, initial, termination.wait()).await;
    Ok(())
}

/// Works until `stop` is done, then gives leadership back.
pub async fn serve(
    store: SharedStore,
    keys: Keys,
    cluster: &str,
    initial: Option<StolonSpec>,
    stop: impl Future<Output = ()>,
) {
    let uid = access::random_uid();
    info!(cluster, sentinel = uid, "sentinel starts");
    let follower = Follower::start(store.clone(), vec![Target::Prefix(format!("{}/", keys.base()))]);
    let mut views = follower.subscribe();
    let candidacy = Candidacy::new(store.clone(), keys.clone(), uid.clone());
    let origin = Instant::now();
    let inquirer = Inquirer::new(store.clone(), keys.clone(), origin);
    let mut sentinel = Sentinel {
        store,
        keys,
        cluster: cluster.to_owned(),
        uid,
        initial,
        candidacy,
        inquirer,
        origin,
        connected_since: None,
        memory: Memory::default(),
        said: Vec::new(),
        history: (0, History::default()),
        new_leader: true,
        written: 0,
        written_at: Instant::now(),
        had_data: false,
        leading: false,
        failing: false,
    };
    tokio::pin!(stop);
    loop {
        let view = views.borrow_and_update().clone();
        let wake = tokio::select! {
            biased;
            () = &mut stop => break,
            // Cut short only when we stop: a write that was sent is as good as any other then.
            wake = sentinel.step(&view) => wake,
        };
        let looked = Instant::now();
        // All branches are cancel-safe.
        tokio::select! {
            () = &mut stop => break,
            _ = views.changed() => sleep_until(Some(looked + COALESCE)).await,
            () = sentinel.candidacy.lease_changed() => debug!("woken by the lease"),
            () = sentinel.inquirer.changed() => debug!("woken by what was found out about the master"),
            () = sleep_until(wake) => debug!("woken by a timer"),
        }
    }
    if let Err(error) = sentinel.candidacy.resign().await {
        warn!(cluster, %error, "leadership was not given back, it expires by itself");
    }
    info!(cluster, "sentinel stops");
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

struct Sentinel {
    store: SharedStore,
    keys: Keys,
    cluster: String,
    uid: String,
    initial: Option<StolonSpec>,
    candidacy: Candidacy,
    inquirer: Inquirer,
    /// Zero of the plan's clock.
    origin: Instant,
    connected_since: Option<Duration>,
    memory: Memory,
    /// Reasons of the last plan: only new ones are logged.
    said: Vec<Reason>,
    /// Decisions as they are stored, and the revision of that.
    history: (i64, History),
    /// No plan of this leadership was carried out yet.
    new_leader: bool,
    /// Revision of our last write: an older copy is not worth a plan.
    written: i64,
    /// When that was.
    written_at: Instant,
    /// Cluster data was there once.
    had_data: bool,
    leading: bool,
    failing: bool,
}

/// A watch delivers our own write within milliseconds; after so long it never will.
const LATE_COPY: Duration = Duration::from_secs(5);

impl Sentinel {
    /// One look at the store. Gives the time of the next one if nothing changes before.
    async fn step(&mut self, view: &View) -> Option<Instant> {
        if !view.loaded || !view.connected {
            self.connected_since = None;
            self.written = 0;
            SENTINEL_READY.set(Err(NotReady::new("store_silent", "the store can't be read")));
            return None;
        }
        let connected_since = *self.connected_since.get_or_insert(self.origin.elapsed());
        let entered = self.candidacy.enter(&view.entries, view.revision).await;
        if self.failed(entered.err()) {
            return Some(Instant::now() + RETRY);
        }
        self.note_leadership(&view.entries);
        let mut observed = observe(&view.entries, &self.keys, connected_since, rand::random());
        observed.inquired = self.inquirer.inquired();
        let Some(entry) = view.entries.get(&self.keys.clusterdata()) else {
            return self.create(&observed).await;
        };
        self.had_data = true;
        if view.revision < self.written {
            // The copy has not seen our write yet. It soon will, unless the store was restored from a backup,
            // whose revisions begin lower: then what it holds is the truth.
            let limit = self.written_at + LATE_COPY;
            if Instant::now() < limit {
                return Some(limit);
            }
            self.written = 0;
        }
        self.read_history(&view.entries);
        match access::parse(entry) {
            Ok(versioned) => self.decide(versioned, observed, view).await,
            Err(error) => {
                self.log(vec![Reason::Unusable(chain(&error))], None);
                None
            }
        }
    }

    fn wrote(&mut self, revision: i64) {
        (self.written, self.written_at) = (revision, Instant::now());
    }

    async fn decide(&mut self, mut current: Versioned, mut observed: Observed, view: &View) -> Option<Instant> {
        if !self.leading {
            self.memory = track(self.now(), &current.data, &observed, &self.memory);
            self.inquirer.pursue(None, None);
            return None;
        }
        let mut planned = plan(self.now(), &current.data, &observed, &self.memory);
        if planned.data.cluster.status.master != current.data.cluster.status.master {
            // A copy that lags must not cost a healthy master its place: look again at the store itself.
            match self.read_again(&view.entries).await {
                Ok(None) => {}
                Ok(Some((newest, entries))) => {
                    let inquired = self.inquirer.inquired();
                    observed = observe(&entries, &self.keys, observed.connected_since, observed.seed);
                    observed.inquired = inquired;
                    planned = plan(self.now(), &newest.data, &observed, &self.memory);
                    current = newest;
                }
                Err(error) => {
                    self.failed(Some(error));
                    return Some(Instant::now() + RETRY);
                }
            }
        }
        self.apply(&current, planned).await
    }

    /// Cluster data and all records as they are now, if they are not as in the copy.
    async fn read_again(&self, copy: &Entries) -> Result<Option<(Versioned, Entries)>, StoreError> {
        let listing = self.store.list(&format!("{}/", self.keys.base())).await?;
        let entries: Entries = listing.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        if entries == *copy {
            return Ok(None);
        }
        let data = entries.get(&self.keys.clusterdata()).and_then(|entry| access::parse(entry).ok());
        // Without usable data now, the write fails and the next turn says why.
        Ok(data.map(|data| (data, entries)))
    }

    async fn apply(&mut self, current: &Versioned, planned: Planned) -> Option<Instant> {
        let Planned { data, memory, notes, reasons, wake_at, inquiry } = planned;
        self.inquirer.pursue(inquiry, self.candidacy.lease());
        let mut writes = Vec::new();
        if data != current.data {
            writes.push(Op::put(self.keys.clusterdata(), access::encode(&data)));
        }
        writes.extend(self.notes(&notes));
        writes.extend(self.new_history(&reasons));
        if !writes.is_empty() {
            // One transaction: what is told of a decision is as true as the decision itself, and a sentinel that
            // no longer leads can't tell anything.
            let condition = Compare::Unchanged(self.keys.clusterdata(), current.revision);
            match self.store.txn(vec![condition], writes).await {
                Ok(outcome) if outcome.succeeded => self.wrote(outcome.revision),
                Ok(_) => {
                    debug!("cluster data was changed by someone else, planning again");
                    return Some(Instant::now() + AFTER_CONFLICT);
                }
                Err(error) => {
                    self.failed(Some(error));
                    return Some(Instant::now() + RETRY);
                }
            }
        }
        self.memory = memory;
        self.new_leader = false;
        self.log(reasons, Some(&data));
        wake_at.map(|at| self.origin + at)
    }

    fn notes(&self, notes: &Notes) -> Vec<Op> {
        let Notes { progress, preference, orders } = notes;
        let lease = self.candidacy.lease();
        let orders = orders.iter().filter_map(|(keeper, order)| {
            let key = self.keys.order(keeper);
            Some(match order {
                // A sentinel that is gone wants nothing any more.
                Some(order) => Op::Put { key, value: json(order), lease: Some(lease?) },
                None => Op::Delete(key),
            })
        });
        let progress = progress.as_ref().map(|progress| Op::put(self.keys.progress(), json(progress)));
        let preference = preference.as_ref().map(|preference| match preference {
            Some(preference) => Op::put(self.keys.preference(), json(preference)),
            None => Op::Delete(self.keys.preference()),
        });
        progress.into_iter().chain(preference).chain(orders).collect()
    }

    fn read_history(&mut self, entries: &Entries) {
        let key = self.keys.decisions();
        let revision = entries.get(&key).map_or(0, |entry| entry.mod_revision);
        if revision != self.history.0 {
            self.history = (revision, document(entries, &key).unwrap_or_default());
        }
    }

    fn new_history(&self, reasons: &[Reason]) -> Option<Op> {
        let history = &self.history.1;
        let new = reasons.iter().filter(|reason| !self.said.contains(reason));
        let new = new.filter(|reason| !(self.new_leader && history::is_known(history, reason)));
        let history = history::extended(history, new, Utc::now().into(), &self.uid)?;
        Some(Op::put(self.keys.decisions(), json(&history)))
    }

    /// Makes cluster data if an initial specification was given, and if this surely is a new cluster: making it
    /// again would let keepers wipe their data.
    async fn create(&mut self, observed: &Observed) -> Option<Instant> {
        let Some(spec) = self.initial.clone() else {
            self.log(vec![Reason::NoClusterData], None);
            return None;
        };
        if self.had_data || keepers_know_a_cluster(observed) {
            self.log(vec![Reason::ClusterDataLost], None);
            return None;
        }
        let data = ClusterData::new(&access::random_uid(), spec, Utc::now().into());
        match access::replace(&self.store, &self.keys, None, &data).await {
            Ok(revision) => {
                self.wrote(revision);
                self.log(vec![Reason::Created], Some(&data));
                None
            }
            Err(AccessError::Store(error)) => {
                self.failed(Some(error));
                Some(Instant::now() + RETRY)
            }
            // Another sentinel was faster.
            Err(_) => Some(Instant::now() + AFTER_CONFLICT),
        }
    }

    fn now(&self) -> Moment {
        Moment { clock: self.origin.elapsed(), wall: Utc::now().into() }
    }

    fn note_leadership(&mut self, entries: &Entries) {
        let leading = self.candidacy.leads(entries, store::Moment::now());
        if leading != self.leading {
            info!(cluster = self.cluster, "{}", if leading { "this sentinel leads" } else { "this sentinel waits" });
            self.leading = leading;
            metrics::sentinel::IS_LEADER.set(f64::from(u8::from(leading)));
            metrics::sentinel::LEADER_COUNT.add(f64::from(u8::from(leading)));
            self.new_leader = true;
            self.said.clear();
        }
    }

    /// Logs the beginning and the end of trouble with the store. True for trouble.
    fn failed(&mut self, error: Option<StoreError>) -> bool {
        match (&error, self.failing) {
            (Some(error), false) => warn!(cluster = self.cluster, %error, "the store can't be written, trying again"),
            (None, true) => info!(cluster = self.cluster, "the store can be written again"),
            _ => {}
        }
        self.failing = error.is_some();
        SENTINEL_READY.set(match error {
            Some(error) => Err(NotReady::new("store_failing", error.to_string())),
            None => Ok(()),
        });
        self.failing
    }

    fn log(&mut self, reasons: Vec<Reason>, data: Option<&ClusterData>) {
        let master = data.map(|data| data.cluster.status.master.as_str()).unwrap_or_default();
        let db = data.and_then(|data| data.dbs.get(master));
        let generation = db.map_or(0, |db| db.generation);
        let cluster = &self.cluster;
        for reason in reasons.iter().filter(|reason| !self.said.contains(reason)) {
            if matches!(reason, Reason::NewMaster { .. }) {
                metrics::sentinel::MASTER_CHANGES.add(1.0);
            }
            if reason.is_problem() {
                error!(cluster, master, generation, "{reason}");
            } else {
                info!(cluster, master, generation, "{reason}");
            }
        }
        self.said = reasons;
    }
}

/// A document of ours as it is stored.
fn json(document: &impl serde::Serialize) -> Vec<u8> {
    // Plain values in objects and lists: serialising can't fail.
    serde_json::to_vec(document).expect("our own documents are plain JSON")
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
