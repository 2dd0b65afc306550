//! One file per command.

pub mod clusterdata;
pub mod elect;
pub mod failkeeper;
pub mod init;
pub mod promote;
pub mod removekeeper;
pub mod restart;
pub mod setkeeperpriority;
pub mod spec;
pub mod status;
pub mod switchover;
pub mod update;
pub mod why;

use super::args::{Command, CtlArgs};
use super::render;
use crate::cli::CommonArgs;
use common::exit::Hinted;
use model::stolon::keys::Keys;
use store::SharedStore;

/// Runs a command.
///
/// # Errors
/// The command's own; wrong usage.
pub async fn run(args: CtlArgs) -> anyhow::Result<()> {
    let CtlArgs { common, command, kubeconfig: _, kube_context: _, kube_namespace: _ } = args;
    match command {
        Command::Version => Ok(render::print(&format!("stolonctl version {}\n", env!("CARGO_PKG_VERSION")))?),
        Command::Register { .. } => Err(Hinted {
            message: "register is not served: this stolonctl does not speak Consul's protocol".into(),
            hint: "let clients connect through stolon-proxy, or run `stolonctl register` of Go stolon beside it".into(),
        }
        .into()),
        // It must answer in its own format, whatever goes wrong.
        Command::Status(args) => status::command(&common, &args).await,
        Command::Why(args) => why::command(&common, &args).await,
        command => {
            let (store, keys) = open(&common).await?;
            match command {
                Command::Init(args) => init::command(&store, &keys, &args).await?,
                Command::Update(args) => update::command(&store, &keys, &args).await?,
                Command::Spec(args) => spec::command(&store, &keys, &args).await?,
                Command::Failkeeper(args) => failkeeper::run(&store, &keys, &args.uid).await?,
                Command::Removekeeper(args) => removekeeper::run(&store, &keys, &args.uid).await?,
                Command::Setkeeperpriority(args) => {
                    setkeeperpriority::run(&store, &keys, &args.uid, args.priority).await?;
                }
                Command::Switchover(args) => switchover::command(&store, &keys, &args).await?,
                Command::Restart(args) => restart::command(&store, &keys, &args).await?,
                Command::Elect(args) => elect::command(&store, &keys, &args).await?,
                Command::Promote(args) => promote::command(&store, &keys, &args).await?,
                Command::Clusterdata(command) => clusterdata::command(&store, &keys, &command).await?,
                Command::Version | Command::Register { .. } | Command::Status(_) | Command::Why(_) => {}
            }
            Ok(())
        }
    }
}

async fn open(common: &CommonArgs) -> anyhow::Result<(SharedStore, Keys)> {
    let keys = common.keys()?;
    Ok((common.open_store().await?, keys))
}
