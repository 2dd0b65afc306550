//! What clusters cost that do nothing.

use crate::cluster;
use nix::unistd::Pid;
use serde_json::json;
use std::time::Duration;
use testkit::stolon::Lab;

/// Groups of two.
const GROUPS: usize = 8;
/// The work of starting fades away.
const CALM: Duration = Duration::from_secs(30);
const MINUTE: Duration = Duration::from_secs(60);

/// Prints memory, processor time and writes to the store of eight idle groups.
///
/// # Errors
/// A store can't be read.
pub(crate) async fn measure() -> anyhow::Result<()> {
    let mut labs = Vec::new();
    for _ in 0..GROUPS {
        let small = cluster(2)?.spec(json!({"pgParameters": {"max_connections": "30"}}));
        labs.push(small.up().await);
    }
    tokio::time::sleep(CALM).await;
    let before = revisions(&labs).await?;
    let used = processor_time(&labs);
    tokio::time::sleep(MINUTE).await;
    let writes = f64::from(u32::try_from(revisions(&labs).await? - before)?) / MINUTE.as_secs_f64();
    println!("{GROUPS} idle groups of 2: {writes:.2} writes to etcd per second (limit 1)");
    let used = (processor_time(&labs) - used) / MINUTE.as_secs_f64() * 100.0;
    println!("{GROUPS} idle groups of 2: all daemons together use {used:.1} % of a core");
    for (name, limit, pids) in [
        ("keeper", 12, pids(&labs, |lab| lab.keepers().iter().map(|keeper| &keeper.process).collect())),
        ("sentinel", 8, pids(&labs, |lab| lab.sentinels().iter().collect())),
        ("proxy", 8, pids(&labs, |lab| lab.proxies().iter().map(|proxy| &proxy.process).collect())),
    ] {
        let mut sizes: Vec<f64> = pids.into_iter().filter_map(resident_mib).collect();
        sizes.sort_by(f64::total_cmp);
        let largest = sizes.last().copied().unwrap_or_default();
        let median = sizes.get(sizes.len() / 2).copied().unwrap_or_default();
        println!("idle {name:8} {median:.1} MiB resident, the largest {largest:.1} MiB (limit {limit})");
    }
    Ok(())
}

async fn revisions(labs: &[Lab]) -> anyhow::Result<i64> {
    let mut sum = 0;
    for lab in labs {
        sum += lab.store().list("no such key").await?.revision;
    }
    Ok(sum)
}

fn pids(labs: &[Lab], of: impl Fn(&Lab) -> Vec<&testkit::stolon::Process>) -> Vec<Pid> {
    labs.iter()
        .flat_map(|lab| of(lab).into_iter().filter_map(testkit::stolon::Process::pid).collect::<Vec<_>>())
        .collect()
}

fn processor_time(labs: &[Lab]) -> f64 {
    let all = pids(labs, |lab| {
        let keepers = lab.keepers().iter().map(|keeper| &keeper.process);
        keepers.chain(lab.sentinels()).chain(lab.proxies().iter().map(|proxy| &proxy.process)).collect()
    });
    // The kernel's USER_HZ is 100 on every Linux that this runs on.
    all.into_iter().filter_map(ticks).sum::<f64>() / 100.0
}

fn ticks(pid: Pid) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
}

fn resident_mib(pid: Pid) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok())?;
    Some(kib / 1024.0)
}
