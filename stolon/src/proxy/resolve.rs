//! What the master's host name means.

use super::plan::{Destination, RETRY};
use futures::future::BoxFuture;
use pg::endpoints::Endpoint;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use store::Moment;

/// A resolver that is silent this long is taken as one that doesn't know.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);

type LookUp = BoxFuture<'static, (Endpoint, io::Result<Vec<SocketAddr>>)>;

/// The last answer, and the question under way.
#[derive(Default)]
pub struct Resolver {
    resolved: Option<Destination>,
    under_way: Option<LookUp>,
    after: Option<Moment>,
}

impl Resolver {
    /// What is known now.
    pub fn resolved(&self) -> Option<&Destination> {
        self.resolved.as_ref()
    }

    /// Looks a name up if it is not known yet.
    pub fn want(&mut self, endpoint: &Endpoint, now: Moment) {
        self.after = self.after.filter(|moment| now < *moment);
        if self.resolved.as_ref().is_some_and(|resolved| resolved.endpoint == *endpoint) {
            return;
        }
        if let Ok(address) = endpoint.host.parse::<IpAddr>() {
            let addresses = Arc::new(vec![SocketAddr::new(address, endpoint.port)]);
            self.resolved = Some(Destination { endpoint: endpoint.clone(), addresses });
        } else if self.under_way.is_none() && self.after.is_none() {
            self.under_way = Some(Box::pin(look_up(endpoint.clone())));
        }
    }

    /// Asks again: a name may have got other addresses.
    pub fn refresh(&mut self) {
        let Some(resolved) = &self.resolved else { return };
        if resolved.endpoint.host.parse::<IpAddr>().is_err() && self.under_way.is_none() {
            self.under_way = Some(Box::pin(look_up(resolved.endpoint.clone())));
        }
    }

    /// Not asked again before.
    pub fn next_moment(&self) -> Option<Moment> {
        self.after
    }

    /// Waits for the answer and takes it in. What is known stays when there is none: a resolver that is down must not
    /// cut connections off. Cancel-safe.
    ///
    /// # Errors
    /// Says which name has no address.
    pub async fn answer(&mut self) -> Result<(), String> {
        let Some(future) = &mut self.under_way else { return std::future::pending().await };
        let (endpoint, result) = future.await;
        self.under_way = None;
        match result {
            Ok(addresses) => {
                self.resolved = Some(Destination { endpoint, addresses: Arc::new(addresses) });
                Ok(())
            }
            Err(error) => {
                self.after = Some(Moment::now() + RETRY);
                Err(format!("can't resolve the master's host name {}: {error}", endpoint.host))
            }
        }
    }
}

async fn look_up(endpoint: Endpoint) -> (Endpoint, io::Result<Vec<SocketAddr>>) {
    let name = (endpoint.host.clone(), endpoint.port);
    let result = match tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(name)).await {
        Ok(Ok(addresses)) => {
            let mut addresses: Vec<SocketAddr> = addresses.collect();
            // Resolvers turn the order round, which must not look like a change.
            addresses.sort_unstable();
            addresses.dedup();
            if addresses.is_empty() { Err(io::Error::other("it has no address")) } else { Ok(addresses) }
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    (endpoint, result)
}
