//! Parameters that PostgreSQL would not start with, and those that wait for a restart.

use crate::lab;
use model::stolon::Problem;
use serde_json::json;
use std::time::Duration;
use testkit::stolon::{Lab, eventually};

async fn problem(lab: &Lab, keeper: usize, code: &str) -> Option<String> {
    let info = lab.info(keeper).await?;
    info.problems.into_iter().find(|problem| problem.code == code).map(|problem| problem.text)
}

async fn patch(lab: &Lab, members: serde_json::Value) {
    lab.ctl(&["update", "--patch", &members.to_string()]).await;
}

#[tokio::test]
async fn parameters_that_postgres_would_not_start_with_are_refused_and_told() {
    let lab = lab().up().await;
    let master = lab.master().await;
    let pids = [0, 1].map(|keeper| lab.keeper(keeper).postmaster_pid());
    // A wrong value, a library that is not there, values that contradict each other.
    for (bad, words) in [
        (json!({"work_mem": "1 lb"}), "work_mem"),
        (json!({"work_mem": null, "shared_preload_libraries": "nowhere"}), "nowhere"),
        (json!({"shared_preload_libraries": null, "max_connections": "3"}), "max_connections"),
    ] {
        patch(&lab, json!({"pgParameters": bad})).await;
        for keeper in [0, 1] {
            eventually("the refusal is told", async || {
                problem(&lab, keeper, Problem::PARAMETERS_REFUSED).await.is_some_and(|text| text.contains(words))
            })
            .await;
        }
        // It counts as applied: nobody fails over for it.
        lab.ready().await;
    }
    assert_eq!([0, 1].map(|keeper| lab.keeper(keeper).postmaster_pid()), pids);
    assert_eq!(lab.keeper(master).pg.one("SHOW max_connections").await, "100");
    // A crash brings it back with what was good.
    lab.keeper(1 - master).kill_postgres();
    lab.ready().await;
    patch(&lab, json!({"pgParameters": {"max_connections": null, "work_mem": "8MB"}})).await;
    for keeper in [0, 1] {
        lab.keeper(keeper).pg.wait_for("SHOW work_mem", "8MB").await;
        eventually("nothing is refused", async || problem(&lab, keeper, Problem::PARAMETERS_REFUSED).await.is_none())
            .await;
    }
}

#[tokio::test]
async fn a_start_that_fails_is_repeated_with_the_last_good_parameters() {
    let lab = lab().keepers(1).up().await;
    lab.keeper(0).pg.one("CREATE TABLE kept (n int)").await;
    // No check finds this: there is just not so much memory.
    patch(&lab, json!({"pgParameters": {"shared_buffers": "4TB"}})).await;
    eventually("the refusal is told", async || problem(&lab, 0, Problem::PARAMETERS_REFUSED).await.is_some()).await;
    lab.ready().await;
    assert_eq!(lab.keeper(0).pg.one("SHOW shared_buffers; SELECT count(*) FROM kept").await, "0");
    assert_eq!(lab.keeper(0).pg.one("SHOW shared_buffers").await, "16MB");
}

#[tokio::test]
async fn what_waits_for_a_restart_and_wrong_lines_of_pg_hba_are_told() {
    let lab = lab().keepers(1).spec(json!({"automaticPgRestart": false})).up().await;
    let pid = lab.keeper(0).postmaster_pid();
    patch(&lab, json!({"pgParameters": {"max_connections": "90"}, "pgHBA": ["host all all nowhere/33 md5"]})).await;
    eventually("a restart is wanted", async || {
        problem(&lab, 0, Problem::RESTART_PENDING).await.is_some_and(|text| text.contains("max_connections"))
    })
    .await;
    eventually("the line is told", async || problem(&lab, 0, Problem::HBA_REFUSED).await.is_some()).await;
    patch(&lab, json!({"pgParameters": {"max_connections": "100"}, "pgHBA": null})).await;
    eventually("nothing is wrong", async || lab.info(0).await.is_some_and(|info| info.problems.is_empty())).await;
    assert_eq!(lab.keeper(0).postmaster_pid(), pid);
}

#[tokio::test]
async fn a_standby_that_follows_another_master_is_not_restarted() {
    let lab = lab().keepers(3).up().await;
    let old = lab.master().await;
    let pids: Vec<_> = lab.standbys().await.into_iter().map(|at| (at, lab.keeper(at).postmaster_pid())).collect();
    lab.keeper(old).kill();
    let new = lab.wait_for_other_master(old).await;
    let other = lab.standbys().await.into_iter().find(|at| *at != old).unwrap();
    let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    lab.keeper(new).pg.wait_for(streaming, "1").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    for (at, pid) in pids {
        assert_eq!(lab.keeper(at).postmaster_pid(), pid, "{}", lab.keeper(other).log());
    }
}
