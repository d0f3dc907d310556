//! From a configuration to what an instance does. Pure: a field is honoured here or refused by its
//! name; none is passed over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use geminga_client::{Batching, Compression, InitialPosition, SubType};
use geminga_mesh::builtin::{FileSink, FileSource, TableSink};
use geminga_model::{
    BatchBuilder, CompressionType, ConsumerConfig, FunctionConfig, ProcessingGuarantees,
    ProducerConfig, Resources, Runtime, SinkConfig, SourceConfig, SubscriptionPosition,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::component::Component;
use crate::runtime::{Code, HostSpec, Options};

/// First wait before a retry, when the configuration does not say.
const RETRY_FIRST: Duration = Duration::from_millis(500);

/// What each instance of a component does.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) input: Input,
    pub(crate) process: Process,
    pub(crate) output: Output,
    pub(crate) policy: Policy,
    pub(crate) log_topic: Option<String>,
    pub(crate) cleanup_subscription: bool,
    /// What was accepted and is not enforced on this machine, one sentence each.
    pub(crate) warnings: Vec<String>,
}

/// Where messages come from.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    Topics(Subscription),
    File(FileSource),
}

/// How topics are consumed.
#[derive(Debug, Clone)]
pub(crate) struct Subscription {
    pub(crate) topics: Vec<String>,
    pub(crate) pattern: Option<String>,
    pub(crate) name: String,
    pub(crate) sub_type: SubType,
    pub(crate) position: InitialPosition,
    pub(crate) queue_size: Option<usize>,
    pub(crate) skip_to_latest: bool,
}

/// What makes outputs of messages.
#[derive(Debug, Clone)]
pub(crate) enum Process {
    /// The message itself is the output: connectors.
    Identity,
    Host(Language, Box<HostSpec>),
}

/// The runtimes of this worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    Bash,
    Python,
    Exec,
    Go,
    Java,
}

impl Language {
    /// Holds a process to so many bytes of memory, in the way that suits its runtime.
    fn limit_memory(self, bytes: u64, spec: &mut HostSpec) {
        let limits = &mut spec.options.limits;
        match self {
            Self::Bash | Self::Python | Self::Exec => {
                limits.memory_bytes = limits.memory_bytes.or(Some(bytes));
            }
            // These reserve far more address space than they use.
            Self::Go => limits.data_bytes = limits.data_bytes.or(Some(bytes)),
            Self::Java => spec.heap_bytes = Some(bytes),
        }
    }

    /// Whether the runtime has a host of its own, and so no use for the settings of plain processes.
    fn has_host(self) -> bool {
        matches!(self, Self::Python | Self::Go | Self::Java)
    }
}

/// Where outputs go.
#[derive(Debug, Clone)]
pub(crate) enum Output {
    /// The default topic, if there is one; outputs may name others.
    Topics {
        default: Option<String>,
        producer: ProducerPlan,
        forward_properties: bool,
    },
    File(FileSink),
    Table(TableSink),
}

/// How outputs are produced.
#[derive(Debug, Clone)]
pub(crate) struct ProducerPlan {
    pub(crate) compression: Compression,
    pub(crate) batching: Batching,
    pub(crate) window: Option<usize>,
}

/// When messages are acknowledged, tried again, given up.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) guarantee: ProcessingGuarantees,
    /// `None`: without end.
    pub(crate) retries: Option<u32>,
    pub(crate) dead_letter_topic: Option<String>,
    pub(crate) retry_first: Duration,
    /// A failed message keeps those after it waiting.
    pub(crate) ordered: bool,
}

/// What can not be honoured, one sentence a field.
pub(crate) type Refused = Vec<String>;

/// Plans a component; `code` is where its code is on this machine.
pub(crate) fn plan(component: &Component, code: Option<&Path>) -> Result<Plan, Refused> {
    let mut refused: Refused = component
        .violations()
        .iter()
        .map(ToString::to_string)
        .collect();
    if !refused.is_empty() {
        return Err(refused);
    }
    let plan = match component {
        Component::Function(config) => function(config, code, &mut refused),
        Component::Source(config) => source(config, &mut refused),
        Component::Sink(config) => sink(config, &mut refused),
    };
    match plan {
        Some(plan) if refused.is_empty() => Ok(plan),
        _ => Err(refused),
    }
}

fn function(config: &FunctionConfig, code: Option<&Path>, refused: &mut Refused) -> Option<Plan> {
    let is_java = config.runtime() == Some(Runtime::Java);
    let set = [
        ("windowConfig", config.window_config.is_some()),
        ("functionType", config.function_type.is_some()),
        (
            "exposePulsarAdminClientEnabled",
            config.expose_pulsar_admin_client_enabled == Some(true),
        ),
        (
            "inputTypeClassName",
            !is_java && java_type(config.input_type_class_name.as_deref()),
        ),
        (
            "outputTypeClassName",
            !is_java && java_type(config.output_type_class_name.as_deref()),
        ),
    ];
    for (field, given) in set {
        if given {
            refused.push(format!("`{field}` is not supported by this worker yet"));
        }
    }
    let guarantee = guarantee(config.guarantees(), refused);
    let (language, given) = match (config.runtime(), config.code()) {
        (Some(Runtime::Bash), code) => (Language::Bash, code),
        (Some(Runtime::Python), code) => (Language::Python, code),
        (Some(Runtime::Exec), code) => (Language::Exec, code),
        (Some(Runtime::Go), code) => (Language::Go, code),
        (Some(Runtime::Java), code) => (Language::Java, code),
        (Some(other), _) => {
            refused.push(format!(
                "runtime `{}` is not supported by this worker yet",
                other.label()
            ));
            return None;
        }
        (None, _) => {
            refused.push("no code: give `sh`, `py`, `go`, `jar` or `exec`".to_owned());
            return None;
        }
    };
    let path = match (code, given) {
        (Some(path), _) => path.to_path_buf(),
        (None, Some((_, path))) => PathBuf::from(path.strip_prefix("file://").unwrap_or(path)),
        (None, None) => {
            refused.push("no code: give `sh`, `py`, `go`, `jar` or `exec`".to_owned());
            return None;
        }
    };
    let inputs = match config.all_inputs() {
        Ok(inputs) => inputs,
        Err(error) => {
            refused.push(error.to_string());
            return None;
        }
    };
    let mut options = match Options::parse(config.custom_runtime_options.as_deref().unwrap_or("")) {
        Ok(options) => options,
        Err(error) => {
            refused.push(format!("`customRuntimeOptions`: {error}"));
            return None;
        }
    };
    if let Some(ms) = config.timeout_ms.and_then(|ms| u64::try_from(ms).ok()) {
        options.timeout_ms = ms;
    }
    if let Err(error) = options.run_as() {
        refused.push(error);
    }
    if let Some(pending) = config
        .max_pending_async_requests
        .and_then(|n| usize::try_from(n).ok())
    {
        options.window = Some(
            options
                .window
                .map_or(pending, |window| window.min(pending))
                .max(1),
        );
    }
    if language.has_host() {
        for field in options.of_other_runtimes() {
            refused.push(format!(
                "`{field}` of `customRuntimeOptions` has no meaning for a function with a host of its own"
            ));
        }
    }
    if !options.args.is_empty() && matches!(language, Language::Python | Language::Java) {
        refused.push("`args` of `customRuntimeOptions`: use `runtimeFlags`".to_owned());
    }
    // A NAR may name its class itself.
    let is_nar = path.extension().is_some_and(|ending| ending == "nar");
    if language == Language::Java
        && !is_nar
        && config.class_name.as_deref().unwrap_or("").is_empty()
    {
        refused.push("`className` is missing: the class of the function in the jar".to_owned());
    }
    let schemas: BTreeMap<String, String> = inputs
        .iter()
        .filter_map(|(topic, spec)| Some((full_name(topic), spec.schema_type.clone()?)))
        .collect();
    let serdes: BTreeMap<String, String> = inputs
        .iter()
        .filter_map(|(topic, spec)| Some((full_name(topic), spec.serde_class_name.clone()?)))
        .collect();
    let output_schema = output_schema(config, refused);
    check_schemas(
        language,
        &schemas,
        &serdes,
        output_schema.as_deref(),
        config,
        refused,
    );
    let mut spec = HostSpec {
        tenant: config.tenant().to_owned(),
        namespace: config.namespace().to_owned(),
        name: config.name().unwrap_or_default().to_owned(),
        instances: config.parallelism(),
        code: Code {
            path,
            class_name: config.class_name.clone(),
        },
        inputs: inputs.keys().map(|topic| full_name(topic)).collect(),
        output: config.output.as_deref().map(full_name),
        output_serde: config.output_serde_class_name.clone(),
        input_serdes: serdes,
        input_schemas: schemas,
        output_schema,
        user_config: config.user_config.clone().unwrap_or_default(),
        secrets: secrets(config.secrets.as_ref()),
        log_topic: config.log_topic.clone(),
        manual_ack: guarantee == ProcessingGuarantees::Manual,
        options,
        runtime_flags: split_flags(config.runtime_flags.as_deref().unwrap_or("")),
        idle: config
            .idle_timeout_ms
            .and_then(|ms| u64::try_from(ms).ok())
            .map(Duration::from_millis),
        input_type: config.input_type_class_name.clone().filter(|_| is_java),
        output_type: config.output_type_class_name.clone().filter(|_| is_java),
        ..HostSpec::default()
    };
    let ram = config.resources.as_ref().and_then(|r| r.ram);
    if let Some(ram) = ram.and_then(|ram| u64::try_from(ram).ok()) {
        language.limit_memory(ram, &mut spec);
    }
    let ordered = config.retain_ordering == Some(true);
    let key_ordered = config.retain_key_ordering == Some(true);
    Some(Plan {
        input: Input::Topics(Subscription {
            name: config.subscription().unwrap_or_default(),
            sub_type: sub_type(ordered, key_ordered),
            position: position(config.subscription_position),
            skip_to_latest: config.skip_to_latest == Some(true),
            ..topics(&inputs, refused)
        }),
        process: Process::Host(language, Box::new(spec)),
        output: Output::Topics {
            default: config.output.as_deref().map(full_name),
            producer: producer(
                config.producer_config.as_ref(),
                config.batch_builder,
                refused,
            ),
            forward_properties: config.forwards_properties(),
        },
        policy: Policy {
            guarantee,
            retries: config.retries(),
            dead_letter_topic: config.dead_letter_topic.as_deref().map(full_name),
            retry_first: config
                .retry_backoff_ms
                .and_then(|ms| u64::try_from(ms).ok())
                .map_or(RETRY_FIRST, Duration::from_millis),
            ordered: ordered || key_ordered,
        },
        log_topic: config.log_topic.as_deref().map(full_name),
        cleanup_subscription: config.cleans_up_subscription(),
        warnings: not_enforced(config.resources.as_ref(), true),
    })
}

/// Resources that are accepted, since every file for Kubernetes has them, and that nothing holds a
/// component to here. `ram` of a function is a limit of its processes.
fn not_enforced(resources: Option<&Resources>, has_processes: bool) -> Vec<String> {
    let Some(resources) = resources else {
        return Vec::new();
    };
    let mut warnings = Vec::new();
    if let Some(cpu) = resources.cpu {
        warnings.push(format!(
            "`resources.cpu: {cpu}` is not enforced on this machine: a process may use more"
        ));
    }
    if let Some(ram) = resources.ram.filter(|_| !has_processes) {
        warnings.push(format!(
            "`resources.ram: {ram}` is not enforced: a built-in connector shares the worker's memory"
        ));
    }
    if let Some(disk) = resources.disk {
        let instead = if has_processes {
            "; `limits.fileBytes` of `customRuntimeOptions` bounds each file"
        } else {
            ""
        };
        warnings.push(format!(
            "`resources.disk: {disk}` is not enforced on this machine{instead}"
        ));
    }
    warnings
}

fn source(config: &SourceConfig, refused: &mut Refused) -> Option<Plan> {
    refuse_set(
        refused,
        &[
            ("batchSourceConfig", config.batch_source_config.is_some()),
            ("serdeClassName", config.serde_class_name.is_some()),
            ("runtimeFlags", config.runtime_flags.is_some()),
            (
                "customRuntimeOptions",
                config.custom_runtime_options.is_some(),
            ),
            ("secrets", config.secrets.is_some()),
            (
                "schemaType",
                unsupported_schema(config.schema_type.as_deref()),
            ),
        ],
    );
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
            ),
            ("configs.pathFilter", file.path_filter.is_some()),
            ("configs.fileFilter", file.file_filter.is_some()),
        ],
    );
    Some(Plan {
        input: Input::File(file),
        process: Process::Identity,
        output: Output::Topics {
            default: config.topic_name.as_deref().map(full_name),
            producer: producer(
                config.producer_config.as_ref(),
                config.batch_builder,
                refused,
            ),
            forward_properties: true,
        },
        policy: Policy {
            guarantee,
            retries: None,
            dead_letter_topic: None,
            retry_first: RETRY_FIRST,
            ordered: true,
        },
        log_topic: config.log_topic.as_deref().map(full_name),
        cleanup_subscription: false,
        warnings: not_enforced(config.resources.as_ref(), false),
    })
}

fn sink(config: &SinkConfig, refused: &mut Refused) -> Option<Plan> {
    let transform = [
        &config.transform_function,
        &config.transform_function_class_name,
        &config.transform_function_config,
    ];
    refuse_set(
        refused,
        &[
            (
                "transformFunction",
                transform.iter().any(|field| field.is_some()),
            ),
            ("runtimeFlags", config.runtime_flags.is_some()),
            (
                "customRuntimeOptions",
                config.custom_runtime_options.is_some(),
            ),
            ("secrets", config.secrets.is_some()),
            (
                "topicToSerdeClassName",
                config.topic_to_serde_class_name.is_some(),
            ),
            (
                "topicToSchemaProperties",
                config.topic_to_schema_properties.is_some(),
            ),
            ("timeoutMs", config.timeout_ms.is_some()),
        ],
    );
    let inputs = config.all_inputs();
    for (topic, spec) in &inputs {
        if unsupported_schema(spec.schema_type.as_deref()) {
            refused.push(format!(
                "the schema of input `{topic}` is not supported: use none, bytes, string or json"
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
            name: config.subscription().unwrap_or_default(),
            sub_type: sub_type(ordered, key_ordered),
            position: position(config.source_subscription_position),
            ..topics(&inputs, refused)
        }),
        process: Process::Identity,
        output,
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
        warnings: not_enforced(config.resources.as_ref(), false),
    })
}

fn refuse_set(refused: &mut Refused, fields: &[(&str, bool)]) {
    for (field, set) in fields {
        if *set {
            refused.push(format!("`{field}` is not supported by this worker"));
        }
    }
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
            "`processingGuarantees: EFFECTIVELY_ONCE` is not supported by this worker yet"
                .to_owned(),
        );
    }
    wanted
}

fn sub_type(ordered: bool, key_ordered: bool) -> SubType {
    match (ordered, key_ordered) {
        (true, _) => SubType::Failover,
        (_, true) => SubType::KeyShared,
        _ => SubType::Shared,
    }
}

fn position(position: Option<SubscriptionPosition>) -> InitialPosition {
    match position.unwrap_or_default() {
        SubscriptionPosition::Latest => InitialPosition::Latest,
        SubscriptionPosition::Earliest => InitialPosition::Earliest,
    }
}

/// Names, pattern and queue size; the rest is the caller's.
fn topics(inputs: &BTreeMap<String, ConsumerConfig>, refused: &mut Refused) -> Subscription {
    let mut names = Vec::new();
    let mut patterns = Vec::new();
    let mut queue_size = None;
    for (topic, spec) in inputs {
        if spec.regex_pattern == Some(true) {
            patterns.push(topic.clone());
        } else {
            names.push(full_name(topic));
        }
        if spec.crypto_config.is_some() {
            refused.push(format!(
                "`cryptoConfig` of input `{topic}` is not supported by this worker yet"
            ));
        }
        if spec
            .consumer_properties
            .as_ref()
            .is_some_and(|p| !p.is_empty())
        {
            refused.push(format!("`consumerProperties` of input `{topic}` are Java client settings: use `receiverQueueSize`, `subName` and the others by name"));
        }
        if let Some(size) = spec
            .receiver_queue_size
            .and_then(|n| usize::try_from(n).ok())
        {
            let size = size.max(1);
            queue_size = Some(queue_size.map_or(size, |q: usize| q.max(size)));
        }
    }
    if patterns.len() > 1 || (!patterns.is_empty() && !names.is_empty()) {
        refused.push(
            "a pattern can not be combined with another input: use one pattern, or names"
                .to_owned(),
        );
    }
    Subscription {
        topics: names,
        pattern: patterns.pop(),
        name: String::new(),
        sub_type: SubType::Shared,
        position: InitialPosition::Latest,
        queue_size,
        skip_to_latest: false,
    }
}

fn producer(
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
            ),
            (
                "producerConfig.useThreadLocalProducers",
                config.use_thread_local_producers == Some(true),
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
    }
}

fn java_type(name: Option<&str>) -> bool {
    // Function Mesh writes the Java name of bytes into every resource.
    !matches!(name, None | Some("" | "[B" | "java.lang.String"))
}

fn unsupported_schema(name: Option<&str>) -> bool {
    let known = ["", "none", "bytes", "string", "json"];
    name.is_some_and(|name| !known.contains(&name.to_ascii_lowercase().as_str()))
}

fn output_schema(config: &FunctionConfig, refused: &mut Refused) -> Option<String> {
    if let Some(schema) = config.output_schema_type.as_ref().filter(|s| !s.is_empty()) {
        return Some(schema.clone());
    }
    let output = config.output.as_ref()?;
    let text = config.custom_schema_outputs.as_ref()?.get(output)?;
    match serde_json::from_str::<ConsumerConfig>(text) {
        Ok(spec) => spec.schema_type,
        Err(error) => {
            refused.push(format!("`customSchemaOutputs` of `{output}`: {error}"));
            None
        }
    }
}

fn check_schemas(
    language: Language,
    schemas: &BTreeMap<String, String>,
    serdes: &BTreeMap<String, String>,
    output: Option<&str>,
    config: &FunctionConfig,
    refused: &mut Refused,
) {
    // A dotted name is a class that the host loads; Java's knows the schemas of Pulsar's client.
    let known = |schema: &str| match language {
        Language::Python => schema.contains('.') || !unsupported_schema(Some(schema)),
        Language::Java => schema.contains('.') || java_schema(schema),
        _ => !unsupported_schema(Some(schema)),
    };
    let names = match language {
        Language::Java => JAVA_SCHEMAS.join(", "),
        _ => "none, bytes, string or json".to_owned(),
    };
    for (topic, schema) in schemas.iter().filter(|(_, schema)| !known(schema)) {
        refused.push(format!(
            "schema `{schema}` of input `{topic}` is not supported: use {names}"
        ));
    }
    if let Some(schema) = output.filter(|schema| !known(schema)) {
        refused.push(format!(
            "`outputSchemaType: {schema}` is not supported: use {names}"
        ));
    }
    if !matches!(language, Language::Python | Language::Java)
        && (!serdes.is_empty() || config.output_serde_class_name.is_some())
    {
        refused.push(
            "SerDe classes are for Python and Java functions: others get and give bytes".to_owned(),
        );
    }
}

/// The schemas that Java's host reads and writes by the type of the class.
const JAVA_SCHEMAS: [&str; 13] = [
    "none", "bytes", "string", "json", "avro", "protobuf", "bool", "int8", "int16", "int32",
    "int64", "float", "double",
];

fn java_schema(name: &str) -> bool {
    name.is_empty() || JAVA_SCHEMAS.contains(&name.to_ascii_lowercase().as_str())
}

fn secrets(secrets: Option<&Map<String, Value>>) -> BTreeMap<String, String> {
    secrets
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), crate::runtime::plain(value)))
        .collect()
}

/// Splits at blanks outside quotes.
fn split_flags(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut quote, mut inside) = (None, false);
    for c in text.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                inside = true;
            }
            (None, c) if c.is_whitespace() => {
                if inside {
                    words.push(std::mem::take(&mut word));
                }
                inside = false;
            }
            (_, c) => {
                word.push(c);
                inside = true;
            }
        }
    }
    if inside {
        words.push(word);
    }
    words
}

/// The full name of a topic; text that is no legal name stays as it is, for the broker to refuse.
pub(crate) fn full_name(topic: &str) -> String {
    topic
        .parse::<geminga_model::TopicName>()
        .map_or_else(|_| topic.to_owned(), |name| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(text: &str) -> Result<Plan, Refused> {
        let config: FunctionConfig = serde_json::from_str(text).expect(text);
        plan(&config.into(), None)
    }

    #[test]
    fn what_is_not_supported_is_refused_by_its_name() {
        for (fields, name) in [
            (
                r#""processingGuarantees":"EFFECTIVELY_ONCE""#,
                "EFFECTIVELY_ONCE",
            ),
            (r#""windowConfig":{"windowLengthCount":3}"#, "windowConfig"),
            (
                r#""exposePulsarAdminClientEnabled":true"#,
                "exposePulsarAdminClientEnabled",
            ),
            (r#""outputSchemaType":"avro""#, "outputSchemaType"),
            (r#""outputSerdeClassName":"my.Serde""#, "SerDe"),
            (
                r#""inputSpecs":{"in":{"consumerProperties":{"a":"b"}}}"#,
                "consumerProperties",
            ),
            (
                r#""customRuntimeOptions":"{\"mod\":\"spawn\"}""#,
                "customRuntimeOptions",
            ),
            (
                r#""producerConfig":{"useThreadLocalProducers":true}"#,
                "useThreadLocalProducers",
            ),
        ] {
            let text = format!(r#"{{"name":"f","sh":"f.sh","inputs":["in"],{fields}}}"#);
            let said = planned(&text).expect_err(name).join("; ");
            assert!(said.contains(name), "{name}: {said}");
        }
    }

    #[test]
    fn settings_of_another_runtime_are_refused_by_their_name() {
        let code = r#""go":"f","inputs":["in"]"#;
        for (fields, name) in [
            (format!(r#"{code},"customRuntimeOptions":"{{\"mode\":\"spawn\"}}""#), "mode"),
            (format!(r#"{code},"customRuntimeOptions":"{{\"nul\":\"base64\"}}""#), "nul"),
            (r#""jar":"f.jar","inputs":["in"]"#.to_owned(), "className"),
            (
                r#""jar":"f.jar","className":"F","inputs":["in"],"customRuntimeOptions":"{\"args\":[\"x\"]}""#
                    .to_owned(),
                "args",
            ),
            (format!(r#"{code},"outputTypeClassName":"my.Type""#), "outputTypeClassName"),
        ] {
            let said = planned(&format!(r#"{{"name":"f",{fields}}}"#)).expect_err(name).join("; ");
            assert!(said.contains(name), "{name}: {said}");
        }
        let java = planned(
            r#"{"name":"f","jar":"f.jar","className":"F","inputs":["in"],"outputTypeClassName":"my.Type",
                "resources":{"ram":1000}}"#,
        );
        let Process::Host(Language::Java, spec) = java.expect("accepted").process else {
            panic!()
        };
        assert_eq!(
            (spec.heap_bytes, spec.options.limits.memory_bytes),
            (Some(1000), None)
        );
        assert_eq!(spec.output_type.as_deref(), Some("my.Type"));
    }

    #[test]
    fn resources_are_enforced_or_said_not_to_be() {
        let of = |resources: &str| {
            planned(&format!(
                r#"{{"name":"f","sh":"f.sh","inputs":["in"],"resources":{resources}}}"#
            ))
            .expect("accepted")
        };
        assert!(of(r#"{"ram":1000}"#).warnings.is_empty());
        let Process::Host(_, spec) = of(r#"{"ram":1000}"#).process else {
            panic!()
        };
        assert_eq!(spec.options.limits.memory_bytes, Some(1000));
        let said = of(r#"{"cpu":0.5,"disk":7}"#).warnings.join("; ");
        assert!(
            said.contains("`resources.cpu: 0.5` is not enforced"),
            "{said}"
        );
        assert!(
            said.contains("`resources.disk: 7` is not enforced"),
            "{said}"
        );
        let sink: SinkConfig = serde_json::from_str(
            r#"{"name":"s","sinkType":"table","inputs":["in"],"resources":{"cpu":1,"ram":5}}"#,
        )
        .expect("a sink");
        let warnings = plan(&sink.into(), None).expect("accepted").warnings;
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }

    #[test]
    fn subscription_rules_are_pulsars() {
        for (fields, wanted) in [
            ("", SubType::Shared),
            (r#","retainOrdering":true"#, SubType::Failover),
            (r#","retainKeyOrdering":true"#, SubType::KeyShared),
        ] {
            let plan = planned(&format!(
                r#"{{"name":"f","sh":"f.sh","inputs":["in"]{fields}}}"#
            ))
            .expect("legal");
            let Input::Topics(subscription) = plan.input else {
                panic!()
            };
            assert_eq!(subscription.sub_type, wanted);
            assert_eq!(subscription.name, "public/default/f");
            assert_eq!(subscription.topics, ["persistent://public/default/in"]);
            assert_eq!(subscription.position, InitialPosition::Latest);
        }
    }

    #[test]
    fn flags_split_outside_quotes() {
        assert_eq!(
            split_flags(r#" -a "b c" d''e "" "#),
            ["-a", "b c", "de", ""]
        );
    }
}
