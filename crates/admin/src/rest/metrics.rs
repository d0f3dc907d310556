//! `/metrics`, and the probes of load balancers.

use std::fmt::Write;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use geminga_functions::Backlogs;

use super::{Admin, text};

pub(super) fn router() -> Router<Admin> {
    Router::new()
        .route("/metrics", get(redirect))
        .route("/metrics/", get(metrics))
        .route("/status", get(status))
        .route("/status.html", get(status))
}

/// As Pulsar does it.
async fn redirect() -> Response {
    (StatusCode::FOUND, [(header::LOCATION, "/metrics/")]).into_response()
}

/// Answering at all is the news: the router is served when the broker has started.
async fn status() -> Response {
    text("OK")
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let snapshot = admin.broker().metrics();
    let cluster = &admin.broker().config().cluster_name;
    let mut out = snapshot.render(cluster, true);
    if let Some(worker) = admin.worker() {
        let mut backlogs = Backlogs::default();
        for topic in &snapshot.topics {
            for of in &topic.subscriptions {
                backlogs.add(&topic.topic, &of.subscription, of.backlog_entries);
            }
        }
        super::worker::write_metrics(worker, cluster, Some(&backlogs), &mut out);
    }
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "# TYPE pulsar_version_info gauge\npulsar_version_info{{version=\"{}\"}} 1",
        env!("CARGO_PKG_VERSION")
    );
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        out,
    )
        .into_response()
}
