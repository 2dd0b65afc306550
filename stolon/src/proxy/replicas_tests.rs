use super::*;
use serde_json::{Value, json};

const ANY: Rules = Rules { role: ReplicaRole::Any, max_lag: 1000 };
const SYNC: Rules = Rules { role: ReplicaRole::Sync, max_lag: 1000 };

/// A master `m` at position 10,000 and a standby `s` at 9,500, both well.
fn data() -> Value {
    let keeper = |uid| json!({"uid": uid, "spec": {}, "status": {"healthy": true}});
    json!({"formatVersion": 1,
        "cluster": {"spec": {"initMode": "new"}, "status": {"phase": "normal", "master": "m"}},
        "keepers": {"k1": keeper("k1"), "k2": keeper("k2")},
        "dbs": {
            "m": {"uid": "m", "generation": 3, "spec": {"keeperUID": "k1", "role": "master", "initMode": "none",
                    "synchronousStandbys": ["s"]},
                  "status": {"healthy": true, "currentGeneration": 3, "listenAddress": "h1", "port": "1", "xLogPos": 10_000,
                    "synchronousStandbys": ["s"]}},
            "s": {"uid": "s", "generation": 2, "spec": {"keeperUID": "k2", "role": "standby", "initMode": "none",
                    "followConfig": {"type": "internal", "dbuid": "m"}},
                  "status": {"healthy": true, "currentGeneration": 2, "listenAddress": "h2", "port": "2", "xLogPos": 9_500}}},
        "proxy": {"generation": 2, "spec": {"masterDbUid": "m", "enabledProxies": ["p"]}, "status": {}}})
}

fn info(uid: &str, db: &str, healthy: bool, position: u64) -> KeeperInfo {
    let state = json!({"uid": db, "generation": 2, "healthy": healthy, "xLogPos": position});
    serde_json::from_value(json!({"uid": uid, "postgresState": state})).unwrap()
}

fn infos() -> BTreeMap<KeeperUid, KeeperInfo> {
    BTreeMap::from([("k1".into(), info("k1", "m", true, 10_000)), ("k2".into(), info("k2", "s", true, 9_500))])
}

fn verdict(data: Value, infos: &BTreeMap<KeeperUid, KeeperInfo>, rules: Rules) -> Verdict {
    let data = ClusterData::parse(data.to_string().as_bytes()).unwrap();
    judge(&data, infos, rules).remove(&DbUid::from("s")).unwrap()
}

fn here() -> Endpoint {
    Endpoint { host: "h2".into(), port: 2 }
}

#[test]
fn a_standby_that_is_well_is_fit_and_the_master_is_not() {
    for rules in [ANY, SYNC] {
        assert_eq!(verdict(data(), &infos(), rules), Verdict::Fit(here()));
    }
    let parsed = ClusterData::parse(data().to_string().as_bytes()).unwrap();
    assert_eq!(judge(&parsed, &infos(), ANY)[&DbUid::from("m")], Verdict::Unfit(Unfit::Master));
}

#[test]
fn what_takes_the_connections_away() {
    let cases: [(&str, Value, Unfit); 9] = [
        ("/dbs/s/spec/role", json!("master"), Unfit::Master),
        ("/dbs/s/spec/followConfig/type", json!("external"), Unfit::Master),
        // Elected, though its own specification has not changed yet.
        ("/cluster/status/master", json!("s"), Unfit::Master),
        ("/proxy/spec/masterDbUid", json!("s"), Unfit::Master),
        ("/dbs/s/spec/initMode", json!("resync"), Unfit::Remade),
        ("/dbs/s/status/currentGeneration", json!(0), Unfit::Remade),
        ("/dbs/s/status/healthy", json!(false), Unfit::Unhealthy),
        ("/keepers/k2/status/healthy", json!(false), Unfit::Unhealthy),
        ("/dbs/s/status/listenAddress", json!(""), Unfit::NoAddress),
    ];
    for (pointer, value, unfit) in cases {
        let mut data = data();
        *data.pointer_mut(pointer).unwrap() = value;
        assert_eq!(verdict(data, &infos(), ANY), Verdict::Unfit(unfit), "{pointer}");
    }
}

#[test]
fn what_only_keeps_new_connections_away() {
    let mut moving = data();
    moving["dbs"]["s"]["generation"] = json!(3);
    assert_eq!(verdict(moving, &infos(), ANY), Verdict::Keep(here(), Unfit::NotConverged));
    let unheard = [
        None,
        Some(info("k2", "s", false, 9_500)),
        // What the keeper reports is another db, which it has left.
        Some(info("k2", "older", true, 9_500)),
        Some(KeeperInfo::default()),
    ];
    for record in unheard {
        let mut infos = infos();
        infos.remove(&KeeperUid::from("k2"));
        infos.extend(record.map(|record| (KeeperUid::from("k2"), record)));
        assert_eq!(verdict(data(), &infos, ANY), Verdict::Keep(here(), Unfit::Unheard));
    }
}

#[test]
fn lag_is_judged_by_the_newest_reports() {
    let at = |master, standby| {
        let mut infos = infos();
        infos.insert("k1".into(), info("k1", "m", true, master));
        infos.insert("k2".into(), info("k2", "s", true, standby));
        infos
    };
    assert_eq!(verdict(data(), &at(10_500, 9_500), ANY), Verdict::Fit(here()));
    assert_eq!(verdict(data(), &at(10_501, 9_500), ANY), Verdict::Keep(here(), Unfit::Behind(1001)));
    assert_eq!(verdict(data(), &at(11_500, 9_500), ANY), Verdict::Keep(here(), Unfit::Behind(2000)));
    assert_eq!(verdict(data(), &at(11_501, 9_500), ANY), Verdict::Unfit(Unfit::Behind(2001)));
    // A standby that is ahead, because the master's report is older.
    assert_eq!(verdict(data(), &at(9_000, 10_400), ANY), Verdict::Fit(here()));
    let unlimited = Rules { max_lag: 0, ..ANY };
    assert_eq!(verdict(data(), &at(u64::MAX, 9_500), unlimited), Verdict::Fit(here()));
    // The master is dead: what was last known of it counts.
    let mut infos = infos();
    infos.remove(&KeeperUid::from("k1"));
    assert_eq!(verdict(data(), &infos, ANY), Verdict::Fit(here()));
}

#[test]
fn a_synchronous_one_must_be_wanted_and_seen_in_sync() {
    for pointer in ["/dbs/m/spec/synchronousStandbys", "/dbs/m/status/synchronousStandbys"] {
        for value in [json!([]), json!(["other"]), Value::Null] {
            let mut data = data();
            *data.pointer_mut(pointer).unwrap() = value;
            assert_eq!(verdict(data.clone(), &infos(), SYNC), Verdict::Unfit(Unfit::NotSynchronous));
            assert_eq!(verdict(data, &infos(), ANY), Verdict::Fit(here()));
        }
    }
}
