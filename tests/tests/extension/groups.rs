//! Replication groups: their servers, rights and locks, and a new one that joins.

use crate::{CHILDREN, Cluster, error, refused, start_server, text};
use anyhow::Context as _;
use anyhow::Result;
use anyhow::ensure;
use std::process::Stdio;
use testkit::postgres::Postgres;

#[tokio::test]
async fn groups() -> Result<()> {
    let cluster = Cluster::start(2).await?;
    let one = cluster.sql(1).await?;
    let server =
        "select oid || ' ' || array_to_string(srvoptions, ' ') from pg_foreign_server where srvname = 'shardman_rg_2'";
    let before = text(&one, server).await?;
    for option in
        ["fetch_size=10000", "batch_size=1000", "parallel_commit=true", "async_capable=true", "dbname=postgres"]
    {
        assert!(before.contains(option), "{before}");
    }
    let sysid = text(&one, "select system_identifier from pg_control_system()").await?;
    assert!(before.contains(&format!("application_name=pgfdw:{sysid}:%c:%p")), "{before}");

    // Idempotent, alters in place, takes lists.
    one.batch_execute("select shardman.set_local_repgroup(1)").await?;
    cluster.connect_group(&one, 2).await?;
    assert_eq!(text(&one, server).await?, before);
    let port = cluster.server(2).port();
    let connect =
        format!("select shardman.connect_repgroup(2, '127.0.0.1,localhost', '{port},{port}', 'postgres', 'secret')");
    one.batch_execute(&connect).await?;
    let after = text(&one, server).await?;
    assert!(after.contains("host=127.0.0.1,localhost"), "{after}");
    assert_eq!(before.split(' ').next(), after.split(' ').next());
    let mapping = "select array_to_string(umoptions, ' ') from pg_user_mappings where srvname = 'shardman_rg_2'";
    assert_eq!(text(&one, mapping).await?, "user=postgres password=secret");
    cluster.connect_group(&one, 2).await?;
    assert_eq!(text(&one, mapping).await?, "user=postgres");
    let seen = "select shardman.ex_sql(2, 'create table seen as select application_name from pg_stat_activity where pid = pg_backend_pid()')";
    one.batch_execute(seen).await?;
    let two = cluster.sql(2).await?;
    assert!(text(&two, "select application_name from seen").await?.starts_with(&format!("pgfdw:{sysid}:")));

    for (call, what) in [
        ("set_local_repgroup(2)", "cannot become replication group 2"),
        ("set_local_repgroup(3)", "cannot become replication group 3"),
        ("connect_repgroup(1, 'h', '1', 'u', null)", "to itself"),
        ("connect_repgroup(2, 'h,i', '1', 'u', null)", "cannot connect replication group 2"),
        ("connect_repgroup(2, null, '1', 'u', null)", "cannot connect replication group 2"),
        ("disconnect_repgroup(1)", "from itself"),
        ("ex_sql(9, 'select 1')", "replication group 9 does not exist"),
    ] {
        refused(&one, &format!("select shardman.{call}"), what).await;
    }
    one.batch_execute("create table x(id int) with (distributed_by='id', num_parts=2)").await?;
    refused(&one, "select shardman.disconnect_repgroup(2)", "cannot disconnect").await;
    one.batch_execute("drop table x; select shardman.disconnect_repgroup(2); select shardman.disconnect_repgroup(2)")
        .await?;
    assert_eq!(text(&one, "select id from shardman.repgroups").await?, "1");

    // bcst_sql goes to the others only, ex_sql to itself as well; both are part of the transaction.
    cluster.connect_group(&one, 2).await?;
    one.batch_execute("set search_path = public; select shardman.bcst_sql('create table b(id int)'); select shardman.ex_sql(1, 'create table l(id int)')").await?;
    assert_eq!(cluster.have("b").await? + &cluster.have("l").await?, "fttf");
    one.batch_execute(
        "begin; select shardman.bcst_all_sql('create table gone(id int); insert into gone values (1)'); rollback",
    )
    .await?;
    assert_eq!(cluster.have("gone").await?, "ff");
    Ok(())
}

#[tokio::test]
async fn without_preload() -> Result<()> {
    let server = Postgres::start(&[])?;
    let sql = server.connect().await?;
    sql.batch_execute("create extension shardman cascade; create table t(id int) partition by hash (id)").await?;
    for call in [
        "set_local_repgroup(1)",
        "hash_shard_table('t', 2)",
        "bcst_all_sql('select 1')",
        "connect_repgroup(2, 'h', '1', 'u', null)",
    ] {
        refused(&sql, &format!("select shardman.{call}"), "the library shardman is not preloaded").await;
    }
    sql.batch_execute("drop extension shardman").await?;
    Ok(())
}

#[tokio::test]
async fn concurrent_schema_changes_take_turns() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    cluster.sql(1).await?.batch_execute("create table t(id int)").await?;
    let mut tasks = Vec::new();
    for id in 1..=3 {
        let sql = cluster.sql(id).await?;
        tasks.push(tokio::spawn(async move {
            for n in 0..5 {
                sql.batch_execute(&format!("alter table t add c{id}_{n} int; create table t{id}_{n}(id int primary key) with (distributed_by='id', num_parts=3)")).await?;
            }
            anyhow::Ok(())
        }));
    }
    for task in tasks {
        tokio::time::timeout(std::time::Duration::from_secs(60), task).await.context("deadlock")???;
    }
    assert_eq!(
        cluster.everywhere("select count(*) from pg_attribute where attrelid = 't'::regclass and attnum > 0").await?,
        ["16"; 3]
    );
    assert_eq!(cluster.everywhere("select count(*) from shardman.parts").await?, ["45"; 3]);
    Ok(())
}

#[tokio::test]
async fn rights_and_locks() -> Result<()> {
    let cluster = Cluster::start(2).await?;
    let one = cluster.sql(1).await?;
    one.batch_execute(
        "create schema s; create table s.x(id int primary key) with (distributed_by='id', num_parts=2);
         create table h(id int) partition by hash (id); create role eve login; create role amy login;
         grant create on schema s, public to amy",
    )
    .await?;
    let eve = cluster.server(1).connect_with("user=eve").await?;
    assert_eq!(
        text(&eve, "select count(*) from shardman.parts, shardman.repgroups, shardman.sharded_tables").await?,
        "4"
    );
    for statement in [
        "delete from shardman.parts",
        "insert into shardman.exec values ('select 1')",
        "select shardman.hash_shard_table('h', 2)",
        "select shardman.shard_everywhere('h'::regclass, 2, null)",
        "drop table s.x",
    ] {
        assert_eq!(error(&eve, statement).await.code().code(), "42501", "{statement}");
    }
    // Owners without a user mapping of their own, and whole schemas.
    let amy = cluster.server(1).connect_with("user=amy").await?;
    amy.batch_execute(
        "create table public.a(id int) partition by hash (id); select shardman.hash_shard_table('a', 2);
         create table b(id int) with (distributed_by='id', colocate_with='a'); drop table a cascade",
    )
    .await?;
    assert_eq!(
        cluster.everywhere("select relowner::regrole from pg_class where relname in ('b_0', 'b_1')").await?,
        ["amy"; 2]
    );
    one.batch_execute("drop owned by amy; drop schema s cascade").await?;
    assert_eq!(cluster.everywhere("select count(*) from shardman.sharded_tables").await?, ["0"; 2]);
    assert_eq!(cluster.everywhere("select count(*) from pg_class where relname ~ '^[abx]_'").await?, ["0"; 2]);

    // While a group is added, schema changes wait and reading goes on.
    for mode in ["exclusive", "access exclusive"] {
        let adding = cluster.sql(1).await?;
        adding.batch_execute(&format!("begin; lock table shardman.repgroups in {mode} mode")).await?;
        let e = error(&one, "set lock_timeout = '100ms'; create table late(id int)").await;
        assert_eq!(e.code().code(), "55P03", "{e:?}");
    }
    // Each server is one group only, whatever its configuration says later.
    one.batch_execute("set shardman.rgid = 2").await?;
    refused(&one, "create table late(id int)", "not clear which replication group").await;
    assert_eq!(cluster.have("late").await?, "ff");

    // Statements arrive in their order, also from one INSERT of several rows.
    one.batch_execute("reset shardman.rgid; insert into shardman.exec_2 (sql) values ('create table public.o(id int)'), ('insert into public.o values (1)'), ('alter table public.o add n int')").await?;
    assert_eq!(text(&cluster.sql(2).await?, "select count(*) from o where n is null").await?, "1");
    let config = "select array_agg(c::regclass order by c::regclass::text) from pg_extension, unnest(extconfig) c where extname = 'shardman'";
    assert_eq!(text(&one, config).await?, "{shardman.parts,shardman.repgroups,shardman.sharded_tables}");
    Ok(())
}

/// The steps that `ladle addnodes` takes.
#[tokio::test]
async fn a_group_joins() -> Result<()> {
    let mut cluster = Cluster::start(2).await?;
    let one = cluster.sql(1).await?;
    one.batch_execute(
        "create table x(id int primary key, t text) with (distributed_by='id', num_parts=4);
         create table y(id int primary key) with (distributed_by='id', colocate_with='x');
         create schema s; create table s.z(a int, b int, unique (a, b)) with (distributed_by='b', num_parts=2);
         insert into x select i, i from generate_series(1, 100) i; create table plain(id int)",
    )
    .await?;

    cluster.servers.push(start_server(3)?);
    let three = cluster.sql(3).await?;
    three.batch_execute("create extension shardman cascade").await?;
    let two = cluster.sql(2).await?;
    for existing in [&one, &two] {
        existing.batch_execute("begin; lock table shardman.repgroups in exclusive mode").await?;
    }
    copy_schema(cluster.server(1), cluster.server(3))?;

    let mut rows = Vec::new();
    for table in ["sharded_tables", "parts"] {
        let query = format!("select json_agg(t) from shardman.{table} t");
        rows.push((table, text(&one, &query).await?));
    }
    three.batch_execute("begin; select shardman.set_local_repgroup(3)").await?;
    for existing in [1, 2] {
        cluster.connect_group(&three, existing).await?;
    }
    for (table, json) in rows {
        let json = json.replace('\'', "''");
        three
            .batch_execute(&format!(
                "insert into shardman.{table} select * from json_populate_recordset(null::shardman.{table}, '{json}')"
            ))
            .await?;
    }
    three.batch_execute("select shardman.restamp_oids(); select shardman.restore_foreign_tables()").await?;
    for existing in [&one, &two] {
        cluster.connect_group(existing, 3).await?;
    }
    for (n, session) in [&one, &two, &three].into_iter().enumerate() {
        session.batch_execute(&format!("prepare transaction 'shardman:addnodes:{n}'")).await?;
    }
    for (n, session) in [&one, &two, &three].into_iter().enumerate() {
        session.batch_execute(&format!("commit prepared 'shardman:addnodes:{n}'")).await?;
    }

    assert_eq!(cluster.everywhere("select count(*) || ' ' || sum(id) from x").await?, ["100 5050"; 3]);
    let third = "x_0_fdw x_1_fdw x_2_fdw x_3_fdw y_0_fdw y_1_fdw y_2_fdw y_3_fdw s.z_0_fdw s.z_1_fdw";
    let children = text(&three, CHILDREN).await?;
    let mut children: Vec<&str> = children.split(' ').collect();
    let mut expected: Vec<&str> = third.split(' ').collect();
    children.sort_unstable();
    expected.sort_unstable();
    assert_eq!(children, expected);
    let keys = "select string_agg(conname, ' ' order by conname) from pg_constraint where contype in ('p', 'u') and connamespace::regnamespace::text in ('public', 's')";
    assert_eq!(text(&three, keys).await?, "x_pkey y_pkey z_a_b_key");
    let sysid = text(&three, "select system_identifier from pg_control_system()").await?;
    let servers = format!(
        "select count(*) from pg_foreign_server where array_to_string(srvoptions, ' ') like '%pgfdw:{sysid}:%'"
    );
    assert_eq!(text(&three, &servers).await?, "2");

    three.batch_execute("insert into s.z select i, i from generate_series(1, 50) i; create table n(id int primary key) with (distributed_by='id', num_parts=3); insert into n select generate_series(1, 30)").await?;
    assert_eq!(cluster.everywhere("select count(*) from n").await?, ["30"; 3]);
    assert_eq!(cluster.everywhere("select count(*) from s.z").await?, ["50"; 3]);
    one.batch_execute("alter table x add c int; drop table n").await?;
    assert_eq!(cluster.everywhere("select count(c) from x").await?, ["0"; 3]);

    refused(&one, "select shardman.restore_foreign_tables()", "not a new replication group").await;
    // A second time changes nothing.
    three.batch_execute("select shardman.restamp_oids(); select shardman.restore_foreign_tables()").await?;
    assert_eq!(cluster.everywhere("select count(*) from x").await?, ["100"; 3]);
    Ok(())
}

fn copy_schema(from: &Postgres, to: &Postgres) -> Result<()> {
    let dump = from
        .client_program("pg_dump")
        .args(["--schema-only", "--exclude-schema=shardman", "--lock-wait-timeout=10s"])
        .output()?;
    ensure!(dump.status.success(), "pg_dump: {}", String::from_utf8_lossy(&dump.stderr));
    let mut psql = to
        .client_program("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null"])
        .env("PGOPTIONS", "-c shardman.broadcast_utility=off")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    std::io::Write::write_all(&mut psql.stdin.take().context("stdin")?, &dump.stdout)?;
    let psql = psql.wait_with_output()?;
    ensure!(psql.status.success(), "psql: {}", String::from_utf8_lossy(&psql.stderr));
    Ok(())
}
