//! The conditions themselves. Each ends in time and leaves nothing behind that disturbs.

use crate::cluster::{Cluster, connect};
use crate::process::{postgres_child, signal_all};
use crate::transcript::Transcript;
use anyhow::Context as _;
use nix::sys::signal::Signal;
use std::fmt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// What must not lead to a failover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Condition {
    /// All cores are saturated by other work
    Load,
    /// A sentinel or proxy is suspended for 10 s, again and again
    Suspend,
    /// Another member of etcd becomes leader every 20 s
    Leader,
    /// All of etcd is away for 5 s every 30 s
    Outage,
    /// All connection slots are taken, those of the superuser too
    Connections,
    /// The disk of the synchronous standby is full
    Disk,
    /// The master's checkpointer does nothing for 30 s
    Checkpoint,
}

/// All of them.
pub const ALL: [Condition; 7] = [
    Condition::Load,
    Condition::Suspend,
    Condition::Leader,
    Condition::Outage,
    Condition::Connections,
    Condition::Disk,
    Condition::Checkpoint,
];

/// Times of the conditions.
const SUSPENDED: Duration = Duration::from_secs(10);
const BETWEEN_SUSPENSIONS: Duration = Duration::from_secs(5);
const LEADER_EVERY: Duration = Duration::from_secs(20);
const OUTAGE: Duration = Duration::from_secs(5);
const BETWEEN_OUTAGES: Duration = Duration::from_secs(25);
const SLOTS_AGAIN: Duration = Duration::from_secs(2);
const DISK_FULL: Duration = Duration::from_secs(60);
const SEGMENT_EVERY: Duration = Duration::from_secs(2);
const DISK_FREE: Duration = Duration::from_secs(30);
const STALL: Duration = Duration::from_secs(30);
const BETWEEN_STALLS: Duration = Duration::from_secs(15);
impl Condition {
    /// Its short name.
    pub fn name(self) -> &'static str {
        match self {
            Condition::Load => "load",
            Condition::Suspend => "suspend",
            Condition::Leader => "leader",
            Condition::Outage => "outage",
            Condition::Connections => "connections",
            Condition::Disk => "disk",
            Condition::Checkpoint => "checkpoint",
        }
    }

    /// How many members its etcd has.
    pub fn members(self) -> usize {
        match self {
            Condition::Leader | Condition::Outage => 3,
            _ => 1,
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Keeps the condition up until then.
pub(super) async fn disturb(
    condition: Condition,
    cluster: &Cluster,
    transcript: &Transcript,
    until: Instant,
) -> anyhow::Result<()> {
    match condition {
        Condition::Load => load(until).await,
        Condition::Suspend => suspend(cluster, until).await,
        Condition::Leader => leader(cluster, transcript, until).await,
        Condition::Outage => outage(cluster, until).await,
        Condition::Connections => connections(cluster, transcript, until).await,
        Condition::Disk => disk(cluster, transcript, until).await,
        Condition::Checkpoint => checkpoint(cluster, until).await,
    }
}

/// Sleeps, but not beyond the end.
async fn sleep(time: Duration, until: Instant) {
    tokio::time::sleep(time.min(until.saturating_duration_since(Instant::now()))).await;
}

/// A process that computes until it is dropped.
struct Busy(Child);

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn load(until: Instant) -> anyhow::Result<()> {
    // A limit of its own besides: it must end even if nobody kills it.
    let limit = until.saturating_duration_since(Instant::now()).as_secs() + 60;
    let busy = |_: usize| -> anyhow::Result<Busy> {
        let mut command = Command::new("timeout");
        command.arg(limit.to_string()).args(["sh", "-c", "while :; do :; done"]).stdin(Stdio::null());
        Ok(Busy(command.spawn().context("run a busy process")?))
    };
    // One for each core, and one more: nobody finds a core idle, not even for a moment.
    let count = std::thread::available_parallelism()?.get() + 1;
    let _busy = (0..count).map(busy).collect::<anyhow::Result<Vec<Busy>>>()?;
    tokio::time::sleep_until(until.into()).await;
    Ok(())
}

async fn suspend(cluster: &Cluster, until: Instant) -> anyhow::Result<()> {
    let daemons: Vec<_> =
        cluster.nodes.iter().flat_map(|node| [node.sentinel.as_ref(), node.proxy.as_ref()]).flatten().collect();
    for daemon in daemons.into_iter().cycle() {
        if Instant::now() >= until {
            break;
        }
        daemon.signal(Signal::SIGSTOP);
        sleep(SUSPENDED, until).await;
        daemon.signal(Signal::SIGCONT);
        sleep(BETWEEN_SUSPENSIONS, until).await;
    }
    Ok(())
}

async fn leader(cluster: &Cluster, transcript: &Transcript, until: Instant) -> anyhow::Result<()> {
    while Instant::now() < until {
        // A change that is refused because an election is under way comes with the next turn.
        if let Err(error) = move_leader(cluster).await {
            transcript.say(&format!("leader: not moved this time: {error:#}"));
        }
        sleep(LEADER_EVERY, until).await;
    }
    Ok(())
}

async fn move_leader(cluster: &Cluster) -> anyhow::Result<()> {
    let mut ids = Vec::new();
    let mut leading = None;
    for endpoint in cluster.endpoints() {
        let mut client = etcd_client::Client::connect([endpoint], None).await?;
        let status = client.status().await?;
        let id = status.header().context("an answer without header")?.member_id();
        ids.push(id);
        if status.leader() == id {
            leading = Some((id, client));
        }
    }
    let (leader, mut client) = leading.context("no member says that it leads")?;
    let place = ids.iter().position(|id| *id == leader).unwrap_or_default();
    client.move_leader(ids[(place + 1) % ids.len()]).await.context("move the leader")?;
    Ok(())
}

async fn outage(cluster: &Cluster, until: Instant) -> anyhow::Result<()> {
    for killed in [false, true].into_iter().cycle() {
        if Instant::now() >= until {
            break;
        }
        for member in &cluster.members {
            if killed { member.kill() } else { member.signal(Signal::SIGSTOP) }
        }
        tokio::time::sleep(OUTAGE).await;
        for member in &cluster.members {
            if killed { member.start()? } else { member.signal(Signal::SIGCONT) }
        }
        sleep(BETWEEN_OUTAGES, until).await;
    }
    Ok(())
}

async fn connections(cluster: &Cluster, transcript: &Transcript, until: Instant) -> anyhow::Result<()> {
    let mut held: Vec<(usize, Client)> = Vec::new();
    let mut most = vec![0; cluster.nodes.len()];
    while Instant::now() < until {
        held.retain(|(_, client)| !client.is_closed());
        for (node, most) in most.iter_mut().enumerate() {
            let (host, port) = cluster.server(node);
            let user = format!("host={host} port={port} user=app dbname=postgres");
            while let Ok(client) = connect(&user).await {
                held.push((node, client));
            }
            while let Ok(client) = cluster.admin(&(host.clone(), port)).await {
                held.push((node, client));
            }
            let count = held.iter().filter(|(of, _)| of == &node).count();
            if count > *most {
                *most = count;
                transcript.say(&format!("connections: n{} is full, {count} of its sessions are ours", node + 1));
            }
        }
        sleep(SLOTS_AGAIN, until).await;
    }
    Ok(())
}

async fn disk(cluster: &Cluster, transcript: &Transcript, until: Instant) -> anyhow::Result<()> {
    while Instant::now() < until {
        if let Ok(Some(node)) = synchronous_standby(cluster).await {
            let node = &cluster.nodes[node];
            transcript.say(&format!("disk: that of {} is full now", node.host.name));
            node.fill_disk()?;
            let full = Instant::now() + DISK_FULL;
            while Instant::now() < full.min(until) {
                // Light writers would need no new segment for an hour: nobody would notice the full disk.
                cluster.switch_wal().await;
                sleep(SEGMENT_EVERY, until).await;
            }
            node.free_disk();
        }
        sleep(DISK_FREE, until).await;
    }
    Ok(())
}

async fn synchronous_standby(cluster: &Cluster) -> anyhow::Result<Option<usize>> {
    let data = cluster.data().await?;
    let standbys = data.dbs.get(&data.cluster.status.master).and_then(|db| db.status.synchronous_standbys.clone());
    let keeper = standbys.unwrap_or_default().first().and_then(|uid| Some(data.dbs.get(uid)?.spec.keeper_uid.clone()));
    Ok(keeper.and_then(|uid| cluster.nodes.iter().position(|node| node.host.name.as_str() == uid.as_str())))
}

async fn checkpoint(cluster: &Cluster, until: Instant) -> anyhow::Result<()> {
    while Instant::now() < until {
        let master = cluster.master().await?;
        if let Some(pid) = postgres_child(&cluster.nodes[master].pgdata(), "checkpointer") {
            signal_all(&[pid], Signal::SIGSTOP);
            // Somebody waits for a checkpoint all the time.
            let client = cluster.admin(&cluster.server(master)).await;
            let waiting = client.map(|client| tokio::spawn(async move { client.batch_execute("checkpoint").await }));
            tokio::time::sleep(STALL).await;
            signal_all(&[pid], Signal::SIGCONT);
            drop(waiting);
        }
        sleep(BETWEEN_STALLS, until).await;
    }
    Ok(())
}
