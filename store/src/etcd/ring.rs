//! Which member of etcd is asked. One of them is in use, so that a program has one connection; when it is silent or
//! can't be reached, the next one is.
//!
//! * A request that may be sent twice is sent to the next member too when there is no answer for a short time, and the
//!   first answer counts.
//! * A write is never sent twice. While one waits for its answer, a read finds out whether its member is alive: if
//!   another member takes over, the write fails early, with an unknown outcome, as it would at its deadline.

use super::failure::Failure;
use super::member::Member;
use crate::{Result, StoreError, StoreOptions, stats};
use etcd_client as etcd;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;

/// Longer than any healthy etcd takes to answer, and short enough to find another member within a keep-alive of the
/// shortest lease that etcd grants.
const PATIENCE: Duration = Duration::from_millis(250);
/// A member that others outran so often in a row is left. Once may be chance, and leaving it breaks watches.
const STRIKES: u32 = 2;
/// Any key would do: it is asked for to see whether there is an answer.
const PROBE_KEY: &str = "probe";

/// The member in use, and how often it was another one until now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    member: usize,
    moves: u64,
}

/// All members.
pub(super) struct Ring {
    members: Vec<Member>,
    place: watch::Sender<Place>,
    strikes: AtomicU32,
    timeout: Duration,
    names: String,
}

impl Ring {
    pub(super) async fn new(options: &StoreOptions) -> Result<Self> {
        let members = options.members().await?;
        let names = members.iter().map(|member| member.url.as_str()).collect::<Vec<_>>().join(",");
        let place = watch::Sender::new(Place { member: 0, moves: 0 });
        Ok(Ring { members, place, strikes: AtomicU32::new(0), timeout: options.timeout, names })
    }

    /// All URLs, for messages.
    pub(super) fn names(&self) -> &str {
        &self.names
    }

    /// Deadline of each request.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A failure as callers of the store see it.
    pub(super) fn told(&self, failure: Failure) -> StoreError {
        failure.told(&self.names)
    }

    fn used(&self) -> usize {
        self.place.borrow().member
    }

    /// Sends a request that may be sent twice. Gives the member that answered, too.
    pub(super) async fn ask<T, F>(
        &self,
        request: impl Fn(etcd::Client) -> F,
    ) -> std::result::Result<(usize, T), Failure>
    where
        F: Future<Output = std::result::Result<T, etcd::Error>>,
    {
        let result = self.ask_members(request).await;
        stats::count_request(result.is_ok());
        result
    }

    async fn ask_members<T, F>(&self, request: impl Fn(etcd::Client) -> F) -> std::result::Result<(usize, T), Failure>
    where
        F: Future<Output = std::result::Result<T, etcd::Error>>,
    {
        let count = self.members.len();
        let first = self.used();
        let mut begun = 0;
        let mut failed = None;
        let mut running = FuturesUnordered::new();
        let deadline = tokio::time::sleep(self.timeout);
        tokio::pin!(deadline);
        let mut begin = true;
        loop {
            if std::mem::take(&mut begin) || running.is_empty() {
                if begun == count {
                    return Err(failed.unwrap_or(Failure::Silent(self.timeout)));
                }
                let member = (first + begun) % count;
                begun += 1;
                let attempt = self.members[member].run(&request);
                running.push(async move { (member, attempt.await) });
            }
            // All branches are cancel-safe: a request that is not taken here stays in the set.
            tokio::select! {
                biased;
                Some((member, result)) = running.next() => match result {
                    Ok(value) => {
                        self.answered(first, member, failed.is_some());
                        return Ok((member, value));
                    }
                    Err(failure) if Failure::is_about_member(&failure) => failed = Some(failure),
                    Err(failure) => {
                        self.answered(first, member, failed.is_some());
                        return Err(failure);
                    }
                },
                () = &mut deadline => return Err(failed.unwrap_or(Failure::Silent(self.timeout))),
                () = tokio::time::sleep(PATIENCE), if begun < count => begin = true,
            }
        }
    }

    /// Sends a request once.
    pub(super) async fn write<T, F>(&self, request: impl Fn(etcd::Client) -> F) -> std::result::Result<T, Failure>
    where
        F: Future<Output = std::result::Result<T, etcd::Error>>,
    {
        let result = self.write_once(request).await;
        stats::count_request(result.is_ok());
        result
    }

    async fn write_once<T, F>(&self, request: impl Fn(etcd::Client) -> F) -> std::result::Result<T, Failure>
    where
        F: Future<Output = std::result::Result<T, etcd::Error>>,
    {
        let begun = Instant::now();
        let mut tried = 0;
        loop {
            let member = self.used();
            tried += 1;
            match self.write_to(member, begun, &request).await {
                Err(failure) if failure.was_not_sent() && tried < self.members.len() => self.leave(member),
                Err(failure) => {
                    if failure.is_about_member() {
                        self.leave(member);
                    }
                    return Err(failure);
                }
                Ok(value) => return Ok(value),
            }
        }
    }

    async fn write_to<T, F>(
        &self,
        member: usize,
        begun: Instant,
        request: &impl Fn(etcd::Client) -> F,
    ) -> std::result::Result<T, Failure>
    where
        F: Future<Output = std::result::Result<T, etcd::Error>>,
    {
        let mut places = self.place.subscribe();
        let left = async {
            // The sender lives as long as we do.
            let _ = places.wait_for(|place| place.member != member).await;
        };
        let probing = async {
            loop {
                tokio::time::sleep(PATIENCE).await;
                let _ = self.ask(|client| async move { client.kv_client().get(PROBE_KEY, None).await }).await;
            }
        };
        // The request is dropped in the other cases: it may still take effect.
        tokio::select! {
            result = self.members[member].run(request) => result,
            () = tokio::time::sleep_until(begun + self.timeout) => Err(Failure::Silent(self.timeout)),
            () = left => Err(Failure::Silent(begun.elapsed())),
            () = probing, if self.members.len() > 1 => Err(Failure::Silent(begun.elapsed())),
        }
    }

    /// A future that ends when another member than `member` is used from now on.
    pub(super) fn left(&self, member: usize) -> impl Future<Output = ()> + Send + 'static {
        let mut places = self.place.subscribe();
        let moves = places.borrow_and_update().moves;
        async move {
            if places.wait_for(|place| place.moves != moves && place.member != member).await.is_err() {
                // Nobody moves any more.
                std::future::pending::<()>().await;
            }
        }
    }

    /// `member` answered; `first` was asked before it. `failed`: and can't be used, otherwise it was silent.
    fn answered(&self, first: usize, member: usize, failed: bool) {
        if member == first {
            self.strikes.store(0, Ordering::Relaxed);
        } else if failed || self.strikes.fetch_add(1, Ordering::Relaxed) + 1 >= STRIKES {
            self.use_instead(first, member);
        }
    }

    fn leave(&self, member: usize) {
        self.use_instead(member, (member + 1) % self.members.len());
    }

    fn use_instead(&self, old: usize, new: usize) {
        let moved = self.place.send_if_modified(|place| {
            let moves = place.member == old && new != old;
            if moves {
                *place = Place { member: new, moves: place.moves + 1 };
            }
            moves
        });
        if moved {
            self.strikes.store(0, Ordering::Relaxed);
            stats::count_move();
            info!(from = self.members[old].url, to = self.members[new].url, "another member of etcd is used");
        }
    }
}
