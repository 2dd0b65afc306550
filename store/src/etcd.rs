//! The real etcd.

use crate::{
    Compare, Entry, LeaseId, Listing, Member, Op, Result, SharedStore, Store, StoreError, Target, TxnOutcome,
    WatchBatch, WatchEvent,
};
use async_trait::async_trait;
use etcd_client as etcd;
use futures::StreamExt;
use futures::stream::BoxStream;
use model::spec::StoreConnInfo;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How to reach etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Comma-separated URLs; an item without a scheme is taken as http.
    pub endpoints: String,
    /// CA bundle for https; replaces the system's roots.
    pub ca_file: Option<PathBuf>,
    /// Client certificate; used together with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// Private key of the client certificate.
    pub key_file: Option<PathBuf>,
    /// Deadline of each request.
    pub timeout: Duration,
}

/// Default deadline of a request, as in stolon and the original.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// The endpoint that is used when none is given.
pub const DEFAULT_ENDPOINTS: &str = "http://127.0.0.1:2379";
/// HTTP/2 pings find a dead connection under a watch that is silent for long.
const PING_INTERVAL: Duration = Duration::from_secs(3);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            endpoints: DEFAULT_ENDPOINTS.to_owned(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            timeout: DEFAULT_TIMEOUT,
        }
    }
}

impl StoreOptions {
    /// The endpoints, one by one.
    ///
    /// # Errors
    /// Empty list, or http and https mixed.
    pub fn urls(&self) -> Result<Vec<String>> {
        let urls: Vec<String> = self
            .endpoints
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(|item| if item.contains("://") { item.to_owned() } else { format!("http://{item}") })
            .collect();
        let fail = |text: &str| Err(StoreError::Options(format!("store endpoints \"{}\": {text}", self.endpoints)));
        if urls.is_empty() {
            return fail("name at least one URL, like http://127.0.0.1:2379");
        }
        let https = urls.iter().filter(|url| url.starts_with("https://")).count();
        let http = urls.iter().filter(|url| url.starts_with("http://")).count();
        if http + https != urls.len() {
            return fail("each must be a http or https URL");
        }
        if http > 0 && https > 0 {
            return fail("http and https can't be mixed");
        }
        Ok(urls)
    }

    fn tls(&self) -> Result<etcd::TlsOptions> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|e| StoreError::Options(format!("read {}: {e}", path.display())))
        };
        let mut tls = etcd::TlsOptions::new();
        match &self.ca_file {
            Some(path) => tls = tls.ca_certificate(etcd::Certificate::from_pem(read(path)?)),
            None => tls = tls.with_enabled_roots(),
        }
        if let (Some(cert), Some(key)) = (&self.cert_file, &self.key_file) {
            tls = tls.identity(etcd::Identity::from_pem(read(cert)?, read(key)?));
        }
        Ok(tls)
    }
}

/// The store that a document names; `own` where it names none.
///
/// # Errors
/// Unusable options, such as a missing certificate file.
pub async fn open_place(own: &SharedStore, place: &StoreConnInfo) -> Result<SharedStore> {
    if place.endpoints.is_empty() {
        return Ok(own.clone());
    }
    let file = |path: &str| (!path.is_empty()).then(|| path.into());
    let options = StoreOptions {
        endpoints: place.endpoints.clone(),
        ca_file: file(&place.ca_file),
        cert_file: file(&place.cert_file),
        key_file: file(&place.key),
        timeout: DEFAULT_TIMEOUT,
    };
    Ok(Arc::new(EtcdStore::connect(&options).await?))
}

/// A client of etcd. Connects on first use and reconnects by itself.
#[derive(Clone)]
pub struct EtcdStore {
    client: etcd::Client,
    endpoints: String,
    timeout: Duration,
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdStore").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl EtcdStore {
    /// Makes a client; etcd need not run yet.
    ///
    /// # Errors
    /// Unusable options, such as a missing certificate file.
    pub async fn connect(options: &StoreOptions) -> Result<Self> {
        let urls = options.urls()?;
        let mut connect = etcd::ConnectOptions::new()
            .with_connect_timeout(options.timeout.min(Duration::from_secs(2)))
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if urls[0].starts_with("https://") {
            connect = connect.with_tls(options.tls()?);
        }
        let client = etcd::Client::connect(&urls, Some(connect))
            .await
            .map_err(|e| StoreError::Unavailable { endpoints: options.endpoints.clone(), reason: chain(&e) })?;
        Ok(EtcdStore { client, endpoints: urls.join(","), timeout: options.timeout })
    }

    async fn call<T>(&self, request: impl Future<Output = std::result::Result<T, etcd::Error>>) -> Result<T> {
        match tokio::time::timeout(self.timeout, request).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.error(error)),
            Err(_) => Err(StoreError::Timeout { endpoints: self.endpoints.clone(), after: self.timeout }),
        }
    }

    fn error(&self, error: etcd::Error) -> StoreError {
        let reason = match &error {
            // The status carries headers and details that say nothing to a reader.
            etcd::Error::GRpcStatus(status) if status.message().contains("requested lease not found") => {
                return StoreError::LeaseExpired;
            }
            etcd::Error::GRpcStatus(status) => causes(status.message(), std::error::Error::source(status)),
            error => chain(error),
        };
        StoreError::Unavailable { endpoints: self.endpoints.clone(), reason }
    }
}

/// An error of the client with its causes, most of which it does not show by itself.
fn chain(error: &etcd::Error) -> String {
    match error {
        etcd::Error::TransportError(transport) => causes(&error.to_string(), std::error::Error::source(transport)),
        error => causes(&error.to_string(), std::error::Error::source(error)),
    }
}

/// One line; a cause that is part of what stands there already is not said again.
fn causes(text: &str, mut cause: Option<&(dyn std::error::Error + 'static)>) -> String {
    let mut line = text.to_owned();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line.replace('\n', " ")
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
        let response = self.call(self.client.kv_client().get(key, None)).await?;
        response.kvs().first().map(entry).transpose()
    }

    async fn read(&self, target: &Target) -> Result<Listing> {
        let (key, options) = match target {
            Target::Key(key) => (key.as_str(), None),
            Target::Prefix(prefix) => (prefix.as_str(), Some(etcd::GetOptions::new().with_prefix())),
        };
        let response = self.call(self.client.kv_client().get(key, options)).await?;
        // A foreign key that is not UTF-8 can't be ours: it must not hide the others.
        let entries = response.kvs().iter().filter_map(|kv| entry(kv).ok()).collect();
        Ok(Listing { entries, revision: revision(response.header())? })
    }

    async fn put(&self, key: &str, value: &[u8], lease: Option<LeaseId>) -> Result<i64> {
        let response = self.call(self.client.kv_client().put(key, value, put_options(lease))).await?;
        revision(response.header())
    }

    async fn delete(&self, key: &str) -> Result<bool> {
        let response = self.call(self.client.kv_client().delete(key, None)).await?;
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
        let response = self.call(self.client.kv_client().txn(etcd::Txn::new().when(when).and_then(then))).await?;
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
        let mut client = self.client.watch_client();
        let stream = self.call(client.watch(key, Some(options))).await?;
        let store = self.clone();
        Ok(stream.map(move |item| item.map_err(|e| store.error(e)).and_then(|batch| watch_batch(&batch))).boxed())
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let response = self.call(self.client.lease_client().grant(seconds, None)).await?;
        Ok(LeaseId(response.id()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<()> {
        let mut client = self.client.lease_client();
        // The client sends the first keep-alive and takes its answer before it gives us the stream. One stream per
        // call is dearer than one kept open, but can't go stale: each call proves that etcd is there now.
        let request = async {
            match client.keep_alive(lease.0).await {
                Ok(_) => Ok(true),
                Err(etcd::Error::LeaseKeepAliveError(_)) => Ok(false),
                Err(error) => Err(error),
            }
        };
        if self.call(request).await? { Ok(()) } else { Err(StoreError::LeaseExpired) }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        match self.call(self.client.lease_client().revoke(lease.0)).await {
            Ok(_) | Err(StoreError::LeaseExpired) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn members(&self) -> Result<Vec<Member>> {
        let response = self.call(self.client.cluster_client().member_list()).await?;
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
            if matches!(tokio::time::timeout(self.timeout, connect).await, Ok(Ok(_))) {
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
            Some(match event.event_type() {
                etcd::EventType::Put => entry(kv).map(WatchEvent::Put),
                etcd::EventType::Delete => entry(kv).map(|entry| WatchEvent::Delete(entry.key)),
            })
        })
        .collect::<Result<Vec<_>>>()?;
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

    #[test]
    fn endpoints_are_checked() {
        let urls = |text: &str| StoreOptions { endpoints: text.into(), ..Default::default() }.urls();
        assert_eq!(urls("a:1, http://b:2,").unwrap(), ["http://a:1", "http://b:2"]);
        for bad in ["", " , ", "http://a,https://b", "ftp://a"] {
            assert!(urls(bad).is_err(), "{bad}");
        }
    }
}
