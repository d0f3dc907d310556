//! The admin client: what the command line uses to ask a running server, Geminga or Pulsar.
//!
//! Owns one HTTP connection pool. What must hold: an answer with a failure status is an error that
//! carries the server's reason, and a server that cannot be reached is told apart from one that
//! refuses.

mod connect;
mod form;
mod functions;
mod payload;
mod topics;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use geminga_client::tls::TlsError;
use geminga_client::{Tls, TlsSettings};
use http_body_util::{BodyExt, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use hyper::{Request, StatusCode, Uri};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;

pub use form::Form;
pub use functions::{Code, Component, Fqfn, Registration};
pub use hyper::Method;
pub use payload::Payload;
pub use topics::MessageId;

/// How long one request may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The header of a worker that asks another.
pub(crate) const ASKED_BY_WORKER: &str = "x-geminga-worker";
/// How often a request may be sent on.
const REDIRECTS_MAX: usize = 4;
/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("`{url}` is not an admin URL of the form `http://host:port` or `https://host:port`")]
    Url { url: String },
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// What was to be sent over TLS, a token perhaps, is not sent without.
    #[error("`{url}` sent the request on to `{to}`, which is without TLS")]
    Downgraded { url: String, to: String },
    #[error("no admin API answers at `{url}`")]
    Unreachable {
        url: String,
        #[source]
        source: legacy::Error,
    },
    #[error("`{url}` did not answer within {} s", after.as_secs())]
    TimedOut { url: String, after: Duration },
    #[error("{reason}")]
    Refused { status: StatusCode, reason: String },
    #[error("`{}` cannot be {what}", path.display())]
    File {
        path: PathBuf,
        /// `read` or `written`.
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("the answer of `{path}` is not what was expected: {reason}")]
    Answer { path: String, reason: String },
}

impl ClientError {
    /// The HTTP status of a refusal.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(status.as_u16()),
            _ => None,
        }
    }
}

/// An answer that was not a refusal.
#[derive(Debug)]
pub struct Reply {
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A handle to one server's admin API. Cheap to clone.
#[derive(Clone)]
pub struct AdminClient {
    http: legacy::Client<connect::Connector, payload::Sending>,
    /// `http://host:port` or `https://host:port`, without a slash at the end.
    base: String,
    /// The value of `Authorization`.
    authorization: Option<HeaderValue>,
    is_tls: bool,
    /// Another worker asks, for what the one that is asked knows itself.
    as_worker: bool,
}

impl std::fmt::Debug for AdminClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not what it shows the server.
        f.debug_struct("AdminClient")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

impl AdminClient {
    /// A client of the server at `url`; connects at the first request. Over TLS it trusts whom this machine trusts.
    ///
    /// # Errors
    /// When `url` is neither `http://host[:port]` nor `https://host[:port]`, or TLS is asked for and nobody trusted.
    pub fn new(url: &str) -> Result<Self, ClientError> {
        Self::with_tls(url, &TlsSettings::default())
    }

    /// The same with settings of TLS, for a URL of `https`.
    ///
    /// # Errors
    /// As `new`, and when a file that the settings name can not be used.
    pub fn with_tls(url: &str, tls: &TlsSettings) -> Result<Self, ClientError> {
        let base = url.trim_end_matches('/').to_owned();
        let parsed: Option<Uri> = base.parse().ok();
        let parsed = parsed.filter(|uri| uri.host().is_some_and(|host| !host.is_empty()));
        let tls = match parsed.as_ref().and_then(Uri::scheme_str) {
            Some("http") => None,
            Some("https") => Some(Tls::new(tls)?),
            _ => return Err(ClientError::Url { url: base }),
        };
        let connector = connect::Connector::new(tls);
        Ok(Self {
            is_tls: connector.speaks_tls(),
            http: legacy::Client::builder(TokioExecutor::new()).build(connector),
            base,
            authorization: None,
            as_worker: false,
        })
    }

    /// Shows this token with every request.
    #[must_use]
    pub fn with_token(mut self, token: impl AsRef<str>) -> Self {
        let value = HeaderValue::from_str(&format!("Bearer {}", token.as_ref()));
        // A token with other bytes than a header takes is none; the server will say so.
        self.authorization = value.ok().map(|mut value| {
            value.set_sensitive(true);
            value
        });
        self
    }

    /// Asks as one worker asks another, for somebody who showed this.
    #[must_use]
    pub(crate) fn for_worker(mut self, authorization: Option<HeaderValue>) -> Self {
        self.authorization = authorization;
        self.as_worker = true;
        self
    }

    /// The server's address, as it was given.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.base
    }

    /// Sends one request.
    ///
    /// # Errors
    /// When the server is not there, does not answer in time, or refuses.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Payload>,
    ) -> Result<Reply, ClientError> {
        let mut url = format!("{}{path}", self.base);
        // Another worker of the cluster may be the one to ask.
        for _ in 0..REDIRECTS_MAX {
            let (head, body) = self.exchange(&method, &url, path, body.as_ref()).await?;
            let to = head.headers.get(LOCATION).and_then(|to| to.to_str().ok());
            match to.filter(|_| head.status == StatusCode::TEMPORARY_REDIRECT) {
                Some(to) if self.is_tls && !to.starts_with("https://") => {
                    return Err(ClientError::Downgraded {
                        url: self.base.clone(),
                        to: to.to_owned(),
                    });
                }
                Some(to) => url = to.to_owned(),
                None if head.status.is_success() => {
                    return Ok(Reply {
                        headers: head.headers,
                        body,
                    });
                }
                None => {
                    return Err(ClientError::Refused {
                        status: head.status,
                        reason: reason(head.status, &body),
                    });
                }
            }
        }
        Err(ClientError::Answer {
            path: path.to_owned(),
            reason: "it was sent on without end".to_owned(),
        })
    }

    async fn exchange(
        &self,
        method: &Method,
        url: &str,
        path: &str,
        body: Option<&Payload>,
    ) -> Result<(hyper::http::response::Parts, Bytes), ClientError> {
        let mut request = Request::builder().method(method.clone()).uri(url);
        if let Some(value) = &self.authorization {
            request = request.header(AUTHORIZATION, value);
        }
        if self.as_worker {
            request = request.header(ASKED_BY_WORKER, "1");
        }
        let mut sending = payload::Sending::default();
        let mut after = REQUEST_TIMEOUT;
        if let Some(payload) = body {
            request = request.header(CONTENT_TYPE, &payload.kind);
            sending = payload.open().await?;
            // What is long may take long on a slow line: a second for each MiB.
            after += Duration::from_secs(payload.bytes() >> 20);
        }
        let request = request.body(sending).map_err(|_| ClientError::Url {
            url: url.to_owned(),
        })?;
        let exchange =
            async {
                let response = self.http.request(request).await.map_err(|source| {
                    ClientError::Unreachable {
                        url: self.base.clone(),
                        source,
                    }
                })?;
                let (head, body) = response.into_parts();
                let body = Limited::new(body, ANSWER_BYTES_MAX)
                    .collect()
                    .await
                    .map_err(|error| ClientError::Answer {
                        path: path.to_owned(),
                        reason: error.to_string(),
                    })?;
                Ok((head, body.to_bytes()))
            };
        tokio::time::timeout(after, exchange)
            .await
            .map_err(|_| ClientError::TimedOut {
                url: self.base.clone(),
                after,
            })?
    }

    /// GET, written to a file as it comes, however long it is.
    ///
    /// # Errors
    /// As `send`, and when the file can not be written or the answer is cut: there is no file then.
    pub async fn download(&self, path: &str, to: &Path) -> Result<(), ClientError> {
        let failed = |reason: String| ClientError::Answer {
            path: path.to_owned(),
            reason,
        };
        let late = |_| ClientError::TimedOut {
            url: self.base.clone(),
            after: REQUEST_TIMEOUT,
        };
        let mut request = Request::builder().uri(format!("{}{path}", self.base));
        if let Some(value) = &self.authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let request = request
            .body(payload::Sending::default())
            .map_err(|error| failed(error.to_string()))?;
        let response = tokio::time::timeout(REQUEST_TIMEOUT, self.http.request(request)).await;
        let response = response.map_err(late)?;
        let response = response.map_err(|source| ClientError::Unreachable {
            url: self.base.clone(),
            source,
        })?;
        let (head, mut body) = response.into_parts();
        if !head.status.is_success() {
            let said = Limited::new(body, 64 * 1024).collect().await;
            let said = said.map(|said| said.to_bytes()).unwrap_or_default();
            return Err(ClientError::Refused {
                status: head.status,
                reason: reason(head.status, &said),
            });
        }
        let file = |source: std::io::Error| ClientError::File {
            path: to.to_owned(),
            what: "written",
            source,
        };
        let mut growing = to.as_os_str().to_owned();
        growing.push(".part");
        let written = async {
            let mut part = tokio::fs::File::create(&growing).await.map_err(file)?;
            loop {
                let frame = tokio::time::timeout(REQUEST_TIMEOUT, body.frame()).await;
                let Some(frame) = frame.map_err(late)? else {
                    break;
                };
                let frame = frame.map_err(|error| failed(error.to_string()))?;
                if let Ok(bytes) = frame.into_data() {
                    part.write_all(&bytes).await.map_err(file)?;
                }
            }
            part.flush().await.map_err(file)?;
            tokio::fs::rename(&growing, to).await.map_err(file)
        };
        let written = written.await;
        if written.is_err() {
            // It may not even have been made.
            let _ = tokio::fs::remove_file(&growing).await;
        }
        written
    }

    /// GET, read as JSON.
    ///
    /// # Errors
    /// As `send`, and when the answer is not of the form expected.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let reply = self.send(Method::GET, path, None).await?;
        answer(path, &reply.body)
    }

    /// PUT or POST of a JSON body; the answer is ignored.
    ///
    /// # Errors
    /// As `send`.
    pub async fn change(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + ?Sized)>,
    ) -> Result<Reply, ClientError> {
        let body = match body {
            None => None,
            Some(body) => {
                let json = serde_json::to_vec(body).map_err(|error| ClientError::Answer {
                    path: path.to_owned(),
                    reason: error.to_string(),
                })?;
                Some(Payload::new("application/json", json))
            }
        };
        self.send(method, path, body).await
    }

    /// A change without a body.
    ///
    /// # Errors
    /// As `send`.
    pub async fn act(&self, method: Method, path: &str) -> Result<(), ClientError> {
        self.send(method, path, None).await.map(drop)
    }
}

pub(crate) fn answer<T: DeserializeOwned>(path: &str, body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::Answer {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// The server's `reason`, or what stands for it.
fn reason(status: StatusCode, body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Refusal {
        reason: String,
    }
    match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) if !refusal.reason.is_empty() => refusal.reason,
        _ => {
            let text = String::from_utf8_lossy(body);
            let text = text.trim();
            if text.is_empty() || text.starts_with('<') || text.len() > 500 {
                format!("the server answered {status}")
            } else {
                text.to_owned()
            }
        }
    }
}

/// Percent-encodes one segment of a path.
#[must_use]
pub fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_before_anything_is_sent() {
        for (url, ok) in [
            ("http://127.0.0.1:8080", true),
            ("http://localhost:8080/", true),
            ("localhost:8080", false),
            ("pulsar://localhost:6650", false),
            ("https://localhost", true),
            ("https://", false),
            ("http://", false),
            ("", false),
        ] {
            let tls = TlsSettings {
                // Whatever this machine trusts.
                allow_insecure: true,
                ..TlsSettings::default()
            };
            assert_eq!(AdminClient::with_tls(url, &tls).is_ok(), ok, "{url}");
        }
    }

    #[test]
    fn segments_are_encoded() {
        assert_eq!(segment("a b/c%d"), "a%20b%2Fc%25d");
        assert_eq!(segment("plain-1.x_~"), "plain-1.x_~");
    }

    #[test]
    fn the_reason_is_the_servers_own() {
        let status = StatusCode::NOT_FOUND;
        assert_eq!(
            reason(status, br#"{"reason":"Tenant does not exist"}"#),
            "Tenant does not exist"
        );
        assert_eq!(
            reason(status, b"<html>"),
            "the server answered 404 Not Found"
        );
        assert_eq!(reason(status, b"no such thing"), "no such thing");
    }
}
