//! In which clusters topics are, and in which a namespace's may be.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;

use super::{NAMESPACE, TOPIC, Which, change_topic, read};
use crate::error::Answer;
use crate::request;
use crate::rest::extract::{InPath, NamespaceInPath, Params};
use crate::rest::{Admin, document, done};

pub(super) fn routes(router: Router<Admin>) -> Router<Admin> {
    let at = |rest: &str| format!("{NAMESPACE}/{rest}");
    router
        .route(&at("replication"), get(clusters).post(set_clusters))
        .route(&at("allowedClusters"), get(allowed).post(set_allowed))
        .route(
            &format!("{TOPIC}/replication"),
            get(clusters_of_topic)
                .post(set_clusters_of_topic)
                .delete(remove_clusters_of_topic),
        )
}

async fn clusters(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    let set = read(&admin, namespace).await?.replication_clusters;
    let own = || vec![admin.broker().config().cluster_name.clone()];
    document(&set.unwrap_or_else(own))
}

/// None is named: those of the tenant are allowed.
async fn allowed(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    document(&read(&admin, namespace).await?.allowed_clusters)
}

async fn set_allowed(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    request: Request,
) -> Answer {
    let given: Vec<String> = request::json(request).await?;
    let broker = admin.broker();
    broker.set_allowed_clusters(&namespace, &given).await?;
    Ok(StatusCode::OK.into_response())
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
