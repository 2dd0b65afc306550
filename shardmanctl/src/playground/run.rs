//! Starting and stopping a playground.

use super::files::Dir;
use super::plan::{Plan, Wish, specification};
use super::{postgres, processes};
use crate::cli::PlaygroundArgs;
use crate::commands::{getconnstr, init, status};
use anyhow::{Context as _, bail};
use common::cli::OutputFormat;
use common::privileges::{self, OsUser};
use common::runtime::Termination;
use ladle::context::Context;
use model::ClusterName;
use model::keys::ClusterKeys;
use model::layout::{Document as _, RepGroupDoc, RepGroupState, SpecDoc};
use model::stolon::keys::Keys;
use nix::sys::signal::Signal;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{EtcdStore, SharedStore, StoreOptions};

/// PostgreSQL flushes and checkpoints when it stops; a bowl gives it 60 s, so we give the bowl more.
const STOP_LIMIT: Duration = Duration::from_secs(90);
/// etcd on an idle machine is there in a fraction of a second; a loaded one may need more.
const ETCD_LIMIT: Duration = Duration::from_secs(30);
/// A cluster that was killed as a whole recovers its WAL first.
const SERVE_LIMIT: Duration = Duration::from_secs(120);

/// The user that everything in a playground runs as: PostgreSQL refuses root.
pub(super) fn os_user() -> anyhow::Result<OsUser> {
    if privileges::is_root() { privileges::user(privileges::POSTGRES_USER) } else { privileges::current_user() }
}

/// `playground`: starts a new one, or the one that is in the directory.
///
/// # Errors
/// Something is missing or busy, with what to do. What was started is stopped again; data stays.
pub async fn start(args: &PlaygroundArgs, cluster: &ClusterName) -> anyhow::Result<()> {
    let begun = Instant::now();
    let dir = Dir::new(args.data_dir.as_deref())?;
    let user = os_user()?;
    let claim = claim_addresses().await?;
    let plan = decide(args, cluster, &dir, &user)?;
    // From here on signals must not end us without stopping what we start.
    let mut termination = Termination::listen()?;
    let result = tokio::select! {
        result = bring_up(&plan, &dir, &user, claim) => result,
        () = termination.wait() => Err(anyhow::anyhow!("interrupted")),
    };
    if let Err(error) = result {
        eprintln(&format!("stopping the playground, its logs stay in {}", dir.path.display()));
        stop_all(&plan, &dir).await?;
        return Err(error);
    }
    show(&plan, &dir, begun.elapsed()).await?;
    if !args.detach {
        eprintln("press Ctrl-C to stop the playground; its data stays");
        termination.wait().await;
        eprintln("stopping");
        stop_all(&plan, &dir).await?;
    }
    Ok(())
}

/// `playground --stop`.
///
/// # Errors
/// There is no playground, or processes of it do not end.
pub async fn stop(args: &PlaygroundArgs) -> anyhow::Result<()> {
    let dir = Dir::new(args.data_dir.as_deref())?;
    let plan = dir.existing_plan()?;
    require_owner(&plan, &dir)?;
    stop_all(&plan, &dir).await?;
    eprintln(&format!("the playground in {} is stopped; its data stays", dir.path.display()));
    Ok(())
}

/// How long another playground may take from its choice of addresses to a listening etcd.
const CLAIM_LIMIT: Duration = Duration::from_secs(60);

/// Lets one playground at a time choose addresses: two that start together would choose the same block, and the
/// second would meet the first one's etcd. A socket without a file: the kernel frees it when we die.
async fn claim_addresses() -> anyhow::Result<UnixListener> {
    let address = SocketAddr::from_abstract_name("shardman-playground")?;
    let deadline = Instant::now() + CLAIM_LIMIT;
    loop {
        match UnixListener::bind_addr(&address) {
            Ok(listener) => return Ok(listener),
            Err(error) if Instant::now() > deadline => {
                return Err(error).context("another playground is starting for too long; end that one first");
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// The processes of another user can't be seen or signalled: without this they would count as not there.
pub(super) fn require_owner(plan: &Plan, dir: &Dir) -> anyhow::Result<()> {
    if privileges::is_root() || privileges::current_user()?.name == plan.os_user {
        return Ok(());
    }
    bail!("the playground in {} runs as user {}; run this as root or as that user", dir.path.display(), plan.os_user)
}

fn decide(args: &PlaygroundArgs, cluster: &ClusterName, dir: &Dir, user: &OsUser) -> anyhow::Result<Plan> {
    if let Some(mut plan) = dir.plan()? {
        require_owner(&plan, dir)?;
        if !processes::processes(&plan, &dir.path).is_empty() {
            bail!(
                "the playground in {} is running; end it with `shardmanctl playground --data-dir {} --stop`",
                dir.path.display(),
                dir.path.display()
            );
        }
        if let Some((address, port)) = plan.sockets().find(|(address, port)| !is_free(*address, *port)) {
            bail!("{address}:{port}, which this playground needs, is in use; stop what listens there");
        }
        // Programs may have moved since; data must stay with its user and major version.
        plan.bin_dir = programs(dir, user)?;
        return Ok(plan);
    }
    let wish = Wish { nodes: args.nodes, repfactor: args.repfactor, cluster: cluster.clone() };
    let mut plan = Plan::make(&wish, is_free)?;
    plan.pg_bin_path = postgres::find(args.pg_bin_path.as_deref())?;
    plan.os_user.clone_from(&user.name);
    require_etcd()?;
    dir.prepare(user)?;
    plan.bin_dir = programs(dir, user)?;
    dir.store_plan(&plan)?;
    Ok(plan)
}

fn is_free(address: Ipv4Addr, port: u16) -> bool {
    TcpListener::bind((address, port)).is_ok()
}

fn require_etcd() -> anyhow::Result<()> {
    Command::new("etcd").arg("--version").output().context("etcd is needed; install the package etcd-server")?;
    Ok(())
}

/// Programs that a playground runs, beside this one.
const PROGRAMS: [&str; 6] = ["bowl", "monitor", "stolon-keeper", "stolon-sentinel", "stolon-proxy", "shardmanctl"];

/// The directory of our programs; a copy of them when the playground's user can't run them where they are.
fn programs(dir: &Dir, user: &OsUser) -> anyhow::Result<std::path::PathBuf> {
    use std::os::unix::process::CommandExt as _;
    let here = std::env::current_exe()?.parent().context("this program has no directory")?.to_owned();
    for program in PROGRAMS {
        if !here.join(program).exists() {
            bail!("{program} is missing in {}; build all programs with `make build`", here.display());
        }
    }
    let mut probe = Command::new(here.join("bowl"));
    probe.arg("--version").stdout(std::process::Stdio::null());
    if privileges::is_root() {
        probe.uid(user.uid).gid(user.gid);
    }
    if probe.current_dir("/").status().is_ok_and(|status| status.success()) {
        return Ok(here);
    }
    let copy = dir.path.join("bin");
    std::fs::create_dir_all(&copy)?;
    for program in PROGRAMS {
        let new = copy.join(format!("{program}.new"));
        std::fs::copy(here.join(program), &new)?;
        std::fs::rename(new, copy.join(program))?;
    }
    Ok(copy)
}

/// Opens the playground's store.
pub(super) async fn open_store(plan: &Plan) -> anyhow::Result<SharedStore> {
    let options = StoreOptions { endpoints: plan.endpoints(), ..StoreOptions::default() };
    Ok(Arc::new(EtcdStore::connect(&options).await?))
}

async fn bring_up(plan: &Plan, dir: &Dir, user: &OsUser, claim: UnixListener) -> anyhow::Result<()> {
    processes::spawn_etcd(plan, &dir.path, user)?;
    let store = open_store(plan).await?;
    wait_for_etcd(&store, &dir.path).await?;
    for node in &plan.nodes {
        processes::spawn_bowl(plan, node, &dir.path, user)?;
    }
    // etcd's own port now tells others that the block is taken.
    drop(claim);
    let ctx = Context::new(store, plan.cluster.as_str(), "shardmanctl playground")?;
    let progress = ladle::report::Stderr::default();
    if ctx.store.get(&ctx.keys.spec()).await?.is_none() {
        let passwords = [0; 2].map(|_| uuid::Uuid::new_v4().simple().to_string());
        let text = specification(plan, &dir.path, &passwords).to_string();
        let defaults = init::defaults(&StoreOptions::default(), plan.os_user.clone());
        init::create(&ctx, &text, &defaults, ladle::init::Options::default(), &progress).await?;
    }
    if active_groups(&ctx.store, &ctx.keys).await?.len() < plan.nodes.len() {
        let names: Vec<_> = plan.nodes.iter().map(|node| node.name.clone()).collect();
        ladle::addnodes::run(&ctx, &names, &ladle::addnodes::Options::default(), &progress).await?;
    }
    let entry = ctx.store.get(&ctx.keys.spec()).await?.context("the specification vanished from the store")?;
    let spec = SpecDoc::parse("the specification", &entry.value)?;
    wait_serving(&ctx.store, &ctx.keys, &spec).await?;
    dir.write_env(plan)
}

async fn wait_for_etcd(store: &SharedStore, dir: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + ETCD_LIMIT;
    loop {
        match store.get("shardman/").await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                let log = dir.join(processes::ETCD).join("etcd.log");
                return Err(error).with_context(|| format!("etcd does not come up, see {}", log.display()));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn active_groups(store: &SharedStore, keys: &ClusterKeys) -> anyhow::Result<Vec<RepGroupDoc>> {
    let listing = store.list(&keys.repgroups()).await?;
    let docs = listing.entries.iter().map(|entry| RepGroupDoc::parse(&entry.key, &entry.value));
    let docs = docs.collect::<Result<Vec<_>, _>>()?;
    Ok(docs.into_iter().filter(|doc| doc.state == RepGroupState::Active).collect())
}

/// Waits until every group takes writes at its entry points.
async fn wait_serving(store: &SharedStore, keys: &ClusterKeys, spec: &SpecDoc) -> anyhow::Result<()> {
    let deadline = Instant::now() + SERVE_LIMIT;
    for group in active_groups(store, keys).await? {
        let stolon = Keys::new(&group.store_prefix, &group.stolon_name);
        while let Err(error) = serves(store, &stolon, spec).await {
            if Instant::now() > deadline {
                return Err(error).with_context(|| format!("{} does not serve", group.stolon_name));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}

async fn serves(store: &SharedStore, keys: &Keys, spec: &SpecDoc) -> anyhow::Result<()> {
    let entry = store.get(&keys.clusterdata()).await?.context("it has no cluster data")?;
    let data = model::stolon::ClusterData::parse(&entry.value)?;
    let endpoints = pg::endpoints::entry_points(&data, spec.cluster_spec.use_proxy)?;
    let login = pg::Login::superuser(&spec.cluster_spec, "shardmanctl");
    let session = pg::connect(&endpoints, &login, Duration::from_secs(2)).await?;
    let standby: bool = session.query_one("select pg_is_in_recovery()", &[]).await?.get(0);
    if standby { bail!("its master is not promoted yet") } else { Ok(()) }
}

/// Monitors need a moment until every foreign server points at the proxies that live now.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);

/// The report of `status` once nothing is wrong any more; after a while, as it is.
async fn settled_status(store: &SharedStore, keys: &ClusterKeys) -> Vec<u8> {
    let deadline = Instant::now() + SETTLE_LIMIT;
    loop {
        let mut report = Vec::new();
        let result = status::run(store.clone(), keys, OutputFormat::Text, &mut report).await;
        if result.is_ok() || Instant::now() > deadline {
            return report;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Prints what a user needs next.
async fn show(plan: &Plan, dir: &Dir, took: Duration) -> anyhow::Result<()> {
    let store = open_store(plan).await?;
    let keys = ClusterKeys::new(&plan.cluster);
    let mut out = std::io::stdout();
    out.write_all(&settled_status(&store, &keys).await)?;
    let mut connstr = Vec::new();
    getconnstr::run(store, &keys, false, &mut connstr).await?;
    let connstr = String::from_utf8(connstr)?;
    let connstr = connstr.trim();
    let path = dir.path.display();
    writeln!(
        out,
        "\nThe cluster serves after {:.1} s: {} nodes, {} replication groups, {} copies of each row.\n\n\
         Connect:\n  psql -d '{connstr}'\n\n\
         Try next:\n  \
         create table x(id int primary key, t text) with (distributed_by='id', num_parts={});\n\n  \
         . '{path}/env'      # shardmanctl, psql and the cluster's address for this shell\n  \
         shardmanctl status\n  \
         shardmanctl playground node kill {} --data-dir '{path}'\n  \
         shardmanctl playground --data-dir '{path}' --stop",
        took.as_secs_f64(),
        plan.nodes.len(),
        plan.nodes.len(),
        plan.repfactor + 1,
        plan.nodes.len(),
        plan.nodes[0].name,
    )?;
    Ok(())
}

/// Stops nodes first, then etcd, so that keepers can still say goodbye.
async fn stop_all(plan: &Plan, dir: &Dir) -> anyhow::Result<()> {
    let node_dirs: Vec<_> = plan.nodes.iter().map(|node| dir.path.join(node.name.as_str())).collect();
    for node_dir in &node_dirs {
        if let Some(pid) = processes::bowl(plan, node_dir) {
            processes::signal(pid, Signal::SIGTERM);
        }
    }
    for node_dir in &node_dirs {
        end_node(plan, node_dir).await?;
    }
    let etcd = dir.path.join(processes::ETCD);
    for process in processes::processes(plan, &etcd) {
        processes::signal(process.pid, Signal::SIGTERM);
    }
    processes::wait_gone(plan, &etcd, STOP_LIMIT).await
}

/// Waits for the end of a node whose bowl was told to stop. Daemons without a bowl, which was killed alone,
/// are told one by one: keepers last, since sentinels would see their end as a failure.
pub(super) async fn end_node(plan: &Plan, node_dir: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + STOP_LIMIT;
    while processes::bowl(plan, node_dir).is_some() {
        if Instant::now() > deadline {
            bail!("the bowl in {} does not end; see its log there", node_dir.display());
        }
        processes::reap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for keepers in [false, true] {
        let daemons = processes::processes(plan, node_dir);
        for process in daemons.iter().filter(|p| p.program != "postgres" && (p.program == "stolon-keeper") == keepers) {
            processes::signal(process.pid, Signal::SIGTERM);
        }
    }
    // A PostgreSQL whose keeper was killed alone: SIGINT is its fast shutdown.
    for process in processes::processes(plan, node_dir).iter().filter(|p| p.program == "postgres") {
        processes::signal(process.pid, Signal::SIGINT);
    }
    processes::wait_gone(plan, node_dir, STOP_LIMIT).await
}

/// Progress is for people: stderr.
pub(super) fn eprintln(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
