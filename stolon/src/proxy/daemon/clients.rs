//! What becomes of clients: they are led to a server, wait, or are turned away.

use super::Proxy;
use crate::proxy::door::{self, Client, Door, Refused, Wants};
use crate::proxy::forward::Route;
use crate::proxy::plan::Destination;
use crate::proxy::replica_port;
use crate::proxy::sockets::Upstream;
use std::io;
use std::sync::Arc;
use store::Moment;
use tokio::net::TcpStream;
use tracing::info;

impl Proxy {
    /// Connections are led to `destination` from now on.
    pub(super) fn forward(&mut self, destination: Destination) {
        info!(master = %destination.endpoint, "forwarding");
        self.route = Some(Arc::new(Route {
            upstream: Upstream::Addresses(destination.addresses.clone()),
            gate: self.gate.clone(),
            options: self.options.clone(),
            counters: self.status.master.clone(),
        }));
        self.forwarding = Some(destination);
        self.told = None;
    }

    /// A client may be led to the master, now. A proxy that was suspended finds the gate shut.
    pub(super) fn leads_to_master(&self) -> bool {
        self.route.is_some() && self.gate.is_open()
    }

    /// Leads a client to where it wants, or lets it wait.
    pub(super) fn lead(&mut self, client: Client, now: Moment) {
        match client.wants {
            Wants::Master => self.lead_to_master(client, now),
            Wants::Replica => self.lead_to_replica(client, now),
        }
    }

    fn lead_to_master(&mut self, client: Client, now: Moment) {
        match self.route.clone().filter(|_| self.gate.is_open()) {
            Some(route) => {
                let slot = self.on_the_way.add(client);
                self.connections.spawn(door::lead(slot, route));
            }
            None => self.door.hold(client, now),
        }
    }

    fn lead_to_replica(&mut self, client: Client, now: Moment) {
        let to_master = self.route.clone().filter(|_| self.gate.is_open());
        let Some(port) = &mut self.replicas else { return };
        let Err(client) = port.pools.lead(client, now) else { return };
        match to_master.filter(|_| port.fallback) {
            // Among the master's connections, so that it ends with them.
            Some(route) => {
                let route = Route { counters: self.status.replica.clone(), ..(*route).clone() };
                let slot = self.on_the_way.add(client);
                self.connections.spawn(door::lead(slot, Arc::new(route)));
            }
            None => port.door.hold(client, now),
        }
    }

    pub(super) fn see_client(&mut self, result: io::Result<TcpStream>) {
        let now = Moment::now();
        match result {
            Ok(stream) => {
                let client = self.door.welcome(stream, now);
                self.lead(client, now);
            }
            Err(error) => {
                self.door.pause(now);
                self.cannot_accept(&error);
            }
        }
    }

    pub(super) fn see_replicas(&mut self, event: replica_port::Event) {
        let now = Moment::now();
        let Some(port) = &mut self.replicas else { return };
        match event {
            replica_port::Event::Accepted(Ok(stream)) => {
                let client = port.door.welcome(stream, now);
                self.lead(client, now);
            }
            replica_port::Event::Accepted(Err(error)) => {
                port.door.pause(now);
                self.cannot_accept(&error);
            }
            replica_port::Event::Records => port.see_records(),
            replica_port::Event::Ended => {}
        }
    }

    fn cannot_accept(&mut self, error: &io::Error) {
        self.complain(format!("can't accept a connection: {error}; trying again"));
    }

    /// A connection of the master's has ended, perhaps before it began.
    pub(super) fn see_end(&mut self, refused: Option<Refused>) {
        let Some(Refused { client, error }) = refused else { return };
        let now = Moment::now();
        if let Some(master) = &self.forwarding {
            self.complain(format!("can't connect to the master at {}: {error}", master.endpoint));
        }
        self.door_of(&client).hold_refused(client, now);
    }

    /// Takes clients back whose master is none any more before a byte was exchanged.
    pub(super) fn take_back(&mut self) {
        let now = Moment::now();
        for client in self.on_the_way.give_back() {
            self.door_of(&client).hold(client, now);
        }
    }

    fn door_of(&mut self, client: &Client) -> &mut Door {
        match (client.wants, &mut self.replicas) {
            (Wants::Replica, Some(port)) => &mut port.door,
            _ => &mut self.door,
        }
    }
}
