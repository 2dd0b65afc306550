//! Whether data here can become a part of what a source has.
//!
//! A timeline's number is not its name. When a promotion came too late for the cluster to hear of it, the next elected
//! server takes the same number, at the same position even, and PostgreSQL's tools take the two timelines for one:
//! pg_rewind finds nothing to do, and a receiver acknowledges WAL that can never be replayed.

use super::error::Result;
use super::observe::read_text;
use super::postgres::control;
use super::postgres::sql::Session;
use super::probe::parse_history;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// So much of a timeline's begin is compared: a page's header, and the header of the first record. That has a checksum
/// over the time of the promotion, to the microsecond.
const BEGIN: usize = 64;

/// Data that a primary wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Former {
    /// Its newest timeline.
    pub(super) timeline: u64,
    /// The cluster never knew it as primary on that timeline, so no proxy ever led there, and others may have taken the
    /// number.
    pub(super) unannounced: bool,
}

/// What may be done with a former primary's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// pg_rewind finds out where the two histories part.
    Rewind,
    /// pg_rewind might take two timelines for one.
    Copy,
    /// It may hold what nobody else has.
    Leave,
}

impl Former {
    /// Beside a primary on this timeline.
    pub(super) fn beside(self, source: u64) -> Verdict {
        match (self.unannounced, source >= self.timeline) {
            (false, _) if source > self.timeline => Verdict::Rewind,
            (false, _) => Verdict::Leave,
            (true, true) => Verdict::Copy,
            // The number is not in the source's history, so nothing can be mistaken.
            (true, false) => Verdict::Rewind,
        }
    }
}

/// The newest timeline of a data directory whose control file has `checkpointed`, which a crash leaves behind after a
/// promotion.
pub(super) fn newest_timeline(pgdata: &Path, checkpointed: u32) -> u64 {
    let entries = std::fs::read_dir(pgdata.join("pg_wal")).into_iter().flatten().flatten();
    let number = |name: &str| name.strip_suffix(".history").and_then(|number| u64::from_str_radix(number, 16).ok());
    let histories = entries.filter_map(|entry| number(entry.file_name().to_str()?));
    histories.max().unwrap_or_default().max(checkpointed.into())
}

/// The primary that was stopped cleanly here, with its last record at `end`, has been nothing but a standby since, and has
/// followed no successor: to say so of one that has, and was cut off then, would make a lack of commits look complete.
pub(super) fn has_followed_nobody(pgdata: &Path, end: u64) -> bool {
    control::read(pgdata).is_some_and(|control| {
        control.ended_at(end) && newest_timeline(pgdata, control.timeline) == u64::from(control.timeline)
    })
}

/// Whether the newest timeline here is the source's timeline of that number; `None` if it can't be told any more.
///
/// # Errors
/// The source does not answer.
pub(super) async fn is_shared(pgdata: &Path, timeline: u64, source: &Session, other: u64) -> Result<Option<bool>> {
    let own = parse_history(&read_text(&history_file(pgdata, timeline)).unwrap_or_default());
    let Some(begin) = own.last().filter(|_| timeline <= other) else { return Ok(None) };
    let theirs = parse_history(&source.history(other).await?);
    let parted = |parent| theirs.iter().find(|entry| entry.timeline_id == parent).map(|entry| entry.switch_point);
    if (timeline != other && parted(timeline).is_none()) || parted(begin.timeline_id) != Some(begin.switch_point) {
        return Ok(Some(false));
    }
    let (file, offset) = segment(timeline, begin.switch_point, source.wal_segment_size().await?);
    let Some(own) = read_begin(&pgdata.join("pg_wal").join(&file), offset) else { return Ok(None) };
    let theirs = source.wal(&file, offset, BEGIN).await?.filter(|bytes| is_written(bytes));
    Ok(theirs.map(|theirs| theirs == own))
}

fn history_file(pgdata: &Path, timeline: u64) -> std::path::PathBuf {
    pgdata.join(format!("pg_wal/{timeline:08X}.history"))
}

/// The segment with a position, and where in it that is.
fn segment(timeline: u64, position: u64, size: u64) -> (String, u64) {
    let (high, low) = (position >> 32, position & 0xffff_ffff);
    (format!("{timeline:08X}{high:08X}{:08X}", low / size), position % size)
}

fn read_begin(file: &Path, offset: u64) -> Option<Vec<u8>> {
    let mut file = std::fs::File::open(file).ok()?;
    file.seek(SeekFrom::Start(offset)).ok()?;
    let mut bytes = Vec::new();
    file.take(BEGIN as u64).read_to_end(&mut bytes).ok()?;
    Some(bytes).filter(|bytes| is_written(bytes))
}

/// Segments are filled with zeros before they are written.
fn is_written(bytes: &[u8]) -> bool {
    bytes.iter().any(|byte| *byte != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_nobody_was_told_of_proves_nothing() {
        let beside = |timeline, unannounced, source| Former { timeline, unannounced }.beside(source);
        assert_eq!(beside(2, false, 3), Verdict::Rewind);
        assert_eq!(beside(2, true, 3), Verdict::Copy);
        assert_eq!(beside(2, false, 2), Verdict::Leave);
        assert_eq!(beside(2, true, 2), Verdict::Copy);
        assert_eq!(beside(2, true, 1), Verdict::Rewind);
        assert_eq!(beside(2, false, 1), Verdict::Leave);
    }

    #[test]
    fn a_promotion_shows_before_the_next_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(newest_timeline(dir.path(), 3), 3);
        std::fs::create_dir(dir.path().join("pg_wal")).unwrap();
        for name in
            ["00000004.history", "0000000A.history", "x.history", "0000000B.history.tmp", "00000001000000000000001F"]
        {
            std::fs::write(dir.path().join("pg_wal").join(name), "").unwrap();
        }
        assert_eq!(newest_timeline(dir.path(), 3), 10);
        assert_eq!(newest_timeline(dir.path(), 11), 11);
    }

    #[test]
    fn who_followed_a_successor_is_no_longer_handed_over() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!has_followed_nobody(dir.path(), 77));
        let mut control = [0; 8192];
        control[8..12].copy_from_slice(&1300_u32.to_ne_bytes());
        // A clean end of a primary.
        control[16] = 1;
        control[32..40].copy_from_slice(&77_u64.to_ne_bytes());
        control[48] = 3;
        for directory in ["global", "pg_wal"] {
            std::fs::create_dir(dir.path().join(directory)).unwrap();
        }
        std::fs::write(dir.path().join("global/pg_control"), control).unwrap();
        std::fs::write(dir.path().join("pg_wal/00000003.history"), "").unwrap();
        assert!(has_followed_nobody(dir.path(), 77) && !has_followed_nobody(dir.path(), 76));
        std::fs::write(dir.path().join("pg_wal/00000004.history"), "").unwrap();
        assert!(!has_followed_nobody(dir.path(), 77), "its successor's timeline");
    }

    #[test]
    fn positions_have_a_place() {
        assert_eq!(segment(2, 0x1_2345_6789, 16 << 20), ("000000020000000100000023".to_owned(), 0x45_6789));
        assert_eq!(segment(0x1F, 0x300_0000, 1 << 20), ("0000001F0000000000000030".to_owned(), 0));
    }

    #[test]
    fn what_was_never_written_is_not_compared() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("segment");
        assert_eq!(read_begin(&file, 0), None);
        std::fs::write(&file, [[0; 100], [7; 100]].concat()).unwrap();
        assert_eq!(read_begin(&file, 0), None);
        assert_eq!(read_begin(&file, 100).unwrap(), [7; BEGIN]);
        assert_eq!(read_begin(&file, 180).unwrap(), [7; 20]);
        assert_eq!(read_begin(&file, 300), None);
    }
}
