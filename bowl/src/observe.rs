//! What the store says of this node. Pure: a view in, an intent out.

use model::keys::ClusterKeys;
use model::layout::{Document, NodeLayout, RevisionDoc, SpecDoc};
use model::{Generation, NodeName};
use store::{Target, View};

/// What bowl is to do about the documents. Where they don't clearly ask for something, everything stays as it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Intent {
    /// Make the node what the documents say.
    Apply(Box<Orders>),
    /// Leave everything as it is.
    Hold(Hold),
}

/// Valid documents.
#[derive(Clone, Debug, PartialEq)]
pub struct Orders {
    /// The node's layout.
    pub layout: NodeLayout,
    /// The cluster's specification.
    pub spec: SpecDoc,
    /// etcd's mod revision of the specification.
    pub spec_revision: i64,
}

/// Why everything stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Nothing is wrong: there is nothing to do yet.
    Idle(String),
    /// Something is wrong with the store.
    Problem(String),
}

/// The keys to follow: as many on a large cluster as on a small one.
pub fn targets(keys: &ClusterKeys, node: &NodeName) -> Vec<Target> {
    // In the order of reading. The revision is written last, so it is read first: a layout read after it is at
    // least as new as what it makes valid.
    vec![Target::Key(keys.revision()), Target::Key(keys.spec()), Target::Key(keys.layout(node))]
}

/// Reads the documents. `applied` is the newest generation that this node ever applied.
pub fn interpret(view: &View, keys: &ClusterKeys, node: &NodeName, applied: Generation) -> Intent {
    match read_orders(view, keys, node, applied) {
        Ok(orders) => Intent::Apply(Box::new(orders)),
        Err(hold) => Intent::Hold(hold),
    }
}

fn read_orders(view: &View, keys: &ClusterKeys, node: &NodeName, applied: Generation) -> Result<Orders, Hold> {
    if !view.loaded {
        return Err(Hold::Idle("the store was not read yet".into()));
    }
    // A node that once had daemons and now finds no cluster looks at a wiped or a wrong store.
    let absent = |what: String| {
        Err(if applied == Generation(0) {
            Hold::Idle(what)
        } else {
            Hold::Problem(format!("{what}, but this node belongs to one; daemons stay as they are, check the store"))
        })
    };
    let Some(spec_entry) = view.entries.get(&keys.spec()) else {
        return absent(format!("the store has no cluster at {}", keys.prefix()));
    };
    let problem = |error: &dyn std::error::Error| Hold::Problem(chain(error));
    let spec = SpecDoc::parse("the specification", &spec_entry.value).map_err(|error| problem(&error))?;
    let Some(revision) = view.value(&keys.revision()) else {
        return absent("the store has no layout revision".into());
    };
    let revision = RevisionDoc::parse("the layout's revision", revision).map_err(|error| problem(&error))?;
    let Some(layout) = view.value(&keys.layout(node)) else {
        return Err(Hold::Idle(format!("node {node} is not part of the cluster; add it with `ladle addnodes`")));
    };
    let layout = NodeLayout::parse(&format!("the layout of node {node}"), layout).map_err(|error| problem(&error))?;
    if layout.generation > revision.generation {
        return Err(Hold::Idle(format!(
            "layout generation {} is not valid before the cluster's revision, {}, has reached it",
            layout.generation, revision.generation
        )));
    }
    if layout.generation < applied {
        return Err(Hold::Problem(format!(
            "the store's layout has generation {}, this node has applied {applied}; the store is stale or was made anew",
            layout.generation
        )));
    }
    Ok(Orders { layout, spec, spec_revision: spec_entry.mod_revision })
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text.replace('\n', " ")
}
