//! Strict reading: a `Node` into any type that serde can read.
//!
//! What must hold: a field that the type does not have is an error with the nearest name, whether
//! or not the type itself would mind; every such field of a file is reported, not the first alone;
//! a wrong value says what would be right; every message has its place.

use std::cell::RefCell;
use std::fmt;
use std::path::Path;

use geminga_stdx::Diagnostic;
use geminga_stdx::nearest::nearest;
use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Visitor};

use crate::node::{Document, Key, Mark, Node, Value, at};

/// Reads `node`, a part of the file `file`.
pub fn decode<T: DeserializeOwned>(file: &Path, node: &Node) -> Result<T, Vec<Diagnostic>> {
    let unknown = RefCell::new(Vec::new());
    let read = T::deserialize(Reader {
        node,
        file,
        unknown: &unknown,
    });
    let mut found = unknown.into_inner();
    match read {
        Ok(value) if found.is_empty() => return Ok(value),
        Ok(_) => {}
        Err(problem) => found.push(problem.diagnostic(file, node.mark)),
    }
    found.sort_by_key(|diagnostic| {
        diagnostic
            .place
            .as_ref()
            .map(|place| (place.line, place.column))
    });
    Err(found)
}

/// Reads a whole document.
pub fn decode_document<T: DeserializeOwned>(document: &Document) -> Result<T, Vec<Diagnostic>> {
    decode(&document.file, &document.root)
}

/// Other spellings that are read but not offered.
const READ_BUT_NOT_OFFERED: [&str; 1] = ["isRegexPattern"];

#[derive(Debug)]
struct Problem {
    code: &'static str,
    message: String,
    /// The field whose value it is.
    field: Option<String>,
    help: Option<String>,
    mark: Option<Mark>,
}

impl Problem {
    fn new(code: &'static str, message: String) -> Problem {
        Problem {
            code,
            message,
            field: None,
            help: None,
            mark: None,
        }
    }

    /// Only the innermost place is kept.
    fn at(mut self, mark: Mark) -> Problem {
        self.mark.get_or_insert(mark);
        self
    }

    /// Names the field, when its own value is wrong and not one deeper.
    fn of_field(self, field: &str, value: Mark) -> Problem {
        let mut problem = self.at(value);
        if problem.code == "G0302" && problem.mark == Some(value) {
            problem.field.get_or_insert_with(|| field.to_owned());
        }
        problem
    }

    fn diagnostic(self, file: &Path, otherwise: Mark) -> Diagnostic {
        let message = match self.field {
            Some(field) => format!("`{field}`: {}", self.message),
            None => self.message,
        };
        let mut diagnostic = Diagnostic::error(self.code, message);
        diagnostic.help = self.help;
        at(diagnostic, file, self.mark.unwrap_or(otherwise))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl de::Error for Problem {
    fn custom<T: fmt::Display>(message: T) -> Problem {
        Problem::new("G0302", message.to_string())
    }

    fn missing_field(field: &'static str) -> Problem {
        Problem::new("G0303", format!("field `{field}` is missing"))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Problem {
        unknown_field(field, "", expected)
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Problem {
        Problem::new(
            "G0302",
            format!("expected {}, found {found}", words(expected)),
        )
    }
}

/// serde's words for what is expected, for people who do not know Rust.
fn words(expected: &dyn de::Expected) -> String {
    match expected.to_string().as_str() {
        "i32" => "a whole number of at most 32 bits".to_owned(),
        "i64" => "a whole number".to_owned(),
        "u16" | "u32" | "u64" | "usize" => "a whole number, not negative".to_owned(),
        "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" => "text".to_owned(),
        "a sequence" => "a list".to_owned(),
        text if text.starts_with("struct ") => "a map".to_owned(),
        text => text.to_owned(),
    }
}

fn unknown_field(field: &str, of: &str, expected: &[&'static str]) -> Problem {
    let offered = || {
        expected
            .iter()
            .copied()
            .filter(|name| !READ_BUT_NOT_OFFERED.contains(name))
    };
    let of = if of.is_empty() {
        String::new()
    } else {
        format!(" in {of}")
    };
    let mut problem = Problem::new("G0301", format!("unknown field `{field}`{of}"));
    problem.help = Some(match nearest(field, offered()) {
        Some(known) => format!("did you mean `{known}`?"),
        None if expected.is_empty() => "nothing may stand here".to_owned(),
        None => format!("known fields are {}", list(offered())),
    });
    problem
}

fn unknown_variant(text: &str, expected: &[&'static str]) -> Problem {
    let mut problem = Problem::new("G0302", format!("unknown value `{text}`"));
    let values = list(expected.iter().copied());
    problem.help = Some(match nearest(text, expected.iter().copied()) {
        Some(known) => format!("did you mean `{known}`? Known values are {values}"),
        None => format!("known values are {values}"),
    });
    problem
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    file: &'a Path,
    /// Unknown fields so far; reading goes on past them.
    unknown: &'a RefCell<Vec<Diagnostic>>,
}

impl<'a> Reader<'a> {
    fn of(self, node: &'a Node) -> Reader<'a> {
        Reader { node, ..self }
    }

    fn any<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        let read = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(value) => visitor.visit_i64(*value),
            Value::Uint(value) => visitor.visit_u64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_str(text),
            Value::List(items) => visitor.visit_seq(Items {
                reader: self,
                rest: items.iter(),
            }),
            Value::Map(entries) => {
                let entries = entries
                    .iter()
                    .map(|(key, value)| (key, value))
                    .collect::<Vec<_>>();
                visitor.visit_map(Entries {
                    reader: self,
                    rest: entries.into_iter(),
                    value: None,
                })
            }
        };
        read.map_err(|problem| problem.at(self.node.mark))
    }

    /// Reads a value that must be of a kind; says what was found if it is not.
    fn only<'de, V: Visitor<'de>>(
        self,
        visitor: V,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<V::Value, Problem> {
        if fits(&self.node.value) {
            return self.any(visitor);
        }
        let expected = words(&visitor as &dyn de::Expected);
        let found = self.node.value.describe();
        let mut problem = Problem::new("G0302", format!("expected {expected}, found {found}"));
        let is_scalar = matches!(
            self.node.value,
            Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Float(_)
        );
        problem.help = (expected == "text" && is_scalar).then(|| "put it in quotes".to_owned());
        Err(problem.at(self.node.mark))
    }
}

fn is_number(value: &Value) -> bool {
    matches!(value, Value::Int(_) | Value::Uint(_) | Value::Float(_))
}

fn is_whole(value: &Value) -> bool {
    matches!(value, Value::Int(_) | Value::Uint(_))
}

macro_rules! read_only {
    ($($method:ident: $fits:expr;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
            self.only(visitor, $fits)
        })*
    };
}

impl<'de> de::Deserializer<'de> for Reader<'_> {
    type Error = Problem;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.any(visitor)
    }

    read_only! {
        deserialize_bool: |value| matches!(value, Value::Bool(_));
        deserialize_i8: is_whole;
        deserialize_i16: is_whole;
        deserialize_i32: is_whole;
        deserialize_i64: is_whole;
        deserialize_u8: is_whole;
        deserialize_u16: is_whole;
        deserialize_u32: is_whole;
        deserialize_u64: is_whole;
        deserialize_f32: is_number;
        deserialize_f64: is_number;
        deserialize_str: |value| matches!(value, Value::Text(_));
        deserialize_string: |value| matches!(value, Value::Text(_));
        deserialize_char: |value| matches!(value, Value::Text(_));
        deserialize_seq: |value| matches!(value, Value::List(_));
        deserialize_map: |value| matches!(value, Value::Map(_));
        deserialize_unit: |value| matches!(value, Value::Null);
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        let Value::Map(entries) = &self.node.value else {
            return self.only(visitor, |_| false);
        };
        let mut known = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            if fields.contains(&key.text.as_str())
                || key.text == "isRegexPattern" && name == "ConsumerConfig"
            {
                known.push((key, value));
            } else {
                let problem = unknown_field(&key.text, name, fields).at(key.mark);
                self.unknown
                    .borrow_mut()
                    .push(problem.diagnostic(self.file, key.mark));
            }
        }
        let entries = Entries {
            reader: self,
            rest: known.into_iter(),
            value: None,
        };
        visitor
            .visit_map(entries)
            .map_err(|problem| problem.at(self.node.mark))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        let Value::Text(text) = &self.node.value else {
            let expected = list(variants.iter().copied());
            let found = self.node.value.describe();
            let message = format!("expected one of {expected}, found {found}");
            return Err(Problem::new("G0302", message).at(self.node.mark));
        };
        if !variants.contains(&text.as_str()) {
            return Err(unknown_variant(text, variants).at(self.node.mark));
        }
        let text: StrDeserializer<'_, Problem> = text.as_str().into_deserializer();
        visitor
            .visit_enum(text)
            .map_err(|problem| problem.at(self.node.mark))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Problem> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        i128 u128 bytes byte_buf unit_struct tuple tuple_struct identifier
    }
}

struct Items<'a> {
    reader: Reader<'a>,
    rest: std::slice::Iter<'a, Node>,
}

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = Problem;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Problem> {
        let Some(node) = self.rest.next() else {
            return Ok(None);
        };
        seed.deserialize(self.reader.of(node)).map(Some)
    }
}

struct Entries<'a> {
    reader: Reader<'a>,
    rest: std::vec::IntoIter<(&'a Key, &'a Node)>,
    value: Option<(&'a Key, &'a Node)>,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = Problem;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Problem> {
        let Some((key, value)) = self.rest.next() else {
            return Ok(None);
        };
        self.value = Some((key, value));
        let text: StrDeserializer<'_, Problem> = key.text.as_str().into_deserializer();
        seed.deserialize(text)
            .map(Some)
            .map_err(|problem| problem.at(key.mark))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Problem> {
        let Some((key, node)) = self.value.take() else {
            return Err(de::Error::custom("a value is read before its key"));
        };
        seed.deserialize(self.reader.of(node))
            .map_err(|problem| problem.of_field(&key.text, node.mark))
    }
}

#[cfg(test)]
mod tests;
