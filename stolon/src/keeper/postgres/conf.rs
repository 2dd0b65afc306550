//! `postgresql.conf`.

use model::DbUid;
use model::stolon::DbSpec;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Parameters by name.
pub type Parameters = BTreeMap<String, String>;

/// Names that stolon sets itself: they are never reported nor merged into the cluster's specification.
pub const MANAGED: [&str; 22] = [
    "unix_socket_directories",
    "wal_keep_segments",
    "wal_keep_size",
    "hot_standby",
    "restart_after_crash",
    "listen_addresses",
    "port",
    "max_replication_slots",
    "max_wal_senders",
    "wal_log_hints",
    "synchronous_standby_names",
    "primary_conninfo",
    "primary_slot_name",
    "recovery_min_apply_delay",
    "restore_command",
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
    "recovery_target_timeline",
    "recovery_target_action",
];

/// Names of places on one host: right for that host only, so they are neither reported nor merged either.
const LOCAL: [&str; 5] = ["data_directory", "hba_file", "ident_file", "external_pid_file", "config_file"];

/// What we add when the user says nothing: a standby comes back within half a second of its primary, and
/// notices a dead one within five. Before a crash recovery PostgreSQL makes all its files durable: one call per
/// file system takes a tenth of the time that one call per file takes.
pub const DEFAULTS: [(&str, &str); 3] =
    [("wal_retrieve_retry_interval", "500ms"), ("wal_receiver_timeout", "5s"), ("recovery_init_sync_method", "syncfs")];

/// How a standby gets its WAL; by default it looks for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// `primary_conninfo`.
    pub primary_conninfo: String,
    /// `primary_slot_name`.
    pub primary_slot_name: String,
    /// `recovery_min_apply_delay`.
    pub recovery_min_apply_delay: String,
    /// `restore_command`.
    pub restore_command: String,
}

/// What the parameters depend on besides the db's specification.
#[derive(Clone, Debug)]
pub struct ConfInput<'a> {
    /// The db.
    pub spec: &'a DbSpec,
    /// Parameters right after initialisation.
    pub init: Option<&'a Parameters>,
    /// `listen_addresses`.
    pub listen_address: &'a str,
    /// `port`.
    pub port: u16,
    /// `unix_socket_directories`.
    pub socket_dir: &'a str,
    /// For standbys.
    pub recovery: Option<&'a Recovery>,
}

/// The parameters in force, later sources over earlier ones.
pub fn parameters(input: &ConfInput<'_>) -> Parameters {
    let spec = input.spec;
    let mut all: Parameters = DEFAULTS.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    if let (true, Some(init)) = (spec.include_previous_config, input.init) {
        all.extend(init.clone());
    }
    all.extend(spec.pg_parameters.clone());
    all.retain(|name, _| !MANAGED.contains(&name.as_str()) || name == "wal_log_hints");
    let wal_level =
        if spec.pg_parameters.get("wal_level").is_some_and(|level| level == "logical") { "logical" } else { "replica" };
    // 128 MB is stolon's value; slots keep what attached standbys need, this is for those without one.
    let wal_keep_size = spec.pg_parameters.get("wal_keep_size").map_or("128MB", String::as_str).to_owned();
    let standbys = u32::from(spec.max_standbys);
    let wal_senders = 2 * standbys + 2 + u32::from(spec.additional_wal_senders);
    let mut set = |name: &str, value: String| all.insert(name.to_owned(), value);
    set("unix_socket_directories", input.socket_dir.to_owned());
    set("hot_standby", "on".to_owned());
    // After a crash of one backend PostgreSQL would let users in again by itself, and show them commits that still waited
    // for a standby. The keeper starts it again, and knows what has to hold before users come in.
    set("restart_after_crash", "off".to_owned());
    set("wal_level", wal_level.to_owned());
    set("wal_keep_size", wal_keep_size);
    set("listen_addresses", input.listen_address.to_owned());
    set("port", input.port.to_string());
    set("max_replication_slots", standbys.to_string());
    set("max_wal_senders", wal_senders.to_string());
    if spec.use_pgrewind {
        set("wal_log_hints", "on".to_owned());
    }
    set("synchronous_standby_names", synchronous_standby_names(spec));
    if let Some(recovery) = input.recovery {
        let Recovery { primary_conninfo, primary_slot_name, recovery_min_apply_delay, restore_command } = recovery;
        // Empty ones too: they tell a standby that waits from one that was never told whom to follow.
        set("primary_conninfo", primary_conninfo.clone());
        set("primary_slot_name", primary_slot_name.clone());
        for (name, value) in
            [("recovery_min_apply_delay", recovery_min_apply_delay), ("restore_command", restore_command)]
        {
            if !value.is_empty() {
                set(name, value.clone());
            }
        }
        // Not recovery_target_timeline: `latest` is the default, and taking it away at the promotion would count as a
        // change that needs a restart.
    }
    all
}

/// Every listed standby must confirm: the count is always the length of the list.
fn synchronous_standby_names(spec: &DbSpec) -> String {
    if !spec.synchronous_replication {
        return String::new();
    }
    let internal = spec.synchronous_standbys.iter().flatten().map(|db: &DbUid| super::slots::name(db));
    let names: Vec<String> = internal.chain(spec.external_synchronous_standbys.iter().flatten().cloned()).collect();
    match names.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        many => format!("{} ({})", many.len(), many.join(",")),
    }
}

/// The standbys of ours in a value of `synchronous_standby_names`.
pub fn synchronous_dbs(names: &str) -> BTreeSet<DbUid> {
    let words = names.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-'));
    words.filter_map(|word| word.strip_prefix(super::PREFIX)).filter(|db| !db.is_empty()).map(DbUid::from).collect()
}

/// Renders parameters, sorted, each value quoted.
pub fn render(parameters: &Parameters) -> String {
    let mut text = String::new();
    for (name, value) in parameters {
        let _ = writeln!(text, "{name} = {}", quote(value));
    }
    text
}

/// A value as PostgreSQL's configuration files take it: quotes doubled; backslashes too, since they escape there.
fn quote(value: &str) -> String {
    // A line break ends a value in these files; no parameter needs one.
    let value = value.replace('\\', "\\\\").replace('\'', "''").replace(['\n', '\r'], " ");
    format!("'{value}'")
}

/// The value of one parameter in a rendered file, as it was before [`render`] quoted it.
pub fn unquoted(text: &str, name: &str) -> Option<String> {
    Some(value(text, name)?.replace("''", "'").replace("\\\\", "\\"))
}

/// The value of one parameter in a rendered file, still quoted.
pub fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = '")?.strip_suffix('\''))
}

/// A rendered file without the lines of these parameters.
pub fn without(text: &str, names: &[&str]) -> String {
    text.lines().filter(|line| !names.contains(&name_of(line))).flat_map(|line| [line, "\n"]).collect()
}

/// Names that are ours whatever the user says; the others can be refused by PostgreSQL because of what the user says.
fn is_ours(name: &str) -> bool {
    MANAGED.contains(&name) && !matches!(name, "wal_keep_size" | "wal_log_hints")
}

fn name_of(line: &str) -> &str {
    line.split(['=', ' ', '\t']).next().unwrap_or_default()
}

/// The lines of a configuration file that come from the user or the instance, not from us.
pub fn users_part(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.filter(|line| !is_ours(name_of(line))).fold(String::new(), |part, line| part + line + "\n")
}

/// A rendered file with the user's part replaced.
pub fn with_users_part(text: &str, part: &str) -> String {
    let ours = text.lines().filter(|line| is_ours(name_of(line)));
    ours.fold(String::new(), |part, line| part + line + "\n") + part
}

/// Parameters that are reported: neither managed nor added by us where the user was silent.
pub fn reported(file: Parameters, user: &Parameters) -> Parameters {
    let added = |name: &str, value: &str| DEFAULTS.contains(&(name, value)) && !user.contains_key(name);
    let kept = |name: &str| !MANAGED.contains(&name) && (!LOCAL.contains(&name) || user.contains_key(name));
    file.into_iter().filter(|(name, value)| kept(name) && !added(name, value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> DbSpec {
        DbSpec { max_standbys: 20, additional_wal_senders: 5, ..Default::default() }
    }

    fn all(spec: &DbSpec, init: Option<&Parameters>, recovery: Option<&Recovery>) -> Parameters {
        let input = ConfInput { spec, init, listen_address: "127.0.0.1", port: 5442, socket_dir: "/tmp", recovery };
        parameters(&input)
    }

    fn map(pairs: &[(&str, &str)]) -> Parameters {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn golden() {
        let recovery = Recovery {
            primary_conninfo: "host=a user='it''s'".into(),
            primary_slot_name: "stolon_b".into(),
            ..Default::default()
        };
        let spec = DbSpec {
            use_pgrewind: true,
            pg_parameters: map(&[
                ("x.y", "it's \\ \n"),
                ("port", "1"),
                ("restart_after_crash", "on"),
                ("wal_level", "minimal"),
                ("recovery_target_lsn", "0/1"),
                ("wal_keep_segments", "9"),
            ]),
            ..spec()
        };
        assert_eq!(
            render(&all(&spec, None, Some(&recovery))),
            "hot_standby = 'on'\nlisten_addresses = '127.0.0.1'\nmax_replication_slots = '20'\nmax_wal_senders = '47'\n\
             port = '5442'\nprimary_conninfo = 'host=a user=''it''''s'''\nprimary_slot_name = 'stolon_b'\nrecovery_init_sync_method = 'syncfs'\n\
             restart_after_crash = 'off'\n\
             synchronous_standby_names = ''\nunix_socket_directories = '/tmp'\n\
             wal_keep_size = '128MB'\nwal_level = 'replica'\nwal_log_hints = 'on'\nwal_receiver_timeout = '5s'\n\
             wal_retrieve_retry_interval = '500ms'\nx.y = 'it''s \\\\  '\n"
        );
    }

    #[test]
    fn the_users_part_can_be_replaced() {
        let mut spec = DbSpec { pg_parameters: map(&[("work_mem", "bad"), ("wal_keep_size", "x")]), ..spec() };
        let wanted = render(&all(&spec, None, None));
        spec.pg_parameters = map(&[("work_mem", "8MB")]);
        let good = render(&all(&spec, None, None));
        let part = users_part(&good);
        assert!(part.contains("work_mem = '8MB'\n") && !part.contains("port"), "{part}");
        let mixed = with_users_part(&wanted, &part);
        assert_eq!(users_part(&mixed), part);
        assert_eq!((value(&mixed, "port"), value(&mixed, "work_mem")), (Some("5442"), Some("8MB")));
        assert_eq!(value(&mixed, "wal_keep_size"), Some("128MB"));
        let theirs = "# x\n\nport=1\nlisten_addresses\t'*'\nmax_connections = 100\t# y\n  work_mem 4MB\n";
        assert_eq!(users_part(theirs), "max_connections = 100\t# y\nwork_mem 4MB\n");
    }

    #[test]
    fn users_values_win_where_they_may() {
        let init = map(&[("shared_buffers", "1MB"), ("a.b", "init")]);
        let user =
            map(&[("wal_level", "logical"), ("wal_keep_size", "1GB"), ("a.b", "user"), ("wal_receiver_timeout", "1s")]);
        let mut spec = DbSpec { pg_parameters: user.clone(), ..spec() };
        let text = render(&all(&spec, Some(&init), None));
        assert_eq!(value(&text, "wal_level"), Some("logical"));
        assert_eq!((value(&text, "wal_keep_size"), value(&text, "wal_receiver_timeout")), (Some("1GB"), Some("1s")));
        assert_eq!((value(&text, "a.b"), value(&text, "shared_buffers")), (Some("user"), None));
        spec.include_previous_config = true;
        assert_eq!(all(&spec, Some(&init), None)["shared_buffers"], "1MB");
        let back = reported(all(&spec, Some(&init), None), &user);
        assert!(back.contains_key("wal_level") && back.contains_key("wal_receiver_timeout"));
        assert!(!back.contains_key("port") && !back.contains_key("wal_retrieve_retry_interval"));
    }

    #[test]
    fn settings_of_an_archive_are_there_only_if_given() {
        let recovery = Recovery { restore_command: r"cp '/a\b/%f' %p".into(), ..Default::default() };
        let all = all(&spec(), None, Some(&recovery));
        assert!(all["primary_conninfo"].is_empty() && !all.contains_key("recovery_min_apply_delay"));
        assert_eq!(unquoted(&render(&all), "restore_command"), Some(recovery.restore_command));
    }

    #[test]
    fn every_listed_standby_must_confirm() {
        let names = |on: bool, internal: Option<&[&str]>, external: Option<&[&str]>| {
            synchronous_standby_names(&DbSpec {
                synchronous_replication: on,
                synchronous_standbys: internal.map(|list| list.iter().map(|uid| (*uid).into()).collect()),
                external_synchronous_standbys: external.map(|list| list.iter().map(|&name| name.into()).collect()),
                ..Default::default()
            })
        };
        assert_eq!(names(false, Some(&["a"]), None), "");
        assert_eq!(names(true, None, None), "");
        assert_eq!(names(true, Some(&["a"]), Some(&[])), "stolon_a");
        assert_eq!(names(true, Some(&[]), Some(&["stolonfakestandby"])), "stolonfakestandby");
        assert_eq!(names(true, Some(&["a", "b"]), Some(&["x"])), "3 (stolon_a,stolon_b,x)");
        for (names, wanted) in [
            ("", &[][..]),
            ("stolon_", &[]),
            ("stolonfakestandby", &[]),
            ("stolon_a", &["a"]),
            ("3 (stolon_a,stolon_b,x)", &["a", "b"]),
        ] {
            assert_eq!(synchronous_dbs(names), wanted.iter().map(|db| DbUid::from(*db)).collect(), "{names}");
        }
    }
}
