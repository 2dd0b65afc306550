//! The operator's command line: one file per command in [`commands`], the [`playground`] beside them.
//!
//! `shardmanctl` decides nothing about placement: `init` and `nodes add` call the same library as `ladle`.

pub mod cli;
pub mod commands;
pub mod playground;
pub mod table;
pub mod topology;

mod dispatch;
pub use dispatch::run;
