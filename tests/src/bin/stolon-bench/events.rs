//! What happens to a cluster under load, and how long no commit is acknowledged.

use crate::figures::Figures;
use anyhow::Context as _;
use std::time::{Duration, Instant};
use testkit::stolon::{Lab, TABLE};

/// Acknowledged rows before and after each event.
const ROWS: usize = 100;
/// Between two runs: what a restarted daemon still has to do.
const REST: Duration = Duration::from_millis(1500);

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// SIGKILL to the master's keeper and its PostgreSQL.
    Kill,
    /// SIGKILL to everything on the master's node, with the leading sentinel and a proxy.
    Node,
    /// SIGKILL to the master's PostgreSQL.
    Postgres,
    /// `stolonctl switchover`.
    Switchover,
}

impl Event {
    /// Its name on the command line.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Event::Kill => "kill",
            Event::Node => "node",
            Event::Postgres => "postgres",
            Event::Switchover => "switchover",
        }
    }

    fn figures(self, keepers: usize) -> Figures {
        let (text, median, max) = match self {
            Event::Kill => ("keeper and PostgreSQL killed", 2.0, Some(4.0)),
            Event::Node => ("node with leader and proxy killed", 4.0, Some(6.0)),
            Event::Postgres => ("PostgreSQL killed", 1.5, None),
            Event::Switchover => ("switchover", 0.3, None),
        };
        Figures::new(format!("{keepers} keepers, {text}"), median, max)
    }
}

/// Lets it happen again and again to the same cluster, which is whole each time.
///
/// # Errors
/// Nothing was acknowledged afterwards.
pub(crate) async fn measure(lab: &Lab, event: Event, runs: usize) -> anyhow::Result<Figures> {
    let mut figures = event.figures(lab.keepers().len());
    for _ in 0..runs {
        lab.proxy(0).pg.one(&format!("DROP TABLE IF EXISTS {TABLE}")).await;
        tokio::time::sleep(REST).await;
        let master = lab.master().await;
        let leader = leading(lab).await.context("no sentinel leads")?;
        let writer = lab.writer().await;
        writer.progress(ROWS).await;
        let happened = Instant::now();
        match event {
            Event::Kill => lab.keeper(master).kill(),
            Event::Node => {
                lab.sentinel(leader).kill();
                lab.proxy(master).process.kill();
                lab.keeper(master).kill();
            }
            Event::Postgres => lab.keeper(master).kill_postgres(),
            Event::Switchover => {
                let to = lab.keeper(lab.standbys().await[0]).uid.clone();
                lab.ctl(&["switchover", "--yes", "--to", &to]).await;
            }
        }
        match event {
            Event::Postgres => writer.progress(ROWS).await,
            _ => {
                lab.wait_for_other_master(master).await;
                writer.progress(ROWS).await;
            }
        }
        let written = writer.finish().await;
        figures.add(written.outage(happened).context("nothing was acknowledged afterwards")?);
        figures.add_failed(written.failed, written.cut);
        lab.start_all();
        lab.ready().await;
        written.check(&lab.proxy(0).pg).await;
    }
    Ok(figures)
}

/// Index of the sentinel that leads: its log names its uid.
async fn leading(lab: &Lab) -> Option<usize> {
    let listing = lab.store().list(&lab.keys().election()).await.ok()?;
    // The oldest candidate leads.
    let leader = listing.entries.into_iter().min_by_key(|entry| entry.create_revision)?;
    let uid = String::from_utf8(leader.value).ok()?;
    lab.sentinels().iter().position(|sentinel| sentinel.pid().is_some() && sentinel.log().contains(&uid))
}
