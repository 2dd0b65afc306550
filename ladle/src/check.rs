//! An independent judge of layouts: it knows what must hold, not how the planner gets there, and runs before each write.

use crate::plan::Current;
use model::spec::LadleSpec;
use model::{CloverId, NodeName};
use std::collections::{BTreeMap, BTreeSet};

/// Everything that is wrong with clovers and layouts, one line each; empty when all is well.
pub fn check(spec: &LadleSpec, use_proxy: bool, state: &Current) -> Vec<String> {
    let mut problems = Vec::new();
    let homes = check_clovers(spec, state, &mut problems);
    for node in state.layouts.keys() {
        match homes.get(node) {
            Some((clover, position)) => {
                Node { spec, use_proxy, state, node, clover: *clover, position: *position }.check(&mut problems);
            }
            None => problems.push(format!("node {node} has a layout but is in no clover")),
        }
    }
    check_groups(spec, state, &mut problems);
    problems
}

type Homes = BTreeMap<NodeName, (CloverId, u32)>;

fn check_clovers(spec: &LadleSpec, state: &Current, problems: &mut Vec<String>) -> Homes {
    let mut homes = Homes::new();
    for (id, clover) in &state.clovers {
        if id.0 == 0 || id.0 >= state.revision.clover_seq {
            problems.push(format!("clover {id} is not below the next clover number {}", state.revision.clover_seq));
        }
        if clover.nodes.len() != spec.copies() {
            problems.push(format!("clover {id} has {} nodes instead of {}", clover.nodes.len(), spec.copies()));
        }
        for (position, node) in (0_u32..).zip(&clover.nodes) {
            if !state.layouts.contains_key(node) {
                problems.push(format!("node {node} of clover {id} has no layout"));
            }
            if let Some((other, _)) = homes.insert(node.clone(), (*id, position)) {
                problems.push(format!("node {node} is in clover {other} and in clover {id}"));
            }
        }
    }
    homes
}

/// What must hold on each node by itself.
struct Node<'a> {
    spec: &'a LadleSpec,
    use_proxy: bool,
    state: &'a Current,
    node: &'a NodeName,
    clover: CloverId,
    position: u32,
}

impl Node<'_> {
    fn check(&self, problems: &mut Vec<String>) {
        let layout = &self.state.layouts[self.node];
        let node = self.node;
        if layout.generation > self.state.revision.generation {
            problems.push(format!("the layout of {node} is of generation {}, not valid yet", layout.generation));
        }
        if layout.keepers.len() != self.spec.copies() {
            problems.push(format!("{node} has {} keepers instead of {}", layout.keepers.len(), self.spec.copies()));
        }
        let proxies = if self.use_proxy { layout.keepers.len() } else { 0 };
        if layout.proxies.len() != proxies {
            problems.push(format!("{node} has {} proxies instead of {proxies}", layout.proxies.len()));
        }
        self.check_ports(problems);
        self.check_keepers(problems);
    }

    fn check_ports(&self, problems: &mut Vec<String>) {
        let layout = &self.state.layouts[self.node];
        let mut ports = BTreeSet::new();
        let all = layout.keepers.iter().map(|k| k.pg_port).chain(layout.proxies.iter().map(|p| p.port));
        for port in all {
            if !ports.insert(port) {
                problems.push(format!("port {port} of {} is given out twice", self.node));
            }
        }
        let (pgs, proxies) = (i64::from(self.spec.pgs_initial_port), i64::from(self.spec.proxies_initial_port));
        for keeper in &layout.keepers {
            let offset = i64::from(keeper.pg_port) - pgs;
            if !(0..=i64::from(self.spec.repfactor)).contains(&offset) || (offset == 0) != keeper.preferred {
                problems.push(format!("port {} of {} does not fit its keeper", keeper.pg_port, self.node));
            }
            let mut own = layout.proxies.iter().filter(|proxy| proxy.rep_group == keeper.id.rep_group);
            if self.use_proxy && own.next().is_none_or(|proxy| i64::from(proxy.port) - proxies != offset) {
                problems.push(format!("the proxy of {} on {} does not fit its keeper", keeper.id.rep_group, self.node));
            }
        }
    }

    fn check_keepers(&self, problems: &mut Vec<String>) {
        let prefix = format!("clover-{}-", self.clover);
        let mut groups = BTreeSet::new();
        for keeper in &self.state.layouts[self.node].keepers {
            let group = &keeper.id.rep_group;
            if !groups.insert(group) {
                problems.push(format!("{} has two keepers of {group}", self.node));
            }
            if keeper.id.uid != self.position {
                problems.push(format!("the keeper of {group} on {} has uid {}", self.node, keeper.id.uid));
            }
            let master = group.as_str().strip_prefix(&prefix);
            if master.is_none() || (master == Some(self.node.as_str())) != keeper.preferred {
                problems.push(format!("the keeper of {group} on {} is in the wrong place", self.node));
            }
        }
    }
}

/// What must hold for each group over all nodes.
fn check_groups(spec: &LadleSpec, state: &Current, problems: &mut Vec<String>) {
    let mut groups: BTreeMap<_, (usize, usize, BTreeSet<u16>)> = BTreeMap::new();
    for keeper in state.layouts.values().flat_map(|layout| &layout.keepers) {
        let (copies, preferred, ports) = groups.entry(&keeper.id.rep_group).or_default();
        *copies += 1;
        *preferred += usize::from(keeper.preferred);
        ports.insert(keeper.pg_port);
    }
    for (group, (copies, preferred, ports)) in groups {
        if copies != spec.copies() || preferred != 1 || ports.len() != copies {
            problems.push(format!(
                "group {group} has {copies} keepers, {preferred} of them preferred, at {} different ports",
                ports.len()
            ));
        }
    }
}
