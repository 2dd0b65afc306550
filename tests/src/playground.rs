//! A playground of its own for each test.

use anyhow::{Context as _, bail};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

/// Where `make build` puts the programs.
pub fn bin_dir() -> PathBuf {
    match std::env::var_os("SHARDMAN_BIN_DIR") {
        Some(dir) => dir.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../bin"),
    }
}

/// A running playground; stopped and removed when it is dropped.
#[derive(Debug)]
pub struct Playground {
    dir: TempDir,
}

impl Playground {
    /// Starts one and waits until it serves.
    ///
    /// # Errors
    /// It does not come up; the error carries what shardmanctl printed.
    pub fn start(nodes: usize, repfactor: u32) -> anyhow::Result<Self> {
        let playground = Self::unstarted()?;
        playground.shardmanctl(&playground.start_arguments(nodes, repfactor))?;
        Ok(playground)
    }

    /// Only the directory.
    ///
    /// # Errors
    /// It can't be made.
    pub fn unstarted() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("playground-").tempdir()?;
        // PostgreSQL's user must be able to enter.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
        Ok(Playground { dir })
    }

    /// Arguments that start it detached.
    pub fn start_arguments(&self, nodes: usize, repfactor: u32) -> Vec<String> {
        let (nodes, repfactor) = (nodes.to_string(), repfactor.to_string());
        ["playground", "--nodes", &nodes, "--repfactor", &repfactor, "--detach", "--data-dir", &self.path()]
            .map(str::to_owned)
            .to_vec()
    }

    /// The directory, where the playground proper is in a subdirectory that does not exist before the start.
    pub fn path(&self) -> String {
        self.dir.path().join("p").to_string_lossy().into_owned()
    }

    /// Runs shardmanctl on this playground's store; gives stdout.
    ///
    /// # Errors
    /// It fails.
    pub fn shardmanctl(&self, arguments: &[impl AsRef<str>]) -> anyhow::Result<String> {
        let output = self.try_shardmanctl(arguments)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
            bail!("shardmanctl {}: {}\n{}", arguments.join(" "), text(&output.stdout), text(&output.stderr));
        }
        Ok(text(&output.stdout))
    }

    /// Runs shardmanctl; gives its status and output.
    ///
    /// # Errors
    /// It can't be started.
    pub fn try_shardmanctl(&self, arguments: &[impl AsRef<str>]) -> anyhow::Result<Output> {
        let output = self.command().args(arguments.iter().map(AsRef::as_ref)).output();
        output.with_context(|| format!("run shardmanctl in {}; did `make build` run?", bin_dir().display()))
    }

    /// Starts shardmanctl in the background.
    ///
    /// # Errors
    /// It can't be started.
    pub fn spawn_shardmanctl(&self, arguments: &[impl AsRef<str>]) -> anyhow::Result<Child> {
        let mut command = self.command();
        command.args(arguments.iter().map(AsRef::as_ref)).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command.spawn()?)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(bin_dir().join("shardmanctl"));
        command.stdin(Stdio::null()).env_remove("SDM_CLUSTER_NAME").env("SDM_STORE_ENDPOINTS", self.endpoints());
        command
    }

    /// etcd's URL; a useless one before the start.
    pub fn endpoints(&self) -> String {
        let address =
            self.plan().and_then(|plan| Some(format!("http://{}:{}", plan["Etcd"].as_str()?, plan["EtcdPort"])));
        address.unwrap_or_else(|| "http://127.0.0.1:1".to_owned())
    }

    fn plan(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&std::fs::read(Path::new(&self.path()).join("playground.json")).ok()?).ok()
    }

    /// `playground node VERB NAME`.
    ///
    /// # Errors
    /// It fails.
    pub fn node(&self, verb: &str, name: &str) -> anyhow::Result<()> {
        self.shardmanctl(&["playground", "node", verb, name, "--data-dir", &self.path()]).map(drop)
    }

    /// `playground --stop`.
    ///
    /// # Errors
    /// It fails.
    pub fn stop(&self) -> anyhow::Result<()> {
        self.shardmanctl(&["playground", "--stop", "--data-dir", &self.path()]).map(drop)
    }

    /// The connection string that users get.
    ///
    /// # Errors
    /// There is none.
    pub fn connstr(&self) -> anyhow::Result<String> {
        Ok(self.shardmanctl(&["getconnstr"])?.trim().to_owned())
    }

    /// A session through the connection string.
    ///
    /// # Errors
    /// No entry point answers.
    pub async fn connect(&self) -> anyhow::Result<Client> {
        connect(&self.connstr()?).await
    }

    /// `status -o json`, whatever its exit status.
    ///
    /// # Errors
    /// It prints no JSON.
    pub fn status(&self) -> anyhow::Result<Status> {
        let output = self.try_shardmanctl(&["status", "-o", "json"])?;
        let value: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        Ok(Status(value))
    }

    /// Pids of all processes of the playground whose program has this name.
    pub fn pids(&self, program: &str) -> Vec<i32> {
        processes_in(Path::new(&self.path()), program)
    }

    /// Waits until a condition holds.
    ///
    /// # Errors
    /// It does not within the limit.
    pub async fn eventually(what: &str, limit: Duration, mut holds: impl AsyncFnMut() -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        while !holds().await {
            if Instant::now() > deadline {
                bail!("did not happen within {} s: {what}", limit.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        if self.plan().is_some() && self.stop().is_err() {
            for program in ["bowl", "monitor", "stolon-sentinel", "stolon-proxy", "stolon-keeper", "postgres", "etcd"] {
                for pid in self.pids(program) {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                }
            }
        }
    }
}

impl Playground {
    /// The last lines of each log, for the report of a failed test.
    fn print_logs(&self) {
        let mut dirs = vec![PathBuf::from(self.path())];
        while let Some(dir) = dirs.pop() {
            for path in std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
                if path.is_dir() && !path.join("PG_VERSION").exists() {
                    dirs.push(path);
                } else if path.extension().is_some_and(|extension| extension == "log") {
                    let text = std::fs::read_to_string(&path).unwrap_or_default();
                    let lines: Vec<&str> = text.lines().collect();
                    let tail = lines[lines.len().saturating_sub(25)..].join("\n");
                    eprintln!("--- {}\n{tail}", path.display());
                }
            }
        }
    }
}

/// The result of `status`.
#[derive(Clone, Debug)]
pub struct Status(pub serde_json::Value);

impl Status {
    /// Rows of a section, as (status, message, group, node).
    pub fn rows(&self, section: &str) -> Vec<(String, String, String, String)> {
        let sections = self.0["sections"].as_array().into_iter().flatten();
        let rows = sections.filter(|s| s["name"] == section).flat_map(|s| s["rows"].as_array().into_iter().flatten());
        let text = |row: &serde_json::Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
        rows.map(|row| (text(row, "status"), text(row, "message"), text(row, "rg"), text(row, "node"))).collect()
    }

    /// The address of a group's master.
    pub fn master(&self, group: &str) -> Option<String> {
        self.rows("MASTER").into_iter().find(|row| row.2 == group).map(|row| row.3)
    }

    /// Rows that are neither fine nor the hint that one etcd is few.
    pub fn complaints(&self) -> Vec<String> {
        let names = self.0["sections"].as_array().into_iter().flatten().filter_map(|s| s["name"].as_str());
        let rows = names.flat_map(|name| self.rows(name).into_iter().map(move |row| (name.to_owned(), row)));
        rows.filter(|(name, row)| name != "STORE" && row.0 != "OK" && row.0 != "CROSS")
            .map(|(name, row)| format!("{name}: {}: {}", row.0, row.1))
            .collect()
    }
}

/// Connects by a connection string.
///
/// # Errors
/// No entry point answers within 3 s each.
pub async fn connect(connstr: &str) -> anyhow::Result<Client> {
    let mut config: tokio_postgres::Config = connstr.parse()?;
    config.connect_timeout(Duration::from_secs(3));
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}

/// Pids of processes that run `program` and work below `dir`.
pub fn processes_in(dir: &Path, program: &str) -> Vec<i32> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let cwd = std::fs::read_link(entry.path().join("cwd"));
        let exe = std::fs::read_link(entry.path().join("exe"));
        if let (Ok(cwd), Ok(exe)) = (cwd, exe)
            && cwd.starts_with(dir)
            && exe.file_name().is_some_and(|name| name == program)
        {
            pids.push(pid);
        }
    }
    pids
}
