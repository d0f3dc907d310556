//! What a resource of Function Mesh means here: one `FunctionConfig`, `SourceConfig` or
//! `SinkConfig`, and the list of what has no meaning outside Kubernetes.
//!
//! What must hold: each field of `crd` is used, listed as only used on Kubernetes, or refused.

use geminga_model::{
    BatchSourceConfig, ConsumerConfig, FunctionConfig, ProcessingGuarantees, ProducerConfig,
    Resources, SinkConfig, SourceConfig, SubscriptionPosition,
};
use serde_json::Value;

use super::{
    ConsumerSpec, FunctionSpec, GenericRuntime, InputConf, Language, OutputConf, ProcessGuarantee,
    ResourceRequirements, SinkSpec, SourceSpec, SubscribePosition,
};

/// What became of a resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Translated<T> {
    pub config: T,
    /// Fields, as paths below `spec`, that only mean something on Kubernetes.
    pub kubernetes_only: Vec<&'static str>,
    /// Fields that would change what the component does and cannot be honoured here, with why.
    pub refused: Vec<(&'static str, String)>,
}

macro_rules! list_given {
    ($into:expr, $spec:expr, $($field:ident => $name:literal),* $(,)?) => {
        $(if $spec.$field.is_some() { $into.push($name); })*
    };
}

/// The fields that all three kinds share and that only describe pods and images.
macro_rules! kubernetes_only {
    ($spec:expr) => {{
        let mut list = Vec::new();
        list_given!(list, $spec,
            cluster_name => "clusterName", min_replicas => "minReplicas",
            max_replicas => "maxReplicas", show_precise_parallelism => "showPreciseParallelism",
            image => "image", image_pull_policy => "imagePullPolicy",
            downloader_image => "downloaderImage", cleanup_image => "cleanupImage",
            image_has_pulsarctl => "imageHasPulsarctl", image_has_get => "imageHasGet",
            log_topic_agent => "logTopicAgent", filebeat_image => "filebeatImage",
            volume_mounts => "volumeMounts", pod => "pod", pulsar => "pulsar",
            pulsar_package_service => "pulsarPackageService", stateful_config => "statefulConfig",
        );
        let logs = [
            $spec.java.as_ref().is_some_and(|java| java.log.is_some()).then_some("java.log"),
            $spec.python.as_ref().is_some_and(|py| py.log.is_some()).then_some("python.log"),
            $spec.golang.as_ref().is_some_and(|go| go.log.is_some()).then_some("golang.log"),
        ];
        list.extend(logs.into_iter().flatten());
        list
    }};
}

/// What is refused in all three kinds.
macro_rules! refused {
    ($spec:expr) => {{
        let mut list: Vec<(&'static str, String)> = Vec::new();
        if $spec.secrets_map.is_some() {
            list.push((
                "secretsMap",
                "it names Secrets of Kubernetes, which are not here: a plain configuration has `secrets`, each \
                 {\"file\": \"/where/it/is/mounted\"}, {\"env\": \"NAME\"} or {\"command\": [..]}"
                    .into(),
            ));
        }
        if let Some(java) = &$spec.java {
            for (given, name) in [
                (
                    java.extra_dependencies_dir.is_some(),
                    "java.extraDependenciesDir",
                ),
                (java.java_opts.is_some(), "java.javaOpts"),
                (java.instance_path.is_some(), "java.instancePath"),
                (java.entry_class.is_some(), "java.entryClass"),
            ] {
                if given {
                    list.push((name, "it sets up the JVM of the runner image".into()));
                }
            }
        }
        list
    }};
}

pub fn function(spec: &FunctionSpec) -> Translated<FunctionConfig> {
    let mut only = kubernetes_only!(spec);
    list_given!(only, spec,
        volume_claim_templates => "volumeClaimTemplates",
        persistent_volume_claim_retention_policy => "persistentVolumeClaimRetentionPolicy");
    let mut refused = refused!(spec);
    if spec.source_config.is_some() {
        refused.push((
            "sourceConfig",
            "a connector inside a function; write a source".into(),
        ));
    }
    if spec.sink_config.is_some() {
        refused.push((
            "sinkConfig",
            "a connector inside a function; write a sink".into(),
        ));
    }
    let input = spec.input.clone().unwrap_or_default();
    let output = spec.output.clone().unwrap_or_default();
    let mut config = FunctionConfig {
        tenant: spec.tenant.clone(),
        namespace: spec.namespace.clone(),
        name: spec.name.clone(),
        class_name: spec.class_name.clone(),
        inputs: input.topics.clone(),
        topics_pattern: input.topic_pattern.clone(),
        custom_serde_inputs: input.custom_serde_sources.clone(),
        custom_schema_inputs: input.custom_schema_sources.clone(),
        input_specs: input_specs(&input, "input.sourceSpecs", &mut refused),
        input_type_class_name: input.type_class_name.clone(),
        output: output.topic.clone(),
        output_serde_class_name: output.sink_serde_class_name.clone(),
        output_schema_type: output.sink_schema_type.clone(),
        output_type_class_name: output.type_class_name.clone(),
        custom_schema_outputs: output.custom_schema_sinks.clone(),
        producer_config: producer(&output, &mut refused),
        log_topic: spec.log_topic.clone(),
        processing_guarantees: spec.processing_guarantee.map(guarantee),
        retain_ordering: spec.retain_ordering,
        retain_key_ordering: spec.retain_key_ordering,
        forward_source_message_property: spec.forward_source_message_property,
        user_config: spec.func_config.clone(),
        auto_ack: spec.auto_ack,
        max_message_retries: spec.max_message_retry,
        dead_letter_topic: spec.dead_letter_topic.clone(),
        sub_name: spec.subscription_name.clone(),
        subscription_position: spec.subscription_position.map(position),
        skip_to_latest: spec.skip_to_latest,
        parallelism: spec.replicas.or(spec.min_replicas),
        resources: resources(spec.resources.as_ref(), &mut refused),
        window_config: spec.window_config.clone(),
        timeout_ms: spec.timeout,
        // In these resources nothing is cleaned up unless asked for; in a FunctionConfig it is.
        cleanup_subscription: Some(spec.cleanup_subscription.unwrap_or(false)),
        runtime_flags: spec.runtime_flags.clone(),
        max_pending_async_requests: spec.max_pending_async_requests,
        ..FunctionConfig::default()
    };
    if let Some(java) = &spec.java {
        config.jar = located(java.jar.as_deref(), java.jar_location.as_deref());
    }
    if let Some(python) = &spec.python {
        config.py = located(python.py.as_deref(), python.py_location.as_deref());
    }
    if let Some(golang) = &spec.golang {
        config.go = located(golang.go.as_deref(), golang.go_location.as_deref());
    }
    if let Some(generic) = &spec.generic_runtime {
        generic_code(generic, &mut config, &mut refused);
    }
    Translated {
        config,
        kubernetes_only: only,
        refused,
    }
}

pub fn source(spec: &SourceSpec) -> Translated<SourceConfig> {
    let mut only = kubernetes_only!(spec);
    let mut refused = refused!(spec);
    refuse_languages(
        [
            spec.python.is_some(),
            spec.golang.is_some(),
            spec.generic_runtime.is_some(),
        ],
        &mut refused,
    );
    if spec.forward_source_message_property.is_some() {
        refused.push((
            "forwardSourceMessageProperty",
            "a source has no source message".into(),
        ));
    }
    let output = spec.output.clone().unwrap_or_default();
    let java = spec.java.clone().unwrap_or_default();
    if output.custom_schema_sinks.is_some() {
        refused.push((
            "output.customSchemaSinks",
            "set output.sinkSchemaType".into(),
        ));
    }
    // They are a pod's: a built-in connector runs in the worker.
    if resources(spec.resources.as_ref(), &mut refused).is_some() {
        only.push("resources");
    }
    let config = SourceConfig {
        tenant: spec.tenant.clone(),
        namespace: spec.namespace.clone(),
        name: spec.name.clone(),
        class_name: spec.class_name.clone(),
        topic_name: output.topic.clone(),
        producer_config: producer(&output, &mut refused),
        serde_class_name: output.sink_serde_class_name.clone(),
        schema_type: output.sink_schema_type.clone(),
        configs: spec.source_config.clone(),
        parallelism: spec.replicas.or(spec.min_replicas),
        processing_guarantees: spec.processing_guarantee.map(guarantee),
        resources: None,
        source_type: spec.source_type.clone(),
        archive: located(java.jar.as_deref(), java.jar_location.as_deref()),
        runtime_flags: spec.runtime_flags.clone(),
        batch_source_config: spec
            .batch_source_config
            .as_ref()
            .map(|batch| BatchSourceConfig {
                discovery_triggerer_class_name: batch.discovery_triggerer_class_name.clone(),
                discovery_triggerer_config: batch.discovery_triggerer_config.clone(),
            }),
        log_topic: spec.log_topic.clone(),
        ..SourceConfig::default()
    };
    Translated {
        config,
        kubernetes_only: only,
        refused,
    }
}

pub fn sink(spec: &SinkSpec) -> Translated<SinkConfig> {
    let mut only = kubernetes_only!(spec);
    let mut refused = refused!(spec);
    refuse_languages(
        [
            spec.python.is_some(),
            spec.golang.is_some(),
            spec.generic_runtime.is_some(),
        ],
        &mut refused,
    );
    if spec.forward_source_message_property.is_some() {
        refused.push((
            "forwardSourceMessageProperty",
            "a sink has no output message".into(),
        ));
    }
    let input = spec.input.clone().unwrap_or_default();
    let java = spec.java.clone().unwrap_or_default();
    // They are a pod's: a built-in connector runs in the worker.
    if resources(spec.resources.as_ref(), &mut refused).is_some() {
        only.push("resources");
    }
    let config = SinkConfig {
        tenant: spec.tenant.clone(),
        namespace: spec.namespace.clone(),
        name: spec.name.clone(),
        class_name: spec.class_name.clone(),
        source_subscription_name: spec.subscription_name.clone(),
        source_subscription_position: spec.subscription_position.map(position),
        inputs: input.topics.clone(),
        topic_to_serde_class_name: input.custom_serde_sources.clone(),
        topics_pattern: input.topic_pattern.clone(),
        topic_to_schema_type: input.custom_schema_sources.clone(),
        input_specs: input_specs(&input, "input.sourceSpecs", &mut refused),
        max_message_retries: spec.max_message_retry,
        dead_letter_topic: spec.dead_letter_topic.clone(),
        configs: spec.sink_config.clone(),
        parallelism: spec.replicas.or(spec.min_replicas),
        processing_guarantees: spec.processing_guarantee.map(guarantee),
        retain_ordering: spec.retain_ordering,
        retain_key_ordering: spec.retain_key_ordering,
        resources: None,
        auto_ack: spec.auto_ack,
        timeout_ms: spec.timeout,
        negative_ack_redelivery_delay_ms: spec.negative_ack_redelivery_delay_ms,
        sink_type: spec.sink_type.clone(),
        archive: located(java.jar.as_deref(), java.jar_location.as_deref()),
        cleanup_subscription: Some(spec.cleanup_subscription.unwrap_or(false)),
        runtime_flags: spec.runtime_flags.clone(),
        log_topic: spec.log_topic.clone(),
        ..SinkConfig::default()
    };
    Translated {
        config,
        kubernetes_only: only,
        refused,
    }
}

type Refused = Vec<(&'static str, String)>;

fn refuse_languages(given: [bool; 3], refused: &mut Refused) {
    for (given, field) in given
        .into_iter()
        .zip(["python", "golang", "genericRuntime"])
    {
        if given {
            refused.push((field, "a connector is built in, or a jar".into()));
        }
    }
}

/// Code in a package service or behind a URL goes by that name, a file by its own.
fn located(file: Option<&str>, location: Option<&str>) -> Option<String> {
    let location = location.filter(|location| !location.is_empty());
    location.or(file).map(str::to_owned)
}

fn generic_code(generic: &GenericRuntime, config: &mut FunctionConfig, refused: &mut Refused) {
    let code = located(
        generic.function_file.as_deref(),
        generic.function_file_location.as_deref(),
    );
    match generic.language {
        None => refused.push((
            "genericRuntime",
            "it needs a `language`, for example bash".into(),
        )),
        Some(Language::Bash) => config.sh = code,
        Some(Language::Executable) => config.exec = code,
        Some(Language::Python) => config.py = code,
        Some(Language::Wasm) => config.wasm = code,
        Some(Language::Nodejs) => {
            let why = "there is no nodejs runtime; an executable with a #! line works";
            refused.push(("genericRuntime.language", why.into()));
        }
    }
}

fn guarantee(given: ProcessGuarantee) -> ProcessingGuarantees {
    match given {
        ProcessGuarantee::AtleastOnce => ProcessingGuarantees::AtleastOnce,
        ProcessGuarantee::AtmostOnce => ProcessingGuarantees::AtmostOnce,
        ProcessGuarantee::EffectivelyOnce => ProcessingGuarantees::EffectivelyOnce,
        ProcessGuarantee::Manual => ProcessingGuarantees::Manual,
    }
}

fn position(given: SubscribePosition) -> SubscriptionPosition {
    match given {
        SubscribePosition::Latest => SubscriptionPosition::Latest,
        SubscribePosition::Earliest => SubscriptionPosition::Earliest,
    }
}

fn input_specs(
    input: &InputConf,
    at: &'static str,
    refused: &mut Refused,
) -> Option<std::collections::BTreeMap<String, ConsumerConfig>> {
    let specs = input.source_specs.as_ref()?;
    let mut all = std::collections::BTreeMap::new();
    for (topic, spec) in specs {
        all.insert(topic.clone(), consumer(spec, at, refused));
    }
    Some(all)
}

fn consumer(spec: &ConsumerSpec, at: &'static str, refused: &mut Refused) -> ConsumerConfig {
    if spec
        .crypto_config
        .as_ref()
        .is_some_and(|crypto| crypto.crypto_secrets.is_some())
    {
        refused.push((
            at,
            "cryptoSecrets names Secrets of Kubernetes, which are not here".into(),
        ));
    }
    ConsumerConfig {
        schema_type: spec.schema_type.clone(),
        serde_class_name: spec.serde_classname.clone(),
        regex_pattern: spec.is_regex_pattern,
        schema_properties: spec.schema_properties.clone(),
        consumer_properties: spec.consumer_properties.clone(),
        receiver_queue_size: spec.receiver_queue_size,
        crypto_config: spec.crypto_config.as_ref().and_then(|crypto| {
            let model = crypto.to_model();
            if model.is_none() {
                refused.push((at, "cryptoConfig has an unknown failure action".into()));
            }
            model
        }),
        pool_messages: None,
    }
}

fn producer(output: &OutputConf, refused: &mut Refused) -> Option<ProducerConfig> {
    let given = output.producer_conf.as_ref()?;
    let at = "output.producerConf";
    if given
        .crypto_config
        .as_ref()
        .is_some_and(|crypto| crypto.crypto_secrets.is_some())
    {
        refused.push((
            at,
            "cryptoSecrets names Secrets of Kubernetes, which are not here".into(),
        ));
    }
    Some(ProducerConfig {
        max_pending_messages: given.max_pending_messages,
        max_pending_messages_across_partitions: given.max_pending_messages_across_partitions,
        use_thread_local_producers: given.use_thread_local_producers,
        crypto_config: given.crypto_config.as_ref().and_then(|crypto| {
            let model = crypto.to_model();
            if model.is_none() {
                refused.push((at, "cryptoConfig has an unknown failure action".into()));
            }
            model
        }),
        batch_builder: given.batch_builder,
        compression_type: given.compression_type,
    })
}

/// Limits count; where there is none, the request does.
fn resources(given: Option<&ResourceRequirements>, refused: &mut Refused) -> Option<Resources> {
    let given = given?;
    let mut amount = |name: &str| {
        let find = |map: &Option<std::collections::BTreeMap<String, Value>>| {
            map.as_ref().and_then(|map| map.get(name).cloned())
        };
        let value = find(&given.limits).or_else(|| find(&given.requests))?;
        let amount = quantity(&value);
        if amount.is_none() {
            refused.push((
                "resources",
                format!("`{value}` is not a quantity such as 200m or 1Gi"),
            ));
        }
        amount
    };
    let resources = Resources {
        cpu: amount("cpu"),
        ram: amount("memory").map(|bytes| bytes as i64),
        disk: amount("ephemeral-storage").map(|bytes| bytes as i64),
    };
    (resources != Resources::default()).then_some(resources)
}

/// A quantity of Kubernetes: `200m`, `0.5`, `1Gi`, `1.1G`, `1e3`.
fn quantity(value: &Value) -> Option<f64> {
    let text = match value {
        Value::Number(number) => return number.as_f64(),
        Value::String(text) => text.trim(),
        _ => return None,
    };
    let suffixes: [(&str, f64); 14] = [
        ("Ki", 1024.0),
        ("Mi", 1024f64.powi(2)),
        ("Gi", 1024f64.powi(3)),
        ("Ti", 1024f64.powi(4)),
        ("Pi", 1024f64.powi(5)),
        ("Ei", 1024f64.powi(6)),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
        ("", 1.0),
    ];
    let (number, factor) = suffixes
        .into_iter()
        .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, factor)))?;
    let number: f64 = number.parse().ok()?;
    number.is_finite().then_some(number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, want) in [
            ("200m", Some(0.2)),
            ("1", Some(1.0)),
            ("1.1G", Some(1.1e9)),
            ("512Mi", Some(536_870_912.0)),
            ("1e3", Some(1000.0)),
            ("lots", None),
            ("inf", None),
        ] {
            assert_eq!(quantity(&Value::String(text.into())), want, "{text}");
        }
        assert_eq!(quantity(&Value::from(2)), Some(2.0));
    }
}
