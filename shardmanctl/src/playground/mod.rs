//! A whole cluster on one machine, to try things on: real etcd, real PostgreSQL, one bowl per pretend node.
//!
//! * [`plan`] decides names, addresses, ports and directories; the plan is stored in `DIR/playground.json`, so that
//!   every later command on the same directory means the same processes.
//! * [`processes`] starts etcd and bowls in sessions of their own, and finds and signals all processes of a node.
//! * [`run`] ties them together: start, wait until the cluster serves, stop; [`node`] acts on one pretend node.
//!
//! Everything below bowl is the code of real nodes; only bowl's service manager differs.

mod files;
pub mod node;
pub mod plan;
mod postgres;
mod processes;
pub mod run;
