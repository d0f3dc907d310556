//! `geminga mesh`: what a mesh would start or change, and doing it on a running server.
//!
//! `plan` touches nothing. `apply` is idempotent: what is as wanted stays as it is. A component
//! carries its mesh's name in its configuration, so `apply` deletes what left the file and nothing
//! else. Plain configurations carry one only where they, or `--name`, say it.
//! What an update does not say stays on the server: `apply` names what left the file (`taken_away`).
//! A server shows no secret: `apply` sends those that stand in the file, and the server says whether they are others.

mod delete;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use geminga_admin::client::{AdminClient, ClientError, Code, Component as Kind, Registration};
use geminga_functions::runtime::{go, java};
use geminga_mesh::check::FileKind;
use geminga_mesh::graph::draw::draw;
use geminga_mesh::load::{Component, Config};
use geminga_mesh::plan::diff::{Action, Change, State, Step, diff};
use geminga_mesh::plan::{Plan, plan};
use geminga_model::Runtime;
use geminga_stdx::Diagnostic;
use serde_json::{Value, json};

use super::admin::{failure, with_client};
use super::component::{FullName, failed, settle};
use super::functions::code;
use super::{Global, block_on};
use crate::failure::{Exit, Failure, Outcome};
use crate::output::{self, Format, Table};

/// What a server says of an update that changes nothing.
const NO_CHANGE: &str = "Update contains no change";

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    geminga mesh plan mesh.yaml\n  \
    geminga mesh apply mesh.yaml\n  \
    geminga mesh list -o name")]
pub(crate) struct MeshArgs {
    #[command(subcommand)]
    action: MeshAction,
}

#[derive(Debug, clap::Subcommand)]
enum MeshAction {
    /// Draw the graph and say what would start or change; touches nothing
    Plan {
        #[command(flatten)]
        files: Files,
        /// Compare with the running server even if it was not named by --admin-url
        #[arg(long)]
        compare: bool,
    },
    /// Make a running server do what the files say
    Apply {
        #[command(flatten)]
        files: Files,
    },
    /// Delete from a running server what the files name, and what else belongs to their mesh
    Delete {
        /// YAML or JSON files as for `apply`; without any, the whole mesh of --name
        #[arg(required_unless_present = "name", value_name = "FILE")]
        files: Vec<PathBuf>,
        #[command(flatten)]
        name: Name,
        #[command(flatten)]
        part: delete::Part,
    },
    /// List the meshes of a running server, and say how much belongs to none
    List,
}

#[derive(Debug, clap::Args)]
struct Files {
    /// YAML or JSON files: FunctionMesh, Function, Source, Sink, or plain configurations
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    name: Name,
}

#[derive(Debug, clap::Args)]
struct Name {
    /// The mesh that plain configurations belong to; what left the files since is deleted with it
    #[arg(long, value_name = "MESH", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: Option<String>,
}

impl Files {
    fn plan(&self) -> Outcome<Plan> {
        named(load(&self.files)?, self.name.name.as_deref())
    }
}

/// The plan as the mesh of this name, where one is given.
fn named(plan: Plan, name: Option<&str>) -> Outcome<Plan> {
    let Some(name) = name else { return Ok(plan) };
    plan.named(name).map_err(|diagnostics| Failure {
        exit: Exit::Usage,
        diagnostics,
    })
}

pub(crate) fn run(args: MeshArgs, global: &Global) -> Outcome {
    match args.action {
        MeshAction::Plan { files, compare } => {
            let plan = files.plan()?;
            let steps = if compare || global.admin_url.is_some() {
                let client = global.admin_client()?;
                Some(block_on(steps(&client, &plan))?)
            } else {
                None
            };
            show(&plan, steps.as_deref(), global.format())
        }
        MeshAction::Apply { files } => {
            let plan = files.plan()?;
            let format = global.format();
            with_client(global, |client| async move {
                let mut steps = steps(&client, &plan).await?;
                let applied = apply(&client, &plan, &mut steps).await;
                print_steps(&steps, format)?;
                applied
            })
        }
        MeshAction::Delete { files, name, part } => match name.name {
            Some(name) if files.is_empty() => with_client(global, |client| async move {
                delete::mesh(&client, &name, &part).await
            }),
            name => {
                let plan = named(load(&files)?, name.as_deref())?;
                with_client(global, |client| async move {
                    delete::plan(&client, &plan).await
                })
            }
        },
        MeshAction::List => {
            let format = global.format();
            with_client(global, |client| async move { list(&client, format).await })
        }
    }
}

/// Reads and plans files; warnings go to stderr, errors are the failure.
pub(crate) fn load(files: &[PathBuf]) -> Outcome<Plan> {
    let mut texts = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|error| {
            let message = format!("`{}` cannot be read", file.display());
            Failure::new(
                Exit::Usage,
                Diagnostic::error("G0310", message).cause(error.to_string()),
            )
        })?;
        texts.push(text);
    }
    let all = files
        .iter()
        .map(PathBuf::as_path)
        .zip(texts.iter().map(String::as_str));
    let plan = plan(all, &look, &geminga_functions::refusals).map_err(|diagnostics| Failure {
        exit: Exit::Usage,
        diagnostics,
    })?;
    for warning in &plan.warnings {
        output::note(&warning.to_string());
    }
    Ok(plan)
}

/// What is at a path.
fn look(path: &Path) -> FileKind {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::metadata(path) {
        Err(_) => FileKind::Missing,
        Ok(about) if about.is_dir() => FileKind::Directory,
        Ok(about) if about.permissions().mode() & 0o111 != 0 => FileKind::Executable,
        Ok(_) => FileKind::File,
    }
}

/// The graph as wide as the terminal, or 100 columns where there is none.
pub(crate) fn drawing(plan: &Plan) -> String {
    let width = std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok());
    draw(&plan.graph, width.unwrap_or_else(terminal_width))
}

fn terminal_width() -> usize {
    terminal_size::terminal_size().map_or(100, |(width, _)| usize::from(width.0).clamp(40, 160))
}

fn show(plan: &Plan, steps: Option<&[Step]>, format: Format) -> Outcome {
    if matches!(format, Format::Json | Format::Yaml) {
        let mut whole = plan.to_json();
        if let Some(steps) = steps {
            whole["steps"] = json!(steps);
        }
        return output::print(format, &whole, |_| Table::default(), Vec::new);
    }
    if format == Format::Name {
        let names = || plan.components.iter().map(Component::fqfn).collect();
        return output::print(format, &Value::Null, |_| Table::default(), names);
    }
    output::line(&drawing(plan))?;
    output::line("")?;
    match steps {
        Some(steps) => print_steps(steps, format)?,
        None => {
            let mut table = Table::new(&["would start", "name", "what", "instances"]);
            for (component, node) in plan.components.iter().zip(&plan.graph.nodes) {
                table.row([
                    component.kind().to_owned(),
                    component.fqfn(),
                    node.label.clone(),
                    instances(component).to_string(),
                ]);
            }
            output::print(format, &Value::Null, |_| table, Vec::new)?;
        }
    }
    if !plan.kubernetes_only.is_empty() {
        output::note(&format!(
            "only used on Kubernetes: {}",
            plan.kubernetes_only.join(", ")
        ));
    }
    Ok(())
}

fn instances(component: &Component) -> u32 {
    match &component.config {
        Config::Source(config) => config.parallelism(),
        Config::Function(config) => config.parallelism(),
        Config::Sink(config) => config.parallelism(),
    }
}

fn print_steps(steps: &[Step], format: Format) -> Outcome {
    let mut table = Table::new(&["action", "kind", "name", "changes"]);
    for step in steps {
        let (action, changes) = match &step.action {
            _ if step.not_done.is_some() => match step.not_done.as_deref().unwrap_or_default() {
                REFUSED => (REFUSED, String::new()),
                why => ("skipped", why.to_owned()),
            },
            Action::Create => ("create", String::new()),
            Action::Delete => ("delete", String::new()),
            Action::Unchanged if step.not_compared.is_empty() => ("unchanged", String::new()),
            Action::Unchanged => {
                let names = step.not_compared.join(", ");
                let why = format!("secrets not compared, `apply` does: {names}");
                ("unchanged", why)
            }
            Action::Update(changes) => {
                let show =
                    |change: &Change| format!("{}: {} -> {}", change.field, change.from, change.to);
                (
                    "update",
                    changes.iter().map(show).collect::<Vec<_>>().join(", "),
                )
            }
        };
        table.row([
            action.to_owned(),
            step.kind.to_owned(),
            step.name.clone(),
            changes,
        ]);
    }
    let names = || steps.iter().map(|step| step.name.clone()).collect();
    output::print(format, &steps, |_| table, names)
}

fn kind_of(kind: &str) -> Kind {
    match kind {
        "source" => Kind::Source,
        "sink" => Kind::Sink,
        _ => Kind::Function,
    }
}

fn name_of(fqfn: &str) -> FullName {
    let mut parts = fqfn.splitn(3, '/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    FullName {
        tenant: next(),
        namespace: next(),
        name: next(),
    }
}

/// The fields that hold code.
const CODES: [&str; 6] = ["jar", "py", "go", "sh", "exec", "wasm"];

/// A component's configuration with paths that mean the same in the server's directory, and with
/// the digest of its code.
fn config_of(component: &Component) -> Value {
    let mut config = component.config.to_json();
    if let Config::Function(function) = &component.config
        && let Some((runtime, path)) = function.code()
        && let Some(digest) = digest_of(runtime, Path::new(path))
    {
        config["codeDigest"] = json!(digest);
    }
    // A server shows in one way what can be asked for in several.
    for field in CODES {
        let name = config.get(field).and_then(Value::as_str);
        if let Some(name) = name.and_then(|code| code.strip_prefix("builtin://")) {
            config["functionType"] = json!(name);
            config.as_object_mut().map(|config| config.remove(field));
        }
    }
    for key in ["path", "inputDirectory"] {
        if let Some(Value::String(path)) = config.pointer_mut(&format!("/configs/{key}"))
            && let Ok(absolute) = std::path::absolute(&path)
        {
            *path = absolute.display().to_string();
        }
    }
    config
}

/// Of a file, or of the sources in a folder; none of what is elsewhere.
fn digest_of(runtime: Runtime, path: &Path) -> Option<String> {
    if !path.is_dir() {
        return digest(std::fs::File::open(path).ok()?).ok();
    }
    match runtime {
        Runtime::Go | Runtime::Wasm => go::digest(path),
        Runtime::Java => java::digest(path),
        // A folder of them is not sent.
        Runtime::Bash | Runtime::Exec | Runtime::Python => None,
    }
}

/// FNV-1a of 128 bits: tells changed code from unchanged, and defends against nobody.
fn digest(mut code: impl std::io::Read) -> std::io::Result<String> {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let mut piece = vec![0; 64 * 1024];
    loop {
        let count = code.read(&mut piece)?;
        if count == 0 {
            return Ok(format!("{hash:032x}"));
        }
        for &byte in &piece[..count] {
            hash ^= u128::from(byte);
            hash = hash.wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }
}

/// What a plan wants, as the server would show it.
fn wanted(plan: &Plan) -> Vec<State> {
    let state = |component: &Component| State {
        kind: component.kind(),
        fqfn: component.fqfn(),
        config: config_of(component),
    };
    plan.components.iter().map(state).collect()
}

/// Everything in the namespaces of the plan that is in the plan or belongs to its mesh.
async fn actual(client: &AdminClient, plan: &Plan) -> Outcome<Vec<State>> {
    let names: BTreeSet<String> = plan.components.iter().map(Component::fqfn).collect();
    let namespaces: BTreeSet<(String, String)> = names
        .iter()
        .map(|name| name_of(name))
        .map(|name| (name.tenant, name.namespace))
        .collect();
    let mut found = Vec::new();
    for (tenant, namespace) in namespaces {
        for state in all_in(client, &tenant, &namespace).await? {
            let is_ours =
                plan.name.is_some() && state.config["mesh"].as_str() == plan.name.as_deref();
            if names.contains(&state.fqfn) || is_ours {
                found.push(state);
            }
        }
    }
    Ok(found)
}

async fn all_in(client: &AdminClient, tenant: &str, namespace: &str) -> Outcome<Vec<State>> {
    let mut found = Vec::new();
    for (kind, word) in [
        (Kind::Source, "source"),
        (Kind::Function, "function"),
        (Kind::Sink, "sink"),
    ] {
        let names = client
            .components(kind, tenant, namespace)
            .await
            .map_err(failure)?;
        for name in names {
            let name = FullName::new(tenant, namespace, &name);
            match client.component_config(kind, name.fqfn()).await {
                Ok(config) => found.push(State {
                    kind: word,
                    fqfn: name.to_string(),
                    config,
                }),
                // Deleted since the listing.
                Err(error) if error.status() == Some(404) => {}
                Err(error) => return Err(failure(error)),
            }
        }
    }
    Ok(found)
}

async fn steps(client: &AdminClient, plan: &Plan) -> Outcome<Vec<Step>> {
    let mut wanted = wanted(plan);
    let actual = actual(client, plan).await?;
    for state in &mut wanted {
        // A server keeps code under a name of its own; it is sent again at each update.
        if let Some(there) = actual.iter().find(|there| there.fqfn == state.fqfn) {
            for field in CODES {
                if state.config.get(field).is_some() && there.config.get(field).is_some() {
                    state.config[field] = there.config[field].clone();
                }
            }
            // Who names no mesh leaves it in the one that it is in.
            if state.config.get("mesh").is_none()
                && let Some(mesh) = there.config["mesh"].as_str()
            {
                state.config["mesh"] = json!(mesh);
            }
            // What a built-in function is, the server fills in.
            let is_same = state.config.get("functionType") == there.config.get("functionType");
            if is_same && there.config.get("functionType").is_some() {
                for field in ["className", "runtime"] {
                    if state.config.get(field).is_none() && there.config.get(field).is_some() {
                        state.config[field] = there.config[field].clone();
                    }
                }
            }
        }
    }
    Ok(diff(&wanted, &actual))
}

/// Why a step was not done: the server would not.
const REFUSED: &str = "refused";

/// Readers first, so that nothing that is written is missed; deletions last. What the server refuses keeps those
/// waiting that write for it, and all deletions; the others are done.
///
/// # Errors
/// All that was refused. When the server is gone, that alone, and nothing more is tried.
async fn apply(client: &AdminClient, plan: &Plan, steps: &mut [Step]) -> Outcome {
    let mut started = Vec::new();
    let mut failures = Vec::new();
    let mut not_done = vec![false; plan.components.len()];
    for node in plan.graph.start_order() {
        let component = &plan.components[node];
        let Some(step) = steps
            .iter_mut()
            .find(|step| step.name == component.fqfn() && step.kind == component.kind())
        else {
            continue;
        };
        let is_new = step.action != Action::Unchanged;
        let reader = plan.graph.next(node).find(|&(_, next)| not_done[next]);
        if let Some((_, reader)) = reader.filter(|_| is_new) {
            let reader = &plan.components[reader];
            step.not_done = Some(format!(
                "{} {} reads what it writes",
                reader.kind(),
                reader.fqfn()
            ));
            not_done[node] = true;
            continue;
        }
        let sent = match &step.action {
            Action::Create => send(client, component, None).await.map(|()| true),
            Action::Update(changes) => send(client, component, Some(changes)).await.map(|()| true),
            Action::Unchanged if !step.not_compared.is_empty() => {
                send_secrets(client, component, step).await
            }
            Action::Delete | Action::Unchanged => Ok(false),
        };
        match sent {
            Ok(true) => started.push((kind_of(component.kind()), name_of(&component.fqfn()))),
            Ok(false) => {}
            Err(failure) => {
                not_done[node] = true;
                step.not_done = Some(REFUSED.to_owned());
                let is_gone = failure.exit == Exit::Unreachable;
                failures.push(failure);
                if is_gone {
                    break;
                }
            }
        }
    }
    for step in steps
        .iter_mut()
        .filter(|step| step.action == Action::Delete)
    {
        if failures.is_empty() {
            delete::one(client, kind_of(step.kind), &name_of(&step.name)).await?;
        } else {
            step.not_done = Some("something was refused".to_owned());
        }
    }
    // All of them start meanwhile.
    let until = settle::deadline();
    let is_partly_done = !started.is_empty();
    for (kind, name) in started {
        settle::watch(client, kind, &name, until).await;
    }
    let exit = failures.first().map(|first| match is_partly_done {
        true => Exit::PartlyDone,
        false => first.exit,
    });
    match exit {
        None => Ok(()),
        Some(exit) => Err(Failure {
            exit,
            diagnostics: failures.into_iter().flat_map(|it| it.diagnostics).collect(),
        }),
    }
}

/// The fields that an update is to take away: what it does not have stays otherwise.
fn taken_away<'a>(changes: &'a [Change], config: &Value) -> Vec<&'a str> {
    let mut fields = Vec::new();
    for Change { field, to, .. } in changes {
        match field.as_str() {
            // Of either form the other one may be left.
            "inputSpecs" => fields.extend(["inputs", "inputSpecs"]),
            // The code says it.
            "codeDigest" | "functionType" => {}
            field if CODES.contains(&field) || !to.is_null() => {}
            field => fields.push(field),
        }
    }
    fields.retain(|field| config.get(field).is_none());
    fields
}

/// What became of a component, by its name: there are others.
fn refused(kind: Kind, name: &FullName, error: ClientError) -> Failure {
    let mut failure = failed(kind, error);
    if let Some(diagnostic) = failure.diagnostics.first_mut() {
        diagnostic.message = format!("{kind} {name}: {}", diagnostic.message);
    }
    failure
}

/// Makes a component, or makes these changes of it.
async fn send(client: &AdminClient, component: &Component, changes: Option<&[Change]>) -> Outcome {
    let kind = kind_of(component.kind());
    let name = name_of(&component.fqfn());
    let mut config = config_of(component);
    let code = match &component.config {
        Config::Function(function) => match function.code() {
            Some((runtime, path)) => {
                let sent = code(runtime, path).await?;
                if let Code::File { name, .. } = &sent {
                    config[runtime.code_field()] = json!(name);
                }
                sent
            }
            None => Code::None,
        },
        Config::Source(source) => builtin(source.builtin()),
        Config::Sink(sink) => builtin(sink.builtin()),
    };
    let sent = match changes {
        None => {
            let how = Registration::Create;
            client
                .send_component(kind, how, name.fqfn(), &config, code)
                .await
        }
        Some(changes) => {
            let removed = taken_away(changes, &config);
            client
                .update_component(kind, name.fqfn(), &config, &removed, code)
                .await
        }
    };
    sent.map_err(|error| refused(kind, &name, error))
}

/// Sends the secrets of a component that is as wanted otherwise; whether they changed.
async fn send_secrets(
    client: &AdminClient,
    component: &Component,
    step: &mut Step,
) -> Outcome<bool> {
    let kind = kind_of(component.kind());
    let name = name_of(&component.fqfn());
    let whole = component.config.to_json();
    let change = json!({
        "tenant": name.tenant, "namespace": name.namespace, "name": name.name, "secrets": whole["secrets"],
    });
    step.not_compared.clear();
    let sent = client.send_component(kind, Registration::UPDATE, name.fqfn(), &change, Code::None);
    match sent.await {
        Err(error) if error.status() == Some(400) && error.to_string().contains(NO_CHANGE) => {
            Ok(false)
        }
        Err(error) => Err(refused(kind, &name, error)),
        Ok(()) => {
            let shown = component.config.shown()["secrets"].clone();
            step.action = Action::Update(vec![Change {
                field: "secrets".to_owned(),
                from: shown.clone(),
                to: shown,
            }]);
            Ok(true)
        }
    }
}

fn builtin(name: Option<&str>) -> Code {
    name.map_or(Code::None, |name| Code::Url(format!("builtin://{name}")))
}

/// Everything that runs on the server.
async fn everything(client: &AdminClient) -> Outcome<Vec<State>> {
    let mut found = Vec::new();
    for tenant in client.tenants().await.map_err(failure)? {
        for namespace in client.namespaces(&tenant).await.map_err(failure)? {
            let own = namespace.split('/').next_back().unwrap_or_default();
            found.extend(all_in(client, &tenant, own).await?);
        }
    }
    Ok(found)
}

/// Sources, functions, sinks.
fn number_of(kind: &str) -> usize {
    match kind {
        "source" => 0,
        "function" => 1,
        _ => 2,
    }
}

async fn list(client: &AdminClient, format: Format) -> Outcome {
    let mut meshes: BTreeMap<String, [usize; 3]> = BTreeMap::new();
    let mut loose = [0; 3];
    for state in everything(client).await? {
        let counts = match state.config["mesh"].as_str() {
            Some(mesh) => meshes.entry(mesh.to_owned()).or_default(),
            None => &mut loose,
        };
        counts[number_of(state.kind)] += 1;
    }
    let data: Vec<Value> = meshes
        .iter()
        .map(|(name, [sources, functions, sinks])| {
            json!({"name": name, "sources": sources, "functions": functions, "sinks": sinks})
        })
        .collect();
    let table = |_| {
        let mut table = Table::new(&["name", "sources", "functions", "sinks"]);
        for (name, counts) in &meshes {
            table.row(std::iter::once(name.clone()).chain(counts.iter().map(usize::to_string)));
        }
        table
    };
    output::print(format, &data, table, || meshes.keys().cloned().collect())?;
    if let Some(said) = said_of_loose(loose) {
        output::note(&said);
    }
    Ok(())
}

/// That there is more than the meshes, and what lists it.
fn said_of_loose(counts: [usize; 3]) -> Option<String> {
    let words = ["source", "function", "sink"];
    let some = || counts.iter().zip(words).filter(|(count, _)| **count > 0);
    some().next()?;
    let what: Vec<_> = some()
        .map(|(count, word)| format!("{count} {word}{}", if *count == 1 { "" } else { "s" }))
        .collect();
    let commands: Vec<_> = some()
        .map(|(_, word)| format!("`geminga {word}s list`"))
        .collect();
    Some(format!(
        "of no mesh: {} (see {}); `geminga mesh apply --name MESH FILE..` makes one of plain configurations",
        what.join(", "),
        commands.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use geminga_mesh::plan::diff::Change;
    use serde_json::{Value, json};

    use super::{digest, said_of_loose, taken_away};

    #[test]
    fn what_left_the_file_is_taken_away_and_code_is_not() {
        let change = |field: &str, to: Value| Change {
            field: field.to_owned(),
            from: json!("x"),
            to,
        };
        let changes = [
            change("userConfig", Value::Null),
            change("logTopic", Value::Null),
            change("output", json!("y")),
            change("inputSpecs", json!({"a": {}})),
            change("py", Value::Null),
            change("codeDigest", Value::Null),
            // Empty in the file, which says it by itself.
            change("secrets", Value::Null),
        ];
        assert_eq!(
            taken_away(
                &changes,
                &json!({"inputs": ["a"], "output": "y", "secrets": {}})
            ),
            ["userConfig", "logTopic", "inputSpecs"]
        );
    }

    #[test]
    fn what_is_of_no_mesh_is_counted_with_the_command_that_lists_it() {
        assert_eq!(said_of_loose([0, 0, 0]), None);
        let said = said_of_loose([0, 2, 1]).expect("something");
        assert!(
            said.starts_with(
                "of no mesh: 2 functions, 1 sink (see `geminga functions list`, `geminga sinks list`);"
            ),
            "{said}"
        );
    }

    #[test]
    fn the_digest_is_fnv_1a() {
        // Published test values of FNV-1a, 128 bits.
        assert_eq!(
            digest(&b""[..]).unwrap(),
            "6c62272e07bb014262b821756295c58d"
        );
        assert_eq!(
            digest(&b"a"[..]).unwrap(),
            "d228cb696f1a8caf78912b704e4a8964"
        );
    }
}
