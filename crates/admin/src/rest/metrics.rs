//! `/metrics`, and the probes of load balancers.

use std::fmt::Write;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

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
    let mut out = admin
        .broker()
        .metrics()
        .render(&admin.broker().config().cluster_name, true);
    if let Some(worker) = admin.worker() {
        super::worker::write_metrics(worker, &admin.broker().config().cluster_name, &mut out);
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
