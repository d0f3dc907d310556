//! What `geminga sources` and `geminga sinks` have in common: the flags of both, and how a configuration is made of
//! them, of a file and of the code's place.

use std::path::Path;

use geminga_admin::client::{Code, Component, Registration};
use serde::Serialize;
use serde_json::Value;

use super::Global;
use super::admin::{self, usage};
use super::component::{
    self, Action, GUARANTEES, Prepared, ResourceFlags, capitals, given, lay_name, nest, overlay,
    secrets_flag,
};
use crate::failure::Outcome;

/// The flags of both.
#[derive(Debug, Clone, clap::Args, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CommonFlags {
    /// The name, or tenant/namespace/name; --name means the same
    #[arg(value_name = "NAME", conflicts_with = "name")]
    #[serde(skip)]
    target: Option<String>,
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
    #[arg(long, value_name = "JSON", value_parser = secrets_flag)]
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

/// The flags of a source or of a sink.
pub(super) trait Connector: Serialize + Send + 'static {
    const KIND: Component;
    /// How a built-in one is named: the field and the flag.
    const TYPE: (&str, &str);

    /// Where the rest of the configuration is.
    fn file(&self) -> Option<&Path>;

    fn common(&self) -> &CommonFlags;
}

pub(super) fn create<F: Connector>(flags: F, global: &Global) -> Outcome {
    send(flags, Registration::Create, global)
}

pub(super) fn update<F: Connector>(flags: F, auth_data: bool, global: &Global) -> Outcome {
    send(flags, Registration::Update { auth_data }, global)
}

pub(super) fn act(kind: Component, action: Action, global: &Global) -> Outcome {
    let format = global.format();
    admin::with_client(global, |client| async move {
        component::act(&client, kind, action, format).await
    })
}

fn send<F: Connector>(flags: F, how: Registration, global: &Global) -> Outcome {
    admin::with_client(global, |client| async move {
        let prepared = prepare(&flags, how.is_update())?;
        component::send(&client, F::KIND, how, prepared).await
    })
}

fn prepare<F: Connector>(flags: &F, update: bool) -> Outcome<Prepared> {
    let path = flags.file();
    let file = path
        .map(|path| overlay(F::KIND, Some(path), serde_json::Map::new()))
        .transpose()?;
    let mut laid = given(flags);
    if let Some(target) = &flags.common().target {
        lay_name(F::KIND, target, &mut laid)?;
    }
    let resources = given(&flags.common().resources);
    nest(&mut laid, file.as_ref(), "resources", resources);
    let mut config = overlay(F::KIND, path, laid)?;
    let text = |field: &str| config.get(field).and_then(Value::as_str);
    let (field, flag) = F::TYPE;
    let code = match (text("archive"), text(field)) {
        (Some(_), Some(_)) => return Err(usage(format!("give one of --archive and {flag}"))),
        (Some(archive), None) => component::code(archive)?,
        (None, Some(name)) => Code::Url(format!("builtin://{name}")),
        (None, None) if update => Code::None,
        (None, None) => return Err(usage(format!("no code: give one of {flag} and --archive"))),
    };
    let name = component::full_name(F::KIND, &config, None)?;
    component::set_name(&mut config, &name);
    Ok(Prepared {
        name,
        config: Value::Object(config),
        code,
    })
}
