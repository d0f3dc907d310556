//! A ledger store in memory, for tests and for ephemeral use.
//!
//! It keeps one order of entries and records as the real log does: what is appended waits in a
//! queue, and becomes durable in that order, either on a thread of its own (`start`) or when the
//! test says so (`manual` and `step`). `crash` forgets what was not durable, except for a prefix of
//! the queue that the test may let survive, as a disk may.

use super::{
    AppendObserver, BoxFuture, Entry, LedgerEnd, LedgerStore, LedgerWriter, ReadLimits, Space,
    SpaceLevel, StateLog, StateMachine, Ticket,
};
use crate::error::{AppendError, StoreError};
use bytes::Bytes;
use geminga_model::{EntryId, LedgerId, Position};
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::watch;

/// What is on the imaginary disk.
#[derive(Debug, Clone, Default)]
pub struct MemoryImage {
    next_ledger: i64,
    ledgers: HashMap<LedgerId, Vec<Bytes>>,
    snapshot: Vec<Bytes>,
    records: Vec<(u64, Bytes)>,
    sequence: u64,
}

pub struct MemoryStore {
    core: Arc<Core>,
}

struct Core {
    state: Mutex<State>,
    work: Condvar,
    /// The sequence up to which all is durable.
    durable: watch::Sender<u64>,
    machine: Arc<dyn StateMachine>,
}

#[derive(Default)]
struct State {
    image: MemoryImage,
    queue: VecDeque<(u64, Op)>,
    open: HashMap<LedgerId, Open>,
    level: Option<SpaceLevel>,
    /// The disk stands still: nothing becomes durable.
    held: bool,
    /// Appends that may wait; then entries are refused.
    queue_max: Option<usize>,
    stopped: Option<StoreError>,
    closing: bool,
    /// Starts at, may be published at, records.
    checkpoint: Option<(u64, u64, Vec<Bytes>)>,
    /// Records up to here may be gone.
    replay_from: u64,
    appended: u64,
}

/// A ledger that has a writer.
struct Open {
    observer: Arc<dyn AppendObserver>,
    next: i64,
    sealed: bool,
    /// Sequence of the last append.
    last: u64,
}

enum Op {
    Entries(LedgerId, Vec<Bytes>),
    Record(Bytes),
    Delete(LedgerId),
}

/// What observers are to be told once the lock is released.
enum Told {
    Durable(Arc<dyn AppendObserver>, LedgerId, EntryId),
    Failed(Arc<dyn AppendObserver>, LedgerId, Arc<StoreError>),
}

impl Told {
    fn tell(self) {
        match self {
            Self::Durable(observer, ledger, through) => observer.durable(ledger, through),
            Self::Failed(observer, ledger, error) => observer.failed(ledger, error),
        }
    }
}

impl MemoryStore {
    /// Replays the image into the machine and completes appends on a thread of its own.
    pub fn start(
        image: MemoryImage,
        machine: Arc<dyn StateMachine>,
    ) -> Result<Arc<Self>, StoreError> {
        let store = Self::manual(image, machine)?;
        let core = store.core.clone();
        std::thread::Builder::new()
            .name("memory-store".into())
            .spawn(move || core.run())
            .map_err(|source| StoreError::io("the store's thread cannot start", source))?;
        Ok(store)
    }

    /// As `start`, but nothing becomes durable except by `step`.
    pub fn manual(
        image: MemoryImage,
        machine: Arc<dyn StateMachine>,
    ) -> Result<Arc<Self>, StoreError> {
        for record in &image.snapshot {
            machine.apply(record)?;
        }
        for (_, record) in &image.records {
            machine.apply(record)?;
        }
        let appended = image.sequence;
        let core = Arc::new(Core {
            state: Mutex::new(State {
                image,
                appended,
                ..State::default()
            }),
            work: Condvar::new(),
            durable: watch::Sender::new(appended),
            machine,
        });
        Ok(Arc::new(Self { core }))
    }

    /// Makes up to `count` queued appends durable and tells the observers. Returns how many.
    pub fn step(&self, count: usize) -> usize {
        self.core.step(count)
    }

    /// Begins a checkpoint; it is published once all that its snapshot may contain is durable.
    /// The last `overlap` records before it are replayed nevertheless, which must be harmless.
    pub fn checkpoint(&self, overlap: u64) {
        let start = {
            let mut state = self.core.state.lock();
            let start = state.appended.saturating_sub(overlap);
            state.replay_from = start.max(state.replay_from);
            state.replay_from
        };
        let mut records = Vec::new();
        self.core
            .machine
            .snapshot(&mut |record| records.push(Bytes::copy_from_slice(record)));
        let mut state = self.core.state.lock();
        let end = state.appended;
        state.checkpoint = Some((start, end, records));
        state.publish_checkpoint();
    }

    /// Stops the store as a failed sync does: nothing more becomes durable, observers are told.
    pub fn fail(&self, reason: &str) {
        let error = StoreError::stopped(reason);
        let told = self.core.state.lock().stop(&error);
        self.core.durable.send_modify(|_| {});
        told.into_iter().for_each(Told::tell);
    }

    /// Lets the disk stand still, or go on. At most `queue_max` appends may wait meanwhile.
    pub fn hold(&self, held: bool, queue_max: Option<usize>) {
        let mut state = self.core.state.lock();
        (state.held, state.queue_max) = (held, queue_max);
        self.core.work.notify_all();
    }

    pub fn set_space(&self, level: SpaceLevel) {
        self.core.state.lock().level = Some(level);
    }

    /// Power loss: the store is dead without a word, and what was durable remains, together with
    /// the first `keep` of the queued appends.
    #[must_use]
    pub fn crash(&self, keep: usize) -> MemoryImage {
        let mut state = self.core.state.lock();
        for _ in 0..keep {
            if state.complete_one().is_none() {
                break;
            }
        }
        let mut image = std::mem::take(&mut state.image);
        image.ledgers.retain(|_, entries| !entries.is_empty());
        state.open.clear();
        let _ = state.stop(&StoreError::stopped("crashed"));
        drop(state);
        self.core.durable.send_modify(|_| {});
        image
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.core.state.lock().closing = true;
        self.core.work.notify_all();
    }
}

impl Core {
    fn run(&self) {
        loop {
            {
                let mut state = self.state.lock();
                while (state.queue.is_empty() || state.held)
                    && !state.closing
                    && state.stopped.is_none()
                {
                    self.work.wait(&mut state);
                }
                if state.stopped.is_some() || (state.closing && state.queue.is_empty()) {
                    return;
                }
            }
            self.step(usize::MAX);
        }
    }

    fn step(&self, count: usize) -> usize {
        let mut told: Vec<(LedgerId, EntryId, Arc<dyn AppendObserver>)> = Vec::new();
        let mut done = 0;
        let sequence;
        {
            let mut state = self.state.lock();
            while done < count {
                let Some((ledger, through)) = state.complete_one() else {
                    break;
                };
                done += 1;
                let Some(open) = ledger.and_then(|id| state.open.get(&id)) else {
                    continue;
                };
                let observer = open.observer.clone();
                let id = ledger.expect("an open ledger was found by its id");
                match told.iter_mut().find(|(known, ..)| *known == id) {
                    Some(known) => known.1 = through,
                    None => told.push((id, through, observer)),
                }
            }
            sequence = state.image.sequence;
            state.publish_checkpoint();
        }
        for (ledger, through, observer) in told {
            Told::Durable(observer, ledger, through).tell();
        }
        self.durable
            .send_modify(|durable| *durable = (*durable).max(sequence));
        done
    }

    async fn wait(&self, sequence: u64) -> Result<(), StoreError> {
        let mut durable = self.durable.subscribe();
        loop {
            if *durable.borrow_and_update() >= sequence {
                return Ok(());
            }
            if let Some(error) = &self.state.lock().stopped {
                return Err(error.clone());
            }
            if durable.changed().await.is_err() {
                return Err(StoreError::stopped("closed"));
            }
        }
    }

    fn push(&self, state: &mut State, op: Op) -> u64 {
        state.appended += 1;
        let sequence = state.appended;
        state.queue.push_back((sequence, op));
        self.work.notify_one();
        sequence
    }
}

impl State {
    /// Moves one queued append to the image. For entries: the ledger and its last durable entry.
    fn complete_one(&mut self) -> Option<(Option<LedgerId>, EntryId)> {
        let (sequence, op) = self.queue.pop_front()?;
        self.image.sequence = sequence;
        let mut ended = (None, EntryId(-1));
        match op {
            Op::Entries(ledger, data) => {
                // A ledger deleted in between takes its entries with it.
                if let Some(entries) = self.image.ledgers.get_mut(&ledger) {
                    entries.extend(data);
                    ended = (Some(ledger), EntryId(entries.len() as i64 - 1));
                }
            }
            Op::Record(record) => self.image.records.push((sequence, record)),
            Op::Delete(ledger) => {
                self.image.ledgers.remove(&ledger);
                self.open.remove(&ledger);
            }
        }
        Some(ended)
    }

    fn publish_checkpoint(&mut self) {
        let durable = self.image.sequence;
        if let Some((start, _, records)) = self.checkpoint.take_if(|(_, end, _)| *end <= durable) {
            self.image.snapshot = records;
            self.image.records.retain(|(sequence, _)| *sequence > start);
        }
    }

    fn stop(&mut self, error: &StoreError) -> Vec<Told> {
        self.stopped.get_or_insert_with(|| error.clone());
        self.queue.clear();
        let error = Arc::new(error.clone());
        self.open
            .drain()
            .filter(|(_, open)| !open.sealed)
            .map(|(ledger, open)| Told::Failed(open.observer, ledger, error.clone()))
            .collect()
    }

    fn check(&self) -> Result<(), StoreError> {
        self.stopped.clone().map_or(Ok(()), Err)
    }

    fn end(&self, ledger: LedgerId) -> LedgerEnd {
        self.image
            .ledgers
            .get(&ledger)
            .map_or_else(LedgerEnd::default, |entries| LedgerEnd {
                entries: entries.len() as u64,
                bytes: entries.iter().map(|entry| entry.len() as u64).sum(),
            })
    }
}

impl LedgerStore for MemoryStore {
    fn create(
        &self,
        observer: Arc<dyn AppendObserver>,
    ) -> BoxFuture<'_, Result<Arc<dyn LedgerWriter>, StoreError>> {
        Box::pin(async move {
            let mut state = self.core.state.lock();
            state.check()?;
            let id = LedgerId(state.image.next_ledger);
            state.image.next_ledger += 1;
            state.image.ledgers.insert(id, Vec::new());
            let open = Open {
                observer,
                next: 0,
                sealed: false,
                last: 0,
            };
            state.open.insert(id, open);
            let core = self.core.clone();
            Ok(Arc::new(MemoryWriter { core, id }) as Arc<dyn LedgerWriter>)
        })
    }

    fn read(
        &self,
        ledger: LedgerId,
        first: EntryId,
        limits: ReadLimits,
    ) -> BoxFuture<'_, Result<Vec<Entry>, StoreError>> {
        Box::pin(async move {
            let state = self.core.state.lock();
            state.check()?;
            let entries = state
                .image
                .ledgers
                .get(&ledger)
                .ok_or(StoreError::NoLedger { ledger })?;
            let (mut found, mut bytes) = (Vec::new(), 0);
            for (id, data) in entries.iter().enumerate().skip(first.0.max(0) as usize) {
                if !limits.admit(found.len(), bytes, data.len()) {
                    break;
                }
                bytes += data.len();
                found.push(Entry {
                    position: Position::new(ledger.0, id as i64),
                    data: data.clone(),
                });
            }
            Ok(found)
        })
    }

    fn recover(&self, ledger: LedgerId) -> BoxFuture<'_, Result<LedgerEnd, StoreError>> {
        Box::pin(async move {
            let (end, told) = {
                let mut state = self.core.state.lock();
                state.check()?;
                // What is in flight never appears; its observer hears that.
                state
                    .queue
                    .retain(|(_, op)| !matches!(op, Op::Entries(id, _) if *id == ledger));
                let error = Arc::new(StoreError::Fenced { ledger });
                let told = state
                    .open
                    .remove(&ledger)
                    .filter(|open| !open.sealed)
                    .map(|open| Told::Failed(open.observer, ledger, error));
                (state.end(ledger), told)
            };
            told.into_iter().for_each(Told::tell);
            Ok(end)
        })
    }

    fn delete(&self, ledger: LedgerId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let sequence = {
                let mut state = self.core.state.lock();
                state.check()?;
                if !state.image.ledgers.contains_key(&ledger) {
                    return Ok(());
                }
                self.core.push(&mut state, Op::Delete(ledger))
            };
            self.core.wait(sequence).await
        })
    }

    fn space(&self) -> Space {
        Space {
            level: self.core.state.lock().level.unwrap_or(SpaceLevel::Ample),
            used_bytes: 0,
            free_bytes: u64::MAX,
        }
    }
}

struct MemoryWriter {
    core: Arc<Core>,
    id: LedgerId,
}

impl LedgerWriter for MemoryWriter {
    fn id(&self) -> LedgerId {
        self.id
    }

    fn append(&self, entries: &[Bytes]) -> Result<EntryId, AppendError> {
        let ledger = self.id;
        if entries.is_empty() {
            return Err(AppendError::BadRun {
                entries: 0,
                bytes: 0,
            });
        }
        let mut state = self.core.state.lock();
        if let Some(error) = &state.stopped {
            let reason = error.to_string().into();
            return Err(AppendError::Stopped { reason });
        }
        if state.level == Some(SpaceLevel::Full) {
            return Err(AppendError::Full);
        }
        if state.queue_max.is_some_and(|max| state.queue.len() >= max) {
            return Err(AppendError::Busy);
        }
        if state.open.get(&ledger).is_none_or(|open| open.sealed) {
            return Err(AppendError::Fenced { ledger });
        }
        let sequence = self
            .core
            .push(&mut state, Op::Entries(ledger, entries.to_vec()));
        let Some(open) = state.open.get_mut(&ledger) else {
            return Err(AppendError::Fenced { ledger });
        };
        let first = EntryId(open.next);
        open.next += entries.len() as i64;
        open.last = sequence;
        Ok(first)
    }

    fn seal(&self) -> BoxFuture<'_, Result<LedgerEnd, StoreError>> {
        Box::pin(async move {
            let ledger = self.id;
            let last = {
                let mut state = self.core.state.lock();
                state.check()?;
                let open = state.open.get_mut(&ledger);
                let open = open.ok_or(StoreError::Fenced { ledger })?;
                open.sealed = true;
                open.last
            };
            self.core.wait(last).await?;
            Ok(self.core.state.lock().end(ledger))
        })
    }
}

impl StateLog for MemoryStore {
    fn append(&self, record: Bytes) -> Result<Ticket, StoreError> {
        let mut state = self.core.state.lock();
        state.check()?;
        Ok(Ticket(self.core.push(&mut state, Op::Record(record))))
    }

    fn durable(&self, ticket: Ticket) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.core.wait(ticket.0))
    }
}
