//! Functions that run in Pulsar's own instance: which do, what it is told, and which fields it would pass over.

use std::collections::BTreeMap;
use std::path::Path;

use geminga_model::{
    BatchBuilder, CompressionType, ConsumerConfig, FunctionConfig, ProcessingGuarantees,
    ProducerConfig, SubscriptionPosition,
};
use serde_json::{Map, Value, json};

use self::program::{Known, pulsars};
use super::{Language, Refused, full_name};
use crate::runtime::options::Choice;
use crate::runtime::sandbox::Network;
use crate::runtime::{HostSpec, Options, go};

mod program;

/// A function that runs in Pulsar's own instance.
#[derive(Debug, Clone)]
pub(crate) struct Compat {
    pub(crate) kind: Kind,
    pub(crate) spec: HostSpec,
    /// `FunctionDetails`, as protobuf writes it in JSON.
    pub(crate) details: Value,
    /// Whether the program can show a token to the broker.
    pub(crate) authenticates: bool,
}

/// Where Pulsar's instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In the program itself.
    Go,
    /// In the operator's folder of Pulsar.
    Java,
}

/// Whether a function runs in Pulsar's instance, and what is known of the one in its program.
pub(super) fn wanted(
    language: Language,
    options: &Options,
    path: &Path,
    refused: &mut Refused,
) -> Option<(Kind, Option<Known>)> {
    let asked = match options.runtime {
        Some(Choice::Native) => return None,
        Some(Choice::Compat) => true,
        None => false,
    };
    match language {
        Language::Go if go::is_source(path) => {
            if asked {
                refused.push(
                    "`runtime` of `customRuntimeOptions`: `compat` is for Go programs that are built; sources are \
                     built with our SDK"
                        .to_owned(),
                );
            }
            None
        }
        Language::Go => {
            let known = pulsars(path);
            (asked || known.is_some()).then_some((Kind::Go, known))
        }
        Language::Java if asked => Some((Kind::Java, None)),
        Language::Java => None,
        _ if asked => {
            refused.push(
                "`runtime` of `customRuntimeOptions`: `compat` is for Go programs and Java jars"
                    .to_owned(),
            );
            None
        }
        _ => None,
    }
}

/// The function for Pulsar's instance; `options` are as they were given.
pub(super) fn compat(
    (kind, known): (Kind, Option<Known>),
    config: &FunctionConfig,
    inputs: &BTreeMap<String, ConsumerConfig>,
    options: &Options,
    spec: HostSpec,
    refused: &mut Refused,
) -> Compat {
    refuse(kind, known, config, inputs, options, refused);
    Compat {
        kind,
        details: details(kind, config, inputs, &spec),
        authenticates: kind == Kind::Java || known.is_none_or(|known| known.authentication),
        spec,
    }
}

fn refuse(
    kind: Kind,
    known: Option<Known>,
    config: &FunctionConfig,
    inputs: &BTreeMap<String, ConsumerConfig>,
    options: &Options,
    refused: &mut Refused,
) {
    for field in options.of_hosts() {
        refused.push(format!(
            "`{field}` of `customRuntimeOptions` has no meaning in the runtime `compat`"
        ));
    }
    let none = ProducerConfig::default();
    let producer = config.producer_config.as_ref().unwrap_or(&none);
    let by_key = config.batch_builder.or(producer.batch_builder) == Some(BatchBuilder::KeyBased);
    let has = |has: fn(&ConsumerConfig) -> bool| inputs.values().any(has);
    let guarantee = config.guarantees();
    // Neither knows these.
    let mut set = vec![
        ("windowConfig", config.window_config.is_some()),
        ("idleTimeoutMs", config.idle_timeout_ms.is_some()),
        ("retryBackoffMs", config.retry_backoff_ms.is_some()),
        (
            "sandbox.network: none` of `customRuntimeOptions",
            options.sandbox.network == Network::None,
        ),
    ];
    if kind == Kind::Go {
        let number = |n: Option<i32>| n.is_some_and(|n| n > 0);
        set.extend([
            (
                "processingGuarantees: EFFECTIVELY_ONCE",
                guarantee == ProcessingGuarantees::EffectivelyOnce,
            ),
            (
                "processingGuarantees: MANUAL",
                config.processing_guarantees == Some(ProcessingGuarantees::Manual),
            ),
            ("autoAck: false", config.auto_ack == Some(false)),
            (
                "retainKeyOrdering",
                config.retain_key_ordering == Some(true),
            ),
            ("maxMessageRetries", config.retries().is_some()),
            ("deadLetterTopic", config.dead_letter_topic.is_some()),
            ("timeoutMs", config.timeout_ms.is_some()),
            ("skipToLatest", config.skip_to_latest == Some(true)),
            (
                "secrets",
                config
                    .secrets
                    .as_ref()
                    .is_some_and(|secrets| !secrets.is_empty()),
            ),
            ("runtimeFlags", config.runtime_flags.is_some()),
            (
                "maxPendingAsyncRequests",
                config.max_pending_async_requests.is_some(),
            ),
            (
                "outputSchemaType",
                has_name(config.output_schema_type.as_deref()),
            ),
            (
                "customSchemaOutputs",
                config
                    .custom_schema_outputs
                    .as_ref()
                    .is_some_and(|it| !it.is_empty()),
            ),
            (
                "customSchemaInputs",
                config
                    .custom_schema_inputs
                    .as_ref()
                    .is_some_and(|it| !it.is_empty()),
            ),
            (
                "schemaType` of an input",
                has(|spec| has_name(spec.schema_type.as_deref())),
            ),
            (
                "consumerProperties",
                has(|spec| {
                    spec.consumer_properties
                        .as_ref()
                        .is_some_and(|it| !it.is_empty())
                }),
            ),
            ("poolMessages", has(|spec| spec.pool_messages == Some(true))),
            ("batchBuilder: KEY_BASED", by_key),
            (
                "producerConfig.compressionType",
                producer
                    .compression_type
                    .is_some_and(|it| it != CompressionType::Lz4),
            ),
            (
                "producerConfig.maxPendingMessages",
                number(producer.max_pending_messages),
            ),
            (
                "producerConfig.maxPendingMessagesAcrossPartitions",
                number(producer.max_pending_messages_across_partitions),
            ),
        ]);
    }
    for (field, given) in set {
        if given {
            let quoted = match field.ends_with(" of an input") {
                true => format!("`{field}"),
                false => format!("`{field}`"),
            };
            let instance = match kind {
                _ if field.starts_with("sandbox") => {
                    "the instance connects to the broker by itself"
                }
                Kind::Go => "Pulsar's Go instance, which is in this program, does not honour it",
                Kind::Java => "it is ours, or needs Pulsar's own worker",
            };
            refused.push(format!(
                "{quoted} is not supported in the runtime `compat`: {instance}"
            ));
        }
    }
    if inputs.len() > 1 && known.is_some_and(|known| !known.many_inputs) {
        refused.push(
            "`inputs`: the version of Pulsar's Go instance in this program reads one topic alone"
                .to_owned(),
        );
    }
}

fn has_name(schema: Option<&str>) -> bool {
    let bytes = ["", "none", "bytes"];
    schema.is_some_and(|name| !bytes.contains(&name.to_ascii_lowercase().as_str()))
}

/// `FunctionDetails`, as protobuf writes it in JSON.
fn details(
    kind: Kind,
    config: &FunctionConfig,
    inputs: &BTreeMap<String, ConsumerConfig>,
    spec: &HostSpec,
) -> Value {
    let guarantee = match config.guarantees() {
        ProcessingGuarantees::AtleastOnce => "ATLEAST_ONCE",
        ProcessingGuarantees::AtmostOnce => "ATMOST_ONCE",
        ProcessingGuarantees::EffectivelyOnce => "EFFECTIVELY_ONCE",
        ProcessingGuarantees::Manual => "MANUAL",
    };
    let once = config.guarantees() == ProcessingGuarantees::EffectivelyOnce;
    let ordered = config.retain_ordering == Some(true);
    let key_ordered = config.retain_key_ordering == Some(true);
    let sub_type = match (ordered || once, key_ordered) {
        (true, _) => "FAILOVER",
        (_, true) => "KEY_SHARED",
        _ => "SHARED",
    };
    let position = match config.subscription_position.unwrap_or_default() {
        SubscriptionPosition::Latest => "LATEST",
        SubscriptionPosition::Earliest => "EARLIEST",
    };
    let specs: Map<String, Value> = inputs
        .iter()
        .map(|(topic, input)| {
            let topic = match input.regex_pattern == Some(true) {
                true => topic.clone(),
                false => full_name(topic),
            };
            (topic, consumer(input))
        })
        .collect();
    let mut source = Map::new();
    source.insert("inputSpecs".into(), specs.into());
    source.insert("subscriptionType".into(), sub_type.into());
    source.insert(
        "subscriptionName".into(),
        config.subscription().unwrap_or_default().into(),
    );
    source.insert("subscriptionPosition".into(), position.into());
    source.insert(
        "cleanupSubscription".into(),
        config.cleans_up_subscription().into(),
    );
    source.insert(
        "skipToLatest".into(),
        (config.skip_to_latest == Some(true)).into(),
    );
    put(
        &mut source,
        "typeClassName",
        config.input_type_class_name.as_deref(),
    );
    if let Some(ms) = config.timeout_ms {
        source.insert("timeoutMs".into(), ms.into());
        source.insert("negativeAckRedeliveryDelayMs".into(), ms.into());
    }
    let mut sink = Map::new();
    put(&mut sink, "topic", spec.output.as_deref());
    put(
        &mut sink,
        "typeClassName",
        config.output_type_class_name.as_deref(),
    );
    put(&mut sink, "schemaType", spec.output_schema.as_deref());
    put(&mut sink, "serDeClassName", spec.output_serde.as_deref());
    sink.insert(
        "forwardSourceMessageProperty".into(),
        config.forwards_properties().into(),
    );
    if config.producer_config.is_some() || config.batch_builder.is_some() {
        sink.insert("producerSpec".into(), producer(config));
    }
    let resources = config.resources.clone().unwrap_or_default();
    let mut details = json!({
        "tenant": spec.tenant,
        "namespace": spec.namespace,
        "name": spec.name,
        "processingGuarantees": guarantee,
        "runtime": match kind { Kind::Go => "GO", Kind::Java => "JAVA" },
        "autoAck": config.auto_ack.unwrap_or(true),
        "parallelism": spec.instances,
        "source": source,
        "sink": sink,
        "resources": {
            "cpu": resources.cpu.unwrap_or(1.0),
            "ram": resources.ram.unwrap_or(1 << 30),
            "disk": resources.disk.unwrap_or(10 << 30),
        },
        "componentType": "FUNCTION",
        "retainOrdering": ordered,
        "retainKeyOrdering": key_ordered,
        "subscriptionPosition": position,
    });
    if let Some(details) = details.as_object_mut() {
        put(details, "className", spec.code.class_name.as_deref());
        put(details, "logTopic", spec.log_topic.as_deref());
        if !spec.user_config.is_empty() {
            let text = Value::Object(spec.user_config.clone()).to_string();
            details.insert("userConfig".into(), text.into());
        }
        let secrets = config.secrets.as_ref().filter(|it| !it.is_empty());
        if let Some(secrets) = secrets {
            // The names alone: the values are in the environment.
            let names = secrets.keys().map(|name| (name.clone(), "".into()));
            let names = Value::Object(names.collect()).to_string();
            details.insert("secretsMap".into(), names.into());
        }
        if let Some(retries) = config.retries() {
            let topic = config.dead_letter_topic.as_deref().map(full_name);
            details.insert(
                "retryDetails".into(),
                json!({"maxMessageRetries": retries, "deadLetterTopic": topic.unwrap_or_default()}),
            );
        }
    }
    details
}

fn put(into: &mut Map<String, Value>, name: &str, value: Option<&str>) {
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        into.insert(name.to_owned(), value.into());
    }
}

/// `ConsumerSpec`.
fn consumer(input: &ConsumerConfig) -> Value {
    let mut spec = Map::new();
    put(&mut spec, "schemaType", input.schema_type.as_deref());
    put(
        &mut spec,
        "serdeClassName",
        input.serde_class_name.as_deref(),
    );
    if input.regex_pattern == Some(true) {
        spec.insert("isRegexPattern".into(), true.into());
    }
    if let Some(size) = input.receiver_queue_size {
        spec.insert("receiverQueueSize".into(), json!({ "value": size }));
    }
    if let Some(properties) = input
        .consumer_properties
        .as_ref()
        .filter(|it| !it.is_empty())
    {
        spec.insert("consumerProperties".into(), json!(properties));
    }
    if input.pool_messages == Some(true) {
        spec.insert("poolMessages".into(), true.into());
    }
    spec.into()
}

/// `ProducerSpec`.
fn producer(config: &FunctionConfig) -> Value {
    let none = ProducerConfig::default();
    let given = config.producer_config.as_ref().unwrap_or(&none);
    let mut spec = Map::new();
    let by_key = given.batch_builder.or(config.batch_builder) == Some(BatchBuilder::KeyBased);
    put(&mut spec, "batchBuilder", by_key.then_some("KEY_BASED"));
    for (name, value) in [
        ("maxPendingMessages", given.max_pending_messages),
        (
            "maxPendingMessagesAcrossPartitions",
            given.max_pending_messages_across_partitions,
        ),
    ] {
        if let Some(value) = value {
            spec.insert(name.into(), value.into());
        }
    }
    let compression = json!(given.compression_type.unwrap_or_default());
    spec.insert("compressionType".into(), compression);
    spec.into()
}
