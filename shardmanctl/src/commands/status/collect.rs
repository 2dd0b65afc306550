//! Asks the store and every group's master. Everything at once and with deadlines: a dead node costs seconds, and its
//! silence is part of the answer.

use super::dictionary::{self, Dictionary};
use super::documents::Documents;
use crate::topology::{APPLICATION, AT_ONCE, clusterdata};
use common::exit::one_line;
use futures::StreamExt as _;
use model::RepGroupId;
use model::keys::ClusterKeys;
use model::layout::{RepGroupDoc, RepGroupState};
use model::stolon::ClusterData;
use pg::{Endpoint, Endpoints, Login};
use std::collections::BTreeMap;
use std::time::Duration;
use store::{Member, SharedStore};

/// Limit of each step.
const LIMIT: Duration = Duration::from_secs(5);
/// The members of the store are tried one after the other, each with a limit of its own.
const MEMBERS_LIMIT: Duration = Duration::from_secs(20);

/// Whatever could be learned; an error is one line.
#[derive(Debug)]
pub(super) struct Observed {
    pub(super) members: Result<Vec<Member>, String>,
    pub(super) documents: Result<Documents, String>,
    pub(super) groups: BTreeMap<RepGroupId, Seen>,
}

/// What was seen of a group.
#[derive(Debug)]
pub(super) struct Seen {
    /// Its stolon cluster data; none when there is none.
    pub(super) data: Result<Option<ClusterData>, String>,
    /// Its master's answer; none when there was nobody to ask.
    pub(super) answer: Option<Result<Answer, String>>,
}

/// What a master answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) in_recovery: bool,
    pub(super) dictionary: Result<Dictionary, String>,
}

/// Collects everything. Never fails and never hangs.
pub(super) async fn collect(store: &SharedStore, keys: &ClusterKeys) -> Observed {
    let prefix = keys.prefix();
    let (members, listing) = tokio::join!(limited(MEMBERS_LIMIT, store.members()), limited(LIMIT, store.list(&prefix)));
    let documents = listing.map(|listing| Documents::parse(keys, &listing.entries));
    let groups = match &documents {
        Ok(documents) => ask_groups(store, documents).await,
        Err(_) => BTreeMap::new(),
    };
    Observed { members, documents, groups }
}

async fn ask_groups(store: &SharedStore, documents: &Documents) -> BTreeMap<RepGroupId, Seen> {
    let login = documents.spec.as_ref().map(|spec| Login::superuser(&spec.cluster_spec, APPLICATION));
    let asked = documents.repgroups.iter().map(|(id, doc)| {
        let login = login.as_ref();
        async move { (*id, ask_group(store, doc, login).await) }
    });
    futures::stream::iter(asked).buffer_unordered(AT_ONCE).collect().await
}

async fn ask_group(store: &SharedStore, doc: &RepGroupDoc, login: Option<&Login>) -> Seen {
    let data = limited(LIMIT, clusterdata(store, doc)).await.and_then(|bytes| {
        bytes.map(|bytes| ClusterData::parse(&bytes).map_err(|error| one_line(&error.into()))).transpose()
    });
    let master = data.as_ref().ok().and_then(Option::as_ref).and_then(|data| pg::endpoints::master(data).ok());
    let answer = match (master, login) {
        (Some(master), Some(login)) if doc.state == RepGroupState::Active => {
            Some(limited(LIMIT, ask_master(&master, login)).await)
        }
        _ => None,
    };
    Seen { data, answer }
}

async fn ask_master(master: &Endpoint, login: &Login) -> anyhow::Result<Answer> {
    let session = pg::connect(&Endpoints(vec![master.clone()]), login, LIMIT).await?;
    let state = "SELECT pg_catalog.pg_is_in_recovery(), \
                 EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'shardman')";
    let row = session.query_one(state, &[]).await?;
    let dictionary = if row.try_get(1)? {
        let answer = session.simple_query(dictionary::QUERY).await;
        answer.map(|answer| Dictionary::read(&answer)).map_err(|error| one_line(&error.into()))
    } else {
        Err("the extension shardman is missing".to_owned())
    };
    Ok(Answer { in_recovery: row.try_get(0)?, dictionary })
}

async fn limited<T, E: Into<anyhow::Error>>(
    limit: Duration,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(|error| one_line(&error.into())),
        Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::tests::{cluster_data, repgroup, spec};
    use std::sync::Arc;
    use std::time::Instant;
    use store::MemoryStore;

    #[tokio::test]
    async fn silent_nodes_cost_one_limit_only() {
        // They take connections and never answer.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = silent.local_addr().unwrap().port();
        let server = testkit::postgres::Postgres::start(&[]).unwrap();
        let store: SharedStore = Arc::new(MemoryStore::new());
        let keys = ClusterKeys::new(&"c".into());
        store.put(&keys.spec(), &spec(false), None).await.unwrap();
        for (id, port) in [(1, port), (2, port), (3, server.port()), (4, port)] {
            store.put(&keys.repgroup(RepGroupId(id)), &repgroup(&format!("g{id}"), "active"), None).await.unwrap();
            let data = cluster_data("d", "127.0.0.1", port, &[]);
            store.put(&format!("stolon/cluster/g{id}/clusterdata"), &data, None).await.unwrap();
        }
        let start = Instant::now();
        let observed = collect(&store, &keys).await;
        assert!(start.elapsed() < LIMIT + Duration::from_secs(2), "{:?}", start.elapsed());
        let silent = observed.groups[&RepGroupId(1)].answer.as_ref().unwrap().as_ref().unwrap_err();
        assert!(silent.contains("within 5 s"), "{silent}");
        let answer = observed.groups[&RepGroupId(3)].answer.as_ref().unwrap().as_ref().unwrap();
        assert_eq!(answer.dictionary, Err("the extension shardman is missing".to_owned()));
        assert!(!answer.in_recovery);

        let memory = MemoryStore::new();
        memory.set_down(true);
        let observed = collect(&(Arc::new(memory) as SharedStore), &keys).await;
        assert!(observed.members.is_err() && observed.documents.is_err());
    }
}
