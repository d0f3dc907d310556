//! Names of schemas, and what they mean: those of Pulsar's `SchemaType`, in any case.

use geminga_client::{Schema, SchemaType};

/// What a schema's name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named {
    /// Bytes: nothing is declared.
    Bytes,
    /// The topic's own, whatever it is.
    OfTopic,
    Type(SchemaType),
    /// A class, which a host may have.
    Class,
}

/// Reads a name; `None` when it is none.
pub(crate) fn named(name: &str) -> Option<Named> {
    Some(match name.to_ascii_uppercase().as_str() {
        "" | "NONE" | "BYTES" => Named::Bytes,
        "AUTO" | "AUTO_CONSUME" | "AUTO_PUBLISH" => Named::OfTopic,
        "STRING" => Named::Type(SchemaType::String),
        "JSON" => Named::Type(SchemaType::Json),
        "AVRO" => Named::Type(SchemaType::Avro),
        "PROTOBUF" => Named::Type(SchemaType::Protobuf),
        "PROTOBUF_NATIVE" => Named::Type(SchemaType::ProtobufNative),
        "KEY_VALUE" => Named::Type(SchemaType::KeyValue),
        "BOOL" | "BOOLEAN" => Named::Type(SchemaType::Bool),
        "INT8" => Named::Type(SchemaType::Int8),
        "INT16" => Named::Type(SchemaType::Int16),
        "INT32" => Named::Type(SchemaType::Int32),
        "INT64" => Named::Type(SchemaType::Int64),
        "FLOAT" => Named::Type(SchemaType::Float),
        "DOUBLE" => Named::Type(SchemaType::Double),
        "DATE" => Named::Type(SchemaType::Date),
        "TIME" => Named::Type(SchemaType::Time),
        "TIMESTAMP" => Named::Type(SchemaType::Timestamp),
        "INSTANT" => Named::Type(SchemaType::Instant),
        "LOCAL_DATE" => Named::Type(SchemaType::LocalDate),
        "LOCAL_TIME" => Named::Type(SchemaType::LocalTime),
        "LOCAL_DATE_TIME" => Named::Type(SchemaType::LocalDateTime),
        _ if name.contains('.') => Named::Class,
        _ => return None,
    })
}

/// How a host is told of a type: Pulsar's name.
pub(crate) const fn name(kind: SchemaType) -> &'static str {
    match kind {
        SchemaType::None | SchemaType::External => "NONE",
        SchemaType::String => "STRING",
        SchemaType::Json => "JSON",
        SchemaType::Avro => "AVRO",
        SchemaType::Protobuf => "PROTOBUF",
        SchemaType::ProtobufNative => "PROTOBUF_NATIVE",
        SchemaType::KeyValue => "KEY_VALUE",
        SchemaType::Bool => "BOOLEAN",
        SchemaType::Int8 => "INT8",
        SchemaType::Int16 => "INT16",
        SchemaType::Int32 => "INT32",
        SchemaType::Int64 => "INT64",
        SchemaType::Float => "FLOAT",
        SchemaType::Double => "DOUBLE",
        SchemaType::Date => "DATE",
        SchemaType::Time => "TIME",
        SchemaType::Timestamp => "TIMESTAMP",
        SchemaType::Instant => "INSTANT",
        SchemaType::LocalDate => "LOCAL_DATE",
        SchemaType::LocalTime => "LOCAL_TIME",
        SchemaType::LocalDateTime => "LOCAL_DATE_TIME",
        SchemaType::AutoConsume => "AUTO_CONSUME",
    }
}

/// Whether values of a type need a definition, which is the schema's data.
pub(crate) const fn needs_definition(kind: SchemaType) -> bool {
    matches!(
        kind,
        SchemaType::Json
            | SchemaType::Avro
            | SchemaType::Protobuf
            | SchemaType::ProtobufNative
            | SchemaType::KeyValue
    )
}

/// How many bytes each value of a type has, where that is fixed.
const fn width(kind: SchemaType) -> Option<usize> {
    Some(match kind {
        SchemaType::Bool | SchemaType::Int8 => 1,
        SchemaType::Int16 => 2,
        SchemaType::Int32 | SchemaType::Float => 4,
        SchemaType::Int64
        | SchemaType::Double
        | SchemaType::Date
        | SchemaType::Time
        | SchemaType::Timestamp
        | SchemaType::LocalDate
        | SchemaType::LocalTime => 8,
        SchemaType::Instant => 12,
        SchemaType::LocalDateTime => 16,
        _ => return None,
    })
}

/// Why a payload can not be a value of a schema, as far as its length tells: whoever reads it by the schema
/// could not.
pub(crate) fn misfit(schema: &Schema, payload: &[u8]) -> Option<String> {
    let width = width(schema.kind()).filter(|&width| width != payload.len())?;
    let (kind, bytes) = (name(schema.kind()), payload.len());
    Some(format!(
        "it is no {kind}, which has {width} bytes, most significant first: it has {bytes}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_pulsars_in_any_case() {
        for number in 1..=20 {
            let kind = SchemaType::try_from(number).expect("a type");
            let text = name(kind);
            assert_eq!(named(text), Some(Named::Type(kind)), "{text}");
            let lower = text.to_lowercase();
            assert_eq!(named(&lower), Some(Named::Type(kind)), "{lower}");
        }
        assert_eq!(named("bool"), Some(Named::Type(SchemaType::Bool)));
        assert_eq!(named("None"), Some(Named::Bytes));
        assert_eq!(named("auto_publish"), Some(Named::OfTopic));
        assert_eq!(named("my.Schema"), Some(Named::Class));
        assert_eq!(named("jsno"), None);
    }

    #[test]
    fn a_payload_of_another_length_is_no_number() {
        let long = Schema::of(SchemaType::Int64);
        assert_eq!(misfit(&long, &[0; 8]), None);
        assert!(misfit(&long, b"5").expect("too short").contains("INT64"));
        assert_eq!(misfit(&Schema::string(), b"5"), None);
    }
}
