//! `/admin/v2/tenants`.

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::get;
use geminga_broker::TenantInfo;

use super::extract::{Force, Params, Segments};
use super::{Admin, document, done};
use crate::error::{Answer, ApiError};
use crate::request;

pub(super) fn router() -> Router<Admin> {
    Router::new().route("/admin/v2/tenants", get(list)).route(
        "/admin/v2/tenants/{tenant}",
        get(one).put(create).post(update).delete(delete),
    )
}

/// A tenant, as clients send it.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Given {
    #[serde(default)]
    admin_roles: Option<Vec<String>>,
    #[serde(default)]
    allowed_clusters: Option<Vec<String>>,
}

impl Given {
    async fn check(self, admin: &Admin) -> Answer<TenantInfo> {
        let known = admin.broker().clusters().await?;
        let allowed_clusters = self.allowed_clusters.unwrap_or_default();
        if allowed_clusters.is_empty() {
            return Err(ApiError::precondition_failed("Clusters can not be empty"));
        }
        if let Some(unknown) = allowed_clusters.iter().find(|name| !known.contains(name)) {
            return Err(ApiError::precondition_failed(format!(
                "Cluster `{unknown}` does not exist"
            )));
        }
        Ok(TenantInfo {
            admin_roles: self.admin_roles.unwrap_or_default(),
            allowed_clusters,
        })
    }
}

async fn list(State(admin): State<Admin>) -> Answer {
    document(&admin.broker().tenants().await?)
}

async fn one(State(admin): State<Admin>, Segments(tenant): Segments<String>) -> Answer {
    document(&admin.broker().tenant(&tenant).await?)
}

async fn create(
    State(admin): State<Admin>,
    Segments(tenant): Segments<String>,
    request: Request,
) -> Answer {
    let given: Option<Given> = request::json_or_none(request).await?;
    let info = given.unwrap_or_default().check(&admin).await?;
    admin.broker().create_tenant(&tenant, info).await?;
    done()
}

async fn update(
    State(admin): State<Admin>,
    Segments(tenant): Segments<String>,
    request: Request,
) -> Answer {
    let given: Given = request::json(request).await?;
    let info = given.check(&admin).await?;
    admin.broker().update_tenant(&tenant, info).await?;
    done()
}

async fn delete(
    State(admin): State<Admin>,
    Segments(tenant): Segments<String>,
    Params(params): Params<Force>,
) -> Answer {
    if params.force {
        for namespace in admin.broker().namespaces(&tenant).await? {
            if let Ok(namespace) = namespace.parse() {
                admin.broker().delete_namespace(&namespace, true).await?;
            }
        }
    }
    admin.broker().delete_tenant(&tenant).await?;
    done()
}
