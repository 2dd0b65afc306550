//! Moves bytes between a client and a server, as long as the gate is open.

use super::counters::{Counter, Counters};
use super::gate::Gate;
use super::sockets::{SocketOptions, Upstream};
use socket2::SockRef;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, Read as _};
use std::net::Shutdown;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tracing::debug;

/// One buffer for all connections: bytes stay in it only between a read and the write that follows. A connection
/// whose receiver does not keep up holds at most so much besides, per direction.
const BUFFER: usize = 32 * 1024;
/// Reads and writes of one connection in a row. One that always has something to copy must not starve the others.
const TURNS: usize = 16;
/// What a server said before its end is brought to a client that is slow for so long.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Everything that the connections of one destination have in common.
#[derive(Clone, Debug)]
pub struct Route {
    /// The server.
    pub upstream: Upstream,
    /// Until when it may be written to.
    pub gate: Arc<Gate>,
    /// Options of all sockets.
    pub options: Arc<SocketOptions>,
    /// Where to count.
    pub counters: Arc<Counters>,
}

/// Counts a connection as active for as long as it exists.
struct Active<'a>(&'a Counters);

impl<'a> Active<'a> {
    fn new(counters: &'a Counters) -> Self {
        counters.active.add(1);
        Active(counters)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.active.subtract(1);
    }
}

/// Connects to the server.
///
/// # Errors
/// The server can't be connected to. Nothing was sent to it.
pub async fn connect(route: &Route) -> io::Result<TcpStream> {
    let server = route.upstream.connect().await.inspect_err(|_| route.counters.failed.add(1))?;
    route.options.prepare_server(&server)?;
    Ok(server)
}

/// Serves one client until either side ends, or the gate shuts. Being aborted closes the server's socket with a reset
/// that throws away what was not sent yet, since no byte may reach an old master afterwards; the client's socket, if it is
/// dropped along with this, without, so that an answer which is on its way still arrives. The client sees the end at
/// once either way.
pub async fn serve(client: &TcpStream, server: &TcpStream, route: &Route) {
    let _active = Active::new(&route.counters);
    if let Err(error) = route.options.prepare_client(client) {
        return debug!(%error, "set options of a client's socket");
    }
    exchange(client, server, route).await;
}

/// Copies in both directions until one side ends. One side's end ends both: neither side of PostgreSQL's protocol has a
/// use for half a connection. What a side sent before its end has been passed on by then.
async fn exchange(client: &TcpStream, server: &TcpStream, route: &Route) {
    let Route { gate, counters, .. } = route;
    let mut down = Direction::new(server, client, &counters.bytes_down);
    let mut up = Direction::new(client, server, &counters.bytes_up);
    let (end, who) = poll_fn(|cx| match down.poll(cx, gate) {
        Poll::Ready(end) => Poll::Ready((end, Who::Server)),
        Poll::Pending => up.poll(cx, gate).map(|end| (end, Who::Client)),
    })
    .await;
    match (&end, who) {
        // The server closed before it had read everything. Why, it said before: the client is to know.
        (End::WriteFailed(_), Who::Client) => {
            let _ = tokio::time::timeout(LAST_WORDS, down.finish(gate)).await;
            part_from(client);
        }
        (End::Clean | End::ReadFailed(_), Who::Server) => part_from(client),
        // A clean end: what was written is to arrive.
        (End::Clean, Who::Client) if gate.is_open() => {
            let _ = SockRef::from(server).set_linger(None);
        }
        _ => {}
    }
    if let End::ReadFailed(error) | End::WriteFailed(error) = end {
        debug!(%error, "a connection broke");
    }
}

/// Closing a socket with unread bytes in it resets the connection, and on some systems a reset takes away what the
/// other side has received but not read yet: here the reason of the server's end.
fn part_from(client: &TcpStream) {
    let mut socket: &socket2::Socket = &SockRef::from(client);
    let _ = socket.shutdown(Shutdown::Write);
    SCRATCH.with_borrow_mut(|buffer| {
        for _ in 0..TURNS {
            if !matches!(socket.read(buffer), Ok(1..)) {
                break;
            }
        }
    });
}

thread_local! {
    /// Shared, since an idle connection then costs no buffer: thousands of them are the normal case.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

#[derive(Clone, Copy)]
enum Who {
    Client,
    Server,
}

/// How copying in one direction ended.
enum End {
    Clean,
    ReadFailed(io::Error),
    WriteFailed(io::Error),
}

/// One direction of a connection.
struct Direction<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    /// What was read and could not be written yet.
    rest: Vec<u8>,
    moved: &'a Counter,
}

impl<'a> Direction<'a> {
    fn new(from: &'a TcpStream, to: &'a TcpStream, moved: &'a Counter) -> Self {
        Direction { from, to, rest: Vec::new(), moved }
    }

    /// Copies what there is to copy.
    fn poll(&mut self, cx: &mut Context<'_>, gate: &Gate) -> Poll<End> {
        for _ in 0..TURNS {
            let step = if self.rest.is_empty() {
                if let Err(error) = ready!(self.from.poll_read_ready(cx)) {
                    return Poll::Ready(End::ReadFailed(error));
                }
                SCRATCH.with_borrow_mut(|buffer| self.shift(buffer, gate))
            } else {
                if let Err(error) = ready!(self.to.poll_write_ready(cx)) {
                    return Poll::Ready(End::WriteFailed(error));
                }
                self.write_rest(gate)
            };
            if let Err(end) = step {
                return Poll::Ready(end);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once and writes what was read.
    fn shift(&mut self, buffer: &mut [u8], gate: &Gate) -> Result<(), End> {
        let length = match read(self.from, buffer) {
            Ok(0) => return Err(End::Clean),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(End::ReadFailed(error)),
        };
        let written = self.write(&buffer[..length], gate)?;
        if written < length {
            self.rest = buffer[written..length].to_vec();
        }
        Ok(())
    }

    fn write_rest(&mut self, gate: &Gate) -> Result<(), End> {
        let written = self.write(&self.rest, gate)?;
        self.rest.drain(..written);
        if self.rest.is_empty() {
            // Gives the memory back.
            self.rest = Vec::new();
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], gate: &Gate) -> Result<usize, End> {
        if !gate.is_open() {
            return Err(End::WriteFailed(io::Error::other("the proxy may not forward any more")));
        }
        match self.to.try_write(bytes) {
            Ok(written) => {
                self.moved.add(written as u64);
                Ok(written)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(End::WriteFailed(error)),
        }
    }

    /// Copies what has arrived to its end, without waiting for more.
    async fn finish(&mut self, gate: &Gate) {
        loop {
            while !self.rest.is_empty() {
                if self.to.writable().await.is_err() || self.write_rest(gate).is_err() {
                    return;
                }
            }
            // Not by way of tokio, which does not know yet what the kernel does: that there is something to read.
            let mut socket: &socket2::Socket = &SockRef::from(self.from);
            let mut buffer = vec![0; BUFFER];
            match socket.read(&mut buffer) {
                Ok(length @ 1..) => self.rest = buffer[..length].to_vec(),
                _ => return,
            }
        }
    }
}

/// Reads what is there. A read that does not fill the buffer has emptied the socket, so that the next one would only
/// learn that there is nothing: tokio is told so, and asks the kernel to report more, without that second read.
fn read(from: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    let result = from.try_io(Interest::READABLE, || {
        let mut socket: &socket2::Socket = &SockRef::from(from);
        length = socket.read(buffer)?;
        if (1..buffer.len()).contains(&length) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    if length > 0 { Ok(length) } else { result.map(|()| 0) }
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
