//! The policies that have one answer here: they can be read and removed, and another value is
//! refused by name. And the one that every value satisfies.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, delete, get};
use serde_json::json;

use super::{NAMESPACE, TOPIC, Which, change, change_topic, read};
use crate::error::{Answer, ApiError};
use crate::request;
use crate::rest::extract::{InPath, NamespaceInPath, Params};
use crate::rest::{Admin, document, done};

pub(super) fn routes(mut router: Router<Admin>) -> Router<Admin> {
    let in_namespace = |rest: &str| format!("{NAMESPACE}/{rest}");
    let in_topic = |rest: &str| format!("{TOPIC}/{rest}");
    let of_namespace: [(&str, MethodRouter<Admin>); 8] = [
        ("offloadThreshold", get(no_offload)),
        ("offloadThresholdInSeconds", get(no_offload)),
        ("offloadPolicies", get(unset_of_namespace)),
        ("removeOffloadPolicies", delete(remove_of_namespace)),
        (
            "offloadDeletionLagMs",
            get(unset_of_namespace).delete(remove_of_namespace),
        ),
        (
            "entryFilters",
            get(unset_of_namespace)
                .post(no_filters)
                .delete(remove_of_namespace),
        ),
        (
            "dispatcherPauseOnAckStatePersistent",
            get(pause_of_namespace)
                .post(set_pause_of_namespace)
                .delete(remove_pause_of_namespace),
        ),
        ("migration", axum::routing::post(migration)),
    ];
    for (path, methods) in of_namespace {
        router = router.route(&in_namespace(path), methods);
    }
    let of_topic: [(&str, MethodRouter<Admin>); 5] = [
        ("offload", get(never_offloaded)),
        (
            "offloadPolicies",
            get(unset_of_topic).delete(remove_of_topic),
        ),
        ("shadowTopics", get(unset_of_topic).delete(remove_of_topic)),
        (
            "entryFilters",
            get(unset_of_topic).post(no_filters).delete(remove_of_topic),
        ),
        (
            "dispatcherPauseOnAckStatePersistent",
            get(pause_of_topic)
                .post(set_pause_of_topic)
                .delete(remove_pause_of_topic),
        ),
    ];
    for (path, methods) in of_topic {
        router = router.route(&in_topic(path), methods);
    }
    router
}

/// What cannot be set is not set.
async fn unset_of_namespace(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    read(&admin, namespace).await?;
    Ok(StatusCode::OK.into_response())
}

/// And needs no removing: scripts that tidy up go on.
async fn remove_of_namespace(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    read(&admin, namespace).await?;
    done()
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

async fn remove_of_topic(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(which): Params<Which>,
) -> Answer {
    which.check()?;
    admin.broker().topic_policies(&topic).await?;
    done()
}

async fn no_offload(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    read(&admin, namespace).await?;
    document(&-1)
}

async fn never_offloaded(State(admin): State<Admin>, InPath(topic): InPath) -> Answer {
    admin.broker().topic_policies(&topic).await?;
    document(&json!({
        "status": "NOT_RUN", "lastError": "",
        "firstUnoffloadedMessage": {
            "ledgerId": -1, "entryId": -1, "partitionIndex": -1, "batchIndex": -1, "batchSize": 0,
        },
    }))
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Filters {
    #[serde(default)]
    entry_filter_names: String,
}

async fn no_filters(request: Request) -> Answer {
    let Filters { entry_filter_names } = request::json(request).await?;
    Err(ApiError::bad_request(match entry_filter_names.is_empty() {
        true => "entryFilterNames can't be empty. To remove entry filters use the remove method."
            .to_owned(),
        false => format!("Entry filter '{entry_filter_names}' not found: this server has none"),
    }))
}

/// Clients stay here; saying so is nothing new.
async fn migration(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
    request: Request,
) -> Answer {
    let migrated: bool = request::json(request).await?;
    read(&admin, namespace).await?;
    match migrated {
        false => done(),
        true => Err(ApiError::not_implemented(
            "`migrated` cannot be honoured: clients are not sent to another cluster",
        )),
    }
}

async fn pause_of_namespace(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    let set = read(&admin, namespace).await?.pause_on_ack_state;
    document(&set.unwrap_or(false))
}

async fn set_pause_of_namespace(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    change(&admin, namespace, |policies| {
        policies.pause_on_ack_state = Some(true);
        Ok(())
    })
    .await
}

async fn remove_pause_of_namespace(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
) -> Answer {
    change(&admin, namespace, |policies| {
        policies.pause_on_ack_state = None;
        Ok(())
    })
    .await
}

async fn pause_of_topic(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(which): Params<Which>,
) -> Answer {
    which.check()?;
    let own = admin.broker().topic_policies(&topic).await?;
    let all = admin.broker().effective_policies(&topic).await?;
    document(&match which.applied {
        true => all.pause_on_ack_state,
        false => own.pause_on_ack_state.unwrap_or(false),
    })
}

async fn set_pause_of_topic(
    State(admin): State<Admin>,
    topic: InPath,
    Params(which): Params<Which>,
) -> Answer {
    change_topic(&admin, topic, &which, |policies| {
        policies.pause_on_ack_state = Some(true);
        Ok(())
    })
    .await
}

async fn remove_pause_of_topic(
    State(admin): State<Admin>,
    topic: InPath,
    Params(which): Params<Which>,
) -> Answer {
    change_topic(&admin, topic, &which, |policies| {
        policies.pause_on_ack_state = None;
        Ok(())
    })
    .await
}
