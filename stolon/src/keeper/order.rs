//! Orders of the leading sentinel: checkpoints, and restarts at the right moment.

use super::error::Result;
use super::machine::Machine;
use super::plan::{OrderStage, Ordered};
use super::postgres::sql::{self, Target};
use model::stolon::ext::Order;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

/// Limit of a checkpoint on a busy server with much memory. The sentinel decides how long it waits for it.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(600);
/// While a checkpoint takes so long, much is written that the next one has to write: another one makes it short.
const LONG_CHECKPOINT: Duration = Duration::from_secs(1);
/// A leading sentinel of ours says within milliseconds when to restart. Where none says anything, as with Go's, the
/// keeper restarts by itself after this time.
const SENTINEL_ANSWERS: Duration = Duration::from_secs(5);

/// What was ordered, and how far it is.
#[derive(Debug)]
pub(super) struct Orders {
    key: String,
    /// The last order that was begun.
    stage: watch::Sender<(String, OrderStage)>,
    /// Since when changed parameters wait for a restart.
    pending: Option<Instant>,
}

impl Orders {
    pub(super) fn new(key: String) -> Self {
        Orders { key, stage: watch::Sender::default(), pending: None }
    }

    /// Changed parameters have waited for long enough for somebody to say when to restart.
    pub(super) fn is_overdue(&mut self, pending: bool) -> bool {
        if !pending {
            self.pending = None;
        }
        pending && self.pending.get_or_insert_with(Instant::now).elapsed() >= SENTINEL_ANSWERS
    }
}

impl Machine {
    /// The order that is not carried out yet.
    pub(super) fn take_order(&self) -> Option<Ordered> {
        let order: Order = {
            let view = self.view.borrow();
            serde_json::from_slice(view.value(&self.orders.key)?).ok()?
        };
        let meant = order.boot_uuid == self.setup.boot_uuid && order.db == self.state.uid && !order.id.is_empty();
        if !meant || self.facts.borrow().obeyed == order.id {
            return None;
        }
        let stage = self.orders.stage.borrow();
        let stage = if stage.0 == order.id { stage.1 } else { OrderStage::New };
        Some(Ordered { work: order.work?, id: order.id, stage })
    }

    /// A session of its own, and no waiting: a checkpoint may take minutes.
    pub(super) fn apply_prepare_order(&mut self, id: String) {
        self.orders.stage.send_replace((id.clone(), OrderStage::CheckpointRuns));
        let (target, stage, wake) =
            (Target { timeout: CHECKPOINT_LIMIT, ..self.target.clone() }, self.orders.stage.clone(), self.wake.clone());
        tokio::spawn(async move {
            match checkpoint(&target).await {
                Ok(took) => info!(milliseconds = super::apply::millis(took), "made a checkpoint as ordered"),
                // It only makes stopping shorter.
                Err(error) => warn!(%error, "make a checkpoint as ordered"),
            }
            stage.send_if_modified(|stage| {
                let mine = stage.0 == id;
                if mine {
                    stage.1 = OrderStage::CheckpointEnded;
                }
                mine
            });
            wake.notify_one();
        });
    }

    pub(super) async fn apply_stop_for_order(&mut self, id: String) -> Result<()> {
        self.check_configuration().await?;
        self.apply_stop("it is restarted as ordered").await?;
        self.orders.stage.send_replace((id, OrderStage::Stopped));
        // Not started here: the next plan knows what has to hold before a start.
        Ok(())
    }

    pub(super) fn apply_tell_obeyed(&self, id: String) {
        self.facts.send_modify(|facts| facts.obeyed = id);
    }
}

async fn checkpoint(target: &Target) -> Result<Instant> {
    let started = Instant::now();
    let session = sql::connect(target, || ()).await?;
    session.checkpoint().await?;
    if started.elapsed() > LONG_CHECKPOINT {
        session.checkpoint().await?;
    }
    Ok(started)
}
