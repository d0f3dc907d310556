//! Messages into SEND frames, once: a frame that is sent again after a reconnect is the same bytes.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use geminga_proto::pb::{CompressionType, KeyValue, MessageMetadata, SingleMessageMetadata};
use geminga_proto::send::Send;
use geminga_proto::{FRAME_PADDING, batch, compress, message};
use tokio::time::Instant;

use super::slots::NO_SLOT;
use crate::error::{Error, Result};
use crate::message::Message;
use crate::transaction::Open;

/// Frames are built behind each other in pieces of memory: the first is small, since most producers send little,
/// and each further one twice as large, up to this.
const CHUNK_MIN: usize = 2 * 1024;
const CHUNK_MAX: usize = 64 * 1024;

/// What the command of a frame and the fixed part of the metadata take at most, names apart.
const HEAD_BYTES: usize = 512;

/// Payloads up to this stand behind their heads in the same memory.
const COPY_MAX: usize = 4 * 1024;

/// A SEND frame that the broker has not answered yet.
pub(super) struct Frame {
    pub(super) first_sequence: u64,
    pub(super) last_sequence: u64,
    pub(super) head: Bytes,
    pub(super) payload: Bytes,
    pub(super) slots: Receipts,
    pub(super) messages: usize,
    pub(super) cost: usize,
    pub(super) created: Instant,
    /// Whether the receipt of this frame ends its message: false for chunks before the last.
    pub(super) last_chunk: bool,
    pub(super) chunked: bool,
    /// It is sent once at most.
    pub(super) txn: Option<Arc<Open>>,
}

/// Who waits for a frame.
#[derive(Debug)]
pub(super) enum Receipts {
    Single(u32),
    Batch(Vec<u32>),
}

/// A batch that could not be made a frame.
pub(super) struct Unsent {
    pub(super) error: Error,
    pub(super) slots: Receipts,
    pub(super) cost: usize,
    pub(super) txn: Option<Arc<Open>>,
}

/// Makes frames for one producer.
#[derive(Debug)]
pub(super) struct Encoder {
    pub(super) producer_id: u64,
    /// The version of the producer's schema, of messages that name none.
    schema_version: Option<Bytes>,
    /// Kept from message to message, so that its memory is.
    metadata: MessageMetadata,
    single: SingleMessageMetadata,
    memory: BytesMut,
    /// Bytes of the next piece.
    chunk: usize,
    pub(super) compression: CompressionType,
    pub(super) max_message_size: usize,
    pub(super) chunking: bool,
}

/// Messages that wait to go in one frame.
#[derive(Default)]
pub(super) struct Batch {
    builder: batch::Builder,
    slots: Vec<u32>,
    key: Option<String>,
    key_is_base64: bool,
    ordering_key: Option<Bytes>,
    /// All its messages name this version of a schema, or none.
    schema_version: Option<Bytes>,
    first_sequence: u64,
    last_sequence: u64,
    cost: usize,
    pub(super) created: Option<Instant>,
    /// All its messages are in one transaction, or in none.
    pub(super) txn: Option<Arc<Open>>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.builder.is_empty()
    }

    pub(super) fn count(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.builder.len()
    }

    /// Whether a message has the key of those already in.
    pub(super) fn same_key(&self, message: &Message) -> bool {
        self.key == message.key && self.ordering_key == message.ordering_key
    }

    /// Whether a message has the schema of those already in.
    pub(super) fn same_schema(&self, message: &Message) -> bool {
        self.schema_version == message.schema_version
    }

    /// Whether a message of `txn` may join those already in.
    pub(super) fn same_transaction(&self, txn: Option<&Arc<Open>>) -> bool {
        match (&self.txn, txn) {
            (None, None) => true,
            (Some(ours), Some(its)) => Arc::ptr_eq(ours, its),
            _ => false,
        }
    }
}

impl Encoder {
    pub(super) fn new(producer_id: u64, compression: CompressionType, chunking: bool) -> Self {
        Self {
            producer_id,
            schema_version: None,
            metadata: MessageMetadata::default(),
            single: SingleMessageMetadata::default(),
            memory: BytesMut::new(),
            chunk: CHUNK_MIN,
            compression,
            max_message_size: geminga_proto::MAX_MESSAGE_SIZE,
            chunking,
        }
    }

    pub(super) fn set_name(&mut self, name: &str) {
        name.clone_into(&mut self.metadata.producer_name);
    }

    /// Every message names the version of its schema; this one where it has none of its own.
    pub(super) fn set_schema_version(&mut self, version: Option<Bytes>) {
        self.schema_version = version;
    }

    /// Adds a message to a batch.
    pub(super) fn push(&mut self, batch: &mut Batch, message: Message, sequence: u64, slot: u32) {
        if batch.is_empty() {
            batch.key.clone_from(&message.key);
            batch.key_is_base64 = message.key_is_base64;
            batch.ordering_key.clone_from(&message.ordering_key);
            batch.schema_version.clone_from(&message.schema_version);
            batch.first_sequence = sequence;
            batch.created = Some(Instant::now());
        }
        batch.last_sequence = sequence;
        batch.cost += message.cost();
        batch.slots.push(slot);
        let single = &mut self.single;
        single.properties.clear();
        single.properties.extend(key_values(message.properties));
        single.partition_key = message.key;
        single.partition_key_b64_encoded = message.key_is_base64.then_some(true);
        single.ordering_key = message.ordering_key;
        single.event_time = message.event_time;
        single.sequence_id = Some(sequence);
        single.null_value = message.null_value.then_some(true);
        batch.builder.push(single, &message.payload);
    }

    /// The frame of a batch, which is empty afterwards. On an error, who waited for it.
    pub(super) fn batch(&mut self, batch: &mut Batch, publish_time: u64) -> Result<Frame, Unsent> {
        let (raw, count) = batch.builder.finish();
        let capacity = batch.slots.len();
        let slots = Receipts::Batch(std::mem::replace(
            &mut batch.slots,
            Vec::with_capacity(capacity),
        ));
        let cost = std::mem::take(&mut batch.cost);
        let created = batch.created.take().unwrap_or_else(Instant::now);
        let txn = batch.txn.take();
        let payload = match self.pack(&raw) {
            Ok(payload) => payload,
            Err(error) => {
                return Err(Unsent {
                    error,
                    slots,
                    cost,
                    txn,
                });
            }
        };
        let metadata = &mut self.metadata;
        clear(metadata);
        metadata.sequence_id = batch.first_sequence;
        metadata.highest_sequence_id = Some(batch.last_sequence);
        metadata.num_messages_in_batch = Some(count);
        metadata.publish_time = publish_time;
        metadata.partition_key = batch.key.take();
        metadata.partition_key_b64_encoded = batch.key_is_base64.then_some(true);
        metadata.ordering_key = batch.ordering_key.take();
        let own = batch.schema_version.take();
        metadata.schema_version = own.or_else(|| self.schema_version.clone());
        (metadata.txnid_most_bits, metadata.txnid_least_bits) = bits(txn.as_ref());
        metadata.uncompressed_size = Some(raw.len() as u32);
        metadata.compression =
            (self.compression != CompressionType::None).then_some(self.compression as i32);
        let send = Send {
            producer_id: self.producer_id,
            sequence_id: batch.first_sequence,
            highest_sequence_id: Some(batch.last_sequence),
            num_messages: count,
            txnid_most_bits: metadata.txnid_most_bits,
            txnid_least_bits: metadata.txnid_least_bits,
            ..Send::default()
        };
        let (head, payload) = self.frame(&send, payload);
        Ok(Frame {
            first_sequence: batch.first_sequence,
            last_sequence: batch.last_sequence,
            head,
            payload,
            slots,
            messages: count as usize,
            cost,
            created,
            last_chunk: true,
            chunked: false,
            txn,
        })
    }

    /// The frames of a message that goes alone: one, or several chunks.
    pub(super) fn single(
        &mut self,
        message: Message,
        sequence: u64,
        slot: u32,
        txn: Option<&Arc<Open>>,
        publish_time: u64,
        mut emit: impl FnMut(Frame),
    ) -> Result<()> {
        let cost = message.cost();
        let raw_len = message.payload.len();
        let payload = self.pack(&message.payload)?;
        let metadata = &mut self.metadata;
        clear(metadata);
        metadata.sequence_id = sequence;
        metadata.publish_time = publish_time;
        metadata.properties.extend(key_values(message.properties));
        metadata.partition_key = message.key;
        metadata.partition_key_b64_encoded = message.key_is_base64.then_some(true);
        metadata.ordering_key = message.ordering_key;
        metadata.event_time = message.event_time;
        metadata.deliver_at_time = message.deliver_at;
        metadata.replicate_to = message.replicate_to;
        let own = message.schema_version;
        metadata.schema_version = own.or_else(|| self.schema_version.clone());
        metadata.null_value = message.null_value.then_some(true);
        (metadata.txnid_most_bits, metadata.txnid_least_bits) = bits(txn);
        if self.compression != CompressionType::None {
            metadata.compression = Some(self.compression as i32);
            metadata.uncompressed_size = Some(raw_len as u32);
        }
        let mut send = Send {
            producer_id: self.producer_id,
            sequence_id: sequence,
            num_messages: 1,
            txnid_most_bits: metadata.txnid_most_bits,
            txnid_least_bits: metadata.txnid_least_bits,
            ..Send::default()
        };
        let created = Instant::now();
        let frame = |head, payload, slot, messages, cost, chunk: (bool, bool)| Frame {
            first_sequence: sequence,
            last_sequence: sequence,
            head,
            payload,
            slots: Receipts::Single(slot),
            messages,
            cost,
            created,
            last_chunk: chunk.1,
            chunked: chunk.0,
            txn: txn.cloned(),
        };
        if payload.len() <= self.max_message_size {
            let (head, payload) = self.frame(&send, payload);
            emit(frame(head, payload, slot, 1, cost, (false, true)));
            return Ok(());
        }
        // Room for the metadata, which stands in every chunk.
        let chunk_size = self.max_message_size.saturating_sub(FRAME_PADDING).max(1);
        let chunks = payload.len().div_ceil(chunk_size);
        metadata.uuid = Some(format!("{}-{sequence}", metadata.producer_name));
        metadata.num_chunks_from_msg = Some(chunks as i32);
        metadata.total_chunk_msg_size = Some(payload.len() as i32);
        metadata.uncompressed_size = Some(raw_len as u32);
        send.is_chunk = true;
        for number in 0..chunks {
            let end = payload.len().min((number + 1) * chunk_size);
            let part = payload.slice(number * chunk_size..end);
            self.metadata.chunk_id = Some(number as i32);
            let last = number + 1 == chunks;
            let (head, payload) = self.frame(&send, part);
            let (slot, messages, cost) = if last {
                (slot, 1, cost)
            } else {
                (NO_SLOT, 0, 0)
            };
            emit(frame(head, payload, slot, messages, cost, (true, last)));
        }
        Ok(())
    }

    /// Whether a message is too large to be sent: it is told when it is taken, since in a batch or a
    /// transaction others would fail with it, and a broker ends the connection of a frame over its limit,
    /// each time that it comes again. One that packing may shrink is packed to see. `cost` is the message's.
    pub(super) fn check_size(&self, message: &Message, cost: usize) -> Result<()> {
        let max = self.max_message_size;
        if cost <= max {
            return Ok(());
        }
        let head = message.head_len() + self.metadata.producer_name.len();
        let room = (max + FRAME_PADDING).saturating_sub(head + HEAD_BYTES);
        // A chunk is smaller by the padding, and each has the whole head.
        let most = if self.chunking { usize::MAX } else { max };
        let fits = |payload: usize| {
            let part = match self.chunking {
                true => payload.min(max.saturating_sub(FRAME_PADDING)),
                false => payload,
            };
            payload <= most && part <= room
        };
        let raw = message.payload.len();
        if fits(raw) {
            return Ok(());
        }
        let size = match self.compression {
            CompressionType::None => raw,
            kind => compress::compress(kind, &message.payload)?.len(),
        };
        if fits(size) {
            return Ok(());
        }
        let size = if size > most { size } else { size + head };
        Err(Error::MessageTooLarge { size, max })
    }

    /// Packs a payload and checks what comes out.
    fn pack(&self, raw: &Bytes) -> Result<Bytes> {
        let payload = compress::compress(self.compression, raw)?;
        if payload.len() > self.max_message_size && !self.chunking {
            return Err(Error::MessageTooLarge {
                size: payload.len(),
                max: self.max_message_size,
            });
        }
        Ok(payload)
    }

    /// A frame of the command and the current metadata: its head, and the payload that follows.
    fn frame(&mut self, send: &Send, payload: Bytes) -> (Bytes, Bytes) {
        let headers_len = message::headers_len(&self.metadata);
        let copied = if payload.len() <= COPY_MAX {
            payload.len()
        } else {
            0
        };
        // The command with its sizes takes less than a hundred bytes.
        let room = 100 + headers_len + copied;
        if self.memory.capacity() < room {
            self.memory = BytesMut::with_capacity(self.chunk.max(room));
            self.chunk = (self.chunk * 2).min(CHUNK_MAX);
        }
        send.encode_frame(headers_len + payload.len(), &mut self.memory);
        message::append_headers(&self.metadata, &payload, &mut self.memory);
        if payload.len() > COPY_MAX {
            return (self.memory.split().freeze(), payload);
        }
        self.memory.extend_from_slice(&payload);
        (self.memory.split().freeze(), Bytes::new())
    }
}

/// The two halves of a transaction's id.
fn bits(txn: Option<&Arc<Open>>) -> (Option<u64>, Option<u64>) {
    txn.map(|txn| (txn.id.most, txn.id.least)).unzip()
}

/// Forgets the message before, but not the producer's name.
fn clear(metadata: &mut MessageMetadata) {
    metadata.properties.clear();
    metadata.partition_key = None;
    metadata.partition_key_b64_encoded = None;
    metadata.ordering_key = None;
    metadata.compression = None;
    metadata.uncompressed_size = None;
    metadata.num_messages_in_batch = None;
    metadata.event_time = None;
    metadata.deliver_at_time = None;
    metadata.replicate_to.clear();
    metadata.highest_sequence_id = None;
    metadata.null_value = None;
    metadata.txnid_most_bits = None;
    metadata.txnid_least_bits = None;
    metadata.uuid = None;
    metadata.num_chunks_from_msg = None;
    metadata.total_chunk_msg_size = None;
    metadata.chunk_id = None;
}

fn key_values(pairs: Vec<(String, String)>) -> impl Iterator<Item = KeyValue> {
    pairs
        .into_iter()
        .map(|(key, value)| KeyValue { key, value })
}
