//! Certificates for tests.

use anyhow::{Context, Result};
use nix::unistd::{User, chown, geteuid};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// An authority with the certificates that it issued, in files that go with it. Its files belong to the user that
/// PostgreSQL runs as; keys are readable for that user only.
#[derive(Debug)]
pub struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// A new one.
    pub fn new() -> Result<Self> {
        let dir = TempDir::with_prefix("tls-").context("create a directory for certificates")?;
        give(dir.path())?;
        let mut params = params("authority of a test", &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        write(&dir.path().join("root.crt"), 0o644, &params.self_signed(&key)?.pem())?;
        Ok(Self { dir, issuer: Issuer::new(params, key) })
    }

    /// Its own certificate.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root.crt")
    }

    /// A certificate with this common name, for these hosts (names or addresses).
    pub fn issue(&self, name: &str, hosts: &[&str]) -> Result<Pair> {
        let key = KeyPair::generate()?;
        let certificate = params(name, hosts)?.signed_by(&key, &self.issuer)?;
        self.save(name, &certificate.pem(), &key)
    }

    /// A certificate that signed itself and claims to be an authority, as `openssl req -x509` makes them.
    pub fn self_signed(&self, name: &str, hosts: &[&str]) -> Result<Pair> {
        let mut params = params(name, hosts)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        self.save(name, &certificate.pem(), &key)
    }

    fn save(&self, name: &str, certificate: &str, key: &KeyPair) -> Result<Pair> {
        let file = |end: &str| self.dir.path().join(format!("{name}.{end}"));
        let pair = Pair { cert: file("crt"), key: file("key") };
        write(&pair.cert, 0o644, certificate)?;
        write(&pair.key, 0o600, &key.serialize_pem())?;
        Ok(pair)
    }
}

fn params(name: &str, hosts: &[&str]) -> Result<CertificateParams> {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

fn write(path: &Path, mode: u32, text: &str) -> Result<()> {
    use std::io::Write as _;
    let file = std::fs::OpenOptions::new().create_new(true).write(true).mode(mode).open(path);
    let mut file = file.with_context(|| format!("create {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    give(path)
}

fn give(path: &Path) -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let user = User::from_name("postgres")?.context("running as root needs the user postgres")?;
    chown(path, Some(user.uid), Some(user.gid)).with_context(|| format!("give {} to postgres", path.display()))
}
