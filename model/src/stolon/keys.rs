//! Names of stolon's keys in the store.

use crate::{KeeperUid, ProxyUid, RepGroupName};

/// stolon's default store prefix, which Shardman uses for every group.
pub const DEFAULT_PREFIX: &str = "stolon/cluster";

/// The keys of one stolon cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    base: String,
}

impl Keys {
    /// Joins prefix and cluster name as Go's `path.Join` does: duplicate and trailing slashes and dot segments
    /// go, a leading slash stays if there was one.
    pub fn new(prefix: &str, cluster: &RepGroupName) -> Self {
        let joined = format!("{prefix}/{cluster}");
        let absolute = joined.starts_with('/');
        let mut parts: Vec<&str> = Vec::new();
        for part in joined.split('/') {
            match part {
                "" | "." => {}
                ".." if parts.last().is_some_and(|last| *last != "..") => {
                    parts.pop();
                }
                ".." if absolute => {}
                part => parts.push(part),
            }
        }
        Keys { base: format!("{}{}", if absolute { "/" } else { "" }, parts.join("/")) }
    }

    /// The common beginning of all keys, without a trailing slash.
    pub fn base(&self) -> &str {
        &self.base
    }
    /// The one document that holds declared and observed state.
    pub fn clusterdata(&self) -> String {
        format!("{}/clusterdata", self.base)
    }
    /// Prefix of all records of keepers, as Go lists it: without a trailing slash.
    pub fn keepers_info(&self) -> String {
        format!("{}/keepers/info", self.base)
    }
    /// The record of one keeper.
    pub fn keeper_info(&self, uid: &KeeperUid) -> String {
        format!("{}/{uid}", self.keepers_info())
    }
    /// Ours only: where the leading sentinel asks a keeper for a sign of life.
    pub fn challenge(&self, uid: &KeeperUid) -> String {
        format!("{}/ext/challenge/{uid}", self.base)
    }
    /// Ours only: where a keeper complains that another one already has its uid.
    pub fn twin(&self, uid: &KeeperUid) -> String {
        format!("{}/ext/twin/{uid}", self.base)
    }
    /// Ours only: prefix of what the leading sentinel wants keepers to do, see [`super::ext::Order`].
    pub fn orders(&self) -> String {
        format!("{}/ext/order/", self.base)
    }
    /// Ours only: what it wants this one to do.
    pub fn order(&self, uid: &KeeperUid) -> String {
        format!("{}{uid}", self.orders())
    }
    /// Prefix of all records of sentinels.
    pub fn sentinels_info(&self) -> String {
        format!("{}/sentinels/info", self.base)
    }
    /// The record of one sentinel.
    pub fn sentinel_info(&self, uid: &str) -> String {
        format!("{}/{uid}", self.sentinels_info())
    }
    /// Prefix of all records of proxies.
    pub fn proxies_info(&self) -> String {
        format!("{}/proxies/info", self.base)
    }
    /// The record of one proxy.
    pub fn proxy_info(&self, uid: &ProxyUid) -> String {
        format!("{}/{uid}", self.proxies_info())
    }
    /// Prefix of the candidates for leadership among sentinels, with its trailing slash. A candidate's key ends
    /// with its lease id in lower-case hexadecimal; the lowest create revision leads.
    pub fn election(&self) -> String {
        format!("{}/sentinel-leader/", self.base)
    }
    /// Ours only: what an operator asks the leading sentinel for, see [`super::ext::Operation`].
    pub fn operation(&self) -> String {
        format!("{}/ext/operation", self.base)
    }
    /// Ours only: how far the leading sentinel is with it, see [`super::ext::Progress`].
    pub fn progress(&self) -> String {
        format!("{}/ext/progress", self.base)
    }
    /// Ours only: the keeper that an operator moved the master to, see [`super::ext::Preference`].
    pub fn preference(&self) -> String {
        format!("{}/ext/preference", self.base)
    }
    /// Ours only: what sentinels decided, see [`super::ext::History`].
    pub fn decisions(&self) -> String {
        format!("{}/ext/decisions", self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_joined_as_go_joins_them() {
        let base = |prefix: &str| Keys::new(prefix, &"NAME".into()).base().to_owned();
        assert_eq!(base("stolon/cluster"), "stolon/cluster/NAME");
        assert_eq!(base("/x//y/"), "/x/y/NAME");
        assert_eq!(base("x/./z/../y"), "x/y/NAME");
        assert_eq!(base(""), "/NAME");
    }
}
