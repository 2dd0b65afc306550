//! Moves bytes between clients and the master, as long as the gate is open.

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tracing::debug;

/// A master that does not answer this long is down or cut off; the client is better served by trying again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 1024;
/// One buffer for all connections: bytes stay in it only between a read and the write that follows.
const BUFFER: usize = 64 * 1024;

/// Until when bytes may be written to the master. Asked before every write, because a process that was suspended may
/// run any task first when it wakes up, also one that knows nothing of deadlines.
#[derive(Debug)]
pub struct Gate {
    base: Instant,
    open_until: AtomicU64,
}

impl Default for Gate {
    fn default() -> Self {
        Gate { base: Instant::now(), open_until: AtomicU64::new(0) }
    }
}

impl Gate {
    /// Opens it until `deadline`; `None` shuts it.
    pub fn set(&self, deadline: Option<Instant>) {
        let micros = deadline.map_or(0, |deadline| self.micros(deadline));
        self.open_until.store(micros, Ordering::Relaxed);
    }

    /// Bytes may be written now.
    pub fn is_open(&self) -> bool {
        self.micros(Instant::now()) < self.open_until.load(Ordering::Relaxed)
    }

    fn micros(&self, instant: Instant) -> u64 {
        u64::try_from(instant.saturating_duration_since(self.base).as_micros()).unwrap_or(u64::MAX)
    }
}

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

/// Serves one client until either side ends, or the gate shuts. Being aborted closes both sockets: the master's with
/// a reset that throws away what was not sent yet, since no byte may reach an old master afterwards; the client's
/// without, so that an answer which is on its way still arrives. The client sees the end at once either way.
pub async fn serve(client: TcpStream, master: Arc<Vec<SocketAddr>>, keepalive: TcpKeepalive, gate: Arc<Gate>) {
    let upstream = match connect(&master).await {
        Ok(upstream) => upstream,
        Err(error) => return debug!(%error, "connect to the master"),
    };
    let prepared = SockRef::from(&upstream)
        .set_linger(Some(Duration::ZERO))
        .and_then(|()| prepare(&upstream, &keepalive))
        .and_then(|()| prepare(&client, &keepalive));
    if let Err(error) = prepared {
        return debug!(%error, "set socket options");
    }
    // One side's end ends both: neither side of PostgreSQL's protocol has a use for half a connection. What a side
    // sent before its end has been written to the other side by then.
    let result = tokio::select! {
        result = pump(&client, &upstream, &gate) => result,
        result = pump(&upstream, &client, &gate) => result,
    };
    match result {
        Err(error) => debug!(%error, "a connection broke"),
        // A clean end: what was written is to arrive.
        Ok(()) if gate.is_open() => {
            let _ = SockRef::from(&upstream).set_linger(None);
        }
        Ok(()) => {}
    }
}

async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(addresses)).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn prepare(stream: &TcpStream, keepalive: &TcpKeepalive) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)?;
    socket.set_tcp_keepalive(keepalive)
}

thread_local! {
    /// Shared, since an idle connection then costs no buffer: thousands of them are the normal case.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// What one read and the write after it left to do.
enum Moved {
    End,
    All,
    Rest(Vec<u8>),
}

/// Copies until the end of `from`.
async fn pump(from: &TcpStream, to: &TcpStream, gate: &Gate) -> io::Result<()> {
    loop {
        from.readable().await?;
        match SCRATCH.with_borrow_mut(|buffer| shift(from, to, buffer, gate))? {
            Moved::End => return Ok(()),
            Moved::All => {}
            Moved::Rest(rest) => write_all(to, &rest, gate).await?,
        }
        // A connection that always has something to copy must not starve the others.
        tokio::task::coop::consume_budget().await;
    }
}

fn shift(from: &TcpStream, to: &TcpStream, buffer: &mut [u8], gate: &Gate) -> io::Result<Moved> {
    let length = match from.try_read(buffer) {
        Ok(0) => return Ok(Moved::End),
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Moved::All),
        Err(error) => return Err(error),
    };
    let written = try_write(to, &buffer[..length], gate)?;
    Ok(if written == length { Moved::All } else { Moved::Rest(buffer[written..length].to_vec()) })
}

async fn write_all(to: &TcpStream, mut rest: &[u8], gate: &Gate) -> io::Result<()> {
    while !rest.is_empty() {
        to.writable().await?;
        rest = &rest[try_write(to, rest, gate)?..];
    }
    Ok(())
}

fn try_write(to: &TcpStream, bytes: &[u8], gate: &Gate) -> io::Result<usize> {
    if !gate.is_open() {
        return Err(io::Error::other("the proxy may not forward any more"));
    }
    match to.try_write(bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinSet;

    fn open() -> Arc<Gate> {
        let gate = Gate::default();
        gate.set(Some(Instant::now() + Duration::from_secs(60)));
        Arc::new(gate)
    }

    /// A client that is served, the master's end of its connection, and the serving task.
    async fn connection(gate: Arc<Gate>) -> (TcpStream, TcpStream, JoinSet<()>) {
        let front = listen("127.0.0.1", 0).await.unwrap();
        let back = listen("127.0.0.1", 0).await.unwrap();
        let client = TcpStream::connect(front.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = front.accept().await.unwrap();
        let mut tasks = JoinSet::new();
        let master = Arc::new(vec![back.local_addr().unwrap()]);
        tasks.spawn(serve(accepted, master, TcpKeepalive::new(), gate));
        let (master, _) = back.accept().await.unwrap();
        (client, master, tasks)
    }

    #[tokio::test]
    async fn large_data_passes_both_ways_at_once() {
        let (client, master, mut tasks) = connection(open()).await;
        let data: Vec<u8> = (0..4_000_000_u32).map(|i| i as u8).collect();
        let (mut client_read, mut client_write) = client.into_split();
        let (mut master_read, mut master_write) = master.into_split();
        let mut at_master = vec![0; data.len()];
        let mut at_client = vec![0; data.len()];
        let (a, b, c, d) = tokio::join!(
            client_write.write_all(&data),
            master_write.write_all(&data),
            master_read.read_exact(&mut at_master),
            client_read.read_exact(&mut at_client),
        );
        assert!(a.is_ok() && b.is_ok() && c.is_ok() && d.is_ok());
        assert!(at_master == data && at_client == data);
        drop((client_read, client_write));
        // The client's end reaches the master as an end, and the task ends.
        assert_eq!(master_read.read(&mut [0; 1]).await.unwrap(), 0);
        tasks.join_next().await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn being_cut_resets_the_master_and_ends_the_client() {
        let (mut client, mut master, mut tasks) = connection(open()).await;
        client.write_all(b"x").await.unwrap();
        master.read_exact(&mut [0; 1]).await.unwrap();
        tasks.shutdown().await;
        let error = master.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn nothing_passes_a_shut_gate() {
        let gate = open();
        let (mut client, mut master, mut tasks) = connection(gate.clone()).await;
        gate.set(Some(Instant::now()));
        client.write_all(b"COMMIT").await.unwrap();
        tasks.join_next().await.unwrap().unwrap();
        assert!(master.read(&mut [0; 8]).await.is_err());
    }
}
