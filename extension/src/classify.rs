//! Which utility statements go to all groups, which stay here, which are refused.

use crate::node;
use crate::report::spi_failed;
use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag::*;
use pgrx::prelude::*;

/// What happens to a statement of a session that broadcasts.
pub(crate) enum Verdict {
    /// Runs here only.
    Local,
    /// Runs here, then on all other groups.
    Broadcast {
        /// Whether it must not run at the same time as another one.
        changes_schema: bool,
    },
    Refuse {
        what: String,
        why: String,
        hint: String,
    },
}

/// A cheap look before anything else: most utility statements are BEGIN and COMMIT.
pub(crate) unsafe fn concerns_us(stmt: *mut pg_sys::Node) -> bool {
    is_schema_change(node::tag(stmt)) || is_other_broadcast(node::tag(stmt)) || is_local_on_relation(node::tag(stmt))
}

fn is_schema_change(tag: pg_sys::NodeTag) -> bool {
    matches!(
        tag,
        T_CreateStmt
            | T_CreateTableAsStmt
            | T_AlterTableStmt
            | T_AlterTableMoveAllStmt
            | T_RenameStmt
            | T_AlterObjectSchemaStmt
            | T_AlterOwnerStmt
            | T_AlterObjectDependsStmt
            | T_RefreshMatViewStmt
            | T_ViewStmt
            | T_IndexStmt
            | T_ReindexStmt
            | T_ClusterStmt
            | T_DropStmt
            | T_CompositeTypeStmt
            | T_CreateEnumStmt
            | T_CreateRangeStmt
            | T_AlterEnumStmt
            | T_AlterTypeStmt
            | T_CreateDomainStmt
            | T_AlterDomainStmt
            | T_DefineStmt
            | T_AlterTSDictionaryStmt
            | T_AlterTSConfigurationStmt
            | T_AlterCollationStmt
            | T_CreateFunctionStmt
            | T_AlterFunctionStmt
            | T_CreateCastStmt
            | T_CreateConversionStmt
            | T_CreateTransformStmt
            | T_CreatePLangStmt
            | T_CreateOpClassStmt
            | T_CreateOpFamilyStmt
            | T_AlterOpFamilyStmt
            | T_AlterOperatorStmt
            | T_CreateAmStmt
            | T_RuleStmt
            | T_CreateTrigStmt
            | T_CreateEventTrigStmt
            | T_AlterEventTrigStmt
            | T_CreatePolicyStmt
            | T_AlterPolicyStmt
            | T_CreateStatsStmt
            | T_AlterStatsStmt
            | T_CreateSchemaStmt
            | T_CreateExtensionStmt
            | T_AlterExtensionStmt
            | T_AlterExtensionContentsStmt
            | T_GrantStmt
            | T_GrantRoleStmt
            | T_CreateRoleStmt
            | T_AlterRoleStmt
            | T_AlterRoleSetStmt
            | T_DropRoleStmt
            | T_DropOwnedStmt
            | T_ReassignOwnedStmt
            | T_AlterDatabaseStmt
            | T_AlterDatabaseSetStmt
            | T_CreateTableSpaceStmt
            | T_DropTableSpaceStmt
            | T_AlterTableSpaceOptionsStmt
            | T_AlterSystemStmt
            | T_CommentStmt
            | T_SecLabelStmt
    )
}

fn is_other_broadcast(tag: pg_sys::NodeTag) -> bool {
    matches!(tag, T_ConstraintsSetStmt | T_LoadStmt | T_CheckPointStmt)
}

/// Never sent, but it may name a partition of a sharded table.
fn is_local_on_relation(tag: pg_sys::NodeTag) -> bool {
    tag == T_CreateForeignTableStmt
}

pub(crate) unsafe fn classify(stmt: *mut pg_sys::Node) -> Verdict {
    if is_other_broadcast(node::tag(stmt)) {
        return Verdict::Broadcast { changes_schema: false };
    }
    if creates_temporary(stmt) {
        return Verdict::Local;
    }
    let targets: Vec<pg_sys::Oid> = targets(stmt).into_iter().filter_map(|name| node::resolve(name)).collect();
    if let Some(refusal) = on_sharded_table(stmt, &targets) {
        return refusal;
    }
    if is_local_on_relation(node::tag(stmt)) || is_local_object(object_type(stmt)) || drops_shardman(stmt) {
        return Verdict::Local;
    }
    let temporary = targets.iter().filter(|oid| is_temporary(**oid)).count();
    if temporary > 0 && temporary < targets.len() {
        return Verdict::Refuse {
            what: "temporary and other relations cannot be in one statement".into(),
            why: "Temporary ones exist on this server only, the others on all groups.".into(),
            hint: "Use one statement for each kind.".into(),
        };
    }
    // ALTER TABLE and GRANT take sequences and foreign tables as well.
    let is_here_only =
        |oid: &pg_sys::Oid| is_temporary(*oid) || [b'S', b'f'].contains(&(pg_sys::get_rel_relkind(*oid) as u8));
    if !targets.is_empty() && targets.iter().all(is_here_only) {
        return Verdict::Local;
    }
    if let Some(what) = needs_own_transaction(stmt, &targets) {
        return Verdict::Refuse {
            what: format!("{what} cannot be sent to other groups"),
            why: "It cannot run inside a transaction block, and on other groups every statement does.".into(),
            hint: "Run it on each group by itself: SET shardman.broadcast_utility = off, or \"shardmanctl forall\"; \
                   settings of the server are changed by \"shardmanctl update\"."
                .into(),
        };
    }
    Verdict::Broadcast { changes_schema: true }
}

pub(crate) unsafe fn is_temporary(oid: pg_sys::Oid) -> bool {
    pg_sys::get_rel_persistence(oid) as u8 == pg_sys::RELPERSISTENCE_TEMP
}

unsafe fn creates_temporary(stmt: *mut pg_sys::Node) -> bool {
    let relation = match node::tag(stmt) {
        T_CreateStmt => (*stmt.cast::<pg_sys::CreateStmt>()).relation,
        T_CreateTableAsStmt => (*(*stmt.cast::<pg_sys::CreateTableAsStmt>()).into).rel,
        T_ViewStmt => (*stmt.cast::<pg_sys::ViewStmt>()).view,
        T_CompositeTypeStmt => (*stmt.cast::<pg_sys::CompositeTypeStmt>()).typevar,
        T_CreateFunctionStmt => {
            let names = node::items::<pg_sys::Node>((*stmt.cast::<pg_sys::CreateFunctionStmt>()).funcname);
            return names.len() == 2 && node::string(names[0]) == "pg_temp";
        }
        _ => return false,
    };
    (*relation).relpersistence as u8 == pg_sys::RELPERSISTENCE_TEMP || node::text((*relation).schemaname) == "pg_temp"
}

/// The existing relations that a statement names as what it acts on.
unsafe fn targets(stmt: *mut pg_sys::Node) -> Vec<*mut pg_sys::RangeVar> {
    use pg_sys::ObjectType::*;
    let is_relation = |kind| {
        [OBJECT_TABLE, OBJECT_VIEW, OBJECT_MATVIEW, OBJECT_INDEX, OBJECT_FOREIGN_TABLE, OBJECT_SEQUENCE].contains(&kind)
    };
    match node::tag(stmt) {
        T_AlterTableStmt => vec![(*stmt.cast::<pg_sys::AlterTableStmt>()).relation],
        T_RenameStmt => vec![(*stmt.cast::<pg_sys::RenameStmt>()).relation],
        T_AlterObjectSchemaStmt => vec![(*stmt.cast::<pg_sys::AlterObjectSchemaStmt>()).relation],
        T_IndexStmt => vec![(*stmt.cast::<pg_sys::IndexStmt>()).relation],
        T_CreateTrigStmt => vec![(*stmt.cast::<pg_sys::CreateTrigStmt>()).relation],
        T_RuleStmt => vec![(*stmt.cast::<pg_sys::RuleStmt>()).relation],
        T_CreatePolicyStmt => vec![(*stmt.cast::<pg_sys::CreatePolicyStmt>()).table],
        T_AlterPolicyStmt => vec![(*stmt.cast::<pg_sys::AlterPolicyStmt>()).table],
        T_ReindexStmt => vec![(*stmt.cast::<pg_sys::ReindexStmt>()).relation],
        T_ClusterStmt => vec![(*stmt.cast::<pg_sys::ClusterStmt>()).relation],
        T_RefreshMatViewStmt => vec![(*stmt.cast::<pg_sys::RefreshMatViewStmt>()).relation],
        T_CreateStatsStmt => node::items::<pg_sys::Node>((*stmt.cast::<pg_sys::CreateStatsStmt>()).relations)
            .into_iter()
            .filter(|n| node::tag(*n) == T_RangeVar)
            .map(|n| n.cast())
            .collect(),
        T_GrantStmt => {
            let grant = stmt.cast::<pg_sys::GrantStmt>();
            let on_tables =
                (*grant).targtype == pg_sys::GrantTargetType::ACL_TARGET_OBJECT && is_relation((*grant).objtype);
            if on_tables { node::items((*grant).objects) } else { Vec::new() }
        }
        T_DropStmt => {
            let drop = stmt.cast::<pg_sys::DropStmt>();
            if !is_relation((*drop).removeType) {
                return Vec::new();
            }
            let names = node::items::<pg_sys::List>((*drop).objects);
            names.into_iter().map(|name| pg_sys::makeRangeVarFromNameList(name)).collect()
        }
        T_CommentStmt => {
            let comment = stmt.cast::<pg_sys::CommentStmt>();
            let is_name = is_relation((*comment).objtype) && node::tag((*comment).object) == T_List;
            if is_name { vec![pg_sys::makeRangeVarFromNameList((*comment).object.cast())] } else { Vec::new() }
        }
        _ => Vec::new(),
    }
}

/// The parents that a statement makes a partition of.
unsafe fn new_partition_of(stmt: *mut pg_sys::Node) -> Vec<*mut pg_sys::RangeVar> {
    let create = match node::tag(stmt) {
        T_CreateStmt => stmt.cast::<pg_sys::CreateStmt>(),
        T_CreateForeignTableStmt => &raw mut (*stmt.cast::<pg_sys::CreateForeignTableStmt>()).base,
        _ => return Vec::new(),
    };
    node::items((*create).inhRelations)
}

unsafe fn object_type(stmt: *mut pg_sys::Node) -> Option<pg_sys::ObjectType::Type> {
    Some(match node::tag(stmt) {
        T_DropStmt => (*stmt.cast::<pg_sys::DropStmt>()).removeType,
        T_RenameStmt => (*stmt.cast::<pg_sys::RenameStmt>()).renameType,
        T_AlterObjectSchemaStmt => (*stmt.cast::<pg_sys::AlterObjectSchemaStmt>()).objectType,
        T_AlterOwnerStmt => (*stmt.cast::<pg_sys::AlterOwnerStmt>()).objectType,
        T_AlterTableStmt => (*stmt.cast::<pg_sys::AlterTableStmt>()).objtype,
        T_CommentStmt => (*stmt.cast::<pg_sys::CommentStmt>()).objtype,
        T_SecLabelStmt => (*stmt.cast::<pg_sys::SecLabelStmt>()).objtype,
        T_GrantStmt => {
            let grant = stmt.cast::<pg_sys::GrantStmt>();
            // GRANT ON ALL SEQUENCES IN SCHEMA means those of serial columns, too, which every group has.
            if (*grant).targtype != pg_sys::GrantTargetType::ACL_TARGET_OBJECT {
                return None;
            }
            (*grant).objtype
        }
        _ => return None,
    })
}

/// Kinds of objects that each group has its own of.
fn is_local_object(kind: Option<pg_sys::ObjectType::Type>) -> bool {
    use pg_sys::ObjectType::*;
    kind.is_some_and(|kind| {
        [
            OBJECT_SEQUENCE,
            OBJECT_FOREIGN_TABLE,
            OBJECT_FDW,
            OBJECT_FOREIGN_SERVER,
            OBJECT_USER_MAPPING,
            OBJECT_PUBLICATION,
            OBJECT_PUBLICATION_REL,
            OBJECT_PUBLICATION_NAMESPACE,
            OBJECT_SUBSCRIPTION,
        ]
        .contains(&kind)
    })
}

unsafe fn drops_shardman(stmt: *mut pg_sys::Node) -> bool {
    if node::tag(stmt) != T_DropStmt {
        return false;
    }
    let drop = stmt.cast::<pg_sys::DropStmt>();
    (*drop).removeType == pg_sys::ObjectType::OBJECT_EXTENSION
        && node::items::<pg_sys::Node>((*drop).objects).into_iter().any(|name| node::string(name) == "shardman")
}

/// Statements that PostgreSQL runs only outside of a transaction block.
unsafe fn needs_own_transaction(stmt: *mut pg_sys::Node, targets: &[pg_sys::Oid]) -> Option<&'static str> {
    let is_partitioned = || targets.iter().any(|oid| [b'p', b'I'].contains(&(pg_sys::get_rel_relkind(*oid) as u8)));
    match node::tag(stmt) {
        T_AlterSystemStmt => Some("ALTER SYSTEM"),
        T_CreateTableSpaceStmt => Some("CREATE TABLESPACE"),
        T_DropTableSpaceStmt => Some("DROP TABLESPACE"),
        T_IndexStmt => (*stmt.cast::<pg_sys::IndexStmt>()).concurrent.then_some("CREATE INDEX CONCURRENTLY"),
        T_DropStmt => (*stmt.cast::<pg_sys::DropStmt>()).concurrent.then_some("DROP INDEX CONCURRENTLY"),
        T_ReindexStmt => {
            use pg_sys::ReindexObjectType::{REINDEX_OBJECT_INDEX, REINDEX_OBJECT_TABLE};
            let reindex = stmt.cast::<pg_sys::ReindexStmt>();
            let concurrently = node::items::<pg_sys::DefElem>((*reindex).params)
                .into_iter()
                .any(|p| node::text((*p).defname) == "concurrently" && pg_sys::defGetBoolean(p));
            if concurrently {
                Some("REINDEX CONCURRENTLY")
            } else if ![REINDEX_OBJECT_INDEX, REINDEX_OBJECT_TABLE].contains(&(*reindex).kind) {
                Some("REINDEX of a schema or database")
            } else {
                is_partitioned().then_some("REINDEX of a partitioned table or index")
            }
        }
        T_ClusterStmt => {
            if (*stmt.cast::<pg_sys::ClusterStmt>()).relation.is_null() {
                Some("CLUSTER without a table")
            } else {
                is_partitioned().then_some("CLUSTER of a partitioned table")
            }
        }
        T_AlterDatabaseStmt => node::items::<pg_sys::DefElem>((*stmt.cast::<pg_sys::AlterDatabaseStmt>()).options)
            .into_iter()
            .any(|option| node::text((*option).defname) == "tablespace")
            .then_some("ALTER DATABASE SET TABLESPACE"),
        T_AlterTableStmt => commands(stmt)
            .into_iter()
            .any(|c| {
                (*c).subtype == pg_sys::AlterTableType::AT_DetachPartition
                    && (*(*c).def.cast::<pg_sys::PartitionCmd>()).concurrent
            })
            .then_some("ALTER TABLE DETACH PARTITION CONCURRENTLY"),
        _ => None,
    }
}

unsafe fn commands(stmt: *mut pg_sys::Node) -> Vec<*mut pg_sys::AlterTableCmd> {
    node::items((*stmt.cast::<pg_sys::AlterTableStmt>()).cmds)
}

/// What must not be done to sharded tables and their partitions by hand.
unsafe fn on_sharded_table(stmt: *mut pg_sys::Node, targets: &[pg_sys::Oid]) -> Option<Verdict> {
    for part in targets.iter().filter(|oid| pg_sys::get_rel_relispartition(**oid)) {
        if let Some(parent) = sharded_parent(*part) {
            let (part, parent) = (node::relation_name(*part), node::relation_name(parent));
            return Some(Verdict::Refuse {
                what: format!("\"{part}\" is a partition of the sharded table \"{parent}\""),
                why: "Partitions are managed by shardman and have other names on other groups.".into(),
                hint: format!(
                    "Do it to table \"{parent}\", or on this group alone after SET shardman.broadcast_utility = off."
                ),
            });
        }
    }
    for parent in new_partition_of(stmt) {
        if let Some(oid) = node::resolve(parent)
            && is_sharded(oid)
        {
            return Some(partitions_are_fixed(oid));
        }
    }
    match node::tag(stmt) {
        T_AlterTableStmt => {
            use pg_sys::AlterTableType::{AT_AttachPartition, AT_DetachPartition, AT_DetachPartitionFinalize};
            let swaps = [AT_AttachPartition, AT_DetachPartition, AT_DetachPartitionFinalize];
            if !commands(stmt).into_iter().any(|c| swaps.contains(&(*c).subtype)) {
                return None;
            }
            targets.iter().find(|oid| is_sharded(**oid)).map(|oid| partitions_are_fixed(*oid))
        }
        T_DropStmt if (*stmt.cast::<pg_sys::DropStmt>()).behavior == pg_sys::DropBehavior::DROP_RESTRICT => {
            targets.iter().find_map(|oid| {
                let follower = colocated_table(*oid).filter(|follower| !targets.contains(follower))?;
                let (table, follower) = (node::relation_name(*oid), node::relation_name(follower));
                Some(Verdict::Refuse {
                    what: format!("cannot drop table \"{table}\""),
                    why: format!("Table \"{follower}\" is colocated with it."),
                    hint: "Use DROP TABLE ... CASCADE: colocated tables stay, together.".into(),
                })
            })
        }
        _ => None,
    }
}

/// The table that a statement adds nothing but keys to, if it is sharded. PostgreSQL takes such a key with ONLY; event
/// triggers then give it to the partitions.
pub(crate) unsafe fn adds_keys(stmt: *mut pg_sys::Node) -> Option<*mut pg_sys::RangeVar> {
    use pg_sys::ConstrType::{CONSTR_PRIMARY, CONSTR_UNIQUE};
    let relation = match node::tag(stmt) {
        T_IndexStmt if (*stmt.cast::<pg_sys::IndexStmt>()).unique => (*stmt.cast::<pg_sys::IndexStmt>()).relation,
        T_AlterTableStmt => {
            let all_keys = commands(stmt).into_iter().all(|c| {
                (*c).subtype == pg_sys::AlterTableType::AT_AddConstraint
                    && node::tag((*c).def) == T_Constraint
                    && [CONSTR_PRIMARY, CONSTR_UNIQUE].contains(&(*(*c).def.cast::<pg_sys::Constraint>()).contype)
            });
            if !all_keys {
                return None;
            }
            (*stmt.cast::<pg_sys::AlterTableStmt>()).relation
        }
        _ => return None,
    };
    node::resolve(relation).is_some_and(|oid| is_sharded(oid)).then_some(relation)
}

unsafe fn partitions_are_fixed(parent: pg_sys::Oid) -> Verdict {
    Verdict::Refuse {
        what: format!("partitions of the sharded table \"{}\" cannot be changed by hand", node::relation_name(parent)),
        why: "Its partitions were made when it was created, one for each remainder, and shardman knows where they are."
            .into(),
        hint: "Move partitions with \"shardmanctl rebalance\".".into(),
    }
}

unsafe fn lookup(query: &str, oid: pg_sys::Oid) -> Option<pg_sys::Oid> {
    Spi::connect_mut(|client| client.update(query, Some(1), &[oid.into()])?.next().map_or(Ok(None), |row| row.get(1)))
        .unwrap_or_else(|e| spi_failed("read the metadata of sharded tables", &e))
}

unsafe fn is_sharded(oid: pg_sys::Oid) -> bool {
    lookup("SELECT rel FROM shardman.sharded_tables WHERE rel OPERATOR(pg_catalog.=) $1", oid).is_some()
}

unsafe fn sharded_parent(part: pg_sys::Oid) -> Option<pg_sys::Oid> {
    let query = "SELECT s.rel FROM pg_catalog.pg_inherits i JOIN shardman.sharded_tables s \
                 ON s.rel OPERATOR(pg_catalog.=) i.inhparent WHERE i.inhrelid OPERATOR(pg_catalog.=) $1";
    lookup(query, part)
}

unsafe fn colocated_table(leader: pg_sys::Oid) -> Option<pg_sys::Oid> {
    lookup("SELECT rel FROM shardman.sharded_tables WHERE colocated_with OPERATOR(pg_catalog.=) $1", leader)
}
