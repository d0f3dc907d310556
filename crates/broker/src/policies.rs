//! Which policies are in force for a topic: its own, else its namespace's, else the broker's
//! settings. [`effective`] is the whole rule; everybody who honours a policy reads its result
//! ([`EffectivePolicies`]) and nothing else.

pub(crate) mod store;
mod stored;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use stored::{
    AutoTopicCreation, BacklogQuota, BacklogQuotaAction, BacklogQuotaType, DelayedDelivery,
    DispatchRate, InactiveTopicDeleteMode, InactiveTopicPolicies, Persistence, Policies,
    PublishRate, Retention, SchemaAutoUpdateStrategy, SchemaCompatibilityStrategy, SubscribeRate,
};

use crate::config::{BrokerConfig, SubscriptionType};

/// What holds for one topic. Where a number limits something, 0 means no limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EffectivePolicies {
    pub retention: Retention,
    /// 0 = messages live for ever.
    pub message_ttl_seconds: u64,
    /// Of bytes; only `limit_size` counts.
    pub backlog_size: BacklogQuota,
    /// Of age; only `limit_time` counts.
    pub backlog_age: BacklogQuota,
    pub deduplication: bool,
    pub deduplication_snapshot_interval_seconds: u32,
    /// Bytes not yet compacted that start a compaction; 0 = never by itself.
    pub compaction_threshold_bytes: u64,
    pub producers_max: usize,
    pub consumers_max: usize,
    pub consumers_per_subscription_max: usize,
    pub subscriptions_max: usize,
    pub unacked_per_consumer_max: u32,
    pub unacked_per_subscription_max: u32,
    pub publish_rate: PublishRate,
    pub dispatch_rate: DispatchRate,
    /// Of each subscription that has none of its own.
    pub subscription_dispatch_rate: DispatchRate,
    pub dispatch_rates: BTreeMap<String, DispatchRate>,
    /// To each other cluster.
    pub replicator_dispatch_rate: DispatchRate,
    pub subscribe_rate: SubscribeRate,
    /// Whose limits the topic shares.
    pub resource_group: Option<String>,
    /// What one read for dispatch takes.
    pub read_entries_max: usize,
    pub read_bytes_max: usize,
    pub delayed_delivery: DelayedDelivery,
    pub inactive_topic: InactiveTopicPolicies,
    pub subscription_types: Vec<SubscriptionType>,
    pub persistence: Persistence,
    /// Never `Undefined`.
    pub schema_compatibility_strategy: SchemaCompatibilityStrategy,
    pub schema_validation_enforced: bool,
    pub pause_on_ack_state: bool,
    /// Whether producers may register new versions of a schema.
    pub auto_update_schema: bool,
    /// 0 = subscriptions are kept for ever.
    pub subscription_expiration_minutes: u32,
    pub message_size_max: usize,
    pub encryption_required: bool,
    pub auto_subscription_creation: bool,
    /// This one among them.
    pub replication_clusters: Vec<String>,
}

impl EffectivePolicies {
    /// The dispatch rate of one subscription.
    pub(crate) fn dispatch_rate_of(&self, subscription: &str) -> DispatchRate {
        let own = self.dispatch_rates.get(subscription);
        own.copied().unwrap_or(self.subscription_dispatch_rate)
    }

    /// Whether time alone makes something happen to the topic, so that it has to be looked at while
    /// nobody uses it.
    pub(crate) fn is_timed(&self) -> bool {
        let evicts =
            |quota: &BacklogQuota| quota.policy == BacklogQuotaAction::ConsumerBacklogEviction;
        self.message_ttl_seconds > 0
            || self.inactive_topic.delete_while_inactive
            || self.subscription_expiration_minutes > 0
            || self.backlog_age.limit_time > 0 && evicts(&self.backlog_age)
            || self.backlog_size.limit_size >= 0 && evicts(&self.backlog_size)
    }
}

/// The policies in force: the topic's, else the namespace's, else the broker's.
pub(crate) fn effective(
    topic: &Policies,
    namespace: &Policies,
    config: &BrokerConfig,
) -> EffectivePolicies {
    // The first level that says something.
    macro_rules! first {
        ($field:ident, $default:expr) => {
            topic
                .$field
                .as_ref()
                .or(namespace.$field.as_ref())
                .copied()
                .unwrap_or($default)
        };
    }
    let limit = |value: u32| value as usize;
    let limit_of = |topic: Option<u32>, namespace: Option<u32>, config: usize| {
        topic.or(namespace).map_or(config, limit)
    };
    let quota = |of: BacklogQuotaType| {
        let own = topic.backlog_quotas.get(&of);
        let set = own.or_else(|| namespace.backlog_quotas.get(&of));
        set.copied().unwrap_or(BacklogQuota {
            limit_size: config.backlog_quota_default_limit_bytes,
            limit_time: config.backlog_quota_default_limit_second,
            policy: config.backlog_quota_default_retention_policy,
        })
    };
    let strategy = [topic, namespace]
        .iter()
        .filter_map(|level| level.schema_compatibility_strategy)
        .find(|strategy| *strategy != SchemaCompatibilityStrategy::Undefined)
        .or(namespace
            .schema_auto_update_compatibility_strategy
            .map(SchemaCompatibilityStrategy::from));
    let types = [topic, namespace]
        .iter()
        .map(|level| &level.subscription_types)
        .find(|types| !types.is_empty());
    EffectivePolicies {
        retention: first!(
            retention,
            Retention {
                retention_time_in_minutes: config.default_retention_time_in_minutes,
                retention_size_in_mb: config.default_retention_size_in_mb,
            }
        ),
        message_ttl_seconds: first!(message_ttl_seconds, config.ttl_duration_default_in_seconds),
        backlog_size: quota(BacklogQuotaType::DestinationStorage),
        backlog_age: quota(BacklogQuotaType::MessageAge),
        deduplication: first!(deduplication, config.broker_deduplication_enabled),
        deduplication_snapshot_interval_seconds: first!(
            deduplication_snapshot_interval_seconds,
            config.broker_deduplication_snapshot_interval_seconds
        ),
        compaction_threshold_bytes: first!(
            compaction_threshold,
            config.broker_service_compaction_threshold_in_bytes
        ),
        producers_max: limit_of(
            topic.max_producers_per_topic,
            namespace.max_producers_per_topic,
            config.max_producers_per_topic,
        ),
        consumers_max: limit_of(
            topic.max_consumers_per_topic,
            namespace.max_consumers_per_topic,
            config.max_consumers_per_topic,
        ),
        consumers_per_subscription_max: limit_of(
            topic.max_consumers_per_subscription,
            namespace.max_consumers_per_subscription,
            config.max_consumers_per_subscription,
        ),
        subscriptions_max: limit_of(
            topic.max_subscriptions_per_topic,
            namespace.max_subscriptions_per_topic,
            config.max_subscriptions_per_topic,
        ),
        unacked_per_consumer_max: first!(
            max_unacked_messages_per_consumer,
            config.max_unacked_messages_per_consumer
        ),
        unacked_per_subscription_max: first!(
            max_unacked_messages_per_subscription,
            config.max_unacked_messages_per_subscription
        ),
        publish_rate: first!(publish_rate, PublishRate::default()),
        dispatch_rate: first!(
            dispatch_rate,
            DispatchRate {
                dispatch_throttling_rate_in_msg: config.dispatch_throttling_rate_per_topic_in_msg,
                dispatch_throttling_rate_in_byte: config.dispatch_throttling_rate_per_topic_in_byte,
                ..DispatchRate::default()
            }
        ),
        subscription_dispatch_rate: first!(
            subscription_dispatch_rate,
            DispatchRate {
                dispatch_throttling_rate_in_msg: config
                    .dispatch_throttling_rate_per_subscription_in_msg,
                dispatch_throttling_rate_in_byte: config
                    .dispatch_throttling_rate_per_subscription_in_byte,
                ..DispatchRate::default()
            }
        ),
        dispatch_rates: topic.dispatch_rates.clone(),
        replicator_dispatch_rate: first!(
            replicator_dispatch_rate,
            DispatchRate {
                dispatch_throttling_rate_in_msg: config
                    .dispatch_throttling_rate_per_replicator_in_msg,
                dispatch_throttling_rate_in_byte: config
                    .dispatch_throttling_rate_per_replicator_in_byte,
                ..DispatchRate::default()
            }
        ),
        subscribe_rate: first!(
            subscribe_rate,
            SubscribeRate {
                subscribe_throttling_rate_per_consumer: config
                    .subscribe_throttling_rate_per_consumer,
                rate_period_in_second: config.subscribe_rate_period_per_consumer_in_second,
            }
        ),
        resource_group: namespace.resource_group.clone(),
        read_entries_max: config.dispatcher_max_read_batch_size,
        read_bytes_max: config.dispatcher_max_read_size_bytes,
        delayed_delivery: first!(
            delayed_delivery,
            DelayedDelivery {
                tick_time: config.delayed_delivery_tick_time_millis,
                active: config.delayed_delivery_enabled,
                max_delivery_delay_in_millis: config.delayed_delivery_max_delay_in_millis,
            }
        ),
        inactive_topic: first!(
            inactive_topic,
            InactiveTopicPolicies {
                inactive_topic_delete_mode: config.broker_delete_inactive_topics_mode,
                max_inactive_duration_seconds: config
                    .broker_delete_inactive_topics_max_inactive_duration_seconds
                    .unwrap_or(config.broker_delete_inactive_topics_frequency_seconds),
                delete_while_inactive: config.broker_delete_inactive_topics_enabled,
            }
        ),
        subscription_types: types.unwrap_or(&config.subscription_types_enabled).clone(),
        persistence: first!(persistence, Persistence::default()),
        schema_compatibility_strategy: strategy.unwrap_or(config.schema_compatibility_strategy),
        schema_validation_enforced: first!(
            schema_validation_enforced,
            config.is_schema_validation_enforced
        ),
        pause_on_ack_state: first!(pause_on_ack_state, false),
        auto_update_schema: namespace
            .auto_update_schema
            .unwrap_or(config.is_allow_auto_update_schema_enabled),
        subscription_expiration_minutes: namespace
            .subscription_expiration_time_minutes
            .unwrap_or(config.subscription_expiration_time_minutes),
        message_size_max: topic
            .max_message_size
            .map_or(config.max_message_size, |own| {
                limit(own).min(config.max_message_size)
            }),
        encryption_required: namespace.encryption_required.unwrap_or(false),
        auto_subscription_creation: first!(
            auto_subscription_creation,
            config.allow_auto_subscription_creation
        ),
        replication_clusters: topic
            .replication_clusters
            .as_ref()
            .or(namespace.replication_clusters.as_ref())
            .cloned()
            .unwrap_or_else(|| vec![config.cluster_name.clone()]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: PartialEq + std::fmt::Debug>(
        set: impl Fn(&mut Policies, T),
        get: impl Fn(&EffectivePolicies) -> T,
        of_broker: T,
        of_namespace: fn() -> T,
        of_topic: fn() -> T,
    ) {
        let config = BrokerConfig::default();
        let none = Policies::default();
        let mut namespace = Policies::default();
        set(&mut namespace, of_namespace());
        let mut topic = Policies::default();
        set(&mut topic, of_topic());
        assert_eq!(get(&effective(&none, &none, &config)), of_broker);
        assert_eq!(get(&effective(&none, &namespace, &config)), of_namespace());
        assert_eq!(get(&effective(&topic, &namespace, &config)), of_topic());
        assert_eq!(get(&effective(&topic, &none, &config)), of_topic());
    }

    #[test]
    fn a_topic_comes_before_its_namespace_and_that_before_the_broker() {
        check(
            |p, v| p.message_ttl_seconds = Some(v),
            |e| e.message_ttl_seconds,
            0,
            || 10,
            || 0,
        );
        check(
            |p, v| p.max_producers_per_topic = Some(v as u32),
            |e| e.producers_max,
            0,
            || 5,
            || 3,
        );
        check(
            |p, v| p.deduplication = Some(v),
            |e| e.deduplication,
            false,
            || true,
            || false,
        );
        check(
            |p, v| {
                p.backlog_quotas.insert(BacklogQuotaType::MessageAge, v);
            },
            |e| e.backlog_age,
            BacklogQuota {
                limit_size: -1,
                limit_time: -1,
                policy: BacklogQuotaAction::ProducerRequestHold,
            },
            || BacklogQuota {
                limit_size: -1,
                limit_time: 9,
                policy: BacklogQuotaAction::ProducerException,
            },
            || BacklogQuota {
                limit_size: -1,
                limit_time: 3,
                policy: BacklogQuotaAction::ConsumerBacklogEviction,
            },
        );
        check(
            |p, v| p.replication_clusters = Some(v),
            |e| e.replication_clusters.clone(),
            vec!["standalone".to_owned()],
            || vec!["standalone".to_owned(), "b".to_owned()],
            || vec!["standalone".to_owned(), "c".to_owned()],
        );
        check(
            |p, v| p.subscription_types = v,
            |e| e.subscription_types.clone(),
            BrokerConfig::default().subscription_types_enabled,
            || vec![SubscriptionType::Shared],
            || vec![SubscriptionType::Exclusive],
        );
    }

    #[test]
    fn an_undefined_strategy_says_nothing() {
        let config = BrokerConfig::default();
        let with = |strategy| Policies {
            schema_compatibility_strategy: Some(strategy),
            ..Policies::default()
        };
        let undefined = with(SchemaCompatibilityStrategy::Undefined);
        let backward = with(SchemaCompatibilityStrategy::Backward);
        let of = |topic, namespace| effective(topic, namespace, &config);
        assert_eq!(
            of(&undefined, &backward).schema_compatibility_strategy,
            SchemaCompatibilityStrategy::Backward
        );
        assert_eq!(
            of(&undefined, &undefined).schema_compatibility_strategy,
            SchemaCompatibilityStrategy::Full
        );
    }

    #[test]
    fn a_topic_takes_no_larger_messages_than_the_broker() {
        let config = BrokerConfig::default();
        let topic = Policies {
            max_message_size: Some(u32::MAX),
            ..Policies::default()
        };
        let both = effective(&topic, &Policies::default(), &config);
        assert_eq!(both.message_size_max, config.max_message_size);
    }
}
