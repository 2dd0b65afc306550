//! stolonctl's command line.

use super::commands::{
    clusterdata, elect, failkeeper, init, promote, removekeeper, restart, setkeeperpriority, spec, status, switchover,
    update, why,
};
use crate::cli::{CommonArgs, VERSION};
use clap::{Parser, Subcommand};

/// Looks at and changes a stolon cluster
#[derive(Clone, Debug, Parser)]
#[command(name = "stolonctl", version = VERSION)]
pub struct CtlArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its doc comment would become the help text of the flags")]
    pub common: CommonArgs,
    /// For Kubernetes as a store, which is not served: without effect
    #[arg(long, value_name = "FILE", global = true, hide = true)]
    pub kubeconfig: Option<String>,
    /// As `--kubeconfig`
    #[arg(long, value_name = "NAME", global = true, hide = true)]
    pub kube_context: Option<String>,
    /// As `--kubeconfig`
    #[arg(long, value_name = "NAME", global = true, hide = true)]
    pub kube_namespace: Option<String>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
#[allow(missing_docs, reason = "each command's doc comment is its help text")]
pub enum Command {
    /// Initialise a cluster; one that exists begins anew, but a keeper that holds data of it keeps the data and
    /// joins only after its directory was moved away
    Init(init::Args),
    /// Change the cluster specification
    Update(update::Args),
    /// Print the cluster specification
    Spec(spec::Args),
    /// Print the cluster's state
    Status(status::Args),
    /// Say why things are as they are: who is master and why, why no other one is, what is being waited for
    Why(why::Args),
    /// Treat a keeper as failed once; a master is replaced if another keeper can take over
    Failkeeper(failkeeper::Args),
    /// Forget a keeper and its db; one that lives comes back with a full resync
    Removekeeper(removekeeper::Args),
    /// Set a keeper's priority in elections
    Setkeeperpriority(setkeeperpriority::Args),
    /// Move the master to a chosen keeper without losing a commit
    Switchover(switchover::Args),
    /// Restart PostgreSQL on standbys one after the other, then on the master
    Restart(restart::Args),
    /// Make a keeper master that may lack acknowledged commits, when nobody else can be
    Elect(elect::Args),
    /// Turn a standby cluster into a primary one
    Promote(promote::Args),
    /// Read or write the whole cluster data
    #[command(subcommand)]
    Clusterdata(clusterdata::Command),
    /// Register dbs as services in Consul: not served here
    #[command(hide = true, disable_help_flag = true)]
    Register {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        rest: Vec<String>,
    },
    /// Print the version
    Version,
}
