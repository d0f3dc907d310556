//! Batches: several messages in one entry.
//!
//! The uncompressed payload is `size:u32 SingleMessageMetadata payload`, repeated. A presence of
//! `num_messages_in_batch` in the entry's metadata, even as 1, says that the payload is a batch.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use crate::error::MessageError;
use crate::pb::SingleMessageMetadata;

/// Collects messages into the payload of one entry.
#[derive(Debug, Default)]
pub struct Builder {
    bytes: BytesMut,
    count: i32,
    /// What the payload before took: the next one is about as long, and need not grow to it step by step.
    before: usize,
}

impl Builder {
    /// Appends a message. `payload_size` in the metadata is set to the payload's.
    pub fn push(&mut self, metadata: &mut SingleMessageMetadata, payload: &[u8]) {
        metadata.payload_size = payload.len() as i32;
        let len = metadata.encoded_len();
        let needs = 4 + len + payload.len();
        self.bytes.reserve(match self.count {
            // Nothing is kept for a payload that may never come.
            1 => needs.max(self.before),
            _ => needs,
        });
        self.bytes.put_u32(len as u32);
        metadata.encode_raw(&mut self.bytes);
        self.bytes.put_slice(payload);
        self.count += 1;
    }

    /// Messages so far.
    pub fn count(&self) -> i32 {
        self.count
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes the payload and the number of messages in it; the builder is empty again.
    pub fn finish(&mut self) -> (Bytes, i32) {
        self.before = self.bytes.len();
        (self.bytes.split().freeze(), std::mem::take(&mut self.count))
    }
}

/// The messages of an uncompressed batch payload, each payload a slice of it.
///
/// After an error there are no more.
pub fn read(payload: Bytes, count: i32) -> Reader {
    Reader {
        rest: payload,
        expected: count,
        found: 0,
    }
}

/// See [`read`].
#[derive(Debug)]
pub struct Reader {
    rest: Bytes,
    expected: i32,
    found: i32,
}

impl Reader {
    fn read_one(&mut self) -> Result<(SingleMessageMetadata, Bytes), MessageError> {
        let too_short = MessageError::BatchTooShort {
            expected: self.expected,
            found: self.found,
        };
        if self.rest.len() < 4 {
            return Err(too_short);
        }
        let size = self.rest.get_u32() as usize;
        if self.rest.len() < size {
            return Err(too_short);
        }
        let metadata = SingleMessageMetadata::decode(&self.rest[..size])?;
        self.rest.advance(size);
        let size = usize::try_from(metadata.payload_size)
            .map_err(|_| MessageError::NegativeSize(metadata.payload_size))?;
        if self.rest.len() < size {
            return Err(too_short);
        }
        Ok((metadata, self.rest.split_to(size)))
    }
}

impl Iterator for Reader {
    type Item = Result<(SingleMessageMetadata, Bytes), MessageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.found >= self.expected {
            return None;
        }
        let result = self.read_one();
        match &result {
            Ok(_) => self.found += 1,
            Err(_) => self.found = self.expected,
        }
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::command::key_values;

    proptest! {
        #[test]
        fn what_goes_in_comes_out(messages: Vec<(Option<String>, Vec<u8>)>) {
            let mut builder = Builder::default();
            for (key, payload) in &messages {
                let mut metadata = SingleMessageMetadata {
                    partition_key: key.clone(),
                    properties: key_values(key.iter().map(|key| (key, "v"))),
                    ..Default::default()
                };
                builder.push(&mut metadata, payload);
            }
            prop_assert_eq!(builder.is_empty(), messages.is_empty());
            let (bytes, count) = builder.finish();
            prop_assert_eq!(count as usize, messages.len());
            let range = bytes.as_ptr_range();
            let mut read = Vec::new();
            for message in super::read(bytes.clone(), count) {
                let (metadata, payload) = message.unwrap();
                prop_assert!(payload.is_empty() || range.contains(&payload.as_ptr()));
                read.push((metadata.partition_key, payload.to_vec()));
            }
            prop_assert_eq!(read, messages);
        }

        #[test]
        fn garbage_ends(bytes: Vec<u8>, count: i32) {
            let len = bytes.len();
            prop_assert!(super::read(Bytes::from(bytes), count).count() <= len / 4 + 1);
        }
    }

    #[test]
    fn a_batch_that_ends_early_says_so() {
        let mut builder = Builder::default();
        builder.push(&mut SingleMessageMetadata::default(), b"a");
        let (bytes, _) = builder.finish();
        let read: Vec<_> = super::read(bytes, 2).collect();
        assert!(read[0].is_ok());
        assert_eq!(
            read[1],
            Err(MessageError::BatchTooShort {
                expected: 2,
                found: 1
            })
        );
        assert_eq!(read.len(), 2);
    }

    #[test]
    fn a_negative_size_is_an_error() {
        let metadata = SingleMessageMetadata {
            payload_size: -1,
            ..Default::default()
        };
        let encoded = metadata.encode_to_vec();
        let mut bytes = BytesMut::new();
        bytes.put_u32(encoded.len() as u32);
        bytes.put_slice(&encoded);
        let error = super::read(bytes.freeze(), 1).next().unwrap().unwrap_err();
        assert_eq!(error, MessageError::NegativeSize(-1));
    }
}
