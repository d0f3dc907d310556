//! `/admin/v2/worker`: the one worker of this process, and what it runs.

use std::collections::BTreeMap;
use std::fmt::Write;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use geminga_functions::{ComponentId, Kind, Worker};
use serde_json::{Value, json};

use super::{Admin, document, text};
use crate::error::Answer;

pub(super) fn router() -> Router<Admin> {
    Router::new()
        .route("/admin/v2/worker/cluster", get(cluster))
        .route("/admin/v2/worker/cluster/leader", get(leader))
        .route("/admin/v2/worker/cluster/leader/ready", get(ready))
        .route("/admin/v2/worker/assignments", get(assignments))
}

/// `c-<cluster>-fw-<host>-<port>`, as Pulsar names a worker inside of a broker.
fn info(admin: &Admin) -> Value {
    let address = admin.http_url().trim_start_matches("http://");
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "80"));
    let cluster = &admin.broker().config().cluster_name;
    json!({
        "workerId": format!("c-{cluster}-fw-{host}-{port}"),
        "workerHostname": host,
        "port": port.parse::<u16>().unwrap_or_default(),
    })
}

async fn cluster(State(admin): State<Admin>) -> Answer {
    admin.worker()?;
    document(&[info(&admin)])
}

async fn leader(State(admin): State<Admin>) -> Answer {
    admin.worker()?;
    document(&info(&admin))
}

async fn ready(State(admin): State<Admin>) -> Answer {
    admin.worker()?;
    Ok(text("true"))
}

async fn assignments(State(admin): State<Admin>) -> Answer {
    let worker = admin.worker()?;
    let mut all: Vec<String> = Vec::new();
    for id in worker.components() {
        // One that was deleted a moment ago has no instances.
        if let Ok(status) = worker.status(&id) {
            let of = |instance: u32| format!("{}:{instance}", id.fqfn());
            all.extend(
                status
                    .instances
                    .iter()
                    .map(|instance| of(instance.instance_id)),
            );
        }
    }
    let mut assignments: BTreeMap<String, Vec<String>> = BTreeMap::new();
    if let (false, Some(id)) = (all.is_empty(), info(&admin)["workerId"].as_str()) {
        assignments.insert(id.to_owned(), all);
    }
    document(&assignments)
}

/// The counters of all instances, as Prometheus reads them, under Pulsar's names.
pub(super) fn write_metrics(worker: &Worker, cluster: &str, out: &mut String) {
    let mut series: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for id in worker.components() {
        let (Ok(status), Ok(stats)) = (worker.status(&id), worker.stats(&id)) else {
            continue;
        };
        for instance in &status.instances {
            let labels = labels(&id, instance.instance_id, cluster);
            let status = &instance.status;
            let prefix = format!("pulsar_{}", id.kind.as_str());
            let mut put = |name: &str, value: f64| {
                let name = format!("{prefix}_{name}");
                let line = format!("{name}{{{labels}}} {value}");
                series.entry(name).or_default().push(line);
            };
            put("received_total", status.num_received as f64);
            put(
                "system_exceptions_total",
                status.num_system_exceptions as f64,
            );
            put("last_invocation", status.last_invocation_time as f64);
            match id.kind {
                Kind::Function => {
                    put(
                        "processed_successfully_total",
                        status.num_successfully_processed as f64,
                    );
                    put("user_exceptions_total", status.num_user_exceptions as f64);
                }
                Kind::Source => {
                    put("written_total", status.num_written as f64);
                    put("source_exceptions_total", status.num_user_exceptions as f64);
                }
                Kind::Sink => {
                    put("written_total", status.num_written as f64);
                    put("sink_exceptions_total", status.num_user_exceptions as f64);
                }
            }
        }
        if id.kind == Kind::Function {
            for instance in &stats.instances {
                let labels = labels(&id, instance.instance_id, cluster);
                let lines = series
                    .entry("pulsar_function_process_latency_ms".to_owned())
                    .or_default();
                for (quantile, ms) in &instance.metrics.latency_percentiles {
                    lines.push(format!(
                        "pulsar_function_process_latency_ms{{{labels},quantile=\"{quantile}\"}} {ms}"
                    ));
                }
            }
        }
    }
    for (name, lines) in series {
        let kind = if name.ends_with("_total") {
            "counter"
        } else if name.ends_with("_latency_ms") {
            "summary"
        } else {
            "gauge"
        };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# TYPE {name} {kind}\n{}", lines.join("\n"));
    }
}

fn labels(id: &ComponentId, instance: u32, cluster: &str) -> String {
    let ComponentId {
        tenant,
        namespace,
        name,
        ..
    } = id;
    let cluster = cluster.replace('\\', "\\\\").replace('"', "\\\"");
    // Names hold no quotes: they were checked when the component was made.
    format!(
        "tenant=\"{tenant}\",namespace=\"{tenant}/{namespace}\",name=\"{name}\",\
         instance_id=\"{instance}\",cluster=\"{cluster}\",fqfn=\"{}\"",
        id.fqfn()
    )
}
