//! Connection strings for standbys and for the programs that copy data, and the file with their passwords.

use crate::keeper::args::Account;
use std::collections::BTreeMap;

/// A PostgreSQL of this cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: String,
}

/// `primary_conninfo` of a standby. The password is in the passfile, never in a configuration that
/// `pg_settings`, a base backup or a log would show.
pub fn primary(source: &Source, user: &str, application: &str, passfile: Option<&str>) -> String {
    render(source, user, application, passfile, &[])
}

/// For pg_basebackup and pg_rewind. They must not wait for a synchronous standby: it may be the one being made.
pub fn tool(source: &Source, user: &str, application: &str, passfile: Option<&str>, database: &str) -> String {
    let more = [("dbname", database), ("options", "-c synchronous_commit=off")];
    render(source, user, application, passfile, &more)
}

fn render(
    source: &Source,
    user: &str,
    application: &str,
    passfile: Option<&str>,
    more: &[(&'static str, &str)],
) -> String {
    let mut pairs: BTreeMap<&str, &str> = BTreeMap::from([
        ("application_name", application),
        ("host", &source.host),
        ("port", &source.port),
        ("sslmode", "prefer"),
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
            primary(&source, "repl", "stolon_9f134751", Some("/a b/pgpass")),
            "application_name=stolon_9f134751 host=127.0.0.1 passfile='/a b/pgpass' port=15441 sslmode=prefer user=repl"
        );
        assert_eq!(
            tool(&source, "it's", "x", None, "postgres"),
            r"application_name=x dbname=postgres host=127.0.0.1 options='-c synchronous_commit=off' port=15441 sslmode=prefer user='it\'s'"
        );
    }

    #[test]
    fn passwords_are_escaped() {
        let account = |user: &str, password: &str| Account {
            user: user.into(),
            password: password.into(),
            method: AuthMethod::Md5,
        };
        let text = passfile(&[&account("su", r"a:b\c'd"), &account("trusted", "")]).unwrap();
        assert_eq!(text, "*:*:*:su:a\\:b\\\\c'd\n");
        assert_eq!(passfile(&[&account("trusted", "")]), None);
    }
}
