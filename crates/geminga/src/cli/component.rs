//! What functions, sources and sinks share on the command line: names, overlays of a file by flags,
//! code that is sent along, and the actions that are the same for all three.
//!
//! What must hold: a flag that was given wins over the file, and a flag or field that is not known
//! is refused with the nearest name.

pub(crate) mod report;
pub(crate) mod settle;

use std::path::Path;

use clap::builder::TypedValueParser;
use geminga_admin::client::{AdminClient, ClientError, Code, Component, Fqfn, Registration};
use geminga_mesh::decode::decode_document;
use geminga_model::{FunctionConfig, SinkConfig, SourceConfig};
use geminga_stdx::Diagnostic;
use geminga_stdx::nearest::nearest;
use serde_json::{Map, Value, json};

use super::admin::{self, cell, failure_with_help, usage};
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

/// A name as it is typed before the flags: `NAME` or `TENANT/NAMESPACE/NAME`, laid over the flags' fields.
pub(crate) fn lay_name(kind: Component, target: &str, config: &mut Map<String, Value>) -> Outcome {
    let is_file = |ending: &str| target.ends_with(ending) && Path::new(target).is_file();
    if [".yaml", ".yml", ".json"].into_iter().any(is_file) {
        let what = format!("`{target}` is a file, and a name was expected");
        let help = format!("geminga {kind}s create --{kind}-config-file {target}");
        return Err(Failure::new(
            Exit::Usage,
            Diagnostic::error("G0208", what).help(help),
        ));
    }
    if target.contains('/')
        && ["tenant", "namespace"]
            .iter()
            .any(|it| config.contains_key(*it))
    {
        return Err(usage(format!(
            "`{target}` excludes --tenant and --namespace"
        )));
    }
    let typed = NameArgs {
        target: Some(target.to_owned()),
        ..NameArgs::default()
    };
    let name = typed.resolve()?;
    config.insert("name".to_owned(), json!(name.name));
    if target.contains('/') {
        config.insert("tenant".to_owned(), json!(name.tenant));
        config.insert("namespace".to_owned(), json!(name.namespace));
    }
    Ok(())
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
                |_| report::config_table(&config),
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
            let table = |wide| report::status_table(kind, &status, args.instance_id, wide);
            output::print(format, &status, table, || vec![name.to_string()])?;
            let details = report::details(&status, args.instance_id);
            if matches!(format, Format::Table | Format::Wide) && !details.is_empty() {
                output::line(&details)?;
            }
            Ok(())
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
    let word = ["unknown field `", "unknown variant `"]
        .iter()
        .find_map(|before| message.split_once(before)?.1.split('`').next());
    let (Some(word), Some((what, known))) = (word, message.split_once(", expected")) else {
        return message.to_owned();
    };
    // serde_json quotes the names that it knows, the YAML reader does not.
    let known: Vec<&str> = known
        .split(" at line ")
        .next()
        .unwrap_or_default()
        .split([',', ' '])
        .map(|name| name.trim_matches('`'))
        .filter(|name| !["", "one", "of", "or"].contains(name))
        .collect();
    match nearest(word, known.iter().copied()) {
        Some(name) => format!("{what}; did you mean `{name}`?"),
        None if known.is_empty() => what.to_owned(),
        None => format!("{what}; known are {}", known.join(", ")),
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
            "it is a directory: build it or make a zip of it; a folder of Go or Java is built here"
                .to_owned(),
        ));
    }
    // It is read when it is sent; what cannot be read is said now.
    std::fs::File::open(file).map_err(|error| refused(error.to_string()))?;
    let name = file
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    Ok(Code::File {
        name,
        path: file.to_owned(),
    })
}

/// A clap parser for a flag that holds JSON.
pub(crate) fn json_flag(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("not valid JSON: {error}"))
}

/// The same for secrets, which an error must not quote: what is no JSON is refused when the whole is checked.
pub(crate) fn secrets_flag(text: &str) -> Result<Value, std::convert::Infallible> {
    Ok(serde_json::from_str(text).unwrap_or_else(|_| json!(text)))
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

/// A clap parser for bytes: `1073741824`, `512M`, `1GiB`.
fn bytes_flag(text: &str) -> Result<i64, String> {
    // What is negative is the server's to refuse, by the field's name.
    if let Ok(bytes) = text.parse() {
        return Ok(bytes);
    }
    let bytes = geminga_stdx::size::parse_bytes(text)?;
    i64::try_from(bytes).map_err(|_| format!("`{text}` is too large"))
}

/// What one instance may use.
#[derive(Debug, Clone, clap::Args, serde::Serialize)]
pub(crate) struct ResourceFlags {
    /// Cores of one instance, like 0.5
    #[arg(long, value_name = "CORES")]
    cpu: Option<f64>,
    /// Memory of one instance: bytes, or 512M, 1GiB
    #[arg(long, value_name = "BYTES", value_parser = bytes_flag, allow_hyphen_values = true)]
    ram: Option<i64>,
    /// Disk of one instance: bytes, or 512M, 1GiB
    #[arg(long, value_name = "BYTES", value_parser = bytes_flag, allow_hyphen_values = true)]
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
    how: Registration,
    prepared: Prepared,
) -> Outcome {
    let Prepared { name, config, code } = prepared;
    let sent = client.send_component(kind, how, name.fqfn(), &config, code);
    output::patiently(sent, || format!("the server takes {kind} {name} in"))
        .await
        .map_err(|error| refused(kind, how.is_update(), &name, error))?;
    output::note(&format!(
        "{kind} {name} {}",
        if how.is_update() {
            "updated"
        } else {
            "created"
        }
    ));
    settle::watch(client, kind, &name, settle::deadline()).await;
    Ok(())
}

/// Why a component was not taken, and what to type then.
fn refused(kind: Component, update: bool, name: &FullName, error: ClientError) -> Failure {
    let status = error.status();
    let mut failure = match update {
        true => failed(kind, error),
        false => admin::failure(error),
    };
    let Some(diagnostic) = failure.diagnostics.first_mut() else {
        return failure;
    };
    diagnostic.message = spelled(&diagnostic.message);
    // Pulsar answers 400 where it means a conflict, and where something is not there.
    let says = |text: &str| status == Some(400) && diagnostic.message.contains(text);
    if !update && says("already exists") {
        failure.exit = Exit::Conflict;
        diagnostic.code = "G0203";
        diagnostic.help = Some(format!("geminga {kind}s update {name} ... changes it"));
    } else if says("Namespace does not exist") || says("Tenant does not exist") {
        failure.exit = Exit::NotFound;
        diagnostic.code = "G0202";
        diagnostic.help = Some(format!(
            "geminga namespaces create {}/{}",
            name.tenant, name.namespace
        ));
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, want) in [
            ("7", Some(7)),
            ("-5", Some(-5)),
            ("1GB", Some(1_000_000_000)),
            ("512M", Some(536_870_912)),
            ("lots", None),
        ] {
            assert_eq!(bytes_flag(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn an_unknown_name_is_told_the_nearest() {
        for (said, want) in [
            (
                "`customRuntimeOptions`: unknown field `mod`, expected one of `runtime`, `mode` at line 1 column 8",
                "`customRuntimeOptions`: unknown field `mod`; did you mean `mode`?",
            ),
            (
                "unknown variant `never`, expected `spawn` or `stream`",
                "unknown variant `never`; known are spawn, stream",
            ),
            (
                "`parallelism` must be positive",
                "`parallelism` must be positive",
            ),
        ] {
            assert_eq!(spelled(said), want);
        }
    }

    #[test]
    fn a_name_may_stand_before_the_flags() {
        let laid = |target: &str| {
            let mut config = Map::new();
            lay_name(Component::Function, target, &mut config).map(|()| Value::Object(config))
        };
        assert_eq!(laid("f").unwrap(), json!({"name": "f"}));
        let full = json!({"tenant": "a", "namespace": "b", "name": "f"});
        assert_eq!(laid("a/b/f").unwrap(), full);
        assert!(laid("a/f").is_err());
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("f.yaml");
        std::fs::write(&file, "name: f\n").unwrap();
        let said = laid(&file.display().to_string()).unwrap_err().diagnostics[0].to_string();
        assert!(
            said.contains("functions create --function-config-file"),
            "{said}"
        );
    }
}
