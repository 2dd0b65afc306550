//! `config generate`: a sample specification.

use model::clusterspec::{DEFAULT_PG_PARAMETERS, DEFAULT_REPL_USER, SAMPLE_PASSWORD};
use model::spec::{DEFAULT_DATA_DIR, LadleSpec};
use serde_json::{Value, json};

/// A complete specification with every default of ours written out, to be edited: passwords first of all.
/// It connects clients to PostgreSQL itself, without proxies, on PostgreSQL's usual port.
pub fn sample() -> Value {
    let defaults = LadleSpec::default();
    let parameters: Value =
        DEFAULT_PG_PARAMETERS.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    json!({
        "LadleSpec": {
            "Repfactor": defaults.repfactor,
            "PlacementPolicy": "cross",
            "DataDir": DEFAULT_DATA_DIR,
            "StolonBinPath": "",
            "PgBinPath": "",
            "PGsInitialPort": 5432,
            "ProxiesInitialPort": 5442,
            "MonitorsNum": defaults.monitors_num,
        },
        "ClusterSpec": {
            "PgSuUsername": "postgres",
            "PgSuAuthMethod": "scram-sha-256",
            "PgSuPassword": SAMPLE_PASSWORD,
            "PgReplUsername": DEFAULT_REPL_USER,
            "PgReplAuthMethod": "scram-sha-256",
            "PgReplPassword": SAMPLE_PASSWORD,
            "UseProxy": false,
            "StolonSpec": {
                "synchronousReplication": true,
                "pgParameters": parameters,
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::spec::{InitDefaults, InitSpec, StoreConnInfo};

    #[test]
    fn the_sample_is_a_valid_specification() {
        let store = StoreConnInfo { endpoints: "http://127.0.0.1:2379".into(), ..Default::default() };
        let checked = InitSpec::parse(&sample().to_string(), &InitDefaults { store, ..Default::default() }).unwrap();
        assert!(checked.warnings.iter().all(|line| line.contains(SAMPLE_PASSWORD)), "{:?}", checked.warnings);
        assert_eq!(checked.warnings.len(), 2, "both passwords are warned of");
        assert_eq!(checked.spec.ladle_spec.pgs_initial_port, 5432);
    }
}
