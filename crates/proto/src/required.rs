//! Required fields: prost takes what is missing for zero or empty, Pulsar closes the connection.
//!
//! A `SUBSCRIBE` without a type must not become an exclusive one, nor an `ACK` without a consumer
//! acknowledge for consumer 0. As in Pulsar, a value that its enum does not have counts as
//! missing. The shapes are written by `cargo xtask codegen` from the `.proto` files; the fast
//! decoders of [`send`](crate::send) look for themselves.

use crate::command::Command;
use crate::error::FrameError;
use crate::pb::{COMMAND_SHAPES, SHAPES};
use crate::wire::{Fields, Value};

/// What is to be known of a message.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    /// A bit for each field that must be there.
    pub(crate) required: u64,
    /// Fields that are messages, and the places of their shapes.
    pub(crate) messages: &'static [(u32, usize)],
    /// Required fields that are enums, and a bit for each value.
    pub(crate) enums: &'static [(u32, u64)],
}

/// Checks the body of a command that could be decoded.
pub(crate) fn check_command(number: i32, body: &[u8]) -> Result<(), FrameError> {
    match COMMAND_SHAPES.binary_search_by_key(&number, |(number, _)| *number) {
        Ok(found) => check(&SHAPES[COMMAND_SHAPES[found].1], body),
        Err(_) => Ok(()),
    }
}

/// The body of a command that may come in pieces, which protobuf merges.
pub(crate) fn body_of(command: &Command, base: &[u8]) -> Result<Vec<u8>, FrameError> {
    let mut body = Vec::new();
    let mut fields = Fields::new(base);
    while let Some((field, value)) = fields.next()? {
        if let Value::Bytes(piece) = value
            && i64::from(field) == i64::from(command.number())
        {
            body.extend_from_slice(piece);
        }
    }
    Ok(body)
}

/// As deep as the decoder went before, which has a limit.
fn check(shape: &'static Shape, bytes: &[u8]) -> Result<(), FrameError> {
    let mut found = 0u64;
    let mut fields = Fields::new(bytes);
    while let Some((field, value)) = fields.next()? {
        match value {
            Value::Varint(value) => {
                let known = shape.enums.iter().find(|(number, _)| *number == field);
                if known.is_some_and(|(_, known)| value >= 64 || known >> value & 1 == 0) {
                    continue;
                }
            }
            Value::Bytes(inner) => {
                if let Some((_, at)) = shape.messages.iter().find(|(number, _)| *number == field) {
                    check(&SHAPES[*at], inner)?;
                }
            }
            _ => {}
        }
        found |= 1u64.checked_shl(field).unwrap_or(0);
    }
    match shape.required & !found {
        0 => Ok(()),
        missing => Err(FrameError::MissingField {
            message: shape.name,
            field: missing.trailing_zeros(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::pb::*;

    fn decode(number: i32, body: &[u8]) -> Result<Command, FrameError> {
        let mut bytes = vec![8, number as u8];
        crate::wire::put_varint(&mut bytes, (number as u64) << 3 | 2);
        crate::wire::put_varint(&mut bytes, body.len() as u64);
        bytes.extend_from_slice(body);
        Command::decode(&bytes)
    }

    fn missing(number: i32, body: &[u8]) -> Option<(&'static str, u32)> {
        match decode(number, body) {
            Err(FrameError::MissingField { message, field }) => Some((message, field)),
            Ok(_) => None,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn each_command_has_the_shape_of_its_message() {
        for (number, at) in COMMAND_SHAPES {
            let name = Command::name_of(*number);
            assert_ne!(name, "UNKNOWN");
            assert!(SHAPES[*at].name.starts_with("Command"), "{name}");
            // Whatever prost writes has all that is required.
            let empty = missing(*number, &[]);
            assert_eq!(empty.is_some(), SHAPES[*at].required != 0, "{name}");
        }
    }

    #[test]
    fn fields_are_missed_at_any_depth() {
        assert_eq!(missing(12, &[8, 1]), Some(("CommandUnsubscribe", 2)));
        assert_eq!(missing(12, &[8, 1, 16, 2]), None);
        // An ACK with an id that has a ledger and no entry.
        assert_eq!(
            missing(10, &[8, 1, 16, 0, 26, 2, 8, 5]),
            Some(("MessageIdData", 2))
        );
        assert_eq!(missing(10, &[8, 1, 16, 0, 26, 4, 8, 5, 16, 6]), None);
    }

    #[test]
    fn a_value_that_no_enum_has_is_missing() {
        for (kind, is_known) in [(0, true), (3, true), (4, false), (99, false), (-1, false)] {
            let body = CommandSubscribe {
                sub_type: kind,
                ..CommandSubscribe::default()
            };
            let expected = (!is_known).then_some(("CommandSubscribe", 3));
            assert_eq!(missing(4, &body.encode_to_vec()), expected, "{kind}");
        }
    }

    #[test]
    fn a_body_in_pieces_is_one() {
        let whole = decode(12, &[8, 1, 16, 2]);
        let pieces = [8, 12, 98, 2, 8, 1, 98, 2, 16, 2];
        assert_eq!(Command::decode(&pieces), whole);
        let error = Command::decode(&[8, 12, 98, 2, 8, 1, 98, 2, 8, 2]);
        assert!(
            matches!(error, Err(FrameError::MissingField { field: 2, .. })),
            "{error:?}"
        );
    }
}
