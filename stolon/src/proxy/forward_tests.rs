use super::*;
use crate::proxy::ProxyArgs;
use crate::proxy::sockets::listen;
use clap::Parser as _;
use store::Moment;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

fn open() -> Arc<Gate> {
    let gate = Gate::default();
    gate.set(Some(Moment::now() + Duration::from_secs(60)));
    Arc::new(gate)
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    tasks: JoinSet<io::Result<()>>,
    counters: Arc<Counters>,
}

/// A client that is served, the server's end of its connection, and the serving task.
async fn connection(gate: Arc<Gate>) -> Connection {
    let front = listen("127.0.0.1", 0).await.unwrap();
    let back = listen("127.0.0.1", 0).await.unwrap();
    let client = TcpStream::connect(front.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = front.accept().await.unwrap();
    let mut tasks = JoinSet::new();
    let options = Arc::new(SocketOptions::new(&ProxyArgs::parse_from(["stolon-proxy"])));
    let upstream = Upstream::Addresses(Arc::new(vec![back.local_addr().unwrap()]));
    let counters = Arc::new(Counters::default());
    let route = Route { upstream, gate, options, counters: counters.clone() };
    tasks.spawn(async move {
        let server = connect(&route).await?;
        serve(&accepted, &server, &route).await;
        Ok(())
    });
    let (server, _) = back.accept().await.unwrap();
    Connection { client, server, tasks, counters }
}

#[tokio::test]
async fn large_data_passes_both_ways_at_once() {
    let Connection { client, server, mut tasks, counters } = connection(open()).await;
    let data: Vec<u8> = (0..4_000_000_u32).map(|i| i as u8).collect();
    let (mut client_read, mut client_write) = client.into_split();
    let (mut server_read, mut server_write) = server.into_split();
    let mut at_server = vec![0; data.len()];
    let mut at_client = vec![0; data.len()];
    let (a, b, c, d) = tokio::join!(
        client_write.write_all(&data),
        server_write.write_all(&data),
        server_read.read_exact(&mut at_server),
        client_read.read_exact(&mut at_client),
    );
    assert!(a.is_ok() && b.is_ok() && c.is_ok() && d.is_ok());
    assert!(at_server == data && at_client == data);
    assert_eq!((counters.bytes_up.get(), counters.bytes_down.get()), (4_000_000, 4_000_000));
    assert_eq!(counters.active.get(), 1);
    drop((client_read, client_write));
    // The client's end reaches the server as an end, and the task ends.
    assert_eq!(server_read.read(&mut [0; 1]).await.unwrap(), 0);
    tasks.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(counters.active.get(), 0);
}

#[tokio::test]
async fn many_small_messages_arrive_one_by_one() {
    let Connection { mut client, mut server, tasks: _tasks, .. } = connection(open()).await;
    for i in 0..500_usize {
        // Sizes around the buffer's too: exactly one buffer must not look like the end of what there is.
        let message = vec![i as u8; [1, 100, BUFFER - 1, BUFFER, BUFFER + 1][i % 5]];
        let mut got = vec![0; message.len()];
        let (sent, received) = tokio::join!(client.write_all(&message), server.read_exact(&mut got));
        assert!(sent.is_ok() && received.is_ok() && got == message, "{i}");
        server.write_all(b"ok").await.unwrap();
        client.read_exact(&mut [0; 2]).await.unwrap();
    }
}

#[tokio::test]
async fn being_cut_resets_the_server_and_ends_the_client() {
    let Connection { mut client, mut server, mut tasks, .. } = connection(open()).await;
    client.write_all(b"x").await.unwrap();
    server.read_exact(&mut [0; 1]).await.unwrap();
    tasks.shutdown().await;
    let error = server.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn nothing_passes_a_shut_gate() {
    let gate = open();
    let Connection { mut client, mut server, mut tasks, .. } = connection(gate.clone()).await;
    gate.set(Some(Moment::now()));
    client.write_all(b"COMMIT").await.unwrap();
    tasks.join_next().await.unwrap().unwrap().unwrap();
    assert!(server.read(&mut [0; 8]).await.is_err());
}

#[tokio::test]
async fn the_servers_last_words_arrive_whatever_the_client_sends_meanwhile() {
    for size in [30, 1_000_000] {
        let Connection { mut client, mut server, mut tasks, .. } = connection(open()).await;
        let words = vec![b'w'; size];
        let mut heard = Vec::new();
        let talk = async {
            // Unread bytes at the server make its end a reset.
            client.write_all(&[0; 5000]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            let _ = client.write_all(&[0; 5000]).await;
            let _ = client.read_to_end(&mut heard).await;
        };
        let end = async {
            server.read_exact(&mut [0; 1]).await.unwrap();
            server.write_all(&words).await.unwrap();
            drop(server);
        };
        tokio::join!(talk, end);
        // A reset takes away what the server's own kernel had not sent yet, but not what it had.
        assert!(if size == 30 { heard == words } else { !heard.is_empty() }, "{} of {size}", heard.len());
        tasks.join_next().await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_server_that_is_down_is_reported() {
    let nowhere = listen("127.0.0.1", 0).await.unwrap().local_addr().unwrap();
    let route = Route {
        upstream: Upstream::Addresses(Arc::new(vec![nowhere])),
        gate: open(),
        options: Arc::new(SocketOptions::new(&ProxyArgs::parse_from(["stolon-proxy"]))),
        counters: Arc::default(),
    };
    assert!(connect(&route).await.is_err());
    assert_eq!((route.counters.failed.get(), route.counters.active.get()), (1, 0));
}
