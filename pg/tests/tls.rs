//! TLS to a real PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use pg::tls::{self, OpenError};
use pg::{SslMode, Tls};
use testkit::postgres::Postgres;
use testkit::tls::{Authority, Pair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_postgres::Config;

fn server(pair: &Pair) -> Postgres {
    let file = |name: &str, path: &std::path::Path| format!("{name} = '{}'", path.display());
    let (cert, key) = (file("ssl_cert_file", &pair.cert), file("ssl_key_file", &pair.key));
    Postgres::start(&["ssl = on", &cert, &key]).unwrap()
}

/// Whether the session is encrypted.
async fn ask(host: &str, port: u16, tls: &Tls) -> Result<bool, OpenError> {
    let mut config = Config::new();
    config.host(host).port(port).user("postgres").dbname("postgres");
    let (client, _task) = tls::open(&config, tls, || ()).await?;
    let row = client.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await?;
    Ok(row.get(0))
}

#[tokio::test]
async fn each_mode_asks_for_as_much_as_libpq_does() {
    let (authority, other) = (Authority::new().unwrap(), Authority::new().unwrap());
    let postgres = server(&authority.issue("server", &["127.0.0.1"]).unwrap());
    let tls = |mode, root: Option<&Authority>| Tls { mode, root_cert: root.map(Authority::root), ..Default::default() };
    for (mode, root, wanted) in [
        (SslMode::Disable, Some(&authority), Some(false)),
        (SslMode::Prefer, None, Some(true)),
        (SslMode::Prefer, Some(&other), Some(true)),
        (SslMode::Require, None, Some(true)),
        (SslMode::Require, Some(&authority), Some(true)),
        (SslMode::Require, Some(&other), None),
        (SslMode::VerifyCa, Some(&authority), Some(true)),
        (SslMode::VerifyCa, Some(&other), None),
        (SslMode::VerifyFull, Some(&authority), Some(true)),
        (SslMode::VerifyFull, Some(&other), None),
        (SslMode::VerifyFull, None, None),
    ] {
        let seen = ask("127.0.0.1", postgres.port(), &tls(mode, root)).await;
        assert_eq!(seen.as_ref().ok(), wanted.as_ref(), "{mode} {seen:?}");
    }
    // The certificate is for the address only.
    assert!(ask("localhost", postgres.port(), &tls(SslMode::VerifyCa, Some(&authority))).await.unwrap());
    let error = ask("localhost", postgres.port(), &tls(SslMode::VerifyFull, Some(&authority))).await.unwrap_err();
    assert!(matches!(error, OpenError::Postgres(_)), "{error}");
    // Sockets need none.
    let sockets = postgres.data_dir().parent().unwrap().to_owned();
    assert!(!ask(sockets.to_str().unwrap(), postgres.port(), &tls(SslMode::Require, None)).await.unwrap());
}

#[tokio::test]
async fn a_self_signed_certificate_may_be_its_own_authority() {
    let authority = Authority::new().unwrap();
    let pair = authority.self_signed("server", &["127.0.0.1"]).unwrap();
    let postgres = server(&pair);
    let tls = |root: &std::path::Path| Tls {
        mode: SslMode::VerifyFull,
        root_cert: Some(root.to_owned()),
        ..Default::default()
    };
    assert!(ask("127.0.0.1", postgres.port(), &tls(&pair.cert)).await.unwrap());
    assert!(ask("127.0.0.1", postgres.port(), &tls(&authority.root())).await.is_err());
    assert!(ask("localhost", postgres.port(), &tls(&pair.cert)).await.is_err(), "another name");
}

#[tokio::test]
async fn prefer_does_without_where_the_server_can_not() {
    let plain = Postgres::start(&[]).unwrap();
    assert!(!ask("127.0.0.1", plain.port(), &Tls::default()).await.unwrap());
    let required = Tls { mode: SslMode::Require, ..Default::default() };
    assert!(ask("127.0.0.1", plain.port(), &required).await.is_err());

    // Says yes to TLS, and then speaks something else; the second connection leads to a real server.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, behind) = (listener.local_addr().unwrap().port(), plain.port());
    let broken = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut request = [0; 8];
        client.read_exact(&mut request).await.unwrap();
        client.write_all(b"Sthis is no handshake").await.unwrap();
        drop(client);
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = tokio::net::TcpStream::connect(("127.0.0.1", behind)).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
    assert!(!ask("127.0.0.1", port, &Tls::default()).await.unwrap());
    broken.abort();
}

#[test]
fn what_can_not_be_used_is_told_beforehand() {
    let authority = Authority::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (empty, broken) = (dir.path().join("empty"), dir.path().join("broken"));
    std::fs::write(&empty, "").unwrap();
    std::fs::write(&broken, "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").unwrap();
    let pair = authority.issue("client", &[]).unwrap();
    let good = Tls {
        mode: SslMode::VerifyFull,
        root_cert: Some(authority.root()),
        cert: Some(pair.cert.clone()),
        key: Some(pair.key.clone()),
    };
    good.check().unwrap();
    for bad in [
        Tls { root_cert: None, ..good.clone() },
        Tls { root_cert: Some(dir.path().join("missing")), ..good.clone() },
        Tls { root_cert: Some(empty.clone()), ..good.clone() },
        Tls { root_cert: Some(broken.clone()), ..good.clone() },
        Tls { cert: None, ..good.clone() },
        Tls { cert: Some(pair.key.clone()), ..good.clone() },
        Tls { key: Some(empty), ..good.clone() },
        Tls { key: Some(authority.issue("other", &[]).unwrap().key), ..good.clone() },
        Tls { key: Some(broken), ..good },
    ] {
        let error = bad.check().unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
    }
    assert!("always".parse::<SslMode>().is_err());
    assert!(SslMode::ALL.into_iter().all(|mode| mode.as_str().parse::<SslMode>().unwrap() == mode));
}
