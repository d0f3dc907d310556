//! `/admin/v2/brokers`: which broker this is, and whether it works.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{delete, get, post};
use serde_json::json;

use super::extract::{Params, Segments};
use super::{Admin, document, text};
use crate::error::{Answer, ApiError};
use crate::request;

/// The Pulsar release whose API this is; clients and tools compare it.
pub(super) const PULSAR_VERSION: &str = "4.0.8";

pub(super) fn router() -> Router<Admin> {
    Router::new()
        .route("/admin/v2/brokers", get(list))
        .route("/admin/v2/brokers/health", get(health))
        .route("/admin/v2/brokers/ready", get(ready))
        .route("/admin/v2/brokers/version", get(version))
        .route("/admin/v2/brokers/leaderBroker", get(leader))
        .route("/admin/v2/brokers/configuration", get(no_dynamic_settings))
        .route(
            "/admin/v2/brokers/configuration/values",
            get(no_dynamic_values),
        )
        .route("/admin/v2/brokers/configuration/runtime", get(runtime))
        .route(
            "/admin/v2/brokers/configuration/{setting}",
            delete(not_dynamic),
        )
        .route(
            "/admin/v2/brokers/configuration/{setting}/{value}",
            post(not_dynamic_value),
        )
        .route("/admin/v2/brokers/{cluster}", get(of_cluster))
}

/// `host:port` of the admin API.
pub(super) fn broker_id(admin: &Admin) -> String {
    let url = admin.http_url();
    url.strip_prefix("http://").unwrap_or(url).to_owned()
}

async fn list(State(admin): State<Admin>) -> Answer {
    document(&[broker_id(&admin)])
}

async fn of_cluster(State(admin): State<Admin>, Segments(cluster): Segments<String>) -> Answer {
    if cluster != admin.broker().config().cluster_name {
        return Err(ApiError::not_found("Cluster does not exist"));
    }
    document(&[broker_id(&admin)])
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Health {
    #[serde(rename = "topicVersion")]
    _topic_version: Option<String>,
    #[serde(rename = "brokerId")]
    broker_id: Option<String>,
}

/// Healthy is who can still store a change durably.
async fn health(State(admin): State<Admin>, Params(params): Params<Health>) -> Answer {
    if let Some(id) = params.broker_id.filter(|id| *id != broker_id(&admin)) {
        return Err(ApiError::not_found(format!("there is no broker `{id}`")));
    }
    let namespace = request::namespace_name("pulsar", "system")?;
    admin
        .broker()
        .update_policies(&namespace, |_| Ok(()))
        .await?;
    Ok(text("ok"))
}

async fn ready() -> Response {
    text("ok")
}

async fn version() -> Response {
    text(PULSAR_VERSION)
}

async fn leader(State(admin): State<Admin>) -> Answer {
    document(&json!({
        "serviceUrl": admin.http_url(),
        "brokerId": broker_id(&admin),
    }))
}

/// No setting can be changed while the broker runs.
async fn no_dynamic_settings() -> Answer {
    document(&json!([]))
}

async fn no_dynamic_values() -> Answer {
    document(&json!({}))
}

/// Pulsar's answer for a setting that is not in the list of dynamic ones.
fn refuse_dynamic(setting: &str) -> Answer {
    Err(ApiError::precondition_failed(format!(
        "Can't update non-dynamic configuration: `{setting}` is read when the broker starts"
    )))
}

async fn not_dynamic(Segments(setting): Segments<String>) -> Answer {
    refuse_dynamic(&setting)
}

async fn not_dynamic_value(Segments((setting, _)): Segments<(String, String)>) -> Answer {
    refuse_dynamic(&setting)
}

/// The settings in force, as Pulsar writes them: text to text.
async fn runtime(State(admin): State<Admin>) -> Answer {
    let config = serde_json::to_value(admin.broker().config())
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let texts: serde_json::Map<String, serde_json::Value> = config
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| {
            let text = match value {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            (name.clone(), text.into())
        })
        .collect();
    document(&texts)
}
