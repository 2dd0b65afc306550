//! Files and command lines of the hosts.

use super::{ETCD_PORT, Node, PEER_PORT, PG_PORT, PROXY_PORT, Places, Shape};
use crate::process::Daemon;
use crate::sandbox::{Host, ROOT, run};
use anyhow::Context as _;
use nix::unistd::{User, chown};
use std::path::{Path, PathBuf};

pub(super) fn write_secret(path: &Path, secret: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, secret)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    give_to_postgres(path)
}

fn give_to_postgres(path: &Path) -> anyhow::Result<()> {
    let user = User::from_name("postgres")?.context("there is no user postgres; install postgresql")?;
    Ok(chown(path, Some(user.uid), Some(user.gid))?)
}

pub(super) fn member(shape: &Shape, host: &Host, places: &Places) -> Daemon {
    let own = |port: u16| format!("http://{}:{port}", host.address);
    let peers: Vec<String> =
        shape.members.iter().map(|peer| format!("{}=http://{}:{PEER_PORT}", peer.name, peer.address)).collect();
    let data = format!("{ROOT}/{}/{}", shape.name, host.name);
    let arguments = ["--name", &host.name, "--data-dir", &data, "--listen-client-urls", &own(ETCD_PORT)]
        .into_iter()
        .map(str::to_owned)
        .chain(["--advertise-client-urls".into(), own(ETCD_PORT), "--listen-peer-urls".into(), own(PEER_PORT)])
        .chain(["--initial-advertise-peer-urls".into(), own(PEER_PORT), "--initial-cluster".into(), peers.join(",")])
        .collect();
    Daemon::new(&host.name, host, "etcd".into(), arguments, &places.logs)
}

pub(super) fn node(shape: &Shape, index: usize, places: &Places) -> anyhow::Result<Node> {
    let host = &shape.nodes[index];
    let root = PathBuf::from(ROOT).join(&shape.name);
    let disk = root.join(&host.name);
    std::fs::create_dir_all(&disk)?;
    let size = format!("size={}m,mode=755", shape.disk);
    run(&["mount", "-t", "tmpfs", "-o", &size, "chaos", &disk.to_string_lossy()])?;
    give_to_postgres(&disk)?;
    let clock = root.join(format!("{}.clock", host.name));
    let environment = if shape.clocks { clock_environment(&clock)? } else { Vec::new() };
    let endpoints: Vec<String> =
        shape.members.iter().map(|host| format!("http://{}:{ETCD_PORT}", host.address)).collect();
    let common =
        ["--cluster-name", &shape.name, "--store-backend", "etcdv3", "--store-endpoints", &endpoints.join(",")]
            .map(str::to_owned);
    let daemon = |kind: &str, more: Vec<String>| {
        let arguments = common.iter().cloned().chain(more).collect();
        let program = places.bin.join(format!("stolon-{kind}"));
        Daemon::new(&format!("{}-{kind}", host.name), host, program, arguments, &places.logs)
            .with_environment(&environment)
    };
    let front = index < shape.front;
    let proxy = ["--listen-address", &host.address, "--port", &PROXY_PORT.to_string()].map(str::to_owned).to_vec();
    let node = Node {
        host: host.clone(),
        keeper: daemon("keeper", keeper_arguments(host, &root, &disk)?),
        sentinel: front.then(|| daemon("sentinel", Vec::new())),
        proxy: front.then(|| daemon("proxy", proxy)),
        disk,
        clock,
    };
    node.set_clock(0)?;
    Ok(node)
}

fn keeper_arguments(host: &Host, root: &Path, disk: &Path) -> anyhow::Result<Vec<String>> {
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    Ok(vec![
        format!("--uid={}", host.name),
        format!("--data-dir={}", text(disk.join("data"))),
        format!("--pg-listen-address={}", host.address),
        format!("--pg-port={PG_PORT}"),
        format!("--pg-bin-path={}", text(testkit::postgres::bin_dir()?)),
        format!("--pg-unix-socket-dir={}", text(disk.join("s"))),
        "--pg-su-username=postgres".into(),
        "--pg-su-auth-method=scram-sha-256".into(),
        format!("--pg-su-passwordfile={}", text(root.join("su"))),
        "--pg-repl-username=repl".into(),
        "--pg-repl-auth-method=scram-sha-256".into(),
        format!("--pg-repl-passwordfile={}", text(root.join("repl"))),
    ])
}

/// Lets a file say by how much a process's real-time clock is off, by libfaketime. etcd, which is linked statically,
/// can't be fooled by it; and the kernel's own clock would be everybody's.
fn clock_environment(file: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let library = ["x86_64", "aarch64"]
        .map(|machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1"))
        .into_iter()
        .find(|library| Path::new(library).exists())
        .context("libfaketime is not installed; install the package faketime")?;
    let variables = [
        ("LD_PRELOAD", library),
        ("FAKETIME_TIMESTAMP_FILE", file.to_string_lossy().into_owned()),
        ("FAKETIME_CACHE_DURATION", "1".into()),
        ("FAKETIME_DISABLE_SHM", "1".into()),
        ("DONT_FAKE_MONOTONIC", "1".into()),
        ("NO_FAKE_STAT", "1".into()),
    ];
    Ok(variables.map(|(name, value)| (name.to_owned(), value)).to_vec())
}
