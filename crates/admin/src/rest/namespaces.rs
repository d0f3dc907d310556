//! `/admin/v2/namespaces`: listing, making and removing them. Single policies are in `policies`.

use axum::extract::{Request, State};
use axum::routing::{get, post, put};
use axum::{Extension, Router};
use geminga_broker::auth::{Need, Session};
use geminga_broker::bundle::Bundles;
use geminga_model::TopicDomain;
use serde_json::{Map, Value, json};

use super::extract::{Force, Listing, NamespaceInPath, Params, Plain, Segments};
use super::topics::{listing as topics_of, names as loaded_names};
use super::{Admin, document, done};
use crate::error::{Answer, ApiError};
use crate::request;

pub(super) fn router() -> Router<Admin> {
    let one = "/admin/v2/namespaces/{tenant}/{namespace}";
    Router::new()
        .route("/admin/v2/namespaces/{tenant}", get(list))
        .route(one, get(policies).put(create).delete(delete))
        .route(&format!("{one}/topics"), get(topics))
        .route(&format!("{one}/bundles"), get(bundles))
        .route(&format!("{one}/unload"), put(unload))
        .route(&format!("{one}/clearBacklog"), post(clear_backlog))
        .route(
            &format!("{one}/clearBacklog/{{subscription}}"),
            post(clear_backlog_of),
        )
        .route(
            &format!("{one}/unsubscribe/{{subscription}}"),
            post(unsubscribe),
        )
}

async fn list(State(admin): State<Admin>, Segments(tenant): Segments<String>) -> Answer {
    document(&admin.broker().namespaces(&tenant).await?)
}

/// The document of a namespace without policies of its own.
fn defaults(cluster: &str) -> Map<String, Value> {
    let document = json!({
        "auth_policies": {
            "namespace_auth": {}, "destination_auth": {}, "subscription_auth_roles": {}
        },
        "replication_clusters": [cluster],
        "allowed_clusters": [],
        "bundles": Bundles::default(),
        "backlog_quota_map": {},
        "clusterDispatchRate": {},
        "topicDispatchRate": {},
        "subscriptionDispatchRate": {},
        "replicatorDispatchRate": {},
        "clusterSubscribeRate": {},
        "publishMaxMessageRate": {},
        "latency_stats_sample_rate": {},
        "deleted": false,
        "encryption_required": false,
        "subscription_auth_mode": "None",
        "offload_threshold": -1,
        "offload_threshold_in_seconds": -1,
        "schema_compatibility_strategy": "UNDEFINED",
        "is_allow_auto_update_schema": true,
        "schema_validation_enforced": false,
        "subscription_types_enabled": [],
        "properties": {},
        "migrated": false,
    });
    match document {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

async fn policies(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
) -> Answer {
    let policies = admin.broker().policies(&namespace).await?;
    let cluster = &admin.broker().config().cluster_name;
    let mut all = defaults(cluster);
    let granted = admin.broker().auth_policies(&namespace).await?;
    all.insert(
        "auth_policies".to_owned(),
        json!({
            "namespace_auth": granted.namespace_auth,
            "destination_auth": granted.destination_auth,
            "subscription_auth_roles": granted.subscription_auth_roles,
        }),
    );
    if granted.subscription_prefix_mode {
        all.insert("subscription_auth_mode".to_owned(), json!("Prefix"));
    }
    let own = serde_json::to_value(&policies).map_err(|e| ApiError::internal(e.to_string()))?;
    if let Value::Object(own) = own {
        all.extend(
            own.into_iter()
                .map(|(name, value)| shown(name, value, cluster)),
        );
    }
    document(&all)
}

/// What Pulsar keeps for each cluster.
const BY_CLUSTER: [&str; 5] = [
    "publishMaxMessageRate",
    "topicDispatchRate",
    "subscriptionDispatchRate",
    "replicatorDispatchRate",
    "clusterSubscribeRate",
];
const AUTO_SUBSCRIPTION: &str = "autoSubscriptionCreationOverride";

/// A stored policy as Pulsar's document has it.
fn shown(name: String, value: Value, cluster: &str) -> (String, Value) {
    let value = match name.as_str() {
        by_cluster if BY_CLUSTER.contains(&by_cluster) => json!({ cluster: value }),
        AUTO_SUBSCRIPTION => json!({ "allowAutoSubscriptionCreation": value }),
        _ => value,
    };
    (name, value)
}

/// The other way round; none where it is of another cluster or of another form.
fn taken(name: &str, value: Value, cluster: &str) -> Option<Value> {
    match name {
        by_cluster if BY_CLUSTER.contains(&by_cluster) => match value {
            Value::Object(mut map) if map.len() == 1 => map.remove(cluster),
            _ => None,
        },
        AUTO_SUBSCRIPTION => value.get("allowAutoSubscriptionCreation").cloned(),
        _ => Some(value),
    }
}

/// Policies given at creation: those of ours pass, defaults of Pulsar mean nothing, any other value
/// is refused by name.
fn check_given(given: Map<String, Value>, cluster: &str) -> Answer<geminga_broker::Policies> {
    const HONOURED: [&str; 35] = [
        "resource_group_name",
        "allowed_clusters",
        "antiAffinityGroup",
        "bundles",
        "clusterSubscribeRate",
        "deduplicationSnapshotIntervalSeconds",
        "replicatorDispatchRate",
        "schema_auto_update_compatibility_strategy",
        "replication_clusters",
        "retention_policies",
        "message_ttl_in_seconds",
        "backlog_quota_map",
        "deduplicationEnabled",
        "max_producers_per_topic",
        "max_consumers_per_topic",
        "max_consumers_per_subscription",
        "max_subscriptions_per_topic",
        "max_unacked_messages_per_consumer",
        "max_unacked_messages_per_subscription",
        "max_topics_per_namespace",
        "publishMaxMessageRate",
        "topicDispatchRate",
        "subscriptionDispatchRate",
        "delayed_delivery_policies",
        "inactive_topic_policies",
        "subscription_types_enabled",
        "persistence",
        "schema_compatibility_strategy",
        "schema_validation_enforced",
        "is_allow_auto_update_schema",
        "subscription_expiration_time_minutes",
        "encryption_required",
        "autoTopicCreationOverride",
        AUTO_SUBSCRIPTION,
        "properties",
    ];
    let defaults = defaults(cluster);
    let mut kept = Map::new();
    for (name, value) in given {
        let is_empty = match &value {
            Value::Null => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if is_empty || defaults.get(&name) == Some(&value) {
            continue;
        }
        if HONOURED.contains(&name.as_str()) {
            let Some(value) = taken(&name, value, cluster) else {
                return Err(ApiError::bad_request(format!(
                    "policy `{name}` is not of the form that Pulsar documents, or names a cluster \
                     that is not `{cluster}`"
                )));
            };
            kept.insert(name, value);
            continue;
        }
        let known = HONOURED
            .into_iter()
            .chain(defaults.keys().map(String::as_str));
        return Err(ApiError::bad_request(if defaults.contains_key(&name) {
            format!("policy `{name}` cannot be honoured yet")
        } else {
            match geminga_stdx::nearest::nearest(&name, known) {
                Some(near) => format!("unknown policy `{name}`; did you mean `{near}`?"),
                None => format!("policy `{name}` is not known or cannot be honoured yet"),
            }
        }));
    }
    request::from_json(Value::Object(kept).to_string().as_bytes())
}

async fn create(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Extension(session): Extension<Session>,
    request: Request,
) -> Answer {
    let given: Option<Map<String, Value>> = request::json_or_none(request).await?;
    let policies = check_given(
        given.unwrap_or_default(),
        &admin.broker().config().cluster_name,
    )?;
    super::policies::check_all(&policies, &admin)?;
    if let Some(clusters) = &policies.replication_clusters {
        admin
            .broker()
            .check_replication(&namespace, clusters)
            .await?;
    }
    let used = policies.replication_clusters.as_deref();
    admin
        .broker()
        .check_allowed(&namespace, &policies.allowed_clusters, used)
        .await?;
    if policies.resource_group.is_some() {
        // As for the path that puts a namespace into a group.
        let allowed = admin.broker().authorize(&session, &Need::SuperUser);
        allowed.map_err(|reason| ApiError::forbidden(reason.to_string()))?;
    }
    admin
        .broker()
        .create_namespace(&namespace, policies)
        .await?;
    done()
}

async fn delete(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Params(params): Params<Force>,
) -> Answer {
    admin
        .broker()
        .delete_namespace(&namespace, params.force)
        .await?;
    done()
}

async fn topics(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Params(params): Params<Listing>,
) -> Answer {
    let domain = match params.mode.as_deref() {
        None | Some("PERSISTENT" | "ALL") => TopicDomain::Persistent,
        Some("NON_PERSISTENT") => TopicDomain::NonPersistent,
        Some(other) => return Err(ApiError::bad_request(format!("unknown mode `{other}`"))),
    };
    topics_of(&admin, &namespace, domain, &params).await
}

async fn bundles(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
) -> Answer {
    let bundles = admin.broker().policies(&namespace).await?.bundles;
    document(&bundles)
}

async fn unload(State(admin): State<Admin>, NamespaceInPath(namespace): NamespaceInPath) -> Answer {
    admin.broker().policies(&namespace).await?;
    for topic in loaded_names(&admin, &namespace).await? {
        admin.broker().unload(&topic).await?;
    }
    done()
}

async fn clear_backlog(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Params(_): Params<Plain>,
) -> Answer {
    admin.broker().policies(&namespace).await?;
    for topic in loaded_names(&admin, &namespace).await? {
        for subscription in admin.broker().subscriptions(&topic).await? {
            admin.broker().skip_all(&topic, &subscription).await?;
        }
    }
    done()
}

#[derive(serde::Deserialize)]
struct Named {
    subscription: String,
}

/// The topics of a namespace that have a subscription; none is 404.
async fn having(
    admin: &Admin,
    namespace: &geminga_model::NamespaceName,
    subscription: &str,
) -> Answer<Vec<geminga_model::TopicName>> {
    let mut having = Vec::new();
    for topic in loaded_names(admin, namespace).await? {
        let all = admin.broker().subscriptions(&topic).await?;
        if all.iter().any(|name| name == subscription) {
            having.push(topic);
        }
    }
    if having.is_empty() {
        return Err(ApiError::not_found(format!(
            "Subscription {subscription} not found in {namespace}"
        )));
    }
    Ok(having)
}

async fn clear_backlog_of(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Segments(Named { subscription }): Segments<Named>,
    Params(_): Params<Plain>,
) -> Answer {
    for topic in having(&admin, &namespace, &subscription).await? {
        admin.broker().skip_all(&topic, &subscription).await?;
    }
    done()
}

async fn unsubscribe(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Segments(Named { subscription }): Segments<Named>,
    Params(_): Params<Plain>,
) -> Answer {
    for topic in having(&admin, &namespace, &subscription).await? {
        admin
            .broker()
            .delete_subscription(&topic, &subscription, false)
            .await?;
    }
    done()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(json: Value) -> Answer<geminga_broker::Policies> {
        match json {
            Value::Object(map) => check_given(map, "standalone"),
            _ => unreachable!("a test gives an object"),
        }
    }

    #[test]
    fn policies_are_honoured_or_refused_by_name() {
        let defaults = Value::Object(defaults("standalone"));
        assert!(given(defaults).is_ok());
        assert!(
            given(json!({"retention_policies":
            {"retentionTimeInMinutes": 5, "retentionSizeInMB": 5}}))
            .is_ok()
        );
        for (json, word) in [
            (json!({"offload_threshold": 5}), "`offload_threshold`"),
            (
                json!({"replication_clusters": "elsewhere"}),
                "expected a sequence",
            ),
            (
                json!({"retention_polices": {"a": 1}}),
                "did you mean `retention_policies`?",
            ),
            (
                json!({"retention_policies": {"retentionTime": 1}}),
                "`retentionTime`",
            ),
        ] {
            let refused = given(json).unwrap_err();
            assert_eq!(refused.status.as_u16(), 400);
            assert!(refused.reason.contains(word), "{refused}");
        }
    }
}
