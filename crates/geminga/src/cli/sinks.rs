//! `geminga sinks`: make, look at, change and remove sinks.

use std::path::{Path, PathBuf};

use geminga_admin::client::Component;
use serde::Serialize;
use serde_json::Value;

use super::Global;
use super::component::{Action, json_flag, position_flag};
use super::connector::{self, CommonFlags, Connector};
use crate::failure::Outcome;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  geminga sinks list")]
pub(crate) struct SinksArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Create a sink from flags, a file, or both
    #[command(after_help = "Example:\n  \
            geminga sinks create --name archive --sink-type file --inputs alerts \
            --sink-config '{\"path\":\"alerts.ndjson\"}'")]
    Create(Box<SinkFlags>),
    /// Change a sink: what is not given stays
    #[command(after_help = "Example:\n  geminga sinks update --name archive --parallelism 2")]
    Update {
        #[command(flatten)]
        flags: Box<SinkFlags>,
        /// Have stored credentials read anew; Geminga stores none, so that an update may consist of this alone
        #[arg(long)]
        update_auth_data: bool,
    },
    #[command(flatten)]
    Action(Action),
}

/// What a sink is.
#[derive(Debug, Clone, clap::Args, Serialize)]
#[serde(rename_all = "camelCase")]
struct SinkFlags {
    /// A YAML or JSON file with a SinkConfig; flags win over it
    #[arg(long, alias = "sinkConfigFile", value_name = "FILE")]
    #[serde(skip)]
    sink_config_file: Option<PathBuf>,
    /// The tenant; public when left out
    #[arg(long)]
    tenant: Option<String>,
    /// The namespace; default when left out
    #[arg(long)]
    namespace: Option<String>,
    /// The name
    #[arg(long)]
    name: Option<String>,
    /// A built-in sink's name
    #[arg(short = 't', long)]
    sink_type: Option<String>,
    /// A package: a path or a URL
    #[arg(short, long)]
    archive: Option<String>,
    /// The connector's class
    #[arg(long = "classname", alias = "className")]
    class_name: Option<String>,
    /// Input topics, comma separated
    #[arg(short, long, value_delimiter = ',')]
    inputs: Option<Vec<String>>,
    /// All topics of a namespace whose name matches, beside --inputs or without
    #[arg(long, alias = "topicsPattern")]
    topics_pattern: Option<String>,
    /// Topic to ConsumerConfig
    #[arg(long, value_name = "JSON", value_parser = json_flag)]
    input_specs: Option<Value>,
    /// Topic to SerDe class
    #[arg(long = "custom-serde-inputs", alias = "customSerdeInputs", value_name = "JSON",
          value_parser = json_flag)]
    topic_to_serde_class_name: Option<Value>,
    /// Topic to schema
    #[arg(long = "custom-schema-inputs", value_name = "JSON", value_parser = json_flag)]
    topic_to_schema_type: Option<Value>,
    /// The subscription's name
    #[arg(long = "subs-name", alias = "subsName")]
    source_subscription_name: Option<String>,
    /// Where a new subscription begins: Latest or Earliest
    #[arg(long = "subs-position", value_parser = position_flag)]
    source_subscription_position: Option<String>,
    /// Delete the subscription with the sink
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    cleanup_subscription: Option<bool>,
    /// The connector's own settings
    #[arg(long = "sink-config", alias = "sinkConfig", value_name = "JSON", value_parser = json_flag)]
    configs: Option<Value>,
    /// In order per partition
    #[arg(long, alias = "retainOrdering", num_args = 0..=1, default_missing_value = "true")]
    retain_ordering: Option<bool>,
    /// In order per key
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    retain_key_ordering: Option<bool>,
    /// Whether Geminga acknowledges; deprecated
    #[arg(long, alias = "autoAck", num_args = 0..=1, default_missing_value = "true")]
    auto_ack: Option<bool>,
    /// Time limit of one event
    #[arg(long, alias = "timeoutMs")]
    timeout_ms: Option<i64>,
    /// Delay before a failed event is delivered again
    #[arg(long)]
    negative_ack_redelivery_delay_ms: Option<i64>,
    /// How often a failed event is delivered again
    #[arg(long = "max-redeliver-count", allow_hyphen_values = true)]
    max_message_retries: Option<i32>,
    /// Where an event goes that failed too often
    #[arg(long)]
    dead_letter_topic: Option<String>,
    /// A function that runs before the write
    #[arg(long)]
    transform_function: Option<String>,
    /// Its class
    #[arg(long = "transform-function-classname")]
    transform_function_class_name: Option<String>,
    /// Its settings, as JSON text
    #[arg(long)]
    transform_function_config: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    common: CommonFlags,
}

impl Connector for SinkFlags {
    const KIND: Component = Component::Sink;
    const TYPE: (&str, &str) = ("sinkType", "--sink-type");

    fn file(&self) -> Option<&Path> {
        self.sink_config_file.as_deref()
    }

    fn common(&self) -> &CommonFlags {
        &self.common
    }
}

pub(crate) fn run(args: SinksArgs, global: &Global) -> Outcome {
    match args.command {
        Command::Create(flags) => connector::create(*flags, global),
        Command::Update {
            flags,
            update_auth_data,
        } => connector::update(*flags, update_auth_data, global),
        Command::Action(action) => connector::act(Component::Sink, action, global),
    }
}
