//! Getting into a real etcd: users with passwords, tokens that expire, and TLS with certificates of both sides.

#![expect(clippy::unwrap_used, reason = "a test that can not go on stops")]

use etcd_client::{Client, ConnectOptions};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use store::{EtcdStore, Follower, SharedStore, StoreError, StoreOptions, Target};
use testkit::etcds::Etcds;
use testkit::tls::Authority;

async fn connect(options: StoreOptions) -> SharedStore {
    Arc::new(EtcdStore::connect(&options).await.unwrap())
}

/// Asks for passwords from now on: `root` may do everything, `stolon` has the keys below `stolon/`.
async fn switch_authentication_on(endpoints: &str) {
    let client = Client::connect([endpoints], None).await.unwrap();
    let mut auth = client.auth_client();
    auth.role_add("stolon").await.unwrap();
    let permission = etcd_client::Permission::read_write("stolon/").with_prefix();
    auth.role_grant_permission("stolon", permission).await.unwrap();
    for (user, password, role) in [("root", "r", "root"), ("stolon", "secret", "stolon")] {
        auth.user_add(user, password, None).await.unwrap();
        auth.user_grant_role(user, role).await.unwrap();
    }
    auth.auth_enable().await.unwrap();
}

fn user(etcds: &Etcds, dir: &Path, password: &str) -> StoreOptions {
    let file = dir.join("password");
    std::fs::write(&file, format!("{password}\n")).unwrap();
    StoreOptions {
        endpoints: etcds.endpoints(),
        user: Some("stolon".into()),
        password_file: Some(file),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_user_gets_in_and_stays_in() {
    // Cheap hashes keep the test short.
    let etcds = Etcds::start(1, &["--auth-token-ttl", "1", "--bcrypt-cost", "4"]).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    // Opened before etcd asks for anything: a login is refused then, and not needed.
    let early = connect(user(&etcds, dir.path(), "secret")).await;
    early.put("stolon/early", b"1", None).await.unwrap();
    switch_authentication_on(&etcds.endpoints()).await;
    early.put("stolon/early", b"2", None).await.unwrap();

    let store = connect(user(&etcds, dir.path(), "secret")).await;
    let follower = Follower::start(store.clone(), vec![Target::Prefix("stolon/".into())]);
    let mut views = follower.subscribe();
    views.wait_for(|view| view.loaded).await.unwrap();
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    for round in 0..2 {
        let key = format!("stolon/{round}");
        store.put(&key, b"", Some(lease)).await.unwrap();
        views.wait_for(|view| view.entries.contains_key(&key)).await.unwrap();
        // The token is forgotten by etcd meanwhile.
        tokio::time::sleep(Duration::from_secs(3)).await;
        store.keep_alive(lease).await.unwrap();
        assert!(store.get(&key).await.unwrap().is_some());
    }
    let denied = store.get("elsewhere").await.unwrap_err();
    assert!(matches!(denied, StoreError::Denied { .. }), "{denied}");

    // Another password, in etcd and in the file: whoever runs goes on with it.
    let root = ConnectOptions::new().with_user("root", "r");
    let root = Client::connect([etcds.endpoints()], Some(root)).await.unwrap();
    root.auth_client().user_change_password("stolon", "other").await.unwrap();
    let _ = user(&etcds, dir.path(), "other");
    tokio::time::sleep(Duration::from_secs(3)).await;
    store.put("stolon/other", b"", None).await.unwrap();
    views.wait_for(|view| view.entries.contains_key("stolon/other")).await.unwrap();
}

#[tokio::test]
async fn nobody_else_gets_in() {
    let etcds = Etcds::start(1, &["--bcrypt-cost", "4"]).await.unwrap();
    switch_authentication_on(&etcds.endpoints()).await;
    let dir = tempfile::tempdir().unwrap();
    let nobody = StoreOptions { endpoints: etcds.endpoints(), ..Default::default() };
    let missing = StoreOptions { password_file: Some("/nonexistent".into()), ..user(&etcds, dir.path(), "secret") };
    for options in [nobody, missing, user(&etcds, dir.path(), "wrong")] {
        let error = connect(options).await.get("stolon/k").await.unwrap_err();
        assert!(matches!(error, StoreError::Denied { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("--store-password-file") && !text.contains("wrong"), "{text}");
    }
}

#[tokio::test]
async fn both_sides_show_certificates() {
    let authority = Authority::new().unwrap();
    let server = authority.issue("server", &["127.0.0.1"]).unwrap();
    let client = authority.issue("client", &[]).unwrap();
    let text = |path: &Path| path.display().to_string();
    let (cert, key, ca) = (text(&server.cert), text(&server.key), text(&authority.root()));
    let arguments = ["--cert-file", &cert, "--key-file", &key, "--trusted-ca-file", &ca, "--client-cert-auth"];
    let etcds = Etcds::start(1, &arguments).await.unwrap();
    let options = StoreOptions {
        endpoints: etcds.endpoints(),
        ca_file: Some(authority.root()),
        cert_file: Some(client.cert),
        key_file: Some(client.key),
        timeout: Duration::from_secs(3),
        ..Default::default()
    };
    connect(options.clone()).await.put("k", b"v", None).await.unwrap();

    // Whom we don't know is not trusted, unless we don't look.
    let missing = StoreOptions { ca_file: Some("/nonexistent".into()), ..options.clone() };
    assert!(EtcdStore::connect(&missing).await.is_err());
    let other = Authority::new().unwrap();
    let unknown = StoreOptions { ca_file: Some(other.root()), ..options.clone() };
    assert!(connect(unknown.clone()).await.get("k").await.is_err());
    let blind = StoreOptions { skip_tls_verify: true, ..unknown };
    assert!(connect(blind.clone()).await.get("k").await.unwrap().is_some());

    // etcd wants to know us, too.
    for options in [options, blind] {
        let anonymous = StoreOptions { cert_file: None, key_file: None, ..options };
        assert!(connect(anonymous).await.get("k").await.is_err());
    }
}
