//! Steps and their effects: one function per kind of step.

use super::datadir::{DbState, write_file};
use super::error::{KeeperError, Result, io};
use super::machine::{Interest, Machine};
use super::pauses::Pauses;
use super::plan::{Files, Step};
use super::postgres::binaries;
use super::postgres::conf;
use super::postgres::in_force::{self, Backend, Senders};
use super::postgres::process::{self, Postmaster, StartOptions};
use super::postgres::sql::{self, Session, Target};
use super::{observe, restore, trash, waldir};
use chrono::Utc;
use model::DbUid;
use model::stolon::{NewConfig, Problem};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// How long a promotion may take before the pass is given up (PostgreSQL goes on with it).
const PROMOTE_LIMIT: Duration = Duration::from_secs(60);
/// How long is waited for a session that does not take the files.
const READING_LIMIT: Duration = Duration::from_secs(1);
/// How long PostgreSQL may take to read its files.
const RELOAD_LIMIT: Duration = Duration::from_secs(5);

/// More than the pause between the writes of a slow checkpoint.
const SLOW_WRITE: Duration = Duration::from_millis(120);

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
                let state = DbState { uid, init_pg_parameters, ..Default::default() };
                self.apply_save_state(state)?;
                process::remove_file(&self.dir.pgdata().join(super::resync::COPIED))?;
                self.dir.save_restore(None)
            }
            Step::Stop(why) => self.apply_stop(why).await,
            Step::TellHandedOver(handed_over) => self.apply_save_state(DbState { handed_over, ..self.state.clone() }),
            Step::EndSessions => self.apply_end_sessions().await,
            Step::MoveAway(reason) => trash::move_away(self.dir.root(), &self.dir.pgdata(), reason, Utc::now()),
            Step::DeleteGarbage => self.apply_delete_garbage().await,
            Step::Initdb(config) => self.apply_initdb(&config).await,
            Step::StartForSetup(files) => self.apply_start_for_setup(&files).await,
            Step::ReadParameters => {
                self.parameters = Some(super::postgres::conf::reported(
                    self.sql().await?.file_parameters().await?,
                    &self.watched.borrow().user_parameters,
                ));
                Ok(())
            }
            Step::KeepConfiguration => restore::keep_configuration(&self.dir.pgdata()),
            Step::CheckRoles => self.apply_check_roles().await,
            Step::Restore { db, command } => self.apply_restore(db, command, interest).await,
            Step::Recover(recover) => self.apply_recover(&recover, interest).await,
            Step::SetUpRoles => self.sql().await?.set_up_roles(&self.config.su, &self.config.repl).await,
            Step::CheckSource(resync) => self.apply_check_source(&resync).await.map(|_| ()),
            Step::Resync(resync) => self.apply_resync(&resync, interest).await,
            Step::SetSyncWait(wait) => {
                if wait {
                    info!("normal users are kept out until the synchronous standbys are in sync");
                }
                self.sync_wait = Some(wait);
                Ok(())
            }
            Step::MarkStandby => self.apply_mark_standby(),
            Step::MarkPrimary => restore::mark_primary(&self.dir.pgdata()),
            Step::WriteFiles(files) => {
                self.check_files(&files).await?;
                self.apply_write_files(&files)
            }
            Step::Start => {
                let started = self.apply_start(Vec::new()).await;
                self.judge_start(started)
            }
            Step::WaitReady(limit) => {
                let ready = self.apply_wait_ready(limit, interest).await;
                self.judge_start(ready)
            }
            Step::Reload { sync_names } => self.apply_reload(&sync_names).await,
            Step::Promote => self.apply_promote(interest).await,
            Step::EnsureSlots { wanted, additional, required } => {
                self.apply_ensure_slots(&wanted, &additional, required).await
            }
            Step::RestartIfPending { automatic } => self.apply_restart_if_pending(automatic).await,
            Step::Checkpoint => self.apply_checkpoint(),
            Step::PrepareOrder(id) => {
                self.apply_prepare_order(id);
                Ok(())
            }
            Step::StopForOrder(id) => self.apply_stop_for_order(id).await,
            Step::TellObeyed(id) => {
                self.apply_tell_obeyed(id);
                Ok(())
            }
        }
    }

    fn apply_save_cluster_uid(&mut self, uid: String) -> Result<()> {
        info!(cluster_uid = uid, "this keeper belongs to the cluster");
        self.keeper.cluster_uid = uid;
        self.dir.save_keeper(&self.keeper)?;
        self.tell();
        Ok(())
    }

    pub(super) fn apply_save_state(&mut self, state: DbState) -> Result<()> {
        self.dir.save_db(&state)?;
        // A report of a generation rests on a look that was made after it was applied: the sentinel counts one up to
        // learn the position that an instance has now.
        if state.generation != self.state.generation {
            self.acted();
        }
        self.state = state;
        self.tell();
        Ok(())
    }

    pub(super) async fn apply_stop(&mut self, why: &str) -> Result<()> {
        info!(why, "stopping postgres");
        self.session.close().await;
        process::stop(&self.dir.pgdata()).await?;
        self.set_postmaster(None);
        Ok(())
    }

    async fn apply_initdb(&mut self, config: &NewConfig) -> Result<()> {
        let started = Instant::now();
        let mut command = self.binaries.command("initdb");
        command.arg("-D").arg(self.dir.pgdata()).arg("-U").arg(&self.config.su.user);
        let access = self.config.su.access;
        command.arg(format!("--auth-local={}", access.local.as_str()));
        command.arg(format!("--auth-host={}", access.method.as_str()));
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
        command.arg("--no-sync").args(self.fresh_wal_dir());
        command.stdin(self.dir.work_stdin()?).process_group(0);
        let result = binaries::run("initdb", command).await;
        process::remove_file(&file)?;
        result?;
        sync_data(self.dir.pgdata()).await?;
        info!(milliseconds = millis(started), "made a new instance");
        Ok(())
    }

    async fn apply_start_for_setup(&mut self, files: &Files) -> Result<()> {
        self.start_for_setup(files, "", "", Vec::new()).await
    }

    /// Starts with a configuration of its own: `before`, what the instance had, the db's files, `after`.
    pub(super) async fn start_for_setup(
        &mut self,
        files: &Files,
        before: &str,
        after: &str,
        more: Vec<String>,
    ) -> Result<()> {
        let pgdata = self.dir.pgdata();
        let temporary = pgdata.join("stolon-temp-postgresql.conf");
        let include = if pgdata.join("postgresql.conf").exists() { "include 'postgresql.conf'\n" } else { "" };
        write_file(&temporary, format!("{before}{include}{}{after}", files.conf).as_bytes())?;
        write_file(&pgdata.join("pg_hba.conf"), files.hba.as_bytes())?;
        // Nobody else may connect to it yet, and it must not wait for standbys.
        let mut settings = vec![
            format!("config_file={}", temporary.display()),
            "listen_addresses=".into(),
            "synchronous_standby_names=".into(),
            // The configuration that is underneath may be of a place where these were elsewhere.
            format!("data_directory={}", pgdata.display()),
            format!("hba_file={}", pgdata.join("pg_hba.conf").display()),
            // PostgreSQL would complain about an empty name.
            format!("external_pid_file={}", pgdata.join("stolon-temp.pid").display()),
        ];
        settings.extend(more);
        self.apply_start(settings).await
    }

    pub(super) fn apply_mark_standby(&mut self) -> Result<()> {
        restore::mark_standby(&self.dir.pgdata())
    }

    pub(super) fn apply_write_files(&mut self, files: &Files) -> Result<()> {
        let Files { conf, hba } = files;
        let pgdata = self.dir.pgdata();
        self.reload_owed = true;
        write_changed(&pgdata.join("postgresql.conf"), conf)?;
        write_changed(&pgdata.join("pg_hba.conf"), hba)
    }

    pub(super) async fn apply_start(&mut self, settings: Vec<String>) -> Result<()> {
        self.session.close().await;
        self.place_wal().await;
        let pgdata = self.dir.pgdata();
        super::datadir::ensure_socket_dir(&self.config.socket_dir, self.dir.root())?;
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

    /// For programs that make an instance.
    pub(super) fn fresh_wal_dir(&self) -> Option<String> {
        let dir = self.config.wal_dir.as_deref()?;
        Some(format!("--waldir={}", waldir::fresh(dir, Utc::now()).display()))
    }

    /// Moves the WAL if the flag has changed. If it can't be moved, having it in the old place is better than nothing.
    async fn place_wal(&self) {
        let (pgdata, wal_dir) = (self.dir.pgdata(), self.config.wal_dir.clone());
        let work = tokio::task::spawn_blocking(move || waldir::settle(&pgdata, wal_dir.as_deref(), Utc::now()));
        if let Ok(Err(error)) = work.await {
            warn!(%error, "the WAL could not be moved, going on with it in its old place");
        }
    }

    /// What a start says about the configuration.
    fn judge_start(&mut self, result: Result<()>) -> Result<()> {
        let ended = self.postmaster.as_ref().is_none_or(Postmaster::has_ended);
        let ready = process::read_pid_file(&self.dir.pgdata()).is_some_and(|file| file.ready);
        match result {
            Err(_) if ended => self.blame_parameters(),
            // The temporary file of the first setup proves nothing.
            Ok(()) if ready && !self.state.initializing => {
                self.report(Problem::HBA_REFUSED, None);
                self.keep_good_conf()?;
            }
            _ => {}
        }
        result
    }

    async fn apply_reload(&mut self, sync_names: &str) -> Result<()> {
        let Some(postmaster) = self.postmaster.clone() else { return Ok(()) };
        let wanted = conf::synchronous_dbs(sync_names);
        // Those that stay keep their floor: commits never cease to wait for them.
        self.watched.send_modify(|watched| watched.floors.retain(|db, _| wanted.contains(db)));
        // Names that are in force, and are the same in the files, stay in force while these are read again.
        let proven = self.names_in_force.take().filter(|proven| *proven == (postmaster.pid, sync_names.to_owned()));
        let ready = process::read_pid_file(&self.dir.pgdata()).is_some_and(|file| file.ready);
        let session = if ready { Some(self.sql().await?) } else { None };
        let read = match &session {
            Some(session) => Some(session.configured_at().await?),
            None => None,
        };
        process::reload(postmaster.pid)?;
        if let (Some(session), Some(read)) = (session, read) {
            wait_for_reading(&session, &read).await?;
            if proven.is_none() {
                wait_for_names(&session, sync_names).await?;
            }
            self.names_in_force = Some((postmaster.pid, sync_names.to_owned()));
            self.set_floors(&session, &wanted).await?;
        }
        if ready {
            let wrong = self.sql().await?.hba_errors().await?;
            let text = wrong.map(|wrong| {
                format!("lines of pg_hba.conf are wrong, the old ones hold until postgres is restarted; correct pgHBA: {wrong}")
            });
            if let Some(text) = &text {
                warn!("{text}");
            }
            self.report(Problem::HBA_REFUSED, text);
        }
        self.reload_owed = false;
        self.acted();
        info!("postgres has read its configuration again");
        Ok(())
    }

    /// Whoever is connected to a former master past the proxies would write what is thrown away.
    async fn apply_end_sessions(&self) -> Result<()> {
        let ended = self.sql().await?.end_sessions(&self.config.su.user, &self.config.repl.user).await?;
        if ended > 0 {
            info!(sessions = ended, "another db is to be master: ended the sessions of this one");
        }
        Ok(())
    }

    /// Read after it was proven that commits wait for these: those beyond the position of now do. A standby has none.
    async fn set_floors(&self, session: &Session, wanted: &BTreeSet<DbUid>) -> Result<()> {
        if let Some(position) = session.flushed().await? {
            self.watched.send_modify(|watched| {
                for db in wanted {
                    watched.floors.entry(db.clone()).or_insert(position);
                }
            });
        }
        Ok(())
    }

    async fn apply_promote(&mut self, interest: &Interest) -> Result<()> {
        // What went before may have taken long, and somebody else been elected meanwhile.
        if self.changed_since(interest) {
            return Err(KeeperError::NotYet("not promoting: the cluster wants something else now".into()));
        }
        let (started, mut pauses) = (Instant::now(), Pauses::new());
        let session = self.sql().await?;
        session.promote().await?;
        while session.in_recovery().await? {
            if started.elapsed() > PROMOTE_LIMIT {
                return Err(KeeperError::Other(
                    "the promotion takes longer than a minute; still waiting for it".into(),
                ));
            }
            pauses.pause().await;
        }
        self.checkpoint_owed = true;
        // The new timeline's commits are counted anew. Where commits were proven to wait before the promotion, they
        // do now, and nobody need wait for another proof.
        self.watched.send_modify(|watched| watched.floors.clear());
        let pid = self.postmaster.as_ref().map(|postmaster| postmaster.pid);
        if let Some((_, names)) = self.names_in_force.clone().filter(|(proven, _)| pid == Some(*proven)) {
            self.set_floors(&session, &conf::synchronous_dbs(&names)).await?;
        }
        self.acted();
        info!(milliseconds = millis(started), "promoted to primary");
        Ok(())
    }

    async fn apply_ensure_slots(
        &mut self,
        wanted: &BTreeSet<String>,
        additional: &BTreeSet<String>,
        required: bool,
    ) -> Result<()> {
        let result = match self.sql().await {
            Ok(session) => session.ensure_slots(wanted, additional).await,
            Err(error) => Err(error),
        };
        match result {
            Err(error) if !required => {
                debug!(%error, "replication slots stay as they are for now");
                Ok(())
            }
            Err(error) => Err(error),
            Ok(lacking) => {
                let text = lacking
                    .map(|why| format!("additionalMasterReplicationSlots: {why}; raise maxStandbys, or ask for fewer"));
                if text.is_some() && text != self.slots_told {
                    warn!("{}", text.clone().unwrap_or_default());
                }
                self.slots_told.clone_from(&text);
                self.report(Problem::SLOTS_LACKING, text);
                Ok(())
            }
        }
    }

    async fn apply_restart_if_pending(&mut self, automatic: bool) -> Result<()> {
        let pending = self.sql().await?.pending_restart().await?;
        let lowered = pending.iter().any(|(_, lowered)| *lowered);
        let pending: Vec<String> = pending.into_iter().map(|(name, _)| name).collect();
        let overdue = self.orders.is_overdue(automatic && !pending.is_empty());
        if overdue {
            self.check_configuration().await?;
            warn!(parameters = pending.join(", "), "restarting postgres for changed parameters");
            self.apply_stop("changed parameters need a restart").await?;
            // Not started here: the next plan knows what has to hold before a start.
            return Err(KeeperError::NotYet("starting postgres again with the changed parameters".into()));
        }
        let names = pending.join(", ");
        let text = (!pending.is_empty())
            .then(|| format!("changed parameters wait for a restart of postgres (`stolonctl restart`): {names}"));
        self.report(Problem::RESTART_PENDING, text);
        let first = "a standby does not start with less than its primary has, so the master has to be restarted first";
        self.report(Problem::RESTART_LOWERS, lowered.then(|| first.to_owned()));
        Ok(())
    }

    /// A server that runs is worth more than one that was stopped for a configuration it can't start with.
    pub(super) async fn check_configuration(&self) -> Result<()> {
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
}

/// A file that was written by us before is on the disk already.
fn write_changed(path: &Path, text: &str) -> Result<()> {
    let same = observe::read_text(path).as_deref() == Some(text);
    if same { Ok(()) } else { write_file(path, text.as_bytes()) }
}

/// Waits until the session has read the files anew: before that it does not know which parameters wait for a restart.
/// Files with an error it never takes; that is told elsewhere.
async fn wait_for_reading(session: &Session, before: &str) -> Result<()> {
    let (deadline, mut pauses) = (Instant::now() + READING_LIMIT, Pauses::new());
    while session.configured_at().await? == before && Instant::now() < deadline {
        pauses.pause().await;
    }
    Ok(())
}

/// Waits until the names are in force: the session shows them and, if there are any, the checkpointer has made commits
/// wait, and senders let none pass by the names before.
async fn wait_for_names(session: &Session, names: &str) -> Result<()> {
    let (deadline, mut pauses) = (Instant::now() + RELOAD_LIMIT, Pauses::new());
    while session.setting("synchronous_standby_names").await? != names {
        if Instant::now() > deadline {
            return Err(KeeperError::Other(
                "postgres did not take the new configuration; its own messages say which line is wrong".into(),
            ));
        }
        pauses.pause().await;
    }
    let mut asked = None;
    while !names.is_empty() {
        match session.checkpointer().await? {
            Some(Backend { pid, .. }) if asked != Some(pid) => asked = in_force::ask(pid).then_some(pid),
            Some(Backend { pid, .. }) if has_read_files(session, pid).await? => break,
            _ => {}
        }
        unread("checkpointer has", deadline)?;
        pauses.pause().await;
    }
    let (mut senders, mut pauses) = (Senders::default(), Pauses::new());
    while !names.is_empty() && !senders.update(&session.senders().await?, in_force::ask, in_force::took_signal) {
        unread("senders to standbys have", deadline)?;
        pauses.pause().await;
    }
    Ok(())
}

fn unread(who: &str, deadline: Instant) -> Result<()> {
    if Instant::now() <= deadline {
        return Ok(());
    }
    Err(KeeperError::NotYet(format!(
        "postgres's {who} not read the new synchronous standbys yet, so commits may not wait for them"
    )))
}

/// A checkpointer that was signalled has taken the signal, and rests both before and after it was seen asleep: it was
/// not asleep in the middle of reading its files.
async fn has_read_files(session: &Session, pid: i32) -> Result<bool> {
    if !in_force::took_signal_and_sleeps(pid) {
        return Ok(false);
    }
    let Some(checkpointer) = session.checkpointer().await?.filter(in_force::rests) else { return Ok(false) };
    if in_force::is_writing(&checkpointer) {
        // Some releases sleep there without noticing a signal that came right before.
        tokio::time::sleep(SLOW_WRITE).await;
    }
    let calm = in_force::took_signal_and_sleeps(pid);
    Ok(calm && session.checkpointer().await?.is_some_and(|now| now.pid == pid && in_force::rests(&now)))
}

/// Makes everything that a program wrote with `--no-sync` durable. One call per file system takes a tenth of the time
/// that the programs' own thousand calls, one per file, take.
pub(super) async fn sync_data(pgdata: PathBuf) -> Result<()> {
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

pub(super) fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
