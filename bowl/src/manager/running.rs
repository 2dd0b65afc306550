//! A daemon's process, our own child or one that an earlier bowl started.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Child;
use tracing::debug;

/// A daemon's process.
#[derive(Debug)]
pub(super) enum Running {
    /// Our own child.
    Child(Child),
    /// Of an earlier bowl: the kernel's handle becomes readable when it ends.
    Adopted(AsyncFd<OwnedFd>),
}

impl Running {
    /// Waits for the end; says how it ended, if anyone can tell. Cancel-safe.
    pub(super) async fn ended(&mut self) -> Option<ExitStatus> {
        match self {
            Running::Child(child) => child.wait().await.ok(),
            Running::Adopted(fd) => {
                let _ = fd.readable().await;
                None
            }
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        let sent = match self {
            // A child's number stays its own until we have waited for it.
            Running::Child(child) => child.id().map_or(Ok(()), |pid| kill(Pid::from_raw(pid.cast_signed()), signal)),
            Running::Adopted(fd) => {
                let signal = match signal {
                    Signal::SIGKILL => rustix::process::Signal::KILL,
                    _ => rustix::process::Signal::TERM,
                };
                pidfd_send_signal(fd.get_ref(), signal).map_err(|errno| nix::Error::from_raw(errno.raw_os_error()))
            }
        };
        if let Err(error) = sent {
            debug!(%error, "signal a daemon that has just ended");
        }
    }

    /// Takes a process over. The caller looks whether it still is the right one after this, not before.
    pub(super) fn adopt(pid: i32) -> io::Result<Running> {
        // A record may hold anything; zero and negative numbers mean groups of processes.
        let pid = Some(pid).filter(|pid| *pid > 0).and_then(rustix::process::Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
        let fd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        Ok(Running::Adopted(watch(fd)?))
    }
}

#[expect(deprecated, reason = "the successor is unsafe because a type may lie about its descriptor; OwnedFd does not")]
fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}
