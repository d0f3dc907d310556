//! `/admin/v3/packages`: code under a name and a version, for functions, sources and sinks.

use axum::extract::{Request, State};
use axum::routing::get;
use axum::{Router, middleware};
use geminga_functions::{Kind, PackageMetadata, PackageName};

use super::components::{elsewhere, form};
use super::extract::Segments;
use super::functions::state::Functions;
use super::{components, document, done};
use crate::error::{Answer, ApiError};
use crate::request;

pub(super) fn router(functions: &Functions) -> Router<Functions> {
    let base = "/admin/v3/packages/{kind}/{tenant}/{namespace}";
    let version = format!("{base}/{{name}}/{{version}}");
    Router::new()
        .route(base, get(list))
        .route(&format!("{base}/{{name}}"), get(versions))
        .route(&version, get(download).post(upload).delete(delete))
        .route(
            &format!("{version}/metadata"),
            get(metadata).put(set_metadata),
        )
        .layer(middleware::from_fn_with_state(
            functions.clone(),
            elsewhere::to_who_decides,
        ))
}

#[derive(serde::Deserialize)]
struct Named {
    kind: String,
    tenant: String,
    namespace: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    version: String,
}

impl Named {
    fn kind(&self) -> Answer<Kind> {
        Kind::parse(&self.kind).ok_or_else(|| {
            ApiError::precondition_failed(format!("Invalid package domain: '{}'", self.kind))
        })
    }

    fn package(&self) -> Answer<String> {
        let kind = self.kind()?;
        request::namespace_name(&self.tenant, &self.namespace)?;
        let name = PackageName {
            kind,
            tenant: self.tenant.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            version: self.version.clone(),
        };
        let text = name.to_string();
        let legal = PackageName::parse(&text).is_some_and(|read| read == name)
            && !text.contains(char::is_control)
            && text.len() <= 1024;
        if legal {
            Ok(text)
        } else {
            Err(ApiError::precondition_failed(format!(
                "Invalid package name '{text}'"
            )))
        }
    }
}

async fn list(State(functions): State<Functions>, Segments(named): Segments<Named>) -> Answer {
    let kind = named.kind()?;
    request::namespace_name(&named.tenant, &named.namespace)?;
    let packages = functions
        .worker()?
        .packages(kind, &named.tenant, &named.namespace);
    let mut names: Vec<String> = packages.into_iter().map(|package| package.name).collect();
    names.dedup();
    document(&names)
}

async fn versions(State(functions): State<Functions>, Segments(named): Segments<Named>) -> Answer {
    let kind = named.kind()?;
    let packages = functions
        .worker()?
        .packages(kind, &named.tenant, &named.namespace);
    let of = packages
        .into_iter()
        .filter(|package| package.name == named.name);
    let versions: Vec<String> = of.map(|package| package.version).collect();
    document(&versions)
}

async fn upload(
    State(functions): State<Functions>,
    Segments(named): Segments<Named>,
    request: Request,
) -> Answer {
    let worker = functions.worker()?;
    let name = named.package()?;
    // Before it is refused: who is still sending would not hear why.
    let (upload, metadata) = form::package(worker, request).await?;
    if let Some(broker) = &functions.broker {
        let namespace = request::namespace_name(&named.tenant, &named.namespace)?;
        let known = broker.policies(&namespace).await;
        known.map_err(|error| ApiError::not_found(error.to_string()))?;
    }
    worker.put_package(&name, upload, metadata, false).await?;
    done()
}

async fn download(State(functions): State<Functions>, Segments(named): Segments<Named>) -> Answer {
    let file = functions.worker()?.package_file(&named.package()?).await?;
    components::stream(&file).await
}

async fn delete(State(functions): State<Functions>, Segments(named): Segments<Named>) -> Answer {
    functions
        .worker()?
        .delete_package(&named.package()?)
        .await?;
    done()
}

async fn metadata(State(functions): State<Functions>, Segments(named): Segments<Named>) -> Answer {
    document(&functions.worker()?.package_metadata(&named.package()?)?)
}

async fn set_metadata(
    State(functions): State<Functions>,
    Segments(named): Segments<Named>,
    request: Request,
) -> Answer {
    let name = named.package()?;
    let metadata: PackageMetadata = request::json(request).await?;
    functions
        .worker()?
        .set_package_metadata(&name, metadata)
        .await?;
    done()
}
