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
    let mut found = check::check(&components, &graph, look, refusals);
    if let Some(name) = &name {
        found.extend(components.iter().filter_map(|it| is_of_another(it, name)));
    }
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

/// A component that says itself of which mesh it is, and is not of this one.
fn is_of_another(component: &Component, mesh: &str) -> Option<Diagnostic> {
    let own = component.config.mesh().filter(|own| *own != mesh)?;
    let message = format!(
        "{} `{}` says that it is of the mesh `{own}`, and is planned with the mesh `{mesh}`",
        component.kind(),
        component.name()
    );
    let error = Diagnostic::error("G0307", message).help("a component is of one mesh at most");
    Some(component.origin.place(error, &["mesh"]))
}

/// Paths become what they mean, the mesh's name is written in. Without one a configuration keeps its own.
pub(crate) fn make_whole(component: &mut Component, mesh: Option<&str>) {
    let Component { config, origin } = component;
    if let Some(mesh) = mesh {
        *config.mesh_mut() = Some(mesh.to_owned());
    }
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
        }
        Config::Source(config) => {
            if config.builtin() == Some("file") {
                resolve(&mut config.configs, "path", origin);
                resolve(&mut config.configs, "inputDirectory", origin);
            }
        }
        Config::Sink(config) => {
            if config.builtin() == Some("file") {
                resolve(&mut config.configs, "path", origin);
            }
        }
    }
}

fn resolve(configs: &mut Option<Map<String, Value>>, key: &str, origin: &Origin) {
    if let Some(Value::String(path)) = configs.as_mut().and_then(|configs| configs.get_mut(key)) {
        *path = origin.resolve(path).display().to_string();
    }
}

impl Config {
    /// The mesh that it belongs to.
    pub fn mesh(&self) -> Option<&str> {
        match self {
            Config::Source(config) => config.mesh.as_deref(),
            Config::Function(config) => config.mesh.as_deref(),
            Config::Sink(config) => config.mesh.as_deref(),
        }
    }

    fn mesh_mut(&mut self) -> &mut Option<String> {
        match self {
            Config::Source(config) => &mut config.mesh,
            Config::Function(config) => &mut config.mesh,
            Config::Sink(config) => &mut config.mesh,
        }
    }

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

    /// The same as it may be shown: secrets are masked.
    pub fn shown(&self) -> Value {
        let mut config = self.to_json();
        geminga_model::secret::mask_in(&mut config);
        config
    }
}

impl Plan {
    /// The same as the mesh `name`, which everything in it belongs to from now on.
    ///
    /// # Errors
    /// When the files say that they are another mesh, or a component that it is of another.
    pub fn named(mut self, name: &str) -> Result<Self, Vec<Diagnostic>> {
        if let Some(own) = self.name.as_deref().filter(|own| *own != name) {
            let message = format!("the files are the mesh `{own}`, not `{name}`");
            let error = Diagnostic::error("G0307", message)
                .help("leave `--name` out; it is for plain configurations, which name no mesh");
            return Err(vec![error]);
        }
        let wrong = self.components.iter();
        let wrong: Vec<_> = wrong.filter_map(|it| is_of_another(it, name)).collect();
        if !wrong.is_empty() {
            return Err(wrong);
        }
        for component in &mut self.components {
            *component.config.mesh_mut() = Some(name.to_owned());
        }
        self.name = Some(name.to_owned());
        Ok(self)
    }

    /// For machines, without secrets.
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
                "config": component.config.shown(),
            })).collect::<Vec<_>>(),
            "graph": self.graph.to_json(),
            "warnings": self.warnings.iter().map(warning).collect::<Vec<_>>(),
            "kubernetesOnly": self.kubernetes_only,
        })
    }
}

#[cfg(test)]
mod tests;
