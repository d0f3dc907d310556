//! TLS to servers: whom a client trusts, who it says that it is, and what is wrong when there is no trust.
//!
//! What must hold: without a word of whoever sets it up, a server shows a certificate that somebody trusted has
//! signed for the name that it was reached by; files that can not be used are an error before anything is sent.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore,
    SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Where systems keep the certificates that they trust; `SSL_CERT_FILE` comes first.
const TRUSTED: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What a client is told about TLS, under Pulsar's names. All files are PEM.
#[derive(Debug, Clone)]
pub struct TlsSettings {
    /// `tlsTrustCertsFilePath`: who may sign a server's certificate; whom this machine trusts when not set.
    pub trust_certs_file: Option<PathBuf>,
    /// `tlsCertificateFilePath`: the client's own certificate, with its chain.
    pub certificate_file: Option<PathBuf>,
    /// `tlsKeyFilePath`: the key of that certificate.
    pub key_file: Option<PathBuf>,
    /// `tlsAllowInsecureConnection`: any certificate will do.
    pub allow_insecure: bool,
    /// `tlsEnableHostnameVerification`: a certificate has to be for the name that the server was reached by.
    /// On unless set, where Pulsar's clients have it off.
    pub verify_hostname: bool,
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self {
            trust_certs_file: None,
            certificate_file: None,
            key_file: None,
            allow_insecure: false,
            verify_hostname: true,
        }
    }
}

/// Why settings of TLS can not be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    /// A file can not be read.
    #[error("`{}` can not be read: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// A file holds nothing of the kind, or what can not be used.
    #[error("`{}` {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate without its key, or a key without its certificate.
    #[error("a client's certificate and its key go together: only one of them is given")]
    Half,
    /// There is nothing to trust.
    #[error(
        "no certificates to trust are known on this machine: name their file, or set `SSL_CERT_FILE`"
    )]
    NothingTrusted,
    /// Certificate and key do not fit, or the like.
    #[error("TLS: {0}")]
    Unusable(String),
}

/// Makes connections with TLS. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    has_certificate: bool,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("has_certificate", &self.has_certificate)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one of them can not be used, and when nothing is trusted.
    pub fn new(settings: &TlsSettings) -> Result<Self, TlsError> {
        let unusable = |error: rustls::Error| TlsError::Unusable(error.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Verifier::new(settings, &provider)?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match (&settings.certificate_file, &settings.key_file) {
            (None, None) => config.with_no_client_auth(),
            (Some(certificate), Some(key)) => {
                let chain = certificates(certificate)?;
                let key_bytes = read(key)?;
                let parsed = PrivateKeyDer::from_pem_slice(&key_bytes);
                let parsed = parsed.map_err(|_| TlsError::Content {
                    path: key.clone(),
                    reason: "holds no private key in PEM".to_owned(),
                })?;
                config
                    .with_client_auth_cert(chain, parsed)
                    .map_err(unusable)?
            }
            _ => return Err(TlsError::Half),
        };
        Ok(Self {
            config: Arc::new(config),
            has_certificate: settings.certificate_file.is_some(),
        })
    }

    /// Whether a client shows a certificate of its own where a server asks for one.
    #[must_use]
    pub fn has_certificate(&self) -> bool {
        self.has_certificate
    }

    /// Shakes hands with the server that was reached as `host`: a name, or an address, in brackets or not.
    ///
    /// # Errors
    /// When the server is not trusted, does not trust the client, or speaks no TLS.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned()).map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("`{host}` is no name of a server"),
            )
        })?;
        TlsConnector::from(self.config.clone())
            .connect(name, stream)
            .await
    }
}

/// The certificates that this machine trusts.
///
/// # Errors
/// When there are none, or the file that `SSL_CERT_FILE` names can not be used.
pub fn trusted_by_machine() -> Result<RootCertStore, TlsError> {
    let named = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty());
    let usual = || {
        TRUSTED
            .into_iter()
            .map(PathBuf::from)
            .find(|it| it.exists())
    };
    let path = named.map(PathBuf::from).or_else(usual);
    trusted(&path.ok_or(TlsError::NothingTrusted)?)
}

fn trusted(path: &Path) -> Result<RootCertStore, TlsError> {
    let pem = read(path)?;
    let mut roots = RootCertStore::empty();
    // A bundle may hold some that are not understood.
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
    match roots.is_empty() {
        true => Err(no_certificate(path)),
        false => Ok(roots),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(no_certificate(path)),
    }
}

fn no_certificate(path: &Path) -> TlsError {
    TlsError::Content {
        path: path.to_owned(),
        reason: "holds no certificate in PEM".to_owned(),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::File {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// Judges servers' certificates as far as the settings ask for it. That a server has the key of its certificate
/// is always asked.
#[derive(Debug)]
struct Verifier {
    /// None takes any certificate.
    chain: Option<Arc<WebPkiServerVerifier>>,
    names: bool,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(settings: &TlsSettings, provider: &Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let chain = match settings.allow_insecure {
            true => None,
            false => {
                let roots = match &settings.trust_certs_file {
                    Some(path) => trusted(path)?,
                    None => trusted_by_machine()?,
                };
                let built =
                    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
                let built = built.build();
                Some(built.map_err(|error| TlsError::Unusable(error.to_string()))?)
            }
        };
        Ok(Self {
            chain,
            names: settings.verify_hostname,
            provider: provider.clone(),
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        let judged =
            chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match judged {
            // The name is the last thing that is looked at.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.names => Ok(ServerCertVerified::assertion()),
            judged => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Why two sides do not trust each other, for whoever has to mend it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distrust {
    /// Nobody trusted has signed the server's certificate.
    UnknownIssuer,
    /// The server's certificate is for another name.
    OtherName,
    /// It is not valid any more, or not yet.
    OutOfDate,
    /// It is an authority's own, which is for signing others.
    Authority,
    /// The server wants to see a certificate of the client.
    WantsCertificate,
    /// The server refuses the client's certificate.
    RefusesCertificate,
    /// The other side does not speak TLS.
    NoTls,
}

impl Distrust {
    /// What is behind an error of a connection; `None` when it is not of TLS.
    #[must_use]
    pub fn behind(error: &(dyn StdError + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            // Errors of this crate share theirs.
            let shared = error.downcast_ref::<Arc<io::Error>>().map(|it| &**it);
            let of_io = shared.or_else(|| error.downcast_ref::<io::Error>());
            let of_io = of_io.and_then(io::Error::get_ref);
            let of_io = of_io.and_then(|it| it.downcast_ref::<rustls::Error>());
            if let Some(found) = of_io.or_else(|| error.downcast_ref::<rustls::Error>()) {
                return Self::of(found);
            }
            next = error.source();
        }
        None
    }

    fn of(error: &rustls::Error) -> Option<Self> {
        use CertificateError as Bad;
        Some(match error {
            rustls::Error::InvalidCertificate(bad) => match bad {
                Bad::NotValidForName | Bad::NotValidForNameContext { .. } => Self::OtherName,
                Bad::Expired
                | Bad::ExpiredContext { .. }
                | Bad::NotValidYet
                | Bad::NotValidYetContext { .. } => Self::OutOfDate,
                Bad::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
                    Self::Authority
                }
                _ => Self::UnknownIssuer,
            },
            rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
                Self::WantsCertificate
            }
            rustls::Error::AlertReceived(
                AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateExpired
                | AlertDescription::DecryptError,
            ) => Self::RefusesCertificate,
            rustls::Error::InvalidMessage(_) => Self::NoTls,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_can_not_be_used_are_named() {
        let directory = std::env::temp_dir();
        let nothing = directory.join(format!("geminga-tls-{}", std::process::id()));
        std::fs::write(&nothing, "nothing").unwrap();
        let missing = directory.join("geminga-tls-missing.pem");
        for (trust, certificate, key, want) in [
            (Some(&missing), None, None, "can not be read"),
            (Some(&nothing), None, None, "holds no certificate"),
            (None, Some(&nothing), None, "go together"),
            (None, None, Some(&nothing), "go together"),
            (None, Some(&nothing), Some(&nothing), "holds no certificate"),
        ] {
            let settings = TlsSettings {
                trust_certs_file: trust.cloned(),
                certificate_file: certificate.cloned(),
                key_file: key.cloned(),
                // Whatever this machine trusts.
                allow_insecure: trust.is_none(),
                ..TlsSettings::default()
            };
            let said = Tls::new(&settings).unwrap_err().to_string();
            assert!(said.contains(want), "{said}");
        }
        std::fs::remove_file(&nothing).unwrap();
    }
}
