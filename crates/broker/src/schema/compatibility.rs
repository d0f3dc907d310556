//! Which schemas may follow which: the definitions of all types, and Pulsar's strategies. Pure.

use std::collections::BTreeMap;

use super::avro::{Avro, plain_document};
use super::native::Native;

use super::{
    TYPE_AVRO, TYPE_JSON, TYPE_KEY_VALUE, TYPE_NONE, TYPE_PROTOBUF, TYPE_PROTOBUF_NATIVE,
    TYPE_STRING, key_value, type_name,
};
use crate::policies::SchemaCompatibilityStrategy as Strategy;

/// A definition that has been read.
#[derive(Debug)]
pub(crate) struct Definition {
    kind: i32,
    shape: Shape,
}

#[derive(Debug)]
enum Shape {
    Avro(Avro),
    /// A JSON Schema document, as very old clients sent for JSON; of any two nothing is known.
    JsonSchema,
    Native(Native),
    KeyValue(Box<(Definition, Definition)>),
    /// The type says everything.
    Plain,
}

impl Definition {
    /// Reads the definition of a schema; the error says why it is none.
    pub(crate) fn read(
        kind: i32,
        data: &[u8],
        properties: &BTreeMap<String, String>,
    ) -> Result<Definition, String> {
        let invalid = |reason: String| {
            let name = type_name(kind);
            format!("Invalid schema definition data for {name} schema: {reason}")
        };
        let shape = match kind {
            TYPE_KEY_VALUE => {
                let (key, value) = key_value::split(data, properties).map_err(invalid)?;
                let half = |(kind, data): key_value::Half<'_>| match kind {
                    TYPE_KEY_VALUE => Err("a KEY_VALUE in a KEY_VALUE".to_owned()),
                    // Of a half, nothing is known but what its type needs.
                    _ => Definition::read(kind, data, &BTreeMap::new()),
                };
                let halves = (half(key).map_err(invalid)?, half(value).map_err(invalid)?);
                Shape::KeyValue(Box::new(halves))
            }
            kind => Definition::shape(kind, data).map_err(invalid)?,
        };
        Ok(Definition { kind, shape })
    }

    fn shape(kind: i32, data: &[u8]) -> Result<Shape, String> {
        match kind {
            TYPE_JSON if is_json_schema(data) => Ok(Shape::JsonSchema),
            TYPE_AVRO | TYPE_JSON | TYPE_PROTOBUF => {
                let avro = Avro::parse(data)?;
                if avro.is_union() {
                    return Err("Avro schema typed [UNION] is not supported".to_owned());
                }
                Ok(Shape::Avro(avro))
            }
            TYPE_PROTOBUF_NATIVE => Native::parse(data).map(Shape::Native),
            TYPE_NONE => Ok(Shape::Plain),
            TYPE_STRING..=TYPE_PROTOBUF_NATIVE if data.is_empty() => Ok(Shape::Plain),
            // What the Python client sends as the definition of a string; Pulsar takes it too.
            TYPE_STRING if data == b"null" => Ok(Shape::Plain),
            TYPE_STRING..=TYPE_PROTOBUF_NATIVE => Err(format!(
                "it should be empty, but {} bytes are found",
                data.len()
            )),
            _ => Err("it is a client-side schema type".to_owned()),
        }
    }

    /// Why this cannot read what was written with `writer`.
    fn cannot_read(&self, writer: &Definition) -> Option<String> {
        if self.kind != writer.kind {
            return Some(other_type(writer, self));
        }
        match (&self.shape, &writer.shape) {
            (Shape::Avro(ours), Shape::Avro(theirs)) => ours
                .cannot_read(theirs)
                .map(|reason| format!("Unable to read schema: {reason}")),
            (Shape::Native(ours), Shape::Native(theirs)) => ours.cannot_read(theirs),
            (Shape::KeyValue(ours), Shape::KeyValue(theirs)) => ours
                .0
                .cannot_read(&theirs.0)
                .or_else(|| ours.1.cannot_read(&theirs.1)),
            _ => None,
        }
    }
}

fn other_type(existing: &Definition, new: &Definition) -> String {
    format!(
        "Incompatible schema: exists schema type {}, new schema type {}",
        type_name(existing.kind),
        type_name(new.kind)
    )
}

/// `{"type":"object","properties":..}` and the like; no Avro type has these names.
fn is_json_schema(data: &[u8]) -> bool {
    let document: Option<serde_json::Value> = serde_json::from_slice(data).ok();
    let kind = document.as_ref().and_then(|it| it.get("type"));
    matches!(
        kind.and_then(serde_json::Value::as_str),
        Some("object" | "number" | "integer" | "any")
    )
}

/// A definition to be looked for among others of its type. Avro documents are compared as such.
pub(crate) struct Comparable<'a> {
    data: &'a [u8],
    plain: Option<serde_json::Value>,
}

fn plain(data: &[u8]) -> Option<serde_json::Value> {
    serde_json::from_slice(data).ok().map(plain_document)
}

impl<'a> Comparable<'a> {
    pub(crate) fn new(kind: i32, data: &'a [u8]) -> Comparable<'a> {
        let is_document = matches!(kind, TYPE_AVRO | TYPE_JSON | TYPE_PROTOBUF);
        Comparable {
            data,
            plain: is_document.then(|| plain(data)).flatten(),
        }
    }

    /// Whether both are the same definition.
    pub(crate) fn is(&self, other: &[u8]) -> bool {
        self.data == other || self.plain.is_some() && self.plain == plain(other)
    }
}

/// As Pulsar spells it.
pub(crate) fn strategy_name(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Undefined => "UNDEFINED",
        Strategy::AlwaysIncompatible => "ALWAYS_INCOMPATIBLE",
        Strategy::AlwaysCompatible => "ALWAYS_COMPATIBLE",
        Strategy::Backward => "BACKWARD",
        Strategy::Forward => "FORWARD",
        Strategy::Full => "FULL",
        Strategy::BackwardTransitive => "BACKWARD_TRANSITIVE",
        Strategy::ForwardTransitive => "FORWARD_TRANSITIVE",
        Strategy::FullTransitive => "FULL_TRANSITIVE",
    }
}

fn is_transitive(strategy: Strategy) -> bool {
    matches!(
        strategy,
        Strategy::BackwardTransitive | Strategy::ForwardTransitive | Strategy::FullTransitive
    )
}

/// Those of `existing`, oldest first, that a new version is compared with.
pub(crate) fn compared<T>(strategy: Strategy, existing: &[T]) -> &[T] {
    match is_transitive(strategy) {
        true => existing,
        false => latest(existing),
    }
}

/// Those that a consumer's schema is compared with.
pub(crate) fn compared_by_consumer<T>(strategy: Strategy, existing: &[T]) -> &[T] {
    match rule_of_consumer(strategy) {
        Strategy::Backward => latest(existing),
        _ => existing,
    }
}

fn latest<T>(existing: &[T]) -> &[T] {
    &existing[existing.len().saturating_sub(1)..]
}

/// Whether `new` may become the next version after `existing`, oldest first.
pub(crate) fn check_new(
    strategy: Strategy,
    new: &Definition,
    existing: &[Definition],
) -> Result<(), String> {
    check(strategy, new, compared(strategy, existing))
}

/// Whether a consumer with `wanted` may read a topic with `existing`, oldest first.
pub(crate) fn check_consumer(
    strategy: Strategy,
    wanted: &Definition,
    existing: &[Definition],
) -> Result<(), String> {
    let against = compared_by_consumer(strategy, existing);
    check(rule_of_consumer(strategy), wanted, against)
}

fn rule_of_consumer(strategy: Strategy) -> Strategy {
    match strategy {
        Strategy::Backward
        | Strategy::Forward
        | Strategy::ForwardTransitive
        | Strategy::Full
        | Strategy::Undefined => Strategy::Backward,
        Strategy::BackwardTransitive
        | Strategy::FullTransitive
        | Strategy::AlwaysIncompatible
        | Strategy::AlwaysCompatible => strategy,
    }
}

fn check(strategy: Strategy, new: &Definition, against: &[Definition]) -> Result<(), String> {
    if strategy == Strategy::AlwaysCompatible {
        return Ok(());
    }
    for existing in against {
        if existing.kind != new.kind {
            return Err(other_type(existing, new));
        }
        let reason = match strategy {
            Strategy::AlwaysCompatible => None,
            Strategy::AlwaysIncompatible => Some("every change is refused".to_owned()),
            Strategy::Backward | Strategy::BackwardTransitive => new.cannot_read(existing),
            Strategy::Forward | Strategy::ForwardTransitive => existing.cannot_read(new),
            Strategy::Full | Strategy::FullTransitive | Strategy::Undefined => new
                .cannot_read(existing)
                .or_else(|| existing.cannot_read(new)),
        };
        if let Some(reason) = reason {
            let strategy = strategy_name(strategy);
            return Err(format!(
                "Error during schema compatibility check with strategy {strategy}: {reason}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
