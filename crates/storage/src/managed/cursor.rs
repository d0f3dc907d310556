//! A subscription's place in a topic: the handle that the broker holds.
//!
//! The state itself is in the cursor table, so a handle may be dropped and made again at will. An
//! ack changes memory at once and is written with the next flush; `durable` waits for that.

use super::ManagedLedger;
use super::cursor_table::{Cell, CellState, Properties};
use crate::error::ManagedError;
use geminga_model::Position;
use parking_lot::MutexGuard;
use std::sync::Arc;

pub struct Cursor {
    pub(crate) topic: Arc<ManagedLedger>,
    pub(crate) cell: Arc<Cell>,
}

/// Where a new cursor begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initial {
    Earliest,
    Latest,
    /// This entry is the first that is not acked.
    At(Position),
}

impl Cursor {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.cell.name
    }

    /// False for a reader's cursor, which does not survive a restart and holds no data back.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.cell.is_durable
    }

    /// The position up to which everything is acked; entry -1 when nothing of its ledger is.
    #[must_use]
    pub fn mark_delete(&self) -> Position {
        let next = self.state().acks.next();
        let list = self.topic.list();
        // A reader's cursor may stand before what was trimmed.
        list.position_before(next.max(list.base))
    }

    #[must_use]
    pub fn is_acked(&self, position: Position) -> bool {
        let offset = self.topic.list().offset(position);
        offset.is_some_and(|offset| self.state().acks.is_acked(offset))
            || position < self.topic.first_position()
    }

    /// For a batch acked in part: what is still to be acked, bit 1 = not yet.
    #[must_use]
    pub fn batch_ack_set(&self, position: Position) -> Option<Vec<i64>> {
        let offset = self.topic.list().offset(position)?;
        let state = self.state();
        let set = state.acks.batches().get(&offset)?;
        Some(set.iter().map(|word| *word as i64).collect())
    }

    /// The first position at or after `from` that is not acked; it may not exist yet.
    #[must_use]
    pub fn next_unacked(&self, from: Position) -> Position {
        let list = self.topic.list();
        let from = self.topic.offset_from(&list, from);
        let offset = self.state().acks.next_unacked(from);
        list.position(offset)
    }

    /// Entries that are durable and not acked.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        let end = self.topic.durable_offset();
        let first = self.topic.list().base;
        let state = self.state();
        // As above.
        let trimmed = first.saturating_sub(state.acks.next());
        let acked_there = state.acks.acked().covered_in(0..first);
        state
            .acks
            .unacked(end)
            .saturating_sub(trimmed - acked_there)
    }

    /// Ranges of entries acked beyond the mark-delete position.
    #[must_use]
    pub fn acked_ranges(&self) -> usize {
        self.state().acks.acked().len()
    }

    /// Acks whole entries. Positions that do not exist are passed over.
    pub fn ack(&self, positions: &[Position]) -> Result<(), ManagedError> {
        let end = self.topic.durable_offset();
        let list = self.topic.list();
        let mut state = self.changing()?;
        let mut refused = false;
        for position in positions {
            if let Some(offset) = list.offset(*position).filter(|offset| *offset < end) {
                if self.is_full(&state, offset) {
                    refused = true;
                    continue;
                }
                state.ack(offset..offset + 1, self.is_durable());
            }
        }
        drop(list);
        self.changed(state);
        if refused {
            Err(self.too_many())
        } else {
            Ok(())
        }
    }

    /// Acks the messages of a batch whose bit is 0; bits beyond the end of `remaining` are 0. True
    /// when the entry is wholly acked now. `batch_size` 0 is unknown.
    pub fn ack_batch(
        &self,
        position: Position,
        remaining: &[i64],
        batch_size: u32,
    ) -> Result<bool, ManagedError> {
        let end = self.topic.durable_offset();
        let offset = self.topic.list().offset(position);
        let Some(offset) = offset.filter(|offset| *offset < end) else {
            return Ok(position < self.topic.first_position());
        };
        let mut state = self.changing()?;
        if self.is_full(&state, offset) {
            return Err(self.too_many());
        }
        let words = words(remaining, batch_size);
        let whole = state.ack_batch(offset, &words, self.is_durable());
        self.changed(state);
        Ok(whole)
    }

    /// Acks everything up to this position, and it too; of a batch with `remaining` only the
    /// messages whose bit is 0. A position beyond the last entry is passed over.
    pub fn ack_cumulative(
        &self,
        position: Position,
        remaining: Option<&[i64]>,
    ) -> Result<(), ManagedError> {
        let end = self.topic.durable_offset();
        if position > self.topic.durable_position() {
            return Ok(());
        }
        let below = self.topic.list().offset_from(position).min(end);
        let exact = self.topic.list().offset(position);
        let mut state = self.changing()?;
        state.ack(0..below, self.is_durable());
        if let Some(offset) = exact {
            match remaining {
                Some(set) => {
                    state.ack_batch(offset, &words(set, 0), self.is_durable());
                }
                None => {
                    state.ack(offset..offset + 1, self.is_durable());
                }
            }
        }
        self.changed(state);
        Ok(())
    }

    /// Makes this entry the first that is not acked, forward or back; forgets all other acks.
    /// Ordered with acks: those made before are forgotten, those after count. Durable when it
    /// resolves.
    pub async fn reset(&self, position: Position) -> Result<(), ManagedError> {
        let ticket = {
            let end = self.topic.durable_offset();
            let list = self.topic.list();
            let next = list.offset_from(position).clamp(list.base, end);
            drop(list);
            let shared = self.topic.shared();
            let mut state = self.changing()?;
            state.reset(next, shared.state.next_revision());
            if self.is_durable() {
                self.cell.write(&mut state, &*shared.log)?
            } else {
                return Ok(());
            }
        };
        Ok(self.topic.shared().log.durable(ticket).await?)
    }

    /// Resolves when every ack made before this call is on disk.
    pub async fn durable(&self) -> Result<(), ManagedError> {
        if !self.is_durable() {
            return Ok(());
        }
        let log = &self.topic.shared().log;
        let ticket = self.cell.flush(&**log)?;
        Ok(log.durable(ticket).await?)
    }

    #[must_use]
    pub fn properties(&self) -> Properties {
        self.state().properties()
    }

    /// Replaces the properties. Ordered with acks; durable when it resolves.
    pub async fn set_properties(&self, properties: Properties) -> Result<(), ManagedError> {
        let log = &self.topic.shared().log;
        let ticket = {
            let mut state = self.changing()?;
            let ticket = if self.is_durable() {
                log.append(self.cell.encode_properties(&properties).into())?
            } else {
                Default::default()
            };
            state.set_properties(properties);
            state.set_ticket(ticket);
            ticket
        };
        Ok(log.durable(ticket).await?)
    }

    fn state(&self) -> MutexGuard<'_, CellState> {
        self.cell.state.lock()
    }

    fn changing(&self) -> Result<MutexGuard<'_, CellState>, ManagedError> {
        let state = self.state();
        if state.is_deleted {
            return Err(ManagedError::NoCursor {
                name: (&*self.cell.name).into(),
            });
        }
        Ok(state)
    }

    /// Puts the cursor on the list of those to be flushed, once.
    fn changed(&self, mut state: MutexGuard<'_, CellState>) {
        if state.is_dirty() && !std::mem::replace(&mut state.is_listed, true) {
            drop(state);
            self.topic.shared().dirty.add(self.cell.clone());
        }
    }

    fn is_full(&self, state: &CellState, offset: u64) -> bool {
        let max = self.topic.shared().config.cursor_ranges_max;
        let acks = &state.acks;
        // More of a batch that is acked in part takes no more room.
        acks.weight() >= max
            && offset > acks.next()
            && acks.acked().would_grow(offset)
            && !acks.batches().contains_key(&offset)
    }

    fn too_many(&self) -> ManagedError {
        ManagedError::TooManyRanges {
            name: (&*self.cell.name).into(),
            max: self.topic.shared().config.cursor_ranges_max,
        }
    }
}

/// Bits beyond the batch's size mean nothing, and words of zeros at the end neither.
fn words(remaining: &[i64], batch_size: u32) -> Vec<u64> {
    let mut words: Vec<u64> = remaining
        .iter()
        .take(super::ack_state::ACK_SET_WORDS_MAX)
        .map(|word| *word as u64)
        .collect();
    if batch_size > 0 {
        for (i, word) in words.iter_mut().enumerate() {
            let bits = u64::from(batch_size).saturating_sub(64 * i as u64);
            if bits < 64 {
                *word &= (1 << bits) - 1;
            }
        }
    }
    let end = words.iter().rposition(|word| *word != 0);
    words.truncate(end.map_or(0, |last| last + 1));
    words
}
