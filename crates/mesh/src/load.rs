//! Files to components: which resource or configuration each document is, and where it stands.
//!
//! Pure: the caller has read the files. What must hold: a component remembers its place, so that a
//! check made much later still points to the line.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use geminga_model::{FunctionConfig, SinkConfig, SourceConfig};
use geminga_stdx::Diagnostic;
use geminga_stdx::nearest::nearest;
use serde::de::DeserializeOwned;

use crate::crd::{
    API_GROUP, API_VERSION, FunctionSpec, KINDS, MeshSpec, Resource, SinkSpec, SourceSpec,
    translate,
};
use crate::decode::{decode, decode_document};
use crate::node::{Document, Node, Value, parse};

/// A function, a source or a sink.
#[derive(Clone, Debug)]
pub struct Component {
    pub config: Config,
    pub origin: Origin,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Config {
    Source(Box<SourceConfig>),
    Function(Box<FunctionConfig>),
    Sink(Box<SinkConfig>),
}

/// Where a component was written, and how.
#[derive(Clone, Debug)]
pub struct Origin {
    document: Arc<Document>,
    /// The way to the component in the document.
    path: Vec<String>,
    /// Written as a resource of Function Mesh, with its names for the fields.
    crd: bool,
}

/// What a set of files says.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The mesh's name, if there is one.
    pub name: Option<String>,
    pub components: Vec<Component>,
    /// Fields and resources that only mean something on Kubernetes.
    pub kubernetes_only: Vec<String>,
}

/// Reads files that the caller has opened. Every error is returned, not the first alone.
pub fn load<'a>(
    files: impl IntoIterator<Item = (&'a Path, &'a str)>,
) -> Result<Loaded, Vec<Diagnostic>> {
    let mut loaded = Loaded::default();
    let mut found = Vec::new();
    for (file, text) in files {
        match parse(file, text) {
            Ok(documents) if documents.is_empty() => {
                let message = format!("`{}` is empty", file.display());
                found.push(
                    Diagnostic::error("G0306", message)
                        .help("see examples/ for what can stand in it"),
                );
            }
            Ok(documents) => {
                for document in documents {
                    if let Err(more) = loaded.take(Arc::new(document)) {
                        found.extend(more);
                    }
                }
            }
            Err(error) => found.push(error),
        }
    }
    if found.is_empty() {
        Ok(loaded)
    } else {
        Err(found)
    }
}

impl Loaded {
    fn take(&mut self, document: Arc<Document>) -> Result<(), Vec<Diagnostic>> {
        if document.root.get("kind").is_some() || document.root.get("apiVersion").is_some() {
            return self.take_resource(document);
        }
        let origin = Origin {
            document: document.clone(),
            path: Vec::new(),
            crd: false,
        };
        let config = match guess(&document.root) {
            "source" => Config::Source(Box::new(decode_document(&document)?)),
            "sink" => Config::Sink(Box::new(decode_document(&document)?)),
            _ => Config::Function(Box::new(decode_document(&document)?)),
        };
        self.components.push(Component { config, origin });
        Ok(())
    }

    fn take_resource(&mut self, document: Arc<Document>) -> Result<(), Vec<Diagnostic>> {
        let text = |key: &str| {
            document
                .root
                .get(key)
                .and_then(Node::as_str)
                .unwrap_or_default()
        };
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let ours = api_version.split('/').next() == Some(API_GROUP);
        if !ours && !KINDS.contains(&kind) && !api_version.is_empty() {
            // ConfigMaps and Secrets lie beside the resources in one file.
            self.kubernetes_only
                .push(format!("{kind} {}", name_of(&document.root).unwrap_or("")));
            return Ok(());
        }
        if api_version != API_VERSION {
            let message = format!("`apiVersion` is `{api_version}`");
            let error = Diagnostic::error("G0306", message)
                .help(format!("write `apiVersion: {API_VERSION}`"));
            return Err(vec![document.place(error, &["apiVersion"])]);
        }
        if kind == "BackendConfig" {
            self.kubernetes_only.push(format!(
                "BackendConfig {}",
                name_of(&document.root).unwrap_or("")
            ));
            return Ok(());
        }
        if !KINDS.contains(&kind) {
            let known = format!(
                "known kinds are {}",
                KINDS.map(|kind| format!("`{kind}`")).join(", ")
            );
            let help = match nearest(kind, KINDS) {
                Some(near) => format!("did you mean `{near}`? {known}"),
                None => known,
            };
            let error = Diagnostic::error("G0306", format!("unknown kind `{kind}`")).help(help);
            return Err(vec![document.place(error, &["kind"])]);
        }
        // The spec is read by kind; here only the frame around it.
        let mut frame = Document {
            file: document.file.clone(),
            root: document.root.clone(),
        };
        if let Value::Map(entries) = &mut frame.root.value {
            entries.retain(|(key, _)| key.text != "spec");
        }
        let resource: Resource = decode_document(&frame)?;
        let name = resource.metadata.and_then(|metadata| metadata.name);
        let Some(spec) = document.root.get("spec") else {
            let error = Diagnostic::error("G0303", format!("this {kind} has no `spec`"));
            return Err(vec![document.place::<&str>(error, &[])]);
        };
        let at = |path: &[&str]| path.iter().map(|&step| step.to_owned()).collect::<Vec<_>>();
        match kind {
            "Function" => self.add::<FunctionSpec>(&document, spec, at(&["spec"]), name),
            "Source" => self.add::<SourceSpec>(&document, spec, at(&["spec"]), name),
            "Sink" => self.add::<SinkSpec>(&document, spec, at(&["spec"]), name),
            _ => {
                self.name = self.name.take().or(name);
                self.take_mesh(&document, spec)
            }
        }
    }

    fn take_mesh(&mut self, document: &Arc<Document>, spec: &Node) -> Result<(), Vec<Diagnostic>> {
        // Entries are read one by one, so that each wrong one is reported.
        let mut lists = spec.clone();
        if let Value::Map(entries) = &mut lists.value {
            for (_, list) in entries {
                if let Value::List(items) = &mut list.value {
                    items.clear();
                }
            }
        }
        let mut found = decode::<MeshSpec>(&document.file, &lists)
            .err()
            .unwrap_or_default();
        for list in ["sources", "functions", "sinks"] {
            let Some(Value::List(items)) = spec.get(list).map(|node| &node.value) else {
                continue;
            };
            for (index, item) in items.iter().enumerate() {
                let path = vec!["spec".to_owned(), list.to_owned(), index.to_string()];
                let added = match list {
                    "sources" => self.add::<SourceSpec>(document, item, path, None),
                    "functions" => self.add::<FunctionSpec>(document, item, path, None),
                    _ => self.add::<SinkSpec>(document, item, path, None),
                };
                found.extend(added.err().unwrap_or_default());
            }
        }
        if found.is_empty() { Ok(()) } else { Err(found) }
    }

    /// Adds one component; `name` is the resource's, for a spec that has none of its own.
    fn add<S: Spec>(
        &mut self,
        document: &Arc<Document>,
        node: &Node,
        path: Vec<String>,
        name: Option<String>,
    ) -> Result<(), Vec<Diagnostic>> {
        let mut spec: S = decode(&document.file, node)?;
        let own = spec.name();
        *own = own.take().or(name);
        let label = own.clone().unwrap_or_default();
        let (config, kubernetes_only, refused) = spec.translate();
        let origin = Origin {
            document: document.clone(),
            path,
            crd: true,
        };
        self.kubernetes_only.extend(
            kubernetes_only
                .iter()
                .map(|field| format!("{label}: {field}")),
        );
        if refused.is_empty() {
            self.components.push(Component { config, origin });
            return Ok(());
        }
        let refuse = |(field, why): (&str, String)| {
            let error = Diagnostic::error(
                "G0308",
                format!("`{field}` of `{label}` cannot be honoured here"),
            )
            .cause(why);
            origin.place_written(error, &field.split('.').collect::<Vec<_>>())
        };
        Err(refused.into_iter().map(refuse).collect())
    }
}

fn name_of(root: &Node) -> Option<&str> {
    root.get("metadata")?.get("name")?.as_str()
}

/// What a document without a kind is: only a source or a sink has these fields.
fn guess(root: &Node) -> &'static str {
    let has = |keys: &[&str]| keys.iter().any(|key| root.get(key).is_some());
    if has(&["sourceType", "topicName", "batchSourceConfig"]) {
        "source"
    } else if has(&[
        "sinkType",
        "sourceSubscriptionName",
        "sourceSubscriptionPosition",
        "negativeAckRedeliveryDelayMs",
    ]) || has(&["archive"])
    {
        "sink"
    } else {
        "function"
    }
}

/// What the three kinds of spec have in common.
trait Spec: DeserializeOwned {
    fn name(&mut self) -> &mut Option<String>;
    fn translate(&self) -> (Config, Vec<&'static str>, Vec<(&'static str, String)>);
}

macro_rules! spec {
    ($spec:ty, $variant:ident, $translate:path) => {
        impl Spec for $spec {
            fn name(&mut self) -> &mut Option<String> {
                &mut self.name
            }
            fn translate(&self) -> (Config, Vec<&'static str>, Vec<(&'static str, String)>) {
                let done = $translate(self);
                (
                    Config::$variant(Box::new(done.config)),
                    done.kubernetes_only,
                    done.refused,
                )
            }
        }
    };
}
spec!(FunctionSpec, Function, translate::function);
spec!(SourceSpec, Source, translate::source);
spec!(SinkSpec, Sink, translate::sink);

impl Component {
    /// `source`, `function` or `sink`.
    pub fn kind(&self) -> &'static str {
        match self.config {
            Config::Source(_) => "source",
            Config::Function(_) => "function",
            Config::Sink(_) => "sink",
        }
    }

    /// Its own name, without tenant and namespace; empty if it has none.
    pub fn name(&self) -> &str {
        let name = match &self.config {
            Config::Source(config) => config.name.as_deref(),
            Config::Function(config) => config.name(),
            Config::Sink(config) => config.name.as_deref(),
        };
        name.unwrap_or_default()
    }

    /// `tenant/namespace/name`.
    pub fn fqfn(&self) -> String {
        let fqfn = match &self.config {
            Config::Source(config) => config.fqfn(),
            Config::Function(config) => config.fqfn(),
            Config::Sink(config) => config.fqfn(),
        };
        fqfn.unwrap_or_default()
    }

    /// The field that holds a connector's settings, and the settings.
    pub(crate) fn connector_settings(&self) -> Option<&Node> {
        let field = match (&self.config, self.origin.crd) {
            (Config::Function(_), _) => return None,
            (_, false) => "configs",
            (Config::Source(_), true) => "sourceConfig",
            (Config::Sink(_), true) => "sinkConfig",
        };
        self.origin.node()?.get(field)
    }
}

impl Origin {
    /// The file it stands in.
    pub fn file(&self) -> &Path {
        &self.document.file
    }

    /// `path` as the file means it: relative to the file's own directory.
    pub fn resolve(&self, path: &str) -> PathBuf {
        let directory = self.file().parent().unwrap_or(Path::new(""));
        directory.join(path).components().collect()
    }

    fn node(&self) -> Option<&Node> {
        self.path
            .iter()
            .try_fold(&self.document.root, |node, step| match &node.value {
                Value::List(items) => items.get(step.parse::<usize>().ok()?),
                _ => node.get(step),
            })
    }

    /// `diagnostic` at the place of a field named as our configurations name it.
    pub fn place<S: AsRef<str>>(&self, diagnostic: Diagnostic, field: &[S]) -> Diagnostic {
        let field: Vec<&str> = field.iter().map(AsRef::as_ref).collect();
        if self.crd {
            self.place_written(diagnostic, &as_written(&field))
        } else {
            self.place_written(diagnostic, &field)
        }
    }

    /// `diagnostic` at the place of a setting, of an input also where the file has another form of it.
    pub(crate) fn place_setting(&self, diagnostic: Diagnostic, field: &[String]) -> Diagnostic {
        let field: Vec<&str> = field.iter().map(String::as_str).collect();
        let forms = forms(&field);
        let is_there = |form: &&Vec<&str>| {
            let form = match self.crd {
                true => as_written(form),
                false => (*form).clone(),
            };
            self.node().is_some_and(|node| node.has(&form))
        };
        match forms.iter().find(is_there) {
            Some(form) => self.place(diagnostic, form),
            None => self.place(diagnostic, &field),
        }
    }

    /// The same for a field as the file names it.
    fn place_written(&self, diagnostic: Diagnostic, field: &[&str]) -> Diagnostic {
        let path = self
            .path
            .iter()
            .map(String::as_str)
            .chain(field.iter().copied());
        self.document.place(diagnostic, &path.collect::<Vec<_>>())
    }
}

/// Where a setting may stand: an input and what is said of it have several forms.
fn forms<'a>(field: &[&'a str]) -> Vec<Vec<&'a str>> {
    let mut forms = vec![field.to_vec()];
    match field {
        ["inputSpecs", topic, of @ ..] => {
            // The file may have a shorter name.
            let names = [
                Some(*topic),
                topic.strip_prefix("persistent://"),
                topic.strip_prefix("persistent://public/default/"),
            ];
            for name in names.into_iter().flatten() {
                forms.push([&["inputSpecs", name], of].concat());
                let tables = [
                    "inputSpecs",
                    "customSchemaInputs",
                    "topicToSchemaType",
                    "customSerdeInputs",
                    "topicToSerdeClassName",
                    "inputs",
                ];
                forms.extend(tables.map(|table| vec![table, name]));
            }
            forms.push(vec!["topicsPattern"]);
        }
        // A resource names them by its kind.
        ["configs", of @ ..] => {
            let names = ["sourceConfig", "sinkConfig"];
            forms.extend(names.map(|name| [&[name], of].concat()));
            forms.extend(names.map(|name| vec![name]));
        }
        _ => {}
    }
    forms
}

/// The path in a resource of a field of `FunctionConfig`, `SourceConfig` or `SinkConfig`.
fn as_written<'a>(field: &[&'a str]) -> Vec<&'a str> {
    let Some((&first, rest)) = field.split_first() else {
        return Vec::new();
    };
    let head: &[&str] = match first {
        "inputs" => &["input", "topics"],
        "topicsPattern" => &["input", "topicPattern"],
        "customSerdeInputs" | "topicToSerdeClassName" => &["input", "customSerdeSources"],
        "customSchemaInputs" | "topicToSchemaType" => &["input", "customSchemaSources"],
        "inputSpecs" => &["input", "sourceSpecs"],
        "inputTypeClassName" => &["input", "typeClassName"],
        "outputTypeClassName" => &["output", "typeClassName"],
        "customSchemaOutputs" => &["output", "customSchemaSinks"],
        "output" | "topicName" => &["output", "topic"],
        "outputSerdeClassName" | "serdeClassName" => &["output", "sinkSerdeClassName"],
        "outputSchemaType" | "schemaType" => &["output", "sinkSchemaType"],
        "producerConfig" => &["output", "producerConf"],
        "processingGuarantees" => &["processingGuarantee"],
        "userConfig" => &["funcConfig"],
        "maxMessageRetries" => &["maxMessageRetry"],
        "subName" | "sourceSubscriptionName" => &["subscriptionName"],
        "sourceSubscriptionPosition" => &["subscriptionPosition"],
        "parallelism" => &["replicas"],
        "timeoutMs" => &["timeout"],
        "jar" => &["java", "jar"],
        "py" => &["python", "py"],
        "go" => &["golang", "go"],
        "sh" | "exec" | "wasm" => &["genericRuntime", "functionFile"],
        _ => return field.to_vec(),
    };
    head.iter().chain(rest).copied().collect()
}

#[cfg(test)]
mod tests;
