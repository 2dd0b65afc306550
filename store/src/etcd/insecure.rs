//! TLS to a server whose certificate is not looked at, for `--store-skip-tls-verify`. What is sent is encrypted, but
//! anybody who stands between can read and change it.

use super::options::{StoreOptions, read};
use crate::{Result, StoreError};
use etcd_client::Channel;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tonic::transport::{Endpoint, Uri};

/// A channel to one https URL, connected on first use.
pub(super) fn channel(
    url: &str,
    options: &StoreOptions,
    connect_timeout: Duration,
    (ping_interval, ping_timeout): (Duration, Duration),
) -> Result<Channel> {
    let fail = |error: String| StoreError::Options(format!("store endpoint \"{url}\": {error}"));
    let connector = TlsConnector::from(Arc::new(config(options)?));
    // The library insists on doing TLS itself for https, so it gets the same address under the other name.
    let plain = url.replacen("https://", "http://", 1);
    let endpoint = Endpoint::from_shared(plain)
        .map_err(|e| fail(e.to_string()))?
        .connect_timeout(connect_timeout)
        .http2_keep_alive_interval(ping_interval)
        .keep_alive_timeout(ping_timeout);
    let connect = tower::service_fn(move |uri: Uri| {
        let connector = connector.clone();
        async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let tcp = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(443))).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from(host).map_err(std::io::Error::other)?;
            connector.connect(name, tcp).await.map(TokioIo::new)
        }
    });
    Ok(Channel::Tonic(endpoint.connect_with_connector_lazy(connect)))
}

fn config(options: &StoreOptions) -> Result<ClientConfig> {
    let fail = |what: &str, error: &dyn std::fmt::Display| StoreError::Options(format!("{what}: {error}"));
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| fail("TLS", &e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
    let mut config = match (&options.cert_file, &options.key_file) {
        (Some(cert), Some(key)) => {
            let chain: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(cert)?).collect();
            let chain = chain.map_err(|e| fail(&cert.display().to_string(), &e))?;
            let private =
                PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|e| fail(&key.display().to_string(), &e))?;
            builder.with_client_auth_cert(chain, private).map_err(|e| fail("client certificate", &e))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Takes any certificate; the handshake must be signed with its key all the same.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
