//! Foreign text in everything that reads it: documents of the store and of users, changed at random, go through all
//! decisions. Nobody panics, one bad record hides no other, and what is written can be read again.
//!
//! `make fuzz` runs many more cases.

use crate::access::{self, encode};
use crate::ctl::commands::{failkeeper, removekeeper, setkeeperpriority, spec, status, update};
use crate::proxy::plan as proxy_plan;
use crate::sentinel::observe::{Entries, observe};
use crate::sentinel::plan::{Memory, Moment, plan, track};
use model::stolon::keys::Keys;
use model::stolon::{ClusterData, KeeperInfo, ProxyInfo, canonical_user_spec, parse_user_spec};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use store::{Entry, MemoryStore, SharedStore, Store as _};

/// One change of a document.
#[derive(Clone, Debug)]
enum Change {
    /// Puts a strange value in the place of the nth one.
    Set(usize, Value),
    /// Puts a copy of the mth value in the place of the nth one.
    Copy(usize, usize),
    /// Puts the value of another member of the same name in the place of the nth one.
    Swap(usize, usize),
    /// Turns the nth truth value over, or moves the nth number by this.
    Tweak(usize, i64),
    /// Takes the nth member or element away.
    Remove(usize),
    /// Adds a member or element to the nth container.
    Add(usize, String, Value),
}

/// One change of the bytes of a document.
#[derive(Clone, Debug)]
enum Damage {
    None,
    Cut(usize),
    Flip(usize, u8),
    /// A member twice: the nth object gets it before its own.
    Twice(usize, String),
    Deep(usize),
}

fn strange() -> impl Strategy<Value = Value> {
    let numbers = prop_oneof![
        Just(json!(0)),
        Just(json!(-1)),
        Just(json!(1)),
        Just(json!(65_536)),
        Just(json!(4_294_967_296_u64)),
        Just(json!(i64::MAX)),
        Just(json!(i64::MIN)),
        Just(json!(u64::MAX)),
        Just(json!(0.5)),
        Just(json!(1e300)),
    ];
    let texts = prop_oneof![
        Just(""),
        Just("\u{0}"),
        Just("💥\u{202e}ﬀ"),
        Just("null"),
        Just("k1"),
        Just("d1"),
        Just("d2"),
        Just("-5s"),
        Just("1e9h"),
        Just("0s"),
        Just("9223372036854775807ns"),
        Just("1000000h"),
        Just("0001-01-01T00:00:00Z"),
        Just("9999-12-31T23:59:59.999999999+14:00"),
        Just("2026-13-45T99:99:99Z"),
        Just("a'b\\c\nd"),
        Just("new"),
        Just("standby"),
        Just("master"),
        Just("initializing"),
        Just("resync"),
        Just("none"),
        Just("*"),
        Just("../../x"),
    ];
    prop_oneof![
        3 => numbers,
        3 => texts.prop_map(|text| json!(text)),
        1 => ".{0,8}".prop_map(|text| json!(text)),
        1 => prop_oneof![Just(json!(null)), Just(json!(true)), Just(json!(false))],
        1 => prop_oneof![Just(json!([])), Just(json!({})), Just(json!([null])), Just(json!({"": null})), Just(json!([[{}]]))],
    ]
}

fn name() -> impl Strategy<Value = String> {
    let names =
        ["uid", "UID", "spec", "status", "healthy", "keeperUID", "priority", "extra", "", "role", "generation", "K1"];
    prop_oneof![4 => prop::sample::select(names.to_vec()).prop_map(str::to_owned), 1 => ".{0,6}"]
}

fn change() -> impl Strategy<Value = Change> {
    // Most leave the document readable, so that there is something to decide.
    prop_oneof![
        12 => any::<(usize, usize)>().prop_map(|(to, from)| Change::Swap(to, from)),
        12 => (any::<usize>(), prop_oneof![Just(1), Just(-1), -9_000_000..9_000_000_i64])
            .prop_map(|(place, by)| Change::Tweak(place, by)),
        3 => (any::<usize>(), strange()).prop_map(|(place, value)| Change::Set(place, value)),
        1 => any::<(usize, usize)>().prop_map(|(to, from)| Change::Copy(to, from)),
        5 => any::<usize>().prop_map(Change::Remove),
        2 => (any::<usize>(), name(), strange()).prop_map(|(place, name, value)| Change::Add(place, name, value)),
    ]
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        30 => Just(Damage::None),
        1 => any::<usize>().prop_map(Damage::Cut),
        1 => any::<(usize, u8)>().prop_map(|(place, bits)| Damage::Flip(place, bits)),
        1 => (any::<usize>(), name()).prop_map(|(place, name)| Damage::Twice(place, name)),
        1 => any::<usize>().prop_map(Damage::Deep),
    ]
}

/// All places of a document, as JSON pointers; the whole comes first.
fn places(value: &Value, here: &str, all: &mut Vec<String>) {
    all.push(here.to_owned());
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                places(member, &format!("{here}/{}", name.replace('~', "~0").replace('/', "~1")), all);
            }
        }
        Value::Array(elements) => {
            for (number, element) in elements.iter().enumerate() {
                places(element, &format!("{here}/{number}"), all);
            }
        }
        _ => {}
    }
}

fn apply(mut document: Value, changes: &[Change]) -> Value {
    for change in changes {
        let mut all = Vec::new();
        places(&document, "", &mut all);
        // The whole is only changed where there is nothing else.
        let place = |number: usize| all[if all.len() > 1 { 1 + number % (all.len() - 1) } else { 0 }].clone();
        match change {
            Change::Set(number, value) => *document.pointer_mut(&place(*number)).unwrap() = value.clone(),
            Change::Copy(to, from) => {
                let copy = document.pointer(&place(*from)).unwrap().clone();
                *document.pointer_mut(&place(*to)).unwrap() = copy;
            }
            Change::Swap(to, from) => {
                let to = place(*to);
                let name = to.rsplit('/').next();
                let alike: Vec<&String> = all.iter().filter(|other| other.rsplit('/').next() == name).collect();
                let copy = document.pointer(alike[from % alike.len()]).unwrap().clone();
                *document.pointer_mut(&to).unwrap() = copy;
            }
            Change::Tweak(number, by) => {
                let tweaks =
                    |place: &&String| matches!(document.pointer(place), Some(Value::Bool(_) | Value::Number(_)));
                let all: Vec<&String> = all.iter().filter(tweaks).collect();
                let Some(place) = all.get(number % all.len().max(1)) else { continue };
                match document.pointer_mut(place) {
                    Some(Value::Bool(value)) => *value = !*value,
                    Some(value) => {
                        if let Some(old) = value.as_i64() {
                            *value = json!(old.saturating_add(*by).max(0));
                        }
                    }
                    None => {}
                }
            }
            Change::Remove(number) => {
                let place = place(*number);
                let Some((parent, name)) = place.rsplit_once('/') else { continue };
                match document.pointer_mut(parent) {
                    Some(Value::Object(members)) => drop(members.remove(&name.replace("~1", "/").replace("~0", "~"))),
                    Some(Value::Array(elements)) => drop(elements.remove(name.parse().unwrap())),
                    _ => {}
                }
            }
            Change::Add(number, name, value) => match document.pointer_mut(&place(*number)) {
                Some(Value::Object(members)) => drop(members.insert(name.clone(), value.clone())),
                Some(Value::Array(elements)) => elements.push(value.clone()),
                _ => {}
            },
        }
    }
    document
}

fn spoil(document: &Value, damage: &Damage) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(document).unwrap();
    let length = bytes.len();
    match damage {
        Damage::None => {}
        Damage::Cut(place) => bytes.truncate(place % length),
        Damage::Flip(place, bits) => bytes[place % length] ^= bits,
        Damage::Twice(number, name) => {
            let opened: Vec<usize> =
                (0..length).filter(|at| bytes[*at] == b'{' && bytes.get(at + 1) != Some(&b'}')).collect();
            if let Some(at) = opened.get(number % opened.len().max(1)) {
                let member = format!("{}:7,", json!(name));
                bytes.splice(at + 1..=*at, member.into_bytes());
            }
        }
        Damage::Deep(number) => {
            let depth = number % 5000;
            bytes = [vec![b'['; depth], bytes, vec![b']'; depth]].concat();
        }
    }
    bytes
}

fn changed(document: Value, most: usize) -> impl Strategy<Value = Vec<u8>> {
    (prop::collection::vec(change(), 0..=most), damage())
        .prop_map(move |(changes, damage)| spoil(&apply(document.clone(), &changes), &damage))
}

/// Cluster data with one of everything: `d1` is master, `d2` and `d3` follow it.
fn cluster(phase: &str, synchronous: bool) -> Value {
    let db = |uid: &str, keeper: &str, role: &str| {
        json!({"uid": uid, "generation": 3, "changeTime": "2026-11-20T13:29:40.6Z",
            "spec": {"keeperUID": keeper, "requestTimeout": "10s", "maxStandbys": 20, "role": role, "initMode": "none",
                "synchronousReplication": synchronous && role == "master", "pgParameters": {"a": "b"}, "pgHBA": ["x"],
                "followConfig": if role == "master" { json!(null) } else { json!({"type": "internal", "dbuid": "d1"}) },
                "followers": if role == "master" { json!(["d2", "d3"]) } else { json!([]) },
                "synchronousStandbys": if synchronous && role == "master" { json!(["d2"]) } else { json!(null) }},
            "status": {"healthy": true, "currentGeneration": 3, "listenAddress": "10.0.0.1", "port": "5432", "systemdID": "7",
                "timelineID": 2, "xLogPos": 67_187_920, "timelinesHistory": [{"timelineID": 1, "switchPoint": 5, "reason": "r"}],
                "synchronousStandbys": ["d2"], "olderWalFile": "000000010000000000000002"}})
    };
    let keeper = |uid: &str| {
        json!({"uid": uid, "generation": 1, "spec": {"priority": 1}, "status": {"healthy": true, "bootUUID": "boot",
            "lastHealthyTime": "2026-11-20T13:29:40.6Z", "postgresBinaryVersion": {"Maj": 15, "Min": 2}, "canBeMaster": true}})
    };
    json!({"formatVersion": 1, "changeTime": "2026-11-20T13:29:40.6Z",
        "cluster": {"uid": "c", "generation": 1, "spec": user_spec(synchronous), "status": {"phase": phase, "master": "d1"}},
        "keepers": {"k1": keeper("k1"), "k2": keeper("k2"), "k3": keeper("k3"), "k4": keeper("k4")},
        "dbs": {"d1": db("d1", "k1", "master"), "d2": db("d2", "k2", "standby"), "d3": db("d3", "k3", "standby")},
        "proxy": {"generation": 4, "spec": {"masterDbUid": "d1", "enabledProxies": ["p1", "p2"]},
            "status": {"p1": {"listenAddress": "h", "port": "1", "generation": 4}}}})
}

fn user_spec(synchronous: bool) -> Value {
    json!({"initMode": "new", "sleepInterval": "2s", "failInterval": "5s", "proxyTimeout": "15s", "maxStandbys": 20,
        "maxStandbyLag": 1024, "synchronousReplication": synchronous, "minSynchronousStandbys": 1, "usePgrewind": true,
        "additionalMasterReplicationSlots": ["s"], "pgParameters": {"log_min_messages": "debug1"}, "pgHBA": ["host all all all md5"],
        "newConfig": {"locale": "C"}, "defaultSUReplAccessMode": "strict", "role": "master",
        "standbyConfig": {"standbySettings": {"primaryConninfo": "host=x"}}, "automaticPgRestart": false})
}

fn keeper_info(uid: &str, db: &str) -> Value {
    json!({"infoUID": "i", "uid": uid, "clusterUID": "c", "bootUUID": "boot", "postgresBinaryVersion": {"Maj": 15, "Min": 2},
        "priority": 1, "canBeMaster": true, "leaseSeconds": 2, "postgresState": {"uid": db, "generation": 3, "healthy": true,
        "listenAddress": "10.0.0.1", "port": "5432", "systemID": "7", "timelineID": 2, "xLogPos": 67_187_920,
        "timelinesHistory": [{"timelineID": 1, "switchPoint": 5, "reason": "r"}], "pgParameters": {"a": "b"},
        "synchronousStandbys": ["d2"], "olderWalFile": "000000010000000000000002"}})
}

fn proxy_info(uid: &str) -> Value {
    json!({"infoUID": "i", "UID": uid, "Generation": 4, "ProxyTimeout": 15_000_000_000_u64, "listenAddress": "h", "port": "1"})
}

fn keys() -> Keys {
    Keys::new("stolon/cluster", &"c".into())
}

fn entry(key: &str, value: Vec<u8>) -> Entry {
    Entry { key: key.to_owned(), value, create_revision: 1, mod_revision: 1, lease: None }
}

/// Cluster data, changed or not.
pub(crate) fn clusterdata() -> impl Strategy<Value = Vec<u8>> {
    let seeds = [("normal", false), ("normal", true), ("initializing", false)];
    prop::sample::select(seeds.to_vec()).prop_flat_map(|(phase, synchronous)| changed(cluster(phase, synchronous), 4))
}

/// What may be below a cluster's keys: one record of each kind is foreign, the others are as they should be.
fn records() -> impl Strategy<Value = Entries> {
    let foreign = |key: String, document: Value| changed(document, 3).prop_map(move |value| (key.clone(), value));
    let keys = keys();
    let keeper = foreign(keys.keeper_info(&"k2".into()), keeper_info("k2", "d2"));
    let proxy = foreign(keys.proxy_info(&"p2".into()), proxy_info("p2"));
    (keeper, proxy).prop_map(move |(keeper, proxy)| {
        let plain = |value: Value| serde_json::to_vec(&value).unwrap();
        let sound = [
            (keys.keeper_info(&"k1".into()), plain(keeper_info("k1", "d1"))),
            (keys.keeper_info(&"k3".into()), plain(keeper_info("k3", "d3"))),
            (keys.proxy_info(&"p1".into()), plain(proxy_info("p1"))),
        ];
        sound.into_iter().chain([keeper, proxy]).map(|(key, value)| (key.clone(), entry(&key, value))).collect()
    })
}

fn moment(seconds: u64) -> Moment {
    Moment { clock: Duration::from_secs(seconds), wall: chrono::Utc::now().into() }
}

/// What is written is what the next reader gets.
fn assert_readable(data: &ClusterData) {
    let again = ClusterData::parse(&encode(data)).expect("what we write can be read");
    assert_eq!(&again, data);
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
}

async fn stored(clusterdata: &[u8], records: &Entries) -> SharedStore {
    let store = MemoryStore::default();
    store.put(&keys().clusterdata(), clusterdata, None).await.unwrap();
    for entry in records.values() {
        store.put(&entry.key, &entry.value, None).await.unwrap();
    }
    Arc::new(store)
}

/// Lets a sentinel decide some times, so many seconds apart; the record of a keeper is gone after the first time.
fn decide(mut data: ClusterData, records: &Entries, gap: u64, lost: Option<&'static str>) -> ClusterData {
    let mut records = records.clone();
    let mut observed = observe(&records, &keys(), Duration::ZERO, 1);
    let mut memory = track(moment(1), &data, &observed, &Memory::default());
    for step in 1..6 {
        let now = moment(1 + step * gap);
        let planned = plan(now, &data, &observed, &memory);
        assert_readable(&planned.data);
        assert!(planned.data.proxy.generation >= data.proxy.generation);
        assert!(planned.wake_at.is_none_or(|wake| wake > now.clock));
        (data, memory) = (planned.data, planned.memory);
        if let Some(keeper) = lost {
            records.remove(&keys().keeper_info(&keeper.into()));
        }
        obey(&mut records, &data);
        observed = observe(&records, &keys(), Duration::ZERO, 1);
    }
    data
}

/// Keepers and proxies report what is wanted of them as done, as far as their records are such.
fn obey(records: &mut Entries, data: &ClusterData) {
    for entry in records.values_mut() {
        let Ok(mut record) = serde_json::from_slice::<Value>(&entry.value) else { continue };
        let db = record.pointer("/postgresState/uid").and_then(Value::as_str).and_then(|uid| data.dbs.get(uid));
        if let (Some(db), Some(generation)) = (db, record.pointer_mut("/postgresState/generation")) {
            *generation = json!(db.generation);
        } else if let Some(generation) = record.get_mut("Generation") {
            *generation = json!(data.proxy.generation);
        } else {
            continue;
        }
        entry.value = serde_json::to_vec(&record).unwrap();
        entry.mod_revision += 1;
    }
}

fn lost_keeper() -> impl Strategy<Value = Option<&'static str>> {
    prop::option::of(prop::sample::select(vec!["k1", "k2", "k3"]))
}

proptest! {
    #[test]
    fn a_bad_record_hides_no_other(records in records()) {
        let observed = observe(&records, &keys(), Duration::ZERO, 1);
        for keeper in ["k1", "k3"] {
            prop_assert!(observed.keepers.get(keeper).is_some_and(Option::is_some), "{keeper}");
        }
        prop_assert!(observed.proxies.get("p1").is_some_and(Option::is_some));
        let entries: Vec<&Entry> = records.values().collect();
        let prefix = keys().keepers_info();
        let keepers: Vec<&Entry> = entries.iter().copied().filter(|entry| entry.key.starts_with(&prefix)).collect();
        prop_assert!(access::records::<KeeperInfo>(&keepers).len() >= 2);
        let _ = access::records::<ProxyInfo>(&entries);
    }

    #[test]
    fn sentinels_decide_or_refuse(bytes in clusterdata(), records in records(), gap in 0..200_u64, lost in lost_keeper()) {
        if let Ok(data) = ClusterData::parse(&bytes) {
            assert_readable(&data);
            decide(data, &records, gap, lost);
        }
    }

    #[test]
    fn proxies_obey_or_refuse(bytes in clusterdata()) {
        if let Ok(data) = ClusterData::parse(&bytes) {
            let orders = proxy_plan::orders(&data, &"p1".into());
            let timing = proxy_plan::Timing::new(orders.proxy_timeout);
            prop_assert!(timing.own + proxy_plan::MARGIN <= timing.ttl);
            let _ = proxy_plan::target(&proxy_plan::Document::Orders(orders), None);
        }
    }

    #[test]
    fn commands_work_or_refuse(bytes in clusterdata(), records in records(), patch in changed(user_spec(true), 3)) {
        block_on(async {
            let (store, keys) = (stored(&bytes, &records).await, keys());
            let readable = ClusterData::parse(&bytes).is_ok();
            let status = status::run(&store, &keys).await;
            assert_eq!(status.is_ok(), readable, "{status:?}");
            if let Ok(document) = serde_json::from_slice::<Value>(&patch) {
                let _ = update::run(&store, &keys, document.clone(), true).await;
                let _ = update::run(&store, &keys, document, false).await;
            }
            let _ = failkeeper::run(&store, &keys, "k2").await;
            let _ = setkeeperpriority::run(&store, &keys, "k2", i64::MIN).await;
            let _ = removekeeper::run(&store, &keys, "k3").await;
            // What could not be read was left as it was; what could be read still can.
            let after = store.get(&keys.clusterdata()).await.unwrap().unwrap().value;
            match readable {
                true => assert_readable(&ClusterData::parse(&after).expect("commands write what can be read")),
                false => assert_eq!(after, bytes),
            }
        });
    }

    #[test]
    fn specifications_are_taken_or_refused(bytes in changed(user_spec(false), 3)) {
        let Ok(document) = serde_json::from_slice::<Value>(&bytes) else { return Ok(()) };
        let _ = canonical_user_spec(document.clone());
        let Ok(spec) = parse_user_spec(document) else { return Ok(()) };
        let stored = serde_json::to_value(&spec).unwrap();
        prop_assert_eq!(&serde_json::from_value::<model::stolon::StolonSpec>(stored.clone()).unwrap(), &spec);
        prop_assert_eq!(&parse_user_spec(stored).unwrap(), &spec);
        if spec.effective().is_ok() {
            prop_assert!(spec::text(&spec, true).is_ok());
        }
        prop_assert!(spec::text(&spec, false).is_ok());
    }

    #[test]
    fn letter_case_of_members_does_not_matter(upper in prop::collection::vec(any::<bool>(), 64)) {
        fn turn(value: &Value, upper: &mut impl Iterator<Item = bool>) -> Value {
            let mut name_of = |name: &str| -> String {
                let letter = |c: char| if upper.next() == Some(true) { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
                name.chars().map(letter).collect()
            };
            match value {
                Value::Object(members) => {
                    // Names of PostgreSQL's parameters are data, not members.
                    let named: Vec<(String, &String, &Value)> =
                        members.iter().map(|(name, member)| (name_of(name), name, member)).collect();
                    let turned = named.into_iter().map(|(turned, name, member)| {
                        let member = if name == "pgParameters" { member.clone() } else { turn(member, upper) };
                        (turned, member)
                    });
                    Value::Object(turned.collect())
                }
                other => other.clone(),
            }
        }
        let turned = turn(&user_spec(true), &mut upper.into_iter().cycle());
        prop_assert_eq!(parse_user_spec(turned).unwrap(), parse_user_spec(user_spec(true)).unwrap());
    }
}

#[test]
fn the_seeds_are_sound() {
    for (phase, synchronous) in [("normal", false), ("normal", true), ("initializing", false)] {
        ClusterData::parse(&serde_json::to_vec(&cluster(phase, synchronous)).unwrap()).unwrap();
    }
    parse_user_spec(user_spec(true)).unwrap().effective().unwrap();
    serde_json::from_value::<KeeperInfo>(keeper_info("k", "d")).unwrap();
    serde_json::from_value::<ProxyInfo>(proxy_info("p")).unwrap();
}

/// Documents that nobody can read would try nothing.
#[test]
fn damaged_documents_reach_the_decisions() {
    const CASES: usize = 200;
    let mut runner = TestRunner::deterministic();
    let (mut read, mut decided, mut elected) = (0, 0, 0);
    for _ in 0..CASES {
        let bytes = clusterdata().new_tree(&mut runner).unwrap().current();
        let records = records().new_tree(&mut runner).unwrap().current();
        let Ok(before) = ClusterData::parse(&bytes) else { continue };
        let after = decide(before.clone(), &records, 10, Some("k1"));
        read += 1;
        decided += usize::from(after != before);
        elected += usize::from(after.cluster.status.master != before.cluster.status.master);
    }
    assert!(
        read > CASES / 2 && decided > CASES / 3 && elected > CASES / 10,
        "of {CASES}: {read} read, {decided} decided, {elected} elected"
    );
}
