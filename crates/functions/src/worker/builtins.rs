//! Built-in functions: what lies in the server's `functionsDirectory`, by the names that it gives.
//!
//! A package of Pulsar's says itself what it is; beside other code lies a YAML file that does. The folder is
//! read at the start and when it is asked for. What must hold: nothing outside of the folder is read; what
//! can not be used is named, and disturbs no other; a function keeps the code that it was made with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use geminga_model::{FunctionConfig, Runtime};
use geminga_stdx::nearest::nearest;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;

use super::Worker;
use super::package::{PACKAGE_BYTES_MAX, Spool, Upload};
use crate::archive;
use crate::component::{Component, ComponentId};
use crate::error::WorkerError;

/// Files that are looked at: more are no folder of functions.
const FILES_MAX: usize = 1000;
/// Bytes of what says what a function is.
const ABOUT_BYTES_MAX: u64 = 64 * 1024;
/// Characters of a name, and of the description that is kept of a function.
const NAME_CHARS_MAX: usize = 100;
const DESCRIPTION_CHARS_MAX: usize = 2000;
/// Names that a refusal, or the log, lists.
const LISTED_MAX: usize = 20;
/// Where a package says what it is.
const ABOUT: &str = "META-INF/services/pulsar-io.yaml";
/// How a code field names a built-in function.
const SCHEME: &str = "builtin://";

/// A built-in function, as Pulsar lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FunctionDefinition {
    pub name: String,
    pub description: String,
    /// The class; empty where the language has none.
    pub function_class: String,
}

/// A file of the folder that can not be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokenBuiltin {
    /// Its name in the folder; the folder's own when that can not be read.
    pub file: String,
    pub reason: String,
}

/// What was in the folder when it was read.
#[derive(Debug, Default)]
pub(crate) struct Builtins {
    functions: BTreeMap<String, Builtin>,
    broken: Vec<BrokenBuiltin>,
}

#[derive(Debug, Clone)]
struct Builtin {
    definition: FunctionDefinition,
    runtime: Runtime,
    file: PathBuf,
    stamp: Stamp,
}

/// By what a file is known to be the one that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    len: u64,
    /// Seconds and nanoseconds since 1970.
    modified: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// What a package of Pulsar's says; more is a connector's.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InPackage {
    name: Option<String>,
    description: Option<String>,
    function_class: Option<String>,
}

/// What lies beside other code.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Beside {
    name: Option<String>,
    description: Option<String>,
    #[serde(alias = "className")]
    function_class: Option<String>,
    file: String,
    runtime: Option<Runtime>,
}

impl Builtins {
    /// Reads a folder; one that is not there is empty.
    pub(crate) fn read(folder: &Path) -> Self {
        let mut read = Self::default();
        let whole = |error: std::io::Error| BrokenBuiltin {
            file: super::shown(folder),
            reason: format!("the folder can not be read: {error}"),
        };
        let opened = std::fs::canonicalize(folder)
            .and_then(|folder| Ok((std::fs::read_dir(&folder)?, folder)));
        let (entries, folder) = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return read,
            Err(error) => {
                read.broken.push(whole(error));
                return read;
            }
        };
        let mut names = BTreeSet::new();
        for entry in entries {
            if names.len() == FILES_MAX {
                let reason =
                    format!("it has more than {FILES_MAX} files: the others are not looked at");
                read.broken.push(BrokenBuiltin {
                    file: super::shown(&folder),
                    reason,
                });
                break;
            }
            match entry {
                Ok(entry) => names.extend(entry.file_name().into_string()),
                Err(error) => {
                    read.broken.push(whole(error));
                    break;
                }
            }
        }
        names.retain(|name| !name.starts_with('.'));
        let has = |name: &str, endings: &[&str]| {
            let ending = Path::new(name).extension().and_then(|it| it.to_str());
            ending.is_some_and(|ending| endings.contains(&ending))
        };
        // A jar that a file beside it speaks of need not say anything itself.
        let mut spoken_of = BTreeSet::new();
        for name in names.iter().filter(|name| has(name, &["yaml", "yml"])) {
            let found = beside(&folder, name);
            spoken_of.extend(found.iter().map(|builtin| builtin.file.clone()));
            read.take(name, found);
        }
        for name in names.iter().filter(|name| has(name, &["nar", "jar"])) {
            let file = inside(&folder, name);
            if file
                .as_ref()
                .is_ok_and(|(file, _)| spoken_of.contains(file))
            {
                continue;
            }
            read.take(name, file.and_then(|(file, of)| package(file, &of)));
        }
        read
    }

    fn take(&mut self, file: &str, found: Result<Builtin, String>) {
        let refused = match found {
            Ok(builtin) => {
                let name = &builtin.definition.name;
                match self.functions.get(name) {
                    None => {
                        self.functions.insert(name.clone(), builtin);
                        return;
                    }
                    Some(other) => format!("`{}` is named `{name}` too", shown_name(&other.file)),
                }
            }
            Err(reason) => reason,
        };
        self.broken.push(BrokenBuiltin {
            file: file.to_owned(),
            reason: refused,
        });
    }

    /// Tells the operator.
    pub(crate) fn log(&self) {
        for BrokenBuiltin { file, reason } in self.broken.iter().take(LISTED_MAX) {
            tracing::warn!(%file, "a built-in function can not be used: {reason}");
        }
        if let more @ 1.. = self.broken.len().saturating_sub(LISTED_MAX) {
            tracing::warn!(
                more,
                "there are more: `geminga functions reload` names them all"
            );
        }
    }

    fn get(&self, name: &str) -> Result<&Builtin, String> {
        if let Some(found) = self.functions.get(name) {
            return Ok(found);
        }
        let known = || self.functions.keys().map(String::as_str);
        let mut said = format!("Built-in function '{name}' is not available");
        if let Some(near) = nearest(name, known()) {
            said += &format!("; did you mean '{near}'?");
        }
        let listed: Vec<&str> = known().take(LISTED_MAX).collect();
        said += &match (
            listed.is_empty(),
            self.functions.len().saturating_sub(listed.len()),
        ) {
            (true, _) => {
                "; the server's `functionsDirectory` has none: put it there, and reload".to_owned()
            }
            (false, 0) => format!("; there are: {}", listed.join(", ")),
            (false, more) => format!("; there are: {}, and {more} more", listed.join(", ")),
        };
        Err(said)
    }
}

/// The last part of a path.
fn shown_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// A file of the folder, where it really is.
fn inside(folder: &Path, name: &str) -> Result<(PathBuf, Metadata), String> {
    let failed = |error: std::io::Error| format!("`{name}` can not be read: {error}");
    let path = std::fs::canonicalize(folder.join(name)).map_err(failed)?;
    if !path.starts_with(folder) {
        return Err(format!("`{name}` is outside of the folder"));
    }
    let metadata = std::fs::metadata(&path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(format!("`{name}` is no file"));
    }
    if metadata.len() > PACKAGE_BYTES_MAX {
        return Err(format!("`{name}` has more than {PACKAGE_BYTES_MAX} bytes"));
    }
    Ok((path, metadata))
}

/// A YAML file, and the code that it speaks of.
fn beside(folder: &Path, name: &str) -> Result<Builtin, String> {
    let (path, metadata) = inside(folder, name)?;
    if metadata.len() > ABOUT_BYTES_MAX {
        return Err(format!("it has more than {ABOUT_BYTES_MAX} bytes"));
    }
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(ABOUT_BYTES_MAX).read_to_string(&mut text))
        .map_err(|error| format!("it can not be read: {error}"))?;
    let about: Beside = yaml(&text)?;
    let (file, metadata) = inside(folder, &about.file)?;
    let runtime = match about.runtime {
        Some(runtime) => runtime,
        None => runtime_of(&file).ok_or_else(|| {
            format!(
                "the ending of `{}` does not tell its language: add `runtime: GO` or `runtime: EXEC`",
                about.file
            )
        })?,
    };
    let stem = Path::new(name).file_stem().and_then(|stem| stem.to_str());
    let definition = definition(
        about.name.or_else(|| stem.map(str::to_owned)),
        about.description,
        about.function_class,
    )?;
    let is_nar = file.extension().is_some_and(|ending| ending == "nar");
    if runtime == Runtime::Java && !is_nar && definition.function_class.is_empty() {
        return Err("`functionClass` is missing: the class of the function in the jar".to_owned());
    }
    Ok(Builtin {
        definition,
        runtime,
        stamp: Stamp::from(&metadata),
        file,
    })
}

/// A package that says itself what it is.
fn package(file: PathBuf, metadata: &Metadata) -> Result<Builtin, String> {
    let opened =
        std::fs::File::open(&file).map_err(|error| format!("it can not be read: {error}"))?;
    let about = archive::entry(&opened, metadata.len(), ABOUT, ABOUT_BYTES_MAX)?
        .ok_or_else(|| format!("it has no `{ABOUT}`"))?;
    let about = String::from_utf8(about).map_err(|_| format!("`{ABOUT}` is no text"))?;
    let about: InPackage = yaml(&about).map_err(|error| format!("`{ABOUT}`: {error}"))?;
    let Some(class) = about.function_class.filter(|class| !class.is_empty()) else {
        return Err(format!(
            "`{ABOUT}` names no `functionClass`: it is no function"
        ));
    };
    Ok(Builtin {
        definition: definition(about.name, about.description, Some(class))
            .map_err(|error| format!("`{ABOUT}`: {error}"))?,
        runtime: Runtime::Java,
        stamp: Stamp::from(metadata),
        file,
    })
}

fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|error| {
        // What follows draws the place.
        let said = error.to_string();
        let said = said.lines().next().unwrap_or_default();
        said.strip_prefix("error: ").unwrap_or(said).to_owned()
    })
}

fn definition(
    name: Option<String>,
    description: Option<String>,
    class: Option<String>,
) -> Result<FunctionDefinition, String> {
    let name = name.unwrap_or_default();
    let fits = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | '\\' | '\'' | '"' | '`');
    if name.is_empty() || name.len() > NAME_CHARS_MAX || !name.chars().all(fits) {
        return Err(format!(
            "`name` is to be 1 to {NAME_CHARS_MAX} letters, digits and signs, without blanks, quotes and slashes"
        ));
    }
    Ok(FunctionDefinition {
        name,
        description: description
            .unwrap_or_default()
            .chars()
            .take(DESCRIPTION_CHARS_MAX)
            .collect(),
        function_class: class.unwrap_or_default(),
    })
}

fn runtime_of(file: &Path) -> Option<Runtime> {
    Some(match file.extension()?.to_str()? {
        "py" | "zip" | "whl" => Runtime::Python,
        "sh" => Runtime::Bash,
        "go" => Runtime::Go,
        "jar" | "nar" => Runtime::Java,
        "wasm" | "wat" => Runtime::Wasm,
        _ => return None,
    })
}

/// The built-in function that a configuration asks for, in whichever of Pulsar's ways. It stands in
/// `functionType` alone afterwards.
///
/// # Errors
/// When it names two, or other code as well.
fn named(config: &mut FunctionConfig) -> Result<Option<String>, String> {
    let runtime = config.runtime;
    // `pulsar-admin` sends an empty text for nothing.
    let mut found = config.function_type.take().filter(|name| !name.is_empty());
    let fields = [
        (Runtime::Java, &mut config.jar),
        (Runtime::Python, &mut config.py),
        (Runtime::Go, &mut config.go),
        (Runtime::Bash, &mut config.sh),
        (Runtime::Exec, &mut config.exec),
        (Runtime::Wasm, &mut config.wasm),
    ];
    let mut other = None;
    let mut is_inferred = false;
    for (of, field) in fields {
        let Some(path) = field.as_deref() else {
            continue;
        };
        let Some(name) = path.strip_prefix(SCHEME) else {
            other = Some(of.code_field());
            continue;
        };
        match &found {
            Some(known) if known != name => {
                return Err(format!(
                    "`{}` names the built-in function '{name}', and another field '{known}': give one",
                    of.code_field()
                ));
            }
            _ => found = Some(name.to_owned()),
        }
        // `pulsar-admin` says of any built-in function that it is a jar, and so Java.
        is_inferred |= runtime == Some(of);
        *field = None;
    }
    if is_inferred {
        config.runtime = None;
    }
    if let (Some(name), Some(field)) = (&found, other) {
        return Err(format!(
            "`functionType` names the built-in function '{name}', and `{field}` is given as well: give one of the two"
        ));
    }
    config.function_type.clone_from(&found);
    Ok(found)
}

/// What a component is made of, when it is a built-in function.
pub(super) struct Resolved {
    builtin: Builtin,
    /// A class that was given comes before the function's own.
    class: Option<String>,
}

impl Resolved {
    /// Puts what it is into its configuration.
    pub(super) fn fill(&self, id: &ComponentId, component: &mut Component) {
        let Component::Function(config) = component else {
            return;
        };
        if config.fqfn.is_none() {
            // The class would name it otherwise.
            config.name = Some(id.name.clone());
        }
        for code in [
            &mut config.jar,
            &mut config.py,
            &mut config.go,
            &mut config.sh,
            &mut config.exec,
            &mut config.wasm,
        ] {
            *code = None;
        }
        // Of other code.
        config.code_digest = None;
        let own = &self.builtin.definition.function_class;
        config.class_name = self
            .class
            .clone()
            .or_else(|| Some(own.clone()).filter(|own| !own.is_empty()));
        config.runtime = Some(self.builtin.runtime);
    }

    /// The class that the stored one has stays, as in Pulsar, when an update names the same function and no class.
    pub(super) fn keep_class(&mut self, stored: &Component, removed: &[String]) {
        let Component::Function(stored) = stored else {
            return;
        };
        let is_same = stored.function_type.as_ref() == Some(&self.builtin.definition.name);
        if self.class.is_none() && is_same && !removed.iter().any(|field| field == "className") {
            self.class.clone_from(&stored.class_name);
        }
    }

    /// Its language, where it must be that of what is there.
    pub(super) fn fits(&self, stored: &Component) -> Result<(), WorkerError> {
        let Component::Function(stored) = stored else {
            return Ok(());
        };
        match stored.runtime() {
            Some(was) if was != self.builtin.runtime => Err(WorkerError::Invalid(vec![format!(
                "Runtime cannot be altered: the built-in function '{}' is {}, and {} is what runs",
                self.builtin.definition.name,
                self.builtin.runtime.label(),
                was.label()
            )])),
            _ => Ok(()),
        }
    }

    /// Its code, as it is in the folder now.
    pub(super) async fn code(&self, packages: &Path) -> Result<Upload, WorkerError> {
        let Builtin {
            definition,
            file,
            stamp,
            ..
        } = &self.builtin;
        let name = shown_name(file);
        let failed = || {
            WorkerError::io(format!(
                "reading `{name}` of the built-in function '{}'",
                definition.name
            ))
        };
        let there = tokio::fs::metadata(file).await;
        if !there.is_ok_and(|there| there.is_file() && Stamp::from(&there) == *stamp) {
            return Err(WorkerError::Invalid(vec![format!(
                "`{name}` of the built-in function '{}' changed since the server read its `functionsDirectory`: \
                 reload the functions (`geminga functions reload`), and try again",
                definition.name
            )]));
        }
        let mut from = tokio::fs::File::open(file).await.map_err(failed())?;
        let mut spool = Spool::new(packages).await.map_err(failed())?;
        let mut piece = vec![0; 64 * 1024];
        loop {
            match from.read(&mut piece).await.map_err(failed())? {
                0 => break,
                read => spool.write(&piece[..read]).await.map_err(failed())?,
            }
        }
        let spooled = spool.finish().await.map_err(failed())?;
        Ok(Upload::spooled(name, spooled))
    }
}

impl Worker {
    /// The built-in functions, by name.
    #[must_use]
    pub fn builtin_functions(&self) -> Vec<FunctionDefinition> {
        let builtins = self.inner.builtins.lock().clone();
        builtins
            .functions
            .values()
            .map(|builtin| builtin.definition.clone())
            .collect()
    }

    /// Reads the folder again, and tells what of it can not be used. What runs keeps its code.
    ///
    /// # Errors
    /// When the worker is stopping.
    pub async fn reload_builtin_functions(&self) -> Result<Vec<BrokenBuiltin>, WorkerError> {
        let Some(folder) = self.inner.config.functions_directory.clone() else {
            return Ok(Vec::new());
        };
        let read = tokio::task::spawn_blocking(move || Builtins::read(&folder)).await;
        let read = read.map_err(|_| WorkerError::Stopping)?;
        read.log();
        let broken = read.broken.clone();
        *self.inner.builtins.lock() = Arc::new(read);
        Ok(broken)
    }

    /// The built-in function that a component asks for, if it does.
    ///
    /// # Errors
    /// When there is none of that name, or it does not go with the rest of what is given.
    pub(super) fn resolve(
        &self,
        component: &mut Component,
        has_code: bool,
    ) -> Result<Option<Resolved>, WorkerError> {
        let invalid = |said: String| WorkerError::Invalid(vec![said]);
        let Component::Function(config) = component else {
            return Ok(None);
        };
        let Some(name) = named(config).map_err(invalid)? else {
            return Ok(None);
        };
        if has_code {
            return Err(invalid(format!(
                "`functionType` names the built-in function '{name}', and code is sent along: give one of the two"
            )));
        }
        if self.inner.config.functions_directory.is_none() {
            return Err(invalid(
                "`functionType` names a function of a server's `functionsDirectory`, and here is none: create it \
                 on a server, or give the code"
                    .to_owned(),
            ));
        }
        let builtins = self.inner.builtins.lock().clone();
        let builtin = builtins.get(&name).map_err(invalid)?.clone();
        // Filled in from here on; of an update it may not change.
        if let Some(given) = config
            .runtime
            .take()
            .filter(|given| *given != builtin.runtime)
        {
            return Err(invalid(format!(
                "`runtime` is {}, and the built-in function '{name}' is {}",
                given.label(),
                builtin.runtime.label()
            )));
        }
        let class = config.class_name.take().filter(|class| !class.is_empty());
        Ok(Some(Resolved { builtin, class }))
    }
}

#[cfg(test)]
mod tests;
