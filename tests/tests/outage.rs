//! etcd goes away for half a minute, and for good: PostgreSQL is left alone.

#![expect(clippy::unwrap_used, reason = "a test that can not go on stops")]

use e2e::playground::Playground;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Postmasters with their start, so that a restarted one is not taken for the old one.
fn postmasters(playground: &Playground) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for dir in data_dirs(Path::new(&playground.path())) {
        let pid_file = std::fs::read_to_string(dir.join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = pid_file.lines().collect();
        let (pid, start) = (lines.first().copied().unwrap_or(""), lines.get(2).copied().unwrap_or(""));
        assert!(Path::new("/proc").join(pid).exists(), "the postmaster of {} runs", dir.display());
        found.insert(dir, format!("{pid} {start}"));
    }
    found
}

fn data_dirs(dir: &Path) -> Vec<PathBuf> {
    if dir.join("PG_VERSION").exists() {
        return vec![dir.to_owned()];
    }
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().is_dir() && !entry.path().is_symlink())
        .flat_map(|e| data_dirs(&e.path()))
        .collect()
}

/// Inode and creation of each data directory: moved or made anew ones differ.
fn identities(playground: &Playground) -> BTreeMap<PathBuf, (u64, Option<SystemTime>)> {
    use std::os::unix::fs::MetadataExt as _;
    let dirs = data_dirs(Path::new(&playground.path()));
    dirs.into_iter()
        .map(|dir| {
            let meta = std::fs::metadata(&dir).unwrap();
            (dir, (meta.ino(), meta.created().ok()))
        })
        .collect()
}

fn kill_etcd(playground: &Playground) {
    for pid in playground.pids("etcd") {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
}

#[tokio::test]
async fn postgres_outlives_etcd() {
    let playground = Playground::start(2, 1).unwrap();
    let client = playground.connect().await.unwrap();
    client
        .batch_execute(
            "create table x(id int primary key, t text) with (distributed_by='id', num_parts=2);
             insert into x select i, 'row' from generate_series(1, 1000) i",
        )
        .await
        .unwrap();
    drop(client);
    let (before, directories) = (postmasters(&playground), identities(&playground));
    assert_eq!(before.len(), 4, "two groups of two");

    // 30 s without etcd: more than any interval of ours.
    let etcd = playground.pids("etcd");
    for pid in &etcd {
        kill(Pid::from_raw(*pid), Signal::SIGSTOP).unwrap();
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(postmasters(&playground), before);
    for pid in &etcd {
        kill(Pid::from_raw(*pid), Signal::SIGCONT).unwrap();
    }
    Playground::eventually("the cluster takes writes again", Duration::from_secs(30), async || {
        let Ok(client) = playground.connect().await else { return false };
        client.execute("insert into x select max(id) + 1, 'later' from x", &[]).await.is_ok()
    })
    .await
    .unwrap();
    assert_eq!((postmasters(&playground), identities(&playground)), (before.clone(), directories.clone()));

    // For good, and its data with it.
    kill_etcd(&playground);
    std::fs::remove_dir_all(Path::new(&playground.path()).join("etcd/data")).unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((postmasters(&playground), identities(&playground)), (before.clone(), directories.clone()));

    // An etcd comes back that knows nothing of us.
    let mut empty = std::process::Command::new("etcd");
    let url = playground.endpoints();
    let data = tempfile::tempdir().unwrap();
    let peer = url.replace(":2379", ":2380");
    let mut empty = empty
        .args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("default={peer}"), "--data-dir"])
        .arg(data.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    tokio::time::sleep(Duration::from_secs(15)).await;
    let after = (postmasters(&playground), identities(&playground));
    let _ = kill(Pid::from_raw(empty.id().cast_signed()), Signal::SIGKILL);
    empty.wait().unwrap();
    assert_eq!(after, (before, directories));
}
