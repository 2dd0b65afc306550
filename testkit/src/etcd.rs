//! A transient etcd on loopback.

use crate::port::Port;
use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// An etcd with data of its own; stopped and removed when it is dropped.
#[derive(Debug)]
pub struct Etcd {
    child: Option<Child>,
    data: TempDir,
    client_port: Port,
    peer_port: Port,
}

impl Etcd {
    /// Starts an etcd and waits until it answers.
    ///
    /// # Errors
    /// etcd is not installed, or does not come up.
    pub async fn start() -> anyhow::Result<Self> {
        let data = tempfile::Builder::new().prefix("etcd-").tempdir()?;
        let mut etcd = Etcd { child: None, data, client_port: Port::reserve()?, peer_port: Port::reserve()? };
        etcd.resume().await?;
        Ok(etcd)
    }

    /// Port for clients.
    pub fn port(&self) -> u16 {
        self.client_port.number()
    }

    /// Client URL.
    pub fn endpoints(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// Where its data is.
    pub fn data_dir(&self) -> &Path {
        self.data.path()
    }

    /// Starts it again after [`Etcd::stop`], on the same ports and data.
    ///
    /// # Errors
    /// It does not come up within 20 s.
    pub async fn resume(&mut self) -> anyhow::Result<()> {
        let client = self.endpoints();
        let peer = format!("http://127.0.0.1:{}", self.peer_port.number());
        let log = std::fs::File::create(self.data.path().join("log"))?;
        let child = Command::new("etcd")
            .args(["--name", "default", "--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .arg("--data-dir")
            .arg(self.data.path().join("data"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start etcd; is the package etcd-server installed?")?;
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if self.is_healthy().await {
                return Ok(());
            }
            if self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_)))) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let log = std::fs::read_to_string(self.data.path().join("log")).unwrap_or_default();
        bail!("etcd did not come up; its log ends with: {}", log.lines().last().unwrap_or("(nothing)"))
    }

    /// It has elected itself and can write. An etcd that only listens may still lose everything when it is killed.
    async fn is_healthy(&self) -> bool {
        let ask = async {
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port())).await?;
            stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        tokio::time::timeout(Duration::from_secs(1), ask)
            .await
            .is_ok_and(|answer| answer.is_ok_and(|text| text.contains("\"health\":\"true\"")))
    }

    /// Stops it; its data stays.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
            let _ = child.wait();
        }
    }

    /// Removes its data; to be called while it is stopped.
    ///
    /// # Errors
    /// The directory can't be removed.
    pub fn wipe(&mut self) -> anyhow::Result<()> {
        Ok(std::fs::remove_dir_all(self.data.path().join("data"))?)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}
