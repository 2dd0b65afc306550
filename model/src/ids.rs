//! One type per kind of identifier, so that a node's name can't be passed where a group's is meant.

use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::fmt;

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
            /// True for the empty identifier, which stands for "none" in stolon's documents.
            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                self.0 == other
            }
        }
        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                self.0 == *other
            }
        }
    };
}

string_id!(
    /// Name of a Shardman cluster; part of every key in the store.
    ClusterName
);
string_id!(
    /// Name of a node exactly as given to `addnodes`; a node's bowl must bear the same name.
    NodeName
);
string_id!(
    /// Name of a replication group, which is also the name of its stolon cluster: `clover-<n>-<node>`.
    RepGroupName
);
string_id!(
    /// Identifier of a stolon keeper inside its group.
    KeeperUid
);
string_id!(
    /// Identifier of a stolon db: one assignment of a data directory to a keeper. Never used again.
    DbUid
);
string_id!(
    /// Identifier of a stolon proxy process; new at each start.
    ProxyUid
);

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id!(
    /// Number of a replication group, from 1; stamped into its PostgreSQL as `shardman.rgid`. Never reused.
    RepGroupId(u32)
);
number_id!(
    /// Number of a clover, from 1. Never reused, since group names contain it.
    CloverId(u32)
);
number_id!(
    /// Counts the layouts of a cluster; a stale writer or a late reader is recognised by it.
    Generation(u64)
);

/// True for a name that may stand in a unit name, a file name and a key of the store:
/// ASCII letters, digits, `.`, `-`, `_`; not empty, not starting with `.` or `-`, at most 63 characters
/// (the limit of a DNS label, which node names are).
pub fn is_plain_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && !text.starts_with(['.', '-'])
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names() {
        for good in ["n1", "db-1.example", "a_b"] {
            assert!(is_plain_name(good), "{good}");
        }
        for bad in ["", ".", "..", "-n", "a/b", "a b", "ä", "a\n", &"x".repeat(64)] {
            assert!(!is_plain_name(bad), "{bad:?}");
        }
    }
}
