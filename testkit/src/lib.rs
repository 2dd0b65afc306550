//! For tests only: transient etcd and PostgreSQL servers on loopback, with their own data, on ports of their own.

pub mod etcd;
pub mod postgres;
