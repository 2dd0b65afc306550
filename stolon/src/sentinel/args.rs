//! The sentinel's command line.

use crate::cli::{CommonArgs, VERSION};
use anyhow::Context as _;
use clap::Parser;
use model::stolon::{StolonSpec, parse_user_spec};
use std::path::PathBuf;

/// Decides which keeper of a stolon cluster is master
#[derive(Clone, Debug, Parser)]
#[command(name = "stolon-sentinel", version = VERSION)]
pub struct SentinelArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its doc comment would become the help text of the flags")]
    pub common: CommonArgs,
    /// Cluster specification in JSON, used if the store has no cluster data
    #[arg(long, value_name = "FILE")]
    pub initial_cluster_spec: Option<PathBuf>,
}

impl SentinelArgs {
    /// The specification of a new cluster, if one was given.
    ///
    /// # Errors
    /// The file can't be read, or holds an invalid specification.
    pub fn initial_spec(&self) -> anyhow::Result<Option<StolonSpec>> {
        let Some(path) = &self.initial_cluster_spec else { return Ok(None) };
        let read = || -> anyhow::Result<StolonSpec> {
            let spec = parse_user_spec(serde_json::from_slice(&std::fs::read(path)?)?)?;
            spec.effective()?;
            Ok(spec)
        };
        read().map(Some).with_context(|| format!("initial cluster specification {}", path.display()))
    }
}
