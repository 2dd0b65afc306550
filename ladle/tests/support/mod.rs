//! What several test programs need.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

use async_trait::async_trait;
use futures::stream::BoxStream;
use ladle::report::Progress;
use ladle::{Context, init};
use model::NodeName;
use model::spec::{CheckedSpec, InitDefaults, InitSpec, StoreConnInfo};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::*;

/// Collects what a command tells.
#[derive(Debug, Default)]
pub struct Told(pub Mutex<Vec<String>>);

impl Told {
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
    fn add(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }
}

impl Progress for Told {
    fn info(&self, text: &str) {
        self.add(text.to_owned());
    }
    fn warn(&self, text: &str) {
        self.add(format!("warning: {text}"));
    }
    fn started(&self, _what: &str) {}
    fn finished(&self, what: &str, word: &str, _elapsed: Duration) {
        self.add(format!("{what}: {word}"));
    }
    fn failed(&self, what: &str, _elapsed: Duration) {
        self.add(format!("{what}: failed"));
    }
}

/// What the write that a command dies at has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// Nothing.
    Before,
    /// Everything, but the command did not hear of it.
    After,
}

/// A store whose user dies at a chosen write: from then on every call fails.
#[derive(Debug)]
pub struct Mortal {
    pub inner: SharedStore,
    left: AtomicI64,
    death: Death,
}

impl Mortal {
    pub fn new(inner: SharedStore, writes: i64, death: Death) -> Arc<Self> {
        Arc::new(Mortal { inner, left: AtomicI64::new(writes), death })
    }

    fn dead() -> StoreError {
        StoreError::Unavailable { endpoints: "memory".into(), reason: "made to fail".into() }
    }

    fn alive(&self) -> Result<()> {
        if self.left.load(Ordering::SeqCst) < 0 { Err(Self::dead()) } else { Ok(()) }
    }

    async fn write<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.alive()?;
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return work.await;
        }
        if self.death == Death::After {
            let _ = work.await;
        }
        Err(Self::dead())
    }
}

#[async_trait]
impl Store for Mortal {
    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.alive()?;
        self.inner.get(key).await
    }
    async fn read(&self, target: &Target) -> Result<Listing> {
        self.alive()?;
        self.inner.read(target).await
    }
    async fn put(&self, key: &str, value: &[u8], lease: Option<LeaseId>) -> Result<i64> {
        self.write(self.inner.put(key, value, lease)).await
    }
    async fn delete(&self, key: &str) -> Result<bool> {
        self.write(self.inner.delete(key)).await
    }
    async fn txn(&self, conditions: Vec<Compare>, writes: Vec<Op>) -> Result<TxnOutcome> {
        // etcd's own limit; the double has none.
        assert!(conditions.len().max(writes.len()) <= MAX_TXN_OPS);
        self.write(self.inner.txn(conditions, writes)).await
    }
    async fn watch(&self, target: Target, revision: i64) -> Result<BoxStream<'static, Result<WatchBatch>>> {
        self.alive()?;
        self.inner.watch(target, revision).await
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        self.alive()?;
        self.inner.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<()> {
        self.alive()?;
        self.inner.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        self.alive()?;
        self.inner.revoke(lease).await
    }
    async fn members(&self) -> Result<Vec<Member>> {
        self.alive()?;
        self.inner.members().await
    }
}

pub fn context(store: SharedStore) -> Context {
    Context::new(store, "c", "test").unwrap()
}

/// The lock of a command that died is free once its lease has run out.
pub async fn let_lock_expire(ctx: &Context) {
    ctx.store.delete(&ctx.keys.metadata_lock()).await.unwrap();
}

pub fn spec(ladle: &str, cluster: &str) -> CheckedSpec {
    let trust = r#""PgSuAuthMethod": "trust", "PgReplAuthMethod": "trust""#;
    let comma = if cluster.is_empty() { "" } else { ", " };
    let text = format!(r#"{{"LadleSpec": {{"DataDir": "/d"{ladle}}}, "ClusterSpec": {{{trust}{comma}{cluster}}}}}"#);
    let store = StoreConnInfo { endpoints: "http://127.0.0.1:2379".into(), ..Default::default() };
    let defaults = InitDefaults { store, os_user: "postgres".into(), data_dir: String::new() };
    InitSpec::parse(&text, &defaults).unwrap()
}

pub async fn make_cluster(ctx: &Context, spec: &CheckedSpec) {
    init::run(ctx, spec, init::Options::default(), &Told::default()).await.unwrap();
}

pub fn nodes(from: usize, to: usize) -> Vec<NodeName> {
    (from..=to).map(|i| format!("n{i}").into()).collect()
}
