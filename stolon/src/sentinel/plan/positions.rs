//! Without synchronous replication the standby with the highest position replaces a master that failed, and what keepers
//! told last may be seconds old. So they are asked for the position they have now: the generation of each standby counts up
//! without a change, and a report of that generation rests on a look that was made after it.
//!
//! Who does not answer is not elected before it does. Go's keepers look and report at their own pace: theirs stand as told.

use super::{Planner, Reason};
use model::DbUid;
use std::collections::BTreeMap;
use std::time::Duration;

/// A keeper answers within some 50 ms. Longer than this nobody waits for one that does not, while others have.
const LIMIT: Duration = Duration::from_millis(500);

/// Standbys were asked for their positions.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    master: DbUid,
    since: Duration,
    /// The generation whose report is the answer.
    generations: BTreeMap<DbUid, i64>,
}

impl Planner<'_> {
    /// True when all that is going to be known about the positions of standbys is known.
    pub(super) fn knows_positions(&mut self, master: &DbUid) -> bool {
        let Some(db) = self.db(master) else { return true };
        let forced = Reason::ForceFail(db.spec.keeper_uid.clone());
        // An operator's word counts for this very check.
        if db.spec.synchronous_replication || self.reasons.contains(&forced) {
            return true;
        }
        let asked = match self.memory.asked.take().filter(|asked| asked.master == *master) {
            Some(asked) => asked,
            None => self.ask_for_positions(master),
        };
        let behind = |(uid, generation): (&DbUid, &i64)| {
            self.db(uid).is_some_and(|db| db.status.current_generation < *generation && self.reporting(db))
        };
        let missing = asked.generations.iter().any(behind);
        let known = !missing || self.passed(asked.since, LIMIT);
        self.memory.asked = Some(asked);
        if !known {
            self.say(Reason::WaitForPositions(master.clone()));
        }
        known
    }

    fn ask_for_positions(&mut self, master: &DbUid) -> Asked {
        let standbys = self.data.dbs.values().filter(|db| {
            db.uid != *master && db.converged() && self.reporting(db) && self.takes_orders(&db.spec.keeper_uid)
        });
        let generations: BTreeMap<DbUid, i64> = standbys.map(|db| (db.uid.clone(), db.generation + 1)).collect();
        // With one there is no choice, and its position is as good as it is.
        let generations = if generations.len() > 1 { generations } else { BTreeMap::new() };
        self.barriers.extend(generations.keys().cloned());
        Asked { master: master.clone(), since: self.now.clock, generations }
    }
}
