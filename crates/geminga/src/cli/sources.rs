//! `geminga sources`: make, look at, change and remove sources.

use std::path::{Path, PathBuf};

use geminga_admin::client::Component;
use serde::Serialize;
use serde_json::Value;

use super::Global;
use super::component::{Action, capitals, json_flag};
use super::connector::{self, CommonFlags, Connector};
use crate::failure::Outcome;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  geminga sources list")]
pub(crate) struct SourcesArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Create a source from flags, a file, or both
    #[command(after_help = "Example:\n  \
            geminga sources create --name quakes --source-type file \
            --source-config '{\"path\":\"quakes.ndjson\"}' --destination-topic-name quakes")]
    Create(Box<SourceFlags>),
    /// Change a source: what is not given stays
    #[command(after_help = "Example:\n  geminga sources update --name quakes --parallelism 2")]
    Update {
        #[command(flatten)]
        flags: Box<SourceFlags>,
        /// Have stored credentials read anew; Geminga stores none, so that an update may consist of this alone
        #[arg(long)]
        update_auth_data: bool,
    },
    #[command(flatten)]
    Action(Action),
}

/// What a source is.
#[derive(Debug, Clone, clap::Args, Serialize)]
#[serde(rename_all = "camelCase")]
struct SourceFlags {
    /// A YAML or JSON file with a SourceConfig; flags win over it
    #[arg(long, alias = "sourceConfigFile", value_name = "FILE")]
    #[serde(skip)]
    source_config_file: Option<PathBuf>,
    /// The tenant; public when left out
    #[arg(long)]
    tenant: Option<String>,
    /// The namespace; default when left out
    #[arg(long)]
    namespace: Option<String>,
    /// The name
    #[arg(long)]
    name: Option<String>,
    /// A built-in source's name
    #[arg(short = 't', long)]
    source_type: Option<String>,
    /// A package: a path or a URL
    #[arg(short, long)]
    archive: Option<String>,
    /// The connector's class
    #[arg(long = "classname", alias = "className")]
    class_name: Option<String>,
    /// The topic that it writes to
    #[arg(long = "destination-topic-name", alias = "destinationTopicName")]
    topic_name: Option<String>,
    /// The connector's own settings
    #[arg(long = "source-config", alias = "sourceConfig", value_name = "JSON", value_parser = json_flag)]
    configs: Option<Value>,
    /// What starts the discovery of a batch source
    #[arg(long, value_name = "JSON", value_parser = json_flag)]
    batch_source_config: Option<Value>,
    /// How events are produced
    #[arg(long, value_name = "JSON", value_parser = json_flag)]
    producer_config: Option<Value>,
    /// DEFAULT or KEY_BASED
    #[arg(long, value_parser = capitals(&["DEFAULT", "KEY_BASED"]))]
    batch_builder: Option<String>,
    /// Schema of the events; `-st` means the same
    #[arg(long)]
    schema_type: Option<String>,
    /// SerDe class of the events
    #[arg(long = "deserialization-classname", alias = "deserializationClassName")]
    serde_class_name: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    common: CommonFlags,
}

impl Connector for SourceFlags {
    const KIND: Component = Component::Source;
    const TYPE: (&str, &str) = ("sourceType", "--source-type");

    fn file(&self) -> Option<&Path> {
        self.source_config_file.as_deref()
    }

    fn common(&self) -> &CommonFlags {
        &self.common
    }
}

pub(crate) fn run(args: SourcesArgs, global: &Global) -> Outcome {
    match args.command {
        Command::Create(flags) => connector::create(*flags, global),
        Command::Update {
            flags,
            update_auth_data,
        } => connector::update(*flags, update_auth_data, global),
        Command::Action(action) => connector::act(Component::Source, action, global),
    }
}
