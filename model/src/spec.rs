//! What an operator asks for: [`LadleSpec`] (machines) and [`ClusterSpec`](crate::clusterspec::ClusterSpec)
//! (replication groups), in one JSON object with these two members.

use crate::SpecError;
use crate::clusterspec::{CLUSTER_MEMBERS, ClusterSpec};
use crate::strict::{Known, read};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where a store is and how to open it. Empty texts count as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct StoreConnInfo {
    /// Comma-separated URLs.
    pub endpoints: String,
    /// CA bundle for https.
    #[serde(rename = "CAFile")]
    pub ca_file: String,
    /// Client certificate.
    pub cert_file: String,
    /// Private key of the client certificate.
    pub key: String,
    /// etcd's user.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// File with the user's password, on each node.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub password_file: String,
}

/// How groups are laid over machines. `CROSS` is the later name of the same policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlacementPolicy {
    /// Sets of `Repfactor + 1` nodes hold each other's replicas.
    #[default]
    #[serde(alias = "cross", alias = "CROSS", alias = "Clover", alias = "Cross")]
    Clover,
}

/// The machines' side of the specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct LadleSpec {
    /// How daemons on the nodes reach etcd; taken from the command's own options when absent.
    pub store_conn_info: StoreConnInfo,
    /// Number of replicas of each group; copies = `Repfactor + 1`.
    pub repfactor: u32,
    /// How groups are laid over machines.
    pub placement_policy: PlacementPolicy,
    /// Directory for keepers' data and units' environment files, absolute.
    pub data_dir: String,
    /// Directory of the stolon programs; empty = those beside bowl.
    pub stolon_bin_path: String,
    /// Directory of PostgreSQL's programs; empty = `PATH`.
    pub pg_bin_path: String,
    /// First port of PostgreSQL on each node.
    #[serde(rename = "PGsInitialPort")]
    pub pgs_initial_port: u16,
    /// First port of proxies on each node.
    pub proxies_initial_port: u16,
    /// How many nodes run a monitor.
    pub monitors_num: u32,
}

/// The default data directory, under which each cluster has its own.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/shardman";
/// Default of `PGsInitialPort`: the original's.
pub const DEFAULT_PG_PORT: u16 = 5442;
/// Default of `ProxiesInitialPort`: PostgreSQL's own, since clients connect to proxies.
pub const DEFAULT_PROXY_PORT: u16 = 5432;
/// Largest `Repfactor`: more replicas than this are certainly a slip.
pub const MAX_REPFACTOR: u32 = 31;

impl Default for LadleSpec {
    fn default() -> Self {
        LadleSpec {
            store_conn_info: StoreConnInfo::default(),
            repfactor: 1,
            placement_policy: PlacementPolicy::Clover,
            data_dir: String::new(),
            stolon_bin_path: String::new(),
            pg_bin_path: String::new(),
            pgs_initial_port: DEFAULT_PG_PORT,
            proxies_initial_port: DEFAULT_PROXY_PORT,
            monitors_num: 2,
        }
    }
}

impl LadleSpec {
    /// Number of keepers of each group and of nodes of each clover.
    pub fn copies(&self) -> usize {
        self.repfactor as usize + 1
    }
}

const STORE_MEMBERS: Known = Known(&[
    ("Endpoints", None),
    ("CAFile", None),
    ("CertFile", None),
    ("Key", None),
    ("User", None),
    ("PasswordFile", None),
]);
const LADLE_MEMBERS: Known = Known(&[
    ("StoreConnInfo", Some(&STORE_MEMBERS)),
    ("Repfactor", None),
    ("PlacementPolicy", None),
    ("DataDir", None),
    ("StolonBinPath", None),
    ("PgBinPath", None),
    ("PGsInitialPort", None),
    ("ProxiesInitialPort", None),
    ("MonitorsNum", None),
]);
const INIT_MEMBERS: Known = Known(&[("LadleSpec", Some(&LADLE_MEMBERS)), ("ClusterSpec", Some(&CLUSTER_MEMBERS))]);

/// The file that `ladle init` reads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct InitSpec {
    /// Machines.
    pub ladle_spec: LadleSpec,
    /// Replication groups.
    pub cluster_spec: ClusterSpec,
}

/// What the command knows that the file may leave out.
#[derive(Clone, Debug, Default)]
pub struct InitDefaults {
    /// The command's own store options.
    pub store: StoreConnInfo,
    /// The OS user, who becomes the superuser by default.
    pub os_user: String,
    /// Used for a missing `DataDir`.
    pub data_dir: String,
}

/// A specification that is complete and obeys every rule.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckedSpec {
    /// With every default written out.
    pub spec: InitSpec,
    /// What the operator should know, one line each.
    pub warnings: Vec<String>,
}

impl InitSpec {
    /// Reads the text of a specification file, fills defaults and checks every rule.
    ///
    /// # Errors
    /// The first mistake, with the path of the member and what to write instead.
    pub fn parse(text: &str, defaults: &InitDefaults) -> Result<CheckedSpec, SpecError> {
        let mut value: Value =
            serde_json::from_str(text).map_err(|e| SpecError::new(format!("the specification is not JSON: {e}")))?;
        drop_nulls(&mut value);
        let mut spec: InitSpec = read(&value, "", &INIT_MEMBERS)?;
        let mut warnings = Vec::new();
        spec.ladle_spec.complete(defaults, &mut warnings);
        spec.ladle_spec.check(spec.cluster_spec.use_proxy)?;
        let stolon = value.pointer("/ClusterSpec/StolonSpec").cloned();
        spec.cluster_spec.complete(stolon, spec.ladle_spec.repfactor, &defaults.os_user, &mut warnings)?;
        Ok(CheckedSpec { spec, warnings })
    }
}

impl LadleSpec {
    fn complete(&mut self, defaults: &InitDefaults, warnings: &mut Vec<String>) {
        if self.store_conn_info.endpoints.is_empty() {
            self.store_conn_info = defaults.store.clone();
        }
        if self.data_dir.is_empty() {
            self.data_dir.clone_from(&defaults.data_dir);
            if !self.data_dir.is_empty() {
                warnings.push(format!("DataDir is not specified, setting to default {}", self.data_dir));
            }
        }
        // Zero counts as absent, as it always did.
        if self.pgs_initial_port == 0 {
            self.pgs_initial_port = DEFAULT_PG_PORT;
        }
        if self.proxies_initial_port == 0 {
            self.proxies_initial_port = DEFAULT_PROXY_PORT;
        }
    }

    fn check(&self, use_proxy: bool) -> Result<(), SpecError> {
        let fail = |text: String| Err(SpecError::new(text));
        if self.store_conn_info.endpoints.is_empty() {
            return fail("LadleSpec.StoreConnInfo.Endpoints is empty; name etcd's URLs".into());
        }
        if self.data_dir.is_empty() {
            return fail("LadleSpec.DataDir is missing; write it, or give --default-data-dir".into());
        }
        if !self.data_dir.starts_with('/') {
            return fail(format!("LadleSpec.DataDir must be an absolute path, it is \"{}\"", self.data_dir));
        }
        if self.repfactor > MAX_REPFACTOR {
            return fail(format!("LadleSpec.Repfactor is {}; at most {MAX_REPFACTOR} are allowed", self.repfactor));
        }
        let span = u32::from(u16::MAX) + 1;
        let copies = self.repfactor + 1;
        let (pgs, proxies) = (u32::from(self.pgs_initial_port), u32::from(self.proxies_initial_port));
        for (name, first) in [("PGsInitialPort", pgs), ("ProxiesInitialPort", proxies)] {
            if first + copies > span {
                return fail(format!("LadleSpec.{name}: {first} and the {copies} ports from it on pass 65535"));
            }
        }
        if use_proxy && pgs < proxies + copies && proxies < pgs + copies {
            return fail(format!(
                "LadleSpec.PGsInitialPort ({pgs}) and ProxiesInitialPort ({proxies}) overlap: each needs {copies} ports from there on"
            ));
        }
        Ok(())
    }
}

/// `null` equals absent in the two specifications; inside StolonSpec stolon's own rules hold.
fn drop_nulls(value: &mut Value) {
    if let Value::Object(object) = value {
        object.retain(|_, value| !value.is_null());
        for (name, value) in object.iter_mut() {
            if name != "StolonSpec" {
                drop_nulls(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn defaults() -> InitDefaults {
        InitDefaults {
            store: StoreConnInfo { endpoints: "http://127.0.0.1:2379".into(), ..Default::default() },
            os_user: "ubuntu".into(),
            data_dir: String::new(),
        }
    }

    fn parse(text: &str) -> Result<CheckedSpec, SpecError> {
        InitSpec::parse(text, &defaults())
    }

    #[test]
    fn the_example_is_completed() {
        let text = r#"{"LadleSpec": {"DataDir": "/var/lib/shardman", "Repfactor": 2, "MonitorsNum": 3},
            "ClusterSpec": {"PgSuUsername": "postgres", "PgSuAuthMethod": "scram-sha-256", "PgSuPassword": "x",
              "PgReplAuthMethod": "scram-sha-256", "PgReplPassword": "y", "UseProxy": true,
              "StolonSpec": {"synchronousReplication": true, "maxSynchronousStandbys": 2, "novelty": 7,
                             "pgParameters": {"shared_buffers": "512MB", "log_statement": "all"}}}}"#;
        let CheckedSpec { spec, warnings } = parse(text).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(spec.ladle_spec.copies(), 3);
        assert_eq!((spec.ladle_spec.pgs_initial_port, spec.ladle_spec.proxies_initial_port), (5442, 5432));
        assert_eq!(spec.ladle_spec.store_conn_info, defaults().store);
        let stolon = &spec.cluster_spec.stolon_spec;
        assert_eq!(stolon.pg_parameters["log_statement"], "all");
        assert_eq!(stolon.pg_parameters["shared_buffers"], "512MB");
        assert_eq!(stolon.pg_parameters["wal_level"], "logical");
        assert_eq!(stolon.extra["novelty"], 7);
        stolon.effective().unwrap();
        // What is stored is read again without change.
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(parse(&text).unwrap().spec, spec);
    }

    #[test]
    fn mistakes_are_named() {
        let ladle = |inner: &str| {
            format!(r#"{{"LadleSpec": {{"DataDir": "/d", {inner}}}, "ClusterSpec": {{"UseProxy": true}}}}"#)
        };
        for (text, part) in [
            ("{}".to_owned(), "LadleSpec.DataDir is missing; write it, or give --default-data-dir"),
            (
                r#"{"LadleSpec": {"DataDir": "/d"}}"#.to_owned(),
                r#"PgSuPassword is missing and PgSuAuthMethod scram-sha-256 needs one; write it, or ask for "PgSuAuthMethod": "trust" by name"#,
            ),
            ("[]".to_owned(), "must be an object"),
            ("{".to_owned(), "not JSON"),
            (r#"{"LadleSpecs": {}}"#.to_owned(), "did you mean LadleSpec?"),
            (ladle(r#""RepFactor": 1"#), "unknown member LadleSpec.RepFactor; did you mean Repfactor?"),
            (ladle(r#""Repfactor": "1""#), "LadleSpec.Repfactor: invalid type"),
            (ladle(r#""Repfactor": -1"#), "invalid value"),
            (ladle(r#""Repfactor": 32"#), "at most 31"),
            (ladle(r#""StoreConnInfo": {"Endpoint": ""}"#), "did you mean Endpoints?"),
            (ladle(r#""StoreConnInfo": 7"#), "LadleSpec.StoreConnInfo must be an object, it is a number"),
            (ladle(r#""PlacementPolicy": "sausage""#), "sausage"),
            (ladle(r#""PGsInitialPort": 5433"#), "overlap"),
            (ladle(r#""PGsInitialPort": 70000"#), "70000"),
            (ladle(r#""PGsInitialPort": 65535"#), "pass 65535"),
            (ladle(r#""DataDir": "rel""#), "absolute"),
            (
                r#"{"LadleSpec": {"DataDir": "/d"}, "ClusterSpec": {"Useproxy": true}}"#.to_owned(),
                "did you mean UseProxy?",
            ),
            (r#"{"LadleSpec": {"DataDir": "/d"}, "ClusterSpec": {"PgSuAuthMethod": "md6"}}"#.to_owned(), "md6"),
            (
                r#"{"LadleSpec": {"DataDir": "/d"}, "ClusterSpec": {"PgSuAuthMethod": "md5"}}"#.to_owned(),
                "PgSuPassword",
            ),
            (
                r#"{"LadleSpec": {"DataDir": "/d"}, "ClusterSpec": {"PgSuAuthMethod": "trust"}}"#.to_owned(),
                "PgReplPassword",
            ),
            (
                r#"{"LadleSpec": {"DataDir": "/d"}, "ClusterSpec": {"PgSuAuthMethod": "trust",
                    "PgReplAuthMethod": "trust", "StolonSpec": {"maxStandbys": 0}}}"#
                    .to_owned(),
                "maxStandbys",
            ),
            (
                r#"{"LadleSpec": {"DataDir": "/d"}, "ClusterSpec": {"StolonSpec": {"maxStandbys": "x"}}}"#.to_owned(),
                "StolonSpec",
            ),
            (r#"{"LadleSpec": {"DataDir": "/d"}, "ClusterSpec": {"StolonSpec": []}}"#.to_owned(), "StolonSpec"),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}\n  gave: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn null_is_absent_and_cross_is_clover() {
        let text = r#"{"LadleSpec": {"DataDir": "/d", "Repfactor": null, "PlacementPolicy": "cross"},
            "ClusterSpec": {"PgSuUsername": null, "PgSuAuthMethod": "trust", "PgReplPassword": "x"}}"#;
        let spec = parse(text).unwrap().spec;
        assert_eq!(spec.ladle_spec.repfactor, 1);
        assert_eq!(spec.cluster_spec.pg_su_username, "ubuntu");
        assert_eq!(spec.cluster_spec.pg_repl_auth_method, crate::clusterspec::AuthMethod::ScramSha256);
        let root = InitDefaults { os_user: "root".into(), ..defaults() };
        assert_eq!(InitSpec::parse(text, &root).unwrap().spec.cluster_spec.pg_su_username, "postgres");
    }

    #[test]
    fn doubtful_settings_are_warned_of() {
        let warnings = parse(
            r#"{"LadleSpec": {"DataDir": "/d"}, "ClusterSpec": {"PgSuAuthMethod": "trust",
            "PgReplPassword": "!!!CHANGE_ME!!!", "StolonSpec": {"synchronousReplication": false,
            "pgParameters": {"shardman.rgid": "7"}}}}"#,
        )
        .unwrap()
        .warnings;
        for part in ["trust", "CHANGE_ME", "synchronousReplication", "shardman.rgid"] {
            assert!(warnings.iter().any(|line| line.contains(part)), "{part}: {warnings:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = parse(&text);
        }
    }
}
