//! After a power cut of the whole site the hosts come back one by one, and the first one must not become master because it boots
//! fast. With synchronous replication only those can that have every commit. Without it the last position decides, and
//! the sentinel knows the last one of a host only when that host is back.

use super::memory::{Freshness, Memory};
use super::reason::list;
use super::{Observed, Planner, Reason};
use model::stolon::ClusterData;
use model::{DbUid, KeeperUid};
use std::time::Duration;

/// How long keepers have for coming back after the first one. Hosts that got their power back at the same moment boot
/// within such a time of each other, or one of them has a defect.
const LIMIT: Duration = Duration::from_secs(10);

/// When the first keeper came back after all were gone, until all have come back. `begins`: they were gone until now.
pub(super) fn track(
    now: Duration,
    data: &ClusterData,
    observed: &Observed,
    memory: &Memory,
    begins: bool,
) -> Option<Duration> {
    let since = if begins { now } else { memory.revived? };
    let missing = missing(data, memory).next().is_some() && !observed.keepers.is_empty();
    (missing && now < since + LIMIT).then_some(since)
}

/// Keepers of dbs that have not come back.
fn missing<'a>(data: &'a ClusterData, memory: &'a Memory) -> impl Iterator<Item = &'a KeeperUid> {
    let keepers = data.dbs.values().map(|db| &db.spec.keeper_uid);
    keepers.filter(|keeper| memory.freshness(keeper) != Freshness::Fresh)
}

impl Planner<'_> {
    /// The last positions of some dbs are not known because their hosts may still be booting.
    pub(super) fn is_reviving(&mut self, master: &DbUid) -> bool {
        let Some(since) = self.memory.revived else { return false };
        let Some(db) = self.db(master).filter(|db| !db.spec.synchronous_replication) else { return false };
        let forced = Reason::ForceFail(db.spec.keeper_uid.clone());
        if self.reasons.contains(&forced) {
            return false;
        }
        let keepers = list(missing(&self.data, &self.memory));
        self.wake_at(since + LIMIT);
        self.say(Reason::WaitForReturn(keepers));
        true
    }
}
