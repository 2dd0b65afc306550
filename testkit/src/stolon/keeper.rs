//! A keeper with its PostgreSQL.

use super::endpoint::Endpoint;
use super::postmaster::{self, Postmaster};
use super::process::Process;
use super::relay::Relay;
use crate::port::Port;
use nix::sys::signal::{Signal, kill};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A keeper process, its data directory and its PostgreSQL.
#[derive(Debug)]
pub struct Keeper {
    /// Its uid: `keeper0`, `keeper1`, …
    pub uid: String,
    /// The keeper alone. Stopping it by [`Process::stop`] stops PostgreSQL too, killing it does not.
    pub process: Process,
    /// Straight to its PostgreSQL, past proxies and relays.
    pub pg: Endpoint,
    pub(super) root: PathBuf,
    pub(super) port: Mutex<Port>,
    pub(super) relays: Option<Relays>,
}

/// The network between a keeper and the rest.
#[derive(Debug)]
pub(super) struct Relays {
    /// From the keeper to the store.
    pub(super) store: Relay,
    /// From all others to its PostgreSQL.
    pub(super) postgres: Relay,
}

impl Keeper {
    /// Starts the keeper; nothing happens if it runs.
    ///
    /// # Panics
    /// It can't be started.
    pub fn start(&self) {
        self.process.start();
    }

    /// SIGTERM to the keeper, which stops PostgreSQL; returns when both have ended.
    ///
    /// # Panics
    /// The keeper does not end.
    pub async fn stop(&self) {
        self.process.stop().await;
    }

    /// SIGKILL to the keeper, its PostgreSQL and all its backends, as if the machine lost power.
    pub fn kill(&self) {
        self.process.kill();
        self.kill_postgres();
    }

    /// SIGKILL to PostgreSQL and all its backends; the keeper lives.
    pub fn kill_postgres(&self) {
        if let Some(postmaster) = self.postmaster() {
            postmaster.kill();
        }
    }

    /// Freezes the keeper, PostgreSQL and its backends: nothing answers, connections stay, as on a host that hangs.
    pub fn freeze(&self) {
        self.process.freeze();
        self.freeze_postgres();
    }

    /// Ends what [`Keeper::freeze`] or [`Keeper::freeze_postgres`] began.
    pub fn thaw(&self) {
        if let Some(postmaster) = self.postmaster() {
            postmaster.signal_all(Signal::SIGCONT);
        }
        self.process.thaw();
    }

    /// Freezes PostgreSQL and its backends only.
    pub fn freeze_postgres(&self) {
        if let Some(postmaster) = self.postmaster() {
            postmaster.signal_all(Signal::SIGSTOP);
        }
    }

    /// Sends a signal to one of PostgreSQL's processes, by a word of its title: `walreceiver`, `startup`, …
    ///
    /// # Panics
    /// There is no such process within the limit.
    pub async fn signal_backend(&self, title: &str, signal: Signal) {
        let find = || self.postmaster().and_then(|postmaster| postmaster.child(title));
        let mut found = find();
        super::eventually(&format!("{} has a process {title}", self.uid), async || {
            found = find();
            found.is_some()
        })
        .await;
        if let Some(pid) = found {
            let _ = kill(pid, signal);
        }
    }

    /// From now on this standby receives nothing more, although it and its keeper are well. [`Keeper::thaw`] ends it.
    ///
    /// # Panics
    /// It does not stream within the limit.
    pub async fn stop_receiving(&self) {
        self.signal_backend("walreceiver", Signal::SIGSTOP).await;
    }

    fn postmaster(&self) -> Option<Postmaster> {
        Postmaster::find(&self.pgdata())
    }

    /// Process id of the postmaster, if it runs.
    pub fn postmaster_pid(&self) -> Option<i32> {
        Some(self.postmaster()?.pid)
    }

    /// The keeper's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// PostgreSQL's data directory.
    pub fn pgdata(&self) -> PathBuf {
        self.root.join("postgres")
    }

    /// What the keeper and PostgreSQL have logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Cuts the keeper off the store, and all others off its PostgreSQL. What its PostgreSQL itself has opened, such
    /// as the connection of a standby to its master, stays.
    ///
    /// # Panics
    /// The lab was built without relays.
    pub fn cut(&self) {
        self.cut_store();
        self.cut_postgres();
    }

    /// Cuts all others off its PostgreSQL only.
    ///
    /// # Panics
    /// The lab was built without relays.
    pub fn cut_postgres(&self) {
        self.relays().postgres.cut();
    }

    /// Cuts the keeper off the store only.
    ///
    /// # Panics
    /// The lab was built without relays.
    pub fn cut_store(&self) {
        self.relays().store.cut();
    }

    /// Ends what [`Keeper::cut`] began.
    ///
    /// # Panics
    /// The lab was built without relays.
    pub fn mend(&self) {
        self.relays().store.mend();
        self.relays().postgres.mend();
    }

    fn relays(&self) -> &Relays {
        self.relays.as_ref().expect("a lab built with relays")
    }

    /// Gives PostgreSQL another port at the keeper's next start.
    ///
    /// # Panics
    /// The system has no port left.
    pub fn change_port(&self) {
        let port = Port::reserve().expect("a port");
        self.process.set_argument("--pg-port", &port.number().to_string());
        self.pg.set_port(port.number());
        if let Some(relays) = &self.relays {
            relays.postgres.lead_to(port.number());
        }
        *self.port.lock().unwrap_or_else(PoisonError::into_inner) = port;
    }

    /// Begins to stop everything, at the end of a test.
    pub(super) fn end(&self) {
        self.process.kill();
        if let Some(postmaster) = self.postmaster() {
            postmaster.quit();
        }
    }

    /// Finishes what [`Keeper::end`] began.
    pub(super) fn finish(&self) {
        match self.postmaster() {
            Some(postmaster) => postmaster.finish(),
            None => postmaster::remove_leftovers(&self.pgdata()),
        }
    }
}
