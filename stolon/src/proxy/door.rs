//! A listening port, and clients that wait behind it until there is somewhere to lead them to.

use super::counters::Counters;
use super::forward::{self, Route};
use super::sockets;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::Moment;
use tokio::net::{TcpListener, TcpStream};

/// When the system has no descriptors left, trying at once again would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A server that refused a client who may wait is tried again after this time.
const AGAIN: Duration = Duration::from_millis(200);
/// Clients that wait at most: each costs a descriptor.
const MOST_HELD: usize = 1024;

/// What a client came for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// The master.
    Master,
    /// A replica.
    Replica,
}

/// A client of whom nothing was read yet.
#[derive(Debug)]
pub struct Client {
    /// Its connection.
    pub stream: TcpStream,
    /// What it came for.
    pub wants: Wants,
    /// It may wait until then.
    until: Moment,
    /// It is not to be led on before.
    not_before: Moment,
}

/// A server that could not be connected to, with the client it was for.
#[derive(Debug)]
pub struct Refused {
    /// The client. Nothing was read from it.
    pub client: Client,
    /// Why.
    pub error: io::Error,
}

/// A client whose server is being connected to. Nothing of what it sent has gone anywhere, so it may be led elsewhere
/// when the attempt is given up.
#[derive(Clone, Debug)]
pub struct Slot(Arc<Mutex<Option<Client>>>);

impl Slot {
    /// Keeps a client.
    pub fn new(client: Client) -> Self {
        Slot(Arc::new(Mutex::new(Some(client))))
    }

    /// Takes it out, unless it was taken before.
    pub fn take(&self) -> Option<Client> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

/// Connects to the client's server and serves the client until its connection ends.
///
/// # Errors
/// The server can't be connected to.
pub async fn lead(slot: Slot, route: Arc<Route>) -> Result<(), Refused> {
    let result = forward::connect(&route).await;
    // Taken in the same breath in which bytes begin to flow: nobody leads it elsewhere from now on.
    let Some(client) = slot.take() else { return Ok(()) };
    drop(slot);
    match result {
        Ok(server) => {
            let Client { stream, .. } = client;
            forward::serve(&stream, &server, &route).await;
            Ok(())
        }
        Err(error) => Err(Refused { client, error }),
    }
}

/// Clients on their way to one server, or a few.
#[derive(Debug, Default)]
pub struct OnTheWay(Vec<Slot>);

impl OnTheWay {
    /// Adds a client.
    pub fn add(&mut self, client: Client) -> Slot {
        // Most of those before have arrived.
        self.0.retain(|slot| !slot.is_empty());
        let slot = Slot::new(client);
        self.0.push(slot.clone());
        slot
    }

    /// Gives those back who have not arrived. To be called when nobody leads them any more.
    pub fn give_back(&mut self) -> Vec<Client> {
        self.0.drain(..).filter_map(|slot| slot.take()).collect()
    }
}

/// A listening port.
#[derive(Debug)]
pub struct Door {
    host: String,
    port: u16,
    hold: Duration,
    wants: Wants,
    counters: Arc<Counters>,
    listener: Option<TcpListener>,
    accept_after: Option<Moment>,
    held: VecDeque<Client>,
}

impl Door {
    /// A door that is shut. Behind it clients wait as long as `hold` says.
    pub fn new(host: &str, port: u16, hold: Duration, wants: Wants, counters: Arc<Counters>) -> Self {
        let host = host.to_owned();
        Door { host, port, hold, wants, counters, listener: None, accept_after: None, held: VecDeque::new() }
    }

    /// Listens.
    ///
    /// # Errors
    /// The port is taken, or the address is not ours.
    pub async fn open(&mut self) -> io::Result<()> {
        if self.listener.is_none() {
            self.listener = Some(sockets::listen(&self.host, self.port).await?);
        }
        Ok(())
    }

    /// Listens no more. Clients that wait stay.
    pub fn shut(&mut self) {
        self.listener = None;
    }

    /// It listens.
    pub fn is_open(&self) -> bool {
        self.listener.is_some()
    }

    /// The port that is listened on: the system's choice where 0 was asked for.
    pub fn port(&self) -> u16 {
        let address = self.listener.as_ref().and_then(|listener| listener.local_addr().ok());
        address.map_or(self.port, |address| address.port())
    }

    /// Clients that wait.
    pub fn waiting(&self) -> usize {
        self.held.len()
    }

    /// Takes the next client. Cancel-safe.
    ///
    /// # Errors
    /// The kernel can't give a connection, as when there are too many open files.
    pub async fn accept(&self) -> io::Result<TcpStream> {
        match self.listener.as_ref().filter(|_| self.accept_after.is_none()) {
            Some(listener) => listener.accept().await.map(|(client, _)| client),
            None => std::future::pending().await,
        }
    }

    /// Counts a client in.
    pub fn welcome(&self, stream: TcpStream, now: Moment) -> Client {
        self.counters.accepted.add(1);
        Client { stream, wants: self.wants, until: now + self.hold, not_before: now }
    }

    /// Accepts nothing for a while, after an error.
    pub fn pause(&mut self, now: Moment) {
        self.accept_after = Some(now + ACCEPT_PAUSE);
    }

    /// Lets a client wait, if it may and there is room; closes its connection otherwise.
    pub fn hold(&mut self, client: Client, now: Moment) {
        if now < client.until && self.held.len() < MOST_HELD {
            self.held.push_back(client);
        } else {
            self.counters.turned_away.add(1);
        }
    }

    /// Lets a client wait whom the server did not take.
    pub fn hold_refused(&mut self, mut client: Client, now: Moment) {
        client.not_before = now + AGAIN;
        // It was counted as failed already.
        if now < client.until && self.held.len() < MOST_HELD {
            self.held.push_back(client);
        }
    }

    /// Takes out all clients who may be led on now, and closes the connections of those who have waited too long.
    pub fn due(&mut self, now: Moment, leads_somewhere: bool) -> Vec<Client> {
        let mut due = Vec::new();
        for client in std::mem::take(&mut self.held) {
            // A process that was suspended finds out here.
            if client.until <= now {
                self.counters.turned_away.add(1);
            } else if leads_somewhere && client.not_before <= now {
                due.push(client);
            } else {
                self.held.push_back(client);
            }
        }
        due
    }

    /// When something is to be done here without anybody coming.
    pub fn next_moment(&mut self, now: Moment) -> Option<Moment> {
        self.accept_after = self.accept_after.filter(|moment| now < *moment);
        let held = self.held.iter().flat_map(|client| [client.until, client.not_before]);
        held.chain(self.accept_after).filter(|moment| now < *moment).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    async fn door(hold: Duration) -> (Door, TcpStream, Client) {
        let mut door = Door::new("127.0.0.1", 0, hold, Wants::Master, Arc::default());
        assert!(!door.is_open());
        door.open().await.unwrap();
        let client = TcpStream::connect(("127.0.0.1", door.port())).await.unwrap();
        let accepted = door.welcome(door.accept().await.unwrap(), Moment::now());
        (door, client, accepted)
    }

    #[tokio::test]
    async fn who_may_not_wait_is_turned_away() {
        let (mut door, mut client, accepted) = door(Duration::ZERO).await;
        door.hold(accepted, Moment::now());
        assert_eq!((door.waiting(), door.counters.turned_away.get()), (0, 1));
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn who_waits_is_led_on_in_time_or_turned_away() {
        let (mut door, mut client, accepted) = door(Duration::from_secs(5)).await;
        let now = Moment::now();
        door.hold(accepted, now);
        assert!(door.due(now, false).is_empty());
        assert!(door.next_moment(now).is_some_and(|moment| moment > now + Duration::from_secs(4)));
        let held = door.due(now, true).pop().unwrap();
        door.hold_refused(held, now);
        // Not at once again, but soon.
        assert!(door.due(now, true).is_empty());
        assert_eq!(door.next_moment(now), Some(now + AGAIN));
        assert_eq!(door.due(now + AGAIN, true).len(), 1);
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);

        let (mut door, mut client, accepted) = super::tests::door(Duration::from_secs(5)).await;
        door.hold(accepted, now);
        assert!(door.due(now + Duration::from_secs(60), true).is_empty());
        assert_eq!((door.waiting(), door.counters.turned_away.get()), (0, 1));
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_pause_ends() {
        let (mut door, _client, _accepted) = door(Duration::ZERO).await;
        let now = Moment::now();
        door.pause(now);
        let _late = TcpStream::connect(("127.0.0.1", door.port())).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(20), door.accept()).await.is_err());
        assert_eq!(door.next_moment(now), Some(now + ACCEPT_PAUSE));
        assert_eq!(door.next_moment(now + ACCEPT_PAUSE), None);
        assert!(door.accept().await.is_ok());
    }
}
