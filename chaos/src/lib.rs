//! `make chaos`: two campaigns against the stolon layer, with real etcd, real PostgreSQL and our release programs.
//!
//! * **calm**: conditions in which nothing must fail over.
//! * **lost**: random failures, and the proof from the clients' books that no acknowledged row was lost.
//!
//! Everything runs in namespaces of its own, made and left by the kernel: see [`sandbox`].

pub mod calm;
pub mod checker;
pub mod client;
pub mod cluster;
pub mod faults;
pub mod lost;
pub mod process;
pub mod random;
pub mod sandbox;
pub mod schedule;
pub mod transcript;
pub mod versions;
