//! `status`: who is there and who is master.

use super::open;
use crate::access::{self, AccessError};
use crate::cli::CommonArgs;
use crate::ctl::render;
use crate::sentinel::observe::{Entries, observe};
use crate::sentinel::plan::{Moment, explain};
use common::cli::OutputFormat;
use model::stolon::keys::Keys;
use model::stolon::{ClusterData, Db, ProxyInfo, SentinelInfo};
use model::{DbUid, GoTime, KeeperUid};
use serde::Serialize;
use serde_json::json;
use std::time::Duration;
use store::{Entry, SharedStore};

/// Arguments of `status`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Form of the output
    #[arg(
        short,
        long,
        visible_short_alias = 'o',
        alias = "output",
        value_enum,
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub format: OutputFormat,
}

/// A cluster's state.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// By identifier.
    pub sentinels: Vec<SentinelStatus>,
    /// By identifier.
    pub proxies: Vec<ProxyStatus>,
    /// By identifier.
    pub keepers: Vec<KeeperStatus>,
    /// The whole.
    pub cluster: ClusterStatus,
    /// What somebody should look at.
    pub problems: Vec<ProblemStatus>,
    #[serde(skip)]
    tree: Vec<String>,
}

/// A living sentinel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SentinelStatus {
    /// Its identifier.
    pub uid: String,
    /// It decides.
    pub leader: bool,
}

/// A living proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProxyStatus {
    /// Its identifier.
    pub uid: String,
    /// Generation that it has applied.
    pub generation: i64,
}

/// A keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeeperStatus {
    /// Its identifier.
    pub uid: KeeperUid,
    /// Address and port of its PostgreSQL, or why there is none.
    pub listen_address: String,
    /// It is heard of.
    pub healthy: bool,
    /// Its PostgreSQL works.
    pub pg_healthy: bool,
    /// Wanted generation of its db.
    pub pg_wanted_generation: i64,
    /// Applied generation of its db.
    pub pg_current_generation: i64,
}

/// What somebody should look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProblemStatus {
    /// A stable word for programs.
    pub code: &'static str,
    /// The keeper that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keeper: Option<KeeperUid>,
    /// In words.
    pub text: String,
}

/// The whole cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClusterStatus {
    /// A master was chosen.
    pub available: bool,
    /// Its keeper; empty until then.
    pub master_keeper_uid: KeeperUid,
    /// The master; empty until then.
    pub master_db_uid: DbUid,
}

pub(super) async fn command(common: &CommonArgs, args: &Args) -> anyhow::Result<()> {
    let result = async {
        let (store, keys) = open(common).await?;
        anyhow::Ok(run(&store, &keys).await?)
    };
    match (result.await, args.format) {
        (Ok(status), OutputFormat::Text) => Ok(render::print(&text(&status))?),
        (Ok(status), OutputFormat::Json) => Ok(render::print(&render::json(&status))?),
        (Err(error), OutputFormat::Text) => Err(error),
        (Err(error), OutputFormat::Json) => {
            render::print(&render::json(&json!({"error": common::exit::one_line(&error)})))?;
            Err(error)
        }
    }
}

/// Reads a cluster's state.
///
/// # Errors
/// The store failed, or there is no usable cluster data.
pub async fn run(store: &SharedStore, keys: &Keys) -> Result<Status, AccessError> {
    let listing = store.list(&format!("{}/", keys.base())).await?;
    let entries: Entries = listing.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
    let data = access::parse(entries.get(&keys.clusterdata()).ok_or(AccessError::Absent)?)?.data;
    let under = |prefix: String| entries.values().filter(|e| e.key.starts_with(&prefix)).cloned().collect::<Vec<_>>();
    let (sentinels, candidates) = (under(keys.sentinels_info()), under(keys.election()));
    let mut status = status(&data, &sentinels, &candidates, &under(keys.proxies_info()));
    status.problems = problems(&data, &entries, keys, &status.sentinels);
    Ok(status)
}

/// What somebody should look at.
fn problems(data: &ClusterData, entries: &Entries, keys: &Keys, sentinels: &[SentinelStatus]) -> Vec<ProblemStatus> {
    let now = Moment { clock: Duration::ZERO, wall: GoTime::from(chrono::Utc::now()) };
    let observed = observe(entries, keys, Duration::ZERO, 0);
    let mut problems = Vec::new();
    if !sentinels.iter().any(|sentinel| sentinel.leader) {
        let text = "no sentinel leads: nothing is decided, nobody replaces a master that fails".to_owned();
        problems.push(ProblemStatus { code: "no_leader", keeper: None, text });
    }
    let found = explain(now, data, &observed).problems().into_iter();
    problems.extend(found.map(|(keeper, finding)| ProblemStatus { code: finding.code, keeper, text: finding.text }));
    problems
}

fn records<T: serde::de::DeserializeOwned>(entries: &[Entry]) -> Vec<T> {
    access::records(&entries.iter().collect::<Vec<_>>()).into_values().collect()
}

fn status(data: &ClusterData, sentinels: &[Entry], candidates: &[Entry], proxies: &[Entry]) -> Status {
    // The candidate with the lowest create revision leads; its value is its identifier, not JSON.
    let leader = candidates.iter().min_by_key(|entry| entry.create_revision);
    let leader = leader.map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
    let mut sentinels: Vec<SentinelStatus> = records::<SentinelInfo>(sentinels)
        .into_iter()
        .map(|info| SentinelStatus { leader: leader.as_ref() == Some(&info.uid), uid: info.uid })
        .collect();
    sentinels.sort_by(|a, b| a.uid.cmp(&b.uid));
    let mut proxies: Vec<ProxyStatus> = records::<ProxyInfo>(proxies)
        .into_iter()
        .map(|info| ProxyStatus { uid: info.uid.to_string(), generation: info.generation })
        .collect();
    proxies.sort_by(|a, b| a.uid.cmp(&b.uid));
    let master = data.dbs.get(&data.cluster.status.master);
    Status {
        sentinels,
        proxies,
        keepers: data.keepers.keys().map(|uid| keeper_status(data, uid)).collect(),
        cluster: master.map(cluster_status).unwrap_or_default(),
        problems: Vec::new(),
        tree: master.map(|master| tree(data, master)).unwrap_or_default(),
    }
}

fn cluster_status(master: &Db) -> ClusterStatus {
    ClusterStatus {
        available: true,
        master_keeper_uid: master.spec.keeper_uid.clone(),
        master_db_uid: master.uid.clone(),
    }
}

fn keeper_status(data: &ClusterData, uid: &KeeperUid) -> KeeperStatus {
    let db = data.db_of_keeper(uid);
    let listen_address = match db.map(|db| &db.status) {
        None => "(no db assigned)".to_owned(),
        Some(status) if status.listen_address.is_empty() => "(unknown)".to_owned(),
        Some(status) => format!("{}:{}", status.listen_address, status.port),
    };
    KeeperStatus {
        uid: uid.clone(),
        listen_address,
        healthy: data.keepers.get(uid).is_some_and(|keeper| keeper.status.healthy),
        pg_healthy: db.is_some_and(|db| db.status.healthy),
        pg_wanted_generation: db.map_or(0, |db| db.generation),
        pg_current_generation: db.map_or(0, |db| db.status.current_generation),
    }
}

/// Who follows whom, a line per db.
fn tree(data: &ClusterData, master: &Db) -> Vec<String> {
    let mut lines = vec![format!("{} (master)", master.spec.keeper_uid)];
    let mut path = vec![&master.uid];
    branches(data, master, "", &mut path, &mut lines);
    lines
}

fn branches<'a>(data: &'a ClusterData, db: &'a Db, indent: &str, path: &mut Vec<&'a DbUid>, lines: &mut Vec<String>) {
    // A db that follows itself over corners would never end.
    let followers: Vec<&Db> =
        db.spec.followers.iter().filter(|uid| !path.contains(uid)).filter_map(|uid| data.dbs.get(uid)).collect();
    for (number, follower) in followers.iter().enumerate() {
        let (branch, further) = if number + 1 == followers.len() { ("└─", "  ") } else { ("├─", "│ ") };
        lines.push(format!("{indent}{branch}{}", follower.spec.keeper_uid));
        path.push(&follower.uid);
        branches(data, follower, &format!("{indent}{further}"), path, lines);
        path.pop();
    }
}

fn text(status: &Status) -> String {
    let row = |cells: &[&dyn ToString]| cells.iter().map(|cell| cell.to_string()).collect::<Vec<String>>();
    let mut sentinels = vec![row(&[&"ID", &"LEADER"])];
    sentinels.extend(status.sentinels.iter().map(|s| row(&[&s.uid, &s.leader])));
    let mut proxies = vec![row(&[&"ID"])];
    proxies.extend(status.proxies.iter().map(|p| row(&[&p.uid])));
    let header: [&dyn ToString; 6] =
        [&"UID", &"HEALTHY", &"PG LISTENADDRESS", &"PG HEALTHY", &"PG WANTEDGENERATION", &"PG CURRENTGENERATION"];
    let mut keepers = vec![row(&header)];
    keepers.extend(status.keepers.iter().map(|k| {
        let KeeperStatus { uid, listen_address, healthy, pg_healthy, pg_wanted_generation, pg_current_generation } = k;
        row(&[uid, healthy, listen_address, pg_healthy, pg_wanted_generation, pg_current_generation])
    }));
    let cluster = if status.cluster.available {
        let tree = status.tree.join("\n");
        format!("Master Keeper: {}\n\n===== Keepers/DB tree =====\n\n{tree}\n", status.cluster.master_keeper_uid)
    } else {
        "No cluster available\n".to_owned()
    };
    let problems = status.problems.iter().map(|problem| match &problem.keeper {
        Some(keeper) => format!("keeper {keeper}: {} ({})\n", problem.text, problem.code),
        None => format!("{} ({})\n", problem.text, problem.code),
    });
    let problems: String = problems.collect();
    // Only where there are some: scripts read what comes before.
    let problems = if problems.is_empty() { problems } else { format!("\n=== Problems ===\n\n{problems}") };
    format!(
        "=== Active sentinels ===\n\n{}\n=== Active proxies ===\n\n{}\n=== Keepers ===\n\n{}\n=== Cluster Info ===\n\n{cluster}{problems}",
        section(&sentinels, "No active sentinels"),
        section(&proxies, "No active proxies"),
        section(&keepers, "No keepers available"),
    )
}

/// A table, or a line that says that it is empty.
fn section(rows: &[Vec<String>], empty: &str) -> String {
    if rows.len() > 1 { render::table(rows) } else { format!("{empty}\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, create_revision: i64, value: &str) -> Entry {
        Entry { key: key.into(), value: value.into(), create_revision, mod_revision: 9, lease: None }
    }

    fn sample() -> Status {
        let data: ClusterData = serde_json::from_str(include_str!("../golden/clusterdata.json")).unwrap();
        let sentinels = [entry("s/2", 1, r#"{"UID":"ffff0002"}"#), entry("s/1", 1, r#"{"UID":"aaaa0001"}"#)];
        let candidates = [entry("e/1", 8, "aaaa0001"), entry("e/2", 7, "ffff0002")];
        let proxies = [entry("p/1", 1, r#"{"UID":"4cd2b261","Generation":2}"#), entry("p/2", 1, "broken")];
        status(&data, &sentinels, &candidates, &proxies)
    }

    #[test]
    fn both_forms_are_golden() {
        assert_eq!(text(&sample()), include_str!("../golden/status.txt"));
        assert_eq!(render::json(&sample()), include_str!("../golden/status.json"));
    }

    #[test]
    fn problems_come_last() {
        let mut status = sample();
        let problem = |keeper: Option<&str>| ProblemStatus {
            code: "code",
            keeper: keeper.map(KeeperUid::from),
            text: "text".into(),
        };
        status.problems = vec![problem(None), problem(Some("k"))];
        let expected = format!("{}\n=== Problems ===\n\ntext (code)\nkeeper k: text (code)\n", text(&sample()));
        assert_eq!(text(&status), expected);
    }

    #[test]
    fn an_empty_cluster_has_all_sections() {
        let status = status(&ClusterData::default(), &[], &[], &[]);
        assert_eq!(text(&status), include_str!("../golden/status-empty.txt"));
        assert_eq!(render::json(&status), include_str!("../golden/status-empty.json"));
    }

    #[test]
    fn a_circle_of_followers_ends() {
        let data = r#"{"cluster":{"status":{"master":"a"}},"dbs":{"a":{"uid":"a","spec":{"keeperUID":"k","followers":["b"]}},
            "b":{"uid":"b","spec":{"keeperUID":"l","followers":["a","b","gone"]}}}}"#;
        let data: ClusterData = serde_json::from_str(data).unwrap();
        assert_eq!(status(&data, &[], &[], &[]).tree, ["k (master)", "└─l"]);
    }
}
