//! TCP relays, which stand for the network between two processes: a cut one is silent, like a lost network.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Drives relays in a thread of its own, so that a test that blocks does not hold up the network.
#[derive(Debug)]
pub(super) struct Network {
    runtime: Option<Runtime>,
}

impl Network {
    pub(super) fn start() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Network { runtime: Some(runtime) })
    }

    /// A relay that leads to a loopback port.
    pub(super) fn relay(&self, target: u16) -> std::io::Result<Relay> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let (open, gate) = watch::channel(true);
        let relay = Relay { port: listener.local_addr()?.port(), target: Arc::new(AtomicU16::new(target)), open };
        if let Some(runtime) = &self.runtime {
            let target = relay.target.clone();
            runtime.spawn(async move {
                if let Ok(listener) = TcpListener::from_std(listener) {
                    accept(listener, target, gate).await;
                }
            });
        }
        Ok(relay)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The usual way of dropping a runtime is not allowed inside another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One way through the network.
#[derive(Debug)]
pub struct Relay {
    port: u16,
    target: Arc<AtomicU16>,
    open: watch::Sender<bool>,
}

impl Relay {
    /// Where it listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Nothing comes through from now on, in either direction; connections stay, and new ones get no answer.
    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    /// Lets everything through again, also what was held back.
    pub fn mend(&self) {
        self.open.send_replace(true);
    }

    pub(super) fn lead_to(&self, port: u16) {
        self.target.store(port, Ordering::Relaxed);
    }
}

/// Waits until the way is open; false when the relay is gone.
async fn is_open(gate: &mut watch::Receiver<bool>) -> bool {
    gate.wait_for(|open| *open).await.is_ok()
}

async fn accept(listener: TcpListener, target: Arc<AtomicU16>, mut gate: watch::Receiver<bool>) {
    while is_open(&mut gate).await {
        let Ok((client, _)) = listener.accept().await else { return };
        let (target, gate) = (SocketAddr::from(([127, 0, 0, 1], target.load(Ordering::Relaxed))), gate.clone());
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(target).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let (client, server) = (client.into_split(), server.into_split());
            // The end of one direction ends both: nobody here uses half-closed connections.
            tokio::select! {
                () = pump(client.0, server.1, gate.clone()) => {}
                () = pump(server.0, client.1, gate) => {}
            }
        });
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut gate: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer).await.unwrap_or(0);
        // Also the end of a connection does not come through a network that is cut.
        if !is_open(&mut gate).await || length == 0 || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
