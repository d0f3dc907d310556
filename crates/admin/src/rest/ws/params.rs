//! Query parameters of the WebSocket API, under Pulsar's names. What stands here is honoured or
//! refused with its name; any other name is refused too.

use std::time::Duration;

use geminga_broker::BrokerConfig;
use geminga_client::{
    Batching, Compression, ConsumerBuilder, HashingScheme, InitialPosition, MessageId,
    ProducerBuilder, ReaderBuilder, Routing, SubType,
};
use serde::Deserialize;

use super::{invalid, json};
use crate::error::Answer;

/// Messages that a session's client has ahead of it: a page of them, so that a session of large
/// messages does not hold much.
const AHEAD_MAX: usize = 50;
/// Pulsar's most and default of `receiverQueueSize`.
const QUEUE_MAX: usize = 1000;
/// Messages without a receipt, unless `maxPendingMessages` says otherwise.
const WINDOW: usize = 1000;
/// Bytes without a receipt.
const WINDOW_BYTES: usize = 16 * 1024 * 1024;
/// Pulsar's least `ackTimeoutMillis`.
const ACK_TIMEOUT_MIN: u64 = 1000;

/// What the guard reads.
type Token = Option<String>;

/// Refuses what is set and not honoured.
fn refuse(settings: &[(&str, &Option<String>)]) -> Answer<()> {
    match settings.iter().find(|(_, value)| value.is_some()) {
        Some((name, _)) => Err(invalid(format!(
            "`{name}` is not honoured: the server holds no keys"
        ))),
        None => Ok(()),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ProducerParams {
    producer_name: Option<String>,
    initial_sequence_id: Option<u64>,
    hashing_scheme: Option<Hashing>,
    send_timeout_millis: Option<u64>,
    batching_enabled: bool,
    batching_max_messages: Option<usize>,
    max_pending_messages: Option<usize>,
    batching_max_publish_delay: Option<u64>,
    message_routing_mode: Option<RoutingMode>,
    compression_type: Option<CompressionType>,
    encryption_keys: Option<String>,
    #[serde(rename = "token")]
    _token: Token,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum Hashing {
    JavaStringHash,
    #[serde(rename = "Murmur3_32Hash")]
    Murmur3,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum RoutingMode {
    SinglePartition,
    RoundRobinPartition,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum CompressionType {
    None,
    Lz4,
    Zlib,
    Zstd,
    Snappy,
}

impl ProducerParams {
    /// Messages that may wait for their receipts.
    pub(super) fn window(&self) -> Answer<usize> {
        match self.max_pending_messages {
            Some(0) => Err(invalid("`maxPendingMessages` must be above 0")),
            Some(count) => Ok(count),
            None => Ok(WINDOW),
        }
    }

    pub(super) fn apply(&self, mut builder: ProducerBuilder) -> Answer<ProducerBuilder> {
        refuse(&[("encryptionKeys", &self.encryption_keys)])?;
        if self.batching_max_messages == Some(0) {
            return Err(invalid("`batchingMaxMessages` must be above 0"));
        }
        let batching = match self.batching_enabled {
            false => Batching::off(),
            true => {
                let usual = Batching::default();
                Batching {
                    max_messages: self.batching_max_messages.unwrap_or(usual.max_messages),
                    max_delay: self.batching_max_publish_delay.map(Duration::from_millis),
                    ..usual
                }
            }
        };
        if let Some(name) = &self.producer_name {
            builder = builder.name(name);
        }
        if let Some(id) = self.initial_sequence_id {
            builder = builder.initial_sequence_id(id);
        }
        if let Some(limit) = self.send_timeout_millis {
            builder = builder.send_timeout(Duration::from_millis(limit));
        }
        Ok(builder
            .batching(batching)
            .window(self.window()?)
            .window_bytes(WINDOW_BYTES)
            .hashing(match self.hashing_scheme {
                Some(Hashing::Murmur3) => HashingScheme::Murmur3,
                Some(Hashing::JavaStringHash) | None => HashingScheme::JavaString,
            })
            .routing(match self.message_routing_mode {
                Some(RoutingMode::RoundRobinPartition) => Routing::RoundRobin,
                Some(RoutingMode::SinglePartition) | None => Routing::SinglePartition,
            })
            .compression(match self.compression_type {
                Some(CompressionType::Lz4) => Compression::Lz4,
                Some(CompressionType::Zlib) => Compression::Zlib,
                Some(CompressionType::Zstd) => Compression::Zstd,
                Some(CompressionType::Snappy) => Compression::Snappy,
                Some(CompressionType::None) | None => Compression::None,
            }))
    }
}

/// How a session receives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Messages without an ack that the peer may have; the rest waits.
    pub(super) pending_max: usize,
    /// The peer asks for each message.
    pub(super) pull: bool,
    pub(super) ack_timeout: Option<Duration>,
    pub(super) max_redeliver_count: Option<u32>,
    batch_index_ack: bool,
}

fn plan(receiver_queue_size: Option<i64>) -> Answer<Plan> {
    let size = match receiver_queue_size {
        Some(size) => usize::try_from(size)
            .map_err(|_| invalid("`receiverQueueSize` needs to be >= 0"))?
            .min(QUEUE_MAX),
        None => QUEUE_MAX,
    };
    Ok(Plan {
        pending_max: size.max(1),
        ..Plan::default()
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ConsumerParams {
    ack_timeout_millis: Option<u64>,
    subscription_type: Option<SubscriptionType>,
    subscription_mode: Option<SubscriptionMode>,
    subscription_initial_position: Option<Position>,
    receiver_queue_size: Option<i64>,
    consumer_name: Option<String>,
    priority_level: Option<i32>,
    negative_ack_redelivery_delay: Option<u64>,
    max_redeliver_count: Option<u32>,
    pub(super) dead_letter_topic: Option<String>,
    pull_mode: bool,
    crypto_failure_action: Option<String>,
    /// With `/ws/v3` alone.
    pub(super) topics: Option<String>,
    pub(super) topics_pattern: Option<String>,
    #[serde(rename = "token")]
    _token: Token,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum SubscriptionType {
    Exclusive,
    Shared,
    Failover,
    #[serde(rename = "Key_Shared")]
    KeyShared,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum SubscriptionMode {
    Durable,
    NonDurable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Position {
    Latest,
    Earliest,
}

impl ConsumerParams {
    /// Refuses what does not fit together.
    pub(super) fn plan(&self, config: &BrokerConfig) -> Answer<Plan> {
        refuse(&[("cryptoFailureAction", &self.crypto_failure_action)])?;
        let mut plan = plan(self.receiver_queue_size)?;
        plan.pull = self.pull_mode;
        plan.batch_index_ack = config.acknowledgment_at_batch_index_level_enabled;
        plan.ack_timeout = match self.ack_timeout_millis {
            None | Some(0) => None,
            Some(1..ACK_TIMEOUT_MIN) => {
                return Err(invalid(
                    "Ack timeout should be greater than 1000 ms: `ackTimeoutMillis`",
                ));
            }
            Some(limit) => Some(Duration::from_millis(limit)),
        };
        if self.priority_level.is_some_and(|level| level < 0) {
            return Err(invalid("`priorityLevel` needs to be >= 0"));
        }
        let one_by_one = matches!(
            self.subscription_type,
            Some(SubscriptionType::Shared | SubscriptionType::KeyShared)
        );
        plan.max_redeliver_count = match (self.max_redeliver_count, &self.dead_letter_topic) {
            (None, None) => None,
            (Some(0), _) | (None, Some(_)) => {
                return Err(invalid(
                    "MaxRedeliverCount must be > 0: `maxRedeliverCount`",
                ));
            }
            (Some(_), _) if !one_by_one => {
                return Err(invalid(
                    "`maxRedeliverCount` needs `subscriptionType` Shared or Key_Shared: \
                     others count no redeliveries",
                ));
            }
            (Some(max), _) => Some(max),
        };
        Ok(plan)
    }

    pub(super) fn apply(&self, mut builder: ConsumerBuilder, plan: &Plan) -> ConsumerBuilder {
        if let Some(name) = &self.consumer_name {
            builder = builder.name(name);
        }
        if let Some(delay) = self.negative_ack_redelivery_delay {
            builder = builder.nack_delay(Duration::from_millis(delay));
        }
        builder
            .sub_type(match self.subscription_type {
                Some(SubscriptionType::Shared) => SubType::Shared,
                Some(SubscriptionType::Failover) => SubType::Failover,
                Some(SubscriptionType::KeyShared) => SubType::KeyShared,
                Some(SubscriptionType::Exclusive) | None => SubType::Exclusive,
            })
            .durable(self.subscription_mode != Some(SubscriptionMode::NonDurable))
            .initial_position(match self.subscription_initial_position {
                Some(Position::Earliest) => InitialPosition::Earliest,
                Some(Position::Latest) | None => InitialPosition::Latest,
            })
            .priority(self.priority_level.unwrap_or(0))
            .receiver_queue_size(plan.pending_max.min(AHEAD_MAX))
            .batch_index_ack(plan.batch_index_ack)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ReaderParams {
    reader_name: Option<String>,
    receiver_queue_size: Option<i64>,
    message_id: Option<String>,
    crypto_failure_action: Option<String>,
    #[serde(rename = "token")]
    _token: Token,
}

impl ReaderParams {
    pub(super) fn plan(&self) -> Answer<Plan> {
        refuse(&[("cryptoFailureAction", &self.crypto_failure_action)])?;
        plan(self.receiver_queue_size)
    }

    pub(super) fn apply(&self, mut builder: ReaderBuilder, plan: &Plan) -> Answer<ReaderBuilder> {
        if let Some(name) = &self.reader_name {
            builder = builder.name(name);
        }
        let start = match self.message_id.as_deref().map(str::trim) {
            None | Some("" | "latest") => MessageId::LATEST,
            Some("earliest") => MessageId::EARLIEST,
            Some(text) => json::id_of(text).ok_or_else(|| {
                invalid("`messageId` is neither `earliest`, `latest` nor the id of a message")
            })?,
        };
        Ok(builder
            .start(start)
            .receiver_queue_size(plan.pending_max.min(AHEAD_MAX)))
    }
}
