//! A live copy of some keys: read once, kept by watches, read anew when a watch breaks and every 30 s as a safety net.

use crate::{Entry, Listing, Result, SharedStore, WatchBatch, WatchEvent};
use futures::StreamExt;
use futures::stream::{BoxStream, select_all};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

/// What to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One key.
    Key(String),
    /// All keys with a prefix.
    Prefix(String),
}

/// The copy. While the store is out of reach it keeps what was last seen.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// All followed keys.
    pub entries: BTreeMap<String, Entry>,
    /// The store's revision that the copy reflects at least.
    pub revision: i64,
    /// A complete read succeeded at least once.
    pub loaded: bool,
    /// Watches are up; false from the moment one broke until the next complete read.
    pub connected: bool,
    /// When the store last told us something.
    pub heard: Option<Instant>,
}

impl View {
    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&[u8]> {
        self.entries.get(key).map(|entry| entry.value.as_slice())
    }
    /// The entries below a prefix.
    pub fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Entry> {
        let from = self.entries.range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded));
        from.map(|(_, entry)| entry).take_while(move |entry| entry.key.starts_with(prefix))
    }
}

/// Reads everything anew so often, in case a watch lies.
const RESYNC: Duration = Duration::from_secs(30);
/// Pause after the first failure; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Short enough that a daemon is back within a second of etcd.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Keeps a [`View`] in the background; ends when it is dropped.
#[derive(Debug)]
pub struct Follower {
    receiver: watch::Receiver<View>,
    task: JoinHandle<()>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Follower {
    /// Starts to follow.
    pub fn start(store: SharedStore, targets: Vec<Target>) -> Self {
        let (sender, receiver) = watch::channel(View::default());
        let task = tokio::spawn(run(store, targets, sender));
        Follower { receiver, task }
    }

    /// A receiver of the view; `changed()` on it wakes at each change.
    pub fn subscribe(&self) -> watch::Receiver<View> {
        self.receiver.clone()
    }

    /// The view now.
    pub fn view(&self) -> View {
        self.receiver.borrow().clone()
    }

    /// Waits for the next change. Cancel-safe: a change that is not taken is found by the next call.
    pub async fn changed(&mut self) {
        // The sender lives as long as the task, which ends with this follower only.
        let _ = self.receiver.changed().await;
    }
}

async fn run(store: SharedStore, targets: Vec<Target>, sender: watch::Sender<View>) {
    let mut pause = FIRST_PAUSE;
    let mut failing = false;
    loop {
        match read_and_watch(&store, &targets, &sender).await {
            Ok(mut streams) => {
                if failing {
                    info!("the store is back");
                    failing = false;
                }
                let begun = Instant::now();
                if let Err(error) = follow(&mut streams, &sender).await {
                    debug!(%error, "watch broke, reading anew");
                    sender.send_modify(|view| view.connected = false);
                }
                // A server that cancels each watch at once must not make us ask as fast as we can.
                if begun.elapsed() >= MAX_PAUSE {
                    pause = FIRST_PAUSE;
                } else {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
            Err(error) => {
                // Once per outage: a quiet loop writes nothing, a failing one not the same line each second.
                if !failing {
                    warn!(%error, "the store can't be read, keeping what is known");
                    failing = true;
                }
                sender.send_if_modified(|view| std::mem::replace(&mut view.connected, false));
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
        }
    }
}

type Batches = futures::stream::SelectAll<BoxStream<'static, Result<WatchBatch>>>;

async fn read_and_watch(store: &SharedStore, targets: &[Target], sender: &watch::Sender<View>) -> Result<Batches> {
    let mut entries = BTreeMap::new();
    let mut streams = Vec::new();
    let mut newest = 0;
    for target in targets {
        let Listing { entries: found, revision } = store.read(target).await?;
        newest = newest.max(revision);
        entries.extend(found.into_iter().map(|entry| (entry.key.clone(), entry)));
        let stream = store.watch(target.clone(), revision).await?;
        // A watch that ends without a word must not look like one that is silent.
        let end = futures::stream::once(async { Err(crate::StoreError::Protocol("the watch ended".into())) });
        streams.push(stream.chain(end).boxed());
    }
    sender.send_if_modified(|view| {
        let changed = !view.loaded || !view.connected || view.entries != entries;
        *view = View { entries, revision: newest, loaded: true, connected: true, heard: Some(Instant::now()) };
        changed
    });
    Ok(select_all(streams))
}

/// Applies changes until a watch breaks or it is time to read anew.
async fn follow(streams: &mut Batches, sender: &watch::Sender<View>) -> Result<()> {
    let resync = tokio::time::sleep(RESYNC);
    tokio::pin!(resync);
    loop {
        // Both branches are cancel-safe: a stream's `next` loses nothing, a sleep has no effect.
        let batch = tokio::select! {
            batch = streams.next() => batch,
            () = &mut resync => return Ok(()),
        };
        let Some(batch) = batch else { return Ok(()) };
        let batch = batch?;
        if batch.events.is_empty() {
            continue;
        }
        sender.send_modify(|view| {
            view.revision = view.revision.max(batch.revision);
            view.heard = Some(Instant::now());
            for event in batch.events {
                match event {
                    WatchEvent::Put(entry) => {
                        view.entries.insert(entry.key.clone(), entry);
                    }
                    WatchEvent::Delete(key) => {
                        view.entries.remove(&key);
                    }
                }
            }
        });
    }
}
