//! Components of another stolon beside ours, in one cluster. `STOLON_BIN_PATH` names the directory of its programs;
//! without it nothing of this runs (scripts/test says so).

use crate::lab;
use serde_json::json;
use testkit::stolon::{Bins, Builder, Kind, Lab};

/// A lab with some components exchanged; `None` without another stolon.
fn mixed(exchange: impl FnOnce(Bins, &std::path::Path) -> Bins) -> Option<Builder> {
    let Some(theirs) = Bins::theirs_from_env() else {
        eprintln!("skipped: STOLON_BIN_PATH does not name another stolon's programs");
        return None;
    };
    let bins = exchange(crate::bins(), &theirs);
    // The others poll: they need intervals that leave time to see each other.
    let intervals = json!({"sleepInterval": "1s", "failInterval": "5s", "proxyTimeout": "4s"});
    Some(Lab::builder(bins).keepers(3).proxies(2).synchronous(1, 1).spec(intervals))
}

fn exchanged(kinds: &[Kind]) -> Option<Builder> {
    mixed(|bins, theirs| bins.exchange(theirs, kinds))
}

/// What every mix has to be able to do.
async fn serves_fails_over_and_heals(lab: Builder) {
    let lab = lab.up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    lab.ctl(&["update", "--patch", r#"{"pgParameters": {"work_mem": "7MB"}}"#]).await;
    for keeper in lab.keepers() {
        keeper.pg.wait_for("SHOW work_mem", "7MB").await;
    }
    let old = lab.master().await;
    lab.keeper(old).kill();
    let new = lab.wait_for_other_master(old).await;
    writer.progress(20).await;
    lab.keeper(old).start();
    lab.ready().await;
    // And by command, back or to the third one.
    lab.ctl(&["failkeeper", &lab.keeper(new).uid]).await;
    lab.wait_for_other_master(new).await;
    writer.progress(20).await;
    let written = writer.finish().await;
    let data = lab.ready().await;
    for keeper in 0..3 {
        lab.caught_up(keeper).await;
        written.check(&lab.keeper(keeper).pg).await;
    }
    let status: serde_json::Value = serde_json::from_str(&lab.ctl(&["status", "-f", "json"]).await).unwrap();
    assert_eq!(status["cluster"]["master_keeper_uid"], lab.keeper(lab.master_in(&data).unwrap()).uid.as_str());
    assert_eq!((status["proxies"].as_array().unwrap().len(), status["keepers"].as_array().unwrap().len()), (2, 3));
    // Rebuilding a standby on command.
    let standby = lab.standbys().await[0];
    let before = lab.db(&data, standby).unwrap().uid.clone();
    lab.ctl(&["removekeeper", &lab.keeper(standby).uid]).await;
    lab.wait("it is made again", |data| lab.is_whole(data) && lab.db(data, standby).is_some_and(|db| db.uid != before))
        .await;
}

macro_rules! mixes {
    ($($name:ident: $lab:expr;)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                if let Some(lab) = $lab {
                    serves_fails_over_and_heals(lab).await;
                }
            }
        )*
    };
}

mixes! {
    their_sentinel_with_our_keepers_and_proxies: exchanged(&[Kind::Sentinel]);
    our_sentinel_with_their_keepers: exchanged(&[Kind::Keeper]);
    their_proxies_before_our_keepers: exchanged(&[Kind::Proxy]);
    their_stolonctl_with_our_daemons: exchanged(&[Kind::Ctl]);
    our_stolonctl_with_their_daemons: exchanged(&[Kind::Keeper, Kind::Sentinel, Kind::Proxy]);
    one_of_their_keepers_among_ours: mixed(|bins, theirs| bins.exchange_keeper(theirs, 1));
    one_of_our_keepers_among_theirs: mixed(|bins, theirs| bins.exchange_keeper(theirs, 0).exchange_keeper(theirs, 2));
}

/// The leader changes between ours and theirs: only one leads at a time, and each takes over what the other wrote.
#[tokio::test]
async fn sentinels_of_both_kinds_take_turns() {
    let Some(theirs) = Bins::theirs_from_env() else {
        eprintln!("skipped: STOLON_BIN_PATH does not name another stolon's programs");
        return;
    };
    let intervals = json!({"sleepInterval": "1s", "failInterval": "5s", "proxyTimeout": "4s"});
    let mut lab = lab().keepers(2).synchronous(1, 1).spec(intervals).up().await;
    let writer = lab.writer().await;
    writer.progress(20).await;
    let other = lab.add_sentinel(Some(&theirs));
    for (leader, successor) in [(0, other), (other, 0)] {
        lab.sentinel(leader).stop().await;
        let old = lab.master().await;
        lab.keeper(old).kill();
        lab.wait_for_other_master(old).await;
        lab.keeper(old).start();
        lab.ready().await;
        writer.progress(20).await;
        lab.sentinel(leader).start();
        assert!(lab.sentinel(successor).pid().is_some());
    }
    writer.finish().await.check(&lab.proxy(0).pg).await;
}
