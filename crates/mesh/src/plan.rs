//! From files to what shall run: loaded, checked, paths made whole.

pub mod diff;

use std::path::Path;

use geminga_stdx::Diagnostic;
use serde_json::{Map, Value, json};

use crate::check::{self, FileKind, Refusal};
use crate::graph::{Graph, graph};
use crate::load::{Component, Config, Loaded, Origin, load};

/// What shall run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The mesh's name, if the files hold one.
    pub name: Option<String>,
    /// In the order of the files; `graph` has their indices, and says in which order to start.
    pub components: Vec<Component>,
    pub graph: Graph,
    /// What is odd, but works.
    pub warnings: Vec<Diagnostic>,
    /// Fields and resources that only mean something on Kubernetes.
    pub kubernetes_only: Vec<String>,
}

/// Plans what some files say; `look` tells what is at a path, `refusals` what of a configuration the worker can not
/// honour.
pub fn plan<'a>(
    files: impl IntoIterator<Item = (&'a Path, &'a str)>,
    look: &dyn Fn(&Path) -> FileKind,
    refusals: &dyn Fn(&Config) -> Vec<Refusal>,
) -> Result<Plan, Vec<Diagnostic>> {
    let Loaded {
        name,
        mut components,
        kubernetes_only,
    } = load(files)?;
    let graph = graph(&components);
    let found = check::check(&components, &graph, look, refusals);
    if found.iter().any(Diagnostic::is_error) {
        return Err(found);
    }
    for component in &mut components {
        make_whole(component, name.as_deref());
    }
    Ok(Plan {
        name,
        components,
        graph,
        warnings: found,
        kubernetes_only,
    })
}

/// Paths become what they mean, the mesh's name is written in.
pub(crate) fn make_whole(component: &mut Component, mesh: Option<&str>) {
    let Component { config, origin } = component;
    let mesh = mesh.map(str::to_owned);
    match config {
        Config::Function(config) => {
            let fields = [
                &mut config.jar,
                &mut config.py,
                &mut config.go,
                &mut config.sh,
                &mut config.exec,
                &mut config.wasm,
            ];
            for code in fields.into_iter().flatten() {
                if check::is_local(code) {
                    *code = origin.resolve(code).display().to_string();
                }
            }
            config.mesh = mesh;
        }
        Config::Source(config) => {
            if config.builtin() == Some("file") {
                resolve(&mut config.configs, "path", origin);
                resolve(&mut config.configs, "inputDirectory", origin);
            }
            config.mesh = mesh;
        }
        Config::Sink(config) => {
            if config.builtin() == Some("file") {
                resolve(&mut config.configs, "path", origin);
            }
            config.mesh = mesh;
        }
    }
}

fn resolve(configs: &mut Option<Map<String, Value>>, key: &str, origin: &Origin) {
    if let Some(Value::String(path)) = configs.as_mut().and_then(|configs| configs.get_mut(key)) {
        *path = origin.resolve(path).display().to_string();
    }
}

impl Config {
    /// The configuration as its JSON object.
    pub fn to_json(&self) -> Value {
        let value = match self {
            Config::Source(config) => serde_json::to_value(config),
            Config::Function(config) => serde_json::to_value(config),
            Config::Sink(config) => serde_json::to_value(config),
        };
        // A struct with text keys always becomes an object.
        value.unwrap_or_default()
    }
}

impl Plan {
    /// For machines.
    pub fn to_json(&self) -> Value {
        let warning = |warning: &Diagnostic| {
            json!({
                "code": warning.code,
                "message": warning.message,
                "place": warning.place.as_ref().map(|place| place.to_string()),
                "help": warning.help,
            })
        };
        json!({
            "name": self.name,
            "components": self.components.iter().map(|component| json!({
                "kind": component.kind(),
                "name": component.fqfn(),
                "config": component.config.to_json(),
            })).collect::<Vec<_>>(),
            "graph": self.graph.to_json(),
            "warnings": self.warnings.iter().map(warning).collect::<Vec<_>>(),
            "kubernetesOnly": self.kubernetes_only,
        })
    }
}

#[cfg(test)]
mod tests;
