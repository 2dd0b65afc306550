//! The SQL side: quoting, connections with deadlines and TLS, and where a group's master and proxies are.

pub mod connect;
pub mod endpoints;
pub mod quote;
pub mod tls;

pub use connect::{ConnectError, Login, Session, connect};
pub use endpoints::{Endpoint, Endpoints, NoMaster};
pub use tls::{SslMode, Tls, TlsError};
