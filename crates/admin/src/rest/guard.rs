//! The door: finds out who asks, and lets through what they may ask for.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use geminga_broker::auth::{AuthError, Credentials, Session};
use geminga_proto::key::decode_base64;

use super::Admin;
use super::origin;
use super::rules::{Rule, rule};
use crate::error::{Answer, ApiError};

/// The name in the certificate that the client of a connection showed.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClientCertificate(pub(crate) Option<String>);

/// Whom a proxy speaks for.
const ORIGINAL_PRINCIPAL: &str = "x-original-principal";

pub(super) async fn guard(
    State(admin): State<Admin>,
    mut request: Request,
    next: Next,
) -> Response {
    match check(&admin, &request) {
        Ok(session) => {
            // For endpoints that ask for more than their path says.
            request.extensions_mut().insert(session);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

/// Who asks. Where nobody is asked, and for what is open to all: nobody.
fn check(admin: &Admin, request: &Request) -> Answer<Session> {
    origin::check(admin, request, has_token(request))?;
    let broker = admin.broker();
    if !broker.asks_who() {
        return Ok(Session::default());
    }
    let guarded = rule(request.method(), request.uri().path());
    let is_asked = match guarded.rule {
        Rule::Metrics => broker.config().security.authenticate_metrics_endpoint,
        _ => true,
    };
    let Some(need) = guarded.rule.need().filter(|_| is_asked) else {
        return Ok(Session::default());
    };
    let session = log_in(admin, request).map_err(|reason| {
        tracing::info!(%reason, path = request.uri().path(), "an admin request was not let in");
        // No more than Pulsar says.
        ApiError::unauthorized("Authentication required")
    })?;
    match broker.authorize(&session, &need) {
        Ok(()) => Ok(session),
        Err(error) => Err(ApiError {
            status: guarded.refused,
            reason: error.to_string(),
        }),
    }
}

fn log_in(admin: &Admin, request: &Request) -> Result<Session, AuthError> {
    let headers = request.headers();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let basic;
    let given = text(header::AUTHORIZATION.as_str()).and_then(|value| value.split_once(' '));
    let certificate = request
        .extensions()
        .get::<ClientCertificate>()
        .and_then(|shown| shown.0.as_deref());
    let in_query = token_in_query(request);
    let credentials = match given {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Credentials::Token(token),
        Some((scheme, pair)) if scheme.eq_ignore_ascii_case("basic") => {
            basic = decode_base64(pair.trim()).and_then(|bytes| String::from_utf8(bytes).ok());
            Credentials::Basic(basic.as_deref().unwrap_or_default())
        }
        Some(_) => Credentials::Unknown,
        None if has_no_other(headers, certificate) => match in_query {
            Some(token) => Credentials::Token(token),
            None => Credentials::None,
        },
        None => Credentials::Certificate,
    };
    admin
        .broker()
        .login(credentials, certificate, text(ORIGINAL_PRINCIPAL))
}

/// Whether whoever asks shows a token: no browser adds one by itself.
fn has_token(request: &Request) -> bool {
    let header = request.headers().get(header::AUTHORIZATION);
    let bearer = header.and_then(|value| value.to_str().ok());
    let is_bearer = |value: &str| {
        let scheme = value.split_once(' ').map(|(scheme, _)| scheme);
        scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer"))
    };
    bearer.is_some_and(is_bearer) || token_in_query(request).is_some()
}

fn has_no_other(headers: &HeaderMap, certificate: Option<&str>) -> bool {
    !headers.contains_key(header::AUTHORIZATION) && certificate.is_none()
}

/// Browsers cannot set headers on a WebSocket.
fn token_in_query(request: &Request) -> Option<&str> {
    if !request.uri().path().starts_with("/ws/") {
        return None;
    }
    let mut pairs = request.uri().query()?.split('&');
    pairs.find_map(|pair| pair.strip_prefix("token="))
}
