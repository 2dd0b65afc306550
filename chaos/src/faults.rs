//! Failures made and healed.

use crate::cluster::{Cluster, Node};
use crate::process::{Daemon, postgres, postmaster, signal_all};
use crate::schedule::{Cut, Fault, Part, Planned, Target};
use crate::transcript::Transcript;
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a daemon may take to end when it is asked to.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How often a new segment of WAL is begun while a disk is full.
const SEGMENT_EVERY: Duration = Duration::from_millis(500);

/// Makes failures on one cluster. Two at once never hit the same node.
#[derive(Debug)]
pub struct Saboteur<'a> {
    cluster: &'a Cluster,
    transcript: &'a Transcript,
    busy: Mutex<BTreeSet<usize>>,
}

impl<'a> Saboteur<'a> {
    /// For a cluster.
    pub fn new(cluster: &'a Cluster, transcript: &'a Transcript) -> Self {
        Saboteur { cluster, transcript, busy: Mutex::default() }
    }

    /// Waits, makes the failure, waits, and heals it.
    ///
    /// # Errors
    /// The failure can't be made or healed: a fault of this program, not of the cluster.
    pub async fn make(&self, planned: &Planned) -> anyhow::Result<()> {
        tokio::time::sleep(planned.delay).await;
        match planned.fault {
            Fault::EtcdKill(index) => self.member(planned, index).await,
            Fault::EtcdPause(index) => self.member(planned, index).await,
            Fault::EtcdCut(index) => self.member(planned, index).await,
            Fault::Kill(target, _)
            | Fault::Stop(target, _)
            | Fault::Pause(target, _)
            | Fault::Cut(target, _)
            | Fault::Clock(target, _)
            | Fault::DiskFull(target) => {
                let index = self.take(target).await;
                let result = self.node(planned, index).await;
                self.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&index);
                result
            }
        }
    }

    /// The node that is hit; another one if the other failure has it.
    async fn take(&self, target: Target) -> usize {
        let wanted = match target {
            Target::Node(index) => index,
            // While there is no master, or nobody to say who is, any will do.
            Target::Master => self.cluster.master().await.unwrap_or(0),
        };
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let count = self.cluster.nodes.len();
        let index = (wanted..wanted + count).map(|at| at % count).find(|at| !busy.contains(at)).unwrap_or(wanted);
        busy.insert(index);
        index
    }

    async fn member(&self, planned: &Planned, index: usize) -> anyhow::Result<()> {
        let (daemon, host) = (&self.cluster.members[index], &self.cluster.shape.members[index]);
        self.transcript.say(&format!("{planned}: now"));
        match planned.fault {
            Fault::EtcdKill(_) => daemon.kill(),
            Fault::EtcdPause(_) => daemon.signal(Signal::SIGSTOP),
            _ => host.filter(&["drop".into()], &["drop".into()])?,
        }
        tokio::time::sleep(planned.hold).await;
        match planned.fault {
            Fault::EtcdKill(_) => daemon.start()?,
            Fault::EtcdPause(_) => daemon.signal(Signal::SIGCONT),
            _ => host.unfilter()?,
        }
        self.transcript.say(&format!("#{} healed", planned.number));
        Ok(())
    }

    async fn node(&self, planned: &Planned, index: usize) -> anyhow::Result<()> {
        let node = &self.cluster.nodes[index];
        self.transcript.say(&format!("{planned}: now, on {}", node.host.name));
        match planned.fault {
            Fault::Kill(_, part) => {
                kill(node, part);
                tokio::time::sleep(planned.hold).await;
                start(node)?;
            }
            Fault::Stop(_, part) => {
                stop(node, part, self.transcript).await;
                tokio::time::sleep(planned.hold).await;
                start(node)?;
            }
            Fault::Pause(_, part) => {
                let paused = pause(node, part);
                tokio::time::sleep(planned.hold).await;
                signal_all(&paused, Signal::SIGCONT);
            }
            Fault::Cut(_, cut) => self.cut(node, cut, planned.hold).await?,
            Fault::Clock(_, seconds) => {
                node.set_clock(seconds)?;
                tokio::time::sleep(planned.hold).await;
                node.set_clock(0)?;
            }
            Fault::DiskFull(_) => {
                node.fill_disk()?;
                let until = Instant::now() + planned.hold;
                while Instant::now() < until {
                    // So that every server needs new space.
                    self.cluster.switch_wal().await;
                    tokio::time::sleep(SEGMENT_EVERY).await;
                }
                node.free_disk();
            }
            Fault::EtcdKill(_) | Fault::EtcdPause(_) | Fault::EtcdCut(_) => {}
        }
        self.transcript.say(&format!("#{} healed", planned.number));
        Ok(())
    }

    async fn cut(&self, node: &Node, cut: Cut, hold: Duration) -> anyhow::Result<()> {
        if cut == Cut::Link {
            node.host.link(false)?;
            tokio::time::sleep(hold).await;
            return node.host.link(true);
        }
        let hosts = |hosts: &[crate::sandbox::Host], side: &str| -> Vec<String> {
            let others = hosts.iter().filter(|host| host.name != node.host.name);
            others.map(|host| format!("ip {side} {} drop", host.address)).collect()
        };
        let shape = &self.cluster.shape;
        let all = vec!["drop".to_owned()];
        let (incoming, outgoing) = match cut {
            Cut::Link | Cut::Everything => (all.clone(), all),
            Cut::Incoming => (all, Vec::new()),
            Cut::Outgoing => (Vec::new(), all),
            Cut::Etcd => (hosts(&shape.members, "saddr"), hosts(&shape.members, "daddr")),
            Cut::ToEtcd => (Vec::new(), hosts(&shape.members, "daddr")),
            Cut::Peers => (hosts(&shape.nodes, "saddr"), hosts(&shape.nodes, "daddr")),
            Cut::FromPeers => (hosts(&shape.nodes, "saddr"), Vec::new()),
        };
        node.host.filter(&incoming, &outgoing)?;
        tokio::time::sleep(hold).await;
        node.host.unfilter()
    }
}

fn daemons(node: &Node, part: Part) -> Vec<&Daemon> {
    match part {
        Part::Keeper | Part::Both => vec![&node.keeper],
        Part::Postgres | Part::Postmaster => Vec::new(),
        Part::Sentinel => node.sentinel.iter().collect(),
        Part::Proxy => node.proxy.iter().collect(),
        Part::All => node.daemons().collect(),
    }
}

fn processes(node: &Node, part: Part) -> Vec<i32> {
    match part {
        Part::Postgres | Part::Both | Part::All => postgres(&node.pgdata()),
        Part::Postmaster => postmaster(&node.pgdata()).into_iter().collect(),
        Part::Keeper | Part::Sentinel | Part::Proxy => Vec::new(),
    }
}

fn kill(node: &Node, part: Part) {
    // The keeper first, or it would start PostgreSQL again in between.
    daemons(node, part).into_iter().for_each(Daemon::kill);
    signal_all(&processes(node, part), Signal::SIGKILL);
}

async fn stop(node: &Node, part: Part, transcript: &Transcript) {
    let stopping = daemons(node, part).into_iter().map(|daemon| async move {
        if !daemon.stop(STOP_LIMIT).await {
            transcript.say(&format!("{} did not end when it was asked to, and was killed", daemon.name));
        }
    });
    futures::future::join_all(stopping).await;
    if matches!(part, Part::Postgres | Part::All)
        && let Some(pid) = postmaster(&node.pgdata())
    {
        signal_all(&[pid], Signal::SIGINT);
    }
}

/// Starts what does not run.
fn start(node: &Node) -> anyhow::Result<()> {
    node.daemons().try_for_each(Daemon::start)
}

fn pause(node: &Node, part: Part) -> Vec<i32> {
    let daemons = daemons(node, part).into_iter().filter_map(Daemon::pid);
    let pids: Vec<i32> = daemons.chain(processes(node, part)).collect();
    signal_all(&pids, Signal::SIGSTOP);
    pids
}
