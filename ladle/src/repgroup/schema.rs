//! Copying roles, schema and sharding metadata of one group into a new one.

use super::recover::Member;
use crate::error::Error;
use crate::group::{Group, quiet_options};
use pg::{Endpoint, Login, Session};
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// In the new group from the loaded schema until the group is part of the cluster. Where it stands, everything in
/// the database comes from an earlier load onto an empty server, so it may be thrown away.
const MARKER: &str = "shardman.loaded_schema";

/// Loads roles and schema of a group into a new one, all or nothing.
pub(super) async fn copy(source: &Group, new: &Group, login: &Login, bin: &str) -> Result<(), Error> {
    let session = new.connect(login).await?;
    make_empty(new, &session).await?;
    let present = roles(new, &session).await?;
    let (from, to) = (master(source).await?, master(new).await?);
    let tools = Tools::new(bin, login)?;
    let roles = tools.run("pg_dumpall", &["--roles-only", "--database=postgres"], &from, None).await?;
    let dump = ["--schema-only", "--exclude-schema=shardman", "--dbname=postgres"];
    let schema = tools.run("pg_dump", &dump, &from, None).await?;
    let mut script = without_roles(&String::from_utf8_lossy(&roles), &present).into_bytes();
    script.extend_from_slice(&schema);
    script.extend_from_slice(format!("\nCREATE TABLE {MARKER} ();\n").as_bytes());
    let load = ["-X", "-q", "--single-transaction", "--set=ON_ERROR_STOP=1", "--output=/dev/null", "--dbname=postgres"];
    tools.run("psql", &load, &to, Some(&script)).await?;
    Ok(())
}

async fn master(group: &Group) -> Result<Endpoint, Error> {
    pg::endpoints::master(&group.data().await?).map_err(|e| Error::NotReady {
        group: group.name.clone(),
        state: e.to_string(),
        after: std::time::Duration::ZERO,
    })
}

/// Objects that neither PostgreSQL nor an extension has made, outside of our own schema.
const FOREIGN_OBJECTS: &str = "SELECT \
    EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
        WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'shardman') \
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')) \
    OR EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
        WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'shardman') \
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')) \
    OR EXISTS (SELECT FROM pg_namespace n WHERE n.nspname !~ '^pg_' \
        AND n.nspname NOT IN ('information_schema', 'shardman', 'public'))";

/// Throws an interrupted load away, and refuses a server with objects that are not from one.
async fn make_empty(new: &Group, session: &Session) -> Result<(), Error> {
    let marker = session
        .query_one(&format!("SELECT to_regclass('{MARKER}') IS NOT NULL"), &[])
        .await
        .map_err(new.sql("look for an earlier load"))?;
    if marker.get(0) {
        return session.batch_execute(RESET).await.map_err(new.sql("throw an interrupted load away"));
    }
    let row = session.query_one(FOREIGN_OBJECTS, &[]).await.map_err(new.sql("look for objects"))?;
    if row.get(0) {
        return Err(Error::Refused(format!(
            "group {} has tables, functions or schemas of its own, so the cluster's schema can't be loaded into it; \
             start with an empty server",
            new.name
        )));
    }
    Ok(())
}

/// Back to a server that was just made, except for roles: loading those twice does no harm.
const RESET: &str = "BEGIN; DO $$ DECLARE name text; BEGIN \
    FOR name IN SELECT extname FROM pg_extension WHERE extname <> 'plpgsql' LOOP \
        EXECUTE format('DROP EXTENSION IF EXISTS %I CASCADE', name); END LOOP; \
    FOR name IN SELECT pubname FROM pg_publication LOOP EXECUTE format('DROP PUBLICATION %I', name); END LOOP; \
    FOR name IN SELECT evtname FROM pg_event_trigger LOOP EXECUTE format('DROP EVENT TRIGGER %I', name); END LOOP; \
    FOR name IN SELECT fdwname FROM pg_foreign_data_wrapper LOOP \
        EXECUTE format('DROP FOREIGN DATA WRAPPER %I CASCADE', name); END LOOP; \
    FOR name IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' LOOP \
        EXECUTE format('DROP SCHEMA %I CASCADE', name); END LOOP; \
    END $$; \
    CREATE SCHEMA public AUTHORIZATION pg_database_owner; GRANT USAGE ON SCHEMA public TO PUBLIC; \
    COMMENT ON SCHEMA public IS 'standard public schema'; CREATE EXTENSION shardman CASCADE; COMMIT";

async fn roles(new: &Group, session: &Session) -> Result<Vec<String>, Error> {
    let rows = session.query("SELECT quote_ident(rolname) FROM pg_roles", &[]).await.map_err(new.sql("list roles"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Every server has its superuser and replication user already; only their creation is left out.
fn without_roles(script: &str, present: &[String]) -> String {
    let mut kept = String::with_capacity(script.len());
    for line in script.lines() {
        let created = line.strip_prefix("CREATE ROLE ").and_then(|rest| rest.strip_suffix(';'));
        if !created.is_some_and(|role| present.iter().any(|present| present == role)) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// The rows that a dump leaves out because they belong to an extension. Rows of `shardman.repgroups` are written by
/// connecting the groups. The marker goes: from now on the group is no copy that may be thrown away.
pub(super) async fn copy_metadata(source: &Member, new: &Member) -> Result<(), Error> {
    for table in ["shardman.sharded_tables", "shardman.parts"] {
        let row = source
            .session
            .query_one(&format!("SELECT coalesce(json_agg(t), '[]')::text FROM {table} t"), &[])
            .await
            .map_err(source.group.sql("read the sharding metadata"))?;
        let rows: String = row.get(0);
        let sql = format!("INSERT INTO {table} SELECT * FROM json_populate_recordset(NULL::{table}, $1::text::json)");
        new.session.execute(&sql, &[&rows]).await.map_err(new.group.sql("write the sharding metadata"))?;
    }
    let drop = format!("DROP TABLE IF EXISTS {MARKER}");
    new.session.batch_execute(&drop).await.map_err(new.group.sql("drop the marker of the load"))
}

/// PostgreSQL's client programs with the password in a file that nobody else can read.
struct Tools {
    bin: PathBuf,
    user: String,
    passfile: PassFile,
}

impl Tools {
    fn new(bin: &str, login: &Login) -> Result<Self, Error> {
        let passfile = PassFile::create(login).map_err(|e| Error::Program {
            program: "password file".into(),
            reason: format!("{e}; check that the directory for temporary files can be written"),
        })?;
        Ok(Tools { bin: PathBuf::from(bin), user: login.user.clone(), passfile })
    }

    /// The nodes' programs if this is a node, otherwise those in `PATH`.
    fn path(&self, program: &str) -> PathBuf {
        let installed = self.bin.join(program);
        if self.bin.is_absolute() && installed.exists() { installed } else { PathBuf::from(program) }
    }

    async fn run(&self, program: &str, args: &[&str], on: &Endpoint, input: Option<&[u8]>) -> Result<Vec<u8>, Error> {
        let failed = |reason: String| Error::Program { program: program.to_owned(), reason };
        let mut command = Command::new(self.path(program));
        command
            .args(args)
            .args(["--no-password", "--host", &on.host, "--port", &on.port.to_string(), "--username", &self.user])
            .env("PGPASSFILE", &self.passfile.path)
            .env("PGAPPNAME", "ladle")
            .env("PGOPTIONS", format!("-c shardman.broadcast_utility=off -c statement_timeout=0 {}", quiet_options()))
            .env_remove("PGSERVICE")
            .env_remove("PGPASSWORD")
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|e| {
            failed(format!("{e}; install PostgreSQL's client programs here, or run the command on a node"))
        })?;
        let stdin = child.stdin.take();
        let feed = async {
            if let (Some(mut stdin), Some(input)) = (stdin, input) {
                // A program that ends early tells why on stderr.
                let _ = stdin.write_all(input).await;
            }
        };
        let ((), output) = tokio::join!(feed, child.wait_with_output());
        let output = output.map_err(|e| failed(e.to_string()))?;
        if !output.status.success() {
            return Err(failed(format!("{} ({})", last_error(&output.stderr), output.status)));
        }
        Ok(output.stdout)
    }
}

/// The line that says what went wrong; others may quote statements with secrets in them.
fn last_error(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let telling = |line: &&str| ["ERROR:", "FATAL:", "error:"].iter().any(|word| line.contains(word));
    text.lines().rfind(telling).unwrap_or("it did not say why").trim().to_owned()
}

/// A password file in libpq's format; removed when it is dropped, and by a later command when this one is killed.
struct PassFile {
    path: PathBuf,
    /// Locked as long as we live: what tells a file in use from one left over, over all namespaces of processes.
    file: File,
}

/// Followed by a random uuid.
const PASSFILE_PREFIX: &str = "ladle-";
/// A younger file may be one that is just being made and not locked yet.
const PASSFILE_AGE: Duration = Duration::from_secs(60);

/// Removes password files that killed commands of the same user have left.
fn remove_leftovers(directory: &Path, min_age: Duration) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let random = name.to_str().and_then(|name| name.strip_prefix(PASSFILE_PREFIX));
        // Exactly as we write them.
        if random.is_some_and(|text| uuid::Uuid::parse_str(text).is_ok_and(|uuid| uuid.to_string() == text))
            && is_left_over(&entry.path(), min_age).unwrap_or(false)
        {
            remove(&entry.path());
        }
    }
}

fn is_left_over(path: &Path, min_age: Duration) -> std::io::Result<bool> {
    let own = std::fs::metadata("/proc/self")?.uid();
    let found = std::fs::symlink_metadata(path)?;
    let old = found.modified()?.elapsed().is_ok_and(|age| age >= min_age);
    if !found.is_file() || found.uid() != own || found.permissions().mode() & 0o7777 != 0o600 || !old {
        return Ok(false);
    }
    let file = File::open(path)?;
    let opened = file.metadata()?;
    // Not a link that has taken its place meanwhile.
    Ok((opened.dev(), opened.ino()) == (found.dev(), found.ino()) && file.try_lock().is_ok())
}

impl PassFile {
    fn create(login: &Login) -> std::io::Result<Self> {
        use std::io::Write as _;
        remove_leftovers(&std::env::temp_dir(), PASSFILE_AGE);
        let path = std::env::temp_dir().join(format!("{PASSFILE_PREFIX}{}", uuid::Uuid::new_v4()));
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        let mut passfile = PassFile { path, file };
        passfile.file.lock()?;
        passfile.file.write_all(passfile_line(&login.user, login.password.reveal()).as_bytes())?;
        Ok(passfile)
    }
}

impl Drop for PassFile {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "remove the password file yourself");
    }
}

fn passfile_line(user: &str, password: &str) -> String {
    let mut line = String::from("*:*:*:");
    for (text, end) in [(user, ':'), (password, '\n')] {
        for c in text.chars() {
            if matches!(c, ':' | '\\') {
                line.push('\\');
            }
            line.push(c);
        }
        let _ = write!(line, "{end}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn present_roles_are_not_created() {
        let script =
            "CREATE ROLE postgres;\nALTER ROLE postgres WITH SUPERUSER;\nCREATE ROLE \"A b\";\nCREATE ROLE x;\n";
        let kept = without_roles(script, &["postgres".into(), "\"A b\"".into()]);
        assert_eq!(kept, "ALTER ROLE postgres WITH SUPERUSER;\nCREATE ROLE x;\n");
    }

    #[test]
    fn the_password_file_is_escaped_and_private() {
        assert_eq!(passfile_line("a:b", "c\\d"), "*:*:*:a\\:b:c\\\\d\n");
        let login = Login { user: "u".into(), password: "p".into(), application: "ladle".into() };
        let file = PassFile::create(&login).unwrap();
        let mode = std::fs::metadata(&file.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let path = file.path.clone();
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn only_own_files_that_nobody_uses_are_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: String, mode: u32| {
            let path = dir.path().join(name);
            std::fs::write(&path, "secret").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let uuid = uuid::Uuid::new_v4;
        let left = write(format!("ladle-{}", uuid()), 0o600);
        let used = write(format!("ladle-{}", uuid()), 0o600);
        let lock = File::open(&used).unwrap();
        lock.lock().unwrap();
        let kept = [
            used,
            write(format!("ladle-{}", uuid()), 0o644),
            write(format!("ladle-{}x", uuid()), 0o600),
            write(format!("ladle-{}", uuid().simple()), 0o600),
            write("ladle-".into(), 0o600),
            write(format!("other-{}", uuid()), 0o600),
        ];
        let link = dir.path().join(format!("ladle-{}", uuid()));
        std::os::unix::fs::symlink(&kept[5], &link).unwrap();
        remove_leftovers(dir.path(), Duration::from_secs(60));
        assert!(left.exists(), "it is too young");
        remove_leftovers(dir.path(), Duration::ZERO);
        assert!(!left.exists());
        assert!(kept.iter().chain([&link]).all(|path| path.exists()));
        drop(lock);
        remove_leftovers(dir.path(), Duration::ZERO);
        assert!(!kept[0].exists());
    }

    #[test]
    fn only_the_error_itself_is_shown() {
        let text = b"psql:<stdin>:3: ERROR:  syntax error\nLINE 1: CREATE USER MAPPING ... password 'x'\n";
        assert_eq!(last_error(text), "psql:<stdin>:3: ERROR:  syntax error");
        assert_eq!(last_error(b"\xff"), "it did not say why");
    }
}
