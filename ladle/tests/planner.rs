//! What holds for every placement, and that the judge sees when it does not.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic")]

use ladle::check::check;
use ladle::plan::{Current, Plan, PlanError, plan_addnodes};
use model::NodeName;
use model::spec::LadleSpec;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn names(from: usize, count: usize) -> Vec<NodeName> {
    (from..from + count).map(|i| format!("n{i}").into()).collect()
}

fn spec(repfactor: u32, monitors_num: u32) -> LadleSpec {
    LadleSpec { repfactor, monitors_num, ..LadleSpec::default() }
}

/// Adds nodes step by step; gives the end and all plans.
fn grow(spec: &LadleSpec, use_proxy: bool, steps: &[usize]) -> (Current, Vec<Plan>) {
    let mut state = Current::empty();
    let mut plans = Vec::new();
    for clovers in steps {
        let nodes = names(state.layouts.len(), clovers * spec.copies());
        let plan = plan_addnodes(spec, use_proxy, &state, &nodes).unwrap();
        state = state.after(&plan);
        plans.push(plan);
    }
    (state, plans)
}

proptest! {
    #[test]
    fn placements_keep_their_promises(
        repfactor in 0_u32..8, monitors in 0_u32..6, use_proxy: bool, steps in prop::collection::vec(1_usize..5, 1..4)
    ) {
        let spec = spec(repfactor, monitors);
        let (state, plans) = grow(&spec, use_proxy, &steps);
        prop_assert_eq!(check(&spec, use_proxy, &state), Vec::<String>::new());
        for (node, layout) in &state.layouts {
            let homes = state.clovers.values().filter(|clover| clover.nodes.contains(node)).count();
            prop_assert_eq!(homes, 1);
            let ports: Vec<u16> = layout.keepers.iter().map(|k| k.pg_port)
                .chain(layout.proxies.iter().map(|p| p.port)).collect();
            prop_assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len());
            for keeper in &layout.keepers {
                prop_assert_eq!(keeper.preferred, keeper.pg_port == spec.pgs_initial_port);
                let proxy = layout.proxies.iter().find(|proxy| proxy.rep_group == keeper.id.rep_group);
                prop_assert_eq!(
                    proxy.map(|proxy| proxy.port - spec.proxies_initial_port),
                    use_proxy.then_some(keeper.pg_port - spec.pgs_initial_port)
                );
            }
        }
        let monitors_now = state.layouts.values().filter(|layout| layout.monitor).count();
        prop_assert_eq!(monitors_now, state.layouts.len().min(monitors as usize));
        prop_assert_eq!(state.revision.clover_seq as usize, state.clovers.len() + 1);
        prop_assert_eq!(state.revision.generation.0 as usize, plans.len());
        let groups: BTreeSet<_> = plans.iter().flat_map(|plan| &plan.groups).map(|group| &group.name).collect();
        prop_assert_eq!(groups.len(), state.layouts.len());
    }

    #[test]
    fn earlier_layouts_are_never_touched(repfactor in 0_u32..4, first in 1_usize..4, second in 1_usize..4) {
        let spec = spec(repfactor, 2);
        let (before, _) = grow(&spec, true, &[first]);
        let (_, plans) = grow(&spec, true, &[first, second]);
        prop_assert!(plans[1].layouts.keys().all(|node| !before.layouts.contains_key(node)));
        prop_assert!(plans[1].clovers.keys().all(|id| !before.clovers.contains_key(id)));
    }

    #[test]
    fn any_names_are_judged_without_panic(nodes in prop::collection::vec(".{0,70}", 0..5), repfactor in 0_u32..3) {
        let nodes: Vec<NodeName> = nodes.into_iter().map(NodeName::from).collect();
        if let Ok(plan) = plan_addnodes(&spec(repfactor, 2), true, &Current::empty(), &nodes) {
            prop_assert_eq!(check(&spec(repfactor, 2), true, &Current::empty().after(&plan)), Vec::<String>::new());
        }
    }

    /// The judge is independent only if it finds what the planner would never make.
    #[test]
    fn the_judge_sees_damage(which in 0_usize..11, node in 0_usize..6) {
        let spec = spec(2, 2);
        let (mut state, _) = grow(&spec, true, &[2]);
        damage(&mut state, which, &format!("n{node}").into());
        prop_assert!(!check(&spec, true, &state).is_empty());
    }
}

fn damage(state: &mut Current, which: usize, node: &NodeName) {
    let layout = state.layouts.get_mut(node).unwrap();
    match which {
        0 => layout.keepers[0].pg_port = layout.keepers[1].pg_port,
        1 => layout.keepers[0].id.uid += 1,
        2 => layout.keepers.truncate(2),
        3 => layout.proxies[0].port += 7,
        4 => layout.proxies.clear(),
        5 => layout.keepers.iter_mut().for_each(|keeper| keeper.preferred = !keeper.preferred),
        6 => layout.keepers[0].id.rep_group = "clover-9-n0".into(),
        7 => layout.generation.0 += 1,
        8 => drop(state.layouts.remove(node)),
        9 => state.revision.clover_seq = 2,
        _ => state.clovers.values_mut().for_each(|clover| clover.nodes.reverse()),
    }
}

#[test]
fn nothing_to_add_is_an_error() {
    let none = plan_addnodes(&spec(1, 2), true, &Current::empty(), &[]);
    assert_eq!(none, Err(PlanError::NoNodes));
}
