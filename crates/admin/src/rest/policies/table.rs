//! The policies, one by one: their paths, their place in the stored document, what they may be.

use axum::Router;
use geminga_broker::{
    AutoTopicCreation, DelayedDelivery, DispatchRate, EffectivePolicies, InactiveTopicPolicies,
    Persistence, Policies, PublishRate, Retention, SchemaAutoUpdateStrategy,
    SchemaCompatibilityStrategy, SubscribeRate, SubscriptionType,
};
use serde::{Deserialize, Serialize};

use super::{Policy, routes_of};
use crate::error::{Answer, ApiError};
use crate::rest::Admin;

/// Declares the policies and the functions over all of them.
macro_rules! policies {
    ($(
        $name:ident: $value:ty {
            namespace: $namespace:expr,
            topic: $topic:expr,
            get: $get:expr,
            set: $set:expr,
            applied: $applied:expr,
            $(unset: $unset:expr,)?
            $(unset_of_topic: $unset_of_topic:expr,)?
            $(check: $check:expr,)?
        }
    )*) => {
        $(
            pub(super) struct $name;

            impl Policy for $name {
                type Value = $value;
                const OF_NAMESPACE: Option<&'static str> = $namespace;
                const OF_TOPIC: Option<&'static str> = $topic;

                fn get(policies: &Policies) -> Option<$value> {
                    let get: fn(&Policies) -> Option<$value> = $get;
                    get(policies)
                }

                fn set(policies: &mut Policies, value: Option<$value>) {
                    let set: fn(&mut Policies, Option<$value>) = $set;
                    set(policies, value);
                }

                fn applied(all: &EffectivePolicies) -> Option<$value> {
                    let applied: fn(&EffectivePolicies) -> Option<$value> = $applied;
                    applied(all)
                }

                $(fn unset(admin: &Admin) -> Option<$value> {
                    let unset: fn(&Admin) -> $value = $unset;
                    Some(unset(admin))
                })?

                $(fn unset_of_topic() -> Option<$value> {
                    Some($unset_of_topic)
                })?

                $(fn check(value: &$value, admin: &Admin) -> Answer<()> {
                    let check: fn(&$value, &Admin) -> Answer<()> = $check;
                    check(value, admin)
                })?
            }
        )*

        pub(super) fn routes(mut router: Router<Admin>) -> Router<Admin> {
            $(router = routes_of::<$name>(router);)*
            router
        }

        /// Checks all that a document sets, as the single endpoints do.
        pub(in crate::rest) fn check_all(policies: &Policies, admin: &Admin) -> Answer<()> {
            $(if let Some(value) = $name::get(policies) {
                $name::check(&value, admin)?;
            })*
            Ok(super::quotas::agree(policies)?)
        }
    };
}

/// A count of 0 or more, stored as `u32`.
fn count(value: &i64, _: &Admin) -> Answer<()> {
    if u32::try_from(*value).is_ok() {
        return Ok(());
    }
    Err(ApiError::precondition_failed(format!(
        "the value must be between 0 and {}, not {value}",
        u32::MAX
    )))
}

fn natural(value: &i64, _: &Admin) -> Answer<()> {
    if *value >= 0 {
        return Ok(());
    }
    Err(ApiError::precondition_failed(format!(
        "the value must be 0 or more, not {value}"
    )))
}

/// Checked before.
fn stored(value: Option<i64>) -> Option<u32> {
    value.and_then(|value| u32::try_from(value).ok())
}

fn shown(value: Option<u32>) -> Option<i64> {
    value.map(i64::from)
}

fn as_count(value: usize) -> Option<i64> {
    i64::try_from(value).ok()
}

fn check_retention(given: &Retention, _: &Admin) -> Answer<()> {
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
    Ok(())
}

fn check_dispatch(rate: &DispatchRate, _: &Admin) -> Answer<()> {
    if rate.relative_to_publish_rate {
        return Err(ApiError::precondition_failed(
            "`relativeToPublishRate` cannot be honoured",
        ));
    }
    if rate.rate_period_in_second == 0 {
        return Err(ApiError::precondition_failed(
            "`ratePeriodInSecond` must be above 0",
        ));
    }
    Ok(())
}

/// One disk keeps one copy, and cursors are written at most ten times a second.
fn check_persistence(given: &Persistence, _: &Admin) -> Answer<()> {
    for (name, value) in [
        ("bookkeeperEnsemble", given.bookkeeper_ensemble),
        ("bookkeeperWriteQuorum", given.bookkeeper_write_quorum),
        ("bookkeeperAckQuorum", given.bookkeeper_ack_quorum),
    ] {
        if value != 1 {
            return Err(ApiError::precondition_failed(format!(
                "`{name}` {value} cannot be honoured: this server keeps 1 copy"
            )));
        }
    }
    let rate = given.managed_ledger_max_mark_delete_rate;
    if rate != 0.0 && rate < 10.0 {
        return Err(ApiError::precondition_failed(format!(
            "`managedLedgerMaxMarkDeleteRate` {rate} cannot be honoured: cursors are written up to \
             10 times a second"
        )));
    }
    Ok(())
}

/// `AutoSubscriptionCreationOverride`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AutoSubscription {
    allow_auto_subscription_creation: bool,
}

fn auto_subscription(allow: bool) -> AutoSubscription {
    AutoSubscription {
        allow_auto_subscription_creation: allow,
    }
}

policies! {
    RetentionPolicy: Retention {
        namespace: Some("retention"),
        topic: Some("retention"),
        get: |p| p.retention,
        set: |p, v| p.retention = v,
        applied: |all| Some(all.retention),
        check: check_retention,
    }
    MessageTtl: i64 {
        namespace: Some("messageTTL"),
        // By a parameter: see `ttl_of_topic`.
        topic: None,
        get: |p| p.message_ttl_seconds.and_then(|n| i64::try_from(n).ok()),
        set: |p, v| p.message_ttl_seconds = v.and_then(|n| u64::try_from(n).ok()),
        applied: |all| i64::try_from(all.message_ttl_seconds).ok(),
        check: |value, admin| natural(value, admin)
            .map_err(|_| ApiError::precondition_failed("Invalid value for message TTL")),
    }
    Deduplication: bool {
        namespace: Some("deduplication"),
        topic: Some("deduplicationEnabled"),
        get: |p| p.deduplication,
        set: |p, v| p.deduplication = v,
        applied: |all| Some(all.deduplication),
    }
    DeduplicationSnapshot: i64 {
        namespace: Some("deduplicationSnapshotInterval"),
        topic: Some("deduplicationSnapshotInterval"),
        get: |p| shown(p.deduplication_snapshot_interval_seconds),
        set: |p, v| p.deduplication_snapshot_interval_seconds = stored(v),
        applied: |_| None,
        check: |value, admin| count(value, admin).map_err(|_| {
            ApiError::precondition_failed("interval must be greater than or equal to 0")
        }),
    }
    CompactionThreshold: i64 {
        namespace: Some("compactionThreshold"),
        topic: Some("compactionThreshold"),
        get: |p| p.compaction_threshold.and_then(|n| i64::try_from(n).ok()),
        set: |p, v| p.compaction_threshold = v.and_then(|n| u64::try_from(n).ok()),
        applied: |all| i64::try_from(all.compaction_threshold_bytes).ok(),
        check: |value, _| match *value >= 0 {
            true => Ok(()),
            false => Err(ApiError::precondition_failed("Invalid value for compactionThreshold")),
        },
    }
    MaxProducers: i64 {
        namespace: Some("maxProducersPerTopic"),
        topic: Some("maxProducers"),
        get: |p| shown(p.max_producers_per_topic),
        set: |p, v| p.max_producers_per_topic = stored(v),
        applied: |all| as_count(all.producers_max),
        check: count,
    }
    MaxConsumers: i64 {
        namespace: Some("maxConsumersPerTopic"),
        topic: Some("maxConsumers"),
        get: |p| shown(p.max_consumers_per_topic),
        set: |p, v| p.max_consumers_per_topic = stored(v),
        applied: |all| as_count(all.consumers_max),
        check: count,
    }
    MaxConsumersPerSubscription: i64 {
        namespace: Some("maxConsumersPerSubscription"),
        topic: Some("maxConsumersPerSubscription"),
        get: |p| shown(p.max_consumers_per_subscription),
        set: |p, v| p.max_consumers_per_subscription = stored(v),
        applied: |all| as_count(all.consumers_per_subscription_max),
        check: count,
    }
    MaxSubscriptions: i64 {
        namespace: Some("maxSubscriptionsPerTopic"),
        topic: Some("maxSubscriptionsPerTopic"),
        get: |p| shown(p.max_subscriptions_per_topic),
        set: |p, v| p.max_subscriptions_per_topic = stored(v),
        applied: |all| as_count(all.subscriptions_max),
        check: count,
    }
    MaxUnackedPerConsumer: i64 {
        namespace: Some("maxUnackedMessagesPerConsumer"),
        topic: Some("maxUnackedMessagesOnConsumer"),
        get: |p| shown(p.max_unacked_messages_per_consumer),
        set: |p, v| p.max_unacked_messages_per_consumer = stored(v),
        applied: |all| Some(all.unacked_per_consumer_max.into()),
        check: count,
    }
    MaxUnackedPerSubscription: i64 {
        namespace: Some("maxUnackedMessagesPerSubscription"),
        topic: Some("maxUnackedMessagesOnSubscription"),
        get: |p| shown(p.max_unacked_messages_per_subscription),
        set: |p, v| p.max_unacked_messages_per_subscription = stored(v),
        applied: |all| Some(all.unacked_per_subscription_max.into()),
        check: count,
    }
    MaxTopics: i64 {
        namespace: Some("maxTopicsPerNamespace"),
        topic: None,
        get: |p| shown(p.max_topics_per_namespace),
        set: |p, v| p.max_topics_per_namespace = stored(v),
        applied: |_| None,
        // pulsar-admin cannot read an empty answer here.
        unset: |_| 0,
        check: count,
    }
    MaxMessageSize: i64 {
        namespace: None,
        topic: Some("maxMessageSize"),
        get: |p| shown(p.max_message_size),
        set: |p, v| p.max_message_size = stored(v),
        applied: |all| as_count(all.message_size_max),
        check: |value, admin| {
            count(value, admin)?;
            let max = admin.broker().config().max_message_size;
            if as_count(max).is_some_and(|max| *value > max) {
                return Err(ApiError::precondition_failed(format!(
                    "maxMessageSize must be at most the broker's, {max}"
                )));
            }
            Ok(())
        },
    }
    PublishRatePolicy: PublishRate {
        namespace: Some("publishRate"),
        topic: Some("publishRate"),
        get: |p| p.publish_rate,
        set: |p, v| p.publish_rate = v,
        applied: |all| Some(all.publish_rate),
    }
    TopicDispatchRate: DispatchRate {
        namespace: Some("dispatchRate"),
        topic: Some("dispatchRate"),
        get: |p| p.dispatch_rate,
        set: |p, v| p.dispatch_rate = v,
        applied: |all| Some(all.dispatch_rate),
        check: check_dispatch,
    }
    SubscriptionDispatchRate: DispatchRate {
        namespace: Some("subscriptionDispatchRate"),
        topic: Some("subscriptionDispatchRate"),
        get: |p| p.subscription_dispatch_rate,
        set: |p, v| p.subscription_dispatch_rate = v,
        applied: |all| Some(all.subscription_dispatch_rate),
        check: check_dispatch,
    }
    ReplicatorDispatchRate: DispatchRate {
        namespace: Some("replicatorDispatchRate"),
        topic: Some("replicatorDispatchRate"),
        get: |p| p.replicator_dispatch_rate,
        set: |p, v| p.replicator_dispatch_rate = v,
        applied: |all| Some(all.replicator_dispatch_rate),
        check: check_dispatch,
    }
    SubscribeRatePolicy: SubscribeRate {
        namespace: Some("subscribeRate"),
        topic: Some("subscribeRate"),
        get: |p| p.subscribe_rate,
        set: |p, v| p.subscribe_rate = v,
        applied: |all| Some(all.subscribe_rate),
        check: |value, _| match value.rate_period_in_second {
            0 => Err(ApiError::precondition_failed(
                "`ratePeriodInSecond` must be above 0",
            )),
            _ => Ok(()),
        },
    }
    Delayed: DelayedDelivery {
        namespace: Some("delayedDelivery"),
        topic: Some("delayedDelivery"),
        get: |p| p.delayed_delivery,
        set: |p, v| p.delayed_delivery = v,
        applied: |all| Some(all.delayed_delivery),
        check: |value, _| {
            if value.tick_time == 0 {
                return Err(ApiError::precondition_failed("`tickTime` must be above 0"));
            }
            Ok(())
        },
    }
    InactiveTopic: InactiveTopicPolicies {
        namespace: Some("inactiveTopicPolicies"),
        topic: Some("inactiveTopicPolicies"),
        get: |p| p.inactive_topic,
        set: |p, v| p.inactive_topic = v,
        applied: |all| Some(all.inactive_topic),
    }
    SubscriptionTypes: Vec<SubscriptionType> {
        namespace: Some("subscriptionTypesEnabled"),
        topic: Some("subscriptionTypesEnabled"),
        get: |p| (!p.subscription_types.is_empty()).then(|| p.subscription_types.clone()),
        set: |p, v| p.subscription_types = v.unwrap_or_default(),
        applied: |all| Some(all.subscription_types.clone()),
        unset: |_| Vec::new(),
    }
    PersistencePolicy: Persistence {
        namespace: Some("persistence"),
        topic: Some("persistence"),
        get: |p| p.persistence,
        set: |p, v| p.persistence = v,
        applied: |all| Some(all.persistence),
        check: check_persistence,
    }
    SchemaStrategy: SchemaCompatibilityStrategy {
        namespace: Some("schemaCompatibilityStrategy"),
        topic: Some("schemaCompatibilityStrategy"),
        get: |p| p.schema_compatibility_strategy,
        set: |p, v| p.schema_compatibility_strategy = v,
        applied: |all| Some(all.schema_compatibility_strategy),
        unset: |_| SchemaCompatibilityStrategy::Undefined,
    }
    SchemaAutoUpdate: SchemaAutoUpdateStrategy {
        namespace: Some("schemaAutoUpdateCompatibilityStrategy"),
        topic: None,
        get: |p| p.schema_auto_update_compatibility_strategy,
        set: |p, v| p.schema_auto_update_compatibility_strategy = v,
        applied: |_| None,
    }
    SchemaEnforced: bool {
        namespace: Some("schemaValidationEnforced"),
        topic: Some("schemaValidationEnforced"),
        get: |p| p.schema_validation_enforced,
        set: |p, v| p.schema_validation_enforced = v,
        applied: |all| Some(all.schema_validation_enforced),
        unset: |admin| admin.broker().config().is_schema_validation_enforced,
        unset_of_topic: false,
    }
    AutoUpdateSchema: bool {
        namespace: Some("isAllowAutoUpdateSchema"),
        topic: None,
        get: |p| p.auto_update_schema,
        set: |p, v| p.auto_update_schema = v,
        applied: |all| Some(all.auto_update_schema),
        unset: |admin| admin.broker().settings().is_allow_auto_update_schema_enabled,
    }
    SubscriptionExpiration: i64 {
        namespace: Some("subscriptionExpirationTime"),
        topic: None,
        get: |p| shown(p.subscription_expiration_time_minutes),
        set: |p, v| p.subscription_expiration_time_minutes = stored(v),
        applied: |_| None,
        check: count,
    }
    EncryptionRequired: bool {
        namespace: Some("encryptionRequired"),
        topic: None,
        get: |p| p.encryption_required,
        set: |p, v| p.encryption_required = v,
        applied: |_| None,
        unset: |_| false,
    }
    AutoTopic: AutoTopicCreation {
        namespace: Some("autoTopicCreation"),
        topic: None,
        get: |p| p.auto_topic_creation.clone(),
        set: |p, v| p.auto_topic_creation = v,
        applied: |_| None,
        check: |value, _| {
            if value.default_num_partitions == Some(0) {
                return Err(ApiError::not_acceptable(
                    "`defaultNumPartitions` must be above 0",
                ));
            }
            Ok(())
        },
    }
    AutoSubscriptionCreation: AutoSubscription {
        namespace: Some("autoSubscriptionCreation"),
        topic: Some("autoSubscriptionCreation"),
        get: |p| p.auto_subscription_creation.map(auto_subscription),
        set: |p, v| {
            p.auto_subscription_creation = v.map(|v| v.allow_auto_subscription_creation);
        },
        applied: |all| Some(auto_subscription(all.auto_subscription_creation)),
    }
}
