//! `SourceConfig` and `SinkConfig`: connectors in front of and behind topics, in Pulsar's fields.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::config_struct::config_struct;
use crate::function::{ProcessingGuarantees, Resources, SubscriptionPosition};
use crate::io_config::{BatchBuilder, ConsumerConfig, ProducerConfig};
use crate::secret::Secrets;

config_struct! {
    /// A source: brings events from elsewhere to a topic.
    pub struct SourceConfig {
        /// Owner tenant; `public` when absent.
        tenant: String,
        /// Owner namespace; `default` when absent.
        namespace: String,
        /// Name.
        name: String,
        /// The connector's class.
        class_name: String,
        /// Where the events go.
        topic_name: String,
        /// How they are produced.
        producer_config: ProducerConfig,
        /// SerDe class; excludes `schemaType`.
        serde_class_name: String,
        /// Built-in schema name or class.
        schema_type: String,
        /// The connector's own settings.
        configs: Map<String, Value>,
        /// Secrets by name.
        secrets: Secrets,
        /// How many instances; 1 when absent.
        parallelism: i32,
        /// What holds when something crashes.
        processing_guarantees: ProcessingGuarantees,
        /// What an instance may use.
        resources: Resources,
        /// A built-in connector's name.
        source_type: String,
        /// A package: a path or a URL.
        archive: String,
        /// Extra arguments of the interpreter.
        runtime_flags: String,
        /// Settings of the runtime, as JSON text.
        custom_runtime_options: String,
        /// For sources that discover tasks and then read them.
        batch_source_config: BatchSourceConfig,
        /// How batches are built.
        batch_builder: BatchBuilder,
        /// Where the connector's logs go.
        log_topic: String,
        /// Geminga: the mesh that it belongs to.
        mesh: String,
    }
}

config_struct! {
    /// What starts the discovery of a batch source.
    #[derive(Eq)]
    pub struct BatchSourceConfig {
        /// The class that decides when.
        discovery_triggerer_class_name: String,
        /// Its settings.
        discovery_triggerer_config: Map<String, Value>,
    }
}

config_struct! {
    /// A sink: takes events from topics to elsewhere.
    pub struct SinkConfig {
        /// Owner tenant; `public` when absent.
        tenant: String,
        /// Owner namespace; `default` when absent.
        namespace: String,
        /// Name.
        name: String,
        /// The connector's class.
        class_name: String,
        /// Subscription; `tenant/namespace/name` when absent.
        source_subscription_name: String,
        /// Where a new subscription begins; `Latest` when absent.
        source_subscription_position: SubscriptionPosition,
        /// Topics consumed with the default schema.
        inputs: Vec<String>,
        /// Topic to SerDe class.
        topic_to_serde_class_name: BTreeMap<String, String>,
        /// All topics of one namespace whose name matches.
        topics_pattern: String,
        /// Topic to schema.
        topic_to_schema_type: BTreeMap<String, String>,
        /// Topic to schema properties.
        topic_to_schema_properties: BTreeMap<String, String>,
        /// The general form of an input.
        input_specs: BTreeMap<String, ConsumerConfig>,
        /// How often a failed event is delivered again; absent or negative means without end.
        max_message_retries: i32,
        /// Where an event goes that failed too often.
        dead_letter_topic: String,
        /// The connector's own settings.
        configs: Map<String, Value>,
        /// Secrets by name.
        secrets: Secrets,
        /// How many instances; 1 when absent.
        parallelism: i32,
        /// What holds when something crashes.
        processing_guarantees: ProcessingGuarantees,
        /// In order per partition.
        retain_ordering: bool,
        /// In order per key.
        retain_key_ordering: bool,
        /// What an instance may use.
        resources: Resources,
        /// Deprecated: false means that the sink acknowledges for itself.
        auto_ack: bool,
        /// Time limit of one event.
        timeout_ms: i64,
        /// Delay before a failed event is delivered again.
        negative_ack_redelivery_delay_ms: i64,
        /// A built-in connector's name.
        sink_type: String,
        /// A package: a path or a URL.
        archive: String,
        /// Whether deleting the sink deletes its subscription; true when absent.
        cleanup_subscription: bool,
        /// Extra arguments of the interpreter.
        runtime_flags: String,
        /// Settings of the runtime, as JSON text.
        custom_runtime_options: String,
        /// A function that runs before the write.
        transform_function: String,
        /// Its class.
        transform_function_class_name: String,
        /// Its settings, as JSON text.
        transform_function_config: String,
        /// Where the connector's logs go.
        log_topic: String,
        /// Geminga: the mesh that it belongs to.
        mesh: String,
    }
}

impl SourceConfig {
    /// Owner tenant.
    pub fn tenant(&self) -> &str {
        self.tenant.as_deref().unwrap_or("public")
    }

    /// Owner namespace.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }

    /// `tenant/namespace/name`, once there is a name.
    pub fn fqfn(&self) -> Option<String> {
        Some(format!(
            "{}/{}/{}",
            self.tenant(),
            self.namespace(),
            self.name.as_deref()?
        ))
    }

    /// The built-in connector: `sourceType`, or `archive: builtin://name`.
    pub fn builtin(&self) -> Option<&str> {
        builtin(self.source_type.as_deref(), self.archive.as_deref())
    }

    /// Number of instances.
    pub fn parallelism(&self) -> u32 {
        self.parallelism
            .map_or(1, |n| u32::try_from(n).unwrap_or(0))
    }
}

impl SinkConfig {
    /// Owner tenant.
    pub fn tenant(&self) -> &str {
        self.tenant.as_deref().unwrap_or("public")
    }

    /// Owner namespace.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }

    /// `tenant/namespace/name`, once there is a name.
    pub fn fqfn(&self) -> Option<String> {
        Some(format!(
            "{}/{}/{}",
            self.tenant(),
            self.namespace(),
            self.name.as_deref()?
        ))
    }

    /// The built-in connector: `sinkType`, or `archive: builtin://name`.
    pub fn builtin(&self) -> Option<&str> {
        builtin(self.sink_type.as_deref(), self.archive.as_deref())
    }

    /// The subscription's name.
    pub fn subscription(&self) -> Option<String> {
        self.source_subscription_name
            .clone()
            .or_else(|| self.fqfn())
    }

    /// Number of instances.
    pub fn parallelism(&self) -> u32 {
        self.parallelism
            .map_or(1, |n| u32::try_from(n).unwrap_or(0))
    }

    /// Retries after the first delivery; `None` is without end.
    pub fn retries(&self) -> Option<u32> {
        self.max_message_retries.and_then(|n| u32::try_from(n).ok())
    }

    /// The guarantee; the deprecated `autoAck: false` means `Manual`.
    pub fn guarantees(&self) -> ProcessingGuarantees {
        match self.processing_guarantees {
            Some(given) => given,
            None if self.auto_ack == Some(false) => ProcessingGuarantees::Manual,
            None => ProcessingGuarantees::default(),
        }
    }

    /// Whether deleting the sink deletes its subscription.
    pub fn cleans_up_subscription(&self) -> bool {
        self.cleanup_subscription.unwrap_or(true)
    }

    /// Every input with how it is consumed: the five forms folded into the general one.
    pub fn all_inputs(&self) -> BTreeMap<String, ConsumerConfig> {
        let mut all = self.input_specs.clone().unwrap_or_default();
        for topic in self.inputs.iter().flatten() {
            all.entry(topic.clone()).or_default();
        }
        for (topic, serde_class) in self.topic_to_serde_class_name.iter().flatten() {
            let spec = all.entry(topic.clone()).or_default();
            spec.serde_class_name = Some(serde_class.clone());
        }
        for (topic, schema) in self.topic_to_schema_type.iter().flatten() {
            all.entry(topic.clone()).or_default().schema_type = Some(schema.clone());
        }
        if let Some(pattern) = &self.topics_pattern {
            all.entry(pattern.clone()).or_default().regex_pattern = Some(true);
        }
        all
    }
}

fn builtin<'a>(named: Option<&'a str>, archive: Option<&'a str>) -> Option<&'a str> {
    named.or_else(|| archive?.strip_prefix("builtin://"))
}
