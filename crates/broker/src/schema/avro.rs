//! Avro schema documents, parsed: an arena of types with the names resolved. Pure.
//!
//! Pulsar's JSON and PROTOBUF schemas are Avro documents too. What must hold: any bytes give a
//! schema or a reason, within bounded time, depth and memory.

mod resolve;

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Nesting of a document.
const DEPTH_MAX: usize = 64;
/// Types in one document.
const TYPES_MAX: usize = 10_000;

/// Index of a type in its document.
type TypeId = usize;

/// A schema document.
#[derive(Debug)]
pub(crate) struct Avro {
    types: Vec<Type>,
    root: TypeId,
}

#[derive(Debug)]
enum Type {
    Primitive(Primitive),
    Array(TypeId),
    Map(TypeId),
    Union(Vec<TypeId>),
    Fixed {
        name: Name,
        size: u64,
    },
    Enum {
        name: Name,
        symbols: Vec<String>,
        has_default: bool,
    },
    Record {
        name: Name,
        fields: Vec<Field>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Primitive {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
}

#[derive(Debug)]
struct Name {
    /// With its namespace.
    full: String,
    /// With theirs.
    aliases: Vec<String>,
}

#[derive(Debug)]
struct Field {
    name: String,
    aliases: Vec<String>,
    r#type: TypeId,
    has_default: bool,
}

impl Avro {
    /// Reads a document; the error says what is wrong with it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Avro, String> {
        let document: Value = serde_json::from_slice(bytes)
            .map_err(|error| format!("the definition is not JSON: {error}"))?;
        let mut parser = Parser::default();
        let root = parser.r#type(&document, "", 0)?;
        Ok(Avro {
            types: parser.types,
            root,
        })
    }

    /// Pulsar does not take a union for a topic's schema.
    pub(crate) fn is_union(&self) -> bool {
        matches!(self.types[self.root], Type::Union(_))
    }
}

impl Primitive {
    fn of(name: &str) -> Option<Primitive> {
        Some(match name {
            "null" => Primitive::Null,
            "boolean" => Primitive::Boolean,
            "int" => Primitive::Int,
            "long" => Primitive::Long,
            "float" => Primitive::Float,
            "double" => Primitive::Double,
            "bytes" => Primitive::Bytes,
            "string" => Primitive::String,
            _ => return None,
        })
    }

    fn as_str(self) -> &'static str {
        match self {
            Primitive::Null => "null",
            Primitive::Boolean => "boolean",
            Primitive::Int => "int",
            Primitive::Long => "long",
            Primitive::Float => "float",
            Primitive::Double => "double",
            Primitive::Bytes => "bytes",
            Primitive::String => "string",
        }
    }
}

impl Name {
    /// Without the namespace.
    fn short(&self) -> &str {
        short(&self.full)
    }
}

fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// A name seen from within `space`.
fn full_name(name: &str, space: &str) -> String {
    if name.contains('.') || space.is_empty() {
        name.to_owned()
    } else {
        format!("{space}.{name}")
    }
}

#[derive(Default)]
struct Parser {
    types: Vec<Type>,
    named: HashMap<String, TypeId>,
}

impl Parser {
    fn add(&mut self, r#type: Type) -> Result<TypeId, String> {
        if self.types.len() >= TYPES_MAX {
            return Err(format!("more than {TYPES_MAX} types"));
        }
        self.types.push(r#type);
        Ok(self.types.len() - 1)
    }

    fn r#type(&mut self, schema: &Value, space: &str, depth: usize) -> Result<TypeId, String> {
        if depth > DEPTH_MAX {
            return Err(format!("nested deeper than {DEPTH_MAX}"));
        }
        match schema {
            Value::String(name) => self.reference(name, space),
            Value::Array(branches) => self.union(branches, space, depth),
            Value::Object(schema) => match schema.get("type") {
                Some(Value::String(kind)) => self.object(kind, schema, space, depth),
                Some(inner) => self.r#type(inner, space, depth + 1),
                None => Err("a type without `type`".to_owned()),
            },
            other => Err(format!("`{other}` is no type")),
        }
    }

    fn reference(&mut self, name: &str, space: &str) -> Result<TypeId, String> {
        if let Some(primitive) = Primitive::of(name) {
            return self.add(Type::Primitive(primitive));
        }
        let full = full_name(name, space);
        let known = self.named.get(&full).or_else(|| self.named.get(name));
        known
            .copied()
            .ok_or_else(|| format!("`{name}` is not defined"))
    }

    fn union(&mut self, branches: &[Value], space: &str, depth: usize) -> Result<TypeId, String> {
        let mut ids = Vec::with_capacity(branches.len());
        let mut seen = std::collections::HashSet::new();
        for branch in branches {
            let id = self.r#type(branch, space, depth + 1)?;
            let label = match &self.types[id] {
                Type::Union(_) => return Err("a union directly in a union".to_owned()),
                Type::Array(_) => "array".to_owned(),
                Type::Map(_) => "map".to_owned(),
                Type::Primitive(primitive) => primitive.as_str().to_owned(),
                Type::Fixed { name, .. } | Type::Enum { name, .. } | Type::Record { name, .. } => {
                    // Cannot be taken for a type's own name.
                    format!("named {}", name.full)
                }
            };
            if !seen.insert(label) {
                return Err("a union with the same type twice".to_owned());
            }
            ids.push(id);
        }
        self.add(Type::Union(ids))
    }

    fn object(
        &mut self,
        kind: &str,
        schema: &Map<String, Value>,
        space: &str,
        depth: usize,
    ) -> Result<TypeId, String> {
        let member = |key: &str| {
            let value = schema.get(key);
            value.ok_or_else(|| format!("a `{kind}` without `{key}`"))
        };
        match kind {
            "array" => {
                let items = self.r#type(member("items")?, space, depth + 1)?;
                self.add(Type::Array(items))
            }
            "map" => {
                let values = self.r#type(member("values")?, space, depth + 1)?;
                self.add(Type::Map(values))
            }
            "fixed" => {
                let size = member("size")?
                    .as_u64()
                    .ok_or("the size of a `fixed` is no number")?;
                let name = name_of(schema, space)?;
                self.define(Type::Fixed { name, size })
            }
            "enum" => {
                let symbols = strings(member("symbols")?).ok_or("the symbols are no strings")?;
                let unique: std::collections::HashSet<&String> = symbols.iter().collect();
                if unique.len() != symbols.len() {
                    return Err("an `enum` with the same symbol twice".to_owned());
                }
                let name = name_of(schema, space)?;
                let has_default = schema.contains_key("default");
                self.define(Type::Enum {
                    name,
                    symbols,
                    has_default,
                })
            }
            "record" | "error" => self.record(schema, space, depth),
            other => self.reference(other, space),
        }
    }

    fn record(
        &mut self,
        schema: &Map<String, Value>,
        space: &str,
        depth: usize,
    ) -> Result<TypeId, String> {
        let name = name_of(schema, space)?;
        let within = match name.full.rsplit_once('.') {
            Some((space, _)) => space.to_owned(),
            None => String::new(),
        };
        // Before its fields: they may refer to it.
        let id = self.define(Type::Record {
            name,
            fields: Vec::new(),
        })?;
        let members = schema.get("fields").and_then(Value::as_array);
        let members = members.ok_or("a `record` without `fields`")?;
        let mut all: Vec<Field> = Vec::with_capacity(members.len());
        let mut names = std::collections::HashSet::new();
        for member in members {
            let name = member.get("name").and_then(Value::as_str);
            let name = name.ok_or("a field without `name`")?.to_owned();
            if !names.insert(name.clone()) {
                return Err(format!("the field `{name}` twice"));
            }
            let kind = member.get("type");
            let kind = kind.ok_or_else(|| format!("the field `{name}` without `type`"))?;
            all.push(Field {
                aliases: member.get("aliases").and_then(strings).unwrap_or_default(),
                r#type: self.r#type(kind, &within, depth + 1)?,
                has_default: member.get("default").is_some(),
                name,
            });
        }
        if let Type::Record { fields, .. } = &mut self.types[id] {
            *fields = all;
        }
        Ok(id)
    }

    fn define(&mut self, r#type: Type) -> Result<TypeId, String> {
        let full = match &r#type {
            Type::Fixed { name, .. } | Type::Enum { name, .. } | Type::Record { name, .. } => {
                name.full.clone()
            }
            _ => String::new(),
        };
        if self.named.contains_key(&full) {
            return Err(format!("`{full}` is defined twice"));
        }
        let id = self.add(r#type)?;
        self.named.insert(full, id);
        Ok(id)
    }
}

fn name_of(schema: &Map<String, Value>, space: &str) -> Result<Name, String> {
    let name = schema.get("name").and_then(Value::as_str).unwrap_or("");
    if short(name).is_empty() {
        return Err("a named type without a name".to_owned());
    }
    let own = schema.get("namespace").and_then(Value::as_str);
    let full = full_name(name, own.unwrap_or(space));
    let within = full.rsplit_once('.').map_or("", |(space, _)| space);
    let aliases = schema.get("aliases").and_then(strings).unwrap_or_default();
    let aliases = aliases
        .iter()
        .map(|alias| full_name(alias, within))
        .collect();
    Ok(Name { full, aliases })
}

fn strings(value: &Value) -> Option<Vec<String>> {
    let all = value.as_array()?.iter();
    all.map(|one| one.as_str().map(str::to_owned)).collect()
}

/// The document without what means nothing to a reader: comments, and objects around a lone name.
pub(crate) fn plain_document(schema: Value) -> Value {
    match schema {
        Value::Object(mut members) => {
            members.remove("doc");
            if members.len() == 1
                && let Some(Value::String(name)) = members.get("type")
            {
                return Value::String(name.clone());
            }
            let plain = members.into_iter().map(|(key, value)| {
                let value = match key.as_str() {
                    // A value, not a schema.
                    "default" => value,
                    _ => plain_document(value),
                };
                (key, value)
            });
            Value::Object(plain.collect())
        }
        Value::Array(all) => Value::Array(all.into_iter().map(plain_document).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
