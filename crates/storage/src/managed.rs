//! Managed ledgers: a topic's entries as a sequence of ledgers, and its cursors.
//!
//! Reading order: `factory` opens and deletes topics; `append`, `read` and `change` are the three
//! sides of `ManagedLedger`; `cursor` is a subscription's place in it; the rest is pure.
//!
//! Budget of the hot path, to be kept:
//! - an `append` call (a run of N messages) takes one lock of the topic, makes at most two
//!   allocations beside the store's own, and wakes nobody but the log;
//! - a durable callback takes one lock of the topic, and the observer is called without it;
//! - a read of the tail takes that lock once, and does not await;
//! - an ack takes a shared lock on the ledger list and the cursor's own lock; nothing is written.
//!
//! An idle topic has no `ManagedLedger`: whoever holds the `Arc` drops it, and the next `open`
//! builds it again from the metadata.
//!
//! Lock order: `stored` (async) before `appender` before `list` before a cursor's cell.

pub mod ack_state;
mod append;
mod cache;
mod change;
mod cursor;
pub(crate) mod cursor_table;
mod factory;
pub(crate) mod fit;
pub mod ledger_list;
pub mod range_set;
mod read;
pub mod retention;
#[cfg(test)]
mod tests;

pub use append::TopicObserver;
pub use cache::ReadBuffer;
pub use cursor::{Cursor, Initial};
pub use cursor_table::Properties;
pub use factory::{ManagedLedgers, OpenOptions, Parts, Stats};
pub use fit::{Fitted, TopicLoss};
pub use retention::Retention;

use crate::error::ManagedError;
use append::Appender;
use cursor_table::Cell;
use factory::Shared;
use geminga_model::Position;
use ledger_list::LedgerList;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// A loaded topic.
pub struct ManagedLedger {
    name: Arc<str>,
    /// Names the topic in cursor records; never given to another one.
    topic: u64,
    this: Weak<ManagedLedger>,
    shared: Arc<Shared>,
    /// Changes only while `stored` is held.
    list: RwLock<LedgerList>,
    appender: Mutex<Appender>,
    /// The offset after the last durable entry. Changes only under `appender`.
    durable: AtomicU64,
    /// What the metadata holds; taken for changes of the ledger list, one at a time.
    stored: Arc<tokio::sync::Mutex<change::Stored>>,
}

impl ManagedLedger {
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The last entry appended, durable or not; (-1, -1) for a topic that never had one.
    #[must_use]
    pub fn last_position(&self) -> Position {
        let next = self.appender.lock().next;
        self.list().position_before(next)
    }

    /// The last durable entry: nothing beyond it is ever read.
    #[must_use]
    pub fn durable_position(&self) -> Position {
        self.list().position_before(self.durable_offset())
    }

    /// The first entry that is kept, or the place of the first one to come.
    #[must_use]
    pub fn first_position(&self) -> Position {
        let list = self.list();
        list.position(list.base)
    }

    /// The entry after this one, over the end of its ledger if need be; it may not exist yet.
    #[must_use]
    pub fn next(&self, position: Position) -> Position {
        let list = self.list();
        match list.offset(position) {
            Some(offset) => list.position(offset + 1),
            None => list.position(self.offset_from(&list, position)),
        }
    }

    /// The entry before this place; none at the beginning.
    #[must_use]
    pub fn previous(&self, position: Position) -> Option<Position> {
        let list = self.list();
        let offset = self.offset_from(&list, position);
        (offset > list.base).then(|| list.position_before(offset))
    }

    /// Durable entries from `from` to before `to`.
    #[must_use]
    pub fn count(&self, from: Position, to: Position) -> u64 {
        let list = self.list();
        let end = self.durable_offset();
        let to = self.offset_from(&list, to).min(end);
        to.saturating_sub(self.offset_from(&list, from))
    }

    /// All durable entries that are kept.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.durable_offset().saturating_sub(self.list().base)
    }

    /// Bytes of all entries that are kept, with those in flight.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        let open = self.appender.lock().bytes_unclosed;
        self.list().closed_bytes() + open
    }

    /// Bytes of the durable entries from this offset on; within a ledger entries count alike.
    fn bytes_from_offset(&self, offset: u64) -> u64 {
        let unclosed = self.appender.lock().bytes_unclosed;
        let end = self.durable_offset();
        let list = self.list();
        let mut bytes = 0;
        for (at, ledger) in list.ledgers.iter().enumerate() {
            let (entries, all) = match (ledger.closed, list.ledgers.get(at + 1)) {
                (Some(closed), _) => (closed.entries, closed.bytes),
                // Being sealed: counted with the one after it.
                (None, Some(_)) => continue,
                (None, None) => (end.saturating_sub(ledger.base), unclosed),
            };
            let left = (ledger.base + entries).saturating_sub(offset.max(ledger.base));
            if entries > 0 {
                bytes += (u128::from(all) * u128::from(left) / u128::from(entries)) as u64;
            }
        }
        bytes
    }

    /// About the bytes of the entries from this one on.
    #[must_use]
    pub fn bytes_from(&self, position: Position) -> u64 {
        let offset = {
            let list = self.list();
            self.offset_from(&list, position)
        };
        self.bytes_from_offset(offset)
    }

    /// The place of the `nth` entry that is kept, from 0 on.
    #[must_use]
    pub fn place_of_entry(&self, nth: u64) -> Position {
        let list = self.list();
        list.position(list.base + nth)
    }

    /// The first place from which on there are at most about so many bytes.
    #[must_use]
    pub fn place_of_last_bytes(&self, bytes: u64) -> Position {
        let (mut low, mut high) = (self.list().base, self.durable_offset());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.bytes_from_offset(middle) <= bytes {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        self.list().position(low)
    }

    #[must_use]
    pub fn is_terminated(&self) -> bool {
        self.list().is_terminated
    }

    /// Properties of the topic, kept with its ledger list.
    #[must_use]
    pub fn properties(&self) -> Properties {
        self.list().properties.clone()
    }

    /// The ledgers as they stand, for statistics and listings.
    #[must_use]
    pub fn ledgers(&self) -> Vec<ledger_list::Ledger> {
        self.list().ledgers.clone()
    }

    /// The cursor of that name, or a new one. Durable when it resolves.
    pub async fn open_cursor(
        &self,
        name: &str,
        initial: Initial,
        properties: Properties,
    ) -> Result<Arc<Cursor>, ManagedError> {
        let shared = &self.shared;
        let id = shared.state.next_revision();
        let cell = Cell::new(self.topic, id, name, true, self.initial(initial));
        if self.appender.lock().is_deleted() {
            return Err(self.deleted());
        }
        let (cell, ticket, _) = shared
            .state
            .cursors
            .create(cell, properties, &*shared.log)?;
        shared.log.durable(ticket).await?;
        Ok(self.handle(cell))
    }

    /// A reader's cursor: it ends with its handle and holds no data back.
    #[must_use]
    pub fn open_reader_cursor(&self, initial: Initial) -> Arc<Cursor> {
        let next = self.initial(initial);
        self.handle(Arc::new(Cell::new(self.topic, 0, "", false, next)))
    }

    #[must_use]
    pub fn cursor(&self, name: &str) -> Option<Arc<Cursor>> {
        let cell = self.shared.state.cursors.get(self.topic, name)?;
        Some(self.handle(cell))
    }

    /// All durable cursors.
    #[must_use]
    pub fn cursors(&self) -> Vec<Arc<Cursor>> {
        let cells = self.shared.state.cursors.of(self.topic);
        cells.into_iter().map(|cell| self.handle(cell)).collect()
    }

    /// Durable when it resolves. Handles to the cursor refuse changes from now on.
    pub async fn delete_cursor(&self, name: &str) -> Result<(), ManagedError> {
        let log = &self.shared.log;
        let ticket = self.shared.state.cursors.delete(self.topic, name, &**log)?;
        let ticket = ticket.ok_or_else(|| ManagedError::NoCursor { name: name.into() })?;
        Ok(log.durable(ticket).await?)
    }

    fn initial(&self, initial: Initial) -> u64 {
        let list = self.list();
        let end = self.durable_offset();
        match initial {
            Initial::Earliest => list.base,
            Initial::Latest => end,
            Initial::At(position) => list.offset_from(position).clamp(list.base, end),
        }
    }

    fn handle(&self, cell: Arc<Cell>) -> Arc<Cursor> {
        Arc::new(Cursor {
            topic: self
                .this
                .upgrade()
                .expect("it is alive: we are inside of it"),
            cell,
        })
    }

    fn deleted(&self) -> ManagedError {
        ManagedError::Deleted {
            name: self.name.clone(),
        }
    }

    pub(crate) fn list(&self) -> RwLockReadGuard<'_, LedgerList> {
        self.list.read()
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn durable_offset(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// As the list says; for a place after all ledgers, the end of what is durable.
    pub(crate) fn offset_from(&self, list: &LedgerList, position: Position) -> u64 {
        match list.ledgers.last() {
            Some(last) if position.ledger <= last.id => list.offset_from(position),
            _ => self.durable_offset(),
        }
    }
}

impl Drop for ManagedLedger {
    fn drop(&mut self) {
        let mut loaded = self.shared.loaded.lock();
        // Another one may have been loaded under this name meanwhile.
        if loaded
            .get(&self.name)
            .is_some_and(|known| known.ptr_eq(&self.this))
        {
            loaded.remove(&self.name);
        }
        drop(loaded);
        let given_back = self.appender.get_mut().tail.clear();
        self.shared.budget.give_back(given_back);
    }
}
