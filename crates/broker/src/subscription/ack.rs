//! Acknowledgements and redelivery requests.

use geminga_model::Position;
use geminga_proto::pb::MessageIdData;
use geminga_storage::error::ManagedError;

use super::{Dispatch, Subscription};
use crate::dispatcher::ConsumerKey;

/// The ids of an ACK command.
pub(crate) struct AckRequest<'a> {
    pub(crate) cumulative: bool,
    pub(crate) ids: &'a [MessageIdData],
    /// `acknowledgmentAtBatchIndexLevelEnabled`.
    pub(crate) batch_index: bool,
    /// The topic's last entry; acks beyond it are ignored.
    pub(crate) last: Position,
    pub(crate) now_ms: u64,
}

impl Subscription {
    /// Applies an ack; true when something may now be dispatched.
    pub(crate) fn ack(
        &mut self,
        key: ConsumerKey,
        request: &AckRequest<'_>,
    ) -> Result<bool, ManagedError> {
        let before = self.cursor.mark_delete();
        let result = if request.cumulative {
            self.ack_cumulative(request)
        } else {
            self.ack_individual(key, request)
        };
        self.counters.last_acked_ms = request.now_ms;
        if let Some(consumer) = self.consumer_mut(key) {
            consumer.counters.get_mut().last_acked_ms = request.now_ms;
        }
        if self.cursor.mark_delete() > before {
            self.counters.last_mark_delete_ms = request.now_ms;
        }
        result
    }

    fn ack_cumulative(&mut self, request: &AckRequest<'_>) -> Result<bool, ManagedError> {
        // Pulsar ignores both, and still confirms them.
        let ([id], Dispatch::Single(_)) = (request.ids, &self.dispatch) else {
            tracing::debug!(subscription = %self.name, "a cumulative ack is ignored");
            return Ok(false);
        };
        let position = Position::from_wire(id.ledger_id, id.entry_id);
        if position > request.last {
            return Ok(false);
        }
        match partly(id) {
            None => self.cursor.ack_cumulative(position, None)?,
            Some(words) if request.batch_index => {
                self.cursor.ack_cumulative(position, Some(words))?;
            }
            // Without batch indexes what is certain is that all before this entry is acked; the
            // client sends that itself, so there is nothing to do.
            Some(_) => return Ok(false),
        }
        self.note_ack_ahead(position);
        Ok(false)
    }

    fn ack_individual(
        &mut self,
        key: ConsumerKey,
        request: &AckRequest<'_>,
    ) -> Result<bool, ManagedError> {
        let mut progress = false;
        let mut whole = Vec::with_capacity(request.ids.len());
        for id in request.ids {
            let position = Position::from_wire(id.ledger_id, id.entry_id);
            if position > request.last || position.entry.0 < 0 {
                continue;
            }
            match partly(id) {
                None => whole.push(position),
                Some(words) if request.batch_index => {
                    self.note_ack_ahead(position);
                    let size = id
                        .batch_size
                        .and_then(|size| u32::try_from(size).ok())
                        .unwrap_or(0);
                    if self.cursor.ack_batch(position, words, size)? {
                        whole.push(position);
                    } else if let Dispatch::Many(many) = &mut self.dispatch {
                        let left = self
                            .cursor
                            .batch_ack_set(position)
                            .map_or(0, |words| words.iter().map(|word| word.count_ones()).sum());
                        progress |= many.ack_part(position, left);
                    }
                }
                // A part of a batch, and the broker does not track parts: the client will ack the
                // whole when it is done.
                Some(_) => {}
            }
        }
        for position in &whole {
            self.note_ack_ahead(*position);
        }
        self.cursor.ack(&whole)?;
        let mut acked = 0;
        for position in &whole {
            match &mut self.dispatch {
                Dispatch::Many(many) => {
                    acked += many
                        .pending_messages(*position)
                        .map_or(0, |(_, n)| u64::from(n));
                    progress |= many.ack(*position);
                }
                Dispatch::Single(_) | Dispatch::None => acked += 1,
            }
        }
        self.counters.acked += acked;
        if let Some(consumer) = self.consumer_mut(key) {
            consumer.counters.get_mut().acked += acked;
        }
        Ok(progress)
    }

    /// The consumer wants these again, or all that it has. True when there is something to
    /// dispatch.
    pub(crate) fn redeliver(
        &mut self,
        key: ConsumerKey,
        positions: Option<&[Position]>,
        epoch: Option<u64>,
    ) -> bool {
        match &mut self.dispatch {
            Dispatch::None => false,
            Dispatch::Single(single) => {
                if single.active() != Some(key) {
                    return false;
                }
                let Some(consumer) = self.consumer_mut(key) else {
                    return false;
                };
                if let (Some(new), Some(old)) = (epoch, consumer.epoch)
                    && new > old
                {
                    consumer.epoch = Some(new);
                }
                // One consumer gets its messages in order, so single ones cannot be sent again.
                self.rewind();
                true
            }
            Dispatch::Many(many) => many.redeliver(key, positions) > 0,
        }
    }

    /// Acks may come for entries not yet read here (another session's, or made up).
    pub(super) fn note_ack_ahead(&mut self, position: Position) {
        if position >= self.read && position >= self.acks_until {
            self.acks_until = position.next_in_ledger();
        }
    }
}

/// The set of messages of a batch that are *not* yet acked, if the ack is for a part of it.
pub(super) fn partly(id: &MessageIdData) -> Option<&[i64]> {
    let any_left = id.ack_set.iter().any(|word| *word != 0);
    any_left.then_some(&id.ack_set[..])
}
