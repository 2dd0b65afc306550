//! The state machine: look, plan, do, and look again.

use super::REQUEST_TIMEOUT;
use super::args::Config;
use super::datadir::{DbState, KeeperDir, KeeperState};
use super::error::{KeeperError, Result};
use super::lineage;
use super::observe;
use super::order::Orders;
use super::plan::{self, Local, Plan, Refused, Setup};
use super::postgres::binaries::Binaries;
use super::postgres::conf::{self, Parameters};
use super::postgres::process::{self, PidFile, Postmaster};
use super::postgres::sql::{Session, SharedSession, Target};
use super::probe::{Probed, Watched};
use super::publish::Facts;
use super::resync::Failures;
use super::upstream::Followed;
use crate::access;
use crate::sentinel::plan::LEASE_HINT;
use model::stolon::{ClusterData, EffectiveSpec, Problem, Role};
use model::{DbUid, GoDuration, KeeperUid};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use store::View;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

/// Pause before the next try when something only has to happen elsewhere first.
const SOON: Duration = Duration::from_millis(250);
/// Pause after a failure; doubles up to the sleep interval.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Plans in a row without a pause; more would be a plan that never gets anywhere.
const ROUNDS: usize = 20;

/// The keeper's knowledge and tools.
pub struct Machine {
    pub(super) config: Arc<Config>,
    pub(super) dir: KeeperDir,
    pub(super) binaries: Binaries,
    pub(super) setup: Setup,
    pub(super) keeper: KeeperState,
    pub(super) state: DbState,
    pub(super) postmaster: Option<Postmaster>,
    pub(super) sync_wait: Option<bool>,
    pub(super) reload_owed: bool,
    /// The postmaster of which it was proven that commits wait for these synchronous standbys.
    pub(super) names_in_force: Option<(i32, String)>,
    pub(super) checkpoint_owed: bool,
    pub(super) parameters: Option<Parameters>,
    /// The db that is being made, while the data directory is still another one's.
    at_work: Option<DbUid>,
    pub(super) target: Target,
    pub(super) session: Arc<SharedSession>,
    pub(super) wake: Arc<Notify>,
    pub(super) watched: watch::Sender<Watched>,
    pub(super) facts: watch::Sender<Facts>,
    probed: watch::Receiver<Probed>,
    pub(super) view: watch::Receiver<View>,
    pub(super) key: String,
    pub(super) orders: Orders,
    pub(super) refused: Option<Refused>,
    pub(super) failures: Option<Failures>,
    pub(super) slots_told: Option<String>,
    pub(super) problems: BTreeMap<&'static str, String>,
    last_words: String,
    pause: Duration,
    revision: i64,
}

/// What a machine is made of.
pub struct Parts {
    /// Checked command line.
    pub config: Arc<Config>,
    /// Locked directory.
    pub dir: KeeperDir,
    /// PostgreSQL's programs.
    pub binaries: Binaries,
    /// Constants of planning.
    pub setup: Setup,
    /// Loaded state.
    pub keeper: KeeperState,
    /// Loaded state.
    pub state: DbState,
    /// Own instance.
    pub target: Target,
    /// Session to it.
    pub session: Arc<SharedSession>,
    /// Wakes the machine.
    pub wake: Arc<Notify>,
    /// To the probe.
    pub watched: watch::Sender<Watched>,
    /// To the publisher.
    pub facts: watch::Sender<Facts>,
    /// From the probe.
    pub probed: watch::Receiver<Probed>,
    /// The store.
    pub view: watch::Receiver<View>,
    /// Key of the cluster data.
    pub key: String,
    /// Key of what the leading sentinel wants done.
    pub order_key: String,
}

impl Machine {
    /// Begins with what is on disk and, if an instance runs, with that one.
    pub fn new(parts: Parts) -> Self {
        let Parts {
            config,
            dir,
            binaries,
            setup,
            keeper,
            state,
            target,
            session,
            wake,
            watched,
            facts,
            probed,
            view,
            key,
            order_key,
        } = parts;
        let mut machine = Machine {
            config,
            dir,
            binaries,
            setup,
            keeper,
            state,
            postmaster: None,
            sync_wait: None,
            // Nobody knows whether the keeper that wrote the files lived to reload them.
            reload_owed: true,
            names_in_force: None,
            checkpoint_owed: false,
            parameters: None,
            at_work: None,
            target,
            session,
            wake,
            watched,
            facts,
            probed,
            view,
            key,
            orders: Orders::new(order_key),
            refused: None,
            failures: None,
            slots_told: None,
            problems: BTreeMap::new(),
            last_words: String::new(),
            pause: FIRST_PAUSE,
            revision: 0,
        };
        // What the keeper before wrote down may be over.
        let pgdata = machine.dir.pgdata();
        machine.state.handed_over.take_if(|done| !lineage::has_followed_nobody(&pgdata, done.xlog_pos));
        if let Some(file) = process::find(&machine.dir.pgdata()) {
            info!(pid = file.pid, "adopting the running postgres");
            machine.adopt(file.pid);
        }
        machine.tell();
        machine
    }

    /// Runs until `stop` completes; a pass that is under way is then given up.
    pub async fn run(&mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        loop {
            let wait = tokio::select! {
                biased;
                () = &mut stop => return,
                wait = self.pass() => wait,
            };
            let mut view = self.view.clone();
            let mut postmaster = self.postmaster.clone();
            // All branches are cancel-safe.
            tokio::select! {
                () = &mut stop => return,
                () = tokio::time::sleep(wait) => {}
                _ = view.changed() => {}
                () = self.wake.notified() => {}
                () = ended(&mut postmaster) => {}
                () = self.sync_set_complete() => {}
            }
        }
    }

    /// Stops PostgreSQL for good.
    pub async fn shut_down(&mut self) -> Result<()> {
        process::stop(&self.dir.pgdata()).await?;
        self.set_postmaster(None);
        Ok(())
    }

    /// One pass; returns when the next one is due if nothing happens before.
    async fn pass(&mut self) -> Duration {
        let entry = self.view.borrow_and_update().entries.get(&self.key).cloned();
        // No store or no cluster data: PostgreSQL stays as it is.
        let Some(entry) = entry else {
            self.show_nothing();
            return Duration::from_secs(30);
        };
        let read = access::parse(&entry).map_err(|error| KeeperError::Other(one_line(&error)));
        let (data, spec) = match read.map(|read| (read.data.spec().effective(), read.data)) {
            Ok((Ok(spec), data)) => (data, spec),
            Ok((Err(error), _)) => return self.complain(&error.to_string()),
            Err(error) => return self.complain(&error.to_string()),
        };
        let rewritten = entry.mod_revision != self.revision && wants_an_answer(&data, &self.setup.uid);
        self.revision = entry.mod_revision;
        let sleep = at_least_a_little(spec.sleep_interval);
        self.target.timeout = request_timeout(&spec);
        self.facts.send_if_modified(|facts| {
            let rewrites = facts.rewrites + u64::from(rewritten);
            let new =
                Facts { fail_interval: Some(spec.fail_interval), sleep_interval: sleep, rewrites, ..facts.clone() };
            std::mem::replace(facts, new.clone()) != new
        });
        let result = self.follow_plans(&data, &spec).await;
        self.show(&data, sleep, result.is_ok());
        match result {
            Ok(()) => {
                self.pause = FIRST_PAUSE;
                self.last_words.clear();
                self.report(Problem::NOT_CONVERGING, None);
                sleep
            }
            Err(KeeperError::NotYet(text)) => {
                self.say(&text);
                SOON
            }
            Err(error) => {
                let pause = self.pause.min(sleep);
                self.pause = (self.pause * 2).min(sleep);
                self.complain(&error.to_string()).min(pause)
            }
        }
    }

    async fn follow_plans(&mut self, data: &ClusterData, spec: &EffectiveSpec) -> Result<()> {
        let interest = Interest::of(data, &self.setup);
        for _ in 0..ROUNDS {
            self.expect(data);
            self.forget_refusal();
            let local = self.observe().await;
            let Plan { steps, again, problem, waiting } = plan::plan(&self.setup, &local, data, spec);
            for step in steps {
                self.apply(step, &interest).await?;
            }
            self.expect(data);
            self.tell();
            if let Some(problem) = problem {
                return Err(KeeperError::Other(problem));
            }
            if let Some(waiting) = waiting {
                self.say(waiting);
            }
            if !again || self.changed_since(&interest) {
                return Ok(());
            }
        }
        Err(KeeperError::Other("planning does not come to an end; this is a defect of the keeper".into()))
    }

    async fn observe(&mut self) -> Local {
        let pgdata = self.dir.pgdata();
        let file = process::find(&pgdata);
        self.take_up(file.as_ref());
        let ready = file.as_ref().is_some_and(|file| file.ready);
        let recovering = if ready { self.recovering().await } else { None };
        let conf = observe::read_text(&pgdata.join("postgresql.conf"));
        Local {
            cluster_uid: self.keeper.cluster_uid.clone(),
            state: self.state.clone(),
            data: observe::observe_data(&pgdata, recovering),
            running: file.map(|file| observe::observe_running(&file, self.setup.port, &self.config.socket_dir)),
            reload_owed: self.reload_owed || (recovering == Some(false) && self.lacks_floors(conf.as_deref())),
            conf,
            hba: observe::read_text(&pgdata.join("pg_hba.conf")),
            sync_wait: self.sync_wait,
            in_sync: self.in_sync(),
            names_in_force: self.proven_names(),
            checkpoint_owed: self.checkpoint_owed,
            refused: self.refused.clone(),
            restored: if self.state.initializing { self.dir.load_restore() } else { None },
            order: self.take_order(),
        }
    }

    /// What the probe saw of this postmaster, not of the one before.
    fn in_sync(&self) -> Option<BTreeSet<DbUid>> {
        let probed = self.probed.borrow();
        let current = self.postmaster.as_ref().map(|postmaster| postmaster.pid);
        if probed.pid == current { probed.in_sync() } else { None }
    }

    fn proven_names(&self) -> Option<String> {
        let current = self.postmaster.as_ref().map(|postmaster| postmaster.pid);
        let (_, names) = self.names_in_force.as_ref().filter(|(pid, _)| current == Some(*pid))?;
        Some(names.clone())
    }

    /// The configured synchronous standbys were not all proven to be in force since this start or promotion.
    fn lacks_floors(&self, conf: Option<&str>) -> bool {
        let names = conf.and_then(|conf| conf::value(conf, "synchronous_standby_names")).unwrap_or_default();
        let floors = &self.watched.borrow().floors;
        conf::synchronous_dbs(names).iter().any(|db| !floors.contains_key(db))
    }

    /// Follows what the pid file says: a postmaster may have ended, or been started by hand.
    fn take_up(&mut self, file: Option<&PidFile>) {
        match (file, &self.postmaster) {
            (Some(file), Some(known)) if file.pid == known.pid => {}
            (Some(file), _) => {
                warn!(pid = file.pid, "adopting a postgres that this keeper did not start");
                self.adopt(file.pid);
            }
            (None, Some(known)) => {
                if known.has_ended() {
                    warn!(pid = known.pid, "postgres is gone");
                }
                self.set_postmaster(None);
            }
            (None, None) => {}
        }
    }

    /// Nobody knows whom it lets in, nor which files it has read.
    fn adopt(&mut self, pid: i32) {
        self.sync_wait = None;
        self.reload_owed = true;
        self.set_postmaster(Some(process::adopt(pid, &self.dir.pgdata())));
    }

    async fn recovering(&self) -> Option<bool> {
        self.sql().await.ok()?.in_recovery().await.ok()
    }

    /// The session to the own instance.
    pub(super) async fn sql(&self) -> Result<Arc<Session>> {
        let wake = self.wake.clone();
        self.session.get(&self.target, move || wake.notify_one()).await
    }

    pub(super) fn set_postmaster(&mut self, postmaster: Option<Postmaster>) {
        let pid = postmaster.as_ref().map(|postmaster| postmaster.pid);
        self.postmaster = postmaster;
        self.watched.send_if_modified(|watched| {
            let changed = std::mem::replace(&mut watched.pid, pid) != pid;
            if changed {
                // Another start: commits that waited before it became visible without any standby's word.
                watched.floors.clear();
            }
            changed
        });
        self.tell();
    }

    /// Tells the cluster which db is being made.
    pub(super) fn set_at_work(&mut self, db: DbUid) {
        self.at_work = Some(db);
        self.tell();
    }

    /// Lets the probe look at once.
    pub(super) fn acted(&self) {
        self.watched.send_modify(|watched| watched.acted += 1);
    }

    /// Tells the probe what to expect.
    fn expect(&mut self, data: &ClusterData) {
        let db = data.db_of_keeper(&self.setup.uid);
        if self.at_work.as_ref() != db.map(|db| &db.uid) {
            self.at_work = None;
        }
        let upstream = db.and_then(|db| Followed::by(data, db));
        let Some(db) = db else {
            self.watched.send_if_modified(|watched| std::mem::replace(&mut watched.upstream, upstream).is_some());
            return;
        };
        let master = db.spec.role == Some(Role::Master);
        let followers = db.spec.followers.iter().filter(|_| db.is_master_type()).cloned().collect();
        let sync = db.spec.synchronous_standbys.iter().flatten().filter(|_| master && db.spec.synchronous_replication);
        let wanted_sync = sync.cloned().collect();
        let user_parameters = db.spec.pg_parameters.clone();
        let timeout = Some(self.target.timeout);
        self.watched.send_if_modified(|watched| {
            let new = Watched { followers, wanted_sync, user_parameters, timeout, upstream, ..watched.clone() };
            std::mem::replace(watched, new.clone()) != new
        });
    }

    /// Tells the publisher what this directory is.
    pub(super) fn tell(&self) {
        let at_work = self.at_work.clone().filter(|db| *db != self.state.uid);
        let making = at_work.is_some();
        let db = if let Some(db) = at_work {
            (db, 0)
        } else if self.state.initializing {
            // Not that db's data yet, but its keeper is at work on it.
            (self.state.uid.clone(), 0)
        } else {
            (self.state.uid.clone(), self.state.generation)
        };
        let handed_over = self.state.handed_over.clone().filter(|_| !self.state.initializing).unwrap_or_default();
        let cluster_uid = self.keeper.cluster_uid.clone();
        let (pid, acted) = {
            let watched = self.watched.borrow();
            (watched.pid, watched.acted)
        };
        self.facts.send_if_modified(|facts| {
            let new = Facts { cluster_uid, db, making, pid, acted, handed_over, ..facts.clone() };
            std::mem::replace(facts, new.clone()) != new
        });
    }

    /// Completes when normal users wait and all synchronous standbys are in sync.
    async fn sync_set_complete(&self) {
        if self.sync_wait == Some(false) {
            return std::future::pending().await;
        }
        let mut probed = self.probed.clone();
        let before = probed.borrow_and_update().in_sync();
        let _ = probed.wait_for(|probed| probed.in_sync() != before).await;
    }

    fn say(&mut self, text: &str) {
        if self.last_words != text {
            info!("{text}");
            text.clone_into(&mut self.last_words);
        }
    }

    /// Tells the cluster of a problem, or that it is gone.
    pub(super) fn report(&mut self, code: &'static str, text: Option<String>) {
        match text {
            Some(text) => self.problems.insert(code, text),
            None => self.problems.remove(code),
        };
        self.facts.send_if_modified(|facts| {
            let changed = facts.problems != self.problems;
            facts.problems.clone_from(&self.problems);
            changed
        });
    }

    fn complain(&mut self, text: &str) -> Duration {
        self.report(Problem::NOT_CONVERGING, Some(text.to_owned()));
        if self.last_words != text {
            warn!("{text}");
            text.clone_into(&mut self.last_words);
        }
        Duration::from_secs(5)
    }

    /// The newest cluster data no longer wants what the current plan was made for.
    pub(super) fn changed_since(&self, interest: &Interest) -> bool {
        current_interest(&self.view, &self.key, &self.setup).is_some_and(|now| now != *interest)
    }

    /// Completes when the newest cluster data no longer wants what the current plan was made for.
    pub(super) async fn interrupted(&self, interest: &Interest, whole: bool) {
        let mut view = self.view.clone();
        loop {
            let now = current_interest(&view, &self.key, &self.setup);
            if now.is_some_and(|now| if whole { now != *interest } else { !now.same_source(interest) }) {
                return;
            }
            if view.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

async fn ended(postmaster: &mut Option<Postmaster>) {
    match postmaster {
        Some(postmaster) => postmaster.ended().await,
        None => std::future::pending().await,
    }
}

/// What a long step depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interest {
    db: Option<(DbUid, i64)>,
    followed: Option<(DbUid, String, String)>,
}

impl Interest {
    fn of(data: &ClusterData, setup: &Setup) -> Self {
        let db = data.db_of_keeper(&setup.uid);
        let followed = db.and_then(|db| data.dbs.get(&db.spec.follow_config.as_ref()?.db_uid));
        Interest {
            db: db.map(|db| (db.uid.clone(), db.generation)),
            followed: followed.map(|db| (db.uid.clone(), db.status.listen_address.clone(), db.status.port.clone())),
        }
    }

    /// Copying data from the same server for the same db may go on.
    fn same_source(&self, other: &Interest) -> bool {
        let uid = |interest: &Interest| interest.db.as_ref().map(|db| db.0.clone());
        uid(self) == uid(other) && self.followed == other.followed
    }
}

/// `None` while there is no readable cluster data: no reason to give anything up.
fn current_interest(view: &watch::Receiver<View>, key: &str, setup: &Setup) -> Option<Interest> {
    let bytes = view.borrow().value(key)?.to_owned();
    Some(Interest::of(&ClusterData::parse(&bytes).ok()?, setup))
}

/// A sentinel of Go's, which leaves out what it does not know, takes a record that never changes for dead. Ours notes
/// what it knows of the record's lease, and goes by that.
fn wants_an_answer(data: &ClusterData, uid: &KeeperUid) -> bool {
    !data.keepers.get(uid).is_some_and(|keeper| keeper.status.extra.contains_key(LEASE_HINT))
}

/// Limit of a statement. Without one a hung server would hang the keeper, and a tiny one would never let it work.
fn request_timeout(spec: &EffectiveSpec) -> Duration {
    match spec.request_timeout.to_std() {
        Duration::ZERO => REQUEST_TIMEOUT,
        timeout => timeout.max(Duration::from_secs(1)),
    }
}

fn at_least_a_little(interval: GoDuration) -> Duration {
    interval.to_std().max(Duration::from_millis(500))
}

/// An error with its causes.
fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sentinels_that_do_not_know_of_leases_are_answered() {
        let wants = |keepers: &str| {
            let text = format!(
                r#"{{"formatVersion":1,"cluster":{{"spec":{{"initMode":"new"}},"status":{{"phase":"initializing"}}}},
                "keepers":{keepers},"dbs":{{}},"proxy":{{}}}}"#
            );
            wants_an_answer(&ClusterData::parse(text.as_bytes()).unwrap(), &"k".into())
        };
        assert!(wants("{}"));
        assert!(wants(r#"{"k":{"uid":"k","spec":{},"status":{"healthy":true}}}"#));
        assert!(!wants(r#"{"k":{"uid":"k","spec":{},"status":{"healthy":true,"leaseSeconds":2}}}"#));
    }
}
