//! The worker of one group: does a pass whenever what is wanted of the group has changed.

use super::apply::{self, PassError};
use super::plan::{Plan, Wanted, server_name, wanted};
use crate::picture::Picture;
use model::RepGroupId;
use pg::Session;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{info, warn};

/// Pause after the first failure; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Short enough that a group which is back is put right within the time a failover takes.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// Somebody may alter a server by hand: look again so often.
const SAFETY: Duration = Duration::from_secs(30);

/// Runs until it is dropped or the pictures end.
pub(super) async fn run(group: RepGroupId, mut pictures: watch::Receiver<Arc<Picture>>) {
    let mut worker = Worker { group, session: None, complaint: String::new() };
    let mut pause = FIRST_PAUSE;
    loop {
        let want = wanted(&pictures.borrow_and_update(), group);
        let rest = match &want {
            None => Duration::MAX,
            Some(want) => {
                // A pass to a master that is no more may hang until its limit: drop it as soon as there is a new one.
                // Dropping is safe, the session goes with it and the server rolls back.
                let outcome = tokio::select! {
                    done = worker.pass(want) => Some(done),
                    () = moved(pictures.clone(), group, want) => None,
                };
                match outcome {
                    Some(true) => {
                        pause = FIRST_PAUSE;
                        SAFETY
                    }
                    Some(false) => {
                        let rest = pause;
                        pause = (pause * 2).min(MAX_PAUSE);
                        rest
                    }
                    None => {
                        worker.session = None;
                        pause = FIRST_PAUSE;
                        Duration::ZERO
                    }
                }
            }
        };
        // Both branches are cancel-safe: a change that is not taken is found by the next call.
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            ended = changed(&mut pictures, group, &want) => if ended { return },
        }
    }
}

/// Waits until something else is wanted of the group; true when there will be no more pictures.
async fn changed(pictures: &mut watch::Receiver<Arc<Picture>>, group: RepGroupId, old: &Option<Wanted>) -> bool {
    pictures.wait_for(|picture| wanted(picture, group) != *old).await.is_err()
}

/// Waits until the group's master or the login is another one.
async fn moved(mut pictures: watch::Receiver<Arc<Picture>>, group: RepGroupId, old: &Wanted) {
    let other = |picture: &Arc<Picture>| {
        wanted(picture, group).is_none_or(|new| (&new.master, &new.login) != (&old.master, &old.login))
    };
    if pictures.wait_for(other).await.is_err() {
        std::future::pending::<()>().await;
    }
}

struct Worker {
    group: RepGroupId,
    session: Option<(Wanted, Session)>,
    complaint: String,
}

impl Worker {
    /// One pass; true when all is right now.
    async fn pass(&mut self, want: &Wanted) -> bool {
        match self.try_pass(want).await {
            Ok(plan) => {
                self.tell(want, &plan);
                plan.missing.is_empty()
            }
            Err(error) => {
                self.session = None;
                self.complain(common::exit::one_line(&error.into()));
                false
            }
        }
    }

    async fn try_pass(&mut self, want: &Wanted) -> Result<Plan, PassError> {
        let same = |old: &Wanted| (&old.master, &old.login) == (&want.master, &want.login);
        let session = match self.session.take() {
            Some((opened_for, session)) if same(&opened_for) && !session.is_closed() => session,
            _ => apply::open(want).await?,
        };
        // Kept out of `self` meanwhile: a pass that is dropped half-way must not leave its session behind.
        let plan = apply::pass(&session, want).await?;
        self.session = Some((want.clone(), session));
        Ok(plan)
    }

    fn tell(&mut self, want: &Wanted, plan: &Plan) {
        for alteration in &plan.alterations {
            let endpoints = want.servers.get(&alteration.group).cloned().unwrap_or_default();
            let points_to = endpoints.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            let mapping = alteration.mapping.is_some();
            info!(
                group = self.group.0,
                server = server_name(alteration.group),
                points_to,
                mapping,
                "altered a foreign server"
            );
        }
        if plan.missing.is_empty() {
            if !std::mem::take(&mut self.complaint).is_empty() {
                info!(group = self.group.0, "all foreign servers of the group are right again");
            }
        } else {
            let names: Vec<String> = plan.missing.iter().map(|id| server_name(*id)).collect();
            self.complain(format!("{} does not exist; add the group again to make it", names.join(", ")));
        }
    }

    /// Once per kind of trouble, not at each attempt.
    fn complain(&mut self, text: String) {
        if text != self.complaint {
            warn!(group = self.group.0, "the foreign servers of the group are not right yet: {text}");
            self.complaint = text;
        }
    }
}
