//! Clients that come while there is nowhere to lead them to.

use super::*;

/// A port of loopback that nothing listens on for now.
fn closed() -> Echo {
    let mut echo = Echo::start(b'x');
    echo.address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    echo
}

#[tokio::test]
async fn a_client_waits_for_the_next_master_and_nothing_of_it_goes_to_the_old_one() {
    let lab = Lab::start("15s").await;
    let (old, new) = (Echo::start(b'a'), Echo::start(b'b'));
    let (proxy, uid) = lab.serving(&old, &["--hold-connections", "20s"]).await;
    let before = old.bytes.load(Ordering::SeqCst);
    lab.order(3, None, &[&uid]).await;
    lab.published(3).await;
    let mut clients: Vec<TcpStream> = (0..20).map(|_| proxy.connect().unwrap()).collect();
    for client in &mut clients {
        client.write_all(b"?").unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    lab.order(4, Some(("b", &new)), &[&uid]).await;
    for client in &mut clients {
        let mut answer = [0; 2];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer[0], b'b');
    }
    assert_eq!(old.bytes.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn waiting_ends_in_time() {
    let lab = Lab::start("15s").await;
    let (proxy, uid) = lab.serving(&Echo::start(b'a'), &["--hold-connections", "1s"]).await;
    lab.order(3, None, &[&uid]).await;
    lab.published(3).await;
    let began = Instant::now();
    let mut first = proxy.connect().unwrap();
    assert!(is_cut(&mut first));
    let waited = began.elapsed();
    assert!(waited > Duration::from_millis(900) && waited < Duration::from_secs(8), "{waited:?}");
}

#[tokio::test]
async fn a_client_waits_for_a_master_that_refuses_or_is_replaced_meanwhile() {
    let lab = Lab::start("15s").await;
    let dead = closed();
    let (proxy, uid) = lab.serving(&Echo::start(b'a'), &["--hold-connections", "20s"]).await;
    lab.order(3, None, &[&uid]).await;
    lab.published(3).await;
    lab.order(4, Some(("d", &dead)), &[&uid]).await;
    lab.published(4).await;
    let mut client = proxy.connect().unwrap();
    client.write_all(b"?").unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    lab.order(5, None, &[&uid]).await;
    lab.published(5).await;
    lab.order(6, Some(("b", &Echo::start(b'b'))), &[&uid]).await;
    let mut answer = [0; 2];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer[0], b'b');
}

#[tokio::test]
async fn without_the_flag_nobody_waits() {
    let lab = Lab::start("15s").await;
    let (proxy, uid) = lab.serving(&Echo::start(b'a'), &[]).await;
    lab.order(3, None, &[&uid]).await;
    lab.published(3).await;
    let began = Instant::now();
    assert!(is_cut(&mut proxy.connect().unwrap()));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_suspended_proxy_leads_nobody_who_waited_to_the_old_master() {
    let lab = Lab::start("2s").await;
    let (old, new) = (Echo::start(b'a'), Echo::start(b'b'));
    let (proxy, uid) = lab.serving(&old, &["--hold-connections", "60s"]).await;
    let before = old.bytes.load(Ordering::SeqCst);
    lab.order(3, None, &[&uid]).await;
    lab.published(3).await;
    let mut client = proxy.connect().unwrap();
    client.write_all(b"?").unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    proxy.signal(Signal::SIGSTOP);
    // It is led to the old master again, and away from it, without knowing.
    lab.order(4, Some(("a", &old)), &[&uid]).await;
    until("an expired record", async || lab.records().await == 0).await;
    lab.order(5, None, &[&uid]).await;
    lab.order(6, Some(("b", &new)), &[&uid]).await;
    proxy.signal(Signal::SIGCONT);
    let mut answer = [0; 2];
    client.read_exact(&mut answer).unwrap();
    assert_eq!((answer[0], old.bytes.load(Ordering::SeqCst)), (b'b', before));
}
