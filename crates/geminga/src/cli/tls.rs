//! TLS on the command line: whom to trust and what to show, under the names of Pulsar's `client.conf`, and what to
//! type when two sides do not trust each other.

use std::error::Error;
use std::path::PathBuf;

use geminga_client::TlsSettings;
use geminga_client::tls::{Distrust, TlsError};
use geminga_stdx::Diagnostic;

use crate::failure::{Exit, Failure};

/// Options of every command that speaks to a server, for `https://` and `pulsar+ssl://`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TlsFlags {
    /// Who may sign the server's certificate, PEM; whom this machine trusts when left out
    #[arg(
        long,
        global = true,
        alias = "tls-trust-cert-path",
        alias = "tls_trust_cert_path",
        env = "GEMINGA_TLS_TRUST_CERTS_FILE_PATH",
        value_name = "FILE",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    tls_trust_certs_file_path: Option<PathBuf>,
    /// A certificate to show to the server, PEM; it says who you are where no token does
    #[arg(
        long,
        global = true,
        env = "GEMINGA_TLS_CERTIFICATE_FILE_PATH",
        value_name = "FILE",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    tls_certificate_file_path: Option<PathBuf>,
    /// The key of that certificate, PEM
    #[arg(
        long,
        global = true,
        env = "GEMINGA_TLS_KEY_FILE_PATH",
        value_name = "FILE",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    tls_key_file_path: Option<PathBuf>,
    /// Take any certificate: whoever is in between may read and change everything
    #[arg(
        long,
        global = true,
        alias = "tls-allow-insecure",
        alias = "tls_allow_insecure",
        env = "GEMINGA_TLS_ALLOW_INSECURE_CONNECTION",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false",
        hide_default_value = true,
        action = clap::ArgAction::Set,
        hide_short_help = true,
        help_heading = "Global options"
    )]
    tls_allow_insecure_connection: bool,
    /// Whether the certificate has to be for the name in the URL; true when left out
    #[arg(
        long,
        global = true,
        alias = "hostname-verification-enabled",
        alias = "hostname_verification_enabled",
        env = "GEMINGA_TLS_ENABLE_HOSTNAME_VERIFICATION",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "true",
        hide_default_value = true,
        action = clap::ArgAction::Set,
        hide_short_help = true,
        help_heading = "Global options"
    )]
    tls_enable_hostname_verification: bool,
}

impl TlsFlags {
    pub(crate) fn settings(&self) -> TlsSettings {
        // An empty variable sets nothing.
        let file = |path: &Option<PathBuf>| path.clone().filter(|it| !it.as_os_str().is_empty());
        TlsSettings {
            trust_certs_file: file(&self.tls_trust_certs_file_path),
            certificate_file: file(&self.tls_certificate_file_path),
            key_file: file(&self.tls_key_file_path),
            allow_insecure: self.tls_allow_insecure_connection,
            verify_hostname: self.tls_enable_hostname_verification,
        }
    }
}

/// Settings that can not be used.
pub(crate) fn unusable(error: &TlsError) -> Failure {
    let help = match error {
        TlsError::Half => "--tls-certificate-file-path FILE --tls-key-file-path FILE",
        TlsError::NothingTrusted => {
            "--tls-trust-certs-file-path FILE names who signed the server's certificate"
        }
        TlsError::File { .. } | TlsError::Content { .. } | TlsError::Unusable(_) => {
            "--tls-trust-certs-file-path, --tls-certificate-file-path and --tls-key-file-path take files in PEM"
        }
    };
    Failure::new(
        Exit::Usage,
        Diagnostic::error("G0213", error.to_string()).help(help),
    )
}

/// What to do about a connection that failed over TLS; none where TLS is not why.
pub(crate) fn help(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let distrust = Distrust::behind(error).or_else(|| {
        // A client's certificate is judged when the client has shaken hands: the connection just ends.
        let said = crate::failure::with_sources(error);
        let wants = ["CertificateRequired", "certificate required"];
        let wants = wants.iter().any(|words| said.contains(words));
        wants.then_some(Distrust::WantsCertificate)
    })?;
    Some(match distrust {
        Distrust::UnknownIssuer => {
            "name who signed the server's certificate: --tls-trust-certs-file-path FILE (or \
             GEMINGA_TLS_TRUST_CERTS_FILE_PATH)"
        }
        Distrust::OtherName => {
            "reach the server by a name that is in its certificate, or give \
             --tls-enable-hostname-verification=false"
        }
        Distrust::OutOfDate => "renew the server's certificate, or set this machine's clock",
        Distrust::Authority => {
            "the server's certificate is made for signing others: make one with `basicConstraints=CA:FALSE`"
        }
        Distrust::WantsCertificate => {
            "the server wants to know who you are: --tls-certificate-file-path FILE --tls-key-file-path FILE"
        }
        Distrust::RefusesCertificate => {
            "the server does not trust your certificate: give one that its `tlsTrustCertsFilePath` has signed"
        }
        Distrust::NoTls => {
            "that port is without TLS: name the one with TLS, or begin the URL with `pulsar://` or `http://`"
        }
    })
}
