//! The flags of `functions create`, `update` and `localrun`, as `pulsar-admin` spells them.
//!
//! The struct is also what serde makes the overlay of: a field's name is its name in
//! `FunctionConfig`, so a flag cannot be forgotten on the way.

use std::path::PathBuf;

use geminga_admin::client::Component;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::cli::component::{
    GUARANTEES, ResourceFlags, capitals, given, json_flag, lay_name, nest, overlay, position_flag,
    secrets_flag,
};
use crate::failure::Outcome;

/// What a function is.
#[derive(Debug, Clone, clap::Args, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FunctionFlags {
    /// A YAML or JSON file with a FunctionConfig; flags win over it
    #[arg(long, alias = "functionConfigFile", value_name = "FILE")]
    #[serde(skip)]
    function_config_file: Option<PathBuf>,

    /// The name, or tenant/namespace/name; --name means the same
    #[arg(value_name = "NAME", conflicts_with_all = ["name", "fqfn"])]
    #[serde(skip)]
    target: Option<String>,
    /// The tenant; public when left out
    #[arg(long, help_heading = "Name")]
    tenant: Option<String>,
    /// The namespace; default when left out
    #[arg(long, help_heading = "Name")]
    namespace: Option<String>,
    /// The name; from the class or the code file when left out
    #[arg(long, help_heading = "Name")]
    name: Option<String>,
    /// tenant/namespace/name in one
    #[arg(long, help_heading = "Name", conflicts_with_all = ["tenant", "namespace", "name"])]
    fqfn: Option<String>,

    /// A Bash script
    #[arg(long, help_heading = "Code", value_name = "FILE")]
    sh: Option<String>,
    /// Any executable file
    #[arg(long, help_heading = "Code", value_name = "FILE")]
    exec: Option<String>,
    /// A Python file, wheel or zip, or a URL
    #[arg(long, help_heading = "Code", value_name = "FILE")]
    py: Option<String>,
    /// A Go executable, or a URL
    #[arg(long, help_heading = "Code", value_name = "FILE")]
    go: Option<String>,
    /// A jar, or a URL
    #[arg(long, help_heading = "Code", value_name = "FILE")]
    jar: Option<String>,
    /// A WebAssembly module
    #[arg(long, help_heading = "Code", value_name = "FILE")]
    wasm: Option<String>,
    /// A built-in function's name: `geminga functions available-functions` lists them
    #[arg(short = 't', long, help_heading = "Code")]
    function_type: Option<String>,
    /// The class: Java, or Python as module.Class
    #[arg(long = "classname", alias = "className", help_heading = "Code")]
    class_name: Option<String>,
    /// Extra arguments of the interpreter
    #[arg(long, help_heading = "Code", allow_hyphen_values = true)]
    runtime_flags: Option<String>,
    /// Settings of the runtime, as JSON
    #[arg(long, help_heading = "Code", value_name = "JSON")]
    custom_runtime_options: Option<String>,

    /// Input topics, comma separated
    #[arg(short, long, help_heading = "Input", value_delimiter = ',')]
    inputs: Option<Vec<String>>,
    /// All topics of a namespace whose name matches, beside --inputs or without
    #[arg(long, alias = "topicsPattern", help_heading = "Input")]
    topics_pattern: Option<String>,
    /// Topic to ConsumerConfig
    #[arg(long, help_heading = "Input", value_name = "JSON", value_parser = json_flag)]
    input_specs: Option<Value>,
    /// Topic to SerDe class
    #[arg(long, alias = "customSerdeInputs", help_heading = "Input", value_name = "JSON",
          value_parser = json_flag)]
    custom_serde_inputs: Option<Value>,
    /// Topic to the JSON text of a ConsumerConfig
    #[arg(long, help_heading = "Input", value_name = "JSON", value_parser = json_flag)]
    custom_schema_inputs: Option<Value>,
    /// Java type of the input
    #[arg(long, help_heading = "Input")]
    input_type_class_name: Option<String>,
    /// The subscription's name
    #[arg(long = "subs-name", alias = "subsName", help_heading = "Input")]
    sub_name: Option<String>,
    /// Where a new subscription begins: Latest or Earliest
    #[arg(long = "subs-position", help_heading = "Input", value_parser = position_flag)]
    subscription_position: Option<String>,
    /// Go to the end of the topic at every start
    #[arg(long, help_heading = "Input", num_args = 0..=1, default_missing_value = "true")]
    skip_to_latest: Option<bool>,
    /// Delete the subscription with the function
    #[arg(long, help_heading = "Input", num_args = 0..=1, default_missing_value = "true")]
    cleanup_subscription: Option<bool>,

    /// The output topic; `-o` and `--output` mean the same here
    #[arg(long = "output-topic", help_heading = "Output", value_name = "TOPIC")]
    #[serde(rename = "output")]
    output_topic: Option<String>,
    /// Schema of the output; `-st` means the same
    #[arg(long = "schema-type", help_heading = "Output")]
    output_schema_type: Option<String>,
    /// SerDe class of the output
    #[arg(
        long = "output-serde-classname",
        alias = "outputSerdeClassName",
        help_heading = "Output"
    )]
    output_serde_class_name: Option<String>,
    /// Java type of the output
    #[arg(long, help_heading = "Output")]
    output_type_class_name: Option<String>,
    /// Topic to the JSON text of a ConsumerConfig
    #[arg(long, help_heading = "Output", value_name = "JSON", value_parser = json_flag)]
    custom_schema_outputs: Option<Value>,
    /// How outputs are produced
    #[arg(long, help_heading = "Output", value_name = "JSON", value_parser = json_flag)]
    producer_config: Option<Value>,
    /// DEFAULT or KEY_BASED
    #[arg(long, help_heading = "Output", value_parser = capitals(&["DEFAULT", "KEY_BASED"]))]
    batch_builder: Option<String>,
    /// Copy the input's properties to the output
    #[arg(long, help_heading = "Output", num_args = 0..=1, default_missing_value = "true")]
    forward_source_message_property: Option<bool>,
    /// Where the function's logs go
    #[arg(long, alias = "logTopic", help_heading = "Output")]
    log_topic: Option<String>,

    /// ATLEAST_ONCE, ATMOST_ONCE, EFFECTIVELY_ONCE or MANUAL
    #[arg(long, alias = "processingGuarantees", help_heading = "Guarantees",
          value_parser = capitals(GUARANTEES))]
    processing_guarantees: Option<String>,
    /// In order per partition
    #[arg(long, alias = "retainOrdering", help_heading = "Guarantees", num_args = 0..=1,
          default_missing_value = "true")]
    retain_ordering: Option<bool>,
    /// In order per key
    #[arg(long, help_heading = "Guarantees", num_args = 0..=1, default_missing_value = "true")]
    retain_key_ordering: Option<bool>,
    /// Whether Geminga acknowledges; deprecated
    #[arg(long, alias = "autoAck", help_heading = "Guarantees", num_args = 0..=1,
          default_missing_value = "true")]
    auto_ack: Option<bool>,
    /// How often a failed message is tried again; without end when left out
    #[arg(long, help_heading = "Guarantees", allow_hyphen_values = true)]
    max_message_retries: Option<i32>,
    /// Where a message goes that failed too often
    #[arg(long, help_heading = "Guarantees")]
    dead_letter_topic: Option<String>,
    /// Time limit of one message
    #[arg(long, alias = "timeoutMs", help_heading = "Guarantees")]
    timeout_ms: Option<i64>,
    /// Wait before the first retry; it doubles from there
    #[arg(long, help_heading = "Guarantees")]
    retry_backoff_ms: Option<i64>,

    /// How many instances
    #[arg(long, help_heading = "Running")]
    parallelism: Option<i32>,
    /// Stop an instance after so long without a message
    #[arg(long, help_heading = "Running")]
    idle_timeout_ms: Option<i64>,
    /// The function's own settings
    #[arg(long, alias = "userConfig", help_heading = "Running", value_name = "JSON",
          value_parser = json_flag)]
    user_config: Option<Value>,
    /// Secrets by name: each itself, or {"env": NAME}, {"file": PATH}, {"command": [PROGRAM, ..]}
    #[arg(long, help_heading = "Running", value_name = "JSON", value_parser = secrets_flag)]
    secrets: Option<Value>,
    #[command(flatten)]
    #[serde(skip)]
    resources: ResourceFlags,
    #[command(flatten)]
    #[serde(skip)]
    window: WindowFlags,
}

/// What makes it a window function.
#[derive(Debug, Clone, clap::Args, Serialize)]
#[serde(rename_all = "camelCase")]
struct WindowFlags {
    /// Window length in messages
    #[arg(long, alias = "windowLengthCount", help_heading = "Windows")]
    window_length_count: Option<i32>,
    /// Window length in milliseconds
    #[arg(long, alias = "windowLengthDurationMs", help_heading = "Windows")]
    window_length_duration_ms: Option<i64>,
    /// How far the window moves, in messages
    #[arg(long, alias = "slidingIntervalCount", help_heading = "Windows")]
    sliding_interval_count: Option<i32>,
    /// How far the window moves, in milliseconds
    #[arg(long, alias = "slidingIntervalDurationMs", help_heading = "Windows")]
    sliding_interval_duration_ms: Option<i64>,
}

impl FunctionFlags {
    /// The file with the flags laid over it, its spelling checked.
    pub(crate) fn config(&self) -> Outcome<Map<String, Value>> {
        let kind = Component::Function;
        let path = self.function_config_file.as_deref();
        let file = path
            .map(|path| overlay(kind, Some(path), Map::new()))
            .transpose()?;
        let mut flags = given(self);
        if let Some(target) = &self.target {
            lay_name(kind, target, &mut flags)?;
        }
        nest(
            &mut flags,
            file.as_ref(),
            "resources",
            given(&self.resources),
        );
        nest(
            &mut flags,
            file.as_ref(),
            "windowConfig",
            given(&self.window),
        );
        let mut config = overlay(kind, path, flags.clone())?;
        // A code flag replaces whatever code the file names.
        let codes = ["jar", "py", "go", "sh", "exec", "wasm", "functionType"];
        if codes.iter().any(|code| flags.contains_key(*code)) {
            config.retain(|field, _| !codes.contains(&field.as_str()) || flags.contains_key(field));
        }
        Ok(config)
    }
}

/// Puts the spellings of `pulsar-admin` that clap cannot express into ours: behind
/// `functions create|update|localrun`, `-o` and `--output` name the output topic, and `-st` is
/// `--schema-type`.
pub(crate) fn respell(args: Vec<String>) -> Vec<String> {
    let Some(group) = args.iter().position(|arg| {
        [
            "functions",
            "function",
            "sources",
            "sinks",
            "source",
            "sink",
        ]
        .contains(&arg.as_str())
    }) else {
        return args;
    };
    let takes_code = |arg: &String| ["create", "update", "localrun"].contains(&arg.as_str());
    if !args.get(group + 1).is_some_and(takes_code) {
        return args;
    }
    let is_function = args[group].starts_with("function");
    args.into_iter()
        .enumerate()
        .map(|(at, arg)| {
            if at <= group + 1 {
                return arg;
            }
            let rest = |prefix: &str| arg.strip_prefix(prefix).map(str::to_owned);
            if arg == "-st" {
                return "--schema-type".to_owned();
            }
            if let Some(value) = rest("-st=") {
                return format!("--schema-type={value}");
            }
            if !is_function {
                return arg;
            }
            if arg == "--output" || arg == "-o" {
                return "--output-topic".to_owned();
            }
            match rest("--output=").or_else(|| rest("-o=")) {
                Some(value) => format!("--output-topic={value}"),
                None => arg,
            }
        })
        .collect()
}
