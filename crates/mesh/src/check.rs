//! What is wrong with a mesh before anything starts.
//!
//! Pure but for two questions that the caller answers: what kind of thing a path is, and what of a
//! configuration the worker can not honour.

use std::collections::BTreeMap;
use std::path::Path;

use geminga_model::validate::{Violation, validate_function, validate_sink, validate_source};
use geminga_stdx::Diagnostic;
use geminga_stdx::nearest::nearest;

use crate::builtin::{FileSink, FileSource, SINKS, SOURCES, TableSink};
use crate::decode::decode;
use crate::graph::Graph;
use crate::load::{Component, Config};
use crate::node::{Mark, Node, Value};
use crate::plan::make_whole;

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Missing,
    File,
    /// A file that may be executed.
    Executable,
    Directory,
}

/// A setting that the worker can not honour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The way to it in the configuration; empty when it is about the whole.
    pub field: Vec<String>,
    /// What is refused, why, and what to do instead.
    pub why: String,
}

/// Errors and warnings, in the order of the components. `refusals` is what the worker says of a configuration
/// whose paths are those of this machine.
pub fn check(
    components: &[Component],
    graph: &Graph,
    look: &dyn Fn(&Path) -> FileKind,
    refusals: &dyn Fn(&Config) -> Vec<Refusal>,
) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for component in components {
        let before = found.len();
        check_rules(component, &mut found);
        check_connector(component, look, &mut found);
        check_code(component, look, &mut found);
        // The worker would say the same again.
        if !found[before..].iter().any(Diagnostic::is_error) {
            check_honoured(component, refusals, &mut found);
        }
    }
    check_names(components, &mut found);
    check_cycles(components, graph, &mut found);
    check_misspellings(components, graph, &mut found);
    found
}

/// The rules of the model, each with its place.
fn check_rules(component: &Component, found: &mut Vec<Diagnostic>) {
    let violations = match &component.config {
        Config::Source(config) => validate_source(config),
        Config::Function(config) => validate_function(config),
        Config::Sink(config) => validate_sink(config),
    };
    for Violation {
        field,
        message,
        help,
    } in violations
    {
        let of = match component.name() {
            "" => component.kind().to_owned(),
            name => format!("{} `{name}`", component.kind()),
        };
        let mut error = Diagnostic::error("G0307", format!("{of}: {message}"));
        error.help = help;
        found.push(component.origin.place(error, &field));
    }
}

/// What the worker would refuse when the component is created.
fn check_honoured(
    component: &Component,
    refusals: &dyn Fn(&Config) -> Vec<Refusal>,
    found: &mut Vec<Diagnostic>,
) {
    let mut whole = component.clone();
    make_whole(&mut whole, None);
    for Refusal { field, why } in refusals(&whole.config) {
        let message = format!("{} `{}`: {why}", component.kind(), component.name());
        let error = Diagnostic::error("G0308", message);
        found.push(component.origin.place_setting(error, &field));
    }
}

fn check_connector(
    component: &Component,
    look: &dyn Fn(&Path) -> FileKind,
    found: &mut Vec<Diagnostic>,
) {
    let (builtin, known, field): (_, &[&str], _) = match &component.config {
        Config::Function(_) => return,
        Config::Source(config) => (config.builtin(), &SOURCES, "sourceType"),
        Config::Sink(config) => (config.builtin(), &SINKS, "sinkType"),
    };
    let kind = component.kind();
    let Some(builtin) = builtin else {
        let message = format!(
            "{kind} `{}` is a package, and only built-in ones run here",
            component.name()
        );
        let error = Diagnostic::error("G0308", message)
            .help(format!("set `{field}` to one of {}", known.join(", ")));
        found.push(component.origin.place(error, &["archive"]));
        return;
    };
    let nothing = Node {
        mark: Mark { line: 1, column: 1 },
        value: Value::Map(Vec::new()),
    };
    let given = component.connector_settings();
    let settings = given.unwrap_or(&nothing);
    let file = component.origin.file();
    let mut report = |result: Result<Result<(), String>, Vec<Diagnostic>>| match result {
        Ok(Ok(())) => {}
        Ok(Err(message)) => {
            let error =
                Diagnostic::error("G0307", format!("{kind} `{}`: {message}", component.name()));
            found.push(match given {
                Some(node) => crate::node::at(error, file, node.mark),
                None => component.origin.place::<&str>(error, &[]),
            });
        }
        Err(more) => found.extend(more),
    };
    let own = |result: Result<(), &'static str>| result.map_err(str::to_owned);
    match (&component.config, builtin) {
        (Config::Source(_), "file") => report(decode::<FileSource>(file, settings).map(|config| {
            own(config.check())?;
            let (path, wanted) = match (&config.path, &config.input_directory) {
                (Some(path), _) => (path, "file"),
                (_, Some(path)) => (path, "directory"),
                _ => return Ok(()),
            };
            let at = component.origin.resolve(path);
            match (look(&at), wanted) {
                (FileKind::File | FileKind::Executable, "file")
                | (FileKind::Directory, "directory") => Ok(()),
                (FileKind::Missing, _) => Err(format!("there is no {wanted} `{}`", at.display())),
                _ => Err(format!("`{}` is not a {wanted}", at.display())),
            }
        })),
        (Config::Sink(_), "file") => {
            report(decode::<FileSink>(file, settings).map(|config| own(config.check())))
        }
        (Config::Sink(_), "table") => report(decode::<TableSink>(file, settings).map(|_| Ok(()))),
        _ => {
            let list = known.join(", ");
            let help = match nearest(builtin, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`? Built in are {list}"),
                None => format!("built in are {list}"),
            };
            let error =
                Diagnostic::error("G0309", format!("there is no built-in {kind} `{builtin}`"))
                    .help(help);
            found.push(component.origin.place(error, &[field]));
        }
    }
}

/// Whether code is a path on this machine, and not a package or a URL.
pub(crate) fn is_local(code: &str) -> bool {
    !code.contains("://")
}

fn check_code(
    component: &Component,
    look: &dyn Fn(&Path) -> FileKind,
    found: &mut Vec<Diagnostic>,
) {
    let Config::Function(config) = &component.config else {
        return;
    };
    let Some((runtime, code)) = config.code() else {
        return;
    };
    if code.is_empty() || !is_local(code) {
        return;
    }
    let path = component.origin.resolve(code);
    let error = match look(&path) {
        FileKind::Missing => {
            let message = format!(
                "function `{}` has no code: there is no file `{}`",
                component.name(),
                path.display()
            );
            Diagnostic::error("G0313", message).help("a path is relative to the file that names it")
        }
        // Sources that are built where they run, and packages of Python.
        FileKind::Directory if !matches!(runtime.code_field(), "go" | "jar" | "py" | "wasm") => {
            let message = format!(
                "code of function `{}`: `{}` is a directory",
                component.name(),
                path.display()
            );
            Diagnostic::error("G0313", message)
        }
        FileKind::File if runtime == geminga_model::Runtime::Exec => {
            let message = format!(
                "code of function `{}`: `{}` may not be executed",
                component.name(),
                path.display()
            );
            Diagnostic::error("G0313", message).help(format!("chmod +x {}", path.display()))
        }
        _ => return,
    };
    found.push(component.origin.place(error, &[runtime.code_field()]));
}

fn check_names(components: &[Component], found: &mut Vec<Diagnostic>) {
    let mut known: BTreeMap<String, &Component> = BTreeMap::new();
    for component in components {
        let fqfn = component.fqfn();
        if fqfn.is_empty() {
            continue;
        }
        let Some(first) = known.get(&fqfn) else {
            known.insert(fqfn, component);
            continue;
        };
        let place = first
            .origin
            .place(Diagnostic::note("G0312", ""), &["name"])
            .place;
        let place = place.map(|place| place.to_string()).unwrap_or_default();
        let message = format!("the name `{}` is taken twice", component.name());
        let error = Diagnostic::error("G0312", message)
            .cause(format!("a {} of that name stands at {place}", first.kind()))
            .help("sources, functions and sinks of one namespace share their names");
        found.push(component.origin.place(error, &["name"]));
    }
}

fn check_cycles(components: &[Component], graph: &Graph, found: &mut Vec<Diagnostic>) {
    for cycle in graph.cycles() {
        // A function that reads its own output is told by the rules of the model.
        if cycle.len() < 2 {
            continue;
        }
        let mut way = String::new();
        for (at, &node) in cycle.iter().enumerate() {
            let next = cycle[(at + 1) % cycle.len()];
            let topic = graph
                .between(node, next)
                .map_or("?", |topic| topic.name.as_str());
            way.push_str(&format!("{} --{topic}--> ", graph.nodes[node].name));
        }
        way.push_str(&graph.nodes[cycle[0]].name);
        let error = Diagnostic::error("G0311", "events go round in a circle for ever")
            .cause(way)
            .help("let one of them write to another topic");
        found.push(components[cycle[0]].origin.place(error, &["output"]));
    }
}

/// An input that nothing writes may be meant so; one that nearly has the name of a topic that
/// something writes is worth a word.
fn check_misspellings(components: &[Component], graph: &Graph, found: &mut Vec<Diagnostic>) {
    // What a function writes itself is not what it meant to read.
    let written_by_others = |reader: usize| {
        graph
            .topics
            .iter()
            .filter(move |topic| topic.writers.iter().any(|&writer| writer != reader))
            .map(|topic| topic.name.as_str())
    };
    for topic in graph
        .topics
        .iter()
        .filter(|topic| topic.is_external() && !topic.is_pattern)
    {
        for &reader in &topic.readers {
            let Some(near) = nearest(&topic.name, written_by_others(reader)) else {
                continue;
            };
            let reader = &components[reader];
            let message = format!(
                "nothing here writes topic `{}`, which {} `{}` reads",
                topic.name,
                reader.kind(),
                reader.name()
            );
            let warning = Diagnostic::warning("G0314", message).help(format!(
                "did you mean `{near}`? If it comes from outside, all is well"
            ));
            found.push(reader.origin.place(warning, &["inputs", &topic.name]));
        }
    }
}

#[cfg(test)]
mod tests;
