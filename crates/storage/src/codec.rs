//! How state records are spelled: variable-length integers, and bytes with their length before them.

use crate::error::StoreError;

/// Appends an integer in 7-bit groups, lowest first.
pub(crate) fn put_u64(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u64(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads what the functions above wrote; anything else is an error, never a panic.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(record: &'a [u8]) -> Self {
        Self { rest: record }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn u8(&mut self) -> Result<u8, StoreError> {
        let (first, rest) = self.rest.split_first().ok_or_else(short)?;
        self.rest = rest;
        Ok(*first)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, StoreError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let group = u64::from(byte & 0x7f);
            if shift == 63 && group > 1 {
                break;
            }
            value |= group << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(StoreError::bad_record("an integer is too long"))
    }

    /// A count of things of at least one byte each: never more than what is left.
    pub(crate) fn count(&mut self) -> Result<usize, StoreError> {
        let count = self.u64()?;
        if count > self.rest.len() as u64 {
            return Err(short());
        }
        Ok(count as usize)
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], StoreError> {
        let length = self.count()?;
        let (bytes, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(bytes)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, StoreError> {
        std::str::from_utf8(self.bytes()?)
            .map_err(|_| StoreError::bad_record("a name is not UTF-8"))
    }
}

fn short() -> StoreError {
    StoreError::bad_record("it ends too early")
}

/// `a + b`, where a sum past the end can only be damage.
pub(crate) fn add(a: u64, b: u64) -> Result<u64, StoreError> {
    a.checked_add(b)
        .ok_or_else(|| StoreError::bad_record("a number is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(numbers: Vec<u64>, bytes: Vec<u8>, text: String) {
            let mut out = Vec::new();
            for number in &numbers {
                put_u64(&mut out, *number);
            }
            put_bytes(&mut out, &bytes);
            put_bytes(&mut out, text.as_bytes());
            let mut reader = Reader::new(&out);
            for number in &numbers {
                prop_assert_eq!(reader.u64().unwrap(), *number);
            }
            prop_assert_eq!(reader.bytes().unwrap(), bytes.as_slice());
            prop_assert_eq!(reader.text().unwrap(), text.as_str());
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn garbage_never_panics(garbage: Vec<u8>) {
            let mut reader = Reader::new(&garbage);
            while reader.u64().is_ok() {}
            let mut reader = Reader::new(&garbage);
            while reader.text().is_ok() {}
        }
    }
}
