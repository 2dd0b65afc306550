//! The commands against a real etcd.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic")]

mod support;

use ladle::cluster::load_existing;
use ladle::register::{Outside, finish, register};
use ladle::{addnodes, init};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{EtcdStore, StoreOptions};
use support::*;

async fn store(endpoints: &str) -> store::SharedStore {
    let timeout = Duration::from_secs(2);
    let options = StoreOptions { endpoints: endpoints.to_owned(), timeout, ..StoreOptions::default() };
    Arc::new(EtcdStore::connect(&options).await.unwrap())
}

#[tokio::test]
async fn init_once_and_not_twice() {
    let etcd = testkit::etcd::Etcd::start().await.unwrap();
    let ctx = context(store(&etcd.endpoints()).await);
    make_cluster(&ctx, &spec("", "")).await;
    let again = init::run(&ctx, &spec("", ""), init::Options::default(), &Told::default()).await;
    assert!(again.unwrap_err().to_string().contains("exists already"));
    let loaded = load_existing(&ctx).await.unwrap();
    assert_eq!(loaded.revision.doc.generation.0, 0);
    // The lock is free again at once.
    assert!(ctx.store.get(&ctx.keys.metadata_lock()).await.unwrap().is_none());
}

#[tokio::test]
async fn hundreds_of_nodes_fit_into_etcds_limits() {
    let etcd = testkit::etcd::Etcd::start().await.unwrap();
    let ctx = context(store(&etcd.endpoints()).await);
    make_cluster(&ctx, &spec(r#", "Repfactor": 3"#, r#""UseProxy": true"#)).await;
    let lock = ctx.lock(&Told::default()).await.unwrap();
    let outside = Outside { force: false, now: chrono::DateTime::UNIX_EPOCH };
    register(&ctx, &lock, &nodes(1, 400), outside).await.unwrap();
    finish(&ctx, &lock).await.unwrap();
    assert_eq!(load_existing(&ctx).await.unwrap().current().layouts.len(), 400);
}

#[tokio::test]
async fn a_store_that_is_down_is_told_within_the_timeout() {
    let mut etcd = testkit::etcd::Etcd::start().await.unwrap();
    let ctx = context(store(&etcd.endpoints()).await);
    etcd.stop();
    let begin = Instant::now();
    let error = init::run(&ctx, &spec("", ""), init::Options::default(), &Told::default()).await.unwrap_err();
    assert!(error.to_string().contains("etcd at"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(10));
    addnodes::dry_run(&ctx, &nodes(1, 2)).await.unwrap_err();
}

fn ladle(endpoints: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ladle"))
        .args(arguments)
        .env("SDM_STORE_ENDPOINTS", endpoints)
        .env("HPLADLE_CLUSTER_NAME", "c")
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_reads_its_arguments() {
    let etcd = testkit::etcd::Etcd::start().await.unwrap();
    let endpoints = etcd.endpoints();
    let run = |arguments: &[&str]| ladle(&endpoints, arguments);
    let (status, help, _) = run(&[]);
    assert_eq!(status, Some(0));
    assert!(help.contains("addnodes"));
    let trust =
        r#""ClusterSpec": {"PgSuUsername": "postgres", "PgSuAuthMethod": "trust", "PgReplAuthMethod": "trust"}"#;
    let spec = &format!(r#"{{"LadleSpec": {{"DataDir": "/d"}}, {trust}}}"#);
    assert_eq!(run(&["init", "-f", "x", spec]).0, Some(2));
    assert_eq!(run(&["addnodes"]).0, Some(2));
    assert_eq!(run(&["init", "-f", "/nowhere"]).0, Some(1));
    let (status, _, error) = run(&["init", r#"{"LadleSpec": {"Datadir": "/d"}}"#]);
    assert_eq!(status, Some(1));
    assert!(error.contains("did you mean DataDir?"), "{error}");
    assert_eq!(run(&["init", "{}"]).0, Some(1));
    let without_directory = &format!("{{{trust}}}");
    assert_eq!(run(&["init", without_directory]).0, Some(1));
    assert_eq!(run(&["init", without_directory, "--default-data-dir", "--dry-run"]).0, Some(0));
    assert_eq!(run(&["init", spec]).0, Some(0));
    let (status, plan, _) = run(&["addnodes", "-n", "n1,n2", "--dry-run"]);
    assert_eq!(status, Some(0));
    assert!(plan.contains("new clover 1: n1, n2"), "{plan}");
    let (_, json, _) = run(&["addnodes", "-n", "n1,n2", "--dry-run", "-o", "json"]);
    let plan: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(plan["Groups"][1]["Name"], "clover-1-n2");
    let (status, _, error) = run(&["addnodes", "-n", "n1", "--dry-run"]);
    assert_eq!(status, Some(1));
    assert!(error.contains("multiple of 2"), "{error}");
    // Common flags after the sub-command too, and winning over the environment.
    let (status, _, error) = run(&["layout", "--cluster-name", "other"]);
    assert_eq!(status, Some(1));
    assert!(error.contains("cluster other does not exist"), "{error}");
    assert_eq!(run(&["layout", "-o", "json"]), (Some(0), "{}\n".into(), String::new()));
}
