//! Acks of a subscription that wait for the end of their transactions. Plain data under the
//! topic's lock.
//!
//! An entry is *parked* while a transaction has acked all that is left of it: nobody gets it. It is
//! out of the dispatcher then, and goes back with the key hash that it had there. Of a batch acked
//! in part the rest is delivered, without the messages that wait here.

use std::collections::{BTreeMap, HashMap, HashSet};

use geminga_model::Position;
use serde::{Deserialize, Serialize};

use super::TxnId;

/// What a client says of a batch is not more, and what it sends is not taken with more.
pub(crate) use geminga_proto::message::BATCH_MESSAGES_MAX;

/// Words of the parts of batches that may wait in one subscription.
const WORDS_MAX: usize = 1 << 22;

/// What a transaction wants to ack, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum PendingAck {
    Entry {
        position: (i64, i64),
    },
    /// Bit 1 = this message is acked.
    Part {
        position: (i64, i64),
        acked: Vec<u64>,
        size: u32,
    },
    /// Everything up to the position; of a batch there, what is not in `remaining`.
    Cumulative {
        position: (i64, i64),
        remaining: Option<Vec<i64>>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict(pub(crate) String);

#[derive(Debug, Default)]
struct AtEntry {
    whole: Option<TxnId>,
    parts: Vec<(TxnId, Vec<u64>)>,
    /// The hash to go back with, when the dispatcher knew it.
    parked: Option<u32>,
}

#[derive(Debug, Default)]
struct OfTxn {
    acks: Vec<PendingAck>,
    /// How many records it has, for the name of the next one.
    records: u64,
}

#[derive(Debug, Default)]
pub(crate) struct PendingAcks {
    entries: BTreeMap<Position, AtEntry>,
    cumulative: Option<(TxnId, Position, Option<Vec<i64>>)>,
    txns: HashMap<TxnId, OfTxn>,
    /// Of all parts of batches together.
    words: usize,
}

fn words_of(acks: &[PendingAck]) -> usize {
    let words = |ack: &PendingAck| match ack {
        PendingAck::Part { acked, .. } => acked.len(),
        PendingAck::Entry { .. } | PendingAck::Cumulative { .. } => 0,
    };
    acks.iter().map(words).sum()
}

/// What becomes of an entry when its transaction is aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Released {
    pub(crate) position: Position,
    /// It was parked, with this hash.
    pub(crate) parked: Option<u32>,
}

fn wire(position: Position) -> (i64, i64) {
    (position.ledger.0, position.entry.0)
}

fn place((ledger, entry): (i64, i64)) -> Position {
    Position::new(ledger, entry)
}

/// The messages of a batch that `remaining` leaves out.
pub(crate) fn acked_bits(remaining: &[i64], size: u32) -> Vec<u64> {
    let words = size.div_ceil(64) as usize;
    let remaining = remaining.iter().take(words);
    let mut bits: Vec<u64> = remaining.map(|word| !(*word as u64)).collect();
    bits.resize(words, u64::MAX);
    mask(&mut bits, size);
    bits
}

/// Clears what lies beyond the batch.
fn mask(words: &mut [u64], size: u32) {
    for (at, word) in words.iter_mut().enumerate() {
        let bits = u64::from(size).saturating_sub(64 * at as u64);
        if bits < 64 {
            *word &= (1 << bits) - 1;
        }
    }
}

fn overlap(a: &[u64], b: &[u64]) -> bool {
    a.iter().zip(b).any(|(a, b)| a & b != 0)
}

fn covers(all: &[u64], some: &[u64]) -> bool {
    let word = |at: usize| all.get(at).copied().unwrap_or(0);
    some.iter()
        .enumerate()
        .all(|(at, bits)| bits & !word(at) == 0)
}

impl PendingAcks {
    pub(crate) fn is_empty(&self) -> bool {
        self.txns.is_empty()
    }

    pub(crate) fn transactions(&self) -> usize {
        self.txns.len()
    }

    pub(crate) fn has(&self, txn: TxnId) -> bool {
        self.txns.contains_key(&txn)
    }

    /// Up to where a transaction acks everything, if it does.
    pub(crate) fn cumulative_of(&self, txn: TxnId) -> Option<Position> {
        let (owner, position, _) = self.cumulative.as_ref()?;
        (*owner == txn).then_some(*position)
    }

    /// Whether the entry waits as a whole or in part; for the index of a batch, whether that does.
    pub(crate) fn waits(&self, position: Position, batch_index: Option<u32>) -> bool {
        if self.below_cumulative(position) {
            return true;
        }
        let Some(entry) = self.entries.get(&position) else {
            return false;
        };
        let bit = |bits: &[u64], index: u32| {
            bits.get(index as usize / 64)
                .is_some_and(|word| word >> (index % 64) & 1 == 1)
        };
        entry.whole.is_some()
            || match batch_index {
                None => !entry.parts.is_empty(),
                Some(index) => entry.parts.iter().any(|(_, bits)| bit(bits, index)),
            }
    }

    /// Whether these may be acked together by `txn`, as far as other pending acks go. Changes
    /// nothing: `add` does.
    pub(crate) fn check(&self, txn: TxnId, acks: &[PendingAck]) -> Result<(), Conflict> {
        if let Some(ack) = acks.first()
            && self.words + words_of(acks) > WORDS_MAX
        {
            return Err(conflict(txn, ack, "beside too many parts of batches"));
        }
        let mut seen = HashSet::with_capacity(acks.len());
        for ack in acks {
            if !seen.insert(ack) {
                return Err(conflict(txn, ack, "twice in one command"));
            }
            match ack {
                PendingAck::Entry { position } => {
                    if self.entries.contains_key(&place(*position)) {
                        return Err(conflict(txn, ack, "in pending ack status"));
                    }
                }
                PendingAck::Part {
                    position, acked, ..
                } => {
                    let Some(entry) = self.entries.get(&place(*position)) else {
                        continue;
                    };
                    let taken = entry.whole.is_some()
                        || entry.parts.iter().any(|(owner, bits)| {
                            // A client may name all that it has acked of the batch so far.
                            if *owner == txn {
                                covers(bits, acked)
                            } else {
                                overlap(bits, acked)
                            }
                        });
                    if taken {
                        return Err(conflict(txn, ack, "in pending ack status"));
                    }
                }
                PendingAck::Cumulative {
                    position,
                    remaining,
                } => {
                    let Some((owner, before, left)) = &self.cumulative else {
                        continue;
                    };
                    let position = place(*position);
                    let ahead = position > *before
                        || (position == *before && is_less(remaining.as_deref(), left.as_deref()));
                    if *owner != txn || !ahead {
                        return Err(conflict(
                            txn,
                            ack,
                            "behind or beside another cumulative ack",
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes acks in that `check` let pass, or that were stored. Returns the number of the record.
    pub(crate) fn add(&mut self, txn: TxnId, acks: Vec<PendingAck>) -> u64 {
        self.words += words_of(&acks);
        for ack in &acks {
            match ack {
                PendingAck::Entry { position } => {
                    self.entries.entry(place(*position)).or_default().whole = Some(txn);
                }
                PendingAck::Part {
                    position, acked, ..
                } => {
                    let parts = &mut self.entries.entry(place(*position)).or_default().parts;
                    match parts.iter_mut().find(|(owner, _)| *owner == txn) {
                        Some((_, bits)) => {
                            if bits.len() < acked.len() {
                                bits.resize(acked.len(), 0);
                            }
                            bits.iter_mut().zip(acked).for_each(|(a, b)| *a |= b);
                        }
                        None => parts.push((txn, acked.clone())),
                    }
                }
                PendingAck::Cumulative {
                    position,
                    remaining,
                } => {
                    self.cumulative = Some((txn, place(*position), remaining.clone()));
                }
            }
        }
        let known = self.txns.entry(txn).or_default();
        known.acks.extend(acks);
        known.records += 1;
        known.records - 1
    }

    /// Takes a transaction's acks out: what it wanted, how many records that has, and the entries
    /// that are free again.
    pub(crate) fn take(&mut self, txn: TxnId) -> Option<(Vec<PendingAck>, u64, Vec<Released>)> {
        let known = self.txns.remove(&txn)?;
        self.words -= words_of(&known.acks);
        let mut released = Vec::new();
        for ack in &known.acks {
            let position = match ack {
                PendingAck::Entry { position } | PendingAck::Part { position, .. } => {
                    place(*position)
                }
                PendingAck::Cumulative { .. } => continue,
            };
            let Some(entry) = self.entries.get_mut(&position) else {
                continue;
            };
            if entry.whole == Some(txn) {
                entry.whole = None;
            }
            entry.parts.retain(|(owner, _)| *owner != txn);
            released.push(Released {
                position,
                parked: entry.parked.take(),
            });
            if entry.whole.is_none() && entry.parts.is_empty() {
                self.entries.remove(&position);
            }
        }
        if self
            .cumulative
            .as_ref()
            .is_some_and(|(owner, ..)| *owner == txn)
        {
            self.cumulative = None;
        }
        Some((known.acks, known.records, released))
    }

    fn below_cumulative(&self, position: Position) -> bool {
        self.cumulative.as_ref().is_some_and(|(_, through, left)| {
            position < *through || (position == *through && left.is_none())
        })
    }

    /// What of an entry may be delivered: `None` = nothing, it waits as a whole. `ack_set` is what
    /// the cursor says is left of the batch.
    pub(crate) fn left(
        &self,
        position: Position,
        size: u32,
        ack_set: Option<Vec<i64>>,
    ) -> Option<Option<Vec<i64>>> {
        if self.below_cumulative(position) {
            return None;
        }
        let at_cumulative = self
            .cumulative
            .as_ref()
            .filter(|(_, through, _)| *through == position)
            .and_then(|(_, _, left)| left.as_ref());
        let entry = self.entries.get(&position);
        if entry.is_none() && at_cumulative.is_none() {
            return Some(ack_set);
        }
        if entry.is_some_and(|entry| entry.whole.is_some()) {
            return None;
        }
        let mut left: Vec<u64> = match ack_set {
            Some(words) => words.iter().map(|word| *word as u64).collect(),
            None => vec![u64::MAX; size.max(1).div_ceil(64) as usize],
        };
        mask(&mut left, size.max(1));
        for (_, acked) in entry.iter().flat_map(|entry| &entry.parts) {
            left.iter_mut()
                .zip(acked)
                .for_each(|(word, bits)| *word &= !bits);
        }
        if let Some(remaining) = at_cumulative {
            for (at, word) in left.iter_mut().enumerate() {
                *word &= remaining.get(at).map_or(0, |word| *word as u64);
            }
        }
        if left.iter().all(|word| *word == 0) {
            return None;
        }
        Some(Some(left.into_iter().map(|word| word as i64).collect()))
    }

    /// The entry is out of the dispatcher, which knew this hash of it.
    pub(crate) fn park(&mut self, position: Position, hash: u32) {
        if let Some(entry) = self.entries.get_mut(&position) {
            entry.parked = Some(hash);
        }
    }

    /// The dispatcher starts again: what was parked comes by again on its own.
    pub(crate) fn unpark_all(&mut self) {
        for entry in self.entries.values_mut() {
            entry.parked = None;
        }
    }
}

/// Whether `new` leaves less of a batch than `old`; nothing is the least.
fn is_less(new: Option<&[i64]>, old: Option<&[i64]>) -> bool {
    let left = |words: Option<&[i64]>| -> u32 {
        words.map_or(0, |words| words.iter().map(|word| word.count_ones()).sum())
    };
    left(new) < left(old)
}

fn conflict(txn: TxnId, ack: &PendingAck, why: &str) -> Conflict {
    let (PendingAck::Entry { position }
    | PendingAck::Part { position, .. }
    | PendingAck::Cumulative { position, .. }) = ack;
    let (ledger, entry) = position;
    Conflict(format!(
        "[{txn}] Transaction try to ack message:{ledger}:{entry} {why}"
    ))
}

impl PendingAck {
    pub(crate) fn entry(position: Position) -> PendingAck {
        PendingAck::Entry {
            position: wire(position),
        }
    }

    pub(crate) fn part(position: Position, acked: Vec<u64>, size: u32) -> PendingAck {
        PendingAck::Part {
            position: wire(position),
            acked,
            size,
        }
    }

    pub(crate) fn cumulative(position: Position, remaining: Option<Vec<i64>>) -> PendingAck {
        PendingAck::Cumulative {
            position: wire(position),
            remaining,
        }
    }

    pub(crate) fn position(&self) -> Position {
        let (PendingAck::Entry { position }
        | PendingAck::Part { position, .. }
        | PendingAck::Cumulative { position, .. }) = self;
        place(*position)
    }
}

#[cfg(test)]
mod tests;
