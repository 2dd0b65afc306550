//! Each node of a playground dies in turn while clients commit: service returns, nothing acknowledged is lost,
//! and the preferred master is back by itself after the node came back.

#![expect(clippy::unwrap_used, reason = "a test that can not go on stops")]

use e2e::client::{Acknowledged, Writer, missing, outage};
use e2e::playground::Playground;
use e2e::servers::Onlooker;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Until all groups take commits again, also on a busy machine. How fast it is, `make bench` shows.
const LIMIT: Duration = Duration::from_secs(60);

/// Keys of the four partitions, `count` of each, disjoint between rounds.
async fn keys(client: &tokio_postgres::Client, round: i32, count: i64) -> Vec<Vec<i32>> {
    let mut keys = Vec::new();
    for partition in 0..4 {
        let sql = "select i from generate_series($1::int, $1 + 1000000) i
                   where satisfies_hash_partition('journal'::regclass, 4, $2, i) limit $3";
        let rows = client.query(sql, &[&(round * 2_000_000 + 1), &partition, &count]).await.unwrap();
        keys.push(rows.iter().map(|row| row.get(0)).collect());
    }
    keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_dies_in_turn() {
    let playground = Playground::start(4, 1).unwrap();
    let connstr = playground.connstr().unwrap();
    let client = playground.connect().await.unwrap();
    client
        .batch_execute("create table journal(id int primary key, t text) with (distributed_by='id', num_parts=4)")
        .await
        .unwrap();
    let mut acknowledged: Vec<Acknowledged> = Vec::new();
    for round in 0..4 {
        let node = format!("node{}", round + 1);
        // A session of before would be on any node, also on the one that dies.
        let client = playground.connect().await.unwrap();
        let writers: Vec<Writer> = keys(&client, round, 50_000)
            .await
            .into_iter()
            .map(|keys| Writer::start(connstr.clone(), "journal", keys))
            .collect();
        drop(client);
        let group = format!("clover-{}-{node}", round / 2 + 1);
        let onlooker = Onlooker::new(&playground, u32::try_from(round).unwrap() + 1, &group).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let killed = Instant::now();
        playground.node("kill", &node).unwrap();
        let servers = onlooker.servers_follow().await.unwrap();
        eprintln!("{node} killed: foreign servers follow {servers:.0?} after the new master was published");
        for writer in &writers {
            writer.progress(100, LIMIT).await.unwrap_or_else(|e| panic!("{node} killed: {e:#}"));
        }
        let mut outages = Vec::new();
        for writer in writers {
            let journal = writer.finish().await.unwrap();
            outages.push(outage(&journal, killed));
            acknowledged.extend(journal);
        }
        eprintln!("{node} killed: longest pause of commits per group: {outages:?}");
        nothing_is_missing(&playground, &acknowledged).await;
        comes_back(&playground, &node, &group).await;
        nothing_is_missing(&playground, &acknowledged).await;
    }
    assert!(acknowledged.len() > 400, "the writers did write: {}", acknowledged.len());
}

async fn nothing_is_missing(playground: &Playground, acknowledged: &[Acknowledged]) {
    let client = playground.connect().await.unwrap();
    let rows = client.query("select id from journal", &[]).await.unwrap();
    let found: BTreeSet<i32> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(rows.len(), found.len(), "every row once");
    assert_eq!(missing(acknowledged, &found), Vec::<i32>::new());
}

/// Starts the node; its keeper resyncs, becomes synchronous, and takes its group back.
async fn comes_back(playground: &Playground, node: &str, group: &str) {
    playground.node("start", node).unwrap();
    let begun = Instant::now();
    Playground::eventually("the preferred master is back", Duration::from_secs(60), async || {
        let status = playground.status().unwrap();
        let address = format!(":{}", 5442);
        status.master(group).is_some_and(|master| master.ends_with(&address)) && status.complaints().is_empty()
    })
    .await
    .unwrap_or_else(|e| panic!("{node}: {e}: {:?}", playground.status().unwrap().complaints()));
    eprintln!("{node} started: its group is back after {:.1} s", begun.elapsed().as_secs_f64());
}
