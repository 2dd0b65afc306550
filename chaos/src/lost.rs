//! The campaign "nothing lost": random failures under appending clients.

use crate::checker::{Attempt, Violation, check};
use crate::client::{Clients, History};
use crate::cluster::{Cluster, Places, Shape};
use crate::faults::Saboteur;
use crate::sandbox::Host;
use crate::schedule::{MEMBERS, NODES, Settle, Step, schedule};
use crate::transcript::Transcript;
use crate::versions;
use anyhow::Context as _;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Clients, and the pause of each between two rows.
const CLIENTS: i32 = 8;
const PAUSE: Duration = Duration::from_millis(25);
/// A cluster that takes no commits for so long after all failures are healed has not recovered.
const WRITABLE_LIMIT: Duration = Duration::from_secs(90);
/// The same for copies and proxies; it goes on then, but the campaign has failed unless it is whole at the end.
const WHOLE_LIMIT: Duration = Duration::from_secs(60);
const END_LIMIT: Duration = Duration::from_secs(180);
/// The rows are checked after so many steps.
const CHECK_EVERY: usize = 20;
/// So many violations are written out.
const SHOWN: usize = 20;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Decides the schedule.
    pub seed: u64,
    /// How many failures.
    pub failures: usize,
    /// Least and most synchronous standbys.
    pub sync: (u16, u16),
    /// pg_rewind is used.
    pub rewind: bool,
}

/// Runs the campaign; true if every promise held.
///
/// # Errors
/// The campaign could not be run.
pub async fn run(request: &Request, places: &Places, transcript: &Transcript) -> anyhow::Result<bool> {
    let cluster = Cluster::start(shape(request)?, places).await?;
    transcript.say(&format!("nothing lost: the cluster is up; {request:?}"));
    let clients = Clients::start(CLIENTS, &cluster.proxies(), PAUSE, transcript);
    let mut campaign = Campaign {
        cluster: &cluster,
        transcript,
        history: clients.history.clone(),
        pauses: BTreeMap::new(),
        complaints: Vec::new(),
    };
    let driven = campaign.drive(&schedule(request.seed, request.failures)).await;
    if let Err(error) = &driven {
        campaign.complain(format!("the campaign stopped: {error:#}"));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let attempts = clients.finish().await;
    if driven.is_ok() {
        campaign.judge(&attempts).await;
    }
    campaign.summarize(request, &attempts).await;
    let good = campaign.complaints.is_empty();
    cluster.end();
    Ok(good)
}

fn shape(request: &Request) -> anyhow::Result<Shape> {
    let hosts = |letter: &str, first: u8, count: usize| -> anyhow::Result<Vec<Host>> {
        (0..count).zip(first..).map(|(at, number)| Host::isolated(&format!("{letter}{}", at + 1), number)).collect()
    };
    Ok(Shape {
        name: "lost".into(),
        members: hosts("e", 11, MEMBERS)?,
        nodes: hosts("n", 21, NODES)?,
        front: NODES,
        sync: request.sync,
        rewind: request.rewind,
        disk: 1600,
        clocks: true,
    })
}

struct Campaign<'a> {
    cluster: &'a Cluster,
    transcript: &'a Transcript,
    history: History,
    /// Longest time without a commit during each failure, by its kind.
    pauses: BTreeMap<String, Vec<Duration>>,
    complaints: Vec<String>,
}

impl Campaign<'_> {
    fn complain(&mut self, text: String) {
        self.transcript.say(&format!("FAILED: {text}"));
        self.complaints.push(text);
    }

    async fn drive(&mut self, steps: &[Step]) -> anyhow::Result<()> {
        let saboteur = Saboteur::new(self.cluster, self.transcript);
        for (done, step) in steps.iter().enumerate() {
            let began = self.transcript.now();
            let faults = futures::future::join_all(step.faults.iter().map(|fault| saboteur.make(fault)));
            let made: anyhow::Result<Vec<()>> = faults.await.into_iter().collect();
            made.with_context(|| format!("make {step}"))?;
            let healed = self.transcript.now();
            self.wait_writable(healed).await?;
            let whole = if step.settle == Settle::Whole { self.cluster.wait_whole(WHOLE_LIMIT).await } else { Ok(()) };
            if let Err(error) = whole {
                // Not a loss: whether it gets whole at all is judged at the end.
                self.transcript.say(&format!("WARNING: after {step} it did not become whole: {error:#}"));
            }
            self.book(step, began, healed);
            tokio::time::sleep(step.rest).await;
            if (done + 1) % CHECK_EVERY == 0 {
                self.look().await;
            }
        }
        Ok(())
    }

    async fn wait_writable(&mut self, healed: Duration) -> anyhow::Result<()> {
        while !self.history.written_since(healed) {
            let waited = self.transcript.now().saturating_sub(healed);
            anyhow::ensure!(
                waited < WRITABLE_LIMIT,
                "no commit for {} s after everything was healed",
                waited.as_secs()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    fn book(&mut self, step: &Step, began: Duration, healed: Duration) {
        let now = self.transcript.now();
        let wait = self.history.waits(began, now, 1).first().map_or(Duration::ZERO, |(_, length)| *length);
        let (wait_s, back) = (wait.as_secs_f64(), now.saturating_sub(healed).as_secs_f64());
        self.transcript
            .say(&format!("recovered {back:.2} s after healing; longest time without a commit {wait_s:.2} s"));
        let name = match step.faults.as_slice() {
            [one] => one.fault.to_string().split(" of ").next().unwrap_or_default().to_owned(),
            _ => "two at once".to_owned(),
        };
        self.pauses.entry(name).or_default().push(wait);
    }

    /// A look at the rows while the clients go on.
    async fn look(&mut self) {
        let attempts = self.history.attempts();
        match self.rows(None).await {
            Err(error) => self.transcript.say(&format!("the rows could not be read this time: {error:#}")),
            // Rows that were added meanwhile are not part of the copy of the history.
            Ok(rows) => self.report(
                check(&attempts, &rows).into_iter().filter(|v| !matches!(v, Violation::Invented(..))).collect(),
            ),
        }
    }

    fn report(&mut self, violations: Vec<Violation>) {
        for violation in violations.iter().take(SHOWN) {
            self.complain(violation.to_string());
        }
        if violations.len() > SHOWN {
            self.complain(format!("and {} more", violations.len() - SHOWN));
        }
    }

    /// All rows, of the master through a proxy or of a node's own server. What healed last may have effects for a moment:
    /// proxies close while etcd elects a leader.
    async fn rows(&self, node: Option<usize>) -> anyhow::Result<Vec<(i32, i64)>> {
        let deadline = Instant::now() + END_LIMIT;
        loop {
            match self.read_rows(node).await {
                Err(_) if Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
                result => return result,
            }
        }
    }

    async fn read_rows(&self, node: Option<usize>) -> anyhow::Result<Vec<(i32, i64)>> {
        let mut places =
            node.map_or_else(|| self.cluster.proxies(), |node| vec![self.cluster.server(node)]).into_iter();
        let client = loop {
            match (self.cluster.admin(&places.next().context("no server answers")?).await, places.len()) {
                (Ok(client), _) => break client,
                (Err(error), 0) => return Err(error),
                (Err(_), _) => {}
            }
        };
        let rows = tokio::time::timeout(WHOLE_LIMIT, client.query("select client, seq from journal", &[])).await;
        Ok(rows.context("no answer")??.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    async fn judge(&mut self, attempts: &[Attempt]) {
        if let Err(error) = self.cluster.wait_whole(END_LIMIT).await {
            self.complain(format!("the cluster does not become whole again: {error:#}"));
        }
        let rows = match self.rows(None).await {
            Ok(rows) => rows,
            Err(error) => return self.complain(format!("the rows can't be read: {error:#}")),
        };
        self.transcript.say(&format!("{} rows at the master", rows.len()));
        self.report(check(attempts, &rows));
        self.compare_copies(&rows).await;
    }

    /// Every standby has the same rows as the master.
    async fn compare_copies(&mut self, rows: &[(i32, i64)]) {
        let sorted = |rows: &[(i32, i64)]| {
            let mut rows = rows.to_vec();
            rows.sort_unstable();
            rows
        };
        let wanted = sorted(rows);
        for node in 0..self.cluster.nodes.len() {
            // Replay may still be under way for a moment.
            let mut last = String::new();
            for _ in 0..20 {
                last = match self.rows(Some(node)).await {
                    Ok(rows) if sorted(&rows) == wanted => String::new(),
                    Ok(rows) => format!("{} rows that are not those {} of the master", rows.len(), wanted.len()),
                    Err(error) => format!("{error:#}"),
                };
                if last.is_empty() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            if !last.is_empty() {
                self.complain(format!("the copy of n{}: {last}", node + 1));
            }
        }
    }

    async fn summarize(&self, request: &Request, attempts: &[Attempt]) {
        let mut lines = vec!["longest time without a commit, by failure (median, worst, times):".to_owned()];
        for (name, waits) in &self.pauses {
            let mut waits = waits.clone();
            waits.sort();
            let (median, worst) = (waits[waits.len() / 2].as_secs_f64(), waits[waits.len() - 1].as_secs_f64());
            lines.push(format!("  {name:18} {median:6.2} s {worst:6.2} s {:4}", waits.len()));
        }
        let acknowledged = attempts.iter().filter(|attempt| attempt.mark().is_some()).count();
        let timelines: std::collections::BTreeSet<u32> =
            attempts.iter().filter_map(|attempt| Some(attempt.mark()?.timeline)).collect();
        let changes = versions::after(self.cluster, 0).await.map(|versions| versions::changes(&versions).len());
        lines.push(format!(
            "seed {}: {} failures; {} rows tried, {acknowledged} acknowledged, on {} timelines; master changed {} times",
            request.seed,
            request.failures,
            attempts.len(),
            timelines.len(),
            changes.map_or_else(|error| format!("? ({error:#})"), |count| count.to_string()),
        ));
        match self.complaints.as_slice() {
            [] => {
                lines.push("NOTHING LOST: every acknowledged row is there, every row once, one master at a time".into())
            }
            complaints => {
                lines.push(format!("FAILED: {} complaints", complaints.len()));
                lines.extend(complaints.iter().map(|text| format!("  {text}")));
            }
        }
        self.transcript.say(&lines.join("\n"));
    }
}
