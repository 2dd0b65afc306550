//! Statements that go to all groups, and how errors look.

use crate::{Cluster, error, refused};
use anyhow::Result;
use testkit::postgres::Postgres;
use tokio_postgres::error::DbError;
use tokio_postgres::error::ErrorPosition;

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
