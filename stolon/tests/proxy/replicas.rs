//! The port for reading.

use super::*;
use testkit::port::Port;

/// Standbys `b` and `c` of the master `a`, with their keepers' records.
struct Readers {
    lab: Lab,
    proxy: Proxy,
    uid: String,
    port: u16,
    echoes: [Echo; 3],
    _port: Port,
}

const DBS: [&str; 3] = ["a", "b", "c"];

impl Readers {
    async fn start(flags: &[&str]) -> Readers {
        let lab = Lab::start("2s").await;
        let echoes = [Echo::start(b'a'), Echo::start(b'b'), Echo::start(b'c')];
        let port = Port::reserve().unwrap();
        let number = port.number().to_string();
        let (proxy, uid) = lab.serving(&echoes[0], &[&["--replica-port", &number], flags].concat()).await;
        let readers = Readers { lab, proxy, uid, port: port.number(), echoes, _port: port };
        for index in 0..3 {
            readers.report(index, 1000).await;
        }
        readers.lab.put(readers.document(3)).await;
        readers
    }

    /// Cluster data with everybody well.
    fn document(&self, generation: i64) -> serde_json::Value {
        let mut data = self.lab.document(generation, Some(("a", &self.echoes[0])), &[&self.uid]);
        for (index, db) in DBS.iter().enumerate() {
            let keeper = format!("k{index}");
            data["keepers"][&keeper] = json!({"uid": keeper, "spec": {}, "status": {"healthy": true}});
            let mut spec = json!({"keeperUID": keeper, "role": "master", "initMode": "none"});
            if index > 0 {
                spec["role"] = "standby".into();
                spec["followConfig"] = json!({"type": "internal", "dbuid": "a"});
            }
            let address = self.echoes[index].address;
            data["dbs"][db] = json!({"uid": db, "generation": 2, "spec": spec, "status": {"healthy": true,
                "currentGeneration": 2, "listenAddress": address.ip().to_string(), "port": address.port().to_string()}});
        }
        data["cluster"]["status"] = json!({"phase": "normal", "master": "a"});
        data
    }

    async fn report(&self, index: usize, position: u64) {
        let keeper = format!("k{index}");
        let info = json!({"uid": keeper, "postgresState": {"uid": DBS[index], "healthy": true, "xLogPos": position}});
        let key = self.lab.keys.keeper_info(&keeper.as_str().into());
        self.lab.store.put(&key, info.to_string().as_bytes(), None).await.unwrap();
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        connect(self.port)
    }

    /// Who a new reader is led to.
    fn leads_to(&self) -> Option<u8> {
        ask(&mut self.connect().ok()?)
    }

    /// Waits until new readers are led to exactly these.
    async fn lead_to(&self, wanted: &[u8]) {
        until(&format!("readers at {:?}", String::from_utf8_lossy(wanted)), async || {
            let mut clients: Vec<TcpStream> = (0..4).map_while(|_| self.connect().ok()).collect();
            let mut found: Vec<u8> = clients.iter_mut().filter_map(ask).collect();
            found.sort_unstable();
            found.dedup();
            found == wanted
        })
        .await;
    }
}

#[tokio::test]
async fn readers_are_spread_over_standbys_and_follow_what_becomes_of_them() {
    let readers = Readers::start(&[]).await;
    readers.lead_to(b"bc").await;
    assert_eq!(readers.proxy.leads_to(), Some(b'a'));
    let record = readers.lab.store.get(&readers.lab.keys.proxy_info(&readers.uid.as_str().into())).await.unwrap();
    let record: ProxyInfo = serde_json::from_slice(&record.unwrap().value).unwrap();
    assert_eq!(record.extra["replicaPort"], readers.port.to_string());

    // `b` is made anew: it loses its readers, `c` keeps its own.
    let mut clients = [readers.connect().unwrap(), readers.connect().unwrap()];
    let mut marks = clients.each_mut().map(|client| ask(client).unwrap());
    if marks[0] == b'c' {
        clients.reverse();
        marks.reverse();
    }
    assert_eq!(marks, *b"bc");
    let mut data = readers.document(3);
    data["dbs"]["b"]["spec"]["initMode"] = "resync".into();
    readers.lab.put(data).await;
    assert!(is_cut(&mut clients[0]));
    assert_eq!(ask(&mut clients[1]), Some(b'c'));
    readers.lead_to(b"c").await;
    readers.lab.put(readers.document(3)).await;
    readers.lead_to(b"bc").await;

    // `c` lags: new readers go elsewhere; at twice the limit it loses those that it has.
    let limit = 64 << 20;
    readers.report(0, 1000 + limit + 1).await;
    readers.report(1, 1000 + limit).await;
    readers.lead_to(b"b").await;
    assert_eq!(ask(&mut clients[1]), Some(b'c'));
    readers.report(0, 1001 + 2 * limit).await;
    assert!(is_cut(&mut clients[1]));
}

#[tokio::test]
async fn an_elected_standby_loses_its_readers_before_the_proxy_confirms() {
    let readers = Readers::start(&[]).await;
    readers.lead_to(b"bc").await;
    let mut clients: Vec<TcpStream> = (0..4).map(|_| readers.connect().unwrap()).collect();
    let marks: Vec<u8> = clients.iter_mut().map(|client| ask(client).unwrap()).collect();
    let mut data = readers.document(4);
    data["cluster"]["status"]["master"] = "b".into();
    data["dbs"]["b"]["spec"]["role"] = "master".into();
    data["proxy"]["spec"]["masterDbUid"] = "".into();
    readers.lab.put(data.clone()).await;
    readers.lab.published(4).await;
    assert!(connections_to(readers.echoes[1].address).is_empty());
    for (client, mark) in clients.iter_mut().zip(marks) {
        // The other one serves on while there is no master.
        assert_eq!(ask(client), (mark == b'c').then_some(b'c'));
    }
    assert_eq!(readers.leads_to(), Some(b'c'));
    assert_eq!(readers.proxy.leads_to(), None);
}

#[tokio::test]
async fn without_the_store_readers_are_cut_off_too_and_come_back() {
    let mut readers = Readers::start(&[]).await;
    readers.lead_to(b"bc").await;
    let mut client = readers.connect().unwrap();
    assert!(ask(&mut client).is_some());
    let began = Instant::now();
    readers.lab.etcd.stop();
    assert!(is_cut(&mut client));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    until("a closed port", async || readers.connect().is_err()).await;
    readers.lab.etcd.resume().await.unwrap();
    readers.lead_to(b"bc").await;
    // Nor may a proxy that no sentinel enables lead readers anywhere.
    let mut data = readers.document(5);
    data["proxy"]["spec"]["enabledProxies"] = json!([]);
    readers.lab.put(data).await;
    readers.lead_to(b"").await;
}

#[tokio::test]
async fn only_synchronous_ones_and_the_master_in_their_place_if_asked_for() {
    let readers = Readers::start(&["--replica-role", "sync", "--replica-fallback-to-master"]).await;
    readers.lead_to(b"a").await;
    let mut data = readers.document(3);
    data["dbs"]["a"]["spec"]["synchronousStandbys"] = json!(["c"]);
    data["dbs"]["a"]["status"]["synchronousStandbys"] = json!(["c"]);
    readers.lab.put(data).await;
    readers.lead_to(b"c").await;
}

#[tokio::test]
async fn a_taken_port_for_readers_does_not_hinder_writers() {
    let lab = Lab::start("15s").await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (proxy, _) = lab.serving(&Echo::start(b'a'), &["--replica-port", &port]).await;
    assert_eq!(proxy.leads_to(), Some(b'a'));
}
