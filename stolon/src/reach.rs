//! Whether anybody listens at an address.

use std::io::ErrorKind;
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};

/// What an attempt to connect says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Somebody listens there. That says nothing about what it can do.
    Connected,
    /// The host answered that nobody listens. A firewall can say so too.
    Refused,
    /// No answer in time, no route, no such name: nothing is known.
    Unknown,
}

/// Connects to every address of a host, and says no more than that to it. All of them must refuse: a name may lead to
/// two families of addresses of which a server uses only one.
pub async fn reach(host: &str, port: u16, limit: Duration) -> Reach {
    let attempts = async {
        let Ok(addresses) = lookup_host((host, port)).await else { return Reach::Unknown };
        let mut reach = Reach::Unknown;
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(_) => return Reach::Connected,
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => reach = Reach::Refused,
                Err(_) => return Reach::Unknown,
            }
        }
        reach
    };
    tokio::time::timeout(limit, attempts).await.unwrap_or(Reach::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn listening_refusing_and_unknown() {
        let limit = Duration::from_secs(5);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(reach("127.0.0.1", port, limit).await, Reach::Connected);
        drop(listener);
        assert_eq!(reach("127.0.0.1", port, limit).await, Reach::Refused);
        assert_eq!(reach("no such host", port, limit).await, Reach::Unknown);
    }
}
