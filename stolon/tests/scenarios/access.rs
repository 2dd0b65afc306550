//! Who may connect, slots, parameters that stolon decides, keepers that must not be this or that, and left-over files.

use crate::lab;
use serde_json::json;
use std::net::TcpListener;
use testkit::stolon::{Lab, eventually};

fn hba(lab: &Lab, keeper: usize) -> String {
    std::fs::read_to_string(lab.keeper(keeper).pgdata().join("pg_hba.conf")).unwrap()
}

fn lines_for(lab: &Lab, keeper: usize, user: &str) -> Vec<String> {
    let text = hba(lab, keeper);
    let host = |line: &&str| line.starts_with("host ") && line.split(' ').nth(2) == Some(user);
    text.lines().filter(host).map(str::to_owned).collect()
}

#[tokio::test]
async fn strict_access_is_for_the_members_only() {
    // One member has a name, one an IPv4 address, and one, where there is such a thing, an IPv6 address.
    let six = if TcpListener::bind("[::1]:0").is_ok() { "::1" } else { "127.0.0.1" };
    let lab = lab()
        .keepers(3)
        .spec(json!({"defaultSUReplAccessMode": "strict", "pgHBA": ["host all all 127.0.0.1/32 trust"]}))
        .keeper_arguments(1, &["--pg-advertise-address", "localhost"])
        // All are on one host, where those that reach this one come from its own address: it can't let them in as master.
        .keeper_arguments(2, &["--pg-advertise-address", six, "--can-be-master=false"])
        .prepare()
        .await;
    lab.keeper(2).process.set_argument("--pg-listen-address", "localhost,127.0.0.1");
    lab.init().await;
    lab.start_all();
    let data = lab.ready().await;
    for keeper in 0..3 {
        let master = lab.master_in(&data) == Some(keeper);
        let (su, repl) = (lines_for(&lab, keeper, "postgres"), lines_for(&lab, keeper, "repl"));
        if !master {
            assert!(su.is_empty() && repl.is_empty(), "{}", hba(&lab, keeper));
            continue;
        }
        let mut hosts = vec!["127.0.0.1/32", "localhost", if six == "::1" { "::1/128" } else { "127.0.0.1/32" }];
        hosts.remove(keeper);
        hosts.sort_unstable();
        hosts.dedup();
        let wanted = |user: &str, database: &str| -> Vec<String> {
            hosts.iter().map(|host| format!("host {database} {user} {host} trust")).collect()
        };
        let sorted = |mut lines: Vec<String>| {
            lines.sort();
            lines
        };
        assert_eq!(sorted(su), wanted("postgres", "all"));
        assert_eq!(sorted(repl), wanted("repl", "replication"));
    }
    // A failover takes the lines along, and the old master gets in to be rewound.
    let old = lab.master().await;
    lab.keeper(old).kill();
    let new = lab.wait_for_other_master(old).await;
    lab.keeper(old).start();
    lab.ready().await;
    assert!(!lines_for(&lab, new, "repl").is_empty());
    // Back to all.
    lab.ctl(&["update", "--patch", r#"{"defaultSUReplAccessMode": null}"#]).await;
    eventually("access for all", async || hba(&lab, new).contains("host replication repl 0.0.0.0/0 trust")).await;
}

#[tokio::test]
async fn slots_and_senders_of_the_user() {
    let lab = lab()
        .spec(json!({"additionalMasterReplicationSlots": ["one", "two"], "additionalWalSenders": 9, "maxStandbys": 6}))
        .up()
        .await;
    let (old, standby) = (lab.master().await, lab.standbys().await[0]);
    let ours = "SELECT string_agg(slot_name, ',' ORDER BY slot_name) FROM pg_replication_slots WHERE slot_name ~ 'one|two|mine|s[0-9]'";
    lab.keeper(old).pg.wait_for(ours, "stolon_one,stolon_two").await;
    assert_eq!(lab.keeper(standby).pg.one(ours).await, "");
    assert_eq!(lab.keeper(old).pg.one("SHOW max_wal_senders").await, "23");
    assert_eq!(lab.keeper(old).pg.one("SHOW max_replication_slots").await, "6");
    lab.keeper(old).pg.one("SELECT pg_create_physical_replication_slot('mine')").await;
    // One goes, the user's own stays.
    lab.ctl(&["update", "--patch", r#"{"additionalMasterReplicationSlots": ["two"]}"#]).await;
    lab.keeper(old).pg.wait_for(ours, "mine,stolon_two").await;
    // More than there is room for is told, and the master stays what it is.
    let many: Vec<String> = (0..9).map(|n| format!("s{n}")).collect();
    lab.ctl(&["update", "--patch", &json!({"additionalMasterReplicationSlots": many}).to_string()]).await;
    eventually("the lack is told", async || lab.keeper(old).log().contains("raise maxStandbys, or ask for fewer"))
        .await;
    lab.ready().await;
    assert_eq!(lab.master().await, old);
    lab.keeper(old).pg.wait_for("SELECT count(*) > 0 FROM pg_replication_slots WHERE active", "t").await;
    // They follow the master.
    lab.ctl(&["update", "--patch", r#"{"additionalMasterReplicationSlots": ["two"]}"#]).await;
    lab.keeper(old).kill();
    let new = lab.wait_for_other_master(old).await;
    lab.keeper(new).pg.wait_for(ours, "stolon_two").await;
}

#[tokio::test]
async fn parameters_that_stolon_decides() {
    // Without fsync PostgreSQL would replace even a link to nowhere.
    let lab = lab()
        .spec(
            json!({"pgParameters": {"fsync": "on", "wal_level": "logical", "wal_keep_size": "64MB", "work_mem": "5MB",
            "max_replication_slots": "3", "hot_standby": "off", "app.thing": "it's"}}),
        )
        .up()
        .await;
    let master = lab.master().await;
    for keeper in lab.keepers() {
        for (name, value) in [
            ("wal_level", "logical"),
            ("wal_keep_size", "64MB"),
            ("max_replication_slots", "20"),
            ("hot_standby", "on"),
            ("work_mem", "5MB"),
            ("app.thing", "it's"),
        ] {
            assert_eq!(keeper.pg.one(&format!("SHOW {name}")).await, value, "{name}");
        }
    }
    let refused = lab.keeper(master).pg.try_one("ALTER SYSTEM SET work_mem = '9MB'").await;
    assert!(refused.is_err(), "{refused:?}");
    // What is taken away has its default again; a wal_level that makes no sense here is replica.
    let patch = r#"{"pgParameters": {"work_mem": null, "wal_keep_size": null, "wal_level": "minimal"}}"#;
    lab.ctl(&["update", "--patch", patch]).await;
    for keeper in lab.keepers() {
        keeper.pg.wait_for("SHOW work_mem", "4MB").await;
        keeper.pg.wait_for("SHOW wal_keep_size", "128MB").await;
        keeper.pg.wait_for("SHOW wal_level", "replica").await;
    }
    lab.ready().await;
}

#[tokio::test]
async fn keepers_that_must_not_be_master_or_synchronous() {
    let lab = lab()
        .keepers(3)
        .synchronous(1, 2)
        .keeper_arguments(0, &["--can-be-master=false"])
        .keeper_arguments(1, &["--can-be-synchronous-replica=false"])
        .up()
        .await;
    assert_ne!(lab.master().await, 0);
    let data = lab.data().await;
    let master = lab.master_in(&data).unwrap();
    assert!(!lab.confirmed(&data).contains(&1), "{:?}", lab.confirmed(&data));
    // Only the keeper that must not be master has every commit: rather nobody than that one.
    if master == 1 {
        assert_eq!(lab.confirmed(&data), [0, 2].into());
        lab.keeper(1).kill();
        assert_eq!(lab.wait_for_other_master(1).await, 2);
    } else {
        assert_eq!(lab.confirmed(&data), [0].into());
        lab.keeper(2).kill();
        let lost = |data: &model::stolon::ClusterData| lab.master_in(data) != Some(2);
        lab.never("a master that must not be one", std::time::Duration::from_secs(6), lost).await;
        lab.keeper(2).start();
        lab.ready().await;
    }
}

#[tokio::test]
async fn an_advertised_place_is_what_others_use() {
    let lab = lab().relays().keeper_arguments(0, &["--pg-advertise-address", "localhost"]).up().await;
    let data = lab.data().await;
    let db = lab.db(&data, 0).unwrap();
    assert_eq!(db.status.listen_address, "localhost");
    assert_ne!(db.status.port, lab.keeper(0).pg.port().to_string(), "the relay's port");
    let (master, standby) = (lab.master().await, lab.standbys().await[0]);
    let place = &lab.db(&data, master).unwrap().status;
    let conninfo = lab.keeper(standby).pg.one("SHOW primary_conninfo").await;
    for part in [format!("host={} ", place.listen_address), format!("port={} ", place.port)] {
        assert!(conninfo.contains(&part), "{conninfo}");
    }
}

#[tokio::test]
async fn left_over_files_do_not_change_who_is_what() {
    let lab = lab().up().await;
    let (master, standby) = (lab.master().await, lab.standbys().await[0]);
    lab.keeper(master).pg.one("CREATE TABLE t (n int)").await;
    let system = "SELECT timeline_id FROM pg_control_checkpoint()";
    assert_eq!(lab.keeper(master).pg.one(system).await, "1");
    // Everything stops, and comes back with the files of others.
    lab.keeper(standby).stop().await;
    lab.keeper(master).stop().await;
    for name in ["standby.signal", "recovery.signal", "recovery.done"] {
        std::fs::write(lab.keeper(master).pgdata().join(name), "").unwrap();
    }
    std::fs::remove_file(lab.keeper(standby).pgdata().join("standby.signal")).unwrap();
    std::fs::write(lab.keeper(standby).pgdata().join("recovery.signal"), "").unwrap();
    lab.start_all();
    lab.ready().await;
    let (master, standby) = (lab.keeper(master), lab.keeper(standby));
    assert_eq!(master.pg.one("SELECT pg_is_in_recovery()").await, "f");
    assert_eq!(master.pg.one(system).await, "1", "nobody was promoted");
    assert_eq!(standby.pg.one("SELECT pg_is_in_recovery()").await, "t");
    master.pg.one("INSERT INTO t VALUES (1)").await;
    standby.pg.wait_for("SELECT n FROM t", "1").await;
    for (keeper, wanted) in [(master, false), (standby, true)] {
        assert_eq!(keeper.pgdata().join("standby.signal").exists(), wanted);
        assert!(!keeper.pgdata().join("recovery.signal").exists());
    }
}
