//! `make bench-proxy`: what a proxy costs, as a share of direct connections, ours beside HAProxy.
//!
//! Direct and proxied runs of `pgbench -S` alternate within each round, and only ratios within a round count: what else
//! the machine does disturbs all of them alike. Optional arguments: rounds (7), seconds per run (2).

#![expect(clippy::print_stdout, reason = "the figures are this program's output")]

use anyhow::{Context as _, ensure};
use e2e::contenders::{Contender, Stage, program};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use testkit::postgres::Postgres;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const OURS: &str = "stolon-proxy";
const HAPROXY: &str = "HAProxy";
const HAPROXY_ONE: &str = "HAProxy, 1 thread";
const GO: &str = "Go stolon-proxy";
const DIRECT: &str = "direct";
/// Rows of pgbench's accounts are 100,000 times this; small enough to stay in shared buffers.
const SCALE: &str = "1";
/// Connections of the memory measurement, and what they may cost.
const IDLE: usize = 1000;
const IDLE_LIMIT: f64 = 30.0;

/// What pgbench runs, and the least share of direct throughput that we want of it: 1.25 times what Go's proxy gets.
struct Work {
    name: &'static str,
    clients: &'static str,
    protocol: &'static str,
    wanted: Option<f64>,
}

const WORKS: [Work; 4] = [
    Work { name: "1 client, simple", clients: "1", protocol: "simple", wanted: Some(0.60) },
    Work { name: "1 client, prepared", clients: "1", protocol: "prepared", wanted: Some(0.60) },
    Work { name: "8 clients, simple", clients: "8", protocol: "simple", wanted: Some(0.73) },
    Work { name: "8 clients, prepared", clients: "8", protocol: "prepared", wanted: Some(0.50) },
];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse());
    let (rounds, seconds) = (number(7)?, number(2)?.to_string());
    let postgres = Postgres::start(&["shared_buffers = 128MB"])?;
    let made = postgres.client_program("pgbench").args(["-i", "-q", "-s", SCALE]).output()?;
    ensure!(made.status.success(), "pgbench -i: {}", String::from_utf8_lossy(&made.stderr));
    let server = SocketAddr::from(([127, 0, 0, 1], postgres.port()));
    let stage = Stage::start().await?;
    let contenders = contenders(&stage, server).await?;
    for work in &WORKS {
        compare(&postgres, &contenders, work, rounds, &seconds)?;
    }
    drop(contenders);
    idle_memory(&stage).await
}

async fn contenders(stage: &Stage, server: SocketAddr) -> anyhow::Result<Vec<Contender>> {
    let mut list = vec![stage.stolon(OURS, &our_proxy()?, server).await?];
    match program("haproxy") {
        Some(haproxy) => {
            list.push(stage.haproxy(HAPROXY, &haproxy, 0, server)?);
            list.push(stage.haproxy(HAPROXY_ONE, &haproxy, 1, server)?);
        }
        None => println!("HAProxy is missing, so nothing is compared with it: apt-get install haproxy"),
    }
    match std::env::var_os("STOLON_BIN_PATH") {
        Some(dir) => list.push(stage.stolon(GO, &PathBuf::from(dir).join("stolon-proxy"), server).await?),
        None => println!("Go's stolon-proxy is not measured: STOLON_BIN_PATH does not say where it is"),
    }
    Ok(list)
}

/// The one that was built along with this program.
fn our_proxy() -> anyhow::Result<PathBuf> {
    let file = std::env::current_exe()?.with_file_name("stolon-proxy");
    ensure!(file.is_file(), "{} is missing; run `make bench-proxy`, which builds it", file.display());
    Ok(file)
}

/// Runs all contenders and direct connections in turn, and prints medians of the ratios of each round.
fn compare(
    postgres: &Postgres,
    contenders: &[Contender],
    work: &Work,
    rounds: usize,
    seconds: &str,
) -> anyhow::Result<()> {
    let mut targets = vec![(DIRECT, postgres.port(), None)];
    targets.extend(contenders.iter().map(|contender| (contender.name, contender.port, Some(contender))));
    let mut shares: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut against: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut costs: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut direct = Vec::new();
    for round in 0..rounds {
        let mut speeds: BTreeMap<&str, f64> = BTreeMap::new();
        // Another order each time: what came before may have warmed or cooled something.
        targets.rotate_left(round % 2 + 1);
        for (name, port, contender) in &targets {
            let before = contender.map(Contender::processor_seconds).transpose()?;
            let speed = pgbench(postgres, *port, work, seconds)?;
            if let (Some(contender), Some(before)) = (contender, before) {
                let used = contender.processor_seconds()? - before;
                costs.entry(name).or_default().push(used * 1e6 / (speed * seconds.parse::<f64>()?));
            }
            speeds.insert(name, speed);
        }
        direct.push(speeds[DIRECT]);
        for contender in contenders {
            shares.entry(contender.name).or_default().push(speeds[contender.name] / speeds[DIRECT]);
            against.entry(contender.name).or_default().push(speeds[OURS] / speeds[contender.name]);
        }
    }
    println!("pgbench -S, {}: direct {:.0} queries/s", work.name, median(&mut direct));
    for Contender { name, .. } in contenders {
        let (share, cost) = (shares.get_mut(name).map(|s| median(s)), costs.get_mut(name).map(|c| median(c)));
        let (share, cost) = (share.unwrap_or_default(), cost.unwrap_or_default());
        let comment = match (*name, work.wanted) {
            (OURS, Some(wanted)) => format!("wanted at least {wanted:.2}"),
            (OURS, None) => String::new(),
            _ => format!("ours is {:.2} times as fast", against.get_mut(name).map(|a| median(a)).unwrap_or_default()),
        };
        println!("  {name:18} {share:.2} of direct, {cost:4.1} µs of processor per query; {comment}");
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

/// Queries per second.
fn pgbench(postgres: &Postgres, port: u16, work: &Work, seconds: &str) -> anyhow::Result<f64> {
    let output = postgres
        .client_program("pgbench")
        .args(["-n", "-S", "-c", work.clients, "-M", work.protocol, "-T", seconds, "-p", &port.to_string()])
        .output()?;
    ensure!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let speed = text.lines().find_map(|line| line.strip_prefix("tps = ")).context("pgbench printed no tps")?;
    Ok(speed.split_whitespace().next().context("tps without a number")?.parse()?)
}

/// Memory with many connections that have been used and then wait, before a server that costs nothing.
async fn idle_memory(stage: &Stage) -> anyhow::Result<()> {
    let echo = TcpListener::bind("127.0.0.1:0").await?;
    let server = echo.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = echo.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..length]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    for contender in contenders(stage, server).await? {
        let before = contender.resident()?;
        let mut clients = Vec::with_capacity(IDLE);
        for _ in 0..IDLE {
            let mut client = TcpStream::connect(("127.0.0.1", contender.port)).await?;
            client.write_all(&[1; 1000]).await?;
            client.read_exact(&mut [0; 1000]).await.context("a connection was not served")?;
            clients.push(client);
        }
        let limit = if contender.name == OURS { format!(" (limit {IDLE_LIMIT} MiB)") } else { String::new() };
        println!(
            "{:18} {before:.1} MiB resident, with {IDLE} idle connections {:.1} MiB{limit}",
            contender.name,
            contender.resident()?
        );
    }
    Ok(())
}
