//! The command line of `ladle`.

use crate::addnodes;
use crate::cluster::load_existing;
use crate::context::Context;
use crate::report::{Progress as _, Stderr};
use crate::{fixrepgroups, init, show};
use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use common::cli::{CommonArgs, OutputFormat, SDM_PREFIX, StoreArgs};
use common::exit::UsageError;
use common::runtime::Termination;
use model::spec::{CheckedSpec, DEFAULT_DATA_DIR, InitDefaults, InitSpec};
use model::{GoDuration, NodeName};
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use store::EtcdStore;

/// Environment prefixes, the more important one first.
const PREFIXES: [&str; 2] = ["HPLADLE", SDM_PREFIX];

/// Lays replication groups out over nodes
///
/// Each common option can be given in the environment as well: --cluster-name as SDM_CLUSTER_NAME, and so on.
#[derive(Debug, Parser)]
#[command(name = "ladle", version)]
pub struct Args {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its doc comment would become the help text of the flags")]
    pub common: CommonArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a cluster in the store, without nodes
    Init(InitArgs),
    /// Add nodes; consecutive nodes form clovers of Repfactor + 1 nodes
    Addnodes(AddArgs),
    /// Print which daemons run on which node
    Layout {
        /// Form of the output
        #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
        output: OutputFormat,
    },
    /// Finish what an interrupted command has left undone
    Fixrepgroups {
        /// How long the groups' daemons may take to start, e.g. 10m
        #[arg(long, value_name = "DURATION", default_value = "10m")]
        timeout: GoDuration,
    },
}

#[derive(Debug, clap::Args)]
struct InitArgs {
    /// The specification itself
    #[arg(value_name = "SPEC")]
    spec: Option<String>,
    /// File with the specification, - for stdin
    #[arg(short = 'f', long, value_name = "FILE")]
    spec_file: Option<PathBuf>,
    /// Overwrite the specification of a cluster without nodes
    #[arg(short, long)]
    yes: bool,
    /// Print what would be written
    #[arg(long)]
    dry_run: bool,
    /// Use the default DataDir if the specification has none
    #[arg(long)]
    default_data_dir: bool,
}

#[derive(Debug, clap::Args)]
struct AddArgs {
    /// Names of the new nodes, separated by commas
    #[arg(short, long, value_name = "HOST[,HOST...]", required = true)]
    nodes: String,
    /// Print the plan and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Form of the printed plan
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
    /// Overwrite stolon data that lies under the name of a new group
    #[arg(long)]
    force: bool,
    /// How long the groups' daemons may take to start, e.g. 10m
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    timeout: GoDuration,
}

/// Reads the command line; `None` when help was printed because there is nothing to do.
pub fn parse() -> Option<Args> {
    let args: Args = common::cli::parse(&PREFIXES);
    if args.command.is_none() {
        // A closed stdout is no reason to fail.
        let _ = Args::command().print_help();
        return None;
    }
    Some(args)
}

/// Runs the command.
///
/// # Errors
/// The command's own.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut termination = Termination::listen()?;
    // Neither branch is run again after the other has won: dropping the command ends its sessions and programs and
    // removes its password file; what it has written is finished by the next run.
    tokio::select! {
        result = run_command(args) => result,
        () = termination.wait() => Err(anyhow::anyhow!("interrupted; run the same command again to finish it")),
    }
}

async fn run_command(args: Args) -> anyhow::Result<()> {
    let Args { common, command } = args;
    let progress = Stderr::default();
    match command {
        None => Ok(()),
        Some(Command::Init(init_args)) => run_init(&common, &init_args, &progress).await,
        Some(Command::Addnodes(add)) => run_addnodes(&common, &add, &progress).await,
        Some(Command::Layout { output }) => {
            let current = load_existing(&open(&common, "ladle layout").await?).await?.current();
            print_as(output, &current.layouts, || show::layout(&current))
        }
        Some(Command::Fixrepgroups { timeout }) => {
            let ctx = open(&common, "ladle fixrepgroups").await?;
            let options = addnodes::Options { timeout: timeout.to_std(), ..Default::default() };
            Ok(fixrepgroups::run(&ctx, &options, &progress).await?)
        }
    }
}

async fn open(common: &CommonArgs, command: &str) -> anyhow::Result<Context> {
    let store = EtcdStore::connect(&common.store.options()).await?;
    Ok(Context::new(Arc::new(store), &common.cluster_name, command)?)
}

async fn run_init(common: &CommonArgs, args: &InitArgs, progress: &Stderr) -> anyhow::Result<()> {
    let spec = read_spec(&common.store, args)?;
    if args.dry_run {
        spec.warnings.iter().for_each(|warning| progress.warn(warning));
        return print(&pretty(&init::shown(&spec.spec))?);
    }
    let ctx = open(common, "ladle init").await?;
    init::run(&ctx, &spec, init::Options { yes: args.yes }, progress).await?;
    progress.info("Add nodes to it now: ladle addnodes --nodes HOST,HOST...");
    Ok(())
}

fn read_spec(store: &StoreArgs, args: &InitArgs) -> anyhow::Result<CheckedSpec> {
    let text = match (&args.spec_file, &args.spec) {
        (Some(_), Some(_)) => {
            let text = "the specification is given as a file and as an argument; give one of them";
            return Err(UsageError(text.into()).into());
        }
        (Some(file), None) if file.as_os_str() == "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("read the specification from stdin")?;
            text
        }
        (Some(file), None) => {
            std::fs::read_to_string(file).with_context(|| format!("read the specification from {}", file.display()))?
        }
        (None, Some(text)) => text.clone(),
        (None, None) => "{}".to_owned(),
    };
    let data_dir = if args.default_data_dir { DEFAULT_DATA_DIR } else { "" };
    Ok(InitSpec::parse(&text, &init_defaults(store, data_dir)?)?)
}

/// What `init` fills in: the command's own store options, and the user that runs it.
///
/// # Errors
/// The user has no name.
pub fn init_defaults(store: &StoreArgs, data_dir: &str) -> anyhow::Result<InitDefaults> {
    Ok(InitDefaults {
        store: store.options().place(),
        os_user: common::privileges::current_user()?.name,
        data_dir: data_dir.to_owned(),
    })
}

async fn run_addnodes(common: &CommonArgs, args: &AddArgs, progress: &Stderr) -> anyhow::Result<()> {
    let ctx = open(common, "ladle addnodes").await?;
    let nodes = node_list(&args.nodes);
    if args.dry_run {
        return match addnodes::dry_run(&ctx, &nodes).await? {
            Some(plan) => print_as(args.output, &plan, || plan.to_string()),
            None => print("the layouts are written, only groups have to be added\n"),
        };
    }
    let options = addnodes::Options { force: args.force, timeout: args.timeout.to_std() };
    Ok(addnodes::run(&ctx, &nodes, &options, progress).await?)
}

/// Splits at commas; blanks around a name are no part of it. An empty name stays, to be refused by the planner.
pub fn node_list(text: &str) -> Vec<NodeName> {
    text.split(',').map(|name| NodeName::from(name.trim())).collect()
}

fn print_as<T: serde::Serialize>(format: OutputFormat, value: &T, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    match format {
        OutputFormat::Text => print(&text()),
        OutputFormat::Json => print(&pretty(value)?),
    }
}

fn pretty<T: serde::Serialize>(value: &T) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().lock().write_all(text.as_bytes()).context("write to stdout")
}
