//! Asking the leading sentinel for something, and watching how far it gets.

use super::ChangeError;
use crate::access::{self, AccessError, random_uid};
use model::GoTime;
use model::stolon::ext::{Action, Operation, Phase, Progress};
use model::stolon::keys::Keys;
use std::time::Duration;
use store::{Compare, Follower, KeptLease, Op, SharedStore, StoreError, Target, View};
use tokio::time::{Instant, timeout, timeout_at};

/// The request vanishes so long after the command did. Long enough for a hiccup of etcd.
const LEASE: Duration = Duration::from_secs(10);
/// A sentinel answers within milliseconds; another one that takes the lead, within seconds.
const ANSWER: Duration = Duration::from_secs(10);

/// Asks for `action` and waits until it is done. `tell` gets each step in words; the last one is returned. When this
/// future is dropped, or the process dies, the request is withdrawn after some seconds.
///
/// # Errors
/// It was refused, given up, not answered or not done within `limit`; another request is going on; the store failed.
pub async fn ask(
    store: &SharedStore,
    keys: &Keys,
    action: Action,
    limit: Duration,
    mut tell: impl FnMut(&str),
) -> Result<String, ChangeError> {
    let data = super::load(store, keys).await?.data;
    let request = Operation {
        id: random_uid(),
        cluster_uid: data.cluster.uid,
        action: Some(action),
        requested_by: who(),
        requested_at: GoTime::from(chrono::Utc::now()),
        ..Default::default()
    };
    let mut lease = KeptLease::start(store.clone(), LEASE);
    let follower = Follower::start(store.clone(), vec![Target::Key(keys.progress())]);
    let result = match submit(store, keys, &request, &mut lease).await {
        Ok(()) => watch(&follower, keys, &request, limit, &mut tell).await,
        Err(error) => Err(error),
    };
    // Withdrawn at once. Should this fail, it vanishes with the lease.
    let _ = timeout(Duration::from_secs(5), lease.revoke()).await;
    result
}

/// Who asks, for the history.
fn who() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}@{}", user.unwrap_or_else(|_| nix::unistd::Uid::current().to_string()), host.trim())
}

async fn submit(
    store: &SharedStore,
    keys: &Keys,
    request: &Operation,
    lease: &mut KeptLease,
) -> Result<(), ChangeError> {
    let late = |_| {
        let reason = "no lease was granted".to_owned();
        AccessError::from(StoreError::Unavailable { endpoints: "its endpoints".into(), reason })
    };
    let id = timeout(ANSWER, lease.granted()).await.map_err(late)?;
    let key = keys.operation();
    // Strings and times in an object: serialising can't fail.
    let value = serde_json::to_vec(request).expect("a request is plain JSON");
    let put = Op::Put { key: key.clone(), value, lease: Some(id) };
    let outcome = store.txn(vec![Compare::Absent(key.clone())], vec![put]).await.map_err(AccessError::from)?;
    if outcome.succeeded {
        return Ok(());
    }
    let other = store.get(&key).await.map_err(AccessError::from)?;
    let other = other.and_then(|entry| serde_json::from_slice::<Operation>(&entry.value).ok()).unwrap_or_default();
    let what = other.action.as_ref().map_or_else(|| "another request".to_owned(), Action::describe);
    Err(ChangeError::Refused(format!(
        "{what}, asked for by {}, is going on; wait for its end, or end that command",
        other.requested_by
    )))
}

async fn watch(
    follower: &Follower,
    keys: &Keys,
    request: &Operation,
    limit: Duration,
    tell: &mut impl FnMut(&str),
) -> Result<String, ChangeError> {
    let mut views = follower.subscribe();
    let begun = Instant::now();
    let mut told: Vec<String> = Vec::new();
    loop {
        let progress = progress_of(&views.borrow_and_update(), keys, &request.id);
        if let Some(progress) = &progress {
            let new = progress.steps.iter().filter(|step| !told.contains(&step.text)).map(|step| step.text.clone());
            let new: Vec<String> = new.collect();
            let last = progress.steps.last().map(|step| step.text.clone()).unwrap_or_default();
            match progress.phase {
                Phase::Done => return Ok(last),
                Phase::Failed => return Err(ChangeError::Refused(last)),
                Phase::Running => {}
            }
            new.iter().for_each(|text| tell(text));
            told.extend(new);
        }
        let answered = progress.is_some();
        let until = begun + if answered { limit } else { ANSWER.min(limit) };
        if timeout_at(until, views.changed()).await.is_err() {
            return Err(ChangeError::Refused(match told.last() {
                Some(last) => format!(
                    "not done within {} s, the request is withdrawn; the last that was heard: {last}",
                    limit.as_secs_f32()
                ),
                None => {
                    "no sentinel answered, nothing was changed; `stolonctl status` shows whether one leads: it has to \
                         be one of this implementation and at least of this version"
                        .to_owned()
                }
            }));
        }
    }
}

fn progress_of(view: &View, keys: &Keys, id: &str) -> Option<Progress> {
    let progress: Progress = serde_json::from_slice(view.value(&keys.progress())?).ok()?;
    (progress.id == id).then_some(progress)
}

/// The keeper that the master is on now, in words, for questions.
///
/// # Errors
/// The store failed, or there is no usable cluster data.
pub async fn master_keeper(store: &SharedStore, keys: &Keys) -> Result<String, AccessError> {
    let data = access::read(store, keys).await?.ok_or(AccessError::Absent)?.data;
    let master = data.dbs.get(&data.cluster.status.master);
    Ok(master.map_or_else(|| "nobody".to_owned(), |db| format!("keeper \"{}\"", db.spec.keeper_uid)))
}
