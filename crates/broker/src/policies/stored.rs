//! Policies as they are stored, for a namespace or for one topic: the same document, in which a
//! topic leaves unset what only a namespace can say. Names are Pulsar's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bundle::Bundles;
use crate::config::SubscriptionType;

/// How long acked messages are kept: as long as either limit keeps them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retention {
    /// -1 = for ever.
    pub retention_time_in_minutes: i64,
    /// -1 = any amount.
    #[serde(rename = "retentionSizeInMB")]
    pub retention_size_in_mb: i64,
}

/// Whether topics of a namespace are made on first use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AutoTopicCreation {
    pub allow_auto_topic_creation: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_type: Option<crate::config::TopicType>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_num_partitions: Option<u32>,
}

/// What a backlog quota measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BacklogQuotaType {
    /// Bytes that the slowest subscription has not acked.
    DestinationStorage,
    /// Seconds since the oldest unacked message was published.
    MessageAge,
}

/// What happens when a backlog quota is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BacklogQuotaAction {
    ProducerRequestHold,
    ProducerException,
    ConsumerBacklogEviction,
}

/// A limit of a backlog. Below 0 = no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BacklogQuota {
    /// Bytes, for a quota of storage.
    #[serde(default = "no_limit")]
    pub limit_size: i64,
    /// Seconds, for a quota of age.
    #[serde(default = "no_limit")]
    pub limit_time: i64,
    pub policy: BacklogQuotaAction,
}

fn no_limit() -> i64 {
    -1
}

/// What a topic takes a second, over all its producers. 0 or less = no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PublishRate {
    pub publish_throttling_rate_in_msg: i64,
    pub publish_throttling_rate_in_byte: i64,
}

impl Default for PublishRate {
    fn default() -> PublishRate {
        PublishRate {
            publish_throttling_rate_in_msg: -1,
            publish_throttling_rate_in_byte: -1,
        }
    }
}

/// What is dispatched in a period. 0 or less = no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DispatchRate {
    pub dispatch_throttling_rate_in_msg: i64,
    pub dispatch_throttling_rate_in_byte: i64,
    /// Refused where it is set: not honoured.
    pub relative_to_publish_rate: bool,
    pub rate_period_in_second: u32,
}

impl Default for DispatchRate {
    fn default() -> DispatchRate {
        DispatchRate {
            dispatch_throttling_rate_in_msg: -1,
            dispatch_throttling_rate_in_byte: -1,
            relative_to_publish_rate: false,
            rate_period_in_second: 1,
        }
    }
}

/// How often one consumer may subscribe in a period. 0 or less = as often as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SubscribeRate {
    pub subscribe_throttling_rate_per_consumer: i64,
    pub rate_period_in_second: u32,
}

impl Default for SubscribeRate {
    fn default() -> SubscribeRate {
        SubscribeRate {
            subscribe_throttling_rate_per_consumer: -1,
            rate_period_in_second: 30,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DelayedDelivery {
    /// Milliseconds that a delivery may be early.
    #[serde(default = "tick")]
    pub tick_time: u64,
    pub active: bool,
    /// 0 = any delay.
    #[serde(default)]
    pub max_delivery_delay_in_millis: u64,
}

fn tick() -> u64 {
    1_000
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InactiveTopicDeleteMode {
    DeleteWhenNoSubscriptions,
    DeleteWhenSubscriptionsCaughtUp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InactiveTopicPolicies {
    pub inactive_topic_delete_mode: InactiveTopicDeleteMode,
    pub max_inactive_duration_seconds: u64,
    pub delete_while_inactive: bool,
}

/// How entries are kept. One disk keeps one copy, so that this is what can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Persistence {
    pub bookkeeper_ensemble: u32,
    pub bookkeeper_write_quorum: u32,
    pub bookkeeper_ack_quorum: u32,
    #[serde(default)]
    pub managed_ledger_max_mark_delete_rate: f64,
}

impl Default for Persistence {
    fn default() -> Persistence {
        Persistence {
            bookkeeper_ensemble: 1,
            bookkeeper_write_quorum: 1,
            bookkeeper_ack_quorum: 1,
            managed_ledger_max_mark_delete_rate: 0.0,
        }
    }
}

/// Which changes of a schema are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SchemaCompatibilityStrategy {
    /// As the level above says.
    Undefined,
    AlwaysIncompatible,
    AlwaysCompatible,
    Backward,
    Forward,
    Full,
    BackwardTransitive,
    ForwardTransitive,
    FullTransitive,
}

/// The older name of a strategy, of namespaces only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SchemaAutoUpdateStrategy {
    AutoUpdateDisabled,
    Backward,
    Forward,
    Full,
    AlwaysCompatible,
    BackwardTransitive,
    ForwardTransitive,
    FullTransitive,
}

impl From<SchemaAutoUpdateStrategy> for SchemaCompatibilityStrategy {
    fn from(old: SchemaAutoUpdateStrategy) -> SchemaCompatibilityStrategy {
        use SchemaAutoUpdateStrategy as Old;
        match old {
            Old::AutoUpdateDisabled => SchemaCompatibilityStrategy::AlwaysIncompatible,
            Old::Backward => SchemaCompatibilityStrategy::Backward,
            Old::Forward => SchemaCompatibilityStrategy::Forward,
            Old::Full => SchemaCompatibilityStrategy::Full,
            Old::AlwaysCompatible => SchemaCompatibilityStrategy::AlwaysCompatible,
            Old::BackwardTransitive => SchemaCompatibilityStrategy::BackwardTransitive,
            Old::ForwardTransitive => SchemaCompatibilityStrategy::ForwardTransitive,
            Old::FullTransitive => SchemaCompatibilityStrategy::FullTransitive,
        }
    }
}

/// The policies of a namespace or of a topic that are honoured. What is unset comes from the level
/// above: of a topic its namespace, of a namespace the broker's settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policies {
    #[serde(rename = "retention_policies", skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    #[serde(
        rename = "message_ttl_in_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub message_ttl_seconds: Option<u64>,
    #[serde(
        rename = "backlog_quota_map",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub backlog_quotas: BTreeMap<BacklogQuotaType, BacklogQuota>,
    #[serde(
        rename = "deduplicationEnabled",
        skip_serializing_if = "Option::is_none"
    )]
    pub deduplication: Option<bool>,
    #[serde(
        rename = "deduplicationSnapshotIntervalSeconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub deduplication_snapshot_interval_seconds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compaction_threshold: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_producers_per_topic: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_consumers_per_topic: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_consumers_per_subscription: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_subscriptions_per_topic: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unacked_messages_per_consumer: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unacked_messages_per_subscription: Option<u32>,
    /// Of a namespace only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_topics_per_namespace: Option<u32>,
    #[serde(
        rename = "publishMaxMessageRate",
        skip_serializing_if = "Option::is_none"
    )]
    pub publish_rate: Option<PublishRate>,
    #[serde(rename = "topicDispatchRate", skip_serializing_if = "Option::is_none")]
    pub dispatch_rate: Option<DispatchRate>,
    #[serde(
        rename = "subscriptionDispatchRate",
        skip_serializing_if = "Option::is_none"
    )]
    pub subscription_dispatch_rate: Option<DispatchRate>,
    #[serde(
        rename = "replicatorDispatchRate",
        skip_serializing_if = "Option::is_none"
    )]
    pub replicator_dispatch_rate: Option<DispatchRate>,
    #[serde(
        rename = "clusterSubscribeRate",
        skip_serializing_if = "Option::is_none"
    )]
    pub subscribe_rate: Option<SubscribeRate>,
    /// Of single subscriptions, by name; of a topic only.
    #[serde(
        rename = "subscriptionPolicies",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub dispatch_rates: BTreeMap<String, DispatchRate>,
    #[serde(
        rename = "delayed_delivery_policies",
        skip_serializing_if = "Option::is_none"
    )]
    pub delayed_delivery: Option<DelayedDelivery>,
    #[serde(
        rename = "inactive_topic_policies",
        skip_serializing_if = "Option::is_none"
    )]
    pub inactive_topic: Option<InactiveTopicPolicies>,
    /// Empty = unset.
    #[serde(
        rename = "subscription_types_enabled",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub subscription_types: Vec<SubscriptionType>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistence: Option<Persistence>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_compatibility_strategy: Option<SchemaCompatibilityStrategy>,
    /// Of a namespace only; counts where the strategy itself says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_auto_update_compatibility_strategy: Option<SchemaAutoUpdateStrategy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_validation_enforced: Option<bool>,
    /// Of a namespace only.
    #[serde(
        rename = "is_allow_auto_update_schema",
        skip_serializing_if = "Option::is_none"
    )]
    pub auto_update_schema: Option<bool>,
    /// Of a namespace only. 0 = never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription_expiration_time_minutes: Option<u32>,
    /// Of a topic only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_message_size: Option<u32>,
    /// The clusters that topics are in; unset = this one alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_clusters: Option<Vec<String>>,
    /// Of a namespace only: the clusters that `replication_clusters` may name; empty = the tenant's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_clusters: Vec<String>,
    /// Whether dispatch is to wait while what was acked is not kept. Every ack is kept here, so that
    /// there is nothing to wait for.
    #[serde(
        rename = "dispatcherPauseOnAckStatePersistentEnabled",
        skip_serializing_if = "Option::is_none"
    )]
    pub pause_on_ack_state: Option<bool>,
    /// Of a namespace only: what its topics share limits with.
    #[serde(
        rename = "resource_group_name",
        skip_serializing_if = "Option::is_none"
    )]
    pub resource_group: Option<String>,
    /// Of a namespace only: those of a group would not be on one broker if there were several.
    #[serde(rename = "antiAffinityGroup", skip_serializing_if = "Option::is_none")]
    pub anti_affinity_group: Option<String>,
    /// Of a namespace only: how its topics are cut into bundles.
    #[serde(skip_serializing_if = "Bundles::is_default")]
    pub bundles: Bundles,
    /// Of a namespace only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption_required: Option<bool>,
    /// Of a namespace only.
    #[serde(
        rename = "autoTopicCreationOverride",
        skip_serializing_if = "Option::is_none"
    )]
    pub auto_topic_creation: Option<AutoTopicCreation>,
    #[serde(
        rename = "autoSubscriptionCreationOverride",
        skip_serializing_if = "Option::is_none"
    )]
    pub auto_subscription_creation: Option<bool>,
    /// Of a namespace only.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_policies_are_refused() {
        assert!(serde_json::from_str::<Policies>(r#"{"retention_polices": null}"#).is_err());
        let text = r#"{"retention_policies":{"retentionTimeInMinutes":-1,"retentionSizeInMB":5}}"#;
        let policies: Policies = serde_json::from_str(text).unwrap();
        assert_eq!(policies.retention.map(|r| r.retention_size_in_mb), Some(5));
        assert_eq!(serde_json::to_string(&policies).unwrap(), text);
    }
}
