//! The hook on utility statements.
//!
//! Shape: `process_utility` is a frame of plain data without a guard, because PostgreSQL's errors jump over it; guarded
//! Rust runs only before and after the statement. With the statement itself under pgrx's guard, every error would be
//! caught and thrown again, without its cursor position, context and constraint name, which drivers read.

use crate::classify::{self, Verdict};
use crate::create_table;
use crate::group::{self, Groups, Origin};
use crate::report::fail;
use crate::{functions, node, settings};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;

thread_local! {
    /// Transaction nesting level at which a statement that goes to all groups runs right now; 0 if none does. What such
    /// a statement runs inside, other groups run inside theirs.
    static SENDING_AT: Cell<i32> = const { Cell::new(0) };
    static INSTALLED: Cell<bool> = const { Cell::new(false) };
}

static mut PREVIOUS: pg_sys::ProcessUtility_hook_type = None;

/// Installs the hook, if the library was loaded early enough to see the statements of all sessions.
pub(crate) fn install() {
    unsafe {
        if !pg_sys::process_shared_preload_libraries_in_progress {
            return;
        }
        PREVIOUS = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
        pg_sys::RegisterXactCallback(Some(on_transaction_end), null_mut());
        pg_sys::RegisterSubXactCallback(Some(on_subtransaction_end), null_mut());
    }
    INSTALLED.set(true);
}

pub(crate) fn installed() -> bool {
    INSTALLED.get()
}

// A plain frame: an error in the statement never reaches `after`, so the ends of transactions reset the mark.
unsafe extern "C-unwind" fn on_transaction_end(event: pg_sys::XactEvent::Type, _: *mut c_void) {
    use pg_sys::XactEvent::{XACT_EVENT_ABORT, XACT_EVENT_COMMIT, XACT_EVENT_PREPARE};
    if [XACT_EVENT_ABORT, XACT_EVENT_COMMIT, XACT_EVENT_PREPARE].contains(&event) {
        SENDING_AT.set(0);
    }
}

unsafe extern "C-unwind" fn on_subtransaction_end(
    event: pg_sys::SubXactEvent::Type,
    _: pg_sys::SubTransactionId,
    _: pg_sys::SubTransactionId,
    _: *mut c_void,
) {
    // A subtransaction begun inside the statement ends without ending the statement.
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB
        && raw::GetCurrentTransactionNestLevel() <= SENDING_AT.get()
    {
        SENDING_AT.set(0);
    }
}

/// What `before` found out. Plain data: it lives in a frame that an error skips.
#[repr(C)]
#[derive(Clone, Copy)]
struct Plan {
    pstmt: *mut pg_sys::PlannedStmt,
    read_only: bool,
    /// Text for the other groups, or null.
    text: *const c_char,
    /// A view is temporary if what it reads is: only known when it exists.
    view: *mut pg_sys::RangeVar,
    /// A table to spread over the groups: its name, or null.
    table: *const c_char,
    schema: pg_sys::Oid,
    /// 0: not said.
    num_parts: i32,
    colocate_with: pg_sys::Oid,
}

/// Our own declarations: pgrx's come with the guard that loses fields of errors.
mod raw {
    use pgrx::pg_sys;
    use std::ffi::c_char;

    #[allow(clippy::too_many_arguments, reason = "the signature is PostgreSQL's")]
    unsafe extern "C-unwind" {
        pub(super) fn standard_ProcessUtility(
            pstmt: *mut pg_sys::PlannedStmt,
            query: *const c_char,
            read_only: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            params: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            dest: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        );
        pub(super) fn GetCurrentTransactionNestLevel() -> i32;
    }
}

#[allow(clippy::too_many_arguments, reason = "the signature is PostgreSQL's")]
unsafe extern "C-unwind" fn process_utility(
    pstmt: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    dest: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    let plan = before(pstmt, query, read_only, context);
    let next = match PREVIOUS {
        Some(previous) => previous,
        None => raw::standard_ProcessUtility,
    };
    next(plan.pstmt, query, plan.read_only, context, params, environment, dest, completion);
    after(&plan);
}

#[pg_guard]
unsafe extern "C-unwind" fn before(
    pstmt: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
) -> Plan {
    let mut plan = Plan {
        pstmt,
        read_only,
        text: std::ptr::null(),
        view: null_mut(),
        table: std::ptr::null(),
        schema: pg_sys::InvalidOid,
        num_parts: 0,
        colocate_with: pg_sys::InvalidOid,
    };
    let stmt = (*pstmt).utilityStmt;
    if !classify::concerns_us(stmt)
        || pg_sys::creating_extension
        || pg_sys::XactReadOnly
        || pg_sys::RecoveryInProgress()
        || pg_sys::get_extension_oid(c"shardman".as_ptr(), true) == pg_sys::InvalidOid
    {
        return plan;
    }
    if create_table::is_distributed(stmt) {
        before_distributed_table(&mut plan, query, context);
        return plan;
    }
    let sends = not_sending(context).is_none();
    if sends {
        before_other(&mut plan, query);
    }
    if (sends || group::executing() == Some(Origin::Statement)) && classify::adds_keys(stmt).is_some() {
        // The tree may sit in a plan cache and run again: only a copy is changed.
        plan.pstmt = pg_sys::copyObjectImpl(pstmt.cast()).cast();
        plan.read_only = false;
        if let Some(table) = classify::adds_keys((*plan.pstmt).utilityStmt) {
            (*table).inh = false;
        }
    }
    plan
}

/// Why this statement of this session does not go to other groups, and what to do about it; `None` if it does go.
unsafe fn not_sending(context: pg_sys::ProcessUtilityContext::Type) -> Option<(&'static str, &'static str)> {
    use pg_sys::ProcessUtilityContext::{PROCESS_UTILITY_QUERY, PROCESS_UTILITY_TOPLEVEL};
    if settings::rgid().is_none() {
        return Some((
            "This server is not part of a cluster: shardman.rgid is -1.",
            "Add it with \"shardmanctl nodes add\", or set shardman.rgid.",
        ));
    }
    if group::executing().is_some() || settings::is_participant() {
        return Some((
            "The statement was sent here from another group, or by a function that sends it.",
            "Run the statement itself: it acts on all groups.",
        ));
    }
    if !settings::broadcast_utility() {
        return Some((
            "A sharded table is made on all groups, but shardman.broadcast_utility is off.",
            "Run: SET shardman.broadcast_utility = on",
        ));
    }
    if SENDING_AT.get() > 0 || ![PROCESS_UTILITY_TOPLEVEL, PROCESS_UTILITY_QUERY].contains(&context) {
        return Some(("The statement is part of another one.", "Run it as a statement of its own."));
    }
    None
}

unsafe fn before_distributed_table(
    plan: &mut Plan,
    query: *const c_char,
    context: pg_sys::ProcessUtilityContext::Type,
) {
    let original = plan.pstmt;
    // The sender makes the partitions everywhere; here only the parent.
    let parent_only = group::executing() == Some(Origin::Statement);
    if !parent_only && let Some((why, hint)) = not_sending(context) {
        fail(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, "the table cannot be distributed", why, hint);
    }
    // The tree may sit in a plan cache and run again: only a copy is changed.
    plan.pstmt = pg_sys::copyObjectImpl(original.cast()).cast();
    plan.read_only = false;
    let create = create_table::checked((*plan.pstmt).utilityStmt);
    if parent_only {
        create_table::rewrite(&create);
        return;
    }
    Groups::read_and_lock().ddl_lock();
    let name = (*create.stmt).relation;
    plan.schema = pg_sys::RangeVarGetCreationNamespace(name);
    if (*create.stmt).if_not_exists && pg_sys::get_relname_relid((*name).relname, plan.schema) != pg_sys::InvalidOid {
        // PostgreSQL skips the statement before it looks at the options.
        plan.pstmt = original;
        return;
    }
    if let Some(leader) = &create.colocate_with {
        let leader_name = node::parse_name(leader);
        plan.colocate_with = node::resolve(leader_name).unwrap_or_else(|| {
            fail(
                PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
                format!("relation \"{leader}\" does not exist"),
                format!("Table \"{}\" is to be colocated with it.", node::text((*name).relname)),
                "Name a sharded table in colocate_with.",
            )
        });
    }
    plan.num_parts = create.num_parts.unwrap_or(0);
    plan.table = pg_sys::pstrdup((*name).relname);
    create_table::rewrite(&create);
    plan.text = node::palloc_text(&statement_text(original, query));
    SENDING_AT.set(pg_sys::GetCurrentTransactionNestLevel());
}

unsafe fn before_other(plan: &mut Plan, query: *const c_char) {
    let stmt = (*plan.pstmt).utilityStmt;
    match classify::classify(stmt) {
        Verdict::Local => {}
        Verdict::Refuse { what, why, hint } => fail(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, what, why, hint),
        Verdict::Broadcast { changes_schema } => {
            let groups = Groups::read_and_lock();
            if groups.others.is_empty() {
                return;
            }
            if changes_schema {
                groups.ddl_lock();
            }
            if node::tag(stmt) == pg_sys::NodeTag::T_ViewStmt {
                plan.view = (*stmt.cast::<pg_sys::ViewStmt>()).view;
            }
            plan.text = node::palloc_text(&statement_text(plan.pstmt, query));
            SENDING_AT.set(pg_sys::GetCurrentTransactionNestLevel());
        }
    }
}

/// The text of this statement alone: a query string may hold several.
unsafe fn statement_text(pstmt: *mut pg_sys::PlannedStmt, query: *const c_char) -> String {
    let all = CStr::from_ptr(query).to_bytes();
    // A location of -1 is "unknown", a length of 0 "to the end".
    let from = usize::try_from((*pstmt).stmt_location).unwrap_or(0).min(all.len());
    let to = match usize::try_from((*pstmt).stmt_len) {
        Ok(length) if length > 0 => (from + length).min(all.len()),
        _ => all.len(),
    };
    match std::str::from_utf8(&all[from..to]) {
        Ok(text) => text.trim().to_owned(),
        Err(_) => fail(
            PgSqlErrorCode::ERRCODE_CHARACTER_NOT_IN_REPERTOIRE,
            "the statement cannot be sent to other groups",
            "It is not in UTF-8.",
            "Create the database with ENCODING 'UTF8'.",
        ),
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn after(plan: &Plan) {
    if plan.text.is_null() {
        return;
    }
    pg_sys::CommandCounterIncrement();
    let is_temporary =
        !plan.view.is_null() && node::resolve(plan.view).is_some_and(|view| classify::is_temporary(view));
    if !is_temporary {
        let text = node::text(plan.text);
        let role = group::current_role();
        for other in Groups::read_and_lock().others {
            group::send(other, &text, Some(&role), Origin::Statement);
        }
    }
    if !plan.table.is_null() {
        let table = pg_sys::get_relname_relid(plan.table, plan.schema);
        let num_parts = (plan.num_parts != 0).then_some(plan.num_parts);
        let colocate_with = (plan.colocate_with != pg_sys::InvalidOid).then_some(plan.colocate_with);
        functions::shard(table, num_parts, colocate_with);
    }
    SENDING_AT.set(0);
}
