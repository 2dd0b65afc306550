//! What is remembered of a daemon in `<data dir>/run/<unit>.json`, so that a bowl that was restarted takes over what
//! runs, and starts what is to run even when the store is out of reach.

use super::Service;
use super::proc::ProcessId;
use crate::units::{Kind, UnitName};
use model::ClusterName;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const FORMAT_VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Record {
    format_version: u32,
    /// Whose daemon it is.
    pub(super) cluster: ClusterName,
    pub(super) unit: UnitName,
    pub(super) kind: Kind,
    pub(super) program: PathBuf,
    /// Name in the data directory.
    pub(super) env_file: String,
    /// It is to run.
    pub(super) enabled: bool,
    /// The configuration that it was last started with.
    #[serde(default)]
    pub(super) config: String,
    /// The process that was last started.
    #[serde(default)]
    pub(super) process: Option<ProcessId>,
}

impl Record {
    pub(super) fn new(cluster: &ClusterName, service: &Service) -> Self {
        let Service { unit, kind, program, env_file } = service.clone();
        Record {
            format_version: FORMAT_VERSION,
            cluster: cluster.clone(),
            unit,
            kind,
            program,
            env_file,
            enabled: true,
            config: String::new(),
            process: None,
        }
    }

    /// Takes over what a start or restart asks for.
    pub(super) fn enable(&mut self, service: &Service) {
        let Service { unit: _, kind: _, program, env_file } = service.clone();
        self.program = program;
        self.env_file = env_file;
        self.enabled = true;
    }

    pub(super) fn path(data_dir: &Path, unit: &UnitName) -> PathBuf {
        data_dir.join("run").join(format!("{unit}.json"))
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("records are plain JSON")
    }

    /// Reads a record; the text says why it can't be used.
    pub(super) fn parse(bytes: &[u8]) -> Result<Record, String> {
        let record: Record = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if record.format_version != FORMAT_VERSION {
            return Err(format!("format version {}, this program knows {FORMAT_VERSION}", record.format_version));
        }
        // The name becomes a path when its environment is read.
        if record.env_file.contains('/') || record.unit.as_str().contains('/') {
            return Err("a name in it contains a slash".into());
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_are_read_again_and_broken_ones_refused() {
        let service = Service {
            unit: "shardman-monitor@c".into(),
            kind: Kind::Monitor,
            program: "/bin/monitor".into(),
            env_file: "monitor-c.env".into(),
        };
        let record = Record::new(&"c".into(), &service);
        assert_eq!(Record::parse(&record.to_bytes()).unwrap(), record);
        let text = String::from_utf8(record.to_bytes()).unwrap();
        assert!(Record::parse(text.replace("Version\":1", "Version\":2").as_bytes()).is_err());
        assert!(Record::parse(text.replace("monitor-c.env", "../x").as_bytes()).is_err());
        for broken in ["", "{}", "[]", "null"] {
            assert!(Record::parse(broken.as_bytes()).is_err());
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = Record::parse(&bytes);
        }
    }
}
