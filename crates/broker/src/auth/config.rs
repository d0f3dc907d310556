//! The settings of security, under Pulsar's names.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::BrokerError;

/// Who may come in, and what they may do. All off by default.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SecurityConfig {
    /// Whether clients must say who they are.
    pub authentication_enabled: bool,
    /// Pulsar's provider classes, or just `token`, `tls`, `basic`.
    pub authentication_providers: Vec<String>,
    /// How long a client has to renew credentials that have expired.
    pub authentication_refresh_check_seconds: u64,
    /// Whether a proxy's clients are asked for their own credentials.
    pub authenticate_original_auth_data: bool,
    /// Role of clients without credentials; unset = they are refused.
    pub anonymous_user_role: Option<String>,
    /// Whether `/metrics` asks who wants them.
    pub authenticate_metrics_endpoint: bool,

    /// Whether clients may do only what was granted to them.
    pub authorization_enabled: bool,
    /// Roles that may do everything.
    pub super_user_roles: Vec<String>,
    /// Roles that may speak for others.
    pub proxy_roles: Vec<String>,
    /// Whether `*` at the start or end of a granted role stands for anything.
    pub authorization_allow_wildcards_matching: bool,

    /// A key for tokens signed with HMAC: `file:`, `data:;base64,`, `env:`, a path or base64.
    pub token_secret_key: Option<String>,
    /// A key for tokens signed with a private key.
    pub token_public_key: Option<String>,
    pub token_public_alg: String,
    /// The claim that is the role.
    pub token_auth_claim: String,
    pub token_audience_claim: Option<String>,
    pub token_audience: Option<String>,
    pub token_allowed_clock_skew_seconds: u64,
    /// An htpasswd file, or its content as `data:;base64,`.
    pub basic_auth_conf: Option<String>,

    /// Port of the binary protocol with TLS.
    pub broker_service_port_tls: Option<u16>,
    /// Port of the admin API with TLS.
    pub web_service_port_tls: Option<u16>,
    pub tls_certificate_file_path: Option<PathBuf>,
    pub tls_key_file_path: Option<PathBuf>,
    /// Who may sign clients' certificates.
    pub tls_trust_certs_file_path: Option<PathBuf>,
    pub tls_require_trusted_client_cert_on_connect: bool,
    /// How often the files are looked at for new certificates.
    pub tls_cert_refresh_check_duration_sec: u64,
}

impl Default for SecurityConfig {
    fn default() -> SecurityConfig {
        SecurityConfig {
            authentication_enabled: false,
            authentication_providers: Vec::new(),
            authentication_refresh_check_seconds: 60,
            authenticate_original_auth_data: false,
            anonymous_user_role: None,
            authenticate_metrics_endpoint: false,
            authorization_enabled: false,
            super_user_roles: Vec::new(),
            proxy_roles: Vec::new(),
            authorization_allow_wildcards_matching: false,
            token_secret_key: None,
            token_public_key: None,
            token_public_alg: "RS256".to_owned(),
            token_auth_claim: "sub".to_owned(),
            token_audience_claim: None,
            token_audience: None,
            token_allowed_clock_skew_seconds: 0,
            basic_auth_conf: None,
            broker_service_port_tls: None,
            web_service_port_tls: None,
            tls_certificate_file_path: None,
            tls_key_file_path: None,
            tls_trust_certs_file_path: None,
            tls_require_trusted_client_cert_on_connect: false,
            tls_cert_refresh_check_duration_sec: 300,
        }
    }
}

/// Some settings are keys, or hold one.
impl std::fmt::Debug for SecurityConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecurityConfig")
            .field("authentication_enabled", &self.authentication_enabled)
            .field("authentication_providers", &self.authentication_providers)
            .field("authorization_enabled", &self.authorization_enabled)
            .finish_non_exhaustive()
    }
}

impl SecurityConfig {
    /// `Token`, `Tls` or `Basic`.
    pub(crate) fn has_provider(&self, name: &str) -> bool {
        let mut providers = self.authentication_providers.iter();
        providers.any(|given| provider(given) == Some(name))
    }

    pub(crate) fn check(&self) -> Result<(), BrokerError> {
        let bad = |setting: &'static str, reason: &'static str| {
            Err(BrokerError::BadSetting { setting, reason })
        };
        let known = |given: &String| provider(given).is_some();
        if !self.authentication_providers.iter().all(known) {
            return bad(
                "authenticationProviders",
                "names a class that is none of Pulsar's token, TLS and basic providers",
            );
        }
        if self.authentication_enabled
            && self.authentication_providers.is_empty()
            && self.anonymous_user_role.is_none()
        {
            return bad(
                "authenticationProviders",
                "must name one where authenticationEnabled is on",
            );
        }
        if self.authorization_enabled && !self.authentication_enabled {
            return bad("authorizationEnabled", "needs authenticationEnabled");
        }
        if self.authentication_refresh_check_seconds == 0 {
            return bad("authenticationRefreshCheckSeconds", "must be above 0");
        }
        if self.tls_certificate_file_path.is_some() != self.tls_key_file_path.is_some() {
            return bad(
                "tlsKeyFilePath",
                "and tlsCertificateFilePath need each other",
            );
        }
        let has_port =
            self.broker_service_port_tls.is_some() || self.web_service_port_tls.is_some();
        if has_port && self.tls_certificate_file_path.is_none() {
            return bad("tlsCertificateFilePath", "must be set for a TLS port");
        }
        if self.tls_require_trusted_client_cert_on_connect
            && self.tls_trust_certs_file_path.is_none()
        {
            return bad(
                "tlsTrustCertsFilePath",
                "must be set where tlsRequireTrustedClientCertOnConnect is on",
            );
        }
        if self.authentication_enabled
            && self.has_provider("Tls")
            && self.tls_trust_certs_file_path.is_none()
        {
            return bad(
                "tlsTrustCertsFilePath",
                "must be set where clients are known by their certificates",
            );
        }
        if self.token_audience_claim.is_some() && self.token_audience.is_none() {
            return bad("tokenAudience", "must be set where tokenAudienceClaim is");
        }
        Ok(())
    }
}

fn provider(given: &str) -> Option<&'static str> {
    let class = given.rsplit('.').next().unwrap_or(given);
    let name = class
        .strip_prefix("AuthenticationProvider")
        .unwrap_or(class);
    ["Token", "Tls", "Basic"]
        .into_iter()
        .find(|known| known.eq_ignore_ascii_case(name))
}
