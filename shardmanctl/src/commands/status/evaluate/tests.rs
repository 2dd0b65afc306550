use super::super::collect::Answer;
use super::super::dictionary::tests::sample;
use super::*;
use crate::topology::tests::spec;
use model::keys::ClusterKeys;
use serde_json::{Value, json};
use store::Entry;

fn keys() -> ClusterKeys {
    ClusterKeys::new(&"c".into())
}

fn layout(position: u32, node: &str) -> Value {
    let keeper = |group: &str| {
        let preferred = group.ends_with(node);
        json!({"Id": {"RepGroup": group, "Uid": position}, "Preferred": preferred, "PgPort": if preferred {5442} else {5443}})
    };
    json!({"FormatVersion": 1, "Generation": 2, "Keepers": [keeper("clover-1-sdm01"), keeper("clover-1-sdm02")],
        "Monitor": true, "Proxies": []})
}

fn status(node: &str) -> Value {
    json!({"FormatVersion": 1, "Node": node, "Version": "0.1.0", "Generation": 2, "SpecRevision": 10, "LastError": "",
        "Time": "2026-01-10T12:00:00Z", "Daemons": [{"Unit": "u", "State": "running", "Restarts": 0}]})
}

/// Two nodes that make one clover of two groups, as the quick start leaves them.
fn stored() -> BTreeMap<String, Value> {
    let keys = keys();
    let mut stored = BTreeMap::from([
        (keys.spec(), serde_json::from_slice(&spec(false)).unwrap()),
        (keys.revision(), json!({"FormatVersion": 1, "Generation": 2, "CloverSeq": 2, "RepGroupSeq": 3})),
        (keys.clover(model::CloverId(1)), json!({"FormatVersion": 1, "Nodes": ["sdm01", "sdm02"]})),
    ]);
    for (position, node) in [(0, "sdm01"), (1, "sdm02")] {
        stored.insert(keys.layout(&node.into()), layout(position, node));
        stored.insert(keys.status(&node.into()), status(node));
        let group = json!({"FormatVersion": 1, "StolonName": format!("clover-1-{node}"), "StorePrefix": "stolon/cluster",
            "SysId": 7, "State": "active"});
        stored.insert(keys.repgroup(RepGroupId(position + 1)), group);
    }
    stored
}

fn documents(stored: &BTreeMap<String, Value>) -> Documents {
    let entry = |(key, value): (&String, &Value)| Entry {
        key: key.clone(),
        value: value.to_string().into_bytes(),
        create_revision: 10,
        mod_revision: 10,
        lease: None,
    };
    Documents::parse(&keys(), &stored.iter().map(entry).collect::<Vec<_>>())
}

fn cluster_data(host: &str) -> Value {
    let keeper =
        |uid: &str, priority: i64| json!({"uid": uid, "spec": {"priority": priority}, "status": {"healthy": true}});
    let master = json!({"uid": "a", "spec": {"keeperUID": "keeper_0", "role": "master", "synchronousReplication": true},
        "status": {"listenAddress": host, "port": "5432", "healthy": true, "synchronousStandbys": ["b"]}});
    let standby = json!({"uid": "b", "spec": {"keeperUID": "keeper_1", "role": "standby", "followConfig":
        {"type": "internal", "dbuid": "a"}}, "status": {"healthy": true}});
    json!({"formatVersion": 1, "cluster": {"spec": {"initMode": "new"}}, "dbs": {"a": master, "b": standby},
        "keepers": {"keeper_0": keeper("keeper_0", 1), "keeper_1": keeper("keeper_1", 0)},
        "proxy": {"spec": {"masterDbUid": "a"}}})
}

fn seen(id: u32, data: &Value) -> Seen {
    let dictionary = Ok(sample(id, [1, 2]));
    Seen {
        data: Ok(Some(ClusterData::parse(data.to_string().as_bytes()).unwrap())),
        answer: Some(Ok(Answer { in_recovery: false, dictionary })),
    }
}

fn member(name: &str, healthy: bool) -> Member {
    Member { name: name.into(), urls: vec![format!("http://{name}:2379")], healthy }
}

fn observed() -> Observed {
    Observed {
        members: Ok(vec![member("etcd0", true)]),
        documents: Ok(documents(&stored())),
        groups: [(1, "sdm01"), (2, "sdm02")].map(|(id, host)| (RepGroupId(id), seen(id, &cluster_data(host)))).into(),
    }
}

/// The rows of a section as `status message [rg] [node]`.
fn rows(observed: &Observed, name: &str) -> Vec<String> {
    let report = evaluate(observed);
    let section = report.sections.iter().find(|section| section.name == name).unwrap();
    let text = |row: &Row| {
        let mut text = format!("{:?} {}", row.status, row.message);
        for cell in [&row.rg, &row.node].into_iter().filter(|cell| !cell.is_empty()) {
            text += &format!(" [{cell}]");
        }
        text
    };
    section.rows.iter().map(text).collect()
}

#[test]
fn the_sample_of_the_quick_start() {
    let report = evaluate(&observed());
    assert_eq!(report.count(Level::Error), 0);
    let golden = include_str!("../golden/quickstart.txt");
    assert_eq!(report.text(false), golden, "\n{}", report.text(false));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(
        json["sections"][0],
        json!({"name": "STORE", "rows": [{"status": "Warning", "rg": "", "node": "",
            "message": "Store has only one member, consider deploying store cluster"}]})
    );
    let names: Vec<_> = json["sections"].as_array().unwrap().iter().map(|section| section["name"].clone()).collect();
    assert_eq!(names, ["STORE", "TOPOLOGY", "METADATA", "SHARDMAND", "REPLICATION GROUP", "MASTER", "DICTIONARY"]);
}

#[test]
fn members_of_the_store() {
    for (members, expected) in [
        (Ok(vec![member("a", true), member("b", true), member("c", true)]), vec!["Ok Store is OK"]),
        (
            Ok(vec![member("a", true), member("b", true)]),
            vec!["Warning Store has 2 members, consider an odd number: it survives as many failures with one less"],
        ),
        (
            Ok(vec![member("a", true), member("b", false), member("c", true)]),
            vec!["Error Store member b is unreachable [b]"],
        ),
        (Err("why".to_owned()), vec!["Error Store can't be used: why"]),
    ] {
        assert_eq!(rows(&Observed { members, ..observed() }, "STORE"), expected);
    }
}

#[test]
fn a_store_that_is_down_still_gives_all_tables() {
    let observed = Observed { members: Err("x".into()), documents: Err("y".into()), groups: BTreeMap::new() };
    let report = evaluate(&observed);
    assert_eq!((report.sections.len(), report.count(Level::Error)), (7, 3));
    assert_eq!(report.text(false).matches("STATUS ==").count(), 7);
}

/// What METADATA says after a change of what is stored.
fn metadata_after(change: impl FnOnce(&mut BTreeMap<String, Value>)) -> Vec<String> {
    let mut stored = stored();
    change(&mut stored);
    rows(&Observed { documents: Ok(documents(&stored)), ..observed() }, "METADATA")
}

#[test]
fn metadata_that_do_not_fit_together() {
    let keys = keys();
    assert_eq!(metadata_after(|_| {}), ["Ok Metadata is OK"]);
    assert_eq!(metadata_after(BTreeMap::clear), ["Error Cluster c is not in this store"]);
    let missing = metadata_after(|stored| drop(stored.remove(&keys.revision())));
    assert_eq!(missing, ["Error The revision is missing in the store"]);
    let newer = metadata_after(|stored| stored.get_mut(&keys.spec()).unwrap()["FormatVersion"] = 2.into());
    assert!(newer[0].starts_with("Error The specification in the store has format version 2"), "{newer:?}");
    let lost = metadata_after(|stored| drop(stored.remove(&keys.layout(&"sdm02".into()))));
    assert!(lost.contains(&"Error Node sdm02 of clover 1 has no layout".to_owned()), "{lost:?}");
    let unregistered = metadata_after(|stored| drop(stored.remove(&keys.repgroup(RepGroupId(2)))));
    assert_eq!(
        unregistered,
        ["Error Replication group clover-1-sdm02 is laid out but not registered [clover-1-sdm02]"]
    );
    let half = metadata_after(|stored| {
        stored.get_mut(&keys.repgroup(RepGroupId(2))).unwrap()["State"] = "committing".into();
    });
    assert!(half.len() == 1 && half[0].starts_with("Warning"), "{half:?}");
    let stray = metadata_after(|stored| {
        let mut group = stored[&keys.repgroup(RepGroupId(2))].clone();
        group["StolonName"] = "clover-9-x".into();
        stored.insert(keys.repgroup(RepGroupId(3)), group.clone());
        group["StolonName"] = "attached-by-hand".into();
        stored.insert(keys.repgroup(RepGroupId(4)), group);
    });
    assert_eq!(stray, ["Error Replication group clover-9-x is registered but laid out on no node [clover-9-x]"]);
}

#[test]
fn an_unfinished_operation_is_only_warned_of() {
    let keys = keys();
    let rows = metadata_after(|stored| {
        stored.remove(&keys.repgroup(RepGroupId(2)));
        stored.insert(
            ladle::operation::operation_key(&keys),
            json!({"FormatVersion": 1, "Command": "addnodes", "Id": "i", "Nodes": ["n3", "n4"], "Generation": 3}),
        );
    });
    assert_eq!(rows, ["Warning Addnodes n3,n4 is unfinished; run it again to finish it"]);
}

#[test]
fn daemons_of_nodes() {
    let keys = keys();
    for (change, expected) in [
        (json!({"Generation": 1}), "Warning shardmand on node sdm02 has not applied current configuration [sdm02]"),
        (
            json!({"SpecRevision": 9, "LastError": "no space"}),
            "Warning shardmand on node sdm02 has not applied current configuration: no space [sdm02]",
        ),
        (json!({"LastError": "no space"}), "Warning shardmand on node sdm02 reports: no space [sdm02]"),
        (
            json!({"Daemons": [{"Unit": "u", "State": "failed", "Restarts": 9}]}),
            "Warning shardmand on node sdm02 can't keep running: u [sdm02]",
        ),
        (Value::Null, "Error shardmand on node sdm02 gives no sign of life [sdm02]"),
    ] {
        let mut stored = stored();
        let key = keys.status(&"sdm02".into());
        match change.as_object() {
            Some(change) => stored.get_mut(&key).unwrap().as_object_mut().unwrap().extend(change.clone()),
            None => drop(stored.remove(&key)),
        }
        let rows = rows(&Observed { documents: Ok(documents(&stored)), ..observed() }, "SHARDMAND");
        assert_eq!(rows, ["Ok shardmand on node sdm01 is OK [sdm01]", expected]);
    }
}

/// The second group's rows in the last three sections.
fn second_group(group: Seen) -> [String; 3] {
    let mut observed = observed();
    observed.groups.insert(RepGroupId(2), group);
    ["REPLICATION GROUP", "MASTER", "DICTIONARY"].map(|name| {
        let row = rows(&observed, name).remove(1);
        row.replace("Replication group clover-1-sdm02", "it").replace(" [clover-1-sdm02]", "")
    })
}

#[test]
fn groups_without_a_primary() {
    let unread = "Error it dictionary can't be read: the master does not answer";
    for (data, text) in [
        (Ok(None), "Error it has no primary: it has no stolon data"),
        (Err("why".to_owned()), "Error it state can't be read: why"),
    ] {
        let group = Seen { data, answer: None };
        assert_eq!(second_group(group), [text, "Error it master is unknown", unread].map(str::to_owned));
    }
    let mut data = cluster_data("sdm02");
    data["proxy"]["spec"]["masterDbUid"] = "".into();
    let group = Seen { answer: None, ..seen(2, &data) };
    assert_eq!(second_group(group)[0], "Error it has no primary");
    let group = Seen { answer: Some(Err("refused".into())), ..seen(2, &cluster_data("sdm02")) };
    assert_eq!(
        second_group(group)[1..],
        ["Error it master on sdm02:5432 does not answer: refused [sdm02:5432]", unread]
    );
}

#[test]
fn groups_that_are_not_quite_well() {
    let after = |change: fn(&mut Value)| {
        let mut data = cluster_data("sdm02");
        change(&mut data);
        second_group(seen(2, &data))
    };
    let unhealthy = after(|data| data["keepers"]["keeper_1"]["status"]["healthy"] = false.into());
    assert_eq!(unhealthy[0], "Warning it has unhealthy keepers: keeper_1");
    let alone = after(|data| data["dbs"]["a"]["status"]["synchronousStandbys"] = json!([]));
    assert_eq!(alone[0], "Warning it has no synchronous standby");
    let elsewhere = after(|data| data["keepers"]["keeper_1"]["spec"]["priority"] = 2.into());
    assert_eq!(
        elsewhere[1],
        "Warning it master is running on sdm02:5432, which is not the preferred keeper [sdm02:5432]"
    );
    let moved = after(|data| data["dbs"]["a"]["status"]["port"] = "5433".into());
    assert_eq!(moved[2], "Ok it dictionary is OK", "it is the other group that has to know");
}

#[test]
fn dictionaries_that_differ() {
    let mut group = seen(2, &cluster_data("sdm02"));
    group.answer = Some(Ok(Answer { in_recovery: true, dictionary: Err("the extension shardman is missing".into()) }));
    let rows = second_group(group);
    assert_eq!(rows[1], "Error it master on sdm02:5432 is still in recovery [sdm02:5432]");
    assert_eq!(rows[2], "Error it dictionary can't be read: the extension shardman is missing");
    assert_eq!(shortened(&["a", "b", "c", "d", "e"].map(str::to_owned)), "a; b; c; and 2 more");
}
