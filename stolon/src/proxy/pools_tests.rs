use super::*;
use crate::proxy::ProxyArgs;
use crate::proxy::door::{Door, Wants};
use clap::Parser as _;
use store::Moment;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Two replicas that say who they are, and a door for readers.
struct Scene {
    pools: Pools,
    door: Door,
    replicas: Vec<(DbUid, TcpListener)>,
}

impl Scene {
    async fn new() -> Scene {
        let counters = Arc::new(Counters::default());
        let options = Arc::new(SocketOptions::new(&ProxyArgs::parse_from(["stolon-proxy"])));
        let mut door = Door::new("127.0.0.1", 0, Duration::from_secs(60), Wants::Replica, counters.clone());
        door.open().await.unwrap();
        let mut replicas = Vec::new();
        for uid in ["a", "b"] {
            replicas.push((uid.into(), TcpListener::bind("127.0.0.1:0").await.unwrap()));
        }
        let pools = Pools::new(options, counters);
        pools.allow(Some(Moment::now() + Duration::from_secs(60)));
        Scene { pools, door, replicas }
    }

    fn endpoint(&self, index: usize) -> Endpoint {
        Endpoint { host: "127.0.0.1".into(), port: self.replicas[index].1.local_addr().unwrap().port() }
    }

    async fn judge(&mut self, verdicts: [Verdict; 2]) {
        let uids = self.replicas.iter().map(|(uid, _)| uid.clone());
        self.pools.apply(&uids.zip(verdicts).collect()).await;
    }

    async fn both_fit(&mut self) {
        self.judge([Verdict::Fit(self.endpoint(0)), Verdict::Fit(self.endpoint(1))]).await;
    }

    /// A reader, with the index of the replica that it was led to and that one's end of the connection.
    async fn reader(&mut self) -> Option<(TcpStream, usize, TcpStream)> {
        let mut reader = TcpStream::connect(("127.0.0.1", self.door.port())).await.unwrap();
        let client = self.door.welcome(self.door.accept().await.unwrap(), Moment::now());
        self.pools.lead(client, Moment::now()).ok()?;
        let (a, b) = (&self.replicas[0].1, &self.replicas[1].1);
        let (index, mut server) = tokio::select! {
            accepted = a.accept() => (0, accepted.unwrap().0),
            accepted = b.accept() => (1, accepted.unwrap().0),
        };
        server.write_all(b"x").await.unwrap();
        reader.read_exact(&mut [0; 1]).await.unwrap();
        Some((reader, index, server))
    }
}

#[tokio::test]
async fn readers_are_spread_by_the_number_of_connections() {
    let mut scene = Scene::new().await;
    assert!(scene.reader().await.is_none() && !scene.pools.leads_somewhere());
    scene.both_fit().await;
    let mut readers = Vec::new();
    for _ in 0..6 {
        readers.push(scene.reader().await.unwrap());
    }
    assert_eq!(readers.iter().filter(|(_, index, _)| *index == 0).count(), 3);
    // Two leave the first replica: the next two go there.
    let (gone, kept): (Vec<_>, Vec<_>) = readers.into_iter().partition(|(_, index, _)| *index == 0);
    drop(gone);
    for _ in 0..3 {
        scene.pools.ended().await;
        scene.pools.reap(Moment::now());
        if scene.pools.states()[0].connections == 0 {
            break;
        }
    }
    for _ in 0..3 {
        assert_eq!(scene.reader().await.unwrap().1, 0);
    }
    drop(kept);
}

#[tokio::test]
async fn a_replica_that_becomes_unfit_loses_its_readers_before_apply_returns() {
    let mut scene = Scene::new().await;
    scene.both_fit().await;
    let mut readers = [scene.reader().await.unwrap(), scene.reader().await.unwrap()];
    readers.sort_by_key(|(_, index, _)| *index);
    let kept = Verdict::Keep(scene.endpoint(1), Unfit::NotConverged);
    scene.judge([Verdict::Unfit(Unfit::Master), kept]).await;
    let (reader, _, server) = &mut readers[0];
    assert!(
        server.try_read(&mut [0; 1]).is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock) || {
            // The runtime may not have seen it yet; the kernel has.
            server.read(&mut [0; 1]).await.is_err()
        }
    );
    assert_eq!(reader.read(&mut [0; 1]).await.unwrap(), 0);
    // The other one keeps its reader and gets no new one.
    let (reader, _, server) = &mut readers[1];
    server.write_all(b"y").await.unwrap();
    reader.read_exact(&mut [0; 1]).await.unwrap();
    assert!(scene.reader().await.is_none());
    assert_eq!(scene.pools.states().len(), 1);
    // An address that moved, and a proxy that may not forward any more.
    let elsewhere = Endpoint { host: "127.0.0.1".into(), port: 1 };
    scene.judge([Verdict::Unfit(Unfit::Master), Verdict::Fit(elsewhere)]).await;
    assert_eq!(readers[1].0.read(&mut [0; 1]).await.unwrap(), 0);
    scene.both_fit().await;
    let (mut reader, _, _server) = scene.reader().await.unwrap();
    scene.pools.allow(Some(Moment::now()));
    scene.both_fit().await;
    assert_eq!(reader.read(&mut [0; 1]).await.unwrap(), 0);
    assert!(scene.pools.states().is_empty());
}

#[tokio::test]
async fn a_replica_that_refuses_is_avoided_and_gives_the_reader_back() {
    let mut scene = Scene::new().await;
    let nowhere = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Endpoint { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() }
    };
    scene.judge([Verdict::Fit(nowhere), Verdict::Fit(scene.endpoint(1))]).await;
    let _reader = TcpStream::connect(("127.0.0.1", scene.door.port())).await.unwrap();
    let client = scene.door.welcome(scene.door.accept().await.unwrap(), Moment::now());
    assert!(scene.pools.lead(client, Moment::now()).is_ok());
    scene.pools.ended().await;
    let now = Moment::now();
    assert_eq!(scene.pools.reap(now).len(), 1);
    for _ in 0..2 {
        assert_eq!(scene.reader().await.unwrap().1, 1);
    }
}
