//! All topics of a store: opening, making, deleting, listing; and what serves them all together.
//!
//! Two tasks for the whole process: one rolls full ledgers, one writes acks some time after the
//! first of them. Nothing runs for an idle topic.

use super::ManagedLedger;
use super::append::{Appender, ClosedFor, LedgerObserver};
use super::cache::TailBudget;
use super::change::Stored;
use super::cursor_table::{Cell, Properties};
use super::ledger_list::{Ledger, LedgerList};
use crate::codec::Reader;
use crate::config::ManagedConfig;
use crate::error::{ManagedError, StoreError};
use crate::ledger::{LedgerStore, LedgerWriter, StateLog, Ticket};
use crate::metadata::{Expected, MetadataStore, Op};
use crate::state::State;
use geminga_model::LedgerId;
use geminga_stdx::tasks::OnError;
use geminga_stdx::{Clock, Tasks};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// Where topics stand in the metadata.
pub(super) const TOPICS: &str = "/managed-ledgers";
/// Ledgers that nobody needs and that may not all be deleted yet.
pub(super) const DELETIONS: &str = "/ledger-deletions";
/// Topics being opened at the same time. Names share a gate by hash.
const GATES: usize = 1024;
/// Topics waiting to be rolled.
const ROLLS_MAX: usize = 1024;

pub(super) fn key(name: &str) -> String {
    [TOPICS, "/", name].concat()
}

/// What managed ledgers stand on.
pub struct Parts {
    pub store: Arc<dyn LedgerStore>,
    /// The log of the same store.
    pub log: Arc<dyn StateLog>,
    /// The machine that the store was opened with.
    pub state: Arc<State>,
    pub metadata: Arc<dyn MetadataStore>,
}

/// How to open a topic.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Make it when it does not exist.
    pub create: bool,
    /// Properties of a new one.
    pub properties: Properties,
    /// A new one is open for appends: as with `prepare`, with one change of the metadata in all.
    pub prepare: bool,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    pub topics_loaded: usize,
    pub cache_bytes: usize,
    pub cache_hits: u64,
    pub cache_misses: u64,
    /// Entries that came from the store, not from the cache.
    pub read_entries: u64,
    pub cache_evicted_bytes: u64,
}

/// Opens topics. Cheap to clone.
#[derive(Clone)]
pub struct ManagedLedgers {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) store: Arc<dyn LedgerStore>,
    pub(crate) log: Arc<dyn StateLog>,
    pub(crate) state: Arc<State>,
    pub(crate) metadata: Arc<dyn MetadataStore>,
    pub(crate) config: ManagedConfig,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    pub(crate) budget: TailBudget,
    pub(crate) dirty: Dirty,
    pub(crate) loaded: Mutex<HashMap<Arc<str>, Weak<ManagedLedger>>>,
    pub(crate) rolls: mpsc::Sender<Weak<ManagedLedger>>,
    gates: Box<[tokio::sync::Mutex<()>]>,
    hasher: RandomState,
}

/// Cursors with acks that are not written yet.
#[derive(Default)]
pub(crate) struct Dirty {
    cells: Mutex<Vec<Arc<Cell>>>,
    wake: Notify,
}

impl Dirty {
    pub(crate) fn add(&self, cell: Arc<Cell>) {
        let mut cells = self.cells.lock();
        cells.push(cell);
        if cells.len() == 1 {
            drop(cells);
            self.wake.notify_one();
        }
    }
}

impl ManagedLedgers {
    /// Finishes deletions that a crash interrupted, and starts the two tasks.
    pub async fn start(
        parts: Parts,
        config: ManagedConfig,
        clock: Clock,
        tasks: &Tasks,
    ) -> Result<Self, ManagedError> {
        let (rolls, rolling) = mpsc::channel(ROLLS_MAX);
        let budget = TailBudget::new(config.cache_bytes_max);
        let shared = Arc::new(Shared {
            store: parts.store,
            log: parts.log,
            state: parts.state,
            metadata: parts.metadata,
            config,
            clock,
            tasks: tasks.clone(),
            budget,
            dirty: Dirty::default(),
            loaded: Mutex::default(),
            rolls,
            gates: (0..GATES).map(|_| tokio::sync::Mutex::default()).collect(),
            hasher: RandomState::new(),
        });
        shared.finish_deletions().await?;
        shared.collect_orphans()?;
        tasks.spawn_cancellable("ledger roller", roll_ledgers(rolling));
        tasks.spawn_cancellable("ack flusher", flush_acks(shared.clone()));
        Ok(Self { shared })
    }

    /// The topic of this name: `tenant/namespace/persistent/encoded-local-name`. The caller keeps
    /// the `Arc` as long as the topic is in use; all callers get the same one.
    pub async fn open(
        &self,
        name: &str,
        options: OpenOptions,
    ) -> Result<Arc<ManagedLedger>, ManagedError> {
        if let Some(loaded) = self.shared.loaded(name) {
            return Ok(loaded);
        }
        let _gate = self.shared.gate(name).lock().await;
        if let Some(loaded) = self.shared.loaded(name) {
            return Ok(loaded);
        }
        let metadata = &self.shared.metadata;
        let name: Arc<str> = name.into();
        let key = key(&name);
        let mut begun = None;
        let (list, version, created) = match metadata.get(&key).await? {
            Some(found) => {
                let list = LedgerList::decode(&found.value)
                    .map_err(|_| ManagedError::BadLedgerList { name: name.clone() })?;
                (list, found.version, found.created)
            }
            None if !options.create => return Err(ManagedError::NotFound { name }),
            None => {
                if options.prepare {
                    begun = self.shared.begin().await;
                }
                let first = begun.as_ref().map(|(writer, _)| Ledger {
                    id: writer.id(),
                    base: 0,
                    closed: None,
                });
                let list = LedgerList {
                    properties: options.properties,
                    ledgers: first.into_iter().collect(),
                    ..LedgerList::default()
                };
                let value = list.encode().into();
                let version = metadata.put(&key, value, Expected::Absent).await?;
                (list, version, version)
            }
        };
        let closed = list.is_terminated.then_some(ClosedFor::Terminated);
        let ledger = Arc::new_cyclic(|this| ManagedLedger {
            name: name.clone(),
            topic: created.0,
            this: this.clone(),
            shared: self.shared.clone(),
            appender: Mutex::new(Appender::new(list.base, closed)),
            durable: AtomicU64::new(list.base),
            list: RwLock::new(list),
            stored: Arc::new(tokio::sync::Mutex::new(Stored { version })),
        });
        let weak = Arc::downgrade(&ledger);
        match begun {
            Some((writer, observer)) => {
                observer.bind(weak.clone());
                ledger.appender.lock().begin(writer, 0);
            }
            None => {
                let end = ledger.recover().await?;
                self.shared.clamp_cursors(&ledger, end)?;
            }
        }
        self.shared.loaded.lock().insert(name, weak);
        Ok(ledger)
    }

    /// The topic if it is loaded.
    #[must_use]
    pub fn loaded(&self, name: &str) -> Option<Arc<ManagedLedger>> {
        self.shared.loaded(name)
    }

    pub async fn exists(&self, name: &str) -> Result<bool, ManagedError> {
        Ok(self.shared.metadata.get(&key(name)).await?.is_some())
    }

    /// Names directly below `path`: `list("public/default/persistent")` are the local names there.
    pub async fn list(&self, path: &str) -> Result<Vec<String>, ManagedError> {
        Ok(self.shared.metadata.children(&key(path)).await?)
    }

    /// Deletes a topic with its ledgers and cursors. Handles to it refuse everything from now on.
    pub async fn delete(&self, name: &str) -> Result<(), ManagedError> {
        let ledger = self.open(name, OpenOptions::default()).await?;
        let shared = self.shared.clone();
        self.shared
            .uncancelled(async move { shared.delete(&ledger).await })
            .await
    }

    /// Writes all acks that are not written yet, and waits for them.
    pub async fn flush(&self) -> Result<(), ManagedError> {
        let ticket = self.shared.flush()?;
        Ok(self.shared.log.durable(ticket).await?)
    }

    /// The store below, for its free space.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn LedgerStore> {
        &self.shared.store
    }

    #[must_use]
    pub fn metadata(&self) -> &Arc<dyn MetadataStore> {
        &self.shared.metadata
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        let budget = &self.shared.budget;
        Stats {
            topics_loaded: self.shared.loaded.lock().len(),
            cache_bytes: budget.used(),
            cache_hits: budget.hits.load(Ordering::Relaxed),
            cache_misses: budget.misses.load(Ordering::Relaxed),
            read_entries: budget.read_entries.load(Ordering::Relaxed),
            cache_evicted_bytes: budget.evicted_bytes.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    fn loaded(&self, name: &str) -> Option<Arc<ManagedLedger>> {
        let found = self.loaded.lock().get(name)?.upgrade()?;
        let is_deleted = found.appender.lock().is_deleted();
        (!is_deleted).then_some(found)
    }

    async fn delete(&self, ledger: &ManagedLedger) -> Result<(), ManagedError> {
        let name = &ledger.name;
        let _gate = self.gate(name).lock().await;
        let stored = ledger.stored.lock().await;
        let ledgers: Vec<LedgerId> = ledger.list().ledgers.iter().map(|l| l.id).collect();
        let intent = ledger.deletion(&ledgers, stored.version);
        let intent_key = intent.key().clone();
        let (before, given_back) = {
            let mut appender = ledger.appender.lock();
            if appender.is_deleted() {
                return Err(ManagedError::NotFound { name: name.clone() });
            }
            let before = appender.closed.replace(ClosedFor::Deleted);
            (before, appender.give_up(ledger.durable_offset()))
        };
        self.budget.give_back(given_back);
        let delete = Op::Delete {
            key: key(name).into(),
            expected: Expected::Is(stored.version),
        };
        if let Err(error) = self.metadata.commit(vec![delete, intent]).await {
            ledger.appender.lock().closed = before;
            return Err(error.into());
        }
        self.loaded.lock().remove(name);
        self.state.cursors.delete_topic(ledger.topic, &*self.log)?;
        self.carry_out(&ledgers, &intent_key).await
    }

    /// Runs a change on a task of its own and waits for it, so that a caller that goes away does
    /// not leave it half done.
    pub(super) async fn uncancelled<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, ManagedError>> + Send + 'static,
    ) -> Result<T, ManagedError> {
        let (tell, told) = tokio::sync::oneshot::channel();
        let run = async move {
            // A caller that went away does not want the answer.
            let _ = tell.send(change.await);
            Ok::<(), ManagedError>(())
        };
        self.tasks.spawn("topic change", OnError::Log, run);
        told.await
            .unwrap_or_else(|_| Err(StoreError::stopped("the process is ending").into()))
    }

    /// The first ledger of a topic to come. Where none can be had, `prepare` will say why.
    async fn begin(&self) -> Option<(Arc<dyn LedgerWriter>, Arc<LedgerObserver>)> {
        let observer = Arc::new(LedgerObserver::unbound());
        let writer = self.store.create(observer.clone()).await.ok()?;
        Some((writer, observer))
    }

    fn gate(&self, name: &str) -> &tokio::sync::Mutex<()> {
        &self.gates[self.hasher.hash_one(name) as usize % GATES]
    }

    /// Keeps cursors within what is stored. What was trimmed had been acked, but perhaps by acks that
    /// a crash took. And a power loss without `fsync` may have taken entries that were acked: their
    /// offsets will be given to new entries, so those acks must go, durably.
    fn clamp_cursors(&self, ledger: &ManagedLedger, end: u64) -> Result<(), ManagedError> {
        let base = ledger.list().base;
        for cell in self.state.cursors.of(ledger.topic) {
            let mut state = cell.state.lock();
            state.acks.ack_below(base);
            if state.clamp(end, || self.state.next_revision()) {
                tracing::warn!(topic = %ledger.name, cursor = %cell.name,
                    "entries that were acked are lost; the cursor goes back to the end");
                cell.write(&mut state, &*self.log)?;
            }
        }
        Ok(())
    }

    /// Appends what is pending of all dirty cursors; the ticket covers all of it.
    fn flush(&self) -> Result<Ticket, StoreError> {
        let cells = std::mem::take(&mut *self.dirty.cells.lock());
        let mut last = Ticket(0);
        for (i, cell) in cells.iter().enumerate() {
            cell.state.lock().is_listed = false;
            match cell.flush(&*self.log) {
                Ok(ticket) => last = last.max(ticket),
                Err(error) => {
                    cell.state.lock().is_listed = true;
                    self.dirty.cells.lock().extend_from_slice(&cells[i..]);
                    return Err(error);
                }
            }
        }
        Ok(last)
    }

    /// Deletes ledgers and then the note that says so.
    pub(super) async fn carry_out(
        &self,
        ledgers: &[LedgerId],
        intent: &str,
    ) -> Result<(), ManagedError> {
        for ledger in ledgers {
            self.store.delete(*ledger).await?;
        }
        self.metadata.delete(intent, Expected::Any).await?;
        Ok(())
    }

    async fn finish_deletions(&self) -> Result<(), ManagedError> {
        loop {
            let intents = self.metadata.scan(DELETIONS, None, 256).await?;
            if intents.is_empty() {
                return Ok(());
            }
            for (intent, found) in intents {
                let mut reader = Reader::new(&found.value);
                let mut ledgers = Vec::new();
                while !reader.is_empty() {
                    ledgers.push(LedgerId(reader.u64()? as i64));
                }
                self.carry_out(&ledgers, &intent).await?;
            }
        }
    }

    /// A crash between a topic's deletion and its cursors' leaves cursors that nobody can reach.
    fn collect_orphans(&self) -> Result<(), ManagedError> {
        let topics = self.state.cursors.topics();
        if topics.is_empty() {
            return Ok(());
        }
        let alive = self.state.tree.read().created_below(&format!("{TOPICS}/"));
        for topic in topics {
            if !alive.contains(&topic) {
                self.state.cursors.delete_topic(topic, &*self.log)?;
            }
        }
        Ok(())
    }
}

async fn roll_ledgers(mut rolling: mpsc::Receiver<Weak<ManagedLedger>>) {
    while let Some(topic) = rolling.recv().await {
        let Some(topic) = topic.upgrade() else {
            continue;
        };
        if let Err(error) = topic.clone().roll().await {
            tracing::warn!(topic = %topic.name, %error, "the ledger could not be rolled");
            topic.roll_failed();
        }
    }
}

async fn flush_acks(shared: Arc<Shared>) {
    let interval = Duration::from_millis(shared.config.ack_flush_interval_ms);
    loop {
        shared.dirty.wake.notified().await;
        tokio::time::sleep(interval).await;
        if let Err(error) = shared.flush() {
            tracing::error!(%error, "acks cannot be written; their messages will come again");
            if !error.is_retriable() {
                return;
            }
            shared.dirty.wake.notify_one();
        }
    }
}
