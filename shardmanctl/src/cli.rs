//! Flags and commands.

use clap::{Args, Parser, Subcommand};
use common::cli::{CommonArgs, OutputFormat};
use model::GoDuration;
use std::path::PathBuf;

/// Work with a Shardman cluster: set it up, look at it, connect to it, try it out.
///
/// The common options can be given in the environment as well: --cluster-name as SDM_CLUSTER_NAME,
/// --store-endpoints as SDM_STORE_ENDPOINTS, and so on.
#[derive(Debug, Parser)]
#[command(name = "shardmanctl", version)]
pub struct Cli {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its doc comment would become the help text of the flags")]
    pub common: CommonArgs,
    /// The command; without one, help is printed.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Work with specification files
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Create a cluster from a specification
    Init(InitArgs),
    /// Change which nodes belong to the cluster
    #[command(subcommand)]
    Nodes(NodesCommand),
    /// Show how every part of the cluster is
    Status(StatusArgs),
    /// Print one connection string for all entry points of the cluster
    Getconnstr(GetconnstrArgs),
    /// Run SQL on every replication group
    Forall(ForallArgs),
    /// Run a whole cluster on this machine, to try things on
    Playground(PlaygroundArgs),
}

/// `config …`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print a complete sample specification, to be edited and given to `init`
    Generate {
        /// Write to this file instead of stdout
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// `init`
#[derive(Args, Debug)]
pub struct InitArgs {
    /// File with the specification; - is stdin
    #[arg(short = 'f', long, value_name = "FILE")]
    pub spec_file: Option<PathBuf>,
    /// The specification itself, as JSON
    #[arg(value_name = "SPEC")]
    pub spec: Option<String>,
    /// Replace a cluster that has no nodes yet without asking
    #[arg(short, long)]
    pub yes: bool,
    /// Check the specification and show it with its defaults, but write nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `nodes …`
#[derive(Debug, Subcommand)]
pub enum NodesCommand {
    /// Add nodes; run again after an interruption, it continues
    Add(NodesAddArgs),
}

/// `nodes add`
#[derive(Args, Debug)]
pub struct NodesAddArgs {
    /// Names of the nodes, separated by commas; consecutive ones hold each other's replicas
    #[arg(short, long, value_name = "LIST", value_delimiter = ',', required = true)]
    pub nodes: Vec<String>,
    /// Do not move partitions to the new groups (nothing is moved yet)
    #[arg(long)]
    pub no_rebalance: bool,
    /// Replace stolon data that is left from another cluster of the same name
    #[arg(long)]
    pub force: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// How long to wait for the nodes' daemons
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    pub timeout: GoDuration,
}

/// `status`
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Form of the output
    #[arg(short, long, visible_short_alias = 'f', value_enum, value_name = "FORMAT", default_value = "text")]
    pub output: OutputFormat,
}

/// `getconnstr`
#[derive(Args, Debug)]
pub struct GetconnstrArgs {
    /// Name the masters themselves, not their proxies
    #[arg(long)]
    pub direct_masters: bool,
}

/// `forall`
#[derive(Args, Debug)]
pub struct ForallArgs {
    /// What to run
    #[arg(long, value_name = "TEXT")]
    pub sql: String,
    /// Commit on all groups or on none (not available yet)
    #[arg(long)]
    pub twophase: bool,
}

/// `playground`
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = false)]
pub struct PlaygroundArgs {
    /// Number of pretend nodes
    #[arg(long, value_name = "NUMBER", default_value_t = 4)]
    pub nodes: usize,
    /// Replicas of each replication group
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub repfactor: u32,
    /// Directory of the playground; it can be started again with its data. By default
    /// ~/.local/share/shardman/playground, for root /var/lib/shardman/playground
    #[arg(long, value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,
    /// Directory of PostgreSQL's programs; by default the newest installed version
    #[arg(long, value_name = "DIR")]
    pub pg_bin_path: Option<PathBuf>,
    /// Return once the cluster serves; end it with --stop
    #[arg(long)]
    pub detach: bool,
    /// Stop the playground; its data stays
    #[arg(long, conflicts_with = "detach")]
    pub stop: bool,
    /// What to do with a pretend node.
    #[command(subcommand)]
    pub command: Option<PlaygroundCommand>,
}

/// `playground …`
#[derive(Debug, Subcommand)]
pub enum PlaygroundCommand {
    /// Act on one pretend node as a whole
    #[command(subcommand)]
    Node(NodeCommand),
}

/// `playground node …`
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// SIGKILL to all its processes at once, as if the power failed
    Kill {
        /// node1, node2, …
        name: String,
    },
    /// Stop its daemons and PostgreSQL cleanly
    Stop {
        /// node1, node2, …
        name: String,
    },
    /// Start it again
    Start {
        /// node1, node2, …
        name: String,
    },
}
