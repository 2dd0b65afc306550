//! SQL of duty 1. Texts may hold a password: they are for the server only.

use super::plan::{Alteration, Change, MappingChange, server_name};
use model::clusterspec::Password;
use pg::quote::{ident, literal};

/// Serialises monitors on one group: ASCII of "SHMN-SRV". The second one finds nothing left to do.
const ADVISORY_LOCK: i64 = 0x5348_4d4e_2d53_5256;

/// What our sessions need, after connecting:
/// * nothing of what is done here may be sent to other groups;
/// * an answer must not wait for standbys: the failure that moved one group's master often took the standby of another
///   group with it. Should the change be lost with this master, it is made again on the next one;
/// * a monitor that froze in a transaction must not keep the others out;
/// * no password may get into the server's log.
pub const SESSION: &str = "SET shardman.broadcast_utility = off; SET synchronous_commit = local; \
    SET idle_in_transaction_session_timeout = '3s'; SET lock_timeout = '5s'; SET search_path = pg_catalog; \
    SET log_statement = none; SET log_min_duration_statement = -1; SET log_min_error_statement = panic";

/// Opens the transaction, waits for other monitors, and reads: whether the server is in recovery, then one row
/// (server, `s` or `m`, option) for each option of our servers and of the user's mappings, with a null option for a
/// server or mapping itself.
pub fn begin_and_read(user: &str) -> String {
    // READ COMMITTED: what is read must be newer than the wait for the lock.
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock({ADVISORY_LOCK}); \
         SELECT pg_is_in_recovery(); \
         WITH ours AS (SELECT oid, srvname, srvoptions FROM pg_foreign_server WHERE srvname ~ '^shardman_rg_[0-9]+$') \
         SELECT srvname, 's', NULL FROM ours UNION ALL SELECT srvname, 's', unnest(srvoptions) FROM ours UNION ALL \
         SELECT o.srvname, 'm', u.option FROM ours o JOIN pg_user_mapping m ON m.umserver = o.oid \
         JOIN pg_roles r ON r.oid = m.umuser AND r.rolname = {}, \
         LATERAL unnest(ARRAY[NULL] || coalesce(m.umoptions, '{{}}')) u (option)",
        literal(user)
    )
}

/// The statements of one alteration; `user` is the superuser whose mapping it concerns.
pub fn render(alteration: &Alteration, user: &str) -> Vec<String> {
    let server = ident(&server_name(alteration.group));
    let mut statements = Vec::new();
    if !alteration.options.is_empty() {
        statements.push(format!("ALTER SERVER {server} OPTIONS ({})", list(&alteration.options, String::as_str)));
    }
    match &alteration.mapping {
        None => {}
        Some(MappingChange::Create(changes)) => {
            let options = if changes.is_empty() { String::new() } else { format!(" OPTIONS ({})", initial(changes)) };
            statements.push(format!("CREATE USER MAPPING FOR {} SERVER {server}{options}", ident(user)));
        }
        Some(MappingChange::Alter(changes)) => {
            let options = list(changes, Password::reveal);
            statements.push(format!("ALTER USER MAPPING FOR {} SERVER {server} OPTIONS ({options})", ident(user)));
        }
    }
    statements
}

/// Names of options are labels in PostgreSQL's grammar: even a reserved word such as `user` stands without quotes.
fn list<T>(changes: &[Change<T>], text: impl Fn(&T) -> &str) -> String {
    let one = |change: &Change<T>| match change {
        Change::Add(name, value) => format!("ADD {name} {}", literal(text(value))),
        Change::Set(name, value) => format!("SET {name} {}", literal(text(value))),
        Change::Drop(name) => format!("DROP {name}"),
    };
    changes.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn initial(changes: &[Change<Password>]) -> String {
    let one = |change: &Change<Password>| match change {
        Change::Add(name, value) | Change::Set(name, value) => Some(format!("{name} {}", literal(value.reveal()))),
        Change::Drop(_) => None,
    };
    changes.iter().filter_map(one).collect::<Vec<_>>().join(", ")
}
