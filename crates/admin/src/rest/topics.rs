//! `/admin/v2/persistent` and `/admin/v2/non-persistent`: topics and partitioned topics.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::Uri;
use axum::routing::{get, post, put};
use geminga_broker::{Partitioned, TopicInternalStats};
use geminga_model::{NamespaceName, TopicDomain, TopicName};
use serde_json::{Map, Value, json};

use super::content::check_properties;
use super::extract::{Force, InPath, Listing, NamespaceInPath, Params, Plain, domain_of};
use super::partitions::{not_partitioned, partitions_of, targets};
use super::{Admin, document, done};
use crate::error::{Answer, ApiError};
use crate::request;

/// The media type of the longer form of a partition count.
const PARTITIONED_METADATA: &str = "application/vnd.partitioned-topic-metadata+json";

pub(super) fn router() -> Router<Admin> {
    let mut router = Router::new();
    for domain in ["persistent", "non-persistent"] {
        let namespace = format!("/admin/v2/{domain}/{{tenant}}/{{namespace}}");
        let topic = format!("{namespace}/{{topic}}");
        router = router
            .route(&namespace, get(list))
            .route(&format!("{namespace}/partitioned"), get(list_partitioned))
            .route(&topic, put(create).delete(remove))
            .route(
                &format!("{topic}/partitions"),
                get(partitions)
                    .put(create_partitioned)
                    .post(update_partitioned)
                    .delete(remove_partitioned),
            )
            .route(
                &format!("{topic}/createMissedPartitions"),
                post(create_missed),
            )
            .route(&format!("{topic}/stats"), get(stats))
            .route(
                &format!("{topic}/partitioned-stats"),
                get(partitioned_stats),
            )
            .route(&format!("{topic}/internalStats"), get(internal_stats))
            .route(&format!("{topic}/internal-info"), get(internal_info))
            .route(
                &format!("{topic}/partitioned-internalStats"),
                get(partitioned_internal_stats),
            )
            .route(&format!("{topic}/lastMessageId"), get(last_message_id))
            .route(
                &format!("{topic}/ledger/{{ledger}}/entry/{{entry}}"),
                get(super::peek::entry),
            )
            .route(
                &format!("{topic}/properties"),
                get(super::content::properties)
                    .put(super::content::put_properties)
                    .delete(super::content::remove_property),
            )
            .route(
                &format!("{topic}/compaction"),
                get(compaction_status).put(compact),
            )
            .route(&format!("{topic}/terminate"), post(terminate))
            .route(
                &format!("{topic}/terminate/partitions"),
                post(terminate_partitions),
            )
            .route(&format!("{topic}/unload"), put(unload));
    }
    router
}

async fn list(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Params(params): Params<Listing>,
    uri: Uri,
) -> Answer {
    listing(&admin, &namespace, domain_of(uri.path()), &params).await
}

async fn list_partitioned(
    State(admin): State<Admin>,
    NamespaceInPath(namespace): NamespaceInPath,
    Params(params): Params<Listing>,
    uri: Uri,
) -> Answer {
    params.check()?;
    let mut topics = admin.broker().partitioned_topics(&namespace).await?;
    let prefix = format!("{}://", domain_of(uri.path()));
    topics.retain(|topic| topic.starts_with(&prefix));
    document(&topics)
}

/// The topics of one domain: those that are stored, or the live ones of those that are not.
pub(super) async fn listing(
    admin: &Admin,
    namespace: &NamespaceName,
    domain: TopicDomain,
    params: &Listing,
) -> Answer {
    params.check()?;
    let topics = match domain {
        TopicDomain::Persistent => admin.broker().topics(namespace).await?,
        TopicDomain::NonPersistent => admin.broker().nonpersistent_topics(namespace).await?,
    };
    document(&topics)
}

/// The topics of a namespace, as names.
pub(super) async fn names(admin: &Admin, namespace: &NamespaceName) -> Answer<Vec<TopicName>> {
    let topics = admin.broker().topics(namespace).await?;
    Ok(topics
        .iter()
        .filter_map(|topic| topic.parse().ok())
        .collect())
}

async fn create(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(_): Params<Plain>,
    request: Request,
) -> Answer {
    let properties: Option<BTreeMap<String, String>> = request::json_or_none(request).await?;
    check_properties(properties.as_ref())?;
    admin.broker().create_topic(&topic).await?;
    if let Some(properties) = properties.filter(|properties| !properties.is_empty()) {
        admin
            .broker()
            .change_topic_properties(&topic, properties, None)
            .await?;
    }
    done()
}

async fn remove(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(params): Params<Force>,
) -> Answer {
    admin.broker().delete_topic(&topic, params.force).await?;
    done()
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Creation {
    #[serde(rename = "createLocalTopicOnly")]
    _local_only: Option<bool>,
    #[serde(rename = "authoritative")]
    _authoritative: Option<bool>,
}

/// The longer form of a partition count.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    partitions: u32,
    #[serde(default)]
    properties: Option<BTreeMap<String, String>>,
    /// Written by Pulsar's own client; a new topic is never deleted.
    #[serde(default, rename = "deleted")]
    _deleted: bool,
}

async fn create_partitioned(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(_): Params<Creation>,
    request: Request,
) -> Answer {
    let long_form = request::content_type(request.headers()).starts_with(PARTITIONED_METADATA);
    let (partitions, properties) = if long_form {
        let metadata: Metadata = request::json(request).await?;
        check_properties(metadata.properties.as_ref())?;
        (metadata.partitions, metadata.properties.unwrap_or_default())
    } else {
        (request::json::<u32>(request).await?, BTreeMap::new())
    };
    let max = admin
        .broker()
        .settings()
        .max_num_partitions_per_partitioned_topic;
    if partitions == 0 || (max > 0 && partitions > max) {
        let most = if max > 0 {
            format!(" and at most {max}")
        } else {
            String::new()
        };
        return Err(ApiError::not_acceptable(format!(
            "Number of partitions should be more than 0{most}"
        )));
    }
    admin
        .broker()
        .create_partitioned(&topic, partitions, properties)
        .await?;
    done()
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Growth {
    #[serde(rename = "updateLocalTopicOnly")]
    _local_only: Option<bool>,
    #[serde(rename = "authoritative")]
    _authoritative: Option<bool>,
    /// Skips a check of topics that would become partitions; there is none to skip.
    #[serde(rename = "force")]
    _force: Option<bool>,
}

async fn update_partitioned(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(_): Params<Growth>,
    request: Request,
) -> Answer {
    let partitions: u32 = request::json(request).await?;
    let Some(before) = admin.broker().partitions(&topic).await? else {
        return Err(ApiError::conflict(format!(
            "Topic {} is not a partitioned topic",
            topic.as_str()
        )));
    };
    let max = admin
        .broker()
        .settings()
        .max_num_partitions_per_partitioned_topic;
    if max > 0 && partitions > max {
        return Err(ApiError::unprocessable(format!(
            "Number of partitions should be at most {max}"
        )));
    }
    if partitions <= before.partitions {
        return Err(ApiError::unprocessable(format!(
            "Number of partitions must be greater than {}",
            before.partitions
        )));
    }
    admin.broker().update_partitions(&topic, partitions).await?;
    done()
}

/// `?checkAllowAutoCreation=true` makes the topic as a lookup of a client does.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Look {
    #[serde(rename = "checkAllowAutoCreation", default)]
    check_allow_auto_creation: bool,
    #[serde(rename = "authoritative")]
    _authoritative: Option<bool>,
}

async fn partitions(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(params): Params<Look>,
) -> Answer {
    if params.check_allow_auto_creation {
        admin.broker().partitions_or_create(&topic).await?;
    }
    let partitioned = match admin.broker().partitions(&topic).await? {
        Some(partitioned) => partitioned,
        // The client that asked so makes it on first use.
        None if params.check_allow_auto_creation => Partitioned::default(),
        None => {
            require(&admin, &topic).await?;
            Partitioned::default()
        }
    };
    let mut answer = json!({ "partitions": partitioned.partitions, "deleted": false });
    if !partitioned.properties.is_empty() {
        answer["properties"] = json!(partitioned.properties);
    }
    document(&answer)
}

async fn remove_partitioned(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(params): Params<Force>,
) -> Answer {
    if admin.broker().partitions(&topic).await?.is_none() {
        require(&admin, &topic).await?;
        return Err(ApiError::conflict(format!(
            "Topic {} is not a partitioned topic",
            topic.as_str()
        )));
    }
    admin
        .broker()
        .delete_partitioned(&topic, params.force)
        .await?;
    done()
}

/// 404 when the topic itself is not there.
async fn require(admin: &Admin, topic: &TopicName) -> Answer<()> {
    if admin.broker().topic_exists(topic).await? {
        return Ok(());
    }
    Err(ApiError::not_found(format!(
        "Topic {} not found",
        topic.as_str()
    )))
}

async fn create_missed(State(admin): State<Admin>, InPath(topic): InPath) -> Answer {
    let partitions = partitions_of(&admin, &topic).await?;
    if partitions.is_empty() {
        return Err(ApiError::not_found(format!(
            "Topic {} does not exist or is not partitioned",
            topic.as_str()
        )));
    }
    for partition in partitions {
        if !admin.broker().topic_exists(&partition).await? {
            admin.broker().create_topic(&partition).await?;
        }
    }
    done()
}

/// What a stats document may leave out.
#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct StatsParams {
    #[serde(rename = "authoritative")]
    _authoritative: Option<bool>,
    /// Backlogs are always precise.
    #[serde(rename = "getPreciseBacklog")]
    _precise: Option<bool>,
    /// Sizes cost nothing here, so they are always there.
    #[serde(rename = "subscriptionBacklogSize")]
    _sizes: Option<bool>,
    #[serde(rename = "getEarliestTimeInBacklog")]
    _earliest: Option<bool>,
    exclude_publishers: bool,
    exclude_consumers: bool,
    per_partition: Option<bool>,
}

impl StatsParams {
    fn leave_out(&self, stats: &mut Value) {
        if self.exclude_publishers {
            stats["publishers"] = json!([]);
        }
        if self.exclude_consumers
            && let Some(subscriptions) = stats["subscriptions"].as_object_mut()
        {
            for subscription in subscriptions.values_mut() {
                subscription["consumers"] = json!([]);
            }
        }
    }
}

async fn stats(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(params): Params<StatsParams>,
) -> Answer {
    let mut stats = to_value(&admin.broker().topic_stats(&topic).await?)?;
    params.leave_out(&mut stats);
    document(&stats)
}

fn to_value(stats: &impl serde::Serialize) -> Answer<Value> {
    serde_json::to_value(stats).map_err(|error| ApiError::internal(error.to_string()))
}

async fn partitioned_stats(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(params): Params<StatsParams>,
) -> Answer {
    let partitions = partitioned_only(&admin, &topic).await?;
    let mut all = Map::new();
    for partition in &partitions {
        let mut stats = to_value(&admin.broker().topic_stats(partition).await?)?;
        params.leave_out(&mut stats);
        all.insert(partition.as_str().to_owned(), stats);
    }
    let mut sum = json!({ "publishers": [], "subscriptions": {}, "replication": {} });
    for stats in all.values() {
        super::sum::add(&mut sum, stats);
    }
    sum["metadata"] = json!({ "partitions": partitions.len(), "deleted": false });
    sum["partitions"] = if params.per_partition.unwrap_or(true) {
        Value::Object(all)
    } else {
        json!({})
    };
    document(&sum)
}

async fn partitioned_only(admin: &Admin, topic: &TopicName) -> Answer<Vec<TopicName>> {
    let partitions = partitions_of(admin, topic).await?;
    if partitions.is_empty() {
        return Err(ApiError::not_found(format!(
            "Partitioned topic {} not found: either no such topic or not partitioned",
            topic.as_str()
        )));
    }
    Ok(partitions)
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct InternalParams {
    #[serde(rename = "authoritative")]
    _authoritative: Option<bool>,
    #[serde(rename = "metadata")]
    _metadata: Option<bool>,
}

async fn internal_stats(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(_): Params<InternalParams>,
) -> Answer {
    document(&admin.broker().topic_internal_stats(&topic).await?)
}

/// `ManagedLedgerInfo`: of a partitioned topic that of each partition.
async fn internal_info(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(_): Params<Plain>,
) -> Answer {
    if topic.domain() != TopicDomain::Persistent {
        return Err(ApiError::not_allowed(
            "a non-persistent topic has no ledgers",
        ));
    }
    let partitions = partitions_of(&admin, &topic).await?;
    if partitions.is_empty() {
        return document(&info_of(
            &admin.broker().topic_internal_stats(&topic).await?,
        ));
    }
    let mut all = Map::new();
    for partition in partitions {
        let stats = admin.broker().topic_internal_stats(&partition).await?;
        all.insert(partition.as_str().to_owned(), info_of(&stats));
    }
    document(&json!({ "version": 0, "partitions": all }))
}

fn info_of(stats: &TopicInternalStats) -> Value {
    let ledgers: Vec<Value> = stats
        .ledgers
        .iter()
        .map(|ledger| {
            json!({
                "ledgerId": ledger.ledger_id, "entries": ledger.entries, "size": ledger.size,
                "timestamp": ledger.closed_ms.unwrap_or(0), "isOffloaded": false,
            })
        })
        .collect();
    let place = |text: &str| {
        let (ledger, entry) = text.split_once(':').unwrap_or(("-1", "-1"));
        let number = |text: &str| text.parse::<i64>().unwrap_or(-1);
        json!({ "ledgerId": number(ledger), "entryId": number(entry) })
    };
    let cursors: Map<String, Value> = stats
        .cursors
        .iter()
        .map(|(name, cursor)| {
            // What was acked is in the log, not in a ledger of the cursor.
            let info = json!({
                "version": 0, "cursorsLedgerId": -1,
                "markDelete": place(&cursor.mark_delete_position),
            });
            (name.clone(), info)
        })
        .collect();
    let mut info = json!({ "version": 0, "ledgers": ledgers, "cursors": cursors });
    if stats.state == "Terminated" {
        info["terminatedPosition"] = place(&stats.last_confirmed_entry);
    }
    info
}

async fn partitioned_internal_stats(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(_): Params<InternalParams>,
) -> Answer {
    let partitions = partitioned_only(&admin, &topic).await?;
    let mut all = Map::new();
    for partition in &partitions {
        let stats = to_value(&admin.broker().topic_internal_stats(partition).await?)?;
        all.insert(partition.as_str().to_owned(), stats);
    }
    document(&json!({
        "metadata": { "partitions": partitions.len(), "deleted": false },
        "partitions": all,
    }))
}

async fn last_message_id(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(_): Params<Plain>,
) -> Answer {
    not_partitioned(&admin, &topic, "lastMessageId").await?;
    let (position, batch_index) = admin.broker().last_message_id(&topic).await?;
    document(&json!({
        "ledgerId": position.ledger.0,
        "entryId": position.entry.0,
        "partitionIndex": topic.partition().map_or(-1, i64::from),
        "batchSize": i64::from(batch_index) + 1,
        "batchIndex": batch_index,
    }))
}

async fn terminate(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(_): Params<Plain>,
) -> Answer {
    not_partitioned(&admin, &topic, "terminate").await?;
    let last = admin.broker().terminate(&topic).await?;
    document(&json!({
        "ledgerId": last.ledger.0, "entryId": last.entry.0, "partitionIndex": -1
    }))
}

async fn terminate_partitions(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(_): Params<Plain>,
) -> Answer {
    let mut ends = Map::new();
    for (number, partition) in partitioned_only(&admin, &topic).await?.iter().enumerate() {
        let last = admin.broker().terminate(partition).await?;
        ends.insert(
            number.to_string(),
            json!({ "ledgerId": last.ledger.0, "entryId": last.entry.0, "partitionIndex": number }),
        );
    }
    document(&ends)
}

async fn compact(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(_): Params<Plain>,
) -> Answer {
    for topic in targets(&admin, topic).await? {
        admin.broker().compact(&topic).await?;
    }
    done()
}

/// Of a partitioned topic the worst of its partitions.
async fn compaction_status(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(_): Params<Plain>,
) -> Answer {
    use geminga_broker::CompactionState::{Error, NotRun, Running, Success};
    let mut worst = geminga_broker::CompactionStatus::default();
    for topic in targets(&admin, topic).await? {
        let status = admin.broker().compaction_status(&topic).await?;
        let rank = |state| match state {
            NotRun => 0,
            Success => 1,
            Error => 2,
            Running => 3,
        };
        if rank(status.status) > rank(worst.status) {
            worst = status;
        }
    }
    document(&worst)
}

async fn unload(
    State(admin): State<Admin>,
    InPath(topic): InPath,
    Params(_): Params<Plain>,
) -> Answer {
    for topic in targets(&admin, topic).await? {
        admin.broker().unload(&topic).await?;
    }
    done()
}
