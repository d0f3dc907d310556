//! The contract of a ledger store, and of the state log that shares its fsync.
//!
//! Owns no bytes; every store (embedded, in memory, later BookKeeper) must hold what is written
//! here, and `ledger/contract.rs` checks it for each of them.

#[cfg(test)]
pub(crate) mod contract;
pub mod memory;

use crate::error::{AppendError, StoreError};
use bytes::Bytes;
use geminga_model::{EntryId, LedgerId, Position};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// A boxed future: what the methods of the storage traits return, so that they stay object-safe.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Bytes and where they stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub position: Position,
    pub data: Bytes,
}

/// How much one read may return. One entry is always returned if there is one.
#[derive(Debug, Clone, Copy)]
pub struct ReadLimits {
    pub entries_max: usize,
    pub bytes_max: usize,
}

impl ReadLimits {
    #[must_use]
    pub const fn new(entries_max: usize, bytes_max: usize) -> Self {
        Self {
            entries_max,
            bytes_max,
        }
    }

    /// True when after `entries` entries of `bytes` bytes one more of `next_bytes` may be returned.
    #[must_use]
    pub const fn admit(&self, entries: usize, bytes: usize, next_bytes: usize) -> bool {
        entries == 0
            || (entries < self.entries_max && bytes.saturating_add(next_bytes) <= self.bytes_max)
    }
}

/// What a ledger holds, once nothing more can come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LedgerEnd {
    /// Number of durable entries; the last one has the id `entries - 1`.
    pub entries: u64,
    /// The sum of their lengths.
    pub bytes: u64,
}

impl LedgerEnd {
    /// The last durable entry; none when the ledger is empty.
    #[must_use]
    pub fn last(&self) -> Option<EntryId> {
        (self.entries > 0).then(|| EntryId(self.entries as i64 - 1))
    }
}

/// How much room there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub level: SpaceLevel,
    pub used_bytes: u64,
    pub free_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpaceLevel {
    Ample,
    /// Producers should be slowed; everything still works.
    Low,
    /// Appends of entries fail with `Full`; state records and reads go on.
    Full,
}

/// Ledgers: append-only runs of entries with one writer each.
///
/// Cancellation: dropping a returned future never leaves a ledger half made; whether the operation
/// took effect is then unknown, and repeating it is safe.
pub trait LedgerStore: Send + Sync + 'static {
    /// A new ledger, open for append by this writer alone. Ids rise and are never reused, not
    /// after a crash either. An empty ledger may be forgotten in a crash; its id may not come back.
    fn create(
        &self,
        observer: Arc<dyn AppendObserver>,
    ) -> BoxFuture<'_, Result<Arc<dyn LedgerWriter>, StoreError>>;

    /// Durable entries from `first` on, in order and without gaps; empty = nothing durable there
    /// (yet). A ledger that does not exist (deleted, or forgotten while empty) is `NoLedger`.
    fn read(
        &self,
        ledger: LedgerId,
        first: EntryId,
        limits: ReadLimits,
    ) -> BoxFuture<'_, Result<Vec<Entry>, StoreError>>;

    /// Fences any writer and says what is durable; afterwards that never changes. Entries in flight
    /// are either in the answer or never appear. Idempotent. A ledger that was created and never
    /// written durably may be unknown: it is answered as an empty one. A deleted one may be too.
    fn recover(&self, ledger: LedgerId) -> BoxFuture<'_, Result<LedgerEnd, StoreError>>;

    /// Gone when this resolves, after a crash too. Deleting what does not exist succeeds.
    fn delete(&self, ledger: LedgerId) -> BoxFuture<'_, Result<(), StoreError>>;

    fn space(&self) -> Space;

    /// Whether there is no room for entries. Cheaper, and what it says may be some milliseconds old.
    fn is_full(&self) -> bool {
        self.space().level == SpaceLevel::Full
    }
}

/// The single writer of one ledger.
pub trait LedgerWriter: Send + Sync + 'static {
    fn id(&self) -> LedgerId;

    /// Queues entries with consecutive ids and returns the first id. Never blocks, never waits; the
    /// order of calls is the order in the ledger. Durable when the observer is told. The slice is
    /// one *run*: one log record, and after a crash it is there whole or not at all.
    fn append(&self, entries: &[Bytes]) -> Result<EntryId, AppendError>;

    /// No more appends; resolves when all that was appended is durable. Idempotent.
    fn seal(&self) -> BoxFuture<'_, Result<LedgerEnd, StoreError>>;
}

/// Told what became of appends. Called in order, from the store's completion thread: must not block
/// and must not call back into the writer's `append`.
pub trait AppendObserver: Send + Sync + 'static {
    /// All entries up to `through` are durable.
    fn durable(&self, ledger: LedgerId, through: EntryId);

    /// Nothing after the last `durable` will be confirmed. Told once at most, and last.
    fn failed(&self, ledger: LedgerId, error: Arc<StoreError>);
}

/// A place in the state log. Tickets rise in the order of the appends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Ticket(pub u64);

/// Small ordered records in the same log as the entries (same fsync): what metadata and cursors are
/// made of. Records are replayed into the `StateMachine` at open; at a checkpoint the machine's
/// snapshot replaces them.
///
/// The log is one order: a record or entry is durable only if all records and entries appended
/// before it are. A crash keeps a prefix.
pub trait StateLog: Send + Sync + 'static {
    /// Queues a record; ordered with entry appends as called. Never blocks. Callers append while
    /// they hold their own locks, so the store must not call into the `StateMachine` from here.
    fn append(&self, record: Bytes) -> Result<Ticket, StoreError>;

    /// Resolves when the record is on disk; at once when it already is. `Ticket(0)` always is.
    fn durable(&self, ticket: Ticket) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// What the state log's records mean.
///
/// A snapshot begun when the log ended at S contains the effect of every record before S, and
/// perhaps of later ones: replay starts at S, and applying a record twice is harmless, in order.
/// Therefore the store publishes a snapshot only when every record appended before `snapshot`
/// *returned* is durable: otherwise a crash could keep the effect of a late record and lose an
/// earlier one.
pub trait StateMachine: Send + Sync + 'static {
    /// Replays a record at open. Not called once appends have begun.
    fn apply(&self, record: &[u8]) -> Result<(), StoreError>;

    /// Hands out the full state as records which `apply` understands. Runs beside appends; takes its
    /// locks briefly and never while it calls `out`, which may be slow.
    fn snapshot(&self, out: &mut dyn FnMut(&[u8]));
}
