//! What topics are declared to be: schemas by name, with their definitions.
//!
//! A type like `string` or `int64` is declared by the worker for any language. What needs a definition gets it from the
//! host, which has the class (Java, Python), or from `schemaProperties`; where there is none it is refused
//! here, so that no name of a schema is taken and then forgotten.

use std::collections::BTreeMap;

use geminga_client::{Schema, SchemaType};

use super::{Language, Refused};
use crate::schema::{self, Named};

/// The property that holds a definition, as in the files of `pulsar-admin schemas upload`.
const DEFINITION: &str = "schema";

/// What is declared of a topic.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) enum Typed {
    /// Nothing: its messages are bytes, or what a SerDe class makes.
    #[default]
    Bytes,
    Schema(Schema),
    /// What the host says, which has the class that the configuration names.
    Host,
    /// The same, of a class that nothing is said of. A topic whose messages never had a schema stays so.
    Derived,
    /// What the topic has already.
    OfTopic,
}

impl Typed {
    /// Whether the host is to be asked.
    pub(crate) fn is_hosts(&self) -> bool {
        matches!(self, Self::Host | Self::Derived)
    }
}

/// Who reads or writes values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Code(Language),
    BuiltIn,
}

/// A field with the name of a schema.
pub(super) struct Field<'a> {
    pub(super) who: Who,
    pub(super) is_output: bool,
    /// How a sentence calls it: "`outputSchemaType: x`".
    pub(super) called: String,
    pub(super) name: &'a str,
    pub(super) properties: &'a BTreeMap<String, String>,
    /// A class for the values is named.
    pub(super) has_class: bool,
}

impl Field<'_> {
    /// What is declared, or why nothing can be.
    pub(super) fn typed(&self, refused: &mut Refused) -> Typed {
        match self.read() {
            Ok(typed) => typed,
            Err(why) => {
                refused.push(format!("{} is not supported: {why}", self.called));
                Typed::Bytes
            }
        }
    }

    fn read(&self) -> Result<Typed, String> {
        let code = |language| self.who == Who::Code(language);
        let (is_java, is_python) = (code(Language::Java), code(Language::Python));
        let Some(named) = schema::named(self.name) else {
            return Err(format!("there is no such schema: use {}", self.known()));
        };
        let definition = self.properties.get(DEFINITION);
        let kind = match named {
            Named::Bytes | Named::OfTopic if definition.is_some() => {
                return Err(
                    "the `schema` of its `schemaProperties` defines a type: use json or avro"
                        .to_owned(),
                );
            }
            Named::Bytes => return Ok(Typed::Bytes),
            // A consumer takes what the topic has without a word.
            Named::OfTopic if !self.is_output => return Ok(Typed::Bytes),
            Named::OfTopic => return Ok(Typed::OfTopic),
            Named::Class if is_java || is_python => return Ok(Typed::Host),
            Named::Class => {
                return Err(format!(
                    "a class is for Java and Python functions: use {}",
                    self.known()
                ));
            }
            Named::Type(kind) => kind,
        };
        if !schema::needs_definition(kind) {
            if definition.is_some() {
                return Err("it needs no definition: remove the `schema` of its \
                            `schemaProperties`"
                    .to_owned());
            }
            let fits = match self.who {
                Who::Code(Language::Python) => !is_time(kind),
                // A line of a file is text: no number is written in bytes there.
                Who::BuiltIn if self.is_output => kind == SchemaType::String,
                _ => true,
            };
            return match fits {
                true => Ok(Typed::Schema(self.with_properties(Schema::of(kind)))),
                false => Err(format!("use {}", self.known())),
            };
        }
        if kind == SchemaType::KeyValue {
            return Err(format!("use {}", self.known()));
        }
        if let Some(definition) = definition {
            if is_python && kind != SchemaType::Json && !self.has_class {
                return Err(format!("{}, the class of its values", self.class()));
            }
            return self.defined(kind, definition).map(Typed::Schema);
        }
        if is_java || is_python && self.has_class && is_of_python(kind) {
            return Ok(Typed::Host);
        }
        let text = schema::name(kind).to_lowercase();
        let own = match is_python && is_of_python(kind) {
            true => format!(
                "{}, the class of its values (a `pulsar.schema.Record`), ",
                self.class()
            ),
            false => String::new(),
        };
        let define = match (self.who, self.is_output) {
            (Who::BuiltIn, true) => {
                "give the topic its schema by `pulsar-admin schemas upload`, and use auto_publish"
            }
            (Who::Code(_), true) => {
                "give the definition as `schema` in the `schemaProperties` of `customSchemaOutputs`, or \
                 give the topic its schema by `pulsar-admin schemas upload`, and use auto_publish"
            }
            (_, false) => {
                "give the definition as `schema` in the `schemaProperties` of `inputSpecs`, or remove it: \
                 payloads come as they are"
            }
        };
        Err(format!(
            "{text} has a definition, and nobody gives it: {own}{define}"
        ))
    }

    fn class(&self) -> &'static str {
        match self.is_output {
            true => "give `outputTypeClassName`",
            false => "give `inputTypeClassName`",
        }
    }

    /// A schema by its definition.
    fn defined(&self, kind: SchemaType, definition: &str) -> Result<Schema, String> {
        let mut name = String::new();
        if matches!(kind, SchemaType::Json | SchemaType::Avro) {
            let value: serde_json::Value = serde_json::from_str(definition).map_err(|error| {
                format!("the `schema` of its `schemaProperties` is no JSON: {error}")
            })?;
            let given = value.get("name").and_then(serde_json::Value::as_str);
            given.unwrap_or_default().clone_into(&mut name);
        }
        let schema = Schema::new(kind, name, definition.to_owned(), []);
        Ok(self.with_properties(schema))
    }

    fn with_properties(&self, schema: Schema) -> Schema {
        let properties = self
            .properties
            .iter()
            .filter(|(name, _)| *name != DEFINITION);
        let properties = properties.map(|(name, value)| (name.clone(), value.clone()));
        Schema::new(
            schema.kind(),
            schema.name(),
            schema.data().clone(),
            properties,
        )
    }

    fn known(&self) -> String {
        let mut names = vec!["none", "bytes", "string"];
        let numbers = [
            "boolean", "int8", "int16", "int32", "int64", "float", "double",
        ];
        let times = [
            "date",
            "time",
            "timestamp",
            "instant",
            "local_date",
            "local_time",
            "local_date_time",
        ];
        if self.who == Who::BuiltIn && self.is_output {
            return "none, bytes, string or auto_publish".to_owned();
        }
        names.extend(numbers);
        if self.who != Who::Code(Language::Python) {
            names.extend(times);
        }
        names.extend(["json", "avro", "protobuf", "protobuf_native"]);
        let last = match self.is_output {
            true => "auto_publish",
            false => "auto_consume",
        };
        format!("{} or {last}", names.join(", "))
    }
}

const fn is_time(kind: SchemaType) -> bool {
    matches!(
        kind,
        SchemaType::Date
            | SchemaType::Time
            | SchemaType::Timestamp
            | SchemaType::Instant
            | SchemaType::LocalDate
            | SchemaType::LocalTime
            | SchemaType::LocalDateTime
    )
}

/// What the schemas of Pulsar's Python client can define.
const fn is_of_python(kind: SchemaType) -> bool {
    matches!(kind, SchemaType::Json | SchemaType::Avro)
}
