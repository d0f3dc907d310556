//! `FunctionConfig`: what a function is, in Pulsar's 45 fields and seven of ours.
//!
//! A value here is what somebody wrote: nothing is filled in and nothing is checked. The methods
//! say what an absent field means; `validate` says what is wrong.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config_struct::config_struct;
use crate::io_config::{BatchBuilder, ConsumerConfig, ProducerConfig};
use crate::secret::Secrets;

config_struct! {
    /// A function, as `pulsar-admin functions create`, the REST API and YAML files spell it.
    pub struct FunctionConfig {
        /// Owner tenant; `public` when absent.
        tenant: String,
        /// Owner namespace; `default` when absent.
        namespace: String,
        /// Name; when absent the last segment of `className`, the code file's stem, or `functionType`.
        name: String,
        /// `tenant/namespace/name` in one.
        fqfn: String,
        /// Java class, Python `module.Class`, or a bare Python module.
        class_name: String,
        /// Topics consumed with the default schema.
        inputs: Vec<String>,
        /// All topics of one namespace whose name matches.
        topics_pattern: String,
        /// Topic to SerDe class.
        custom_serde_inputs: BTreeMap<String, String>,
        /// Topic to the JSON text of a `ConsumerConfig`.
        custom_schema_inputs: BTreeMap<String, String>,
        /// Topic to the JSON text of a `ConsumerConfig`; only the entry of `output` counts.
        custom_schema_outputs: BTreeMap<String, String>,
        /// The general form of an input: topic to `ConsumerConfig`.
        input_specs: BTreeMap<String, ConsumerConfig>,
        /// Java type of the input.
        input_type_class_name: String,
        /// Java type of the output.
        output_type_class_name: String,
        /// Output topic; without one the result is discarded.
        output: String,
        /// How outputs are produced.
        producer_config: ProducerConfig,
        /// Built-in schema name or class of the output.
        output_schema_type: String,
        /// SerDe class of the output; excludes `outputSchemaType`.
        output_serde_class_name: String,
        /// Where the function's logs go.
        log_topic: String,
        /// What holds when something crashes.
        processing_guarantees: ProcessingGuarantees,
        /// In order per partition: a Failover subscription.
        retain_ordering: bool,
        /// In order per key: a Key_Shared subscription.
        retain_key_ordering: bool,
        /// How output batches are built.
        batch_builder: BatchBuilder,
        /// Whether properties of the input are copied to the output; true when absent.
        forward_source_message_property: bool,
        /// The function's own settings.
        user_config: Map<String, Value>,
        /// Secrets by name: each is the secret itself, or says where it is.
        secrets: Secrets,
        /// Language; inferred from the code field when absent.
        runtime: Runtime,
        /// Deprecated: false means that the function acknowledges for itself.
        auto_ack: bool,
        /// How often a failed message is delivered again; absent or negative means without end.
        max_message_retries: i32,
        /// Where a message goes that failed too often.
        dead_letter_topic: String,
        /// Subscription; `tenant/namespace/name` when absent.
        sub_name: String,
        /// Where a new subscription begins; `Latest` when absent.
        subscription_position: SubscriptionPosition,
        /// Go to the end of the topic at every start.
        skip_to_latest: bool,
        /// How many instances; 1 when absent.
        parallelism: i32,
        /// What an instance may use.
        resources: Resources,
        /// Makes it a window function.
        window_config: WindowConfig,
        /// Time limit of one message, and the delay before it is delivered again.
        timeout_ms: i64,
        /// Java code.
        jar: String,
        /// Python code: a `.py`, `.whl` or `.zip`.
        py: String,
        /// Go code: an executable or a source folder.
        go: String,
        /// A built-in function's name.
        function_type: String,
        /// Whether deleting the function deletes its subscription; true when absent.
        cleanup_subscription: bool,
        /// Extra arguments of the interpreter.
        runtime_flags: String,
        /// Settings of the runtime, as JSON text. What they are is the worker's to say.
        custom_runtime_options: String,
        /// How many asynchronous calls may be in flight; 1000 when absent.
        max_pending_async_requests: i32,
        /// Whether the context offers an admin client.
        expose_pulsar_admin_client_enabled: bool,
        /// Geminga: a Bash script.
        sh: String,
        /// Geminga: any executable file.
        exec: String,
        /// Geminga: a WebAssembly module or component.
        wasm: String,
        /// Geminga: wait before the first retry; it doubles from there.
        retry_backoff_ms: i64,
        /// Geminga: the mesh that it belongs to.
        mesh: String,
        /// Geminga: what the code hashes to, so that changed code is a change.
        code_digest: String,
        /// Geminga: stop an instance after so long without a message; never when absent.
        idle_timeout_ms: i64,
    }
}

/// What holds for a message when something crashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ProcessingGuarantees {
    /// Acknowledged after the outputs are durable.
    #[default]
    AtleastOnce,
    /// Acknowledged before the call.
    AtmostOnce,
    /// Acknowledgement, outputs and state commit together.
    EffectivelyOnce,
    /// The function acknowledges.
    Manual,
}

/// The language of a function. `Java`, `Python` and `Go` are Pulsar's, the rest are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Runtime {
    /// A class in a jar.
    Java,
    /// A Python module or class.
    Python,
    /// A Go program.
    Go,
    /// A Bash script.
    Bash,
    /// Any executable.
    Exec,
    /// WebAssembly.
    Wasm,
}

impl Runtime {
    /// The field of [`FunctionConfig`] that holds this language's code.
    pub fn code_field(self) -> &'static str {
        match self {
            Runtime::Java => "jar",
            Runtime::Python => "py",
            Runtime::Go => "go",
            Runtime::Bash => "sh",
            Runtime::Exec => "exec",
            Runtime::Wasm => "wasm",
        }
    }

    /// The name that people see: `bash`, `python`.
    pub fn label(self) -> &'static str {
        match self {
            Runtime::Java => "java",
            Runtime::Python => "python",
            Runtime::Go => "go",
            Runtime::Bash => "bash",
            Runtime::Exec => "exec",
            Runtime::Wasm => "wasm",
        }
    }
}

/// Where a new subscription begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SubscriptionPosition {
    /// With what is published from now on.
    #[default]
    Latest,
    /// With the oldest message kept.
    Earliest,
}

config_struct! {
    /// What one instance may use.
    pub struct Resources {
        /// Cores; 1 when absent.
        cpu: f64,
        /// Bytes of memory; 1 GiB when absent.
        ram: i64,
        /// Bytes of disk; 10 GiB when absent.
        disk: i64,
    }
}

config_struct! {
    /// Makes a function see windows of messages.
    #[derive(Eq)]
    pub struct WindowConfig {
        /// Length in messages; excludes the duration.
        window_length_count: i32,
        /// Length in milliseconds.
        window_length_duration_ms: i64,
        /// Geminga: a window ends when so long nothing came.
        session_gap_ms: i64,
        /// How far the window moves; its own length when absent.
        sliding_interval_count: i32,
        /// The same in milliseconds.
        sliding_interval_duration_ms: i64,
        /// Where messages go that come too late.
        late_data_topic: String,
        /// Allowed lateness.
        max_lag_ms: i64,
        /// How often the watermark moves.
        watermark_emit_interval_ms: i64,
        /// Switches from processing time to event time.
        timestamp_extractor_class_name: String,
        /// The user's class, when the worker has put its own in front.
        actual_window_function_class_name: String,
        /// Guarantee of the window.
        processing_guarantees: ProcessingGuarantees,
    }
}

impl FunctionConfig {
    /// Owner tenant.
    pub fn tenant(&self) -> &str {
        self.fqfn_part(0)
            .or(self.tenant.as_deref())
            .unwrap_or("public")
    }

    /// Owner namespace.
    pub fn namespace(&self) -> &str {
        self.fqfn_part(1)
            .or(self.namespace.as_deref())
            .unwrap_or("default")
    }

    /// Name, inferred from the class or the code's file name when it was not given.
    pub fn name(&self) -> Option<&str> {
        let stem = |path: &'_ str| -> Option<usize> { path.rfind(['/', '\\']).map(|i| i + 1) };
        self.fqfn_part(2)
            .or(self.name.as_deref())
            .or_else(|| {
                self.class_name
                    .as_deref()
                    .and_then(|c| c.rsplit('.').next())
            })
            .or_else(|| {
                let path = self.code()?.1;
                let file = &path[stem(path).unwrap_or(0)..];
                Some(file.split_once('.').map_or(file, |(stem, _)| stem))
            })
            .or(self.function_type.as_deref())
            .filter(|name| !name.is_empty())
    }

    fn fqfn_part(&self, part: usize) -> Option<&str> {
        let mut parts = self.fqfn.as_deref()?.split('/');
        let found = parts.nth(part)?;
        (!found.is_empty()).then_some(found)
    }

    /// `tenant/namespace/name`, once there is a name.
    pub fn fqfn(&self) -> Option<String> {
        Some(format!(
            "{}/{}/{}",
            self.tenant(),
            self.namespace(),
            self.name()?
        ))
    }

    /// The language and where its code is, if a code field is set.
    pub fn code(&self) -> Option<(Runtime, &str)> {
        [
            (Runtime::Java, &self.jar),
            (Runtime::Python, &self.py),
            (Runtime::Go, &self.go),
            (Runtime::Bash, &self.sh),
            (Runtime::Exec, &self.exec),
            (Runtime::Wasm, &self.wasm),
        ]
        .into_iter()
        .find_map(|(runtime, path)| Some((runtime, path.as_deref()?)))
    }

    /// The language: as given, or as the code field says.
    pub fn runtime(&self) -> Option<Runtime> {
        self.runtime
            .or_else(|| self.code().map(|(runtime, _)| runtime))
    }

    /// The guarantee; the deprecated `autoAck: false` means `Manual`.
    pub fn guarantees(&self) -> ProcessingGuarantees {
        match self.processing_guarantees {
            Some(given) => given,
            None if self.auto_ack == Some(false) => ProcessingGuarantees::Manual,
            None => ProcessingGuarantees::default(),
        }
    }

    /// The subscription's name.
    pub fn subscription(&self) -> Option<String> {
        self.sub_name.clone().or_else(|| self.fqfn())
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

    /// Whether properties of the input are copied to the output.
    pub fn forwards_properties(&self) -> bool {
        self.forward_source_message_property.unwrap_or(true)
    }

    /// Whether deleting the function deletes its subscription.
    pub fn cleans_up_subscription(&self) -> bool {
        self.cleanup_subscription.unwrap_or(true)
    }

    /// Every input with how it is consumed: the five forms folded into the general one.
    /// Text inside `customSchemaInputs` that is not a `ConsumerConfig` is the error.
    pub fn all_inputs(&self) -> Result<BTreeMap<String, ConsumerConfig>, BadSchemaInput> {
        let mut all = self.input_specs.clone().unwrap_or_default();
        for topic in self.inputs.iter().flatten() {
            all.entry(topic.clone()).or_default();
        }
        for (topic, serde_class) in self.custom_serde_inputs.iter().flatten() {
            let spec = all.entry(topic.clone()).or_default();
            spec.serde_class_name = Some(serde_class.clone());
        }
        for (topic, text) in self.custom_schema_inputs.iter().flatten() {
            let spec = serde_json::from_str(text).map_err(|source| BadSchemaInput {
                topic: topic.clone(),
                reason: source.to_string(),
            })?;
            all.insert(topic.clone(), spec);
        }
        if let Some(pattern) = &self.topics_pattern {
            all.entry(pattern.clone()).or_default().regex_pattern = Some(true);
        }
        Ok(all)
    }
}

/// `customSchemaInputs` holds JSON text; this one was not a `ConsumerConfig`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`customSchemaInputs` of topic `{topic}` is not a ConsumerConfig: {reason}")]
pub struct BadSchemaInput {
    /// The topic.
    pub topic: String,
    /// What the JSON reader said.
    pub reason: String,
}

#[cfg(test)]
mod tests;
