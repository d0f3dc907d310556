//! A function over HTTP: `POST /functions/{tenant}/{namespace}/{name}`. The body is the message, the
//! answer is the function's first output for it.
//!
//! What must hold: a call holds bounded memory and ends within its time; when there are too many, the
//! next one is refused at once and told when to come again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Router};
use bytes::Bytes;
use geminga_broker::auth::Session;
use geminga_functions::{Answered, Asked, ComponentId, FUNCTION, Kind, WorkerError};
use http_body_util::{BodyExt, Limited};
use parking_lot::Mutex;

use super::super::extract::Segments;
use super::super::functions::state::Functions;
use super::{Named, rights};
use crate::error::{Answer, ApiError};

/// Longest message: what a broker takes as it comes.
const BODY_BYTES_MAX: usize = 5 * 1024 * 1024;
/// How long a caller may take to send it.
const BODY_LIMIT: Duration = Duration::from_secs(15);
/// How long an answer may take when the caller does not say, and at most.
const LIMIT_DEFAULT: Duration = Duration::from_secs(30);
const LIMIT_MAX: Duration = Duration::from_secs(300);
/// Calls under way at once, of one function and of all.
const CALLS_OF_ONE_MAX: usize = 64;
const CALLS_MAX: usize = 512;

const KEY: &str = "x-pulsar-key";
const EVENT_TIME: &str = "x-pulsar-event-time";
const TOPIC: &str = "x-pulsar-topic";
const TIMEOUT: &str = "x-pulsar-timeout-ms";
const PROPERTY: &str = "x-pulsar-property-";
/// Trace context, which travels as it is.
const TRACE: [&str; 3] = ["traceparent", "tracestate", "baggage"];

pub(super) fn router() -> Router<Functions> {
    let calls = Arc::new(Calls::default());
    Router::new().route(
        "/functions/{tenant}/{namespace}/{name}",
        post(move |functions, session, named, request| {
            call(calls.clone(), functions, session, named, request)
        }),
    )
}

/// Calls under way.
#[derive(Default)]
struct Calls(Mutex<HashMap<ComponentId, usize>>);

struct Call {
    calls: Arc<Calls>,
    id: ComponentId,
}

impl Calls {
    fn begin(self: &Arc<Self>, id: &ComponentId) -> Option<Call> {
        let mut calls = self.0.lock();
        let all: usize = calls.values().sum();
        let own = calls.get(id).copied().unwrap_or_default();
        if all >= CALLS_MAX || own >= CALLS_OF_ONE_MAX {
            return None;
        }
        calls.insert(id.clone(), own + 1);
        Some(Call {
            calls: self.clone(),
            id: id.clone(),
        })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut calls = self.calls.0.lock();
        if let Some(count) = calls.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                calls.remove(&self.id);
            }
        }
    }
}

async fn call(
    calls: Arc<Calls>,
    State(functions): State<Functions>,
    Extension(session): Extension<Session>,
    Segments(named): Segments<Named>,
    request: Request,
) -> Answer {
    let worker = functions.worker()?;
    let id = named.id(Kind::Function);
    worker.get(&id)?;
    let Some(_call) = calls.begin(&id) else {
        let refused = ApiError {
            status: StatusCode::TOO_MANY_REQUESTS,
            reason: format!("too many calls of {} are under way", id.fqfn()),
        };
        let mut response = refused.into_response();
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        return Ok(response);
    };
    let (head, body) = request.into_parts();
    let mut asked = asked(&head.headers)?;
    let input = rights::asked(&functions, &session, &id, asked.topic.as_deref())?;
    asked.topic = Some(input);
    let body = tokio::time::timeout(BODY_LIMIT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    asked.payload = match body {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => {
            return Err(ApiError::too_large(format!(
                "the body was cut, or is longer than {BODY_BYTES_MAX} bytes"
            )));
        }
        Err(_) => return Err(ApiError::timeout("the body did not arrive in time")),
    };
    match worker.trigger(&id, asked).await {
        Ok(Answered::Nothing) => Ok(StatusCode::ACCEPTED.into_response()),
        Ok(Answered::Output {
            payload,
            key,
            properties,
        }) => Ok(output(payload, key, &properties)),
        Ok(Answered::Failed(why)) => Err(ApiError::internal(why)),
        Err(error @ WorkerError::Timeout { .. }) => Err(ApiError {
            status: StatusCode::GATEWAY_TIMEOUT,
            reason: error.to_string(),
        }),
        Err(error) => Err(error.into()),
    }
}

/// What the headers say of the message.
fn asked(headers: &HeaderMap) -> Answer<Asked> {
    let text = |name: &str| -> Answer<Option<String>> {
        let Some(value) = headers.get(name) else {
            return Ok(None);
        };
        let text = std::str::from_utf8(value.as_bytes());
        text.map(|text| Some(text.to_owned()))
            .map_err(|_| ApiError::bad_request(format!("the header `{name}` is not UTF-8")))
    };
    let number = |name: &str| -> Answer<Option<u64>> {
        let Some(text) = text(name)? else {
            return Ok(None);
        };
        text.trim().parse().map(Some).map_err(|_| {
            ApiError::bad_request(format!("the header `{name}` is no number: `{text}`"))
        })
    };
    let mut properties = Vec::new();
    for (name, value) in headers {
        let name = name.as_str();
        let property = name.strip_prefix(PROPERTY);
        let property = property.or_else(|| TRACE.contains(&name).then_some(name));
        if let Some(property) = property {
            let value = std::str::from_utf8(value.as_bytes())
                .map_err(|_| ApiError::bad_request(format!("the header `{name}` is not UTF-8")))?;
            properties.push((property.to_owned(), value.to_owned()));
        }
    }
    let limit = number(TIMEOUT)?.map_or(LIMIT_DEFAULT, Duration::from_millis);
    Ok(Asked {
        topic: text(TOPIC)?,
        payload: Bytes::new(),
        key: text(KEY)?,
        properties,
        event_time_ms: number(EVENT_TIME)?,
        limit: limit.min(LIMIT_MAX),
    })
}

/// The function's output. What no header can hold is left out of the headers.
fn output(payload: Bytes, key: Option<String>, properties: &[(String, String)]) -> Response {
    let mut response = payload.into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    let mut put = |name: &str, value: &str| {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
            headers.insert(name, value);
        }
    };
    if let Some(key) = key {
        put(KEY, &key);
    }
    for (name, value) in properties {
        if name.starts_with("__pfn_") || name == FUNCTION {
            continue;
        }
        if name.eq_ignore_ascii_case("content-type") {
            put("content-type", value);
        } else if TRACE.contains(&name.as_str()) {
            put(name, value);
        } else {
            put(&format!("{PROPERTY}{name}"), value);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_become_a_message_and_a_message_becomes_headers() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-pulsar-key", "k"),
            ("x-pulsar-property-colour", "red"),
            ("traceparent", "00-1-2-01"),
            ("x-pulsar-event-time", "12"),
            ("x-pulsar-timeout-ms", "99999999"),
            ("accept", "*/*"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let got = asked(&headers).unwrap();
        assert_eq!(
            (got.key.as_deref(), got.event_time_ms),
            (Some("k"), Some(12))
        );
        assert_eq!(got.limit, LIMIT_MAX);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            got.properties,
            [pair("colour", "red"), pair("traceparent", "00-1-2-01")]
        );
        headers.insert("x-pulsar-event-time", HeaderValue::from_static("soon"));
        assert_eq!(asked(&headers).unwrap_err().status, StatusCode::BAD_REQUEST);

        let properties = [
            pair("a", "1"),
            pair("__pfn_input_topic__", "t"),
            pair("geminga.function", "t/n/f"),
            pair("b", "x\ny"),
            pair("content-type", "text/html"),
        ];
        let response = output(Bytes::from_static(b"x"), Some("k".to_owned()), &properties);
        assert_eq!(response.headers()["x-pulsar-property-a"], "1");
        assert_eq!(response.headers()["content-type"], "text/html");
        assert_eq!(response.headers().len(), 3);
    }

    #[test]
    fn too_many_calls_are_counted_and_forgotten() {
        let calls = Arc::new(Calls::default());
        let id = ComponentId::new(Kind::Function, "t", "n", "f");
        let under_way: Vec<Call> = (0..CALLS_OF_ONE_MAX)
            .filter_map(|_| calls.begin(&id))
            .collect();
        assert_eq!(under_way.len(), CALLS_OF_ONE_MAX);
        assert!(calls.begin(&id).is_none());
        assert!(
            calls
                .begin(&ComponentId::new(Kind::Function, "t", "n", "g"))
                .is_some()
        );
        drop(under_way);
        assert!(calls.0.lock().is_empty() && calls.begin(&id).is_some());
    }
}
