//! What the endpoints of functions, sources, sinks and packages act on: the worker, and the broker
//! when there is one in this process. A worker by itself has none.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use geminga_broker::Broker;
use geminga_broker::auth::{Need, Session};
use geminga_functions::Worker;

use super::{components, packages, worker};
use crate::endpoint;
use crate::error::{Answer, ApiError};

/// The worker of this process, and who may use it.
#[derive(Clone, Default)]
pub(crate) struct Functions {
    pub(crate) worker: Option<Worker>,
    pub(crate) broker: Option<Broker>,
    pub(crate) cluster: String,
    /// Of a worker by itself: who shows it may do everything. Without one anybody may.
    token: Option<Arc<str>>,
}

impl Functions {
    /// Beside a broker, which also says who may do what.
    pub(crate) fn beside(broker: &Broker, worker: Option<Worker>) -> Self {
        Self {
            worker,
            cluster: broker.config().cluster_name.clone(),
            broker: Some(broker.clone()),
            token: None,
        }
    }

    /// Pulsar answers 503 where no worker runs.
    pub(crate) fn worker(&self) -> Answer<&Worker> {
        self.worker
            .as_ref()
            .ok_or_else(|| ApiError::unavailable("there is no function worker in this process"))
    }

    /// Whether who asks may reach what only the machine's owner may: its files, other hosts.
    pub(crate) fn is_trusted(&self, session: &Session) -> bool {
        match &self.broker {
            Some(broker) => {
                !broker.asks_who() || broker.authorize(session, &Need::SuperUser).is_ok()
            }
            // Who shows the token is a super user; without one nobody is told apart.
            None => true,
        }
    }

    /// The endpoints.
    pub(crate) fn router<S: Clone + Send + Sync + 'static>(self) -> Router<S> {
        Router::new()
            .merge(components::router(&self))
            .merge(packages::router(&self))
            .merge(worker::router())
            .with_state(self)
    }
}

/// The admin API of a worker that runs by itself.
pub fn worker_router(worker: Worker, cluster: String, token: Option<String>) -> Router {
    let functions = Functions {
        worker: Some(worker),
        broker: None,
        cluster,
        token: token.map(Into::into),
    };
    functions
        .clone()
        .router()
        .merge(worker::metrics_router(functions.clone()))
        .fallback(endpoint::refuse)
        .method_not_allowed_fallback(endpoint::refuse_method)
        .layer(middleware::from_fn_with_state(functions, ask_for_token))
}

async fn ask_for_token(
    State(functions): State<Functions>,
    mut request: Request,
    next: Next,
) -> Response {
    if let Some(token) = &functions.token {
        let given = request.headers().get(header::AUTHORIZATION);
        let given = given
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let given = given.strip_prefix("Bearer ").unwrap_or_default();
        if !same(given.as_bytes(), token.as_bytes()) && request.uri().path() != "/status.html" {
            return ApiError::unauthorized("Authentication required").into_response();
        }
    }
    request.extensions_mut().insert(Session::default());
    next.run(request).await
}

/// Compares in a time that says nothing of where the difference is.
fn same(given: &[u8], wanted: &[u8]) -> bool {
    given.len() == wanted.len()
        && given
            .iter()
            .zip(wanted)
            .fold(0, |differs, (a, b)| differs | (a ^ b))
            == 0
}
