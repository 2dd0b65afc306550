//! Old masters come back: by a rewind if possible, else by a copy; and no copy is made twice.

use crate::lab;
use model::stolon::DbInitMode;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use testkit::stolon::{Keeper, eventually};

/// A copy takes another directory's place; a rewind changes the one that is there.
fn directory(keeper: &Keeper) -> u64 {
    std::fs::metadata(keeper.pgdata()).unwrap().ino()
}

fn replaced(keeper: &Keeper) -> usize {
    std::fs::read_dir(keeper.root().join("trash")).into_iter().flatten().count()
}

#[tokio::test]
async fn a_crashed_master_is_rewound_and_not_copied() {
    let lab = lab().up().await;
    let writer = lab.writer().await;
    writer.progress(50).await;
    let old = lab.master().await;
    let keeper = lab.keeper(old);
    let before = directory(keeper);
    keeper.kill();
    lab.wait_for_other_master(old).await;
    writer.progress(50).await;
    keeper.start();
    lab.ready().await;
    let written = writer.finish().await;
    lab.caught_up(old).await;
    assert_eq!((directory(keeper), replaced(keeper)), (before, 0), "{}", keeper.log());
    let (_, twice) = written.faults(&keeper.pg).await;
    assert!(twice.is_empty());
}

#[tokio::test]
async fn what_only_the_old_master_has_is_undone_or_the_data_replaced() {
    for wal_is_missing in [false, true] {
        let lab = lab().relays().up().await;
        lab.proxy(0).pg.one("CREATE TABLE t AS SELECT 1 AS n").await;
        let old = lab.master().await;
        lab.caught_up(1 - old).await;
        let keeper = lab.keeper(old);
        let before = directory(keeper);
        keeper.cut();
        // Nobody but us reaches it now, and no standby gets this.
        keeper.pg.one("INSERT INTO t SELECT n FROM generate_series(100, 5000) n").await;
        let new = lab.wait_for_other_master(old).await;
        lab.keeper(new).pg.one("INSERT INTO t VALUES (2)").await;
        keeper.pg.one("INSERT INTO t VALUES (3)").await;
        keeper.kill();
        if wal_is_missing {
            for entry in std::fs::read_dir(keeper.pgdata().join("pg_wal")).unwrap().flatten() {
                if entry.path().is_file() {
                    std::fs::remove_file(entry.path()).unwrap();
                }
            }
        }
        keeper.mend();
        keeper.start();
        lab.ready().await;
        lab.caught_up(old).await;
        assert_eq!(keeper.pg.one("SELECT string_agg(n::text, ',' ORDER BY n) FROM t").await, "1,2");
        assert_eq!(directory(keeper) == before, !wal_is_missing, "{}", keeper.log());
        assert_eq!(replaced(keeper), usize::from(wal_is_missing));
    }
}

/// PostgreSQL's programs, but the first attempt to rewind loses its source.
fn programs_with_a_shy_rewind(path: &Path) -> PathBuf {
    let real = testkit::postgres::bin_dir().unwrap();
    let programs = path.join("bin");
    std::fs::create_dir(&programs).unwrap();
    std::fs::set_permissions(&programs, std::fs::Permissions::from_mode(0o777)).unwrap();
    for entry in std::fs::read_dir(&real).unwrap().flatten().filter(|entry| entry.file_name() != "pg_rewind") {
        std::os::unix::fs::symlink(entry.path(), programs.join(entry.file_name())).unwrap();
    }
    let script = format!(
        "#!/bin/sh\nif mkdir \"$0.failed\" 2>/dev/null; then\n\
         echo 'pg_rewind: error: could not fetch file list: server closed the connection unexpectedly' >&2\nexit 1\nfi\n\
         exec '{}' \"$@\"\n",
        real.join("pg_rewind").display()
    );
    let program = programs.join("pg_rewind");
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    programs
}

#[tokio::test]
async fn a_rewind_that_lost_its_source_is_repeated() {
    let lab = lab().up().await;
    let writer = lab.writer().await;
    writer.progress(50).await;
    let old = lab.master().await;
    let keeper = lab.keeper(old);
    let before = directory(keeper);
    keeper.kill();
    lab.wait_for_other_master(old).await;
    writer.progress(50).await;
    let programs = programs_with_a_shy_rewind(lab.path());
    keeper.process.set_argument("--pg-bin-path", programs.to_str().unwrap());
    keeper.start();
    // The keeper dies as well, and the next one knows what the data is.
    let state = keeper.root().join("dbstate");
    let begun = || std::fs::read_to_string(&state).is_ok_and(|text| text.contains("\"Rewinding\""));
    eventually("the rewind is begun", async || begun() && programs.join("pg_rewind.failed").exists()).await;
    keeper.process.kill();
    assert!(keeper.postmaster_pid().is_none());
    keeper.start();
    lab.ready().await;
    writer.finish().await;
    lab.caught_up(old).await;
    assert_eq!((directory(keeper), replaced(keeper), begun()), (before, 0, false), "{}", keeper.log());
}

#[tokio::test]
async fn a_complete_copy_is_not_made_again_after_a_crash() {
    let lab = lab().up().await;
    let standby = lab.standbys().await[0];
    let keeper = lab.keeper(standby);
    keeper.stop().await;
    // As if the keeper had died right before it wrote down that the copy is complete.
    let data = lab.data().await;
    let db = lab.db(&data, standby).unwrap().uid.clone();
    let state = format!(r#"{{"UID":"{db}","Generation":0,"Initializing":true,"InitPGParameters":null}}"#);
    std::fs::write(keeper.root().join("dbstate"), state).unwrap();
    std::fs::write(keeper.pgdata().join("stolon-copied"), db.as_str()).unwrap();
    let before = directory(keeper);
    lab.update(|data| {
        let db = data.dbs.get_mut(&db).unwrap();
        db.spec.init_mode = Some(DbInitMode::Resync);
        db.generation += 1;
    })
    .await;
    keeper.start();
    lab.ready().await;
    assert_eq!((directory(keeper), replaced(keeper)), (before, 0), "{}", keeper.log());
    assert!(!keeper.pgdata().join("stolon-copied").exists());
}

/// Two servers promoted to the same timeline at the same position: nobody may take one's WAL for the other's.
#[tokio::test]
async fn a_promotion_that_the_cluster_never_heard_of_is_replaced_by_a_copy() {
    let lab = lab().keepers(3).up().await;
    lab.proxy(0).pg.one("CREATE TABLE t AS SELECT 1 AS n").await;
    let old = lab.master().await;
    let standbys = lab.standbys().await;
    let stray = standbys[0];
    lab.caught_up(stray).await;
    lab.caught_up(standbys[1]).await;
    let keeper = lab.keeper(stray);
    keeper.process.kill();
    keeper.pg.wait_for("SELECT pg_promote()", "t").await;
    keeper.pg.one("INSERT INTO t SELECT n FROM generate_series(100, 5000) n").await;
    lab.keeper(old).kill();
    let new = lab.wait_for_other_master(old).await;
    assert_ne!(new, stray);
    let timeline = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
    assert_eq!(lab.keeper(new).pg.one(timeline).await, keeper.pg.one(timeline).await);
    keeper.process.start();
    lab.keeper(old).start();
    lab.ready().await;
    lab.proxy(0).pg.one("INSERT INTO t VALUES (2)").await;
    lab.caught_up(stray).await;
    assert_eq!(keeper.pg.one("SELECT string_agg(n::text, ',' ORDER BY n) FROM t").await, "1,2");
    assert_eq!(replaced(keeper), 1, "{}", keeper.log());
}
