//! One transaction over all groups: the new one learns of the others, the others of the new one.

use super::recover::{Member, commit, gid, roll_back, sweep};
use super::schema;
use super::{Reserved, advance};
use crate::cluster::{Loaded, load_existing};
use crate::context::Context;
use crate::error::Error;
use crate::group::{Group, Place};
use crate::report::Progress;
use model::RepGroupId;
use model::layout::RepGroupState;
use pg::{Login, Session};
use std::time::Duration;
use store::Lock;
use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;
use tracing::debug;

/// How long running schema changes may keep us from the extension lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(300);
/// One attempt: a schema change that waits for us on another group would otherwise wait as long as we do.
const LOCK_ATTEMPT: Duration = Duration::from_secs(5);

/// Attaches the new group, whose number is reserved and in force.
pub(super) async fn attach(
    ctx: &Context,
    lock: &Lock,
    new: &Group,
    reserved: Reserved,
    login: &Login,
) -> Result<(), Error> {
    let loaded = load_existing(ctx).await?;
    if loaded.repgroups.iter().any(|(id, g)| *id != reserved.0 && g.doc.state == RepGroupState::Committing) {
        return Err(super::unrecovered(&new.name));
    }
    let use_proxy = loaded.spec.doc.cluster_spec.use_proxy;
    let mut members = Vec::new();
    for (id, registered) in loaded.repgroups.iter().filter(|(_, g)| g.doc.state == RepGroupState::Active) {
        let group = Group::open(ctx, &Place::of(&registered.doc)).await?;
        members.push(member(*id, group, use_proxy, login).await?);
    }
    let newcomer = new.connect(login).await?;
    let sessions = members.iter().map(|member| (&member.group, &member.session));
    for (group, session) in sessions.chain([(new, &newcomer)]) {
        sweep(group, session).await?;
    }
    take_extension_lock(&members).await?;
    // Only now: while the lock is held nobody changes the schema that is copied.
    if let Some(source) = members.first() {
        debug!("Loading schema into replication group rg {}", reserved.0);
        let bin = &loaded.spec.doc.ladle_spec.pg_bin_path;
        schema::copy(&source.group, new, login, bin).await?;
    }
    members.push(member(reserved.0, new.clone(), use_proxy, login).await?);
    let operation = reserved.1.doc.operation.clone();
    let prepared = match connect_all(&members, login).await {
        Ok(()) => prepare(&members, &operation).await,
        Err(error) => Err(error),
    };
    if let Err(error) = prepared {
        roll_back(&members, &operation).await;
        return Err(error);
    }
    commit(ctx, lock, &members, reserved).await
}

/// Ends an adding that is decided, after its prepared transactions were committed. A server that has lost its part in
/// a failover gets it again; to the others that changes nothing.
pub(super) async fn complete(
    ctx: &Context,
    lock: &Lock,
    loaded: &Loaded,
    reserved: Reserved,
    login: &Login,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let id = reserved.0;
    let new = Group::open(ctx, &Place::of(&reserved.1.doc)).await?;
    let lost = |group: &Group| {
        progress.warn(&format!("group {} has lost its part of the adding of rg {id}, doing it again", group.name));
    };
    if !knows(&new, &new.connect(login).await?, id).await? {
        lost(&new);
        super::prepare_server(&new, id, login, progress).await?;
        return attach(ctx, lock, &new, reserved, login).await;
    }
    let use_proxy = loaded.spec.doc.cluster_spec.use_proxy;
    let newcomer = member(id, new, use_proxy, login).await?;
    for (other, registered) in loaded.repgroups.iter().filter(|(_, g)| g.doc.state == RepGroupState::Active) {
        let group = Group::open(ctx, &Place::of(&registered.doc)).await?;
        let other = member(*other, group, use_proxy, login).await?;
        if !knows(&other.group, &other.session, id).await? {
            lost(&other.group);
            take_extension_lock(std::slice::from_ref(&other)).await?;
            connect(&other, &newcomer, login).await?;
            other.session.batch_execute("COMMIT").await.map_err(other.group.sql("commit"))?;
        }
    }
    advance(ctx, lock, reserved, RepGroupState::Active).await?;
    Ok(())
}

/// Whether a group's number is in a server's metadata: the effect of an adding, on the group itself and on others.
async fn knows(group: &Group, session: &Session, id: RepGroupId) -> Result<bool, Error> {
    let what = "look for the group's number";
    let row = session
        .query_one("SELECT to_regclass('shardman.repgroups') IS NOT NULL", &[])
        .await
        .map_err(group.sql(what))?;
    if !row.get::<_, bool>(0) {
        return Ok(false);
    }
    let sql = "SELECT EXISTS (SELECT FROM shardman.repgroups WHERE id = $1)";
    Ok(session.query_one(sql, &[&number(id)]).await.map_err(group.sql(what))?.get(0))
}

async fn member(id: RepGroupId, group: Group, use_proxy: bool, login: &Login) -> Result<Member, Error> {
    let data = group.data().await?;
    let endpoints = pg::endpoints::entry_points(&data, use_proxy).map_err(|e| Error::NotReady {
        group: group.name.clone(),
        state: e.to_string(),
        after: Duration::ZERO,
    })?;
    let session = group.connect(login).await?;
    Ok(Member { id, session, hosts: endpoints.hosts(), ports: endpoints.ports(), group })
}

/// Stops schema changes in the whole cluster until the transaction ends. Readers go on; not ACCESS EXCLUSIVE, for
/// which `pg_dump` would wait for ever.
async fn take_extension_lock(members: &[Member]) -> Result<(), Error> {
    debug!("waiting for extension lock...");
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        let Err((member, source)) = try_extension_lock(members).await else { return Ok(()) };
        for member in members {
            let _ = member.session.batch_execute("ROLLBACK").await;
        }
        let busy = matches!(source.code(), Some(&(SqlState::LOCK_NOT_AVAILABLE | SqlState::T_R_DEADLOCK_DETECTED)));
        if !busy || Instant::now() >= deadline {
            return Err(member.group.sql("lock shardman.repgroups, which long schema changes prevent,")(source));
        }
        sleep(Duration::from_secs(1)).await;
    }
}

async fn try_extension_lock(members: &[Member]) -> Result<(), (&Member, tokio_postgres::Error)> {
    for member in members {
        let sql = format!(
            "BEGIN; SET LOCAL lock_timeout = {}; LOCK TABLE shardman.repgroups IN EXCLUSIVE MODE; \
             SET LOCAL lock_timeout = 0",
            LOCK_ATTEMPT.as_millis()
        );
        member.session.batch_execute(&sql).await.map_err(|source| (member, source))?;
    }
    Ok(())
}

/// Both sides of every pair; the new group is the last member.
async fn connect_all(members: &[Member], login: &Login) -> Result<(), Error> {
    let Some((new, others)) = members.split_last() else { return Ok(()) };
    new.session.batch_execute("BEGIN").await.map_err(new.group.sql("begin"))?;
    let id = number(new.id);
    new.session
        .execute("SELECT shardman.set_local_repgroup($1)", &[&id])
        .await
        .map_err(new.group.sql("set the number of the group"))?;
    // In the schema of a group that knows this one already: an adding that is done again.
    let own = format!("DROP SERVER IF EXISTS shardman_rg_{id} CASCADE");
    new.session.batch_execute(&own).await.map_err(new.group.sql("drop the server of the group itself"))?;
    for other in others {
        connect(new, other, login).await?;
        connect(other, new, login).await?;
    }
    if let Some(source) = others.first() {
        schema::copy_metadata(source, new).await?;
    }
    new.session
        .batch_execute("SELECT shardman.restamp_oids(); SELECT shardman.restore_foreign_tables()")
        .await
        .map_err(new.group.sql("restore foreign tables"))
}

async fn connect(on: &Member, to: &Member, login: &Login) -> Result<(), Error> {
    let password = Some(login.password.reveal()).filter(|password| !password.is_empty());
    on.session
        .execute(
            "SELECT shardman.connect_repgroup($1, $2, $3, $4, $5)",
            &[&number(to.id), &to.hosts, &to.ports, &login.user, &password],
        )
        .await
        .map_err(on.group.sql("connect another group"))?;
    Ok(())
}

/// SQL's `int`; the extension's own limit is far below.
fn number(id: RepGroupId) -> i32 {
    i32::try_from(id.0).unwrap_or(i32::MAX)
}

async fn prepare(members: &[Member], operation: &str) -> Result<(), Error> {
    let sql = format!("PREPARE TRANSACTION {}", pg::quote::literal(&gid(operation)));
    for member in members {
        member.session.batch_execute(&sql).await.map_err(member.group.sql("prepare the transaction"))?;
    }
    Ok(())
}
