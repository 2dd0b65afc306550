//! The keeper owns one PostgreSQL instance and makes it what the cluster data says.
//!
//! One thread works on PostgreSQL and on files ([`worker`] says why):
//! * [`machine`] wakes on a change of the cluster data, on PostgreSQL's end, on a complete synchronous set and on a safety
//!   timer; it looks ([`observe`]), plans ([`plan`], pure) and does ([`apply`], one function per step);
//! * [`probe`] looks at the instance about once a second and right after each action;
//! * [`streaming`] finds out why a standby receives nothing.
//!
//! Another one speaks with the others and never waits for a disk:
//! * [`disk`] has a small file written and read now and then, and room set aside for the keeper's own files;
//! * [`upstream`] notices at once when the followed server is gone;
//! * [`publish`] keeps the keeper's record in the store, at once when something that matters changed.
//!
//! Without a store, or without cluster data in it, PostgreSQL stays as it is. PostgreSQL outlives a killed keeper, and the
//! next one adopts it; only a clean stop of the keeper (SIGTERM) stops PostgreSQL. Told to leave (SIGUSR1), the keeper ends
//! alone and has the cluster wait for the next one, as for an upgrade.

mod apply;
pub mod args;
mod check;
pub mod datadir;
pub mod disk;
pub mod error;
mod leftover;
mod lineage;
pub mod machine;
pub mod observe;
mod order;
mod pauses;
pub mod plan;
pub mod postgres;
pub mod probe;
pub mod publish;
pub mod record;
mod report;
mod restore;
mod resync;
mod rewind;
pub mod streaming;
mod trash;
pub mod upstream;
mod waldir;
pub mod worker;

use crate::access::random_uid;
use crate::metrics::{self, Program};
use anyhow::{Context as _, bail};
use args::{Args, Config};
use common::privileges;
use common::runtime::Termination;
use datadir::{KeeperDir, KeeperState, write_file};
use disk::Disk;
use machine::{Machine, Parts};
use model::stolon::keys::Keys;
use plan::Setup;
use postgres::binaries::Binaries;
use postgres::conninfo;
use postgres::sql::{SharedSession, Target};
use probe::{Probe, Probed, Watched};
use publish::{Facts, Identity, Publisher, Tenure};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use store::{Follower, SharedStore, Target as StoreTarget};
use streaming::StreamWatch;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, oneshot, watch};
use tracing::info;
use upstream::UpstreamWatch;
use worker::Worker;

/// Limit of a statement to the own PostgreSQL while the specification's `requestTimeout` is not known or is 0.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the keeper until SIGTERM or SIGINT, or until SIGUSR1, which leaves PostgreSQL running.
///
/// # Errors
/// Unusable flags or files, another keeper in the same directory, or PostgreSQL could not be stopped.
pub fn main(args: &Args) -> anyhow::Result<()> {
    let keys = args.common.keys()?;
    // Password files may be readable for root only, so they are read before that right is given up.
    let os_user =
        if privileges::is_root() { privileges::user(privileges::POSTGRES_USER)? } else { privileges::current_user()? };
    let config = args.config(&os_user.name)?;
    args.warn();
    if privileges::is_root() {
        for dir in std::iter::once(&config.data_dir).chain(&config.wal_dir) {
            hand_over(dir, &os_user)?;
        }
        privileges::leave_root()?;
    }
    common::runtime::block_on(run(args, config, keys))
}

/// Makes an empty or missing directory the property of PostgreSQL's user.
fn hand_over(dir: &Path, user: &privileges::OsUser) -> anyhow::Result<()> {
    datadir::make_private_dir(dir)?;
    if std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?.next().is_none() {
        std::os::unix::fs::chown(dir, Some(user.uid), Some(user.gid))
            .with_context(|| format!("give {} to {}", dir.display(), user.name))?;
    }
    Ok(())
}

async fn run(args: &Args, config: Config, keys: Keys) -> anyhow::Result<()> {
    let mut termination = Termination::listen()?;
    let leave = signal(SignalKind::user_defined1())?;
    metrics::start(&args.common, Program::Keeper).await?;
    let dir = KeeperDir::open(&config.data_dir, config.locking)?;
    let keeper = identify(&dir, &config)?;
    let state = dir.load_db()?;
    let binaries = Binaries::find(config.bin_path.as_deref())?;
    let version = binaries.version().await?;
    if version.major < 12 {
        bail!("PostgreSQL {} is too old; version 15 or later is wanted", version.major);
    }
    config.tls.check().context("TLS to the other members' PostgreSQL")?;
    config.wal_dir.as_deref().map_or(Ok(()), waldir::check)?;
    waldir::recover(&dir.pgdata())?;
    let passfile = conninfo::passfile(&[&config.su, &config.repl]);
    if let Some(text) = &passfile {
        write_file(&dir.passfile(), text.as_bytes())?;
    }
    let boot_uuid = uuid::Uuid::new_v4().to_string();
    info!(keeper = %keeper.uid, boot_uuid, postgres = format!("{}.{}", version.major, version.minor), "keeper started");
    let store = args.common.open_store().await?;
    let setup = Setup {
        uid: keeper.uid.clone(),
        directory: dir.root().display().to_string(),
        boot_uuid: boot_uuid.clone(),
        listen_address: config.listen_address.clone(),
        port: config.port,
        socket_dir: config.socket_dir.display().to_string(),
        su: (config.su.user.clone(), config.su.access),
        repl: (config.repl.user.clone(), config.repl.access),
        passfile: passfile.map(|_| dir.passfile().display().to_string()),
        tls: config.tls.clone(),
        rebuild_lost_standby: config.rebuild_lost_standby,
    };
    let identity = Identity {
        uid: keeper.uid.clone(),
        boot_uuid,
        place: record::place(dir.root())?,
        version,
        priority: config.priority,
        can_be_master: config.can_be_master,
        can_be_synchronous_replica: config.can_be_synchronous_replica,
        address: config.advertise_address.clone(),
        port: config.advertise_port.to_string(),
    };
    let target = Target {
        host: config.socket_dir.display().to_string(),
        port: config.port,
        account: config.su.clone(),
        timeout: REQUEST_TIMEOUT,
        tls: config.tls.clone(),
    };
    let tasks = Tasks { store, keys, setup, identity, target, leave };
    let parts = (config, dir, binaries, keeper, state);
    tasks.run(parts, &mut termination).await
}

/// Loads who this keeper is, or decides it.
fn identify(dir: &KeeperDir, config: &Config) -> anyhow::Result<KeeperState> {
    let state = match (dir.load_keeper()?, &config.uid) {
        (Some(saved), Some(given)) if saved.uid != *given && !saved.uid.is_empty() => bail!(
            "--uid is \"{given}\" but {} belongs to keeper \"{}\"; use that uid or another directory",
            dir.root().display(),
            saved.uid
        ),
        (Some(saved), _) if !saved.uid.is_empty() => return Ok(saved),
        (_, given) => {
            KeeperState { uid: given.clone().unwrap_or_else(|| random_uid().into()), cluster_uid: String::new() }
        }
    };
    dir.save_keeper(&state)?;
    Ok(state)
}

struct Tasks {
    store: SharedStore,
    keys: Keys,
    setup: Setup,
    identity: Identity,
    target: Target,
    /// Orders to leave PostgreSQL to the next keeper.
    leave: Signal,
}

impl Tasks {
    async fn run(
        self,
        (config, dir, binaries, keeper, state): (Config, KeeperDir, Binaries, KeeperState, datadir::DbState),
        termination: &mut Termination,
    ) -> anyhow::Result<()> {
        let Tasks { store, keys, setup, identity, target, mut leave } = self;
        let follower = Follower::start(
            store.clone(),
            vec![StoreTarget::Key(keys.clusterdata()), StoreTarget::Key(keys.order(&keeper.uid))],
        );
        let order_uid = keeper.uid.clone();
        let (watched, watched_receiver) = watch::channel(Watched::default());
        let (results, probed) = watch::channel(Probed::default());
        metrics::show_health(probed.clone());
        let facts = Facts {
            cluster_uid: keeper.cluster_uid.clone(),
            sleep_interval: Duration::from_secs(5),
            ..Default::default()
        };
        let (facts, facts_receiver) = watch::channel(facts);
        let tenure = watch::Sender::new(Tenure::Kept);
        let (session, wake) = (Arc::new(SharedSession::default()), Arc::new(Notify::new()));
        let probe = Probe {
            pgdata: dir.pgdata(),
            target: target.clone(),
            session: session.clone(),
            watched: watched_receiver,
            results,
            lost: wake.clone(),
            asked: Arc::default(),
        };
        let (disk_results, disk) = watch::channel(Disk::default());
        let looking = tokio::spawn(disk::run(dir.root().to_owned(), disk_results.clone(), probed.clone()));
        let (upstream_sender, upstream) = watch::channel(None);
        let upstream_watch = UpstreamWatch {
            watched: probe.watched.clone(),
            probed: probed.clone(),
            results: upstream_sender,
            look: probe.asked.clone(),
        };
        let (stream_sender, stream) = watch::channel(None);
        let stream_watch = StreamWatch {
            pgdata: dir.pgdata(),
            binaries: binaries.clone(),
            watched: probe.watched.clone(),
            probed: probed.clone(),
            results: stream_sender,
        };
        let (challenge, twin) = (keys.challenge(&keeper.uid), keys.twin(&keeper.uid));
        let challenges =
            Follower::start(store.clone(), vec![StoreTarget::Key(challenge.clone()), StoreTarget::Key(twin.clone())]);
        let (hangs_sender, hangs) = watch::channel(false);
        let publisher = Publisher {
            disk,
            hangs,
            stream,
            store,
            challenge_key: challenge,
            twin_key: twin,
            key: keys.keeper_info(&keeper.uid),
            identity,
            facts: facts_receiver,
            probed: probed.clone(),
            upstream,
            challenges: challenges.subscribe(),
        };
        let parts = Parts {
            config: Arc::new(config),
            dir,
            binaries,
            setup,
            keeper,
            state,
            target,
            session,
            wake,
            watched,
            facts,
            probed,
            view: follower.subscribe(),
            key: keys.clusterdata(),
            order_key: keys.order(&order_uid),
        };
        let (order_stop, stopping) = oneshot::channel();
        let (mut ended, pulse) = Worker::start(move || work(parts, probe, stream_watch, stopping))?.split();
        let watching = [tokio::spawn(upstream_watch.run()), tokio::spawn(pulse.watch(hangs_sender)), looking];
        let mut publishing = tokio::spawn(publisher.run(tenure.clone()));
        // All branches are cancel-safe.
        let result = loop {
            tokio::select! {
                () = termination.wait() => {
                    metrics::keeper::SHUTDOWN.set_now();
                    info!("stopping");
                    let _ = order_stop.send(Ending::Stop);
                    break ended.await;
                }
                _ = leave.recv() => {
                    tenure.send_replace(Tenure::Left);
                }
                _ = &mut publishing, if *tenure.borrow() == Tenure::Left => {
                    info!("leaving; postgres goes on, and the next keeper is waited for");
                    let _ = order_stop.send(Ending::Leave);
                    return Ok(ended.await.context("the keeper's work broke off; its last messages say why")??);
                }
                result = &mut ended => break result,
            }
        };
        // The record goes last: while it is there, PostgreSQL may be running.
        tenure.send_replace(Tenure::Ended);
        let _ = publishing.await;
        watching.iter().for_each(tokio::task::JoinHandle::abort);
        Ok(result.context("the keeper's work broke off; its last messages say why")??)
    }
}

/// How a keeper ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// With its PostgreSQL.
    Stop,
    /// Without: another keeper takes it over.
    Leave,
}

/// Runs until it is told to end.
async fn work(
    parts: Parts,
    probe: Probe,
    stream_watch: StreamWatch,
    stop: oneshot::Receiver<Ending>,
) -> error::Result<()> {
    let mut machine = Machine::new(parts);
    let (probing, streaming) = (tokio::spawn(probe.run()), tokio::spawn(stream_watch.run()));
    let mut ending = Ending::Stop;
    machine.run(async { ending = stop.await.unwrap_or(Ending::Stop) }).await;
    let result = if ending == Ending::Stop { machine.shut_down().await } else { Ok(()) };
    probing.abort();
    streaming.abort();
    result
}
