//! From arguments to commands.

use crate::cli::{Cli, Command, ConfigCommand, InitArgs, NodesCommand, PlaygroundArgs, PlaygroundCommand};
use crate::commands::{config, forall, getconnstr, init, nodes, status};
use crate::playground;
use anyhow::Context as _;
use clap::CommandFactory as _;
use common::cli::CommonArgs;
use common::privileges;
use ladle::context::Context;
use model::spec::InitSpec;
use std::io::Write as _;
use std::sync::Arc;
use store::EtcdStore;

/// Runs a command.
///
/// # Errors
/// The command's own.
pub async fn run(cli: Cli) -> anyhow::Result<()> {
    let Cli { common, command } = cli;
    let mut out = std::io::stdout();
    let progress = ladle::report::Stderr::default();
    match command {
        None => Cli::command().print_help().context("print help"),
        Some(Command::Config(ConfigCommand::Generate { file: Some(path) })) => config::write(&path),
        Some(Command::Config(ConfigCommand::Generate { file: None })) => Ok(writeln!(out, "{:#}", config::sample())?),
        Some(Command::Init(args)) => init_command(&common, &args, &mut out).await,
        Some(Command::Nodes(NodesCommand::Add(args))) => {
            nodes::add(&open(&common, "shardmanctl nodes add").await?, &args, &progress, &mut out).await
        }
        Some(Command::Status(args)) => {
            let ctx = open(&common, "shardmanctl status").await?;
            status::run(ctx.store, &ctx.keys, args.output, &mut out).await
        }
        Some(Command::Getconnstr(args)) => {
            let ctx = open(&common, "shardmanctl getconnstr").await?;
            getconnstr::run(ctx.store, &ctx.keys, args.direct_masters, &mut out).await
        }
        Some(Command::Forall(args)) => {
            let ctx = open(&common, "shardmanctl forall").await?;
            forall::run(ctx.store, &ctx.keys, &args.sql, args.twophase, &mut out).await
        }
        Some(Command::Playground(args)) => playground_command(&common, &args).await,
    }
}

async fn open(common: &CommonArgs, command: &str) -> anyhow::Result<Context> {
    let store = EtcdStore::connect(&common.store.options()).await?;
    Ok(Context::new(Arc::new(store), &common.cluster_name, command)?)
}

async fn init_command(common: &CommonArgs, args: &InitArgs, out: &mut std::io::Stdout) -> anyhow::Result<()> {
    let text = init::text(args.spec_file.as_deref(), args.spec.as_deref())?;
    let defaults = init::defaults(&common.store.options(), privileges::current_user()?.name);
    if args.dry_run {
        let mut shown = serde_json::to_value(InitSpec::parse(&text, &defaults)?.spec)?;
        for secret in ["PgSuPassword", "PgReplPassword"] {
            shown["ClusterSpec"][secret] = "***".into();
        }
        writeln!(out, "{shown:#}")?;
        return Ok(());
    }
    let ctx = open(common, "shardmanctl init").await?;
    let options = ladle::init::Options { yes: args.yes };
    init::create(&ctx, &text, &defaults, options, &ladle::report::Stderr::default()).await?;
    tracing::info!("add nodes to it with shardmanctl nodes add");
    Ok(())
}

async fn playground_command(common: &CommonArgs, args: &PlaygroundArgs) -> anyhow::Result<()> {
    match &args.command {
        Some(PlaygroundCommand::Node(command)) => playground::node::run(command, args.data_dir.as_deref()).await,
        None if args.stop => playground::run::stop(args).await,
        None => playground::run::start(args, &common.cluster_name.as_str().into()).await,
    }
}
