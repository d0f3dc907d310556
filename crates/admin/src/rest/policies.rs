//! Single policies of a namespace: retention, TTL, automatic creation, properties.
//!
//! A policy that is not set is answered as Pulsar does: 200 without a body.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::get;
use geminga_broker::{AutoTopicCreation, Policies, Retention};

use super::extract::{NamespaceInPath, Segments};
use super::{Admin, document, document_or_empty, done};
use crate::error::{Answer, ApiError};
use crate::request;

pub(super) fn router() -> Router<Admin> {
    let one = "/admin/v2/namespaces/{tenant}/{namespace}";
    let at = |rest: &str| format!("{one}/{rest}");
    Router::new()
        .route(
            &at("retention"),
            get(retention).post(set_retention).delete(remove_retention),
        )
        .route(&at("messageTTL"), get(ttl).post(set_ttl).delete(remove_ttl))
        .route(
            &at("autoTopicCreation"),
            get(auto_topic)
                .post(set_auto_topic)
                .delete(remove_auto_topic),
        )
        .route(
            &at("autoSubscriptionCreation"),
            get(auto_subscription)
                .post(set_auto_subscription)
                .delete(remove_auto_subscription),
        )
        .route(
            &at("properties"),
            get(properties).put(set_properties).delete(clear_properties),
        )
        .route(&at("property/{key}"), get(property).delete(remove_property))
        .route(
            &at("property/{key}/{value}"),
            axum::routing::put(set_property),
        )
}

/// Changes the policies; the broker repeats it when somebody else was faster.
async fn change(
    admin: &Admin,
    NamespaceInPath(namespace): NamespaceInPath,
    change: impl Fn(&mut Policies) + Send,
) -> Answer {
    let change = move |policies: &mut Policies| {
        change(policies);
        Ok(())
    };
    admin.broker().update_policies(&namespace, change).await?;
    done()
}

async fn read(admin: &Admin, NamespaceInPath(namespace): NamespaceInPath) -> Answer<Policies> {
    Ok(admin.broker().policies(&namespace).await?)
}

async fn retention(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    document_or_empty(read(&admin, namespace).await?.retention.as_ref())
}

async fn set_retention(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
    request: Request,
) -> Answer {
    let given: Retention = request::json(request).await?;
    let (time, size) = (given.retention_time_in_minutes, given.retention_size_in_mb);
    if time < -1 || size < -1 {
        return Err(ApiError::bad_request(
            "a retention limit must be -1 or more",
        ));
    }
    if (time == 0) != (size == 0) {
        return Err(ApiError::bad_request(
            "of `retentionTimeInMinutes` and `retentionSizeInMB` one is 0 and the other is not: \
             nothing would be kept",
        ));
    }
    change(&admin, namespace, move |policies| {
        policies.retention = Some(given)
    })
    .await
}

async fn remove_retention(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    change(&admin, namespace, |policies| policies.retention = None).await
}

async fn ttl(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    document_or_empty(read(&admin, namespace).await?.message_ttl_seconds.as_ref())
}

async fn set_ttl(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
    request: Request,
) -> Answer {
    let given: i64 = request::json(request).await?;
    let Ok(seconds) = u64::try_from(given) else {
        return Err(ApiError::precondition_failed(
            "Invalid value for message TTL",
        ));
    };
    change(&admin, namespace, move |policies| {
        policies.message_ttl_seconds = Some(seconds)
    })
    .await
}

async fn remove_ttl(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    change(&admin, namespace, |policies| {
        policies.message_ttl_seconds = None
    })
    .await
}

async fn auto_topic(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    document_or_empty(read(&admin, namespace).await?.auto_topic_creation.as_ref())
}

async fn set_auto_topic(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
    request: Request,
) -> Answer {
    let given: AutoTopicCreation = request::json(request).await?;
    if given.default_num_partitions == Some(0) {
        return Err(ApiError::precondition_failed(
            "`defaultNumPartitions` must be above 0",
        ));
    }
    change(&admin, namespace, move |policies| {
        policies.auto_topic_creation = Some(given.clone());
    })
    .await
}

async fn remove_auto_topic(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    change(&admin, namespace, |policies| {
        policies.auto_topic_creation = None
    })
    .await
}

/// `AutoSubscriptionCreationOverride`.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AutoSubscription {
    allow_auto_subscription_creation: bool,
}

async fn auto_subscription(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    let set = read(&admin, namespace).await?.auto_subscription_creation;
    let own = set.map(|allow| AutoSubscription {
        allow_auto_subscription_creation: allow,
    });
    document_or_empty(own.as_ref())
}

async fn set_auto_subscription(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
    request: Request,
) -> Answer {
    let given: AutoSubscription = request::json(request).await?;
    let allow = given.allow_auto_subscription_creation;
    change(&admin, namespace, move |policies| {
        policies.auto_subscription_creation = Some(allow);
    })
    .await
}

async fn remove_auto_subscription(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
) -> Answer {
    change(&admin, namespace, |policies| {
        policies.auto_subscription_creation = None
    })
    .await
}

async fn properties(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    document(&read(&admin, namespace).await?.properties)
}

async fn set_properties(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
    request: Request,
) -> Answer {
    let given: BTreeMap<String, String> = request::json(request).await?;
    change(&admin, namespace, move |policies| {
        policies.properties.extend(given.clone())
    })
    .await
}

async fn clear_properties(State(admin): State<Admin>, namespace: NamespaceInPath) -> Answer {
    change(&admin, namespace, |policies| policies.properties.clear()).await
}

#[derive(serde::Deserialize)]
struct Property {
    key: String,
    #[serde(default)]
    value: String,
}

async fn property(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
    Segments(property): Segments<Property>,
) -> Answer {
    let policies = read(&admin, namespace).await?;
    document_or_empty(policies.properties.get(&property.key))
}

async fn set_property(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
    Segments(property): Segments<Property>,
) -> Answer {
    change(&admin, namespace, move |policies| {
        policies
            .properties
            .insert(property.key.clone(), property.value.clone());
    })
    .await
}

async fn remove_property(
    State(admin): State<Admin>,
    namespace: NamespaceInPath,
    Segments(property): Segments<Property>,
) -> Answer {
    change(&admin, namespace, move |policies| {
        policies.properties.remove(&property.key);
    })
    .await
}
