//! Follows the store and publishes a new [`Picture`] whenever something that matters has changed.

use crate::picture::{Picture, Sighting, picture, registered, sight, specification};
use model::RepGroupId;
use model::clusterspec::ClusterSpec;
use model::keys::ClusterKeys;
use model::layout::RepGroupDoc;
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{Follower, SharedStore, Target, View};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

/// What a follower of one group has to tell: where the group is now, none while it has no master.
type Report = (RepGroupId, Option<Sighting>);

/// Follows one group's cluster data; ends when it is dropped.
struct Scout {
    doc: RepGroupDoc,
    task: JoinHandle<()>,
}

impl Drop for Scout {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Runs until it is dropped.
pub async fn observe(store: SharedStore, keys: ClusterKeys, pictures: watch::Sender<Arc<Picture>>) {
    let mut config = Follower::start(store.clone(), vec![Target::Key(keys.spec()), Target::Prefix(keys.repgroups())]);
    // Scouts wait for room, so that a flood of changes can't fill the memory.
    let (reports, mut received) = mpsc::channel(16);
    let mut known = Known { store, keys, spec: None, groups: BTreeMap::new(), sightings: BTreeMap::new() };
    let mut scouts = BTreeMap::new();
    let mut complaints = Complaints::default();
    loop {
        // Both branches are cancel-safe: a change or a report that is not taken is found by the next call.
        tokio::select! {
            () = config.changed() => {
                let view = config.view();
                if view.loaded {
                    known.learn(&view, &mut complaints);
                    known.send_scouts(&mut scouts, &reports).await;
                }
            }
            Some((id, sighting)) = received.recv() => match sighting {
                // A report of a group that was removed meanwhile may still be under way.
                Some(sighting) if scouts.contains_key(&id) => { known.sightings.insert(id, sighting); }
                _ => { known.sightings.remove(&id); }
            },
        }
        let new = picture(known.spec.as_ref(), &known.groups, &known.sightings);
        pictures.send_if_modified(|old| {
            let changed = **old != new;
            if changed {
                *old = Arc::new(new);
            }
            changed
        });
    }
}

struct Known {
    store: SharedStore,
    keys: ClusterKeys,
    spec: Option<ClusterSpec>,
    groups: BTreeMap<RepGroupId, RepGroupDoc>,
    sightings: BTreeMap<RepGroupId, Sighting>,
}

impl Known {
    fn learn(&mut self, view: &View, complaints: &mut Complaints) {
        let mut broken = Vec::new();
        self.spec = match view.value(&self.keys.spec()).map(specification).transpose() {
            Ok(spec) => spec,
            Err(error) => {
                broken.push(common::exit::one_line(&error.into()));
                // What was last readable still holds: one bad write must not stop the duties.
                self.spec.take()
            }
        };
        let prefix = self.keys.repgroups();
        let (groups, unreadable) = registered(&prefix, view.under(&prefix));
        self.groups = groups;
        broken.extend(unreadable.into_iter().map(|error| common::exit::one_line(&error.into())));
        complaints.tell(broken);
    }

    async fn send_scouts(&mut self, scouts: &mut BTreeMap<RepGroupId, Scout>, reports: &mpsc::Sender<Report>) {
        // A group that is kept somewhere else now needs a new scout.
        scouts.retain(|id, scout| self.groups.get(id).is_some_and(|doc| same_place(doc, &scout.doc)));
        self.sightings.retain(|id, _| scouts.contains_key(id));
        for (id, doc) in &self.groups {
            if scouts.contains_key(id) {
                continue;
            }
            match store::open_place(&self.store, &doc.store_conn_info).await {
                Ok(store) => {
                    let keys = model::stolon::keys::Keys::new(&doc.store_prefix, &doc.stolon_name);
                    let task = tokio::spawn(scout(*id, store, keys.clusterdata(), reports.clone()));
                    scouts.insert(*id, Scout { doc: doc.clone(), task });
                }
                Err(error) => warn!(group = id.0, %error, "the store of the group can't be opened, skip the group"),
            }
        }
    }
}

fn same_place(a: &RepGroupDoc, b: &RepGroupDoc) -> bool {
    let place = |doc: &RepGroupDoc| (doc.stolon_name.clone(), doc.store_prefix.clone(), doc.store_conn_info.clone());
    place(a) == place(b)
}

/// Tells where one group is, each time that changes. stolon rewrites its document every few seconds; here it is read
/// once per write, and only what matters goes on.
async fn scout(id: RepGroupId, store: SharedStore, key: String, reports: mpsc::Sender<Report>) {
    let mut follower = Follower::start(store, vec![Target::Key(key.clone())]);
    let mut views = follower.subscribe();
    let mut last: Option<Sighting> = None;
    let mut complaints = Complaints::default();
    loop {
        follower.changed().await;
        let seen = {
            let view = views.borrow_and_update();
            if !view.loaded {
                continue;
            }
            view.value(&key).map(sight).transpose()
        };
        let now = match seen {
            Ok(seen) => {
                complaints.tell(Vec::new());
                seen.flatten()
            }
            Err(error) => {
                complaints.tell(vec![format!("group {id}: {}", common::exit::one_line(&error.into()))]);
                continue;
            }
        };
        if now != last {
            last.clone_from(&now);
            if reports.send((id, now)).await.is_err() {
                return;
            }
        }
    }
}

/// Says what is wrong once, not at each look.
#[derive(Default)]
struct Complaints(Vec<String>);

impl Complaints {
    fn tell(&mut self, now: Vec<String>) {
        for text in now.iter().filter(|text| !self.0.contains(text)) {
            warn!("{text}; it is skipped until it can be read");
        }
        if now.is_empty() && !self.0.is_empty() {
            info!("all documents can be read again");
        }
        self.0 = now;
    }
}
