//! Secrets of functions: which may be read on this machine, and when.
//!
//! Whoever may register a function must not read the worker's environment and files by it. So the operator of a
//! server lists what secrets may name, and without a list they name nothing; where the one who wrote the
//! configuration runs the process, all is allowed. It is asked when a function is registered, for an answer at once,
//! and when its secrets are read: on the worker that runs it, for each start of a host. What must hold: no value is
//! in an error, a log line or `Debug` output.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use geminga_model::{Secret, Secrets};

use crate::runtime::{Broken, HostSpec};

mod read;

/// The settings of a server that list what secrets may name.
pub const SECRETS_FROM_ENVIRONMENT: &str = "gemingaSecretsFromEnvironment";
pub const SECRETS_FROM_FOLDERS: &str = "gemingaSecretsFromFolders";
pub const SECRETS_FROM_COMMANDS: &str = "gemingaSecretsFromCommands";

/// Bytes of all secrets of a function that are read: they go to its host in one piece.
const ALL_BYTES_MAX: usize = 1 << 20;

/// Secrets by name, not read yet.
pub(crate) type Declared = BTreeMap<String, Secret>;

/// What a configuration declares. What is no secret is refused where the configuration is checked.
pub(crate) fn declared(secrets: Option<&Secrets>) -> Declared {
    let each = secrets.into_iter().flat_map(|secrets| secrets.iter());
    each.filter_map(|(name, value)| Some((name.clone(), Secret::parse(value).ok()?)))
        .collect()
}

/// Secrets by name, as code gets them. Their values are not shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretValues(BTreeMap<String, String>);

impl Deref for SecretValues {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for SecretValues {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl fmt::Debug for SecretValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What secrets may name on this machine; nothing unless it says so.
#[derive(Debug, Clone, Default)]
pub struct SecretRules(Rules);

#[derive(Debug, Clone)]
enum Rules {
    Everything,
    Listed(Arc<Listed>),
}

impl Default for Rules {
    fn default() -> Self {
        Self::Listed(Arc::default())
    }
}

#[derive(Debug, Default)]
struct Listed {
    environment: Vec<String>,
    folders: Vec<PathBuf>,
    commands: Vec<Vec<String>>,
}

impl SecretRules {
    /// All may be read: for a process that runs what its own user wrote.
    #[must_use]
    pub fn everything() -> Self {
        Self(Rules::Everything)
    }

    /// These environment variables, of which each may end in `*` for any ending, files in these folders and
    /// below, and these commands, word by word.
    ///
    /// # Errors
    /// What can not be listed, by the name of its setting.
    pub fn listed(
        environment: Vec<String>,
        folders: Vec<PathBuf>,
        commands: Vec<Vec<String>>,
    ) -> Result<Self, String> {
        for name in &environment {
            let begin = name.strip_suffix('*').unwrap_or(name);
            if name.is_empty() || begin.contains(['*', '=', '\0']) {
                return Err(format!(
                    "`{SECRETS_FROM_ENVIRONMENT}`: `{name}` is not the name of an environment variable, nor the \
                     begin of one and `*`"
                ));
            }
        }
        for folder in &folders {
            if !folder.is_absolute() || has_way_up(folder) {
                return Err(format!(
                    "`{SECRETS_FROM_FOLDERS}`: `{}` is not the whole path of a folder",
                    folder.display()
                ));
            }
        }
        if commands.iter().any(Vec::is_empty) {
            return Err(format!(
                "`{SECRETS_FROM_COMMANDS}`: a command without a program"
            ));
        }
        Ok(Self(Rules::Listed(Arc::new(Listed {
            environment,
            folders,
            commands,
        }))))
    }

    /// Whether a function may have these secrets, as far as it can be told before they are read: the file may be
    /// on another worker.
    ///
    /// # Errors
    /// One sentence a secret, with the setting that would allow it.
    pub(crate) async fn check(&self, secrets: Declared) -> Result<(), Vec<String>> {
        let rules = self.clone();
        // Paths are followed, and a file system may hang.
        let checked = tokio::task::spawn_blocking(move || {
            let mut wrong = Vec::new();
            for (name, secret) in &secrets {
                let mut may = rules.may(secret);
                if let (Ok(()), Secret::File(path)) = (&may, secret)
                    && let Ok(real) = std::fs::canonicalize(path)
                {
                    may = rules.may_open(path, &real);
                }
                wrong.extend(may.err().map(|why| format!("`secrets.{name}`: {why}")));
            }
            wrong
        });
        match tokio::time::timeout(read::FILE_WITHIN, checked).await {
            Ok(Ok(wrong)) if wrong.is_empty() => Ok(()),
            Ok(Ok(wrong)) => Err(wrong),
            _ => Err(vec![
                "`secrets` could not be checked: a folder of the list does not answer".to_owned(),
            ]),
        }
    }

    /// Whether a secret may be read, by what it says itself. Of a file the links of the list are followed: not for a
    /// thread that others need.
    fn may(&self, secret: &Secret) -> Result<(), String> {
        let Rules::Listed(listed) = &self.0 else {
            return Ok(());
        };
        let worker = |setting: &str| format!("`{setting}` of this server ({})", flag(setting));
        match secret {
            Secret::Clear(_) => Ok(()),
            Secret::Env(name) if listed.has_variable(name) => Ok(()),
            Secret::Env(name) => Err(format!(
                "functions may not read the environment variable `{name}`: the operator can add `{name}` to {}",
                worker(SECRETS_FROM_ENVIRONMENT)
            )),
            Secret::File(path) if has_way_up(Path::new(path)) => {
                Err(format!("`{path}` leads back up: write it without `..`"))
            }
            Secret::File(path) if listed.has_file(Path::new(path)) => Ok(()),
            Secret::File(path) => Err(not_below(path)),
            Secret::Command(words) if listed.commands.contains(words) => Ok(()),
            Secret::Command(words) => {
                let words = shown(words);
                Err(format!(
                    "functions may not run {words} for a secret: the operator can add {words} to {}",
                    worker(SECRETS_FROM_COMMANDS)
                ))
            }
        }
    }

    /// Whether a file may be read that is at `real` in the end.
    fn may_open(&self, path: &str, real: &Path) -> Result<(), String> {
        match &self.0 {
            Rules::Everything => Ok(()),
            Rules::Listed(listed) if listed.has_real_file(real) => Ok(()),
            // Where the link leads to is nobody's business.
            Rules::Listed(_) => Err(format!(
                "{}; a link leads out of the one it is in",
                not_below(path)
            )),
        }
    }

    /// The values of these secrets, now.
    ///
    /// # Errors
    /// The first that can't be read: its name, what was tried, why, and what to do.
    pub(crate) async fn read(&self, secrets: &Declared) -> Result<SecretValues, String> {
        let mut values = SecretValues::default();
        let mut bytes = 0;
        for (name, secret) in secrets {
            let value = match secret {
                Secret::Clear(value) => {
                    values.insert(name.clone(), value.clone());
                    continue;
                }
                Secret::Env(variable) => self.may(secret).and_then(|()| read::variable(variable)),
                Secret::File(path) => read::file(path, self).await,
                Secret::Command(words) => match self.may(secret) {
                    Ok(()) => read::command(words, read::COMMAND_WITHIN).await,
                    Err(why) => Err(why),
                },
            };
            let value = value.map_err(|why| format!("the secret `{name}` can't be read: {why}"))?;
            bytes += value.len();
            if bytes > ALL_BYTES_MAX {
                return Err(format!(
                    "the secret `{name}` is too much: the secrets of a function that are read have {ALL_BYTES_MAX} \
                     bytes at most"
                ));
            }
            values.insert(name.clone(), value);
        }
        Ok(values)
    }
}

impl Listed {
    fn has_variable(&self, name: &str) -> bool {
        let is = |listed: &String| match listed.strip_suffix('*') {
            Some(begin) => name.starts_with(begin),
            None => name == listed,
        };
        self.environment.iter().any(is)
    }

    /// Whether a path is in a folder, as both are written or with the folder's links followed.
    fn has_file(&self, path: &Path) -> bool {
        self.folders.iter().any(|folder| path.starts_with(folder)) || self.has_real_file(path)
    }

    /// The same for a path without links.
    fn has_real_file(&self, path: &Path) -> bool {
        let is = |folder: &PathBuf| {
            std::fs::canonicalize(folder).is_ok_and(|folder| path.starts_with(folder))
        };
        self.folders.iter().any(is)
    }
}

fn not_below(path: &str) -> String {
    format!(
        "functions may not read `{path}`: the operator can add its folder to `{SECRETS_FROM_FOLDERS}` of this server ({})",
        flag(SECRETS_FROM_FOLDERS)
    )
}

/// How a worker by itself is told the same.
fn flag(setting: &str) -> String {
    let mut flag = String::from("`geminga worker --");
    for c in setting.trim_start_matches("geminga").chars() {
        if c.is_ascii_uppercase() && !flag.ends_with('-') {
            flag.push('-');
        }
        flag.push(c.to_ascii_lowercase());
    }
    flag + "`"
}

/// A command as it is written.
fn shown(words: &[String]) -> String {
    format!("`{}`", serde_json::json!(words))
}

fn has_way_up(path: &Path) -> bool {
    path.components().any(|part| part == Component::ParentDir)
}

/// The settings of a host, whose secrets are read for each start.
#[derive(Clone, Default)]
pub(crate) struct Unread {
    pub(crate) spec: HostSpec,
    pub(crate) secrets: Declared,
    pub(crate) rules: SecretRules,
}

impl Unread {
    /// # Errors
    /// When a secret can't be read now.
    pub(crate) async fn read(&self) -> Result<Arc<HostSpec>, Broken> {
        let secrets = self.rules.read(&self.secrets).await;
        let secrets = secrets.map_err(|reason| Broken::Start {
            reason,
            stderr_tail: String::new(),
        })?;
        Ok(Arc::new(HostSpec {
            secrets,
            ..self.spec.clone()
        }))
    }
}

/// For tests, which put the secrets into the settings themselves.
#[cfg(test)]
impl From<HostSpec> for Unread {
    fn from(spec: HostSpec) -> Self {
        let each = spec.secrets.iter();
        let clear = each.map(|(name, value)| (name.clone(), Secret::Clear(value.clone())));
        Self {
            secrets: clear.collect(),
            rules: SecretRules::default(),
            spec,
        }
    }
}

#[cfg(test)]
mod tests;
