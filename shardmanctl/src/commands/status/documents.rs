//! The documents of a cluster, read so that a broken one hides no other. Pure.

use common::exit::one_line;
use ladle::operation::{Operation, operation_key};
use ladle::plan::Current;
use model::keys::ClusterKeys;
use model::layout::{CloverDoc, Document, NodeLayout, NodeStatus, RepGroupDoc, RepGroupState, RevisionDoc, SpecDoc};
use model::{CloverId, NodeName, RepGroupId};
use std::collections::BTreeMap;
use store::Entry;

/// What is in force, and what is wrong with what is stored.
#[derive(Debug, Default)]
pub(super) struct Documents {
    pub(super) spec: Option<SpecDoc>,
    /// etcd's mod revision of the specification.
    pub(super) spec_revision: i64,
    pub(super) revision: Option<RevisionDoc>,
    pub(super) clovers: BTreeMap<CloverId, CloverDoc>,
    pub(super) layouts: BTreeMap<NodeName, NodeLayout>,
    pub(super) repgroups: BTreeMap<RepGroupId, RepGroupDoc>,
    pub(super) statuses: BTreeMap<NodeName, NodeStatus>,
    pub(super) operation: Option<Operation>,
    /// Documents that are missing or can't be read, one line each.
    pub(super) problems: Vec<String>,
}

impl Documents {
    /// Reads everything below the cluster's prefix. Layouts and clovers that are written but not yet in force are
    /// left out.
    pub(super) fn parse(keys: &ClusterKeys, entries: &[Entry]) -> Self {
        let mut documents = Documents::default();
        if entries.is_empty() {
            // More likely a slip in the cluster's name than a loss of everything.
            let name = keys.prefix();
            let name = name.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
            documents.problems.push(format!("Cluster {name} is not in this store"));
            return documents;
        }
        let mut reader = Reader { entries, problems: Vec::new() };
        documents.spec = reader.one(&keys.spec(), "The specification");
        documents.spec_revision = reader.find(&keys.spec()).map_or(0, |entry| entry.mod_revision);
        documents.revision = reader.one(&keys.revision(), "The revision");
        let number = |text: &str| text.parse().ok();
        documents.clovers = reader.all(&keys.clovers(), "Clover", |text| number(text).map(CloverId));
        documents.layouts = reader.all(&keys.layouts(), "The layout of", |text| Some(text.into()));
        documents.repgroups = reader.all(&keys.repgroups(), "Replication group", |text| number(text).map(RepGroupId));
        documents.statuses = reader.all(&keys.statuses(), "The status of", |text| Some(text.into()));
        let operation = operation_key(keys);
        documents.operation =
            reader.find(&operation).is_some().then(|| reader.one(&operation, "The unfinished operation")).flatten();
        documents.problems = reader.problems;
        if let Some(revision) = &documents.revision {
            documents.clovers.retain(|id, _| id.0 < revision.clover_seq);
            documents.layouts.retain(|_, layout| layout.generation <= revision.generation);
        }
        documents
    }

    /// Groups that take part in the cluster.
    pub(super) fn active(&self) -> impl Iterator<Item = (RepGroupId, &RepGroupDoc)> {
        self.repgroups.iter().filter(|(_, doc)| doc.state == RepGroupState::Active).map(|(id, doc)| (*id, doc))
    }

    /// As the checker of layouts wants it; none while a needed document is missing.
    pub(super) fn current(&self) -> Option<Current> {
        Some(Current {
            revision: self.revision.clone()?,
            clovers: self.clovers.clone(),
            layouts: self.layouts.clone(),
            repgroups: self.repgroups.clone(),
        })
    }
}

struct Reader<'a> {
    entries: &'a [Entry],
    problems: Vec<String>,
}

impl Reader<'_> {
    fn find(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    fn one<T: Document>(&mut self, key: &str, what: &str) -> Option<T> {
        match self.find(key).map(|entry| T::parse(what, &entry.value)) {
            None => {
                self.problems.push(format!("{what} is missing in the store"));
                None
            }
            Some(Ok(document)) => Some(document),
            Some(Err(error)) => {
                self.problems.push(one_line(&error.into()));
                None
            }
        }
    }

    fn all<I: Ord, T: Document>(&mut self, prefix: &str, what: &str, id: impl Fn(&str) -> Option<I>) -> BTreeMap<I, T> {
        let mut found = BTreeMap::new();
        for entry in self.entries {
            let Some(name) = entry.key.strip_prefix(prefix) else { continue };
            let Some(id) = id(name) else { continue };
            match T::parse(&format!("{what} {name}"), &entry.value) {
                Ok(document) => {
                    found.insert(id, document);
                }
                Err(error) => self.problems.push(one_line(&error.into())),
            }
        }
        found
    }
}
