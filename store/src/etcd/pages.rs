//! Listings in pages: etcd's answer to one request must fit into one message.

use super::failure::Failure;
use super::ring::Ring;
use super::{entry, revision};
use crate::Listing;
use etcd_client as etcd;

/// Keys in a page. Most values have a few kilobytes, so that most pages are far below the 4 MiB of a message.
const PAGE: i64 = 500;
/// A revision is kept for minutes at least, so that meeting a compaction twice is chance already.
const ATTEMPTS: usize = 3;

/// All keys with a prefix, at one revision.
pub(super) async fn list(ring: &Ring, prefix: &str) -> Result<Listing, Failure> {
    let mut limit = PAGE;
    let mut attempt = 1;
    loop {
        match list_by(ring, prefix, limit).await {
            Err(failure) if failure.is_too_large() && limit > 1 => limit /= 2,
            Err(failure) if failure.is_compacted() && attempt < ATTEMPTS => attempt += 1,
            result => return result,
        }
    }
}

async fn list_by(ring: &Ring, prefix: &str, limit: i64) -> Result<Listing, Failure> {
    let (mut from, end) = range(prefix.as_bytes());
    let mut listing = Listing::default();
    loop {
        let mut options = etcd::GetOptions::new().with_range(end.clone()).with_limit(limit);
        if listing.revision > 0 {
            options = options.with_revision(listing.revision);
        }
        let request = |client: etcd::Client| {
            let (from, options) = (from.clone(), options.clone());
            async move { client.kv_client().get(from, Some(options)).await }
        };
        let (_, response) = ring.ask(request).await?;
        if listing.revision == 0 {
            let revision = revision(response.header()).map_err(|_| etcd::Error::Internal("no header".into()))?;
            listing.revision = revision;
        }
        // A foreign key that is not UTF-8 can't be ours: it must not hide the others.
        listing.entries.extend(response.kvs().iter().filter_map(|kv| entry(kv).ok()));
        match response.kvs().last() {
            Some(last) if response.more() => from = [last.key(), &[0]].concat(),
            _ => return Ok(listing),
        }
    }
}

/// First key, and the key after the last one, of a prefix. A single zero byte stands for "no end".
fn range(prefix: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let from = if prefix.is_empty() { vec![0] } else { prefix.to_vec() };
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return (from, end);
        }
    }
    (from, vec![0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_exactly_the_prefix() {
        assert_eq!(range(b"a/"), (b"a/".to_vec(), b"a0".to_vec()));
        assert_eq!(range(b"a\xff"), (b"a\xff".to_vec(), b"b".to_vec()));
        assert_eq!(range(b"\xff\xff"), (b"\xff\xff".to_vec(), b"\0".to_vec()));
        assert_eq!(range(b""), (b"\0".to_vec(), b"\0".to_vec()));
    }
}
