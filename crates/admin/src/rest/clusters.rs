//! `/admin/v2/clusters`: this broker's one cluster.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde_json::json;

use super::extract::Segments;
use super::{Admin, document};
use crate::error::{Answer, ApiError};

pub(super) fn router() -> Router<Admin> {
    Router::new()
        .route("/admin/v2/clusters", get(list))
        .route("/admin/v2/clusters/{cluster}", get(one))
}

async fn list(State(admin): State<Admin>) -> Answer {
    document(&[&admin.broker().config().cluster_name])
}

async fn one(State(admin): State<Admin>, Segments(cluster): Segments<String>) -> Answer {
    let config = admin.broker().config();
    if cluster != config.cluster_name {
        return Err(ApiError::not_found("Cluster does not exist"));
    }
    document(&json!({
        "serviceUrl": admin.http_url(),
        "brokerServiceUrl": admin.broker().service_url(),
        "brokerClientTlsEnabled": false,
        "tlsAllowInsecureConnection": false,
    }))
}
