//! `switchover`: the master moves to a chosen keeper.

use crate::access::AccessError;
use crate::ctl::{ChangeError, confirm, load, operation, render};
use common::cli::parse_time_limit;
use common::exit::UsageError;
use model::KeeperUid;
use model::stolon::ext::Action;
use model::stolon::keys::Keys;
use std::time::Duration;
use store::SharedStore;
use tracing::info;

/// Arguments of `switchover`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_long_help = "\
The master makes a checkpoint while clients still work, for up to a minute. Then proxies are closed, the chosen standby receives everything that was acknowledged, and only then it becomes master and \
proxies are opened to it. Clients' connections are cut: one that connects again and repeats its transaction loses \
nothing. If the standby can't take over in time, the master stays.

A switchover to a keeper of lower priority is not undone by priorities: the keeper stays preferred until it fails, \
until another switchover, or until `stolonctl switchover --release`. `stolonctl status` shows it.

It needs a leading sentinel of this implementation; with one of Go's the command says so, and nothing is changed.")]
pub struct Args {
    /// The keeper that is to become master
    #[arg(long, value_name = "KEEPER", required_unless_present = "release", conflicts_with = "release")]
    pub to: Option<String>,
    /// Let priorities decide again who is preferred as master
    #[arg(long)]
    pub release: bool,
    /// Withdraw the request after so long: seconds, or a duration like 2m
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = parse_time_limit)]
    pub timeout: Duration,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

pub(super) async fn command(store: &SharedStore, keys: &Keys, args: &Args) -> anyhow::Result<()> {
    if args.release {
        release(store, keys).await?;
        return Ok(());
    }
    let Some(to) = &args.to else { return Err(UsageError("--to KEEPER is missing".into()).into()) };
    let to = KeeperUid::from(to.as_str());
    let master = operation::master_keeper(store, keys).await?;
    let question = format!(
        "Clients' connections will be cut, and writes wait for a moment.\nMove the master from {master} to keeper \"{to}\"?"
    );
    if !args.yes && !confirm::confirm_on_terminal(&question)? {
        return Ok(());
    }
    let done = run(store, keys, to, args.timeout, |step| info!("{step}")).await?;
    Ok(render::print(&format!("{done}\n"))?)
}

/// Moves the master to a keeper and waits until it is in service; gives the outcome in words.
///
/// # Errors
/// See [`operation::ask`].
pub async fn run(
    store: &SharedStore,
    keys: &Keys,
    to: KeeperUid,
    limit: Duration,
    tell: impl FnMut(&str),
) -> Result<String, ChangeError> {
    operation::ask(store, keys, Action::Switchover(to), limit, tell).await
}

/// Forgets the keeper that the last switchover made the preferred one.
///
/// # Errors
/// The store failed, or there is no cluster data.
pub async fn release(store: &SharedStore, keys: &Keys) -> Result<(), ChangeError> {
    load(store, keys).await?;
    store.txn(vec![], vec![store::Op::Delete(keys.preference())]).await.map_err(AccessError::from)?;
    Ok(())
}
