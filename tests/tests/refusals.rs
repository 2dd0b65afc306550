//! Bad input: one clear line, the right exit status, nothing half done.

#![expect(clippy::unwrap_used, reason = "a test that can not go on stops")]

use e2e::playground::{Playground, bin_dir};
use std::process::{Command, Output};
use store::{EtcdStore, Store as _, StoreOptions};
use testkit::etcd::Etcd;

/// The least specification that can be initialised: no authentication must be asked for by name.
const TRUST: &str = r#"{"ClusterSpec": {"PgSuAuthMethod": "trust", "PgReplAuthMethod": "trust"}}"#;

fn run(program: &str, endpoints: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(bin_dir().join(program));
    command.args(["--store-endpoints", endpoints, "--request-timeout", "1"]).args(arguments).output().unwrap()
}

/// The exit status and the line on stderr that begins with `error:`.
fn refusal(output: &Output) -> (Option<i32>, String) {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error:")).collect();
    assert_eq!(lines.len(), 1, "one line says what is wrong:\n{stderr}");
    (output.status.code(), lines[0].to_owned())
}

#[tokio::test]
async fn specifications_and_nodes() {
    let etcd = Etcd::start().await.unwrap();
    let init = |spec: &str| run("shardmanctl", &etcd.endpoints(), &["init", spec]);
    for (spec, part) in [
        (r#"{"LadleSpec": {"RepFactor": 1}}"#, "did you mean Repfactor?"),
        (r#"{"LadleSpec": {"Colour": 1}}"#, "unknown member LadleSpec.Colour"),
        (r#"{"LadleSpec": {"Repfactor": "one"}}"#, "Repfactor"),
        (r#"{"LadleSpec": {"PGsInitialPort": 5433}, "ClusterSpec": {"UseProxy": true}}"#, "overlap"),
        ("{}", "PgSuPassword is missing"),
        (
            r#"{"ClusterSpec": {"PgSuPassword": "a", "PgReplPassword": "b", "StolonSpec": {"maxStandbys": 0}}}"#,
            "maxStandbys",
        ),
        ("{", "not JSON"),
    ] {
        let (code, line) = refusal(&init(spec));
        assert_eq!(code, Some(1), "{line}");
        assert!(line.contains(part), "{spec} gave {line}");
    }
    let options = StoreOptions { endpoints: etcd.endpoints(), ..StoreOptions::default() };
    let store = EtcdStore::connect(&options).await.unwrap();
    let keys = async || store.list("shardman/").await.unwrap().entries.len();
    assert_eq!(keys().await, 0, "nothing was written");

    let add = |nodes: &str| run("shardmanctl", &etcd.endpoints(), &["nodes", "add", "-n", nodes]);
    let (code, line) = refusal(&add("n1,n2"));
    assert_eq!((code, line.contains("init")), (Some(1), true), "no cluster yet: {line}");
    assert!(init(TRUST).status.success());
    let before = keys().await;
    for (nodes, part) in
        [("n1", "multiple of 2"), ("n1,n1", "n1"), ("n1,", ""), ("n1,a/b", "a/b"), ("n1,n2,n3", "multiple of 2")]
    {
        let (code, line) = refusal(&add(nodes));
        assert!(code == Some(1) || code == Some(2), "{line}");
        assert!(line.contains(part), "{nodes} gave {line}");
    }
    let (code, line) = refusal(&init(TRUST));
    assert_eq!((code, line.contains("exists already")), (Some(1), true), "{line}");
    assert_eq!(keys().await, before, "nothing was written");

    for (program, arguments) in
        [("shardmanctl", &["nodes", "add"][..]), ("shardmanctl", &["frobnicate"]), ("ladle", &["addnodes"])]
    {
        let output = run(program, &etcd.endpoints(), arguments);
        assert_eq!(output.status.code(), Some(2), "{program} {arguments:?}");
    }
    let both = run("shardmanctl", &etcd.endpoints(), &["init", "-f", "/nonexistent", "{}"]);
    assert_eq!(refusal(&both).0, Some(2));
}

#[test]
fn an_unreachable_store() {
    for (program, arguments) in [
        ("shardmanctl", &["status"][..]),
        ("shardmanctl", &["getconnstr"]),
        ("shardmanctl", &["forall", "--sql", "select 1"]),
        ("shardmanctl", &["init", TRUST]),
        ("shardmanctl", &["nodes", "add", "-n", "n1,n2"]),
        ("ladle", &["layout"]),
    ] {
        let begun = std::time::Instant::now();
        let output = run(program, "http://127.0.0.1:1", arguments);
        assert_eq!(output.status.code(), Some(1), "{program} {arguments:?}");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("127.0.0.1:1"), "{program} {arguments:?}: {text}");
        assert!(
            begun.elapsed() < std::time::Duration::from_secs(15),
            "{program} {arguments:?} took {:?}",
            begun.elapsed()
        );
    }
}

#[test]
fn playgrounds_that_can_not_be() {
    let playground = Playground::unstarted().unwrap();
    let dir = playground.path();
    let refuse = |arguments: &[&str]| refusal(&playground.try_shardmanctl(arguments).unwrap());
    assert_eq!(refuse(&["playground", "--nodes", "3", "--data-dir", &dir]).0, Some(2));
    assert_eq!(refuse(&["playground", "--stop", "--data-dir", &dir]).0, Some(1));
    assert_eq!(refuse(&["playground", "node", "kill", "node1", "--data-dir", &dir]).0, Some(1));
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(format!("{dir}/thesis.txt"), "precious").unwrap();
    let (code, line) = refuse(&["playground", "--detach", "--data-dir", &dir]);
    assert_eq!((code, line.contains("not empty")), (Some(1), true), "{line}");
    assert_eq!(std::fs::read_to_string(format!("{dir}/thesis.txt")).unwrap(), "precious");
    let file = format!("{dir}/thesis.txt");
    assert_eq!(refuse(&["playground", "--detach", "--data-dir", &file]).0, Some(1));
    let (_, line) =
        refuse(&["playground", "--detach", "--pg-bin-path", "/nonexistent", "--data-dir", &format!("{dir}/new")]);
    assert!(line.contains("/nonexistent has no postgres"), "{line}");
}

/// Tables that can't be sharded leave nothing behind on any group.
#[tokio::test]
async fn tables() {
    let playground = Playground::start(2, 1).unwrap();
    let client = playground.connect().await.unwrap();
    for (sql, part) in [
        ("create table a(id int) with (distributed_by='nope', num_parts=2)", "nope"),
        ("create table a(id int primary key, b int) with (distributed_by='b', num_parts=2)", "b"),
        ("create table a(id int) with (distributed_by='id', num_parts=0)", "0 partitions"),
        ("create table a(id int) with (num_parts=2)", "no distribution column"),
        ("create table p(id int); select shardman.hash_shard_table('p', 4)", "hash"),
        ("create table l(id int) partition by list(id); select shardman.hash_shard_table('l', 4)", "hash"),
        ("select shardman.ex_sql(99, 'select 1')", "99"),
    ] {
        let error = client.batch_execute(sql).await.unwrap_err();
        let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}")).message().to_owned();
        assert!(error.contains(part), "{sql} gave {error}");
    }
    let sql = "select count(*) from pg_class where relname in ('a', 'p', 'l') or relname like 'a\\__%'";
    let counts = playground.shardmanctl(&["forall", "--sql", sql]).unwrap();
    assert_eq!(counts, "Node 1 says:\n0\nNode 2 says:\n0\n");
}
