//! Notices at once when the server that a standby follows is gone.
//!
//! The standby's receiver holds a connection to it. When the postmaster over there dies its connections break, the
//! receiver ends, and its end is seen here without polling. Then, and only then, a connection is tried: if the host
//! refuses it, nobody listens there any more. A server that is slow, full, starting or stopped by a signal still has a
//! listening socket, and a network that is cut refuses nothing.
//!
//! This is only a hint for the leading sentinel, which makes sure by itself. No account, no slot and no connection of the
//! followed server are needed for it.

use super::probe::{Probed, Watched};
use crate::reach::{Reach, reach};
use model::DbUid;
use model::stolon::{ClusterData, Db, FollowType, Role, Upstream};
use rustix::process::{PidfdFlags, pidfd_open};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};
use tracing::{debug, info};

/// How long an attempt to connect may take; one that takes longer says nothing.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(1);
/// Pause between attempts while the stream is broken; doubles up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// A look at the own server takes a few milliseconds; a broken stream is told without it if it takes longer.
const LOOK_LIMIT: Duration = Duration::from_millis(50);

/// A server to follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// Its db.
    pub db: DbUid,
    /// Its advertised address.
    pub host: String,
    /// Its advertised port.
    pub port: u16,
}

impl Followed {
    /// The server that a db of this cluster follows; `None` for a master, and where the address is not known.
    pub fn by(data: &ClusterData, db: &Db) -> Option<Self> {
        let follow = db.spec.follow_config.as_ref().filter(|_| db.spec.role == Some(Role::Standby))?;
        if follow.kind != Some(FollowType::Internal) {
            return None;
        }
        let status = &data.dbs.get(&follow.db_uid)?.status;
        let (host, port) = (status.listen_address.clone(), status.port.parse().ok()?);
        (!host.is_empty()).then(|| Followed { db: follow.db_uid.clone(), host, port })
    }
}

/// Everything the watch works with.
#[derive(Debug)]
pub struct UpstreamWatch {
    /// From the state machine: whom to follow.
    pub watched: watch::Receiver<Watched>,
    /// From the probe: the receiver's process.
    pub probed: watch::Receiver<Probed>,
    /// What is to be published.
    pub results: watch::Sender<Option<Upstream>>,
    /// Lets the probe look.
    pub look: Arc<Notify>,
}

impl UpstreamWatch {
    /// Watches; never ends.
    pub async fn run(mut self) {
        loop {
            let followed = self.watched.borrow_and_update().upstream.clone();
            self.tell(None);
            let mut orders = self.watched.clone();
            // Both branches are cancel-safe: what is lost is found out anew.
            tokio::select! {
                result = orders.wait_for(|watched| watched.upstream != followed) => if result.is_err() { return },
                () = self.follow(followed.as_ref()) => return,
            }
        }
    }

    /// Watches one server for as long as it is the one to follow. Ends with the probe only.
    async fn follow(&self, followed: Option<&Followed>) {
        let Some(followed) = followed else { return std::future::pending().await };
        let mut probed = self.probed.clone();
        // Nothing is said of a server that this standby has never received anything from.
        let Some(mut receiver) = next_receiver(&mut probed, None).await else { return };
        loop {
            self.tell(Some(Upstream { db: followed.db.clone(), refused: false, receiving: true }));
            ended(receiver, &mut probed).await;
            self.see_last_position(receiver, &mut probed).await;
            self.tell(Some(Upstream { db: followed.db.clone(), ..Default::default() }));
            debug!(db = %followed.db, "the stream from the followed server broke");
            // Both branches are cancel-safe.
            tokio::select! {
                next = next_receiver(&mut probed, Some(receiver)) => match next {
                    Some(next) => receiver = next,
                    None => return,
                },
                () = self.attempts(followed) => {}
            }
        }
    }

    /// Whoever waits for everything to have been received need not ask for it: the position is told with the stream's end.
    async fn see_last_position(&self, receiver: i32, probed: &mut watch::Receiver<Probed>) {
        self.look.notify_one();
        let seen = probed.wait_for(|probed| probed.snapshot.receiver != Some(receiver));
        let _ = tokio::time::timeout(LOOK_LIMIT, seen).await;
    }

    /// Tries to connect again and again; never ends.
    async fn attempts(&self, followed: &Followed) {
        let mut pause = FIRST_PAUSE;
        loop {
            let refused = reach(&followed.host, followed.port, ATTEMPT_LIMIT).await == Reach::Refused;
            self.tell(Some(Upstream { db: followed.db.clone(), refused, receiving: false }));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    fn tell(&self, upstream: Option<Upstream>) {
        self.results.send_if_modified(|told| {
            let refused = |upstream: &Option<Upstream>| upstream.as_ref().is_some_and(|upstream| upstream.refused);
            match (refused(told), refused(&upstream)) {
                (false, true) => info!("the followed server's host refuses connections"),
                (true, false) => info!("the followed server's host no longer refuses connections"),
                _ => {}
            }
            let changed = *told != upstream;
            *told = upstream;
            changed
        });
    }
}

/// Waits for a receiver that streams, and is not the one that has ended. `None`: the probe is gone.
async fn next_receiver(probed: &mut watch::Receiver<Probed>, old: Option<i32>) -> Option<i32> {
    let of = |probed: &Probed| probed.snapshot.receiver.filter(|pid| probed.healthy && Some(*pid) != old);
    let probed = probed.wait_for(|probed| of(probed).is_some()).await.ok()?;
    of(&probed)
}

/// Waits for the receiver's end. Where the kernel can't tell, the probe's next look does.
async fn ended(receiver: i32, probed: &mut watch::Receiver<Probed>) {
    let process = Some(receiver).filter(|pid| *pid > 0).and_then(rustix::process::Pid::from_raw);
    let descriptor = match process.map(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK)) {
        Some(Ok(descriptor)) => watch(descriptor).ok(),
        None | Some(Err(rustix::io::Errno::SRCH)) => return,
        Some(Err(error)) => {
            debug!(%error, "watch the receiver's process");
            None
        }
    };
    let end = async {
        match &descriptor {
            Some(descriptor) => drop(descriptor.readable().await),
            None => std::future::pending().await,
        }
    };
    let gone = probed.wait_for(|probed| probed.healthy && probed.snapshot.receiver != Some(receiver));
    // Both branches are cancel-safe.
    tokio::select! {
        () = end => {}
        _ = gone => {}
    }
}

#[expect(deprecated, reason = "the successor is unsafe because a type may lie about its descriptor; OwnedFd does not")]
fn watch(descriptor: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::postgres::sql::Snapshot;
    use std::process::{Child, Command};

    struct Setup {
        watched: watch::Sender<Watched>,
        probed: watch::Sender<Probed>,
        results: watch::Receiver<Option<Upstream>>,
        receiver: Child,
    }

    /// A watch on a server at that port, with a sleeping process as receiver.
    fn start(port: u16) -> Setup {
        let receiver = Command::new("sleep").arg("60").spawn().unwrap();
        let followed = Followed { db: "m".into(), host: "127.0.0.1".into(), port };
        let (watched, watched_receiver) = watch::channel(Watched { upstream: Some(followed), ..Default::default() });
        let (probed, probed_receiver) = watch::channel(Probed::default());
        let (sender, results) = watch::channel(None);
        let watch =
            UpstreamWatch { watched: watched_receiver, probed: probed_receiver, results: sender, look: Arc::default() };
        tokio::spawn(watch.run());
        let setup = Setup { watched, probed, results, receiver };
        setup.stream(Some(i32::try_from(setup.receiver.id()).unwrap()));
        setup
    }

    impl Setup {
        fn stream(&self, receiver: Option<i32>) {
            let snapshot = Snapshot { in_recovery: true, receiver, ..Default::default() };
            let _ = self.probed.send(Probed { healthy: true, snapshot, ..Default::default() });
        }

        async fn until(&mut self, wanted: Option<bool>) {
            let is = |upstream: &Option<Upstream>| upstream.as_ref().map(|upstream| upstream.refused) == wanted;
            let result = tokio::time::timeout(Duration::from_secs(10), self.results.wait_for(is)).await;
            assert!(result.is_ok(), "not {wanted:?}");
        }

        fn break_stream(&mut self) {
            self.receiver.kill().unwrap();
            self.receiver.wait().unwrap();
        }
    }

    fn listen() -> (std::net::TcpListener, u16) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    #[tokio::test]
    async fn a_broken_stream_and_a_refused_connection() {
        let (listener, port) = listen();
        drop(listener);
        let mut setup = start(port);
        setup.until(Some(false)).await;
        setup.break_stream();
        setup.until(Some(true)).await;
        // Somebody listens again.
        let _listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        setup.until(Some(false)).await;
        // Told to follow nobody: what was said about the former server is taken back.
        setup.watched.send_modify(|watched| watched.upstream = None);
        setup.until(None).await;
    }

    #[tokio::test]
    async fn a_broken_stream_alone_says_nothing() {
        let (_listener, port) = listen();
        let mut setup = start(port);
        setup.until(Some(false)).await;
        setup.break_stream();
        let refused = tokio::time::timeout(
            Duration::from_millis(400),
            setup.results.wait_for(|u| u.as_ref().is_some_and(|upstream| upstream.refused)),
        );
        assert!(refused.await.is_err());
    }

    #[tokio::test]
    async fn a_server_that_was_never_followed_is_not_missed() {
        let (listener, port) = listen();
        drop(listener);
        let mut setup = start(port);
        setup.watched.send_modify(|watched| watched.upstream.as_mut().unwrap().db = "n".into());
        setup.stream(None);
        setup.until(None).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(*setup.results.borrow(), None);
        setup.break_stream();
    }
}
