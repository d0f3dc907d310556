//! A file of cases: which function it is of, what goes in, and what should come out.
//!
//! Read strictly: an unknown field, a wrong value and text that YAML would take for a number are errors
//! with their place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use geminga_functions::TrialValue;
use geminga_mesh::node::{Document, Mark, Node, Value, parse};
use geminga_stdx::Diagnostic;
use geminga_stdx::nearest::nearest;
use serde_json::Map;

use crate::failure::{Exit, Failure, Outcome};

/// A file of cases.
pub(crate) struct CaseFile {
    pub(crate) path: PathBuf,
    /// The configuration or script that is tested, as the file names it.
    pub(crate) function: Option<String>,
    pub(crate) cases: Vec<Case>,
}

/// One case.
#[derive(Debug, Default)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// Line in the file, from 1 on.
    pub(crate) line: usize,
    /// Column of its first key, from 1 on.
    pub(crate) column: usize,
    /// Lays over the function's own user configuration.
    pub(crate) config: Map<String, serde_json::Value>,
    pub(crate) secrets: Map<String, serde_json::Value>,
    pub(crate) state: BTreeMap<String, TrialValue>,
    pub(crate) messages: Vec<Input>,
    pub(crate) expect: Option<Expect>,
}

/// A message that goes in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Input {
    pub(crate) payload: Bytes,
    pub(crate) key: Option<String>,
    pub(crate) properties: Vec<(String, String)>,
    pub(crate) event_time: u64,
    pub(crate) topic: Option<String>,
    pub(crate) redelivery: u32,
}

/// What should come of a case. What is `None` is not compared.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expect {
    pub(crate) outputs: Option<Vec<Wanted>>,
    /// `None` of a key: it is not there.
    pub(crate) state: Option<BTreeMap<String, Option<TrialValue>>>,
    pub(crate) errors: Option<Vec<String>>,
    pub(crate) logs: Option<Vec<String>>,
    pub(crate) metrics: Option<BTreeMap<String, f64>>,
}

/// An output that should come. What is `None` is not compared.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    pub(crate) payload: Option<Payload>,
    pub(crate) topic: Option<String>,
    pub(crate) key: Option<String>,
    pub(crate) properties: Option<BTreeMap<String, String>>,
    pub(crate) event_time: Option<u64>,
}

/// A payload as a person writes it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Payload {
    Text(String),
    /// Compared as a value: neither blanks nor the order of names matter.
    Json(serde_json::Value),
    Bytes(Bytes),
}

impl Payload {
    fn bytes(&self) -> Bytes {
        match self {
            Self::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            Self::Json(value) => value.to_string().into(),
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

/// Reads a file of cases.
pub(crate) fn read(path: &Path) -> Outcome<CaseFile> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let message = format!("`{}` cannot be read", path.display());
        Failure::new(
            Exit::Usage,
            Diagnostic::error("G0310", message).cause(error.to_string()),
        )
    })?;
    of_text(path, &text).map_err(|error| Failure::new(Exit::Usage, error))
}

/// Reads the text of a file of cases.
pub(crate) fn of_text(path: &Path, text: &str) -> Result<CaseFile, Diagnostic> {
    let documents = parse(path, text)?;
    let [Document { root, .. }] = &documents[..] else {
        let message = format!("`{}` is not one document of cases", path.display());
        return Err(Diagnostic::error("G0421", message).help(HELP));
    };
    let reader = Reader { path };
    reader.file(root)
}

const HELP: &str = "it has `cases:`, a list; `geminga init bash hello` writes an example";

struct Reader<'a> {
    path: &'a Path,
}

type Read<T> = Result<T, Diagnostic>;

impl Reader<'_> {
    fn wrong(&self, mark: Mark, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error("G0421", message).at(self.path, mark.line, mark.column)
    }

    /// The entries of a map whose names are all `known`.
    fn fields<'n>(&self, node: &'n Node, what: &str, known: &[&str]) -> Read<Fields<'n>> {
        let Value::Map(entries) = &node.value else {
            let message = format!("{what} is a map, not {}", node.value.describe());
            return Err(self.wrong(node.mark, message).help(HELP));
        };
        for (key, _) in entries {
            if !known.contains(&key.text.as_str()) {
                let error = self.wrong(key.mark, format!("unknown field `{}`", key.text));
                return Err(match nearest(&key.text, known.iter().copied()) {
                    Some(near) => error.help(format!("did you mean `{near}`?")),
                    None => error.help(format!("{what} has `{}`", known.join("`, `"))),
                });
            }
        }
        Ok(Fields(node))
    }

    fn file(&self, root: &Node) -> Read<CaseFile> {
        let fields = self.fields(root, "a file of cases", &["function", "cases"])?;
        let Some(cases) = fields.get("cases") else {
            return Err(self.wrong(root.mark, "`cases` is missing").help(HELP));
        };
        let cases = self.list(cases, |case| self.case(case))?;
        for (index, case) in cases.iter().enumerate() {
            if cases[..index].iter().any(|other| other.name == case.name) {
                let mark = Mark {
                    line: case.line,
                    column: case.column,
                };
                return Err(self.wrong(mark, format!("two cases are called `{}`", case.name)));
            }
        }
        Ok(CaseFile {
            path: self.path.to_owned(),
            function: fields.maybe("function", |node| self.text(node))?,
            cases,
        })
    }

    fn case(&self, node: &Node) -> Read<Case> {
        let known = [
            "name", "config", "secrets", "state", "input", "messages", "expect",
        ];
        let fields = self.fields(node, "a case", &known)?;
        let Some(name) = fields.maybe("name", |node| self.text(node))? else {
            return Err(self.wrong(node.mark, "a case needs a `name`"));
        };
        let input = fields.maybe("input", |node| self.input(node))?;
        let messages = fields.maybe("messages", |node| self.list(node, |one| self.input(one)))?;
        let messages = match (input, messages) {
            (Some(one), None) => vec![one],
            (None, Some(several)) => several,
            (None, None) => {
                let message = format!("case `{name}` has neither `input` nor `messages`");
                return Err(self
                    .wrong(node.mark, message)
                    .help("`input: text` is one message, `messages:` a list of them"));
            }
            (Some(_), Some(_)) => {
                let message = format!("case `{name}` has both `input` and `messages`");
                return Err(self.wrong(node.mark, message));
            }
        };
        let state = fields.maybe("state", |node| self.map(node, |one| self.value(one)))?;
        Ok(Case {
            name,
            line: node.mark.line,
            column: node.mark.column,
            config: fields
                .maybe("config", |node| self.object(node))?
                .unwrap_or_default(),
            secrets: fields
                .maybe("secrets", |node| self.object(node))?
                .unwrap_or_default(),
            state: state.unwrap_or_default(),
            messages,
            expect: fields.maybe("expect", |node| self.expect(node))?,
        })
    }

    fn input(&self, node: &Node) -> Read<Input> {
        if !matches!(node.value, Value::Map(_)) {
            return Ok(Input {
                payload: self.text(node)?.into(),
                ..Input::default()
            });
        }
        let known = [
            "payload",
            "json",
            "base64",
            "key",
            "properties",
            "eventTime",
            "topic",
            "redelivery",
        ];
        let fields = self.fields(node, "a message", &known)?;
        let properties = fields.maybe("properties", |node| self.map(node, |one| self.text(one)))?;
        Ok(Input {
            payload: self
                .payload(&fields)?
                .map(|p| p.bytes())
                .unwrap_or_default(),
            key: fields.maybe("key", |node| self.text(node))?,
            properties: properties.unwrap_or_default().into_iter().collect(),
            event_time: fields
                .maybe("eventTime", |node| self.count(node))?
                .unwrap_or(0),
            topic: fields.maybe("topic", |node| self.text(node))?,
            redelivery: fields
                .maybe("redelivery", |node| self.small(node))?
                .unwrap_or(0),
        })
    }

    fn payload(&self, fields: &Fields<'_>) -> Read<Option<Payload>> {
        let given = ["payload", "json", "base64"].map(|name| fields.get(name));
        match given {
            [None, None, None] => Ok(None),
            [Some(node), None, None] => Ok(Some(Payload::Text(self.text(node)?))),
            [None, Some(node), None] => Ok(Some(Payload::Json(json(node)))),
            [None, None, Some(node)] => {
                let text = self.text(node)?;
                let bytes = geminga_functions::runtime::base64_bytes(&text);
                let wrong = || self.wrong(node.mark, format!("`{text}` is not base64"));
                Ok(Some(Payload::Bytes(bytes.ok_or_else(wrong)?.into())))
            }
            _ => Err(self.wrong(
                fields.0.mark,
                "more than one of `payload`, `json` and `base64`",
            )),
        }
    }

    fn expect(&self, node: &Node) -> Read<Expect> {
        let known = [
            "output", "outputs", "state", "error", "errors", "logs", "metrics",
        ];
        let fields = self.fields(node, "`expect`", &known)?;
        for (one, several) in [("output", "outputs"), ("error", "errors")] {
            if fields.get(one).is_some() && fields.get(several).is_some() {
                return Err(self.wrong(node.mark, format!("both `{one}` and `{several}`")));
            }
        }
        let texts = |node: &Node| self.list(node, |one| self.text(one));
        let output = fields.maybe("output", |node| self.wanted(node))?;
        let error = fields.maybe("error", |node| self.text(node))?;
        Ok(Expect {
            outputs: match output {
                Some(one) => Some(vec![one]),
                None => fields.maybe("outputs", |node| self.list(node, |one| self.wanted(one)))?,
            },
            state: fields.maybe("state", |node| {
                self.map(node, |one| match one.value {
                    Value::Null => Ok(None),
                    _ => self.value(one).map(Some),
                })
            })?,
            errors: match error {
                Some(one) => Some(vec![one]),
                None => fields.maybe("errors", texts)?,
            },
            logs: fields.maybe("logs", texts)?,
            metrics: fields.maybe("metrics", |node| self.map(node, |one| self.number(one)))?,
        })
    }

    fn wanted(&self, node: &Node) -> Read<Wanted> {
        if !matches!(node.value, Value::Map(_)) {
            return Ok(Wanted {
                payload: Some(Payload::Text(self.text(node)?)),
                ..Wanted::default()
            });
        }
        let known = [
            "payload",
            "json",
            "base64",
            "topic",
            "key",
            "properties",
            "eventTime",
        ];
        let fields = self.fields(node, "an output", &known)?;
        Ok(Wanted {
            payload: self.payload(&fields)?,
            topic: fields.maybe("topic", |node| self.text(node))?,
            key: fields.maybe("key", |node| self.text(node))?,
            properties: fields.maybe("properties", |node| self.map(node, |one| self.text(one)))?,
            event_time: fields.maybe("eventTime", |node| self.count(node))?,
        })
    }

    /// A number is a counter, text is bytes, `base64:` too.
    fn value(&self, node: &Node) -> Read<TrialValue> {
        match &node.value {
            Value::Int(number) => Ok(TrialValue::Counter(*number)),
            Value::Map(_) => {
                let fields = self.fields(node, "a value of the state", &["json", "base64"])?;
                let payload = self.payload(&fields)?;
                Ok(TrialValue::Bytes(
                    payload.map(|p| p.bytes()).unwrap_or_default(),
                ))
            }
            _ => Ok(TrialValue::Bytes(self.text(node)?.into())),
        }
    }

    fn text(&self, node: &Node) -> Read<String> {
        match &node.value {
            Value::Text(text) => Ok(text.clone()),
            other => Err(self
                .wrong(
                    node.mark,
                    format!("text is wanted, not {}", other.describe()),
                )
                .help("put it in quotes, so that it is text to the letter")),
        }
    }

    fn count(&self, node: &Node) -> Read<u64> {
        match node.value {
            Value::Int(number) if number >= 0 => Ok(number.unsigned_abs()),
            Value::Uint(number) => Ok(number),
            ref other => Err(self.wrong(
                node.mark,
                format!("a number from 0 on is wanted, not {}", other.describe()),
            )),
        }
    }

    fn small(&self, node: &Node) -> Read<u32> {
        let count = self.count(node)?;
        u32::try_from(count).map_err(|_| {
            let text = format!("a number up to {} is wanted, not {count}", u32::MAX);
            self.wrong(node.mark, text)
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "metrics are floating point")]
    fn number(&self, node: &Node) -> Read<f64> {
        match node.value {
            Value::Int(number) => Ok(number as f64),
            Value::Float(number) => Ok(number),
            ref other => Err(self.wrong(
                node.mark,
                format!("a number is wanted, not {}", other.describe()),
            )),
        }
    }

    fn list<T>(&self, node: &Node, read: impl Fn(&Node) -> Read<T>) -> Read<Vec<T>> {
        match &node.value {
            Value::List(items) => items.iter().map(read).collect(),
            Value::Null => Ok(Vec::new()),
            other => Err(self.wrong(
                node.mark,
                format!("a list is wanted, not {}", other.describe()),
            )),
        }
    }

    fn map<T>(&self, node: &Node, read: impl Fn(&Node) -> Read<T>) -> Read<BTreeMap<String, T>> {
        match &node.value {
            Value::Map(entries) => entries
                .iter()
                .map(|(key, node)| Ok((key.text.clone(), read(node)?)))
                .collect(),
            Value::Null => Ok(BTreeMap::new()),
            other => Err(self.wrong(
                node.mark,
                format!("a map is wanted, not {}", other.describe()),
            )),
        }
    }

    fn object(&self, node: &Node) -> Read<Map<String, serde_json::Value>> {
        match json(node) {
            serde_json::Value::Object(map) => Ok(map),
            serde_json::Value::Null => Ok(Map::new()),
            _ => Err(self.wrong(
                node.mark,
                format!("a map is wanted, not {}", node.value.describe()),
            )),
        }
    }
}

/// A map whose names were checked.
struct Fields<'n>(&'n Node);

impl<'n> Fields<'n> {
    fn get(&self, name: &str) -> Option<&'n Node> {
        self.0.get(name)
    }

    fn maybe<T>(&self, name: &str, read: impl FnOnce(&'n Node) -> Read<T>) -> Read<Option<T>> {
        self.get(name).map(read).transpose()
    }
}

/// A node as JSON.
fn json(node: &Node) -> serde_json::Value {
    use serde_json::Value as Json;
    match &node.value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Int(value) => (*value).into(),
        Value::Uint(value) => (*value).into(),
        Value::Float(value) => {
            serde_json::Number::from_f64(*value).map_or(Json::Null, Json::Number)
        }
        Value::Text(text) => Json::String(text.clone()),
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(entries) => entries
            .iter()
            .map(|(key, node)| (key.text.clone(), json(node)))
            .collect::<Map<_, _>>()
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<CaseFile, Diagnostic> {
        of_text(Path::new("f.test.yaml"), text)
    }

    #[test]
    fn a_case_may_be_short_or_say_everything() {
        let file = read(
            "function: f.sh\ncases:\n  - name: short\n    input: hello\n    expect: {output: hello!}\n  \
             - name: long\n    config: {mark: '?', n: 3}\n    state: {seen: 4, last: x}\n    messages:\n      \
             - {json: {a: [1, null]}, key: k, properties: {p: v}, eventTime: 7, topic: t, redelivery: 2}\n      \
             - {base64: AAE=}\n    expect:\n      outputs: []\n      state: {seen: 5, gone: null}\n      \
             errors: [no use]\n      logs: [INFO seen]\n      metrics: {size: 1.5, n: 2}\n",
        )
        .expect("reads");
        assert_eq!(file.function.as_deref(), Some("f.sh"));
        let [short, long] = &file.cases[..] else {
            panic!()
        };
        assert_eq!(
            (short.line, &short.messages[0].payload[..]),
            (3, &b"hello"[..])
        );
        assert_eq!(long.messages[0].payload, r#"{"a":[1,null]}"#);
        assert_eq!(long.messages[1].payload[..], [0, 1]);
        assert_eq!(long.state["seen"], TrialValue::Counter(4));
        let expect = long.expect.as_ref().expect("given");
        assert_eq!(expect.state.as_ref().expect("given")["gone"], None);
        assert_eq!(expect.outputs.as_ref().map(Vec::len), Some(0));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, place, message, help) in [
            (
                "cases:\n  - nam: x\n    input: a\n",
                "2:5",
                "unknown field `nam`",
                "`name`",
            ),
            (
                "cases:\n  - name: x\n    input: 007\n",
                "3:12",
                "not the number 7",
                "quotes",
            ),
            (
                "cases:\n  - name: x\n",
                "2:5",
                "neither `input` nor",
                "one message",
            ),
            (
                "cases:\n  - name: x\n    input: a\n    expect: {outpust: []}\n",
                "4:14",
                "unknown field `outpust`",
                "`output`",
            ),
            (
                "cases:\n  - {name: x, input: {base64: '*'}}\n",
                "2:31",
                "not base64",
                "",
            ),
            (
                "cases:\n  - {name: x, input: a}\n  - {name: x, input: b}\n",
                "3:5",
                "two cases",
                "",
            ),
            (
                "cases:\n  - name: x\n    input: {payload: a, redelivery: 4294967296}\n",
                "3:37",
                "up to 4294967295",
                "",
            ),
            ("case: []\n", "1:1", "unknown field `case`", "`cases`"),
        ] {
            let said = read(text).err().expect(text).to_string();
            assert!(
                said.contains(message) && said.contains(help),
                "{text}\n{said}"
            );
            assert!(
                said.contains(&format!("f.test.yaml:{place}")),
                "{text}\n{said}"
            );
        }
    }
}
