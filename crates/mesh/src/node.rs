//! A parsed file as a tree in which every key and value knows its line and column.
//!
//! YAML and JSON both become this tree, so that strict reading (`decode`) and later checks can
//! point at the very place in the file, whatever its format.

use std::path::{Path, PathBuf};

use geminga_stdx::Diagnostic;

/// A place in a file; both count from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    pub line: usize,
    pub column: usize,
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub mark: Mark,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    /// Above `i64::MAX`.
    Uint(u64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file; no key twice.
    Map(Vec<(Key, Node)>),
}

/// A key of a map and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    pub mark: Mark,
    pub text: String,
}

/// What a file may cost. A configuration stays far below; an attack does not get beyond.
pub const BYTES_MAX: usize = 4 << 20;
/// Lists and maps inside one another.
pub const DEPTH_MAX: usize = 64;
/// Values in a file, each use of an alias counted whole.
pub const NODES_MAX: usize = 200_000;

impl Node {
    /// The value of `key`, if this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|(_, node)| node)
    }

    /// The key and value of `key`, if this is a map that has it.
    pub fn entry(&self, key: &str) -> Option<(&Key, &Node)> {
        match &self.value {
            Value::Map(entries) => entries
                .iter()
                .find(|(known, _)| known.text == key)
                .map(|(key, node)| (key, node)),
            _ => None,
        }
    }

    /// Whether the whole of `path` is there, as `locate` walks it.
    pub(crate) fn has<S: AsRef<str>>(&self, path: &[S]) -> bool {
        let Some((step, rest)) = path.split_first() else {
            return true;
        };
        self.step(step.as_ref())
            .is_some_and(|(_, next)| next.has(rest))
    }

    /// One step of a path: the key or the index of what is inside, or the text of an item.
    fn step(&self, step: &str) -> Option<(Mark, &Node)> {
        match &self.value {
            Value::Map(_) => self.entry(step).map(|(key, value)| (key.mark, value)),
            Value::List(items) => step
                .parse::<usize>()
                .ok()
                .and_then(|index| items.get(index))
                .or_else(|| items.iter().find(|item| item.as_str() == Some(step)))
                .map(|item| (item.mark, item)),
            _ => None,
        }
    }

    /// The text, if this is one.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The place that best stands for `path`: the value itself; for a path that ends early, its
    /// deepest ancestor that is there. The last step of a list may be the text of an item.
    pub fn locate<S: AsRef<str>>(&self, path: &[S]) -> Mark {
        let mut node = self;
        let mut mark = self.mark;
        for step in path {
            let Some((at, value)) = node.step(step.as_ref()) else {
                break;
            };
            mark = at;
            node = value;
        }
        // A scalar is shown where its value stands, a list or a map by its key.
        match node.value {
            Value::List(_) | Value::Map(_) | Value::Null => mark,
            _ => node.mark,
        }
    }
}

impl Value {
    /// What it is, for people: `text "a"`, `a list`.
    pub fn describe(&self) -> String {
        match self {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => format!("`{value}`"),
            Value::Int(value) => format!("the number {value}"),
            Value::Uint(value) => format!("the number {value}"),
            Value::Float(value) => format!("the number {value}"),
            Value::Text(text) => {
                let short: String = text.chars().take(40).collect();
                let dots = if short.len() < text.len() { ".." } else { "" };
                format!("the text `{short}{dots}`")
            }
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        }
    }
}

/// A file being read: its name as the user wrote it, and one document of it.
#[derive(Clone, Debug)]
pub struct Document {
    pub file: PathBuf,
    pub root: Node,
}

impl Document {
    /// `diagnostic` at the place of `path`.
    pub fn place<S: AsRef<str>>(&self, diagnostic: Diagnostic, path: &[S]) -> Diagnostic {
        at(diagnostic, &self.file, self.root.locate(path))
    }
}

/// `diagnostic` at `mark` of `file`.
pub(crate) fn at(diagnostic: Diagnostic, file: &Path, mark: Mark) -> Diagnostic {
    diagnostic.at(file, mark.line, mark.column)
}

/// Reads a file's text: JSON if its name ends in `.json`, otherwise YAML. Empty documents are
/// left out.
pub fn parse(file: &Path, text: &str) -> Result<Vec<Document>, Diagnostic> {
    if text.len() > BYTES_MAX {
        let message = format!(
            "`{}` is larger than {} MiB",
            file.display(),
            BYTES_MAX >> 20
        );
        return Err(Diagnostic::error("G0305", message)
            .cause("no configuration needs that much; this is a bound against hostile input"));
    }
    let is_json = file
        .extension()
        .is_some_and(|extension| extension == "json");
    let roots = if is_json {
        vec![crate::json::parse(file, text)?]
    } else {
        crate::yaml::parse(file, text)?
    };
    let documents = roots.into_iter().filter(|root| root.value != Value::Null);
    Ok(documents
        .map(|root| Document {
            file: file.to_owned(),
            root,
        })
        .collect())
}
