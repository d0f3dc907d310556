//! The secrets of a component: what a value in `secrets` means, and what is shown of it.
//!
//! A value is the secret itself, or says where it is. What must hold: the first kind is in no message, no
//! `Debug` output and no answer; the second is no secret, and is shown as it is. Reading what is elsewhere
//! is the worker's.

use std::fmt;
use std::ops::{Deref, DerefMut};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// Stands for a secret wherever it is shown. In an update it means the one that is stored under its name.
pub const MASK: &str = "******";

/// The ways to say where a secret is.
const KINDS: [&str; 3] = ["env", "file", "command"];
/// What turns an object that looks like a reference into the secret that it is.
const AS_TEXT: &str = "if the object is the secret itself, write it as text";

/// Secrets by name, as they were written.
#[derive(Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Secrets(Map<String, Value>);

impl Secrets {
    /// As they may be shown: references, and the mask for all else.
    #[must_use]
    pub fn masked(&self) -> Self {
        let shown = self
            .0
            .iter()
            .map(|(name, value)| (name.clone(), masked(value)));
        Self(shown.collect())
    }

    /// With what is stored in the place of each mask. One for which nothing is stored stays.
    #[must_use]
    pub fn unmasked(&self, stored: Option<&Self>) -> Self {
        let whole = self.0.iter().map(|(name, value)| {
            let known = stored.and_then(|stored| stored.get(name));
            let known = known.filter(|_| value == MASK);
            (name.clone(), known.unwrap_or(value).clone())
        });
        Self(whole.collect())
    }
}

impl Deref for Secrets {
    type Target = Map<String, Value>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Secrets {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl From<Map<String, Value>> for Secrets {
    fn from(secrets: Map<String, Value>) -> Self {
        Self(secrets)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.masked().0.iter()).finish()
    }
}

impl<'de> Deserialize<'de> for Secrets {
    /// By hand, since the derived code quotes a value that is no map: it may be a secret.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found = match Value::deserialize(deserializer)? {
            Value::Object(secrets) => return Ok(Self(secrets)),
            Value::Array(_) => "a list",
            Value::String(_) => "text",
            Value::Null => "nothing",
            Value::Bool(_) | Value::Number(_) => "a single value",
        };
        Err(serde::de::Error::custom(format!(
            "expected a map of secrets by name, found {found}"
        )))
    }
}

/// One secret.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// The secret itself: text, or other JSON as its text.
    Clear(String),
    /// An environment variable of the worker that runs the instance.
    Env(String),
    /// The content of a file on that worker.
    File(String),
    /// What a program prints there.
    Command(Vec<String>),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clear(_) => f.write_str(MASK),
            Self::Env(name) => f.debug_tuple("Env").field(name).finish(),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Command(words) => f.debug_tuple("Command").field(words).finish(),
        }
    }
}

/// What is wrong with a secret's value, which is not told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub message: String,
    pub help: String,
}

impl Secret {
    /// What a value means. The line between a reference and a secret that is a JSON object: an object is a
    /// reference, or a mistake, when one of its names is `env`, `file` or `command`, when it has one name that
    /// is nearly one of these and a fitting value, or when it is a `{path, key}` of Kubernetes. Any other object,
    /// and text whatever it holds, is the secret itself.
    ///
    /// # Errors
    /// A reference that means nothing, or nothing here.
    pub fn parse(value: &Value) -> Result<Self, Wrong> {
        let clear = || Ok(Self::Clear(plain(value)));
        let Value::Object(object) = value else {
            return clear();
        };
        let wrong = |message: String, help: String| Wrong { message, help };
        let kind = KINDS.into_iter().find(|kind| object.contains_key(*kind));
        match (object.iter().next(), kind) {
            (Some((_, target)), Some(kind)) if object.len() == 1 => Self::reference(kind, target),
            (_, Some(kind)) => {
                let others = object.keys().filter(|name| *name != kind);
                let others: Vec<String> = others.map(|name| format!("`{name}`")).collect();
                Err(wrong(
                    format!(
                        "`{kind}` says where it is, and {} stands beside it",
                        others.join(", ")
                    ),
                    format!("give one of `env`, `file` and `command` alone; {AS_TEXT}"),
                ))
            }
            (Some((name, target)), None) if object.len() == 1 => {
                let fits = |kind: &&str| is_near(name, kind) && has_shape(kind, target);
                match KINDS.into_iter().find(fits) {
                    Some(kind) => Err(wrong(
                        format!("`{name}` is none of `env`, `file` and `command`"),
                        format!("did you mean `{kind}`? And {AS_TEXT}"),
                    )),
                    None => clear(),
                }
            }
            (_, None) if is_of_kubernetes(object) => Err(wrong(
                "`path` and `key` name a Secret of Kubernetes, and there are none here".to_owned(),
                format!(
                    "write {{\"file\": \"/where/it/is/mounted\"}} or {{\"env\": \"NAME\"}}; {AS_TEXT}"
                ),
            )),
            (_, None) => clear(),
        }
    }

    fn reference(kind: &str, value: &Value) -> Result<Self, Wrong> {
        let wrong = |message: &str, help: &str| {
            Err(Wrong {
                message: message.to_owned(),
                help: format!("{help}; {AS_TEXT}"),
            })
        };
        match (kind, value) {
            ("env", Value::String(name)) if !name.is_empty() && !name.contains(['=', '\0']) => {
                Ok(Self::Env(name.clone()))
            }
            ("env", _) => wrong(
                "`env` is not the name of an environment variable",
                "write {\"env\": \"NAME\"}",
            ),
            ("file", Value::String(path)) if path.starts_with('/') && !path.contains('\0') => {
                Ok(Self::File(path.clone()))
            }
            ("file", _) => wrong(
                "`file` is not the whole path of a file",
                "write {\"file\": \"/the/whole/path\"}",
            ),
            _ => {
                let words = value.as_array().and_then(|words| {
                    let word = |word: &Value| Some(word.as_str()?.to_owned());
                    words.iter().map(word).collect::<Option<Vec<String>>>()
                });
                let is_one = |words: &Vec<String>| {
                    words.first().is_some_and(|program| !program.is_empty())
                        && !words.iter().any(|word| word.contains('\0'))
                };
                match words.filter(is_one) {
                    Some(words) => Ok(Self::Command(words)),
                    None => wrong(
                        "`command` is not a program and its arguments",
                        "write {\"command\": [\"/the/program\", \"argument\"]}",
                    ),
                }
            }
        }
    }
}

/// A secret's value as it may be shown.
#[must_use]
pub fn masked(value: &Value) -> Value {
    match Secret::parse(value) {
        Ok(Secret::Env(_) | Secret::File(_) | Secret::Command(_)) => value.clone(),
        Ok(Secret::Clear(_)) | Err(_) => MASK.into(),
    }
}

/// The secrets in a configuration as JSON become what may be shown of them.
pub fn mask_in(config: &mut Value) {
    if let Some(Value::Object(secrets)) = config.get_mut("secrets") {
        for value in secrets.values_mut() {
            *value = masked(value);
        }
    }
}

/// Text bare, the rest as JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn is_of_kubernetes(object: &Map<String, Value>) -> bool {
    let is_text = |name| object.get(name).is_some_and(Value::is_string);
    object.len() == 2 && is_text("path") && is_text("key")
}

/// Whether a value is what a kind of reference has.
fn has_shape(kind: &str, value: &Value) -> bool {
    match kind {
        "command" => value.is_array() || value.is_string(),
        _ => value.is_string(),
    }
}

/// Whether one slip of the fingers makes `word` of `known`, or it is written in other cases.
fn is_near(word: &str, known: &str) -> bool {
    let word: Vec<char> = word.to_lowercase().chars().collect();
    let known: Vec<char> = known.chars().collect();
    let same = word.iter().zip(&known).take_while(|(a, b)| a == b).count();
    let (word, known) = (&word[same..], &known[same..]);
    match (word, known) {
        ([], []) => true,
        ([_, rest @ ..], []) | ([], [_, rest @ ..]) => rest.is_empty(),
        ([a, word_rest @ ..], [b, known_rest @ ..]) => {
            let is_swap = matches!((word_rest, known_rest), ([c, w @ ..], [d, k @ ..])
                if a == d && b == c && w == k);
            word_rest == known_rest || word_rest == known || word == known_rest || is_swap
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_value_means() {
        let clear = |text: &str| Ok(Secret::Clear(text.to_owned()));
        for (value, want) in [
            (json!("s3cret"), clear("s3cret")),
            (json!(""), clear("")),
            (json!(5), clear("5")),
            (json!(null), clear("null")),
            (json!([1, "a"]), clear(r#"[1,"a"]"#)),
            (json!({}), clear("{}")),
            // Objects of Pulsar's clear text provider, and text that looks like a reference.
            (
                json!({"user": "a", "password": "b"}),
                clear(r#"{"user":"a","password":"b"}"#),
            ),
            (json!({"password": "b"}), clear(r#"{"password":"b"}"#)),
            (json!({"path": "p"}), clear(r#"{"path":"p"}"#)),
            (
                json!({"path": "p", "key": 1}),
                clear(r#"{"path":"p","key":1}"#),
            ),
            (json!({"evn": 1}), clear(r#"{"evn":1}"#)),
            (json!(r#"{"env":"A"}"#), clear(r#"{"env":"A"}"#)),
            (json!({"env": "A"}), Ok(Secret::Env("A".into()))),
            (json!({"file": "/a"}), Ok(Secret::File("/a".into()))),
            (
                json!({"command": ["a", ""]}),
                Ok(Secret::Command(vec!["a".into(), String::new()])),
            ),
        ] {
            assert_eq!(Secret::parse(&value), want, "{value}");
        }
    }

    #[test]
    fn a_reference_that_means_nothing_is_refused_without_its_value() {
        for (value, message, help) in [
            (
                json!({"evn": "hunter2"}),
                "`evn` is none",
                "did you mean `env`?",
            ),
            (
                json!({"ENV": "hunter2"}),
                "`ENV` is none",
                "did you mean `env`?",
            ),
            (
                json!({"fil": "hunter2"}),
                "`fil` is none",
                "did you mean `file`?",
            ),
            (
                json!({"comand": ["hunter2"]}),
                "`comand` is none",
                "did you mean `command`?",
            ),
            (
                json!({"env": ""}),
                "`env` is not the name",
                "write {\"env\"",
            ),
            (
                json!({"env": "hunter2=x"}),
                "`env` is not the name",
                "write {\"env\"",
            ),
            (
                json!({"env": ["hunter2"]}),
                "`env` is not the name",
                "as text",
            ),
            (json!({"file": "hunter2"}), "whole path", "write {\"file\""),
            (
                json!({"file": "/hunter2\0"}),
                "whole path",
                "write {\"file\"",
            ),
            (
                json!({"command": "hunter2"}),
                "a program and",
                "write {\"command\"",
            ),
            (
                json!({"command": []}),
                "a program and",
                "write {\"command\"",
            ),
            (
                json!({"command": ["", "hunter2"]}),
                "a program and",
                "write {\"command\"",
            ),
            (
                json!({"command": ["hunter2", 1]}),
                "a program and",
                "write {\"command\"",
            ),
            (
                json!({"env": "hunter2", "file": "/a"}),
                "`env` says where it is, and `file` stands beside it",
                "alone",
            ),
            (
                json!({"env": "hunter2", "default": 1}),
                "`default` stands",
                "as text",
            ),
            (
                json!({"path": "hunter2", "key": "k"}),
                "Secret of Kubernetes",
                "{\"file\"",
            ),
        ] {
            let wrong = Secret::parse(&value).expect_err(message);
            assert!(wrong.message.contains(message), "{value}: {wrong:?}");
            assert!(wrong.help.contains(help), "{value}: {wrong:?}");
            assert!(!format!("{wrong:?}").contains("hunter2"), "{wrong:?}");
            assert_eq!(masked(&value), MASK);
        }
    }

    fn secrets(value: Value) -> Secrets {
        serde_json::from_value(value).expect("secrets")
    }

    #[test]
    fn what_is_shown_has_no_secret() {
        let all = secrets(json!({
            "a": "hunter2", "b": {"env": "B"}, "c": {"x": "hunter2"}, "d": {"file": "/d"}, "e": ["hunter2"],
            "f": {"command": ["f", "-x"]},
        }));
        let shown = json!({
            "a": MASK, "b": {"env": "B"}, "c": MASK, "d": {"file": "/d"}, "e": MASK, "f": {"command": ["f", "-x"]},
        });
        assert_eq!(json!(all.masked()), shown);
        let debug = format!("{all:?} {:?}", Secret::Clear("hunter2".into()));
        assert!(
            !debug.contains("hunter2") && debug.contains("/d"),
            "{debug}"
        );
        let mut config = json!({"name": "f", "secrets": all, "userConfig": {"a": "b"}});
        mask_in(&mut config);
        assert_eq!(
            config,
            json!({"name": "f", "secrets": shown, "userConfig": {"a": "b"}})
        );
        for other in [json!("hunter2"), json!(["hunter2"]), json!(17.25)] {
            let error = serde_json::from_value::<Secrets>(other).expect_err("no map");
            let said = error.to_string();
            assert!(
                said.starts_with("expected a map of secrets by name"),
                "{said}"
            );
            assert!(!said.contains("hunter2") && !said.contains("17"), "{said}");
        }
    }

    #[test]
    fn a_mask_means_what_is_stored() {
        let stored = secrets(json!({"a": "hunter2", "b": {"env": "B"}}));
        let sent = secrets(json!({"a": MASK, "b": MASK, "c": MASK, "d": "new"}));
        assert_eq!(
            json!(sent.unmasked(Some(&stored))),
            json!({"a": "hunter2", "b": {"env": "B"}, "c": MASK, "d": "new"})
        );
        assert_eq!(sent.unmasked(None), sent);
        // What is shown and sent back changes nothing.
        assert_eq!(stored.masked().unmasked(Some(&stored)), stored);
    }

    #[test]
    fn one_slip_is_near() {
        for (word, near) in [
            ("env", true),
            ("Env", true),
            ("evn", true),
            ("nev", true),
            ("en", true),
            ("envs", true),
            ("enb", true),
            ("user", false),
            ("environment", false),
            ("e", false),
            ("", false),
        ] {
            assert_eq!(is_near(word, "env"), near, "{word}");
        }
    }
}
