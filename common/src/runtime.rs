//! The async runtime of daemons and commands, and signals.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Runs a program to its end on one thread: daemons wait nearly all of the time, and each further thread
/// costs memory in every one of dozens of processes on a machine.
///
/// # Errors
/// The program's own, or the runtime can't be made.
pub fn block_on(program: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(program);
    // Work on blocking threads, such as name look-ups, must not delay the end.
    runtime.shutdown_background();
    result
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Termination {
    terminate: Signal,
    interrupt: Signal,
}

impl Termination {
    /// Starts to catch them; from now on they no longer end the process by themselves.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn listen() -> anyhow::Result<Self> {
        Ok(Termination { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of them. Cancel-safe.
    pub async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
