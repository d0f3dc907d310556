//! `/admin/v2/brokers`: which broker this is, and whether it works.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use geminga_broker::DYNAMIC_SETTINGS;
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
        .route("/admin/v2/brokers/configuration", get(dynamic_names))
        .route(
            "/admin/v2/brokers/configuration/values",
            get(dynamic_values),
        )
        .route("/admin/v2/brokers/configuration/runtime", get(runtime))
        .route(
            "/admin/v2/brokers/configuration/{setting}",
            delete(reset_dynamic),
        )
        .route(
            "/admin/v2/brokers/configuration/{setting}/{value}",
            post(set_dynamic),
        )
        .route(
            "/admin/v2/brokers/internal-configuration",
            get(internal_configuration),
        )
        .route("/admin/v2/brokers/shutdown", post(shutdown))
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

async fn dynamic_names() -> Answer {
    document(&DYNAMIC_SETTINGS)
}

/// What was set while a broker ran.
async fn dynamic_values(State(admin): State<Admin>) -> Answer {
    document(&admin.broker().changed_settings().await?)
}

/// Pulsar's answer for a setting that is not in the list of dynamic ones.
fn check_dynamic(setting: &str, what: &str) -> Answer<()> {
    if DYNAMIC_SETTINGS.contains(&setting) {
        return Ok(());
    }
    Err(ApiError::precondition_failed(format!(
        "Can't {what} non-dynamic configuration: `{setting}` is read when the broker starts"
    )))
}

async fn reset_dynamic(State(admin): State<Admin>, Segments(setting): Segments<String>) -> Answer {
    check_dynamic(&setting, "delete")?;
    admin.broker().reset_setting(&setting).await?;
    Ok(StatusCode::OK.into_response())
}

/// Stricter than Pulsar, which takes any text and goes on with what it makes of it.
async fn set_dynamic(
    State(admin): State<Admin>,
    Segments((setting, value)): Segments<(String, String)>,
) -> Answer {
    check_dynamic(&setting, "update")?;
    admin.broker().change_setting(&setting, &value).await?;
    Ok(StatusCode::OK.into_response())
}

/// Where the metadata is: in this process, so that nobody else can open it.
async fn internal_configuration() -> Answer {
    document(&json!({
        "metadataStoreUrl": "geminga:embedded",
        "configurationMetadataStoreUrl": "geminga:embedded",
        "ledgersRootPath": "/",
    }))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Shutdown {
    /// 0 = as fast as it goes.
    #[serde(default)]
    max_concurrent_unload_per_sec: u32,
    /// Without it a topic would wait for its clients; they are told and given time in any case.
    #[serde(rename = "forcedTerminateTopic")]
    _forced: Option<bool>,
}

/// Answers before the server stops: then nobody could.
async fn shutdown(State(admin): State<Admin>, Params(params): Params<Shutdown>) -> Answer {
    tracing::warn!("an operator asked for the end of this server");
    let rate = params.max_concurrent_unload_per_sec;
    let pause = (rate > 0).then(|| Duration::from_secs(1) / rate);
    admin.broker().request_shutdown(pause);
    Ok(StatusCode::OK.into_response())
}

/// The settings in force, as Pulsar writes them: text to text.
async fn runtime(State(admin): State<Admin>) -> Answer {
    let config = serde_json::to_value(&*admin.broker().settings())
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
