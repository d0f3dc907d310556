//! TLS for both doors: certificates from files, read again when they change.
//!
//! What must hold: new files are taken without a restart and without disturbing a connection; files
//! that cannot be used are reported, and the last good ones stay in use.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::auth::{SecurityConfig, common_name};
use crate::error::BrokerError;

/// How long a client has to shake hands.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The server's side of TLS.
pub struct Tls {
    files: Files,
    current: ArcSwap<Loaded>,
    check_every: Duration,
}

struct Files {
    certificate: PathBuf,
    key: PathBuf,
    trust: Option<PathBuf>,
    require_client: bool,
}

struct Loaded {
    /// The files' bytes: what is compared to see a change.
    bytes: [Vec<u8>; 3],
    config: Arc<ServerConfig>,
}

impl Tls {
    /// None where no certificate is set.
    pub fn new(config: &SecurityConfig) -> Result<Option<Arc<Tls>>, BrokerError> {
        let (Some(certificate), Some(key)) =
            (&config.tls_certificate_file_path, &config.tls_key_file_path)
        else {
            return Ok(None);
        };
        let trust = config.tls_trust_certs_file_path.clone();
        let files = Files {
            certificate: certificate.clone(),
            key: key.clone(),
            trust: trust.filter(|path| !path.as_os_str().is_empty()),
            require_client: config.tls_require_trusted_client_cert_on_connect,
        };
        let bytes = files.read().map_err(BrokerError::Tls)?;
        let loaded = files.load(bytes).map_err(BrokerError::Tls)?;
        Ok(Some(Arc::new(Tls {
            files,
            current: ArcSwap::from_pointee(loaded),
            check_every: Duration::from_secs(config.tls_cert_refresh_check_duration_sec.max(1)),
        })))
    }

    /// Shakes hands; also returns the common name of the client's certificate, if it showed one.
    pub async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Option<String>)> {
        let acceptor = TlsAcceptor::from(self.current.load().config.clone());
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let shown = stream.get_ref().1.peer_certificates();
        let name = shown
            .and_then(|all| all.first())
            .and_then(|certificate| common_name(certificate));
        Ok((stream, name))
    }

    /// Takes what is in the files now; whether it was new.
    pub fn reload(&self) -> Result<bool, String> {
        let bytes = self.files.read()?;
        if bytes == self.current.load().bytes {
            return Ok(false);
        }
        self.current.store(Arc::new(self.files.load(bytes)?));
        Ok(true)
    }

    /// Looks at the files for ever.
    pub(crate) async fn watch(self: Arc<Tls>) {
        loop {
            tokio::time::sleep(self.check_every).await;
            match self.reload() {
                Ok(true) => tracing::info!("new TLS certificates are in use"),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(%error, "the TLS files cannot be used; the last ones still are");
                }
            }
        }
    }
}

impl Files {
    fn read(&self) -> Result<[Vec<u8>; 3], String> {
        let trust = match &self.trust {
            Some(path) => read(path)?,
            None => Vec::new(),
        };
        Ok([read(&self.certificate)?, read(&self.key)?, trust])
    }

    fn load(&self, bytes: [Vec<u8>; 3]) -> Result<Loaded, String> {
        let fail = |path: &Path, what: &str| format!("`{}` {what}", path.display());
        let chain = certificates(&bytes[0])
            .ok_or_else(|| fail(&self.certificate, "holds no certificate in PEM"))?;
        // Not the parser's own words: they might quote the key.
        let key = PrivateKeyDer::from_pem_slice(&bytes[1])
            .map_err(|_| fail(&self.key, "holds no private key in PEM"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match &self.trust {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                let trusted = certificates(&bytes[2])
                    .ok_or_else(|| fail(path, "holds no certificate in PEM"))?;
                for certificate in trusted {
                    roots
                        .add(certificate)
                        .map_err(|error| fail(path, &error.to_string()))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = match self.require_client {
                    true => verifier,
                    false => verifier.allow_unauthenticated(),
                };
                let verifier = verifier
                    .build()
                    .map_err(|error| fail(path, &error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder
            .with_single_cert(chain, key)
            .map_err(|error| fail(&self.certificate, &error.to_string()))?;
        Ok(Loaded {
            bytes,
            config: Arc::new(config),
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("`{}` cannot be read: {error}", path.display()))
}

fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    all.ok().filter(|all| !all.is_empty())
}
