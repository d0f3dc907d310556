//! Sources and sinks: the built-in connectors.

use std::collections::BTreeMap;
use std::time::Duration;

use geminga_mesh::builtin::{FileSink, FileSource};
use geminga_model::{BatchBuilder, ProcessingGuarantees, Resources, SinkConfig, SourceConfig};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::schemas::{Field, Who};
use super::topics::{position, producer, refuse_pools, refuse_set, sub_type, topics};
use super::{
    Input, Output, Plan, Policy, Process, ProducerPlan, RETRY_FIRST, Refused, Subscription,
    full_name,
};
use crate::secret::Declared;

const NO_PROCESS: &str =
    "a built-in connector is in the worker, not a process of its own: remove it";
const NO_SECRETS: &str = "no setting of a built-in connector is secret: remove it";
const NO_ARCHIVE: &str =
    "packages of connectors are for Java, and those here are built in: give `builtin://NAME`";
const NO_PATTERN: &str =
    "the file source chooses files by no pattern: remove it, and give a `path`";
/// As the list of built-in connectors names them.
const SOURCE_CLASSES: &[&str] = &["geminga.io.FileSource"];
const SINK_CLASSES: &[&str] = &["geminga.io.FileSink", "geminga.io.TableSink"];
const NO_TRANSFORM: &str = "a built-in sink runs no code: remove it, make a function of it, and give the sink the \
    function's output as its input";

pub(super) fn source(config: &SourceConfig, refused: &mut Refused) -> Option<Plan> {
    refuse_set(
        refused,
        &[
            (
                "batchSourceConfig",
                config.batch_source_config.is_some(),
                "no built-in source works in batches: remove it",
            ),
            (
                "serdeClassName",
                config.serde_class_name.is_some(),
                "a built-in source gives bytes: remove it",
            ),
        ],
    );
    refuse_code(
        refused,
        config.runtime_flags.is_some(),
        config.custom_runtime_options.is_some(),
        config.secrets.is_some(),
        config.archive.as_deref(),
    );
    let schema = config.schema_type.as_deref().unwrap_or_default();
    let schema = Field {
        who: Who::BuiltIn,
        is_output: true,
        called: format!("`schemaType: {schema}` of a built-in source"),
        name: schema,
        properties: &BTreeMap::new(),
        has_class: false,
    };
    let schema = schema.typed(refused);
    let by_key = [
        config.batch_builder,
        config
            .producer_config
            .as_ref()
            .and_then(|c| c.batch_builder),
    ];
    if by_key.contains(&Some(BatchBuilder::KeyBased)) {
        refused.push(
            "`batchBuilder: KEY_BASED` is not supported: lines of a file have no key: remove it"
                .to_owned(),
        );
    }
    refuse_resources(config.resources.as_ref(), refused);
    refuse_class(config.class_name.as_deref(), SOURCE_CLASSES, refused);
    let guarantee = guarantee(config.processing_guarantees.unwrap_or_default(), refused);
    if config.parallelism() > 1 {
        refused.push(
            "`parallelism` of a file source is 1: two readers would read every line twice"
                .to_owned(),
        );
    }
    let file: FileSource = match config.builtin() {
        Some("file") => settings(config.configs.as_ref(), refused)?,
        other => {
            unknown_connector("source", other, &geminga_mesh::builtin::SOURCES, refused);
            return None;
        }
    };
    if let Err(wrong) = file.check() {
        refused.push(format!("`configs`: {wrong}"));
    }
    refuse_set(
        refused,
        &[
            (
                "configs.numWorkers",
                file.num_workers.is_some_and(|n| n > 1),
                "one reader keeps the lines in order: remove it",
            ),
            ("configs.pathFilter", file.path_filter.is_some(), NO_PATTERN),
            ("configs.fileFilter", file.file_filter.is_some(), NO_PATTERN),
        ],
    );
    Some(Plan {
        input: Input::File(file),
        process: Process::Identity,
        output: Output::Topics {
            default: config.topic_name.as_deref().map(full_name),
            producer: ProducerPlan {
                schema,
                ..producer(
                    config.producer_config.as_ref(),
                    config.batch_builder,
                    refused,
                )
            },
            forward_properties: true,
        },
        secrets: Declared::new(),
        window: None,
        policy: Policy {
            guarantee,
            retries: None,
            dead_letter_topic: None,
            retry_first: RETRY_FIRST,
            ordered: true,
        },
        log_topic: config.log_topic.as_deref().map(full_name),
        cleanup_subscription: false,
        warnings: Vec::new(),
    })
}

pub(super) fn sink(config: &SinkConfig, refused: &mut Refused) -> Option<Plan> {
    refuse_set(
        refused,
        &[
            (
                "transformFunction",
                config.transform_function.is_some(),
                NO_TRANSFORM,
            ),
            (
                "transformFunctionClassName",
                config.transform_function_class_name.is_some(),
                NO_TRANSFORM,
            ),
            (
                "transformFunctionConfig",
                config.transform_function_config.is_some(),
                NO_TRANSFORM,
            ),
            (
                "topicToSerdeClassName",
                config.topic_to_serde_class_name.is_some(),
                "a built-in sink takes bytes: remove it",
            ),
            (
                "topicToSchemaProperties",
                config.topic_to_schema_properties.is_some(),
                "a built-in sink writes the bytes as they came: remove it, and give `inputSpecs` with \
                 `schemaType` and `schemaProperties`",
            ),
            (
                "timeoutMs",
                config.timeout_ms.is_some(),
                "a built-in sink runs no code that could hang: remove it",
            ),
        ],
    );
    refuse_code(
        refused,
        config.runtime_flags.is_some(),
        config.custom_runtime_options.is_some(),
        config.secrets.is_some(),
        config.archive.as_deref(),
    );
    let inputs = config.all_inputs();
    refuse_resources(config.resources.as_ref(), refused);
    refuse_class(config.class_name.as_deref(), SINK_CLASSES, refused);
    refuse_pools(&inputs, refused);
    if config.negative_ack_redelivery_delay_ms.is_some() && config.retries().is_none_or(|n| n == 0)
    {
        refused.push(
            "`negativeAckRedeliveryDelayMs` is not supported without `maxMessageRetries`: what a sink can not take \
             goes to the dead letters at once then: give both, or remove it"
                .to_owned(),
        );
    }
    for (topic, spec) in &inputs {
        if spec.serde_class_name.is_some() {
            refused.push(format!(
                "`serdeClassName` of input `{topic}` is not supported: a built-in sink takes bytes: remove it"
            ));
        }
    }
    let guarantee = match config.guarantees() {
        ProcessingGuarantees::Manual => {
            refused.push("`autoAck: false` has no meaning for a built-in sink".to_owned());
            ProcessingGuarantees::AtleastOnce
        }
        other => self::guarantee(other, refused),
    };
    let output = match config.builtin() {
        Some("file") => {
            let file: FileSink = settings(config.configs.as_ref(), refused)?;
            if let Err(wrong) = file.check() {
                refused.push(format!("`configs`: {wrong}"));
            }
            if config.parallelism() > 1 {
                refused
                    .push("`parallelism` of a file sink is 1: one writer owns the file".to_owned());
            }
            Output::File(file)
        }
        Some("table") => Output::Table(settings(config.configs.as_ref(), refused)?),
        other => {
            unknown_connector("sink", other, &geminga_mesh::builtin::SINKS, refused);
            return None;
        }
    };
    let ordered = config.retain_ordering == Some(true);
    let key_ordered = config.retain_key_ordering == Some(true);
    Some(Plan {
        input: Input::Topics(Subscription {
            own: config
                .dead_letter_topic
                .as_deref()
                .map(full_name)
                .into_iter()
                .collect(),
            name: config.subscription().unwrap_or_default(),
            sub_type: sub_type(ordered, key_ordered),
            position: position(config.source_subscription_position),
            ..topics(&inputs, (Some(Who::BuiltIn), false), refused)
        }),
        process: Process::Identity,
        output,
        secrets: Declared::new(),
        window: None,
        policy: Policy {
            guarantee,
            retries: config.retries(),
            dead_letter_topic: config.dead_letter_topic.as_deref().map(full_name),
            retry_first: config
                .negative_ack_redelivery_delay_ms
                .and_then(|ms| u64::try_from(ms).ok())
                .map_or(RETRY_FIRST, Duration::from_millis),
            ordered: true,
        },
        log_topic: config.log_topic.as_deref().map(full_name),
        cleanup_subscription: config.cleans_up_subscription(),
        warnings: Vec::new(),
    })
}

/// What is for code of its own, in a source and a sink alike.
fn refuse_code(
    refused: &mut Refused,
    has_flags: bool,
    has_options: bool,
    has_secrets: bool,
    archive: Option<&str>,
) {
    refuse_set(
        refused,
        &[
            ("runtimeFlags", has_flags, NO_PROCESS),
            ("customRuntimeOptions", has_options, NO_PROCESS),
            ("secrets", has_secrets, NO_SECRETS),
            ("archive", !is_builtin(archive), NO_ARCHIVE),
        ],
    );
}

fn unknown_connector(kind: &str, name: Option<&str>, known: &[&str], refused: &mut Refused) {
    let known = known.join("`, `");
    refused.push(match name {
        Some(name) => format!("{kind} `{name}` is not built in: there are `{known}`"),
        None => format!("a {kind} needs `{kind}Type`: there are `{known}`"),
    });
}

fn settings<T: DeserializeOwned>(
    configs: Option<&Map<String, Value>>,
    refused: &mut Refused,
) -> Option<T> {
    let value = Value::Object(configs.cloned().unwrap_or_default());
    serde_json::from_value(value)
        .map_err(|error| refused.push(format!("`configs`: {error}")))
        .ok()
}

fn guarantee(wanted: ProcessingGuarantees, refused: &mut Refused) -> ProcessingGuarantees {
    if wanted == ProcessingGuarantees::EffectivelyOnce {
        refused.push(
            "`processingGuarantees: EFFECTIVELY_ONCE` is not supported: what a built-in connector reads or writes beside \
             the topics is in no transaction: use ATLEAST_ONCE"
                .to_owned(),
        );
    }
    wanted
}

fn is_builtin(archive: Option<&str>) -> bool {
    archive.is_none_or(|archive| archive.starts_with("builtin://"))
}

/// A connector's class, where the type names it already: its own, as the list of built-in connectors has it.
fn refuse_class(name: Option<&str>, own: &[&str], refused: &mut Refused) {
    if let Some(name) = name.filter(|name| !name.is_empty() && !own.contains(name)) {
        refused.push(format!(
            "`className: {name}` is not supported: the type names what is built in: remove it"
        ));
    }
}

/// Nothing holds a built-in connector to an amount: Pulsar's own defaults, which its workers fill in, say nothing.
fn refuse_resources(resources: Option<&Resources>, refused: &mut Refused) {
    let Some(resources) = resources else { return };
    let given = [
        (
            "cpu",
            resources
                .cpu
                .filter(|cpu| *cpu != 1.0)
                .map(|it| it.to_string()),
        ),
        (
            "ram",
            resources
                .ram
                .filter(|ram| *ram != 1 << 30)
                .map(|it| it.to_string()),
        ),
        (
            "disk",
            resources
                .disk
                .filter(|disk| *disk != 10 << 30)
                .map(|it| it.to_string()),
        ),
    ];
    for (name, value) in given {
        if let Some(value) = value {
            refused.push(format!(
                "`resources.{name}: {value}` is not supported: a built-in connector shares the worker's process: \
                 remove it"
            ));
        }
    }
}
