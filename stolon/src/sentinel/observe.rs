//! Records of keepers and proxies out of the copy of the store.

use super::plan::Observed;
use model::KeeperUid;
use model::stolon::ext::Order;
use model::stolon::keys::Keys;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::time::Duration;
use store::Entry;

/// All keys of a cluster, by name.
pub type Entries = BTreeMap<String, Entry>;

/// Reads the records. One that can't be read does not hide the others, but is known to be there.
pub fn observe(entries: &Entries, keys: &Keys, connected_since: Duration, seed: u64) -> Observed {
    Observed {
        keepers: records(entries, &keys.keepers_info(), |info: &model::stolon::KeeperInfo| info.uid.clone()),
        proxies: records(entries, &keys.proxies_info(), |info: &model::stolon::ProxyInfo| info.uid.clone()),
        operation: document(entries, &keys.operation()),
        progress: document(entries, &keys.progress()),
        preference: document(entries, &keys.preference()),
        orders: orders(entries, &keys.orders()),
        connected_since,
        inquired: None,
        seed,
    }
}

/// A document of ours. One that can't be read is as good as none: nothing depends on its being there.
pub fn document<T: DeserializeOwned>(entries: &Entries, key: &str) -> Option<T> {
    serde_json::from_slice(&entries.get(key)?.value).ok()
}

fn orders(entries: &Entries, prefix: &str) -> BTreeMap<KeeperUid, Order> {
    let below = entries.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
    // One that can't be read is there all the same, so that it is written anew or deleted.
    below
        .map(|(key, entry)| (key[prefix.len()..].into(), serde_json::from_slice(&entry.value).unwrap_or_default()))
        .collect()
}

fn records<T: DeserializeOwned, U: From<String> + Ord + AsRef<str>>(
    entries: &Entries,
    prefix: &str,
    uid: impl Fn(&T) -> U,
) -> BTreeMap<U, Option<T>> {
    let below = entries.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
    let mut records = BTreeMap::new();
    for (key, entry) in below {
        let record = serde_json::from_slice::<T>(&entry.value).ok().filter(|record| !uid(record).as_ref().is_empty());
        // Records are known by the uid in them, as for Go's programs; the key must do where that can't be read.
        let name = record.as_ref().map_or_else(|| key[prefix.len()..].trim_start_matches('/').to_owned().into(), &uid);
        if record.is_some() || !records.contains_key(&name) {
            records.insert(name, record);
        }
    }
    records
}

/// True if a keeper tells that it belongs to some cluster: then there was cluster data before.
pub fn keepers_know_a_cluster(observed: &Observed) -> bool {
    observed.keepers.values().flatten().any(|info| !info.cluster_uid.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(pairs: &[(&str, &str)]) -> Entries {
        let entry = |key: &str, value: &str| Entry {
            key: key.into(),
            value: value.into(),
            create_revision: 1,
            mod_revision: 1,
            lease: None,
        };
        pairs.iter().map(|(key, value)| ((*key).to_owned(), entry(key, value))).collect()
    }

    #[test]
    fn broken_records_are_known_and_do_not_hide_others() {
        let keys = Keys::new("p", &"c".into());
        let all = entries(&[
            ("p/c/clusterdata", "{}"),
            ("p/c/keepers/info/k1", r#"{"uid":"k1","clusterUID":"u"}"#),
            ("p/c/keepers/info/k2", "{"),
            ("p/c/keepers/info/k3", "{}"),
            ("p/c/proxies/info/p1", r#"{"UID":"p1","Generation":"x"}"#),
            ("p/c/proxies/info/p2", r#"{"UID":"p2","Generation":3}"#),
        ]);
        let observed = observe(&all, &keys, Duration::ZERO, 0);
        assert_eq!(observed.keepers.keys().map(|uid| uid.as_str()).collect::<Vec<_>>(), ["k1", "k2", "k3"]);
        assert_eq!(observed.keepers.values().filter(|info| info.is_some()).count(), 1);
        assert!(observed.proxies["p1"].is_none());
        assert_eq!(observed.proxies["p2"].as_ref().map(|info| info.generation), Some(3));
        assert!(keepers_know_a_cluster(&observed));
    }
}
