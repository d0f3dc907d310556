//! Tells what has become durable: first the index, then the observers, then who waits for a number.
//!
//! A thread of its own, so that the writer begins the next write at once. When nothing waits to be
//! written the writer completes the commit itself, which saves a wake-up. What must hold: events are
//! handled one at a time and in order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::index::{LedgerIndex, Notices};
use crate::StoreError;
use crate::wal::log_segment::LogSegment;
use crate::wal::queue::RecordPlace;
use crate::wal::writer::Committed;

/// Commits the writer may be ahead of the observers.
const EVENTS_MAX: usize = 64;
/// A commit with more records is left to the completion thread.
const INLINE_RECORDS_MAX: usize = 64;
const SPARES_MAX: usize = 4;

pub(super) enum Event {
    Committed(Committed),
    /// All commits of the segment have been handled.
    Full(Arc<LogSegment>),
    Failed(StoreError),
}

pub(super) struct Completion {
    queue: Mutex<Queue>,
    ready: Condvar,
    room: Condvar,
    apply: Mutex<Apply>,
    index: Arc<LedgerIndex>,
    pub(super) durability: Durability,
    full: Box<dyn Fn(Arc<LogSegment>) + Send + Sync>,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    spares: Vec<Vec<RecordPlace>>,
    closed: bool,
}

#[derive(Default)]
struct Apply {
    notices: Notices,
}

impl Completion {
    /// `next_record`: records before it are durable. `full` is told of finished segments.
    pub(super) fn new(
        index: Arc<LedgerIndex>,
        next_record: u64,
        full: impl Fn(Arc<LogSegment>) + Send + Sync + 'static,
    ) -> Self {
        Self {
            queue: Mutex::default(),
            ready: Condvar::new(),
            room: Condvar::new(),
            apply: Mutex::default(),
            index,
            durability: Durability::new(next_record),
            full: Box::new(full),
        }
    }

    /// From the writer. `more`: it has the next batch already.
    pub(super) fn committed(&self, committed: Committed, more: bool) {
        if !more
            && committed.records.len() <= INLINE_RECORDS_MAX
            && let Some(mut apply) = self.apply.try_lock()
            && self.queue.lock().events.is_empty()
        {
            self.handle(&mut apply, Event::Committed(committed));
            return;
        }
        self.push(Event::Committed(committed));
    }

    pub(super) fn push(&self, event: Event) {
        let mut queue = self.queue.lock();
        while queue.events.len() >= EVENTS_MAX {
            self.room.wait(&mut queue);
        }
        let wake = queue.events.is_empty();
        queue.events.push_back(event);
        drop(queue);
        if wake {
            self.ready.notify_one();
        }
    }

    pub(super) fn spare_records(&self) -> Vec<RecordPlace> {
        self.queue.lock().spares.pop().unwrap_or_default()
    }

    /// The thread ends when all events have been handled.
    pub(super) fn close(&self) {
        self.queue.lock().closed = true;
        self.ready.notify_one();
    }

    /// The body of the completion thread.
    pub(super) fn run(&self) {
        loop {
            let mut queue = self.queue.lock();
            while queue.events.is_empty() {
                if queue.closed {
                    return;
                }
                self.ready.wait(&mut queue);
            }
            drop(queue);
            // This lock before the queue's: an event that was taken is handled before a later one.
            let mut apply = self.apply.lock();
            while let Some(event) = self.pop() {
                self.handle(&mut apply, event);
            }
        }
    }

    fn pop(&self) -> Option<Event> {
        let mut queue = self.queue.lock();
        let event = queue.events.pop_front();
        if queue.events.len() == EVENTS_MAX - 1 {
            self.room.notify_one();
        }
        event
    }

    fn handle(&self, apply: &mut Apply, event: Event) {
        match event {
            // Another thread found that it is over while this was written. Who waited for it has been
            // told that it failed; that it is on the disk nevertheless must not be told any more.
            Event::Committed(_) if self.durability.failed().is_some() => {}
            Event::Committed(mut committed) => {
                let Committed {
                    segment,
                    offset,
                    records,
                    next_record,
                } = &committed;
                self.index
                    .committed(segment, *offset, records, &mut apply.notices);
                for (writer, through) in apply.notices.drain(..) {
                    writer.observer.durable(writer.tail.ledger, through);
                }
                self.durability.advance(*next_record);
                committed.records.clear();
                let mut queue = self.queue.lock();
                if queue.spares.len() < SPARES_MAX {
                    queue.spares.push(committed.records);
                }
            }
            Event::Full(segment) => (self.full)(segment),
            // Several threads may find that it is over; it is told once.
            Event::Failed(_) if self.durability.failed().is_some() => {}
            Event::Failed(error) => {
                self.durability.fail(error.clone());
                let error = Arc::new(error);
                for writer in self.index.waiting_writers() {
                    writer.observer.failed(writer.tail.ledger, error.clone());
                }
            }
        }
    }
}

/// Which records are durable, and who waits for one.
pub(super) struct Durability {
    inner: Mutex<DurabilityInner>,
    changed: Condvar,
}

struct DurabilityInner {
    next_record: u64,
    failed: Option<StoreError>,
    waiters: BTreeMap<u64, Vec<oneshot::Sender<Result<(), StoreError>>>>,
    threads_waiting: usize,
}

impl Durability {
    fn new(next_record: u64) -> Self {
        let inner = DurabilityInner {
            next_record,
            failed: None,
            waiters: BTreeMap::new(),
            threads_waiting: 0,
        };
        Self {
            inner: Mutex::new(inner),
            changed: Condvar::new(),
        }
    }

    fn advance(&self, next_record: u64) {
        let mut inner = self.inner.lock();
        inner.next_record = next_record;
        if inner.threads_waiting > 0 {
            self.changed.notify_all();
        }
        if inner.waiters.is_empty() {
            return;
        }
        let later = inner.waiters.split_off(&(next_record + 1));
        let done = std::mem::replace(&mut inner.waiters, later);
        drop(inner);
        for waiter in done.into_values().flatten() {
            // Whoever stopped waiting does not want to know.
            let _ = waiter.send(Ok(()));
        }
    }

    fn fail(&self, error: StoreError) {
        let mut inner = self.inner.lock();
        inner.failed = Some(error.clone());
        self.changed.notify_all();
        let waiters = std::mem::take(&mut inner.waiters);
        drop(inner);
        for waiter in waiters.into_values().flatten() {
            let _ = waiter.send(Err(error.clone()));
        }
    }

    pub(super) fn failed(&self) -> Option<StoreError> {
        self.inner.lock().failed.clone()
    }

    pub(super) fn is_durable(&self, next_record: u64) -> bool {
        self.inner.lock().next_record >= next_record
    }

    /// Resolves when all records before `next_record` are durable.
    pub(super) async fn wait(&self, next_record: u64) -> Result<(), StoreError> {
        let receiver = {
            let mut inner = self.inner.lock();
            if inner.next_record >= next_record {
                return Ok(());
            }
            if let Some(error) = &inner.failed {
                return Err(error.clone());
            }
            let (sender, receiver) = oneshot::channel();
            inner.waiters.entry(next_record).or_default().push(sender);
            receiver
        };
        let closed = || StoreError::stopped("it was closed");
        receiver.await.unwrap_or_else(|_| Err(closed()))
    }

    /// The same for a thread.
    pub(super) fn wait_blocking(&self, next_record: u64) -> Result<(), StoreError> {
        let mut inner = self.inner.lock();
        inner.threads_waiting += 1;
        while inner.next_record < next_record && inner.failed.is_none() {
            self.changed.wait(&mut inner);
        }
        inner.threads_waiting -= 1;
        match &inner.failed {
            Some(error) if inner.next_record < next_record => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// The store is closed: whoever still waits will wait in vain.
    pub(super) fn close(&self) {
        let error = StoreError::stopped("it was closed");
        let failed = self.inner.lock().failed.is_some();
        if !failed {
            self.fail(error);
        }
    }
}
