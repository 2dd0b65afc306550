//! From what was seen to what is well and what is not. Pure.

use super::collect::{Observed, Seen};
use super::dictionary::compare;
use super::documents::Documents;
use super::report::{Level, Report, Row, Section};
use model::layout::{NodeLayout, RepGroupDoc, RepGroupState};
use model::stolon::{ClusterData, Db, Keeper};
use model::{NodeName, RepGroupId};
use std::collections::{BTreeMap, BTreeSet};
use store::Member;

/// All sections, in their order.
pub(super) fn evaluate(observed: &Observed) -> Report {
    let nothing = Documents::default();
    let (documents, unread) = match &observed.documents {
        Ok(documents) => (documents, None),
        Err(error) => (&nothing, Some(error)),
    };
    let metadata = match unread {
        Some(error) => vec![Row::new(Level::Error, format!("Metadata can't be read: {error}"))],
        None => metadata(documents, &observed.groups),
    };
    let sections = [
        ("STORE", store(&observed.members)),
        ("TOPOLOGY", topology(documents)),
        ("METADATA", metadata),
        ("SHARDMAND", shardmand(documents)),
        ("REPLICATION GROUP", groups(documents, &observed.groups)),
        ("MASTER", masters(documents, &observed.groups)),
        ("DICTIONARY", dictionaries(documents, &observed.groups)),
    ];
    Report { sections: sections.into_iter().map(|(name, rows)| Section { name, rows }).collect() }
}

fn store(members: &Result<Vec<Member>, String>) -> Vec<Row> {
    let members = match members {
        Ok(members) => members,
        Err(error) => return vec![Row::new(Level::Error, format!("Store can't be used: {error}"))],
    };
    let unreachable = |member: &&Member| {
        let name = if member.name.is_empty() { member.urls.join(",") } else { member.name.clone() };
        Row::new(Level::Error, format!("Store member {name} is unreachable")).node(name)
    };
    let mut rows: Vec<Row> =
        members.iter().filter(|member| !member.healthy).collect::<Vec<_>>().iter().map(unreachable).collect();
    match members.len() {
        1 => rows.push(Row::new(Level::Warning, "Store has only one member, consider deploying store cluster")),
        count if count % 2 == 0 => rows.push(Row::new(
            Level::Warning,
            format!("Store has {count} members, consider an odd number: it survives as many failures with one less"),
        )),
        _ if rows.is_empty() => rows.push(Row::new(Level::Ok, "Store is OK")),
        _ => {}
    }
    rows
}

fn topology(documents: &Documents) -> Vec<Row> {
    // There is one policy only; clover is its older name.
    vec![match documents.spec {
        Some(_) => Row::new(Level::Cross, "Topology placement policy is CROSS"),
        None => Row::new(Level::Error, "Topology placement policy is unknown"),
    }]
}

fn metadata(documents: &Documents, seen: &BTreeMap<RepGroupId, Seen>) -> Vec<Row> {
    let error = |text: String| Row::new(Level::Error, text);
    let mut rows: Vec<Row> = documents.problems.iter().map(|text| error(capitalized(text))).collect();
    if let (Some(spec), Some(current)) = (&documents.spec, documents.current()) {
        let problems = ladle::check::check(&spec.ladle_spec, spec.cluster_spec.use_proxy, &current);
        rows.extend(problems.iter().map(|text| error(capitalized(text))));
    }
    let laid_out: BTreeSet<&str> =
        documents.layouts.values().flat_map(|layout| &layout.keepers).map(|slot| slot.id.rep_group.as_str()).collect();
    let registered: BTreeSet<&str> = documents.repgroups.values().map(|doc| doc.stolon_name.as_str()).collect();
    match &documents.operation {
        Some(operation) => {
            let nodes = operation.nodes.iter().map(NodeName::as_str).collect::<Vec<_>>().join(",");
            let text = format!("{} {nodes} is unfinished; run it again to finish it", operation.command);
            rows.push(Row::new(Level::Warning, capitalized(&text)));
        }
        // Between writing layouts and registering groups the two must differ.
        None => rows.extend(
            laid_out
                .difference(&registered)
                .map(|name| error(format!("Replication group {name} is laid out but not registered")).rg(name)),
        ),
    }
    // A group that was attached by hand has no layout.
    let planned = |name: &&&str| name.starts_with("clover-");
    rows.extend(
        registered
            .difference(&laid_out)
            .filter(planned)
            .map(|name| error(format!("Replication group {name} is registered but laid out on no node")).rg(name)),
    );
    for (id, doc) in &documents.repgroups {
        let name = &doc.stolon_name;
        if seen.get(id).is_some_and(|seen| matches!(seen.data, Ok(None))) {
            rows.push(error(format!("Replication group {name} has no stolon data")).rg(name));
        }
        if doc.state != RepGroupState::Active {
            let text = format!("Replication group {name} is only half added; run the command that adds it again");
            rows.push(Row::new(Level::Warning, text).rg(name));
        }
    }
    if rows.is_empty() {
        rows.push(Row::new(Level::Ok, "Metadata is OK"));
    }
    rows
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

fn shardmand(documents: &Documents) -> Vec<Row> {
    documents.layouts.iter().map(|(node, layout)| one_shardmand(documents, node, layout).node(node)).collect()
}

fn one_shardmand(documents: &Documents, node: &NodeName, layout: &NodeLayout) -> Row {
    let Some(status) = documents.statuses.get(node) else {
        return Row::new(Level::Error, format!("shardmand on node {node} gives no sign of life"));
    };
    let bad: Vec<&str> =
        status.daemons.iter().filter(|daemon| daemon.state == "failed").map(|daemon| daemon.unit.as_str()).collect();
    if status.generation < layout.generation || status.spec_revision < documents.spec_revision {
        let why = if status.last_error.is_empty() { String::new() } else { format!(": {}", status.last_error) };
        Row::new(Level::Warning, format!("shardmand on node {node} has not applied current configuration{why}"))
    } else if !status.last_error.is_empty() {
        Row::new(Level::Warning, format!("shardmand on node {node} reports: {}", status.last_error))
    } else if !bad.is_empty() {
        Row::new(Level::Warning, format!("shardmand on node {node} can't keep running: {}", bad.join(", ")))
    } else {
        Row::new(Level::Ok, format!("shardmand on node {node} is OK"))
    }
}

fn groups(documents: &Documents, seen: &BTreeMap<RepGroupId, Seen>) -> Vec<Row> {
    let row = |(id, doc): (RepGroupId, &RepGroupDoc)| {
        let name = &doc.stolon_name;
        let (level, text) = match seen.get(&id).map(|seen| &seen.data) {
            None => (Level::Error, "state is unknown".to_owned()),
            Some(Err(error)) => (Level::Error, format!("state can't be read: {error}")),
            Some(Ok(None)) => (Level::Error, "has no primary: it has no stolon data".to_owned()),
            Some(Ok(Some(data))) => group_health(data),
        };
        Row::new(level, format!("Replication group {name} {text}")).rg(name)
    };
    documents.active().map(row).collect()
}

fn group_health(data: &ClusterData) -> (Level, String) {
    if pg::endpoints::master(data).is_err() {
        return (Level::Error, "has no primary".to_owned());
    }
    let healthy =
        |keeper: &Keeper| keeper.status.healthy && data.db_of_keeper(&keeper.uid).is_none_or(|db| db.status.healthy);
    let unhealthy: Vec<&str> =
        data.keepers.values().filter(|keeper| !healthy(keeper)).map(|keeper| keeper.uid.as_str()).collect();
    if !unhealthy.is_empty() {
        return (Level::Warning, format!("has unhealthy keepers: {}", unhealthy.join(", ")));
    }
    if data.keepers.len() > 1 && data.proxied_master().is_some_and(|master| lacks_standby(data, master)) {
        return (Level::Warning, "has no synchronous standby".to_owned());
    }
    (Level::Ok, "is OK".to_owned())
}

fn lacks_standby(data: &ClusterData, master: &Db) -> bool {
    let external = master.spec.external_synchronous_standbys.as_ref().is_some_and(|list| !list.is_empty());
    let in_sync = master.status.synchronous_standbys.iter().flatten().any(|uid| data.dbs.contains_key(uid));
    master.spec.synchronous_replication && !external && !in_sync
}

fn masters(documents: &Documents, seen: &BTreeMap<RepGroupId, Seen>) -> Vec<Row> {
    let row = |(id, doc): (RepGroupId, &RepGroupDoc)| {
        let subject = format!("Replication group {} master", doc.stolon_name);
        let seen = seen.get(&id);
        let data = seen.and_then(|seen| seen.data.as_ref().ok()?.as_ref());
        let master = data.and_then(|data| Some((data, pg::endpoints::master(data).ok()?)));
        let Some((data, master)) = master else {
            return Row::new(Level::Error, format!("{subject} is unknown")).rg(&doc.stolon_name);
        };
        let (level, text) = match seen.and_then(|seen| seen.answer.as_ref()) {
            None => (Level::Error, format!("on {master} was not asked: the specification can't be read")),
            Some(Err(error)) => (Level::Error, format!("on {master} does not answer: {error}")),
            Some(Ok(answer)) if answer.in_recovery => (Level::Error, format!("on {master} is still in recovery")),
            Some(Ok(_)) if !is_preferred(data) => {
                (Level::Warning, format!("is running on {master}, which is not the preferred keeper"))
            }
            Some(Ok(_)) => (Level::Ok, format!("is running on {master}")),
        };
        Row::new(level, format!("{subject} {text}")).rg(&doc.stolon_name).node(master)
    };
    documents.active().map(row).collect()
}

/// No other keeper has a higher priority.
fn is_preferred(data: &ClusterData) -> bool {
    let best = data.keepers.values().map(|keeper| keeper.spec.priority).max();
    data.proxied_master_keeper().is_none_or(|keeper| Some(keeper.spec.priority) >= best)
}

/// So many problems of a dictionary are shown; a group that missed a schema change may have thousands.
const SHOWN: usize = 3;

fn dictionaries(documents: &Documents, seen: &BTreeMap<RepGroupId, Seen>) -> Vec<Row> {
    let use_proxy = documents.spec.as_ref().is_some_and(|spec| spec.cluster_spec.use_proxy);
    let read = |id: RepGroupId| seen.get(&id)?.answer.as_ref()?.as_ref().ok()?.dictionary.as_ref().ok();
    let dictionaries = documents.active().filter_map(|(id, _)| Some((id.0, read(id)?))).collect();
    let reachable = documents.active().map(|(id, _)| {
        let data = seen.get(&id).and_then(|seen| seen.data.as_ref().ok()?.as_ref());
        (id.0, data.and_then(|data| pg::endpoints::entry_points(data, use_proxy).ok()))
    });
    let problems = compare(&dictionaries, &reachable.collect());
    let row = |(id, doc): (RepGroupId, &RepGroupDoc)| {
        let subject = format!("Replication group {} dictionary", doc.stolon_name);
        let row = match (problems.get(&id.0), seen.get(&id).and_then(|seen| seen.answer.as_ref())) {
            (Some(problems), _) if problems.is_empty() => Row::new(Level::Ok, format!("{subject} is OK")),
            (Some(problems), _) => Row::new(Level::Error, format!("{subject} is wrong: {}", shortened(problems))),
            (None, Some(Ok(answer))) => {
                let why = answer.dictionary.as_ref().err().map_or("it was not read", String::as_str);
                Row::new(Level::Error, format!("{subject} can't be read: {why}"))
            }
            (None, _) => Row::new(Level::Error, format!("{subject} can't be read: the master does not answer")),
        };
        row.rg(&doc.stolon_name)
    };
    documents.active().map(row).collect()
}

fn shortened(problems: &[String]) -> String {
    let shown = problems.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    match problems.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

#[cfg(test)]
mod tests;
