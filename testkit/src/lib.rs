//! For tests only: transient etcd and PostgreSQL servers on loopback, with their own data, on ports of their own, and
//! whole stolon clusters made of them.

pub mod etcd;
pub mod etcds;
pub mod port;
pub mod postgres;
pub mod stolon;
pub mod tls;
