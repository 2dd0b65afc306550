//! `elect`: a keeper becomes master although it may lack acknowledged commits.

use crate::ctl::{ChangeError, confirm, load, operation, render};
use common::cli::parse_time_limit;
use model::KeeperUid;
use model::stolon::ext::Action;
use model::stolon::keys::Keys;
use model::stolon::{ClusterData, Db};
use std::time::Duration;
use store::SharedStore;
use tracing::info;

/// Arguments of `elect`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_long_help = "\
For the case that the master and every standby that surely has all its commits are lost, and nobody is elected; \
`stolonctl why failover` says so. Commits that the chosen keeper lacks are lost for good: the old master becomes its \
standby when it comes back. While the master is healthy, or somebody can be elected without loss, nothing is done.")]
pub struct Args {
    /// The keeper that is to become master
    pub keeper: String,
    /// Acknowledged commits may be lost
    #[arg(long, required = true)]
    pub accept_data_loss: bool,
    /// Withdraw the request after so long: seconds, or a duration like 2m
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = parse_time_limit)]
    pub timeout: Duration,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

pub(super) async fn command(store: &SharedStore, keys: &Keys, args: &Args) -> anyhow::Result<()> {
    let keeper = KeeperUid::from(args.keeper.as_str());
    let loss = what_may_be_lost(&load(store, keys).await?.data, &keeper)?;
    if args.yes {
        info!("{loss}");
    } else if !confirm::confirm_on_terminal(&format!("{loss}\nMake keeper \"{keeper}\" the master?"))? {
        return Ok(());
    }
    let done = operation::ask(store, keys, Action::Elect(keeper), args.timeout, |step| info!("{step}")).await?;
    Ok(render::print(&format!("{done}\n"))?)
}

/// What is known of the chosen db and of the master, in words.
fn what_may_be_lost(data: &ClusterData, keeper: &KeeperUid) -> Result<String, ChangeError> {
    let refuse = |text: String| ChangeError::Refused(text);
    let Some(db) = data.db_of_keeper(keeper) else {
        return Err(refuse(format!("keeper \"{keeper}\" has no db; `stolonctl status` lists keepers and their dbs")));
    };
    let Some(master) = data.dbs.get(&data.cluster.status.master) else {
        return Err(refuse("there is no master yet, so none can be replaced".into()));
    };
    let known = master.status.synchronous_standbys.iter().flatten().any(|uid| *uid == db.uid);
    let sync = match (master.spec.synchronous_replication, known) {
        (true, true) => "it was in sync when it was last heard of",
        (true, false) => "it was not in sync: commits did not wait for it",
        (false, _) => "commits wait for no standby",
    };
    let behind = master.status.xlog_pos.saturating_sub(db.status.xlog_pos);
    Ok(format!(
        "DATA MAY BE LOST: all commits that keeper \"{keeper}\" has not received.\n  the master, {}\n  the chosen one, {}\n  \
         last reported, it is {behind} bytes behind; {sync}. The master may have gone on since it was last heard of.",
        place(master),
        place(db),
    ))
}

fn place(db: &Db) -> String {
    let position = db.status.xlog_pos;
    format!(
        "db \"{}\" of keeper \"{}\": timeline {}, position {:X}/{:X}",
        db.uid,
        db.spec.keeper_uid,
        db.status.timeline_id,
        position >> 32,
        position & 0xffff_ffff
    )
}
