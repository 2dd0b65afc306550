//! Acting on one pretend node.

use super::files::Dir;
use super::plan::PlannedNode;
use super::processes;
use super::run::{end_node, eprintln, os_user, require_owner};
use crate::cli::NodeCommand;
use anyhow::bail;
use nix::sys::signal::Signal;
use std::path::Path;

/// `playground node …`
///
/// # Errors
/// No such playground or node, or the node is not in the state that the command needs.
pub async fn run(command: &NodeCommand, data_dir: Option<&Path>) -> anyhow::Result<()> {
    let dir = Dir::new(data_dir)?;
    let plan = dir.existing_plan()?;
    require_owner(&plan, &dir)?;
    let (NodeCommand::Kill { name } | NodeCommand::Stop { name } | NodeCommand::Start { name }) = command;
    let node: &PlannedNode = plan.node(name)?;
    let node_dir = dir.path.join(name);
    match command {
        NodeCommand::Kill { .. } => match processes::kill_all(&plan, &node_dir)? {
            0 => bail!("{name} has no process; it is stopped already"),
            count => eprintln(&format!("{name}: {count} processes killed")),
        },
        NodeCommand::Stop { .. } => {
            match processes::bowl(&plan, &node_dir) {
                Some(pid) => processes::signal(pid, Signal::SIGTERM),
                None if processes::processes(&plan, &node_dir).is_empty() => bail!("{name} is stopped already"),
                None => {}
            }
            end_node(&plan, &node_dir).await?;
            eprintln(&format!("{name} is stopped"));
        }
        NodeCommand::Start { .. } => {
            if processes::processes(&plan, &dir.path.join(processes::ETCD)).is_empty() {
                let path = dir.path.display();
                bail!("the playground in {path} is stopped; start it with `shardmanctl playground --data-dir {path}`");
            }
            if processes::bowl(&plan, &node_dir).is_some() {
                bail!("{name} is running already");
            }
            let pid = processes::spawn_bowl(&plan, node, &dir.path, &os_user()?)?;
            eprintln(&format!("{name} is started (bowl is process {pid})"));
        }
    }
    Ok(())
}
