//! Which foreign servers of a group must change. Pure.

use crate::picture::Picture;
use model::RepGroupId;
use model::clusterspec::{DATABASE, Password};
use pg::{Endpoint, Endpoints, Login};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a group is to look like, and where its master is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The group's master: servers are altered there.
    pub master: Endpoint,
    /// Who alters them, and whom user mappings lead to.
    pub login: Login,
    /// Every other group that can be reached now.
    pub servers: BTreeMap<RepGroupId, Endpoints>,
}

/// What the picture wants of a group; none while it has no master.
pub fn wanted(picture: &Picture, group: RepGroupId) -> Option<Wanted> {
    let others = picture.groups.iter().filter(|(id, _)| **id != group);
    Some(Wanted {
        master: picture.groups.get(&group)?.master.clone(),
        login: picture.login.clone()?,
        servers: others.filter_map(|(id, other)| Some((*id, other.entry.clone()?))).collect(),
    })
}

/// Options of a foreign server or a user mapping. Values may be secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct OptionMap(BTreeMap<String, String>);

impl OptionMap {
    /// Adds an option as the catalog holds it: `name=value`, where the value may contain `=` itself.
    pub fn add(&mut self, text: &str) {
        if let Some((name, value)) = text.split_once('=') {
            self.0.insert(name.to_owned(), value.to_owned());
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl fmt::Debug for OptionMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A foreign server as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Server {
    /// Its options.
    pub options: OptionMap,
    /// The superuser's mapping; none when there is none.
    pub mapping: Option<OptionMap>,
}

/// The change of one option. The value's type says whether it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<T> {
    /// The option is not there yet.
    Add(&'static str, T),
    /// The option has another value.
    Set(&'static str, T),
    /// The option must not be there.
    Drop(&'static str),
}

/// The change of a user mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MappingChange {
    /// There is no mapping.
    Create(Vec<Change<Password>>),
    /// The mapping has other options.
    Alter(Vec<Change<Password>>),
}

/// The changes of one server; its other options, such as `fetch_size`, are the operator's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alteration {
    /// The group that the server leads to.
    pub group: RepGroupId,
    /// Changes of the server; may be empty.
    pub options: Vec<Change<String>>,
    /// Change of the superuser's mapping.
    pub mapping: Option<MappingChange>,
}

/// What is to be done on a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of groups.
    pub alterations: Vec<Alteration>,
    /// Groups that have no server. Making one takes more than we know here, so whoever adds groups must.
    pub missing: Vec<RepGroupId>,
}

/// Name of the server that leads to a group.
pub fn server_name(group: RepGroupId) -> String {
    format!("shardman_rg_{group}")
}

/// Compares what is wanted with the servers that are there, by name.
pub fn plan(wanted: &Wanted, current: &BTreeMap<String, Server>) -> Plan {
    let mut plan = Plan::default();
    for (group, endpoints) in &wanted.servers {
        let Some(server) = current.get(&server_name(*group)) else {
            plan.missing.push(*group);
            continue;
        };
        let options = server_changes(&server.options, endpoints);
        let mapping = mapping_change(server.mapping.as_ref(), &wanted.login);
        if !options.is_empty() || mapping.is_some() {
            plan.alterations.push(Alteration { group: *group, options, mapping });
        }
    }
    plan
}

fn server_changes(options: &OptionMap, endpoints: &Endpoints) -> Vec<Change<String>> {
    let mut wanted = vec![("dbname", DATABASE.to_owned())];
    // Their order is nobody's business but the operator's; each change makes all sessions connect anew.
    if pairs(options) != Some(endpoints.0.iter().cloned().collect()) {
        wanted.extend([("host", endpoints.hosts()), ("port", endpoints.ports())]);
    }
    let change = |(name, value): (&'static str, String)| match options.get(name) {
        None => Some(Change::Add(name, value)),
        Some(old) if old != value => Some(Change::Set(name, value)),
        Some(_) => None,
    };
    wanted.into_iter().filter_map(change).collect()
}

/// The pairs of host and port; none unless both lists are there and equally long.
fn pairs(options: &OptionMap) -> Option<BTreeSet<Endpoint>> {
    let hosts: Vec<&str> = options.get("host")?.split(',').map(str::trim).collect();
    let ports: Vec<&str> = options.get("port")?.split(',').map(str::trim).collect();
    if hosts.len() != ports.len() {
        return None;
    }
    let pair = |(host, port): (&&str, &&str)| Some(Endpoint { host: (*host).to_owned(), port: port.parse().ok()? });
    hosts.iter().zip(&ports).map(pair).collect()
}

fn mapping_change(current: Option<&OptionMap>, login: &Login) -> Option<MappingChange> {
    let options = current.cloned().unwrap_or_default();
    let mut changes = Vec::new();
    for (name, value) in [("user", login.user.as_str()), ("password", login.password.reveal())] {
        match options.get(name) {
            Some(old) if old == value => {}
            None if value.is_empty() => {}
            Some(_) if value.is_empty() => changes.push(Change::Drop(name)),
            Some(_) => changes.push(Change::Set(name, value.into())),
            None => changes.push(Change::Add(name, value.into())),
        }
    }
    match current {
        None => Some(MappingChange::Create(changes)),
        Some(_) if changes.is_empty() => None,
        Some(_) => Some(MappingChange::Alter(changes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::sql::render;
    use proptest::prelude::*;

    fn endpoints(list: &[(&str, u16)]) -> Endpoints {
        Endpoints(list.iter().map(|(host, port)| Endpoint { host: (*host).into(), port: *port }).collect())
    }

    fn options(list: &[&str]) -> OptionMap {
        let mut map = OptionMap::default();
        list.iter().for_each(|text| map.add(text));
        map
    }

    fn wanted_of(list: &[(&str, u16)], password: &str) -> Wanted {
        Wanted {
            master: Endpoint { host: "m".into(), port: 1 },
            login: Login { user: "su".into(), password: password.into(), application: "t".into() },
            servers: [(RepGroupId(2), endpoints(list))].into(),
        }
    }

    /// The statements that a server with these options and mapping gets.
    fn statements(list: &[(&str, u16)], password: &str, server: &[&str], mapping: Option<&[&str]>) -> Vec<String> {
        let wanted = wanted_of(list, password);
        let server = Server { options: options(server), mapping: mapping.map(options) };
        let plan = plan(&wanted, &[("shardman_rg_2".to_owned(), server)].into());
        plan.alterations.iter().flat_map(|alteration| render(alteration, "su")).collect()
    }

    #[test]
    fn only_what_differs_is_changed() {
        let right = ["dbname=postgres", "host=h", "port=5432", "fetch_size=10000", "options=-c a=b"];
        let none: [&str; 0] = [];
        assert_eq!(statements(&[("h", 5432)], "p=w", &right, Some(&["user=su", "password=p=w"])), none);
        assert_eq!(
            statements(&[("h2", 5432)], "", &right, Some(&["user=su"])),
            [r#"ALTER SERVER "shardman_rg_2" OPTIONS (SET host 'h2')"#]
        );
        assert_eq!(
            statements(&[("h", 1), ("i", 2)], "", &["dbname=x", "host=h"], Some(&["user=su"])),
            [r#"ALTER SERVER "shardman_rg_2" OPTIONS (SET dbname 'postgres', SET host 'h,i', ADD port '1,2')"#]
        );
        assert_eq!(
            statements(&[("h", 5432)], "new'", &right, Some(&["user=su", "password=old"])),
            [r#"ALTER USER MAPPING FOR "su" SERVER "shardman_rg_2" OPTIONS (SET password 'new''')"#]
        );
        assert_eq!(
            statements(&[("h", 5432)], "", &right, Some(&["user=other", "password=old"])),
            [r#"ALTER USER MAPPING FOR "su" SERVER "shardman_rg_2" OPTIONS (SET user 'su', DROP password)"#]
        );
        assert_eq!(
            statements(&[("h", 5432)], "p", &right, None),
            [r#"CREATE USER MAPPING FOR "su" SERVER "shardman_rg_2" OPTIONS (user 'su', password 'p')"#]
        );
    }

    #[test]
    fn lists_are_compared_as_sets_of_pairs() {
        let changes = |server: &[&str], list: &[(&str, u16)]| server_changes(&options(server), &endpoints(list)).len();
        let server = ["dbname=postgres", "host=b,a", "port=2,1"];
        assert_eq!(changes(&server, &[("a", 1), ("b", 2)]), 0);
        assert_eq!(changes(&server, &[("a", 2), ("b", 1)]), 1, "the lists are a,b and 2,1: only hosts change");
        assert_eq!(changes(&server, &[("a", 1)]), 2);
        assert_eq!(changes(&["dbname=postgres", "host=a,b", "port=1"], &[("a", 1), ("b", 1)]), 1);
        assert_eq!(changes(&["dbname=postgres", "host=a", "port=x"], &[("a", 1)]), 1);
    }

    #[test]
    fn a_missing_server_hides_no_other() {
        let mut wanted = wanted_of(&[("h", 1)], "");
        wanted.servers.insert(RepGroupId(3), endpoints(&[("i", 3)]));
        let plan = plan(&wanted, &[("shardman_rg_3".to_owned(), Server::default())].into());
        assert_eq!(plan.missing, [RepGroupId(2)]);
        assert_eq!(plan.alterations.len(), 1);
    }

    #[test]
    fn secrets_are_not_shown() {
        let plan = plan(&wanted_of(&[("h", 1)], "hidden"), &[("shardman_rg_2".to_owned(), Server::default())].into());
        assert!(!format!("{plan:?} {:?}", options(&["password=hidden"])).contains("hidden"));
    }

    fn apply(alteration: &Alteration, server: &mut Server) {
        for change in &alteration.options {
            match change {
                Change::Add(name, value) => {
                    assert_eq!(server.options.0.insert((*name).into(), value.clone()), None);
                }
                Change::Set(name, value) => {
                    assert!(server.options.0.insert((*name).into(), value.clone()).is_some());
                }
                Change::Drop(name) => panic!("{name} would be dropped"),
            }
        }
        let (MappingChange::Create(changes) | MappingChange::Alter(changes)) = match &alteration.mapping {
            Some(change) => change,
            None => return,
        };
        let mapping = server.mapping.get_or_insert_default();
        for change in changes {
            match change {
                Change::Add(name, value) => {
                    assert_eq!(mapping.0.insert((*name).into(), value.reveal().into()), None);
                }
                Change::Set(name, value) => {
                    assert!(mapping.0.insert((*name).into(), value.reveal().into()).is_some());
                }
                Change::Drop(name) => assert!(mapping.0.remove(*name).is_some()),
            }
        }
    }

    proptest! {
        /// PostgreSQL refuses ADD of what is there and SET of what is not, and after one pass nothing is left to do.
        #[test]
        fn plans_are_valid_and_complete(
            server in proptest::collection::vec("(host|port|dbname|x)=[a-c12,=]{0,5}", 0..6),
            mapping in proptest::option::of(proptest::collection::vec("(user|password)=[a-c]{0,2}", 0..3)),
            list in proptest::collection::vec(("[a-c]{1,2}", 1..4u16), 1..4),
            password in "[a-c]{0,2}",
        ) {
            let list: Vec<(&str, u16)> = list.iter().map(|(host, port)| (host.as_str(), *port)).collect();
            let wanted = wanted_of(&list, &password);
            let mut start = Server::default();
            server.iter().for_each(|text| start.options.add(text));
            start.mapping = mapping.map(|texts| options(&texts.iter().map(String::as_str).collect::<Vec<_>>()));
            let mut current = BTreeMap::from([("shardman_rg_2".to_owned(), start)]);
            for alteration in plan(&wanted, &current).alterations {
                apply(&alteration, current.get_mut("shardman_rg_2").unwrap());
            }
            prop_assert_eq!(plan(&wanted, &current), Plan::default());
        }
    }
}
