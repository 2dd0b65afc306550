//! How a data directory becomes that of a new db.
//!
//! What was there before is moved to trash or left alone, never deleted; only what an interrupted initialisation of the
//! very same db left is garbage.

use super::super::datadir::{DbState, RestoreState};
use super::super::postgres::conf::Recovery;
use super::super::postgres::recovery;
use super::{Context, Data, Plan, Recover, RoleFiles, Step};
use model::stolon::{DbInitMode, FollowType, PitrConfig, Role};
use std::time::Duration;

impl Context<'_> {
    pub(super) fn initialize(&self) -> Plan {
        let plan = match self.db.spec.init_mode {
            Some(DbInitMode::New) => self.init_new(),
            Some(DbInitMode::Existing) => self.init_existing(),
            Some(DbInitMode::Resync) => self.resync(),
            Some(DbInitMode::Pitr) => self.init_pitr(),
            // A former primary that was becoming a standby again.
            _ if self.is_interrupted_standby() => self.resync(),
            _ if self.is_lost_standby() => self.resync(),
            Some(DbInitMode::None) | None => Plan::problem(format!(
                "this directory holds {}, but db {} of this keeper is to be there already; restore the directory, or run `stolonctl removekeeper`",
                self.held(),
                self.db.uid
            )),
        };
        self.stopped_before("a new db is assigned to this keeper", plan)
    }

    fn is_interrupted_standby(&self) -> bool {
        let state = &self.local.state;
        state.initializing && state.uid == self.db.uid && self.db.spec.role == Some(Role::Standby)
    }

    /// Not even the keeper's own notes are left.
    fn is_lost_standby(&self) -> bool {
        let empty = self.local.data == Data::Missing && self.local.state.uid.is_empty();
        self.setup.rebuild_lost_standby && empty && self.db.spec.role == Some(Role::Standby)
    }

    /// Stopped first, so that the next look sees how it was left; but a server that runs is not stopped for a source that
    /// is not there.
    pub(super) fn stopped_before(&self, why: &'static str, plan: Plan) -> Plan {
        if self.local.running.is_none() || plan.steps.is_empty() {
            return plan;
        }
        let check = plan.steps.into_iter().find_map(|step| match step {
            Step::Resync(resync) => Some(Step::CheckSource(resync)),
            _ => None,
        });
        Plan::then_again(check.into_iter().chain([Step::Stop(why)]))
    }

    /// What the data directory holds, in words.
    fn held(&self) -> String {
        match &self.local.state {
            state if state.initializing => format!("what an interrupted initialisation of db {} left", state.uid),
            state if state.uid.is_empty() => "no db".to_owned(),
            state => format!("db {}", state.uid),
        }
    }

    /// Makes room for new data and marks what comes next as unfinished.
    fn make_room(&self) -> Result<[Step; 2], Plan> {
        let DbState { uid, initializing, .. } = &self.local.state;
        let away = match self.local.data {
            _ if *initializing && *uid == self.db.uid => Step::DeleteGarbage,
            Data::Present { .. } if !initializing => {
                return Err(Plan::problem(format!(
                    "a new instance is to be made for db {}, but {}/postgres holds {}; move it away if it is not needed",
                    self.db.uid,
                    self.setup.directory,
                    self.held()
                )));
            }
            _ => Step::MoveAway("init"),
        };
        // The mark comes second: marked data of this db may be deleted.
        let mark = DbState { uid: self.db.uid.clone(), initializing: true, ..Default::default() };
        Ok([away, Step::SaveState(mark)])
    }

    fn init_new(&self) -> Plan {
        let mut steps = match self.make_room() {
            Ok(steps) => Vec::from(steps),
            Err(problem) => return problem,
        };
        steps.extend([
            Step::Initdb(self.db.spec.new_config.clone().unwrap_or_default()),
            Step::StartForSetup(self.files(None, true)),
            Step::WaitReady(self.ready_limit()),
        ]);
        if self.db.spec.include_previous_config {
            steps.push(Step::ReadParameters);
        }
        steps.extend([Step::SetUpRoles, Step::Stop("its setup is complete")]);
        Plan::then_again(steps.into_iter().chain([Step::MarkInitialized(self.db.uid.clone())]))
    }

    /// Adopts what is there. Nothing is removed, and a crash at any point leaves data that can be adopted again.
    fn init_existing(&self) -> Plan {
        let Data::Present { standby, files, .. } = self.local.data else {
            return Plan::problem(format!(
                "init mode existing, but there is no complete instance in {}/postgres; put it there",
                self.setup.directory
            ));
        };
        if self.local.state.initializing {
            return Plan::problem(format!("init mode existing, but the data directory holds {}", self.held()));
        }
        let external = self.follows_external().then(|| self.external_recovery());
        let RoleFiles { standby: signal, backup_label, .. } = files;
        if external.is_some() && !(standby || signal || backup_label) {
            return Plan::problem(format!(
                "init mode existing in a standby cluster, but {0}/postgres holds a primary; put a copy of the followed \
                 server there, or create {0}/postgres/standby.signal if this is one",
                self.setup.directory
            ));
        }
        let mut steps = vec![Step::KeepConfiguration];
        let stays = standby || external.is_some();
        if stays {
            // One that may yet be promoted starts as what it is, too: a standby that starts otherwise would go on with its
            // primary's timeline.
            steps.push(Step::MarkStandby);
        } else if files.standby || files.recovery {
            steps.push(Step::MarkPrimary);
        }
        steps.extend([
            Step::StartForSetup(self.files(external.as_ref(), true)),
            Step::WaitReady(self.ready_limit()),
            Step::CheckRoles,
        ]);
        if self.db.spec.include_previous_config {
            steps.push(Step::ReadParameters);
        }
        steps.push(Step::Stop("its setup is complete"));
        Plan::then_again(steps.into_iter().chain([Step::MarkInitialized(self.db.uid.clone())]))
    }

    /// Restores a backup and recovers it. What was restored once is not fetched again, whatever happens afterwards.
    fn init_pitr(&self) -> Plan {
        let config = self.db.spec.pitr_config.clone().unwrap_or_default();
        if config.data_restore_command.is_empty() {
            return Plan::problem(format!("db {} is to be restored, but there is no dataRestoreCommand", self.db.uid));
        }
        let mut steps = Vec::new();
        if !self.is_restored(&config) {
            match self.make_room() {
                Ok(room) => steps.extend(room),
                Err(problem) => return problem,
            }
            let command = config.data_restore_command.clone();
            steps.push(Step::Restore { db: self.db.uid.clone(), command });
        }
        let external = self.follows_external().then(|| self.external_recovery());
        let limit = self.spec.sync_timeout;
        steps.push(Step::Recover(Box::new(Recover {
            db: self.db.uid.clone(),
            files: self.files(external.as_ref(), true),
            parameters: recovery::point_in_time(&config),
            standby: external.is_some(),
            limit: (!limit.is_zero()).then(|| limit.to_std()),
        })));
        steps.push(Step::CheckRoles);
        if self.db.spec.include_previous_config {
            steps.push(Step::ReadParameters);
        }
        steps.push(Step::Stop("its recovery is complete"));
        Plan::then_again(steps.into_iter().chain([Step::MarkInitialized(self.db.uid.clone())]))
    }

    /// The operator's present command has brought this db's data already.
    fn is_restored(&self, config: &PitrConfig) -> bool {
        let DbState { uid, initializing, .. } = &self.local.state;
        let by = |state: &RestoreState| state.uid == self.db.uid && state.command == config.data_restore_command;
        let present = self.local.data != Data::Missing;
        *initializing && *uid == self.db.uid && present && self.local.restored.as_ref().is_some_and(by)
    }

    pub(super) fn follows_external(&self) -> bool {
        self.db.spec.follow_config.as_ref().is_some_and(|follow| follow.kind == Some(FollowType::External))
    }

    pub(super) fn external_recovery(&self) -> Recovery {
        recovery::external(&self.db.spec.follow_config.clone().unwrap_or_default())
    }

    pub(super) fn ready_limit(&self) -> Duration {
        self.spec.db_wait_ready_timeout.to_std()
    }
}
