//! Connection strings for standbys and for the programs that copy data, and the file with their passwords.

use super::conf::Parameters;
use crate::keeper::args::Account;
use pg::Tls;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A PostgreSQL of this cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: String,
}

/// What proves who we are, and how much of that we ask from others: names of files, never what is in them.
#[derive(Clone, Copy, Debug)]
pub struct Secrets<'a> {
    /// Passwords.
    pub passfile: Option<&'a str>,
    /// TLS.
    pub tls: &'a Tls,
}

/// How long either end of a standby's connection bears silence. After a break of the network TCP tries again after
/// pauses that double, so that a connection which outlives a break of ten seconds says nothing for up to ten more; a new
/// one works at once. As long as the old one is not given up, its slot is taken.
const SILENCE: [(&str, &str); 2] = [("tcp_user_timeout", "5s"), ("wal_sender_timeout", "5s")];

/// `primary_conninfo` of a standby. The password is in the passfile, never in a configuration that
/// `pg_settings`, a base backup or a log would show. What the user's `parameters` say about silence holds.
pub fn primary(
    source: &Source,
    user: &str,
    application: &str,
    secrets: &Secrets<'_>,
    parameters: &Parameters,
) -> String {
    let ours = SILENCE.iter().filter(|(name, _)| !parameters.contains_key(*name));
    // Only for this connection: other clients of the server, in and outside the cluster, keep its own limits.
    let options = ours.map(|(name, value)| format!("-c {name}={value}")).collect::<Vec<_>>().join(" ");
    let own = if parameters.contains_key("tcp_user_timeout") { "" } else { "5000" };
    let more = [("connect_timeout", "3"), ("tcp_user_timeout", own), ("options", &options)];
    render(source, user, application, secrets, &more)
}

/// For pg_basebackup and pg_rewind. They must not wait for a synchronous standby: it may be the one being made.
pub fn tool(source: &Source, user: &str, application: &str, secrets: &Secrets<'_>, database: &str) -> String {
    let more = [("dbname", database), ("options", "-c synchronous_commit=off")];
    render(source, user, application, secrets, &more)
}

fn render(
    source: &Source,
    user: &str,
    application: &str,
    secrets: &Secrets<'_>,
    more: &[(&'static str, &str)],
) -> String {
    let Secrets { passfile, tls: Tls { mode, root_cert, cert, key } } = secrets;
    let text = |file: &Option<PathBuf>| file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
    let (root_cert, cert, key) = (text(root_cert), text(cert), text(key));
    let mut pairs: BTreeMap<&str, &str> = BTreeMap::from([
        ("application_name", application),
        ("host", &source.host),
        ("port", &source.port),
        ("sslcert", &cert),
        ("sslkey", &key),
        ("sslmode", mode.as_str()),
        ("sslrootcert", &root_cert),
        ("user", user),
        ("passfile", passfile.unwrap_or_default()),
    ]);
    pairs.extend(more.iter().copied());
    model::conninfo::render(pairs)
}

/// Content of the passfile; `None` when nobody has a password.
pub fn passfile(accounts: &[&Account]) -> Option<String> {
    let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
    let line = |account: &&Account| {
        let password = account.password.reveal();
        (!password.is_empty()).then(|| format!("*:*:*:{}:{}\n", escape(&account.user), escape(password)))
    };
    let text: String = accounts.iter().filter_map(line).collect();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::args::AuthMethod;

    #[test]
    fn strings_are_sorted_and_quoted() {
        let source = Source { host: "127.0.0.1".into(), port: "15441".into() };
        assert_eq!(
            primary(
                &source,
                "repl",
                "stolon_9f134751",
                &Secrets { passfile: Some("/a b/pgpass"), tls: &Tls::default() },
                &Parameters::new()
            ),
            "application_name=stolon_9f134751 connect_timeout=3 host=127.0.0.1 \
             options='-c tcp_user_timeout=5s -c wal_sender_timeout=5s' passfile='/a b/pgpass' port=15441 sslmode=prefer \
             tcp_user_timeout=5000 user=repl"
        );
        let user = ["tcp_user_timeout", "wal_sender_timeout"].map(|name| (name.to_owned(), "60s".to_owned()));
        let secrets = Secrets { passfile: None, tls: &Tls::default() };
        assert_eq!(
            primary(&source, "repl", "x", &secrets, &user.into()),
            "application_name=x connect_timeout=3 host=127.0.0.1 port=15441 sslmode=prefer user=repl"
        );
        let verified = Tls {
            mode: pg::SslMode::VerifyFull,
            root_cert: Some("/r".into()),
            cert: Some("/c".into()),
            key: Some("/k k".into()),
        };
        assert_eq!(
            tool(&source, "it's", "x", &Secrets { passfile: None, tls: &verified }, "postgres"),
            r"application_name=x dbname=postgres host=127.0.0.1 options='-c synchronous_commit=off' port=15441 sslcert=/c sslkey='/k k' sslmode=verify-full sslrootcert=/r user='it\'s'"
        );
    }

    #[test]
    fn passwords_are_escaped() {
        let account = |user: &str, password: &str| Account {
            user: user.into(),
            password: password.into(),
            access: AuthMethod::Md5.into(),
        };
        let text = passfile(&[&account("su", r"a:b\c'd"), &account("trusted", "")]).unwrap();
        assert_eq!(text, "*:*:*:su:a\\:b\\\\c'd\n");
        assert_eq!(passfile(&[&account("trusted", "")]), None);
    }
}
