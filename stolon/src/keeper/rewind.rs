//! What the words of a failed pg_rewind mean for the next attempt.

/// Why it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Something was in its way that has nothing to do with the data: a source that went away, a full disk.
    Hindered,
    /// The data can't be rewound.
    Impossible,
    /// Nobody knows.
    Unknown,
}

/// Words of libpq, of a server that ends or is full, and of a full disk.
const HINDRANCES: [&str; 21] = [
    "connection to server",
    "could not connect",
    "could not translate host name",
    "server closed the connection",
    "connection not open",
    "no connection to the server",
    "terminating connection",
    "could not receive data from server",
    "could not send data to server",
    "SSL SYSCALL",
    "SSL connection has been closed",
    "SSL error",
    "timeout expired",
    "the database system is",
    "too many clients",
    "remaining connection slots",
    "authentication failed",
    "No space left on device",
    "Disk quota exceeded",
    "Cannot allocate memory",
    "out of memory",
];

/// Words of pg_rewind about data that it can't work with. The last ones are about WAL that is gone.
const OBSTACLES: [&str; 10] = [
    "from different systems",
    "not compatible with this version",
    "needs to use either data checksums",
    "could not find common ancestor",
    "unexpected control file",
    "target server must be shut down cleanly",
    "could not find previous WAL record",
    "could not read WAL record",
    "checkpoint record",
    "error: could not open file",
];

/// Judges the last lines that pg_rewind wrote, in English.
pub(super) fn judge(tail: &str) -> Verdict {
    let has = |words: &[&str]| words.iter().any(|word| tail.contains(word));
    if has(&HINDRANCES) {
        Verdict::Hindered
    } else if has(&OBSTACLES) {
        Verdict::Impossible
    } else {
        Verdict::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_what_says_so_is_impossible() {
        for hindered in [
            "pg_rewind: error: could not fetch file list: server closed the connection unexpectedly; This probably means",
            "pg_rewind: error: connection to server at \"10.0.0.1\", port 5442 failed: Connection refused; Is the server",
            "PANIC:  could not write to file \"pg_wal/xlogtemp.9\": No space left on device; pg_rewind: error: postgres single-user mode in target cluster failed",
            "pg_rewind: error: could not write file \"/d/base/1/2\": No space left on device",
            "pg_rewind: error: running query (SELECT 1) in source server failed: FATAL:  terminating connection due to administrator command",
        ] {
            assert_eq!(judge(hindered), Verdict::Hindered, "{hindered}");
        }
        for impossible in [
            "pg_rewind: error: source and target clusters are from different systems",
            "pg_rewind: error: could not open file \"/d/pg_wal/000000010000000000000004\": No such file or directory; pg_rewind: error: could not find previous WAL record at 0/4000028",
            "PANIC:  could not locate a valid checkpoint record; pg_rewind: error: postgres single-user mode in target cluster failed",
            "pg_rewind: error: could not find common ancestor of the source and target cluster's timelines",
            "pg_rewind: error: target server needs to use either data checksums or \"wal_log_hints = on\"",
        ] {
            assert_eq!(judge(impossible), Verdict::Impossible, "{impossible}");
        }
        for unknown in ["", "pg_rewind: error: something else", "pg_rewind: servers diverged at WAL location 0/3000000"]
        {
            assert_eq!(judge(unknown), Verdict::Unknown, "{unknown}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = judge(&text);
        }
    }
}
