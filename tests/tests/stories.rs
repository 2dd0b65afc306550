//! What a newcomer does first, through the connection string that `getconnstr` prints.

#![expect(clippy::unwrap_used, reason = "a test that can not go on stops")]

use e2e::playground::{Playground, bin_dir};
use std::process::Command;
use std::time::Duration;
use tokio_postgres::Client;

async fn rows(client: &Client, sql: &str) -> Vec<Vec<String>> {
    let messages = client.simple_query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let rows = messages.into_iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    rows.map(|row| (0..row.len()).map(|i| row.get(i).unwrap_or("NULL").to_owned()).collect()).collect()
}

/// Both seed stories, `status`, `forall`, `getconnstr`, a second `init`, and a stop and start with the data there.
#[tokio::test]
async fn seed_stories() {
    let playground = Playground::start(4, 1).unwrap();
    let client = playground.connect().await.unwrap();

    client
        .batch_execute("create table x(id int primary key, t text) with (distributed_by='id', num_parts=2)")
        .await
        .unwrap();
    client.batch_execute("insert into x values (1,'one'),(2,'two'),(3,'three')").await.unwrap();
    let split = rows(&client, "select count(*) from x group by tableoid order by 1").await;
    assert_eq!(split, [["1"], ["2"]], "keys 1, 2, 3 split 2 to 1");
    let owner =
        rows(&client, "select shardman.rgid from (select current_setting('shardman.rgid')) shardman(rgid)").await;
    assert!(!owner.is_empty());
    check_description(&playground);

    client
        .batch_execute(
            "select shardman.bcst_all_sql('create table test(id int, payload text) partition by hash(id)');
             select shardman.hash_shard_table('test', 4);
             insert into test select i, 'row ' || i from generate_series(1, 10000) i",
        )
        .await
        .unwrap();
    let counts = playground.shardmanctl(&["forall", "--sql", "select count(*) from test"]).unwrap();
    let expected: String = (1..=4).map(|id| format!("Node {id} says:\n10000\n")).collect();
    assert_eq!(counts, expected);

    check_commands(&playground);
    drop(client);

    playground.stop().unwrap();
    assert!(playground.pids("postgres").is_empty() && playground.pids("etcd").is_empty());
    playground.shardmanctl(&playground.start_arguments(4, 1)).unwrap();
    let client = playground.connect().await.unwrap();
    assert_eq!(rows(&client, "select count(*) from test").await, [["10000"]], "the data is still there");
    Playground::eventually("no complaints after a restart", Duration::from_secs(30), async || {
        playground.status().unwrap().complaints().is_empty()
    })
    .await
    .unwrap();
}

/// `\d` on the first group, which owns partition 0.
fn check_description(playground: &Playground) {
    let master = playground.status().unwrap().master("clover-1-node1").unwrap();
    let address = master.split(':').next().unwrap();
    let connstr = playground.connstr().unwrap();
    let (user, password) = (field(&connstr, "user"), field(&connstr, "password"));
    let describe = |what: &str| {
        let output = Command::new("psql")
            .args(["-X", "-h", address, "-p", "5432", "-U", user, "-d", "postgres", "-c", what])
            .env("PGPASSWORD", password)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let all = describe("\\d");
    for line in ["x       | partitioned table", "x_0     | table", "x_1_fdw | foreign table"] {
        assert!(all.contains(line), "{line} in\n{all}");
    }
    let local = describe("\\d x_0");
    assert!(local.contains("Partition of: x FOR VALUES WITH (modulus 2, remainder 0)"), "{local}");
    assert!(local.contains("\"x_0_pkey\" PRIMARY KEY, btree (id)"), "{local}");
    let foreign = describe("\\d x_1_fdw");
    assert!(foreign.contains("Server: shardman_rg_2"), "{foreign}");
    assert!(foreign.contains("FDW options: (table_name 'x_1')"), "{foreign}");
    assert!(foreign.contains("| not null |"), "{foreign}");
}

fn field<'a>(connstr: &'a str, name: &str) -> &'a str {
    connstr.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
}

fn check_commands(playground: &Playground) {
    let status = playground.status().unwrap();
    assert_eq!(status.complaints(), Vec::<String>::new());
    let text = playground.shardmanctl(&["status"]).unwrap();
    for title in ["STORE", "TOPOLOGY", "METADATA", "SHARDMAND", "REPLICATION GROUP", "MASTER", "DICTIONARY"]
        .map(|t| format!("== {t} STATUS =="))
    {
        assert!(text.contains(&title), "{title} in\n{text}");
    }
    assert!(text.contains("Store has only one member, consider"), "{text}");

    let env = std::fs::read_to_string(format!("{}/env", playground.path())).unwrap();
    assert!(env.contains(&format!("export SDM_STORE_ENDPOINTS='{}'", playground.endpoints())), "{env}");

    let spec = r#"{"ClusterSpec": {"PgSuAuthMethod": "trust", "PgReplAuthMethod": "trust"}}"#;
    let output = playground.try_shardmanctl(&["init", spec]).unwrap();
    assert_eq!(output.status.code(), Some(1), "a second init is refused");
    assert!(String::from_utf8_lossy(&output.stderr).contains("exists already"));
    let output = playground.try_shardmanctl(&["nodes", "add", "-n", "node1,node9"]).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("node1"));
    assert!(bin_dir().join("ladle").exists());
}
