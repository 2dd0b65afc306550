//! What the keeper tells those who watch over it, after each pass.

use super::machine::Machine;
use super::observe::observe_data;
use super::plan::Data;
use crate::metrics::{KEEPER_READY, ROLES, keeper as metrics};
use common::metrics::NotReady;
use model::stolon::{ClusterData, Problem, Role};
use std::time::Duration;

impl Machine {
    /// There is no cluster data to go by.
    pub(super) fn show_nothing(&self) {
        let loaded = self.view.borrow().loaded;
        let (code, text) = match loaded {
            true => ("no_cluster_data", "the store has none for this cluster"),
            false => ("starting", "the store was not read yet"),
        };
        KEEPER_READY.set(Err(NotReady::new(code, text)));
    }

    /// How things are after a pass, which came to its end or not.
    pub(super) fn show(&self, data: &ClusterData, sleep_interval: Duration, complete: bool) {
        if self.view.borrow().connected {
            metrics::LAST_VALID_UPDATE.set_now();
        }
        if complete {
            metrics::LAST_SYNC.set_now();
        }
        metrics::SLEEP_INTERVAL.set(sleep_interval.as_secs_f64());
        let wanted = data.db_of_keeper(&self.setup.uid);
        metrics::TARGET_ROLE.set_one_of(&ROLES, role_word(wanted.and_then(|db| db.spec.role)));
        let local = match observe_data(&self.dir.pgdata(), None) {
            Data::Present { standby: true, .. } => Some(Role::Standby),
            Data::Present { standby: false, .. } => Some(Role::Master),
            Data::Missing => None,
        };
        metrics::LOCAL_ROLE.set_one_of(&ROLES, role_word(local));
        metrics::NEEDS_RELOAD.set(number(self.reload_owed));
        metrics::NEEDS_RESTART.set(number(self.problems.contains_key(Problem::RESTART_PENDING)));
        KEEPER_READY.set(match wanted {
            None => Err(NotReady::new("no_db", "the sentinel has given this keeper no db")),
            Some(db) if self.state.uid != db.uid || self.state.generation != db.generation || !complete => {
                Err(NotReady::new("converging", "PostgreSQL is not yet as the cluster data wants it"))
            }
            Some(_) => Ok(()),
        });
    }
}

fn role_word(role: Option<Role>) -> &'static str {
    match role {
        Some(Role::Master) => "master",
        Some(Role::Standby) => "standby",
        None => "undefined",
    }
}

fn number(value: bool) -> f64 {
    f64::from(u8::from(value))
}
