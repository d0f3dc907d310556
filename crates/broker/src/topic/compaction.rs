//! Compaction: a second view of a topic with the last message of each key.
//!
//! The view is a managed ledger of its own, beside the topic's: its entries are the surviving ones of
//! the topic in their order, each with the position that it has there. It covers the topic up to the
//! *horizon*; who reads compacted reads it first and goes on in the log behind the horizon.
//!
//! Each run writes a whole new view under a new number. Only when that is durable and sealed does a
//! property of the topic name it, in one record of the metadata; then the cursor `__compaction`, which
//! keeps the entries after the horizon from being deleted, moves up, and the old view goes. So a crash
//! leaves the old view or the new one, and perhaps another that nothing names: the next run deletes it.
//!
//! This file decides what survives, without I/O; `run` reads and writes; `view` is the finished one.

pub(crate) mod run;
#[cfg(test)]
mod tests;
pub(crate) mod view;

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use geminga_model::Position;
use geminga_proto::batch::{self, Builder};
use geminga_proto::compress::{compress, decompress};
use geminga_proto::message::{decode_metadata, encode_headers, payload, peek};
use geminga_proto::pb::{CompressionType, MessageMetadata, SingleMessageMetadata};
use geminga_storage::Entry;
use geminga_storage::managed::Properties;

/// The cursor that holds back what is not compacted yet. Not a subscription.
pub(crate) const CURSOR: &str = "__compaction";

/// The cursor's property with the place that its subscription asked for, and the one that it got.
const BEGIN: &str = "geminga.compactedFrom";

/// Index of a message that is not in a batch.
const ALONE: usize = usize::MAX;

/// The last message of a key.
#[derive(Debug, PartialEq, Eq)]
struct Last {
    position: Position,
    index: usize,
    /// Of a chunked message, whose chunks all survive with the last one.
    uuid: Option<Box<str>>,
}

/// What is known after a pass over the topic.
pub(super) struct Survivors {
    last: HashMap<Box<str>, Last>,
    /// Chunked messages whose last chunk has not come: it will be behind the horizon.
    open_chunks: HashSet<Box<str>>,
    /// Messages that were there and do not survive.
    removed: u64,
    retain_null_key: bool,
    size_max: usize,
}

enum Opened {
    /// One message, or something that is not to be opened.
    Whole {
        key: Option<Box<str>>,
        is_empty: bool,
        /// The message's uuid, and whether this is its last chunk.
        chunk: Option<(Box<str>, bool)>,
    },
    Batch(Box<MessageMetadata>, Vec<(SingleMessageMetadata, Bytes)>),
    /// Damaged, or a batch that only its readers can decrypt: it stays as it is.
    Unknown,
    Marker,
}

/// A place before all that the log still has is one that only the view has: a subscription which
/// begins there must know after a restart. Returns whether that changed a property.
pub(super) fn remember_begin(
    properties: &mut Properties,
    asked: Position,
    stands: Position,
) -> bool {
    if asked >= stands {
        return properties.remove(BEGIN).is_some();
    }
    let text = format!(
        "{} {} {} {}",
        asked.ledger, asked.entry, stands.ledger, stands.entry
    );
    properties.insert(BEGIN.to_owned(), text);
    true
}

/// What `remember_begin` wrote.
pub(super) fn begin_of(properties: &Properties) -> Option<(Position, Position)> {
    let numbers: Vec<i64> = properties
        .get(BEGIN)?
        .split(' ')
        .filter_map(|part| part.parse().ok())
        .collect();
    match numbers[..] {
        [a, b, c, d] => Some((Position::new(a, b), Position::new(c, d))),
        _ => None,
    }
}

impl Survivors {
    pub(super) fn new(retain_null_key: bool, size_max: usize) -> Survivors {
        Survivors {
            last: HashMap::new(),
            open_chunks: HashSet::new(),
            removed: 0,
            retain_null_key,
            size_max,
        }
    }

    /// The first pass: entries in their order.
    pub(super) fn note(&mut self, entry: &Entry) {
        match self.open(&entry.data) {
            Opened::Whole {
                key,
                is_empty,
                chunk,
            } => {
                let uuid = match chunk {
                    Some((uuid, false)) => {
                        self.open_chunks.insert(uuid);
                        return;
                    }
                    Some((uuid, true)) => {
                        self.open_chunks.remove(&uuid);
                        Some(uuid)
                    }
                    None => None,
                };
                match key {
                    Some(key) => self.note_key(key, is_empty, entry.position, ALONE, uuid),
                    None => self.removed += u64::from(!self.retain_null_key),
                }
            }
            Opened::Batch(_, messages) => {
                for (index, (metadata, payload)) in messages.into_iter().enumerate() {
                    if metadata.compacted_out() {
                        continue;
                    }
                    let is_empty = payload.is_empty();
                    match metadata.partition_key {
                        Some(key) => {
                            self.note_key(key.into(), is_empty, entry.position, index, None);
                        }
                        None => self.removed += u64::from(!self.retain_null_key),
                    }
                }
            }
            Opened::Unknown | Opened::Marker => {}
        }
    }

    fn note_key(
        &mut self,
        key: Box<str>,
        is_empty: bool,
        position: Position,
        index: usize,
        uuid: Option<Box<str>>,
    ) {
        if is_empty {
            self.removed += 1 + u64::from(self.last.remove(&key).is_some());
            return;
        }
        let last = Last {
            position,
            index,
            uuid,
        };
        self.removed += u64::from(self.last.insert(key, last).is_some());
    }

    pub(super) fn removed(&self) -> u64 {
        self.removed
    }

    /// The second pass: what of the entry goes into the view.
    pub(super) fn keep(&self, entry: &Entry) -> Option<Bytes> {
        match self.open(&entry.data) {
            Opened::Whole { key, chunk, .. } => {
                let uuid = chunk.map(|(uuid, _)| uuid);
                let stays = match (&key, &uuid) {
                    (_, Some(uuid)) if self.open_chunks.contains(uuid) => true,
                    (None, _) => self.retain_null_key,
                    (Some(key), uuid) => self.last.get(key).is_some_and(|last| {
                        last.index == ALONE
                            && (last.position == entry.position
                                || (uuid.is_some() && last.uuid == *uuid))
                    }),
                };
                stays.then(|| entry.data.clone())
            }
            Opened::Batch(metadata, messages) => self.keep_of_batch(entry, metadata, messages),
            Opened::Unknown => Some(entry.data.clone()),
            Opened::Marker => None,
        }
    }

    fn keep_of_batch(
        &self,
        entry: &Entry,
        mut metadata: Box<MessageMetadata>,
        messages: Vec<(SingleMessageMetadata, Bytes)>,
    ) -> Option<Bytes> {
        let stays = |index: usize, message: &SingleMessageMetadata| {
            !message.compacted_out()
                && match message.partition_key.as_deref() {
                    None => self.retain_null_key,
                    Some(key) => self
                        .last
                        .get(key)
                        .is_some_and(|last| (last.position, last.index) == (entry.position, index)),
                }
        };
        let kept = messages
            .iter()
            .enumerate()
            .filter(|(index, (message, _))| stays(*index, message))
            .count();
        if kept == 0 {
            return None;
        }
        if kept == messages.len() {
            return Some(entry.data.clone());
        }
        let mut builder = Builder::default();
        for (index, (mut message, payload)) in messages.into_iter().enumerate() {
            if stays(index, &message) {
                builder.push(&mut message, &payload);
            } else {
                // It keeps its place, so that the others keep their ids.
                let mut gone = SingleMessageMetadata {
                    compacted_out: Some(true),
                    ..SingleMessageMetadata::default()
                };
                builder.push(&mut gone, b"");
            }
        }
        let (raw, _) = builder.finish();
        let codec = metadata.compression();
        let Ok(packed) = compress(codec, &raw) else {
            return Some(entry.data.clone());
        };
        if codec != CompressionType::None {
            metadata.uncompressed_size = Some(raw.len() as u32);
        }
        let mut block = encode_headers(&metadata, &packed);
        block.extend_from_slice(&packed);
        Some(block.freeze())
    }

    fn open(&self, block: &Bytes) -> Opened {
        let Ok(head) = peek(block) else {
            return Opened::Unknown;
        };
        if head.marker_type.is_some() {
            return Opened::Marker;
        }
        let Ok(payload) = payload(block) else {
            return Opened::Unknown;
        };
        let count = match head.num_messages_in_batch {
            Some(_) if head.has_encryption_keys => return Opened::Unknown,
            Some(count) => count,
            None => {
                let packed = head.compression != CompressionType::None as i32;
                let is_empty = payload.is_empty() || (packed && head.uncompressed_size == 0);
                let chunk = head.uuid.filter(|_| head.is_chunk());
                return Opened::Whole {
                    key: head.partition_key.map(Into::into),
                    is_empty: is_empty || head.null_value,
                    chunk: chunk.map(|uuid| (uuid.into(), head.is_last_chunk())),
                };
            }
        };
        let size = head.uncompressed_size as usize;
        let raw = decompress(head.compression, &payload, size, self.size_max);
        match (decode_metadata(block), raw) {
            (Ok(metadata), Ok(raw)) => {
                let messages: Result<Vec<_>, _> = batch::read(raw, count).collect();
                messages.map_or(Opened::Unknown, |messages| {
                    Opened::Batch(Box::new(metadata), messages)
                })
            }
            _ => Opened::Unknown,
        }
    }
}
