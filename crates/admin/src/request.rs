//! Reading requests: bodies with a limit and a deadline, strict JSON, forms, topics in paths.
//!
//! What must hold: no request makes the server hold more than its limit or wait longer than its
//! deadline, and a field that nobody knows is an error that names the nearest one.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use geminga_functions::{PACKAGE_BYTES_MAX, Spool, Spooled, Worker};
use geminga_model::{NamespaceName, TopicDomain, TopicName};
use geminga_stdx::nearest::nearest;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use crate::error::{Answer, ApiError};
use crate::multipart::{Event, FormError, Head, Splitter};

/// Largest body that is held in memory: JSON documents and the text parts of forms.
pub(crate) const JSON_BYTES_MAX: usize = 1024 * 1024;
/// Largest part of a form that is a file in memory: a message for a trigger.
const HELD_FILE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Largest form: a package and what is said of it.
pub(crate) const FORM_BYTES_MAX: u64 = PACKAGE_BYTES_MAX + JSON_BYTES_MAX as u64;
/// How long a whole JSON body may take.
const JSON_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a form may send nothing.
const FORM_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// The body of a request that is not a form.
pub(crate) async fn bytes(request: Request) -> Answer<Bytes> {
    let mut body = request.into_body();
    let read = async {
        let mut all = BytesMut::new();
        while let Some(chunk) = chunk(&mut body).await? {
            if all.len() + chunk.len() > JSON_BYTES_MAX {
                return Err(ApiError::too_large(format!(
                    "the request body is longer than {JSON_BYTES_MAX} bytes"
                )));
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all.freeze())
    };
    tokio::time::timeout(JSON_READ_TIMEOUT, read)
        .await
        .map_err(|_| ApiError::timeout("the request body did not arrive in time"))?
}

async fn chunk(body: &mut Body) -> Answer<Option<Bytes>> {
    loop {
        let Some(frame) = body.frame().await else {
            return Ok(None);
        };
        let frame =
            frame.map_err(|e| ApiError::bad_request(format!("the request body was cut: {e}")))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
}

/// Reads a body that is not wanted here: a client that is answered before it has sent all may find its connection
/// closed, and not see the answer.
pub(crate) async fn discard(body: Body) {
    let mut body = body;
    let mut total = 0;
    while let Ok(Ok(Some(bytes))) = tokio::time::timeout(FORM_IDLE_TIMEOUT, chunk(&mut body)).await
    {
        total += bytes.len() as u64;
        if total > FORM_BYTES_MAX {
            return;
        }
    }
}

/// The body as JSON; an empty body is an error.
pub(crate) async fn json<T: DeserializeOwned>(request: Request) -> Answer<T> {
    from_json(&bytes(request).await?)
}

/// The body as JSON, or none when there is no body.
pub(crate) async fn json_or_none<T: DeserializeOwned>(request: Request) -> Answer<Option<T>> {
    let bytes = bytes(request).await?;
    if bytes.trim_ascii().is_empty() {
        Ok(None)
    } else {
        from_json::<Option<T>>(&bytes)
    }
}

/// Reads JSON; the error says what was wrong, and which field was probably meant.
pub(crate) fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Answer<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| ApiError::bad_request(explain(&error.to_string())))
}

/// Adds the nearest name to serde's message about a name that it does not know.
pub(crate) fn explain(message: &str) -> String {
    let unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    if unknown {
        explain_name(message)
    } else {
        format!("the JSON is not valid: {message}")
    }
}

/// Adds the nearest name to serde's message, when it is about a name.
pub(crate) fn explain_name(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(word) = quoted.next() else {
        return message.to_owned();
    };
    match nearest(word, quoted) {
        Some(name) => {
            let what = message.split(',').next().unwrap_or(message);
            format!("{what}; did you mean `{name}`?")
        }
        None => message.to_owned(),
    }
}

/// A part of a form that has been read.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) file_name: Option<String>,
    pub(crate) bytes: Bytes,
    /// The content of a file that was written to disk as it came.
    pub(crate) spooled: Option<Spooled>,
}

impl Part {
    /// The part as text.
    pub(crate) fn text(&self) -> Answer<&str> {
        std::str::from_utf8(&self.bytes)
            .map_err(|_| ApiError::bad_request(format!("part `{}` is not UTF-8", self.name)))
    }
}

/// What becomes of a part's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Text, within the limit of all text.
    Text,
    /// Bytes in memory.
    Held,
    /// A file on disk.
    Spooled,
}

/// Reads a form; `keep` says what becomes of a part by its name. A part given twice is an error.
/// Files are written to disk as they come: a form holds no more memory than its text. A few forms
/// are read at once; more wait, so that memory stays bounded.
pub(crate) async fn form(
    request: Request,
    worker: Option<&Worker>,
    keep: impl Fn(&str) -> Keep,
) -> Answer<Vec<Part>> {
    static READING: Semaphore = Semaphore::const_new(8);
    let Ok(_permit) = tokio::time::timeout(FORM_IDLE_TIMEOUT, READING.acquire()).await else {
        return Err(ApiError::unavailable("too many uploads at once: try again"));
    };
    let content_type = content_type(request.headers());
    let mut splitter = Splitter::new(&content_type)
        .map_err(|error| ApiError::unsupported_media(error.to_string()))?;
    let mut body = request.into_body();
    let mut parts: Vec<Part> = Vec::new();
    let mut content = BytesMut::new();
    let mut spool: Option<Spool> = None;
    let (mut total, mut text_total) = (0u64, 0usize);
    loop {
        let next = tokio::time::timeout(FORM_IDLE_TIMEOUT, chunk(&mut body))
            .await
            .map_err(|_| ApiError::timeout("the form stopped arriving"))??;
        let Some(bytes) = next else { break };
        total += bytes.len() as u64;
        if total > FORM_BYTES_MAX {
            return Err(ApiError::too_large(format!(
                "the form is longer than {FORM_BYTES_MAX} bytes"
            )));
        }
        splitter.push(&bytes);
        while let Some(event) = splitter.next().map_err(bad_form)? {
            match event {
                Event::Part(head) => {
                    if parts.iter().any(|part| part.name == head.name) {
                        return Err(ApiError::bad_request(format!(
                            "part `{}` is given twice",
                            head.name
                        )));
                    }
                    let Head { name, file_name } = head;
                    if let (Keep::Spooled, Some(worker)) = (keep(&name), worker) {
                        spool = Some(worker.spool().await?);
                    }
                    parts.push(Part {
                        name,
                        file_name,
                        bytes: Bytes::new(),
                        spooled: None,
                    });
                }
                Event::Data(bytes) => {
                    if let Some(spool) = &mut spool {
                        let written = spool.write(&bytes).await;
                        written.map_err(|error| ApiError::too_large(error.to_string()))?;
                        continue;
                    }
                    let kept = parts.last().map_or(Keep::Text, |part| keep(&part.name));
                    if kept == Keep::Text {
                        text_total += bytes.len();
                        if text_total > JSON_BYTES_MAX {
                            return Err(ApiError::too_large(format!(
                                "the text parts of the form are longer than {JSON_BYTES_MAX} bytes"
                            )));
                        }
                    } else if content.len() + bytes.len() > HELD_FILE_BYTES_MAX {
                        return Err(ApiError::too_large(format!(
                            "a file of the form is longer than {HELD_FILE_BYTES_MAX} bytes"
                        )));
                    }
                    content.extend_from_slice(&bytes);
                }
                Event::PartEnd => {
                    if let Some(part) = parts.last_mut() {
                        part.bytes = content.split().freeze();
                        if let Some(spool) = spool.take() {
                            let spooled = spool.finish().await;
                            let spooled =
                                spooled.map_err(|error| ApiError::internal(error.to_string()))?;
                            part.spooled = Some(spooled);
                        }
                    }
                }
                Event::End => {}
            }
        }
    }
    splitter.finish().map_err(bad_form)?;
    Ok(parts)
}

/// Refuses parts that nobody reads.
pub(crate) fn only_parts(parts: &[Part], known: &[&str]) -> Answer<()> {
    match parts
        .iter()
        .find(|part| !known.contains(&part.name.as_str()))
    {
        None => Ok(()),
        Some(part) => Err(ApiError::bad_request(format!(
            "the form has an unknown part `{}`; known are `{}`",
            part.name,
            known.join("`, `")
        ))),
    }
}

fn bad_form(error: FormError) -> ApiError {
    ApiError::bad_request(error.to_string())
}

pub(crate) fn content_type(headers: &HeaderMap) -> String {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

/// A topic from the decoded segments of a path.
pub(crate) fn topic(
    domain: TopicDomain,
    tenant: &str,
    namespace: &str,
    local: &str,
) -> Answer<TopicName> {
    let namespace = namespace_name(tenant, namespace)?;
    TopicName::new(domain, &namespace, local)
        .map_err(|error| ApiError::precondition_failed(error.to_string()))
}

/// A namespace from the decoded segments of a path.
pub(crate) fn namespace_name(tenant: &str, namespace: &str) -> Answer<NamespaceName> {
    NamespaceName::new(tenant, namespace)
        .map_err(|error| ApiError::precondition_failed(error.to_string()))
}

/// A namespace from its name as the broker lists it.
pub(crate) fn namespace_name_of(name: &str) -> Answer<NamespaceName> {
    name.parse()
        .map_err(|error: geminga_model::NameError| ApiError::internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct Info {
        #[expect(dead_code, reason = "read by serde only")]
        admin_roles: Vec<String>,
    }

    #[test]
    fn an_unknown_field_is_refused_with_the_nearest_name() {
        let refused = from_json::<Info>(br#"{"adminRole":[]}"#).unwrap_err();
        assert_eq!(refused.status.as_u16(), 400);
        assert_eq!(
            refused.reason,
            "unknown field `adminRole`; did you mean `adminRoles`?"
        );
        let refused = from_json::<Info>(br#"{"zebra":[]}"#).unwrap_err();
        assert!(refused.reason.contains("`zebra`"), "{refused}");
        assert_eq!(from_json::<Info>(b"{").unwrap_err().status.as_u16(), 400);
    }
}
