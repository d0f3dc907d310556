//! `/admin/v3/functions`, `/sources` and `/sinks`: one set of handlers for the three kinds.
//!
//! A configuration comes as a form, with its code as a file or a URL.

mod form;
mod rights;
mod shape;

use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, Request, State};
use axum::http::Uri;
use axum::routing::{get, post};
use bytes::Bytes;
use geminga_broker::auth::Session;
use geminga_functions::{Component, ComponentId, FunctionState, Kind, WorkerError};
use serde_json::{Value, json};

use super::extract::Segments;
use super::{Admin, document, done, text};
use crate::error::{Answer, ApiError};
use crate::request;

use form::Registration;

/// How long a triggered function may take.
const TRIGGER_LIMIT: Duration = Duration::from_secs(30);

/// Pulsar's paths; sources and sinks have two names each.
const BASES: [&str; 5] = ["functions", "sources", "source", "sinks", "sink"];

pub(super) fn router() -> Router<Admin> {
    let mut router = Router::new();
    for base in BASES {
        let base = format!("/admin/v3/{base}");
        let one = format!("{base}/{{tenant}}/{{namespace}}/{{name}}");
        let instance = format!("{one}/{{instance}}");
        router = router
            .route(&format!("{base}/{{tenant}}/{{namespace}}"), get(list))
            .route(&one, get(config).post(register).put(update).delete(delete))
            .route(&format!("{one}/status"), get(status))
            .route(&format!("{instance}/status"), get(instance_status));
        for action in ["start", "stop", "restart"] {
            router = router
                .route(&format!("{one}/{action}"), post(act))
                .route(&format!("{instance}/{action}"), post(act));
        }
    }
    let function = "/admin/v3/functions/{tenant}/{namespace}/{name}";
    router
        .route("/admin/v3/sources/builtinsources", get(builtin_sources))
        .route("/admin/v3/source/builtinsources", get(builtin_sources))
        .route("/admin/v3/sinks/builtinsinks", get(builtin_sinks))
        .route("/admin/v3/sink/builtinsinks", get(builtin_sinks))
        .route(&format!("{function}/stats"), get(stats))
        .route(
            &format!("{function}/{{instance}}/stats"),
            get(instance_stats),
        )
        .route(&format!("{function}/trigger"), post(trigger))
        .route(
            &format!("{function}/state/{{key}}"),
            get(state).post(put_state),
        )
        .route("/admin/v3/functions/builtins", get(no_builtins))
}

/// The component in a path.
#[derive(serde::Deserialize)]
struct Named {
    tenant: String,
    namespace: String,
    #[serde(default)]
    name: String,
    instance: Option<u32>,
    #[serde(default)]
    key: String,
}

/// The kind that a path is about.
fn kind(uri: &Uri) -> Kind {
    match uri.path().split('/').nth(3) {
        Some("sources" | "source") => Kind::Source,
        Some("sinks" | "sink") => Kind::Sink,
        _ => Kind::Function,
    }
}

impl Named {
    fn id(&self, kind: Kind) -> ComponentId {
        ComponentId::new(kind, &self.tenant, &self.namespace, &self.name)
    }
}

impl From<WorkerError> for ApiError {
    fn from(error: WorkerError) -> Self {
        let (reason, retriable) = (error.to_string(), error.is_retriable());
        match error {
            WorkerError::NotFound(_) | WorkerError::NoState { .. } => Self::not_found(reason),
            WorkerError::Exists(_) | WorkerError::NoInstance { .. } | WorkerError::Invalid(_) => {
                Self::bad_request(reason)
            }
            WorkerError::Timeout { .. } => Self::timeout(reason),
            WorkerError::Stopping => Self::unavailable(reason),
            WorkerError::Client { .. } if retriable => Self::unavailable(reason),
            WorkerError::Client { .. } | WorkerError::Io { .. } => Self::internal(reason),
        }
    }
}

/// An unknown tenant has no functions: Pulsar answers an empty list as well.
async fn list(State(admin): State<Admin>, uri: Uri, Segments(named): Segments<Named>) -> Answer {
    document(
        &admin
            .worker()?
            .list(kind(&uri), &named.tenant, &named.namespace),
    )
}

async fn config(State(admin): State<Admin>, uri: Uri, Segments(named): Segments<Named>) -> Answer {
    match admin.worker()?.get(&named.id(kind(&uri)))? {
        Component::Function(config) => document(&config),
        Component::Source(config) => document(&config),
        Component::Sink(config) => document(&config),
    }
}

async fn register(
    State(admin): State<Admin>,
    uri: Uri,
    Segments(named): Segments<Named>,
    Extension(session): Extension<Session>,
    request: Request,
) -> Answer {
    let worker = admin.worker()?;
    let id = named.id(kind(&uri));
    let namespace = request::namespace_name(&id.tenant, &id.namespace)?;
    admin
        .broker()
        .policies(&namespace)
        .await
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    let Registration {
        component,
        upload,
        url,
    } = form::read(&id, request).await?;
    if upload.is_none() && url.is_none() && id.kind == Kind::Function {
        return Err(ApiError::bad_request("Function Package is not provided"));
    }
    rights::check(&admin, &session, &id, &component)?;
    worker.create(component, upload).await?;
    done()
}

async fn update(
    State(admin): State<Admin>,
    uri: Uri,
    Segments(named): Segments<Named>,
    Extension(session): Extension<Session>,
    request: Request,
) -> Answer {
    let worker = admin.worker()?;
    let id = named.id(kind(&uri));
    worker.get(&id)?;
    let Registration {
        component, upload, ..
    } = form::read(&id, request).await?;
    rights::check(&admin, &session, &id, &component)?;
    worker.update(&id, component, upload).await?;
    done()
}

async fn delete(State(admin): State<Admin>, uri: Uri, Segments(named): Segments<Named>) -> Answer {
    admin.worker()?.delete(&named.id(kind(&uri))).await?;
    done()
}

async fn status(State(admin): State<Admin>, uri: Uri, Segments(named): Segments<Named>) -> Answer {
    let kind = kind(&uri);
    let status = admin.worker()?.status(&named.id(kind))?;
    document(&shape::status(kind, &to_value(&status)?))
}

fn to_value(report: &impl serde::Serialize) -> Answer<Value> {
    serde_json::to_value(report).map_err(|error| ApiError::internal(error.to_string()))
}

async fn instance_status(
    State(admin): State<Admin>,
    uri: Uri,
    Segments(named): Segments<Named>,
) -> Answer {
    let kind = kind(&uri);
    let status = admin.worker()?.status(&named.id(kind))?;
    let status = shape::status(kind, &to_value(&status)?);
    document(&instance_of(&status, &named)?["status"])
}

/// One instance's part of a report.
fn instance_of<'a>(report: &'a Value, named: &Named) -> Answer<&'a Value> {
    let wanted = named.instance.unwrap_or_default();
    report["instances"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|instance| instance["instanceId"] == wanted)
        .ok_or_else(|| {
            ApiError::bad_request(format!(
                "Operation is not permitted: {} has no instance {wanted}",
                named.name
            ))
        })
}

async fn stats(State(admin): State<Admin>, Segments(named): Segments<Named>) -> Answer {
    document(&admin.worker()?.stats(&named.id(Kind::Function))?)
}

async fn instance_stats(State(admin): State<Admin>, Segments(named): Segments<Named>) -> Answer {
    let stats = admin.worker()?.stats(&named.id(Kind::Function))?;
    document(&instance_of(&to_value(&stats)?, &named)?["metrics"])
}

async fn act(State(admin): State<Admin>, uri: Uri, Segments(named): Segments<Named>) -> Answer {
    let worker = admin.worker()?;
    let id = named.id(kind(&uri));
    match uri.path().rsplit('/').next() {
        Some("start") => worker.start_instances(&id, named.instance).await?,
        Some("stop") => worker.stop_instances(&id, named.instance).await?,
        _ => worker.restart_instances(&id, named.instance).await?,
    }
    done()
}

async fn trigger(
    State(admin): State<Admin>,
    Segments(named): Segments<Named>,
    request: Request,
) -> Answer {
    let worker = admin.worker()?;
    let (topic, payload): (Option<String>, Bytes) = form::trigger(request).await?;
    let id = named.id(Kind::Function);
    let output = worker
        .trigger(&id, topic.as_deref(), payload, TRIGGER_LIMIT)
        .await?;
    Ok(text(
        String::from_utf8_lossy(&output.unwrap_or_default()).into_owned(),
    ))
}

async fn state(State(admin): State<Admin>, Segments(named): Segments<Named>) -> Answer {
    document(
        &admin
            .worker()?
            .state_get(&named.id(Kind::Function), &named.key)
            .await?,
    )
}

async fn put_state(
    State(admin): State<Admin>,
    Segments(named): Segments<Named>,
    request: Request,
) -> Answer {
    let worker = admin.worker()?;
    let state: FunctionState = form::state(request).await?;
    if state.key != named.key {
        return Err(ApiError::bad_request(format!(
            "the key `{}` of the state is not the key `{}` of the path",
            state.key, named.key
        )));
    }
    worker.state_put(&named.id(Kind::Function), state).await?;
    done()
}

/// There are no functions in the binary itself.
async fn no_builtins() -> Answer {
    document(&json!([]))
}

async fn builtin_sources() -> Answer {
    document(&connectors(&geminga_mesh::builtin::SOURCES))
}

async fn builtin_sinks() -> Answer {
    document(&connectors(&geminga_mesh::builtin::SINKS))
}

/// `ConnectorDefinition`s.
fn connectors(names: &[&str]) -> Vec<Value> {
    names.iter().map(|name| json!({ "name": name })).collect()
}
