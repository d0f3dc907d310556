//! The headers-and-payload block: what SEND carries, what is stored, what MESSAGE carries.
//!
//! Layout: `[0x0e02 size:u32 BrokerEntryMetadata] [0x0e01 crc32c:u32] size:u32 MessageMetadata
//! payload`. Both parts in brackets are optional; the checksum covers everything after itself.
//!
//! [`peek`] reads what a broker or a consumer wants of the metadata without allocating.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::checksum::{crc32c, crc32c_of_two};
use crate::error::{ChecksumError, MessageError, WireError};
use crate::pb::{BrokerEntryMetadata, MessageMetadata};
use crate::wire::{Fields, Value, text};

const CHECKSUM_MAGIC: [u8; 2] = [0x0e, 0x01];
const BROKER_ENTRY_MAGIC: [u8; 2] = [0x0e, 0x02];

/// Messages that one entry can have, whatever it says: more do not fit in the largest there is, and
/// what counts them by bits must not believe two thousand million.
pub const BATCH_MESSAGES_MAX: u32 = 1 << 20;

/// Bytes in front of the metadata that a block written by us has.
const PREFIX: usize = 2 + 4 + 4;

/// Where the parts of a block are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The encoded `BrokerEntryMetadata`, where there is one.
    pub broker_entry: Option<Range<usize>>,
    /// The checksum, where there is one, and where what it covers begins.
    pub checksum: Option<(u32, usize)>,
    /// The encoded `MessageMetadata`.
    pub metadata: Range<usize>,
}

impl Layout {
    /// Where the payload begins; it ends with the block.
    pub fn payload_start(&self) -> usize {
        self.metadata.end
    }
}

/// Finds the parts of a block and checks that they fit.
#[inline]
pub fn layout(block: &[u8]) -> Result<Layout, MessageError> {
    let too_short = MessageError::TooShort { len: block.len() };
    let u32_at = |at: usize| {
        block
            .get(at..)
            .and_then(|rest| rest.first_chunk::<4>())
            .map(|b| u32::from_be_bytes(*b))
    };
    let fitting = |start: usize, size: u32| match start.checked_add(size as usize) {
        Some(end) if end <= block.len() => Ok(start..end),
        _ => Err(MessageError::MetadataTooLarge {
            size: size.into(),
            len: block.len(),
        }),
    };
    let mut at = 0;
    let mut broker_entry = None;
    if block.starts_with(&BROKER_ENTRY_MAGIC) {
        let Some(size) = u32_at(2) else {
            return Err(too_short);
        };
        let range = fitting(6, size)?;
        at = range.end;
        broker_entry = Some(range);
    }
    let mut checksum = None;
    if block[at..].starts_with(&CHECKSUM_MAGIC) {
        let Some(value) = u32_at(at + 2) else {
            return Err(too_short);
        };
        at += 6;
        checksum = Some((value, at));
    }
    let Some(size) = u32_at(at) else {
        return Err(too_short);
    };
    let metadata = fitting(at + 4, size)?;
    Ok(Layout {
        broker_entry,
        checksum,
        metadata,
    })
}

/// Checks the checksum, if the block has one.
pub fn verify_checksum(block: &[u8]) -> Result<(), MessageError> {
    let Some((expected, start)) = layout(block)?.checksum else {
        return Ok(());
    };
    let actual = crc32c(&block[start..]);
    if actual == expected {
        Ok(())
    } else {
        Err(ChecksumError { expected, actual }.into())
    }
}

/// The metadata, decoded whole.
pub fn decode_metadata(block: &[u8]) -> Result<MessageMetadata, MessageError> {
    let layout = layout(block)?;
    Ok(MessageMetadata::decode(&block[layout.metadata])?)
}

/// The payload as a slice of the block, as it was sent: perhaps compressed, perhaps a batch.
pub fn payload(block: &Bytes) -> Result<Bytes, MessageError> {
    Ok(block.slice(layout(block)?.payload_start()..))
}

/// The headers of a block with a checksum; `payload` follows them and is not copied.
pub fn encode_headers(metadata: &MessageMetadata, payload: &[u8]) -> BytesMut {
    let mut out = BytesMut::with_capacity(PREFIX + metadata.encoded_len());
    append_headers(metadata, payload, &mut out);
    out
}

/// The length of the headers of a block with a checksum.
pub fn headers_len(metadata: &MessageMetadata) -> usize {
    PREFIX + metadata.encoded_len()
}

/// Appends what [`encode_headers`] gives to a buffer that may hold other things.
pub fn append_headers(metadata: &MessageMetadata, payload: &[u8], out: &mut BytesMut) {
    let len = metadata.encoded_len();
    out.reserve(PREFIX + len);
    out.put_slice(&CHECKSUM_MAGIC);
    let checksum_at = out.len();
    out.put_u32(0);
    out.put_u32(len as u32);
    metadata.encode_raw(out);
    let checksum = crc32c_of_two(&out[checksum_at + 4..], payload);
    out[checksum_at..checksum_at + 4].copy_from_slice(&checksum.to_be_bytes());
}

/// The bytes of a `BrokerEntryMetadata` that go in front of a stored block.
pub fn encode_broker_entry(metadata: &BrokerEntryMetadata) -> BytesMut {
    let len = metadata.encoded_len();
    let mut out = BytesMut::with_capacity(6 + len);
    out.put_slice(&BROKER_ENTRY_MAGIC);
    out.put_u32(len as u32);
    metadata.encode_raw(&mut out);
    out
}

/// The broker entry metadata in front of a block, if there is one.
pub fn decode_broker_entry(block: &[u8]) -> Result<Option<BrokerEntryMetadata>, MessageError> {
    match layout(block)?.broker_entry {
        Some(range) => Ok(Some(BrokerEntryMetadata::decode(&block[range])?)),
        None => Ok(None),
    }
}

/// The block without broker entry metadata in front, as clients that know none of it get it.
pub fn strip_broker_entry(block: &Bytes) -> Result<Bytes, MessageError> {
    match layout(block)?.broker_entry {
        Some(range) => Ok(block.slice(range.end..)),
        None => Ok(block.clone()),
    }
}

/// The block with a transaction's id in its metadata, for clients that name it in the SEND alone.
pub fn with_transaction(block: &[u8], most: u64, least: u64) -> Result<Bytes, MessageError> {
    let layout = layout(block)?;
    let payload = &block[layout.payload_start()..];
    let metadata = &block[layout.metadata];
    let mut fields = BytesMut::with_capacity(24);
    prost::encoding::uint64::encode(22, &least, &mut fields);
    prost::encoding::uint64::encode(23, &most, &mut fields);
    let mut out = BytesMut::with_capacity(block.len() + fields.len());
    if let Some(range) = layout.broker_entry {
        out.put_slice(&block[..range.end]);
    }
    let checksum_at = layout.checksum.map(|_| {
        out.put_slice(&CHECKSUM_MAGIC);
        out.put_u32(0);
        out.len() - 4
    });
    out.put_u32((metadata.len() + fields.len()) as u32);
    out.put_slice(metadata);
    out.put_slice(&fields);
    out.put_slice(payload);
    if let Some(at) = checksum_at {
        let checksum = crc32c(&out[at + 4..]);
        out[at..at + 4].copy_from_slice(&checksum.to_be_bytes());
    }
    Ok(out.freeze())
}

/// The value of a property, found without allocating. The first one counts.
pub fn property<'a>(block: &'a [u8], key: &str) -> Result<Option<&'a str>, MessageError> {
    let layout = layout(block)?;
    let mut fields = Fields::new(&block[layout.metadata]);
    while let Some(field) = fields.next()? {
        let (4, Value::Bytes(pair)) = field else {
            continue;
        };
        let (mut name, mut value) = (None, None);
        let mut parts = Fields::new(pair);
        while let Some(part) = parts.next()? {
            match part {
                (1, Value::Bytes(bytes)) => name = Some(text(bytes)?),
                (2, Value::Bytes(bytes)) => value = Some(text(bytes)?),
                _ => {}
            }
        }
        if name == Some(key) {
            return Ok(value);
        }
    }
    Ok(None)
}

/// What is wanted of a message's metadata, borrowed from its bytes.
///
/// An absent field is `None`, or the protocol's default where that means the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Peek<'a> {
    pub producer_name: &'a str,
    pub sequence_id: u64,
    pub publish_time: u64,
    pub has_properties: bool,
    pub replicated_from: Option<&'a str>,
    pub partition_key: Option<&'a str>,
    pub partition_key_b64_encoded: bool,
    pub ordering_key: Option<&'a [u8]>,
    pub compression: i32,
    pub uncompressed_size: u32,
    /// Present (even as 1) means that the payload is a batch.
    pub num_messages_in_batch: Option<i32>,
    pub event_time: Option<u64>,
    pub has_encryption_keys: bool,
    pub schema_version: Option<&'a [u8]>,
    pub deliver_at_time: Option<i64>,
    /// Present means that no client ever sees the message.
    pub marker_type: Option<i32>,
    pub txnid_least_bits: Option<u64>,
    pub txnid_most_bits: Option<u64>,
    pub highest_sequence_id: Option<u64>,
    pub null_value: bool,
    pub null_partition_key: bool,
    pub uuid: Option<&'a str>,
    pub num_chunks_from_msg: Option<i32>,
    pub total_chunk_msg_size: Option<i32>,
    pub chunk_id: Option<i32>,
}

impl Peek<'_> {
    /// Messages in the entry, as permits and backlogs count them.
    pub fn message_count(&self) -> u32 {
        self.num_messages_in_batch
            .map_or(1, |count| (count.max(1) as u32).min(BATCH_MESSAGES_MAX))
    }

    /// The last sequence id in the entry.
    pub fn last_sequence_id(&self) -> u64 {
        self.highest_sequence_id.unwrap_or(0).max(self.sequence_id)
    }

    pub fn is_chunk(&self) -> bool {
        self.num_chunks_from_msg.is_some_and(|chunks| chunks > 1) && self.chunk_id.is_some()
    }

    pub fn is_last_chunk(&self) -> bool {
        matches!((self.num_chunks_from_msg, self.chunk_id), (Some(all), Some(id)) if id + 1 >= all)
    }
}

/// Reads the metadata of a block without allocating.
#[inline]
pub fn peek(block: &[u8]) -> Result<Peek<'_>, MessageError> {
    let layout = layout(block)?;
    Ok(peek_metadata(&block[layout.metadata])?)
}

/// Reads encoded metadata without allocating.
pub fn peek_metadata(metadata: &[u8]) -> Result<Peek<'_>, WireError> {
    let mut peek = Peek::default();
    let mut seen = 0u8;
    let mut fields = Fields::new(metadata);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Bytes(bytes)) => {
                peek.producer_name = text(bytes)?;
                seen |= 1;
            }
            (2, Value::Varint(value)) => {
                peek.sequence_id = value;
                seen |= 2;
            }
            (3, Value::Varint(value)) => {
                peek.publish_time = value;
                seen |= 4;
            }
            (4, _) => peek.has_properties = true,
            (5, Value::Bytes(bytes)) => peek.replicated_from = Some(text(bytes)?),
            (6, Value::Bytes(bytes)) => peek.partition_key = Some(text(bytes)?),
            (8, Value::Varint(value)) => peek.compression = value as i32,
            (9, Value::Varint(value)) => peek.uncompressed_size = value as u32,
            (11, Value::Varint(value)) => peek.num_messages_in_batch = Some(value as i32),
            (12, Value::Varint(value)) => peek.event_time = Some(value),
            (13, _) => peek.has_encryption_keys = true,
            (16, Value::Bytes(bytes)) => peek.schema_version = Some(bytes),
            (17, Value::Varint(value)) => peek.partition_key_b64_encoded = value != 0,
            (18, Value::Bytes(bytes)) => peek.ordering_key = Some(bytes),
            (19, Value::Varint(value)) => peek.deliver_at_time = Some(value as i64),
            (20, Value::Varint(value)) => peek.marker_type = Some(value as i32),
            (22, Value::Varint(value)) => peek.txnid_least_bits = Some(value),
            (23, Value::Varint(value)) => peek.txnid_most_bits = Some(value),
            (24, Value::Varint(value)) => peek.highest_sequence_id = Some(value),
            (25, Value::Varint(value)) => peek.null_value = value != 0,
            (26, Value::Bytes(bytes)) => peek.uuid = Some(text(bytes)?),
            (27, Value::Varint(value)) => peek.num_chunks_from_msg = Some(value as i32),
            (28, Value::Varint(value)) => peek.total_chunk_msg_size = Some(value as i32),
            (29, Value::Varint(value)) => peek.chunk_id = Some(value as i32),
            (30, Value::Varint(value)) => peek.null_partition_key = value != 0,
            _ => {}
        }
    }
    match seen {
        7 => Ok(peek),
        _ if seen & 1 == 0 => Err(WireError::Missing("producer_name")),
        _ if seen & 2 == 0 => Err(WireError::Missing("sequence_id")),
        _ => Err(WireError::Missing("publish_time")),
    }
}

#[cfg(test)]
mod tests;
