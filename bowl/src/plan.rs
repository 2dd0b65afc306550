//! From documents to wanted daemons. Pure.

use crate::digest::digest;
use crate::envfile::{EnvError, EnvFile, Environment};
use crate::units::{DaemonName, Kind, UnitName};
use common::cli::{LogFormat, LogLevel};
use model::clusterspec::{AuthMethod, Password};
use model::layout::{KeeperSlot, NodeLayout, ProxySlot, SpecDoc};
use model::spec::StoreConnInfo;
use model::{ClusterName, NodeName, RepGroupName, ids};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

/// What the plan needs to know of the node beside the documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The cluster.
    pub cluster: ClusterName,
    /// The node.
    pub node: NodeName,
    /// What keepers listen on and proxies publish.
    pub advertise_address: String,
    /// What proxies listen on.
    pub listen_address: String,
    /// Directory of keepers' data and of environment files.
    pub data_dir: PathBuf,
    /// Directory of all daemons' programs, when the operator named one.
    pub bin_dir: Option<PathBuf>,
    /// Directory of bowl's own program.
    pub own_dir: PathBuf,
    /// A directory of our own below `/run`, if there is one, for sockets whose path would be too long elsewhere.
    pub runtime_dir: Option<PathBuf>,
    /// Bowl's own level, which the daemons share.
    pub log_level: LogLevel,
    /// Bowl's own form of log lines.
    pub log_format: LogFormat,
}

/// Text of a file that may hold a secret; never shown by `{:?}`.
#[derive(Clone, PartialEq, Eq)]
pub struct FileText(pub String);

impl fmt::Debug for FileText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileText({} bytes)", self.0.len())
    }
}

/// A daemon that is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// Its unit.
    pub unit: UnitName,
    /// What it is; decides how patiently it is stopped.
    pub kind: Kind,
    /// Its program, absolute.
    pub program: PathBuf,
    /// Its environment.
    pub environment: Environment,
    /// Name of its environment file in the data directory.
    pub env_file: String,
    /// Digest of what it must be restarted for.
    pub config: String,
}

/// Everything that is to be on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// In the order of starting.
    pub daemons: Vec<Daemon>,
    /// Secrets' files in the data directory by name, which keepers need.
    pub secrets: BTreeMap<String, FileText>,
    /// Environment files by name.
    pub env_files: BTreeMap<String, FileText>,
}

/// Documents that can't be obeyed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// The layout or the specification breaks a rule.
    #[error("{0}; run `ladle` of the same version to write it anew")]
    Document(String),
    /// A value can't be passed on.
    #[error(transparent)]
    Environment(#[from] EnvError),
}

/// A group's proxies lead to the same master, so a client gains nothing from another one while there is none: it waits for
/// as long as a failover takes, and one that tries once more after an error sees no second error.
const HOLD: &str = "5s";
const SU_PASSWORD_FILE: &str = "pg-su.password";
const REPL_PASSWORD_FILE: &str = "pg-repl.password";

/// The daemons that this node's layout asks for.
///
/// # Errors
/// The documents break a rule. Names become paths and unit names here, so that nothing is taken on trust.
pub fn plan_wanted(layout: &NodeLayout, spec: &SpecDoc, facts: &Facts) -> Result<Wanted, PlanError> {
    check_layout(layout)?;
    let planner = Planner { spec, facts };
    let mut daemons = Vec::new();
    for slot in &layout.keepers {
        daemons.push(planner.keeper(slot));
        daemons.push(planner.sentinel(&slot.id.rep_group));
    }
    daemons.extend(layout.proxies.iter().map(|slot| planner.proxy(slot)));
    if layout.monitor {
        daemons.push(planner.monitor());
    }
    let mut env_files = BTreeMap::new();
    for daemon in &daemons {
        let file = EnvFile { config: daemon.config.clone(), variables: daemon.environment.clone() };
        env_files.insert(daemon.env_file.clone(), FileText(file.render()?));
    }
    let secrets = planner.secrets().into_iter().map(|(_, name, secret)| (name.to_owned(), FileText(secret))).collect();
    Ok(Wanted { daemons, secrets, env_files })
}

fn check_layout(layout: &NodeLayout) -> Result<(), PlanError> {
    let fail = |text: String| Err(PlanError::Document(text));
    let (mut ports, mut groups, mut proxies) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for slot in &layout.keepers {
        check_slot(&slot.id.rep_group, slot.pg_port, &mut ports)?;
        if !groups.insert(&slot.id.rep_group) {
            return fail(format!("the layout has two keepers of group \"{}\" on one node", slot.id.rep_group));
        }
    }
    for slot in &layout.proxies {
        check_slot(&slot.rep_group, slot.port, &mut ports)?;
        if !proxies.insert(&slot.rep_group) {
            return fail(format!("the layout has two proxies of group \"{}\" on one node", slot.rep_group));
        }
    }
    Ok(())
}

fn check_slot(group: &RepGroupName, port: u16, ports: &mut BTreeSet<u16>) -> Result<(), PlanError> {
    if !ids::is_plain_name(group.as_str()) {
        return Err(PlanError::Document(format!("the layout has a group with the unusable name {:?}", group.as_str())));
    }
    if port == 0 || !ports.insert(port) {
        return Err(PlanError::Document(format!("the layout gives group \"{group}\" port {port}, which is not free")));
    }
    Ok(())
}

/// Only values that are there are passed on: an empty variable is not the same as none for every program.
struct Variables {
    prefix: &'static str,
    map: Environment,
}

impl Variables {
    fn new(prefix: &'static str) -> Self {
        Variables { prefix, map: Environment::new() }
    }
    fn set(&mut self, name: &str, value: impl ToString) -> &mut Self {
        let value = value.to_string();
        if !value.is_empty() {
            self.map.insert(format!("{}_{name}", self.prefix), value);
        }
        self
    }
}

struct Planner<'a> {
    spec: &'a SpecDoc,
    facts: &'a Facts,
}

impl Planner<'_> {
    fn keeper(&self, slot: &KeeperSlot) -> Daemon {
        let name = DaemonName::keeper(&self.facts.cluster, &slot.id);
        let directory = self.facts.data_dir.join(name.stem());
        let mut env = self.stolon("STKEEPER", &slot.id.rep_group);
        env.set("PG_BIN_PATH", &self.spec.ladle_spec.pg_bin_path)
            .set("UID", slot.id.stolon_uid())
            .set("PRIORITY", u8::from(slot.preferred))
            .set("PG_LISTEN_ADDRESS", &self.facts.advertise_address)
            .set("PG_PORT", slot.pg_port)
            .set("PG_UNIX_SOCKET_DIR", socket_dir(self.facts, &directory, slot.pg_port).display())
            .set("DATA_DIR", directory.display());
        let cluster = &self.spec.cluster_spec;
        env.set("PG_SU_USERNAME", &cluster.pg_su_username)
            .set("PG_SU_AUTH_METHOD", cluster.pg_su_auth_method)
            .set("PG_REPL_USERNAME", &cluster.pg_repl_username)
            .set("PG_REPL_AUTH_METHOD", cluster.pg_repl_auth_method);
        for (variable, file, _) in self.secrets() {
            env.set(variable, self.facts.data_dir.join(file).display());
        }
        self.daemon(Kind::Keeper, name, env)
    }

    fn sentinel(&self, group: &RepGroupName) -> Daemon {
        let name = DaemonName::sentinel(&self.facts.cluster, group);
        self.daemon(Kind::Sentinel, name, self.stolon("STSENTINEL", group))
    }

    fn proxy(&self, slot: &ProxySlot) -> Daemon {
        let name = DaemonName::proxy(&self.facts.cluster, &slot.rep_group);
        let mut env = self.stolon("STPROXY", &slot.rep_group);
        env.set("LISTEN_ADDRESS", &self.facts.listen_address)
            .set("ADVERTISE_ADDRESS", &self.facts.advertise_address)
            .set("PORT", slot.port)
            .set("HOLD_CONNECTIONS", HOLD);
        self.daemon(Kind::Proxy, name, env)
    }

    fn monitor(&self) -> Daemon {
        let mut env = self.common("SDM");
        env.set("CLUSTER_NAME", &self.facts.cluster);
        self.daemon(Kind::Monitor, DaemonName::monitor(&self.facts.cluster), env)
    }

    fn stolon(&self, prefix: &'static str, group: &RepGroupName) -> Variables {
        let mut env = self.common(prefix);
        env.set("CLUSTER_NAME", group).set("STORE_BACKEND", "etcdv3");
        env
    }

    fn common(&self, prefix: &'static str) -> Variables {
        let StoreConnInfo { endpoints, ca_file, cert_file, key, user, password_file } =
            &self.spec.ladle_spec.store_conn_info;
        let mut env = Variables::new(prefix);
        env.set("STORE_ENDPOINTS", endpoints)
            .set("STORE_CA_FILE", ca_file)
            .set("STORE_CERT_FILE", cert_file)
            .set("STORE_KEY", key)
            .set("STORE_USER", user)
            .set("STORE_PASSWORD_FILE", password_file)
            .set("LOG_LEVEL", level_word(self.facts.log_level));
        // Text is every daemon's default, and Go stolon does not know the variable.
        if self.facts.log_format == LogFormat::Json {
            env.set("LOG_FORMAT", "json");
        }
        env
    }

    /// Variable, file name and secret of the passwords that keepers need. With `trust` a keeper takes none.
    fn secrets(&self) -> Vec<(&'static str, &'static str, String)> {
        let cluster = &self.spec.cluster_spec;
        let needed = |method: AuthMethod, password: &Password| method != AuthMethod::Trust && !password.is_empty();
        let mut secrets = Vec::new();
        if needed(cluster.pg_su_auth_method, &cluster.pg_su_password) {
            secrets.push(("PG_SU_PASSWORDFILE", SU_PASSWORD_FILE, cluster.pg_su_password.reveal().to_owned()));
        }
        if needed(cluster.pg_repl_auth_method, &cluster.pg_repl_password) {
            secrets.push(("PG_REPL_PASSWORDFILE", REPL_PASSWORD_FILE, cluster.pg_repl_password.reveal().to_owned()));
        }
        secrets
    }

    fn daemon(&self, kind: Kind, name: DaemonName, env: Variables) -> Daemon {
        let program = self.program(kind);
        let mut config = format!("{}\0\0", program.display());
        for (key, value) in env.map.iter().filter(|(key, _)| !kind.is_soft(key)) {
            config.push_str(&format!("{key}={value}\0"));
        }
        Daemon {
            unit: name.unit(),
            kind,
            program,
            environment: env.map,
            env_file: name.env_file(),
            config: format!("{:016x}", digest(config.as_bytes())),
        }
    }

    fn program(&self, kind: Kind) -> PathBuf {
        let (file, stolon) = match kind {
            Kind::Keeper => ("stolon-keeper", true),
            Kind::Sentinel => ("stolon-sentinel", true),
            Kind::Proxy => ("stolon-proxy", true),
            Kind::Monitor => ("monitor", false),
        };
        let stolon_path = Some(&self.spec.ladle_spec.stolon_bin_path).filter(|path| stolon && !path.is_empty());
        let directory = self.facts.bin_dir.clone().or_else(|| stolon_path.map(PathBuf::from));
        directory.unwrap_or_else(|| self.facts.own_dir.clone()).join(file)
    }
}

fn level_word(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
    }
}

/// Longest path of a Unix socket that we use. Linux allows 107 bytes and PostgreSQL adds `.lock` beside it.
const MAX_SOCKET_PATH: usize = 100;

/// Where a keeper's PostgreSQL puts its Unix socket: a directory that nobody else can enter or take the name of. Only
/// where all of those have too long a path it is one in `/tmp`, of which the keeper checks owner and mode.
fn socket_dir(facts: &Facts, directory: &Path, port: u16) -> PathBuf {
    let hash = digest(directory.as_os_str().as_encoded_bytes());
    let hashed = format!("shardman-{:08x}", (hash ^ (hash >> 32)) & 0xffff_ffff);
    let in_runtime_dir = facts.runtime_dir.iter().map(|runtime_dir| runtime_dir.join(&hashed));
    [directory.to_owned(), facts.data_dir.join(format!("s{port}"))]
        .into_iter()
        .chain(in_runtime_dir)
        .find(|path| path.join(format!(".s.PGSQL.{port}")).as_os_str().len() <= MAX_SOCKET_PATH)
        .unwrap_or_else(|| Path::new("/tmp").join(hashed))
}
