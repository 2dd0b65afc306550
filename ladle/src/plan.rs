//! Where new nodes' daemons go: a pure function of the specification, what is there, and the new nodes.

use model::ids::is_plain_name;
use model::layout::{CloverDoc, FORMAT_VERSION, KeeperId, KeeperSlot, NodeLayout, ProxySlot, RepGroupDoc, RevisionDoc};
use model::spec::LadleSpec;
use model::{CloverId, Generation, NodeName, RepGroupId, RepGroupName};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What is in force now: only documents that [`RevisionDoc`] makes visible.
#[derive(Clone, Debug, PartialEq)]
pub struct Current {
    /// Counters and the newest valid generation.
    pub revision: RevisionDoc,
    /// Clovers.
    pub clovers: BTreeMap<CloverId, CloverDoc>,
    /// Layouts of all nodes.
    pub layouts: BTreeMap<NodeName, NodeLayout>,
    /// Replication groups.
    pub repgroups: BTreeMap<RepGroupId, RepGroupDoc>,
}

impl Current {
    /// A cluster without nodes, as `init` makes it.
    pub fn empty() -> Self {
        Current {
            revision: RevisionDoc {
                format_version: FORMAT_VERSION,
                generation: Generation(0),
                clover_seq: 1,
                rep_group_seq: 1,
            },
            clovers: BTreeMap::new(),
            layouts: BTreeMap::new(),
            repgroups: BTreeMap::new(),
        }
    }

    /// The state once the plan is carried out.
    pub fn after(mut self, plan: &Plan) -> Self {
        self.revision = plan.revision.clone();
        self.clovers.extend(plan.clovers.clone());
        self.layouts.extend(plan.layouts.clone());
        self
    }
}

/// A new replication group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct GroupPlan {
    /// Its name.
    pub name: RepGroupName,
    /// The node expected to carry its master.
    pub preferred: NodeName,
}

/// All that adding nodes writes. Carrying it out leaves nothing to choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Plan {
    /// The new nodes in the given order.
    pub nodes: Vec<NodeName>,
    /// The generation that the plan was made from.
    pub parent: Generation,
    /// New clovers.
    pub clovers: BTreeMap<CloverId, CloverDoc>,
    /// New layouts.
    pub layouts: BTreeMap<NodeName, NodeLayout>,
    /// New groups in the order in which they are made and numbered.
    pub groups: Vec<GroupPlan>,
    /// New nodes that run a monitor.
    pub monitors: Vec<NodeName>,
    /// Written last: makes the rest visible.
    pub revision: RevisionDoc,
}

/// Why nodes can't be added. Nothing was touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// An empty list.
    #[error("no node is named; write -n HOST[,HOST...]")]
    NoNodes,
    /// Not usable in unit names, file names and keys.
    #[error(
        "\"{0}\" can't be a node's name; use 1 to 63 letters, digits, '.', '-' and '_', not starting with '.' or '-'"
    )]
    BadName(NodeName),
    /// Twice in the list.
    #[error("node {0} is named twice; name each node once")]
    Repeated(NodeName),
    /// Has a layout.
    #[error("node {0} is already registered; leave it out")]
    Registered(NodeName),
    /// Can't be cut into clovers.
    #[error("nodes are added by clovers: name a multiple of {copies} nodes (Repfactor + 1) instead of {given}")]
    Count {
        /// Number of nodes in the list.
        given: usize,
        /// Nodes of a clover.
        copies: usize,
    },
    /// A port or a counter would overflow.
    #[error("the {0} run out; choose lower initial ports or another cluster")]
    Exhausted(&'static str),
}

/// Plans the placement of new nodes. Consecutive nodes form clovers.
///
/// # Errors
/// See [`PlanError`]; every rule is checked before anything is placed.
pub fn plan_addnodes(
    spec: &LadleSpec,
    use_proxy: bool,
    current: &Current,
    nodes: &[NodeName],
) -> Result<Plan, PlanError> {
    check_nodes(spec, current, nodes)?;
    let mut plan = Plan {
        nodes: nodes.to_vec(),
        parent: current.revision.generation,
        clovers: BTreeMap::new(),
        layouts: BTreeMap::new(),
        groups: Vec::new(),
        monitors: Vec::new(),
        revision: current.revision.clone(),
    };
    plan.revision.generation.0 += 1;
    for members in nodes.chunks(spec.copies()) {
        let id = CloverId(plan.revision.clover_seq);
        plan.revision.clover_seq = id.0.checked_add(1).ok_or(PlanError::Exhausted("clover numbers"))?;
        place_clover(spec, use_proxy, id, members, &mut plan)?;
    }
    assign_monitors(spec, current, &mut plan);
    Ok(plan)
}

fn check_nodes(spec: &LadleSpec, current: &Current, nodes: &[NodeName]) -> Result<(), PlanError> {
    if nodes.is_empty() {
        return Err(PlanError::NoNodes);
    }
    let mut seen = BTreeSet::new();
    for node in nodes {
        if !is_plain_name(node.as_str()) {
            return Err(PlanError::BadName(node.clone()));
        }
        if !seen.insert(node) {
            return Err(PlanError::Repeated(node.clone()));
        }
        if current.layouts.contains_key(node) {
            return Err(PlanError::Registered(node.clone()));
        }
    }
    if !nodes.len().is_multiple_of(spec.copies()) {
        return Err(PlanError::Count { given: nodes.len(), copies: spec.copies() });
    }
    Ok(())
}

/// Name of the group whose preferred master is on `node`.
pub fn group_name(clover: CloverId, node: &NodeName) -> RepGroupName {
    format!("clover-{clover}-{node}").into()
}

/// Each member carries the master of its own group at the first ports; the group's further keepers follow round
/// the clover at the next ports. So no two daemons of a node get the same port.
fn place_clover(
    spec: &LadleSpec,
    use_proxy: bool,
    id: CloverId,
    members: &[NodeName],
    plan: &mut Plan,
) -> Result<(), PlanError> {
    let generation = plan.revision.generation;
    let mut layouts: Vec<NodeLayout> = members.iter().map(|_| empty_layout(generation)).collect();
    for (own, preferred) in members.iter().enumerate() {
        let group = group_name(id, preferred);
        for offset in 0..members.len() {
            let holder = (own + offset) % members.len();
            let keeper_id = KeeperId { rep_group: group.clone(), uid: number(holder)? };
            let pg_port = port(spec.pgs_initial_port, offset)?;
            layouts[holder].keepers.push(KeeperSlot { id: keeper_id, preferred: offset == 0, pg_port });
            if use_proxy {
                let port = port(spec.proxies_initial_port, offset)?;
                layouts[holder].proxies.push(ProxySlot { rep_group: group.clone(), port });
            }
        }
        plan.groups.push(GroupPlan { name: group, preferred: preferred.clone() });
    }
    plan.layouts.extend(members.iter().cloned().zip(layouts));
    plan.clovers.insert(id, CloverDoc { format_version: FORMAT_VERSION, nodes: members.to_vec() });
    Ok(())
}

fn empty_layout(generation: Generation) -> NodeLayout {
    NodeLayout { format_version: FORMAT_VERSION, generation, keepers: vec![], monitor: false, proxies: vec![] }
}

fn number(position: usize) -> Result<u32, PlanError> {
    u32::try_from(position).map_err(|_| PlanError::Exhausted("keeper numbers"))
}

fn port(first: u16, offset: usize) -> Result<u16, PlanError> {
    u16::try_from(offset).ok().and_then(|offset| first.checked_add(offset)).ok_or(PlanError::Exhausted("ports"))
}

/// Counted anew over all layouts: a stored number could disagree with them.
fn assign_monitors(spec: &LadleSpec, current: &Current, plan: &mut Plan) {
    let wanted = spec.monitors_num as usize;
    let mut assigned = current.layouts.values().filter(|layout| layout.monitor).count();
    for node in &plan.nodes {
        if assigned >= wanted {
            break;
        }
        if let Some(layout) = plan.layouts.get_mut(node) {
            layout.monitor = true;
            plan.monitors.push(node.clone());
            assigned += 1;
        }
    }
}
