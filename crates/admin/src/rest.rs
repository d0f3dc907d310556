//! The endpoints: a module for each family of Pulsar's resources, and the router that joins them.
//!
//! A handler reads the request, calls the broker or the worker, and shapes the answer; it decides
//! nothing. What must hold: a success to a change is sent after the call that made it durable.

mod extract;
mod guard;
mod origin;
mod rules;

mod brokers;
mod bundles;
mod clusters;
mod components;
mod content;
mod figures;
mod functions;
mod groups;
mod lookup;
mod metrics;
mod namespaces;
mod packages;
mod partitions;
mod peek;
mod permissions;
mod placement;
mod policies;
mod schemas;
mod subscriptions;
mod sum;
mod tenants;
mod topics;
mod transactions;
mod worker;
mod ws;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use geminga_broker::{Broker, BrokerError, ErrorKind};
use geminga_client::Client;
use geminga_functions::Worker;
use geminga_stdx::Tasks;
use geminga_stdx::tasks::OnError;
use serde::Serialize;

use crate::endpoint;
use crate::error::{Answer, ApiError};

pub use components::function_rights;
pub use functions::worker_router;
pub(crate) use guard::ClientCertificate;

/// What the endpoints act on.
#[derive(Clone)]
pub struct Admin {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Clone)]
pub(crate) struct Inner {
    broker: Broker,
    /// `http://host:port` of this API.
    http_url: String,
    /// None in a broker without functions.
    worker: Option<Worker>,
    /// None without WebSockets.
    sockets: Option<ws::Sockets>,
}

impl Admin {
    /// `address` is where the API listens; lookups answer it unless `webServiceAddress` is set.
    #[must_use]
    pub fn new(broker: Broker, address: SocketAddr) -> Self {
        let config = broker.config();
        let http_url = config.web_service_address.clone().unwrap_or_else(|| {
            let host = match &config.advertised_address {
                Some(host) => host.clone(),
                None if address.ip().is_unspecified() => "localhost".to_owned(),
                None if address.is_ipv6() => format!("[{}]", address.ip()),
                None => address.ip().to_string(),
            };
            format!("http://{host}:{}", address.port())
        });
        Self {
            inner: Arc::new(Inner {
                broker,
                http_url,
                worker: None,
                sockets: None,
            }),
        }
    }

    /// With functions, sources and sinks.
    #[must_use]
    pub fn with_worker(self, worker: Worker) -> Self {
        self.with(|inner| inner.worker = Some(worker))
    }

    /// With WebSockets, whose sessions use a client that the broker trusts and end with `tasks`.
    #[must_use]
    pub fn with_web_sockets(self, client: Client, tasks: Tasks) -> Self {
        self.with(|inner| inner.sockets = Some(ws::Sockets::new(client, tasks)))
    }

    fn with(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.inner));
        self
    }

    pub(crate) fn sockets(&self) -> Option<&ws::Sockets> {
        self.inner.sockets.as_ref()
    }

    pub(crate) fn worker(&self) -> Option<&Worker> {
        self.inner.worker.as_ref()
    }

    fn functions(&self) -> functions::state::Functions {
        functions::state::Functions::beside(self.broker(), self.inner.worker.clone())
    }

    /// `http://host:port` of this API.
    #[must_use]
    pub fn http_url(&self) -> &str {
        &self.inner.http_url
    }

    pub(crate) fn broker(&self) -> &Broker {
        &self.inner.broker
    }

    /// All endpoints.
    pub fn router(self) -> Router {
        Router::new()
            .merge(clusters::router())
            .merge(brokers::router())
            .merge(tenants::router())
            .merge(namespaces::router())
            .merge(bundles::router())
            .merge(figures::router())
            .merge(placement::router())
            .merge(groups::router())
            .merge(policies::router())
            .merge(permissions::router())
            .merge(topics::router())
            .merge(content::router())
            .merge(subscriptions::router())
            .merge(schemas::router())
            .merge(transactions::router())
            .merge(self.functions().router())
            .merge(lookup::router())
            .merge(metrics::router())
            .merge(ws::router())
            .fallback(endpoint::refuse)
            .method_not_allowed_fallback(endpoint::refuse_method)
            .layer(middleware::from_fn_with_state(Tasks::new(), whole))
            .layer(middleware::from_fn_with_state(self.clone(), guard::guard))
            .with_state(self)
    }
}

/// Lets a change run to its end though the client that asked for it goes away: half of one is worse
/// than either. Also keeps a handler that panics from taking the connection along.
async fn whole(State(tasks): State<Tasks>, request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let (done, answer) = tokio::sync::oneshot::channel();
    tasks.spawn("admin-change", OnError::Log, async move {
        // Nobody waits any more when the client is gone.
        let _ = done.send(next.run(request).await);
        Ok::<(), std::convert::Infallible>(())
    });
    match answer.await {
        Ok(response) => response,
        Err(_) => ApiError::internal("the change was not finished").into_response(),
    }
}

/// A document.
pub(crate) fn document(value: &impl Serialize) -> Answer {
    let json = serde_json::to_vec(value)
        .map_err(|error| ApiError::internal(format!("the answer cannot be written: {error}")))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

/// A document, or Pulsar's answer for what is not set: 200 without a body.
pub(crate) fn document_or_empty(value: Option<&impl Serialize>) -> Answer {
    match value {
        Some(value) => document(value),
        None => Ok(StatusCode::OK.into_response()),
    }
}

/// The answer to a change.
pub(crate) fn done() -> Answer {
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Text that Pulsar sends as a document without writing it as one.
pub(crate) fn raw(text: impl Into<String>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text.into()).into_response()
}

/// Plain text.
pub(crate) fn text(text: impl Into<String>) -> Response {
    (
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
        text.into(),
    )
        .into_response()
}

impl From<BrokerError> for ApiError {
    fn from(error: BrokerError) -> Self {
        let reason = error.to_string();
        match error.kind() {
            ErrorKind::Malformed => Self::bad_request(reason),
            ErrorKind::Invalid => Self::precondition_failed(reason),
            ErrorKind::Unprocessable => Self::unprocessable(reason),
            ErrorKind::NotFound => Self::not_found(reason),
            ErrorKind::Conflict => Self::conflict(reason),
            ErrorKind::PreconditionFailed => Self::precondition_failed(reason),
            ErrorKind::NotAllowed => Self::not_allowed(reason),
            ErrorKind::NotAuthorized => Self::unauthorized(reason),
            ErrorKind::NotPermitted => Self::forbidden(reason),
            ErrorKind::Unavailable => Self::unavailable(reason),
            ErrorKind::Internal => Self::internal(reason),
        }
    }
}

#[cfg(test)]
mod tests;
