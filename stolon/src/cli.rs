//! Flags that all four programs have, with stolon's names and rules.

use anyhow::bail;
use clap::{ArgAction, Args};
use common::cli::{COMMON_HEADING, EtcdArgs, LogArgs, LogLevel, parse_bool, parse_time_limit};
use common::exit::UsageError;
use model::stolon::keys::{DEFAULT_PREFIX, Keys};
use std::sync::Arc;
use std::time::Duration;
use store::{EtcdStore, SharedStore};

/// What `--version` says after the program's name, in the words of Go's programs.
pub const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"));

/// Environment prefix of the keeper's flags.
pub const KEEPER_PREFIX: &str = "STKEEPER";
/// Environment prefix of the sentinel's flags.
pub const SENTINEL_PREFIX: &str = "STSENTINEL";
/// Environment prefix of the proxy's flags.
pub const PROXY_PREFIX: &str = "STPROXY";
/// Environment prefix of stolonctl's global flags.
pub const CTL_PREFIX: &str = "STOLONCTL";

/// Flags that all programs have.
#[derive(Args, Clone, Debug)]
#[allow(missing_docs, reason = "the doc comments are help texts; that of a flattened one would show up in them")]
pub struct CommonArgs {
    /// Name of the stolon cluster (required)
    #[arg(long, value_name = "NAME", global = true, default_value = "", hide_default_value = true,
          help_heading = COMMON_HEADING, display_order = 900)]
    pub cluster_name: String,
    /// Kind of store (required): etcdv3, no other is served
    #[arg(long, value_name = "KIND", global = true, default_value = "", hide_default_value = true,
          help_heading = COMMON_HEADING, display_order = 901)]
    pub store_backend: String,
    /// Prefix of all keys in the store
    #[arg(long, value_name = "PREFIX", default_value = DEFAULT_PREFIX, global = true,
          help_heading = COMMON_HEADING, display_order = 902)]
    pub store_prefix: String,
    #[command(flatten)]
    pub etcd: EtcdArgs,
    /// Limit of each request to the store: seconds, or a duration like 500ms
    #[arg(long, alias = "request-timeout", value_name = "TIME", default_value = "5s", global = true,
          value_parser = parse_time_limit, allow_negative_numbers = true,
          help_heading = COMMON_HEADING, display_order = 920)]
    pub store_timeout: Duration,
    #[command(flatten)]
    pub log: LogArgs,
    /// Old name of --log-level debug
    #[arg(long, value_name = "BOOL", global = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = false, action = ArgAction::Set,
          value_parser = parse_bool, hide = true)]
    pub debug: bool,
    /// For Kubernetes as a store, which is not served: without effect
    #[arg(long, value_name = "KIND", global = true, hide = true)]
    pub kube_resource_kind: Option<String>,
    /// Address where a daemon serves metrics and health, like 127.0.0.1:9100; without it nothing is served
    #[arg(long, value_name = "ADDRESS", global = true, help_heading = COMMON_HEADING, display_order = 940)]
    pub metrics_listen_address: Option<String>,
}

impl CommonArgs {
    /// Starts logging as the flags say.
    pub fn start_logging(&self) {
        let mut log = self.log.clone();
        if self.debug {
            log.log_level = LogLevel::Debug;
        }
        common::logging::init(&log);
    }

    /// The keys of the cluster.
    ///
    /// # Errors
    /// The cluster's name or the store's kind is missing, or the kind is not served.
    pub fn keys(&self) -> anyhow::Result<Keys> {
        if self.cluster_name.is_empty() {
            bail!(UsageError("--cluster-name is missing; name the stolon cluster".into()));
        }
        match self.store_backend.as_str() {
            "etcdv3" => {}
            "" => bail!(UsageError("--store-backend is missing; write --store-backend etcdv3".into())),
            other => bail!(UsageError(format!("store backend \"{other}\" is not served; only etcdv3 is"))),
        }
        Ok(Keys::new(&self.store_prefix, &self.cluster_name.as_str().into()))
    }

    /// Opens the store; etcd need not run yet.
    ///
    /// # Errors
    /// Unusable options.
    pub async fn open_store(&self) -> anyhow::Result<SharedStore> {
        let options = self.etcd.options(self.store_timeout);
        Ok(Arc::new(EtcdStore::connect(&options).await?))
    }
}
