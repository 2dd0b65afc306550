//! Other groups: which there are, sending SQL to them, running SQL that came from one.

use crate::report::{self, fail, spi_failed};
use crate::{node, settings};
use pgrx::prelude::*;
use pgrx::{IntoDatum, pg_sys};
use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::panic::AssertUnwindSafe;
use std::ptr::null_mut;

/// One schema change at a time in the whole cluster: this advisory lock, on the group with the lowest id. Without it, two
/// coordinators that change the same table would wait for each other across groups, which no server sees. The number is
/// "SHARDMAN" in ASCII, out of the way of numbers that applications choose.
const DDL_LOCK: i64 = 0x5348_4152_444d_414e;

/// What a statement was sent for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// The user's own statement, from the hook: the sender does what follows from it on all groups.
    Statement,
    /// A call, such as `ex_sql`.
    Call,
}

impl Origin {
    pub(crate) fn parse(s: &str) -> Self {
        if s == "statement" { Self::Statement } else { Self::Call }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Statement => "statement",
            Self::Call => "call",
        }
    }
}

thread_local! {
    /// Set while SQL runs here that another group, or a function of ours, sent.
    static EXECUTING: Cell<Option<Origin>> = const { Cell::new(None) };
}

pub(crate) fn executing() -> Option<Origin> {
    EXECUTING.get()
}

struct Executing(Option<Origin>);

impl Executing {
    fn enter(origin: Origin) -> Self {
        Self(EXECUTING.replace(Some(origin)))
    }
}

impl Drop for Executing {
    // Runs on errors too: pgrx turns them into unwinding.
    fn drop(&mut self) {
        EXECUTING.set(self.0);
    }
}

/// The groups of the cluster as this server knows them.
pub(crate) struct Groups {
    pub(crate) local: Option<i32>,
    /// In ascending order.
    pub(crate) others: Vec<i32>,
}

impl Groups {
    /// Reads the groups and keeps others from being added or removed until the end of the transaction: a lock that
    /// conflicts with the (access) exclusive lock which the addition of a group takes.
    ///
    /// Not by SQL: a repeatable-read transaction would not see a group that was added after it began, and a user's
    /// search_path would choose the operators.
    pub(crate) unsafe fn read_and_lock() -> Self {
        let schema = pg_sys::get_namespace_oid(c"shardman".as_ptr(), false);
        let oid = pg_sys::get_relname_relid(c"repgroups".as_ptr(), schema);
        let relation = pg_sys::table_open(oid, pg_sys::RowShareLock as _);
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
        let scan = pg_sys::systable_beginscan(relation, pg_sys::InvalidOid, false, snapshot, 0, null_mut());
        let mut groups = Self { local: None, others: Vec::new() };
        loop {
            let row = pg_sys::systable_getnext(scan);
            if row.is_null() {
                break;
            }
            let mut is_null = false;
            let id = pg_sys::SPI_getbinval(row, (*relation).rd_att, 1, &mut is_null).value() as i32;
            pg_sys::SPI_getbinval(row, (*relation).rd_att, 2, &mut is_null);
            if is_null {
                groups.local = Some(id);
            } else {
                groups.others.push(id);
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::UnregisterSnapshot(snapshot);
        pg_sys::table_close(relation, pg_sys::NoLock as _);
        groups.others.sort_unstable();
        if let (Some(local), Some(configured)) = (groups.local, settings::rgid())
            && local != configured
        {
            fail(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "it is not clear which replication group this server is",
                format!("shardman.rgid says {configured}, shardman.repgroups says {local}."),
                "Correct shardman.rgid, or, if the data was copied from another group, start with an empty server.",
            );
        }
        groups
    }

    fn lowest(&self) -> Option<i32> {
        self.local.into_iter().chain(self.others.first().copied()).min()
    }

    /// Waits until no other session of the cluster changes the schema.
    pub(crate) unsafe fn ddl_lock(&self) {
        match self.lowest() {
            lowest if lowest == self.local || self.others.is_empty() => {
                let key = DDL_LOCK.into_datum().expect("a number is a datum");
                pgrx::direct_function_call_as_datum(pg_sys::pg_advisory_xact_lock_int8, &[Some(key)]);
            }
            Some(lowest) => {
                let lock = format!("SELECT pg_catalog.pg_advisory_xact_lock({DDL_LOCK})");
                send(lowest, &lock, None, Origin::Call);
            }
            None => {}
        }
    }
}

/// For a while, another user. Not dropped when PostgreSQL's own error handling skips it: the end of the transaction
/// resets the user as well.
struct Become {
    user: pg_sys::Oid,
    context: i32,
}

impl Become {
    unsafe fn new(user: pg_sys::Oid, extra: u32) -> Self {
        let mut old = Self { user: pg_sys::InvalidOid, context: 0 };
        pg_sys::GetUserIdAndSecContext(&mut old.user, &mut old.context);
        pg_sys::SetUserIdAndSecContext(user, old.context | extra as i32);
        old
    }
}

impl Drop for Become {
    fn drop(&mut self) {
        unsafe { pg_sys::SetUserIdAndSecContext(self.user, self.context) }
    }
}

/// Runs `f` with a superuser's rights, as the caller if the caller is one: another superuser has another user mapping, and
/// with it another connection and another remote transaction, which could wait for the caller's own for ever.
pub(crate) unsafe fn as_superuser<R>(f: impl FnOnce() -> R) -> R {
    let _user = (!pg_sys::superuser())
        .then(|| Become::new(pg_sys::Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID), pg_sys::SECURITY_LOCAL_USERID_CHANGE));
    f()
}

/// The foreign table that leads to a group, and who may use it.
unsafe fn exec_table(group: i32) -> pg_sys::Oid {
    let schema = pg_sys::get_namespace_oid(c"shardman".as_ptr(), false);
    let name = CString::new(format!("exec_{group}")).expect("a number has no NUL byte");
    let oid = pg_sys::get_relname_relid(name.as_ptr(), schema);
    if oid == pg_sys::InvalidOid {
        fail(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("replication group {group} is not connected"),
            format!("The foreign table shardman.exec_{group} does not exist."),
            format!("Run shardman.connect_repgroup({group}, ...)."),
        );
    }
    oid
}

/// Whom to be when using the table: a superuser with a user mapping stays who it is, others borrow the rights of the
/// superuser who connected the group.
unsafe fn sender(table: pg_sys::Oid) -> pg_sys::Oid {
    let user = pg_sys::GetUserId();
    let server = (*pg_sys::GetForeignTable(table)).serverid;
    let mapping = pg_sys::GetSysCacheOid(
        pg_sys::SysCacheIdentifier::USERMAPPINGUSERSERVER as _,
        pg_sys::Anum_pg_user_mapping_oid as _,
        pg_sys::Datum::from(user),
        pg_sys::Datum::from(server),
        pg_sys::Datum::from(0),
        pg_sys::Datum::from(0),
    );
    if pg_sys::superuser() && mapping != pg_sys::InvalidOid { user } else { owner(table) }
}

unsafe fn owner(table: pg_sys::Oid) -> pg_sys::Oid {
    let relation = pg_sys::relation_open(table, pg_sys::AccessShareLock as _);
    let owner = (*(*relation).rd_rel).relowner;
    pg_sys::relation_close(relation, pg_sys::NoLock as _);
    owner
}

/// Name of the current user, for the receiving side.
pub(crate) unsafe fn current_role() -> String {
    node::text(pg_sys::GetUserNameFromId(pg_sys::GetUserId(), false))
}

/// Has SQL run by another group, in this transaction. With a role, it runs with that role's rights and this session's
/// search_path; without, as the connection's superuser and with everything qualified.
pub(crate) unsafe fn send(group: i32, sql: &str, role: Option<&str>, origin: Origin) {
    let table = exec_table(group);
    let search_path = role.map(|_| node::text(pg_sys::GetConfigOption(c"search_path".as_ptr(), false, false)));
    let _user = Become::new(sender(table), pg_sys::SECURITY_LOCAL_USERID_CHANGE);
    let insert = format!("INSERT INTO shardman.exec_{group} (sql, search_path, role, origin) VALUES ($1, $2, $3, $4)");
    let run = || {
        Spi::run_with_args(&insert, &[sql.into(), search_path.into(), role.into(), origin.as_str().into()])
            .unwrap_or_else(|e| spi_failed(&format!("send SQL to replication group {group}"), &e));
    };
    PgTryBuilder::new(AssertUnwindSafe(run)).catch_others(move |error| report::on_group(group, error)).execute();
}

/// Runs SQL here without sending it on.
pub(crate) unsafe fn run_here(sql: &str, origin: Origin) {
    let _executing = Executing::enter(origin);
    Spi::run(sql).unwrap_or_else(|e| spi_failed("run SQL", &e));
}

/// Runs what another group sent.
///
/// A role without superuser rights gets a security context in which `SET ROLE` is refused: the session's own user is a
/// superuser, and the SQL may call functions that the role wrote.
pub(crate) unsafe fn execute(sql: &str, search_path: Option<&str>, role: Option<&str>, origin: Origin) {
    let level = pg_sys::NewGUCNestLevel();
    if let Some(path) = search_path {
        set_for_now(c"search_path", path);
    }
    if origin == Origin::Statement {
        // What follows from the statement must follow here as on the sender; nothing is sent from here in any case.
        set_for_now(c"shardman.broadcast_utility", "on");
    }
    let _user = role.map(|name| {
        let role = pg_sys::get_role_oid(node::palloc_text(name), false);
        Become::new(role, if pg_sys::superuser_arg(role) { 0 } else { pg_sys::SECURITY_LOCAL_USERID_CHANGE })
    });
    run_here(sql, origin);
    pg_sys::AtEOXact_GUC(true, level);
}

/// Until the GUC nest level ends.
unsafe fn set_for_now(name: &CStr, value: &str) {
    pg_sys::set_config_option(
        name.as_ptr(),
        node::palloc_text(value),
        pg_sys::GucContext::PGC_USERSET,
        pg_sys::GucSource::PGC_S_SESSION,
        pg_sys::GucAction::GUC_ACTION_SAVE,
        true,
        0,
        false,
    );
}
