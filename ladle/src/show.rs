//! Plans and layouts for people.

use crate::plan::{Current, Plan};
use model::NodeName;
use model::layout::NodeLayout;
use std::collections::BTreeMap;
use std::fmt::Write as _;

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "layout generation {} -> {}", self.parent, self.revision.generation)?;
        for (id, clover) in &self.clovers {
            writeln!(f, "new clover {id}: {}", names(&clover.nodes))?;
        }
        for group in &self.groups {
            writeln!(f, "new group {}, preferred master on {}", group.name, group.preferred)?;
        }
        if !self.monitors.is_empty() {
            writeln!(f, "new monitors: {}", names(&self.monitors))?;
        }
        f.write_str(&table(&self.nodes, &self.layouts))
    }
}

/// The layout of a cluster as a table, clover by clover.
pub fn layout(current: &Current) -> String {
    let nodes: Vec<NodeName> = current.clovers.values().flat_map(|clover| clover.nodes.clone()).collect();
    table(&nodes, &current.layouts)
}

/// Names separated by a comma and a blank.
pub fn names(nodes: &[NodeName]) -> String {
    nodes.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ")
}

const HEAD: [&str; 7] = ["NODE", "GROUP", "UID", "PG PORT", "PROXY PORT", "PREFERRED", "MONITOR"];

fn table(nodes: &[NodeName], layouts: &BTreeMap<NodeName, NodeLayout>) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    for (node, layout) in nodes.iter().filter_map(|node| Some((node, layouts.get(node)?))) {
        for keeper in &layout.keepers {
            let group = &keeper.id.rep_group;
            let proxy = layout.proxies.iter().find(|proxy| proxy.rep_group == *group);
            rows.push([
                node.to_string(),
                group.to_string(),
                keeper.id.uid.to_string(),
                keeper.pg_port.to_string(),
                proxy.map_or_else(|| "-".to_owned(), |proxy| proxy.port.to_string()),
                yes(keeper.preferred),
                yes(layout.monitor),
            ]);
        }
    }
    render(&rows)
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

fn render<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|i| rows.iter().map(|row| row[i].len()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
