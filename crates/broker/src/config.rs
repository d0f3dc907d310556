//! Settings of the broker, under Pulsar's names. What stands here is honoured; any other name is
//! refused when the settings are read.

use serde::{Deserialize, Serialize};

use crate::policies::{BacklogQuotaAction, InactiveTopicDeleteMode, SchemaCompatibilityStrategy};

/// The kind of topic made on first use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TopicType {
    Partitioned,
    NonPartitioned,
}

/// From where on a topic is sent to a cluster that it is newly to be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicationStart {
    Latest,
    Earliest,
}

/// A subscription type, as Pulsar spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SubscriptionType {
    Exclusive,
    Shared,
    Failover,
    #[serde(rename = "Key_Shared")]
    KeyShared,
}

impl SubscriptionType {
    pub fn as_str(self) -> &'static str {
        match self {
            SubscriptionType::Exclusive => "Exclusive",
            SubscriptionType::Shared => "Shared",
            SubscriptionType::Failover => "Failover",
            SubscriptionType::KeyShared => "Key_Shared",
        }
    }

    pub(crate) fn is_single_active(self) -> bool {
        matches!(
            self,
            SubscriptionType::Exclusive | SubscriptionType::Failover
        )
    }
}

/// Settings of one broker. Where a number limits something, 0 means no limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BrokerConfig {
    /// Name of this cluster; also the first part of generated producer names.
    pub cluster_name: String,
    /// Host given to clients in lookups; unset = the address they reach the listener at.
    pub advertised_address: Option<String>,
    /// Named addresses given to clients in lookups, as `name:scheme://host:port` with commas between.
    pub advertised_listeners: Option<String>,
    /// The listener of those who name none; unset = the first.
    pub internal_listener_name: Option<String>,
    /// Further addresses to listen on, as `name:scheme://ip:port`: who comes by one uses its listener.
    pub bind_addresses: Option<String>,
    /// HTTP address given to clients in lookups over HTTP, as `http://host:port`.
    pub web_service_address: Option<String>,

    /// Whether `/ws/` of the HTTP port takes WebSockets. On, as in Pulsar's standalone.
    pub web_socket_service_enabled: bool,
    /// Bytes of a text that a WebSocket client sends.
    pub web_socket_max_text_frame_size: usize,
    /// A WebSocket on which nothing passed for so long is closed; 0 = never.
    pub web_socket_session_idle_timeout_millis: u64,
    /// Seconds between pings to WebSocket clients; 0 or less = none.
    pub web_socket_ping_duration_seconds: i64,

    /// Seconds between PINGs; a peer silent for two of them is closed.
    pub keep_alive_interval_seconds: u64,
    /// How long an old connection has to answer when a new producer or consumer collides with it.
    pub connection_liveness_check_timeout_millis: u64,
    /// Largest message; sent to clients when they connect. Larger frames close the connection.
    pub max_message_size: usize,
    /// Connections at once.
    pub broker_max_connections: usize,

    /// Whether topics are created on first use.
    pub allow_auto_topic_creation: bool,
    pub allow_auto_topic_creation_type: TopicType,
    /// Partitions of topics created on first use as partitioned.
    pub default_num_partitions: u32,
    /// Whether subscriptions are created on first subscribe.
    pub allow_auto_subscription_creation: bool,
    pub max_num_partitions_per_partitioned_topic: u32,
    pub enable_persistent_topics: bool,
    pub enable_non_persistent_topics: bool,

    pub max_producers_per_topic: usize,
    pub max_consumers_per_topic: usize,
    pub max_consumers_per_subscription: usize,
    pub max_subscriptions_per_topic: usize,
    /// Sends of one connection that wait for the disk before its socket is no longer read.
    pub max_pending_publish_requests_per_connection: usize,
    /// Bytes of all sends that wait for the disk before sockets are no longer read.
    #[serde(rename = "maxMessagePublishBufferSizeInMB")]
    pub max_message_publish_buffer_size_in_mb: usize,

    /// Types that may be subscribed with.
    pub subscription_types_enabled: Vec<SubscriptionType>,
    pub max_unacked_messages_per_consumer: u32,
    pub max_unacked_messages_per_subscription: u32,
    /// Whether acks inside of a batch are kept by the broker. On, unlike in Pulsar: only clients that
    /// turn it on too send such acks.
    pub acknowledgment_at_batch_index_level_enabled: bool,
    /// Wait before the new active consumer of a Failover subscription gets messages.
    pub active_consumer_failover_delay_time_millis: u64,
    /// Choose the active consumer by hash ring on partitions too.
    pub active_consumer_failover_consistent_hashing: bool,
    /// Key_Shared by hash ring; otherwise by splitting ranges.
    pub subscription_key_shared_use_consistent_hashing: bool,
    pub subscription_key_shared_consistent_hashing_replica_points: u32,
    pub key_shared_look_ahead_msg_in_replay_threshold_per_consumer: usize,
    pub key_shared_look_ahead_msg_in_replay_threshold_per_subscription: usize,
    /// Characters of a consumer's metadata.
    pub max_consumer_metadata_size: usize,
    /// Entries of one read for dispatch.
    pub dispatcher_max_read_batch_size: usize,
    /// Bytes of one read for dispatch.
    pub dispatcher_max_read_size_bytes: usize,
    /// Messages of one consumer's turn on a Shared subscription.
    pub dispatcher_max_round_robin_batch_size: u32,
    pub enable_broker_side_subscription_pattern_evaluation: bool,
    pub subscription_pattern_max_length: usize,

    pub delayed_delivery_enabled: bool,
    /// Delivery may be early by up to this.
    pub delayed_delivery_tick_time_millis: u64,
    pub is_delayed_delivery_deliver_at_time_strict: bool,
    pub delayed_delivery_max_delay_in_millis: u64,

    /// Default of namespaces: keep acked messages this long; -1 = for ever.
    pub default_retention_time_in_minutes: i64,
    /// Default of namespaces: keep this much of acked messages; -1 = any amount.
    #[serde(rename = "defaultRetentionSizeInMB")]
    pub default_retention_size_in_mb: i64,
    /// How often retention is looked at, and idle topics are unloaded.
    pub retention_check_interval_in_seconds: u64,
    /// Default of namespaces: messages older than this are acked for every subscription; 0 = off.
    pub ttl_duration_default_in_seconds: u64,
    pub message_expiry_check_interval_in_minutes: u64,

    /// Whether producers' and consumers' topics are checked for their backlog quotas.
    pub backlog_quota_check_enabled: bool,
    pub backlog_quota_check_interval_in_seconds: u64,
    /// Bytes that the slowest subscription may leave unacked; below 0 = any.
    pub backlog_quota_default_limit_bytes: i64,
    /// Seconds that a message may stay unacked; below 0 = any.
    pub backlog_quota_default_limit_second: i64,
    pub backlog_quota_default_retention_policy: BacklogQuotaAction,

    /// Whether idle topics are deleted. Off, unlike in Pulsar: a topic that was made stays.
    pub broker_delete_inactive_topics_enabled: bool,
    pub broker_delete_inactive_topics_frequency_seconds: u64,
    pub broker_delete_inactive_topics_mode: InactiveTopicDeleteMode,
    /// How long a topic must be idle; unset = one round of checks.
    pub broker_delete_inactive_topics_max_inactive_duration_seconds: Option<u64>,
    /// Subscriptions that nobody used for so long are deleted; 0 = none.
    pub subscription_expiration_time_minutes: u32,
    pub subscription_expiry_check_interval_in_minutes: u64,
    /// Topics of one namespace.
    pub max_topics_per_namespace: u32,

    /// Messages that a topic dispatches a second.
    pub dispatch_throttling_rate_per_topic_in_msg: i64,
    pub dispatch_throttling_rate_per_topic_in_byte: i64,
    /// Messages that a subscription dispatches a second.
    pub dispatch_throttling_rate_per_subscription_in_msg: i64,
    pub dispatch_throttling_rate_per_subscription_in_byte: i64,
    /// Messages that a topic sends to one other cluster a second.
    pub dispatch_throttling_rate_per_replicator_in_msg: i64,
    pub dispatch_throttling_rate_per_replicator_in_byte: i64,
    /// How often one consumer may subscribe to a topic in a period.
    pub subscribe_throttling_rate_per_consumer: i64,
    pub subscribe_rate_period_per_consumer_in_second: u32,

    /// Drop what a producer sends a second time, by its sequence id.
    pub broker_deduplication_enabled: bool,
    /// Producers remembered by a topic; those idle for longest are forgotten first.
    pub broker_deduplication_max_number_of_producers: usize,
    /// Entries after which the sequence ids of a topic are saved, at most ten times a second.
    pub broker_deduplication_entries_interval: u64,
    /// Seconds after which they are saved in any case.
    pub broker_deduplication_snapshot_interval_seconds: u32,
    /// A producer that was away for longer is forgotten.
    pub broker_deduplication_producer_inactivity_timeout_minutes: u64,
    /// Bytes not yet compacted that start a compaction; 0 = none starts by itself.
    pub broker_service_compaction_threshold_in_bytes: u64,
    /// How often that is looked at.
    pub broker_service_compaction_monitor_interval_in_seconds: u64,
    /// Whether messages without a key survive a compaction.
    pub topic_compaction_retain_null_key: bool,

    /// Whether producers may register new schemas.
    #[serde(rename = "isAllowAutoUpdateSchemaEnabled")]
    pub is_allow_auto_update_schema_enabled: bool,
    /// Which changes of a schema are allowed.
    pub schema_compatibility_strategy: SchemaCompatibilityStrategy,
    /// Refuse producers without a schema on topics that have one.
    pub is_schema_validation_enforced: bool,

    /// Messages of one topic on their way to one other cluster.
    pub replication_producer_queue_size: usize,
    /// From where on a topic is sent to a cluster that it is newly to be in.
    pub replication_start_at: ReplicationStart,
    /// Whether topics that another cluster lacks are made there.
    pub create_topic_to_remote_cluster_for_replication: bool,
    /// Whether subscriptions may be kept alike in all clusters of their topic.
    pub enable_replicated_subscriptions: bool,
    /// How often clusters tell each other what was acked.
    pub replicated_subscriptions_snapshot_frequency_millis: u64,
    pub replicated_subscriptions_snapshot_timeout_seconds: u64,
    /// Snapshots that a subscription keeps until it gets there.
    pub replicated_subscriptions_snapshot_max_cached_per_subscription: usize,

    /// Offer transactions. Off in Pulsar unless asked for; here they cost nothing while unused.
    pub transaction_coordinator_enabled: bool,
    /// Open transactions of one coordinator; 0 = 1,048,576.
    pub max_active_transactions_per_coordinator: u64,
    /// Its names stand beside these; `geminga` reads both from one file.
    #[serde(skip)]
    pub security: crate::auth::SecurityConfig,

    /// Bytes queued to one connection before nothing more is dispatched to its consumers.
    pub geminga_outbox_bytes_max: usize,
    /// Sites whose pages may ask for changes and WebSockets over HTTP without a token, as
    /// `https://host:port`; `*` = all. Those of this server itself always may.
    pub geminga_allowed_origins: Vec<String>,
    /// Milliseconds without producers and consumers after which a topic leaves memory.
    pub geminga_topic_idle_millis: u64,
}

impl Default for BrokerConfig {
    fn default() -> BrokerConfig {
        use SubscriptionType::{Exclusive, Failover, KeyShared, Shared};
        BrokerConfig {
            cluster_name: "standalone".to_owned(),
            advertised_address: None,
            advertised_listeners: None,
            internal_listener_name: None,
            bind_addresses: None,
            web_service_address: None,
            web_socket_service_enabled: true,
            web_socket_max_text_frame_size: 1 << 20,
            web_socket_session_idle_timeout_millis: 300_000,
            web_socket_ping_duration_seconds: -1,
            keep_alive_interval_seconds: 30,
            connection_liveness_check_timeout_millis: 5_000,
            max_message_size: geminga_proto::MAX_MESSAGE_SIZE,
            broker_max_connections: 0,
            allow_auto_topic_creation: true,
            allow_auto_topic_creation_type: TopicType::NonPartitioned,
            default_num_partitions: 1,
            allow_auto_subscription_creation: true,
            max_num_partitions_per_partitioned_topic: 0,
            enable_persistent_topics: true,
            enable_non_persistent_topics: true,
            max_producers_per_topic: 0,
            max_consumers_per_topic: 0,
            max_consumers_per_subscription: 0,
            max_subscriptions_per_topic: 0,
            max_pending_publish_requests_per_connection: 1_000,
            max_message_publish_buffer_size_in_mb: 64,
            subscription_types_enabled: vec![Failover, Shared, KeyShared, Exclusive],
            max_unacked_messages_per_consumer: 50_000,
            max_unacked_messages_per_subscription: 200_000,
            acknowledgment_at_batch_index_level_enabled: true,
            active_consumer_failover_delay_time_millis: 1_000,
            active_consumer_failover_consistent_hashing: false,
            subscription_key_shared_use_consistent_hashing: true,
            subscription_key_shared_consistent_hashing_replica_points: 100,
            key_shared_look_ahead_msg_in_replay_threshold_per_consumer: 2_000,
            key_shared_look_ahead_msg_in_replay_threshold_per_subscription: 20_000,
            max_consumer_metadata_size: 1_024,
            dispatcher_max_read_batch_size: 100,
            dispatcher_max_read_size_bytes: 5_242_880,
            dispatcher_max_round_robin_batch_size: 20,
            enable_broker_side_subscription_pattern_evaluation: true,
            subscription_pattern_max_length: 50,
            delayed_delivery_enabled: true,
            delayed_delivery_tick_time_millis: 1_000,
            is_delayed_delivery_deliver_at_time_strict: false,
            delayed_delivery_max_delay_in_millis: 0,
            broker_deduplication_enabled: false,
            broker_deduplication_max_number_of_producers: 10_000,
            broker_deduplication_entries_interval: 1_000,
            broker_deduplication_snapshot_interval_seconds: 120,
            broker_deduplication_producer_inactivity_timeout_minutes: 360,
            default_retention_time_in_minutes: 0,
            default_retention_size_in_mb: 0,
            retention_check_interval_in_seconds: 120,
            ttl_duration_default_in_seconds: 0,
            message_expiry_check_interval_in_minutes: 5,
            backlog_quota_check_enabled: true,
            backlog_quota_check_interval_in_seconds: 60,
            backlog_quota_default_limit_bytes: -1,
            backlog_quota_default_limit_second: -1,
            backlog_quota_default_retention_policy: BacklogQuotaAction::ProducerRequestHold,
            broker_delete_inactive_topics_enabled: false,
            broker_delete_inactive_topics_frequency_seconds: 60,
            broker_delete_inactive_topics_mode: InactiveTopicDeleteMode::DeleteWhenNoSubscriptions,
            broker_delete_inactive_topics_max_inactive_duration_seconds: None,
            subscription_expiration_time_minutes: 0,
            subscription_expiry_check_interval_in_minutes: 5,
            max_topics_per_namespace: 0,
            dispatch_throttling_rate_per_topic_in_msg: 0,
            dispatch_throttling_rate_per_topic_in_byte: 0,
            dispatch_throttling_rate_per_subscription_in_msg: 0,
            dispatch_throttling_rate_per_subscription_in_byte: 0,
            dispatch_throttling_rate_per_replicator_in_msg: 0,
            dispatch_throttling_rate_per_replicator_in_byte: 0,
            subscribe_throttling_rate_per_consumer: 0,
            subscribe_rate_period_per_consumer_in_second: 30,
            broker_service_compaction_threshold_in_bytes: 0,
            broker_service_compaction_monitor_interval_in_seconds: 60,
            topic_compaction_retain_null_key: false,
            is_allow_auto_update_schema_enabled: true,
            schema_compatibility_strategy: SchemaCompatibilityStrategy::Full,
            is_schema_validation_enforced: false,
            replication_producer_queue_size: 1_000,
            replication_start_at: ReplicationStart::Latest,
            create_topic_to_remote_cluster_for_replication: true,
            enable_replicated_subscriptions: true,
            replicated_subscriptions_snapshot_frequency_millis: 1_000,
            replicated_subscriptions_snapshot_timeout_seconds: 30,
            replicated_subscriptions_snapshot_max_cached_per_subscription: 10,
            transaction_coordinator_enabled: true,
            max_active_transactions_per_coordinator: 0,
            security: crate::auth::SecurityConfig::default(),
            geminga_outbox_bytes_max: 4 << 20,
            geminga_allowed_origins: Vec::new(),
            geminga_topic_idle_millis: 30_000,
        }
    }
}

impl BrokerConfig {
    /// Values that cannot be honoured, by name.
    pub(crate) fn check(&self) -> Result<(), crate::error::BrokerError> {
        let bad = |setting: &'static str, reason: &'static str| {
            Err(crate::error::BrokerError::BadSetting { setting, reason })
        };
        if self.cluster_name.is_empty() {
            return bad("clusterName", "must not be empty");
        }
        if self.keep_alive_interval_seconds == 0 {
            return bad("keepAliveIntervalSeconds", "must be above 0");
        }
        if self.web_socket_max_text_frame_size == 0 {
            return bad("webSocketMaxTextFrameSize", "must be above 0");
        }
        if self.max_message_size == 0 || self.max_message_size > 1 << 30 {
            return bad("maxMessageSize", "must be between 1 and 1073741824");
        }
        if self.replicated_subscriptions_snapshot_frequency_millis < 10 {
            return bad(
                "replicatedSubscriptionsSnapshotFrequencyMillis",
                "must be at least 10",
            );
        }
        if self.replication_producer_queue_size == 0 {
            return bad("replicationProducerQueueSize", "must be above 0");
        }
        if self.default_num_partitions == 0 {
            return bad("defaultNumPartitions", "must be above 0");
        }
        if self.schema_compatibility_strategy == SchemaCompatibilityStrategy::Undefined {
            return bad("schemaCompatibilityStrategy", "must be defined");
        }
        if self.subscribe_rate_period_per_consumer_in_second == 0 {
            return bad("subscribeRatePeriodPerConsumerInSecond", "must be above 0");
        }
        if self.dispatcher_max_read_batch_size == 0 {
            return bad("dispatcherMaxReadBatchSize", "must be above 0");
        }
        if self.dispatcher_max_read_size_bytes == 0 {
            return bad("dispatcherMaxReadSizeBytes", "must be above 0");
        }
        if self.subscription_key_shared_consistent_hashing_replica_points == 0 {
            return bad(
                "subscriptionKeySharedConsistentHashingReplicaPoints",
                "must be above 0",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_pulsars_and_unknown_ones_are_refused() {
        let text = r#"{"maxMessageSize": 1000, "defaultRetentionSizeInMB": -1,
            "subscriptionTypesEnabled": ["Key_Shared"],
            "allowAutoTopicCreationType": "non-partitioned"}"#;
        let config: BrokerConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.max_message_size, 1000);
        assert_eq!(config.default_retention_size_in_mb, -1);
        assert_eq!(
            config.subscription_types_enabled,
            [SubscriptionType::KeyShared]
        );
        let error = serde_json::from_str::<BrokerConfig>(r#"{"maxMesageSize": 1}"#).unwrap_err();
        assert!(error.to_string().contains("maxMesageSize"), "{error}");
    }
}
