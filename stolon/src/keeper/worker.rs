//! The thread that works on PostgreSQL and on files, and a look at whether it gets on.
//!
//! While a disk is busy with a checkpoint, a small durable write takes seconds, and nothing else runs on a thread that waits
//! for it. So such work has a thread of its own. The keeper's first thread touches no files: it keeps the lease,
//! publishes, and answers the sentinel's question, however slow the disk is.
//!
//! A keeper whose work hangs for good must not look alive for ever, though. Its record is then taken out of the store, as
//! if the keeper had died. Nothing rests on that moment: a master that goes on serving behind it is fenced off by its
//! proxies and its synchronous standbys as one that is cut off from the store.

use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tracing::{error, warn};

/// So long the work may give no sign. A durable write of a small file on a disk worth having takes less; what copies or
/// deletes much is left to threads that may take their time.
const LIMIT: Duration = Duration::from_secs(20);
/// Pause between looks.
const PAUSE: Duration = Duration::from_secs(5);

/// Work on a thread of its own.
#[derive(Debug)]
pub struct Worker<T> {
    ended: oneshot::Receiver<T>,
    pulse: Pulse,
}

impl<T: Send + 'static> Worker<T> {
    /// Starts it. The work is made on its thread, so that what it opens is served by that thread.
    ///
    /// # Errors
    /// The system grants no thread.
    pub fn start<F: Future<Output = T>>(work: impl FnOnce() -> F + Send + 'static) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (result, ended) = oneshot::channel();
        let (questions, asked) = watch::channel(0);
        let (answers, answered) = watch::channel(0);
        std::thread::Builder::new().name("work".into()).spawn(move || {
            let output = runtime.block_on(async {
                tokio::spawn(answer(asked, answers));
                work().await
            });
            runtime.shutdown_background();
            let _ = result.send(output);
        })?;
        Ok(Worker { ended, pulse: Pulse { questions, answered } })
    }

    /// What it came to, and how to find out whether it gets on.
    pub fn split(self) -> (oneshot::Receiver<T>, Pulse) {
        (self.ended, self.pulse)
    }
}

/// Says again what was asked: the thread runs this only between other things.
async fn answer(mut asked: watch::Receiver<u64>, answers: watch::Sender<u64>) {
    while asked.changed().await.is_ok() {
        answers.send_replace(*asked.borrow_and_update());
    }
}

/// Asks the thread for a sign.
#[derive(Debug)]
pub struct Pulse {
    questions: watch::Sender<u64>,
    answered: watch::Receiver<u64>,
}

impl Pulse {
    /// Tells whether the work hangs, for as long as it runs.
    pub async fn watch(mut self, hangs: watch::Sender<bool>) {
        self.watch_with(&hangs, PAUSE, LIMIT).await;
    }

    async fn watch_with(&mut self, hangs: &watch::Sender<bool>, pause: Duration, limit: Duration) {
        for question in 1.. {
            self.questions.send_replace(question);
            // Without a sender the thread has ended: so has the keeper.
            let soon = tokio::time::timeout(limit, self.answered.wait_for(|answer| *answer == question)).await;
            let sign = match soon.map(|sign| sign.is_ok()) {
                Ok(sign) => sign,
                Err(_) => {
                    let seconds = limit.as_secs();
                    error!(
                        "the keeper's work gives no sign since {seconds} s, probably a file system hangs: taking its \
                         record out of the store"
                    );
                    hangs.send_replace(true);
                    let sign = self.answered.wait_for(|answer| *answer == question).await.is_ok();
                    warn!("the keeper's work goes on");
                    hangs.send_replace(false);
                    sign
                }
            };
            if !sign {
                return std::future::pending().await;
            }
            tokio::time::sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn blocked_work_is_noticed_only_when_it_takes_too_long() {
        let (release, blocked) = mpsc::channel::<()>();
        let worker = Worker::start(move || async move {
            for () in &blocked {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            7
        })
        .unwrap();
        let (ended, mut pulse) = worker.split();
        let (hangs, mut seen) = watch::channel(false);
        let watching = tokio::spawn(async move {
            pulse.watch_with(&hangs, Duration::from_millis(1), Duration::from_millis(300)).await;
        });
        // It blocks from the start; everything else goes on.
        let soon = Duration::from_millis(100);
        assert!(tokio::time::timeout(soon, seen.wait_for(|hangs| *hangs)).await.is_err());
        drop(seen.wait_for(|hangs| *hangs).await.unwrap());
        release.send(()).unwrap();
        drop(seen.wait_for(|hangs| !*hangs).await.unwrap());
        drop(release);
        assert_eq!(ended.await, Ok(7));
        watching.abort();
    }

    #[tokio::test]
    async fn an_end_that_was_not_wanted_is_seen() {
        let worker = Worker::<()>::start(|| async { panic!("on purpose") }).unwrap();
        assert!(worker.split().0.await.is_err());
    }
}
