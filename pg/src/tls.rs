//! TLS to PostgreSQL, with libpq's words for how much of it is wanted.
//!
//! Certificates are read anew for each connection: there are few connections, and renewed files then need no restart.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::error::Error as _;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_postgres::config::{Host, SslMode as Wanted};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, Config, NoTls, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;
use x509_cert::der::Decode as _;

/// How much TLS is wanted; libpq's `sslmode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SslMode {
    /// None.
    Disable,
    /// If the server speaks it and lets us in with it. Protects from nobody who can change packets.
    #[default]
    Prefer,
    /// Always; the server's certificate counts only if a root certificate was given.
    Require,
    /// Always, with a certificate of the given authority.
    VerifyCa,
    /// Always, with a certificate of the given authority for the very host that was asked for.
    VerifyFull,
}

impl SslMode {
    /// All of them.
    pub const ALL: [SslMode; 5] =
        [SslMode::Disable, SslMode::Prefer, SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull];

    /// As libpq spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            SslMode::Disable => "disable",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        }
    }
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SslMode {
    type Err = TlsError;
    fn from_str(text: &str) -> Result<Self, TlsError> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == text).ok_or_else(|| TlsError::Mode(text.to_owned()))
    }
}

/// Settings that can't be used. The text holds no secret.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Unknown mode.
    #[error("\"{0}\" is no sslmode; give disable, prefer, require, verify-ca or verify-full")]
    Mode(String),
    /// A file is missing or holds something else.
    #[error("{what} {file}: {why}")]
    File {
        /// What was looked for.
        what: &'static str,
        /// Where.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The mode needs a file that was not named.
    #[error("sslmode {0} needs a root certificate to verify against; name its file")]
    NoRoot(SslMode),
    /// Half a pair.
    #[error("a client certificate needs its key, and a key its certificate; name both files or none")]
    HalfAPair,
    /// The pair does not fit together or is of a kind that is not served.
    #[error("the client certificate can't be used: {0}")]
    Pair(String),
}

/// How connections to PostgreSQL are secured. Unix sockets never are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// How much.
    pub mode: SslMode,
    /// PEM file with the authorities that server certificates are verified against.
    pub root_cert: Option<PathBuf>,
    /// PEM file with the client's certificate, followed by those between it and its authority.
    pub cert: Option<PathBuf>,
    /// PEM file with the certificate's key.
    pub key: Option<PathBuf>,
}

impl Tls {
    /// From libpq's variables `PGSSLMODE`, `PGSSLROOTCERT`, `PGSSLCERT` and `PGSSLKEY`.
    ///
    /// # Errors
    /// `PGSSLMODE` is unknown.
    pub fn from_env() -> Result<Self, TlsError> {
        let value = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let mode = value("PGSSLMODE").map(|mode| mode.to_string_lossy().parse()).transpose()?;
        let file = |name| value(name).map(PathBuf::from);
        Ok(Tls {
            mode: mode.unwrap_or_default(),
            root_cert: file("PGSSLROOTCERT"),
            cert: file("PGSSLCERT"),
            key: file("PGSSLKEY"),
        })
    }

    /// Whether the files can be used now.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn check(&self) -> Result<(), TlsError> {
        self.client_config().map(drop)
    }

    fn client_config(&self) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Arc::new(Verifier { roots: self.roots()?, mode: self.mode, provider: provider.clone() });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Pair(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        match (&self.cert, &self.key) {
            (None, None) => Ok(builder.with_no_client_auth()),
            (Some(cert), Some(key)) => {
                let chain = certificates("read the client certificate", cert)?;
                let file = |why| TlsError::File { what: "read the client's key", file: key.clone(), why };
                let key = PrivateKeyDer::from_pem_file(key).map_err(|error| file(error.to_string()))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| TlsError::Pair(error.to_string()))
            }
            _ => Err(TlsError::HalfAPair),
        }
    }

    /// Authorities, as they stand in the file and as the verification wants them.
    fn roots(&self) -> Result<Option<Roots>, TlsError> {
        let verifies = matches!(self.mode, SslMode::VerifyCa | SslMode::VerifyFull);
        let file = match &self.root_cert {
            None if verifies => return Err(TlsError::NoRoot(self.mode)),
            None => return Ok(None),
            Some(_) if !verifies && self.mode != SslMode::Require => return Ok(None),
            Some(file) => file,
        };
        let certificates = certificates("read the root certificate", file)?;
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(certificates.iter().cloned());
        if store.is_empty() {
            let why = "it holds no certificate that can be used".to_owned();
            return Err(TlsError::File { what: "read the root certificate", file: file.clone(), why });
        }
        Ok(Some(Roots { store, certificates }))
    }
}

fn certificates(what: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |why: String| TlsError::File { what, file: file.to_owned(), why };
    let list = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| failed(error.to_string()))?;
    if list.is_empty() { Err(failed("it holds no certificate".to_owned())) } else { Ok(list) }
}

#[derive(Debug)]
struct Roots {
    store: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
}

/// Verifies as much as the mode asks for.
#[derive(Debug)]
struct Verifier {
    roots: Option<Roots>,
    mode: SslMode,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(roots) = &self.roots else { return Ok(ServerCertVerified::assertion()) };
        let parsed = ParsedCertificate::try_from(certificate)?;
        // A server certificate that signed itself, and stands in the root file, is what PostgreSQL's manual makes first.
        // It claims to be an authority, which the ordinary verification refuses in a server.
        if roots.certificates.iter().any(|root| root == certificate) {
            check_dates(certificate, now)?;
        } else {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, &roots.store, intermediates, now, algorithms)?;
        }
        if self.mode == SslMode::VerifyFull {
            verify_server_name(&parsed, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn check_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), CertificateError> {
    let parsed = x509_cert::Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let validity = parsed.tbs_certificate.validity;
    let seconds = |time: x509_cert::time::Time| time.to_unix_duration().as_secs();
    if now.as_secs() < seconds(validity.not_before) {
        return Err(CertificateError::NotValidYet);
    }
    if now.as_secs() > seconds(validity.not_after) {
        return Err(CertificateError::Expired);
    }
    Ok(())
}

/// No session.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The TLS settings can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The server or the network refused.
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
}

/// Connects. The returned task drives the connection; `ended` is called when it ends, however it ends.
///
/// # Errors
/// See [`OpenError`].
pub async fn open(
    config: &Config,
    tls: &Tls,
    ended: impl FnOnce() + Send + 'static,
) -> Result<(Client, JoinHandle<()>), OpenError> {
    let mut config = config.clone();
    let local = config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
    if local || tls.mode == SslMode::Disable {
        config.ssl_mode(Wanted::Disable);
        return Ok(drive(&config, NoTls, ended).await?);
    }
    let connector = MakeRustlsConnect::new(tls.client_config()?);
    if tls.mode != SslMode::Prefer {
        config.ssl_mode(Wanted::Require);
        return Ok(drive(&config, connector, ended).await?);
    }
    config.ssl_mode(Wanted::Prefer);
    match config.connect(connector).await {
        Ok((client, connection)) => Ok((client, spawn(connection, ended))),
        Err(error) if is_worth_without(&error) => {
            config.ssl_mode(Wanted::Disable);
            Ok(drive(&config, NoTls, ended).await?)
        }
        Err(error) => Err(error.into()),
    }
}

/// As libpq does: TLS did not come about, or the server does not let us in with it.
fn is_worth_without(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        Some(code) => *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        // The library does not tell kinds of errors apart but by their texts.
        None => error.source().is_some() && error.to_string().starts_with("error performing TLS handshake"),
    }
}

async fn drive<T>(
    config: &Config,
    connector: T,
    ended: impl FnOnce() + Send + 'static,
) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error>
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
    T::TlsConnect: TlsConnect<Socket>,
{
    let (client, connection) = config.connect(connector).await?;
    Ok((client, spawn(connection, ended)))
}

fn spawn(
    connection: impl Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static,
    ended: impl FnOnce() + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        // The client's next call reports the same error.
        let _ = connection.await;
        ended();
    })
}
