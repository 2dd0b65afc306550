//! Passes of a node against a fake service manager.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use async_trait::async_trait;
use bowl::diff::{FoundUnit, RunState};
use bowl::envfile::EnvFile;
use bowl::manager::{ManagerError, Service, ServiceManager};
use bowl::node::{Node, NodeConfig};
use bowl::plan::Facts;
use bowl::units::UnitName;
use common::cli::{LogFormat, LogLevel};
use model::Generation;
use model::keys::ClusterKeys;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use store::{Entry, View};
use tempfile::TempDir;
use tokio::sync::watch;

/// Remembers what it was asked for; daemons run at once.
#[derive(Debug, Default)]
struct Fake {
    data_dir: std::path::PathBuf,
    units: Mutex<BTreeMap<UnitName, FoundUnit>>,
    calls: Mutex<Vec<String>>,
    /// Calls for units with this in their names fail.
    broken: Mutex<Option<String>>,
}

impl Fake {
    fn call(&self, verb: &str, unit: &UnitName) -> Result<(), ManagerError> {
        self.calls.lock().unwrap().push(format!("{verb} {unit}"));
        match self.broken.lock().unwrap().as_ref() {
            Some(part) if unit.as_str().contains(part) => Err(ManagerError::Unstoppable { unit: unit.clone(), pid: 7 }),
            _ => Ok(()),
        }
    }
    fn run(&self, service: &Service) {
        let text = std::fs::read_to_string(self.data_dir.join(&service.env_file)).unwrap();
        let found = FoundUnit {
            unit: service.unit.clone(),
            kind: service.kind,
            cluster: "test".into(),
            env_file: service.env_file.clone(),
            config: EnvFile::parse(&text).config,
            enabled: true,
            state: RunState::Running,
            restarts: 0,
            problem: String::new(),
        };
        self.units.lock().unwrap().insert(service.unit.clone(), found);
    }
    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

#[async_trait]
impl ServiceManager for Fake {
    async fn list(&self) -> Result<Vec<FoundUnit>, ManagerError> {
        Ok(self.units.lock().unwrap().values().cloned().collect())
    }
    async fn start(&self, service: &Service) -> Result<(), ManagerError> {
        self.call("start", &service.unit)?;
        self.run(service);
        Ok(())
    }
    async fn restart(&self, service: &Service) -> Result<(), ManagerError> {
        self.call("restart", &service.unit)?;
        self.run(service);
        Ok(())
    }
    async fn stop(&self, unit: &UnitName) -> Result<(), ManagerError> {
        self.call("stop", unit)?;
        if let Some(found) = self.units.lock().unwrap().get_mut(unit) {
            found.enabled = false;
            found.state = RunState::Stopped;
        }
        Ok(())
    }
    async fn remove(&self, unit: &UnitName) -> Result<(), ManagerError> {
        self.call("remove", unit)?;
        self.units.lock().unwrap().remove(unit);
        Ok(())
    }
    async fn shutdown(&self, _leave_running: bool) {}
    fn changes(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}

const SPEC: &str = r#"{"FormatVersion":1,"LadleSpec":{"StoreConnInfo":{"Endpoints":"http://e:2379"},"DataDir":"/d"},
    "ClusterSpec":{"PgSuUsername":"postgres","PgSuAuthMethod":"md5","PgSuPassword":"one","PgReplUsername":"r"}}"#;
const LAYOUT: &str = r#"{"FormatVersion":1,"Generation":3,
    "Keepers":[{"Id":{"RepGroup":"clover-1-n1","Uid":0},"Preferred":true,"PgPort":5442}],
    "Monitor":false,"Proxies":[{"RepGroup":"clover-1-n1","Port":5432}]}"#;
const REVISION: &str = r#"{"FormatVersion":1,"Generation":3,"CloverSeq":2,"RepGroupSeq":2}"#;

const KEEPER: &str = "shardman-keeper@test-clover-1-n1-0";
const SENTINEL: &str = "shardman-sentinel@test-clover-1-n1";
const PROXY: &str = "shardman-proxy@test-clover-1-n1";

/// A store as its follower shows it.
fn view(spec: Option<&str>, revision: Option<&str>, layout: Option<&str>) -> View {
    let keys = ClusterKeys::new(&"test".into());
    let documents = [(keys.spec(), spec), (keys.revision(), revision), (keys.layout(&"n1".into()), layout)];
    let entries = documents.into_iter().filter_map(|(key, text)| {
        let value = text?.as_bytes().to_vec();
        Some((key.clone(), Entry { key, value, create_revision: 4, mod_revision: 9, lease: None }))
    });
    View { entries: entries.collect(), revision: 10, loaded: true, connected: true, heard: None }
}

fn full() -> View {
    view(Some(SPEC), Some(REVISION), Some(LAYOUT))
}

fn facts(data_dir: &Path) -> Facts {
    Facts {
        cluster: "test".into(),
        node: "n1".into(),
        advertise_address: "n1".into(),
        listen_address: "0.0.0.0".into(),
        data_dir: data_dir.into(),
        bin_dir: None,
        runtime_dir: None,
        own_dir: "/bin".into(),
        log_level: LogLevel::Info,
        log_format: LogFormat::Text,
    }
}

fn unopened(facts: Facts, fixed_data_dir: bool, fake: &Arc<Fake>) -> Node {
    let manager = fake.clone();
    let open = Box::new(move |_: &Path| Ok(manager.clone() as Arc<dyn ServiceManager>));
    Node::new(NodeConfig { facts, fixed_data_dir, open })
}

fn new_node(data_dir: &Path, fake: &Arc<Fake>) -> Node {
    let mut node = unopened(facts(data_dir), true, fake);
    node.open(data_dir).unwrap();
    node
}

fn fresh() -> (TempDir, Arc<Fake>, Node) {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake { data_dir: dir.path().into(), ..Fake::default() });
    let node = new_node(dir.path(), &fake);
    (dir, fake, node)
}

async fn settled() -> (TempDir, Arc<Fake>, Node) {
    let (dir, fake, mut node) = fresh();
    assert!(node.pass(&full()).await);
    fake.taken();
    (dir, fake, node)
}

#[tokio::test]
async fn a_fresh_node_starts_everything_once() {
    let (dir, fake, mut node) = fresh();
    assert_eq!(node.status().await.generation, Generation(0));
    assert!(node.pass(&full()).await);
    assert_eq!(fake.taken(), [KEEPER, SENTINEL, PROXY].map(|unit| format!("start {unit}")));
    let status = node.status().await;
    assert_eq!((status.generation, status.spec_revision, status.last_error.as_str()), (Generation(3), 9, ""));
    assert_eq!(status.daemons.len(), 3);
    assert!(node.pass(&full()).await);
    assert_eq!(fake.taken(), [""; 0]);
    // A bowl that was restarted knows what was applied.
    drop(node);
    let mut node = new_node(dir.path(), &fake);
    assert_eq!(node.status().await.generation, Generation(3));
    assert!(node.pass(&full()).await);
    assert_eq!(fake.taken(), [""; 0]);
}

#[tokio::test]
async fn changes_touch_only_what_they_concern() {
    let (dir, fake, mut node) = settled().await;
    let password = SPEC.replace("\"one\"", "\"two\"");
    let mut changed = view(Some(&password), Some(REVISION), Some(LAYOUT));
    let key = ClusterKeys::new(&"test".into()).spec();
    changed.entries.get_mut(&key).unwrap().mod_revision = 10;
    assert!(node.pass(&changed).await, "trying again does not help");
    assert_eq!(fake.taken(), [""; 0]);
    assert_eq!(std::fs::read_to_string(dir.path().join("pg-su.password")).unwrap(), "one");
    let status = node.status().await;
    assert!(status.last_error.starts_with("passwords can't be changed yet: "), "{}", status.last_error);
    assert_eq!((status.generation, status.spec_revision), (Generation(3), 9), "the specification is not applied");
    let port = LAYOUT.replace("5432", "5532");
    assert!(node.pass(&view(Some(&password), Some(REVISION), Some(&port))).await);
    assert_eq!(fake.taken(), [format!("restart {PROXY}")]);
    let data = dir.path().join("keeper-test-clover-1-n1-0");
    std::fs::create_dir(&data).unwrap();
    let empty = r#"{"FormatVersion":1,"Generation":3,"Keepers":[],"Monitor":false,"Proxies":[]}"#;
    assert!(node.pass(&view(Some(&password), Some(REVISION), Some(empty))).await);
    assert_eq!(fake.taken().len(), 6, "three daemons stopped and forgotten");
    assert!(data.is_dir(), "data was deleted");
    assert!(!dir.path().join("keeper-test-clover-1-n1-0.env").exists());
}

#[tokio::test]
async fn whatever_is_wrong_with_the_store_daemons_stay() {
    let newer = |text: &str| text.replace("\"FormatVersion\":1", "\"FormatVersion\":2");
    let older = LAYOUT.replace("\"Generation\":3", "\"Generation\":2");
    let future = LAYOUT.replace("\"Generation\":3,", "\"Generation\":4,").replace("5442", "7777");
    let (new_spec, new_layout, new_revision) = (newer(SPEC), newer(LAYOUT), newer(REVISION));
    let down = View { loaded: false, connected: false, ..View::default() };
    for (what, view, word) in [
        ("not read yet", down, ""),
        ("wiped", view(None, None, None), "check the store"),
        ("without specification", view(None, Some(REVISION), Some(LAYOUT)), "check the store"),
        ("without revision", view(Some(SPEC), None, Some(LAYOUT)), "check the store"),
        ("without our layout", view(Some(SPEC), Some(REVISION), None), ""),
        ("broken specification", view(Some("{"), Some(REVISION), Some(LAYOUT)), "can't be read"),
        ("broken layout", view(Some(SPEC), Some(REVISION), Some("[]")), "can't be read"),
        ("broken revision", view(Some(SPEC), Some("7"), Some(LAYOUT)), "can't be read"),
        ("newer specification", view(Some(&new_spec), Some(REVISION), Some(LAYOUT)), "format version 2"),
        ("newer layout", view(Some(SPEC), Some(REVISION), Some(&new_layout)), "format version 2"),
        ("newer revision", view(Some(SPEC), Some(&new_revision), Some(LAYOUT)), "format version 2"),
        ("stale layout", view(Some(SPEC), Some(REVISION), Some(&older)), "stale"),
        ("layout not valid yet", view(Some(SPEC), Some(REVISION), Some(&future)), ""),
    ] {
        let (_dir, fake, mut node) = settled().await;
        assert!(node.pass(&view).await, "{what}");
        assert_eq!(fake.taken(), [""; 0], "{what}");
        let status = node.status().await;
        assert!(status.last_error.contains(word), "{what}: {}", status.last_error);
        assert_eq!(status.last_error.is_empty(), word.is_empty(), "{what}: {}", status.last_error);
        assert_eq!(status.generation, Generation(3), "{what}");
        assert!(node.pass(&full()).await, "{what}");
        assert_eq!(fake.taken(), [""; 0], "{what}: all is as it was");
        assert_eq!(node.status().await.last_error, "", "{what}");
    }
}

#[tokio::test]
async fn one_that_fails_holds_up_no_other() {
    let (_dir, fake, mut node) = fresh();
    *fake.broken.lock().unwrap() = Some("sentinel".into());
    assert!(!node.pass(&full()).await, "to be tried again");
    assert_eq!(fake.taken().len(), 3);
    let status = node.status().await;
    assert!(status.last_error.contains(SENTINEL), "{}", status.last_error);
    assert_eq!((status.generation, status.daemons.len()), (Generation(0), 2));
    *fake.broken.lock().unwrap() = None;
    assert!(node.pass(&full()).await);
    assert_eq!(fake.taken(), [format!("start {SENTINEL}")]);
    assert_eq!(node.status().await.generation, Generation(3));
}

#[tokio::test]
async fn a_layout_that_breaks_a_rule_changes_nothing() {
    let (_dir, fake, mut node) = settled().await;
    let bad = LAYOUT.replace("clover-1-n1", "../../etc");
    assert!(!node.pass(&view(Some(SPEC), Some(REVISION), Some(&bad))).await);
    assert_eq!(fake.taken(), [""; 0]);
    assert!(node.status().await.last_error.contains("unusable name"));
}

#[tokio::test]
async fn anothers_directory_is_refused() {
    let (dir, fake, node) = settled().await;
    drop(node);
    let text = std::fs::read_to_string(dir.path().join("bowl.json")).unwrap();
    for (bad, part) in [(text.replace("\"n1\"", "\"n2\""), "belongs to node n2"), ("{".into(), "can't be read")] {
        std::fs::write(dir.path().join("bowl.json"), bad).unwrap();
        let error = unopened(facts(dir.path()), true, &fake).open(dir.path()).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn the_data_directory_comes_from_the_specification_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let named = |path: &Path| SPEC.replace("\"/d\"", &format!("\"{}\"", path.display()));
    let own = dir.path().join("test");
    std::fs::create_dir(&own).unwrap();
    let fake = Arc::new(Fake { data_dir: own.clone(), ..Fake::default() });
    let mut node = unopened(facts(Path::new("")), false, &fake);
    assert!(node.pass(&view(Some(&named(dir.path())), Some(REVISION), Some(LAYOUT))).await);
    assert_eq!(fake.taken().len(), 3);
    assert!(own.join("proxy-test-clover-1-n1.env").exists());
    let moved = named(&dir.path().join("elsewhere"));
    assert!(!node.pass(&view(Some(&moved), Some(REVISION), Some(LAYOUT))).await);
    assert_eq!(fake.taken(), [""; 0]);
    assert!(node.status().await.last_error.contains("set DataDir back"));
}
