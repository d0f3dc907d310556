//! Policies that one cluster on one machine has one answer to. They can be read; another value is
//! refused by name.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;

use super::{NAMESPACE, TOPIC, Which, read};
use crate::error::{Answer, ApiError};
use crate::request;
use crate::rest::extract::{InPath, NamespaceInPath, Params};
use crate::rest::{Admin, document, done};

pub(super) fn routes(router: Router<Admin>) -> Router<Admin> {
    let at = |rest: &str| format!("{NAMESPACE}/{rest}");
    let mut router = router
        .route(&at("replication"), get(clusters).post(set_clusters))
        .route(&at("allowedClusters"), get(allowed).post(set_clusters))
        .route(&at("offloadThreshold"), get(no_offload))
        .route(&at("offloadThresholdInSeconds"), get(no_offload))
        .route(
            &format!("{TOPIC}/replication"),
            get(clusters_of_topic)
                .post(set_clusters_of_topic)
                .delete(remove_clusters_of_topic),
        );
    for unset in [
        "antiAffinity",
        "resourcegroup",
        "offloadPolicies",
        "offloadDeletionLagMs",
        "replicatorDispatchRate",
        "subscribeRate",
        "entryFilters",
        "deduplicationSnapshotInterval",
        "dispatcherPauseOnAckStatePersistent",
    ] {
        router = router.route(&at(unset), get(unset_of_namespace));
    }
    for unset in [
        "offloadPolicies",
        "replicatorDispatchRate",
        "subscribeRate",
        "entryFilters",
        "deduplicationSnapshotInterval",
        "dispatcherPauseOnAckStatePersistent",
    ] {
        router = router.route(&format!("{TOPIC}/{unset}"), get(unset_of_topic));
    }
    router
}

/// What cannot be set is not set.
async fn unset_of_namespace(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    read(&admin, namespace).await?;
    Ok(StatusCode::OK.into_response())
}

async fn unset_of_topic(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(which): Params<Which>,
) -> Answer {
    which.check()?;
    admin.broker().topic_policies(&topic).await?;
    Ok(StatusCode::OK.into_response())
}

async fn no_offload(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    read(&admin, namespace).await?;
    document(&-1)
}

async fn clusters(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    read(&admin, namespace).await?;
    document(&[&admin.broker().config().cluster_name])
}

/// None is named: those of the tenant are allowed.
async fn allowed(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    read(&admin, namespace).await?;
    document(&[""; 0])
}

fn only_ours(admin: &Admin, given: &[String]) -> Answer<()> {
    let own = &admin.broker().config().cluster_name;
    match given.iter().find(|name| *name != own) {
        Some(other) => Err(ApiError::precondition_failed(format!(
            "cluster `{other}` does not exist: this server is the only one of `{own}`"
        ))),
        None if given.is_empty() => Err(ApiError::precondition_failed(
            "ClusterIds should not be null or empty",
        )),
        None => Ok(()),
    }
}

async fn set_clusters(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
    request: Request,
) -> Answer {
    let given: Vec<String> = request::json(request).await?;
    read(&admin, namespace).await?;
    only_ours(&admin, &given)?;
    done()
}

async fn clusters_of_topic(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(which): Params<Which>,
) -> Answer {
    which.check()?;
    admin.broker().topic_policies(&topic).await?;
    if !which.applied {
        return Ok(StatusCode::OK.into_response());
    }
    document(&[&admin.broker().config().cluster_name])
}

async fn set_clusters_of_topic(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(which): Params<Which>,
    request: Request,
) -> Answer {
    which.check()?;
    let given: Vec<String> = request::json(request).await?;
    admin.broker().topic_policies(&topic).await?;
    only_ours(&admin, &given)?;
    done()
}

async fn remove_clusters_of_topic(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(which): Params<Which>,
) -> Answer {
    which.check()?;
    admin.broker().topic_policies(&topic).await?;
    done()
}
