//! The real etcd.

use crate::{
    Compare, Entry, LeaseId, Listing, Member, Op, Result, SharedStore, Store, StoreError, Target, TxnOutcome,
    WatchBatch, WatchEvent,
};
use async_trait::async_trait;
use etcd_client as etcd;
use failure::Failure;
use futures::StreamExt;
use futures::stream::BoxStream;
use model::spec::StoreConnInfo;
use ring::Ring;
use std::sync::Arc;
use std::time::Duration;

mod failure;
mod insecure;
mod member;
mod options;
mod pages;
mod ring;

pub use options::{DEFAULT_ENDPOINTS, DEFAULT_TIMEOUT, StoreOptions};

/// The store that a document names; `own` where it names none.
///
/// # Errors
/// Unusable options, such as a missing certificate file.
pub async fn open_place(own: &SharedStore, place: &StoreConnInfo) -> Result<SharedStore> {
    if place.endpoints.is_empty() {
        return Ok(own.clone());
    }
    let options = StoreOptions::of(place);
    Ok(Arc::new(EtcdStore::connect(&options).await?))
}

/// Changes that come at once after a long pause are larger than other messages.
const LARGEST_CHANGES: usize = 64 << 20;

/// A client of etcd. Connects on first use and reconnects by itself.
#[derive(Clone)]
pub struct EtcdStore {
    ring: Arc<Ring>,
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdStore").field("endpoints", &self.ring.names()).finish_non_exhaustive()
    }
}

impl EtcdStore {
    /// Makes a client; etcd need not run yet.
    ///
    /// # Errors
    /// Unusable options, such as a missing certificate file.
    pub async fn connect(options: &StoreOptions) -> Result<Self> {
        Ok(EtcdStore { ring: Arc::new(Ring::new(options).await?) })
    }

    async fn ask<T, F>(&self, request: impl Fn(etcd::Client) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, etcd::Error>>,
    {
        self.ring.ask(request).await.map(|(_, value)| value).map_err(|failure| self.ring.told(failure))
    }

    async fn write<T, F>(&self, request: impl Fn(etcd::Client) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, etcd::Error>>,
    {
        self.ring.write(request).await.map_err(|failure| self.ring.told(failure))
    }
}

fn entry(kv: &etcd::KeyValue) -> Result<Entry> {
    let key = kv.key_str().map_err(|_| StoreError::Protocol("a key is not UTF-8".into()))?;
    Ok(Entry {
        key: key.to_owned(),
        value: kv.value().to_vec(),
        create_revision: kv.create_revision(),
        mod_revision: kv.mod_revision(),
        lease: (kv.lease() != 0).then(|| LeaseId(kv.lease())),
    })
}

fn revision(header: Option<&etcd::ResponseHeader>) -> Result<i64> {
    header.map(etcd::ResponseHeader::revision).ok_or_else(|| StoreError::Protocol("a response has no header".into()))
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        let response = self.ask(|client| async move { client.kv_client().get(key, None).await }).await?;
        response.kvs().first().map(entry).transpose()
    }

    async fn read(&self, target: &Target) -> Result<Listing> {
        match target {
            Target::Prefix(prefix) => pages::list(&self.ring, prefix).await.map_err(|failure| self.ring.told(failure)),
            Target::Key(key) => {
                let response =
                    self.ask(|client| async move { client.kv_client().get(key.as_str(), None).await }).await?;
                let entries = response.kvs().iter().map(entry).collect::<Result<_>>()?;
                Ok(Listing { entries, revision: revision(response.header())? })
            }
        }
    }

    async fn put(&self, key: &str, value: &[u8], lease: Option<LeaseId>) -> Result<i64> {
        let request =
            |client: etcd::Client| async move { client.kv_client().put(key, value, put_options(lease)).await };
        revision(self.write(request).await?.header())
    }

    async fn delete(&self, key: &str) -> Result<bool> {
        let response = self.write(|client| async move { client.kv_client().delete(key, None).await }).await?;
        Ok(response.deleted() > 0)
    }

    async fn txn(&self, conditions: Vec<Compare>, writes: Vec<Op>) -> Result<TxnOutcome> {
        let when: Vec<etcd::Compare> = conditions
            .into_iter()
            .map(|condition| match condition {
                Compare::Absent(key) => etcd::Compare::create_revision(key, etcd::CompareOp::Equal, 0),
                Compare::Unchanged(key, revision) => etcd::Compare::mod_revision(key, etcd::CompareOp::Equal, revision),
                Compare::CreatedAt(key, revision) => {
                    etcd::Compare::create_revision(key, etcd::CompareOp::Equal, revision)
                }
            })
            .collect();
        let then: Vec<etcd::TxnOp> = writes
            .into_iter()
            .map(|op| match op {
                Op::Put { key, value, lease } => etcd::TxnOp::put(key, value, put_options(lease)),
                Op::Delete(key) => etcd::TxnOp::delete(key, None),
            })
            .collect();
        let txn = etcd::Txn::new().when(when).and_then(then);
        let request = |client: etcd::Client| {
            let txn = txn.clone();
            async move { client.kv_client().txn(txn).await }
        };
        let response = self.write(request).await?;
        Ok(TxnOutcome { succeeded: response.succeeded(), revision: revision(response.header())? })
    }

    async fn watch(&self, target: Target, revision: i64) -> Result<BoxStream<'static, Result<WatchBatch>>> {
        let mut options = etcd::WatchOptions::new().with_start_revision(revision + 1);
        let key = match target {
            Target::Key(key) => key,
            Target::Prefix(prefix) => {
                options = options.with_prefix();
                prefix
            }
        };
        let request = |client: etcd::Client| {
            let (key, options) = (key.clone(), options.clone());
            async move { client.watch_client().max_decoding_message_size(LARGEST_CHANGES).watch(key, Some(options)).await }
        };
        let (member, stream) = self.ring.ask(request).await.map_err(|failure| self.ring.told(failure))?;
        let ring = self.ring.clone();
        let batches = stream.map(move |item| match item {
            Ok(batch) => watch_batch(&batch),
            Err(error) => Err(ring.told(Failure::Etcd(error))),
        });
        // A watch on a member that is silent would be silent too.
        Ok(batches.take_until(self.ring.left(member)).boxed())
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let response = self.ask(|client| async move { client.lease_client().grant(seconds, None).await }).await?;
        Ok(LeaseId(response.id()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<()> {
        // The client sends the first keep-alive and takes its answer before it gives us the stream. One stream per
        // call is dearer than one kept open, but can't go stale: each call proves that etcd is there now.
        let request = |client: etcd::Client| async move {
            match client.lease_client().keep_alive(lease.0).await {
                Ok(_) => Ok(true),
                Err(etcd::Error::LeaseKeepAliveError(_)) => Ok(false),
                Err(error) => Err(error),
            }
        };
        if self.ask(request).await? { Ok(()) } else { Err(StoreError::LeaseExpired) }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        match self.ask(|client| async move { client.lease_client().revoke(lease.0).await }).await {
            Ok(_) | Err(StoreError::LeaseExpired) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn members(&self) -> Result<Vec<Member>> {
        let response = self.ask(|client| async move { client.cluster_client().member_list().await }).await?;
        let looks = response.members().iter().map(|member| async {
            let urls = member.client_urls().to_vec();
            Member { name: member.name().to_owned(), healthy: self.answers(&urls).await, urls }
        });
        let mut members = futures::future::join_all(looks).await;
        members.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(members)
    }
}

impl EtcdStore {
    /// A TCP connection to one of the URLs succeeds. Not more: the status request would need the TLS options again.
    async fn answers(&self, urls: &[String]) -> bool {
        for url in urls {
            let Some(address) = url.split("://").nth(1) else { continue };
            let connect = tokio::net::TcpStream::connect(address.trim_end_matches('/').to_owned());
            if matches!(tokio::time::timeout(self.ring.timeout(), connect).await, Ok(Ok(_))) {
                return true;
            }
        }
        false
    }
}

fn put_options(lease: Option<LeaseId>) -> Option<etcd::PutOptions> {
    lease.map(|lease| etcd::PutOptions::new().with_lease(lease.0))
}

fn watch_batch(response: &etcd::WatchResponse) -> Result<WatchBatch> {
    if response.canceled() {
        return Err(StoreError::Protocol(format!("the watch was cancelled: {}", response.cancel_reason())));
    }
    let events = response
        .events()
        .iter()
        .filter_map(|event| {
            let kv = event.kv()?;
            // As in listings: a foreign key that is not UTF-8 must not hide the others.
            let entry = entry(kv).ok()?;
            Some(match event.event_type() {
                etcd::EventType::Put => WatchEvent::Put(entry),
                etcd::EventType::Delete => WatchEvent::Delete(entry.key),
            })
        })
        .collect();
    Ok(WatchBatch { revision: revision(response.header())?, events })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn errors_say_why_and_what_to_do() {
        let options = StoreOptions { endpoints: "http://127.0.0.1:1".into(), ..Default::default() };
        let error = EtcdStore::connect(&options).await.unwrap().get("k").await.unwrap_err().to_string();
        assert!(error.contains("http://127.0.0.1:1 can't be used") && error.contains("Connection refused"), "{error}");
        assert!(error.ends_with("check that etcd runs and that --store-endpoints (SDM_STORE_ENDPOINTS) is right"));
    }
}
