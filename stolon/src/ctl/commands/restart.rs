//! `restart`: PostgreSQL is restarted everywhere, in order.

use crate::ctl::{confirm, operation, render};
use common::cli::parse_time_limit;
use model::stolon::ext::{Action, Restart};
use model::stolon::keys::Keys;
use std::time::Duration;
use store::SharedStore;
use tracing::info;

/// Arguments of `restart`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_long_help = "\
Restarts PostgreSQL where changed parameters wait for it (problem restart_pending in `stolonctl status`), or everywhere. \
Standbys come first, one after the other; each must receive from the master again, and be in sync again if commits wait \
for it, before the next one is stopped. Then the master is moved to a standby by a clean switch, and the old one restarts \
on the way; without a standby, or with --in-place, it is restarted where it is. Clients' connections are cut once. If \
priorities prefer the old master, they move it back afterwards.

The command can be ended at any time: the instance that restarts just then goes on, the others are left alone; run it \
again to go on. If the leading sentinel dies, the next one goes on. It needs a leading sentinel and keepers of this \
implementation; keepers that can't be told are named.")]
pub struct Args {
    /// Restart all instances, not only those where parameters wait for it
    #[arg(long)]
    pub all: bool,
    /// Restart the master where it is, instead of moving it to a standby
    #[arg(long)]
    pub in_place: bool,
    /// Withdraw the request after so long: seconds, or a duration like 2m
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_time_limit)]
    pub timeout: Duration,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

pub(super) async fn command(store: &SharedStore, keys: &Keys, args: &Args) -> anyhow::Result<()> {
    let Args { all, in_place, timeout, yes } = *args;
    let master = operation::master_keeper(store, keys).await?;
    let which = if all { "all instances" } else { "instances where parameters wait for it" };
    let question = format!(
        "PostgreSQL is restarted on {which}, one after the other. If that concerns the master, on {master}, clients' \
         connections are cut.\nRestart?"
    );
    if !yes && !confirm::confirm_on_terminal(&question)? {
        return Ok(());
    }
    let action = Action::Restart(Restart { all, in_place });
    let done = operation::ask(store, keys, action, timeout, |step| info!("{step}")).await?;
    Ok(render::print(&format!("{done}\n"))?)
}
