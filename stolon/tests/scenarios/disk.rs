//! The disk is full, or slow.

use crate::lab;
use model::stolon::Problem;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{User, chown, geteuid, mkfifo};
use serde_json::json;
use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use testkit::stolon::{Keeper, Lab, eventually};

/// A small file system in memory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path, mebibytes: u32) -> Self {
        std::fs::create_dir_all(path).unwrap();
        let user = User::from_name("postgres").unwrap().unwrap();
        let options = format!("size={mebibytes}m,mode=700,uid={},gid={}", user.uid, user.gid);
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        SmallDisk(path.to_owned())
    }

    /// Takes all the room there is.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("ballast");
        let mut file = std::fs::File::create(&path).unwrap();
        while file.write_all(&[0; 65536]).is_ok() {}
        while file.write_all(&[0; 512]).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Makes a write take as long as wanted: a pipe is open for writing only when somebody has opened it for reading.
struct SlowWrite(PathBuf);

impl SlowWrite {
    fn begin(path: PathBuf) -> Self {
        mkfifo(&path, Mode::empty()).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        SlowWrite(path)
    }

    /// The write goes on, and fails, as nothing can make a pipe durable.
    fn end(self) {
        let reader = std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&self.0).unwrap();
        std::fs::remove_file(&self.0).unwrap();
        drop(reader);
    }
}

/// As if a resync had replaced a copy.
fn replaced_copy(keeper: &Keeper) -> PathBuf {
    let copy = keeper.root().join("trash/20260101T000000.000Z-resync");
    let global = copy.join("global");
    std::fs::create_dir_all(&global).unwrap();
    std::fs::copy(keeper.pgdata().join("global/pg_control"), global.join("pg_control")).unwrap();
    let user = User::from_name("postgres").unwrap().unwrap();
    for path in [copy.parent().unwrap(), &copy, &global, &global.join("pg_control")] {
        chown(path, Some(user.uid), Some(user.gid)).unwrap();
    }
    copy
}

async fn is_told(lab: &Lab) -> bool {
    let info = lab.info(0).await;
    info.is_some_and(|info| info.problems.iter().any(|problem| problem.code == Problem::DISK_FULL))
}

#[tokio::test]
async fn a_full_disk_is_told_loses_nothing_and_is_recovered_from() {
    if !geteuid().is_root() {
        println!("not run: only root can mount a small disk");
        return;
    }
    let small = json!({"pgParameters": {"min_wal_size": "32MB", "max_wal_size": "48MB", "wal_keep_size": "0"}});
    let lab = lab().keepers(1).spec(small).prepare().await;
    let disk = SmallDisk::mount(lab.keeper(0).root(), 256);
    lab.init().await;
    lab.start_all();
    lab.ready().await;
    let writer = lab.writer().await;
    writer.progress(50).await;
    eventually("room is set aside", async || lab.keeper(0).root().join("reserve").exists()).await;
    let replaced = replaced_copy(lab.keeper(0));
    let ballast = disk.fill();
    eventually("a replaced copy makes room", async || !replaced.exists()).await;
    eventually("the full disk is told", async || is_told(&lab).await).await;
    // A bulk load needs WAL that does not fit: PostgreSQL ends, and can't come back.
    let _ =
        lab.keeper(0).pg.try_one("CREATE TABLE big AS SELECT repeat('x', 1000) FROM generate_series(1, 100000)").await;
    // The keeper still writes down what it does.
    lab.ctl(&["update", "--patch", r#"{"pgParameters": {"work_mem": "5MB"}}"#]).await;
    eventually("the change is in the configuration", async || {
        let conf = std::fs::read_to_string(lab.keeper(0).pgdata().join("postgresql.conf")).unwrap_or_default();
        conf.contains("work_mem = '5MB'")
    })
    .await;
    assert!(is_told(&lab).await);
    std::fs::remove_file(ballast).unwrap();
    eventually("there is room again", async || !is_told(&lab).await).await;
    lab.ready().await;
    writer.progress(50).await;
    writer.finish().await.check(&lab.proxy(0).pg).await;
    assert_eq!(lab.keeper(0).pg.one("SHOW work_mem").await, "5MB");
    eventually("room is set aside again", async || lab.keeper(0).root().join("reserve").exists()).await;
    drop(lab);
    drop(disk);
}

#[tokio::test]
async fn a_write_that_takes_seconds_is_no_reason_for_a_failover() {
    let lab = lab().synchronous(0, 1).up().await;
    let writer = lab.writer().await;
    writer.progress(50).await;
    let master = lab.master().await;
    let slow = SlowWrite::begin(lab.keeper(master).root().join(".dbstate.new"));
    lab.ctl(&["update", "--patch", r#"{"pgParameters": {"work_mem": "5MB"}}"#]).await;
    lab.keeper(master).pg.wait_for("SHOW work_mem", "5MB").await;
    // More than twice as long as its lease lives.
    lab.never("another master", Duration::from_secs(5), |data| lab.published_in(data) != Some(master)).await;
    assert!(lab.info(master).await.is_some());
    slow.end();
    eventually("the write comes to its end", async || lab.keeper(master).log().contains("write")).await;
    lab.ready().await;
    assert_eq!(lab.master().await, master);
    writer.progress(50).await;
    writer.finish().await.check(&lab.proxy(0).pg).await;
}

#[tokio::test]
async fn wal_lives_where_the_flag_says() {
    let lab = lab().prepare().await;
    let wal_dir = |keeper: usize| lab.path().join(format!("wal{keeper}"));
    let place = |keeper: usize| std::fs::read_link(lab.keeper(keeper).pgdata().join("pg_wal")).ok();
    lab.keeper(1).process.set_argument("--wal-dir", wal_dir(1).to_str().unwrap());
    lab.init().await;
    lab.start_all();
    lab.ready().await;
    lab.proxy(0).pg.one("CREATE TABLE t AS SELECT 1 AS n").await;
    assert!(place(0).is_none() && place(1).unwrap().starts_with(wal_dir(1)));
    // It moves at the next start, whoever is master by then.
    lab.keeper(0).stop().await;
    lab.keeper(0).process.set_argument("--wal-dir", wal_dir(0).to_str().unwrap());
    lab.keeper(0).start();
    eventually("the WAL is moved", async || place(0).is_some_and(|place| place.starts_with(wal_dir(0)))).await;
    lab.ready().await;
    lab.caught_up(0).await;
    assert_eq!(lab.keeper(0).pg.one("SELECT n FROM t").await, "1");
}
