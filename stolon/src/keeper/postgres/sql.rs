//! SQL on the own instance over its Unix socket, and on another member over TCP, always as superuser.

use super::conf::Parameters;
use super::in_force::Backend;
use super::slots::{self, SlotChanges};
use crate::keeper::args::Account;
use crate::keeper::error::{KeeperError, Result};
use pg::quote::{ident, literal};
use pg::tls::{self, OpenError, Tls};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, Row, Statement, error::SqlState};

/// Where and as whom to connect.
#[derive(Clone, Debug)]
pub struct Target {
    /// Host, or directory of the Unix socket.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Superuser.
    pub account: Account,
    /// Limit of connecting and of each statement.
    pub timeout: Duration,
    /// TLS, where the host is no socket.
    pub tls: Tls,
}

/// A session; its connection ends with it.
#[derive(Debug)]
pub struct Session {
    client: Client,
    task: JoinHandle<()>,
    timeout: Duration,
    /// What is asked every second or two is prepared once, which saves two of three round trips and PostgreSQL most of
    /// the work.
    look: OnceCell<Statement>,
    role: OnceCell<Statement>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a failed attempt to connect or query says about the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It answered that it has no room: it lives and works.
    Crowded,
    /// No answer in time.
    Slow,
    /// It is down, starting or stopping.
    Down,
}

/// Judges an error, so that a server which is merely busy is not declared dead.
pub fn liveness(error: &KeeperError) -> Liveness {
    match error {
        KeeperError::Sql { source, .. } => match source.code() {
            Some(code) if *code == SqlState::TOO_MANY_CONNECTIONS => Liveness::Crowded,
            Some(code) if *code == SqlState::QUERY_CANCELED => Liveness::Slow,
            _ => Liveness::Down,
        },
        KeeperError::NotYet(_) => Liveness::Slow,
        _ => Liveness::Down,
    }
}

/// Opens a session. `ended` is called when the connection ends, however it ends.
///
/// # Errors
/// The server can't be reached or refuses.
pub async fn connect(target: &Target, ended: impl FnOnce() + Send + 'static) -> Result<Session> {
    let mut config = Config::new();
    config.host(&target.host).port(target.port).user(&target.account.user).dbname("postgres");
    config.application_name("stolon-keeper").connect_timeout(target.timeout);
    // The keeper's own commits must never wait for a standby, and no user setting may end or mislead the session.
    config.options(format!(
        "-c statement_timeout={} -c synchronous_commit=local -c idle_session_timeout=0 -c search_path=pg_catalog \
         -c default_transaction_read_only=off",
        target.timeout.as_millis()
    ));
    if !target.account.password.is_empty() {
        config.password(target.account.password.reveal());
    }
    let (client, task) = match tokio::time::timeout(target.timeout, tls::open(&config, &target.tls, ended)).await {
        Ok(Ok(pair)) => pair,
        Ok(Err(OpenError::Postgres(source))) => return Err(KeeperError::Sql { what: "connect to postgres", source }),
        Ok(Err(OpenError::Tls(error))) => return Err(KeeperError::Other(format!("connect to postgres: {error}"))),
        Err(_) => return Err(KeeperError::NotYet("postgres does not answer to a connection".into())),
    };
    Ok(Session { client, task, timeout: target.timeout, look: OnceCell::new(), role: OnceCell::new() })
}

/// One persistent session to the own instance, shared by the probe and the state machine.
#[derive(Debug, Default)]
pub struct SharedSession(tokio::sync::Mutex<Option<Arc<Session>>>);

impl SharedSession {
    /// The session, opened again if it has ended.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn get(&self, target: &Target, ended: impl FnOnce() + Send + 'static) -> Result<Arc<Session>> {
        let mut slot = self.0.lock().await;
        let usable = |session: &&Arc<Session>| !session.client.is_closed() && session.timeout == target.timeout;
        if let Some(session) = slot.as_ref().filter(usable) {
            return Ok(session.clone());
        }
        let session = Arc::new(connect(target, ended).await?);
        *slot = Some(session.clone());
        Ok(session)
    }

    /// Forgets the session: the server behind it is about to change.
    pub async fn close(&self) {
        *self.0.lock().await = None;
    }
}

/// State of an instance in one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// It is a standby, or in another recovery.
    pub in_recovery: bool,
    /// System identifier.
    pub system_id: String,
    /// Timeline that is written or received.
    pub timeline: u64,
    /// Flushed, or received and replayed, position.
    pub lsn: u64,
    /// Connected standbys of ours: name without prefix, state, synchronous state.
    pub standbys: Vec<Standby>,
    /// A standby's receiver is streaming.
    pub receiving: bool,
    /// The process of that receiver.
    pub receiver: Option<i32>,
}

/// A row of `pg_stat_replication`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standby {
    /// The db.
    pub db: String,
    /// It has caught up and streams.
    pub streaming: bool,
    /// Commits wait for it.
    pub sync: bool,
    /// It has flushed so much.
    pub flushed: u64,
}

/// When a standby was last heard of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The db.
    pub db: String,
    /// It was sent something that it has not confirmed.
    pub owes: bool,
    /// The time of its last reply, by its own clock: good only for telling one reply from another.
    pub at: String,
}

/// Statements with passwords must not come into PostgreSQL's log, whatever the instance's parameters are. The server
/// decides about logging for a whole query string before it runs the first statement of it, so these go ahead.
const LOG_NO_STATEMENTS: &str = "SET log_statement = 'none'; SET log_min_duration_statement = -1; \
    SET log_min_duration_sample = -1; SET log_transaction_sample_rate = 0; SET log_min_error_statement = 'panic'; \
    SET debug_print_parse = off; SET debug_print_rewritten = off; SET debug_print_plan = off; \
    SET password_encryption = 'scram-sha-256'";

/// A line per timeline: nobody has a longer history file, in bytes.
const HISTORY_LIMIT: u32 = 1 << 20;

/// A timeline of a standby: what its receiver gets if it has one, and never less than the control file says.
const SNAPSHOT: &str = "\
    SELECT r.recovery, s.system_identifier::text, \
      CASE WHEN r.recovery THEN greatest(c.timeline_id::int8, v.min_recovery_end_timeline::int8, \
             (SELECT max(received_tli)::int8 FROM pg_stat_wal_receiver)) \
           ELSE ('x0' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(36)::int8 END, \
      (CASE WHEN r.recovery THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
            ELSE pg_current_wal_flush_lsn() END - '0/0'::pg_lsn)::text, \
      EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'), \
      ARRAY(SELECT application_name || ' ' || coalesce(state, '-') || ' ' || coalesce(sync_state, '-') || ' ' || \
              coalesce(flush_lsn - '0/0', 0) \
            FROM pg_stat_replication WHERE application_name LIKE 'stolon\\_%' ORDER BY 1), \
      (SELECT max(pid) FROM pg_stat_wal_receiver WHERE status = 'streaming'), \
      ARRAY(SELECT application_name || ' ' || coalesce(sent_lsn > flush_lsn, false)::int || ' ' || \
              coalesce(extract(epoch FROM reply_time), 0) \
            FROM pg_stat_replication WHERE application_name LIKE 'stolon\\_%' ORDER BY 1) \
    FROM (SELECT pg_is_in_recovery() AS recovery) r, pg_control_system() s, pg_control_checkpoint() c, \
         pg_control_recovery() v";

impl Session {
    async fn within<T>(
        &self,
        what: &'static str,
        query: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
    ) -> Result<T> {
        // The server's own limit does not help when the server is stopped or the network is gone.
        match tokio::time::timeout(self.timeout + Duration::from_secs(1), query).await {
            Ok(result) => result.map_err(|source| KeeperError::Sql { what, source }),
            Err(_) => Err(KeeperError::NotYet(format!("{what}: postgres does not answer"))),
        }
    }

    async fn query_prepared(
        &self,
        cell: &OnceCell<Statement>,
        sql: &str,
    ) -> std::result::Result<Row, tokio_postgres::Error> {
        let statement = cell.get_or_try_init(|| self.client.prepare(sql)).await?;
        self.client.query_one(statement, &[]).await
    }

    async fn run(&self, what: &'static str, sql: &str) -> Result<()> {
        self.within(what, self.client.batch_execute(sql)).await
    }

    /// Looks at everything that the probe publishes.
    ///
    /// # Errors
    /// The query fails.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        Ok(self.snapshot_and_replies().await?.0)
    }

    /// The same, and when each standby was last heard of.
    ///
    /// # Errors
    /// The query fails.
    pub async fn snapshot_and_replies(&self) -> Result<(Snapshot, Vec<Reply>)> {
        let row = self.within("look at postgres", self.query_prepared(&self.look, SNAPSHOT)).await?;
        let lsn: Option<String> = row.get(3);
        let timeline: Option<i64> = row.get(2);
        let standbys: Vec<String> = row.get(5);
        let replies: Vec<String> = row.get(7);
        let snapshot = Snapshot {
            in_recovery: row.get(0),
            system_id: row.get(1),
            timeline: timeline.and_then(|timeline| u64::try_from(timeline).ok()).unwrap_or(0),
            lsn: lsn.and_then(|lsn| lsn.parse().ok()).unwrap_or(0),
            receiving: row.get(4),
            receiver: row.get(6),
            standbys: standbys.iter().filter_map(|row| parse_standby(row)).collect(),
        };
        Ok((snapshot, replies.iter().filter_map(|row| parse_reply(row)).collect()))
    }

    /// Size of all databases, in bytes.
    ///
    /// # Errors
    /// The query fails.
    pub async fn data_size(&self) -> Result<u64> {
        let query = self.client.query_one("SELECT sum(pg_database_size(oid))::int8 FROM pg_database", &[]);
        let size: Option<i64> = self.within("measure the databases", query).await?.get(0);
        Ok(size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0))
    }

    /// It is in recovery: a standby.
    ///
    /// # Errors
    /// The query fails.
    pub async fn in_recovery(&self) -> Result<bool> {
        let query = self.query_prepared(&self.role, "SELECT pg_is_in_recovery()");
        Ok(self.within("ask for the role", query).await?.get(0))
    }

    /// The history file of a timeline; empty if there is none.
    ///
    /// # Errors
    /// The query fails.
    pub async fn history(&self, timeline: u64) -> Result<String> {
        // The form without offset and length, but with "may be missing", exists since PostgreSQL 16 only.
        let sql =
            format!("SELECT coalesce(pg_read_file('pg_wal/{timeline:08X}.history', 0, {HISTORY_LIMIT}, true), '')");
        Ok(self.within("read the timeline's history", self.client.query_one(&sql, &[])).await?.get(0))
    }

    /// The size of a segment of WAL, in bytes.
    ///
    /// # Errors
    /// The query fails.
    pub async fn wal_segment_size(&self) -> Result<u64> {
        const SQL: &str = "SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'";
        let row = self.within("read the size of segments", self.client.query_one(SQL, &[])).await?;
        let text: &str = row.get(0);
        let size = text.parse().ok().filter(|size| *size > 0);
        size.ok_or_else(|| KeeperError::Other(format!("PostgreSQL says \"{text}\" for wal_segment_size")))
    }

    /// Part of a segment of WAL; `None` if that segment is not there.
    ///
    /// # Errors
    /// The query fails.
    pub async fn wal(&self, segment: &str, offset: u64, length: usize) -> Result<Option<Vec<u8>>> {
        let file = literal(&format!("pg_wal/{segment}"));
        let sql = format!("SELECT pg_read_binary_file({file}, {offset}, {length}, true)");
        Ok(self.within("read WAL", self.client.query_one(&sql, &[])).await?.get(0))
    }

    /// Parameters that stand in configuration files, the last one of a name.
    ///
    /// # Errors
    /// The query fails.
    pub async fn file_parameters(&self) -> Result<Parameters> {
        const SQL: &str =
            "SELECT name, coalesce(setting, '') FROM pg_file_settings WHERE name IS NOT NULL ORDER BY seqno";
        let rows = self.within("read the configured parameters", self.client.query(SQL, &[])).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// A parameter's value in this session.
    ///
    /// # Errors
    /// The query fails.
    pub async fn setting(&self, name: &str) -> Result<String> {
        let sql = format!("SELECT coalesce(current_setting({}, true), '')", literal(name));
        Ok(self.within("read a parameter", self.client.query_one(&sql, &[])).await?.get(0))
    }

    /// When this session has read the configuration.
    ///
    /// # Errors
    /// The query fails.
    pub async fn configured_at(&self) -> Result<String> {
        const SQL: &str = "SELECT pg_conf_load_time()::text";
        Ok(self.within("ask when the configuration was read", self.client.query_one(SQL, &[])).await?.get(0))
    }

    /// Who sends WAL to the cluster's standbys that stream.
    ///
    /// # Errors
    /// The query fails.
    pub async fn senders(&self) -> Result<Vec<Backend>> {
        const SQL: &str = "SELECT pid, coalesce(wait_event, '') FROM pg_stat_activity JOIN \
             (SELECT pid FROM pg_stat_replication WHERE application_name LIKE 'stolon\\_%' AND state = 'streaming') r USING (pid)";
        let rows = self.within("look for senders", self.client.query(SQL, &[])).await?;
        Ok(rows.iter().map(|row| Backend { pid: row.get(0), wait: row.get(1) }).collect())
    }

    /// Ends the sessions of all but these two users; gives how many. Not those that wait for synchronous standbys: they tell
    /// nobody anything, and ended they would let others see what they have not told.
    ///
    /// # Errors
    /// The query fails.
    pub async fn end_sessions(&self, su: &str, repl: &str) -> Result<i64> {
        let sql = format!(
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = \
             'client backend' AND usename NOT IN ({}, {}) AND wait_event IS DISTINCT FROM 'SyncRep'",
            literal(su),
            literal(repl)
        );
        Ok(self.within("end sessions", self.client.query_one(&sql, &[])).await?.get(0))
    }

    /// The checkpointer; `None` while there is none.
    ///
    /// # Errors
    /// The query fails.
    pub async fn checkpointer(&self) -> Result<Option<Backend>> {
        const SQL: &str =
            "SELECT pid, coalesce(wait_event, '') FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
        let row = self.within("look for the checkpointer", self.client.query_opt(SQL, &[])).await?;
        Ok(row.map(|row| Backend { pid: row.get(0), wait: row.get(1) }))
    }

    /// The position up to which a primary's WAL is flushed; `None` on a standby.
    ///
    /// # Errors
    /// The query fails.
    pub async fn flushed(&self) -> Result<Option<u64>> {
        const SQL: &str =
            "SELECT CASE WHEN NOT pg_is_in_recovery() THEN (pg_current_wal_flush_lsn() - '0/0')::text END";
        let lsn: Option<String> = self.within("ask for the position", self.client.query_one(SQL, &[])).await?.get(0);
        Ok(lsn.and_then(|lsn| lsn.parse().ok()))
    }

    /// What is wrong with lines of pg_hba.conf; `None` if nothing is.
    ///
    /// # Errors
    /// The query fails.
    pub async fn hba_errors(&self) -> Result<Option<String>> {
        const SQL: &str = "SELECT string_agg('line ' || line_number || ': ' || error, '; ' ORDER BY line_number) \
                           FROM pg_hba_file_rules WHERE error IS NOT NULL";
        Ok(self.within("check pg_hba.conf", self.client.query_one(SQL, &[])).await?.get(0))
    }

    /// Names of parameters that wait for a restart, and of each whether it may get lower than what a standby of this
    /// instance must have: a standby does not start with less than its primary has, so the primary goes first.
    ///
    /// # Errors
    /// The query fails.
    pub async fn pending_restart(&self) -> Result<Vec<(String, bool)>> {
        const SQL: &str = "SELECT s.name, CASE WHEN s.name IN ('max_connections', 'max_worker_processes', \
            'max_wal_senders', 'max_prepared_transactions', 'max_locks_per_transaction') THEN coalesce((SELECT \
            CASE WHEN f.setting ~ '^[0-9]{1,9}$' THEN f.setting::bigint < s.setting::bigint ELSE true END \
            FROM pg_file_settings f WHERE f.name = s.name ORDER BY f.seqno DESC LIMIT 1), true) ELSE false END \
            FROM pg_settings s WHERE s.pending_restart ORDER BY 1";
        let rows = self.within("look for parameters that wait for a restart", self.client.query(SQL, &[])).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Asks a standby to become primary; does not wait for it.
    ///
    /// # Errors
    /// The query fails.
    pub async fn promote(&self) -> Result<()> {
        self.run("promote", "SELECT pg_promote(false)").await
    }

    /// Writes a checkpoint at once.
    ///
    /// # Errors
    /// The statement fails.
    pub async fn checkpoint(&self) -> Result<()> {
        self.run("checkpoint", "CHECKPOINT").await
    }

    /// Permanent physical slots.
    ///
    /// # Errors
    /// The query fails.
    pub async fn slots(&self) -> Result<BTreeSet<String>> {
        const SQL: &str =
            "SELECT slot_name::text FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT temporary";
        let rows = self.within("list replication slots", self.client.query(SQL, &[])).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Makes the slots of ours exactly the wanted ones. A slot in use can't be dropped; that is left for later.
    /// Says what is wrong with an additional one that can't be created.
    ///
    /// # Errors
    /// A slot of a follower can't be created.
    pub async fn ensure_slots(
        &self,
        wanted: &BTreeSet<String>,
        additional: &BTreeSet<String>,
    ) -> Result<Option<String>> {
        let SlotChanges { drop, create } = slots::plan_changes(wanted, &self.slots().await?);
        for slot in drop {
            match self
                .run("drop a replication slot", &format!("SELECT pg_drop_replication_slot({})", literal(&slot)))
                .await
            {
                Ok(()) => tracing::info!(slot, "dropped a replication slot"),
                Err(error) => tracing::debug!(slot, %error, "a replication slot stays for now"),
            }
        }
        let mut lacking = None;
        // Followers come first: the user's must not take the last one from them.
        let (last, first): (Vec<_>, Vec<_>) = create.into_iter().partition(|slot| additional.contains(slot));
        for slot in first.into_iter().chain(last) {
            // Reserving WAL at once: the base backup that follows must not lose its first segment.
            let sql = format!("SELECT pg_create_physical_replication_slot({}, true)", literal(&slot));
            match self.run("create a replication slot", &sql).await {
                Ok(()) => tracing::info!(slot, "created a replication slot"),
                Err(error) if additional.contains(&slot) => lacking = Some(format!("{slot}: {error}")),
                Err(error) => return Err(error),
            }
        }
        Ok(lacking)
    }

    /// What is wrong with the users that the keeper works as, in an instance that it did not make.
    ///
    /// # Errors
    /// The query fails.
    pub async fn role_problems(&self, su: &str, repl: &str) -> Result<Vec<String>> {
        let has = |user: &str, right: &str| {
            format!("EXISTS (SELECT FROM pg_roles WHERE rolname = {} AND rolcanlogin AND {right})", literal(user))
        };
        let sql = format!("SELECT {}, {}", has(su, "rolsuper"), has(repl, "(rolreplication OR rolsuper)"));
        let row = self.within("look at the users", self.client.query_one(&sql, &[])).await?;
        let mut problems = Vec::new();
        if !row.get::<_, bool>(0) {
            problems.push(format!(
                "user \"{su}\" is no superuser here; the keeper needs one: ALTER ROLE … SUPERUSER LOGIN"
            ));
        }
        if !row.get::<_, bool>(1) {
            problems.push(format!(
                "user \"{repl}\" can't replicate here, so standbys can't be made; CREATE ROLE … LOGIN REPLICATION with the \
                 password that the keepers have"
            ));
        }
        Ok(problems)
    }

    /// Creates the replication user, or gives the superuser the right to replicate if they are the same.
    ///
    /// # Errors
    /// A statement fails.
    pub async fn set_up_roles(&self, su: &Account, repl: &Account) -> Result<()> {
        let password = |account: &Account| match account.password.is_empty() {
            true => String::new(),
            false => format!(" PASSWORD {}", literal(account.password.reveal())),
        };
        let name = ident(&repl.user);
        let sql = if su.user == repl.user {
            format!("ALTER ROLE {name} REPLICATION{}", password(su))
        } else {
            format!("CREATE ROLE {name} LOGIN REPLICATION{}", password(repl))
        };
        self.run("keep passwords out of the log", LOG_NO_STATEMENTS).await?;
        self.run("set up roles", &sql).await
    }
}

fn parse_standby(row: &str) -> Option<Standby> {
    let mut words = row.strip_prefix(super::PREFIX)?.split(' ');
    let (db, state, sync, flushed) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let flushed = flushed.parse().ok()?;
    Some(Standby { db: db.to_owned(), streaming: state == "streaming", sync: sync == "sync", flushed })
}

fn parse_reply(row: &str) -> Option<Reply> {
    let mut parts = row.strip_prefix("stolon_")?.rsplitn(3, ' ');
    let (at, owes, db) = (parts.next()?.to_owned(), parts.next()? == "1", parts.next()?.to_owned());
    Some(Reply { db, owes, at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_standbys() {
        let standby = |db: &str, streaming, sync, flushed| Standby { db: db.into(), streaming, sync, flushed };
        assert_eq!(parse_standby("stolon_ab streaming sync 7"), Some(standby("ab", true, true, 7)));
        assert_eq!(parse_standby("stolon_ab catchup async 0"), Some(standby("ab", false, false, 0)));
        for broken in
            ["", "stolon_", "other streaming sync 7", "stolon_ab", "stolon_ab streaming sync", "stolon_ab a b -1"]
        {
            assert_eq!(parse_standby(broken), None, "{broken}");
        }
    }
}
