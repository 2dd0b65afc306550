//! Making a stolon cluster that runs a part of the Shardman cluster.
//!
//! The group's document is the operation's log. `adding`: the number is reserved, nothing is committed anywhere, and
//! prepared transactions of the operation roll back. `committing`: every server has prepared its part, and they
//! commit. `active`: done. [`recover`] brings what a killed command has left to the one or the other end.

mod attach;
mod recover;
mod schema;

pub use recover::recover;

use crate::cluster::{Loaded, Versioned, load_existing, unchanged};
use crate::context::Context;
use crate::error::Error;
use crate::group::{Group, Place, login};
use crate::report::{Progress, item};
use model::layout::{Document, FORMAT_VERSION, RepGroupDoc, RepGroupState};
use model::{RepGroupId, RepGroupName};
use pg::Login;
use std::time::Duration;
use store::{Compare, Follower, Lock, Op, Target};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

/// How long a new group may take to apply its number, which can need a restart of its PostgreSQL.
const APPLY_PATIENCE: Duration = Duration::from_secs(300);
/// Pause before the new master is asked again: a reload or restart ends without a word in the store.
const APPLY_PAUSE: Duration = Duration::from_millis(500);

/// Makes a running stolon cluster a replication group; gives its number. A group that is one already is left alone.
///
/// # Errors
/// The group or another one can't be reached, holds what does not belong there, or the store failed.
pub async fn add(ctx: &Context, lock: &Lock, place: &Place, progress: &dyn Progress) -> Result<RepGroupId, Error> {
    let loaded = load_existing(ctx).await?;
    let login = login(&loaded.spec.doc.cluster_spec);
    if let Some((id, found)) = loaded.repgroup(&place.name) {
        match found.doc.state {
            RepGroupState::Active => return Ok(id),
            RepGroupState::Committing => return Err(unrecovered(&place.name)),
            RepGroupState::Adding => recover::roll_back_on(ctx, place, &found.doc.operation, &login).await?,
        }
    }
    let group = Group::open(ctx, place).await?;
    let sys_id = system_id(&group, &login).await?;
    let reservation = plan_reservation(&loaded, place, sys_id, &uuid::Uuid::new_v4().to_string())?;
    let reserved = reserve(ctx, lock, &loaded, reservation).await?;
    let id = reserved.0;
    debug!("start broadcaster worker for repgroup id={id}");
    prepare_server(&group, id, &login, progress).await?;
    attach::attach(ctx, lock, &group, reserved, &login).await?;
    debug!("finish broadcaster worker for repgroup id={id}");
    Ok(id)
}

fn unrecovered(name: &RepGroupName) -> Error {
    Error::Refused(format!(
        "group {name} can't be added before an earlier adding is finished; run `ladle fixrepgroups`"
    ))
}

async fn system_id(group: &Group, login: &Login) -> Result<i64, Error> {
    let session = group.connect(login).await?;
    let row = session
        .query_one("SELECT system_identifier FROM pg_control_system()", &[])
        .await
        .map_err(group.sql("read the system identifier"))?;
    Ok(row.get(0))
}

/// A number for a group, and the document that takes it.
#[derive(Clone, Debug, PartialEq)]
struct Reservation {
    id: RepGroupId,
    doc: RepGroupDoc,
    /// The number comes from the sequence, which moves on.
    fresh: bool,
}

/// An interrupted adding keeps its number, under a new operation.
fn plan_reservation(loaded: &Loaded, place: &Place, sys_id: i64, operation: &str) -> Result<Reservation, Error> {
    let twin = loaded.repgroups.values().find(|g| g.doc.sys_id == sys_id && g.doc.stolon_name != place.name);
    if let Some(twin) = twin {
        return Err(Error::Refused(format!(
            "group {} has the same system identifier as group {}; it is the same database or a copy of it, so start \
             with an empty server",
            place.name, twin.doc.stolon_name
        )));
    }
    let existing = loaded.repgroup(&place.name).map(|(id, _)| id);
    let doc = RepGroupDoc {
        format_version: FORMAT_VERSION,
        stolon_name: place.name.clone(),
        store_conn_info: place.store.clone(),
        store_prefix: place.prefix.clone(),
        sys_id,
        state: RepGroupState::Adding,
        operation: operation.to_owned(),
    };
    let id = existing.unwrap_or(RepGroupId(loaded.revision.doc.rep_group_seq));
    Ok(Reservation { id, doc, fresh: existing.is_none() })
}

type Reserved = (RepGroupId, Versioned<RepGroupDoc>);

async fn reserve(ctx: &Context, lock: &Lock, loaded: &Loaded, wanted: Reservation) -> Result<Reserved, Error> {
    let Reservation { id, doc, fresh } = wanted;
    let key = ctx.keys.repgroup(id);
    let mut conditions = vec![unchanged(key.clone(), loaded.repgroups.get(&id))];
    let mut writes = vec![Op::put(key, doc.to_bytes())];
    if fresh {
        let mut revision = loaded.revision.doc.clone();
        revision.rep_group_seq += 1;
        conditions.push(unchanged(ctx.keys.revision(), Some(&loaded.revision)));
        writes.push(Op::put(ctx.keys.revision(), revision.to_bytes()));
    }
    let outcome = lock.write(conditions, writes).await?;
    Ok((id, Versioned { doc, revision: outcome.revision }))
}

/// Moves a group's document to its next state.
async fn advance(
    ctx: &Context,
    lock: &Lock,
    (id, from): Reserved,
    state: RepGroupState,
) -> Result<Reserved, store::lock::LockError> {
    let key = ctx.keys.repgroup(id);
    let doc = RepGroupDoc { state, ..from.doc };
    let condition = Compare::Unchanged(key.clone(), from.revision);
    let outcome = lock.write(vec![condition], vec![Op::put(key, doc.to_bytes())]).await?;
    Ok((id, Versioned { doc, revision: outcome.revision }))
}

/// Gives the new server its number and the extension, and waits until the number is in force.
async fn prepare_server(group: &Group, id: RepGroupId, login: &Login, progress: &dyn Progress) -> Result<(), Error> {
    group.stamp(id).await?;
    item(progress, &format!("waiting rg {id} config apply"), "done", wait_applied(group, id, login)).await?;
    debug!("repgroup {id} connect established");
    let session = group.connect(login).await?;
    session
        .batch_execute("CREATE EXTENSION IF NOT EXISTS shardman CASCADE")
        .await
        .map_err(group.sql("create the extension shardman"))
}

async fn wait_applied(group: &Group, id: RepGroupId, login: &Login) -> Result<(), Error> {
    let follower = Follower::start(group.store.clone(), vec![Target::Key(group.keys.clusterdata())]);
    let mut view = follower.subscribe();
    let deadline = Instant::now() + APPLY_PATIENCE;
    loop {
        // Whatever goes wrong here can be the restart that we wait for.
        let state = match timeout_at(deadline, applied(group, id, login)).await {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => format!("shardman.rgid = {id} or max_prepared_transactions is not in force"),
            Ok(Err(error)) => common::exit::one_line(&error.into()),
            Err(_) => "no answer".to_owned(),
        };
        // Both branches are cancel-safe: a change that is not taken is found again, a sleep has no effect.
        tokio::select! {
            _ = view.changed() => {}
            () = sleep(APPLY_PAUSE) => {}
        }
        if Instant::now() >= deadline {
            return Err(Error::NotReady { group: group.name.clone(), state, after: APPLY_PATIENCE });
        }
    }
}

async fn applied(group: &Group, id: RepGroupId, login: &Login) -> Result<bool, Error> {
    let session = group.connect(login).await?;
    let row = session
        .query_one(
            "SELECT current_setting('max_prepared_transactions')::int > 0 \
             AND coalesce(current_setting('shardman.rgid', true) = $1, false)",
            &[&id.to_string()],
        )
        .await
        .map_err(group.sql("read the settings"))?;
    Ok(row.get(0))
}

#[cfg(test)]
mod tests;
