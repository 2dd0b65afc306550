//! Documents of ours below `ext/`: what operators ask the leading sentinel for, how far it is, and what it decided.
//! Go's programs neither read nor write them.

use super::{Extra, null_default};
use crate::{DbUid, GoTime, KeeperUid};
use serde::{Deserialize, Serialize};

/// An operator's request. Its key hangs on a lease that the command keeps alive: a command that went away wants
/// nothing any more.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Operation {
    /// Random; answers carry it.
    #[serde(deserialize_with = "null_default")]
    pub id: String,
    /// The cluster that is meant: a cluster that was made anew is another one.
    #[serde(rename = "clusterUID", deserialize_with = "null_default")]
    pub cluster_uid: String,
    /// What is asked for; `None`: something that this version does not know.
    #[serde(deserialize_with = "known")]
    pub action: Option<Action>,
    /// Who asks, for the history.
    #[serde(deserialize_with = "null_default")]
    pub requested_by: String,
    /// When.
    #[serde(deserialize_with = "null_default")]
    pub requested_at: GoTime,
    /// Members unknown to this version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What an operator can ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Move the master to this keeper without losing a commit.
    Switchover(KeeperUid),
    /// Make this keeper's db the master although it may lack acknowledged commits, because nobody else can be.
    Elect(KeeperUid),
    /// Restart PostgreSQL in order: standbys one after the other, then the master.
    Restart(Restart),
}

/// Which instances are restarted, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Restart {
    /// All of them, not only those where parameters wait for a restart.
    pub all: bool,
    /// The master is restarted where it is, instead of being moved to a standby.
    pub in_place: bool,
}

impl Action {
    /// In words.
    pub fn describe(&self) -> String {
        match self {
            Action::Switchover(keeper) => format!("switchover to keeper \"{keeper}\""),
            Action::Elect(keeper) => format!("election of keeper \"{keeper}\" with loss of data accepted"),
            Action::Restart(Restart { all: true, .. }) => "restart of PostgreSQL on all keepers".to_owned(),
            Action::Restart(_) => "restart of PostgreSQL where parameters wait for it".to_owned(),
        }
    }
}

/// An action of a newer program must not hide the rest.
fn known<'de, D: serde::Deserializer<'de>, T: serde::de::DeserializeOwned>(d: D) -> Result<Option<T>, D::Error> {
    let value = serde_json::Value::deserialize(d)?;
    Ok(serde_json::from_value(value).ok())
}

/// How far the leading sentinel is with a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Progress {
    /// The request's.
    #[serde(deserialize_with = "null_default")]
    pub id: String,
    /// The request in words.
    #[serde(deserialize_with = "null_default")]
    pub operation: String,
    /// Whether it goes on.
    #[serde(deserialize_with = "null_default")]
    pub phase: Phase,
    /// The latest steps, oldest first; the last one says what is being waited for, or why it ended.
    #[serde(deserialize_with = "null_default")]
    pub steps: Vec<OperationStep>,
    /// Keepers whose PostgreSQL was restarted for the request.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub restarted: Vec<KeeperUid>,
    /// Members unknown to this version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A step of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OperationStep {
    /// When, on the sentinel's wall clock.
    #[serde(deserialize_with = "null_default")]
    pub at: GoTime,
    /// In words.
    #[serde(deserialize_with = "null_default")]
    pub text: String,
}

/// Whether a request goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// It goes on.
    #[default]
    Running,
    /// It is done.
    Done,
    /// It was not begun, or given up; everything is as before.
    Failed,
}

/// The keeper that an operator moved the master to: it counts as preferred to all others until it fails.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Preference {
    /// The cluster that is meant.
    #[serde(rename = "clusterUID", deserialize_with = "null_default")]
    pub cluster_uid: String,
    /// The keeper.
    #[serde(deserialize_with = "null_default")]
    pub keeper: KeeperUid,
    /// Since when.
    #[serde(deserialize_with = "null_default")]
    pub since: GoTime,
    /// Members unknown to this version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What the leading sentinel wants a keeper to do with its PostgreSQL, apart from what the cluster data says. Its key
/// hangs on the sentinel's lease. The keeper answers with the id in its record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Order {
    /// Each is carried out once.
    #[serde(deserialize_with = "null_default")]
    pub id: String,
    /// The start of the keeper that is meant: one that starts anew does not obey what its predecessor was told.
    #[serde(rename = "bootUUID", deserialize_with = "null_default")]
    pub boot_uuid: String,
    /// The db that is meant.
    #[serde(deserialize_with = "null_default")]
    pub db: DbUid,
    /// What to do; `None`: something that this version does not know.
    #[serde(deserialize_with = "known")]
    pub work: Option<Work>,
}

/// What a keeper can be told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Work {
    /// Make a checkpoint, so that stopping takes no time for it.
    Checkpoint,
    /// Restart PostgreSQL.
    Restart,
    /// Do not restart it for changed parameters by itself: it will be told when.
    WaitWithRestart,
}

/// Decisions of sentinels, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// Bounded: old ones are dropped.
    #[serde(deserialize_with = "null_default")]
    pub entries: Vec<Decision>,
}

/// One decision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Decision {
    /// When, on the sentinel's wall clock.
    #[serde(deserialize_with = "null_default")]
    pub at: GoTime,
    /// Who decided.
    #[serde(deserialize_with = "null_default")]
    pub sentinel: String,
    /// A stable word for programs.
    #[serde(deserialize_with = "null_default")]
    pub code: String,
    /// For people.
    #[serde(deserialize_with = "null_default")]
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn documents_come_back() {
        let text = r#"{"id":"a","clusterUID":"c","action":{"switchover":"k2"},"requestedBy":"me","requestedAt":"2026-01-01T00:00:00Z","new":1}"#;
        let operation: Operation = serde_json::from_str(text).unwrap();
        assert_eq!(operation.action, Some(Action::Switchover("k2".into())));
        assert_eq!(serde_json::to_string(&operation).unwrap(), text);
        let order = r#"{"id":"a","bootUUID":"b","db":"d","work":"checkpoint"}"#;
        assert_eq!(serde_json::to_string(&serde_json::from_str::<Order>(order).unwrap()).unwrap(), order);
        let newer: Operation = serde_json::from_str(r#"{"id":"a","action":{"dance":7}}"#).unwrap();
        assert_eq!((newer.id.as_str(), newer.action), ("a", None));
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = serde_json::from_str::<Operation>(&text);
            let _ = serde_json::from_str::<Progress>(&text);
            let _ = serde_json::from_str::<Preference>(&text);
            let _ = serde_json::from_str::<Order>(&text);
            let _ = serde_json::from_str::<History>(&text);
        }
    }
}
