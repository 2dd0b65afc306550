//! Where to reach a replication group, out of its stolon cluster data.

use model::stolon::ClusterData;
use std::fmt;

/// An address and a port. Ordered by address, then by number of the port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Host name, address, or directory of a Unix socket.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// One or more endpoints that lead to the same server, as libpq takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints(pub Vec<Endpoint>);

impl Endpoints {
    /// All hosts, joined by commas.
    pub fn hosts(&self) -> String {
        self.0.iter().map(|endpoint| endpoint.host.clone()).collect::<Vec<_>>().join(",")
    }
    /// All ports, in the order of the hosts, joined by commas.
    pub fn ports(&self) -> String {
        self.0.iter().map(|endpoint| endpoint.port.to_string()).collect::<Vec<_>>().join(",")
    }
}

/// The group has no master to connect to now. Not a failure: it will have one again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no master is available")]
pub struct NoMaster;

/// The current master: the db that proxies forward to.
///
/// # Errors
/// There is none now, or it has not reported an address yet.
pub fn master(data: &ClusterData) -> Result<Endpoint, NoMaster> {
    let status = &data.proxied_master().ok_or(NoMaster)?.status;
    if status.listen_address.is_empty() {
        return Err(NoMaster);
    }
    Ok(Endpoint { host: status.listen_address.clone(), port: status.port.parse().map_err(|_| NoMaster)? })
}

/// All living proxies, sorted, so that the same state gives the same list everywhere.
///
/// # Errors
/// There is no master, or no proxy has an address.
pub fn proxies(data: &ClusterData) -> Result<Endpoints, NoMaster> {
    master(data)?;
    let address = |proxy: &model::stolon::ProxyAddress| {
        let port = proxy.port.parse().ok()?;
        (!proxy.listen_address.is_empty()).then(|| Endpoint { host: proxy.listen_address.clone(), port })
    };
    let mut list: Vec<Endpoint> = data.proxy.status.values().filter_map(address).collect();
    list.sort();
    if list.is_empty() { Err(NoMaster) } else { Ok(Endpoints(list)) }
}

/// How clients reach the group: its proxies if the cluster uses them, else its master.
///
/// # Errors
/// No master, see [`master`] and [`proxies`].
pub fn entry_points(data: &ClusterData, use_proxy: bool) -> Result<Endpoints, NoMaster> {
    if use_proxy { proxies(data) } else { Ok(Endpoints(vec![master(data)?])) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> ClusterData {
        serde_json::from_value(serde_json::json!({
            "dbs": {"m": {"uid": "m", "status": {"listenAddress": "h", "port": "5442"}}},
            "proxy": {"spec": {"masterDbUid": "m"}, "status": {
                "a": {"listenAddress": "h2", "port": "10000"}, "b": {"listenAddress": "h2", "port": "5432"},
                "c": {"listenAddress": "h1", "port": "5433"}, "d": {"port": "1"}, "e": {"listenAddress": "x", "port": "y"}}}
        }))
        .unwrap()
    }

    #[test]
    fn proxies_are_sorted_by_address_and_number() {
        let list = entry_points(&data(), true).unwrap();
        assert_eq!((list.hosts().as_str(), list.ports().as_str()), ("h1,h2,h2", "5433,5432,10000"));
        assert_eq!(entry_points(&data(), false).unwrap().hosts(), "h");
    }

    #[test]
    fn without_a_master_there_is_no_entry_point() {
        let mut data = data();
        data.proxy.spec.master_db_uid = "gone".into();
        assert_eq!(entry_points(&data, true), Err(NoMaster));
        assert_eq!(entry_points(&data, false), Err(NoMaster));
    }
}
