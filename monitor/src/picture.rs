//! The picture of the cluster that all duties work from: which groups there are and where their masters are. Pure.

use model::clusterspec::ClusterSpec;
use model::layout::{DocError, Document as _, RepGroupDoc, RepGroupState, SpecDoc};
use model::stolon::{ClusterData, DataError};
use model::{RepGroupId, RepGroupName};
use pg::{Endpoint, Endpoints, Login};
use std::collections::BTreeMap;
use store::Entry;

/// Name of the monitor's sessions in `pg_stat_activity`.
pub const APPLICATION: &str = "shardman-monitor";

/// All that is known of a cluster at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Picture {
    /// The superuser of all groups; none while there is no readable specification, and then there are no groups.
    pub login: Option<Login>,
    /// Active groups that have a master.
    pub groups: BTreeMap<RepGroupId, Group>,
}

/// A group that has a master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Name of its stolon cluster.
    pub name: RepGroupName,
    /// PostgreSQL's system identifier.
    pub sys_id: i64,
    /// Where its master is.
    pub master: Endpoint,
    /// How others reach it; none when it is reached by proxies and none of them lives.
    pub entry: Option<Endpoints>,
}

/// What a group's stolon cluster data says about reaching it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    master: Endpoint,
    proxies: Option<Endpoints>,
}

/// Reads a group's stolon cluster data; `None` when it has no master now.
///
/// # Errors
/// The document is unusable.
pub fn sight(clusterdata: &[u8]) -> Result<Option<Sighting>, DataError> {
    let data = ClusterData::parse(clusterdata)?;
    let master = pg::endpoints::master(&data).ok();
    Ok(master.map(|master| Sighting { master, proxies: pg::endpoints::entry_points(&data, true).ok() }))
}

/// The registered groups out of the documents under `repgroups/`; those that can't be read are told apart, so that
/// one broken document hides no other group.
pub fn registered<'a>(
    prefix: &str,
    entries: impl Iterator<Item = &'a Entry>,
) -> (BTreeMap<RepGroupId, RepGroupDoc>, Vec<DocError>) {
    let mut groups = BTreeMap::new();
    let mut broken = Vec::new();
    for entry in entries {
        let Some(Ok(id)) = entry.key.strip_prefix(prefix).map(str::parse) else { continue };
        match RepGroupDoc::parse(&format!("replication group {id}"), &entry.value) {
            Ok(doc) => {
                groups.insert(RepGroupId(id), doc);
            }
            Err(error) => broken.push(error),
        }
    }
    (groups, broken)
}

/// Reads the specification that holds for all groups.
///
/// # Errors
/// The document is unusable.
pub fn specification(bytes: &[u8]) -> Result<ClusterSpec, DocError> {
    Ok(SpecDoc::parse("the specification", bytes)?.cluster_spec)
}

/// Puts the picture together. Groups that are being added or have no master are left out.
pub fn picture(
    spec: Option<&ClusterSpec>,
    groups: &BTreeMap<RepGroupId, RepGroupDoc>,
    sightings: &BTreeMap<RepGroupId, Sighting>,
) -> Picture {
    let Some(spec) = spec else { return Picture::default() };
    let active = groups.iter().filter(|(_, doc)| doc.state == RepGroupState::Active);
    let groups = active.filter_map(|(id, doc)| {
        let Sighting { master, proxies } = sightings.get(id)?.clone();
        let entry = if spec.use_proxy { proxies } else { Some(Endpoints(vec![master.clone()])) };
        Some((*id, Group { name: doc.stolon_name.clone(), sys_id: doc.sys_id, master, entry }))
    });
    Picture { login: Some(Login::superuser(spec, APPLICATION)), groups: groups.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn clusterdata(master: &str) -> Vec<u8> {
        json!({"formatVersion": 1, "cluster": {"spec": {"initMode": "new"}}, "keepers": {"keeper_0": {"uid": "keeper_0"}},
            "dbs": {"d": {"uid": "d", "spec": {"keeperUID": "keeper_0", "role": "master"},
                          "status": {"listenAddress": "n1", "port": "5442"}}},
            "proxy": {"spec": {"masterDbUid": master}, "status": {
                "a": {"listenAddress": "n2", "port": "5433"}, "b": {"listenAddress": "n1", "port": "5432"}}}})
        .to_string()
        .into_bytes()
    }

    fn repgroup(id: u32, state: &str) -> Entry {
        let doc = json!({"FormatVersion": 1, "StolonName": format!("clover-{id}-n1"), "StorePrefix": "stolon/cluster",
            "SysId": i64::from(id) * 1000, "State": state});
        Entry {
            key: format!("r/{id}"),
            value: doc.to_string().into_bytes(),
            create_revision: 1,
            mod_revision: 1,
            lease: None,
        }
    }

    #[test]
    fn a_sighting_needs_a_master() {
        let sighting = sight(&clusterdata("d")).unwrap().unwrap();
        assert_eq!(sighting.master, Endpoint { host: "n1".into(), port: 5442 });
        assert_eq!(sighting.proxies.unwrap().hosts(), "n1,n2");
        assert_eq!(sight(&clusterdata("")).unwrap(), None);
        assert_eq!(sight(&clusterdata("gone")).unwrap(), None);
        for broken in ["", "[]", r#"{"formatVersion":2}"#] {
            assert!(sight(broken.as_bytes()).is_err(), "{broken}");
        }
    }

    #[test]
    fn broken_documents_hide_no_other_group() {
        let mut bad = repgroup(2, "active");
        bad.value = b"{".to_vec();
        let mut stray = repgroup(9, "active");
        stray.key = "r/x".into();
        let entries = [repgroup(1, "active"), bad, stray, repgroup(3, "adding")];
        let (groups, broken) = registered("r/", entries.iter());
        assert_eq!(groups.keys().map(|id| id.0).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(broken.len(), 1);
        assert!(specification(b"{}").is_err());
    }

    #[test]
    fn only_active_groups_with_a_master_are_in_the_picture() {
        let entries = [repgroup(1, "active"), repgroup(2, "active"), repgroup(3, "adding"), repgroup(4, "committing")];
        let (groups, _) = registered("r/", entries.iter());
        let sighting = sight(&clusterdata("d")).unwrap().unwrap();
        let sightings = [1, 3, 4].map(|id| (RepGroupId(id), sighting.clone())).into();
        let mut spec = ClusterSpec { pg_su_username: "su".into(), ..Default::default() };
        let direct = picture(Some(&spec), &groups, &sightings);
        assert_eq!(direct.groups.keys().map(|id| id.0).collect::<Vec<_>>(), [1]);
        let group = &direct.groups[&RepGroupId(1)];
        assert_eq!((group.sys_id, group.entry.as_ref().unwrap().ports().as_str()), (1000, "5442"));
        assert_eq!(direct.login.unwrap().user, "su");
        spec.use_proxy = true;
        let proxied = picture(Some(&spec), &groups, &sightings);
        assert_eq!(proxied.groups[&RepGroupId(1)].entry.as_ref().unwrap().ports(), "5432,5433");
        let without = [(RepGroupId(1), Sighting { proxies: None, ..sighting })].into();
        assert_eq!(picture(Some(&spec), &groups, &without).groups[&RepGroupId(1)].entry, None);
        assert_eq!(picture(None, &groups, &sightings), Picture::default());
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = sight(&bytes);
            let _ = specification(&bytes);
        }
    }
}
