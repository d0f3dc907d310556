//! Entries into messages: checks, unpacks, takes batches apart, puts chunks together.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use geminga_proto::message::Peek;
use geminga_proto::pb::{CommandMessage, KeyValue};
use geminga_proto::send::Delivery;
use geminga_proto::{MAX_MESSAGE_SIZE, MessageError, MessageId, batch, compress, message};

use super::acks::{Position, bit};
use crate::message::ReceivedMessage;

/// The largest payload that is unpacked: the largest message at a ratio that only a bomb exceeds.
const UNPACKED_MAX: usize = 64 * MAX_MESSAGE_SIZE;

/// The largest message that is put together from chunks.
const CHUNKED_MAX: usize = 256 * MAX_MESSAGE_SIZE;

/// Chunked messages that may be incomplete at a time.
const CHUNKED_PENDING_MAX: usize = 10;

/// An entry as it came from the broker, still packed.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) consumer_id: u64,
    pub(super) id: MessageId,
    pub(super) redelivery_count: u32,
    pub(super) epoch: Option<u64>,
    /// Words of Java's bit set: 1 is not acknowledged. Empty for all of them.
    pub(super) ack_set: Vec<u64>,
    pub(super) block: Bytes,
    /// Which topic of the consumer, which of its subscriptions over time, which stretch between
    /// two jumps (seeks, redeliveries).
    pub(super) topic: usize,
    pub(super) subscription: u32,
    pub(super) generation: u32,
}

impl Entry {
    pub(crate) fn new(delivery: &Delivery<'_>, block: Bytes) -> Self {
        let id = MessageId {
            partition: delivery.partition.unwrap_or(-1),
            ..MessageId::entry(delivery.ledger_id as i64, delivery.entry_id as i64)
        };
        Self {
            consumer_id: delivery.consumer_id,
            id,
            redelivery_count: delivery.redelivery_count,
            epoch: delivery.consumer_epoch,
            ack_set: delivery.ack_set.iter().map(|&word| word as u64).collect(),
            block,
            topic: 0,
            subscription: 0,
            generation: 0,
        }
    }

    pub(crate) fn from_message(message: &CommandMessage, block: Bytes) -> Self {
        let delivery = Delivery {
            consumer_id: message.consumer_id,
            ledger_id: message.message_id.ledger_id,
            entry_id: message.message_id.entry_id,
            partition: message.message_id.partition,
            redelivery_count: message.redelivery_count(),
            ack_set: &message.ack_set,
            consumer_epoch: message.consumer_epoch,
        };
        Self::new(&delivery, block)
    }

    /// What the entry costs in permits.
    pub(super) fn permits(&self, peek: Option<&Peek<'_>>) -> u32 {
        let count = peek.map_or(1, Peek::message_count);
        if self.ack_set.is_empty() {
            return count;
        }
        let left: u32 = self.ack_set.iter().map(|word| word.count_ones()).sum();
        left.min(count)
    }
}

/// Where delivery begins within what the broker sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) id: MessageId,
    pub(super) inclusive: bool,
}

impl Start {
    /// Whether a message lies before the start within its entry. The broker begins with the whole
    /// entry, and sends nothing that is before it.
    fn is_before(&self, id: &MessageId) -> bool {
        if id.position() != self.id.position() {
            return false;
        }
        if self.id.batch_index < 0 || id.batch_index < 0 {
            return !self.inclusive;
        }
        id.batch_index < self.id.batch_index
            || (id.batch_index == self.id.batch_index && !self.inclusive)
    }
}

/// What comes out of an entry.
#[derive(Debug, PartialEq)]
pub(super) enum Opened {
    /// Its messages were appended.
    Messages,
    /// A chunk that is not the last.
    Chunk,
    /// Chunks that will never be whole: acknowledge them.
    Dropped(Vec<Position>),
    /// The last chunk: the message was appended; these came before.
    Chunked(Vec<Position>),
}

/// Opens the entries of one topic.
#[derive(Debug)]
pub(super) struct Opener {
    topic: Arc<str>,
    /// The last producer seen: its name is shared by all its messages.
    producer: Arc<str>,
    pub(super) start: Option<Start>,
    chunked: HashMap<String, Chunked>,
    /// In the order in which they began.
    chunked_order: VecDeque<String>,
}

#[derive(Debug)]
struct Chunked {
    bytes: BytesMut,
    positions: Vec<Position>,
    next: i32,
}

impl Opener {
    pub(super) fn new(topic: &str) -> Self {
        Self {
            topic: topic.into(),
            producer: "".into(),
            start: None,
            chunked: HashMap::new(),
            chunked_order: VecDeque::new(),
        }
    }

    /// Forgets incomplete messages.
    pub(super) fn clear(&mut self) {
        self.chunked.clear();
        self.chunked_order.clear();
    }

    /// Appends the messages of an entry, without those that are acknowledged or before the start.
    pub(super) fn open(
        &mut self,
        entry: &Entry,
        peek: &Peek<'_>,
        is_acked: impl Fn(Position, i32) -> bool,
        emit: &mut impl FnMut(ReceivedMessage),
    ) -> Result<Opened, MessageError> {
        let block = &entry.block;
        message::verify_checksum(block)?;
        if *self.producer != *peek.producer_name {
            self.producer = peek.producer_name.into();
        }
        let index = match block.starts_with(&[0x0e, 0x02]) {
            true => message::decode_broker_entry(block)?.and_then(|broker| broker.index),
            false => None,
        };
        let mut payload = message::payload(block)?;
        let mut opened = Opened::Messages;
        let mut id = entry.id;
        if peek.is_chunk() {
            let uuid = peek.uuid.unwrap_or_default();
            match self.add_chunk(uuid, peek, &payload, entry.id) {
                ChunkStep::More => return Ok(Opened::Chunk),
                ChunkStep::Dropped(positions) => return Ok(Opened::Dropped(positions)),
                ChunkStep::Whole(whole, before) => {
                    payload = whole;
                    id.first_chunk = before.first().copied();
                    opened = Opened::Chunked(before);
                }
            }
        }
        let payload = compress::decompress(
            peek.compression,
            &payload,
            peek.uncompressed_size as usize,
            UNPACKED_MAX,
        )?;
        let received = ReceivedMessage {
            topic: self.topic.clone(),
            id,
            payload: Bytes::new(),
            key: None,
            key_is_base64: false,
            ordering_key: None,
            properties: Vec::new(),
            event_time: None,
            publish_time: peek.publish_time,
            redelivery_count: entry.redelivery_count,
            producer_name: self.producer.clone(),
            sequence_id: peek.sequence_id,
            schema_version: peek.schema_version.map(Bytes::copy_from_slice),
            null_value: false,
            replicated_from: peek.replicated_from.map(str::to_owned),
            index,
        };
        let is_wanted = |id: &MessageId| self.start.is_none_or(|start| !start.is_before(id));
        let Some(count) = peek.num_messages_in_batch else {
            if !is_wanted(&id) {
                return Ok(opened);
            }
            // Properties are the only part that the peek leaves out.
            let properties = match peek.has_properties {
                true => pairs(message::decode_metadata(block)?.properties),
                false => Vec::new(),
            };
            emit(ReceivedMessage {
                payload,
                key: peek.partition_key.map(str::to_owned),
                key_is_base64: peek.partition_key_b64_encoded,
                ordering_key: peek.ordering_key.map(Bytes::copy_from_slice),
                properties,
                event_time: peek.event_time.filter(|&time| time > 0),
                null_value: peek.null_value,
                ..received
            });
            return Ok(opened);
        };
        for (batch_index, single) in (0..).zip(batch::read(payload, count)) {
            let (single, payload) = single?;
            let id = MessageId {
                batch_index,
                batch_size: count,
                ..id
            };
            let unacked = entry.ack_set.is_empty() || bit(&entry.ack_set, batch_index as usize);
            if !unacked
                || single.compacted_out()
                || !is_wanted(&id)
                || is_acked(id.position(), batch_index)
            {
                continue;
            }
            emit(ReceivedMessage {
                id,
                payload,
                key_is_base64: single.partition_key_b64_encoded(),
                event_time: single.event_time.filter(|&time| time > 0),
                null_value: single.null_value(),
                sequence_id: single
                    .sequence_id
                    .unwrap_or_else(|| peek.sequence_id.wrapping_add(batch_index as u64)),
                key: single.partition_key,
                ordering_key: single.ordering_key,
                properties: pairs(single.properties),
                index: index.map(|last| last.saturating_sub((count - 1 - batch_index) as u64)),
                ..received.clone()
            });
        }
        Ok(opened)
    }

    fn add_chunk(
        &mut self,
        uuid: &str,
        peek: &Peek<'_>,
        payload: &Bytes,
        id: MessageId,
    ) -> ChunkStep {
        let (number, total) = (
            peek.chunk_id.unwrap_or(-1),
            peek.num_chunks_from_msg.unwrap_or(0),
        );
        if number == 0 {
            if self.chunked.remove(uuid).is_none() {
                if self.chunked_order.len() >= CHUNKED_PENDING_MAX
                    && let Some(oldest) = self.chunked_order.pop_front()
                {
                    // Its chunks stay unacknowledged: they come again, and are whole then.
                    self.chunked.remove(&oldest);
                }
                self.chunked_order.push_back(uuid.to_owned());
            }
            let chunked = Chunked {
                bytes: BytesMut::new(),
                positions: Vec::new(),
                next: 0,
            };
            self.chunked.insert(uuid.to_owned(), chunked);
        }
        let Some(chunked) = self.chunked.get_mut(uuid) else {
            // The beginning is not here: it was read before we came, or given up.
            return ChunkStep::More;
        };
        if number < chunked.next {
            // Sent twice by a producer that did not see its receipt.
            return ChunkStep::Dropped(vec![id.position()]);
        }
        if number > chunked.next || chunked.bytes.len() + payload.len() > CHUNKED_MAX {
            self.chunked.remove(uuid);
            self.chunked_order.retain(|other| other != uuid);
            return ChunkStep::More;
        }
        chunked.next += 1;
        chunked.bytes.extend_from_slice(payload);
        if number + 1 < total {
            chunked.positions.push(id.position());
            return ChunkStep::More;
        }
        self.chunked_order.retain(|other| other != uuid);
        match self.chunked.remove(uuid) {
            Some(chunked) => ChunkStep::Whole(chunked.bytes.freeze(), chunked.positions),
            None => ChunkStep::More,
        }
    }
}

enum ChunkStep {
    More,
    Dropped(Vec<Position>),
    Whole(Bytes, Vec<Position>),
}

fn pairs(properties: Vec<KeyValue>) -> Vec<(String, String)> {
    properties
        .into_iter()
        .map(|pair| (pair.key, pair.value))
        .collect()
}
