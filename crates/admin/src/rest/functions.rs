//! The endpoints of functions, sources, sinks and packages together: beside a broker, and of a worker by itself.

pub(super) mod state;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use geminga_broker::auth::Session;
use geminga_functions::Worker;

use self::state::Functions;
use super::{components, origin, packages, worker};
use crate::endpoint;
use crate::error::{Answer, ApiError};

impl Functions {
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
    if let Err(refusal) = check_origin(&functions, &request) {
        return refusal.into_response();
    }
    if let Some(token) = &functions.token {
        let given = request.headers().get(header::AUTHORIZATION);
        let given = given
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let given = given.strip_prefix("Bearer ").unwrap_or_default();
        // An empty token is none: nobody shows it.
        let is_shown = !token.is_empty() && same(given.as_bytes(), token.as_bytes());
        if !is_shown && request.uri().path() != "/status.html" {
            return ApiError::unauthorized("Authentication required").into_response();
        }
    }
    request.extensions_mut().insert(Session::default());
    next.run(request).await
}

/// Refuses what a page of another site asks for by somebody's browser. Where a token is asked for, no
/// page has it.
fn check_origin(functions: &Functions, request: &Request) -> Answer<()> {
    if functions.token.is_some() || request.method().is_safe() {
        return Ok(());
    }
    let text = |name: &header::HeaderName| {
        let value = request.headers().get(name);
        value.map(|value| value.to_str().unwrap_or_default())
    };
    let Some(origin) = text(&header::ORIGIN) else {
        return Ok(());
    };
    let host = text(&header::HOST).or(request.uri().authority().map(|it| it.as_str()));
    let url = functions.worker.as_ref().map(Worker::url);
    let known: Vec<String> = url.and_then(origin::host_of).into_iter().collect();
    if origin::is_own(origin, host.unwrap_or_default(), false, &known) {
        return Ok(());
    }
    tracing::warn!(
        origin,
        path = request.uri().path(),
        "refused: a page of another site"
    );
    Err(ApiError::forbidden(format!(
        "a page of `{origin}` may not ask for this; start the worker with `--api-token` and send it"
    )))
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
