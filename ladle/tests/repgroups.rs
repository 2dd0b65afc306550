//! addnodes from end to end over real PostgreSQL servers: a pretended sentinel names them masters of their groups.
//! Needs the extension shardman to be installed; reported as skipped where it is not.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic")]

mod support;

use ladle::addnodes::{self, Options};
use ladle::cluster::load_existing;
use ladle::{Context, fixrepgroups};
use model::NodeName;
use model::clusterspec::AuthMethod;
use model::layout::{Document, FORMAT_VERSION, NodeStatus, RepGroupState};
use model::stolon::keys::Keys;
use model::stolon::{ClusterData, ClusterPhase, Db, Keeper, Role};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use stolon::access::{self, AccessError};
use store::{MemoryStore, SharedStore};
use support::*;
use testkit::postgres::Postgres;

fn options() -> Options {
    Options { timeout: Duration::from_secs(20), ..Options::default() }
}

/// Everything that needs escaping somewhere: shell words, JSON, SQL, libpq's password file.
const PASSWORD: &str = r"s3 'cr:et\\";

struct World {
    ctx: Context,
    password: &'static str,
    servers: BTreeMap<String, Postgres>,
    sentinel: tokio::task::JoinHandle<()>,
    bowls: tokio::task::JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.sentinel.abort();
        self.bowls.abort();
    }
}

/// From now on the server wants the password, and logs statements that change the schema.
async fn protect(server: &Postgres) {
    let client = server.connect().await.unwrap();
    let secret = pg::quote::literal(PASSWORD);
    client.batch_execute(&format!("SET log_statement = none; ALTER ROLE postgres PASSWORD {secret}")).await.unwrap();
    for setting in ["log_statement = ddl", "log_min_duration_statement = 0", "log_parameter_max_length_on_error = -1"] {
        client.batch_execute(&format!("ALTER SYSTEM SET {setting}")).await.unwrap();
    }
    std::fs::write(server.data_dir().join("pg_hba.conf"), "host all all all scram-sha-256\n").unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
}

/// Node `n<i>` gets a server that is configured as group i.
async fn world(count: usize) -> Option<World> {
    world_with(count, false).await
}

async fn world_with(count: usize, protected: bool) -> Option<World> {
    let mut servers = BTreeMap::new();
    for i in 1..=count {
        let rgid = format!("shardman.rgid = {i}");
        let config = ["shared_preload_libraries = 'shardman'", "max_prepared_transactions = 10", &rgid];
        match Postgres::start(&config) {
            Ok(server) => {
                if protected {
                    protect(&server).await;
                }
                servers.insert(format!("n{i}"), server);
            }
            Err(error) => {
                eprintln!("skipped: no PostgreSQL with the extension shardman: {error:#}");
                return None;
            }
        }
    }
    let ctx = context(Arc::new(MemoryStore::new()));
    let bin = testkit::postgres::bin_dir().unwrap();
    let ladle = format!(r#", "Repfactor": 0, "PgBinPath": "{}""#, bin.display());
    let mut spec = spec(&ladle, r#""PgSuUsername": "postgres""#);
    if protected {
        spec.spec.cluster_spec.pg_su_auth_method = AuthMethod::ScramSha256;
        spec.spec.cluster_spec.pg_su_password = PASSWORD.into();
    }
    make_cluster(&ctx, &spec).await;
    let ports = servers.iter().map(|(node, server)| (node.clone(), server.port())).collect();
    let sentinel = tokio::spawn(pretend_sentinel(ctx.store.clone(), ports));
    let password = if protected { r"password='s3 \'cr:et\\\\'" } else { "" };
    let bowls = tokio::spawn(pretend_bowls(ctx.clone(), count));
    Some(World { ctx, password, servers, sentinel, bowls })
}

impl World {
    async fn add(&self, from: usize, to: usize) -> Vec<String> {
        let told = Told::default();
        if let Err(error) = addnodes::run(&self.ctx, &nodes(from, to), &options(), &told).await {
            panic!("{}\n{:#?}", common::exit::one_line(&error.into()), told.lines());
        }
        told.lines()
    }

    async fn query(&self, node: &str, sql: &str) -> String {
        let client = self.servers[node].connect_with(self.password).await.unwrap();
        let rows = client.query(sql, &[]).await.unwrap_or_else(|e| panic!("{node}: {sql}: {:?}", e));
        rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join(",")
    }

    async fn everywhere(&self, nodes: &[NodeName], sql: &str, wanted: &str) {
        for node in nodes {
            assert_eq!(self.query(node.as_str(), sql).await, wanted, "{node}: {sql}");
        }
    }
}

/// Bowls that apply everything at once, as long as there is a cluster.
async fn pretend_bowls(ctx: Context, count: usize) {
    let mut told: BTreeMap<NodeName, Vec<u8>> = BTreeMap::new();
    loop {
        let loaded = load_existing(&ctx).await.unwrap();
        let layouts = loaded.current().layouts;
        for node in nodes(1, count) {
            let status = NodeStatus {
                format_version: FORMAT_VERSION,
                node: node.clone(),
                version: "1".into(),
                generation: layouts.get(&node).map_or(model::Generation(0), |layout| layout.generation),
                spec_revision: loaded.spec.revision,
                last_error: String::new(),
                time: String::new(),
                daemons: vec![],
            };
            let bytes = status.to_bytes();
            if told.get(&node) != Some(&bytes) {
                ctx.store.put(&ctx.keys.status(&node), &bytes, None).await.unwrap();
                told.insert(node, bytes);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Names each group's server as its master as soon as there is cluster data.
async fn pretend_sentinel(store: SharedStore, ports: BTreeMap<String, u16>) {
    loop {
        for entry in store.list("stolon/cluster/").await.unwrap().entries {
            let group = entry.key.split('/').nth(2).unwrap();
            let port = ports[group.rsplit('-').next().unwrap()];
            let data = ClusterData::parse(&entry.value).unwrap();
            if data.dbs.is_empty() {
                let keys = Keys::new("stolon/cluster", &group.into());
                access::update(&store, &keys, |data| {
                    name_master(data, port);
                    Ok::<(), AccessError>(())
                })
                .await
                .unwrap();
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn name_master(data: &mut ClusterData, port: u16) {
    let mut keeper = Keeper { uid: "keeper_0".into(), ..Keeper::default() };
    keeper.spec.priority = 1;
    let mut db = Db { uid: "db".into(), ..Db::default() };
    db.spec.keeper_uid = keeper.uid.clone();
    db.spec.role = Some(Role::Master);
    db.status.listen_address = "127.0.0.1".into();
    db.status.port = port.to_string();
    data.cluster.status.phase = Some(ClusterPhase::Normal);
    data.cluster.status.master = db.uid.clone();
    data.proxy.spec.master_db_uid = db.uid.clone();
    data.keepers.insert(keeper.uid.clone(), keeper);
    data.dbs.insert(db.uid.clone(), db);
}

const GROUPS: &str = "SELECT id || CASE WHEN srvid IS NULL THEN '*' ELSE '' END FROM shardman.repgroups ORDER BY id";

#[tokio::test(flavor = "multi_thread")]
async fn groups_join_one_after_the_other_and_the_schema_follows() {
    let Some(world) = world(4).await else { return };
    let told = world.add(1, 2).await;
    assert_eq!(
        told,
        [
            "Checking if shardmand on all nodes have applied current cluster configuration",
            "Waiting for shardmand on node n1 to apply current configuration: success",
            "Waiting for shardmand on node n2 to apply current configuration: success",
            "Initting Stolon instances...",
            "Waiting for Stolon daemons to start... make sure shardmand daemons are running on the nodes",
            "Waiting for Stolon daemons of rg clover-1-n1: success",
            "Waiting for Stolon daemons of rg clover-2-n2: success",
            "Adding repgroups...",
            "waiting rg 1 config apply: done",
            "waiting rg 2 config apply: done",
            "Successfully added nodes n1, n2 to the cluster",
        ]
    );
    assert_eq!(world.query("n1", GROUPS).await, "1*,2");
    assert_eq!(world.query("n2", GROUPS).await, "1,2*");
    let setup = "CREATE ROLE \"odd name\" LOGIN; CREATE SCHEMA app; \
        CREATE TABLE app.t (id int PRIMARY KEY, v text) WITH (distributed_by = 'id', num_parts = 4);";
    world.servers["n1"].connect().await.unwrap().batch_execute(setup).await.unwrap();
    world.query("n1", "INSERT INTO app.t SELECT i, 'x' FROM generate_series(1, 100) i RETURNING v").await;

    // What a command has prepared that lost the lock meanwhile: no document names it.
    let orphan = "BEGIN; LOCK TABLE shardman.repgroups; PREPARE TRANSACTION 'shardman:addrepgroup:orphan'";
    world.servers["n2"].connect().await.unwrap().batch_execute(orphan).await.unwrap();
    world.add(3, 3).await;
    world.everywhere(&nodes(1, 3), "SELECT count(*)::text FROM app.t", "100").await;
    let same = "SELECT id::text FROM shardman.repgroups ORDER BY id";
    world.everywhere(&nodes(1, 3), same, "1,2,3").await;
    world.everywhere(&nodes(1, 3), "SELECT count(*)::text FROM pg_roles WHERE rolname = 'odd name'", "1").await;
    world.everywhere(&nodes(1, 3), "SELECT count(*)::text FROM pg_prepared_xacts", "0").await;
    world
        .everywhere(&nodes(3, 3), "SELECT coalesce(to_regclass('shardman.loaded_schema')::text, 'gone')", "gone")
        .await;
    let told = Told::default();
    fixrepgroups::run(&world.ctx, &options(), &told).await.unwrap();
    assert_eq!(told.lines(), ["All replication groups are part of the cluster"]);
}

/// The same command, killed one write later each time, until it succeeds.
async fn killed_again_and_again(world: &World, node: usize, death: Death) {
    for writes in 0..40 {
        let mortal: SharedStore = Mortal::new(world.ctx.store.clone(), writes, death);
        let result = addnodes::run(&context(mortal), &nodes(node, node), &options(), &Told::default()).await;
        let_lock_expire(&world.ctx).await;
        let loaded = load_existing(&world.ctx).await.unwrap();
        if result.is_ok() || (loaded.operation.is_none() && !loaded.repgroups.is_empty() && registered(&loaded, node)) {
            return;
        }
    }
    panic!("never came to an end");
}

fn registered(loaded: &ladle::cluster::Loaded, node: usize) -> bool {
    let suffix = format!("-n{node}");
    let mut groups = loaded.repgroups.values();
    groups.any(|g| g.doc.stolon_name.as_str().ends_with(&suffix) && g.doc.state == RepGroupState::Active)
}

#[tokio::test(flavor = "multi_thread")]
async fn death_at_every_write_is_survived() {
    let Some(world) = world(4).await else { return };
    world.add(1, 1).await;
    let setup = "CREATE TABLE t (id int PRIMARY KEY, v text) WITH (distributed_by = 'id', num_parts = 4)";
    world.servers["n1"].connect().await.unwrap().batch_execute(setup).await.unwrap();
    killed_again_and_again(&world, 2, Death::Before).await;
    killed_again_and_again(&world, 3, Death::After).await;
    // The last one is finished by the other command.
    let mortal: SharedStore = Mortal::new(world.ctx.store.clone(), 7, Death::Before);
    addnodes::run(&context(mortal), &nodes(4, 4), &options(), &Told::default()).await.unwrap_err();
    let_lock_expire(&world.ctx).await;
    let told = Told::default();
    if let Err(error) = fixrepgroups::run(&world.ctx, &options(), &told).await {
        panic!("{}\n{:#?}", common::exit::one_line(&error.into()), told.lines());
    }
    let all = nodes(1, 4);
    world.everywhere(&all, "SELECT id::text FROM shardman.repgroups ORDER BY id", "1,2,3,4").await;
    world.everywhere(&all, "SELECT count(*)::text FROM pg_prepared_xacts", "0").await;
    world.query("n4", "INSERT INTO t SELECT i, 'x' FROM generate_series(1, 50) i RETURNING v").await;
    world.everywhere(&all, "SELECT count(*)::text FROM t", "50").await;
    let loaded = load_existing(&world.ctx).await.unwrap();
    assert!(loaded.operation.is_none());
    assert_eq!(loaded.repgroups.keys().map(|id| id.0).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(loaded.revision.doc.rep_group_seq, 5);
}

/// Adds a node until the moment at which every server has prepared and the outcome is decided.
async fn killed_when_decided(world: &World, node: usize) {
    let (mut writes, mut visible) = (0, false);
    for _ in 0..40 {
        let mortal: SharedStore = Mortal::new(world.ctx.store.clone(), writes, Death::After);
        addnodes::run(&context(mortal), &nodes(node, node), &options(), &Told::default()).await.unwrap_err();
        let_lock_expire(&world.ctx).await;
        let loaded = load_existing(&world.ctx).await.unwrap();
        if loaded.repgroups.values().any(|group| group.doc.state == RepGroupState::Committing) {
            return;
        }
        writes += 1;
        // From then on few writes are left: not to jump over the one that is looked for.
        let layouts = loaded.current().layouts;
        if !visible && layouts.contains_key(&nodes(node, node)[0]) {
            (writes, visible) = (0, true);
        }
    }
    panic!("never decided");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_that_a_failover_lost_is_done_again() {
    let Some(world) = world(4).await else { return };
    world.add(1, 2).await;
    let setup = "CREATE TABLE t (id int PRIMARY KEY, v text) WITH (distributed_by = 'id', num_parts = 4)";
    world.servers["n1"].connect().await.unwrap().batch_execute(setup).await.unwrap();
    // An old group loses it, then the new one.
    for (node, victim) in [(3, "n1"), (4, "n4")] {
        killed_when_decided(&world, node).await;
        let gid = world.query(victim, "SELECT gid FROM pg_prepared_xacts").await;
        assert!(gid.starts_with("shardman:addrepgroup:"), "{gid}");
        let client = world.servers[victim].connect().await.unwrap();
        client.batch_execute(&format!("ROLLBACK PREPARED '{gid}'")).await.unwrap();
        let told = Told::default();
        if let Err(error) = fixrepgroups::run(&world.ctx, &options(), &told).await {
            panic!("{}\n{:#?}", common::exit::one_line(&error.into()), told.lines());
        }
        let lost = format!("-{victim} has lost its part of the adding of rg {node}");
        assert!(told.lines().iter().any(|line| line.contains(&lost)), "{:#?}", told.lines());
        let all = nodes(1, node);
        let ids: Vec<String> = (1..=node).map(|id| id.to_string()).collect();
        world.everywhere(&all, "SELECT id::text FROM shardman.repgroups ORDER BY id", &ids.join(",")).await;
        world.everywhere(&all, "SELECT count(*)::text FROM pg_prepared_xacts", "0").await;
        let servers = "SELECT count(*)::text FROM pg_foreign_server";
        world.everywhere(&all, servers, &(node - 1).to_string()).await;
    }
    world.query("n4", "INSERT INTO t SELECT i, 'x' FROM generate_series(1, 50) i RETURNING v").await;
    world.everywhere(&nodes(1, 4), "SELECT count(*)::text FROM t", "50").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_never_added_again_is_named_and_blocks_nobody() {
    let Some(world) = world(2).await else { return };
    world.add(1, 1).await;
    let doc = model::layout::RepGroupDoc {
        format_version: FORMAT_VERSION,
        stolon_name: "gone".into(),
        store_conn_info: Default::default(),
        store_prefix: "stolon/cluster".into(),
        sys_id: 1,
        state: RepGroupState::Adding,
        operation: "old".into(),
    };
    let key = world.ctx.keys.repgroup(model::RepGroupId(9));
    world.ctx.store.put(&key, &doc.to_bytes(), None).await.unwrap();
    let prepared = "BEGIN; LOCK TABLE shardman.repgroups; PREPARE TRANSACTION 'shardman:addrepgroup:old'";
    world.servers["n1"].connect().await.unwrap().batch_execute(prepared).await.unwrap();
    let told = Told::default();
    fixrepgroups::run(&world.ctx, &options(), &told).await.unwrap();
    assert!(told.lines()[1].starts_with("warning: rg 9 (gone) is no part of the cluster"), "{:#?}", told.lines());
    assert_eq!(world.query("n1", "SELECT count(*)::text FROM pg_prepared_xacts").await, "0");
    world.add(2, 2).await;
    assert_eq!(world.query("n2", GROUPS).await, "1,2*");
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_are_used_everywhere_and_shown_nowhere() {
    let Some(world) = world_with(3, true).await else { return };
    world.add(1, 2).await;
    let setup = "CREATE TABLE t (id int PRIMARY KEY, v text) WITH (distributed_by = 'id', num_parts = 4)";
    let client = world.servers["n1"].connect_with(world.password).await.unwrap();
    client.batch_execute(setup).await.unwrap();
    world.add(3, 3).await;
    world.query("n3", "INSERT INTO t SELECT i, 'x' FROM generate_series(1, 20) i RETURNING v").await;
    world.everywhere(&nodes(1, 3), "SELECT count(*)::text FROM t", "20").await;
    for server in world.servers.values() {
        let log = std::fs::read_to_string(server.data_dir().parent().unwrap().join("log")).unwrap();
        assert!(log.contains("statement: ") || server.port() != world.servers["n1"].port());
        assert!(!log.contains("cr:et"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_start_is_named_and_can_be_finished() {
    let Some(mut world) = world(1).await else { return };
    world.sentinel.abort();
    let short = Options { timeout: Duration::from_millis(300), force: false };
    let run = |nodes: Vec<NodeName>| {
        let ctx = Context { bowl_patience: Duration::from_millis(300), ..world.ctx.clone() };
        async move { addnodes::run(&ctx, &nodes, &short, &Told::default()).await.unwrap_err().to_string() }
    };
    let error = run(nodes(2, 2)).await;
    assert!(error.contains("shardmand on node n2 does not run"), "{error}");
    assert!(load_existing(&world.ctx).await.unwrap().operation.is_none());
    let error = run(nodes(1, 1)).await;
    assert!(error.contains("clover-1-n1: no master is available") && error.contains("fixrepgroups"), "{error}");
    let ports = world.servers.iter().map(|(node, server)| (node.clone(), server.port())).collect();
    world.sentinel = tokio::spawn(pretend_sentinel(world.ctx.store.clone(), ports));
    world.add(1, 1).await;
    assert_eq!(world.query("n1", GROUPS).await, "1*");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_with_objects_of_its_own_is_left_alone() {
    let Some(world) = world(2).await else { return };
    world.add(1, 1).await;
    world.servers["n2"].connect().await.unwrap().batch_execute("CREATE TABLE precious (id int)").await.unwrap();
    let error = addnodes::run(&world.ctx, &nodes(2, 2), &options(), &Told::default()).await.unwrap_err().to_string();
    assert!(error.contains("start with an empty server"), "{error}");
    assert_eq!(world.query("n2", "SELECT to_regclass('precious')::text").await, "precious");
    assert_eq!(world.query("n1", GROUPS).await, "1*");
}
