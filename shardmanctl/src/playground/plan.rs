//! What a playground consists of. Pure: what is free or installed comes in as arguments.

use anyhow::{Context as _, bail};
use common::exit::UsageError;
use model::layout::SpecDoc;
use model::{ClusterName, NodeName};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// Largest playground: the last address of a block is then 127.0.b.74.
pub const MAX_NODES: usize = 64;
/// Last part of etcd's address; nodes follow from 11, as in the design.
const ETCD_HOST: u8 = 10;
/// etcd's usual ports.
const ETCD_CLIENT_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;

/// What the user asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Number of pretend nodes.
    pub nodes: usize,
    /// Replicas of each group.
    pub repfactor: u32,
    /// Name of the cluster.
    pub cluster: ClusterName,
}

/// A pretend node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PlannedNode {
    /// `node1` and so on.
    pub name: NodeName,
    /// Its own loopback address.
    pub address: Ipv4Addr,
}

/// A playground, completely decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Plan {
    /// Format of this file; 1.
    pub format_version: u32,
    /// Name of the cluster.
    pub cluster: ClusterName,
    /// Replicas of each group.
    pub repfactor: u32,
    /// etcd's address.
    pub etcd: Ipv4Addr,
    /// etcd's client port.
    pub etcd_port: u16,
    /// etcd's peer port.
    pub etcd_peer_port: u16,
    /// First port of PostgreSQL on each node.
    pub pg_port: u16,
    /// First port of proxies on each node.
    pub proxy_port: u16,
    /// The nodes.
    pub nodes: Vec<PlannedNode>,
    /// PostgreSQL's programs.
    pub pg_bin_path: PathBuf,
    /// Our programs.
    pub bin_dir: PathBuf,
    /// The operating system's user that everything runs as.
    pub os_user: String,
}

/// Format of the stored plan.
pub const FORMAT_VERSION: u32 = 1;

impl Plan {
    /// Decides addresses: the first block `127.0.b.0/24` in which every socket is free.
    ///
    /// # Errors
    /// The wish can't be met: odd number of nodes, or no block is free.
    pub fn make(wish: &Wish, is_free: impl Fn(Ipv4Addr, u16) -> bool) -> anyhow::Result<Plan> {
        let copies = wish.repfactor as usize + 1;
        if wish.nodes == 0 || wish.nodes > MAX_NODES {
            bail!(UsageError(format!("--nodes is {}; give 1 to {MAX_NODES}", wish.nodes)));
        }
        if !wish.nodes.is_multiple_of(copies) {
            bail!(UsageError(format!(
                "--nodes is {}, but must be a multiple of {copies} (--repfactor {} + 1)",
                wish.nodes, wish.repfactor
            )));
        }
        (0..=255)
            .map(|block| Plan::in_block(wish, block))
            .find(|plan| plan.sockets().all(|(address, port)| is_free(address, port)))
            .with_context(|| {
                format!(
                    "no block of loopback addresses has ports {}, {ETCD_CLIENT_PORT} and {} free; \
                     stop what listens on all addresses, or other playgrounds",
                    model::spec::DEFAULT_PROXY_PORT,
                    model::spec::DEFAULT_PG_PORT
                )
            })
    }

    fn in_block(wish: &Wish, block: u8) -> Plan {
        let address = |host: usize| Ipv4Addr::new(127, 0, block, u8::try_from(host).unwrap_or(u8::MAX));
        let node = |number: usize| PlannedNode {
            name: format!("node{number}").into(),
            address: address(usize::from(ETCD_HOST) + number),
        };
        Plan {
            format_version: FORMAT_VERSION,
            cluster: wish.cluster.clone(),
            repfactor: wish.repfactor,
            etcd: address(ETCD_HOST.into()),
            etcd_port: ETCD_CLIENT_PORT,
            etcd_peer_port: ETCD_PEER_PORT,
            pg_port: model::spec::DEFAULT_PG_PORT,
            proxy_port: model::spec::DEFAULT_PROXY_PORT,
            nodes: (1..=wish.nodes).map(node).collect(),
            pg_bin_path: PathBuf::new(),
            bin_dir: PathBuf::new(),
            os_user: String::new(),
        }
    }

    /// Every address and port that the playground will listen on.
    pub fn sockets(&self) -> impl Iterator<Item = (Ipv4Addr, u16)> {
        let copies = u16::try_from(self.repfactor).unwrap_or(u16::MAX).saturating_add(1);
        let ports = (0..copies).flat_map(|i| [self.pg_port + i, self.proxy_port + i]);
        let nodes = self.nodes.iter().flat_map(move |node| ports.clone().map(|port| (node.address, port)));
        [(self.etcd, self.etcd_port), (self.etcd, self.etcd_peer_port)].into_iter().chain(nodes)
    }

    /// etcd's client URL.
    pub fn endpoints(&self) -> String {
        format!("http://{}:{}", self.etcd, self.etcd_port)
    }

    /// A pretend node by name.
    ///
    /// # Errors
    /// There is none; the text names those that are.
    pub fn node(&self, name: &str) -> anyhow::Result<&PlannedNode> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| {
            let last = self.nodes.last().map_or_else(String::new, |node| node.name.to_string());
            format!("this playground has no node \"{name}\"; its nodes are node1 to {last}")
        })
    }

    /// Reads a stored plan.
    ///
    /// # Errors
    /// Not ours, damaged, or of another version.
    pub fn parse(text: &str, path: &Path) -> anyhow::Result<Plan> {
        let plan: Plan = serde_json::from_str(text)
            .with_context(|| format!("{} is not a playground's description; remove the directory", path.display()))?;
        if plan.format_version != FORMAT_VERSION {
            bail!("{} was written by another version (format {})", path.display(), plan.format_version);
        }
        Ok(plan)
    }
}

/// The specification of a playground's cluster, as `init` reads it. Small caches: eight instances share one machine.
pub fn specification(plan: &Plan, data_dir: &Path, passwords: &[String; 2]) -> serde_json::Value {
    let user = &plan.os_user;
    serde_json::json!({
        "LadleSpec": {
            "Repfactor": plan.repfactor,
            "DataDir": data_dir,
            "PgBinPath": plan.pg_bin_path,
            "StolonBinPath": plan.bin_dir,
            "PGsInitialPort": plan.pg_port,
            "ProxiesInitialPort": plan.proxy_port,
            "StoreConnInfo": { "Endpoints": plan.endpoints() },
        },
        "ClusterSpec": {
            "PgSuUsername": user,
            "PgSuAuthMethod": "scram-sha-256",
            "PgSuPassword": passwords[0],
            "PgReplAuthMethod": "scram-sha-256",
            "PgReplPassword": passwords[1],
            "UseProxy": true,
            "StolonSpec": {
                "synchronousReplication": true,
                "pgHBA": [format!("host all all 127.0.0.0/8 scram-sha-256")],
                "pgParameters": { "shared_buffers": "64MB", "max_connections": "100" },
            },
        },
    })
}

/// True if the stored specification still names the directories of the plan.
pub fn belongs(spec: &SpecDoc, data_dir: &Path) -> bool {
    Path::new(&spec.ladle_spec.data_dir) == data_dir
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(nodes: usize, repfactor: u32) -> Wish {
        Wish { nodes, repfactor, cluster: "cluster0".into() }
    }

    #[test]
    fn the_first_free_block_is_taken() {
        let plan = Plan::make(&wish(4, 1), |_, _| true).unwrap();
        assert_eq!(plan.endpoints(), "http://127.0.0.10:2379");
        assert_eq!(plan.nodes[0].address, Ipv4Addr::new(127, 0, 0, 11));
        assert_eq!(plan.sockets().count(), 2 + 4 * 4);
        let busy = Ipv4Addr::new(127, 0, 0, 13);
        let plan = Plan::make(&wish(4, 1), |address, port| address != busy || port != 5433).unwrap();
        assert_eq!(plan.nodes[3].address, Ipv4Addr::new(127, 0, 1, 14));
        assert!(Plan::make(&wish(4, 1), |_, port| port != 5432).is_err());
    }

    #[test]
    fn impossible_wishes_are_usage_errors() {
        for (nodes, repfactor) in [(0, 1), (3, 1), (65, 0), (4, 2)] {
            let error = Plan::make(&wish(nodes, repfactor), |_, _| true).unwrap_err();
            assert!(error.is::<UsageError>(), "{error}");
        }
        let plan = Plan::make(&wish(2, 1), |_, _| true).unwrap();
        assert!(plan.node("node3").unwrap_err().to_string().contains("node1 to node2"));
    }

    #[test]
    fn a_stored_plan_is_checked() {
        let plan = Plan::make(&wish(2, 1), |_, _| true).unwrap();
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(Plan::parse(&text, Path::new("p")).unwrap(), plan);
        assert!(Plan::parse(&text.replace("\"FormatVersion\":1", "\"FormatVersion\":2"), Path::new("p")).is_err());
        for broken in ["", "{}", "[]", &text[..40]] {
            assert!(Plan::parse(broken, Path::new("p")).is_err());
        }
    }

    #[test]
    fn the_specification_passes_its_own_rules() {
        let mut plan = Plan::make(&wish(4, 1), |_, _| true).unwrap();
        plan.os_user = "someone".into();
        let value = specification(&plan, Path::new("/d"), &["a".into(), "b".into()]);
        let checked = model::spec::InitSpec::parse(&value.to_string(), &model::spec::InitDefaults::default()).unwrap();
        assert_eq!(checked.warnings, Vec::<String>::new());
    }
}
