//! The functions that SQL sees. Their signatures are in `sql/`.

use crate::group::{self, Groups, Origin};
use crate::report::{fail, spi_failed};
use crate::{hook, node};
use pgrx::prelude::*;
use pgrx::{PgRelation, pg_sys};

/// Without the hook, schema changes would silently stay on one group.
fn check_preloaded() {
    if !hook::installed() {
        fail(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "the library shardman is not preloaded",
            "Without it, schema changes would stay on this replication group alone.",
            "Add shardman to shared_preload_libraries and restart the server.",
        );
    }
}

#[pg_extern]
fn require_preloaded() {
    check_preloaded();
}

#[pg_extern]
fn ddl_lock() {
    check_preloaded();
    unsafe { Groups::read_and_lock().ddl_lock() }
}

#[pg_extern]
fn ex_sql(rgid: i32, cmd: &str) {
    check_preloaded();
    unsafe {
        let groups = Groups::read_and_lock();
        if groups.local == Some(rgid) {
            group::run_here(cmd, Origin::Call);
        } else if groups.others.contains(&rgid) {
            group::send(rgid, cmd, Some(&group::current_role()), Origin::Call);
        } else {
            fail(
                PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                format!("replication group {rgid} does not exist"),
                "shardman.repgroups has no such id.",
                "List the groups with: SELECT id FROM shardman.repgroups",
            );
        }
    }
}

unsafe fn broadcast(cmd: &str, here_too: bool) {
    check_preloaded();
    let groups = Groups::read_and_lock();
    groups.ddl_lock();
    if here_too {
        group::run_here(cmd, Origin::Call);
    }
    let role = group::current_role();
    for other in groups.others {
        group::send(other, cmd, Some(&role), Origin::Call);
    }
}

#[pg_extern]
fn bcst_sql(cmd: &str) {
    unsafe { broadcast(cmd, false) }
}

#[pg_extern]
fn bcst_all_sql(cmd: &str) {
    unsafe { broadcast(cmd, true) }
}

#[pg_extern]
fn send(rgid: i32, cmd: &str) {
    unsafe {
        if Groups::read_and_lock().local == Some(rgid) {
            group::run_here(cmd, Origin::Call);
        } else {
            group::send(rgid, cmd, None, Origin::Call);
        }
    }
}

#[pg_extern]
fn execute(cmd: Option<&str>, search_path: Option<&str>, role: Option<&str>, origin: Option<&str>) {
    if let Some(cmd) = cmd {
        unsafe { group::execute(cmd, search_path, role, Origin::parse(origin.unwrap_or_default())) }
    }
}

#[pg_extern]
fn hash_shard_table(relid: Option<pg_sys::Oid>, nparts: Option<i32>, colocate_with: Option<pg_sys::Oid>) {
    check_preloaded();
    let (Some(relid), Some(nparts)) = (relid, nparts) else {
        fail(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            "the table cannot be sharded",
            "Table and number of partitions must not be null.",
            "Call shardman.hash_shard_table('table', number_of_partitions).",
        )
    };
    unsafe {
        if !is_owner(relid) {
            fail(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("must be owner of table {}", node::relation_name(relid)),
                "Only the owner or a superuser can shard a table.",
                "Ask its owner.",
            );
        }
        Groups::read_and_lock().ddl_lock();
        shard(relid, Some(nparts), colocate_with);
    }
}

unsafe fn is_owner(relid: pg_sys::Oid) -> bool {
    let owner = (*(*PgRelation::with_lock(relid, pg_sys::AccessShareLock as _).as_ptr()).rd_rel).relowner;
    pg_sys::has_privs_of_role(pg_sys::GetUserId(), owner)
}

/// Spreads a table whose (empty) parent exists on all groups. The caller has checked the user's rights.
pub(crate) unsafe fn shard(relid: pg_sys::Oid, nparts: Option<i32>, colocate_with: Option<pg_sys::Oid>) {
    group::as_superuser(|| {
        Spi::run_with_args(
            "SELECT shardman.shard_everywhere($1, $2, $3)",
            &[relid.into(), nparts.into(), colocate_with.into()],
        )
        .unwrap_or_else(|e| spi_failed("shard the table", &e));
    });
}
