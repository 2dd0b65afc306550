//! Steps and their effects: one function per kind of step.

use super::datadir::{DbState, write_file};
use super::error::{KeeperError, Result, io};
use super::machine::{Interest, Machine};
use super::plan::{Attempt, Files, Resync, Step};
use super::postgres::binaries;
use super::postgres::conninfo::{self, Source};
use super::postgres::process::{self, StartOptions};
use super::postgres::sql::{self, Session, Target};
use super::probe::{is_other_branch, parse_history};
use model::stolon::{NewConfig, TimelineHistory};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// Pause while waiting for our own PostgreSQL to get on.
const POLL: Duration = Duration::from_millis(20);
/// How long a promotion may take before the pass is given up (PostgreSQL goes on with it).
const PROMOTE_LIMIT: Duration = Duration::from_secs(60);
/// How long PostgreSQL may take to read its files.
const RELOAD_LIMIT: Duration = Duration::from_secs(5);
/// How long a rewound standby may take to stream from a server that can be reached.
const STREAM_LIMIT: Duration = Duration::from_secs(20);

impl Machine {
    /// Does one step.
    pub(super) async fn apply(&mut self, step: Step, interest: &Interest) -> Result<()> {
        debug!(step = step.name(), "step");
        match step {
            Step::SaveClusterUid(uid) => self.apply_save_cluster_uid(uid),
            Step::SaveState(state) => self.apply_save_state(state),
            Step::MarkInitialized(uid) => {
                let init_pg_parameters = self.parameters.take();
                self.sync_wait = Some(false);
                self.apply_save_state(DbState { uid, generation: 0, initializing: false, init_pg_parameters })
            }
            Step::Stop(why) => self.apply_stop(why).await,
            Step::Wipe => self.wipe(),
            Step::Initdb(config) => self.apply_initdb(&config).await,
            Step::StartForSetup(files) => self.apply_start_for_setup(&files).await,
            Step::ReadParameters => {
                self.parameters = Some(super::postgres::conf::reported(
                    self.sql().await?.file_parameters().await?,
                    &self.watched.borrow().user_parameters,
                ));
                Ok(())
            }
            Step::SetUpRoles => self.sql().await?.set_up_roles(&self.config.su, &self.config.repl).await,
            Step::Resync(resync) => self.apply_resync(&resync, interest).await,
            Step::SetSyncWait(wait) => {
                if wait {
                    info!("normal users are kept out until the synchronous standbys are in sync");
                }
                self.sync_wait = Some(wait);
                Ok(())
            }
            Step::MarkStandby => self.apply_mark_standby(),
            Step::WriteFiles(files) => self.apply_write_files(&files),
            Step::Start => self.apply_start(Vec::new()).await,
            Step::WaitReady(limit) => self.apply_wait_ready(limit, interest).await,
            Step::Reload { sync_names } => self.apply_reload(&sync_names).await,
            Step::Promote => self.apply_promote().await,
            Step::EnsureSlots { wanted, required } => self.apply_ensure_slots(&wanted, required).await,
            Step::RestartIfPending { automatic } => self.apply_restart_if_pending(automatic).await,
            Step::Checkpoint => self.apply_checkpoint(),
        }
    }

    fn apply_save_cluster_uid(&mut self, uid: String) -> Result<()> {
        info!(cluster_uid = uid, "this keeper belongs to the cluster");
        self.keeper.cluster_uid = uid;
        self.dir.save_keeper(&self.keeper)?;
        self.tell();
        Ok(())
    }

    fn apply_save_state(&mut self, state: DbState) -> Result<()> {
        self.dir.save_db(&state)?;
        self.state = state;
        self.tell();
        Ok(())
    }

    async fn apply_stop(&mut self, why: &str) -> Result<()> {
        info!(why, "stopping postgres");
        self.session.close().await;
        process::stop(&self.dir.pgdata()).await?;
        self.set_postmaster(None);
        Ok(())
    }

    /// Deletes the data directory; only ever this one, never through a link, never under a running server.
    fn wipe(&self) -> Result<()> {
        let pgdata = self.dir.pgdata();
        let metadata = match std::fs::symlink_metadata(&pgdata) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return io(Err(error), "look at", &pgdata),
        };
        if metadata.is_symlink() {
            return Err(KeeperError::Other(format!(
                "{} is a symbolic link, so its data is not deleted; make it a directory or mount the volume there",
                pgdata.display()
            )));
        }
        if process::find(&pgdata).is_some() {
            return Err(KeeperError::Other(format!(
                "postgres runs in {}, so its data is not deleted",
                pgdata.display()
            )));
        }
        warn!(directory = %pgdata.display(), "deleting the data directory");
        // A mount point can be emptied but not removed.
        match std::fs::remove_dir_all(&pgdata) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => Ok(()),
            other => io(other, "delete", &pgdata),
        }
    }

    async fn apply_initdb(&mut self, config: &NewConfig) -> Result<()> {
        let started = Instant::now();
        let mut command = self.binaries.command("initdb");
        command.arg("-D").arg(self.dir.pgdata()).arg("-U").arg(&self.config.su.user);
        let method = self.config.su.method.as_str();
        command.arg(format!("--auth-local={method}")).arg(format!("--auth-host={method}"));
        let password = self.config.su.password.clone();
        let file = self.dir.root().join(".initdb-password");
        if !password.is_empty() {
            write_file(&file, password.reveal().as_bytes())?;
            command.arg("--pwfile").arg(&file);
        }
        let NewConfig { locale, encoding, data_checksums } = config;
        if !locale.is_empty() {
            command.arg(format!("--locale={locale}"));
        }
        if !encoding.is_empty() {
            command.arg(format!("--encoding={encoding}"));
        }
        if *data_checksums {
            command.arg("--data-checksums");
        }
        command.arg("--no-sync");
        let result = binaries::run("initdb", command).await;
        process::remove_file(&file)?;
        result?;
        sync_data(self.dir.pgdata()).await?;
        info!(milliseconds = millis(started), "made a new instance");
        Ok(())
    }

    async fn apply_start_for_setup(&mut self, files: &Files) -> Result<()> {
        let pgdata = self.dir.pgdata();
        let temporary = pgdata.join("stolon-temp-postgresql.conf");
        let include = if pgdata.join("postgresql.conf").exists() { "include 'postgresql.conf'\n" } else { "" };
        write_file(&temporary, format!("{include}{}", files.conf).as_bytes())?;
        write_file(&pgdata.join("pg_hba.conf"), files.hba.as_bytes())?;
        // Nobody else may connect to it yet, and it must not wait for standbys.
        self.apply_start(vec![
            format!("config_file={}", temporary.display()),
            "listen_addresses=".into(),
            "synchronous_standby_names=".into(),
        ])
        .await
    }

    fn apply_mark_standby(&mut self) -> Result<()> {
        let signal = self.dir.pgdata().join("standby.signal");
        if signal.exists() { Ok(()) } else { write_file(&signal, b"") }
    }

    fn apply_write_files(&mut self, files: &Files) -> Result<()> {
        let Files { conf, hba } = files;
        let pgdata = self.dir.pgdata();
        self.reload_owed = true;
        write_file(&pgdata.join("postgresql.conf"), conf.as_bytes())?;
        write_file(&pgdata.join("pg_hba.conf"), hba.as_bytes())
    }

    async fn apply_start(&mut self, settings: Vec<String>) -> Result<()> {
        self.session.close().await;
        let pgdata = self.dir.pgdata();
        super::datadir::make_private_dir(&self.config.socket_dir)?;
        let options =
            StartOptions { binaries: &self.binaries, pgdata: &pgdata, socket_dir: &self.config.socket_dir, settings };
        let postmaster = process::start(&options).await?;
        info!(pid = postmaster.pid, "started postgres");
        self.set_postmaster(Some(postmaster));
        self.reload_owed = false;
        Ok(())
    }

    async fn apply_wait_ready(&mut self, limit: Duration, interest: &Interest) -> Result<()> {
        let Some(postmaster) = self.postmaster.clone() else { return Ok(()) };
        let pgdata = self.dir.pgdata();
        // Both branches are cancel-safe.
        let result = tokio::select! {
            result = process::wait_ready(&postmaster, &pgdata, limit) => result,
            () = self.interrupted(interest, true) => Ok(()),
        };
        self.acted();
        result
    }

    async fn apply_reload(&mut self, sync_names: &str) -> Result<()> {
        let Some(postmaster) = &self.postmaster else { return Ok(()) };
        process::reload(postmaster.pid)?;
        let ready = process::read_pid_file(&self.dir.pgdata()).is_some_and(|file| file.ready);
        if ready {
            let session = self.sql().await?;
            let deadline = Instant::now() + RELOAD_LIMIT;
            while session.setting("synchronous_standby_names").await? != sync_names {
                if Instant::now() > deadline {
                    return Err(KeeperError::Other(
                        "postgres did not take the new configuration; its own messages say which line is wrong".into(),
                    ));
                }
                tokio::time::sleep(POLL).await;
            }
        }
        self.reload_owed = false;
        self.acted();
        info!("postgres has read its configuration again");
        Ok(())
    }

    async fn apply_promote(&mut self) -> Result<()> {
        let started = Instant::now();
        let session = self.sql().await?;
        session.promote().await?;
        while session.in_recovery().await? {
            if started.elapsed() > PROMOTE_LIMIT {
                return Err(KeeperError::Other(
                    "the promotion takes longer than a minute; still waiting for it".into(),
                ));
            }
            tokio::time::sleep(POLL).await;
        }
        self.checkpoint_owed = true;
        self.acted();
        info!(milliseconds = millis(started), "promoted to primary");
        Ok(())
    }

    async fn apply_ensure_slots(&mut self, wanted: &BTreeSet<String>, required: bool) -> Result<()> {
        let result = match self.sql().await {
            Ok(session) => session.ensure_slots(wanted).await,
            Err(error) => Err(error),
        };
        match result {
            Err(error) if !required => {
                debug!(%error, "replication slots stay as they are for now");
                Ok(())
            }
            other => other,
        }
    }

    async fn apply_restart_if_pending(&mut self, automatic: bool) -> Result<()> {
        let pending = self.sql().await?.pending_restart().await?;
        if automatic && !pending.is_empty() {
            self.check_configuration().await?;
            warn!(parameters = pending.join(", "), "restarting postgres for changed parameters");
            self.apply_stop("changed parameters need a restart").await?;
            // Not started here: the next plan knows what has to hold before a start.
            return Err(KeeperError::NotYet("starting postgres again with the changed parameters".into()));
        }
        if self.restart_told != pending {
            if !pending.is_empty() {
                warn!(parameters = pending.join(", "), "changed parameters wait for a restart of postgres");
            }
            self.restart_told = pending;
        }
        Ok(())
    }

    /// A server that runs is worth more than one that was stopped for a configuration it can't start with.
    async fn check_configuration(&self) -> Result<()> {
        let mut command = self.binaries.command("postgres");
        command.arg("-D").arg(self.dir.pgdata()).args(["-C", "shared_buffers"]);
        binaries::run("postgres -C", command).await
    }

    /// Without it a rewind of the old primary would believe that nothing has to be rewound.
    fn apply_checkpoint(&mut self) -> Result<()> {
        self.checkpoint_owed = false;
        let target = Target { timeout: Duration::from_secs(600), ..self.target.clone() };
        // A session of its own: a checkpoint may take minutes.
        tokio::spawn(async move {
            let result = match sql::connect(&target, || ()).await {
                Ok(session) => session.checkpoint().await,
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                warn!(%error, "checkpoint after the promotion");
            }
        });
        Ok(())
    }

    async fn apply_resync(&mut self, resync: &Resync, interest: &Interest) -> Result<()> {
        let source = if resync.attempt == Attempt::BaseBackup {
            &resync.followed
        } else {
            resync.master.as_ref().unwrap_or(&resync.followed)
        };
        self.check_source(resync, source).await?;
        self.apply_save_state(DbState { uid: resync.db.clone(), initializing: true, ..Default::default() })?;
        let work = self.copy_data(resync, source);
        // Dropping the work kills the program that copies; what it leaves is marked as garbage.
        let view = self.interrupted(interest, false);
        let result = tokio::select! {
            result = work => result,
            () = view => Err(KeeperError::NotYet("the copy is given up: the cluster wants something else now".into())),
        };
        match result? {
            Copied::Ready => self.apply_write_standby(resync),
            Copied::Try => self.verify_or_back_up(resync, interest).await,
        }
    }

    fn apply_write_standby(&mut self, resync: &Resync) -> Result<()> {
        self.apply_mark_standby()?;
        self.apply_write_files(&resync.files)
    }

    /// The source must be a primary and have our slot before anything of ours is deleted.
    async fn check_source(&self, resync: &Resync, source: &Source) -> Result<()> {
        let not_yet =
            |why: String| Err(KeeperError::NotYet(format!("waiting for {}:{}: {why}", source.host, source.port)));
        let session = match self.connect_source(source).await {
            Ok(session) => session,
            Err(KeeperError::Sql { source: error, .. }) if refuses_user(&error) => {
                warn!("the source does not let the superuser in from here, copying from it without asking");
                return Ok(());
            }
            Err(error) => return not_yet(error.to_string()),
        };
        if resync.attempt != Attempt::BaseBackup {
            if session.in_recovery().await? {
                return not_yet("it is not promoted yet".into());
            }
            session.checkpoint().await?;
        }
        if *source == resync.followed && !session.slots().await?.contains(&resync.slot) {
            return not_yet(format!("its keeper has not created the replication slot {} yet", resync.slot));
        }
        Ok(())
    }

    async fn source_history(&self, source: &Source) -> Result<Vec<TimelineHistory>> {
        let session = self.connect_source(source).await?;
        let timeline = session.snapshot().await?.timeline;
        Ok(parse_history(&session.history(timeline).await?))
    }

    async fn connect_source(&self, source: &Source) -> Result<Session> {
        let port = source.port.parse();
        let port = port.map_err(|_| {
            KeeperError::Other(format!("the port \"{}\" of the followed db is not a number", source.port))
        })?;
        let target = Target { host: source.host.clone(), port, ..self.target.clone() };
        sql::connect(&target, || ()).await
    }

    async fn copy_data(&self, resync: &Resync, source: &Source) -> Result<Copied> {
        match resync.attempt {
            Attempt::BaseBackup => {}
            Attempt::Start => return Ok(Copied::Try),
            Attempt::Rewind => match self.rewind(resync, source).await {
                Ok(()) => return Ok(Copied::Try),
                Err(error) => warn!(%error, "the rewind failed, making a base backup instead"),
            },
        }
        self.base_backup(resync).await?;
        Ok(Copied::Ready)
    }

    async fn rewind(&self, resync: &Resync, source: &Source) -> Result<()> {
        let started = Instant::now();
        let pgdata = self.dir.pgdata();
        // A link here but a file there would stop pg_rewind.
        process::remove_file(&pgdata.join("postgresql.auto.conf"))?;
        // Single-user recovery, which pg_rewind runs after a crash, refuses to work with it.
        process::remove_file(&pgdata.join("standby.signal"))?;
        let passfile = self.setup.passfile.as_deref();
        let conninfo = conninfo::tool(source, &self.config.su.user, &resync.slot, passfile, "postgres");
        let mut command = self.binaries.command("pg_rewind");
        command.arg("-D").arg(&pgdata).arg(format!("--source-server={conninfo}")).arg("--no-sync");
        binaries::run("pg_rewind", command).await?;
        sync_data(pgdata).await?;
        info!(milliseconds = millis(started), "rewound to the primary's history");
        Ok(())
    }

    async fn base_backup(&self, resync: &Resync) -> Result<()> {
        let started = Instant::now();
        self.wipe()?;
        let passfile = self.setup.passfile.as_deref();
        let conninfo = conninfo::tool(&resync.followed, &self.config.repl.user, &resync.slot, passfile, "");
        let mut command = self.binaries.command("pg_basebackup");
        command.arg("-D").arg(self.dir.pgdata()).arg("-d").arg(conninfo).arg("--slot").arg(&resync.slot);
        command.args(["-X", "stream", "--checkpoint=fast", "-w", "--no-sync"]);
        match binaries::run("pg_basebackup", command).await {
            Ok(()) => {
                sync_data(self.dir.pgdata()).await?;
                info!(milliseconds = millis(started), "made a base backup");
            }
            Err(KeeperError::Tool { tail, .. })
                if tail.contains("replication slot") && tail.contains("does not exist") =>
            {
                return Err(KeeperError::NotYet(
                    "the followed db's keeper has not created our replication slot yet".into(),
                ));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Starts data that should be able to follow; if it can't, makes a base backup.
    async fn verify_or_back_up(&mut self, resync: &Resync, interest: &Interest) -> Result<()> {
        self.apply_write_standby(resync)?;
        match self.verify(resync).await {
            Ok(()) => Ok(()),
            Err(error) => {
                warn!(%error, "the old data can't follow, making a base backup instead");
                self.apply_stop("its data can't follow").await?;
                let result = tokio::select! {
                    result = self.base_backup(resync) => result,
                    () = self.interrupted(interest, false) => Err(KeeperError::NotYet("the copy is given up: the cluster wants something else now".into())),
                };
                result?;
                self.apply_write_standby(resync)
            }
        }
    }

    async fn verify(&mut self, resync: &Resync) -> Result<()> {
        self.apply_start(Vec::new()).await?;
        let Some(postmaster) = self.postmaster.clone() else { return Ok(()) };
        process::wait_ready(&postmaster, &self.dir.pgdata(), resync.ready_limit).await?;
        let deadline = Instant::now() + STREAM_LIMIT;
        // Where the followed server's timelines end; unknown if it can't be asked.
        let history = self.source_history(&resync.followed).await.unwrap_or_default();
        loop {
            let snapshot = self.sql().await?.snapshot().await?;
            if is_other_branch(snapshot.timeline, snapshot.lsn, &history) {
                return Err(KeeperError::Other("it went on where the followed db's timeline turned off".into()));
            }
            if snapshot.receiving && snapshot.timeline >= resync.timeline {
                return Ok(());
            }
            if Instant::now() > deadline {
                // A source that is gone is no fault of our data.
                return match self.connect_source(&resync.followed).await {
                    Ok(_) => Err(KeeperError::Other("it does not stream from the followed db".into())),
                    Err(_) => Ok(()),
                };
            }
            tokio::time::sleep(POLL * 2).await;
        }
    }
}

/// Makes everything that a program wrote with `--no-sync` durable. One call per file system takes a tenth of the time
/// that the programs' own thousand calls, one per file, take.
async fn sync_data(pgdata: PathBuf) -> Result<()> {
    let work = tokio::task::spawn_blocking(move || {
        let linked =
            std::fs::read_dir(pgdata.join("pg_tblspc")).into_iter().flatten().flatten().map(|entry| entry.path());
        for directory in [pgdata.clone(), pgdata.join("pg_wal")].into_iter().chain(linked) {
            let sync = || Ok(nix::unistd::syncfs(std::fs::File::open(&directory)?)?);
            io(sync(), "sync", &directory)?;
        }
        Ok(())
    });
    work.await.unwrap_or_else(|error| Err(KeeperError::Other(format!("sync the data directory: {error}"))))
}

/// The server answered, but this user may not connect from here.
fn refuses_user(error: &tokio_postgres::Error) -> bool {
    // Class 28: invalid authorization.
    error.code().is_some_and(|code| code.code().starts_with("28"))
}

/// What copying ended with.
enum Copied {
    /// A base backup: good by itself.
    Ready,
    /// The old data, which has to prove that it can follow.
    Try,
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
