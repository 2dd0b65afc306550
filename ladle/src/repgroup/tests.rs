use super::recover::{Verdict, gid, verdict};
use super::*;
use crate::plan::Current;
use model::layout::SpecDoc;
use std::collections::BTreeMap;

fn loaded(groups: &[(u32, &str, i64, RepGroupState)]) -> Loaded {
    let mut revision = Current::empty().revision;
    revision.rep_group_seq = 7;
    let doc = |name: &str, sys_id, state| RepGroupDoc {
        format_version: FORMAT_VERSION,
        stolon_name: name.into(),
        store_conn_info: Default::default(),
        store_prefix: "stolon/cluster".into(),
        sys_id,
        state,
        operation: "old".into(),
    };
    let groups = groups
        .iter()
        .map(|(id, name, sys_id, state)| (RepGroupId(*id), Versioned { doc: doc(name, *sys_id, *state), revision: 5 }));
    let spec =
        SpecDoc { format_version: FORMAT_VERSION, ladle_spec: Default::default(), cluster_spec: Default::default() };
    Loaded {
        spec: Versioned { doc: spec, revision: 1 },
        revision: Versioned { doc: revision, revision: 2 },
        clovers: BTreeMap::new(),
        layouts: BTreeMap::new(),
        repgroups: groups.collect(),
        operation: None,
    }
}

#[test]
fn numbers_come_from_the_sequence_and_are_kept() {
    let state = loaded(&[(3, "a", 1, RepGroupState::Active), (4, "b", 2, RepGroupState::Adding)]);
    let plan = |name: &str, sys_id| plan_reservation(&state, &Place::own(name.into()), sys_id, "new");
    let fresh = plan("c", 9).unwrap();
    assert_eq!((fresh.id, fresh.fresh, fresh.doc.state), (RepGroupId(7), true, RepGroupState::Adding));
    let again = plan("b", 2).unwrap();
    assert_eq!((again.id, again.fresh, again.doc.operation.as_str()), (RepGroupId(4), false, "new"));
    let twin = plan("c", 1).unwrap_err().to_string();
    assert!(twin.contains("same system identifier as group a"), "{twin}");
}

#[tokio::test]
async fn a_reservation_moves_the_sequence_once() {
    let store: store::SharedStore = std::sync::Arc::new(store::MemoryStore::new());
    let ctx = Context::new(store, "c", "test").unwrap();
    let mut state = loaded(&[]);
    let revision = state.revision.doc.to_bytes();
    state.revision.revision = ctx.store.put(&ctx.keys.revision(), &revision, None).await.unwrap();
    let lock = ctx.lock(&crate::report::Stderr::default()).await.unwrap();
    let plan = plan_reservation(&state, &Place::own("a".into()), 1, "op").unwrap();
    let reserved = reserve(&ctx, &lock, &state, plan.clone()).await.unwrap();
    // A second one that has not seen the first must lose.
    assert!(reserve(&ctx, &lock, &state, plan).await.is_err());
    let entry = ctx.store.get(&ctx.keys.revision()).await.unwrap().unwrap();
    let revision = model::layout::RevisionDoc::parse("revision", &entry.value).unwrap();
    assert_eq!(revision.rep_group_seq, 8);
    let committing = advance(&ctx, &lock, reserved.clone(), RepGroupState::Committing).await.unwrap();
    assert_eq!(committing.1.doc.state, RepGroupState::Committing);
    assert!(advance(&ctx, &lock, reserved, RepGroupState::Active).await.is_err());
}

#[test]
fn leftovers_end_as_the_state_says() {
    assert_eq!(verdict(RepGroupState::Adding), Some(Verdict::RollBack));
    assert_eq!(verdict(RepGroupState::Committing), Some(Verdict::Commit));
    assert_eq!(verdict(RepGroupState::Active), None);
    assert_eq!(gid("x"), "shardman:addrepgroup:x");
}
