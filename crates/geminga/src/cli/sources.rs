//! `geminga sources`: make, look at, change and remove sources.

use std::path::PathBuf;

use geminga_admin::client::{Code, Component};
use serde::Serialize;
use serde_json::Value;

use super::Global;
use super::admin::{self, usage};
use super::component::{
    self, Action, GUARANTEES, Prepared, ResourceFlags, capitals, given, json_flag, nest, overlay,
};
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
        /// Refresh stored credentials
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
    /// ATLEAST_ONCE, ATMOST_ONCE, EFFECTIVELY_ONCE or MANUAL
    #[arg(long, alias = "processingGuarantees", value_parser = capitals(GUARANTEES))]
    processing_guarantees: Option<String>,
    /// How many instances
    #[arg(long)]
    parallelism: Option<i32>,
    /// Where the connector's logs go
    #[arg(long, alias = "logTopic")]
    log_topic: Option<String>,
    /// Secrets by name
    #[arg(long, value_name = "JSON", value_parser = json_flag)]
    secrets: Option<Value>,
    /// Extra arguments of the interpreter
    #[arg(long, allow_hyphen_values = true)]
    runtime_flags: Option<String>,
    /// Settings of the runtime, as JSON
    #[arg(long, value_name = "JSON")]
    custom_runtime_options: Option<String>,
    #[command(flatten)]
    #[serde(skip)]
    resources: ResourceFlags,
}

pub(crate) fn run(args: SourcesArgs, global: &Global) -> Outcome {
    let format = global.format();
    let kind = Component::Source;
    admin::with_client(global, |client| async move {
        match args.command {
            Command::Create(flags) => {
                component::send(&client, kind, false, prepare(&flags, false)?).await
            }
            Command::Update {
                update_auth_data: true,
                ..
            } => Err(usage(
                "--update-auth-data is not supported: there are no stored credentials yet",
            )),
            Command::Update { flags, .. } => {
                component::send(&client, kind, true, prepare(&flags, true)?).await
            }
            Command::Action(action) => component::act(&client, kind, action, format).await,
        }
    })
}

fn prepare(flags: &SourceFlags, update: bool) -> Outcome<Prepared> {
    let kind = Component::Source;
    let path = flags.source_config_file.as_deref();
    let file = path
        .map(|path| overlay(kind, Some(path), serde_json::Map::new()))
        .transpose()?;
    let mut laid = given(flags);
    nest(
        &mut laid,
        file.as_ref(),
        "resources",
        given(&flags.resources),
    );
    let mut config = overlay(kind, path, laid)?;
    let text = |field: &str| config.get(field).and_then(Value::as_str);
    let code = match (text("archive"), text("sourceType")) {
        (Some(_), Some(_)) => return Err(usage("give one of --archive and --source-type")),
        (Some(archive), None) => component::code(archive)?,
        (None, Some(name)) => Code::Url(format!("builtin://{name}")),
        (None, None) if update => Code::None,
        (None, None) => return Err(usage("no code: give one of --source-type and --archive")),
    };
    let name = component::full_name(kind, &config, None)?;
    component::set_name(&mut config, &name);
    Ok(Prepared {
        name,
        config: Value::Object(config),
        code,
    })
}
