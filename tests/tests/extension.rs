//! The extension on three real servers: sharding, broadcast, refusals, and adding a fourth.

use anyhow::{Context as _, Result, ensure};
use std::process::Stdio;
use testkit::postgres::Postgres;
use tokio_postgres::error::{DbError, ErrorPosition};
use tokio_postgres::{Client, SimpleQueryMessage};

/// Replication groups 1..=n, each a server that knows all others.
struct Cluster {
    servers: Vec<Postgres>,
}

impl Cluster {
    async fn start(groups: usize) -> Result<Self> {
        let mut cluster = Self { servers: Vec::new() };
        for id in 1..=groups {
            cluster.servers.push(start_server(id)?);
        }
        for id in 1..=groups {
            let sql = cluster.sql(id).await?;
            sql.batch_execute("create extension shardman cascade").await.context("create extension")?;
            sql.execute("select shardman.set_local_repgroup($1)", &[&(id as i32)]).await?;
            for other in (1..=groups).filter(|other| *other != id) {
                cluster.connect_group(&sql, other).await?;
            }
        }
        Ok(cluster)
    }

    fn server(&self, id: usize) -> &Postgres {
        &self.servers[id - 1]
    }

    async fn sql(&self, id: usize) -> Result<Client> {
        self.server(id).connect().await
    }

    async fn connect_group(&self, sql: &Client, other: usize) -> Result<()> {
        let port = self.server(other).port().to_string();
        let call = "select shardman.connect_repgroup($1, '127.0.0.1', $2, 'postgres', null)";
        sql.execute(call, &[&(other as i32), &port]).await?;
        Ok(())
    }

    /// The first column of a query on every group, rows joined by commas.
    async fn everywhere(&self, query: &str) -> Result<Vec<String>> {
        let mut answers = Vec::new();
        for id in 1..=self.servers.len() {
            answers.push(text(&self.sql(id).await?, query).await?);
        }
        Ok(answers)
    }

    /// Whether groups have a relation, as "tft".
    async fn have(&self, relation: &str) -> Result<String> {
        Ok(self.everywhere(&format!("select to_regclass('{relation}') is not null")).await?.concat())
    }
}

fn start_server(id: usize) -> Result<Postgres> {
    Postgres::start(&["shared_preload_libraries = 'shardman'", &format!("shardman.rgid = {id}")])
        .context("start a server with the extension; if it is not installed, run make install-extension")
}

async fn text(sql: &Client, query: &str) -> Result<String> {
    let rows = sql.simple_query(query).await.with_context(|| query.to_owned())?;
    let cells = rows.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("null").to_owned()),
        _ => None,
    });
    Ok(cells.collect::<Vec<_>>().join(","))
}

/// The error that a statement must end with.
async fn error(sql: &Client, statement: &str) -> DbError {
    match sql.batch_execute(statement).await {
        Ok(()) => panic!("no error from: {statement}"),
        Err(e) => e.as_db_error().unwrap_or_else(|| panic!("not a database error: {e}")).clone(),
    }
}

/// A refusal must say what, why and what to do.
async fn refused(sql: &Client, statement: &str, what: &str) {
    let e = error(sql, statement).await;
    assert!(e.message().contains(what), "{statement}: {e:?}");
    assert!(e.detail().is_some_and(|d| !d.is_empty() && !d.contains("backtrace")), "{statement}: {e:?}");
    assert!(e.hint().is_some_and(|h| !h.is_empty()), "{statement}: {e:?}");
}

const PARTS: &str = "select string_agg(rgid::text, '' order by relname, pnum) from shardman.parts join shardman.sharded_tables using (rel)";
const CHILDREN: &str =
    "select string_agg(inhrelid::regclass::text, ' ' order by inhrelid::regclass::text) from pg_inherits";

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

#[tokio::test]
async fn broadcast() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let two = cluster.sql(2).await?;
    // Several statements in one string, text with comments, another schema in the path, quoting.
    two.batch_execute(
        "create schema app; set search_path = app, public; /* a */ create table t(id int, s text default 'it''s;') -- b
         ; create index t_i on t(id); create view v as select * from t; comment on table t is 'x';
         create type mood as enum ('a'); create function f() returns int language sql as $$ select 1 $$;
         alter table t add column n int; create role bob; grant select on t to bob",
    )
    .await?;
    for relation in ["app.t", "app.t_i", "app.v"] {
        assert_eq!(cluster.have(relation).await?, "ttt", "{relation}");
    }
    assert_eq!(cluster.everywhere("select obj_description('app.t'::regclass) || app.f()").await?, ["x1"; 3]);
    assert_eq!(cluster.everywhere("select has_table_privilege('bob', 'app.t', 'select')").await?, ["t"; 3]);

    // In a DO block, and in a function that runs twice: the plan cache must not keep a changed tree.
    two.batch_execute(
        "do $$ begin create table app.d(id int); execute 'create table app.e(id int)'; end $$;
         create function app.make() returns void language plpgsql as $$ begin
            create table if not exists app.m(id int primary key) with (distributed_by='id', num_parts=3);
            drop table app.m;
            create table app.m(id int primary key) with (distributed_by='id', num_parts=3); drop table app.m; end $$;
         select app.make(); select app.make();
         do $$ begin create table app.m(id int primary key) with (distributed_by='id', num_parts=3); end $$;
         create table if not exists app.m(id int primary key) with (distributed_by='id', num_parts=3)",
    )
    .await?;
    for relation in ["app.d", "app.e", "app.m"] {
        assert_eq!(cluster.have(relation).await?, "ttt", "{relation}");
    }
    assert_eq!(cluster.everywhere("select count(*) from shardman.parts").await?, ["3"; 3]);

    // Not schema changes, but sent.
    two.batch_execute("begin; set constraints all deferred; commit; checkpoint; load 'plpgsql'").await?;

    // In a repeatable-read transaction, too.
    two.batch_execute("begin isolation level repeatable read; select 1; create table app.rr(id int); insert into app.rr values (1); commit").await?;
    assert_eq!(cluster.have("app.rr").await?, "ttt");

    // Only here: switched off, temporary, sequences, foreign servers.
    two.batch_execute(
        "create temp table tmp(id int); create index on tmp(id); alter table tmp add x int; create view tv as select * from tmp;
         drop view tv; drop table tmp; create sequence sq; alter sequence sq owner to postgres; comment on sequence sq is 'c';
         grant select on sequence sq to bob; alter table sq owner to bob;
         create server fs foreign data wrapper postgres_fdw; create foreign table ft(id int) server fs;
         alter foreign table ft add y int; alter table ft add z int; drop foreign table ft; drop server fs;
         set shardman.broadcast_utility = off; create table off_(id int); reset shardman.broadcast_utility;
         drop sequence sq",
    )
    .await?;
    assert_eq!(cluster.have("app.off_").await?, "ftf");

    // Sessions of other groups must not send on what they receive, nor anything else.
    let participant = cluster.server(2).connect_with("application_name=pgfdw:1:2:3").await?;
    participant.batch_execute("create table quiet(id int)").await?;
    assert_eq!(cluster.have("quiet").await?, "ftf");

    // The sender's role and its lack of rights travel with the statement.
    two.batch_execute("grant create, usage on schema app to bob; set role bob; create table app.bobs(id int primary key) with (distributed_by='id', num_parts=3)").await?;
    let owners =
        "select distinct relowner::regrole from pg_class where relname like 'bobs%' and relkind in ('r', 'f', 'p')";
    assert_eq!(cluster.everywhere(owners).await?, ["bob"; 3]);
    for call in [
        "shardman.ex_sql(1, 'select 1')",
        "shardman.bcst_all_sql('select 1')",
        "shardman.execute('select 1', '', 'postgres', '')",
        "shardman.send(1, 'select 1')",
    ] {
        let e = error(&two, &format!("select {call}")).await;
        assert_eq!(e.code().code(), "42501", "{e:?}");
    }
    // The sessions that run it elsewhere belong to a superuser: a function must not be able to become one there.
    two.batch_execute(
        "reset role; alter role bob login; set role bob;
         create function app.climb() returns int language plpgsql as $$ begin
            if current_setting('shardman.rgid') <> '2' then perform set_config('role', 'postgres', true); end if;
            return 1; end $$",
    )
    .await?;
    let bob = cluster.server(2).connect_with("user=bob").await?;
    let climbed = error(&bob, "create table app.climbed as select app.climb()").await;
    assert_eq!(climbed.code().code(), "42501", "{climbed:?}");
    assert_eq!(cluster.have("app.climbed").await?, "fff");
    Ok(())
}

#[tokio::test]
async fn refused_statements() -> Result<()> {
    let cluster = Cluster::start(2).await?;
    let one = cluster.sql(1).await?;
    one.batch_execute(
        "create table t(id int); create index t_i on t(id); create table x(id int primary key) with (distributed_by='id', num_parts=2);
         create table y(id int) with (distributed_by='id', colocate_with='x'); create table lone(id int not null)",
    )
    .await?;
    for (statement, what) in [
        ("create index concurrently on t(id)", "CREATE INDEX CONCURRENTLY"),
        ("drop index concurrently t_i", "DROP INDEX CONCURRENTLY"),
        ("reindex table concurrently t", "REINDEX CONCURRENTLY"),
        ("reindex schema public", "REINDEX of a schema"),
        ("reindex table x", "REINDEX of a partitioned"),
        ("alter system set work_mem = '8MB'", "ALTER SYSTEM"),
        ("create tablespace ts location '/nowhere'", "CREATE TABLESPACE"),
        ("drop tablespace ts", "DROP TABLESPACE"),
        ("alter database postgres set tablespace pg_default", "ALTER DATABASE SET TABLESPACE"),
        ("cluster", "CLUSTER"),
        ("drop table x_0", "partition of the sharded table \"x\""),
        ("drop foreign table x_1_fdw", "partition of the sharded table \"x\""),
        ("alter table x_0 add c int", "partition of the sharded table \"x\""),
        ("alter table x_0 rename to z", "partition of the sharded table \"x\""),
        ("create index on x_0(id)", "partition of the sharded table \"x\""),
        ("alter table x detach partition x_0", "cannot be changed by hand"),
        ("alter table x attach partition lone for values with (modulus 4, remainder 3)", "cannot be changed by hand"),
        ("create table x_9 partition of x for values with (modulus 4, remainder 3)", "cannot be changed by hand"),
        ("drop table x", "cannot drop table \"x\""),
    ] {
        refused(&one, statement, what).await;
    }
    let e = error(&one, "alter system set work_mem = '8MB'").await;
    let hint = e.hint().unwrap_or_default();
    for name in ["shardman.broadcast_utility = off", "shardmanctl forall", "shardmanctl update"] {
        assert!(hint.contains(name), "{hint}");
    }
    // With broadcasting off the tools can do all of it.
    one.batch_execute(
        "set shardman.broadcast_utility = off; create index on x_0(id); reset shardman.broadcast_utility",
    )
    .await?;
    one.batch_execute("create index concurrently on t(id)").await.unwrap_err();

    // CASCADE keeps the colocated table.
    one.batch_execute("drop table x cascade").await?;
    assert_eq!(
        cluster
            .everywhere("select relname || nparts || coalesce(colocated_with::text, '-') from shardman.sharded_tables")
            .await?,
        ["y2-"; 2]
    );
    one.batch_execute("insert into y values (1), (3); drop table y").await?;
    assert_eq!(cluster.everywhere("select count(*) from shardman.parts").await?, ["0"; 2]);
    assert_eq!(cluster.everywhere("select count(*) from pg_class where relname ~ '^[xy]_'").await?, ["0"; 2]);
    Ok(())
}

#[tokio::test]
async fn schema_changes_of_a_sharded_table() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let one = cluster.sql(1).await?;
    one.batch_execute(
        "create table x(id int primary key, t text) with (distributed_by='id', num_parts=3);
         insert into x select i, i from generate_series(1, 100) i;
         alter table x add column c int default 7; create index x_t on x(t); alter table x rename column t to u;
         alter table x alter c type bigint; alter table x alter c set not null; analyze x",
    )
    .await?;
    assert_eq!(cluster.everywhere("select sum(c) || max(u) from x").await?, ["70099"; 3]);
    let indexed = "select count(*) from pg_indexes where tablename ~ '^x_[0-9]$' and indexdef like '%(u)'";
    assert_eq!(cluster.everywhere(indexed).await?, ["1"; 3]);
    // From another coordinator.
    let three = cluster.sql(3).await?;
    three.batch_execute("alter table x drop column c; truncate x; insert into x values (1, ''), (2, '')").await?;
    assert_eq!(cluster.everywhere("select count(*) from x").await?, ["2"; 3]);
    three.batch_execute("drop table x").await?;
    assert_eq!(cluster.everywhere("select count(*) from pg_class where relname ~ '^x'").await?, ["0"; 3]);
    assert_eq!(cluster.everywhere("select count(*) from shardman.sharded_tables").await?, ["0"; 3]);
    Ok(())
}

#[tokio::test]
async fn keys_of_a_sharded_table_change() -> Result<()> {
    let cluster = Cluster::start(2).await?;
    let one = cluster.sql(1).await?;
    one.batch_execute(
        "create table x(id int not null, n int not null) with (distributed_by='id', num_parts=2);
         insert into x values (1, 1), (3, 3); alter table x add primary key (id); create unique index x_u on x(id, n);
         alter table x add constraint pair unique (n, id)",
    )
    .await?;
    let keys = "select string_agg(relname, ' ' order by relname) from pg_class where relkind in ('i', 'I') and relname ~ '^(x|pair)'";
    let (first, second) =
        ("pair x_0_id_n_idx x_0_n_id_key x_0_pkey x_pkey x_u", "pair x_1_id_n_idx x_1_n_id_key x_1_pkey x_pkey x_u");
    assert_eq!(cluster.everywhere(keys).await?, [first, second]);
    for row in ["(1, 9)", "(3, 9)"] {
        assert_eq!(error(&one, &format!("insert into x values {row}")).await.code().code(), "23505");
    }
    let two = cluster.sql(2).await?;
    two.batch_execute("drop index x_u; alter table x drop constraint pair; alter table x drop constraint x_pkey")
        .await?;
    assert_eq!(
        cluster
            .everywhere("select count(*) from pg_class where relkind in ('i', 'I') and relname ~ '^(x|pair)'")
            .await?,
        ["0"; 2]
    );
    two.batch_execute("insert into x values (1, 1), (3, 3)").await?;
    // Rows that break the key keep it away on all groups.
    assert_eq!(error(&one, "alter table x add primary key (id)").await.code().code(), "23505");
    assert!(error(&one, "alter table x add unique (n)").await.message().contains("partitioning columns"));
    assert_eq!(
        cluster.everywhere("select count(*) from pg_class where relkind in ('i', 'I') and relname ~ '^x'").await?,
        ["0"; 2]
    );
    Ok(())
}

#[tokio::test]
async fn rollback_and_errors() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let one = cluster.sql(1).await?;
    one.batch_execute("begin; create table x(id int primary key) with (distributed_by='id', num_parts=5); insert into x select generate_series(1, 10); create table t(id int); rollback").await?;
    assert_eq!(cluster.have("x").await? + &cluster.have("t").await?, "ffffff");
    assert_eq!(cluster.everywhere("select count(*) from shardman.parts").await?, ["0"; 3]);
    one.batch_execute("begin; savepoint s; create table x(id int) with (distributed_by='id'); rollback to s; create table t(id int); commit").await?;
    assert_eq!(cluster.have("x").await? + &cluster.have("t").await?, "fffttt");

    // An error on another group undoes the statement here, too, and the session goes on broadcasting.
    let three = cluster.sql(3).await?;
    three.batch_execute("set shardman.broadcast_utility = off; create table clash(id int)").await?;
    let e = error(&one, "create table clash(id int)").await;
    assert_eq!(e.code().code(), "42P07", "{e:?}");
    assert_eq!(e.detail(), Some("This happened on replication group 3."));
    assert_eq!(cluster.have("clash").await?, "fft");
    error(&one, "create table bad(id nosuchtype)").await;
    one.batch_execute("do $$ begin create table clash(id int); exception when duplicate_table then create table after_(id int); end $$").await?;
    assert_eq!(cluster.have("after_").await?, "ttt");
    one.batch_execute("create table again(id int)").await?;
    assert_eq!(cluster.have("again").await?, "ttt");
    Ok(())
}

#[tokio::test]
async fn errors_look_as_without_the_extension() -> Result<()> {
    let cluster = Cluster::start(2).await?;
    let stock = Postgres::start(&[])?;
    let (with, without) = (cluster.sql(1).await?, stock.connect().await?);
    for setup in [
        "create table t(id int primary key, n int constraint positive check (n > 0)); create domain d as int constraint dc check (value > 0)",
    ] {
        with.batch_execute(setup).await?;
        without.batch_execute(setup).await?;
    }
    for statement in [
        "create table z(id int, x nosuchtype)",
        "create table z(id int",
        "create table z(id int default nosuch())",
        "select 1; create index on t(nosuch)",
        "alter table t add constraint positive check (n > 1)",
        "insert into t values (1, -1)",
        "do $$ begin insert into t values (1, -1); end $$",
        "do $$ begin create table z(id nosuchtype); end $$",
        "do $$ begin execute 'alter table t add column id int'; end $$",
        "insert into t values (1, 1), (1, 1)",
        "create table z as select (-1)::d",
        "drop table nosuch",
        "create view z as select nosuch from t",
    ] {
        let fields = |e: DbError| {
            let position = match e.position() {
                Some(ErrorPosition::Original(at)) => format!("{at}"),
                Some(ErrorPosition::Internal { position, query }) => format!("{position} in {query}"),
                None => String::new(),
            };
            format!(
                "{:?}",
                (
                    e.code().code().to_owned(),
                    e.message().to_owned(),
                    e.detail().map(str::to_owned),
                    e.hint().map(str::to_owned),
                    position,
                    e.where_().map(str::to_owned),
                    (e.schema().map(str::to_owned), e.table().map(str::to_owned), e.column().map(str::to_owned)),
                    (e.datatype().map(str::to_owned), e.constraint().map(str::to_owned)),
                    (e.file().map(str::to_owned), e.line(), e.routine().map(str::to_owned)),
                )
            )
        };
        assert_eq!(fields(error(&with, statement).await), fields(error(&without, statement).await), "{statement}");
    }
    Ok(())
}

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
