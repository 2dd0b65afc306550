//! Writes the proxy's record.

use super::plan::Order;
use crate::access::random_uid;
use model::stolon::keys::Keys;
use model::stolon::{Extra, ProxyInfo};
use model::{GoDuration, ProxyUid};
use store::{Compare, Entry, Moment, Op, SharedStore, StoreError};

/// Who publishes, and where.
#[derive(Clone, Debug)]
pub struct Publisher {
    /// The store.
    pub store: SharedStore,
    /// The cluster's keys.
    pub keys: Keys,
    /// This proxy.
    pub uid: ProxyUid,
    /// Address that clients are told.
    pub address: String,
    /// Port that is listened on.
    pub port: u16,
    /// Address and port for readers, where there is one.
    pub replica: Option<(String, u16)>,
}

/// What became of a publication.
#[derive(Debug)]
pub enum Outcome {
    /// Done; it was sent at this moment.
    Done(Order, Moment),
    /// The cluster data is no longer what was decided upon; this is what it is now.
    Stale(Option<Entry>),
    /// The store failed. The record may have been written all the same.
    Failed(StoreError),
}

impl Publisher {
    /// Publishes what `order` says, if the cluster data still has the revision that it was made for.
    pub async fn publish(self, order: Order) -> Outcome {
        let sent = Moment::now();
        match self.write(&order).await {
            Ok(true) => Outcome::Done(order, sent),
            Ok(false) => match self.store.get(&self.keys.clusterdata()).await {
                Ok(entry) => Outcome::Stale(entry),
                Err(error) => Outcome::Failed(error),
            },
            Err(error) => Outcome::Failed(error),
        }
    }

    async fn write(&self, order: &Order) -> Result<bool, StoreError> {
        let info = render(self, order, random_uid());
        // Plain strings and numbers: serialising can't fail.
        let value = serde_json::to_vec(&info).expect("a proxy's record is plain JSON");
        let put = Op::Put { key: self.keys.proxy_info(&self.uid), value, lease: Some(order.lease) };
        let key = self.keys.proxy_info(&self.uid);
        // A publication that timed out may be carried out late. It must not overtake this one and move the record
        // back to a lease that is about to end.
        let untouched = match self.store.get(&key).await? {
            Some(entry) => Compare::Unchanged(key, entry.mod_revision),
            None => Compare::Absent(key),
        };
        let current = Compare::Unchanged(self.keys.clusterdata(), order.revision);
        Ok(self.store.txn(vec![current, untouched], vec![put]).await?.succeeded)
    }
}

/// Members of the record that are ours only: where readers come in.
pub const REPLICA_ADDRESS: &str = "replicaListenAddress";
/// See [`REPLICA_ADDRESS`]; as text, as the other port is.
pub const REPLICA_PORT: &str = "replicaPort";

fn render(publisher: &Publisher, order: &Order, info_uid: String) -> ProxyInfo {
    let mut extra = Extra::new();
    if let Some((address, port)) = &publisher.replica {
        extra.insert(REPLICA_ADDRESS.to_owned(), address.clone().into());
        extra.insert(REPLICA_PORT.to_owned(), port.to_string().into());
    }
    ProxyInfo {
        extra,
        info_uid,
        uid: publisher.uid.clone(),
        generation: order.generation,
        proxy_timeout: GoDuration::from(order.announced),
        listen_address: publisher.address.clone(),
        port: publisher.port.to_string(),
        lease_seconds: u32::try_from(order.ttl.as_secs()).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;
    use store::{LeaseId, MemoryStore, Store};

    fn order(revision: i64, lease: LeaseId) -> Order {
        let (announced, ttl) = (Duration::from_secs(15), Duration::from_secs(16));
        Order { generation: 7, revision, lease, announced, ttl }
    }

    #[tokio::test]
    async fn only_who_knows_the_newest_cluster_data_publishes() {
        let store = Arc::new(MemoryStore::new());
        let keys = Keys::new("s", &"c".into());
        let old = store.put(&keys.clusterdata(), b"old", None).await.unwrap();
        let new = store.put(&keys.clusterdata(), b"new", None).await.unwrap();
        let lease = store.grant(Duration::from_secs(16)).await.unwrap();
        let publisher = Publisher {
            store: store.clone(),
            keys: keys.clone(),
            uid: "p1".into(),
            address: "h".into(),
            port: 5432,
            replica: None,
        };
        let Outcome::Stale(Some(entry)) = publisher.clone().publish(order(old, lease)).await else { panic!() };
        assert_eq!(entry.value, b"new");
        assert!(store.get("s/c/proxies/info/p1").await.unwrap().is_none());
        assert!(matches!(publisher.clone().publish(order(new, lease)).await, Outcome::Done(..)));
        let record = store.get("s/c/proxies/info/p1").await.unwrap().unwrap();
        assert_eq!(record.lease, Some(lease));
        store.set_down(true);
        assert!(matches!(publisher.publish(order(new, lease)).await, Outcome::Failed(_)));
    }

    #[test]
    fn the_record_has_stolons_form() {
        let store = Arc::new(MemoryStore::new());
        let keys = Keys::new("s", &"c".into());
        let publisher =
            Publisher { store, keys, uid: "4cd2b261".into(), address: "10.1.2.3".into(), port: 15434, replica: None };
        let info = render(&publisher, &order(1, LeaseId(1)), "4f1e931f".into());
        assert_eq!(
            serde_json::to_string(&info).unwrap(),
            r#"{"infoUID":"4f1e931f","UID":"4cd2b261","Generation":7,"ProxyTimeout":15000000000,"listenAddress":"10.1.2.3","port":"15434","leaseSeconds":16}"#
        );
        let publisher = Publisher { replica: Some(("10.1.2.4".into(), 15435)), ..publisher };
        let text = serde_json::to_string(&render(&publisher, &order(1, LeaseId(1)), "4f1e931f".into())).unwrap();
        assert!(
            text.ends_with(r#""leaseSeconds":16,"replicaListenAddress":"10.1.2.4","replicaPort":"15435"}"#),
            "{text}"
        );
    }
}
