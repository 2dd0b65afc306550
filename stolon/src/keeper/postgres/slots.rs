//! Which replication slots an instance needs.

use super::PREFIX;
use model::DbUid;
use std::collections::BTreeSet;

/// Slots to drop and to create.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotChanges {
    /// Ours, and no longer wanted.
    pub drop: Vec<String>,
    /// Wanted and missing.
    pub create: Vec<String>,
}

/// The slot of a follower.
pub fn name(db: &DbUid) -> String {
    format!("{PREFIX}{db}")
}

/// The slots that a db keeps for its followers and for the user.
pub fn wanted<'a>(
    own: &DbUid,
    followers: impl IntoIterator<Item = &'a DbUid>,
    additional: impl IntoIterator<Item = &'a String>,
) -> BTreeSet<String> {
    let followers = followers.into_iter().filter(|db| *db != own).map(name);
    followers.chain(additional.into_iter().map(|slot| format!("{PREFIX}{slot}"))).collect()
}

/// Compares; slots without our prefix are the user's and are left alone.
pub fn plan_changes(wanted: &BTreeSet<String>, existing: &BTreeSet<String>) -> SlotChanges {
    let ours = existing.iter().filter(|slot| slot.starts_with(PREFIX));
    SlotChanges {
        drop: ours.filter(|slot| !wanted.contains(*slot)).cloned().collect(),
        create: wanted.difference(existing).cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_slots_change() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let wanted = wanted(&"me".into(), &["a".into(), "me".into()], &["extra".to_owned()]);
        assert_eq!(wanted, set(&["stolon_a", "stolon_extra"]));
        let changes = plan_changes(&wanted, &set(&["stolon_a", "stolon_old", "mine"]));
        assert_eq!(changes.drop, ["stolon_old"]);
        assert_eq!(changes.create, ["stolon_extra"]);
        assert_eq!(plan_changes(&wanted, &wanted), SlotChanges::default());
    }
}
