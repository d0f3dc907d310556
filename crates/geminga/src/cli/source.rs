//! A function on this machine: its file, the files around it, its configuration, and where its code is wrong.
//!
//! Shared by `test` and `dev`.

mod place;

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use geminga_mesh::load::Config;
use geminga_model::FunctionConfig;
use geminga_stdx::Diagnostic;

use super::mesh;
use super::run::script;
use crate::failure::{Exit, Failure, Outcome};

/// Files that a folder of functions may have; what is larger is something else.
const FILES_MAX: usize = 5000;
/// Folders in which nobody keeps sources.
const SKIPPED: [&str; 6] = [
    "target",
    "node_modules",
    "__pycache__",
    "venv",
    "dist",
    "build",
];

/// The file that says what a function is: a configuration or a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) file: PathBuf,
    /// Which function of a file with several.
    name: Option<String>,
}

impl Source {
    /// A file, `FILE#NAME`, or a folder with a `function.yaml` in it.
    pub(crate) fn of(path: &Path) -> Outcome<Self> {
        let text = path.to_string_lossy();
        let (file, name) = match text.rsplit_once('#') {
            Some((file, name)) if !path.exists() => (PathBuf::from(file), Some(name.to_owned())),
            _ => (path.to_owned(), None),
        };
        // A folder of Go may stand for itself.
        let has = |name: &str| file.join(name).exists();
        let file = if file.is_dir() && (has("function.yaml") || !has("go.mod")) {
            file.join("function.yaml")
        } else {
            file
        };
        if !file.exists() {
            let message = format!("there is no function at `{}`", path.display());
            let error = Diagnostic::error("G0313", message)
                .cause(format!("`{}` does not exist", file.display()))
                .help("`geminga init bash hello` makes one; or name a configuration or a script");
            return Err(Failure::new(Exit::NotFound, error));
        }
        Ok(Self { file, name })
    }

    /// The folder that holds it.
    pub(crate) fn folder(&self) -> &Path {
        match self.file.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        }
    }

    /// Its configuration; paths in it are those of the file.
    pub(crate) fn load(&self) -> Outcome<FunctionConfig> {
        let ending = self.file.extension().and_then(|ending| ending.to_str());
        if !ending.is_some_and(|ending| ["yaml", "yml", "json"].contains(&ending)) {
            return script::config(&self.file);
        }
        let plan = mesh::load(std::slice::from_ref(&self.file))?;
        let functions = plan
            .components
            .into_iter()
            .filter_map(|it| match it.config {
                Config::Function(config) => Some(*config),
                _ => None,
            });
        let mut functions: Vec<FunctionConfig> = functions
            .filter(|it| self.name.is_none() || it.name() == self.name.as_deref())
            .collect();
        if functions.len() == 1
            && let Some(only) = functions.pop()
        {
            return Ok(only);
        }
        let shown = self.file.display();
        let message = match &self.name {
            Some(name) => format!("there is no function `{name}` in `{shown}`"),
            None => format!("`{shown}` is not one function"),
        };
        let error =
            Diagnostic::error("G0313", message).help(format!("name one of several: {shown}#NAME"));
        Err(Failure::new(Exit::Usage, error))
    }
}

/// A file of a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileAt {
    /// Relative to the folder.
    pub(crate) name: PathBuf,
    pub(crate) changed: SystemTime,
    pub(crate) bytes: u64,
}

/// The files below `folder`, in order; hidden ones, and folders that hold what was built, are left out.
pub(crate) fn files(folder: &Path) -> Outcome<Vec<FileAt>> {
    files_called(folder, "", FILES_MAX)
}

/// Those whose names end so, in a folder that may hold much else: `looked_max` files and folders.
pub(crate) fn files_called(folder: &Path, ending: &str, looked_max: usize) -> Outcome<Vec<FileAt>> {
    let mut found = Vec::new();
    let mut looked = 0;
    // A link may lead back, which few files do not bound.
    let mut known = HashSet::new();
    if let Ok(about) = std::fs::metadata(folder) {
        known.insert((about.dev(), about.ino()));
    }
    let mut folders = vec![PathBuf::new()];
    while let Some(inside) = folders.pop() {
        // A folder may go while it is read: then it has nothing.
        let Ok(entries) = std::fs::read_dir(folder.join(&inside)) else {
            continue;
        };
        for entry in entries.flatten() {
            let file_name = entry.file_name();
            let name = inside.join(&file_name);
            let text = file_name.to_string_lossy();
            if text.starts_with('.') || SKIPPED.contains(&&*text) {
                continue;
            }
            let Ok(about) = std::fs::metadata(entry.path()) else {
                continue;
            };
            looked += 1;
            if about.is_dir() {
                if known.insert((about.dev(), about.ino())) || ending.is_empty() {
                    folders.push(name);
                }
            } else if text.ends_with(ending) {
                found.push(FileAt {
                    name,
                    changed: about.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                    bytes: about.len(),
                });
            }
            if looked > looked_max {
                let message = format!("`{}` has more than {looked_max} files", folder.display());
                let error = Diagnostic::error("G0423", message)
                    .help("put the function into a folder of its own");
                return Err(Failure::new(Exit::Usage, error));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The full name of a topic.
pub(crate) fn full_name(topic: &str) -> String {
    topic
        .parse::<geminga_model::TopicName>()
        .map_or_else(|_| topic.to_owned(), |name| name.to_string())
}

/// Code that does not start: what it said, and where in the sources that points to.
pub(crate) fn broken(config: &FunctionConfig, said: &str) -> Diagnostic {
    let name = config.name().unwrap_or("function");
    let error = Diagnostic::error("G0412", format!("function `{name}` does not start"))
        .cause(said.trim_end().to_owned());
    let code = config.code().map(|(_, path)| PathBuf::from(path));
    let folder = code.as_deref().map(|code| match code.is_dir() {
        true => code,
        false => code.parent().unwrap_or(Path::new("")),
    });
    match folder.and_then(|folder| place::of(said, folder)) {
        Some(place) => error.at(place.file, place.line, place.column),
        None => error,
    }
}
