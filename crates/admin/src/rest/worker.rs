//! `/admin/v2/worker` and `/admin/v2/worker-stats`: the workers, what they run, and how they do.

mod metrics;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use geminga_functions::{DrainStatus, MemberInfo, WorkerError};
use serde_json::{Value, json};

use super::extract::Params;
use super::functions::state::Functions;
use super::{document, done, text};
use crate::error::{Answer, ApiError};

pub(super) use metrics::write_metrics;

pub(super) fn router() -> Router<Functions> {
    let base = "/admin/v2/worker";
    let stats = "/admin/v2/worker-stats";
    Router::new()
        .route(&format!("{base}/cluster"), get(cluster))
        .route(&format!("{base}/cluster/leader"), get(leader))
        .route(&format!("{base}/cluster/leader/ready"), get(ready))
        .route(&format!("{base}/assignments"), get(assignments))
        .route(&format!("{base}/rebalance"), put(rebalance))
        .route(&format!("{base}/drain"), put(drain_self).get(self_drained))
        .route(&format!("{base}/leader/drain"), put(drain).get(drained))
        .route(&format!("{stats}/metrics"), get(monitoring))
        .route(&format!("{stats}/functionsmetrics"), get(function_stats))
}

/// `/metrics` and the probes, for a worker that runs by itself.
pub(super) fn metrics_router(functions: Functions) -> Router {
    let render = move || {
        let mut out = String::new();
        if let Some(worker) = &functions.worker {
            // What waits is known to the broker, which is elsewhere.
            write_metrics(worker, &functions.cluster, None, &mut out);
        }
        let kind = "text/plain; version=0.0.4; charset=utf-8";
        std::future::ready(([(header::CONTENT_TYPE, kind)], out).into_response())
    };
    let ok = || std::future::ready::<Response>(text("OK"));
    Router::new()
        .route("/metrics", get(render.clone()))
        .route("/metrics/", get(render))
        .route("/status", get(ok))
        .route("/status.html", get(ok))
}

/// `WorkerInfo`.
fn info(member: &MemberInfo) -> Value {
    let address = member.url.split_once("://").map_or("", |(_, rest)| rest);
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "80"));
    json!({
        "workerId": member.worker_id,
        "workerHostname": host,
        "port": port.parse::<u16>().unwrap_or_default(),
    })
}

async fn cluster(State(functions): State<Functions>) -> Answer {
    let members = functions.worker()?.members();
    document(&members.iter().map(info).collect::<Vec<_>>())
}

async fn leader(State(functions): State<Functions>) -> Answer {
    let members = functions.worker()?.members();
    match members.iter().find(|member| member.leads) {
        Some(member) => document(&info(member)),
        None => Err(not_ready()),
    }
}

fn not_ready() -> ApiError {
    ApiError::unavailable("Leader not yet ready. Please retry again")
}

async fn ready(State(functions): State<Functions>) -> Answer {
    let members = functions.worker()?.members();
    if members.iter().any(|member| member.leads) {
        Ok(text("true"))
    } else {
        Err(not_ready())
    }
}

async fn assignments(State(functions): State<Functions>) -> Answer {
    document(&functions.worker()?.assignments())
}

async fn rebalance(State(functions): State<Functions>) -> Answer {
    on_leader(&functions, "/admin/v2/worker/rebalance")?;
    functions.worker()?.rebalance()?;
    done()
}

/// Says where the leader is when it is another worker.
fn on_leader(functions: &Functions, path: &str) -> Answer<()> {
    let worker = functions.worker()?;
    if worker.leads() {
        return Ok(());
    }
    match worker.leader_url() {
        Some(url) => Err(ApiError::sent_on(&format!("{url}{path}"))),
        None => Err(not_ready()),
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Whom {
    #[serde(rename = "workerId")]
    worker_id: String,
}

async fn drain(State(functions): State<Functions>, Params(whom): Params<Whom>) -> Answer {
    let id = &whom.worker_id;
    on_leader(&functions, &drain_path(id))?;
    let worker = functions.worker()?;
    match worker.drain_status(id) {
        Ok(DrainStatus::Running) => {
            return Err(ApiError::conflict(format!(
                "Another drain operation on {id} is in progress"
            )));
        }
        Ok(_) => {}
        Err(error) => return Err(unknown(&error)),
    }
    worker.drain(id).await?;
    done()
}

fn drain_path(id: &str) -> String {
    let id = crate::client::segment(id);
    format!("/admin/v2/worker/leader/drain?workerId={id}")
}

fn unknown(error: &WorkerError) -> ApiError {
    ApiError::precondition_failed(error.to_string())
}

async fn drain_self(State(functions): State<Functions>) -> Answer {
    let worker_id = functions.worker()?.worker_id().to_owned();
    drain(State(functions), Params(Whom { worker_id })).await
}

/// `LongRunningProcessStatus`.
async fn drained(State(functions): State<Functions>, Params(whom): Params<Whom>) -> Answer {
    let status = functions.worker()?.drain_status(&whom.worker_id);
    let word = match status.map_err(|error| unknown(&error))? {
        DrainStatus::NotRun => "NOT_RUN",
        DrainStatus::Running => "RUNNING",
        DrainStatus::Success => "SUCCESS",
    };
    document(&json!({ "lastError": "", "status": word }))
}

async fn self_drained(State(functions): State<Functions>) -> Answer {
    let worker_id = functions.worker()?.worker_id().to_owned();
    drained(State(functions), Params(Whom { worker_id })).await
}

/// Pulsar's `Metrics`: what a monitor of the worker reads as JSON.
async fn monitoring(State(functions): State<Functions>) -> Answer {
    let mut out = String::new();
    write_metrics(functions.worker()?, &functions.cluster, None, &mut out);
    document(&metrics::as_json(&out))
}

/// `WorkerFunctionInstanceStats` of what runs on this worker.
async fn function_stats(State(functions): State<Functions>) -> Answer {
    let worker = functions.worker()?;
    let mut all = Vec::new();
    for id in worker.components() {
        if id.kind != geminga_functions::Kind::Function {
            continue;
        }
        let Ok(stats) = worker.stats(&id) else {
            continue;
        };
        for instance in stats.instances {
            if worker.owner(&id, instance.instance_id) == geminga_functions::Owner::Here {
                all.push(json!({
                    "name": format!("{}:{}", id.fqfn(), instance.instance_id),
                    "metrics": instance.metrics,
                }));
            }
        }
    }
    document(&all)
}
