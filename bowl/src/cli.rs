//! The command line.

use clap::{Parser, ValueEnum};
use common::cli::CommonArgs;
use std::path::PathBuf;

/// Environment prefixes of the flags, the original's first.
pub const PREFIXES: [&str; 2] = ["HPBOWL", common::cli::SDM_PREFIX];

/// Node agent of Shardman: runs the daemons that the cluster's layout gives to this node
///
/// Each option can be given in the environment as well: --cluster-name as SDM_CLUSTER_NAME, --node-name as
/// SDM_NODE_NAME, and so on.
#[derive(Parser, Clone, Debug)]
#[command(name = "bowl", version)]
#[allow(missing_docs, reason = "the doc comments are help texts; flattened ones would show up in them")]
pub struct BowlArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// This node's name, exactly as given to `ladle addnodes` [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// What keepers listen on and proxies publish; other nodes must reach it [default: the node's name]
    #[arg(long, value_name = "ADDRESS")]
    pub advertise_address: Option<String>,
    /// What proxies listen on
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0")]
    pub listen_address: String,
    /// Who runs the daemons; systemd is not available yet, and process is the default until then
    #[arg(long, value_enum, value_name = "KIND")]
    pub service_manager: Option<ServiceManagerKind>,
    /// Talk to the system's systemd, not the user's
    #[arg(long)]
    pub system_bus: bool,
    /// When started by root: the user that owns the data and runs the daemons [default: postgres]
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Where the daemons' programs are [default: the specification's StolonBinPath, else beside bowl]
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Keepers' data, environment files and logs [default: <LadleSpec.DataDir>/<cluster>]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// On SIGTERM leave the daemons running
    #[arg(long)]
    pub leave_running: bool,
}

/// Who runs the daemons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ServiceManagerKind {
    /// Child processes of bowl.
    Process,
    /// systemd units (not available yet).
    Systemd,
}
