//! One version of a function: a copy of its code as it was when it was saved.

use std::path::{Path, PathBuf};

use geminga_functions::runtime::{Broken, go, java};
use geminga_model::{FunctionConfig, Runtime};
use geminga_stdx::Diagnostic;

use crate::cli::source::{self, FileAt, Source};
use crate::failure::{Exit, Failure, Outcome};

/// A version that can be run, whatever becomes of the files that it was made of.
pub(super) struct Version {
    pub(super) config: FunctionConfig,
    /// As it was written, for places in messages.
    written: FunctionConfig,
    /// The folder of the sources and the folder of their copy.
    copied: Option<(PathBuf, PathBuf)>,
}

impl Version {
    /// Reads the configuration and copies or builds the code; `into` is made for the copy.
    pub(super) async fn make(source: &Source, into: &Path) -> Outcome<Self> {
        let written = source.load()?;
        let mut version = Self {
            config: written.clone(),
            written,
            copied: None,
        };
        let Some((runtime, path)) = version.written.code() else {
            return Ok(version);
        };
        let path = PathBuf::from(path.strip_prefix("file://").unwrap_or(path));
        let code = match runtime {
            // Compilers keep what they make by what it was made of.
            Runtime::Go if go::is_source(&path) => {
                let built = go::build(&path).await;
                built.map_err(|broken| version.broken(&broken))?
            }
            Runtime::Wasm if go::is_source(&path) => {
                let built = go::build_wasm(&path).await;
                built.map_err(|broken| version.broken(&broken))?
            }
            Runtime::Java if java::is_source(&path) => {
                let built = java::build(&path).await;
                built.map_err(|broken| version.broken(&broken))?
            }
            _ => {
                let folder = match path.parent() {
                    _ if path.is_dir() => path.clone(),
                    Some(parent) if parent != Path::new("") => parent.to_owned(),
                    _ => PathBuf::from("."),
                };
                let (from, to, code) = (folder.clone(), into.to_owned(), path.clone());
                let copied = tokio::task::spawn_blocking(move || copy(&from, &to, &code));
                copied.await.map_err(std::io::Error::other)??;
                let inside = path.strip_prefix(&folder).unwrap_or(&path);
                let code: PathBuf = into.join(inside).components().collect();
                version.copied = Some((folder, into.to_owned()));
                code
            }
        };
        set_code(&mut version.config, runtime, code.display().to_string());
        Ok(version)
    }

    /// Starts the code apart from any message, and ends it.
    pub(super) async fn check(&self) -> Outcome {
        let checked = {
            let wasm = crate::serve::wasm();
            geminga_functions::check_code(self.config.clone(), wasm.as_ref()).await
        };
        checked.map_err(|error| {
            let said = self.as_written(&error.to_string());
            let error = source::broken(&self.written, &said);
            Failure::new(Exit::Failed, error)
        })
    }

    /// What was said of the copy, as if it had been said of the sources.
    pub(super) fn as_written(&self, said: &str) -> String {
        match &self.copied {
            Some((folder, copy)) => {
                let (folder, copy) = (folder.display(), copy.display());
                said.replace(&format!("{copy}/"), &format!("{folder}/"))
            }
            None => said.to_owned(),
        }
    }

    fn broken(&self, broken: &Broken) -> Failure {
        let said = match broken {
            Broken::Deployment {
                reason,
                stderr_tail,
            }
            | Broken::Start {
                reason,
                stderr_tail,
            } => format!("{reason}\n{stderr_tail}"),
            Broken::Stopped => broken.to_string(),
        };
        let error: Diagnostic = source::broken(&self.written, &said);
        Failure::new(Exit::Failed, error)
    }
}

fn set_code(config: &mut FunctionConfig, runtime: Runtime, code: String) {
    let field = match runtime.code_field() {
        "sh" => &mut config.sh,
        "py" => &mut config.py,
        "go" => &mut config.go,
        "jar" => &mut config.jar,
        "wasm" => &mut config.wasm,
        _ => &mut config.exec,
    };
    *field = Some(code);
}

/// Copies a folder; where it is too large for a function's own, the file of the code alone.
fn copy(folder: &Path, into: &Path, code: &Path) -> Outcome {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| -> Failure {
            let message = format!("`{path}` cannot be copied");
            Diagnostic::error("G0001", message)
                .cause(error.to_string())
                .into()
        }
    };
    let names = match source::files(folder) {
        Ok(files) => files.into_iter().map(|file| file.name).collect(),
        Err(_) => {
            let only = code.strip_prefix(folder).unwrap_or(code);
            vec![only.to_owned()]
        }
    };
    std::fs::create_dir_all(into).map_err(failed(into))?;
    for name in names {
        let (from, to) = (folder.join(&name), into.join(&name));
        let parent = to.parent().unwrap_or(into);
        std::fs::create_dir_all(parent).map_err(failed(parent))?;
        match std::fs::copy(&from, &to) {
            // It went since it was listed: the code itself is looked for when it starts.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => drop(other.map_err(failed(&from))?),
        }
    }
    Ok(())
}

/// Removes the copy of a version that runs no more, if there is one.
pub(super) async fn remove(copy: PathBuf) {
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(copy));
    // What is left goes when `geminga dev` ends.
    drop(removed.await);
}

/// The names of what changed between two looks, for a person.
pub(super) fn changed(before: &[FileAt], now: &[FileAt]) -> String {
    let gone = before
        .iter()
        .filter(|old| now.iter().all(|new| new.name != old.name));
    let names: Vec<String> = now
        .iter()
        .filter(|file| !before.contains(file))
        .chain(gone)
        .map(|file| file.name.display().to_string())
        .collect();
    match &names[..] {
        [first, _, _, _, ..] => format!("{first} and {} more", names.len() - 1),
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    #[test]
    fn what_changed_is_named() {
        let file = |name: &str, at: u64| FileAt {
            name: name.into(),
            changed: SystemTime::UNIX_EPOCH + Duration::from_secs(at),
            bytes: 1,
        };
        let before = [file("a", 1), file("b", 1), file("c", 1)];
        assert_eq!(
            changed(&before, &[file("a", 1), file("b", 2), file("d", 1)]),
            "b, d, c"
        );
        assert_eq!(
            changed(
                &[],
                &[file("a", 1), file("b", 1), file("c", 1), file("d", 1)]
            ),
            "a and 3 more"
        );
    }
}
