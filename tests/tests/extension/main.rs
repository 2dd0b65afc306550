//! The extension on three real servers: sharding, broadcast, refusals, and adding a fourth.

mod groups;
mod statements;
mod tables;

use anyhow::Context as _;
use anyhow::Result;
use testkit::postgres::Postgres;
use tokio_postgres::Client;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::DbError;

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
