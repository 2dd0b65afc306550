//! `config generate`: a sample specification.

use anyhow::{Context as _, bail};
use model::clusterspec::{DEFAULT_PG_PARAMETERS, DEFAULT_REPL_USER, SAMPLE_PASSWORD};
use model::spec::{DEFAULT_DATA_DIR, LadleSpec};
use serde_json::{Value, json};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

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

/// Writes the sample to a new file that only its owner may read: passwords are to be put into it. An existing
/// file may hold somebody's edits.
///
/// # Errors
/// The file exists, or can't be written.
pub fn write(path: &Path) -> anyhow::Result<()> {
    let file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path);
    match file {
        Ok(mut file) => writeln!(file, "{:#}", sample()).with_context(|| format!("write {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{} exists already; remove it or name another file", path.display())
        }
        Err(error) => Err(error).with_context(|| format!("make the file {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_not_overwritten_and_not_shown_to_others() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spec.json");
        write(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "edited").unwrap();
        assert!(write(&path).unwrap_err().to_string().contains("exists already"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "edited");
    }
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
