//! The read side of a topic: from the tail in memory, or from the store over several ledgers.

use super::ManagedLedger;
use crate::error::{ManagedError, StoreError};
use crate::ledger::{Entry, ReadLimits};
use geminga_model::{EntryId, LedgerId, Position};
use std::sync::atomic::Ordering;

impl ManagedLedger {
    /// Durable entries from `from` on, if they are still in memory: no I/O, no await. Empty at the
    /// end of what is durable; none when `read` must be asked.
    #[must_use]
    pub fn read_cached(&self, from: Position, limits: ReadLimits) -> Option<Vec<Entry>> {
        let offset = {
            let list = self.list();
            self.offset_from(&list, from).max(list.base)
        };
        let found = self.read_tail(offset, limits);
        let budget = &self.shared.budget;
        let counter = if found.is_some() {
            &budget.hits
        } else {
            &budget.misses
        };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    fn read_tail(&self, offset: u64, limits: ReadLimits) -> Option<Vec<Entry>> {
        let end = self.durable_offset();
        if offset >= end {
            return Some(Vec::new());
        }
        self.appender.lock().tail.read(offset, end, limits)
    }

    /// Durable entries from `from` on, in order, without gaps, over ledgers. Entries that were
    /// trimmed are passed over. Empty only at the end of what is durable.
    pub async fn read(
        &self,
        from: Position,
        limits: ReadLimits,
    ) -> Result<Vec<Entry>, ManagedError> {
        let offset = {
            let list = self.list();
            self.offset_from(&list, from)
        };
        self.read_offset(offset, limits).await
    }

    async fn read_offset(&self, from: u64, limits: ReadLimits) -> Result<Vec<Entry>, ManagedError> {
        let end = self.durable_offset();
        let mut offset = from.max(self.list().base);
        let mut found: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        while offset < end && (found.is_empty() || found.len() < limits.entries_max) {
            let Some(part) = self.part(offset, end) else {
                break;
            };
            let left = ReadLimits::new(
                limits
                    .entries_max
                    .saturating_sub(found.len())
                    .min(part.count),
                limits.bytes_max.saturating_sub(bytes),
            );
            let read = self.shared.store.read(part.ledger, part.first, left).await;
            let mut entries = match read {
                Ok(entries) => entries,
                Err(StoreError::NoLedger { .. }) if self.list().base > offset => {
                    // Trimmed meanwhile.
                    offset = self.list().base;
                    continue;
                }
                Err(_) if !found.is_empty() => break,
                Err(error) => return Err(error.into()),
            };
            entries.truncate(part.count);
            let counter = &self.shared.budget.read_entries;
            counter.fetch_add(entries.len() as u64, Ordering::Relaxed);
            if entries.is_empty() {
                if found.is_empty() {
                    let ledger = part.ledger;
                    tracing::error!(topic = %self.name, %ledger, entry = %part.first,
                        "an entry that was durable cannot be found");
                    return Err(StoreError::NoLedger { ledger }.into());
                }
                break;
            }
            offset += entries.len() as u64;
            let is_whole = entries.len() == part.count;
            for entry in entries {
                // The store always gives one entry; here that may be one too many.
                if !limits.admit(found.len(), bytes, entry.data.len()) {
                    return Ok(found);
                }
                bytes += entry.data.len();
                found.push(entry);
            }
            if !is_whole {
                break;
            }
        }
        Ok(found)
    }

    /// Where to read the offset: one ledger's entries, at most up to `end`.
    fn part(&self, offset: u64, end: u64) -> Option<Part> {
        let list = self.list();
        let after = list.ledgers.partition_point(|ledger| ledger.base <= offset);
        let ledger = list.ledgers.get(after.checked_sub(1)?)?;
        let end = list
            .ledgers
            .get(after)
            .map_or(end, |next| next.base.min(end));
        Some(Part {
            ledger: ledger.id,
            first: EntryId((offset - ledger.base) as i64),
            count: usize::try_from(end - offset).unwrap_or(usize::MAX),
        })
    }

    /// The first durable entry for which `predicate` is true, where it is false for all before and
    /// true for all after; found by halving. None when it is true for none.
    pub async fn find(
        &self,
        predicate: impl Fn(&Entry) -> bool + Send,
    ) -> Result<Option<Position>, ManagedError> {
        let end = self.durable_offset();
        let (mut low, mut high) = (self.list().base, end);
        while low < high {
            let middle = low + (high - low) / 2;
            let entries = self.read_offset(middle, ReadLimits::new(1, 0)).await?;
            let Some(entry) = entries.first() else {
                break;
            };
            if predicate(entry) {
                high = middle;
            } else {
                low = middle + 1;
            }
            // What was trimmed meanwhile is not searched.
            low = low.max(self.list().base);
        }
        Ok((low < end).then(|| self.list().position(low)))
    }
}

struct Part {
    ledger: LedgerId,
    first: EntryId,
    count: usize,
}
