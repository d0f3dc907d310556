//! `/lookup/v2`: where a topic is served, for clients whose service URL is an HTTP address.

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::get;
use geminga_broker::ErrorKind;
use geminga_model::TopicDomain;
use serde_json::json;

use super::extract::{Params, Segments};
use super::{Admin, document, text};
use crate::error::{Answer, ApiError};
use crate::request;

/// By which clients ask for the addresses of a listener.
const LISTENER_NAME: &str = "X-Pulsar-ListenerName";

pub(super) fn router() -> Router<Admin> {
    let topic = "/lookup/v2/topic/{domain}/{tenant}/{namespace}/{topic}";
    Router::new()
        .route(topic, get(lookup))
        .route(&format!("{topic}/bundle"), get(bundle))
}

#[derive(serde::Deserialize)]
struct Named {
    domain: String,
    tenant: String,
    namespace: String,
    topic: String,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct LookupParams {
    #[serde(rename = "authoritative")]
    _authoritative: Option<bool>,
    #[serde(rename = "listenerName")]
    listener_name: Option<String>,
}

fn check(named: &Named) -> Answer<geminga_model::TopicName> {
    let domain = match named.domain.as_str() {
        "persistent" => TopicDomain::Persistent,
        "non-persistent" => TopicDomain::NonPersistent,
        other => {
            return Err(ApiError::precondition_failed(format!(
                "unknown topic domain `{other}`"
            )));
        }
    };
    request::topic(domain, &named.tenant, &named.namespace, &named.topic)
}

async fn lookup(
    State(admin): State<Admin>,
    Segments(named): Segments<Named>,
    Params(params): Params<LookupParams>,
    headers: HeaderMap,
) -> Answer {
    let header = match headers.get(LISTENER_NAME).map(|value| value.to_str()) {
        Some(Ok(name)) => Some(name.to_owned()),
        Some(Err(_)) => {
            return Err(ApiError::bad_request(format!(
                "`{LISTENER_NAME}` is not text"
            )));
        }
        None => None,
    };
    let listener = params.listener_name.filter(|name| !name.is_empty());
    let listener = listener.or(header).filter(|name| !name.is_empty());
    let topic = check(&named)?;
    let urls = admin.broker().lookup(&topic, listener.as_deref()).await;
    let urls = urls.map_err(|error| match &listener {
        Some(name) if error.kind() == ErrorKind::Unavailable => {
            ApiError::bad_request(format!("`listenerName` {name} is not configured: {error}"))
        }
        _ => error.into(),
    })?;
    let mut answer = json!({
        "httpUrl": urls.http.unwrap_or_else(|| admin.http_url().to_owned()),
        "brokerUrlSsl": "",
    });
    for (name, url) in [
        ("brokerUrl", &urls.pulsar),
        ("nativeUrl", &urls.pulsar),
        ("brokerUrlTls", &urls.pulsar_ssl),
        ("httpUrlTls", &urls.https),
    ] {
        if let Some(url) = url {
            answer[name] = json!(url);
        }
    }
    document(&answer)
}

/// The range of the hash that the topic's name falls into.
async fn bundle(State(admin): State<Admin>, Segments(named): Segments<Named>) -> Answer {
    let topic = check(&named)?;
    let bundles = admin.broker().policies(&topic.namespace()).await?.bundles;
    Ok(text(bundles.range(bundles.of(&topic))))
}
