//! Ending what a killed command has left half done on the servers.

use super::{Reserved, advance, attach};
use crate::cluster::{Loaded, load_existing};
use crate::context::Context;
use crate::error::Error;
use crate::group::{Group, Place, login};
use crate::register::groups_in_order;
use crate::report::Progress;
use model::RepGroupId;
use model::layout::{RepGroupDoc, RepGroupState};
use pg::{Login, Session};
use store::Lock;

/// Beginning of the names of all prepared transactions of this module.
const PREFIX: &str = "shardman:addrepgroup:";

/// The name of an operation's prepared transactions.
pub(super) fn gid(operation: &str) -> String {
    format!("{PREFIX}{operation}")
}

/// How leftovers of an operation end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The operation did not reach the point of no return.
    RollBack,
    /// It did.
    Commit,
}

/// What the state of a group's document says about the operation's prepared transactions.
pub(super) fn verdict(state: RepGroupState) -> Option<Verdict> {
    match state {
        RepGroupState::Adding => Some(Verdict::RollBack),
        RepGroupState::Committing => Some(Verdict::Commit),
        RepGroupState::Active => None,
    }
}

/// Brings every operation that a killed command has left to its end.
///
/// # Errors
/// A group that could hold a leftover can't be reached, or the store failed.
pub async fn recover(ctx: &Context, lock: &Lock, progress: &dyn Progress) -> Result<(), Error> {
    let loaded = load_existing(ctx).await?;
    let login = login(&loaded.spec.doc.cluster_spec);
    for (id, group) in &loaded.repgroups {
        let name = &group.doc.stolon_name;
        match verdict(group.doc.state) {
            None => {}
            Some(Verdict::RollBack) => {
                progress.info(&format!("Rolling back the interrupted adding of rg {id} ({name})"));
                undo(ctx, &loaded, &group.doc, &login, progress).await;
                if !groups_in_order(&loaded.current(), |_| true).any(|laid_out| laid_out == *name) {
                    progress.warn(&format!(
                        "rg {id} ({name}) is no part of the cluster: a command that was interrupted has reserved its \
                         number, and the layout does not have it; add it again, or leave it as it is"
                    ));
                }
            }
            Some(Verdict::Commit) => {
                progress.info(&format!("Finishing the interrupted adding of rg {id} ({name})"));
                for member in active(&loaded).chain([&group.doc]) {
                    end_on(ctx, &Place::of(member), &group.doc.operation, Verdict::Commit, &login).await?;
                }
                attach::complete(ctx, lock, &loaded, (*id, group.clone()), &login, progress).await?;
            }
        }
    }
    Ok(())
}

/// Rolls back what an adding has prepared, wherever that can be done now: a server that is out of reach, maybe for
/// good, must not stop the others. What is left is swept away before the next group is added.
async fn undo(ctx: &Context, loaded: &Loaded, doc: &RepGroupDoc, login: &Login, progress: &dyn Progress) {
    for member in active(loaded).chain([doc]) {
        if let Err(error) = roll_back_on(ctx, &Place::of(member), &doc.operation, login).await {
            let error = common::exit::one_line(&error.into());
            if member.stolon_name == doc.stolon_name {
                // It may not even run now, and is rolled back again when it is added.
                tracing::debug!(error, "the new group is left as it is");
            } else {
                progress.warn(&format!("not rolled back: {error}"));
            }
        }
    }
}

fn active(loaded: &Loaded) -> impl Iterator<Item = &RepGroupDoc> {
    loaded.repgroups.values().map(|group| &group.doc).filter(|doc| doc.state == RepGroupState::Active)
}

/// Rolls an operation's leftovers back on one group.
pub(super) async fn roll_back_on(ctx: &Context, place: &Place, operation: &str, login: &Login) -> Result<(), Error> {
    end_on(ctx, place, operation, Verdict::RollBack, login).await
}

async fn end_on(ctx: &Context, place: &Place, operation: &str, verdict: Verdict, login: &Login) -> Result<(), Error> {
    let group = Group::open(ctx, place).await?;
    let session = group.connect(login).await?;
    end(&group, &session, operation, verdict).await
}

/// Ends an operation's prepared transaction if it is there. Its absence means that it was ended already (under the
/// metadata lock nobody else ends it meanwhile), or that a failover without synchronous replication has lost it: only
/// a look at its effect tells.
pub(super) async fn end(group: &Group, session: &Session, operation: &str, verdict: Verdict) -> Result<(), Error> {
    let gid = gid(operation);
    let found = session
        .query_opt("SELECT FROM pg_prepared_xacts WHERE gid = $1 AND database = current_database()", &[&gid])
        .await
        .map_err(group.sql("look for prepared transactions"))?;
    if found.is_none() {
        return Ok(());
    }
    let (verb, what) = match verdict {
        Verdict::RollBack => ("ROLLBACK", "roll back the prepared transaction"),
        Verdict::Commit => ("COMMIT", "commit the prepared transaction"),
    };
    let sql = format!("{verb} PREPARED {}", pg::quote::literal(&gid));
    session.batch_execute(&sql).await.map_err(group.sql(what))
}

/// Rolls back what a command has prepared that had lost the metadata lock without knowing it: no document names such
/// a transaction any more. Only for when no group's state is `committing`.
pub(super) async fn sweep(group: &Group, session: &Session) -> Result<(), Error> {
    let found = session
        .query(
            "SELECT gid FROM pg_prepared_xacts WHERE gid LIKE $1 AND database = current_database()",
            &[&format!("{PREFIX}%")],
        )
        .await
        .map_err(group.sql("look for prepared transactions"))?;
    for row in found {
        let gid: String = row.get(0);
        tracing::warn!(group = %group.name, gid, "roll back what a command without the metadata lock has left");
        let sql = format!("ROLLBACK PREPARED {}", pg::quote::literal(&gid));
        session.batch_execute(&sql).await.map_err(group.sql("roll back the prepared transaction"))?;
    }
    Ok(())
}

/// A server that takes part in an operation, in the order in which locks are taken.
pub(super) struct Member {
    pub(super) id: RepGroupId,
    pub(super) group: Group,
    pub(super) session: Session,
    pub(super) hosts: String,
    pub(super) ports: String,
}

/// After every server has prepared: the point of no return, then the commits.
pub(super) async fn commit(ctx: &Context, lock: &Lock, members: &[Member], from: Reserved) -> Result<(), Error> {
    let operation = from.1.doc.operation.clone();
    let committing = match advance(ctx, lock, from, RepGroupState::Committing).await {
        Ok(committing) => committing,
        // Whether the store has taken the write is not known: only what it says later decides.
        Err(error @ store::lock::LockError::Store(_)) => return Err(error.into()),
        Err(error) => {
            roll_back(members, &operation).await;
            return Err(error.into());
        }
    };
    for member in members {
        end(&member.group, &member.session, &operation, Verdict::Commit).await?;
    }
    advance(ctx, lock, committing, RepGroupState::Active).await?;
    Ok(())
}

/// Undoes what was prepared, as far as servers can be reached; the rest is left to [`recover`].
pub(super) async fn roll_back(members: &[Member], operation: &str) {
    for member in members {
        // A session whose transaction has failed answers nothing else before this; one without gives a warning.
        let _ = member.session.batch_execute("ROLLBACK").await;
        if let Err(error) = end(&member.group, &member.session, operation, Verdict::RollBack).await {
            tracing::warn!(group = %member.group.name, "{}", common::exit::one_line(&error.into()));
        }
    }
}
