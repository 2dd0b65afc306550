//! Synchronous replication: who commits wait for, and that nobody else can become master.

use crate::lab;
use model::DbUid;
use model::stolon::ClusterData;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;
use testkit::stolon::Lab;

/// Commits that wait are given so long to show that they don't.
const WAITS: Duration = Duration::from_millis(1500);
/// What must not happen is given so long to happen: twice the time of a failover.
const QUIET: Duration = Duration::from_secs(5);

/// The wanted synchronous sets of a master, one after the other.
fn sets(history: &[ClusterData], master: &DbUid) -> Vec<BTreeSet<DbUid>> {
    let set = |data: &ClusterData| {
        let db = data.dbs.get(master)?;
        Some(db.spec.synchronous_standbys.iter().flatten().cloned().collect())
    };
    let mut sets: Vec<_> = history.iter().filter_map(set).collect();
    sets.dedup();
    sets
}

/// Keepers that the master's commits are wanted to wait for.
fn wanted(lab: &Lab, data: &ClusterData) -> BTreeSet<usize> {
    let master = &data.dbs[&data.cluster.status.master];
    let dbs = master.spec.synchronous_standbys.iter().flatten().filter_map(|db| data.dbs.get(db));
    dbs.filter_map(|db| lab.index(db.spec.keeper_uid.as_str())).collect()
}

/// The member of a set of one, and the keeper that is neither it nor the master.
async fn member_and_other(lab: &Lab) -> (usize, usize) {
    let data = lab.data().await;
    let member = *lab.confirmed(&data).first().unwrap();
    let master = lab.master_in(&data).unwrap();
    (member, (0..3).find(|keeper| *keeper != member && *keeper != master).unwrap())
}

#[tokio::test]
async fn it_is_switched_on_and_off() {
    let lab = lab().keepers(3).up().await;
    let (master, standbys) = (lab.master().await, lab.standbys().await);
    let pg = &lab.keeper(master).pg;
    assert_eq!(pg.one("SHOW synchronous_standby_names").await, "");
    let revision = lab.revision().await;
    let on = json!({"synchronousReplication": true, "maxSynchronousStandbys": 2}).to_string();
    lab.ctl(&["update", "--patch", &on]).await;
    let data = lab.wait("both standbys are in sync", |data| lab.confirmed(data).len() == 2).await;
    let members: Vec<&DbUid> = standbys.iter().map(|standby| &lab.db(&data, *standby).unwrap().uid).collect();
    let names: BTreeSet<String> = members.iter().map(|db| format!("stolon_{db}")).collect();
    let names = names.into_iter().collect::<Vec<_>>().join(",");
    assert_eq!(pg.one("SHOW synchronous_standby_names").await, format!("2 ({names})"));
    assert_eq!(pg.one("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'").await, "2");
    // Those who are there are taken at once; commits never waited for somebody who does not exist.
    let fake = |data: &ClusterData| {
        data.dbs
            .values()
            .any(|db| !db.spec.external_synchronous_standbys.iter().flatten().collect::<Vec<_>>().is_empty())
    };
    assert!(!lab.history(revision).await.iter().any(fake));

    for standby in &standbys {
        lab.keeper(*standby).stop_receiving().await;
    }
    assert!(!pg.confirms("CREATE TABLE waits ()", WAITS).await, "a commit did not wait");
    lab.ctl(&["update", "--patch", r#"{"synchronousReplication": false}"#]).await;
    pg.wait_for("SHOW synchronous_standby_names", "").await;
    assert!(pg.confirms("CREATE TABLE waits_not ()", QUIET).await, "a commit waited for nobody");
    let data = lab
        .wait("the lists are gone", |data| !data.dbs[&data.cluster.status.master].spec.synchronous_replication)
        .await;
    let db = &data.dbs[&data.cluster.status.master];
    let lists =
        (&db.spec.synchronous_standbys, &db.spec.external_synchronous_standbys, &db.status.synchronous_standbys);
    assert_eq!(lists, (&None, &None, &None));
}

#[tokio::test]
async fn a_dead_standby_is_replaced_in_two_steps() {
    let lab = lab().keepers(3).synchronous(1, 1).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let (dead, other) = member_and_other(&lab).await;
    let data = lab.data().await;
    let [master, dead_db, other_db] =
        [lab.master().await, dead, other].map(|keeper| lab.db(&data, keeper).unwrap().uid.clone());
    let revision = lab.revision().await - 1;
    lab.keeper(dead).kill();
    lab.wait("the other one took its place", |data| lab.confirmed(data) == [other].into()).await;
    writer.progress(20).await;
    let steps: Vec<BTreeSet<DbUid>> =
        vec![[dead_db.clone()].into(), [dead_db, other_db.clone()].into(), [other_db].into()];
    let seen = sets(&lab.history(revision).await, &master);
    assert!(steps.ends_with(&seen) && seen.len() >= 2, "{seen:?} instead of {steps:?}");
    // What was confirmed before and after survives the master.
    let old = lab.master().await;
    lab.keeper(old).kill();
    assert_eq!(lab.wait_for_other_master(old).await, other);
    lab.keeper(dead).start();
    writer.progress(20).await;
    writer.finish().await.check(&lab.proxy(0).pg).await;
}

#[tokio::test]
async fn commits_wait_for_a_dead_standby_that_nobody_replaces() {
    let lab = lab().synchronous(1, 1).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let (master, standby) = (lab.master().await, lab.standbys().await[0]);
    lab.keeper(standby).kill();
    lab.wait("the standby is given up", |data| !lab.db(data, standby).unwrap().status.healthy).await;
    let before = writer.count();
    assert!(!lab.keeper(master).pg.confirms("CREATE TABLE waits ()", WAITS).await, "a commit did not wait");
    lab.never("commits wait for nobody", QUIET, |data| wanted(&lab, data) != [standby].into()).await;
    assert_eq!(writer.count(), before);
    lab.keeper(standby).start();
    writer.progress(20).await;
    let written = writer.finish().await;
    lab.caught_up(standby).await;
    written.check(&lab.keeper(standby).pg).await;
}

#[tokio::test]
async fn a_new_member_that_never_gets_in_sync_is_never_elected() {
    let lab = lab().keepers(3).synchronous(1, 1).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let old = lab.master().await;
    let (member, other) = member_and_other(&lab).await;
    lab.keeper(other).stop_receiving().await;
    lab.keeper(member).kill();
    lab.wait("the other one is wanted too", |data| wanted(&lab, data) == [member, other].into()).await;
    lab.never("it counts as in sync", Duration::from_secs(2), |data| lab.confirmed(data).contains(&other)).await;
    lab.keeper(old).kill();
    lab.never("it is elected", QUIET, |data| lab.master_in(data) != Some(old)).await;
    // The only one that holds every commit comes back.
    lab.keeper(member).start();
    assert_eq!(lab.wait_for_other_master(old).await, member);
    lab.keeper(other).thaw();
    writer.progress(20).await;
    writer.finish().await.check(&lab.proxy(0).pg).await;
}

#[tokio::test]
async fn only_the_common_member_is_elected_when_the_master_dies_during_a_change() {
    let lab = lab().keepers(3).synchronous(1, 1).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let old = lab.master().await;
    let (member, other) = member_and_other(&lab).await;
    lab.keeper(other).stop_receiving().await;
    lab.ctl(&["update", "--patch", r#"{"maxSynchronousStandbys": 2}"#]).await;
    lab.wait("both are wanted", |data| wanted(&lab, data) == [member, other].into()).await;
    // Would be preferred if it were allowed.
    lab.ctl(&["setkeeperpriority", &lab.keeper(other).uid, "10"]).await;
    lab.keeper(old).kill();
    assert_eq!(lab.wait_for_other_master(old).await, member);
    lab.keeper(other).thaw();
    writer.progress(20).await;
    writer.finish().await.check(&lab.proxy(0).pg).await;
}

#[tokio::test]
async fn with_a_minimum_of_zero_the_master_goes_on_alone_and_nobody_else_is_elected() {
    let lab = lab().synchronous(0, 1).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let (master, standby) = (lab.master().await, lab.standbys().await[0]);
    // Well, but its receiver hangs: commits wait for it no longer than necessary, and again once it has caught up.
    lab.keeper(standby).stop_receiving().await;
    lab.wait("commits wait for nobody", |data| wanted(&lab, data).is_empty()).await;
    writer.progress(20).await;
    lab.keeper(standby).thaw();
    lab.wait("it is in sync again", |data| lab.confirmed(data) == [standby].into()).await;
    lab.keeper(standby).kill();
    lab.wait("commits wait for nobody", |data| wanted(&lab, data).is_empty()).await;
    writer.progress(20).await;
    lab.keeper(master).kill();
    lab.keeper(standby).start();
    lab.never("one without the last commits is elected", QUIET, |data| lab.master_in(data) != Some(master)).await;
    lab.keeper(master).start();
    writer.progress(20).await;
    let written = writer.finish().await;
    let data = lab.ready().await;
    assert_eq!(lab.confirmed(&data), [standby].into());
    lab.caught_up(standby).await;
    written.check(&lab.keeper(standby).pg).await;
}

#[tokio::test]
async fn with_a_minimum_of_two_commits_wait_until_both_are_back() {
    let lab = lab().keepers(3).synchronous(2, 2).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let pg = &lab.keeper(lab.master().await).pg;
    let standbys = lab.standbys().await;
    standbys.iter().for_each(|standby| lab.keeper(*standby).kill());
    lab.wait("both are given up", |data| standbys.iter().all(|s| !lab.db(data, *s).unwrap().status.healthy)).await;
    assert!(!pg.confirms("CREATE TABLE for_two ()", WAITS).await, "a commit did not wait");
    lab.keeper(standbys[0]).start();
    lab.wait("one is back", |data| lab.db(data, standbys[0]).unwrap().status.healthy).await;
    lab.keeper(standbys[0])
        .pg
        .wait_for("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'", "1")
        .await;
    let before = writer.count();
    assert!(!pg.confirms("CREATE TABLE for_one ()", WAITS).await, "a commit waited for one only");
    assert_eq!(writer.count(), before);
    lab.keeper(standbys[1]).start();
    writer.progress(20).await;
    let written = writer.finish().await;
    for standby in standbys {
        lab.caught_up(standby).await;
        written.check(&lab.keeper(standby).pg).await;
    }
}

#[tokio::test]
async fn a_standby_that_may_not_be_synchronous_is_never_waited_for() {
    let (never, flags) = (2, ["--can-be-synchronous-replica=false", "--can-be-master=false"]);
    let lab = lab().keepers(3).keeper_arguments(never, &flags).synchronous(1, 1).up().await;
    let revision = lab.revision().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let (member, other) = member_and_other(&lab).await;
    assert_eq!(other, never);
    lab.keeper(member).kill();
    lab.wait("the member is given up", |data| !lab.db(data, member).unwrap().status.healthy).await;
    let before = writer.count();
    let pg = &lab.keeper(lab.master().await).pg;
    assert!(!pg.confirms("CREATE TABLE waits ()", WAITS).await, "a commit did not wait");
    lab.keeper(member).start();
    writer.progress(20).await;
    assert!(writer.count() > before);
    let written = writer.finish().await;
    lab.caught_up(never).await;
    written.check(&lab.keeper(never).pg).await;
    let of_never = lab.db(&lab.data().await, never).unwrap().uid.clone();
    let waited_for = |data: &ClusterData| {
        data.dbs.values().any(|db| db.spec.synchronous_standbys.iter().flatten().any(|uid| *uid == of_never))
    };
    assert!(!lab.history(revision).await.iter().any(waited_for));
}

#[tokio::test]
async fn a_restarted_master_lets_users_in_when_its_standbys_are_in_sync_again() {
    let lab = lab().synchronous(1, 1).spec(json!({"pgHBA": ["host all all 127.0.0.1/32 trust"]})).up().await;
    let (master, standby) = (lab.master().await, lab.standbys().await[0]);
    let pg = &lab.keeper(master).pg;
    pg.one("CREATE ROLE app LOGIN").await;
    let mut app = pg.config();
    app.user("app");
    testkit::stolon::eventually("a user gets in", async || pg.try_connect_as(&app).await.is_ok()).await;
    lab.keeper(standby).freeze();
    lab.wait("the standby is given up", |data| !lab.db(data, standby).unwrap().status.healthy).await;
    let before = lab.keeper(master).postmaster_pid();
    lab.keeper(master).kill_postgres();
    testkit::stolon::eventually("postgres runs again", async || {
        lab.keeper(master).postmaster_pid().is_some_and(|pid| Some(pid) != before) && pg.try_connect().await.is_ok()
    })
    .await;
    let quiet = std::time::Instant::now();
    while quiet.elapsed() < Duration::from_secs(3) {
        let Err(Some(error)) = pg.try_connect_as(&app).await else { panic!("users are not kept out") };
        assert_eq!(
            error.code(),
            Some(&tokio_postgres::error::SqlState::INVALID_AUTHORIZATION_SPECIFICATION),
            "{error}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    lab.keeper(standby).thaw();
    testkit::stolon::eventually("a user gets in again", async || pg.try_connect_as(&app).await.is_ok()).await;
    assert_eq!(pg.one("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'").await, "1");
}
