//! Protobuf's wire format, read by hand: for the few messages that are decoded for every frame,
//! where a generated struct would allocate strings that nobody looks at.

use bytes::BufMut;

use crate::error::WireError;

/// The value of one field, not yet interpreted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
    /// A group of proto2: skipped, nothing of ours has one.
    Group,
}

/// Walks the fields of an encoded message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

const GROUP_DEPTH_MAX: usize = 64;

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next field number and value; `None` at the end.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Option<(u32, Value<'a>)>, WireError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (number, wire_type) = self.tag()?;
        let value = match wire_type {
            0 => Value::Varint(self.varint()?),
            2 => Value::Bytes(self.bytes()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            5 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            3 => {
                self.skip_group(number)?;
                Value::Group
            }
            other => return Err(WireError::WireType(other)),
        };
        Ok(Some((number, value)))
    }

    #[inline]
    fn tag(&mut self) -> Result<(u32, u8), WireError> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| WireError::VarintTooLong)?;
        if number == 0 {
            return Err(WireError::FieldZero);
        }
        Ok((number, (tag & 7) as u8))
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, WireError> {
        if let Some((&first, rest)) = self.rest.split_first()
            && first < 0x80
        {
            self.rest = rest;
            return Ok(u64::from(first));
        }
        self.varint_slow()
    }

    fn varint_slow(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for (i, &byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                if i == 9 && byte > 1 {
                    return Err(WireError::VarintTooLong);
                }
                self.rest = &self.rest[i + 1..];
                return Ok(value);
            }
        }
        Err(if self.rest.len() < 10 {
            WireError::Truncated
        } else {
            WireError::VarintTooLong
        })
    }

    #[inline]
    fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        let len = self.varint()?;
        let len = usize::try_from(len).map_err(|_| WireError::Truncated)?;
        let Some((bytes, rest)) = self.rest.split_at_checked(len) else {
            return Err(WireError::Truncated);
        };
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let Some((bytes, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(WireError::Truncated);
        };
        self.rest = rest;
        Ok(*bytes)
    }

    fn skip_group(&mut self, number: u32) -> Result<(), WireError> {
        let mut open = vec![number];
        while let Some(&innermost) = open.last() {
            let (number, wire_type) = self.tag()?;
            match wire_type {
                0 => _ = self.varint()?,
                1 => _ = self.array::<8>()?,
                2 => _ = self.bytes()?,
                5 => _ = self.array::<4>()?,
                3 if open.len() < GROUP_DEPTH_MAX => open.push(number),
                4 if number == innermost => _ = open.pop(),
                other => return Err(WireError::WireType(other)),
            }
        }
        Ok(())
    }
}

pub(crate) fn text(bytes: &[u8]) -> Result<&str, WireError> {
    std::str::from_utf8(bytes).map_err(|_| WireError::NotUtf8)
}

/// Bytes that `value` takes as a varint.
#[inline]
pub(crate) fn varint_len(value: u64) -> usize {
    // One byte for each begun seven bits; zero takes one too.
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

#[inline]
pub(crate) fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Bytes of a varint field with a number below 16.
#[inline]
pub(crate) fn varint_field_len(value: u64) -> usize {
    1 + varint_len(value)
}

#[inline]
pub(crate) fn put_varint_field(out: &mut impl BufMut, number: u32, value: u64) {
    debug_assert!(number < 16, "one-byte tags only");
    out.put_u8((number as u8) << 3);
    put_varint(out, value);
}

/// A small message being written on the stack: it goes to its buffer in one piece, which is a
/// third of the cost of byte by byte.
pub(crate) struct Scratch {
    bytes: [u8; Scratch::SIZE],
    len: usize,
}

impl Scratch {
    /// More than the longest head of a frame that is written here: ten fields of eleven bytes.
    const SIZE: usize = 128;

    #[inline]
    pub(crate) fn new() -> Self {
        Self {
            bytes: [0; Self::SIZE],
            len: 0,
        }
    }

    #[inline]
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    #[inline]
    pub(crate) fn byte(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    #[inline]
    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes[self.len..self.len + 4].copy_from_slice(&value.to_be_bytes());
        self.len += 4;
    }

    #[inline]
    pub(crate) fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.byte(value as u8 | 0x80);
            value >>= 7;
        }
        self.byte(value as u8);
    }

    #[inline]
    pub(crate) fn field(&mut self, number: u8, value: u64) {
        debug_assert!(number < 16, "one-byte tags only");
        self.byte(number << 3);
        self.varint(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_take_the_length_they_say() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1 << shift) - 1, u64::MAX >> shift] {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                assert_eq!(out.len(), varint_len(value), "{value}");
                let mut fields = Fields::new(&out);
                assert_eq!(fields.varint(), Ok(value));
            }
        }
    }

    #[test]
    fn broken_encodings_are_errors() {
        let cases: [(&[u8], WireError); 7] = [
            (&[0x08], WireError::Truncated),
            (&[0x0a, 5, 1], WireError::Truncated),
            (&[0x09, 1, 2, 3], WireError::Truncated),
            (
                &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255],
                WireError::VarintTooLong,
            ),
            (&[0x0e], WireError::WireType(6)),
            (&[0x00, 1], WireError::FieldZero),
            (&[0x0b, 0x14], WireError::WireType(4)),
        ];
        for (bytes, error) in cases {
            assert_eq!(Fields::new(bytes).next(), Err(error), "{bytes:?}");
        }
    }

    #[test]
    fn groups_are_skipped() {
        // Group 1 { field 2 = 7, group 3 {} }, then field 4 = 1.
        let bytes = [0x0b, 0x10, 7, 0x1b, 0x1c, 0x0c, 0x20, 1];
        let mut fields = Fields::new(&bytes);
        assert_eq!(fields.next(), Ok(Some((1, Value::Group))));
        assert_eq!(fields.next(), Ok(Some((4, Value::Varint(1)))));
        assert_eq!(fields.next(), Ok(None));
    }
}
