//! Sockets: listening, connecting, and their options.

use super::args::ProxyArgs;
use pg::endpoints::Endpoint;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// A server that does not answer this long is down or cut off; the client is better served by trying again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 1024;
/// Keep-alive of connections to a server unless flags say otherwise. The system's default notices a vanished host after
/// two hours; until then its connections would stand here as if they were alive.
const SERVER_IDLE: Duration = Duration::from_secs(30);
const SERVER_INTERVAL: Duration = Duration::from_secs(10);
const SERVER_PROBES: u32 = 3;

/// Listens on an address or host name.
///
/// # Errors
/// The name has no address, or the address can't be bound.
pub async fn listen(host: &str, port: u16) -> io::Result<TcpListener> {
    let address = tokio::net::lookup_host((host, port)).await?.next();
    let address = address.ok_or_else(|| io::Error::other(format!("{host} has no address")))?;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Without it a restarted proxy would have to wait for the connections of its predecessor to be forgotten.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A server to connect to.
#[derive(Clone, Debug)]
pub enum Upstream {
    /// These addresses, one after the other.
    Addresses(Arc<Vec<SocketAddr>>),
    /// Whatever the name means when a client comes.
    Name(Endpoint),
}

impl Upstream {
    /// Connects within 3 s.
    ///
    /// # Errors
    /// Nobody answered, or all refused.
    pub async fn connect(&self) -> io::Result<TcpStream> {
        let connecting = async {
            match self {
                Upstream::Addresses(addresses) => TcpStream::connect(&addresses[..]).await,
                Upstream::Name(endpoint) => TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await,
            }
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {CONNECT_TIMEOUT:?}"))),
        }
    }
}

/// Options of both sides of a forwarded connection.
#[derive(Clone, Debug)]
pub struct SocketOptions {
    client: TcpKeepalive,
    server: TcpKeepalive,
    user_timeout: Option<Duration>,
}

impl SocketOptions {
    /// What the flags say. A flag for keep-alive holds for both sides; without it the system's default holds for
    /// clients, as with Go stolon, and a shorter one of our own for servers.
    pub fn new(args: &ProxyArgs) -> Self {
        let seconds = |number: u32| (number > 0).then(|| Duration::from_secs(number.into()));
        let (idle, interval) = (seconds(args.tcp_keepalive_idle), seconds(args.tcp_keepalive_interval));
        let count = Some(args.tcp_keepalive_count).filter(|count| *count > 0);
        SocketOptions {
            client: keepalive(idle, interval, count),
            server: keepalive(
                idle.or(Some(SERVER_IDLE)),
                interval.or(Some(SERVER_INTERVAL)),
                count.or(Some(SERVER_PROBES)),
            ),
            user_timeout: seconds(args.tcp_user_timeout),
        }
    }

    /// Prepares the socket of a client.
    ///
    /// # Errors
    /// The kernel refuses an option.
    pub fn prepare_client(&self, stream: &TcpStream) -> io::Result<()> {
        self.prepare(stream, &self.client)
    }

    /// Prepares the socket to a server. Unless it ends cleanly, it is closed with a reset, which throws away what was
    /// not sent yet.
    ///
    /// # Errors
    /// The kernel refuses an option.
    pub fn prepare_server(&self, stream: &TcpStream) -> io::Result<()> {
        SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
        self.prepare(stream, &self.server)
    }

    fn prepare(&self, stream: &TcpStream, keepalive: &TcpKeepalive) -> io::Result<()> {
        let socket = SockRef::from(stream);
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(keepalive)?;
        match self.user_timeout {
            Some(timeout) => socket.set_tcp_user_timeout(Some(timeout)),
            None => Ok(()),
        }
    }
}

fn keepalive(idle: Option<Duration>, interval: Option<Duration>, count: Option<u32>) -> TcpKeepalive {
    let mut keepalive = TcpKeepalive::new();
    if let Some(idle) = idle {
        keepalive = keepalive.with_time(idle);
    }
    if let Some(interval) = interval {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(count) = count {
        keepalive = keepalive.with_retries(count);
    }
    keepalive
}

/// Lets the process open as many descriptors as it is allowed to at most: a connection takes two, and the usual limit
/// of 1024 is meant for programs that use `select`. Go's runtime does the same.
pub fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        tracing::debug!(%error, "raise the limit of open files");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = listen("127.0.0.1", 0).await.unwrap();
        let a = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (a, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn keepalive_is_on_at_both_sides_and_follows_the_flags() {
        let (client, server) = pair().await;
        let options = SocketOptions::new(&ProxyArgs::parse_from(["stolon-proxy"]));
        options.prepare_client(&client).unwrap();
        options.prepare_server(&server).unwrap();
        let (client_socket, server_socket) = (SockRef::from(&client), SockRef::from(&server));
        assert!(client_socket.keepalive().unwrap() && server_socket.keepalive().unwrap());
        assert!(client.nodelay().unwrap() && server.nodelay().unwrap());
        assert_eq!(server_socket.tcp_keepalive_time().unwrap(), SERVER_IDLE);
        assert!(client_socket.tcp_keepalive_time().unwrap() > SERVER_IDLE);
        assert_eq!(client_socket.tcp_user_timeout().unwrap(), None);

        let flags = ["stolon-proxy", "--tcp-keepalive-idle", "7", "--tcp-keepalive-count=2", "--tcp-user-timeout=9"];
        let options = SocketOptions::new(&ProxyArgs::parse_from(flags));
        options.prepare_client(&client).unwrap();
        options.prepare_server(&server).unwrap();
        for socket in [client_socket, server_socket] {
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(7));
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), 2);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(9)));
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_refused_at_once() {
        let port = listen("127.0.0.1", 0).await.unwrap().local_addr().unwrap().port();
        for upstream in [
            Upstream::Addresses(Arc::new(vec![SocketAddr::from(([127, 0, 0, 1], port))])),
            Upstream::Name(Endpoint { host: "127.0.0.1".into(), port }),
        ] {
            assert_eq!(upstream.connect().await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        }
    }
}
