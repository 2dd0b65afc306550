//! Why a failover happened, as far as the programs say it themselves.

use crate::cluster::{Cluster, Node};
use crate::versions::Change;
use chrono::{DateTime, TimeDelta, Utc};
use etcd_client::GetOptions;
use std::path::Path;

/// Log lines of so many seconds before and after the change are shown.
const BEFORE: i64 = 8;
const AFTER: i64 = 1;
/// No more lines of each log than this.
const LINES: usize = 30;

/// A text about one change of the master.
pub(super) async fn explain(cluster: &Cluster, change: &Change) -> String {
    let mut lines =
        vec![format!("failover from {} to {} at {} (revision {})", change.from, change.to, change.at, change.revision)];
    match cluster.ctl(&["why"]) {
        Ok(text) => lines.extend(text.lines().map(|line| format!("why: {line}"))),
        Err(_) => lines.push("stolonctl why says nothing".into()),
    }
    lines.extend(decisions(cluster).await.unwrap_or_else(|error| vec![format!("decisions: {error:#}")]));
    if let Ok(at) = DateTime::parse_from_rfc3339(&change.at) {
        for daemon in cluster.nodes.iter().flat_map(Node::daemons) {
            let around = around(daemon.log(), at.to_utc());
            lines.extend(around.into_iter().map(|line| format!("{}: {line}", daemon.name)));
        }
    }
    lines.join("\n")
}

/// The history of decisions that sentinels keep beside the cluster data.
async fn decisions(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let prefix = format!("{}/ext/decisions", cluster.keys.base());
    let answer = cluster.etcd().await?.get(prefix, Some(GetOptions::new().with_prefix())).await?;
    let texts = answer.kvs().iter().map(|entry| format!("decision: {}", String::from_utf8_lossy(entry.value())));
    Ok(texts.collect())
}

fn around(log: &Path, at: DateTime<Utc>) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let (from, to) = (at - TimeDelta::seconds(BEFORE), at + TimeDelta::seconds(AFTER));
    let inside = |line: &&str| time_of(line).is_some_and(|time| time >= from && time <= to);
    text.lines().filter(inside).take(LINES).map(str::to_owned).collect()
}

/// The time at the beginning of one of our log lines.
fn time_of(line: &str) -> Option<DateTime<Utc>> {
    let word = line.split_whitespace().next()?;
    DateTime::parse_from_rfc3339(word).ok().map(|time| time.to_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_log_lines() {
        assert!(time_of("2026-11-21T11:00:00.123456Z\tINFO\tx").is_some());
        for line in ["", "x", "2026-11-21 11:00:00 UTC"] {
            assert_eq!(time_of(line), None, "{line}");
        }
    }
}
