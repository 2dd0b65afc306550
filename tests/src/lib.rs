//! Shared helpers of the end-to-end tests and benches: a playground as a fixture, and a client that keeps books.

pub mod client;
pub mod contenders;
pub mod playground;
pub mod servers;
