//! `/admin/v2/resourcegroups`: limits that namespaces share, and which namespace has which.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use geminga_broker::ResourceGroup;
use serde_json::json;

use super::extract::{NamespaceInPath, Segments};
use super::{Admin, document, done};
use crate::error::{Answer, ApiError};
use crate::request;

pub(super) fn router() -> Router<Admin> {
    let namespace = "/admin/v2/namespaces/{tenant}/{namespace}/resourcegroup";
    Router::new()
        .route("/admin/v2/resourcegroups", get(list))
        .route(
            "/admin/v2/resourcegroups/{name}",
            get(one).put(put).delete(delete),
        )
        .route(namespace, get(of_namespace).delete(remove_of_namespace))
        .route(&format!("{namespace}/{{name}}"), post(set_of_namespace))
}

async fn list(State(admin): State<Admin>) -> Answer {
    document(&admin.broker().resource_groups())
}

async fn one(State(admin): State<Admin>, Segments(name): Segments<String>) -> Answer {
    let found = admin.broker().resource_group(&name);
    let found = found.ok_or_else(|| ApiError::not_found("ResourceGroup does not exist"))?;
    document(&json!({
        "publishRateInMsgs": found.publish_rate_in_msgs.unwrap_or(-1),
        "publishRateInBytes": found.publish_rate_in_bytes.unwrap_or(-1),
        "dispatchRateInMsgs": found.dispatch_rate_in_msgs.unwrap_or(-1),
        "dispatchRateInBytes": found.dispatch_rate_in_bytes.unwrap_or(-1),
    }))
}

async fn put(
    State(admin): State<Admin>,
    Segments(name): Segments<String>,
    request: Request,
) -> Answer {
    let given: ResourceGroup = request::json(request).await?;
    admin.broker().put_resource_group(&name, given).await?;
    done()
}

async fn delete(State(admin): State<Admin>, Segments(name): Segments<String>) -> Answer {
    admin.broker().delete_resource_group(&name).await?;
    done()
}

/// Plain text in a document's clothes, as Pulsar answers it.
async fn of_namespace(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
) -> Answer {
    match admin.broker().policies(&namespace).await?.resource_group {
        Some(name) => Ok(super::raw(name)),
        None => Ok(StatusCode::OK.into_response()),
    }
}

#[derive(serde::Deserialize)]
struct Named {
    name: String,
}

async fn set_of_namespace(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Segments(Named { name }): Segments<Named>,
) -> Answer {
    let broker = admin.broker();
    broker.set_resource_group(&namespace, Some(&name)).await?;
    done()
}

async fn remove_of_namespace(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
) -> Answer {
    admin.broker().set_resource_group(&namespace, None).await?;
    done()
}
