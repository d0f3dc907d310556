//! PROTOBUF_NATIVE schemas: a set of file descriptors and the name of the root message. Pure.
//!
//! Pulsar compares no more than the root's name. Here a field that keeps its number must also keep
//! how it is written: a reader would take the bytes for something else, without an error.

use std::collections::HashSet;

use geminga_proto::key::decode_base64;
use prost_reflect::{Cardinality, DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};
use serde::Deserialize;

/// Messages compared; a schema has more only to be slow.
const MESSAGES_MAX: usize = 10_000;

#[derive(Debug)]
pub(crate) struct Native {
    root: MessageDescriptor,
}

/// As clients write it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    file_descriptor_set: String,
    root_message_type_name: String,
}

impl Native {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Native, String> {
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|error| format!("the definition cannot be read: {error}"))?;
        let files = decode_base64(&document.file_descriptor_set)
            .ok_or("`fileDescriptorSet` is not base64")?;
        // The library panics at some sets that are broken, while it words its error.
        let pool = std::panic::catch_unwind(|| DescriptorPool::decode(files.as_slice()))
            .map_err(|_| "`fileDescriptorSet` cannot be read".to_owned())?
            .map_err(|error| format!("`fileDescriptorSet` cannot be read: {error}"))?;
        let name = document.root_message_type_name;
        let root = pool.get_message_by_name(&name);
        let root = root.ok_or_else(|| format!("`{name}` is not in `fileDescriptorSet`"))?;
        Ok(Native { root })
    }

    /// Why this cannot read what was written with `writer`.
    pub(crate) fn cannot_read(&self, writer: &Native) -> Option<String> {
        if self.root.full_name() != writer.root.full_name() {
            return Some(format!(
                "the root message is `{}` and may not become `{}`",
                writer.root.full_name(),
                self.root.full_name()
            ));
        }
        let mut seen = HashSet::new();
        let mut pairs = vec![(self.root.clone(), writer.root.clone())];
        while let Some((reader, writer)) = pairs.pop() {
            let key = (reader.full_name().to_owned(), writer.full_name().to_owned());
            if !seen.insert(key) {
                continue;
            }
            if seen.len() > MESSAGES_MAX {
                return Some("the messages are too many to compare".to_owned());
            }
            for field in reader.fields() {
                match writer.get_field(field.number()) {
                    Some(written) => {
                        if wire(&field) != wire(&written) {
                            return Some(format!(
                                "`{}` is written as {:?} and would be read as {:?}",
                                field.full_name(),
                                written.kind(),
                                field.kind()
                            ));
                        }
                        if let (Kind::Message(ours), Kind::Message(theirs)) =
                            (field.kind(), written.kind())
                        {
                            pairs.push((ours, theirs));
                        }
                    }
                    None if field.cardinality() == Cardinality::Required => {
                        return Some(format!(
                            "`{}` is required and is not always written",
                            field.full_name()
                        ));
                    }
                    None => {}
                }
            }
        }
        None
    }
}

/// How a field's values are written: kinds of the same class can be read as each other.
fn wire(field: &FieldDescriptor) -> u8 {
    match field.kind() {
        Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Uint64 | Kind::Bool | Kind::Enum(_) => 0,
        Kind::Sint32 | Kind::Sint64 => 1,
        Kind::Fixed32 | Kind::Sfixed32 => 2,
        Kind::Fixed64 | Kind::Sfixed64 => 3,
        Kind::Float => 4,
        Kind::Double => 5,
        Kind::String | Kind::Bytes => 6,
        Kind::Message(_) if field.is_group() => 8,
        Kind::Message(_) => 7,
    }
}
