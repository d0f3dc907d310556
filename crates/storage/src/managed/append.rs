//! The append side of a topic: positions, the durable watermark, the observer, and the tail.

use super::ManagedLedger;
use super::cache::{Evict, Kept, ReadBuffer, Tail};
use crate::error::{AppendError, StoreError};
use crate::ledger::{AppendObserver, LedgerWriter};
use bytes::Bytes;
use geminga_model::{EntryId, LedgerId, Position};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// Told what became of a topic's appends. Called in order, from the store's completion thread, with
/// no lock of the topic held; must not block.
pub trait TopicObserver: Send + Sync + 'static {
    /// All entries up to `through` are durable.
    fn durable(&self, through: Position);

    /// Appends that were not confirmed may or may not be stored, and will never be confirmed. Told
    /// once for each time that `prepare` succeeded. `prepare` opens the topic for appends again.
    fn failed(&self, error: Arc<StoreError>);
}

/// Everything that an append changes.
pub(super) struct Appender {
    pub(super) writer: Option<Arc<dyn LedgerWriter>>,
    /// The offset of the first entry of the writer's ledger.
    pub(super) base: u64,
    /// The offset of the next append.
    pub(super) next: u64,
    /// Bytes in the writer's ledger.
    pub(super) bytes: u64,
    /// Bytes in all ledgers that are not closed in the list.
    pub(super) bytes_unclosed: u64,
    /// Rises when the writers are given up; callbacks of an older one mean nothing.
    pub(super) generation: u64,
    pub(super) is_rolling: bool,
    /// Why there will never be a writer again.
    pub(super) closed: Option<ClosedFor>,
    /// Durable stretches of a new ledger while the one before it is not durable to its end.
    pub(super) ahead: Vec<Stretch>,
    pub(super) observer: Option<Arc<dyn TopicObserver>>,
    pub(super) tail: Tail,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClosedFor {
    Terminated,
    Deleted,
}

/// Durable entries of one ledger.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch {
    ledger: LedgerId,
    base: u64,
    end: u64,
}

impl Appender {
    pub(super) fn new(next: u64, closed: Option<ClosedFor>) -> Self {
        Self {
            writer: None,
            base: next,
            next,
            bytes: 0,
            bytes_unclosed: 0,
            generation: 0,
            is_rolling: false,
            closed,
            ahead: Vec::new(),
            observer: None,
            tail: Tail::default(),
        }
    }

    pub(super) fn is_deleted(&self) -> bool {
        self.closed == Some(ClosedFor::Deleted)
    }

    fn refusal(&self) -> AppendError {
        match self.closed {
            Some(ClosedFor::Terminated) => AppendError::Terminated,
            Some(ClosedFor::Deleted) => AppendError::Deleted,
            None => AppendError::NotReady,
        }
    }

    /// Gives the writers up: their callbacks mean nothing from now on.
    pub(super) fn give_up(&mut self, durable: u64) -> usize {
        self.generation += 1;
        self.writer = None;
        self.is_rolling = false;
        self.ahead.clear();
        self.next = durable;
        self.tail.clear()
    }

    pub(super) fn begin(&mut self, writer: Arc<dyn LedgerWriter>, base: u64) {
        self.writer = Some(writer);
        self.base = base;
        self.next = base;
        self.bytes = 0;
        self.is_rolling = false;
    }
}

impl ManagedLedger {
    /// Who hears of this topic's appends. Set it before `prepare`.
    pub fn set_observer(&self, observer: Arc<dyn TopicObserver>) {
        self.appender.lock().observer = Some(observer);
    }

    /// True when `append` may be called; else `prepare` first.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.appender.lock().writer.is_some()
    }

    /// Queues entries and returns the position of the first; the others follow it in the same
    /// ledger. Never blocks. Durable when the observer is told. Fails with `NotReady` until
    /// `prepare` has opened a ledger, and after a failure.
    pub fn append(&self, entries: &[Bytes]) -> Result<Position, AppendError> {
        self.append_from(entries, None)
    }

    /// As [`append`](Self::append), of entries that were read into a buffer: the cache need not copy them.
    pub fn append_from(
        &self,
        entries: &[Bytes],
        buffer: Option<&ReadBuffer>,
    ) -> Result<Position, AppendError> {
        let config = &self.shared.config;
        let bytes: usize = entries.iter().map(Bytes::len).sum();
        let (kept, charge) = Kept::new(entries, config.cache_copy_below_bytes, buffer);
        let budget = &self.shared.budget;
        let is_over = budget.take(charge);
        let (is_new, position, rolls) = {
            let mut guard = self.appender.lock();
            let appender = &mut *guard;
            let result = match &appender.writer {
                Some(writer) => writer.append(entries).map(|first| (writer.id(), first)),
                None => Err(appender.refusal()),
            };
            let (ledger, first) = match result {
                Ok(place) => place,
                Err(error) => {
                    budget.give_back(kept.let_go());
                    return Err(error);
                }
            };
            let position = Position {
                ledger,
                entry: first,
            };
            let offset = appender.base + first.0 as u64;
            debug_assert_eq!(offset, appender.next, "ids are consecutive");
            appender.next = offset + entries.len() as u64;
            appender.bytes += bytes as u64;
            appender.bytes_unclosed += bytes as u64;
            let is_new = appender.tail.push(offset, position, kept);
            let is_full = appender.bytes >= config.ledger_bytes_max
                || appender.next - appender.base >= config.ledger_entries_max;
            let rolls = is_full && !std::mem::replace(&mut appender.is_rolling, is_full);
            (is_new, position, rolls)
        };
        if is_new {
            budget.enlist(self.this.clone());
        }
        if is_over {
            budget.make_room();
        }
        if rolls && self.shared.rolls.try_send(self.this.clone()).is_err() {
            // So many roll just now that this one waits for its next append.
            self.appender.lock().is_rolling = false;
        }
        Ok(position)
    }
}

impl Evict for ManagedLedger {
    fn evict(&self, bytes: usize) -> Option<bool> {
        let mut appender = self.appender.try_lock()?;
        let bytes = appender.tail.drop_oldest(bytes);
        let holds = !appender.tail.is_empty();
        appender.tail.is_enlisted = holds;
        drop(appender);
        let budget = &self.shared.budget;
        budget.give_back(bytes);
        budget
            .evicted_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
        Some(holds)
    }
}

/// Carries one ledger's callbacks to its topic, if that is still loaded.
pub(super) struct LedgerObserver {
    topic: OnceLock<Weak<ManagedLedger>>,
    generation: u64,
    /// Known before the first append.
    base: AtomicU64,
}

impl LedgerObserver {
    pub(super) fn new(topic: Weak<ManagedLedger>, generation: u64, base: u64) -> Self {
        Self {
            topic: topic.into(),
            generation,
            base: AtomicU64::new(base),
        }
    }

    /// For the first ledger of a topic that is not there yet.
    pub(super) fn unbound() -> Self {
        Self {
            topic: OnceLock::new(),
            generation: 0,
            base: AtomicU64::new(0),
        }
    }

    /// Before the first append.
    pub(super) fn bind(&self, topic: Weak<ManagedLedger>) {
        self.topic.get_or_init(|| topic);
    }

    fn topic(&self) -> Option<Arc<ManagedLedger>> {
        self.topic.get()?.upgrade()
    }

    pub(super) fn set_base(&self, base: u64) {
        self.base.store(base, Ordering::Release);
    }
}

impl AppendObserver for LedgerObserver {
    fn durable(&self, ledger: LedgerId, through: EntryId) {
        let Some(topic) = self.topic() else {
            return;
        };
        let base = self.base.load(Ordering::Acquire);
        let mut top = Stretch {
            ledger,
            base,
            end: base + through.0 as u64 + 1,
        };
        let observer = {
            let mut appender = topic.appender.lock();
            if appender.generation != self.generation {
                return;
            }
            let before = topic.durable_offset();
            if base > before {
                appender.ahead.push(top);
                return;
            }
            while let Some(at) = appender.ahead.iter().position(|next| next.base <= top.end) {
                let next = appender.ahead.swap_remove(at);
                if next.end > top.end {
                    top = next;
                }
            }
            if top.end <= before {
                return;
            }
            topic.durable.store(top.end, Ordering::Release);
            appender.observer.clone()
        };
        if let Some(observer) = observer {
            observer.durable(Position {
                ledger: top.ledger,
                entry: EntryId((top.end - top.base) as i64 - 1),
            });
        }
    }

    fn failed(&self, _: LedgerId, error: Arc<StoreError>) {
        if let Some(topic) = self.topic() {
            topic.fail(self.generation, error);
        }
    }
}

impl ManagedLedger {
    /// Gives the writers of this generation up and says so, once.
    pub(super) fn fail(&self, generation: u64, error: Arc<StoreError>) {
        let (observer, given_back) = {
            let mut appender = self.appender.lock();
            if appender.generation != generation {
                return;
            }
            let given_back = appender.give_up(self.durable_offset());
            (appender.observer.clone(), given_back)
        };
        self.shared.budget.give_back(given_back);
        tracing::warn!(topic = %self.name, %error, "appends failed");
        if let Some(observer) = observer {
            observer.failed(error);
        }
    }
}
