//! Header blocks: `name:value` lines, the one form of metadata in the host protocol.
//!
//! A value (and a name) escapes backslash as `\\`, newline as `\n`, and NUL, 0x1F and, in names,
//! the colon as `\ooo` (three octal digits). So a block holds no NUL and no 0x1F, splits at
//! newlines, and `printf %b` of a shell undoes the escapes.

use super::Message;
use super::wire_base64::base64;

/// Appends `name:value\n`.
pub(crate) fn push(out: &mut Vec<u8>, name: &str, value: &str) {
    escape_into(out, name.as_bytes(), true);
    out.push(b':');
    escape_into(out, value.as_bytes(), false);
    out.push(b'\n');
}

/// Appends `name:value\n`, of a name of ours, in which nothing is to be escaped.
fn push_ours(out: &mut Vec<u8>, name: &'static str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.push(b':');
    escape_into(out, value.as_bytes(), false);
    out.push(b'\n');
}

/// Appends `name:number\n`, of a name of ours.
pub(crate) fn push_number(out: &mut Vec<u8>, name: &'static str, value: u64) {
    out.extend_from_slice(name.as_bytes());
    out.push(b':');
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    out.push(b'\n');
}

/// Whether `byte` must be escaped in a value.
const fn needs_escape(byte: u8) -> bool {
    matches!(byte, b'\\' | b'\n' | 0 | 0x1f)
}

/// Appends `text`, escaped.
pub(crate) fn escape_into(out: &mut Vec<u8>, text: &[u8], name: bool) {
    if !text.iter().any(|&b| needs_escape(b) || (name && b == b':')) {
        out.extend_from_slice(text);
        return;
    }
    for &byte in text {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            0 => out.extend_from_slice(b"\\000"),
            0x1f => out.extend_from_slice(b"\\037"),
            b':' if name => out.extend_from_slice(b"\\072"),
            other => out.push(other),
        }
    }
}

/// Undoes the escapes. Text that is not a known escape stays as it is.
pub(crate) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'\\' {
            out.push(first);
            continue;
        }
        match tail {
            [b'\\', after @ ..] => {
                out.push(b'\\');
                rest = after;
            }
            [b'n', after @ ..] => {
                out.push(b'\n');
                rest = after;
            }
            [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] => {
                out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = after;
            }
            _ => out.push(b'\\'),
        }
    }
    out
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(unescape(bytes))
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// The lines of a block; lines without a colon are skipped.
pub(crate) fn parse(block: &[u8]) -> impl Iterator<Item = (String, String)> + '_ {
    block.split(|&b| b == b'\n').filter_map(|line| {
        let colon = line.iter().position(|&b| b == b':')?;
        Some((text(&line[..colon]), text(&line[colon + 1..])))
    })
}

/// The header block of a message.
pub(crate) fn of_message(out: &mut Vec<u8>, message: &Message) {
    push_ours(out, "topic", &message.topic);
    if let Some(input) = &message.input {
        push_ours(out, "input", input);
    }
    push_ours(out, "id", &message.id);
    if let Some(key) = &message.key {
        push_ours(
            out,
            if message.key_is_base64 {
                "key64"
            } else {
                "key"
            },
            key,
        );
    }
    if let Some(key) = &message.ordering_key {
        push_ours(out, "orderingKey", key);
    }
    for (name, value) in [
        ("eventTime", message.event_time),
        ("publishTime", message.publish_time),
        ("sequence", message.sequence),
        ("redelivery", u64::from(message.redelivery)),
    ] {
        if value > 0 {
            push_number(out, name, value);
        }
    }
    if let Ok(partition @ 1..) = u64::try_from(i64::from(message.partition) + 1) {
        push_number(out, "partition", partition - 1);
    }
    if let Some(version) = &message.schema_version {
        push_ours(out, "schemaVersion", &base64(version));
    }
    if !message.producer.is_empty() {
        push_ours(out, "producer", &message.producer);
    }
    if let Some(window) = &message.window {
        push_number(out, "window", window.count);
        push_number(out, "windowStart", window.start_ms);
        push_number(out, "windowEnd", window.end_ms);
    }
    let mut name = String::new();
    for (property, value) in &message.properties {
        name.clear();
        name.push_str("prop.");
        name.push_str(property);
        push(out, &name, value);
    }
}

/// A schema as the answer to a question: the length of a block, the block, and what the schema says.
pub(crate) fn of_schema(schema: &geminga_client::Schema) -> bytes::Bytes {
    let mut block = Vec::new();
    push(&mut block, "name", schema.name());
    let number = u64::try_from(schema.kind() as i32).unwrap_or(0);
    push_number(&mut block, "type", number);
    for (name, value) in schema.properties() {
        push(&mut block, &format!("prop.{name}"), value);
    }
    let mut out = Vec::new();
    let length = u32::try_from(block.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&block);
    out.extend_from_slice(schema.data());
    out.into()
}

/// Fills an output from the header block that came with it. Unknown names are ignored, so that a
/// newer host can say more. Gives the number of its schema, which the host has said before.
pub(crate) fn to_output(block: &[u8], output: &mut super::Output) -> Option<u64> {
    let mut schema = None;
    for (name, value) in parse(block) {
        match name.as_str() {
            "topic" => output.topic = (!value.is_empty()).then_some(value),
            "key" => (output.key, output.key_is_base64) = (Some(value), false),
            "key64" => (output.key, output.key_is_base64) = (Some(value), true),
            "orderingKey" => output.ordering_key = Some(value),
            "eventTime" => output.event_time = value.parse().ok(),
            "delayMs" => output.delay_ms = value.parse().ok(),
            "sequence" => output.sequence = value.parse().ok(),
            "schema" => schema = value.parse().ok(),
            other => {
                if let Some(property) = other.strip_prefix("prop.") {
                    output.properties.push((property.to_owned(), value));
                }
            }
        }
    }
    schema
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_survives_a_block(pairs in prop::collection::vec((".*", "\\PC*|[\\x00-\\x7f]*"), 0..8)) {
            let mut block = Vec::new();
            for (name, value) in &pairs {
                push(&mut block, name, value);
            }
            prop_assert!(!block.contains(&0) && !block.contains(&0x1f));
            let back: Vec<_> = parse(&block).collect();
            prop_assert_eq!(back, pairs);
        }

        #[test]
        fn garbage_never_panics(block in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut output = super::super::Output::default();
            to_output(&block, &mut output);
        }
    }
}
