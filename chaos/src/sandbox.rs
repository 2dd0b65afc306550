//! Namespaces of our own for everything: network, mounts, processes, IPC. What happens inside can neither harm the
//! machine nor outlive this program: when its first process ends, for whatever reason, the kernel ends all others,
//! and mounts, network devices and shared memory go with them.
//!
//! The program runs itself three times: as it is called; as the first process of the namespaces, which only
//! collects orphans; and as that one's child, which does the work.

use anyhow::{Context as _, bail, ensure};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Says which of the three a process is.
const STAGE: &str = "CHAOS_STAGE";
/// A file system in memory inside of the sandbox; the machine's own directory is hidden there.
pub const ROOT: &str = "/mnt";
/// The network of the hosts, on a bridge.
const NETWORK: &str = "10.77.0";
/// The bridge's address: that of the clients.
const CLIENTS: u8 = 1;

/// Goes into the sandbox, and comes back only inside of it.
///
/// # Errors
/// Not root, or something is missing.
pub fn enter() -> anyhow::Result<()> {
    match std::env::var(STAGE).as_deref() {
        Ok("work") => furnish(),
        Ok("first") => collect_orphans(),
        _ => {
            ensure!(geteuid().is_root(), "namespaces need root; run it as root");
            for tool in ["unshare", "nsenter", "ip", "nft", "mount", "etcd"] {
                ensure!(find(tool).is_some(), "{tool} is not in PATH; install what `make chaos` installs");
            }
            let mut command = Command::new("unshare");
            command.args(["--net", "--mount", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]);
            let error = again(&mut command)?.env(STAGE, "first").exec();
            Err(error).context("run unshare")
        }
    }
}

fn again(command: &mut Command) -> anyhow::Result<&mut Command> {
    let program = std::env::current_exe().context("find this program's file")?;
    Ok(command.arg(program).args(std::env::args_os().skip(1)))
}

fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(tool)).find(|file| file.exists())
}

/// The first process of the namespace becomes the parent of all orphans. PostgreSQL outlives its keeper, so there are some.
fn collect_orphans() -> anyhow::Result<()> {
    let program = std::env::current_exe().context("find this program's file")?;
    let child = Command::new(program).args(std::env::args_os().skip(1)).env(STAGE, "work").spawn();
    let worker = Pid::from_raw(child.context("run the worker")?.id().cast_signed());
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, status)) if pid == worker => std::process::exit(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == worker => bail!("the worker was ended by {signal}"),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => bail!("wait for the worker: {error}"),
        }
    }
}

fn furnish() -> anyhow::Result<()> {
    run(&["mount", "-t", "tmpfs", "-o", "mode=755", "chaos", ROOT])?;
    run(&["mount", "-t", "tmpfs", "-o", "mode=1777", "chaos", "/dev/shm"])?;
    std::fs::create_dir_all("/run/netns").context("make /run/netns")?;
    run(&["mount", "-t", "tmpfs", "-o", "mode=755", "chaos", "/run/netns"])?;
    run(&["ip", "link", "set", "lo", "up"])?;
    run(&["ip", "link", "add", "hub", "type", "bridge"])?;
    run(&["ip", "addr", "add", &format!("{}/24", address(CLIENTS)), "dev", "hub"])?;
    run(&["ip", "link", "set", "hub", "up"])
}

/// Runs a command to its end.
///
/// # Errors
/// It fails; carries what it wrote to stderr.
pub fn run(line: &[&str]) -> anyhow::Result<()> {
    run_with(line, "")
}

/// Runs a command with an input.
///
/// # Errors
/// It fails; carries what it wrote to stderr.
pub fn run_with(line: &[&str], input: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut child = Command::new(line[0])
        .args(&line[1..])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .with_context(|| format!("run {}", line[0]))?;
    child.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}: {}", line.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn address(number: u8) -> String {
    format!("{NETWORK}.{number}")
}

/// Where processes run.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its name, also that of its network namespace if it has one.
    pub name: String,
    /// Its address.
    pub address: String,
    isolated: bool,
}

impl Host {
    /// A host with a network namespace of its own, on the bridge.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn isolated(name: &str, number: u8) -> anyhow::Result<Self> {
        let (outer, address) = (format!("v-{name}"), address(number));
        run(&["ip", "netns", "add", name])?;
        run(&["ip", "link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", name])?;
        run(&["ip", "link", "set", &outer, "master", "hub", "up"])?;
        run(&["ip", "-n", name, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        run(&["ip", "-n", name, "link", "set", "eth0", "up"])?;
        run(&["ip", "-n", name, "link", "set", "lo", "up"])?;
        Ok(Host { name: name.to_owned(), address, isolated: true })
    }

    /// A host that only has a loopback address of its own.
    pub fn local(name: &str, address: &str) -> Self {
        Host { name: name.to_owned(), address: address.to_owned(), isolated: false }
    }

    /// A command that runs on this host.
    pub fn command(&self, program: &Path) -> Command {
        if !self.isolated {
            return Command::new(program);
        }
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }

    /// Takes the host's link down or up.
    ///
    /// # Errors
    /// The host has no network of its own.
    pub fn link(&self, up: bool) -> anyhow::Result<()> {
        // The bridge's end: the host itself keeps its address and sees a network without carrier.
        run(&["ip", "link", "set", &format!("v-{}", self.name), if up { "up" } else { "down" }])
    }

    /// Drops packets by rules of nftables, such as `ip saddr 10.0.0.1 drop`.
    ///
    /// # Errors
    /// The host has no network of its own.
    pub fn filter(&self, incoming: &[String], outgoing: &[String]) -> anyhow::Result<()> {
        let chain = |hook: &str, own: &str, rules: &[String]| {
            let rules = rules.join("\n");
            format!("chain {hook} {{\ntype filter hook {hook} priority 0\n{own} lo accept\n{rules}\n}}\n")
        };
        let text =
            format!("table inet chaos {{\n{}{}}}\n", chain("input", "iif", incoming), chain("output", "oif", outgoing));
        run_with(&["nsenter", &format!("--net=/run/netns/{}", self.name), "nft", "-f", "-"], &text)
    }

    /// Takes the rules away.
    ///
    /// # Errors
    /// There are none.
    pub fn unfilter(&self) -> anyhow::Result<()> {
        run(&["nsenter", &format!("--net=/run/netns/{}", self.name), "nft", "delete", "table", "inet", "chaos"])
    }
}
