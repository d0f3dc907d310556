//! What functions, sources and sinks share on the command line: names, overlays of a file by flags,
//! code that is sent along, and the actions that are the same for all three.
//!
//! What must hold: a flag that was given wins over the file, and a flag or field that is not known
//! is refused with the nearest name.

use std::path::Path;

use bytes::Bytes;
use clap::builder::TypedValueParser;
use geminga_admin::client::{AdminClient, ClientError, Code, Component, Fqfn};
use geminga_mesh::decode::decode_document;
use geminga_model::{FunctionConfig, SinkConfig, SourceConfig};
use geminga_stdx::Diagnostic;
use geminga_stdx::nearest::nearest;
use serde_json::{Map, Value, json};

use super::admin::{self, cell, failure_with_help, usage};
use super::topics::fields_table;
use crate::failure::{Exit, Failure, Outcome};
use crate::output::{self, Format, Table};

/// Which namespace.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct NamespaceArgs {
    /// The tenant
    #[arg(long, default_value = "public")]
    tenant: String,
    /// The namespace
    #[arg(long, default_value = "default")]
    namespace: String,
}

/// Which component.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct NameArgs {
    /// The name, or tenant/namespace/name
    #[arg(value_name = "NAME", conflicts_with_all = ["name", "fqfn"])]
    target: Option<String>,
    /// The tenant
    #[arg(long)]
    tenant: Option<String>,
    /// The namespace
    #[arg(long)]
    namespace: Option<String>,
    /// The name
    #[arg(long)]
    name: Option<String>,
    /// tenant/namespace/name in one
    #[arg(long, conflicts_with_all = ["tenant", "namespace", "name"])]
    fqfn: Option<String>,
}

/// A full name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FullName {
    pub(crate) tenant: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl FullName {
    pub(crate) fn new(tenant: &str, namespace: &str, name: &str) -> Self {
        Self {
            tenant: tenant.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    pub(crate) fn fqfn(&self) -> Fqfn<'_> {
        Fqfn {
            tenant: &self.tenant,
            namespace: &self.namespace,
            name: &self.name,
        }
    }
}

impl std::fmt::Display for FullName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.tenant, self.namespace, self.name)
    }
}

impl NameArgs {
    pub(crate) fn resolve(&self) -> Outcome<FullName> {
        let tenant = self.tenant.as_deref().unwrap_or("public");
        let namespace = self.namespace.as_deref().unwrap_or("default");
        let given = self
            .fqfn
            .as_deref()
            .or(self.target.as_deref())
            .or(self.name.as_deref());
        let Some(given) = given else {
            return Err(usage("a name is needed: NAME, --name or --fqfn"));
        };
        match given.split('/').collect::<Vec<_>>()[..] {
            [name] if !name.is_empty() && self.fqfn.is_none() => {
                Ok(FullName::new(tenant, namespace, name))
            }
            [tenant, namespace, name]
                if !tenant.is_empty() && !namespace.is_empty() && !name.is_empty() =>
            {
                Ok(FullName::new(tenant, namespace, name))
            }
            _ => Err(usage(format!(
                "`{given}` is not a name or tenant/namespace/name"
            ))),
        }
    }
}

/// One instance or all.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct InstanceArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,
    /// One instance; all when left out
    #[arg(long)]
    pub(crate) instance_id: Option<u32>,
}

/// The actions that are the same for functions, sources and sinks.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Action {
    /// List the names in a namespace
    List(NamespaceArgs),
    /// Show the configuration
    Get(NameArgs),
    /// Show whether instances run, what they did and what failed
    #[command(visible_alias = "getstatus")]
    Status(InstanceArgs),
    /// Delete it
    Delete(NameArgs),
    /// Start stopped instances
    Start(InstanceArgs),
    /// Stop instances; their input waits
    Stop(InstanceArgs),
    /// Stop and start instances
    Restart(InstanceArgs),
}

pub(crate) async fn act(
    client: &AdminClient,
    kind: Component,
    action: Action,
    format: Format,
) -> Outcome {
    match action {
        Action::List(args) => list(client, kind, &args, format).await,
        Action::Get(args) => {
            let name = args.resolve()?;
            let config = client
                .component_config(kind, name.fqfn())
                .await
                .map_err(|error| failed(kind, error))?;
            output::print(
                format,
                &config,
                |_| fields_table(&config),
                || vec![name.to_string()],
            )
        }
        Action::Status(args) => {
            let name = args.name.resolve()?;
            let status = client
                .component_report(kind, name.fqfn(), args.instance_id, "status")
                .await
                .map_err(|error| failed(kind, error))?;
            for warning in status["warnings"].as_array().into_iter().flatten() {
                output::note(&format!("warning: {}", cell(warning)));
            }
            let table = |wide| status_table(kind, &status, args.instance_id, wide);
            output::print(format, &status, table, || vec![name.to_string()])
        }
        Action::Delete(args) => {
            let name = args.resolve()?;
            client
                .delete_component(kind, name.fqfn())
                .await
                .map_err(|error| failed(kind, error))?;
            output::note(&format!("{kind} {name} deleted"));
            Ok(())
        }
        Action::Start(args) => change(client, kind, &args, "start", "started").await,
        Action::Stop(args) => change(client, kind, &args, "stop", "stopped").await,
        Action::Restart(args) => change(client, kind, &args, "restart", "restarted").await,
    }
}

async fn change(
    client: &AdminClient,
    kind: Component,
    args: &InstanceArgs,
    action: &str,
    done: &str,
) -> Outcome {
    let name = args.name.resolve()?;
    client
        .component_act(kind, name.fqfn(), args.instance_id, action)
        .await
        .map_err(|error| failed(kind, error))?;
    output::note(&format!("{kind} {name} {done}"));
    Ok(())
}

async fn list(
    client: &AdminClient,
    kind: Component,
    args: &NamespaceArgs,
    format: Format,
) -> Outcome {
    let names = client
        .components(kind, &args.tenant, &args.namespace)
        .await
        .map_err(|error| failed(kind, error))?;
    // The wide form asks for each status; the others cost one request.
    let mut rows: Vec<Vec<String>> = Vec::new();
    for name in &names {
        let mut row = vec![name.clone()];
        if format == Format::Wide {
            let name = FullName::new(&args.tenant, &args.namespace, name);
            // A component may go between the two requests: its row stays short.
            if let Ok(status) = client
                .component_report(kind, name.fqfn(), None, "status")
                .await
            {
                row.push(cell(&status["numInstances"]));
                row.push(cell(&status["numRunning"]));
            }
        }
        rows.push(row);
    }
    output::print(
        format,
        &names,
        |wide| {
            let heading: &[&'static str] = if wide {
                &["name", "instances", "running"]
            } else {
                &["name"]
            };
            let mut table = Table::new(heading);
            table.rows = rows;
            table
        },
        || names.clone(),
    )
}

fn status_table(kind: Component, status: &Value, instance: Option<u32>, wide: bool) -> Table {
    let fields: &[(&'static str, &str)] = match kind {
        Component::Function => &[
            ("received", "numReceived"),
            ("succeeded", "numSuccessfullyProcessed"),
            ("failed", "numUserExceptions"),
        ],
        Component::Source => &[
            ("received", "numReceivedFromSource"),
            ("written", "numWritten"),
            ("failed", "numSourceExceptions"),
        ],
        Component::Sink => &[
            ("received", "numReadFromPulsar"),
            ("written", "numWrittenToSink"),
            ("failed", "numSinkExceptions"),
        ],
    };
    let mut heading = vec!["instance", "running"];
    heading.extend(fields.iter().map(|(heading, _)| *heading));
    heading.extend(["system errors", "restarts"]);
    if wide {
        heading.extend(["latency ms", "worker"]);
    }
    heading.push("error");
    let mut table = Table::new(&heading);
    let mut row = |id: String, status: &Value| {
        let mut cells = vec![id, cell(&status["running"])];
        cells.extend(fields.iter().map(|(_, field)| cell(&status[*field])));
        cells.extend(["numSystemExceptions", "numRestarts"].map(|field| cell(&status[field])));
        if wide {
            cells.extend(["averageLatency", "workerId"].map(|field| cell(&status[field])));
        }
        let error = cell(&status["error"]);
        let last = ["latestUserExceptions", "latestSystemExceptions"]
            .iter()
            .find_map(|field| {
                status[*field].as_array()?.last()?["exceptionString"]
                    .as_str()
                    .map(str::to_owned)
            });
        let error = if error.is_empty() || error == "-" {
            last.unwrap_or_default()
        } else {
            error
        };
        cells.push(
            error
                .lines()
                .next()
                .unwrap_or_default()
                .chars()
                .take(100)
                .collect(),
        );
        table.row(cells);
    };
    match instance {
        Some(instance) => row(instance.to_string(), status),
        None => {
            for instance in status["instances"].as_array().into_iter().flatten() {
                row(cell(&instance["instanceId"]), &instance["status"]);
            }
        }
    }
    table
}

/// A client error about a component.
pub(crate) fn failed(kind: Component, error: ClientError) -> Failure {
    failure_with_help(error, format!("`geminga {kind}s list` shows what there is"))
}

/// Code and configuration, ready to be sent.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) name: FullName,
    pub(crate) config: Value,
    pub(crate) code: Code,
}

/// Lays flags over the file and checks the spelling of the whole.
pub(crate) fn overlay(
    kind: Component,
    file: Option<&Path>,
    flags: Map<String, Value>,
) -> Outcome<Map<String, Value>> {
    let mut config = match file {
        Some(path) => read_file(kind, path)?,
        None => Map::new(),
    };
    for (field, value) in flags {
        if !value.is_null() {
            config.insert(field, value);
        }
    }
    // Flags that hold JSON may be misspelt inside.
    check(kind, Value::Object(config.clone()))
        .map_err(|reason| Failure::new(Exit::Usage, Diagnostic::error("G0301", reason)))?;
    Ok(config)
}

/// The configuration in a file, strictly read.
fn read_file(kind: Component, path: &Path) -> Outcome<Map<String, Value>> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::new(
            Exit::Usage,
            Diagnostic::error("G0001", format!("`{}` cannot be read", path.display()))
                .cause(error.to_string()),
        )
    })?;
    let wrong = |diagnostics| Failure {
        exit: Exit::Usage,
        diagnostics,
    };
    let documents = geminga_mesh::node::parse(path, &text).map_err(|error| wrong(vec![error]))?;
    let [document] = &documents[..] else {
        let message = format!("`{}` holds {} documents", path.display(), documents.len());
        let help = format!("a {kind} is one document; `geminga mesh apply` takes several");
        return Err(wrong(vec![Diagnostic::error("G0306", message).help(help)]));
    };
    // Through the type, for its strictness; what comes out is what the file says.
    let typed = match kind {
        Component::Function => {
            decode_document::<FunctionConfig>(document).map(serde_json::to_value)
        }
        Component::Source => decode_document::<SourceConfig>(document).map(serde_json::to_value),
        Component::Sink => decode_document::<SinkConfig>(document).map(serde_json::to_value),
    };
    match typed.map_err(wrong)? {
        Ok(Value::Object(map)) => Ok(map),
        _ => Ok(Map::new()),
    }
}

fn check(kind: Component, config: Value) -> Result<(), String> {
    let result = match kind {
        Component::Function => serde_json::from_value::<FunctionConfig>(config).map(drop),
        Component::Source => serde_json::from_value::<SourceConfig>(config).map(drop),
        Component::Sink => serde_json::from_value::<SinkConfig>(config).map(drop),
    };
    result.map_err(|error| spelled(&error.to_string()))
}

/// Adds the nearest name to a message about an unknown one.
fn spelled(message: &str) -> String {
    let unknown = message.contains("unknown field") || message.contains("unknown variant");
    let word = message.split('`').nth(1);
    let (true, Some(word), Some((what, known))) = (unknown, word, message.split_once(", expected"))
    else {
        return message.to_owned();
    };
    // serde_json quotes the names that it knows, the YAML reader does not.
    let known = known.split([',', ' ']).map(|name| name.trim_matches('`'));
    match nearest(
        word,
        known.filter(|name| !["", "one", "of", "or"].contains(name)),
    ) {
        Some(name) => format!("{what}; did you mean `{name}`?"),
        None => what.to_owned(),
    }
}

/// The name that a configuration gives itself, or the reason why it has none.
pub(crate) fn full_name(
    kind: Component,
    config: &Map<String, Value>,
    inferred: Option<String>,
) -> Outcome<FullName> {
    let text = |field: &str| config.get(field).and_then(Value::as_str);
    if let Some(fqfn) = text("fqfn") {
        if ["tenant", "namespace", "name"]
            .iter()
            .any(|field| config.contains_key(*field))
        {
            return Err(usage("--fqfn excludes --tenant, --namespace and --name"));
        }
        return NameArgs {
            fqfn: Some(fqfn.to_owned()),
            ..NameArgs::default()
        }
        .resolve();
    }
    match text("name").map(str::to_owned).or(inferred) {
        Some(name) if !name.is_empty() => Ok(FullName::new(
            text("tenant").unwrap_or("public"),
            text("namespace").unwrap_or("default"),
            &name,
        )),
        _ => Err(usage(format!("the {kind} has no name: give --name"))),
    }
}

/// Puts the full name where the server looks for it.
pub(crate) fn set_name(config: &mut Map<String, Value>, name: &FullName) {
    config.remove("fqfn");
    for (field, value) in [
        ("tenant", &name.tenant),
        ("namespace", &name.namespace),
        ("name", &name.name),
    ] {
        config.insert(field.to_owned(), json!(value));
    }
}

/// What is sent along for a code path: the file, or the URL as it is.
pub(crate) fn code(path: &str) -> Outcome<Code> {
    const URLS: [&str; 7] = [
        "http://",
        "https://",
        "file://",
        "builtin://",
        "function://",
        "source://",
        "sink://",
    ];
    if URLS.iter().any(|scheme| path.starts_with(scheme)) {
        return Ok(Code::Url(path.to_owned()));
    }
    let refused = |reason: String| {
        Failure::new(
            Exit::Usage,
            Diagnostic::error("G0401", format!("the code `{path}` cannot be sent"))
                .cause(reason)
                .help("give the path of a file that this command can read"),
        )
    };
    let file = Path::new(path);
    if file.is_dir() {
        return Err(refused(
            "it is a directory: build it or make a zip of it".to_owned(),
        ));
    }
    let content = std::fs::read(file).map_err(|error| refused(error.to_string()))?;
    let name = file
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    Ok(Code::File {
        name,
        content: Bytes::from(content),
    })
}

/// A clap parser for a flag that holds JSON.
pub(crate) fn json_flag(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("not valid JSON: {error}"))
}

/// A clap parser for words that are written in capitals: any case is understood.
pub(crate) fn capitals(words: &'static [&'static str]) -> impl TypedValueParser<Value = String> {
    clap::builder::StringValueParser::new().try_map(move |text| {
        let upper = text.to_ascii_uppercase().replace('-', "_");
        match words.iter().find(|word| **word == upper) {
            Some(word) => Ok((*word).to_owned()),
            None => Err(format!("expected one of {}", words.join(", "))),
        }
    })
}

/// The guarantees, as flags spell them.
pub(crate) const GUARANTEES: &[&str] =
    &["ATLEAST_ONCE", "ATMOST_ONCE", "EFFECTIVELY_ONCE", "MANUAL"];

/// A clap parser for `Latest` and `Earliest`.
pub(crate) fn position_flag(text: &str) -> Result<String, String> {
    match text.to_ascii_lowercase().as_str() {
        "latest" => Ok("Latest".to_owned()),
        "earliest" => Ok("Earliest".to_owned()),
        _ => Err("expected Latest or Earliest".to_owned()),
    }
}

/// Flags that serde has made a map of, without those that were not given.
pub(crate) fn given(flags: &impl serde::Serialize) -> Map<String, Value> {
    match serde_json::to_value(flags) {
        Ok(Value::Object(map)) => map
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .collect(),
        _ => Map::new(),
    }
}

/// What one instance may use.
#[derive(Debug, Clone, clap::Args, serde::Serialize)]
pub(crate) struct ResourceFlags {
    /// Cores of one instance
    #[arg(long)]
    cpu: Option<f64>,
    /// Bytes of memory of one instance
    #[arg(long)]
    ram: Option<i64>,
    /// Bytes of disk of one instance
    #[arg(long)]
    disk: Option<i64>,
}

/// Lays a nested object's flags over the file's.
pub(crate) fn nest(
    config: &mut Map<String, Value>,
    file: Option<&Map<String, Value>>,
    field: &str,
    flags: Map<String, Value>,
) {
    if flags.is_empty() {
        return;
    }
    let mut nested = file
        .and_then(|file| file.get(field))
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    nested.extend(flags);
    config.insert(field.to_owned(), Value::Object(nested));
}

/// Sends a prepared component and says so.
pub(crate) async fn send(
    client: &AdminClient,
    kind: Component,
    update: bool,
    prepared: Prepared,
) -> Outcome {
    let Prepared { name, config, code } = prepared;
    client
        .send_component(kind, update, name.fqfn(), &config, code)
        .await
        .map_err(|error| {
            if update {
                return failed(kind, error);
            }
            // Pulsar answers 400 where it means a conflict.
            let exists =
                error.status() == Some(400) && error.to_string().ends_with("already exists");
            let mut failure = admin::failure(error);
            if exists {
                failure.exit = Exit::Conflict;
                if let Some(diagnostic) = failure.diagnostics.first_mut() {
                    diagnostic.code = "G0203";
                    diagnostic.help = Some(format!("geminga {kind}s update ... changes it"));
                }
            }
            failure
        })?;
    output::note(&format!(
        "{kind} {name} {}",
        if update { "updated" } else { "created" }
    ));
    Ok(())
}
