//! The proxy forwards TCP connections to the master, and cuts everything off when it can't be sure who that is.
//!
//! In: the cluster data, followed in the store. Out: one record about this proxy in the store, on a lease that is kept
//! alive, and forwarded connections. [`plan`] decides, [`daemon`] acts, [`forward`] moves bytes, [`publish`] writes.
//! Clients come in by a [`door`], where they may wait; readers are led to [`pools`] of what [`replicas`] finds fit.
//!
//! **The guarantee.** While any proxy may forward to a new master, none forwards to the old one. It rests on these
//! rules; F1 and its counterpart of F5 are the sentinel's.
//!
//! * F2: every socket of the old destination is closed, unsent bytes thrown away, before the generation that took
//!   the destination away is published.
//! * F3: nothing is forwarded before a publication succeeded that names this generation, and then only if the
//!   sentinel enabled this proxy. The publication is a transaction on the very revision of the cluster data that was
//!   decided upon: whoever acts on old data can't publish, and who can't publish doesn't forward.
//! * F4: without word from the store for the proxy's timeout everything is cut off, judged by this process's own clock
//!   before each byte that is written. A process that was suspended finds the gate shut when it wakes up.
//! * F5: the record vanishes with its lease, and the lease outlives the moment of F4 by at least 500 ms.
//! * F6: the announced timeout is never below the one in force.
//!
//! Readers fall under the same rules but one: they go on while there is no master. A replica that is elected loses its
//! readers before this proxy confirms the election, and so before it could be deposed in turn.
//! A client that waits has sent nothing anywhere; it is led on by the same rules as one that has just come.

pub mod args;
pub mod counters;
pub mod daemon;
pub mod door;
pub mod forward;
pub mod gate;
pub mod lease;
pub mod plan;
pub mod pools;
pub mod publish;
pub mod replica_port;
pub mod replicas;
pub mod resolve;
pub mod sockets;
pub mod status;

pub use args::ProxyArgs;
pub use daemon::run;
