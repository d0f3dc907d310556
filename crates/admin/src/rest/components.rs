//! `/admin/v3/functions`, `/sources` and `/sinks`: one set of handlers for the three kinds.
//!
//! A configuration comes as a form, with its code as a file or a URL. Changes go to the worker that
//! leads, and what only the worker that runs an instance knows is asked of that one (`elsewhere`).

pub(super) mod elsewhere;
mod fetch;
pub(super) use fetch::stream;
pub(super) mod form;
mod http;
mod rights;
pub use rights::function_rights;
mod shape;

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Extension, Router, middleware};
use bytes::Bytes;
use geminga_broker::auth::Session;
use geminga_functions::{
    Answered, Asked, Component, ComponentId, FunctionState, Kind, PackageName, Upload, WorkerError,
};
use geminga_model::TopicName;
use serde_json::{Value, json};

use super::extract::{Params, Segments};
use super::functions::state::Functions;
use super::{document, done};
use crate::error::{Answer, ApiError};
use crate::request;

use form::{Registration, UpdateOptions};

/// How long a triggered function may take.
const TRIGGER_LIMIT: Duration = Duration::from_secs(30);

/// Pulsar's paths; sources and sinks have two names each.
const BASES: [&str; 5] = ["functions", "sources", "source", "sinks", "sink"];

pub(super) fn router(functions: &Functions) -> Router<Functions> {
    let mut router = Router::new();
    for base in BASES {
        let base = format!("/admin/v3/{base}");
        let one = format!("{base}/{{tenant}}/{{namespace}}/{{name}}");
        let instance = format!("{one}/{{instance}}");
        router = router
            .route(&format!("{base}/{{tenant}}/{{namespace}}"), get(list))
            .route(&one, get(config).post(register).put(update).delete(delete))
            .route(&format!("{one}/status"), get(status))
            .route(&format!("{one}/versions"), get(versions))
            .route(&format!("{one}/rollback"), post(roll_back))
            .route(&format!("{instance}/status"), get(instance_status));
        for action in ["start", "stop", "restart"] {
            router = router
                .route(&format!("{one}/{action}"), post(act))
                .route(&format!("{instance}/{action}"), post(act));
        }
    }
    for base in ["sources", "source"] {
        router = router
            .route(&format!("/admin/v3/{base}/builtinsources"), get(builtins))
            .route(
                &format!("/admin/v3/{base}/builtinsources/{{name}}/configdefinition"),
                get(definition),
            )
            .route(
                &format!("/admin/v3/{base}/reloadBuiltInSources"),
                post(reload),
            );
    }
    for base in ["sinks", "sink"] {
        router = router
            .route(&format!("/admin/v3/{base}/builtinsinks"), get(builtins))
            .route(
                &format!("/admin/v3/{base}/builtinsinks/{{name}}/configdefinition"),
                get(definition),
            )
            .route(
                &format!("/admin/v3/{base}/reloadBuiltInSinks"),
                post(reload),
            );
    }
    let function = "/admin/v3/functions/{tenant}/{namespace}/{name}";
    let router = router
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
        .route(&format!("{function}/download"), get(download_function))
        .route("/admin/v3/functions/upload", post(upload))
        .route("/admin/v3/functions/download", get(download))
        .route("/admin/v3/functions/connectors", get(connectors))
        .route("/admin/v2/functions/connectors", get(connectors))
        .route("/admin/v2/worker/connectors", get(connectors))
        .route("/admin/v3/functions/builtins", get(builtin_functions))
        .route(
            "/admin/v3/functions/builtins/reload",
            post(reload_functions),
        )
        .route(
            "/admin/v3/functions/leader/{tenant}/{namespace}/{name}",
            put(at_leader),
        )
        .merge(http::router());
    router.layer(middleware::from_fn_with_state(
        functions.clone(),
        elsewhere::to_who_decides,
    ))
}

/// The component in a path.
#[derive(serde::Deserialize)]
pub(super) struct Named {
    pub(super) tenant: String,
    pub(super) namespace: String,
    #[serde(default)]
    pub(super) name: String,
    pub(super) instance: Option<u32>,
    #[serde(default)]
    pub(super) key: String,
}

/// The kind that a path is about.
pub(super) fn kind(uri: &Uri) -> Kind {
    match uri.path().split('/').nth(3) {
        Some("sources" | "source") => Kind::Source,
        Some("sinks" | "sink") => Kind::Sink,
        _ => Kind::Function,
    }
}

impl Named {
    pub(super) fn id(&self, kind: Kind) -> ComponentId {
        ComponentId::new(kind, &self.tenant, &self.namespace, &self.name)
    }
}

impl From<WorkerError> for ApiError {
    fn from(error: WorkerError) -> Self {
        let (reason, retriable) = (error.to_string(), error.is_retriable());
        match error {
            WorkerError::NotFound(_)
            | WorkerError::NoState { .. }
            | WorkerError::NoPackage(_)
            | WorkerError::NoWorker(_) => Self::not_found(reason),
            WorkerError::Exists(_)
            | WorkerError::NoInstance { .. }
            | WorkerError::Invalid(_)
            | WorkerError::RolledBack { .. } => Self::bad_request(reason),
            WorkerError::PackageExists(_) => Self::conflict(reason),
            WorkerError::Timeout { .. } => Self::timeout(reason),
            WorkerError::Stopping | WorkerError::NotLeader => Self::unavailable(reason),
            WorkerError::Client { .. } if retriable => Self::unavailable(reason),
            WorkerError::Client { .. }
            | WorkerError::Io { .. }
            | WorkerError::PulsarsOwn { .. } => Self::internal(reason),
        }
    }
}

/// An unknown tenant has no functions: Pulsar answers an empty list as well.
async fn list(
    State(functions): State<Functions>,
    uri: Uri,
    Segments(named): Segments<Named>,
) -> Answer {
    document(
        &functions
            .worker()?
            .list(kind(&uri), &named.tenant, &named.namespace),
    )
}

async fn config(
    State(functions): State<Functions>,
    uri: Uri,
    Segments(named): Segments<Named>,
) -> Answer {
    match functions.worker()?.get(&named.id(kind(&uri)))?.masked() {
        Component::Function(config) => document(&config),
        Component::Source(config) => document(&config),
        Component::Sink(config) => document(&config),
    }
}

async fn register(
    State(functions): State<Functions>,
    Extension(session): Extension<Session>,
    uri: Uri,
    Segments(named): Segments<Named>,
    request: Request,
) -> Answer {
    let worker = functions.worker()?;
    let id = named.id(kind(&uri));
    let namespace = request::namespace_name(&id.tenant, &id.namespace)?;
    // Before it is refused: who is still sending would not hear why.
    let registration = form::read(worker, &id, request).await?;
    if let Some(broker) = &functions.broker {
        broker
            .policies(&namespace)
            .await
            .map_err(|error| ApiError::bad_request(error.to_string()))?;
    }
    let (component, upload, has_code) =
        code_of(&functions, &session, &id, registration, None).await?;
    if !has_code && id.kind == Kind::Function {
        return Err(ApiError::bad_request("Function Package is not provided"));
    }
    if let Some(broker) = &functions.broker {
        rights::check(broker, &session, &id, &component)?;
    }
    let by = rights::registrant(&session);
    worker.create_by(by, component, upload).await?;
    done()
}

async fn update(
    State(functions): State<Functions>,
    Extension(session): Extension<Session>,
    uri: Uri,
    Segments(named): Segments<Named>,
    request: Request,
) -> Answer {
    let worker = functions.worker()?;
    let id = named.id(kind(&uri));
    // As above.
    let mut registration = form::read(worker, &id, request).await?;
    let stored = worker.get(&id)?;
    let UpdateOptions {
        update_auth_data: refreshes,
        remove,
    } = std::mem::take(&mut registration.options);
    let (component, upload, _) =
        code_of(&functions, &session, &id, registration, Some(&stored)).await?;
    if let Some(broker) = &functions.broker {
        rights::check(broker, &session, &id, &component)?;
        // What it had before it has on behalf of somebody else from now on.
        let merged = stored.merged(&component).unwrap_or(stored);
        rights::check(broker, &session, &id, &merged)?;
    }
    let by = rights::registrant(&session);
    let updated = worker.update_without(by, &id, component, &remove, upload);
    match updated.await {
        // To refresh credentials is a change to Pulsar; there is nothing to refresh here.
        Err(WorkerError::Invalid(why)) if refreshes && why == ["Update contains no change"] => {
            done()
        }
        updated => {
            updated?;
            done()
        }
    }
}

/// The code of a registration: sent along, or where its URL points to.
async fn code_of(
    functions: &Functions,
    session: &Session,
    id: &ComponentId,
    registration: Registration,
    stored: Option<&Component>,
) -> Answer<(Component, Option<Upload>, bool)> {
    let Registration {
        mut component,
        upload,
        url,
        ..
    } = registration;
    let trusted = functions.is_trusted(session);
    if upload.is_some() {
        return Ok((component, upload, true));
    }
    let (local, is_builtin) = match &component {
        Component::Function(config) => {
            let code = path_of(&component).map(str::to_owned);
            let is_builtin = code
                .as_deref()
                .is_some_and(|code| code.starts_with("builtin://"));
            // `pulsar-admin` sends an empty text for nothing.
            let name = config.function_type.as_deref();
            (
                code,
                is_builtin || name.is_some_and(|name| !name.is_empty()),
            )
        }
        _ => (None, false),
    };
    let Some(url) = url else {
        // A configuration that names a file of this machine by itself. Of code that is to be sent along, and is not,
        // it has the bare name; of what is there already it has the name that this got.
        let is_file = |path: &str| {
            path.starts_with('/') || path.starts_with("file://") || path.contains("..")
        };
        let is_new = |path: &str| match stored {
            Some(stored) => !path.starts_with("builtin://") && path_of(stored) != Some(path),
            None => is_file(path),
        };
        if !trusted && local.is_some_and(|path| is_new(&path)) {
            return Err(not_trusted());
        }
        return Ok((component, None, is_builtin));
    };
    let worker = functions.worker()?;
    if let Some(name) = PackageName::parse(&url) {
        // Of another namespace it needs what this request did not show.
        let same = name.tenant == id.tenant && name.namespace == id.namespace;
        if !same && !trusted {
            return Err(ApiError::unauthorized(format!(
                "the package {name} is of another namespace"
            )));
        }
        return Ok((
            component,
            Some(worker.named_package(&name.to_string())?),
            true,
        ));
    }
    if let Some(name) = url.strip_prefix("builtin://") {
        if let Component::Function(config) = &mut component {
            let codes = [
                &mut config.jar,
                &mut config.py,
                &mut config.go,
                &mut config.sh,
                &mut config.exec,
                &mut config.wasm,
            ];
            // What is in them is what the code was called where it comes from: the URL says where it is.
            for code in codes.into_iter().flatten() {
                code.clone_from(&url);
            }
            let given = config.function_type.get_or_insert_with(|| name.to_owned());
            if given != name {
                return Err(ApiError::bad_request(format!(
                    "`functionType` is '{given}', and the part `url` names the built-in function '{name}'"
                )));
            }
        }
        return Ok((component, None, true));
    }
    if !trusted {
        return Err(not_trusted());
    }
    if url.starts_with("file://") {
        return Ok((component, None, true));
    }
    if url.starts_with("http://") || url.starts_with("https://") {
        return Ok((component, Some(fetch::fetch(worker, &url).await?), true));
    }
    Err(ApiError::bad_request(format!(
        "Function Package url is not valid: `{url}`; supported are http, https, file, builtin, function, source and sink"
    )))
}

/// Where the code of a function is, as its configuration says it.
fn path_of(component: &Component) -> Option<&str> {
    match component {
        Component::Function(config) => config.code().map(|(_, path)| path),
        Component::Source(_) | Component::Sink(_) => None,
    }
}

fn not_trusted() -> ApiError {
    ApiError::unauthorized(
        "code in a file of the server or at an address of its network is for super users: upload it",
    )
}

async fn delete(
    State(functions): State<Functions>,
    uri: Uri,
    Segments(named): Segments<Named>,
) -> Answer {
    functions.worker()?.delete(&named.id(kind(&uri))).await?;
    done()
}

async fn versions(
    State(functions): State<Functions>,
    uri: Uri,
    Segments(named): Segments<Named>,
) -> Answer {
    document(&functions.worker()?.versions(&named.id(kind(&uri)))?)
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct To {
    version: Option<u64>,
}

/// Ours: back to a former version.
async fn roll_back(
    State(functions): State<Functions>,
    Extension(session): Extension<Session>,
    uri: Uri,
    Segments(named): Segments<Named>,
    Params(to): Params<To>,
) -> Answer {
    let id = named.id(kind(&uri));
    let worker = functions.worker()?;
    if let Some(broker) = &functions.broker {
        let versions = worker.versions(&id)?;
        let former = versions.iter().filter(|version| !version.current);
        let wanted = former
            .into_iter()
            .find(|version| to.version.is_none_or(|wanted| wanted == version.version));
        if let Some(wanted) = wanted {
            rights::check(broker, &session, &id, &wanted.config)?;
        }
    }
    let by = rights::registrant(&session);
    let version = worker.roll_back_by(by, &id, to.version).await?;
    document(&json!({ "version": version }))
}

async fn status(
    State(functions): State<Functions>,
    uri: Uri,
    headers: HeaderMap,
    Segments(named): Segments<Named>,
) -> Answer {
    document(&whole_status(&functions, &headers, &named.id(kind(&uri))).await?)
}

/// The status of all instances, wherever they run.
async fn whole_status(
    functions: &Functions,
    headers: &HeaderMap,
    id: &ComponentId,
) -> Answer<Value> {
    let status = functions.worker()?.status(id)?;
    let mut status = shape::status(id.kind, &to_value(&status)?);
    elsewhere::fill(functions.worker()?, headers, id, "status", &mut status).await;
    let running = status["instances"].as_array().into_iter().flatten();
    let running = running.filter(|i| i["status"]["running"] == true).count();
    status["numRunning"] = json!(running);
    if !headers.contains_key(crate::client::ASKED_BY_WORKER)
        && let Some(backlog) = backlog(functions, id).await
    {
        status["backlog"] = json!(backlog);
    }
    Ok(status)
}

/// Messages that wait for a component: ours, where the broker is in this process.
async fn backlog(functions: &Functions, id: &ComponentId) -> Option<u64> {
    let broker = functions.broker.as_ref()?;
    let (topics, subscription) = functions.worker.as_ref()?.subscription(id).await.ok()??;
    let mut waiting = 0;
    for topic in topics {
        let topic: TopicName = topic.parse().ok()?;
        let partitions = broker.partitions(&topic).await.ok().flatten();
        let count = partitions.map_or(0, |found| found.partitions);
        let parts = (0..count).map(|number| topic.with_partition(number));
        let parts = if count == 0 {
            vec![topic.clone()]
        } else {
            parts.collect()
        };
        for part in parts {
            // A topic that nobody has used yet has nothing waiting.
            let Ok(stats) = broker.topic_stats(&part).await else {
                continue;
            };
            let own = stats.subscriptions.get(&subscription);
            waiting += own.map_or(0, |own| own.msg_backlog);
        }
    }
    Some(waiting)
}

fn to_value(report: &impl serde::Serialize) -> Answer<Value> {
    serde_json::to_value(report).map_err(|error| ApiError::internal(error.to_string()))
}

async fn instance_status(
    State(functions): State<Functions>,
    uri: Uri,
    headers: HeaderMap,
    Segments(named): Segments<Named>,
) -> Answer {
    let status = whole_status(&functions, &headers, &named.id(kind(&uri))).await?;
    document(&instance_of(&status, &named, kind(&uri))?["status"])
}

/// One instance's part of a report.
fn instance_of<'a>(report: &'a Value, named: &Named, kind: Kind) -> Answer<&'a Value> {
    let wanted = named.instance.unwrap_or_default();
    report["instances"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|instance| instance["instanceId"] == wanted)
        .ok_or_else(|| {
            ApiError::bad_request(format!(
                "{} {} doesn't have instance with id {wanted}",
                kind.title(),
                named.name
            ))
        })
}

async fn whole_stats(
    functions: &Functions,
    headers: &HeaderMap,
    id: &ComponentId,
) -> Answer<Value> {
    let worker = functions.worker()?;
    let mut stats = to_value(&worker.stats(id)?)?;
    if elsewhere::fill(worker, headers, id, "stats", &mut stats).await {
        shape::add_up(&mut stats);
    }
    Ok(stats)
}

async fn stats(
    State(functions): State<Functions>,
    headers: HeaderMap,
    Segments(named): Segments<Named>,
) -> Answer {
    document(&whole_stats(&functions, &headers, &named.id(Kind::Function)).await?)
}

async fn instance_stats(
    State(functions): State<Functions>,
    headers: HeaderMap,
    Segments(named): Segments<Named>,
) -> Answer {
    let stats = whole_stats(&functions, &headers, &named.id(Kind::Function)).await?;
    document(&instance_of(&stats, &named, Kind::Function)?["metrics"])
}

async fn act(
    State(functions): State<Functions>,
    uri: Uri,
    headers: HeaderMap,
    Segments(named): Segments<Named>,
) -> Answer {
    let worker = functions.worker()?;
    let id = named.id(kind(&uri));
    let acted = match uri.path().rsplit('/').next() {
        Some("start") => worker.start_instances(&id, named.instance).await,
        Some("stop") => worker.stop_instances(&id, named.instance).await,
        _ => {
            let acted = worker.restart_instances(&id, named.instance).await;
            if acted.is_ok() {
                elsewhere::restart(worker, &headers, &uri, &id, named.instance).await?;
            }
            acted
        }
    };
    match acted {
        // Pulsar's words, which name no reason.
        Err(error @ WorkerError::NoInstance { .. }) => Err(ApiError::bad_request(format!(
            "Operation not permitted: {error}"
        ))),
        acted => {
            acted?;
            done()
        }
    }
}

async fn trigger(
    State(functions): State<Functions>,
    Extension(session): Extension<Session>,
    Segments(named): Segments<Named>,
    request: Request,
) -> Answer {
    let worker = functions.worker()?;
    let id = named.id(Kind::Function);
    worker.get(&id)?;
    let (topic, payload): (Option<String>, Bytes) = form::trigger(request).await?;
    let input = rights::asked(&functions, &session, &id, topic.as_deref())?;
    let asked = Asked {
        topic: Some(input),
        payload,
        limit: TRIGGER_LIMIT,
        ..Asked::default()
    };
    match worker.trigger(&id, asked).await? {
        Answered::Nothing => Ok(bytes(Bytes::new())),
        Answered::Output { payload, .. } => Ok(bytes(payload)),
        Answered::Failed(why) => Err(ApiError::internal(why)),
    }
}

/// The reply of a trigger, as it is.
fn bytes(payload: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "text/plain")], payload).into_response()
}

async fn state(State(functions): State<Functions>, Segments(named): Segments<Named>) -> Answer {
    document(
        &functions
            .worker()?
            .state_get(&named.id(Kind::Function), &named.key)
            .await?,
    )
}

async fn put_state(
    State(functions): State<Functions>,
    Segments(named): Segments<Named>,
    request: Request,
) -> Answer {
    let worker = functions.worker()?;
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

/// Files by a path of the user's choice: Pulsar keeps them beside the functions' packages.
async fn upload(State(functions): State<Functions>, request: Request) -> Answer {
    let worker = functions.worker()?;
    let (upload, path) = form::file_and_text(worker, request, "data", "path").await?;
    if path.is_empty() || path.len() > 1024 {
        return Err(ApiError::bad_request(
            "the part `path` is missing, or longer than 1024 bytes",
        ));
    }
    worker
        .put_package(&stored_name(&path), upload, Default::default(), true)
        .await?;
    done()
}

/// A path that names a package is that package; another one lies beside them.
fn stored_name(path: &str) -> String {
    PackageName::parse(path).map_or_else(|| format!("file {path}"), |name| name.to_string())
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct At {
    path: String,
}

async fn download(State(functions): State<Functions>, Params(at): Params<At>) -> Answer {
    let found = functions
        .worker()?
        .package_file(&stored_name(&at.path))
        .await;
    let file = found.map_err(|error| match error {
        WorkerError::NoPackage(_) => ApiError::not_found(format!("there is no `{}`", at.path)),
        error => error.into(),
    })?;
    fetch::stream(&file).await
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    #[serde(rename = "transform-function", default)]
    transform_function: bool,
}

async fn download_function(
    State(functions): State<Functions>,
    Extension(session): Extension<Session>,
    Segments(named): Segments<Named>,
    Params(which): Params<Which>,
) -> Answer {
    let id = named.id(Kind::Function);
    let worker = functions.worker()?;
    if which.transform_function {
        return Err(ApiError::bad_request(
            "no component has a transform function",
        ));
    }
    match worker.package(&id).await? {
        // A path that somebody wrote into a configuration is no reason to show a file.
        Some(file) if functions.is_trusted(&session) || worker.is_package(&file) => {
            fetch::stream(&file).await
        }
        Some(_) => Err(not_trusted()),
        None => Err(ApiError::not_found(format!("{id} has no package"))),
    }
}

async fn builtin_functions(State(functions): State<Functions>) -> Answer {
    document(&functions.worker()?.builtin_functions())
}

/// Reads the folder of the built-in functions again, here and at the other workers. Where all of it can be
/// used the answer is Pulsar's, and otherwise it says what can not.
async fn reload_functions(State(functions): State<Functions>, headers: HeaderMap) -> Answer {
    let worker = functions.worker()?;
    let own = worker.reload_builtin_functions().await?;
    let mut broken = Vec::new();
    for found in own {
        let mut found = to_value(&found)?;
        found["workerId"] = json!(worker.worker_id());
        broken.push(found);
    }
    broken.extend(elsewhere::reload(worker, &headers).await);
    match broken.is_empty() {
        true => done(),
        false => document(&json!({ "broken": broken })),
    }
}

/// Connectors are part of the program: they can not change while it runs.
async fn reload(State(functions): State<Functions>) -> Answer {
    functions.worker()?;
    done()
}

/// Between Pulsar's own workers: its records are not ours.
async fn at_leader() -> Answer {
    Err(ApiError {
        status: StatusCode::NOT_IMPLEMENTED,
        reason: "workers of Geminga change the catalogue at their leader by the ordinary endpoints"
            .to_owned(),
    })
}

async fn builtins(uri: Uri) -> Answer {
    document(&shape::definitions(kind(&uri)))
}

async fn definition(uri: Uri) -> Answer {
    let kind = kind(&uri);
    let segments: Vec<&str> = uri.path().split('/').collect();
    let name = segments.get(5).copied().unwrap_or_default();
    match shape::fields(kind, name) {
        Some(fields) => document(&fields),
        None => Err(ApiError::not_found(format!("{name} Connector not found"))),
    }
}

/// Sources and sinks in one list.
async fn connectors() -> Answer {
    let mut all = shape::definitions(Kind::Source);
    for sink in shape::definitions(Kind::Sink) {
        match all.iter_mut().find(|source| source["name"] == sink["name"]) {
            Some(both) => both["sinkClass"] = sink["sinkClass"].clone(),
            None => all.push(sink),
        }
    }
    document(&all)
}
