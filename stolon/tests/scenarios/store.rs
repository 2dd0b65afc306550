//! What is in the store: written by several hands, in several dialects, broken, or gone.

use crate::lab;
use serde_json::{Value, json};
use std::time::Duration;
use store::{Compare, Op};
use testkit::stolon::{Lab, eventually};

/// Changes the cluster data as a program would that knows nothing of its structure.
async fn edit(lab: &Lab, change: impl Fn(&mut Value)) {
    let key = lab.keys().clusterdata();
    loop {
        let entry = lab.store().get(&key).await.unwrap().unwrap();
        let mut value: Value = serde_json::from_slice(&entry.value).unwrap();
        change(&mut value);
        let unchanged = vec![Compare::Unchanged(key.clone(), entry.mod_revision)];
        let put = vec![Op::put(key.clone(), value.to_string().into_bytes())];
        if lab.store().txn(unchanged, put).await.unwrap().succeeded {
            return;
        }
    }
}

async fn raw(lab: &Lab) -> Value {
    serde_json::from_slice(&lab.store().get(&lab.keys().clusterdata()).await.unwrap().unwrap().value).unwrap()
}

#[tokio::test]
async fn members_of_a_newer_version_survive_ctl_and_sentinel() {
    let lab = lab().up().await;
    let (master, standby) = (lab.master().await, lab.standbys().await[0]);
    let data = lab.data().await;
    let uid = lab.keeper(standby).uid.clone();
    let db = data.cluster.status.master.to_string();
    let places = [
        String::new(),
        "/cluster".into(),
        "/cluster/status".into(),
        format!("/keepers/{uid}"),
        format!("/keepers/{uid}/status"),
        format!("/dbs/{db}"),
        format!("/dbs/{db}/status"),
        "/proxy".into(),
    ];
    let future = json!({"list": [1, null, "x"], "number": 18_446_744_073_709_551_615_u64});
    edit(&lab, |value| {
        for place in &places {
            value.pointer_mut(place).unwrap()["future"] = future.clone();
        }
    })
    .await;
    // By ctl and by the sentinel, several times.
    lab.ctl(&["update", "--patch", r#"{"pgParameters": {"work_mem": "7MB"}}"#]).await;
    lab.ctl(&["setkeeperpriority", "--", &uid, "-1"]).await;
    lab.keeper(master).pg.wait_for("SHOW work_mem", "7MB").await;
    lab.keeper(standby).kill();
    lab.wait("the sentinel wrote", |data| !lab.db(data, standby).unwrap().status.healthy).await;
    lab.keeper(standby).start();
    lab.ready().await;
    let value = raw(&lab).await;
    for place in &places {
        assert_eq!(value.pointer(place).unwrap()["future"], future, "{place}");
    }
}

#[tokio::test]
async fn times_of_other_zones_and_null_for_empty_are_understood_and_change_nothing() {
    let lab = lab().up().await;
    let master = lab.master().await;
    let pids: Vec<_> = lab.keepers().iter().map(|keeper| keeper.postmaster_pid()).collect();
    edit(&lab, |value| {
        value["changeTime"] = json!("2026-11-20T13:28:30.125875603+09:30");
        value["cluster"]["changeTime"] = json!("2026-11-20T02:00:00-11:00");
        value["cluster"]["spec"]["pgHBA"] = json!([]);
        value["cluster"]["spec"]["additionalMasterReplicationSlots"] = json!([]);
        for keeper in value["keepers"].as_object_mut().unwrap().values_mut() {
            keeper["status"]["lastHealthyTime"] = json!("2026-11-20T13:28:30+14:00");
            keeper["spec"] = Value::Null;
        }
        for db in value["dbs"].as_object_mut().unwrap().values_mut() {
            db["changeTime"] = Value::Null;
            db["spec"]["additionalReplicationSlots"] = json!([]);
            db["spec"]["followers"] = Value::Null;
        }
    })
    .await;
    // An empty list closes PostgreSQL to users, other than none at all.
    let closed = async || {
        let hba = std::fs::read_to_string(lab.keeper(master).pgdata().join("pg_hba.conf")).unwrap();
        !hba.contains("host all all")
    };
    eventually("the empty list is applied", closed).await;
    let data =
        lab.wait("all have applied it", |data| lab.is_whole(data) && data.proxy.spec.enabled_proxies.len() == 1).await;
    let generations = |data: &model::stolon::ClusterData| data.dbs.values().map(|db| db.generation).collect::<Vec<_>>();
    let settled = generations(&data);
    lab.never("generations go on counting", Duration::from_secs(4), |data| generations(data) != settled).await;
    assert_eq!(lab.keepers().iter().map(|keeper| keeper.postmaster_pid()).collect::<Vec<_>>(), pids);
    assert!(raw(&lab).await["keepers"].as_object().unwrap().values().all(|keeper| keeper["spec"].is_object()));
}

#[tokio::test]
async fn the_largest_numbers_are_kept_exactly_and_larger_ones_refused() {
    let lab = lab().up().await;
    let (master, standby) = (lab.master().await, lab.standbys().await[0]);
    let before = raw(&lab).await["cluster"]["spec"].clone();
    for patch in [
        r#"{"maxStandbys": 65536}"#,
        r#"{"maxStandbyLag": 4294967296}"#,
        r#"{"minSynchronousStandbys": -1}"#,
        r#"{"maxStandbys": 1.5}"#,
    ] {
        assert_eq!(lab.try_ctl(&["update", "--patch", patch]).await.status.code(), Some(1), "{patch}");
    }
    assert_eq!(raw(&lab).await["cluster"]["spec"], before);
    lab.ctl(&["update", "--patch", r#"{"maxStandbyLag": 4294967295, "deadKeeperRemovalInterval": "2562047h47m16s"}"#])
        .await;

    lab.keeper(standby).kill();
    lab.wait("the standby is given up", |data| !lab.db(data, standby).unwrap().status.healthy).await;
    let uid = lab.db(&lab.data().await, standby).unwrap().uid.to_string();
    let history = json!([{"timelineID": u64::MAX, "switchPoint": u64::MAX}]);
    edit(&lab, |value| {
        value["dbs"][&uid]["status"]["timelinesHistory"] = history.clone();
        value["proxy"]["generation"] = json!(1_i64 << 62);
        value["keepers"][&lab.keeper(master).uid]["spec"]["priority"] = json!(i64::MAX);
        value["keepers"][&lab.keeper(standby).uid]["spec"]["priority"] = json!(i64::MIN);
    })
    .await;
    // The sentinel writes, and goes on to work.
    lab.ctl(&["update", "--patch", r#"{"pgParameters": {"work_mem": "7MB"}}"#]).await;
    lab.keeper(master).pg.wait_for("SHOW work_mem", "7MB").await;
    let value = raw(&lab).await;
    assert_eq!(value["dbs"][&uid]["status"]["timelinesHistory"], history);
    assert_eq!(value["keepers"][&lab.keeper(standby).uid]["spec"]["priority"], json!(i64::MIN));
    lab.keeper(standby).start();
    lab.ready().await;
    // A new fence is above all that were there.
    lab.keeper(master).kill();
    lab.wait_for_other_master(master).await;
    assert!(lab.data().await.proxy.generation > 1 << 62);
}

#[tokio::test]
async fn a_bad_record_hides_no_other() {
    let lab = lab().synchronous(1, 1).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let old = lab.master().await;
    let keys = lab.keys();
    for prefix in [keys.keepers_info(), keys.proxies_info(), keys.sentinels_info()] {
        let bad: [&[u8]; 6] = [b"{", b"[]", b"null", b"\xff\xfe", b"", br#"{"uid": 5, "UID": [], "infoUID": {}}"#];
        for (index, value) in bad.iter().enumerate() {
            lab.store().put(&format!("{prefix}/bad{index}"), value, None).await.unwrap();
        }
    }
    // All read them again.
    lab.sentinel(0).kill();
    lab.sentinel(0).start();
    let status = lab.ctl(&["status"]).await;
    assert!(lab.keepers().iter().all(|keeper| status.contains(&keeper.uid)), "{status}");
    lab.ready().await;
    lab.keeper(old).kill();
    lab.wait("another one is chosen", |data| lab.master_in(data) != Some(old)).await;
    // A record of a proxy that can't be read may be that of one that forwards: a person has to say that it does not.
    let published = |data: &model::stolon::ClusterData| !data.proxy.spec.master_db_uid.is_empty();
    lab.never("proxies are opened", Duration::from_secs(2), published).await;
    for index in 0..6 {
        lab.store().delete(&format!("{}/bad{index}", keys.proxies_info())).await.unwrap();
    }
    lab.wait_for_other_master(old).await;
    lab.keeper(old).start();
    writer.progress(20).await;
    lab.ready().await;
    writer.finish().await.check(&lab.proxy(0).pg).await;
}

#[tokio::test]
async fn commands_and_the_sentinel_lose_none_of_each_others_changes() {
    let lab = lab().up().await;
    let standby = lab.keeper(lab.standbys().await[0]).uid.clone();
    let updates = async {
        for number in 1..=12 {
            lab.ctl(&["update", "--patch", &json!({"pgParameters": {"lab.number": number.to_string()}}).to_string()])
                .await;
        }
    };
    let priorities = async {
        for number in -12..=-1 {
            lab.ctl(&["setkeeperpriority", "--", &standby, &number.to_string()]).await;
        }
    };
    tokio::join!(updates, priorities);
    for keeper in lab.keepers() {
        keeper.pg.wait_for("SHOW lab.number", "12").await;
    }
    let data = lab.ready().await;
    assert_eq!(data.keepers[standby.as_str()].spec.priority, -1);
    // What `read` prints is what `write` takes.
    let text = lab.ctl(&["clusterdata", "read"]).await;
    let file = lab.path().join("clusterdata.json");
    std::fs::write(&file, text).unwrap();
    lab.ctl(&["clusterdata", "write", "--yes", "--file", &file.display().to_string()]).await;
    let written = lab.ready().await;
    let generations = |data: &model::stolon::ClusterData| data.dbs.values().map(|db| db.generation).collect::<Vec<_>>();
    assert_eq!((&written.cluster.uid, generations(&written)), (&data.cluster.uid, generations(&data)));
}

#[tokio::test]
async fn postgres_goes_on_without_cluster_data_and_with_one_that_makes_no_sense() {
    let lab = lab().up().await;
    let master = lab.master().await;
    let pids = || lab.keepers().iter().map(|keeper| keeper.postmaster_pid()).collect::<Vec<_>>();
    let running = pids();
    lab.proxy(0).pg.one("CREATE TABLE t AS SELECT 1 AS n").await;
    let key = lab.keys().clusterdata();
    let good = lab.store().get(&key).await.unwrap().unwrap().value;
    let mut newer: Value = serde_json::from_slice(&good).unwrap();
    newer["formatVersion"] = json!(2);
    let mut invalid: Value = serde_json::from_slice(&good).unwrap();
    invalid["cluster"]["spec"]["sleepInterval"] = json!("-1s");
    let mut torn: Value = serde_json::from_slice(&good).unwrap();
    torn["dbs"] = json!({});
    let bad = [None, Some("{".to_owned()), Some(newer.to_string()), Some(invalid.to_string()), Some(torn.to_string())];
    for value in bad {
        match &value {
            Some(value) => drop(lab.store().put(&key, value.as_bytes(), None).await.unwrap()),
            None => drop(lab.store().delete(&key).await.unwrap()),
        }
        // Long enough for everybody to have seen it.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(pids(), running, "{value:?}");
        assert_eq!(lab.keeper(master).pg.try_one("SELECT count(*) FROM t").await.unwrap(), "1");
        let now = lab.store().get(&key).await.unwrap().map(|entry| entry.value);
        assert_eq!(now, value.map(String::into_bytes), "somebody rewrote it");
    }
    lab.store().put(&key, &good, None).await.unwrap();
    let data = lab.ready().await;
    assert_eq!(lab.master_in(&data), Some(master));
    assert_eq!(lab.proxy(0).pg.one("SELECT count(*) FROM t").await, "1");
    assert_eq!(pids(), running);
}

#[tokio::test]
async fn a_store_that_was_away_or_was_restored_changes_nothing() {
    let mut lab = lab().synchronous(1, 1).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let master = lab.master().await;
    let saved = lab.store().get(&lab.keys().clusterdata()).await.unwrap().unwrap().value;
    let running: Vec<_> = lab.keepers().iter().map(|keeper| keeper.postmaster_pid()).collect();
    lab.etcd.stop();
    // Without the store nobody may forward for long.
    eventually("the proxy lets nobody in", async || lab.proxy(0).pg.try_connect().await.is_err()).await;
    let before = writer.count();
    lab.etcd.wipe().unwrap();
    lab.etcd.resume().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(writer.count(), before, "somebody forwards without cluster data");
    lab.store().put(&lab.keys().clusterdata(), &saved, None).await.unwrap();
    writer.progress(20).await;
    let data = lab.ready().await;
    assert_eq!(lab.master_in(&data), Some(master));
    assert_eq!(lab.keepers().iter().map(|keeper| keeper.postmaster_pid()).collect::<Vec<_>>(), running);
    writer.finish().await.check(&lab.proxy(0).pg).await;
}
