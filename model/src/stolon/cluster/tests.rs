use super::*;
use proptest::prelude::*;

/// Captured from Go stolon right after `init`.
const INIT: &str = r#"{"formatVersion":1,"changeTime":"0001-01-01T00:00:00Z","cluster":{"uid":"eb42e676","generation":1,"changeTime":"2026-11-20T13:28:30.125875603Z","spec":{"sleepInterval":"2s","additionalWalSenders":null,"additionalMasterReplicationSlots":null,"initMode":"new","pgHBA":null,"automaticPgRestart":null},"status":{"phase":"initializing"}},"keepers":{},"dbs":{},"proxy":{"changeTime":"0001-01-01T00:00:00Z","spec":{},"status":{}}}"#;
const STANDBY: &str = r#"{"uid":"9f134751","generation":2,"changeTime":"2026-11-20T13:29:40.600Z","spec":{"keeperUID":"keeper2","requestTimeout":"10s","maxStandbys":20,"usePgrewind":true,"additionalWalSenders":5,"additionalReplicationSlots":null,"initMode":"none","pgParameters":{"wal_level":"replica"},"pgHBA":null,"role":"standby","followConfig":{"type":"internal","dbuid":"c8ee4a7b"},"followers":[],"synchronousStandbys":null,"externalSynchronousStandbys":null},"status":{"healthy":true,"currentGeneration":2,"listenAddress":"127.0.0.1","port":"15442","systemdID":"7710245038574424763","timelineID":1,"xLogPos":67187920,"pgParameters":{"wal_level":"replica"},"synchronousStandbys":null,"olderWalFile":"000000010000000000000002"}}"#;
const KEEPER: &str = r#"{"uid":"keeper4","generation":1,"changeTime":"2026-11-20T13:37:58.600Z","spec":{"priority":5},"status":{"healthy":true,"lastHealthyTime":"2026-11-20T13:37:58.600Z","bootUUID":"2e8e7eee-74d3-4692-80c0-2fd188888dc5","postgresBinaryVersion":{"Maj":15,"Min":20},"canBeMaster":true,"canBeSynchronousReplica":true}}"#;
const PROXY: &str = r#"{"generation":2,"changeTime":"2026-11-20T13:37:49.400Z","spec":{"masterDbUid":"faff023c","enabledProxies":["4cd2b261"]},"status":{"4cd2b261":{"listenAddress":"10.1.2.3","port":"15434","generation":2}}}"#;

fn round_trip<T: Serialize + for<'de> Deserialize<'de>>(text: &str) {
    let value: T = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&value).unwrap(), text);
}

#[test]
fn captured_documents_come_back_byte_for_byte() {
    round_trip::<ClusterData>(INIT);
    round_trip::<Db>(STANDBY);
    round_trip::<Keeper>(KEEPER);
    round_trip::<Proxies>(PROXY);
    assert!(ClusterData::parse(INIT.as_bytes()).is_ok());
}

#[test]
fn a_new_cluster_is_what_go_writes() {
    let old: ClusterData = serde_json::from_str(INIT).unwrap();
    let new = ClusterData::new("eb42e676", old.spec(), old.cluster.change_time);
    assert_eq!(serde_json::to_string(&new).unwrap(), INIT);
}

#[test]
fn unknown_members_survive_everywhere() {
    let mut value: serde_json::Value = serde_json::from_str(INIT).unwrap();
    for pointer in ["", "/cluster", "/cluster/spec", "/cluster/status", "/proxy", "/proxy/spec"] {
        value.pointer_mut(pointer).unwrap()["novelty"] =
            serde_json::json!({"deep": [1, null, 18446744073709551615u64]});
    }
    let data: ClusterData = serde_json::from_value(value.clone()).unwrap();
    assert_eq!(serde_json::to_value(&data).unwrap(), value);
}

#[test]
fn large_positions_are_exact() {
    let status: DbStatus = serde_json::from_str(r#"{"xLogPos":18446744073709551615}"#).unwrap();
    assert_eq!(status.xlog_pos, u64::MAX);
}

#[test]
fn broken_documents_are_errors() {
    let with = |from: &str, to: &str| INIT.replacen(from, to, 1);
    for text in [
        String::new(),
        "null".into(),
        "[]".into(),
        with("\"formatVersion\":1", "\"formatVersion\":2"),
        with("\"formatVersion\":1", "\"formatVersion\":-1"),
        with("\"formatVersion\":1", "\"formatVersion\":1.0"),
        with("\"initMode\":\"new\",", ""),
        with("\"initMode\":\"new\"", "\"initMode\":\"old\""),
        with("\"sleepInterval\":\"2s\"", "\"sleepInterval\":2"),
        with("\"phase\":\"initializing\"", "\"phase\":\"normal\""),
        with("\"keepers\":{}", "\"keepers\":{\"a\":{\"uid\":\"b\"}}"),
        with("\"dbs\":{}", "\"dbs\":{\"a\":{\"uid\":\"a\"}}"),
        with("\"additionalWalSenders\":null", "\"additionalWalSenders\":70000"),
    ] {
        assert!(ClusterData::parse(text.as_bytes()).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn never_panics(bytes: Vec<u8>, cut in 0..INIT.len(), byte: u8) {
        let _ = ClusterData::parse(&bytes);
        let mut damaged = INIT.as_bytes().to_vec();
        damaged[cut] = byte;
        let _ = ClusterData::parse(&damaged);
        let _ = ClusterData::parse(&INIT.as_bytes()[..cut]);
    }
}
