//! What is wrong with a configuration, beyond its spelling.
//!
//! Pure: a configuration in, every violation out, so that a user mends a file once. The rules are
//! Pulsar's, two of them mended: topics are compared by their full names, and one that ends in
//! nothing is told apart from one that is illegal. What a language or a runtime cannot do is not
//! judged here: that is the worker's to say.

mod update;

use std::collections::BTreeMap;
use std::fmt;

use crate::connector::{SinkConfig, SourceConfig};
use crate::function::{FunctionConfig, ProcessingGuarantees, Resources, WindowConfig};
use crate::io_config::{ConsumerConfig, CryptoConfig, ProducerConfig};
use crate::name::TopicName;
use crate::secret::{Secret, Secrets};

pub use update::{merge_function, merge_sink, merge_source};

/// Instances of one component. Each is a process or a sandbox of its own with a consumer: a slip of the
/// finger must not take the server down, and no topic has so many partitions to share.
pub const PARALLELISM_MAX: i32 = 1_000;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The way to the field from the top of the object; keys and list positions as text.
    pub field: Vec<String>,
    /// What is wrong, in one sentence.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl Violation {
    fn new(field: &[&str], message: impl Into<String>) -> Violation {
        Violation {
            field: field.iter().map(|&step| step.to_owned()).collect(),
            message: message.into(),
            help: None,
        }
    }

    fn help(mut self, help: impl Into<String>) -> Violation {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(help) = &self.help {
            write!(f, "; {help}")?;
        }
        Ok(())
    }
}

/// Everything wrong with a function. Empty means that it can be created.
pub fn validate_function(config: &FunctionConfig) -> Vec<Violation> {
    let mut found = Vec::new();
    if let Some(fqfn) = &config.fqfn {
        if fqfn.split('/').count() != 3 || fqfn.split('/').any(str::is_empty) {
            found.push(
                Violation::new(&["fqfn"], format!("`{fqfn}` is not a function's full name"))
                    .help("write tenant/namespace/name"),
            );
        }
        for (field, given) in [
            ("tenant", &config.tenant),
            ("namespace", &config.namespace),
            ("name", &config.name),
        ] {
            if given.is_some() {
                found.push(Violation::new(
                    &[field],
                    format!("`{field}` and `fqfn` say it twice"),
                ));
            }
        }
    }
    check_identity(
        config.tenant(),
        config.namespace(),
        config.name(),
        &mut found,
    );

    match config.all_inputs() {
        Ok(inputs) => check_inputs(&inputs, config.output.as_deref(), "input", &mut found),
        Err(bad) => found.push(Violation::new(
            &["customSchemaInputs", &bad.topic],
            bad.to_string(),
        )),
    }
    check_optional_topic("output", &config.output, &mut found);
    check_optional_topic("logTopic", &config.log_topic, &mut found);
    check_optional_topic("deadLetterTopic", &config.dead_letter_topic, &mut found);
    check_producer(config.producer_config.as_ref(), &mut found);
    if is_given(&config.output_schema_type) && is_given(&config.output_serde_class_name) {
        found.push(one_of("outputSchemaType", "outputSerdeClassName"));
    }

    check_parallelism(config.parallelism, &mut found);
    check_positive("timeoutMs", config.timeout_ms, &mut found);
    check_positive("retryBackoffMs", config.retry_backoff_ms, &mut found);
    check_positive("idleTimeoutMs", config.idle_timeout_ms, &mut found);
    let pending = config.max_pending_async_requests.map(i64::from);
    check_positive("maxPendingAsyncRequests", pending, &mut found);
    check_resources(config.resources.as_ref(), &mut found);

    let guarantees = config.guarantees();
    if config.timeout_ms.is_some() && guarantees != ProcessingGuarantees::AtleastOnce {
        found.push(
            Violation::new(
                &["timeoutMs"],
                "a time limit needs the guarantee ATLEAST_ONCE",
            )
            .help("only then is a message delivered again"),
        );
    }
    check_retries(
        config.retries(),
        config.dead_letter_topic.as_deref(),
        guarantees,
        &mut found,
    );
    check_order(
        config.retain_ordering,
        config.retain_key_ordering,
        guarantees,
        &mut found,
    );
    check_auto_ack(config.auto_ack, config.processing_guarantees, &mut found);
    check_code(config, &mut found);
    check_secrets(config.secrets.as_ref(), &mut found);
    if let Some(window) = &config.window_config {
        check_window(window, config, &mut found);
    }
    found
}

/// Everything wrong with a source.
pub fn validate_source(config: &SourceConfig) -> Vec<Violation> {
    let mut found = Vec::new();
    check_identity(
        config.tenant(),
        config.namespace(),
        config.name.as_deref(),
        &mut found,
    );
    if config.topic_name.is_none() {
        found.push(
            Violation::new(&[], "a source needs a topic to write to").help("set `topicName`"),
        );
    }
    check_optional_topic("topicName", &config.topic_name, &mut found);
    check_optional_topic("logTopic", &config.log_topic, &mut found);
    check_producer(config.producer_config.as_ref(), &mut found);
    if is_given(&config.schema_type) && is_given(&config.serde_class_name) {
        found.push(one_of("schemaType", "serdeClassName"));
    }
    check_parallelism(config.parallelism, &mut found);
    check_resources(config.resources.as_ref(), &mut found);
    let code = [&config.source_type, &config.archive, &config.class_name];
    check_connector("source", "sourceType", code, &mut found);
    if let Some(batch) = &config.batch_source_config
        && batch.discovery_triggerer_class_name.is_none()
    {
        found.push(Violation::new(
            &["batchSourceConfig"],
            "a batch source needs a `discoveryTriggererClassName`",
        ));
    }
    found
}

/// Everything wrong with a sink.
pub fn validate_sink(config: &SinkConfig) -> Vec<Violation> {
    let mut found = Vec::new();
    check_identity(
        config.tenant(),
        config.namespace(),
        config.name.as_deref(),
        &mut found,
    );
    check_inputs(&config.all_inputs(), None, "input", &mut found);
    check_optional_topic("logTopic", &config.log_topic, &mut found);
    check_optional_topic("deadLetterTopic", &config.dead_letter_topic, &mut found);
    check_parallelism(config.parallelism, &mut found);
    check_positive("timeoutMs", config.timeout_ms, &mut found);
    if config
        .negative_ack_redelivery_delay_ms
        .is_some_and(|delay| delay < 0)
    {
        found.push(Violation::new(
            &["negativeAckRedeliveryDelayMs"],
            "`negativeAckRedeliveryDelayMs` must not be negative",
        ));
    }
    check_resources(config.resources.as_ref(), &mut found);
    let guarantees = config.guarantees();
    check_retries(
        config.retries(),
        config.dead_letter_topic.as_deref(),
        guarantees,
        &mut found,
    );
    check_order(
        config.retain_ordering,
        config.retain_key_ordering,
        guarantees,
        &mut found,
    );
    check_auto_ack(config.auto_ack, config.processing_guarantees, &mut found);
    let code = [&config.sink_type, &config.archive, &config.class_name];
    check_connector("sink", "sinkType", code, &mut found);
    found
}

fn check_identity(tenant: &str, namespace: &str, name: Option<&str>, found: &mut Vec<Violation>) {
    let legal = |text: &str| {
        !text.is_empty()
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '=' | ':' | '.'))
    };
    let Some(name) = name else {
        found.push(Violation::new(&[], "`name` is missing"));
        return;
    };
    for (field, text) in [("tenant", tenant), ("namespace", namespace), ("name", name)] {
        if !legal(text) {
            found.push(
                Violation::new(&[field], format!("`{text}` is not a legal {field}"))
                    .help("letters, digits and -=:._ are"),
            );
        }
    }
}

/// Topics are compared by full name: `in` and `persistent://public/default/in` are one topic.
fn check_inputs(
    inputs: &BTreeMap<String, ConsumerConfig>,
    output: Option<&str>,
    field: &str,
    found: &mut Vec<Violation>,
) {
    if inputs.is_empty() {
        found.push(
            Violation::new(&[], "there is no input topic").help("set `inputs` or `topicsPattern`"),
        );
    }
    let output = output.and_then(|topic| topic.parse::<TopicName>().ok());
    for (topic, spec) in inputs {
        if spec.regex_pattern != Some(true) {
            match topic.parse::<TopicName>() {
                Err(error) => {
                    let message = format!("{field} topic `{topic}`: {error}");
                    found.push(Violation::new(&["inputs", topic], message));
                }
                Ok(name) if Some(&name) == output.as_ref() => found.push(
                    Violation::new(
                        &["output"],
                        format!(
                            "`{}` is both {field} and output: an endless loop",
                            name.short()
                        ),
                    )
                    .help("write the output to another topic"),
                ),
                Ok(_) => {}
            }
        }
        if is_given(&spec.schema_type) && is_given(&spec.serde_class_name) {
            let mut violation = one_of("schemaType", "serdeClassName");
            violation.field = vec!["inputSpecs".into(), topic.clone(), "serdeClassName".into()];
            found.push(violation);
        }
        if spec.receiver_queue_size.is_some_and(|size| size < 0) {
            found.push(Violation::new(
                &["inputSpecs", topic, "receiverQueueSize"],
                "`receiverQueueSize` must not be negative",
            ));
        }
        if let Some(crypto) = &spec.crypto_config {
            check_crypto(crypto, &["inputSpecs", topic, "cryptoConfig"], false, found);
        }
    }
}

fn check_optional_topic(field: &str, topic: &Option<String>, found: &mut Vec<Violation>) {
    if let Some(Err(error)) = topic.as_ref().map(|topic| topic.parse::<TopicName>()) {
        found.push(Violation::new(&[field], format!("`{field}`: {error}")));
    }
}

fn check_producer(config: Option<&ProducerConfig>, found: &mut Vec<Violation>) {
    let Some(config) = config else { return };
    let path = "producerConfig";
    for (field, value) in [
        ("maxPendingMessages", config.max_pending_messages),
        (
            "maxPendingMessagesAcrossPartitions",
            config.max_pending_messages_across_partitions,
        ),
    ] {
        if value.is_some_and(|n| n < 0) {
            found.push(Violation::new(
                &[path, field],
                format!("`{field}` must not be negative"),
            ));
        }
    }
    if let Some(crypto) = &config.crypto_config {
        check_crypto(crypto, &[path, "cryptoConfig"], true, found);
    }
}

fn check_crypto(config: &CryptoConfig, at: &[&str], producer: bool, found: &mut Vec<Violation>) {
    if config
        .crypto_key_reader_class_name
        .as_ref()
        .is_none_or(String::is_empty)
    {
        found.push(Violation::new(
            at,
            "encryption needs a `cryptoKeyReaderClassName`",
        ));
    }
    if producer && config.encryption_keys.as_ref().is_none_or(Vec::is_empty) {
        found.push(
            Violation::new(at, "encryption needs the names of its keys")
                .help("set `encryptionKeys`"),
        );
    }
}

fn check_positive(field: &str, value: Option<i64>, found: &mut Vec<Violation>) {
    if let Some(value) = value
        && value <= 0
    {
        let message = format!("`{field}` must be positive, it is {value}");
        found.push(Violation::new(&[field], message));
    }
}

fn check_parallelism(parallelism: Option<i32>, found: &mut Vec<Violation>) {
    check_positive("parallelism", parallelism.map(i64::from), found);
    if let Some(parallelism) = parallelism
        && parallelism > PARALLELISM_MAX
    {
        found.push(Violation::new(
            &["parallelism"],
            format!("`parallelism` is at most {PARALLELISM_MAX}, it is {parallelism}"),
        ));
    }
}

fn check_resources(resources: Option<&Resources>, found: &mut Vec<Violation>) {
    let Some(resources) = resources else { return };
    // `!(x > 0)`, so that NaN is refused too.
    #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "NaN must be refused")]
    if resources.cpu.is_some_and(|cpu| !(cpu > 0.0)) {
        found.push(Violation::new(
            &["resources", "cpu"],
            "`cpu` must be positive",
        ));
    }
    for (field, bytes) in [("ram", resources.ram), ("disk", resources.disk)] {
        if bytes.is_some_and(|bytes| bytes <= 0) {
            found.push(Violation::new(
                &["resources", field],
                format!("`{field}` must be positive"),
            ));
        }
    }
}

fn check_retries(
    retries: Option<u32>,
    dead_letter_topic: Option<&str>,
    guarantees: ProcessingGuarantees,
    found: &mut Vec<Violation>,
) {
    if retries.is_some() && guarantees == ProcessingGuarantees::EffectivelyOnce {
        found.push(Violation::new(
            &["maxMessageRetries"],
            "`maxMessageRetries` and EFFECTIVELY_ONCE do not go together",
        ));
    }
    if dead_letter_topic.is_some() && retries.is_none() {
        found.push(
            Violation::new(
                &["deadLetterTopic"],
                "retries have no end, so nothing ever reaches the dead letter topic",
            )
            .help("set `maxMessageRetries`"),
        );
    }
}

fn check_order(
    per_partition: Option<bool>,
    per_key: Option<bool>,
    guarantees: ProcessingGuarantees,
    found: &mut Vec<Violation>,
) {
    if per_key == Some(true) {
        if per_partition == Some(true) {
            found.push(one_of("retainOrdering", "retainKeyOrdering"));
        }
        if guarantees == ProcessingGuarantees::EffectivelyOnce {
            found.push(Violation::new(
                &["retainKeyOrdering"],
                "order per key and EFFECTIVELY_ONCE do not go together",
            ));
        }
    }
}

fn check_auto_ack(
    auto_ack: Option<bool>,
    guarantees: Option<ProcessingGuarantees>,
    found: &mut Vec<Violation>,
) {
    if auto_ack == Some(false) && guarantees == Some(ProcessingGuarantees::AtmostOnce) {
        found.push(Violation::new(
            &["autoAck"],
            "`autoAck: false` contradicts ATMOST_ONCE, which acknowledges before the call",
        ));
    }
}

/// Connectors have none: that is the worker's to say.
fn check_secrets(secrets: Option<&Secrets>, found: &mut Vec<Violation>) {
    for (name, value) in secrets.into_iter().flat_map(|secrets| secrets.iter()) {
        if let Err(wrong) = Secret::parse(value) {
            let message = format!("`secrets.{name}`: {}", wrong.message);
            found.push(Violation::new(&["secrets", name], message).help(wrong.help));
        }
    }
}

fn check_code(config: &FunctionConfig, found: &mut Vec<Violation>) {
    let fields = [
        ("jar", &config.jar),
        ("py", &config.py),
        ("go", &config.go),
        ("sh", &config.sh),
        ("exec", &config.exec),
        ("wasm", &config.wasm),
    ];
    let given: Vec<_> = fields
        .into_iter()
        .filter(|(_, path)| path.is_some())
        .collect();
    if let [first, second, ..] = &given[..] {
        found.push(one_of(first.0, second.0));
    }
    match (config.runtime, config.code()) {
        (None, None) if config.function_type.is_none() => found.push(
            Violation::new(&[], "there is no code to run")
                .help("set one of `jar`, `py`, `go`, `sh`, `exec`, `wasm`"),
        ),
        (Some(runtime), Some((of_code, _))) if runtime != of_code => found.push(Violation::new(
            &["runtime"],
            format!(
                "`runtime` is {}, but `{}` is given",
                runtime.label(),
                of_code.code_field()
            ),
        )),
        _ => {}
    }
    for (field, path) in given {
        if path.as_deref() == Some("") {
            found.push(Violation::new(&[field], format!("`{field}` is empty")));
        }
    }
}

fn check_connector(
    noun: &str,
    field: &str,
    code: [&Option<String>; 3],
    found: &mut Vec<Violation>,
) {
    if code.iter().all(|given| given.is_none()) {
        found.push(
            Violation::new(&[], format!("the {noun} does not say what it is"))
                .help(format!("set `{field}` or `archive`")),
        );
    }
}

fn check_window(window: &WindowConfig, config: &FunctionConfig, found: &mut Vec<Violation>) {
    let mut bad = |field: &str, message: String| {
        found.push(Violation::new(&["windowConfig", field], message));
    };
    if window.session_gap_ms.is_some()
        && (window.window_length_count.is_some() || window.window_length_duration_ms.is_some())
    {
        bad("sessionGapMs", "a session has no length: `sessionGapMs` excludes `windowLengthCount` and `windowLengthDurationMs`".into());
    }
    match (window.window_length_count, window.window_length_duration_ms) {
        (None, None) if window.session_gap_ms.is_some() => {}
        (None, None) => bad("windowLengthCount", "a window needs a length: `windowLengthCount` or `windowLengthDurationMs`".into()),
        (Some(_), Some(_)) => bad("windowLengthDurationMs", "a window is counted or timed: `windowLengthCount` and `windowLengthDurationMs` exclude each other".into()),
        _ => {}
    }
    let positive = [
        (
            "windowLengthCount",
            window.window_length_count.map(i64::from),
        ),
        ("windowLengthDurationMs", window.window_length_duration_ms),
        (
            "slidingIntervalCount",
            window.sliding_interval_count.map(i64::from),
        ),
        (
            "slidingIntervalDurationMs",
            window.sliding_interval_duration_ms,
        ),
        ("watermarkEmitIntervalMs", window.watermark_emit_interval_ms),
        ("sessionGapMs", window.session_gap_ms),
    ];
    for (field, value) in positive {
        if value.is_some_and(|n| n <= 0) {
            bad(field, format!("`{field}` must be positive"));
        }
    }
    if window.max_lag_ms.is_some_and(|lag| lag < 0) {
        bad("maxLagMs", "`maxLagMs` must not be negative".into());
    }
    if window.late_data_topic.is_some() && window.timestamp_extractor_class_name.is_none() {
        bad("lateDataTopic", "nothing is late without event time: `lateDataTopic` needs `timestampExtractorClassName`".into());
    }
    if config.auto_ack == Some(true) {
        bad(
            "processingGuarantees",
            "a window function cannot acknowledge by itself: leave `autoAck` away".into(),
        );
    }
    if matches!(
        config.guarantees(),
        ProcessingGuarantees::EffectivelyOnce | ProcessingGuarantees::Manual
    ) {
        bad(
            "processingGuarantees",
            "a window function is ATLEAST_ONCE or ATMOST_ONCE".into(),
        );
    }
}

/// Clients send the empty text for what nobody gave: pulsar-admin does for `outputSchemaType`.
fn is_given(text: &Option<String>) -> bool {
    text.as_ref().is_some_and(|text| !text.is_empty())
}

fn one_of(first: &str, second: &str) -> Violation {
    Violation::new(
        &[second],
        format!("`{first}` and `{second}` exclude each other"),
    )
}

#[cfg(test)]
mod tests;
