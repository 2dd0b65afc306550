//! What the clients' history and the table's rows say about the promises. A pure function, with its own tests:
//! a checker that finds nothing must be one that would have found it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// Where a commit was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The server's address.
    pub server: String,
    /// The timeline that the server writes.
    pub timeline: u32,
    /// A position in WAL after the row's insertion and not after its commit.
    pub lsn: u64,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server confirmed the commit.
    Acknowledged(Mark),
    /// An error or silence: the row may be there.
    Unknown(String),
}

/// One row that a client tried to append. Every row is tried once only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The client's number.
    pub client: i32,
    /// The row's number, different for each of a client's attempts.
    pub seq: i64,
    /// When the statement was sent, since the campaign's begin, on one clock for all clients.
    pub started: Duration,
    /// When the answer came.
    pub ended: Duration,
    /// The answer.
    pub outcome: Outcome,
}

impl Attempt {
    /// Where it was acknowledged, if it was.
    pub fn mark(&self) -> Option<&Mark> {
        match &self.outcome {
            Outcome::Acknowledged(mark) => Some(mark),
            Outcome::Unknown(_) => None,
        }
    }
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Acknowledged, and not in the table.
    Lost(Attempt),
    /// More than once in the table.
    Duplicate(i32, i64, usize),
    /// In the table, and nobody tried to append it.
    Invented(i32, i64),
    /// One timeline, two servers.
    SplitBrain(Attempt, Attempt),
    /// The second began after the first was acknowledged, and has no later place in the WAL.
    Disorder(Attempt, Attempt),
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row ({}, {})", self.client, self.seq)?;
        match &self.outcome {
            Outcome::Unknown(why) => write!(f, " unknown: {why}")?,
            Outcome::Acknowledged(mark) => write!(
                f,
                " acknowledged by {} on timeline {} at {:X}/{:X}",
                mark.server,
                mark.timeline,
                mark.lsn >> 32,
                mark.lsn & 0xffff_ffff
            )?,
        }
        write!(f, " ({:.3} to {:.3} s)", self.started.as_secs_f64(), self.ended.as_secs_f64())
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Lost(attempt) => write!(f, "lost: {attempt}"),
            Violation::Duplicate(client, seq, times) => {
                write!(f, "duplicate: row ({client}, {seq}) is there {times} times")
            }
            Violation::Invented(client, seq) => write!(f, "invented: row ({client}, {seq}) was never appended"),
            Violation::SplitBrain(a, b) => write!(f, "split brain: one timeline of two servers: {a}; {b}"),
            Violation::Disorder(a, b) => write!(f, "split brain or rollback: {b} began after {a} had ended"),
        }
    }
}

/// Everything that is wrong; empty is what one hopes for.
pub fn check(history: &[Attempt], rows: &[(i32, i64)]) -> Vec<Violation> {
    let mut violations = check_rows(history, rows);
    violations.extend(check_timelines(history));
    violations.extend(check_order(history));
    violations
}

/// Acknowledged rows are there, every row at most once, and only rows that were appended.
fn check_rows(history: &[Attempt], rows: &[(i32, i64)]) -> Vec<Violation> {
    let mut found: BTreeMap<(i32, i64), usize> = BTreeMap::new();
    for row in rows {
        *found.entry(*row).or_default() += 1;
    }
    let tried: BTreeSet<(i32, i64)> = history.iter().map(|attempt| (attempt.client, attempt.seq)).collect();
    let lost = history.iter().filter(|a| a.mark().is_some() && !found.contains_key(&(a.client, a.seq)));
    let mut violations: Vec<Violation> = lost.cloned().map(Violation::Lost).collect();
    for (&(client, seq), &times) in &found {
        if times > 1 {
            violations.push(Violation::Duplicate(client, seq, times));
        }
        if !tried.contains(&(client, seq)) {
            violations.push(Violation::Invented(client, seq));
        }
    }
    violations
}

/// A timeline begins with a promotion, so only the promoted server can write it.
fn check_timelines(history: &[Attempt]) -> Vec<Violation> {
    let mut owners: BTreeMap<u32, &Attempt> = BTreeMap::new();
    let mut reported = BTreeSet::new();
    let mut violations = Vec::new();
    for attempt in history {
        let Some(mark) = attempt.mark() else { continue };
        let owner = *owners.entry(mark.timeline).or_insert(attempt);
        // One line per intruder, not one per row that it took.
        let foreign = owner.mark().is_some_and(|first| first.server != mark.server);
        if foreign && reported.insert((mark.timeline, mark.server.clone())) {
            violations.push(Violation::SplitBrain(owner.clone(), attempt.clone()));
        }
    }
    violations
}

/// Commit B sent after commit A was acknowledged has a later place: no lower timeline, and a higher position,
/// also where a new timeline begins, because it begins after everything that was acknowledged.
fn check_order(history: &[Attempt]) -> Vec<Violation> {
    let place = |attempt: &Attempt| attempt.mark().map_or((0, 0), |mark| (mark.timeline, mark.lsn));
    let mut by_start: Vec<&Attempt> = history.iter().filter(|attempt| attempt.mark().is_some()).collect();
    let mut by_end = by_start.clone();
    by_start.sort_by_key(|attempt| attempt.started);
    by_end.sort_by_key(|attempt| attempt.ended);
    let mut ended = by_end.into_iter().peekable();
    // The acknowledged ones so far with the highest timeline, and with the highest position.
    let mut highest: [Option<&Attempt>; 2] = [None, None];
    let mut violations = Vec::new();
    for attempt in by_start {
        while let Some(earlier) = ended.next_if(|earlier| earlier.ended < attempt.started) {
            if highest[0].is_none_or(|known| place(earlier).0 > place(known).0) {
                highest[0] = Some(earlier);
            }
            if highest[1].is_none_or(|known| place(earlier).1 > place(known).1) {
                highest[1] = Some(earlier);
            }
        }
        let lower_timeline = highest[0].filter(|known| place(known).0 > place(attempt).0);
        let lower_position = highest[1].filter(|known| place(known).1 >= place(attempt).1);
        if let Some(known) = lower_timeline.or(lower_position) {
            violations.push(Violation::Disorder(known.clone(), attempt.clone()));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of client 1 that took one millisecond, acknowledged by `server`.
    fn acknowledged(seq: i64, at: u64, server: &str, timeline: u32, lsn: u64) -> Attempt {
        Attempt {
            client: 1,
            seq,
            started: Duration::from_millis(at),
            ended: Duration::from_millis(at + 1),
            outcome: Outcome::Acknowledged(Mark { server: server.into(), timeline, lsn }),
        }
    }

    fn unknown(seq: i64, at: u64) -> Attempt {
        Attempt { outcome: Outcome::Unknown("cut".into()), ..acknowledged(seq, at, "", 0, 0) }
    }

    /// Two masters one after the other, with a row in between whose fate is open.
    fn good() -> Vec<Attempt> {
        vec![
            acknowledged(1, 0, "a", 1, 100),
            acknowledged(2, 10, "a", 1, 200),
            unknown(3, 20),
            acknowledged(4, 30, "b", 2, 300),
            acknowledged(5, 40, "b", 2, 400),
        ]
    }

    #[test]
    fn a_clean_history_passes_with_and_without_the_open_row() {
        assert_eq!(check(&good(), &[(1, 1), (1, 2), (1, 4), (1, 5)]), vec![]);
        assert_eq!(check(&good(), &[(1, 5), (1, 4), (1, 3), (1, 2), (1, 1)]), vec![]);
        assert_eq!(check(&[], &[]), vec![]);
    }

    #[test]
    fn a_lost_row_is_found() {
        let violations = check(&good(), &[(1, 1), (1, 4), (1, 5)]);
        assert_eq!(violations, vec![Violation::Lost(good()[1].clone())]);
        assert!(violations[0].to_string().contains("row (1, 2) acknowledged by a on timeline 1 at 0/C8"));
    }

    #[test]
    fn duplicates_and_invented_rows_are_found() {
        let rows = [(1, 1), (1, 2), (1, 2), (1, 3), (1, 3), (1, 4), (1, 5), (2, 1)];
        let wanted = vec![Violation::Duplicate(1, 2, 2), Violation::Duplicate(1, 3, 2), Violation::Invented(2, 1)];
        assert_eq!(check(&good(), &rows), wanted);
    }

    #[test]
    fn two_servers_on_one_timeline_are_found_once_each() {
        let mut history = good();
        history.push(acknowledged(6, 50, "c", 2, 500));
        history.push(acknowledged(7, 60, "c", 2, 600));
        let violations = check_timelines(&history);
        assert_eq!(violations, vec![Violation::SplitBrain(history[3].clone(), history[5].clone())]);
    }

    #[test]
    fn an_old_master_that_acknowledges_after_the_new_one_is_found() {
        let mut history = good();
        history.push(acknowledged(6, 50, "a", 1, 500));
        assert_eq!(check_order(&history), vec![Violation::Disorder(history[3].clone(), history[5].clone())]);
        let mut split = good();
        // Overlapping in time with the new master's first commit: no order is proven between the two.
        split.push(Attempt { ended: Duration::from_millis(31), ..acknowledged(6, 29, "a", 1, 250) });
        assert_eq!(check_order(&split), vec![]);
    }

    #[test]
    fn a_new_timeline_that_begins_too_early_is_found() {
        let mut history = good();
        history[3] = acknowledged(4, 30, "b", 2, 150);
        let violations = check_order(&history);
        assert_eq!(violations, vec![Violation::Disorder(history[1].clone(), history[3].clone())]);
    }

    #[test]
    fn equal_positions_one_after_the_other_are_found() {
        let mut history = good();
        history[4] = acknowledged(5, 40, "b", 2, 300);
        assert_eq!(check_order(&history).len(), 1);
    }
}
