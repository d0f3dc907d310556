//! What a request is answered with when it fails: Pulsar's status code and `{"reason":".."}`.
//!
//! Clients key on the status and show the reason, so both are part of the interface.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

/// A refused or failed request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {reason}")]
pub struct ApiError {
    pub status: StatusCode,
    pub reason: String,
}

macro_rules! statuses {
    ($($name:ident = $status:ident;)*) => {
        $(
            pub(crate) fn $name(reason: impl Into<String>) -> Self {
                Self { status: StatusCode::$status, reason: reason.into() }
            }
        )*
    };
}

impl ApiError {
    /// Another server answers this: where. The reason is the address.
    pub(crate) fn sent_on(url: &str) -> Self {
        Self {
            status: StatusCode::TEMPORARY_REDIRECT,
            reason: url.to_owned(),
        }
    }

    statuses! {
        bad_request = BAD_REQUEST;
        unauthorized = UNAUTHORIZED;
        forbidden = FORBIDDEN;
        not_found = NOT_FOUND;
        not_allowed = METHOD_NOT_ALLOWED;
        timeout = REQUEST_TIMEOUT;
        not_acceptable = NOT_ACCEPTABLE;
        conflict = CONFLICT;
        precondition_failed = PRECONDITION_FAILED;
        too_large = PAYLOAD_TOO_LARGE;
        unsupported_media = UNSUPPORTED_MEDIA_TYPE;
        unprocessable = UNPROCESSABLE_ENTITY;
        internal = INTERNAL_SERVER_ERROR;
        not_implemented = NOT_IMPLEMENTED;
        unavailable = SERVICE_UNAVAILABLE;
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() && self.status != StatusCode::NOT_IMPLEMENTED {
            tracing::warn!(
                status = self.status.as_u16(),
                reason = self.reason,
                "request failed"
            );
        }
        if self.status == StatusCode::TEMPORARY_REDIRECT {
            return (self.status, [(header::LOCATION, self.reason)]).into_response();
        }
        let body = serde_json::json!({ "reason": self.reason }).to_string();
        (
            self.status,
            [(header::CONTENT_TYPE, "application/json")],
            body,
        )
            .into_response()
    }
}

/// What a handler returns.
pub(crate) type Answer<T = Response> = Result<T, ApiError>;
