//! The campaign "calm": conditions that are no reason for a failover, one synchronous cluster for each.

mod disturb;
mod evidence;

use crate::checker::check;
use crate::client::{Clients, History};
use crate::cluster::{Cluster, Places, Shape};
use crate::sandbox::Host;
use crate::transcript::Transcript;
use crate::versions::{self, Change};
use anyhow::Context as _;
use std::time::{Duration, Instant};

pub use disturb::{ALL, Condition};

/// Two light writers, each with a proxy of its own: what is to be seen is how long both wait.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a cluster may take to be whole again when the condition has ended.
const WHOLE_LIMIT: Duration = Duration::from_secs(120);
/// So many waits are told, if they are longer than a second.
const WAITS: usize = 5;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Conditions, in this order.
    pub conditions: Vec<Condition>,
    /// How long each lasts.
    pub time: Duration,
    /// All at the same time.
    pub parallel: bool,
}

/// What became of one condition.
#[derive(Debug)]
struct Verdict {
    condition: Condition,
    complaints: Vec<String>,
    summary: String,
}

/// Runs the campaign; true if nothing failed over.
///
/// # Errors
/// The campaign could not be run.
pub async fn run(request: &Request, places: &Places, transcript: &Transcript) -> anyhow::Result<bool> {
    let each = request.conditions.iter().map(|condition| one(*condition, request.time, places, transcript));
    let verdicts: Vec<Verdict> = if request.parallel {
        futures::future::join_all(each).await
    } else {
        let mut verdicts = Vec::new();
        for one in each {
            verdicts.push(one.await);
        }
        verdicts
    };
    let good = verdicts.iter().all(|verdict| verdict.complaints.is_empty());
    let mut lines = vec![format!("{} minutes of each condition:", request.time.as_secs_f64() / 60.0)];
    for verdict in &verdicts {
        let word = if verdict.complaints.is_empty() { "calm  " } else { "FAILED" };
        lines.push(format!("  {word} {}: {}", verdict.condition, verdict.summary));
        lines.extend(verdict.complaints.iter().map(|text| format!("         {text}")));
    }
    transcript.say(&lines.join("\n"));
    Ok(good)
}

async fn one(condition: Condition, time: Duration, places: &Places, transcript: &Transcript) -> Verdict {
    let mut verdict = Verdict { condition, complaints: Vec::new(), summary: String::new() };
    if let Err(error) = try_one(&mut verdict, time, places, transcript).await {
        verdict.complaints.push(format!("{error:#}"));
    }
    for complaint in &verdict.complaints {
        transcript.say(&format!("{condition}: FAILED: {complaint}"));
    }
    verdict
}

async fn try_one(
    verdict: &mut Verdict,
    time: Duration,
    places: &Places,
    transcript: &Transcript,
) -> anyhow::Result<()> {
    let condition = verdict.condition;
    let places = Places { logs: places.logs.join(condition.name()), ..places.clone() };
    let cluster = Cluster::start(shape(condition), &places).await.context("start the cluster")?;
    let revision = versions::latest(&cluster).await?;
    let clients = Clients::start(2, &cluster.proxies(), PAUSE, transcript);
    let (from, until) = (transcript.now(), Instant::now() + time);
    transcript.say(&format!("{condition}: begins"));
    disturb::disturb(condition, &cluster, transcript, until).await?;
    let to = transcript.now();
    transcript.say(&format!("{condition}: has ended"));
    if let Err(error) = cluster.wait_whole(WHOLE_LIMIT).await {
        verdict.complaints.push(format!("not whole again: {error:#}"));
    }
    let history = clients.history.clone();
    let attempts = clients.finish().await;
    let changes = versions::changes(&versions::after(&cluster, revision).await?);
    for change in &changes {
        verdict.complaints.push(evidence::explain(&cluster, change).await);
    }
    let client = cluster.admin(&cluster.proxies()[0]).await?;
    let rows = client.query("select client, seq from journal", &[]).await?;
    let rows: Vec<(i32, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    verdict.complaints.extend(check(&attempts, &rows).iter().take(WAITS).map(ToString::to_string));
    verdict.summary = summary(&history, &changes, transcript, (from, to));
    transcript.say(&format!("{condition}: {}", verdict.summary));
    cluster.end();
    Ok(())
}

fn summary(history: &History, changes: &[Change], transcript: &Transcript, (from, to): (Duration, Duration)) -> String {
    let acknowledged = history.attempts().iter().filter(|attempt| attempt.mark().is_some()).count();
    let waits = history.waits(from, to, WAITS);
    let waits: Vec<String> = waits
        .iter()
        .enumerate()
        .filter(|(place, (_, length))| *place == 0 || *length > Duration::from_secs(1))
        .map(|(_, (at, length))| {
            format!("{:.2} s at {}", length.as_secs_f64(), transcript.wall(*at).format("%H:%M:%S"))
        })
        .collect();
    format!("{} failovers; {acknowledged} rows acknowledged; longest waits {}", changes.len(), waits.join(", "))
}

/// Three keepers, two sentinels, two proxies; as many members of etcd as the condition is about.
fn shape(condition: Condition) -> Shape {
    let place = 20 + condition as usize;
    let hosts = |letter: &str, first: usize, count: usize| -> Vec<Host> {
        (0..count)
            .map(|at| Host::local(&format!("{letter}{}", at + 1), &format!("127.{place}.0.{}", first + at)))
            .collect()
    };
    Shape {
        name: condition.name().into(),
        members: hosts("e", 11, condition.members()),
        nodes: hosts("n", 21, 3),
        front: 2,
        sync: (1, 1),
        rewind: true,
        disk: 512,
        clocks: false,
    }
}
