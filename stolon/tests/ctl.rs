//! stolonctl as a process, and its library, with a real etcd.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use model::stolon::ClusterData;
use model::stolon::keys::Keys;
use model::stolon::parse_user_spec;
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use stolon::ctl::{self, ChangeError};
use store::{EtcdStore, SharedStore, StoreOptions};
use testkit::etcd::Etcd;

struct Lab {
    etcd: Etcd,
    store: SharedStore,
    keys: Keys,
}

impl Lab {
    async fn start() -> Lab {
        let etcd = Etcd::start().await.unwrap();
        let options = StoreOptions { endpoints: etcd.endpoints(), ..StoreOptions::default() };
        let store: SharedStore = Arc::new(EtcdStore::connect(&options).await.unwrap());
        Lab { etcd, store, keys: Keys::new("stolon/cluster", &"c".into()) }
    }

    fn ctl(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_stolonctl"))
            .args(arguments)
            .env("STOLONCTL_CLUSTER_NAME", "c")
            .env("STOLONCTL_STORE_BACKEND", "etcdv3")
            .env("STOLONCTL_STORE_ENDPOINTS", self.etcd.endpoints())
            .env("STOLONCTL_STORE_TIMEOUT", "2s")
            // Flags of commands have no form in the environment.
            .env("STOLONCTL_YES", "true")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that needs no input may have ended already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Runs a command that must succeed; gives its stdout.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.ctl(arguments, "");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must fail with status 1; gives its stderr.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.ctl(arguments, "");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    async fn data(&self) -> Option<Value> {
        let entry = self.store.get(&self.keys.clusterdata()).await.unwrap();
        entry.map(|entry| serde_json::from_slice(&entry.value).unwrap())
    }

    async fn write(&self, data: &Value) {
        ClusterData::parse(data.to_string().as_bytes()).unwrap();
        self.store.put(&self.keys.clusterdata(), data.to_string().as_bytes(), None).await.unwrap();
    }
}

fn sample() -> Value {
    json!({"formatVersion": 1, "cluster": {"uid": "u", "spec": {"initMode": "new"}, "status": {"phase": "normal", "master": "a"}},
        "keepers": {"k": {"uid": "k"}, "l": {"uid": "l"}},
        "dbs": {"a": {"uid": "a", "spec": {"keeperUID": "k", "role": "master"}},
                "b": {"uid": "b", "spec": {"keeperUID": "l", "role": "standby", "followConfig": {"type": "internal", "dbuid": "a"}}}},
        "proxy": {}})
}

#[tokio::test]
async fn a_cluster_is_made_and_changed() {
    let lab = Lab::start().await;
    assert!(lab.refused(&["spec"]).contains("no cluster data"));
    // No answer, a refusal, a consent.
    assert!(lab.refused(&["init"]).contains("--yes"));
    let output = lab.ctl(&["init"], "perhaps\nno\n");
    assert!(output.status.success() && lab.data().await.is_none());
    let output = lab.ctl(&["init", r#"{"InitMode": "new", "pgParameters": {"a.b": "1", "c": "2"}}"#], "yes\n");
    assert!(output.status.success() && output.stdout.is_empty());
    let first = lab.data().await.unwrap();
    assert_eq!(first["cluster"]["status"], json!({"phase": "initializing"}));
    assert_eq!(first["cluster"]["generation"], 1);

    lab.done(&["update", "--patch", r#"{"pgparameters": {"c": null, "d": "3"}, "maxStandbyLag": 1}"#]);
    let spec: Value = serde_json::from_str(&lab.done(&["spec"])).unwrap();
    assert_eq!(spec, json!({"initMode": "new", "pgParameters": {"a.b": "1", "d": "3"}, "maxStandbyLag": 1}));
    let output = lab.ctl(&["update", "-f", "-"], r#"{"initMode": "new"}"#);
    assert!(output.status.success());
    assert_eq!(lab.done(&["spec"]), "{\n\t\"initMode\": \"new\"\n}\n");
    assert!(lab.done(&["spec", "--defaults"]).contains("\t\"maxStandbyLag\": 1232896,\n"));

    assert!(lab.refused(&["init", "--yes=false"]).contains("--yes"));
    lab.done(&["--kubeconfig", "/nonexistent", "init", "--yes=true", "--kube-namespace=n", "--kube-context=c"]);
    assert_ne!(lab.data().await.unwrap()["cluster"]["uid"], first["cluster"]["uid"]);
}

#[tokio::test]
async fn bad_input_changes_nothing() {
    let lab = Lab::start().await;
    for bad in ["", "{", "[]", "null", "{}", r#"{"initMode":"no"}"#, r#"{"initMode":"new","maxStandbys":65536}"#] {
        lab.refused(&["init", "-y", bad]);
    }
    assert!(lab.data().await.is_none());
    lab.write(&sample()).await;
    for bad in [
        &["update", "{"][..],
        &["update", "-p", "[]"],
        &["update", r#"{"initMode":"existing","existingConfig":{"keeperUID":"k"}}"#],
        &["update", "-p", r#"{"initMode":null}"#],
        &["update", "-p", r#"{"role":"standby","standbyConfig":{}}"#],
        &["update", "-p", r#"{"proxyTimeout":"1s"}"#],
        &["update", "-f", "/nonexistent"],
        &["failkeeper", "nobody"],
        &["removekeeper", "nobody"],
        &["removekeeper", "k"],
        &["setkeeperpriority", "nobody", "1"],
        &["clusterdata", "write", "-f", "/nonexistent"],
        &["register", "--register-backend", "consul"],
    ] {
        lab.refused(bad);
    }
    assert_eq!(lab.data().await.unwrap(), sample());
    for usage in [
        &["update"][..],
        &["update", "{}", "-f", "x"],
        &["init", "{}", "-f", "x"],
        &["promote", "--yes=perhaps"],
        &["setkeeperpriority", "k", "x"],
        &["nonsense"],
        &["status", "-f", "xml"],
    ] {
        assert_eq!(lab.ctl(usage, "").status.code(), Some(2), "{usage:?}");
    }
    assert!(lab.refused(&["register"]).contains("Consul"));
}

#[tokio::test]
async fn keepers_are_managed() {
    let lab = Lab::start().await;
    lab.write(&sample()).await;
    lab.done(&["failkeeper", "k"]);
    lab.done(&["setkeeperpriority", "k", "-5"]);
    lab.done(&["setkeeperpriority", "l", "--", "7"]);
    let data = lab.data().await.unwrap();
    assert_eq!(data["keepers"]["k"]["status"]["forceFail"], true);
    assert_eq!(
        (&data["keepers"]["k"]["spec"]["priority"], &data["keepers"]["l"]["spec"]["priority"]),
        (&json!(-5), &json!(7))
    );
    lab.done(&["removekeeper", "l"]);
    let data = lab.data().await.unwrap();
    assert!(data["keepers"].get("l").is_none() && data["dbs"].get("b").is_none());
}

#[tokio::test]
async fn a_standby_cluster_is_promoted_once() {
    let lab = Lab::start().await;
    let mut data = sample();
    data["cluster"]["spec"] =
        json!({"initMode": "existing", "existingConfig": {"keeperUID": "k"}, "role": "standby", "standbyConfig": {}});
    lab.write(&data).await;
    assert!(lab.ctl(&["promote"], "no\n").status.success());
    assert_eq!(lab.data().await.unwrap()["cluster"]["spec"]["role"], "standby");
    lab.done(&["promote", "-y"]);
    assert_eq!(lab.data().await.unwrap()["cluster"]["spec"]["role"], "master");
    assert!(String::from_utf8_lossy(&lab.ctl(&["promote"], "").stderr).contains("already"));
}

#[tokio::test]
async fn cluster_data_is_read_and_written_whole() {
    let lab = Lab::start().await;
    let mut data = sample();
    data["novelty"] = json!({"kept": [1]});
    assert!(lab.ctl(&["clusterdata", "write"], &data.to_string()).status.success());
    let read: Value = serde_json::from_str(&lab.done(&["clusterdata", "read"])).unwrap();
    assert_eq!((&read["novelty"], &read["dbs"]["b"]["uid"]), (&data["novelty"], &json!("b")));
    assert!(lab.done(&["clusterdata", "read", "--pretty"]).starts_with("{\n\t\"formatVersion\": 1,\n"));
    let again = lab.ctl(&["clusterdata", "write"], &data.to_string());
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("--yes"));
    assert!(!lab.ctl(&["clusterdata", "write", "-y"], "{\"keepers\": []}").status.success());
    // Rules may be broken on purpose; nobody then reads it.
    assert!(lab.ctl(&["clusterdata", "write", "-y"], "{\"formatVersion\": 3}").status.success());
    assert!(lab.refused(&["clusterdata", "read"]).contains("format version 3"));
}

#[tokio::test]
async fn status_says_what_is_there_and_what_is_wrong() {
    let mut lab = Lab::start().await;
    let output = lab.ctl(&["status", "-f", "json"], "");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.code() == Some(1) && error["error"].as_str().unwrap().contains("no cluster data"));
    lab.write(&sample()).await;
    let keys = [
        ("sentinels/info/b", r#"{"UID":"b"}"#),
        ("sentinels/info/a", r#"{"UID":"a"}"#),
        ("sentinel-leader/2", "b"),
        ("sentinel-leader/1", "a"),
        ("proxies/info/p", r#"{"UID":"p","Generation":4}"#),
        ("proxies/info/q", "broken"),
    ];
    for (key, value) in keys {
        lab.store.put(&format!("{}/{key}", lab.keys.base()), value.as_bytes(), None).await.unwrap();
    }
    let status: Value = serde_json::from_str(&lab.done(&["status", "-f", "json"])).unwrap();
    assert_eq!(status["sentinels"], json!([{"uid": "a", "leader": false}, {"uid": "b", "leader": true}]));
    assert_eq!(status["proxies"], json!([{"uid": "p", "generation": 4}]));
    assert_eq!(status["cluster"], json!({"available": true, "master_keeper_uid": "k", "master_db_uid": "a"}));
    assert!(lab.done(&["status"]).contains("Master Keeper: k\n"));
    lab.etcd.stop();
    let output = lab.ctl(&["status", "--format", "json"], "");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.code() == Some(1) && error["error"].as_str().unwrap().contains("etcd"));
    let missing = Command::new(env!("CARGO_BIN_EXE_stolonctl")).args(["status", "-f", "json"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(2));
}

#[tokio::test]
async fn the_library_does_the_same_without_a_process() {
    let lab = Lab::start().await;
    let spec = || parse_user_spec(json!({"initMode": "new"})).unwrap();
    assert!(ctl::init_cluster_if_absent(&lab.store, &lab.keys, spec()).await.unwrap());
    let first = lab.data().await.unwrap();
    assert!(!ctl::init_cluster_if_absent(&lab.store, &lab.keys, spec()).await.unwrap());
    assert_eq!(lab.data().await.unwrap(), first);

    // Two writers at once: nobody's change is lost.
    let change = async |name: &'static str| {
        for _ in 0..5 {
            let update = ctl::update_cluster(&lab.store, &lab.keys, |spec| {
                let count = spec.pg_parameters.get(name).map_or(0, |text| text.parse::<u32>().unwrap());
                spec.pg_parameters.insert(name.into(), (count + 1).to_string());
            });
            update.await.unwrap();
        }
    };
    tokio::join!(change("a"), change("b"));
    let data = lab.data().await.unwrap();
    assert_eq!(data["cluster"]["spec"]["pgParameters"], json!({"a": "5", "b": "5"}));

    let revision = lab.store.get(&lab.keys.clusterdata()).await.unwrap().unwrap().mod_revision;
    ctl::update_cluster(&lab.store, &lab.keys, |_| {}).await.unwrap();
    let invalid = ctl::update_cluster(&lab.store, &lab.keys, |spec| spec.max_standbys = Some(0)).await;
    assert!(matches!(invalid, Err(ChangeError::Spec(_))));
    assert_eq!(lab.store.get(&lab.keys.clusterdata()).await.unwrap().unwrap().mod_revision, revision);
    ctl::init_cluster(&lab.store, &lab.keys, spec()).await.unwrap();
    assert_ne!(lab.data().await.unwrap()["cluster"]["uid"], data["cluster"]["uid"]);
}

#[test]
fn versions_need_no_store() {
    for arguments in [&["version"][..], &["--version"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_stolonctl")).args(arguments).output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).starts_with("stolonctl version "));
    }
    for program in
        [env!("CARGO_BIN_EXE_stolon-keeper"), env!("CARGO_BIN_EXE_stolon-sentinel"), env!("CARGO_BIN_EXE_stolon-proxy")]
    {
        let output = Command::new(program).arg("--version").output().unwrap();
        let name = program.rsplit('/').next().unwrap();
        let expected = format!("{name} version {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }
}
