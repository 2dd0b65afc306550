//! Tables that are made sharded, and what is refused there.

use crate::{CHILDREN, Cluster, PARTS, error, refused, text};
use anyhow::Result;

#[tokio::test]
async fn create_table_distributed_by() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let one = cluster.sql(1).await?;
    one.batch_execute(
        "create table x(id int primary key, t text not null) with (distributed_by='id', num_parts=2);
         insert into x values (1, 'a'), (2, 'b'), (3, 'c')",
    )
    .await?;
    assert_eq!(cluster.everywhere(CHILDREN).await?, ["x_0 x_1_fdw", "x_0_fdw x_1", "x_0_fdw x_1_fdw"]);
    assert_eq!(cluster.everywhere(PARTS).await?, ["12", "12", "12"]);
    // Facts of the hash function: 1 and 2 have remainder 0, 3 has 1.
    assert_eq!(text(&one, "select string_agg(id::text, '' order by id) from only x_0").await?, "12");
    assert_eq!(text(&one, "select string_agg(id::text, '' order by id) from x_1_fdw").await?, "3");
    assert_eq!(cluster.everywhere("select count(*) from x").await?, ["3", "3", "3"]);
    one.batch_execute("truncate x; insert into x values (6, ''), (9, ''), (11, '')").await?;
    assert_eq!(text(&one, "select count(*) from x_1_fdw").await?, "3");

    let described = cluster.server(1).psql("\\d x_0")?;
    assert!(described.contains("\"x_0_pkey\" PRIMARY KEY, btree (id)"), "{described}");
    assert!(described.contains("FOR VALUES WITH (modulus 2, remainder 0)"), "{described}");
    let described = cluster.server(1).psql("\\d x_1_fdw")?;
    assert!(
        described.contains("shardman_rg_2") && described.contains("FDW options: (table_name 'x_1')"),
        "{described}"
    );
    assert!(cluster.server(1).psql("\\d x")?.contains("\"x_pkey\" PRIMARY KEY"));
    let not_null = "select string_agg(attname, '' order by attnum) from pg_attribute where attrelid = 'x_1_fdw'::regclass and attnotnull and attnum > 0";
    assert_eq!(text(&one, not_null).await?, "idt");

    // The shards enforce the key, also for one another's rows.
    let duplicate = error(&one, "insert into x values (11, 'again')").await;
    assert!(duplicate.message().contains("x_1_pkey"), "{duplicate:?}");
    // A row that would have to move to another group is not silently left behind.
    let moved = error(&one, "update x set id = id + 200000").await;
    assert!(moved.message().contains("violates partition constraint"), "{moved:?}");
    Ok(())
}

#[tokio::test]
async fn keys_and_names() -> Result<()> {
    let cluster = Cluster::start(2).await?;
    let one = cluster.sql(1).await?;
    let long = format!("{}ä", "n".repeat(61));
    one.batch_execute(&format!(
        "create schema \"S \"\"x\";
         create table \"S \"\"x\".\"T t\"(\"A\" int, b int, c int, constraint k unique (b, \"A\"), primary key (\"A\", b))
            with (distributed_by='\"A\", b', num_parts=2);
         create table {long}(id int primary key) with (distributed_by='id', num_parts=2);
         create table {}(id int primary key) with (distributed_by='id', num_parts=2);
         insert into {long} select generate_series(1, 50);
         insert into \"S \"\"x\".\"T t\" select i, i, i from generate_series(1, 100) i",
        "n".repeat(63)
    ))
    .await?;
    let keys = "select string_agg(conname, ' ' order by conname) from pg_constraint where contype in ('p', 'u') and connamespace = '\"S \"\"x\"'::regnamespace";
    assert_eq!(
        cluster.everywhere(keys).await?,
        ["T t_0_b_A_key T t_0_pkey T t_pkey k", "T t_1_b_A_key T t_1_pkey T t_pkey k"]
    );
    assert_eq!(cluster.everywhere("select count(*) from \"S \"\"x\".\"T t\"").await?, ["100", "100"]);
    assert_eq!(cluster.everywhere(&format!("select count(*) from {long}")).await?, ["50", "50"]);
    let options = "select string_agg(ftoptions::text, '') from pg_foreign_table where ftrelid = '\"S \"\"x\".\"T t_1_fdw\"'::regclass";
    assert!(text(&one, options).await?.contains("schema_name"));

    // A table keeps working, and its metadata stay right, when it or its schema is renamed.
    one.batch_execute("alter schema \"S \"\"x\" rename to s2; alter table s2.\"T t\" rename to t2").await?;
    let two = cluster.sql(2).await?;
    two.batch_execute("insert into s2.t2 select i, i, i from generate_series(101, 200) i").await?;
    assert_eq!(cluster.everywhere("select count(*) from s2.t2").await?, ["200", "200"]);
    let names = "select nspname || '.' || relname || ' ' || partnsp from shardman.sharded_tables where nspname = 's2'";
    assert_eq!(cluster.everywhere(names).await?, ["s2.t2 s2", "s2.t2 s2"]);

    // A unique index of a table that is sharded later.
    one.batch_execute(
        "create table u(a int, b int) partition by hash (a); create unique index u_ab on u(a, b) include (b);
         create index u_b on u(b); select shardman.hash_shard_table('u', 2); insert into u values (1, 1), (3, 3)",
    )
    .await?;
    assert!(error(&one, "insert into u values (3, 3)").await.message().contains("u_1_"));
    assert!(error(&one, "insert into u values (1, 1)").await.message().contains("u_0_"));
    Ok(())
}

#[tokio::test]
async fn hash_shard_table() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let one = cluster.sql(1).await?;
    one.batch_execute(
        "select shardman.bcst_all_sql('create table test(id int primary key, t text) partition by hash (id)');
         select shardman.hash_shard_table('test', 4);
         insert into test select i, 'row ' || i from generate_series(1, 10000) i",
    )
    .await?;
    assert_eq!(cluster.everywhere("select count(*) || ' ' || sum(id) from test").await?, ["10000 50005000"; 3]);
    assert_eq!(cluster.everywhere(PARTS).await?, ["1231"; 3]);
    // The remainder of each key modulus 4, from the partition a row is in.
    let remainders = "select string_agg(right(replace(tableoid::regclass::text, '_fdw', ''), 1), '' order by id) from test where id <= 16";
    assert_eq!(cluster.everywhere(remainders).await?, [REMAINDERS; 3]);

    one.batch_execute("create table c(k int) partition by hash (k); select shardman.hash_shard_table('c', 4, 'test')")
        .await?;
    assert_eq!(cluster.everywhere(PARTS).await?, ["12311231"; 3]);
    one.batch_execute("create table d(k int) with (distributed_by='k', colocate_with='test')").await?;
    assert_eq!(cluster.everywhere(PARTS).await?, ["123112311231"; 3]);
    // Group 1 holds two partitions of each table: the next table starts elsewhere.
    one.batch_execute("create table e(k int) with (distributed_by='k', num_parts=3)").await?;
    let e = "select string_agg(rgid::text, '' order by pnum) from shardman.parts where rel = 'e'::regclass";
    assert_eq!(cluster.everywhere(e).await?, ["231"; 3]);

    one.batch_execute(
        "create table plain(id int); create table list(id int) partition by list (id);
         create table full_(id int) partition by hash (id); create table other(k text) partition by hash (k);
         set shardman.broadcast_utility = off; create table part partition of full_ for values with (modulus 1, remainder 0);
         create table here(id int) partition by hash (id); reset shardman.broadcast_utility",
    )
    .await?;
    for (call, what) in [
        ("'plain', 2", "not partitioned by hash"),
        ("'list', 2", "not partitioned by hash"),
        ("'full_', 2", "already has partitions"),
        ("'test', 2", "already sharded"),
        ("'other', 0", "cannot have 0 partitions"),
        ("'other', 4, 'plain'", "cannot be colocated"),
        ("'other', 3, 'test'", "cannot be colocated"),
        ("'other', 4, 'c'", "cannot be colocated"),
        ("'other', 4, 'test'", "cannot be colocated"),
        ("null, 4", "cannot be sharded"),
        ("'other', null", "cannot be sharded"),
        ("'here', 2", "does not exist on replication group 2"),
    ] {
        let statement = format!("select shardman.hash_shard_table({call})");
        if call.starts_with("'here'") {
            assert!(error(&one, &statement).await.message().contains(what), "{statement}");
        } else {
            refused(&one, &statement, what).await;
        }
    }
    assert_eq!(cluster.everywhere("select count(*) from shardman.sharded_tables").await?, ["4"; 3]);
    Ok(())
}

/// Keys 1 to 16: {1,12,14,16} have remainder 0, {3,5,8,9,11} 1, {2,13} 2, {4,6,7,10,15} 3.
const REMAINDERS: &str = "0213133113102030";

#[tokio::test]
async fn refusals_of_create_table() -> Result<()> {
    let cluster = Cluster::start(2).await?;
    let one = cluster.sql(1).await?;
    one.batch_execute("create table p(id int) partition by hash (id); create table r(id int primary key)").await?;
    for (statement, what) in [
        ("create table x(id int) with (distributed_by='nope')", "\"nope\""),
        ("create table x(id int) with (distributed_by='')", "no valid distribution column"),
        ("create table x(id int) with (num_parts=3)", "no distribution column"),
        ("create table x(id int) with (distributed_by='id', num_parts=0)", "cannot have 0 partitions"),
        ("create table x(id int) with (distributed_by='id', fillfactor=50)", "\"fillfactor\""),
        ("create table x(id int) with (distributed_by='id', colocate_with='nope')", "\"nope\" does not exist"),
        ("create table x(id int) partition by hash (id) with (distributed_by='id')", "cannot be distributed"),
        (
            "create table x partition of p for values with (modulus 1, remainder 0) with (distributed_by='id')",
            "cannot be distributed",
        ),
        ("create table x() inherits (r) with (distributed_by='id')", "cannot be distributed"),
        ("create temp table x(id int) with (distributed_by='id')", "cannot be distributed"),
        ("create unlogged table x(id int) with (distributed_by='id')", "cannot be distributed"),
        (
            "create table x(id int, k int primary key) with (distributed_by='id')",
            "lacks its distribution column \"id\"",
        ),
        (
            "create table x(id int, k int, unique (k)) with (distributed_by='id')",
            "lacks its distribution column \"id\"",
        ),
        ("create table x(id serial) with (distributed_by='id')", "column \"id\""),
        ("create table x(id int generated always as identity) with (distributed_by='id')", "column \"id\""),
        ("create table x(id int, g int generated always as (id) stored) with (distributed_by='id')", "column \"g\""),
        ("create table x(id int references r) with (distributed_by='id')", "foreign key"),
        ("create table x(id int, exclude using gist (id with =)) with (distributed_by='id')", "exclusion constraint"),
        ("create table x with (distributed_by='id') as select 1 as id", "CREATE TABLE AS"),
        ("create schema s create table x(id int) with (distributed_by='id')", "cannot be distributed"),
        (
            "set shardman.broadcast_utility = off; create table x(id int) with (distributed_by='id')",
            "cannot be distributed",
        ),
        (
            "select shardman.bcst_all_sql('create table x(id int) with (distributed_by=''id'')')",
            "cannot be distributed",
        ),
    ] {
        refused(&one, statement, what).await;
        one.batch_execute("reset shardman.broadcast_utility").await?;
    }
    assert_eq!(cluster.have("x").await?, "ff");
    // Not ours: PostgreSQL's own error.
    let e = error(&one, "create table x(id int) with (nonsense=1)").await;
    assert!(e.message().contains("unrecognized parameter \"nonsense\""), "{e:?}");
    Ok(())
}
