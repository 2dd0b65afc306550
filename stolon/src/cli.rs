//! Flags that all four programs have, with stolon's names and rules.

use anyhow::bail;
use clap::Args;
use common::cli::{COMMON_HEADING, LogArgs, LogFormat, LogLevel, parse_endpoints, parse_time_limit};
use common::exit::UsageError;
use model::stolon::keys::{DEFAULT_PREFIX, Keys};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use store::{EtcdStore, SharedStore, StoreOptions};

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
pub struct CommonArgs {
    /// Name of the stolon cluster
    #[arg(long, value_name = "NAME", global = true, default_value = "",
          help_heading = COMMON_HEADING, display_order = 900)]
    pub cluster_name: String,
    /// Kind of store: etcdv3
    #[arg(long, value_name = "KIND", global = true, default_value = "",
          help_heading = COMMON_HEADING, display_order = 901)]
    pub store_backend: String,
    /// etcd's URLs, separated by commas
    #[arg(long, value_name = "LIST", default_value = store::etcd::DEFAULT_ENDPOINTS, global = true,
          value_parser = parse_endpoints,
          help_heading = COMMON_HEADING, display_order = 902)]
    pub store_endpoints: String,
    /// Limit of each request to the store: seconds, or a duration like 500ms
    #[arg(long, alias = "request-timeout", value_name = "TIME", default_value = "5s", global = true,
          value_parser = parse_time_limit, allow_negative_numbers = true,
          help_heading = COMMON_HEADING, display_order = 903)]
    pub store_timeout: Duration,
    /// Prefix of all keys in the store
    #[arg(long, value_name = "PREFIX", default_value = DEFAULT_PREFIX, global = true,
          help_heading = COMMON_HEADING, display_order = 904)]
    pub store_prefix: String,
    /// Client certificate for https endpoints
    #[arg(long, value_name = "FILE", global = true,
          help_heading = COMMON_HEADING, display_order = 905)]
    pub store_cert_file: Option<PathBuf>,
    /// Private key of the client certificate
    #[arg(long, value_name = "FILE", global = true,
          help_heading = COMMON_HEADING, display_order = 906)]
    pub store_key: Option<PathBuf>,
    /// CA bundle for https endpoints
    #[arg(long, value_name = "FILE", global = true,
          help_heading = COMMON_HEADING, display_order = 907)]
    pub store_ca_file: Option<PathBuf>,
    /// Least important level that is logged: debug, info, warn or error
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "info", global = true,
          help_heading = COMMON_HEADING, display_order = 908)]
    pub log_level: LogLevel,
    /// Form of log lines on stderr
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text", global = true,
          help_heading = COMMON_HEADING, display_order = 909)]
    pub log_format: LogFormat,
}

impl CommonArgs {
    /// Starts logging as the flags say.
    pub fn start_logging(&self) {
        common::logging::init(&LogArgs { log_level: self.log_level, log_format: self.log_format });
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
        let options = StoreOptions {
            endpoints: self.store_endpoints.clone(),
            ca_file: self.store_ca_file.clone(),
            cert_file: self.store_cert_file.clone(),
            key_file: self.store_key.clone(),
            timeout: self.store_timeout,
        };
        Ok(Arc::new(EtcdStore::connect(&options).await?))
    }
}
