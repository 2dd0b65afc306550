//! One pass of duty 1 over one session: read, plan and alter in one transaction.

use super::plan::{Alteration, OptionMap, Plan, Server, Wanted, plan};
use super::sql;
use pg::{ConnectError, Endpoints, Session};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_postgres::SimpleQueryMessage;

/// Limit of connecting and of each statement; far above what is normal, so that only what hangs is cut off.
const LIMIT: Duration = Duration::from_secs(5);

/// Why a pass did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// No session.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A statement failed or the connection broke.
    #[error("alter the foreign servers on {master}")]
    Sql {
        /// The master.
        master: String,
        /// Why; the server's message, which holds no values of options.
        #[source]
        source: tokio_postgres::Error,
    },
    /// No answer.
    #[error("PostgreSQL at {master} did not answer within {} s", LIMIT.as_secs())]
    Timeout {
        /// The master.
        master: String,
    },
    /// The published master isn't one (yet).
    #[error("PostgreSQL at {master} is still in recovery")]
    InRecovery {
        /// The master.
        master: String,
    },
}

/// Connects to a group's master.
///
/// # Errors
/// See [`PassError`].
pub async fn open(wanted: &Wanted) -> Result<Session, PassError> {
    let endpoints = Endpoints(vec![wanted.master.clone()]);
    let session = pg::connect(&endpoints, &wanted.login, LIMIT).await?;
    within(wanted, session.batch_execute(sql::SESSION)).await?;
    Ok(session)
}

/// Compares and alters in one transaction; gives what was done. After an error the session must not be used again:
/// the transaction may still be open.
///
/// # Errors
/// See [`PassError`].
pub async fn pass(session: &Session, wanted: &Wanted) -> Result<Plan, PassError> {
    let answer = within(wanted, session.simple_query(&sql::begin_and_read(&wanted.login.user))).await?;
    let (in_recovery, servers) = read(&answer);
    if in_recovery {
        return Err(PassError::InRecovery { master: wanted.master.to_string() });
    }
    let plan = plan(wanted, &servers);
    let alter = |alteration: &Alteration| sql::render(alteration, &wanted.login.user);
    let mut statements: Vec<String> = plan.alterations.iter().flat_map(alter).collect();
    statements.push("COMMIT".to_owned());
    within(wanted, session.batch_execute(&statements.join("; "))).await?;
    Ok(plan)
}

/// The server's own limit on statements is of no help where the server or the network hangs.
async fn within<T>(
    wanted: &Wanted,
    call: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, PassError> {
    let master = || wanted.master.to_string();
    match tokio::time::timeout(LIMIT + Duration::from_secs(1), call).await {
        Ok(answer) => answer.map_err(|source| PassError::Sql { master: master(), source }),
        Err(_) => Err(PassError::Timeout { master: master() }),
    }
}

/// Takes the answer of [`sql::begin_and_read`] apart.
fn read(answer: &[SimpleQueryMessage]) -> (bool, BTreeMap<String, Server>) {
    let mut in_recovery = false;
    let mut servers: BTreeMap<String, Server> = BTreeMap::new();
    for message in answer {
        let SimpleQueryMessage::Row(row) = message else { continue };
        let text = |column| row.try_get(column).ok().flatten();
        if row.len() == 1 {
            // The lock's row is the empty text of a void.
            in_recovery |= text(0) == Some("t");
        } else if let (Some(name), Some(kind)) = (text(0), text(1)) {
            add(servers.entry(name.to_owned()).or_default(), kind, text(2));
        }
    }
    (in_recovery, servers)
}

fn add(server: &mut Server, kind: &str, option: Option<&str>) {
    let options: &mut OptionMap =
        if kind == "m" { server.mapping.get_or_insert_default() } else { &mut server.options };
    if let Some(option) = option {
        options.add(option);
    }
}
