//! Becoming a standby of another db: with the own data if it can follow, else with a copy.
//!
//! Nothing of ours changes before the source was asked, and the old data goes, to trash, when the new copy is complete.

use super::apply::{millis, sync_data};
use super::datadir::{DbState, Rewinding, write_file};
use super::disk;
use super::error::{KeeperError, Result, io};
use super::lineage::{self, Former};
use super::machine::{Interest, Machine};
use super::observe::{observe_data, read_text};
use super::plan::{Attempt, Data, Resync};
use super::postgres::conninfo::{self, Secrets, Source};
use super::postgres::sql::{self, Session, Target};
use super::postgres::{binaries, control, process};
use super::probe::{is_other_branch, parse_history};
use super::rewind::{self, Verdict};
use super::trash;
use chrono::Utc;
use model::DbUid;
use model::stolon::TimelineHistory;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{info, warn};

/// Pause while waiting for our own PostgreSQL to get on.
const POLL: Duration = Duration::from_millis(40);
/// How long a rewound standby may take to stream from a server that can be reached.
const STREAM_LIMIT: Duration = Duration::from_secs(20);

/// How long data that should be able to follow may take to start before it is given up for a copy.
const FIRST_START_LIMIT: Duration = Duration::from_secs(3600);
/// How long a crashed postmaster may take to vanish from the table of processes.
const GONE_LIMIT: Duration = Duration::from_secs(10);
/// Longest pause between attempts to become a standby.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Failures of pg_rewind for reasons that nobody knows, until a copy is made instead.
const UNKNOWN_FAILURES: u32 = 3;
/// Room that a copy needs besides data: WAL that comes meanwhile.
const ROOM_BESIDE_COPY: u64 = 64 << 20;
/// In a copy: it is complete, and for which db.
pub(super) const COPIED: &str = "stolon-copied";

/// Failed attempts to become a standby.
#[derive(Clone, Debug)]
pub(super) struct Failures {
    db: DbUid,
    count: u32,
    next: Instant,
}

/// The pause after so many failures in a row.
fn pause_after(count: u32) -> Duration {
    Duration::from_secs(1 << count.min(16)).min(LONGEST_PAUSE)
}

impl Resync {
    /// Where a rewind gets what is missing: the master, since a standby can't be asked for it.
    fn rewind_source(&self) -> (&DbUid, &Source) {
        (&self.master.0, &self.master.1)
    }
}

impl Machine {
    /// Asks the source whether it can give what is wanted, and says how; nothing of ours changes.
    pub(super) async fn apply_check_source(&mut self, resync: &Resync) -> Result<Attempt> {
        // The sentinel has to see that this keeper is at work: with strict access the source lets us in only after that.
        self.set_at_work(resync.db.clone());
        if resync.attempt == Attempt::BaseBackup {
            self.check_copy(resync).await?;
            return Ok(Attempt::BaseBackup);
        }
        let (_, source) = resync.rewind_source();
        let session = self.ask(source).await?;
        if session.in_recovery().await? && !resync.standby_master {
            return not_yet(source, "it is not promoted yet");
        }
        let own = control::read(&self.dir.pgdata()).map(|control| control.system_id.to_string());
        if own != Some(session.snapshot().await?.system_id) {
            return not_yet(source, "it is another system than the data here");
        }
        let other = session.snapshot().await?;
        // What a rewind was begun with was judged before.
        if self.state.rewinding.is_none() && !self.can_follow(resync, source, &session, other.timeline).await? {
            self.check_copy(resync).await?;
            return Ok(Attempt::BaseBackup);
        }
        session.checkpoint().await?;
        if *source == resync.followed {
            check_slot(resync, source, &session).await?;
        }
        Ok(resync.attempt)
    }

    /// Whether the data here may be taken for an earlier part of a promoted source's.
    async fn can_follow(&self, resync: &Resync, source: &Source, session: &Session, timeline: u64) -> Result<bool> {
        if let Some(verdict) = self.check_own_primary(resync, source, session).await? {
            return Ok(verdict == lineage::Verdict::Rewind);
        }
        let pgdata = self.dir.pgdata();
        let Some(control) = control::read(&pgdata) else { return Ok(false) };
        let own = lineage::newest_timeline(&pgdata, control.timeline);
        let shared = lineage::is_shared(&pgdata, own, session, timeline).await? != Some(false);
        if !shared {
            warn!(timeline = own, "the data here is of another timeline with that number, it is replaced by a copy");
        }
        Ok(shared)
    }

    /// As [`Self::apply_check_source`], for a copy.
    async fn check_copy(&self, resync: &Resync) -> Result<Session> {
        let source = &resync.followed;
        let session = self.ask(source).await?;
        self.check_own_primary(resync, source, &session).await?;
        check_slot(resync, source, &session).await?;
        Ok(session)
    }

    /// What may be done with the data here if a primary wrote it, which may hold what nobody else has.
    async fn check_own_primary(
        &self,
        resync: &Resync,
        source: &Source,
        session: &Session,
    ) -> Result<Option<lineage::Verdict>> {
        let running = process::find(&self.dir.pgdata()).is_some_and(|file| file.ready);
        let recovering = if running { Some(self.sql().await?.in_recovery().await?) } else { None };
        // What an interrupted copy or rewind left is nobody's.
        let Data::Present { control, standby: false, .. } = observe_data(&self.dir.pgdata(), recovering) else {
            return Ok(None);
        };
        let other = session.snapshot().await?;
        if self.state.initializing || control.system_id.to_string() != other.system_id {
            return Ok(None);
        }
        if other.in_recovery && !resync.standby_master {
            return if running { not_yet(source, "it is not promoted yet, and a primary runs here") } else { Ok(None) };
        }
        let timeline = lineage::newest_timeline(&self.dir.pgdata(), control.timeline);
        let DbState { primary, announced, .. } = self.state;
        let unannounced = primary == Some(false) || announced.is_some_and(|announced| announced < timeline);
        let verdict = Former { timeline, unannounced }.beside(other.timeline);
        match verdict {
            lineage::Verdict::Leave => Err(KeeperError::Other(format!(
                "the data here is a primary's on timeline {timeline}, but {}:{} is on {} only, so it is left alone; decide which one \
                 is right and, if it is the other, stop this keeper and move its directory away",
                source.host, source.port, other.timeline
            ))),
            lineage::Verdict::Rewind | lineage::Verdict::Copy => {
                if unannounced {
                    info!(timeline, "giving up a promotion that the cluster was never told of");
                }
                Ok(Some(verdict))
            }
        }
    }

    /// Makes the data that of a standby.
    pub(super) async fn apply_resync(&mut self, resync: &Resync, interest: &Interest) -> Result<()> {
        if self.is_copied(&self.dir.pgdata(), resync) {
            info!("the copy was complete already when its making was interrupted");
            return Ok(());
        }
        self.check_pause(resync)?;
        let attempt = self.apply_check_source(resync).await?;
        let result = self.try_resync(resync, attempt, interest).await;
        self.count_failure(resync, &result);
        result
    }

    async fn try_resync(&mut self, resync: &Resync, attempt: Attempt, interest: &Interest) -> Result<()> {
        let able = match attempt {
            Attempt::BaseBackup => false,
            // Starting and following changes nothing that another attempt could not begin with.
            Attempt::Start => self.rewinds_from(resync).await?.is_some(),
            Attempt::Rewind => self.rewind_or_give_up(resync, interest).await?,
        };
        if able { self.verify_or_copy(resync, interest).await } else { self.copy(resync, interest).await }
    }

    /// The timeline of the source; `None` if the data was being rewound from another one, so that nothing but a copy helps.
    async fn rewinds_from(&self, resync: &Resync) -> Result<Option<u64>> {
        let Some(begun) = &self.state.rewinding else { return Ok(Some(resync.timeline)) };
        let (db, source) = resync.rewind_source();
        let timeline = self.ask(source).await?.snapshot().await?.timeline;
        let same = begun.source == *db && begun.timeline == timeline;
        if !same {
            warn!(source = %begun.source, timeline = begun.timeline, "a rewind was begun with another source, making a base backup");
        }
        Ok(same.then_some(timeline))
    }

    /// `false`: a copy has to be made.
    async fn rewind_or_give_up(&mut self, resync: &Resync, interest: &Interest) -> Result<bool> {
        if self.rewinds_from(resync).await?.is_none() {
            return Ok(false);
        }
        let (db, source) = resync.rewind_source();
        let session = self.ask(source).await?;
        let begun = Rewinding { source: db.clone(), timeline: session.snapshot().await?.timeline, done: false };
        self.make_room(&session, None).await?;
        self.mark_rewinding(resync, begun.clone())?;
        match self.unless_changed(interest, self.rewind(resync, source)).await {
            Ok(()) => {
                self.mark_rewinding(resync, Rewinding { done: true, ..begun })?;
                Ok(true)
            }
            Err(KeeperError::Tool { tail, .. }) if self.repeats(resync, rewind::judge(&tail)) => {
                Err(KeeperError::Other(format!("the rewind did not get through and will be repeated: {tail}")))
            }
            Err(error @ KeeperError::Tool { .. }) => {
                warn!(%error, "the data can't be rewound, making a base backup instead");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// A failed rewind is tried again.
    fn repeats(&self, resync: &Resync, verdict: Verdict) -> bool {
        let failed = self.failures.as_ref().filter(|failures| failures.db == resync.db).map_or(0, |f| f.count);
        match verdict {
            Verdict::Hindered => true,
            Verdict::Impossible => false,
            Verdict::Unknown => failed + 1 < UNKNOWN_FAILURES,
        }
    }

    fn mark_rewinding(&mut self, resync: &Resync, rewinding: Rewinding) -> Result<()> {
        let rewinding = Some(rewinding);
        self.apply_save_state(DbState { uid: resync.db.clone(), initializing: true, rewinding, ..Default::default() })
    }

    /// Deletes replaced copies, oldest first, while there is less room than wanted. `session` leads to an instance that
    /// has all the data, so that none of them is the last copy of it.
    async fn make_room(&self, session: &Session, wanted: Option<u64>) -> Result<()> {
        let Ok(system_id) = session.snapshot().await?.system_id.parse() else { return Ok(()) };
        let root = self.dir.root().to_owned();
        let work = tokio::task::spawn_blocking(move || {
            trash::make_room(&root, system_id, || match wanted {
                Some(wanted) => disk::room(&root).is_ok_and(|free| free < wanted),
                None => disk::is_low(&root),
            })
        });
        work.await.unwrap_or_else(|error| Err(KeeperError::Other(format!("make room: {error}"))))
    }

    /// A complete copy for this db lies here: whatever happened since, it need not be made again.
    fn is_copied(&self, directory: &Path, resync: &Resync) -> bool {
        read_text(&directory.join(COPIED)).is_some_and(|db| db == *resync.db.as_str())
    }

    /// A copy that fails late would load the source endlessly.
    fn check_pause(&self, resync: &Resync) -> Result<()> {
        match &self.failures {
            Some(Failures { db, next, .. }) if *db == resync.db && Instant::now() < *next => Err(KeeperError::Other(
                "becoming a standby failed; it is tried again after a pause that doubles with each failure, 5 min at most".into(),
            )),
            _ => Ok(()),
        }
    }

    fn count_failure(&mut self, resync: &Resync, result: &Result<()>) {
        self.failures = match (result, self.failures.take()) {
            (Ok(()), _) => None,
            // Nothing was tried, or it was given up for something better.
            (Err(KeeperError::NotYet(_)), failures) => failures,
            (Err(error), failures) => {
                let count =
                    failures.filter(|failures| failures.db == resync.db).map_or(0, |failures| failures.count) + 1;
                let pause = pause_after(count);
                warn!(%error, seconds = pause.as_secs(), "becoming a standby failed, trying again after a pause");
                Some(Failures { db: resync.db.clone(), count, next: Instant::now() + pause })
            }
        };
    }

    /// From here to the end of the initialisation the data directory is neither the old db's nor the new one's.
    fn mark_unusable(&mut self, resync: &Resync) -> Result<()> {
        self.apply_save_state(DbState { uid: resync.db.clone(), initializing: true, ..Default::default() })
    }

    /// Dropping the work kills the program that copies.
    pub(super) async fn unless_changed<T>(
        &self,
        interest: &Interest,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tokio::select! {
            result = work => result,
            () = self.interrupted(interest, false) => {
                Err(KeeperError::NotYet("the copy is given up: the cluster wants something else now".into()))
            }
        }
    }

    async fn rewind(&self, resync: &Resync, source: &Source) -> Result<()> {
        let started = Instant::now();
        let pgdata = self.dir.pgdata();
        process::wait_gone(&pgdata, GONE_LIMIT).await;
        // A link here but a file there would stop pg_rewind.
        process::remove_file(&pgdata.join("postgresql.auto.conf"))?;
        // Single-user recovery, which pg_rewind runs after a crash, refuses to work with it.
        process::remove_file(&pgdata.join("standby.signal"))?;
        let conninfo = conninfo::tool(source, &self.config.su.user, &resync.slot, &self.secrets(), "postgres");
        let mut command = self.binaries.command("pg_rewind");
        // Its words decide what happens next.
        command.env("LC_ALL", "C");
        command.arg("-D").arg(&pgdata).arg(format!("--source-server={conninfo}")).arg("--no-sync");
        command.stdin(self.dir.work_stdin()?).process_group(0);
        binaries::run("pg_rewind", command).await?;
        sync_data(pgdata).await?;
        info!(milliseconds = millis(started), "rewound to the primary's history");
        Ok(())
    }

    fn secrets(&self) -> Secrets<'_> {
        Secrets { passfile: self.setup.passfile.as_deref(), tls: &self.setup.tls }
    }

    /// Replaces the data by a copy, which is complete before the old data goes.
    async fn copy(&mut self, resync: &Resync, interest: &Interest) -> Result<()> {
        // Asked again: what was tried before may have taken long.
        let session = self.check_copy(resync).await?;
        if self.state.rewinding.is_some() {
            // Given up: it must not be begun again.
            self.mark_unusable(resync)?;
        }
        let (root, pgdata) = (self.dir.root().to_owned(), self.dir.pgdata());
        let fresh = self.dir.fresh_pgdata();
        let copied = self.is_copied(&fresh, resync);
        let work = tokio::task::spawn_blocking({
            let (root, fresh) = (root.clone(), fresh.clone());
            move || {
                if !copied {
                    trash::delete_garbage(&fresh)?;
                }
                trash::prune(&root, trash::KEEP_RESYNC - 1)
            }
        });
        work.await.unwrap_or_else(|error| Err(KeeperError::Other(format!("make room for a copy: {error}"))))?;
        if !copied {
            let size = session.data_size().await?;
            self.make_room(&session, Some(size.saturating_add(size / 8).saturating_add(ROOM_BESIDE_COPY))).await?;
        }
        drop(session);
        if trash::is_mount_point(&pgdata)? {
            // Nothing can be renamed to a mount point, so only an empty one is filled.
            trash::move_away(&root, &pgdata, trash::RESYNC, Utc::now())?;
            self.mark_unusable(resync)?;
            self.unless_changed(interest, self.base_backup(resync, &pgdata)).await?;
            self.complete_copy(resync, &pgdata).await?;
        } else {
            if copied {
                info!("a complete copy was made before, it need not be made again");
            } else {
                self.unless_changed(interest, self.base_backup(resync, &fresh)).await?;
                self.complete_copy(resync, &fresh).await?;
            }
            self.mark_unusable(resync)?;
            trash::move_away(&root, &pgdata, trash::RESYNC, Utc::now())?;
            io(std::fs::rename(&fresh, &pgdata), "put in place", &fresh)?;
            io(std::fs::File::open(&root).and_then(|file| file.sync_all()), "sync", &root)?;
        }
        self.reload_owed = true;
        Ok(())
    }

    async fn base_backup(&self, resync: &Resync, target: &Path) -> Result<()> {
        let started = Instant::now();
        let conninfo = conninfo::tool(&resync.followed, &self.config.repl.user, &resync.slot, &self.secrets(), "");
        let mut command = self.binaries.command("pg_basebackup");
        command.arg("-D").arg(target).arg("-d").arg(conninfo).arg("--slot").arg(&resync.slot);
        command.args(["-X", "stream", "--checkpoint=fast", "-w", "--no-sync"]).args(self.fresh_wal_dir());
        command.stdin(self.dir.work_stdin()?).process_group(0);
        match binaries::run("pg_basebackup", command).await {
            Ok(()) => {}
            Err(KeeperError::Tool { tail, .. })
                if tail.contains("replication slot") && tail.contains("does not exist") =>
            {
                return not_yet(&resync.followed, "its keeper has not created our replication slot yet");
            }
            Err(error) => return Err(error),
        }
        // A copy that could start as a primary must never lie in place of a standby.
        write_file(&target.join("standby.signal"), b"")?;
        info!(milliseconds = millis(started), "made a base backup");
        Ok(())
    }

    /// Makes a copy one of ours, and durable; only then it counts as complete.
    async fn complete_copy(&mut self, resync: &Resync, target: &Path) -> Result<()> {
        let conf = self.check_copied(target, &resync.files.conf).await;
        write_file(&target.join("postgresql.conf"), conf.as_bytes())?;
        write_file(&target.join("pg_hba.conf"), resync.files.hba.as_bytes())?;
        sync_data(target.to_owned()).await?;
        write_file(&target.join(COPIED), resync.db.as_str().as_bytes())
    }

    /// Starts data that should be able to follow; if it can't, makes a base backup.
    async fn verify_or_copy(&mut self, resync: &Resync, interest: &Interest) -> Result<()> {
        self.apply_mark_standby()?;
        self.apply_write_files(&resync.files)?;
        let Err(error) = self.verify(resync).await else { return Ok(()) };
        warn!(%error, "the old data can't follow, making a base backup instead");
        self.apply_stop("its data can't follow").await?;
        self.copy(resync, interest).await
    }

    /// A session with a source that is about to be copied. One that does not let us in is not copied without asking.
    async fn ask(&self, source: &Source) -> Result<Session> {
        match self.connect_source(source).await {
            Ok(session) => Ok(session),
            Err(error) => not_yet(source, &error.to_string()),
        }
    }

    async fn source_history(&self, source: &Source) -> Result<Vec<TimelineHistory>> {
        let session = self.connect_source(source).await?;
        let timeline = session.snapshot().await?.timeline;
        Ok(parse_history(&session.history(timeline).await?))
    }

    /// Up to where a followed primary has WAL; `None` for a standby.
    async fn source_position(&self, source: &Source) -> Result<Option<u64>> {
        self.connect_source(source).await?.flushed().await
    }

    async fn connect_source(&self, source: &Source) -> Result<Session> {
        let port = source.port.parse();
        let port = port.map_err(|_| {
            KeeperError::Other(format!("the port \"{}\" of the followed db is not a number", source.port))
        })?;
        let target = Target { host: source.host.clone(), port, ..self.target.clone() };
        sql::connect(&target, || ()).await
    }

    async fn verify(&mut self, resync: &Resync) -> Result<()> {
        self.apply_start(Vec::new()).await?;
        let Some(postmaster) = self.postmaster.clone() else { return Ok(()) };
        // Recovery may take long. A server that is at it must not be stopped, and its data not be given up for a new copy.
        process::wait_ready(&postmaster, &self.dir.pgdata(), resync.ready_limit.max(FIRST_START_LIMIT)).await?;
        let deadline = Instant::now() + STREAM_LIMIT;
        // Where the followed server's timelines end; unknown if it can't be asked.
        let history = self.source_history(&resync.followed).await.unwrap_or_default();
        let goal = self.source_position(&resync.followed).await.unwrap_or_default();
        let mut begun = None;
        loop {
            let snapshot = self.sql().await?.snapshot().await?;
            if is_other_branch(snapshot.timeline, snapshot.lsn, &history) {
                return Err(KeeperError::Other("it went on where the followed db's timeline turned off".into()));
            }
            if snapshot.receiving && snapshot.timeline >= resync.timeline {
                // A receiver calls itself streaming before it learns that the WAL it needs is gone.
                let begun = *begun.get_or_insert(snapshot.lsn);
                if snapshot.lsn > begun || goal.is_none_or(|goal| snapshot.lsn >= goal) {
                    return Ok(());
                }
            }
            if Instant::now() > deadline {
                // A source that is gone is no fault of our data.
                return match self.connect_source(&resync.followed).await {
                    Ok(_) => Err(KeeperError::Other("it does not stream from the followed db".into())),
                    Err(_) => Ok(()),
                };
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn not_yet<T>(source: &Source, why: &str) -> Result<T> {
    Err(KeeperError::NotYet(format!("waiting for {}:{}: {why}", source.host, source.port)))
}

async fn check_slot(resync: &Resync, source: &Source, session: &Session) -> Result<()> {
    if session.slots().await?.contains(&resync.slot) {
        return Ok(());
    }
    not_yet(source, &format!("its keeper has not created the replication slot {} yet", resync.slot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_are_bounded() {
        let pauses: Vec<u64> = [1, 2, 3, 8, 9, 100, u32::MAX].map(|count| pause_after(count).as_secs()).into();
        assert_eq!(pauses, [2, 4, 8, 256, 300, 300, 300]);
    }
}
