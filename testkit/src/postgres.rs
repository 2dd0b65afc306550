//! A transient PostgreSQL.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, chown, geteuid};
use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

/// A server with its own data, on a loopback port and a socket directory of its own. Superuser `postgres`, no password.
/// It stops when the value is dropped.
#[derive(Debug)]
pub struct Postgres {
    // Stopped before the directory goes: `Drop` of this type runs before that of its fields.
    server: Child,
    dir: TempDir,
    bin: PathBuf,
    port: u16,
}

impl Postgres {
    /// Makes and starts a server with lines of configuration such as `shared_preload_libraries = 'shardman'`.
    pub fn start(config: &[&str]) -> Result<Self> {
        let bin = bin_dir()?;
        let dir = TempDir::with_prefix("pg-").context("create a data directory")?;
        let user = server_user()?;
        if let Some(user) = &user {
            chown(dir.path(), Some(user.uid), Some(user.gid)).context("give the data directory to postgres")?;
        }
        let data = dir.path().join("data");
        let initdb = as_server(&bin.join("initdb"), user.as_ref())
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(&data)
            .output()
            .context("run initdb")?;
        ensure!(initdb.status.success(), "initdb: {}", String::from_utf8_lossy(&initdb.stderr));

        // Between choosing the port and listening on it another process may take it.
        for _ in 0..5 {
            let port = free_port()?;
            write_config(&data, dir.path(), port, config)?;
            if let Some(server) = run(&bin, &data, dir.path(), port, user.as_ref())? {
                return Ok(Self { server, dir, bin, port });
            }
        }
        bail!("PostgreSQL found no free port: {}", log_tail(dir.path()))
    }

    /// TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Process id of the postmaster.
    pub fn pid(&self) -> u32 {
        self.server.id()
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A connection string for the database `postgres`.
    pub fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port)
    }

    /// A new session; its connection is driven by a task of its own.
    pub async fn connect(&self) -> Result<Client> {
        self.connect_with("").await
    }

    /// A new session with more parameters, such as `user=alice` or `application_name=x`.
    pub async fn connect_with(&self, parameters: &str) -> Result<Client> {
        let conninfo = format!("{} {parameters}", self.conninfo());
        let (client, connection) =
            tokio_postgres::connect(&conninfo, NoTls).await.with_context(|| format!("connect to {conninfo}"))?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// What `psql` prints, as a user sees it; an error carries what it wrote to stderr.
    pub fn psql(&self, sql: &str) -> Result<String> {
        let output = self.client_program("psql").args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql]).output()?;
        ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A client program of this server's version (`psql`, `pg_dump`, …) that will connect to it.
    pub fn client_program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Immediate shutdown: the data goes away anyway.
        let pid = Pid::from_raw(self.server.id() as i32);
        kill(pid, Signal::SIGQUIT).ok();
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if !matches!(self.server.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

/// Where the server's programs are: `SHARDMAN_PG_BIN`, else the newest version installed by Debian's packages.
pub fn bin_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("SHARDMAN_PG_BIN") {
        return Ok(dir.into());
    }
    let version = |dir: &Path| dir.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<u32>().ok());
    std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter_map(|dir| Some((version(&dir)?, dir.join("bin"))))
        .filter(|(_, bin)| bin.join("postgres").exists())
        .max()
        .map(|(_, bin)| bin)
        .context("no PostgreSQL under /usr/lib/postgresql; install postgresql or set SHARDMAN_PG_BIN")
}

/// PostgreSQL refuses to run as root: root becomes `postgres`.
fn server_user() -> Result<Option<User>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    User::from_name("postgres")?.context("running as root needs the user postgres").map(Some)
}

fn as_server(program: &Path, user: Option<&User>) -> Command {
    let mut command = Command::new(program);
    // A backtrace in the environment would end up in the DETAIL of errors of extensions.
    command.env_remove("RUST_BACKTRACE").env("LC_ALL", "C").current_dir("/");
    if let Some(user) = user {
        // std drops root's supplementary groups when it changes the user.
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0)).context("find a free port")?.local_addr()?.port())
}

fn write_config(data: &Path, sockets: &Path, port: u16, config: &[&str]) -> Result<()> {
    let mut file = File::create(data.join("postgresql.auto.conf")).context("write the configuration")?;
    // Durability costs time and a test server needs none.
    writeln!(
        file,
        "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\nfsync = off\n\
         max_prepared_transactions = 50\nmax_connections = 60\nshared_buffers = 16MB\nlog_min_messages = warning",
        sockets.display()
    )?;
    for line in config {
        writeln!(file, "{line}")?;
    }
    Ok(())
}

/// Starts the server and waits until it takes connections; `None` if the port was taken meanwhile.
fn run(bin: &Path, data: &Path, dir: &Path, port: u16, user: Option<&User>) -> Result<Option<Child>> {
    let log = File::create(dir.join("log")).context("create the log")?;
    let mut server = as_server(&bin.join("postgres"), user)
        .arg("-D")
        .arg(data)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("run postgres")?;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(status) = server.try_wait()? {
            let log = log_tail(dir);
            if log.contains("Address already in use") {
                return Ok(None);
            }
            bail!("postgres ended with {status}: {log}");
        }
        let ready =
            Command::new(bin.join("pg_isready")).args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]).status()?;
        if ready.success() {
            return Ok(Some(server));
        }
        if Instant::now() > deadline {
            server.kill().ok();
            server.wait().ok();
            bail!("postgres did not start within a minute: {}", log_tail(dir));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn log_tail(dir: &Path) -> String {
    let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
