//! The replication groups' side of the specification, and the PostgreSQL and stolon settings that Shardman chooses.

use crate::stolon::{InitMode, StolonSpec, parse_user_spec};
use crate::strict::Known;
use crate::{GoDuration, SpecError};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// How a PostgreSQL user proves who it is; a method of pg_hba.conf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuthMethod {
    /// No proof. The original's default; here it must be asked for by name, and is warned of.
    #[serde(rename = "trust")]
    Trust,
    /// MD5, or SCRAM where the stored secret is one.
    #[serde(rename = "md5")]
    Md5,
    /// SCRAM.
    #[default]
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
}

impl fmt::Display for AuthMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AuthMethod::Trust => "trust",
            AuthMethod::Md5 => "md5",
            AuthMethod::ScramSha256 => "scram-sha-256",
        })
    }
}

/// A secret; never shown by `{:?}`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Password(String);

impl Password {
    /// The secret itself. Not for logs, arguments or readable files.
    pub fn reveal(&self) -> &str {
        &self.0
    }
    /// No password.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for Password {
    fn from(text: &str) -> Self {
        Password(text.to_owned())
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "Password(none)" } else { "Password(***)" })
    }
}

/// What holds for every replication group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ClusterSpec {
    /// The superuser's authentication.
    pub pg_su_auth_method: AuthMethod,
    /// The superuser's password; needed unless the method is trust.
    pub pg_su_password: Password,
    /// The superuser, the same in all groups; by default the OS user of `init`, or `postgres` for
    /// root, as whom PostgreSQL does not run.
    pub pg_su_username: String,
    /// The replication user's authentication.
    pub pg_repl_auth_method: AuthMethod,
    /// The replication user's password.
    pub pg_repl_password: Password,
    /// The replication user.
    pub pg_repl_username: String,
    /// Every group has proxies, and connections go through them.
    pub use_proxy: bool,
    /// Given to each group's stolon cluster.
    #[serde(deserialize_with = "stolon_spec")]
    pub stolon_spec: StolonSpec,
}

fn stolon_spec<'de, D: serde::Deserializer<'de>>(d: D) -> Result<StolonSpec, D::Error> {
    let value = Value::deserialize(d)?;
    parse_user_spec(value).map_err(|e| serde::de::Error::custom(format!("StolonSpec: {e}")))
}

pub(crate) const CLUSTER_MEMBERS: Known = Known(&[
    ("PgSuAuthMethod", None),
    ("PgSuPassword", None),
    ("PgSuUsername", None),
    ("PgReplAuthMethod", None),
    ("PgReplPassword", None),
    ("PgReplUsername", None),
    ("UseProxy", None),
    ("StolonSpec", None),
]);

/// The password of generated samples, which `init` warns of.
pub const SAMPLE_PASSWORD: &str = "!!!CHANGE_ME!!!";
/// Default replication user.
pub const DEFAULT_REPL_USER: &str = "repluser";
/// The user that PostgreSQL runs as when root starts it.
const DATABASE_OWNER: &str = "postgres";
/// The only database that Shardman works in.
pub const DATABASE: &str = "postgres";
/// The parameter that carries a group's own number; set by the tools, per group.
pub const RGID_PARAMETER: &str = "shardman.rgid";

/// PostgreSQL parameters that every group needs; a user's value for the same name wins.
pub const DEFAULT_PG_PARAMETERS: [(&str, &str); 7] = [
    // Not `all`: that writes the passwords of CREATE ROLE and every row's values into the log.
    ("log_statement", "ddl"),
    ("log_line_prefix", "%m [%r][%p] "),
    // Moving partitions needs logical decoding.
    ("wal_level", "logical"),
    ("shared_preload_libraries", "shardman"),
    // Commits over several groups are prepared; also the sign that a group's configuration is applied.
    ("max_prepared_transactions", "200"),
    ("default_transaction_isolation", "read committed"),
    // Sessions of a coordinator that died let go of their locks within a second.
    ("client_connection_check_interval", "1s"),
];

impl ClusterSpec {
    /// Fills defaults and checks every rule. `given` is the StolonSpec as written, to tell absent from empty.
    pub(crate) fn complete(
        &mut self,
        given: Option<Value>,
        repfactor: u32,
        os_user: &str,
        warnings: &mut Vec<String>,
    ) -> Result<(), SpecError> {
        if self.pg_su_username.is_empty() {
            let user = if os_user == "root" { DATABASE_OWNER } else { os_user };
            user.clone_into(&mut self.pg_su_username);
        }
        if self.pg_repl_username.is_empty() {
            DEFAULT_REPL_USER.clone_into(&mut self.pg_repl_username);
        }
        self.check_auth(warnings)?;
        if given.is_some_and(|value| !value.is_object()) {
            return Err(SpecError::new("ClusterSpec.StolonSpec must be an object"));
        }
        self.complete_stolon(repfactor, warnings);
        self.stolon_spec.effective().map_err(|e| SpecError::new(format!("ClusterSpec.StolonSpec: {e}")))?;
        Ok(())
    }

    fn check_auth(&self, warnings: &mut Vec<String>) -> Result<(), SpecError> {
        for (who, method, password) in [
            ("PgSu", self.pg_su_auth_method, &self.pg_su_password),
            ("PgRepl", self.pg_repl_auth_method, &self.pg_repl_password),
        ] {
            if method == AuthMethod::Trust {
                warnings.push(format!(
                    "{who}AuthMethod is trust: whoever reaches a port is let in; use scram-sha-256 outside of tests"
                ));
            } else if password.is_empty() {
                return Err(SpecError::new(format!(
                    "ClusterSpec.{who}Password is missing and {who}AuthMethod {method} needs one; write it, or ask \
                     for \"{who}AuthMethod\": \"trust\" by name"
                )));
            } else if password.reveal() == SAMPLE_PASSWORD {
                warnings.push(format!("{who}Password still is the sample's {SAMPLE_PASSWORD}; change it"));
            }
            if password.reveal().contains(['\n', '\r', '\0']) {
                return Err(SpecError::new(format!("ClusterSpec.{who}Password contains a line break")));
            }
        }
        Ok(())
    }

    fn complete_stolon(&mut self, repfactor: u32, warnings: &mut Vec<String>) {
        let stolon = &mut self.stolon_spec;
        stolon.init_mode = Some(InitMode::New);
        if stolon.synchronous_replication == Some(false) {
            warnings
                .push("synchronousReplication is off: a failover may lose commits that clients were told of".into());
        }
        stolon.synchronous_replication.get_or_insert(true);
        // All replicas are synchronous, and the group still takes writes when all of them are gone.
        stolon.min_synchronous_standbys.get_or_insert(0);
        stolon.max_synchronous_standbys.get_or_insert(u16::try_from(repfactor).unwrap_or(u16::MAX).max(1));
        stolon.use_pgrewind.get_or_insert(true);
        stolon.automatic_pg_restart.get_or_insert(true);
        // Failover: docs/intervals.md says how these follow from each other.
        stolon.sleep_interval.get_or_insert(GoDuration::from_secs(2));
        stolon.fail_interval.get_or_insert(GoDuration::from_secs(2));
        stolon.proxy_check_interval.get_or_insert(GoDuration::from_secs(1));
        stolon.proxy_timeout.get_or_insert(GoDuration::from_millis(2500));
        if stolon.pg_hba.is_none() {
            let (user, method) = (hba_word(&self.pg_su_username), self.pg_su_auth_method);
            stolon.pg_hba =
                Some(vec![format!("host all {user} 0.0.0.0/0 {method}"), format!("host all {user} ::/0 {method}")]);
        }
        if stolon.pg_parameters.remove(RGID_PARAMETER).is_some() {
            warnings.push(format!("{RGID_PARAMETER} in pgParameters is ignored: each group gets its own"));
        }
        for (name, value) in DEFAULT_PG_PARAMETERS {
            stolon.pg_parameters.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
}

/// A user name as pg_hba.conf reads it: quoted, so that no character or keyword has a meaning.
fn hba_word(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let spec = ClusterSpec { pg_su_password: "hidden".into(), ..Default::default() };
        assert!(!format!("{spec:?}").contains("hidden"));
    }
}
