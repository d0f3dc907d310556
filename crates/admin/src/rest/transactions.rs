//! `/admin/v3/transactions`: coordinators, transactions, and what topics and subscriptions know of them.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::{get, post};
use geminga_broker::{CoordinatorStats, TransactionInfo};
use geminga_model::{Position, TopicDomain, TopicName};
use serde_json::{Map, Value, json};

use super::extract::{Params, Plain, Segments};
use super::{Admin, document, done};
use crate::error::{Answer, ApiError};
use crate::request;

pub(super) fn router() -> Router<Admin> {
    let at = |path: &str| format!("/admin/v3/transactions/{path}");
    let topic = "{tenant}/{namespace}/{topic}";
    let txn = "{most}/{least}";
    Router::new()
        .route(&at("coordinators"), get(coordinators))
        .route(&at("coordinatorStats"), get(coordinator_stats))
        .route(&at("transactionCoordinator/replicas"), post(scale))
        .route(&at("slowTransactions/{timeout}"), get(slow))
        .route(&at(&format!("transactionMetadata/{txn}")), get(metadata))
        .route(&at(&format!("abortTransaction/{txn}")), post(abort))
        .route(&at(&format!("transactionBufferStats/{topic}")), get(buffer))
        .route(
            &at(&format!("transactionInBufferStats/{topic}/{txn}")),
            get(in_buffer),
        )
        .route(
            &at(&format!("pendingAckStats/{topic}/{{subscription}}")),
            get(pending_acks),
        )
        .route(
            &at(&format!(
                "transactionInPendingAckStats/{topic}/{{subscription}}/{txn}"
            )),
            get(in_pending_acks),
        )
        .route(
            &at(&format!(
                "positionStatsInPendingAck/{topic}/{{subscription}}/{{ledger}}/{{entry}}"
            )),
            get(position_in_pending_acks),
        )
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct OfCoordinator {
    #[serde(rename = "authoritative")]
    _authoritative: Option<bool>,
    #[serde(rename = "coordinatorId")]
    coordinator: Option<u64>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Watermarks {
    #[serde(rename = "authoritative")]
    _authoritative: Option<bool>,
    #[serde(rename = "lowWaterMarks")]
    low_watermarks: Option<bool>,
    #[serde(rename = "segmentStats")]
    segment_stats: Option<bool>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct OfBatch {
    #[serde(rename = "authoritative")]
    _authoritative: Option<bool>,
    #[serde(rename = "batchIndex")]
    batch_index: Option<i64>,
}

#[derive(serde::Deserialize)]
struct InTopic {
    tenant: String,
    namespace: String,
    topic: String,
    #[serde(default)]
    subscription: String,
    most: Option<u64>,
    least: Option<u64>,
    ledger: Option<i64>,
    entry: Option<i64>,
}

impl InTopic {
    fn topic(&self) -> Answer<TopicName> {
        let domain = TopicDomain::Persistent;
        request::topic(domain, &self.tenant, &self.namespace, &self.topic)
    }

    fn txn(&self) -> (u64, u64) {
        (self.most.unwrap_or(0), self.least.unwrap_or(0))
    }
}

fn place(position: Position) -> String {
    format!("{}:{}", position.ledger, position.entry)
}

fn id(info: &TransactionInfo) -> String {
    format!("({},{})", info.coordinator, info.number)
}

fn not_found(most: u64, least: u64) -> ApiError {
    ApiError::not_found(format!("the transaction ({most},{least}) is not here"))
}

async fn coordinators(State(admin): State<Admin>) -> Answer {
    let url = admin.broker().service_url().unwrap_or_default();
    let all = admin.broker().transaction_coordinators()?;
    let all: Vec<Value> = all
        .into_iter()
        .map(|id| json!({"id": id, "brokerServiceUrl": url}))
        .collect();
    document(&all)
}

fn coordinator(stats: &CoordinatorStats) -> Value {
    json!({
        "state": "Ready",
        "leastSigBits": stats.last_number,
        "lowWaterMark": stats.low_watermark,
        "ongoingTxnSize": stats.ongoing,
        "recoverStartTime": 0,
        "recoverEndTime": 0,
    })
}

async fn coordinator_stats(
    State(admin): State<Admin>,
    Params(params): Params<OfCoordinator>,
) -> Answer {
    let broker = admin.broker();
    if let Some(id) = params.coordinator {
        return document(&coordinator(&broker.transaction_coordinator(id)?));
    }
    let mut all = Map::new();
    for id in broker.transaction_coordinators()? {
        let stats = broker.transaction_coordinator(id)?;
        all.insert(id.to_string(), coordinator(&stats));
    }
    document(&all)
}

async fn scale(State(admin): State<Admin>, request: Request) -> Answer {
    let count: i64 = request::json(request).await?;
    let count = u32::try_from(count).map_err(|_| {
        ApiError::precondition_failed("Number of transaction coordinators must be more than 0")
    })?;
    admin.broker().scale_transaction_coordinators(count).await?;
    done()
}

fn described(info: &TransactionInfo) -> Value {
    let produced: Map<String, Value> = info
        .partitions
        .iter()
        .map(|(topic, first)| {
            let stats = json!({"startPosition": first.map(place), "aborted": false});
            (topic.clone(), stats)
        })
        .collect();
    let acked: Map<String, Value> = info
        .subscriptions
        .iter()
        .map(|(topic, names)| {
            let names: Map<String, Value> = names
                .iter()
                .map(|(name, through)| {
                    let stats = json!({"cumulativeAckPosition": through.map(place)});
                    (name.clone(), stats)
                })
                .collect();
            (topic.clone(), names.into())
        })
        .collect();
    json!({
        "txnId": id(info),
        "status": info.status,
        "openTimestamp": info.started_ms,
        "timeoutAt": info.timeout_ms,
        "producedPartitions": produced,
        "ackedPartitions": acked,
    })
}

async fn slow(
    State(admin): State<Admin>,
    Segments(timeout_ms): Segments<u64>,
    Params(params): Params<OfCoordinator>,
) -> Answer {
    let found = admin
        .broker()
        .slow_transactions(params.coordinator, timeout_ms)
        .await?;
    let all: Map<String, Value> = found
        .iter()
        .map(|info| (id(info), described(info)))
        .collect();
    document(&all)
}

async fn metadata(
    State(admin): State<Admin>,
    Segments((most, least)): Segments<(u64, u64)>,
    Params(_): Params<Plain>,
) -> Answer {
    document(&described(&admin.broker().transaction(most, least).await?))
}

async fn abort(
    State(admin): State<Admin>,
    Segments((most, least)): Segments<(u64, u64)>,
    Params(_): Params<Plain>,
) -> Answer {
    admin.broker().abort_transaction(most, least).await?;
    done()
}

fn watermarks(wanted: Option<bool>, all: &BTreeMap<u64, u64>) -> Option<Map<String, Value>> {
    let entries = all.iter().map(|(id, mark)| (id.to_string(), json!(mark)));
    wanted.unwrap_or(false).then(|| entries.collect())
}

async fn buffer(
    State(admin): State<Admin>,
    Segments(named): Segments<InTopic>,
    Params(params): Params<Watermarks>,
) -> Answer {
    if params.segment_stats == Some(true) {
        return Err(ApiError::not_allowed(
            "`segmentStats`: there are no snapshot segments, aborted transactions are in the metadata",
        ));
    }
    let found = admin.broker().topic_transactions(&named.topic()?).await?;
    document(&json!({
        "state": "Ready",
        "maxReadPosition": place(found.max_read),
        "lastSnapshotTimestamps": 0,
        "lowWaterMarks": watermarks(params.low_watermarks, &found.low_watermarks),
        "ongoingTxnSize": found.ongoing,
        "recoverStartTime": 0,
        "recoverEndTime": 0,
        "totalAbortedTransactions": found.aborted,
    }))
}

async fn in_buffer(
    State(admin): State<Admin>,
    Segments(named): Segments<InTopic>,
    Params(_): Params<Plain>,
) -> Answer {
    let (most, least) = named.txn();
    let topic = named.topic()?;
    let found = admin
        .broker()
        .transaction_on_topic(&topic, most, least)
        .await?;
    let (first, aborted) = found.ok_or_else(|| not_found(most, least))?;
    document(&json!({"startPosition": first.map(place), "aborted": aborted}))
}

async fn pending_acks(
    State(admin): State<Admin>,
    Segments(named): Segments<InTopic>,
    Params(params): Params<Watermarks>,
) -> Answer {
    let (broker, topic) = (admin.broker(), named.topic()?);
    let ongoing = broker
        .pending_transactions(&topic, &named.subscription)
        .await?;
    let marks = broker.topic_transactions(&topic).await?.low_watermarks;
    document(&json!({
        "state": "Ready",
        "lowWaterMarks": watermarks(params.low_watermarks, &marks),
        "ongoingTxnSize": ongoing,
        "recoverStartTime": 0,
        "recoverEndTime": 0,
    }))
}

async fn in_pending_acks(
    State(admin): State<Admin>,
    Segments(named): Segments<InTopic>,
    Params(_): Params<Plain>,
) -> Answer {
    let (most, least) = named.txn();
    let through = admin
        .broker()
        .transaction_on_subscription(&named.topic()?, &named.subscription, most, least)
        .await?
        .ok_or_else(|| not_found(most, least))?;
    document(&json!({"cumulativeAckPosition": through.map(place)}))
}

async fn position_in_pending_acks(
    State(admin): State<Admin>,
    Segments(named): Segments<InTopic>,
    Params(params): Params<OfBatch>,
) -> Answer {
    let position = Position::new(named.ledger.unwrap_or(-1), named.entry.unwrap_or(-1));
    // Absent and negative mean the entry.
    let index = params.batch_index.and_then(|at| u32::try_from(at).ok());
    let state = match admin
        .broker()
        .is_ack_pending(&named.topic()?, &named.subscription, position, index)
        .await?
    {
        None => "MarkDelete",
        Some(true) => "PendingAck",
        Some(false) => "NotInPendingAck",
    };
    document(&json!({"state": state}))
}
