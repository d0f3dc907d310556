//! In which clusters topics are; and the policies that one machine has one answer to: they can be
//! read, and another value is refused by name.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;

use super::{NAMESPACE, TOPIC, Which, change_topic, read};
use crate::error::{Answer, ApiError};
use crate::request;
use crate::rest::extract::{InPath, NamespaceInPath, Params};
use crate::rest::{Admin, document, done};

pub(super) fn routes(router: Router<Admin>) -> Router<Admin> {
    let at = |rest: &str| format!("{NAMESPACE}/{rest}");
    let mut router = router
        .route(&at("replication"), get(clusters).post(set_clusters))
        .route(&at("allowedClusters"), get(allowed).post(set_allowed))
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
    let set = read(&admin, namespace).await?.replication_clusters;
    let own = || vec![admin.broker().config().cluster_name.clone()];
    document(&set.unwrap_or_else(own))
}

/// None is named: those of the tenant are allowed.
async fn allowed(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    read(&admin, namespace).await?;
    document(&[""; 0])
}

async fn set_allowed(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
    request: Request,
) -> Answer {
    let given: Vec<String> = request::json(request).await?;
    read(&admin, namespace).await?;
    match given.is_empty() {
        true => done(),
        false => Err(ApiError::precondition_failed(
            "`allowed_clusters` cannot be honoured: the tenant's allowed clusters decide",
        )),
    }
}

async fn set_clusters(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    request: Request,
) -> Answer {
    let given: Vec<String> = request::json(request).await?;
    let broker = admin.broker();
    broker.check_replication(&namespace, &given).await?;
    broker
        .update_policies(&namespace, |policies| {
            policies.replication_clusters = Some(given.clone());
            Ok(())
        })
        .await?;
    done()
}

async fn clusters_of_topic(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(which): Params<Which>,
) -> Answer {
    which.check()?;
    let set = admin.broker().topic_policies(&topic).await?;
    match set.replication_clusters {
        Some(set) => document(&set),
        None if which.applied => {
            let all = admin.broker().effective_policies(&topic).await?;
            document(&all.replication_clusters)
        }
        None => Ok(StatusCode::OK.into_response()),
    }
}

async fn set_clusters_of_topic(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(which): Params<Which>,
    request: Request,
) -> Answer {
    which.check()?;
    let given: Vec<String> = request::json(request).await?;
    let broker = admin.broker();
    broker.check_replication(&topic.namespace(), &given).await?;
    change_topic(&admin, InPath(topic), &which, move |policies| {
        policies.replication_clusters = Some(given.clone());
        Ok(())
    })
    .await
}

async fn remove_clusters_of_topic(
    State(admin): State<Admin>,
    topic: InPath,
    Params(which): Params<Which>,
) -> Answer {
    change_topic(&admin, topic, &which, |policies| {
        policies.replication_clusters = None;
        Ok(())
    })
    .await
}
