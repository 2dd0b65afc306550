//! `make bench`: start, failover and bulk load of a playground, each beside what it is to be compared with.

#![expect(clippy::print_stdout, reason = "the figures are this program's output")]

use anyhow::Context as _;
use e2e::client::{Writer, outage};
use e2e::playground::Playground;
use e2e::servers::Onlooker;
use std::path::Path;
use std::time::{Duration, Instant};

/// Rows of the bulk load, as in the promise that this measures.
const ROWS: i32 = 1_000_000;
/// Idle time over which CPU use is averaged.
const IDLE: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let begun = Instant::now();
    let playground = Playground::start(4, 1)?;
    println!("cold start, 4 nodes with 2 copies, until it serves: {:.1} s (limit 15 s)", begun.elapsed().as_secs_f64());
    idle(&playground).await?;
    failover(&playground).await?;
    playground.stop()?;
    let begun = Instant::now();
    playground.shardmanctl(&playground.start_arguments(4, 1))?;
    println!("start again with its data: {:.1} s", begun.elapsed().as_secs_f64());
    drop(playground);
    copy(&Playground::start(2, 1)?).await?;
    Ok(())
}

const DAEMONS: [&str; 5] = ["bowl", "monitor", "stolon-keeper", "stolon-sentinel", "stolon-proxy"];

async fn idle(playground: &Playground) -> anyhow::Result<()> {
    // Let the work of starting fade away.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before: Vec<f64> = DAEMONS.iter().map(|program| cpu_seconds(playground, program)).collect();
    tokio::time::sleep(IDLE).await;
    let mut total = 0.0;
    for (program, before) in DAEMONS.iter().zip(before) {
        let pids = playground.pids(program);
        let used = (cpu_seconds(playground, program) - before) / IDLE.as_secs_f64() * 100.0;
        total += used;
        let largest = pids.iter().filter_map(|pid| resident_kib(*pid)).max().unwrap_or(0);
        println!(
            "{program:16} {:2} processes, largest {:.1} MiB resident (limit 12), together {used:.2} % of a core",
            pids.len(),
            f64::from(largest) / 1024.0
        );
    }
    println!("all daemons of the idle cluster: {total:.2} % of a core (limit 5 %)");
    Ok(())
}

fn cpu_seconds(playground: &Playground, program: &str) -> f64 {
    let ticks: f64 = playground.pids(program).into_iter().filter_map(ticks).sum();
    // The kernel's USER_HZ is 100 on every Linux that this runs on.
    ticks / 100.0
}

fn ticks(pid: i32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
}

fn resident_kib(pid: i32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
}

async fn copy(playground: &Playground) -> anyhow::Result<()> {
    let client = playground.connect().await?;
    client
        .batch_execute(
            "set shardman.broadcast_utility = off; create table plain(a int, b int, t text);
             reset shardman.broadcast_utility;
             select shardman.bcst_all_sql('create table spread(a int, b int, t text) partition by hash(a)')",
        )
        .await?;
    client.batch_execute("select shardman.hash_shard_table('spread', 4)").await?;
    let file = Path::new(&playground.path()).join("rows");
    let text: String = (0..ROWS).map(|i| format!("{i}\t{}\trow number {i}\n", i % 1000)).collect();
    std::fs::write(&file, text)?;
    let plain = load(&client, "plain", &file).await?;
    let spread = load(&client, "spread", &file).await?;
    println!(
        "COPY of {ROWS} rows: plain local table {plain:.2} s, 4 partitions over 2 groups {spread:.2} s, {:.0} times as long",
        spread / plain
    );
    client.batch_execute("drop table spread").await?;
    Ok(())
}

async fn load(client: &tokio_postgres::Client, table: &str, file: &Path) -> anyhow::Result<f64> {
    let sql = format!("copy {table} from {}", pg::quote::literal(&file.to_string_lossy()));
    let begun = Instant::now();
    client.batch_execute(&sql).await.with_context(|| sql.clone())?;
    Ok(begun.elapsed().as_secs_f64())
}

async fn failover(playground: &Playground) -> anyhow::Result<()> {
    let client = playground.connect().await?;
    client
        .batch_execute("create table journal(id int primary key, t text) with (distributed_by='id', num_parts=4)")
        .await?;
    drop(client);
    let connstr = playground.connstr()?;
    let (mut pauses, mut servers) = (Vec::new(), Vec::new());
    for round in 0..4 {
        let node = format!("node{}", round + 1);
        let writer = Writer::start(connstr.clone(), "journal", (round * 1_000_000..(round + 1) * 1_000_000).collect());
        tokio::time::sleep(Duration::from_secs(2)).await;
        let group = format!("clover-{}-{node}", round / 2 + 1);
        let onlooker = Onlooker::new(playground, u32::try_from(round)? + 1, &group).await?;
        let killed = Instant::now();
        playground.node("kill", &node)?;
        servers.push(onlooker.servers_follow().await?.as_secs_f64());
        tokio::time::sleep(Duration::from_secs(8)).await;
        let journal = writer.finish().await?;
        pauses.push(outage(&journal, killed).context("no commit after the failover")?.as_secs_f64());
        playground.node("start", &node)?;
        Playground::eventually("the node is back", Duration::from_secs(60), async || {
            playground.status().is_ok_and(|status| status.complaints().is_empty())
        })
        .await?;
    }
    pauses.sort_by(f64::total_cmp);
    println!("failover, each node killed once under single-row commits: {pauses:.2?} s without a commit (limit 5 s)");
    servers.sort_by(f64::total_cmp);
    println!("foreign servers of all groups follow the new master after {servers:.2?} s (limit 1 s)");
    Ok(())
}
