//! Acks in transactions: held back until the outcome is known.

use std::sync::Arc;

use geminga_model::Position;
use geminga_storage::managed::Cursor;

use super::ack::partly;
use super::{AckRequest, Dispatch, Subscription};
use crate::dispatcher::ConsumerKey;
use crate::error::BrokerError;
use crate::transaction::TxnId;
use crate::transaction::coordinator::Outcome;
use crate::transaction::pending_ack::{BATCH_MESSAGES_MAX, PendingAck, PendingAcks, acked_bits};

/// Words of the parts of batches in one ACK.
const REQUEST_WORDS_MAX: usize = 1 << 20;

impl Subscription {
    /// What an ACK asks for, if nothing is in its way. Empty = it is ignored.
    pub(crate) fn check_pending(
        &self,
        txn: TxnId,
        request: &AckRequest<'_>,
        size: impl Fn(Position) -> Option<u32>,
    ) -> Result<Vec<PendingAck>, BrokerError> {
        let conflict = |position: Position| {
            Err(BrokerError::TransactionConflict(format!(
                "[{txn}] Transaction try to ack message:{}:{} already acked before.",
                position.ledger, position.entry
            )))
        };
        let mut acks = Vec::with_capacity(request.ids.len());
        let mut words = 0;
        for id in request.ids {
            let position = Position::from_wire(id.ledger_id, id.entry_id);
            if position > request.last || position.entry.0 < 0 {
                continue;
            }
            let part = partly(id);
            if part.is_some() && !request.batch_index {
                continue;
            }
            if request.cumulative {
                // Ignored, and confirmed, as without a transaction.
                if request.ids.len() != 1 || !matches!(self.dispatch, Dispatch::Single(_)) {
                    return Ok(Vec::new());
                }
                if position <= self.cursor.mark_delete() {
                    return conflict(position);
                }
                acks.push(PendingAck::cumulative(position, part.map(<[i64]>::to_vec)));
                continue;
            }
            if self.cursor.is_acked(position) {
                return conflict(position);
            }
            let Some(remaining) = part else {
                acks.push(PendingAck::entry(position));
                continue;
            };
            let told = id.batch_size.and_then(|size| u32::try_from(size).ok());
            let told = told.filter(|size| *size > 0);
            // Where nobody knows, what lies beyond the last message that is left is acked.
            let size = told
                .or_else(|| size(position))
                .unwrap_or_else(|| last_bit(remaining));
            // A client may say any size, of any number of batches.
            words += size.div_ceil(64) as usize;
            if size > BATCH_MESSAGES_MAX || words > REQUEST_WORDS_MAX {
                return Err(BrokerError::TransactionConflict(format!(
                    "[{txn}] a batch of {size} messages, or all batches of one ack, are too large"
                )));
            }
            let acked = acked_bits(remaining, size);
            let left = self.cursor.batch_ack_set(position);
            let is_new = acked.iter().enumerate().any(|(at, bits)| {
                let left = left
                    .as_ref()
                    .map_or(u64::MAX, |left| left.get(at).map_or(0, |word| *word as u64));
                bits & left != 0
            });
            if !is_new {
                return conflict(position);
            }
            acks.push(PendingAck::part(position, acked, size));
        }
        if let Some(pending) = &self.pending_acks {
            pending
                .check(txn, &acks)
                .map_err(|conflict| BrokerError::TransactionConflict(conflict.0))?;
        }
        Ok(acks)
    }

    /// Takes acks that `check_pending` gave. Returns the number of their record, and whether
    /// something may now be dispatched.
    pub(crate) fn add_pending(
        &mut self,
        txn: TxnId,
        key: ConsumerKey,
        acks: Vec<PendingAck>,
        now_ms: u64,
    ) -> (u64, bool) {
        self.counters.last_acked_ms = now_ms;
        if let Some(consumer) = self.consumer_mut(key) {
            consumer.counters.get_mut().last_acked_ms = now_ms;
        }
        let pending = self.pending_acks.get_or_insert_default();
        let positions: Vec<(Position, u32)> = acks
            .iter()
            .filter_map(|ack| match ack {
                PendingAck::Entry { .. } => Some((ack.position(), 1)),
                PendingAck::Part { size, .. } => Some((ack.position(), *size)),
                PendingAck::Cumulative { .. } => None,
            })
            .collect();
        let record = pending.add(txn, acks);
        let mut progress = false;
        if let Dispatch::Many(many) = &mut self.dispatch {
            for (position, size) in positions {
                let set = self.cursor.batch_ack_set(position);
                if pending.left(position, size, set).is_none()
                    && let Some((hash, free)) = many.park(position)
                {
                    pending.park(position, hash);
                    progress |= free;
                }
            }
        }
        (record, progress)
    }

    /// Takes in what was stored, when the topic is loaded.
    pub(crate) fn restore_pending(&mut self, txn: TxnId, acks: Vec<PendingAck>) {
        self.pending_acks.get_or_insert_default().add(txn, acks);
    }

    /// Puts an outcome in force. Returns the cursor and how many records there are of the
    /// transaction's acks; none if it has none here.
    pub(crate) fn transaction_ended(
        &mut self,
        txn: TxnId,
        outcome: Outcome,
    ) -> Option<(Arc<Cursor>, u64)> {
        let (acks, records, released) = self.pending_acks.as_mut()?.take(txn)?;
        if self
            .pending_acks
            .as_ref()
            .is_some_and(|pending| pending.is_empty())
        {
            self.pending_acks = None;
        }
        match outcome {
            Outcome::Committed => {
                self.commit_acks(&acks);
                if let Dispatch::Many(many) = &mut self.dispatch {
                    for entry in &released {
                        // Acked in part: the rest is somebody's again.
                        if let Some(hash) = entry.parked
                            && !self.cursor.is_acked(entry.position)
                        {
                            many.unpark(entry.position, hash);
                        }
                    }
                }
            }
            Outcome::Aborted => match &mut self.dispatch {
                Dispatch::None => {}
                // One consumer gets its messages in order, so all that is unacked comes again.
                Dispatch::Single(_) => self.rewind(),
                Dispatch::Many(many) => {
                    for entry in &released {
                        if let Some(hash) = entry.parked {
                            many.unpark(entry.position, hash);
                        } else if let Some((holder, _)) = many.pending_messages(entry.position) {
                            many.redeliver(holder, Some(&[entry.position]));
                        }
                    }
                }
            },
        }
        self.durable.then(|| (self.cursor.clone(), records))
    }

    /// Acks for good.
    pub(crate) fn commit_acks(&mut self, acks: &[PendingAck]) {
        for ack in acks {
            let position = ack.position();
            self.note_ack_ahead(position);
            let done = match ack {
                PendingAck::Entry { .. } => self.cursor.ack(&[position]).map(|()| true),
                PendingAck::Part { acked, size, .. } => {
                    let left: Vec<i64> = acked.iter().map(|bits| !bits as i64).collect();
                    self.cursor.ack_batch(position, &left, *size)
                }
                PendingAck::Cumulative { remaining, .. } => {
                    let result = self.cursor.ack_cumulative(position, remaining.as_deref());
                    if let Dispatch::Many(many) = &mut self.dispatch
                        && remaining.is_none()
                    {
                        many.ack_through(position);
                    }
                    result.map(|()| false)
                }
            };
            match done {
                Ok(true) => {
                    if let Dispatch::Many(many) = &mut self.dispatch {
                        many.ack(position);
                    }
                    self.counters.acked += 1;
                }
                Ok(false) => {
                    let left = self.cursor.batch_ack_set(position);
                    if let Dispatch::Many(many) = &mut self.dispatch
                        && let Some(left) = left
                    {
                        let left = left.iter().map(|word| word.count_ones()).sum();
                        many.ack_part(position, left);
                    }
                }
                Err(error) => {
                    // Too many holes: the message will come once more.
                    tracing::error!(subscription = %self.name, %position, %error,
                        "an ack of a committed transaction was not taken");
                }
            }
        }
    }

    pub(crate) fn pending_acks(&self) -> Option<&PendingAcks> {
        self.pending_acks.as_deref()
    }
}

/// The number of bits up to the last one that is set.
fn last_bit(words: &[i64]) -> u32 {
    words
        .iter()
        .enumerate()
        .rev()
        .find(|(_, word)| **word != 0)
        .map_or(0, |(at, word)| 64 * at as u32 + 64 - word.leading_zeros())
}
