//! The custom resources of Function Mesh (`compute.functionmesh.io/v1alpha1`), every field of them.
//!
//! These types only say what may be written. What a field means here is `crd::translate`'s; what
//! has a meaning on Kubernetes alone is listed by it, never dropped in silence.

pub mod translate;

use std::collections::BTreeMap;

use geminga_model::{BatchBuilder, CompressionType, CryptoConfig, WindowConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Group and version of the resources.
pub const API_VERSION: &str = "compute.functionmesh.io/v1alpha1";
/// The group alone.
pub const API_GROUP: &str = "compute.functionmesh.io";
/// The kinds that become something here.
pub const KINDS: [&str; 4] = ["Function", "Source", "Sink", "FunctionMesh"];

/// Declares a part of a resource. A field written `name: T` becomes `name: Option<T>`.
macro_rules! crd_struct {
    ($( $(#[$meta:meta])* pub struct $name:ident { $( $(#[$field_meta:meta])* $field:ident : $ty:ty ),* $(,)? } )*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub struct $name { $( $(#[$field_meta])* pub $field: Option<$ty>, )* }
    )*};
}

type Texts = BTreeMap<String, String>;

/// Declares a spec: the fields that Function, Source and Sink share, and its own.
macro_rules! spec_struct {
    ($(#[$meta:meta])* pub struct $name:ident { $( $(#[$field_meta:meta])* $field:ident : $ty:ty ),* $(,)? }) => {
        crd_struct! {
            $(#[$meta])*
            pub struct $name {
                name: String,
                tenant: String,
                namespace: String,
                cluster_name: String,
                class_name: String,
                replicas: i32,
                min_replicas: i32,
                max_replicas: i32,
                show_precise_parallelism: bool,
                image: String,
                image_pull_policy: String,
                downloader_image: String,
                cleanup_image: String,
                image_has_pulsarctl: bool,
                image_has_get: bool,
                log_topic: String,
                log_topic_agent: LogTopicAgent,
                filebeat_image: String,
                resources: ResourceRequirements,
                secrets_map: BTreeMap<String, SecretRef>,
                volume_mounts: Vec<Value>,
                runtime_flags: String,
                processing_guarantee: ProcessGuarantee,
                forward_source_message_property: bool,
                pod: PodPolicy,
                pulsar: PulsarMessaging,
                pulsar_package_service: PulsarMessaging,
                java: JavaRuntime,
                python: PythonRuntime,
                golang: GoRuntime,
                generic_runtime: GenericRuntime,
                stateful_config: Stateful,
                $( $(#[$field_meta])* $field: $ty, )*
            }
        }
    };
}

spec_struct! {
    /// `spec` of a Function.
    pub struct FunctionSpec {
        input: InputConf,
        output: OutputConf,
        func_config: Map<String, Value>,
        source_config: FunctionSource,
        sink_config: FunctionSink,
        timeout: i64,
        auto_ack: bool,
        max_message_retry: i32,
        retain_ordering: bool,
        retain_key_ordering: bool,
        dead_letter_topic: String,
        max_pending_async_requests: i32,
        subscription_name: String,
        cleanup_subscription: bool,
        subscription_position: SubscribePosition,
        skip_to_latest: bool,
        window_config: WindowConfig,
        volume_claim_templates: Vec<Value>,
        persistent_volume_claim_retention_policy: Value,
    }
}

spec_struct! {
    /// `spec` of a Source.
    pub struct SourceSpec {
        source_type: String,
        output: OutputConf,
        source_config: Map<String, Value>,
        batch_source_config: BatchSource,
    }
}

spec_struct! {
    /// `spec` of a Sink.
    pub struct SinkSpec {
        sink_type: String,
        input: InputConf,
        sink_config: Map<String, Value>,
        timeout: i64,
        negative_ack_redelivery_delay_ms: i64,
        auto_ack: bool,
        max_message_retry: i32,
        retain_ordering: bool,
        retain_key_ordering: bool,
        dead_letter_topic: String,
        subscription_name: String,
        cleanup_subscription: bool,
        subscription_position: SubscribePosition,
    }
}

crd_struct! {
    /// `spec` of a FunctionMesh.
    pub struct MeshSpec {
        sources: Vec<SourceSpec>,
        sinks: Vec<SinkSpec>,
        functions: Vec<FunctionSpec>,
    }

    /// A whole resource; `spec` is read by kind.
    pub struct Resource {
        api_version: String,
        kind: String,
        metadata: Metadata,
        spec: Value,
        status: Value,
    }

    /// What Kubernetes keeps of every object.
    pub struct Metadata {
        name: String,
        namespace: String,
        labels: Texts,
        annotations: Texts,
        generate_name: String,
        finalizers: Vec<String>,
        owner_references: Vec<Value>,
        uid: String,
        resource_version: String,
        generation: i64,
        creation_timestamp: String,
        deletion_timestamp: String,
        deletion_grace_period_seconds: i64,
        managed_fields: Vec<Value>,
        self_link: String,
    }

    /// Where a function or a sink reads.
    pub struct InputConf {
        type_class_name: String,
        topics: Vec<String>,
        topic_pattern: String,
        custom_serde_sources: Texts,
        custom_schema_sources: Texts,
        source_specs: BTreeMap<String, ConsumerSpec>,
    }

    /// How one topic is read.
    pub struct ConsumerSpec {
        schema_type: String,
        #[serde(alias = "serdeClassName")]
        serde_classname: String,
        is_regex_pattern: bool,
        schema_properties: Texts,
        consumer_properties: Texts,
        receiver_queue_size: i32,
        crypto_config: CrdCryptoConfig,
    }

    /// Where a function or a source writes.
    pub struct OutputConf {
        type_class_name: String,
        topic: String,
        sink_serde_class_name: String,
        sink_schema_type: String,
        producer_conf: ProducerConf,
        custom_schema_sinks: Texts,
    }

    /// How it writes.
    pub struct ProducerConf {
        max_pending_messages: i32,
        max_pending_messages_across_partitions: i32,
        use_thread_local_producers: bool,
        crypto_config: CrdCryptoConfig,
        batch_builder: BatchBuilder,
        compression_type: CompressionType,
    }

    /// Pulsar's `CryptoConfig` with the keys' Secrets.
    pub struct CrdCryptoConfig {
        crypto_key_reader_class_name: String,
        crypto_key_reader_config: Map<String, Value>,
        encryption_keys: Vec<String>,
        producer_crypto_failure_action: String,
        consumer_crypto_failure_action: String,
        crypto_secrets: Vec<Value>,
    }

    /// A connector in front of a function, in the same pod.
    pub struct FunctionSource {
        source_type: String,
        batch_source_config: BatchSource,
        class_name: String,
        type_class_name: String,
        configs: Map<String, Value>,
    }

    /// A connector behind a function, in the same pod.
    pub struct FunctionSink {
        sink_type: String,
        class_name: String,
        type_class_name: String,
        configs: Map<String, Value>,
    }

    /// What starts a batch source.
    pub struct BatchSource {
        discovery_triggerer_class_name: String,
        discovery_triggerer_config: Map<String, Value>,
    }

    /// A key of a Kubernetes Secret.
    pub struct SecretRef {
        path: String,
        key: String,
    }

    /// CPU and memory as Kubernetes writes them.
    pub struct ResourceRequirements {
        limits: BTreeMap<String, Value>,
        requests: BTreeMap<String, Value>,
        claims: Vec<Value>,
    }

    /// Java code.
    pub struct JavaRuntime {
        jar: String,
        jar_location: String,
        extra_dependencies_dir: String,
        log: Value,
        java_opts: Vec<String>,
        instance_path: String,
        entry_class: String,
    }

    /// Python code.
    pub struct PythonRuntime {
        py: String,
        py_location: String,
        log: Value,
    }

    /// Go code.
    pub struct GoRuntime {
        go: String,
        go_location: String,
        log: Value,
    }

    /// Code of any other language.
    pub struct GenericRuntime {
        function_file: String,
        language: Language,
        function_file_location: String,
    }

    /// Where Pulsar keeps state; ours is built in.
    pub struct Stateful {
        pulsar: Value,
    }

    /// How to reach Pulsar from a pod.
    pub struct PulsarMessaging {
        pulsar_config: String,
        auth_secret: String,
        tls_secret: String,
        tls_config: Value,
        auth_config: Value,
        cleanup_auth_config: Value,
    }

    /// What the pod looks like.
    pub struct PodPolicy {
        labels: Texts,
        node_selector: Texts,
        affinity: Value,
        tolerations: Vec<Value>,
        annotations: Texts,
        security_context: Value,
        termination_grace_period_seconds: i64,
        volumes: Vec<Value>,
        image_pull_secrets: Vec<Value>,
        init_containers: Vec<Value>,
        sidecars: Vec<Value>,
        service_account_name: String,
        builtin_autoscaler: Vec<BuiltinAutoscaler>,
        auto_scaling_metrics: Vec<Value>,
        auto_scaling_behavior: Value,
        vpa: Value,
        env: Vec<Value>,
        liveness: Value,
        startup_probe: Value,
        disable_default_affinity: bool,
    }
}

/// The guarantee, in lower case as the resources have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessGuarantee {
    AtleastOnce,
    AtmostOnce,
    EffectivelyOnce,
    Manual,
}

/// Where a subscription begins, in lower case as the resources have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SubscribePosition {
    Latest,
    Earliest,
}

/// Who ships logs to the log topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogTopicAgent {
    Runtime,
    Sidecar,
}

/// The language of a generic runtime. `bash` is ours; the operator has images for the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    Bash,
    Executable,
    Python,
    Nodejs,
    Wasm,
}

/// The scaling rules that have a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum BuiltinAutoscaler {
    AverageUtilizationCPUPercent80,
    AverageUtilizationCPUPercent50,
    AverageUtilizationCPUPercent20,
    AverageUtilizationMemoryPercent80,
    AverageUtilizationMemoryPercent50,
    AverageUtilizationMemoryPercent20,
}

impl CrdCryptoConfig {
    /// As Pulsar has it; `None` when an action is not one of Pulsar's.
    pub fn to_model(&self) -> Option<CryptoConfig> {
        let action = |text: &Option<String>| match text {
            Some(text) => Value::String(text.to_uppercase()),
            None => Value::Null,
        };
        Some(CryptoConfig {
            crypto_key_reader_class_name: self.crypto_key_reader_class_name.clone(),
            crypto_key_reader_config: self.crypto_key_reader_config.clone(),
            encryption_keys: self.encryption_keys.clone(),
            producer_crypto_failure_action: serde_json::from_value(action(
                &self.producer_crypto_failure_action,
            ))
            .ok()?,
            consumer_crypto_failure_action: serde_json::from_value(action(
                &self.consumer_crypto_failure_action,
            ))
            .ok()?,
        })
    }
}
