//! The history of decisions, for people who ask later why something happened.

use super::plan::Reason;
use model::GoTime;
use model::stolon::ext::{Decision, History};

/// So many are kept: days of a calm cluster, and a stored value that stays small.
const KEPT: usize = 64;
/// No single text may fill the history's value: a cluster of hundreds of keepers lists each of them.
const TEXT: usize = 2000;

/// The history with new decisions, or `None` when there is nothing to add.
pub fn extended<'a>(
    history: &History,
    reasons: impl Iterator<Item = &'a Reason>,
    now: GoTime,
    sentinel: &str,
) -> Option<History> {
    let new: Vec<Decision> = reasons
        .filter(|reason| reason.is_decision())
        .map(|reason| Decision {
            at: now,
            sentinel: sentinel.to_owned(),
            code: reason.code().to_owned(),
            text: reason.to_string().chars().take(TEXT).collect(),
        })
        .collect();
    if new.is_empty() {
        return None;
    }
    let mut entries = history.entries.clone();
    entries.extend(new);
    let excess = entries.len().saturating_sub(KEPT);
    entries.drain(..excess);
    Some(History { entries })
}

/// A new leader finds things as they are: what the last one has written of them is not said again.
pub fn is_known(history: &History, reason: &Reason) -> bool {
    let same = |entry: &&Decision| entry.code == reason.code();
    history.entries.iter().rev().find(same).is_some_and(|entry| reason.to_string().starts_with(&entry.text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_decisions_are_kept_and_old_ones_go() {
        let reasons = [Reason::ProxiesClosed, Reason::KeeperHealthy("k".into())];
        let mut history = History::default();
        assert_eq!(extended(&history, reasons[..1].iter(), GoTime::default(), "s"), None);
        for number in 0..100 {
            let reason = Reason::KeeperHealthy(format!("k{number}").into());
            history = extended(&history, [reason].iter(), GoTime::default(), "s").unwrap();
        }
        assert_eq!(history.entries.len(), KEPT);
        let last = history.entries.last().unwrap();
        assert_eq!((last.code.as_str(), last.text.as_str()), ("keeper_healthy", "keeper \"k99\" is healthy"));
        assert!(is_known(&history, &Reason::KeeperHealthy("k99".into())));
        assert!(!is_known(&history, &Reason::KeeperHealthy("k98".into())));
    }
}
