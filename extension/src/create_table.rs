//! `CREATE TABLE … WITH (distributed_by = 'column, …', num_parts = N, colocate_with = 'table')`: what is refused, and the
//! change into `… PARTITION BY HASH (column, …)`.

use crate::node;
use crate::report::fail;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::c_char;
use std::ptr::null_mut;

const OPTIONS: [&str; 3] = ["distributed_by", "num_parts", "colocate_with"];

/// A statement that passed the checks. The tree is the caller's own copy.
pub(crate) struct Distributed {
    pub(crate) stmt: *mut pg_sys::CreateStmt,
    pub(crate) num_parts: Option<i32>,
    pub(crate) colocate_with: Option<String>,
    columns: Vec<*mut c_char>,
}

/// Whether a statement creates a table and names one of our options.
pub(crate) unsafe fn is_distributed(stmt: *mut pg_sys::Node) -> bool {
    let options = match node::tag(stmt) {
        pg_sys::NodeTag::T_CreateStmt => (*stmt.cast::<pg_sys::CreateStmt>()).options,
        pg_sys::NodeTag::T_CreateTableAsStmt => (*(*stmt.cast::<pg_sys::CreateTableAsStmt>()).into).options,
        _ => return false,
    };
    node::items::<pg_sys::DefElem>(options).into_iter().any(|option| is_ours(option))
}

unsafe fn is_ours(option: *mut pg_sys::DefElem) -> bool {
    (*option).defnamespace.is_null() && OPTIONS.contains(&node::text((*option).defname).as_str())
}

/// Reads the options and refuses what a sharded table cannot be.
pub(crate) unsafe fn checked(stmt: *mut pg_sys::Node) -> Distributed {
    if node::tag(stmt) != pg_sys::NodeTag::T_CreateStmt {
        refuse(
            "CREATE TABLE AS cannot create a sharded table",
            "The query would run on every group.",
            "Create the table, then fill it with INSERT ... SELECT.",
        );
    }
    let stmt = stmt.cast::<pg_sys::CreateStmt>();
    let table = node::text((*(*stmt).relation).relname);
    let (mut by, mut num_parts, mut colocate_with) = (None, None, None);
    for option in node::items::<pg_sys::DefElem>((*stmt).options) {
        if !is_ours(option) {
            refuse(
                format!(
                    "storage parameter \"{}\" cannot be combined with distributed_by",
                    node::text((*option).defname)
                ),
                "A partitioned table has no storage of its own.",
                "Set it on the partitions, with shardman.broadcast_utility = off on the group that holds them.",
            );
        }
        match node::text((*option).defname).as_str() {
            "distributed_by" => by = Some(pg_sys::defGetString(option)),
            "num_parts" => num_parts = Some(pg_sys::defGetInt32(option)),
            _ => colocate_with = Some(node::text(pg_sys::defGetString(option))),
        }
    }
    let Some(by) = by else {
        refuse(
            format!("table \"{table}\" has no distribution column"),
            "num_parts and colocate_with say how to distribute, distributed_by says by what.",
            "Add distributed_by = 'column' to the WITH clause.",
        )
    };
    if num_parts.is_some_and(|n| n < 1) {
        fail(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("table \"{table}\" cannot have {} partitions", num_parts.unwrap_or_default()),
            "A sharded table has at least one.",
            "Ask for a few times as many partitions as the cluster will ever have groups.",
        );
    }
    refuse_kinds(stmt, &table);
    let columns = parse_columns(by, &table);
    let create = Distributed { stmt, num_parts, colocate_with, columns };
    check_columns(&create, &table);
    create
}

fn refuse(what: impl Into<String>, why: impl Into<String>, hint: impl Into<String>) -> ! {
    fail(PgSqlErrorCode::ERRCODE_INVALID_TABLE_DEFINITION, what, why, hint)
}

unsafe fn refuse_kinds(stmt: *mut pg_sys::CreateStmt, table: &str) {
    let what = format!("table \"{table}\" cannot be distributed");
    let relation = (*stmt).relation;
    let schema = node::text((*relation).schemaname);
    if (*relation).relpersistence as u8 == pg_sys::RELPERSISTENCE_TEMP || schema == "pg_temp" {
        refuse(what, "A temporary table lives on one server.", "Leave out TEMPORARY, or distributed_by.");
    }
    if (*relation).relpersistence as u8 == pg_sys::RELPERSISTENCE_UNLOGGED {
        refuse(what, "An unlogged table would be empty after a failover.", "Leave out UNLOGGED, or distributed_by.");
    }
    if !(*stmt).partspec.is_null() {
        refuse(what, "It says PARTITION BY as well.", "Leave out PARTITION BY: distributed_by partitions by hash.");
    }
    if !(*stmt).partbound.is_null() {
        refuse(what, "It is a partition of another table.", "Distribute the parent.");
    }
    if !(*stmt).inhRelations.is_null() {
        refuse(what, "A partitioned table cannot inherit.", "Repeat the columns, or use LIKE.");
    }
    if !(*stmt).ofTypename.is_null() {
        refuse(what, "A typed table follows its type, on each group by itself.", "List the columns instead of OF.");
    }
}

/// `'a, "B"'` by the rules of SQL identifiers.
unsafe fn parse_columns(by: *mut c_char, table: &str) -> Vec<*mut c_char> {
    let mut names: *mut pg_sys::List = null_mut();
    if !pg_sys::SplitIdentifierString(pg_sys::pstrdup(by), b',' as c_char, &mut names) || names.is_null() {
        fail(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("table \"{table}\" has no valid distribution column"),
            format!("\"{}\" is not a list of column names.", node::text(by)),
            "Write distributed_by = 'column' or 'column1, column2'.",
        );
    }
    node::items(names)
}

unsafe fn check_columns(create: &Distributed, table: &str) {
    let by: Vec<String> = create.columns.iter().map(|name| node::text(*name)).collect();
    let mut defined = Vec::new();
    // With LIKE the columns are known later, and PostgreSQL finds the unknown one itself.
    let mut has_like = false;
    for element in node::items::<pg_sys::Node>((*create.stmt).tableElts) {
        match node::tag(element) {
            pg_sys::NodeTag::T_ColumnDef => {
                let column = element.cast::<pg_sys::ColumnDef>();
                let name = node::text((*column).colname);
                refuse_column(column, &name, table);
                for constraint in node::items::<pg_sys::Constraint>((*column).constraints) {
                    check_constraint(constraint, std::slice::from_ref(&name), &by, table);
                }
                defined.push(name);
            }
            pg_sys::NodeTag::T_Constraint => {
                let constraint = element.cast::<pg_sys::Constraint>();
                let keys: Vec<String> =
                    node::items((*constraint).keys).into_iter().map(|key| node::string(key)).collect();
                check_constraint(constraint, &keys, &by, table);
            }
            pg_sys::NodeTag::T_TableLikeClause => has_like = true,
            _ => {}
        }
    }
    if let Some(unknown) = by.iter().find(|name| !has_like && !defined.contains(name)) {
        fail(
            PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
            format!("table \"{table}\" cannot be distributed by column \"{unknown}\""),
            "The table has no such column.",
            format!("Its columns are: {}.", defined.join(", ")),
        );
    }
}

unsafe fn refuse_column(column: *mut pg_sys::ColumnDef, name: &str, table: &str) {
    const SERIAL: [&str; 6] = ["serial", "serial2", "serial4", "serial8", "bigserial", "smallserial"];
    use pg_sys::ConstrType::{CONSTR_GENERATED, CONSTR_IDENTITY};
    let what = format!("column \"{name}\" of table \"{table}\" cannot be in a distributed table");
    if !(*column).typeName.is_null() {
        let names = node::items::<pg_sys::Node>((*(*column).typeName).names);
        if let [only] = names[..]
            && SERIAL.contains(&node::string(only).as_str())
        {
            refuse(
                what,
                "A serial column has a sequence of its own on every group, so its values repeat.",
                "Use uuid with gen_random_uuid(), or assign numbers in the application.",
            );
        }
    }
    for constraint in node::items::<pg_sys::Constraint>((*column).constraints) {
        if (*constraint).contype == CONSTR_IDENTITY {
            refuse(
                &*what,
                "An identity column has a sequence of its own on every group, so its values repeat.",
                "Use uuid with gen_random_uuid(), or assign numbers in the application.",
            );
        }
        if (*constraint).contype == CONSTR_GENERATED {
            refuse(
                &*what,
                "Generated columns of foreign partitions are computed twice, here and there.",
                "Use a view, or a default.",
            );
        }
    }
}

unsafe fn check_constraint(constraint: *mut pg_sys::Constraint, keys: &[String], by: &[String], table: &str) {
    use pg_sys::ConstrType::{CONSTR_EXCLUSION, CONSTR_FOREIGN, CONSTR_PRIMARY, CONSTR_UNIQUE};
    let kind = match (*constraint).contype {
        CONSTR_PRIMARY => "primary key",
        CONSTR_UNIQUE => "unique constraint",
        CONSTR_FOREIGN => refuse(
            format!("table \"{table}\" cannot have a foreign key and be distributed"),
            "A foreign key cannot be checked across groups.",
            "Leave the foreign key out.",
        ),
        CONSTR_EXCLUSION => refuse(
            format!("table \"{table}\" cannot have an exclusion constraint and be distributed"),
            "An exclusion constraint cannot be checked across groups.",
            "Leave the exclusion constraint out.",
        ),
        _ => return,
    };
    if let Some(missing) = by.iter().find(|column| !keys.contains(column)) {
        refuse(
            format!("the {kind} of table \"{table}\" lacks its distribution column \"{missing}\""),
            "Each group can check only its own rows, so equal keys must be on the same group.",
            format!("Add \"{missing}\" to the {kind}, or distribute by one of its columns."),
        );
    }
}

/// Takes our options out and puts the partitioning in. Keys stay: they go and come back when the partitions are made.
pub(crate) unsafe fn rewrite(create: &Distributed) {
    let spec: *mut pg_sys::PartitionSpec = node::make(pg_sys::NodeTag::T_PartitionSpec);
    #[cfg(feature = "pg15")]
    {
        (*spec).strategy = node::palloc_text("hash");
    }
    #[cfg(not(feature = "pg15"))]
    {
        (*spec).strategy = pg_sys::PartitionStrategy::PARTITION_STRATEGY_HASH;
    }
    (*spec).location = -1;
    for name in &create.columns {
        let column: *mut pg_sys::PartitionElem = node::make(pg_sys::NodeTag::T_PartitionElem);
        (*column).name = *name;
        (*column).location = -1;
        (*spec).partParams = pg_sys::lappend((*spec).partParams, column.cast());
    }
    (*create.stmt).partspec = spec;
    (*create.stmt).options = null_mut();
}
