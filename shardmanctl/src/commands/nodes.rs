//! `nodes add`: the same as `ladle addnodes`.

use crate::cli::NodesAddArgs;
use ladle::addnodes::Options;
use ladle::context::Context;
use ladle::report::Progress;
use model::NodeName;
use std::io::Write;

/// `nodes add`
///
/// # Errors
/// The nodes can't be added, or their daemons do not come up; run again, it continues.
pub async fn add(
    ctx: &Context,
    args: &NodesAddArgs,
    progress: &dyn Progress,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<()> {
    let nodes: Vec<NodeName> = args.nodes.iter().map(|name| name.trim().into()).collect();
    let options = Options { force: args.force, timeout: args.timeout.to_std() };
    if args.dry_run {
        match ladle::addnodes::dry_run(ctx, &nodes).await? {
            Some(plan) => write!(out, "{plan}")?,
            None => writeln!(out, "only groups remain to be registered; the layout stays as it is")?,
        }
        return Ok(());
    }
    ladle::addnodes::run(ctx, &nodes, &options, progress).await?;
    if !args.no_rebalance {
        progress.info("Partitions stay where they are: moving them to the new groups is not available in this version");
    }
    Ok(())
}
