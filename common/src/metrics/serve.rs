//! The HTTP side: small, for one or two readers now and then.

use super::{Metric, NotReady, render};
use anyhow::Context as _;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tracing::{debug, info};

/// Readers at one time; others wait, so that nobody can make the program big through this door.
const READERS: usize = 8;
/// A reader has so long to ask, and so long to take its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// When the system has no descriptors left, trying at once again would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// What is shown.
#[derive(Clone, Debug)]
pub struct Shown {
    /// All metrics.
    pub lists: &'static [&'static [&'static Metric]],
    /// More metrics, in Prometheus' text format.
    pub more: fn() -> String,
    /// Called before the metrics are shown, for those that are counted elsewhere.
    pub refresh: fn(),
    /// Whether the program does its work now.
    pub ready: fn() -> Result<(), NotReady>,
}

/// A socket that listens; nothing is served yet.
#[derive(Debug)]
pub struct Listener(TcpListener);

impl Listener {
    /// Listens where the operator wants it; `None` without an address. `:9100` means all addresses.
    ///
    /// # Errors
    /// The address is none, or can't be bound: an operator who asked for metrics must not miss them silently.
    pub async fn open(address: Option<&str>) -> anyhow::Result<Option<Self>> {
        let Some(address) = address.filter(|address| !address.is_empty()) else { return Ok(None) };
        let listener = match address.strip_prefix(':') {
            // One socket serves both families, where there are both.
            Some(port) => match TcpListener::bind(format!("[::]:{port}")).await {
                Ok(listener) => Ok(listener),
                Err(_) => TcpListener::bind(format!("0.0.0.0:{port}")).await,
            },
            None => TcpListener::bind(address).await,
        };
        let listener = listener.with_context(|| {
            format!("--metrics-listen-address: can't listen on {address}; free it or give another like 127.0.0.1:9100")
        })?;
        info!(address, "metrics and health are served");
        Ok(Some(Listener(listener)))
    }

    /// Serves in the background.
    pub fn serve(self, shown: Shown) -> JoinHandle<()> {
        tokio::spawn(accept(self.0, shown))
    }
}

async fn accept(listener: TcpListener, shown: Shown) {
    let readers = Arc::new(Semaphore::new(READERS));
    loop {
        // It is never closed.
        let Ok(reader) = readers.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let shown = shown.clone();
                tokio::spawn(async move {
                    let _reader = reader;
                    if tokio::time::timeout(2 * PATIENCE, talk(stream, &shown)).await.is_err() {
                        debug!("a reader of metrics was too slow");
                    }
                });
            }
            Err(error) => {
                debug!(%error, "accept a reader of metrics");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn talk(stream: TcpStream, shown: &Shown) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), shown);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = http1::Builder::new();
    // One request per connection: an idle reader holds nothing.
    http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(16 * 1024);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, "a reader of metrics broke off");
    }
}

fn answer(method: &Method, path: &str, shown: &Shown) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    if method != Method::GET && method != Method::HEAD {
        let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET is served\n".into());
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/metrics" => {
            (shown.refresh)();
            let text = render(shown.lists.iter().copied().flatten()) + &(shown.more)();
            reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
        }
        "/healthz" => reply(StatusCode::OK, TEXT, "ok\n".into()),
        "/readyz" => match (shown.ready)() {
            Ok(()) => reply(StatusCode::OK, TEXT, "ok\n".into()),
            Err(reason) => reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{reason}\n")),
        },
        _ => reply(StatusCode::NOT_FOUND, TEXT, "there are /metrics, /healthz and /readyz\n".into()),
    }
}

fn reply(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    crate::metrics! {
        REFRESHED: Counter "t_refreshed_total" [] "How often the page was asked for";
    }

    static LISTS: &[&[&Metric]] = &[LIST];

    async fn ask(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn pages_are_served() {
        let listener = Listener::open(Some("127.0.0.1:0")).await.unwrap().unwrap();
        let address = listener.0.local_addr().unwrap();
        let task = listener.serve(Shown {
            lists: LISTS,
            more: String::new,
            refresh: || REFRESHED.add(1.0),
            ready: || Err(NotReady::new("no_master", "there is none")),
        });
        // Readers who say nothing hold nobody up.
        let _silent: Vec<TcpStream> = futures_of(address, READERS - 1).await;
        for (path, status, body) in [
            ("/metrics", "200 OK", "t_refreshed_total 1\n"),
            ("/healthz", "200 OK", "ok\n"),
            ("/readyz", "503 Service Unavailable", "no_master: there is none\n"),
            ("/", "404 Not Found", "there are /metrics, /healthz and /readyz\n"),
        ] {
            let answer = ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")) && answer.ends_with(body), "{answer}");
        }
        let answer = ask(address, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        let _ = ask(address, "\0\u{fffd}garbage\r\n\r\n").await;
        task.abort();
    }

    async fn futures_of(address: std::net::SocketAddr, count: usize) -> Vec<TcpStream> {
        let mut streams = Vec::new();
        for _ in 0..count {
            streams.push(TcpStream::connect(address).await.unwrap());
        }
        streams
    }

    #[tokio::test]
    async fn an_address_in_use_is_an_error() {
        assert!(Listener::open(None).await.unwrap().is_none() && Listener::open(Some("")).await.unwrap().is_none());
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let error = Listener::open(Some(&address)).await.unwrap_err().to_string();
        assert!(error.contains("--metrics-listen-address") && error.contains(&address), "{error}");
        assert!(Listener::open(Some("nonsense")).await.is_err());
    }
}
