//! What a group's database knows about the cluster: reading it takes one query, comparing it is pure.

use pg::{Endpoint, Endpoints};
use std::collections::{BTreeMap, BTreeSet};
use tokio_postgres::SimpleQueryMessage;

/// Rows of four texts: what it is, and up to three values. Names instead of oids, which differ between groups.
pub(super) const QUERY: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
    SET LOCAL search_path = pg_catalog;
    SELECT 'group', r.id, s.srvname, r.srvid IS NULL FROM shardman.repgroups r LEFT JOIN pg_foreign_server s ON s.oid = r.srvid;
    SELECT 'server', s.srvname, o.option, NULL FROM pg_foreign_server s
        LEFT JOIN LATERAL unnest(s.srvoptions) o (option) ON true WHERE s.srvname ~ '^shardman_rg_[0-9]+$';
    SELECT 'table', format('%I.%I', t.nspname, t.relname), format('with %s partitions %I.%I', t.nparts, t.partnsp, t.partname),
        CASE WHEN c.rel IS NOT NULL THEN format('%I.%I', c.nspname, c.relname) END
        FROM shardman.sharded_tables t LEFT JOIN shardman.sharded_tables c ON c.rel = t.colocated_with;
    SELECT 'part', format('%I.%I', t.nspname, t.relname), p.pnum, p.rgid
        FROM shardman.parts p JOIN shardman.sharded_tables t ON t.rel = p.rel;
    SELECT 'missing', x.part, NULL, NULL FROM (SELECT t.rel, format('%I.%I', t.partnsp,
            t.partname || '_' || p.pnum || CASE WHEN r.srvid IS NULL THEN '' ELSE '_fdw' END) AS part
            FROM shardman.parts p JOIN shardman.sharded_tables t ON t.rel = p.rel JOIN shardman.repgroups r ON r.id = p.rgid) x
        WHERE NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = to_regclass(x.part) AND i.inhparent = x.rel);
    COMMIT";

/// A group's dictionary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Dictionary {
    /// Each group with the name of its server.
    groups: BTreeMap<String, Option<String>>,
    /// The groups that claim to be this one.
    local: Vec<String>,
    servers: BTreeMap<String, BTreeMap<String, String>>,
    /// Sharded tables and partitions, one line each.
    tables: BTreeSet<String>,
    parts: BTreeSet<String>,
    missing: BTreeSet<String>,
}

impl Dictionary {
    /// Takes the answer of [`QUERY`] apart.
    pub(super) fn read(answer: &[SimpleQueryMessage]) -> Self {
        let mut dictionary = Dictionary::default();
        for message in answer {
            let SimpleQueryMessage::Row(row) = message else { continue };
            let text = |column| row.try_get(column).ok().flatten();
            dictionary.add([text(0), text(1), text(2), text(3)]);
        }
        dictionary
    }

    /// Adds one row of the answer.
    pub(super) fn add(&mut self, row: [Option<&str>; 4]) {
        let [Some(kind), Some(name), a, b] = row else { return };
        let name = name.to_owned();
        match (kind, a, b) {
            ("group", server, local) => {
                if local == Some("t") {
                    self.local.push(name.clone());
                }
                self.groups.insert(name, server.map(str::to_owned));
            }
            ("server", option, _) => {
                let options = self.servers.entry(name).or_default();
                if let Some((key, value)) = option.and_then(|option| option.split_once('=')) {
                    options.insert(key.to_owned(), value.to_owned());
                }
            }
            ("table", Some(how), colocated) => {
                let colocated = colocated.map(|other| format!(", colocated with {other}")).unwrap_or_default();
                self.tables.insert(format!("table {name} {how}{colocated}"));
            }
            ("part", Some(number), Some(group)) => {
                self.parts.insert(format!("partition {number} of {name} on group {group}"));
            }
            ("missing", _, _) => {
                self.missing.insert(name);
            }
            _ => {}
        }
    }

    /// What all groups must have in common.
    fn facts(&self) -> BTreeSet<String> {
        let groups = self.groups.keys().map(|id| format!("group {id}"));
        groups.chain(self.tables.iter().cloned()).chain(self.parts.iter().cloned()).collect()
    }
}

/// What is wrong with each dictionary; an entry for each one given. `reachable` says how every group is reached now.
pub(super) fn compare(
    dictionaries: &BTreeMap<u32, &Dictionary>,
    reachable: &BTreeMap<u32, Option<Endpoints>>,
) -> BTreeMap<u32, Vec<String>> {
    let facts: BTreeMap<u32, BTreeSet<String>> =
        dictionaries.iter().map(|(id, dictionary)| (*id, dictionary.facts())).collect();
    let reference = majority(&facts);
    let judge = |(id, dictionary): (&u32, &&Dictionary)| {
        let mut problems = own_problems(*id, dictionary, reachable);
        problems.extend(match &reference {
            Some(reference) => differences(&facts[id], reference),
            None => disagreement(*id, &facts),
        });
        (*id, problems)
    };
    dictionaries.iter().map(judge).collect()
}

/// What more than half of the groups have.
fn majority(facts: &BTreeMap<u32, BTreeSet<String>>) -> Option<BTreeSet<String>> {
    let agreeing = |one: &BTreeSet<String>| facts.values().filter(|other| *other == one).count();
    facts.values().find(|one| agreeing(one) * 2 > facts.len()).cloned()
}

fn differences(own: &BTreeSet<String>, reference: &BTreeSet<String>) -> Vec<String> {
    let missing = reference.difference(own).map(|fact| format!("it lacks {fact}"));
    let extra = own.difference(reference).map(|fact| format!("only it has {fact}"));
    missing.chain(extra).collect()
}

/// Without a majority nobody can say who is right: all that differ from someone are named.
fn disagreement(id: u32, facts: &BTreeMap<u32, BTreeSet<String>>) -> Vec<String> {
    let own = &facts[&id];
    let other = facts.iter().find(|(_, other)| *other != own);
    let Some((other, theirs)) = other else { return Vec::new() };
    let example = own.symmetric_difference(theirs).next();
    example.map(|fact| format!("it disagrees with group {other} about {fact}")).into_iter().collect()
}

fn own_problems(id: u32, dictionary: &Dictionary, reachable: &BTreeMap<u32, Option<Endpoints>>) -> Vec<String> {
    let mut problems = Vec::new();
    if dictionary.local != [id.to_string()] {
        let claimed = if dictionary.local.is_empty() { "none".to_owned() } else { dictionary.local.join(", ") };
        problems.push(format!("it takes itself for group {claimed}"));
    }
    for (other, endpoints) in reachable.iter().filter(|(other, _)| **other != id) {
        let name = format!("shardman_rg_{other}");
        match dictionary.servers.get(&name) {
            None => problems.push(format!("server {name} is missing")),
            Some(options) => problems.extend(wrong_server(&name, options, endpoints.as_ref())),
        }
        let recorded = dictionary.groups.get(&other.to_string());
        if recorded.is_some_and(|server| server.as_deref() != Some(&name)) {
            problems.push(format!("the row of group {other} names another server"));
        }
    }
    problems.extend(dictionary.missing.iter().map(|part| format!("partition {part} does not exist")));
    problems
}

/// A group that can't be reached now can't be pointed to either.
fn wrong_server(name: &str, options: &BTreeMap<String, String>, wanted: Option<&Endpoints>) -> Option<String> {
    let wanted: BTreeSet<Endpoint> = wanted?.0.iter().cloned().collect();
    let option = |key: &str| options.get(key).map(String::as_str).unwrap_or_default();
    let (hosts, ports) = (option("host"), option("port"));
    let pair =
        |(host, port): (&str, &str)| Some(Endpoint { host: host.trim().to_owned(), port: port.trim().parse().ok()? });
    let equally_long = hosts.split(',').count() == ports.split(',').count();
    let pairs: Option<BTreeSet<Endpoint>> = hosts.split(',').zip(ports.split(',')).map(pair).collect();
    let right = equally_long && pairs == Some(wanted) && option("dbname") == model::clusterspec::DATABASE;
    (!right).then(|| format!("server {name} points elsewhere (host {hosts}, port {ports})"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Group `id` of two, with one table of two partitions, that are `holders`.
    pub(crate) fn sample(id: u32, holders: [u32; 2]) -> Dictionary {
        let mut dictionary = Dictionary::default();
        let other = 3 - id;
        let (own, other_id, server) = (id.to_string(), other.to_string(), format!("shardman_rg_{other}"));
        dictionary.add([Some("group"), Some(&own), None, Some("t")]);
        dictionary.add([Some("group"), Some(&other_id), Some(&server), Some("f")]);
        let host = format!("host=sdm0{other}");
        for option in ["dbname=postgres", &host, "port=5432", "fetch_size=100"] {
            dictionary.add([Some("server"), Some(&server), Some(option), None]);
        }
        dictionary.add([Some("table"), Some("public.t"), Some("with 2 partitions public.t"), None]);
        for (number, holder) in holders.iter().enumerate() {
            dictionary.add([Some("part"), Some("public.t"), Some(&number.to_string()), Some(&holder.to_string())]);
        }
        dictionary
    }

    pub(crate) fn reachable() -> BTreeMap<u32, Option<Endpoints>> {
        let at = |host: &str| Some(Endpoints(vec![Endpoint { host: host.into(), port: 5432 }]));
        [(1, at("sdm01")), (2, at("sdm02"))].into()
    }

    fn problems(first: &Dictionary, second: &Dictionary) -> [Vec<String>; 2] {
        let mut found = compare(&[(1, first), (2, second)].into(), &reachable());
        [found.remove(&1).unwrap(), found.remove(&2).unwrap()]
    }

    #[test]
    fn equal_dictionaries_are_well() {
        assert_eq!(problems(&sample(1, [1, 2]), &sample(2, [1, 2])), [Vec::<String>::new(), Vec::new()]);
    }

    #[test]
    fn without_a_majority_all_disagree() {
        let [first, second] = problems(&sample(1, [1, 2]), &sample(2, [1, 1]));
        assert_eq!(first, ["it disagrees with group 2 about partition 1 of public.t on group 1"]);
        assert_eq!(second, ["it disagrees with group 1 about partition 1 of public.t on group 1"]);
    }

    #[test]
    fn the_minority_is_wrong() {
        let (one, two) = (sample(1, [1, 2]), sample(2, [1, 2]));
        let mut three = one.clone();
        three.tables.clear();
        let found = compare(&[(1, &one), (2, &two), (3, &three)].into(), &BTreeMap::new());
        assert_eq!((found[&1].len(), found[&2].len()), (0, 0));
        assert!(found[&3].contains(&"it lacks table public.t with 2 partitions public.t".to_owned()), "{found:?}");
    }

    #[test]
    fn servers_partitions_and_the_own_number_are_checked() {
        let good = sample(2, [1, 2]);
        let mut bad = sample(1, [1, 2]);
        bad.servers.clear();
        assert_eq!(problems(&bad, &good)[0], ["server shardman_rg_2 is missing"]);
        let mut bad = sample(1, [1, 2]);
        bad.add([Some("server"), Some("shardman_rg_2"), Some("port=1"), None]);
        bad.add([Some("missing"), Some("public.t_0"), None, None]);
        bad.local.clear();
        assert_eq!(
            problems(&bad, &good)[0],
            [
                "it takes itself for group none",
                "server shardman_rg_2 points elsewhere (host sdm02, port 1)",
                "partition public.t_0 does not exist"
            ]
        );
    }

    /// The tables of the extension as far as they are read, with group 1 as the own one and a partition too few.
    const TABLES: &str = "CREATE EXTENSION postgres_fdw; CREATE SCHEMA shardman;
        CREATE TABLE shardman.repgroups (id int, srvid oid);
        CREATE TABLE shardman.sharded_tables (rel oid, nparts int, colocated_with oid, relname name, nspname name,
            partname name, partnsp name);
        CREATE TABLE shardman.parts (rel oid, pnum int, rgid int);
        CREATE SERVER shardman_rg_2 FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'sdm02', port '5432',
            dbname 'postgres', fetch_size '100');
        CREATE SERVER shardman_rg_3 FOREIGN DATA WRAPPER postgres_fdw;
        INSERT INTO shardman.repgroups SELECT 1, NULL UNION ALL SELECT 2, oid FROM pg_foreign_server WHERE srvname = 'shardman_rg_2';
        CREATE TABLE t (i int) PARTITION BY HASH (i);
        CREATE TABLE t_0 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        INSERT INTO shardman.sharded_tables VALUES ('t'::regclass, 2, NULL, 't', 'public', 't', 'public');
        INSERT INTO shardman.parts VALUES ('t'::regclass, 0, 1), ('t'::regclass, 1, 2)";

    #[tokio::test]
    async fn a_real_server_is_read() {
        let server = testkit::postgres::Postgres::start(&[]).unwrap();
        let client = server.connect().await.unwrap();
        client.batch_execute(TABLES).await.unwrap();
        let read = async || Dictionary::read(&client.simple_query(QUERY).await.unwrap());
        let mut expected = sample(1, [1, 2]);
        expected.add([Some("server"), Some("shardman_rg_3"), None, None]);
        expected.add([Some("missing"), Some("public.t_1_fdw"), None, None]);
        assert_eq!(read().await, expected);
        let foreign =
            "CREATE FOREIGN TABLE t_1_fdw PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 1) SERVER shardman_rg_2";
        client.batch_execute(foreign).await.unwrap();
        assert!(read().await.missing.is_empty());
    }
}
