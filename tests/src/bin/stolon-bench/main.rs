//! `make bench-stolon`: how long writes wait when parts of a stolon cluster die, beside what is promised.
//!
//! `stolon-bench [RUNS] [KIND…]`, kinds: `kill` (keeper and PostgreSQL of the master), `node` (everything on its node, the
//! leading sentinel and a proxy too), `postgres` (PostgreSQL alone), `switchover`, `cold` (from `stolonctl init` to the
//! first commit that a standby confirmed), `idle` (memory, and writes to etcd). All of them without one.
//!
//! Clients try a write that failed once more at once, over a new connection, which the proxies hold until there is a master.
//! The time is that between two commits that were confirmed.

#![expect(clippy::print_stdout, reason = "the figures are this program's output")]

mod events;
mod figures;
mod idle;

use anyhow::{Context as _, bail};
use events::Event;
use figures::Figures;
use serde_json::json;
use std::time::Duration;
use testkit::stolon::{Bins, Builder, Lab};

/// Runs of each kind.
const RUNS: usize = 20;
const KINDS: [&str; 6] = ["kill", "node", "postgres", "switchover", "cold", "idle"];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (mut runs, mut kinds) = (RUNS, Vec::new());
    for argument in std::env::args().skip(1) {
        match argument.parse() {
            Ok(number) => runs = number,
            Err(_) if KINDS.contains(&argument.as_str()) => kinds.push(argument),
            Err(_) => bail!("\"{argument}\" is neither a number of runs nor one of {}", KINDS.join(", ")),
        }
    }
    let asked = |kind: &str| kinds.is_empty() || kinds.iter().any(|asked| asked == kind);
    println!(
        "single-row commits through proxies, {runs} runs of each kind; time without a commit, first attempts included"
    );
    for keepers in [2, 3] {
        for event in [Event::Kill, Event::Node, Event::Postgres, Event::Switchover] {
            if asked(event.kind()) {
                let lab = cluster(keepers)?.up().await;
                println!("{}", events::measure(&lab, event, runs).await?);
            }
        }
    }
    if asked("cold") {
        println!("{}", cold_start(runs).await?);
    }
    if asked("idle") {
        idle::measure().await?;
    }
    Ok(())
}

/// As many nodes, each with a keeper, a sentinel and a proxy, set up as `ladle` does it: all standbys are synchronous.
fn cluster(nodes: usize) -> anyhow::Result<Builder> {
    let bins = Bins::from_env().unwrap_or_else(|| Bins::new(e2e::playground::bin_dir()));
    let standbys = u16::try_from(nodes - 1).context("too many nodes")?;
    let builder = Lab::builder(bins).keepers(nodes).sentinels(nodes).proxies(nodes).synchronous(0, standbys);
    // Durable, unlike in tests. Clients of a proxy without a master wait, so that one retry is enough for them.
    Ok(builder.spec(json!({"pgParameters": {"fsync": null}})).proxy_arguments(&["--hold-connections", "5s"]))
}

async fn cold_start(runs: usize) -> anyhow::Result<Figures> {
    let mut figures = Figures::new("2 keepers, cold start until a standby confirms", 5.0, None);
    for _ in 0..runs {
        let lab = cluster(2)?.start().await;
        // The daemons are there; what is measured is the cluster.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let begun = std::time::Instant::now();
        lab.init().await;
        let synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        while lab.proxy(0).pg.try_one(synchronous).await.ok().as_deref() != Some("1") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        lab.proxy(0).pg.one("CREATE TABLE IF NOT EXISTS first (id int)").await;
        figures.add(begun.elapsed());
    }
    Ok(figures)
}
