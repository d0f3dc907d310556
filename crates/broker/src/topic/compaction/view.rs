//! A finished compacted view, as readers see it.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use geminga_model::{Position, TopicName};
use geminga_proto::batch;
use geminga_proto::compress::decompress;
use geminga_proto::message::{payload, peek};
use geminga_storage::managed::{ManagedLedger, OpenOptions};
use geminga_storage::{Entry, ManagedError, ReadLimits};

use crate::broker::Core;
use crate::error::BrokerError;
use crate::namespace::encode;
use crate::topic::Topic;
use crate::topic::stats::CompactedLedger;

/// The topic's property that names the view: `<number> <ledger> <entry>`.
pub(super) const PROPERTY: &str = "compacted";

/// Bytes of the position in front of each block.
const HEADER: usize = 16;

pub(crate) struct View {
    pub(super) number: u64,
    /// The last entry of the topic that it covers.
    pub(crate) horizon: Position,
    ledger: Arc<ManagedLedger>,
}

/// The path below which the views of a topic are; in use there is one.
pub(super) fn path(topic: &TopicName) -> String {
    format!(
        "{}/compacted/{}",
        topic.namespace_str(),
        encode(topic.local())
    )
}

pub(super) fn ledger_name(topic: &TopicName, number: u64) -> String {
    format!("{}/{number}", path(topic))
}

pub(super) fn encode_entry(position: Position, block: &Bytes) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER + block.len());
    out.put_i64(position.ledger.0);
    out.put_i64(position.entry.0);
    out.put_slice(block);
    out.freeze()
}

/// The entry as it is in the topic.
fn decode_entry(mut stored: Bytes) -> Option<Entry> {
    if stored.len() < HEADER {
        return None;
    }
    let position = Position::new(stored.get_i64(), stored.get_i64());
    Some(Entry {
        position,
        data: stored,
    })
}

/// The places in a batch that survived, as ack sets say it; none where all did. Not every client
/// passes over what is marked as compacted out, but all leave out what an ack set lacks.
pub(crate) fn survivors_of(block: &Bytes, size_max: usize) -> Option<Vec<i64>> {
    let head = peek(block).ok()?;
    let count = head
        .num_messages_in_batch
        .filter(|_| !head.has_encryption_keys)?;
    let packed = payload(block).ok()?;
    let size = head.uncompressed_size as usize;
    let raw = decompress(head.compression, &packed, size, size_max).ok()?;
    // A batch that says more than its bytes can hold is not one.
    let count_of_bytes = usize::try_from(count)
        .ok()
        .filter(|count| *count <= raw.len())?;
    let mut words = vec![0_i64; count_of_bytes.div_ceil(64)];
    let mut kept = 0;
    for (index, message) in batch::read(raw, count).enumerate() {
        let (metadata, _) = message.ok()?;
        if !metadata.compacted_out() {
            words[index / 64] |= 1 << (index % 64);
            kept += 1;
        }
    }
    (kept < count).then_some(words)
}

impl View {
    pub(super) fn new(number: u64, horizon: Position, ledger: Arc<ManagedLedger>) -> View {
        View {
            number,
            horizon,
            ledger,
        }
    }

    pub(super) fn property(&self) -> String {
        let Position { ledger, entry } = self.horizon;
        format!("{} {ledger} {entry}", self.number)
    }

    pub(crate) fn figures(&self) -> CompactedLedger {
        let first = self.ledger.ledgers().first().map(|ledger| ledger.id.0);
        CompactedLedger {
            ledger_id: first.unwrap_or(-1),
            entries: self.ledger.entries(),
            size: self.ledger.size_bytes(),
            ..CompactedLedger::default()
        }
    }

    /// Entries of the view from this position of the topic on; empty at its end.
    pub(crate) async fn read(
        &self,
        from: Position,
        limits: ReadLimits,
    ) -> Result<Vec<Entry>, ManagedError> {
        let before = |entry: &Entry| {
            decode_entry(entry.data.clone()).is_none_or(|entry| entry.position < from)
        };
        let Some(start) = self.ledger.find(move |entry| !before(entry)).await? else {
            return Ok(Vec::new());
        };
        let found = self.ledger.read(start, limits).await?;
        Ok(found
            .into_iter()
            .filter_map(|entry| decode_entry(entry.data))
            .collect())
    }

    /// The last message: its entry, and its index if that is a batch.
    pub(crate) async fn last(
        &self,
        size_max: usize,
    ) -> Result<Option<(Position, Option<i32>)>, ManagedError> {
        let last = self.ledger.durable_position();
        let found = self
            .ledger
            .read(last, ReadLimits::new(1, usize::MAX))
            .await?;
        let Some(entry) = found.into_iter().find_map(|entry| decode_entry(entry.data)) else {
            return Ok(None);
        };
        let batch = peek(&entry.data).ok().and_then(|head| {
            let count = head.num_messages_in_batch?;
            let words = survivors_of(&entry.data, size_max);
            let last = words.and_then(|words| {
                let at = words.iter().rposition(|word| *word != 0)?;
                Some(at as i32 * 64 + 63 - words[at].leading_zeros() as i32)
            });
            // As the size of a batch that ends with it.
            Some(last.map_or(count, |last| last + 1))
        });
        Ok(Some((entry.position, batch)))
    }
}

impl Topic {
    pub(crate) fn view(&self) -> Option<Arc<View>> {
        self.lock().view.clone()
    }

    /// Opens the view that the topic names, unless it is open: when the topic is loaded, and when
    /// another may have taken the place of the one that is open.
    pub(crate) async fn begin_view(&self) -> Result<(), BrokerError> {
        let properties = self.ledger.properties();
        let Some(text) = properties.get(PROPERTY) else {
            return Ok(());
        };
        let numbers: Vec<i64> = text
            .split(' ')
            .filter_map(|part| part.parse().ok())
            .collect();
        let [number, ledger, entry] = numbers[..] else {
            let text = format!("property `{PROPERTY}` of {} is `{text}`", self.name);
            return Err(BrokerError::Metadata(text));
        };
        let number = number.unsigned_abs();
        if self.view().is_some_and(|view| view.number == number) {
            return Ok(());
        }
        let name = ledger_name(&self.name, number);
        let opened = self
            .core
            .ledgers
            .open(&name, OpenOptions::default())
            .await?;
        let view = View::new(number, Position::new(ledger, entry), opened);
        self.lock().view = Some(Arc::new(view));
        Ok(())
    }
}

impl Core {
    /// Deletes the views of a topic but the one in use.
    pub(crate) async fn delete_views(
        &self,
        topic: &TopicName,
        but: Option<u64>,
    ) -> Result<(), BrokerError> {
        let path = path(topic);
        for number in self.ledgers.list(&path).await? {
            if but.is_none_or(|but| number != but.to_string()) {
                self.ledgers.delete(&format!("{path}/{number}")).await?;
            }
        }
        Ok(())
    }
}
