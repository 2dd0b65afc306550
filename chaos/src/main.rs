//! The command line of the campaigns.

use anyhow::Context as _;
use chaos::calm::{self, ALL, Condition};
use chaos::cluster::Places;
use chaos::transcript::Transcript;
use chaos::{lost, sandbox, schedule};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Campaigns of failures against the stolon layer
#[derive(Debug, Parser)]
#[command(name = "chaos")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Conditions that are no reason for a failover
    Calm(Calm),
    /// Random failures under appending clients: nothing acknowledged may be lost
    Lost(Lost),
}

#[derive(Args, Clone, Debug)]
struct Common {
    /// Directory of the transcript and all logs
    #[arg(long, value_name = "DIR", default_value = "target/chaos")]
    out: PathBuf,
    /// Directory of our programs
    #[arg(long, value_name = "DIR", env = "SHARDMAN_BIN_DIR", default_value = "bin")]
    bin: PathBuf,
}

#[derive(Args, Clone, Debug)]
struct Calm {
    #[command(flatten)]
    common: Common,
    /// How long each condition lasts
    #[arg(long, value_name = "NUMBER", default_value_t = 15.0)]
    minutes: f64,
    /// All conditions at the same time
    #[arg(long)]
    parallel: bool,
    /// Only these conditions
    #[arg(value_enum, value_name = "CONDITION")]
    conditions: Vec<Condition>,
}

#[derive(Args, Clone, Debug)]
struct Lost {
    #[command(flatten)]
    common: Common,
    /// Decides which failures happen; random and printed if not given
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// How many failures
    #[arg(long, value_name = "NUMBER", default_value_t = 200)]
    failures: usize,
    /// Only print the failures of the seed
    #[arg(long)]
    list: bool,
    /// minSynchronousStandbys; 0 is what Shardman sets
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    min_sync: u16,
    /// maxSynchronousStandbys
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    max_sync: u16,
    /// Copy everything anew instead of pg_rewind
    #[arg(long)]
    no_rewind: bool,
}

impl Common {
    fn places(&self, part: &str) -> anyhow::Result<Places> {
        let bin = self.bin.canonicalize();
        let bin = bin.with_context(|| format!("there are no programs in {}; make build", self.bin.display()))?;
        std::fs::create_dir_all(&self.out).with_context(|| format!("make {}", self.out.display()))?;
        Ok(Places { bin, logs: self.out.canonicalize()?.join(part) })
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<bool> {
    if let Command::Lost(lost) = &command
        && lost.list
    {
        list(lost.seed.unwrap_or_default(), lost.failures);
        return Ok(true);
    }
    sandbox::enter()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            // Dropped half-way: the sandbox goes with this process, and everything in it.
            result = campaign(&command) => result,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted; everything that was started has ended")),
        }
    })
}

async fn campaign(command: &Command) -> anyhow::Result<bool> {
    match command {
        Command::Calm(calm) => {
            let transcript = Transcript::begin(&calm.common.out.join("calm"))?;
            let conditions = if calm.conditions.is_empty() { ALL.to_vec() } else { calm.conditions.clone() };
            let time = Duration::try_from_secs_f64(calm.minutes * 60.0).context("--minutes can't be used")?;
            let request = calm::Request { conditions, time, parallel: calm.parallel };
            calm::run(&request, &calm.common.places("calm")?, &transcript).await
        }
        Command::Lost(lost) => {
            let transcript = Transcript::begin(&lost.common.out.join("lost"))?;
            let request = lost::Request {
                // Any number will do where nobody asked for one; it is printed.
                seed: lost.seed.unwrap_or_else(|| chrono::Utc::now().timestamp_micros().unsigned_abs()),
                failures: lost.failures,
                sync: (lost.min_sync, lost.max_sync),
                rewind: !lost.no_rewind,
            };
            lost::run(&request, &lost.common.places("lost")?, &transcript).await
        }
    }
}

#[expect(clippy::print_stdout, reason = "the list is what was asked for")]
fn list(seed: u64, failures: usize) {
    for step in schedule::schedule(seed, failures) {
        println!("{step}");
    }
}
