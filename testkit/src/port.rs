//! Ports that nobody else takes between our choice and a server's use of them.

use anyhow::{Context as _, Result};
use socket2::{Domain, Socket, Type};
use std::net::{Ipv4Addr, SocketAddr};

/// A loopback port, kept for us as long as this value lives.
///
/// The socket is bound but does not listen, and allows others to bind the same address. So a server that sets
/// `SO_REUSEADDR` (all ours do) may listen there, again and again, while the kernel gives the port to nobody that
/// asks for any port.
#[derive(Debug)]
pub struct Port {
    _reservation: Socket,
    number: u16,
}

impl Port {
    /// Reserves a free port on 127.0.0.1.
    ///
    /// # Errors
    /// The system has none left.
    pub fn reserve() -> Result<Self> {
        let reserve = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            // Set after the choice of the port, so that the kernel chooses one that nobody else has reserved.
            socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
            socket.set_reuse_address(true)?;
            let address = socket.local_addr()?.as_socket().ok_or(std::io::ErrorKind::AddrNotAvailable)?;
            std::io::Result::Ok(Port { _reservation: socket, number: address.port() })
        };
        reserve().context("reserve a loopback port")
    }

    /// The port's number.
    pub fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_reserved_port_can_be_listened_on_again_and_again_and_is_given_to_nobody_else() {
        let port = Port::reserve().expect("a port");
        for _ in 0..3 {
            let server = TcpListener::bind(("127.0.0.1", port.number())).expect("listen");
            let client = TcpStream::connect(("127.0.0.1", port.number())).expect("connect");
            drop((server.accept().expect("accept"), client));
        }
        let others: Vec<_> = (0..300).map(|_| Port::reserve().expect("a port")).collect();
        let numbers: BTreeSet<u16> = others.iter().map(Port::number).collect();
        assert_eq!(numbers.len(), others.len());
        assert!(!numbers.contains(&port.number()));
    }
}
