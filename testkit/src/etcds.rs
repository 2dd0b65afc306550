//! A transient etcd of several members, which can be frozen one by one, with whatever else etcd is to be started with.

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Members with data of their own; stopped and removed when this is dropped.
#[derive(Debug)]
pub struct Etcds {
    members: Vec<Member>,
    scheme: &'static str,
    _data: TempDir,
}

#[derive(Debug)]
struct Member {
    child: Child,
    client_port: u16,
    health_port: u16,
}

fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let listeners = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    Ok(listeners
        .iter()
        .map(|listener| listener.local_addr().map(|address| address.port()))
        .collect::<Result<_, _>>()?)
}

impl Etcds {
    /// Starts `count` members and waits until all of them serve. `arguments` go to each; with `--cert-file` among
    /// them clients speak https.
    ///
    /// # Errors
    /// etcd is not installed, or does not come up.
    pub async fn start(count: usize, arguments: &[&str]) -> anyhow::Result<Self> {
        // Another process may take a port between our look and etcd's: try again with others.
        let mut last = None;
        for _ in 0..3 {
            match Self::try_start(count, arguments).await {
                Ok(etcds) => return Ok(etcds),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("etcd was not started")?)
    }

    async fn try_start(count: usize, arguments: &[&str]) -> anyhow::Result<Self> {
        let data = tempfile::Builder::new().prefix("etcds-").tempdir()?;
        let ports = free_ports(count * 3)?;
        let ports: Vec<&[u16]> = ports.chunks(3).collect();
        let peers: Vec<String> = ports
            .iter()
            .enumerate()
            .map(|(number, ports)| format!("m{number}=http://127.0.0.1:{}", ports[1]))
            .collect();
        let scheme = if arguments.contains(&"--cert-file") { "https" } else { "http" };
        let mut etcds = Etcds { members: Vec::new(), scheme, _data: data };
        for (number, ports) in ports.iter().enumerate() {
            let directory = etcds._data.path().join(number.to_string());
            std::fs::create_dir(&directory)?;
            let log = std::fs::File::create(directory.join("log"))?;
            let client = format!("{scheme}://127.0.0.1:{}", ports[0]);
            let peer = format!("http://127.0.0.1:{}", ports[1]);
            let child = Command::new("etcd")
                .args(["--name", &format!("m{number}"), "--initial-cluster", &peers.join(",")])
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--listen-metrics-urls", &format!("http://127.0.0.1:{}", ports[2])])
                .args(arguments)
                .arg("--data-dir")
                .arg(directory.join("data"))
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .context("start etcd; is the package etcd-server installed?")?;
            etcds.members.push(Member { child, client_port: ports[0], health_port: ports[2] });
        }
        etcds.wait_healthy().await?;
        Ok(etcds)
    }

    async fn wait_healthy(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        for number in 0..self.members.len() {
            while !is_healthy(self.members[number].health_port).await {
                let ended = matches!(self.members[number].child.try_wait(), Ok(Some(_)));
                if ended || Instant::now() > deadline {
                    let log = std::fs::read_to_string(self._data.path().join(format!("{number}/log")));
                    let log = log.unwrap_or_default();
                    bail!("etcd did not come up; its log ends with: {}", log.lines().last().unwrap_or("(nothing)"))
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Client URLs, separated by commas.
    pub fn endpoints(&self) -> String {
        let urls = self.members.iter().map(|member| format!("{}://127.0.0.1:{}", self.scheme, member.client_port));
        urls.collect::<Vec<_>>().join(",")
    }

    /// Stops a member from running without ending it: its connections stay and are silent.
    pub fn freeze(&self, number: usize) {
        self.signal(number, Signal::SIGSTOP);
    }

    /// Lets a frozen member go on.
    pub fn thaw(&self, number: usize) {
        self.signal(number, Signal::SIGCONT);
    }

    fn signal(&self, number: usize, signal: Signal) {
        let _ = kill(Pid::from_raw(self.members[number].child.id().cast_signed()), signal);
    }
}

impl Drop for Etcds {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.child.kill();
            let _ = member.child.wait();
        }
    }
}

/// It knows a leader and can write.
async fn is_healthy(port: u16) -> bool {
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(2), ask).await;
    answer.is_ok_and(|answer| answer.is_ok_and(|text| text.contains("\"health\":\"true\"")))
}
