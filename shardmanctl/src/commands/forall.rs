//! `forall`: SQL on every replication group, in one transaction on each.

use crate::topology::{self, APPLICATION, Topology};
use anyhow::{Context as _, bail};
use common::exit::{Hinted, UsageError};
use futures::future::join_all;
use model::RepGroupId;
use model::keys::ClusterKeys;
use pg::{Endpoints, Login, Session};
use std::fmt::Write as _;
use std::io::Write;
use store::SharedStore;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::SqlState;

/// What the session needs: nothing that runs on every group anyway may be sent on to the others, and the user's
/// statements may take as long as they like.
const SESSION: &str = "SET shardman.broadcast_utility = off; SET statement_timeout = 0";

/// A group's answer.
type Answer = (RepGroupId, anyhow::Result<Vec<String>>);

/// Runs `sql` on all groups at once and prints what they return. Nothing is committed if it fails on any group.
///
/// # Errors
/// A group can't be reached or refuses; the text says which, and on which groups the transaction was committed.
pub async fn run(
    store: SharedStore,
    keys: &ClusterKeys,
    sql: &str,
    twophase: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    if twophase {
        bail!(Hinted {
            message: "--twophase is not available yet".into(),
            hint: "without it, nothing is committed either if the SQL fails on any group".into(),
        });
    }
    if sql.trim().is_empty() {
        bail!(UsageError("--sql is empty; give the SQL to run".into()));
    }
    let topology = topology::read(&store, keys).await?;
    let sessions = connect(&topology).await?;
    let answers = join_all(sessions.iter().map(|(id, session)| async { (*id, execute(session, sql).await) })).await;
    let answers = match unanimous(answers) {
        Ok(answers) => answers,
        Err(error) => {
            // Rolled back anyway when the connections end; this only makes it certain before we say so.
            join_all(sessions.iter().map(|(_, session)| session.batch_execute("ROLLBACK"))).await;
            return Err(error);
        }
    };
    let commits = join_all(sessions.iter().map(|(id, session)| async {
        (*id, session.batch_execute("COMMIT").await.map_err(|error| anyhow::anyhow!(server_words(&error))))
    }));
    let outcome = committed(&commits.await);
    out.write_all(render(&answers).as_bytes())?;
    outcome
}

async fn connect(topology: &Topology) -> anyhow::Result<Vec<(RepGroupId, Session)>> {
    let login = Login::superuser(&topology.spec, APPLICATION);
    let sessions = topology.groups.iter().map(|(id, group)| {
        let login = &login;
        async move {
            let master = group.data.as_ref().ok_or(pg::NoMaster).and_then(pg::endpoints::master);
            let what = || format!("group {id} ({}); nothing was run", group.doc.stolon_name);
            let endpoints = Endpoints(vec![master.with_context(what)?]);
            let session = pg::connect(&endpoints, login, pg::connect::TIMEOUT).await.with_context(what)?;
            session.batch_execute(SESSION).await.with_context(what)?;
            anyhow::Ok((*id, session))
        }
    });
    join_all(sessions).await.into_iter().collect()
}

async fn execute(session: &Session, sql: &str) -> anyhow::Result<Vec<String>> {
    let run = async {
        // READ WRITE: refused where the published master is still in recovery.
        session.batch_execute("BEGIN READ WRITE").await?;
        session.simple_query(sql).await
    };
    match run.await {
        Ok(messages) => Ok(rows(&messages)),
        Err(error) => Err(anyhow::anyhow!(server_words(&error))),
    }
}

/// The server's message with its hint, in one line.
fn server_words(error: &tokio_postgres::Error) -> String {
    let Some(db) = error.as_db_error() else { return error.to_string() };
    let mut text = db.message().to_owned();
    if *db.code() == SqlState::ACTIVE_SQL_TRANSACTION {
        text.push_str("; forall runs everything in a transaction, so do this with psql on each group");
    }
    text
}

/// One text per row, columns separated by tabs; null is empty.
fn rows(messages: &[SimpleQueryMessage]) -> Vec<String> {
    let text = |row: &tokio_postgres::SimpleQueryRow| {
        let columns = (0..row.len()).map(|column| row.try_get(column).ok().flatten().unwrap_or_default());
        columns.collect::<Vec<_>>().join("\t")
    };
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some(text(row)),
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}

/// The rows of all groups, or one error that names each group which failed.
fn unanimous(answers: Vec<Answer>) -> anyhow::Result<Vec<(RepGroupId, Vec<String>)>> {
    let failed = failures(answers.iter().map(|(id, answer)| (*id, answer.as_ref().err())));
    if !failed.is_empty() {
        bail!(Hinted {
            message: format!("the SQL failed on {failed}; nothing was committed on any group"),
            hint: "correct the SQL and run it again".into(),
        });
    }
    Ok(answers.into_iter().filter_map(|(id, answer)| Some((id, answer.ok()?))).collect())
}

fn committed(commits: &[(RepGroupId, anyhow::Result<()>)]) -> anyhow::Result<()> {
    let failed = failures(commits.iter().map(|(id, commit)| (*id, commit.as_ref().err())));
    if failed.is_empty() {
        return Ok(());
    }
    let done = commits.iter().filter(|(_, commit)| commit.is_ok()).map(|(id, _)| id.to_string());
    let done = done.collect::<Vec<_>>().join(", ");
    let done = if done.is_empty() { "no group".to_owned() } else { format!("groups {done}") };
    bail!(Hinted {
        message: format!("committed on {done}, but the commit failed on {failed}"),
        hint: "look at those groups before you run the SQL there again: a lost answer may hide a commit".into(),
    })
}

/// `group 1: why; group 2: why`, or nothing.
fn failures<'a>(outcomes: impl Iterator<Item = (RepGroupId, Option<&'a anyhow::Error>)>) -> String {
    let failed = outcomes.filter_map(|(id, error)| Some(format!("group {id}: {}", common::exit::one_line(error?))));
    failed.collect::<Vec<_>>().join("; ")
}

/// What is printed: groups in their order, those that returned nothing left out.
fn render(answers: &[(RepGroupId, Vec<String>)]) -> String {
    let mut text = String::new();
    for (id, rows) in answers.iter().filter(|(_, rows)| !rows.is_empty()) {
        let _ = writeln!(text, "Node {id} says:\n{}", rows.join("\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::tests::{cluster_data, repgroup, spec};
    use std::sync::Arc;
    use store::MemoryStore;
    use testkit::postgres::Postgres;

    #[test]
    fn groups_speak_in_their_order() {
        let answers = [(1, vec!["a"]), (2, vec![]), (10, vec!["b\tc", ""])];
        let answers = answers.map(|(id, rows)| (RepGroupId(id), rows.into_iter().map(str::to_owned).collect()));
        assert_eq!(render(&answers), "Node 1 says:\na\nNode 10 says:\nb\tc\n\n");
    }

    #[test]
    fn every_failure_is_named() {
        let error = |text: &str| anyhow::anyhow!(text.to_owned());
        let answers =
            vec![(RepGroupId(1), Ok(vec![])), (RepGroupId(2), Err(error("x"))), (RepGroupId(3), Err(error("y")))];
        let text = unanimous(answers).unwrap_err().to_string();
        assert_eq!(text, "the SQL failed on group 2: x; group 3: y; nothing was committed on any group");
        let text = committed(&[(RepGroupId(1), Ok(())), (RepGroupId(2), Err(error("x")))]).unwrap_err().to_string();
        assert_eq!(text, "committed on groups 1, but the commit failed on group 2: x");
    }

    #[tokio::test]
    async fn all_or_none_on_real_servers() {
        let servers = [Postgres::start(&[]).unwrap(), Postgres::start(&[]).unwrap()];
        let store: SharedStore = Arc::new(MemoryStore::new());
        let keys = ClusterKeys::new(&"c".into());
        store.put(&keys.spec(), &spec(false), None).await.unwrap();
        for (id, server) in (1..).zip(&servers) {
            store.put(&keys.repgroup(RepGroupId(id)), &repgroup(&format!("g{id}"), "active"), None).await.unwrap();
            let data = cluster_data("d", "127.0.0.1", server.port(), &[]);
            store.put(&format!("stolon/cluster/g{id}/clusterdata"), &data, None).await.unwrap();
        }
        let forall = async |sql: &str| {
            let mut out = Vec::new();
            run(store.clone(), &keys, sql, false, &mut out).await.map(|()| String::from_utf8(out).unwrap())
        };
        assert_eq!(
            forall("CREATE TABLE t (i int, s text); INSERT INTO t VALUES (1, NULL), (2, 'b')").await.unwrap(),
            ""
        );
        let text = forall("SELECT * FROM t ORDER BY i; SHOW shardman.broadcast_utility").await.unwrap();
        assert_eq!(text, "Node 1 says:\n1\t\n2\tb\noff\nNode 2 says:\n1\t\n2\tb\noff\n");

        let first = servers[0].connect().await.unwrap();
        let count = async || first.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get::<_, i64>(0);
        servers[1].psql("DROP TABLE t").unwrap();
        let error = forall("INSERT INTO t VALUES (3)").await.unwrap_err().to_string();
        assert!(error.starts_with("the SQL failed on group 2: relation \"t\" does not exist"), "{error}");
        assert_eq!(count().await, 2);
        let error = forall("ALTER SYSTEM SET work_mem = '8MB'").await.unwrap_err().to_string();
        assert!(error.contains("psql on each group"), "{error}");

        store.put("stolon/cluster/g2/clusterdata", &cluster_data("d", "127.0.0.1", 1, &[]), None).await.unwrap();
        let error = forall("DROP TABLE t").await.unwrap_err().to_string();
        assert_eq!(error, "group 2 (g2); nothing was run");
        assert_eq!(count().await, 2);
        assert!(run(store.clone(), &keys, "SELECT 1", true, &mut Vec::new()).await.is_err());
    }
}
