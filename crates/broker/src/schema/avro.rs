//! Whether data written with one Avro schema can be read with another: Avro's resolution rules on
//! the schema documents. Pure; Pulsar's JSON schemas are Avro documents too.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

/// Nesting of a schema document.
const DEPTH_MAX: usize = 64;

/// A schema document with its named types.
pub(crate) struct Avro {
    root: Value,
    named: HashMap<String, Value>,
}

impl Avro {
    /// None for what is no Avro schema.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Avro> {
        let root: Value = serde_json::from_slice(bytes).ok()?;
        let mut named = HashMap::new();
        collect(&root, "", &mut named, 0)?;
        Some(Avro { root, named })
    }

    /// Why this, as the reader's schema, cannot read what was written with `writer`.
    pub(crate) fn cannot_read(&self, writer: &Avro) -> Option<String> {
        let mut resolver = Resolver {
            reader: self,
            writer,
            assumed: HashSet::new(),
        };
        resolver.check(&self.root, &writer.root, "", 0).err()
    }

    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema.as_str() {
            Some(name) if !is_primitive(name) => self.named.get(short(name)).unwrap_or(schema),
            _ => schema,
        }
    }
}

fn is_primitive(name: &str) -> bool {
    matches!(
        name,
        "null" | "boolean" | "int" | "long" | "float" | "double" | "bytes" | "string"
    )
}

/// A name without its namespace.
fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// Gathers the named types, and checks that the document is a schema.
fn collect(
    schema: &Value,
    within: &str,
    named: &mut HashMap<String, Value>,
    depth: usize,
) -> Option<()> {
    if depth > DEPTH_MAX {
        return None;
    }
    match schema {
        Value::String(name) => {
            (is_primitive(name) || named.contains_key(short(name)) || short(name) == within)
                .then_some(())
        }
        Value::Array(branches) => branches
            .iter()
            .try_for_each(|branch| collect(branch, within, named, depth + 1)),
        Value::Object(fields) => {
            let kind = fields.get("type")?;
            let Some(kind) = kind.as_str() else {
                return collect(kind, within, named, depth + 1);
            };
            match kind {
                "array" => collect(fields.get("items")?, within, named, depth + 1),
                "map" => collect(fields.get("values")?, within, named, depth + 1),
                "record" | "error" | "enum" | "fixed" => {
                    let name = short(fields.get("name")?.as_str()?).to_owned();
                    // Before its fields: they may refer to it.
                    named.insert(name.clone(), schema.clone());
                    if let Some(members) = fields.get("fields") {
                        for member in members.as_array()? {
                            member.get("name")?.as_str()?;
                            collect(member.get("type")?, &name, named, depth + 1)?;
                        }
                    }
                    Some(())
                }
                other => (is_primitive(other) || named.contains_key(short(other))).then_some(()),
            }
        }
        _ => None,
    }
}

struct Resolver<'a> {
    reader: &'a Avro,
    writer: &'a Avro,
    /// Pairs of records under check: a recursive type is compatible if the rest is.
    assumed: HashSet<(String, String)>,
}

impl Resolver<'_> {
    fn check(
        &mut self,
        reader: &Value,
        writer: &Value,
        at: &str,
        depth: usize,
    ) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err(format!("`{at}` is nested too deeply"));
        }
        let (reader, writer) = (self.reader.resolve(reader), self.writer.resolve(writer));
        if let Value::Array(branches) = writer {
            return branches
                .iter()
                .try_for_each(|branch| self.check(reader, branch, at, depth + 1));
        }
        if let Value::Array(branches) = reader {
            let readable = branches
                .iter()
                .any(|branch| self.check(branch, writer, at, depth + 1).is_ok());
            return match readable {
                true => Ok(()),
                false => Err(format!(
                    "no branch of the union `{at}` reads {}",
                    kind(writer)
                )),
            };
        }
        let (theirs, ours) = (kind(writer), kind(reader));
        let inner = |schema: &Value, key: &str| schema.get(key).cloned().unwrap_or(Value::Null);
        match (ours, theirs) {
            ("array", "array") => self.check(
                &inner(reader, "items"),
                &inner(writer, "items"),
                at,
                depth + 1,
            ),
            ("map", "map") => self.check(
                &inner(reader, "values"),
                &inner(writer, "values"),
                at,
                depth + 1,
            ),
            ("record" | "error", "record" | "error") => {
                self.check_record(reader, writer, at, depth)
            }
            ("enum", "enum") => check_enum(reader, writer, at),
            ("fixed", "fixed") => match inner(reader, "size") == inner(writer, "size") {
                true => Ok(()),
                false => Err(format!("the size of `{at}` differs")),
            },
            (ours, theirs) if ours == theirs || promotes(theirs, ours) => Ok(()),
            (ours, theirs) => Err(format!("`{at}` is {theirs} where {ours} is expected")),
        }
    }

    fn check_record(
        &mut self,
        reader: &Value,
        writer: &Value,
        at: &str,
        depth: usize,
    ) -> Result<(), String> {
        let (ours, theirs) = (name(reader), name(writer));
        if ours != theirs && !has_alias(reader, theirs) {
            return Err(format!("record `{theirs}` where `{ours}` is expected"));
        }
        if !self.assumed.insert((ours.to_owned(), theirs.to_owned())) {
            return Ok(());
        }
        for field in fields(reader) {
            let path = format!("{at}/{}", name(field));
            let written = fields(writer)
                .iter()
                .find(|other| name(other) == name(field) || has_alias(field, name(other)));
            match written {
                Some(written) => {
                    let (reader, writer) = (field.get("type"), written.get("type"));
                    let (Some(reader), Some(writer)) = (reader, writer) else {
                        continue;
                    };
                    self.check(reader, writer, &path, depth + 1)?;
                }
                None if field.get("default").is_some() => {}
                None => return Err(format!("`{path}` has no default and is not always written")),
            }
        }
        Ok(())
    }
}

fn kind(schema: &Value) -> &str {
    match schema {
        Value::String(name) => name,
        Value::Object(fields) => match fields.get("type") {
            Some(Value::String(name)) => name,
            Some(inner) => kind(inner),
            None => "nothing",
        },
        _ => "a union",
    }
}

fn name(schema: &Value) -> &str {
    schema.get("name").and_then(Value::as_str).map_or("", short)
}

fn fields(record: &Value) -> &[Value] {
    record
        .get("fields")
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn has_alias(schema: &Value, name: &str) -> bool {
    let aliases = schema.get("aliases").and_then(Value::as_array);
    aliases.is_some_and(|all| {
        all.iter()
            .filter_map(Value::as_str)
            .any(|a| short(a) == name)
    })
}

fn check_enum(reader: &Value, writer: &Value, at: &str) -> Result<(), String> {
    let symbols = |schema: &Value| -> Vec<String> {
        let all = schema.get("symbols").and_then(Value::as_array);
        all.map_or_else(Vec::new, |all| {
            all.iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect()
        })
    };
    if name(reader) != name(writer) && !has_alias(reader, name(writer)) {
        return Err(format!(
            "enum `{}` where `{}` is expected",
            name(writer),
            name(reader)
        ));
    }
    let ours = symbols(reader);
    match symbols(writer)
        .into_iter()
        .find(|symbol| !ours.contains(symbol))
    {
        Some(symbol) if reader.get("default").is_none() => {
            Err(format!("the enum `{at}` does not know `{symbol}`"))
        }
        _ => Ok(()),
    }
}

fn promotes(from: &str, to: &str) -> bool {
    matches!(
        (from, to),
        ("int", "long" | "float" | "double")
            | ("long", "float" | "double")
            | ("float", "double")
            | ("string", "bytes")
            | ("bytes", "string")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(fields: &str) -> Avro {
        let text = format!(r#"{{"type":"record","name":"a.b.R","fields":[{fields}]}}"#);
        Avro::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn resolution_rules() {
        let int = r#"{"name":"x","type":"int"}"#;
        let long = r#"{"name":"x","type":"long"}"#;
        let text = r#"{"name":"x","type":"string"}"#;
        let optional = r#"{"name":"x","type":["null","int"],"default":null}"#;
        let extra = r#"{"name":"x","type":"int"},{"name":"y","type":"int"}"#;
        let defaulted = r#"{"name":"x","type":"int"},{"name":"y","type":"int","default":1}"#;
        let list = r#"{"name":"x","type":{"type":"array","items":["null","R"]}}"#;
        let other = r#"{"name":"x","type":{"type":"array","items":"int"}}"#;
        let few = r#"{"name":"x","type":{"type":"enum","name":"E","symbols":["A"]}}"#;
        let more = r#"{"name":"x","type":{"type":"enum","name":"E","symbols":["A","B"]}}"#;
        // Reader, writer, readable.
        let cases = [
            (int, int, true),
            (long, int, true),
            (int, long, false),
            (text, int, false),
            (optional, int, true),
            (int, optional, false),
            (extra, int, false),
            (defaulted, int, true),
            (int, extra, true),
            ("", int, true),
            (int, "", false),
            (optional, "", true),
            (list, list, true),
            (list, other, false),
            (more, few, true),
            (few, more, false),
        ];
        for (reader, writer, readable) in cases {
            let reason = record(reader).cannot_read(&record(writer));
            assert_eq!(
                reason.is_none(),
                readable,
                "{reader} reads {writer}: {reason:?}"
            );
        }
    }

    #[test]
    fn what_is_no_schema_is_none() {
        for text in [
            "",
            "7",
            "{}",
            r#""unknown""#,
            r#"{"type":"record","name":"R","fields":7}"#,
        ] {
            assert!(Avro::parse(text.as_bytes()).is_none(), "{text}");
        }
        let deep = format!("{}\"int\"{}", "[".repeat(100), "]".repeat(100));
        assert!(Avro::parse(deep.as_bytes()).is_none());
        assert!(Avro::parse(br#""string""#).is_some());
    }
}
