//! How etcd is reached, and the clients made of that.

use super::insecure;
use super::member::{Login, Member};
use crate::{Result, StoreError};
use etcd_client as etcd;
use model::spec::StoreConnInfo;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::warn;

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
    /// Take any certificate of the server.
    pub skip_tls_verify: bool,
    /// etcd's user; without one no password is sent.
    pub user: Option<String>,
    /// File with the user's password; read at each login, so that it may be changed meanwhile.
    pub password_file: Option<PathBuf>,
    /// Deadline of each request.
    pub timeout: Duration,
}

/// Default deadline of a request, as in stolon and the original.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// The endpoint that is used when none is given.
pub const DEFAULT_ENDPOINTS: &str = "http://127.0.0.1:2379";
/// HTTP/2 pings find a dead connection under a watch that is silent for long. etcd ends connections whose pings come
/// more often than each 5 s (its default `--grpc-keepalive-min-time`), and those that ping without an open request.
const PING_INTERVAL: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            endpoints: DEFAULT_ENDPOINTS.to_owned(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            skip_tls_verify: false,
            user: None,
            password_file: None,
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

    /// The store that a document names.
    pub fn of(place: &StoreConnInfo) -> Self {
        let StoreConnInfo { endpoints, ca_file, cert_file, key, user, password_file } = place.clone();
        let given = |text: String| (!text.is_empty()).then_some(text);
        StoreOptions {
            endpoints,
            ca_file: given(ca_file).map(PathBuf::from),
            cert_file: given(cert_file).map(PathBuf::from),
            key_file: given(key).map(PathBuf::from),
            skip_tls_verify: false,
            user: given(user),
            password_file: given(password_file).map(PathBuf::from),
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// As a document names it. Certificates that are not looked at can't be named there.
    pub fn place(&self) -> StoreConnInfo {
        let text = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        StoreConnInfo {
            endpoints: self.endpoints.clone(),
            ca_file: text(&self.ca_file),
            cert_file: text(&self.cert_file),
            key: text(&self.key_file),
            user: self.user.clone().unwrap_or_default(),
            password_file: text(&self.password_file),
        }
    }

    /// A client for each endpoint; they connect on first use.
    pub(super) async fn members(&self) -> Result<Vec<Member>> {
        let urls = self.urls()?;
        if self.user.is_some() && self.password_file.is_none() {
            let text = "a store user needs a password; name its file with --store-password-file";
            return Err(StoreError::Options(text.into()));
        }
        if let Some(file) = &self.password_file {
            warn_if_open(file);
        }
        let mut members = Vec::new();
        for url in urls {
            let client = self.client(&url).await?;
            let login = self.user.clone().zip(self.password_file.clone());
            members.push(Member::new(url, client, login.map(|(user, file)| Login::new(user, file))));
        }
        Ok(members)
    }

    async fn client(&self, url: &str) -> Result<etcd::Client> {
        let connect_timeout = self.timeout.min(Duration::from_secs(2));
        let mut connect = etcd::ConnectOptions::new()
            .with_connect_timeout(connect_timeout)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(false)
            .with_auto_token_refresh(true)
            .with_require_leader(true);
        let https = url.starts_with("https://");
        let made = if https && self.skip_tls_verify {
            let channel = insecure::channel(url, self, connect_timeout, (PING_INTERVAL, PING_TIMEOUT))?;
            etcd::Client::from_channel(channel, Some(connect)).await
        } else {
            if https {
                connect = connect.with_tls(self.tls()?);
            }
            etcd::Client::connect([url], Some(connect)).await
        };
        made.map_err(|error| StoreError::Options(format!("store endpoint \"{url}\": {error}")))
    }

    fn tls(&self) -> Result<etcd::TlsOptions> {
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

/// A missing file is an error at the login: it may be made until then.
fn warn_if_open(file: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(file).map(|metadata| metadata.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o077 != 0) {
        warn!(file = %file.display(), "others may read the store's password file; chmod 0600 it");
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| StoreError::Options(format!("read {}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_checked() {
        let urls = |text: &str| StoreOptions { endpoints: text.into(), ..Default::default() }.urls();
        assert_eq!(urls("a:1, http://b:2,").unwrap(), ["http://a:1", "http://b:2"]);
        for bad in ["", " , ", "http://a,https://b", "ftp://a"] {
            assert!(urls(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_user_needs_a_password() {
        let options = StoreOptions { user: Some("u".into()), ..Default::default() };
        assert!(options.members().await.err().unwrap().to_string().contains("--store-password-file"));
    }
}
