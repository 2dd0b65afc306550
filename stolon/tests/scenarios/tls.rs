//! TLS among the members, with certificates on both sides.

use crate::lab;
use serde_json::json;
use testkit::tls::Authority;

#[tokio::test]
async fn members_prove_who_they_are_by_certificates() {
    let authority = Authority::new().unwrap();
    let (server, client) = (authority.issue("server", &["127.0.0.1"]).unwrap(), authority.issue("repl", &[]).unwrap());
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let parameters = json!({
        "ssl": "on", "ssl_cert_file": path(&server.cert), "ssl_key_file": path(&server.key),
        "ssl_ca_file": path(&authority.root()),
    });
    let (root, cert, key) = (path(&authority.root()), path(&client.cert), path(&client.key));
    let files = ["--pg-ssl-root-cert", &root, "--pg-ssl-cert", &cert, "--pg-ssl-key", &key];
    let lab = lab()
        .spec(json!({"pgParameters": parameters}))
        .all_keeper_arguments(&[&files[..], &["--pg-repl-ssl-mode", "verify-full"]].concat())
        .prepare()
        .await;
    for keeper in lab.keepers() {
        keeper.process.set_argument("--pg-repl-auth-method", "cert");
    }
    lab.init().await;
    lab.start_all();
    lab.ready().await;
    let old = lab.master().await;
    let hba = std::fs::read_to_string(lab.keeper(old).pgdata().join("pg_hba.conf")).unwrap();
    assert!(hba.contains("hostssl replication repl 0.0.0.0/0 cert\n"), "{hba}");
    let encrypted = "SELECT string_agg(client_dn, ',') FROM pg_stat_replication JOIN pg_stat_ssl USING (pid) WHERE ssl";
    lab.keeper(old).pg.wait_for(encrypted, "/CN=repl").await;
    // Asking the new master, rewinding and copying are encrypted as well: no other way leads in.
    lab.keeper(old).kill();
    let new = lab.wait_for_other_master(old).await;
    lab.keeper(old).start();
    lab.ready().await;
    lab.keeper(new).pg.wait_for(encrypted, "/CN=repl").await;
    let conf = std::fs::read_to_string(lab.keeper(old).pgdata().join("postgresql.conf")).unwrap();
    assert!(conf.contains("sslmode=verify-full"), "{conf}");
}
