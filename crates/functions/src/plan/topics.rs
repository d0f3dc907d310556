//! How topics are consumed and produced to.

use std::collections::BTreeMap;

use geminga_client::{Batching, Compression, InitialPosition, Pattern, SubType, TopicSettings};
use geminga_model::{
    BatchBuilder, CompressionType, ConsumerConfig, ProducerConfig, SubscriptionPosition,
};

use super::schemas::{Field, Who};
use super::{InputPlan, Patterned, ProducerPlan, Refused, Subscription, Typed, full_name};

/// Why `cryptoConfig` is refused, of inputs and outputs alike.
const NO_CRYPTO: &str = "its key reader is a class of Java, which this worker, who reads and writes the topics, \
    can not load: remove it, and encrypt in the code of both ends, with a key from `secrets`";

pub(super) fn sub_type(ordered: bool, key_ordered: bool) -> SubType {
    match (ordered, key_ordered) {
        (true, _) => SubType::Failover,
        (_, true) => SubType::KeyShared,
        _ => SubType::Shared,
    }
}

pub(super) fn position(position: Option<SubscriptionPosition>) -> InitialPosition {
    match position.unwrap_or_default() {
        SubscriptionPosition::Latest => InitialPosition::Latest,
        SubscriptionPosition::Earliest => InitialPosition::Earliest,
    }
}

/// Names, patterns, and what each input has of its own; the rest is the caller's. `who` reads the values, of a class that
/// is named when `has_class`; nobody declares anything without.
pub(super) fn topics(
    inputs: &BTreeMap<String, ConsumerConfig>,
    (who, has_class): (Option<Who>, bool),
    refused: &mut Refused,
) -> Subscription {
    let mut names = Vec::new();
    let mut patterns: Vec<Patterned> = Vec::new();
    let mut own = Vec::new();
    for (topic, spec) in inputs {
        if spec.regex_pattern == Some(true) {
            match Pattern::parse(topic) {
                Ok(pattern) => patterns.push(Patterned {
                    pattern,
                    text: topic.clone(),
                    input: (spec.schema_type.is_some() || spec.serde_class_name.is_some())
                        .then(|| full_name(topic).into()),
                }),
                Err(error) => refused.push(format!("`regexPattern` of input `{topic}`: {error}")),
            }
        } else {
            names.push(full_name(topic));
        }
        if spec.crypto_config.is_some() {
            refused.push(format!(
                "`cryptoConfig` of input `{topic}` is not supported: {NO_CRYPTO}"
            ));
        }
        let mut settings = TopicSettings::default();
        for (name, value) in spec.consumer_properties.iter().flatten() {
            consumer_property(topic, name, value, &mut settings, refused);
        }
        settings.queue_size = spec
            .receiver_queue_size
            .and_then(|n| usize::try_from(n).ok())
            .map(|size| size.max(1));
        let schema = match who {
            Some(who) => input_schema(topic, spec, (who, has_class), refused),
            None => {
                if spec
                    .schema_properties
                    .as_ref()
                    .is_some_and(|it| !it.is_empty())
                {
                    refused.push(format!(
                        "`schemaProperties` of input `{topic}` is not supported in the runtime `compat`: remove it"
                    ));
                }
                Typed::Bytes
            }
        };
        if schema != Typed::Bytes || settings != TopicSettings::default() {
            own.push(InputPlan {
                text: topic.clone(),
                is_pattern: spec.regex_pattern == Some(true),
                schema,
                settings,
            });
        }
    }
    Subscription {
        topics: names,
        patterns,
        own: Vec::new(),
        name: String::new(),
        sub_type: SubType::Shared,
        position: InitialPosition::Latest,
        inputs: own,
        skip_to_latest: false,
    }
}

/// `poolMessages` is for clients that give each message a piece of memory that they manage.
pub(super) fn refuse_pools(inputs: &BTreeMap<String, ConsumerConfig>, refused: &mut Refused) {
    for (topic, spec) in inputs {
        if spec.pool_messages == Some(true) {
            refused.push(format!(
                "`poolMessages` of input `{topic}` is not supported: messages share the memory that they came in: \
                 remove it"
            ));
        }
    }
}

/// What an input is declared to be.
fn input_schema(
    topic: &str,
    spec: &ConsumerConfig,
    (who, has_class): (Who, bool),
    refused: &mut Refused,
) -> Typed {
    let none = BTreeMap::new();
    let name = spec.schema_type.as_deref().unwrap_or_default();
    let properties = spec.schema_properties.as_ref().unwrap_or(&none);
    if name.is_empty() {
        if !properties.is_empty() {
            refused.push(format!(
                "`schemaProperties` of input `{topic}` is not supported without its `schemaType`: give that too"
            ));
        }
        let derives = who == Who::Code(super::Language::Java) && spec.serde_class_name.is_none();
        return match derives {
            true => Typed::Derived,
            false => Typed::Bytes,
        };
    }
    let field = Field {
        who,
        is_output: false,
        called: format!("`schemaType: {name}` of input `{topic}`"),
        name,
        properties,
        has_class,
    };
    field.typed(refused)
}

/// A setting by the name that Pulsar's Java client has for it.
fn consumer_property(
    topic: &str,
    name: &str,
    value: &str,
    consumer: &mut TopicSettings,
    refused: &mut Refused,
) {
    let known = match name {
        "consumerName" => {
            consumer.name = Some(value.to_owned());
            true
        }
        "priorityLevel" => {
            consumer.priority = value.parse().ok();
            consumer.priority.is_some()
        }
        "readCompacted" => {
            consumer.read_compacted = value.parse().ok();
            consumer.read_compacted.is_some()
        }
        _ => {
            refused.push(format!(
                "`consumerProperties.{name}` of input `{topic}` is not supported: there are `consumerName`, `priorityLevel` and `readCompacted`, and fields of their own for other settings"
            ));
            true
        }
    };
    if !known {
        refused.push(format!(
            "`consumerProperties.{name}` of input `{topic}` can not be `{value}`"
        ));
    }
}

pub(super) fn producer(
    config: Option<&ProducerConfig>,
    batch_builder: Option<BatchBuilder>,
    refused: &mut Refused,
) -> ProducerPlan {
    let none = ProducerConfig::default();
    let config = config.unwrap_or(&none);
    refuse_set(
        refused,
        &[
            (
                "producerConfig.cryptoConfig",
                config.crypto_config.is_some(),
                NO_CRYPTO,
            ),
            (
                "producerConfig.useThreadLocalProducers",
                config.use_thread_local_producers == Some(true),
                "an instance has one producer a topic, whatever the threads of its code: remove it",
            ),
        ],
    );
    let windows = [
        config.max_pending_messages,
        config.max_pending_messages_across_partitions,
    ];
    ProducerPlan {
        compression: match config.compression_type.unwrap_or_default() {
            CompressionType::None => Compression::None,
            CompressionType::Lz4 => Compression::Lz4,
            CompressionType::Zlib => Compression::Zlib,
            CompressionType::Zstd => Compression::Zstd,
            CompressionType::Snappy => Compression::Snappy,
        },
        batching: Batching {
            by_key: config.batch_builder.or(batch_builder) == Some(BatchBuilder::KeyBased),
            ..Batching::default()
        },
        window: windows
            .into_iter()
            .flatten()
            .filter_map(|n| usize::try_from(n).ok().filter(|&n| n > 0))
            .min(),
        schema: Typed::Bytes,
    }
}

/// Fields that are refused when they are given: which, whether it is, why, and what to do instead.
pub(super) fn refuse_set(refused: &mut Refused, fields: &[(&str, bool, &str)]) {
    for (field, is_set, why) in fields {
        if *is_set {
            refused.push(format!("`{field}` is not supported: {why}"));
        }
    }
}
