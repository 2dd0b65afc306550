//! `pg_hba.conf`.

use crate::keeper::args::Access;
use model::stolon::SuReplAccess;
use std::net::IpAddr;

/// What the lines depend on.
#[derive(Clone, Debug)]
pub struct HbaInput<'a> {
    /// Superuser and how it is let in.
    pub su: (&'a str, Access),
    /// Replication user and how it is let in.
    pub repl: (&'a str, Access),
    /// Who may connect as these two.
    pub access: SuReplAccess,
    /// The instance is of master type.
    pub master_type: bool,
    /// Advertised addresses of all other dbs.
    pub others: Vec<&'a str>,
    /// The cluster's own lines; `None` for stolon's default.
    pub lines: Option<&'a [String]>,
    /// Nobody but these two users may connect.
    pub restricted: bool,
}

/// Renders the file.
pub fn render(input: &HbaInput<'_>) -> String {
    let (su, repl) = (quote(input.su.0), quote(input.repl.0));
    let (Access { method: su_auth, local: su_local, connection: su_type }, repl_access) = (input.su.1, input.repl.1);
    let Access { method: repl_auth, local: repl_local, connection: repl_type } = repl_access;
    let (su_auth, repl_auth) = (su_auth.as_str(), repl_auth.as_str());
    let (su_type, repl_type) = (su_type.as_str(), repl_type.as_str());
    let mut lines = vec![
        format!("local postgres {su} {}", su_local.as_str()),
        format!("local replication {repl} {}", repl_local.as_str()),
    ];
    match input.access {
        SuReplAccess::All => {
            lines.extend(ANY.map(|any| format!("{su_type} all {su} {any} {su_auth}")));
            lines.extend(ANY.map(|any| format!("{repl_type} replication {repl} {any} {repl_auth}")));
        }
        SuReplAccess::Strict if input.master_type => {
            let mut others: Vec<&str> = input.others.iter().copied().filter(|address| !address.is_empty()).collect();
            others.sort_unstable();
            others.dedup();
            for address in others.into_iter().map(host) {
                lines.push(format!("{su_type} all {su} {address} {su_auth}"));
                lines.push(format!("{repl_type} replication {repl} {address} {repl_auth}"));
            }
        }
        SuReplAccess::Strict => {}
    }
    if !input.restricted {
        match input.lines {
            Some(own) => lines.extend(own.iter().cloned()),
            // Never the superuser's method: nobody wants `trust` for everybody because the superuser has it.
            None => lines.extend(ANY.map(|any| format!("{su_type} all all {any} md5"))),
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

const ANY: [&str; 2] = ["0.0.0.0/0", "::0/0"];

/// One host: an address with the length of its family, or a name as it is.
fn host(address: &str) -> String {
    match address.parse() {
        Ok(IpAddr::V4(ip)) => format!("{ip}/32"),
        Ok(IpAddr::V6(ip)) => format!("{ip}/128"),
        Err(_) => quote(address),
    }
}

/// Quotes what would be a keyword, a pattern or more than one word.
fn quote(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let keyword =
        matches!(name, "all" | "replication" | "samehost" | "samenet" | "sameuser" | "samerole" | "samegroup");
    if !name.is_empty() && name.chars().all(plain) && !name.starts_with('.') && !keyword {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::args::{AuthMethod, ConnectionType};

    fn input<'a>() -> HbaInput<'a> {
        HbaInput {
            su: ("postgres", AuthMethod::Trust.into()),
            repl: ("repl", AuthMethod::Md5.into()),
            access: SuReplAccess::All,
            master_type: true,
            others: vec!["b.example", "10.0.0.2", "::1", "", "10.0.0.2"],
            lines: None,
            restricted: false,
        }
    }

    #[test]
    fn open_access_with_defaults() {
        assert_eq!(
            render(&input()),
            "local postgres postgres trust\nlocal replication repl md5\n\
             host all postgres 0.0.0.0/0 trust\nhost all postgres ::0/0 trust\n\
             host replication repl 0.0.0.0/0 md5\nhost replication repl ::0/0 md5\n\
             host all all 0.0.0.0/0 md5\nhost all all ::0/0 md5\n"
        );
    }

    #[test]
    fn sockets_and_kinds_of_connections_have_their_own_words() {
        let repl =
            Access { method: AuthMethod::ScramSha256, local: AuthMethod::Peer, connection: ConnectionType::Hostnossl };
        let input = HbaInput { su: ("postgres", AuthMethod::Cert.into()), repl: ("repl", repl), ..input() };
        assert_eq!(
            render(&input),
            "local postgres postgres peer\nlocal replication repl peer\n\
             hostssl all postgres 0.0.0.0/0 cert\nhostssl all postgres ::0/0 cert\n\
             hostnossl replication repl 0.0.0.0/0 scram-sha-256\nhostnossl replication repl ::0/0 scram-sha-256\n\
             hostssl all all 0.0.0.0/0 md5\nhostssl all all ::0/0 md5\n"
        );
    }

    #[test]
    fn own_lines_replace_defaults_and_restriction_leaves_them_out() {
        let own = ["hostssl all all all scram-sha-256".to_owned()];
        let text = render(&HbaInput { lines: Some(&own), ..input() });
        assert!(text.ends_with("\nhostssl all all all scram-sha-256\n") && !text.contains("all all 0.0.0.0"));
        let text = render(&HbaInput { lines: Some(&own), restricted: true, ..input() });
        assert!(!text.contains("hostssl"));
        assert!(!render(&HbaInput { lines: Some(&[]), ..input() }).contains("all all"));
    }

    #[test]
    fn strict_access_names_the_other_hosts() {
        let strict = HbaInput { access: SuReplAccess::Strict, lines: Some(&[]), ..input() };
        assert_eq!(
            render(&strict),
            "local postgres postgres trust\nlocal replication repl md5\n\
             host all postgres 10.0.0.2/32 trust\nhost replication repl 10.0.0.2/32 md5\n\
             host all postgres ::1/128 trust\nhost replication repl ::1/128 md5\n\
             host all postgres b.example trust\nhost replication repl b.example md5\n"
        );
        assert_eq!(render(&HbaInput { master_type: false, ..strict }).lines().count(), 2);
    }

    #[test]
    fn odd_names_are_quoted() {
        for (name, quoted) in
            [("all", "\"all\""), ("a b", "\"a b\""), ("q\"t", "\"q\"\"t\""), ("", "\"\""), ("x-1", "x-1")]
        {
            assert_eq!(quote(name), quoted);
        }
    }
}
