//! Why things are as they are, for people: read from the store alone, without what a sentinel remembers.

use super::{Memory, Moment, Observed, Planner, Reason, plan, track};
use model::stolon::{ClusterData, ClusterPhase, Db};
use model::{DbUid, KeeperUid};
use serde::Serialize;
use std::collections::BTreeMap;

/// One fact, with a stable word for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of fact it is.
    pub code: &'static str,
    /// Somebody should look at it.
    pub problem: bool,
    /// In words.
    pub text: String,
}

/// Facts by what they are about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// The master, and who else could be it.
    pub failover: Vec<Finding>,
    /// Each keeper and its db.
    pub keepers: BTreeMap<KeeperUid, Vec<Finding>>,
    /// What is being waited for now.
    pub waiting: Vec<Finding>,
}

impl Explanation {
    /// All facts that somebody should look at, with the keeper that each is about.
    pub fn problems(&self) -> Vec<(Option<KeeperUid>, Finding)> {
        let general = self.failover.iter().chain(&self.waiting).map(|finding| (None, finding.clone()));
        let keepers = self
            .keepers
            .iter()
            .flat_map(|(uid, findings)| findings.iter().map(|finding| (Some(uid.clone()), finding.clone())));
        let mut problems: Vec<_> = general.chain(keepers).filter(|(_, finding)| finding.problem).collect();
        problems.dedup();
        problems
    }
}

fn fact(code: &'static str, text: impl Into<String>) -> Finding {
    Finding { code, problem: false, text: text.into() }
}

fn problem(code: &'static str, text: impl Into<String>) -> Finding {
    Finding { code, problem: true, text: text.into() }
}

/// Explains the present state. Judgements that need watching over time (has it been so for long?) are those that the
/// leading sentinel has written into `data`.
pub fn explain(now: Moment, data: &ClusterData, observed: &Observed) -> Explanation {
    let waiting = waiting(now, data, observed);
    let Ok(spec) = data.spec().effective() else { return Explanation { waiting, ..Default::default() } };
    if data.check().is_err() || data.cluster.status.phase != Some(ClusterPhase::Normal) {
        return Explanation { waiting, ..Default::default() };
    }
    let memory = track(now, data, observed, &Memory::default());
    let mut planner = Planner::new(now, spec, data, observed, memory);
    let master = data.cluster.status.master.clone();
    planner.take_request(&master);
    let uids: Vec<KeeperUid> = data.keepers.keys().cloned().collect();
    let keepers = uids.into_iter().map(|uid| (uid.clone(), planner.explain_keeper(&uid, &master))).collect();
    Explanation { failover: planner.explain_failover(&master), keepers, waiting }
}

/// What a sentinel that begins to lead now would wait for.
fn waiting(now: Moment, data: &ClusterData, observed: &Observed) -> Vec<Finding> {
    let reasons = plan(now, data, observed, &Memory::default()).reasons;
    let waits = reasons.into_iter().filter(|reason| !reason.is_decision() || matches!(reason, Reason::NoCandidate(..)));
    let bad = |reason: &Reason| {
        reason.is_problem()
            || matches!(reason, Reason::Unreadable(..) | Reason::NoCandidate(..) | Reason::NoFirstMaster(_))
    };
    waits.map(|reason| Finding { code: reason.code(), problem: bad(&reason), text: reason.to_string() }).collect()
}

impl Planner<'_> {
    fn explain_failover(&mut self, master: &DbUid) -> Vec<Finding> {
        let mut findings = Vec::new();
        let Some(db) = self.db(master) else {
            return vec![problem("no_master", "the cluster data names a master that does not exist")];
        };
        let keeper = db.spec.keeper_uid.clone();
        let synchronous = db.spec.synchronous_replication;
        match self.db(master).is_some_and(|db| db.status.healthy) {
            true => findings.push(fact(
                "master_healthy",
                format!("db \"{master}\" of keeper \"{keeper}\" is master and healthy: no failover is needed"),
            )),
            false => {
                let evidence = self.evidence(master);
                findings.push(problem(
                    "master_failed",
                    format!("master db \"{master}\" of keeper \"{keeper}\" failed: {evidence}"),
                ));
            }
        }
        if self.data.proxy.spec.master_db_uid != *master {
            findings.push(problem("proxies_closed", "proxies forward to nobody now"));
        }
        let mut anybody = false;
        for uid in self.data.dbs.keys().filter(|uid| *uid != master).cloned().collect::<Vec<_>>() {
            let who = format!("db \"{uid}\" of keeper \"{}\"", self.data.dbs[&uid].spec.keeper_uid);
            match self.obstacle_to_election(&uid, master) {
                None => {
                    anybody = true;
                    findings.push(fact("eligible", format!("{who} could become master")));
                }
                Some(obstacle) => {
                    findings.push(fact(obstacle.code(), format!("{who} could not become master: {obstacle}")))
                }
            }
        }
        if !anybody && self.data.keepers.len() == 1 {
            findings.push(fact("no_standby", "the cluster has one keeper: there is no standby that could replace it"));
        } else if !anybody {
            let kind = if synchronous { "a synchronous standby" } else { "a good standby" };
            findings.push(problem(
                "nobody_eligible",
                format!("nobody could replace the master: there is no {}", kind.trim_start_matches("a ")),
            ));
        }
        findings
    }

    fn explain_keeper(&mut self, uid: &KeeperUid, master: &DbUid) -> Vec<Finding> {
        let mut findings = self.explain_record(uid);
        if self.favourite.as_ref() == Some(uid) {
            findings.push(fact("favourite", "an operator moved the master to it: priorities do not move it away until it fails, or until `stolonctl switchover --release`"));
        }
        let Some(db) = self.data.db_of_keeper(uid).cloned() else {
            findings.push(self.explain_unused(uid));
            return findings;
        };
        if db.uid == *master {
            findings.push(fact("is_master", format!("db \"{}\" is the master", db.uid)));
            findings.extend(self.explain_state(&db));
            findings.extend(self.explain_commits(&db));
            return findings;
        }
        match self.obstacle_to_use(&db.uid, master) {
            None => findings.push(fact("standby_good", format!("db \"{}\" is a good standby", db.uid))),
            Some(obstacle) => {
                findings.push(problem(obstacle.code(), format!("db \"{}\" is of no use now: {obstacle}", db.uid)))
            }
        }
        findings.extend(self.explain_state(&db));
        findings.extend(self.explain_sync(&db, master));
        findings
    }

    fn explain_record(&self, uid: &KeeperUid) -> Vec<Finding> {
        let mut findings = Vec::new();
        match self.observed.keepers.get(uid) {
            None => findings.push(problem(
                "keeper_record_gone",
                "its record is gone: the keeper does not run, or does not reach the store",
            )),
            Some(None) => findings.push(problem("record_unreadable", "its record can't be read")),
            Some(Some(info)) if info.cluster_uid != self.data.cluster.uid => findings.push(problem(
                "other_cluster",
                format!(
                    "it belongs to another cluster, \"{}\"; move its data directory away to let it join this one",
                    info.cluster_uid
                ),
            )),
            Some(Some(info)) => {
                let reported = info.problems.iter();
                findings.extend(reported.map(|told| problem("reported", format!("{}: {}", told.code, told.text))));
            }
        }
        let Some(keeper) = self.data.keepers.get(uid) else { return findings };
        if keeper.status.healthy {
            findings.push(fact("keeper_healthy", "the keeper is healthy"));
        } else {
            let since = keeper.status.last_healthy_time;
            findings.push(problem(
                "keeper_unhealthy",
                format!("the keeper is unhealthy; it was healthy last at {}", since.utc().format("%F %T UTC")),
            ));
        }
        findings
    }

    fn explain_unused(&self, uid: &KeeperUid) -> Finding {
        let healthy = self.data.keepers.get(uid).is_some_and(|keeper| keeper.status.healthy);
        let standbys = self.data.dbs.len().saturating_sub(1);
        let wanted = usize::from(self.spec.max_standbys_per_sender);
        if !healthy {
            fact("keeper_unused", "it has no db: only healthy keepers get one")
        } else if standbys >= wanted {
            fact(
                "keeper_unused",
                format!("it has no db: there are {standbys} standbys, and maxStandbysPerSender is {wanted}"),
            )
        } else {
            fact(
                "keeper_unused",
                "it has no db yet: it gets one when the master is healthy and has applied its generation",
            )
        }
    }

    /// What its keeper reports of the db.
    fn explain_state(&self, db: &Db) -> Vec<Finding> {
        let mut findings = Vec::new();
        if !db.converged() {
            findings.push(fact(
                "converging",
                format!("generation {} is wanted, {} is applied", db.generation, db.status.current_generation),
            ));
        }
        match super::memory::state_of(&self.data, self.observed, db) {
            None => findings.push(fact("db_not_held", "its keeper does not report this db")),
            Some(state) if !state.healthy => findings.push(problem(
                "postgres_unhealthy",
                "its keeper reports that PostgreSQL does not work; the keeper's log says why",
            )),
            Some(_) => {}
        }
        findings
    }

    /// Whether commits on the master can be acknowledged.
    fn explain_commits(&self, db: &Db) -> Vec<Finding> {
        if !db.spec.synchronous_replication {
            return vec![fact(
                "asynchronous",
                "commits wait for no standby: the last ones can be lost with the master",
            )];
        }
        let wanted = db.spec.synchronous_standbys.iter().flatten();
        let current = self.memory.dbs.get(&db.uid).map(|memory| memory.in_sync.clone()).unwrap_or_default();
        let missing: Vec<String> = wanted
            .filter(|uid| !current.contains(uid))
            .map(|uid| {
                let keeper = self.db(uid).map(|db| db.spec.keeper_uid.to_string()).unwrap_or_default();
                format!("db \"{uid}\" of keeper \"{keeper}\"")
            })
            .collect();
        let mut findings = Vec::new();
        if db.spec.external_synchronous_standbys.iter().flatten().any(|name| name == super::sync::FAKE_STANDBY) {
            findings.push(problem(
                "too_few_synchronous_standbys",
                format!(
                    "commits are blocked: there are fewer synchronous standbys than minSynchronousStandbys, {}",
                    self.spec.min_synchronous_standbys
                ),
            ));
        }
        if !missing.is_empty() {
            findings.push(problem("commits_wait", format!("commits wait for {}, not in sync now", missing.join(", "))));
        }
        findings
    }

    fn explain_sync(&self, db: &Db, master: &DbUid) -> Vec<Finding> {
        let Some(old) = self.db(master).filter(|old| old.spec.synchronous_replication) else { return Vec::new() };
        let wanted = old.spec.synchronous_standbys.iter().flatten().any(|uid| *uid == db.uid);
        let known = old.status.synchronous_standbys.iter().flatten().any(|uid| *uid == db.uid);
        let must_not = self.keeper_of(db).is_some_and(|keeper| keeper.status.can_be_synchronous_replica == Some(false));
        let members = old.spec.synchronous_standbys.iter().flatten().count();
        let finding = match (wanted, known) {
            (true, true) => fact("synchronous", "commits wait for it, and it was seen in sync since"),
            (true, false) => fact("synchronous_pending", "commits wait for it, but it was not seen in sync since"),
            (false, _) if must_not => fact(
                "not_synchronous",
                "commits do not wait for it: its keeper was started with --can-be-synchronous-replica=false",
            ),
            (false, _) if members >= usize::from(self.spec.max_synchronous_standbys) => fact(
                "not_synchronous",
                format!(
                    "commits do not wait for it: they wait for {members} others, and maxSynchronousStandbys is {}",
                    self.spec.max_synchronous_standbys
                ),
            ),
            (false, _) => fact(
                "not_synchronous",
                "commits do not wait for it: it is not good, or a change of the set is under way",
            ),
        };
        vec![finding]
    }
}
