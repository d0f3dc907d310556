//! JSON web tokens: made and verified as Pulsar does.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde_json::{Map, Value, json};

use super::key::{pem, read_key};
use super::{AuthError, Identity, SecurityConfig};
use crate::error::BrokerError;

/// Bytes of a token; larger ones are not looked at.
const TOKEN_BYTES_MAX: usize = 16 << 10;
/// Fewer can be guessed.
const SECRET_BYTES_MIN: usize = 32;

pub(crate) struct TokenVerifier {
    keys: Vec<(DecodingKey, Vec<Algorithm>)>,
    role_claim: String,
    audience: Option<(String, String)>,
    skew_ms: u64,
}

impl TokenVerifier {
    pub(crate) fn new(config: &SecurityConfig) -> Result<TokenVerifier, BrokerError> {
        let bad = |setting, reason| BrokerError::BadSetting { setting, reason };
        let mut keys = Vec::new();
        if let Some(given) = config
            .token_secret_key
            .as_deref()
            .filter(|it| !it.is_empty())
        {
            let setting = "tokenSecretKey";
            let key = read_key(given).map_err(|reason| bad(setting, reason))?;
            if key.len() < SECRET_BYTES_MIN {
                return Err(bad(setting, "must have 32 bytes or more"));
            }
            keys.push((DecodingKey::from_secret(&key), hmacs()));
        }
        if let Some(given) = config
            .token_public_key
            .as_deref()
            .filter(|it| !it.is_empty())
        {
            let setting = "tokenPublicKey";
            let key = read_key(given).map_err(|reason| bad(setting, reason))?;
            let key = pem(&key, "PUBLIC KEY");
            let family = family(&config.token_public_alg).ok_or(bad(
                "tokenPublicAlg",
                "must be one of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384",
            ))?;
            let read = match is_elliptic(&family) {
                true => DecodingKey::from_ec_pem(&key),
                false => DecodingKey::from_rsa_pem(&key),
            };
            let key = read.map_err(|_| bad(setting, "is no public key of tokenPublicAlg"))?;
            keys.push((key, family));
        }
        if keys.is_empty() {
            return Err(bad("tokenSecretKey", "or tokenPublicKey must be set"));
        }
        let audience = config.token_audience.clone();
        let claim = config.token_audience_claim.clone();
        Ok(TokenVerifier {
            keys,
            role_claim: config.token_auth_claim.clone(),
            audience: audience.map(|it| (claim.unwrap_or_else(|| "aud".to_owned()), it)),
            skew_ms: config
                .token_allowed_clock_skew_seconds
                .saturating_mul(1_000),
        })
    }

    pub(crate) fn verify(&self, token: &str, now_ms: u64) -> Result<Identity, AuthError> {
        let token = token.trim();
        if token.is_empty() {
            return Err(AuthError::Missing);
        }
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::Wrong("the token is too long"));
        }
        let verified = self
            .keys
            .iter()
            .find_map(|(key, algorithms)| verified_claims(token, key, algorithms));
        let claims = verified.ok_or(AuthError::Wrong("the token's signature is not valid"))?;
        let time = |claim: &str| match claims.get(claim) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                // Milliseconds of any year that counts fit.
                Some(seconds) if seconds >= 0.0 => Ok(Some((seconds * 1_000.0) as u64)),
                _ => Err(AuthError::Wrong("a time in the token is no number")),
            },
        };
        let expires_ms = time("exp")?.map(|at| at.saturating_add(self.skew_ms));
        if expires_ms.is_some_and(|at| at <= now_ms) {
            return Err(AuthError::Wrong("the token has expired"));
        }
        if time("nbf")?.is_some_and(|at| at > now_ms.saturating_add(self.skew_ms)) {
            return Err(AuthError::Wrong("the token is not valid yet"));
        }
        if let Some((claim, audience)) = &self.audience
            && !has(claims.get(claim), audience)
        {
            return Err(AuthError::Wrong("the token is for somebody else"));
        }
        let role = match claims.get(&self.role_claim) {
            Some(Value::String(role)) => Some(role.as_str()),
            Some(Value::Array(roles)) => roles.first().and_then(Value::as_str),
            _ => None,
        };
        match role.filter(|role| !role.is_empty()) {
            Some(role) => Ok(Identity {
                role: role.to_owned(),
                expires_ms,
            }),
            None => Err(AuthError::Wrong("the token names no role")),
        }
    }
}

fn verified_claims(
    token: &str,
    key: &DecodingKey,
    algorithms: &[Algorithm],
) -> Option<Map<String, Value>> {
    let mut rules = Validation::new(*algorithms.first()?);
    rules.algorithms = algorithms.to_vec();
    rules.required_spec_claims.clear();
    // Checked by the caller, with its own clock.
    rules.validate_exp = false;
    rules.validate_nbf = false;
    rules.validate_aud = false;
    decode::<Map<String, Value>>(token, key, &rules)
        .ok()
        .map(|token| token.claims)
}

fn has(claim: Option<&Value>, wanted: &str) -> bool {
    match claim {
        Some(Value::String(one)) => one == wanted,
        Some(Value::Array(all)) => all.iter().any(|one| one.as_str() == Some(wanted)),
        _ => false,
    }
}

fn hmacs() -> Vec<Algorithm> {
    vec![Algorithm::HS256, Algorithm::HS384, Algorithm::HS512]
}

/// The algorithms that a public key for this one may verify.
fn family(algorithm: &str) -> Option<Vec<Algorithm>> {
    use Algorithm::{ES256, ES384, PS256, PS384, PS512, RS256, RS384, RS512};
    Some(match algorithm {
        "RS256" | "RS384" | "RS512" | "PS256" | "PS384" | "PS512" => {
            vec![RS256, RS384, RS512, PS256, PS384, PS512]
        }
        "ES256" => vec![ES256],
        "ES384" => vec![ES384],
        _ => return None,
    })
}

fn is_elliptic(family: &[Algorithm]) -> bool {
    matches!(family, [Algorithm::ES256] | [Algorithm::ES384])
}

/// Why a token was not made.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MakeError(pub String);

/// What a token is signed with.
pub enum SigningKey<'a> {
    Secret(&'a [u8]),
    /// PKCS #8.
    Private(&'a [u8]),
}

/// Makes a token for a role. `algorithm` is HS256 or RS256 unless named.
pub fn make(
    key: &SigningKey<'_>,
    algorithm: Option<&str>,
    subject: &str,
    expires_seconds: Option<u64>,
) -> Result<String, MakeError> {
    let fail = |text: &str| MakeError(text.to_owned());
    let (default, bytes) = match key {
        SigningKey::Secret(bytes) => ("HS256", bytes),
        SigningKey::Private(bytes) => ("RS256", bytes),
    };
    let name = algorithm.unwrap_or(default);
    let algorithm: Algorithm = name
        .parse()
        .map_err(|_| MakeError(format!("`{name}` is no algorithm for tokens")))?;
    let encoding = match key {
        SigningKey::Secret(_) if bytes.len() < SECRET_BYTES_MIN => {
            return Err(fail("the secret key must have 32 bytes or more"));
        }
        SigningKey::Secret(bytes) => EncodingKey::from_secret(bytes),
        SigningKey::Private(bytes) => {
            let pem = pem(bytes, "PRIVATE KEY");
            let read = match name.starts_with("ES") {
                true => EncodingKey::from_ec_pem(&pem),
                false => EncodingKey::from_rsa_pem(&pem),
            };
            read.map_err(|_| fail("that is no private key of the algorithm"))?
        }
    };
    let mut header = Header::new(algorithm);
    // As Pulsar's.
    header.typ = None;
    let mut claims = json!({ "sub": subject });
    if let Some(at) = expires_seconds {
        claims["exp"] = at.into();
    }
    encode(&header, &claims, &encoding)
        .map_err(|_| MakeError(format!("the key does not fit `{name}`")))
}

/// Who a token is for, if the broker with these settings would take it.
pub fn validate(config: &SecurityConfig, token: &str, now_ms: u64) -> Result<Identity, MakeError> {
    let verifier = TokenVerifier::new(config).map_err(|error| MakeError(error.to_string()))?;
    verifier
        .verify(token, now_ms)
        .map_err(|error| MakeError(error.to_string()))
}

/// A new random key for HMAC.
pub fn new_secret_key() -> Result<[u8; 32], MakeError> {
    let mut key = [0; 32];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut key)
        .map_err(|_| MakeError("the system gives no random bytes".to_owned()))?;
    Ok(key)
}

#[cfg(test)]
mod tests;
