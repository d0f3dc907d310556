//! Figures of the whole broker, of a subscription's backlog, and answers about what one broker has
//! none of: quotas of resources, isolation, failure domains.

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::{delete, get, post};
use geminga_model::Position;
use serde_json::{Map, Value, json};

use super::bundles::{bundle_of, range_text};
use super::extract::{InPath, NamespaceInPath, Params, Plain, Segments};
use super::topics::{names, not_partitioned};
use super::{Admin, document, done};
use crate::error::{Answer, ApiError};
use crate::request;

/// `subscriptionBacklogScanMaxEntries` of Pulsar: a longer backlog is not looked through to its end.
const SCAN_ENTRIES_MAX: u64 = 10_000;

pub(super) fn router() -> Router<Admin> {
    let namespace = "/admin/v2/namespaces/{tenant}/{namespace}";
    let topic = "/admin/v2/persistent/{tenant}/{namespace}/{topic}";
    let quota = "/admin/v2/resource-quotas/{tenant}/{namespace}/{bundle}";
    let mut router = Router::new()
        .route("/admin/v2/broker-stats/topics", get(topics))
        .route("/admin/v2/broker-stats/load-report", get(load_report))
        .route("/admin/v2/resource-quotas", get(default_quota))
        .route(quota, get(quota_of).delete(reset_quota))
        .route(
            &format!("{topic}/subscription/{{subscription}}/analyzeBacklog"),
            post(analyze),
        );
    // What cannot be set needs no removing: scripts that tidy up go on.
    for unset in [
        "antiAffinity",
        "resourcegroup",
        "removeOffloadPolicies",
        "offloadDeletionLagMs",
        "subscribeRate",
        "entryFilters",
        "dispatcherPauseOnAckStatePersistent",
    ] {
        router = router.route(
            &format!("{namespace}/{unset}"),
            delete(nothing_of_namespace),
        );
    }
    for unset in [
        "offloadPolicies",
        "subscribeRate",
        "entryFilters",
        "deduplicationSnapshotInterval",
        "dispatcherPauseOnAckStatePersistent",
    ] {
        router = router.route(&format!("{topic}/{unset}"), delete(nothing_of_topic));
    }
    router
}

async fn nothing_of_namespace(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
) -> Answer {
    admin.broker().policies(&namespace).await?;
    done()
}

async fn nothing_of_topic(State(admin): State<Admin>, InPath(topic): InPath) -> Answer {
    admin.broker().topic_policies(&topic).await?;
    done()
}

/// Stats of all topics by namespace, bundle and domain.
async fn topics(State(admin): State<Admin>) -> Answer {
    let mut all = Map::new();
    for tenant in admin.broker().tenants().await? {
        for namespace in admin.broker().namespaces(&tenant).await? {
            let Ok(name) = namespace.parse() else {
                continue;
            };
            let mut bundles = Map::new();
            for topic in names(&admin, &name).await? {
                // One that is deleted meanwhile has none.
                let Ok(stats) = admin.broker().topic_stats(&topic).await else {
                    continue;
                };
                let stats = serde_json::to_value(&stats)
                    .map_err(|error| ApiError::internal(error.to_string()))?;
                let bundle = bundles
                    .entry(range_text(bundle_of(&topic)))
                    .or_insert_with(|| json!({}));
                bundle["persistent"][topic.as_str()] = stats;
            }
            if !bundles.is_empty() {
                all.insert(namespace, Value::Object(bundles));
            }
        }
    }
    document(&all)
}

/// `LocalBrokerData` of Pulsar, without what only a balancer of load needs.
async fn load_report(State(admin): State<Admin>) -> Answer {
    let config = admin.broker().config();
    let figures = admin.broker().metrics();
    document(&json!({
        "loadReportType": "LocalBrokerData",
        "webServiceUrl": admin.http_url(),
        "pulsarServiceUrl": admin.broker().service_url(),
        "pulsarServiceUrlTls": admin.broker().service_url_tls(),
        "persistentTopicsEnabled": config.enable_persistent_topics,
        "nonPersistentTopicsEnabled": config.enable_non_persistent_topics,
        "numTopics": figures.topics.len(),
        "brokerVersionString": super::brokers::PULSAR_VERSION,
    }))
}

/// Pulsar's default; there is no balancer of load that would use another one.
fn quota() -> Value {
    json!({
        "msgRateIn": 40.0, "msgRateOut": 120.0, "bandwidthIn": 100_000.0,
        "bandwidthOut": 300_000.0, "memory": 80.0, "dynamic": true,
    })
}

async fn default_quota() -> Answer {
    document(&quota())
}

async fn quota_of(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
) -> Answer {
    admin.broker().policies(&namespace).await?;
    document(&quota())
}

async fn reset_quota(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
) -> Answer {
    admin.broker().policies(&namespace).await?;
    done()
}

#[derive(serde::Deserialize)]
struct Named {
    subscription: String,
}

/// Where to begin; both -1 or nothing: at the first message that is not acked.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Start {
    ledger_id: i64,
    entry_id: i64,
    #[serde(default, rename = "partitionIndex")]
    _partition_index: Option<i32>,
    #[serde(default, rename = "batchIndex")]
    _batch_index: Option<i32>,
    #[serde(default, rename = "batchSize")]
    _batch_size: Option<i32>,
}

async fn analyze(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Segments(Named { subscription }): Segments<Named>,
    Params(_): Params<Plain>,
    request: Request,
) -> Answer {
    let start: Option<Start> = request::json_or_none(request).await?;
    not_partitioned(&admin, &topic, "analyzeBacklog").await?;
    let from = start.map(|start| Position::new(start.ledger_id, start.entry_id));
    let found = admin
        .broker()
        .analyze_backlog(&topic, &subscription, from, SCAN_ENTRIES_MAX)
        .await?;
    let id = |position: Option<Position>| {
        position.map(|at| format!("{}:{}:{}", at.ledger.0, at.entry.0, partition(&topic)))
    };
    // Without filters everything is accepted.
    document(&json!({
        "entries": found.entries,
        "messages": found.messages,
        "filterRejectedEntries": 0,
        "filterAcceptedEntries": found.entries,
        "filterRescheduledEntries": 0,
        "filterRejectedMessages": 0,
        "filterAcceptedMessages": found.messages,
        "filterRescheduledMessages": 0,
        "aborted": found.is_cut,
        "firstMessageId": id(found.first),
        "lastMessageId": id(found.last),
    }))
}

fn partition(topic: &geminga_model::TopicName) -> i64 {
    topic.partition().map_or(-1, i64::from)
}
