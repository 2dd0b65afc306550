//! What keepers are told to do with their PostgreSQL besides what the cluster data says. A plan says all that it wants
//! done; what no plan wants any more is withdrawn. Keepers of Go stolon can't be told anything.

use super::Planner;
use super::memory::info_of;
use model::stolon::ext::{Order, Work};
use model::{DbUid, KeeperUid};

impl Planner<'_> {
    /// The keeper takes orders.
    pub(super) fn takes_orders(&self, keeper: &KeeperUid) -> bool {
        info_of(&self.data, self.observed, keeper).is_some_and(|info| info.obeyed.is_some())
    }

    /// Wants the keeper of `db` to have done `work`, once for each `name` and start of the keeper. True when it has.
    pub(super) fn order(&mut self, db: &DbUid, work: Work, name: &str) -> bool {
        let Some(keeper) = self.db(db).map(|db| db.spec.keeper_uid.clone()) else { return false };
        let Some(info) = info_of(&self.data, self.observed, &keeper) else { return false };
        let order = Order {
            id: format!("{name}:{}", info.boot_uuid),
            boot_uuid: info.boot_uuid.clone(),
            db: db.clone(),
            work: Some(work),
        };
        if info.obeyed.as_ref() == Some(&order.id) {
            return true;
        }
        self.orders.insert(keeper, order);
        false
    }

    /// What has to be written, so that keepers know all that is wanted and nothing else.
    pub(super) fn note_orders(&mut self) {
        let stored = &self.observed.orders;
        let new = self.orders.iter().filter(|(keeper, order)| stored.get(*keeper) != Some(order));
        let old = stored.keys().filter(|keeper| !self.orders.contains_key(*keeper));
        let new = new.map(|(keeper, order)| (keeper.clone(), Some(order.clone())));
        self.notes.orders = new.chain(old.map(|keeper| (keeper.clone(), None))).collect();
    }
}
