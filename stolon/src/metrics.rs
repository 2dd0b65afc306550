//! What keeper, sentinel and proxy tell about themselves. Those that Go's programs have keep their names.

use crate::cli::CommonArgs;
use crate::keeper::probe::Probed;
use crate::proxy::status::{Sample, Status};
use common::metrics::{Listener, Metric, NotReady, Shown};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use store::Moment;
use tokio::sync::watch;

/// In every program.
pub mod all {
    common::metrics! {
        CLUSTER_IDENTIFIER: Gauge "stolon_cluster_identifier" ["cluster_name", "component"] "Always 1; says which cluster and program this is";
        STORE_REQUESTS: Counter "stolon_store_requests_total" [] "Requests to etcd";
        STORE_FAILED: Counter "stolon_store_failed_requests_total" [] "Requests that no member of etcd answered well";
        STORE_MOVES: Counter "stolon_store_member_changes_total" [] "How often another member of etcd was used because one was silent or gone";
        STORE_SILENT: Gauge "stolon_store_silent_seconds" [] "Time since etcd's last answer";
    }
}

/// In the keeper.
pub mod keeper {
    common::metrics! {
        LAST_VALID_UPDATE: Gauge "stolon_keeper_clusterdata_last_valid_update_seconds" [] "Unix time when valid cluster data was last seen";
        LAST_SYNC: Gauge "stolon_keeper_last_sync_success_seconds" [] "Unix time when PostgreSQL was last found or made as the cluster data wants it";
        SHUTDOWN: Gauge "stolon_keeper_shutdown_seconds" [] "Unix time when the keeper began to stop";
        TARGET_ROLE: Gauge "stolon_keeper_target_role" ["role"] "1 for the role that the cluster data wants: undefined, master or standby";
        LOCAL_ROLE: Gauge "stolon_keeper_local_role" ["role"] "1 for the role that the data directory has: undefined, master or standby";
        NEEDS_RELOAD: Gauge "stolon_keeper_needs_reload" [] "1 while a reload of PostgreSQL is owed";
        NEEDS_RESTART: Gauge "stolon_keeper_needs_restart" [] "1 while changed parameters wait for a restart of PostgreSQL";
        SLEEP_INTERVAL: Gauge "stolon_keeper_sleep_interval" [] "sleepInterval of the specification, in seconds";
        POSTGRES_HEALTHY: Gauge "stolon_keeper_postgres_healthy" [] "1 while PostgreSQL answers the keeper's probe";
    }
}

/// In the sentinel.
pub mod sentinel {
    common::metrics! {
        LAST_CHECK: Gauge "stolon_sentinel_last_cluster_check_success_seconds" [] "Unix time when this sentinel last knew the state of the store";
        IS_LEADER: Gauge "stolon_sentinel_is_leader" [] "1 while this sentinel decides";
        LEADER_COUNT: Counter "stolon_sentinel_leader_count" [] "How often this sentinel became leader";
        MASTER_CHANGES: Counter "stolon_sentinel_master_changes_total" [] "How often this sentinel chose another master";
    }
}

/// What the keeper last said about itself.
pub static KEEPER_READY: common::metrics::Readiness = common::metrics::Readiness::new();
/// What the keeper's probe finds, which is newer than the keeper's last pass.
static HEALTH: OnceLock<watch::Receiver<Probed>> = OnceLock::new();
/// What the sentinel last said about itself.
pub static SENTINEL_READY: common::metrics::Readiness = common::metrics::Readiness::new();
/// What the proxy of this process says about itself at any moment.
static PROXY: OnceLock<Arc<Status>> = OnceLock::new();

/// Names of roles, as label values.
pub const ROLES: [&str; 3] = ["undefined", "master", "standby"];

/// A sentinel keeps a lease, so that etcd answers it about each second.
const SILENCE: Duration = Duration::from_secs(10);

/// Which program this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// stolon-keeper.
    Keeper,
    /// stolon-sentinel.
    Sentinel,
    /// stolon-proxy.
    Proxy,
}

impl Program {
    fn component(self) -> &'static str {
        match self {
            Program::Keeper => "keeper",
            Program::Sentinel => "sentinel",
            Program::Proxy => "proxy",
        }
    }

    fn shown(self) -> Shown {
        static KEEPER: &[&[&Metric]] = &[all::LIST, keeper::LIST];
        static SENTINEL: &[&[&Metric]] = &[all::LIST, sentinel::LIST];
        static ALL: &[&[&Metric]] = &[all::LIST];
        match self {
            Program::Keeper => {
                Shown { lists: KEEPER, more: String::new, refresh: refresh_keeper, ready: keeper_is_ready }
            }
            Program::Sentinel => {
                Shown { lists: SENTINEL, more: String::new, refresh: refresh_sentinel, ready: sentinel_is_ready }
            }
            Program::Proxy => Shown { lists: ALL, more: proxy_samples, refresh, ready: proxy_is_ready },
        }
    }
}

/// Serves metrics and health in the background, if the operator wants it.
///
/// # Errors
/// The address can't be listened on.
pub async fn start(args: &CommonArgs, program: Program) -> anyhow::Result<()> {
    all::CLUSTER_IDENTIFIER.set_for(&[&args.cluster_name, program.component()], 1.0);
    if let Some(listener) = Listener::open(args.metrics_listen_address.as_deref()).await? {
        listener.serve(program.shown());
    }
    Ok(())
}

/// As [`start`], for a proxy.
///
/// # Errors
/// The address can't be listened on.
pub async fn start_proxy(args: &CommonArgs, status: Arc<Status>) -> anyhow::Result<()> {
    // A second proxy in one process, as in a test, is not shown.
    let _ = PROXY.set(status);
    start(args, Program::Proxy).await
}

/// Shows what the keeper's probe finds.
pub fn show_health(probed: watch::Receiver<Probed>) {
    // A second keeper in one process, as in a test, is not shown.
    let _ = HEALTH.set(probed);
}

fn postgres_is_healthy() -> bool {
    HEALTH.get().is_some_and(|probed| probed.borrow().healthy)
}

fn refresh_keeper() {
    refresh();
    keeper::POSTGRES_HEALTHY.set(f64::from(u8::from(postgres_is_healthy())));
}

fn keeper_is_ready() -> Result<(), NotReady> {
    KEEPER_READY.get()?;
    match postgres_is_healthy() {
        true => Ok(()),
        false => Err(NotReady::new("unhealthy", "PostgreSQL does not answer as it should")),
    }
}

fn proxy_is_ready() -> Result<(), NotReady> {
    let starting = || NotReady::new("starting", "nothing is known yet");
    let (ready, code, text) = PROXY.get().ok_or_else(starting)?.readiness(Moment::now());
    if ready { Ok(()) } else { Err(NotReady::new(code, text)) }
}

/// In Prometheus' text format, with the samples of a metric together, as it wants them.
fn proxy_samples() -> String {
    let Some(status) = PROXY.get() else { return String::new() };
    let mut samples = status.samples(Moment::now());
    samples.sort_by_key(|sample| sample.name);
    let mut text = String::new();
    let mut last = "";
    for Sample { name, help, is_counter, labels, value } in &samples {
        if *name != last {
            let kind = if *is_counter { "counter" } else { "gauge" };
            text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
            last = name;
        }
        text.push_str(&format!("{name}{} {value}\n", common::metrics::braces(labels)));
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "no program makes so many requests")]
fn refresh() {
    all::STORE_REQUESTS.set(store::stats::requests() as f64);
    all::STORE_FAILED.set(store::stats::failed() as f64);
    all::STORE_MOVES.set(store::stats::moves() as f64);
    if let Some(silence) = store::stats::silent_for() {
        all::STORE_SILENT.set(silence.as_secs_f64());
    }
}

/// A sentinel that sees no change has nothing to do: it works as long as it would see one.
fn refresh_sentinel() {
    refresh();
    if sentinel_is_ready().is_ok() {
        sentinel::LAST_CHECK.set_now();
    }
}

fn sentinel_is_ready() -> Result<(), NotReady> {
    SENTINEL_READY.get()?;
    match store::stats::silent_for() {
        Some(silence) if silence < SILENCE => Ok(()),
        _ => Err(NotReady::new("store_silent", format!("etcd gave no answer for {} s", SILENCE.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `UPDATE_DOCS=1 cargo test -p stolon --lib metrics` writes the page anew.
    #[test]
    fn the_documentation_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let mut text = include_str!("metrics.md").to_owned();
        for (title, list) in
            [("Every program", all::LIST), ("stolon-keeper", keeper::LIST), ("stolon-sentinel", sentinel::LIST)]
        {
            text.push_str(&format!("\n## {title}\n\n{}", common::metrics::document(list)));
        }
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == text, "docs/metrics.md is stale; run: UPDATE_DOCS=1 cargo test -p stolon --lib metrics");
    }

    #[test]
    fn the_page_of_the_proxy_names_everything() {
        let page = include_str!("../../docs/proxy.md");
        for Sample { name, .. } in Status::default().samples(Moment::now()) {
            assert!(page.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn names_are_those_of_prometheus() {
        for metric in [all::LIST, keeper::LIST, sentinel::LIST].concat() {
            assert!(metric.name.starts_with("stolon_"), "{}", metric.name);
            assert!(metric.name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{}", metric.name);
        }
    }
}
