//! Waiting for bowls and for stolon's daemons: woken by the store, not by a clock.

use crate::cluster::Loaded;
use crate::context::Context;
use crate::error::Error;
use crate::group::{Group, Place, login};
use crate::report::{Progress, item};
use model::layout::{Document, NodeStatus};
use model::stolon::ClusterData;
use model::{Generation, NodeName, RepGroupName};
use pg::Endpoint;
use std::collections::BTreeMap;
use std::time::Duration;
use store::{Follower, Target, View};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

/// Pause before a server that refused us is tried again: nothing in the store tells when it will not.
const RETRY: Duration = Duration::from_secs(1);

/// Waits until the bowl of each node has applied what is in force; a node without layout needs a living bowl only.
///
/// # Errors
/// A bowl does not report in time.
pub async fn bowls(ctx: &Context, loaded: &Loaded, new: &[NodeName], progress: &dyn Progress) -> Result<(), Error> {
    let layouts = loaded.current().layouts;
    let mut wanted: BTreeMap<&NodeName, Option<Generation>> =
        layouts.iter().map(|(node, layout)| (node, Some(layout.generation))).collect();
    for node in new {
        wanted.entry(node).or_insert(None);
    }
    let targets = vec![Target::Key(ctx.keys.spec()), Target::Prefix(ctx.keys.statuses())];
    let follower = Follower::start(ctx.store.clone(), targets);
    let mut view = follower.subscribe();
    let deadline = Instant::now() + ctx.bowl_patience;
    for (node, generation) in wanted {
        let key = ctx.keys.status(node);
        let look = |view: &View| {
            let spec = view.entries.get(&ctx.keys.spec()).map_or(loaded.spec.revision, |entry| entry.mod_revision);
            judge_bowl(node, view.value(&key), generation, spec)
        };
        let what = format!("Waiting for shardmand on node {node} to apply current configuration");
        let waited = async {
            let failed = |state| Error::Bowl { node: node.clone(), state, after: ctx.bowl_patience };
            match until(&mut view, deadline, look).await.map_err(failed)? {
                Fit::Ready => Ok(()),
                Fit::Foreign(why) => Err(Error::Refused(why)),
            }
        };
        item(progress, &what, "success", waited).await?;
    }
    Ok(())
}

/// Waits for a view that satisfies `look`, or gives what `look` said last.
async fn until<T>(
    receiver: &mut watch::Receiver<View>,
    deadline: Instant,
    look: impl Fn(&View) -> Result<T, String>,
) -> Result<T, String> {
    loop {
        let seen = look_at(&receiver.borrow_and_update(), &look);
        let Err(state) = seen else { return seen };
        if timeout_at(deadline, receiver.changed()).await.is_err() {
            return Err(state);
        }
    }
}

/// A store that was not read yet must not look like one without the key.
fn look_at<T>(view: &View, look: impl Fn(&View) -> Result<T, String>) -> Result<T, String> {
    if view.loaded { look(view) } else { Err("could not be asked: the store did not answer".to_owned()) }
}

/// What no waiting changes any more.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fit {
    Ready,
    /// The node has another past than this store; why it must not be touched.
    Foreign(String),
}

/// Compares for equality: after etcd was made anew, a status of before can bear higher numbers than any that exist.
fn judge_bowl(
    node: &NodeName,
    status: Option<&[u8]>,
    generation: Option<Generation>,
    spec_revision: i64,
) -> Result<Fit, String> {
    let bytes = status.ok_or("does not run: it did not report")?;
    let status = NodeStatus::parse("its status", bytes).map_err(|e| format!("can't be understood: {e}"))?;
    let Some(generation) = generation else {
        if status.generation == Generation(0) {
            return Ok(Fit::Ready);
        }
        return Ok(Fit::Foreign(earlier_daemons(&[node.to_string()])));
    };
    if status.generation == generation && status.spec_revision == spec_revision {
        return Ok(Fit::Ready);
    }
    let why = if status.last_error.is_empty() { String::new() } else { format!(" ({})", status.last_error) };
    Err(format!("did not apply the current configuration{why}"))
}

/// Why nodes whose bowls have applied what this store does not know must be left alone: new layouts would point
/// their keepers at new, empty groups.
pub(crate) fn earlier_daemons(nodes: &[String]) -> String {
    let (which, run, whose) = match nodes {
        [node] => (format!("node {node}"), "runs", "its bowl and move its data directory"),
        nodes => (format!("nodes {}", nodes.join(", ")), "run", "their bowls and move their data directories"),
    };
    format!(
        "{which} still {run} daemons of an earlier cluster of this name; stop {whose} away, or restore etcd from a backup"
    )
}

/// What makes a group ready.
#[derive(Clone, Copy, Debug)]
pub struct Readiness {
    /// Its proxies must be up too.
    pub use_proxy: bool,
    /// Number of its keepers.
    pub copies: usize,
    /// The master must be the preferred keeper.
    pub preferred: bool,
}

/// A limit that several waits share.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    patience: Duration,
    deadline: Instant,
}

impl Limit {
    /// So long from now.
    pub fn start(patience: Duration) -> Self {
        Limit { patience, deadline: Instant::now() + patience }
    }
}

/// Waits until a group has its master where it is expected, and the master answers.
///
/// # Errors
/// It does not come to that in time.
pub async fn daemons(
    ctx: &Context,
    loaded: &Loaded,
    name: &RepGroupName,
    limit: Limit,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let cluster_spec = &loaded.spec.doc.cluster_spec;
    let wanted =
        Readiness { use_proxy: cluster_spec.use_proxy, copies: loaded.spec.doc.ladle_spec.copies(), preferred: true };
    let group = Group::open(ctx, &Place::own(name.clone())).await?;
    let follower = Follower::start(group.store.clone(), vec![Target::Key(group.keys.clusterdata())]);
    let mut view = follower.subscribe();
    let mut said = String::new();
    loop {
        let look = |view: &View| judge_group(view.value(&group.keys.clusterdata()), wanted);
        let judged = look_at(&view.borrow_and_update(), look);
        let (state, retry) = match judged {
            Ok(ready) => match group.connect_to(&ready.master, &login(cluster_spec)).await {
                Ok(_) => {
                    if ready.unranked {
                        progress.warn(&format!(
                            "the keepers of {name} report no priorities; which one is master is left to stolon"
                        ));
                    }
                    return Ok(());
                }
                Err(error) => (common::exit::one_line(&error.into()), true),
            },
            Err(state) => (state, false),
        };
        if state != said {
            debug!(group = %name, "not ready yet: {state}");
            said = state;
        }
        // Both branches are cancel-safe: a change that is not taken is found again, a sleep has no effect.
        let change = async {
            tokio::select! {
                _ = view.changed() => {}
                () = sleep(RETRY), if retry => {}
            }
        };
        if timeout_at(limit.deadline, change).await.is_err() {
            return Err(Error::NotReady { group: name.clone(), state: said, after: limit.patience });
        }
    }
}

/// A group whose master can be asked.
#[derive(Debug, PartialEq, Eq)]
struct Ready {
    master: Endpoint,
    /// All keepers are known and none has a priority: a stolon that does not know priorities.
    unranked: bool,
}

fn judge_group(bytes: Option<&[u8]>, wanted: Readiness) -> Result<Ready, String> {
    let bytes = bytes.ok_or("there is no cluster data")?;
    let data = ClusterData::parse(bytes).map_err(|e| common::exit::one_line(&e.into()))?;
    let master = pg::endpoints::master(&data).map_err(|e| e.to_string())?;
    let keeper = data.proxied_master_keeper().ok_or("its master has no keeper")?;
    let unranked = data.keepers.len() >= wanted.copies && data.keepers.values().all(|k| k.spec.priority == 0);
    if wanted.preferred && keeper.spec.priority < 1 && !unranked {
        return Err(format!("{} is master instead of the preferred keeper", keeper.uid));
    }
    if wanted.use_proxy {
        pg::endpoints::proxies(&data).map_err(|_| "it has no proxy yet".to_owned())?;
    }
    Ok(Ready { master, unranked })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const WANTED: Readiness = Readiness { use_proxy: true, copies: 2, preferred: true };

    fn data(priorities: [i64; 2], master: &str, proxies: &Value) -> Vec<u8> {
        let keeper = |uid: &str, priority| json!({"uid": uid, "spec": {"priority": priority}});
        let db = |uid: &str, keeper: &str| {
            json!({"uid": uid, "spec": {"keeperUID": keeper, "role": "master"},
                   "status": {"listenAddress": "h", "port": "5442"}})
        };
        let value = json!({"formatVersion": 1, "cluster": {"spec": {"initMode": "new"}},
            "keepers": {"keeper_0": keeper("keeper_0", priorities[0]), "keeper_1": keeper("keeper_1", priorities[1])},
            "dbs": {"d0": db("d0", "keeper_0"), "d1": db("d1", "keeper_1")},
            "proxy": {"spec": {"masterDbUid": master}, "status": proxies}});
        serde_json::to_vec(&value).unwrap()
    }

    #[test]
    fn a_group_is_ready_when_its_preferred_keeper_is_master() {
        let proxies = json!({"p": {"listenAddress": "h", "port": "5432"}});
        let judge = |bytes: &[u8]| judge_group(Some(bytes), WANTED);
        assert!(!judge(&data([1, 0], "d0", &proxies)).unwrap().unranked);
        assert!(judge(&data([1, 0], "d1", &proxies)).unwrap_err().contains("keeper_1 is master"));
        assert!(judge(&data([0, 0], "d1", &proxies)).unwrap().unranked);
        assert_eq!(judge(&data([1, 0], "", &proxies)).unwrap_err(), "no master is available");
        assert_eq!(judge(&data([1, 0], "d0", &json!({}))).unwrap_err(), "it has no proxy yet");
        assert_eq!(judge_group(None, WANTED).unwrap_err(), "there is no cluster data");
        assert!(judge(b"{").is_err());
    }

    #[test]
    fn a_bowl_is_up_to_date_when_it_applied_both() {
        let status = |generation: u64, spec: i64, error: &str| {
            json!({"FormatVersion": 1, "Node": "n1", "Version": "1", "Generation": generation, "SpecRevision": spec,
                   "LastError": error, "Time": "", "Daemons": []})
            .to_string()
        };
        let judge = |text: &str, generation| judge_bowl(&"n1".into(), Some(text.as_bytes()), generation, 7);
        let wanted = Some(Generation(3));
        assert_eq!(judge(&status(3, 7, ""), wanted), Ok(Fit::Ready));
        // Higher numbers come from a store that was lost.
        assert!(judge(&status(4, 7, "the store is stale"), wanted).unwrap_err().contains("stale"));
        assert!(judge(&status(3, 8, ""), wanted).is_err());
        assert!(judge(&status(2, 7, ""), wanted).is_err());
        assert!(judge(&status(3, 6, "disk full"), wanted).unwrap_err().contains("disk full"));
        assert_eq!(judge(&status(0, 0, ""), None), Ok(Fit::Ready));
        let Ok(Fit::Foreign(why)) = judge(&status(1, 7, ""), None) else { panic!("it has a past") };
        assert!(why.starts_with("node n1 still runs daemons of an earlier cluster"), "{why}");
        assert!(judge("{", None).is_err());
        assert!(judge_bowl(&"n1".into(), None, None, 7).unwrap_err().contains("did not report"));
    }
}
