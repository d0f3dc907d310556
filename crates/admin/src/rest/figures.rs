//! Figures of the whole broker, and of a subscription's backlog.
//!
//! Topics that nobody uses are not in memory and count for nothing here.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::{get, post};
use geminga_broker::TopicStats;
use geminga_model::{NamespaceName, Position, TopicName};
use serde_json::{Map, Value, json};

use super::extract::On;
use super::extract::{NamespaceInPath, Segments};
use super::partitions::not_partitioned;
use super::{Admin, document};
use crate::error::{Answer, ApiError};
use crate::request;

/// `subscriptionBacklogScanMaxEntries` of Pulsar: a longer backlog is not looked through to its end.
const SCAN_ENTRIES_MAX: u64 = 10_000;

pub(super) fn router() -> Router<Admin> {
    let topic = "/admin/v2/persistent/{tenant}/{namespace}/{topic}";
    let stats = "/admin/v2/broker-stats";
    Router::new()
        .route(&format!("{stats}/topics"), get(topics))
        .route(&format!("{stats}/metrics"), get(metrics))
        .route(&format!("{stats}/load-report"), get(load_report))
        .route(
            &format!("{stats}/allocator-stats/{{allocator}}"),
            get(allocator),
        )
        .route(
            &format!("{stats}/broker-resource-availability/{{tenant}}/{{namespace}}"),
            get(availability),
        )
        .route(
            &format!("{topic}/subscription/{{subscription}}/analyzeBacklog"),
            post(analyze),
        )
}

type Loaded = Vec<(TopicName, TopicStats)>;

fn loaded(admin: &Admin) -> BTreeMap<NamespaceName, Loaded> {
    let mut all: BTreeMap<NamespaceName, Loaded> = BTreeMap::new();
    for (name, stats) in admin.broker().loaded_topic_stats() {
        if let Ok(name) = name.parse::<TopicName>() {
            all.entry(name.namespace()).or_default().push((name, stats));
        }
    }
    all
}

/// Stats of the topics by namespace, bundle and domain.
async fn topics(State(admin): State<Admin>) -> Answer {
    let mut all = Map::new();
    for (namespace, topics) in loaded(&admin) {
        let bundles = admin.broker().policies(&namespace).await?.bundles;
        let mut by_bundle = json!({});
        for (topic, stats) in topics {
            let range = bundles.range(bundles.of(&topic));
            let domain = topic.domain().to_string();
            by_bundle[range][domain][topic.as_str()] = value(&stats)?;
        }
        all.insert(namespace.to_string(), by_bundle);
    }
    document(&all)
}

fn value(stats: &TopicStats) -> Answer<Value> {
    serde_json::to_value(stats).map_err(|error| ApiError::internal(error.to_string()))
}

/// What the topics of a namespace do together.
#[derive(Default)]
struct Sum {
    rate_in: f64,
    bytes_rate_in: f64,
    rate_out: f64,
    bytes_rate_out: f64,
    storage: u64,
    backlog: u64,
    producers: usize,
    consumers: usize,
    subscriptions: usize,
    replicators: usize,
    replication_backlog: u64,
    replication_delay: u64,
}

impl Sum {
    fn add(&mut self, stats: &Value) {
        let number = |value: &Value, name: &str| value[name].as_f64().unwrap_or(0.0);
        let count = |value: &Value, name: &str| value[name].as_u64().unwrap_or(0);
        let length = |value: &Value| value.as_array().map_or(0, Vec::len);
        self.rate_in += number(stats, "msgRateIn");
        self.bytes_rate_in += number(stats, "msgThroughputIn");
        self.rate_out += number(stats, "msgRateOut");
        self.bytes_rate_out += number(stats, "msgThroughputOut");
        self.storage += count(stats, "storageSize");
        self.producers += length(&stats["publishers"]);
        for subscription in stats["subscriptions"]
            .as_object()
            .into_iter()
            .flat_map(Map::values)
        {
            self.subscriptions += 1;
            self.backlog += count(subscription, "msgBacklog");
            self.consumers += length(&subscription["consumers"]);
        }
        for replicator in stats["replication"]
            .as_object()
            .into_iter()
            .flat_map(Map::values)
        {
            self.replicators += 1;
            self.replication_backlog += count(replicator, "replicationBacklog");
            let delay = count(replicator, "replicationDelayInSeconds");
            self.replication_delay = self.replication_delay.max(delay);
        }
    }
}

/// Pulsar's list of figures with the dimensions that they have: of the broker, of each namespace.
async fn metrics(State(admin): State<Admin>) -> Answer {
    let broker = admin.broker().metrics();
    let mut all = vec![json!({
        "metrics": {
            "brk_ml_count": broker.topics.len(),
            "brk_ml_cache_used_size": broker.cache_bytes,
            "brk_topic_load_failed_count": broker.topic_load_failures_total,
        },
        "dimensions": {},
    })];
    for (namespace, topics) in loaded(&admin) {
        let mut sum = Sum::default();
        for (_, stats) in &topics {
            sum.add(&value(stats)?);
        }
        all.push(json!({
            "metrics": {
                "brk_in_rate": sum.rate_in,
                "brk_in_tp_rate": sum.bytes_rate_in,
                "brk_max_replication_delay_second": sum.replication_delay,
                "brk_msg_backlog": sum.backlog,
                "brk_no_of_consumers": sum.consumers,
                "brk_no_of_producers": sum.producers,
                "brk_no_of_replicators": sum.replicators,
                "brk_no_of_subscriptions": sum.subscriptions,
                "brk_out_rate": sum.rate_out,
                "brk_out_tp_rate": sum.bytes_rate_out,
                "brk_replication_backlog": sum.replication_backlog,
                "brk_storage_size": sum.storage,
            },
            "dimensions": { "namespace": namespace.to_string() },
        }));
    }
    document(&all)
}

/// `LocalBrokerData` of Pulsar, without what only a balancer of load needs.
async fn load_report(State(admin): State<Admin>) -> Answer {
    let config = admin.broker().config();
    let (mut sum, mut count, mut bundles) = (Sum::default(), 0, Vec::new());
    for (namespace, topics) in loaded(&admin) {
        let cuts = admin.broker().policies(&namespace).await?.bundles;
        for (topic, stats) in topics {
            sum.add(&value(&stats)?);
            count += 1;
            let range = format!("{namespace}/{}", cuts.range(cuts.of(&topic)));
            if !bundles.contains(&range) {
                bundles.push(range);
            }
        }
    }
    document(&json!({
        "loadReportType": "LocalBrokerData",
        "webServiceUrl": admin.http_url(),
        "pulsarServiceUrl": admin.broker().service_url(),
        "pulsarServiceUrlTls": admin.broker().service_url_tls(),
        "persistentTopicsEnabled": config.enable_persistent_topics,
        "nonPersistentTopicsEnabled": config.enable_non_persistent_topics,
        "msgRateIn": sum.rate_in,
        "msgThroughputIn": sum.bytes_rate_in,
        "msgRateOut": sum.rate_out,
        "msgThroughputOut": sum.bytes_rate_out,
        "numTopics": count,
        "numBundles": bundles.len(),
        "numConsumers": sum.consumers,
        "numProducers": sum.producers,
        "bundles": bundles,
        "brokerVersionString": super::brokers::PULSAR_VERSION,
    }))
}

/// Pulsar's two are parts of its Java runtime.
async fn allocator(Segments(name): Segments<String>) -> Answer {
    Err(match name.as_str() {
        "default" | "ml-cache" => ApiError::not_implemented(format!(
            "this server has no allocator `{name}`: memory is in `/metrics`"
        )),
        _ => ApiError::not_acceptable(format!("Invalid allocator name : {name}")),
    })
}

async fn availability(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
) -> Answer {
    admin.broker().policies(&namespace).await?;
    Err(ApiError::conflict(
        "one broker has no balancer of load to ask: it does not support this operation",
    ))
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
    On {
        topic,
        subscription,
    }: On,
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
