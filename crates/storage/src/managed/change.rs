//! Changes of a topic's ledger list: opening a ledger, rolling, trimming, terminating, deleting.
//!
//! They run one at a time, under `stored`, each on a task of its own: a caller that goes away does
//! not leave one half done. The metadata is changed first (compare and set), memory after it.

use super::append::{ClosedFor, LedgerObserver};
use super::ledger_list::{Ledger, LedgerList};
use super::retention::{Retention, trimmable};
use super::{ManagedLedger, Properties, factory};
use crate::codec::put_u64;
use crate::error::{ManagedError, StoreError};
use crate::metadata::{Expected, Op, Version};
use geminga_model::{LedgerId, Position};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The version of the list in the metadata.
pub(super) struct Stored {
    pub(super) version: Version,
}

impl ManagedLedger {
    /// Opens a ledger for appends unless one is open: to be called before the first append (when a
    /// producer arrives), and again after `TopicObserver::failed`. After a failure, what was in
    /// flight is then either stored or gone for good.
    pub async fn prepare(&self) -> Result<(), ManagedError> {
        if self.is_ready() {
            return Ok(());
        }
        self.uncancelled(|this| async move { this.prepare_now().await })
            .await
    }

    async fn prepare_now(self: Arc<Self>) -> Result<(), ManagedError> {
        let mut stored = self.stored.clone().lock_owned().await;
        let (generation, given_back) = {
            let mut appender = self.appender.lock();
            match appender.closed {
                Some(ClosedFor::Terminated) => return Err(ManagedError::Terminated),
                Some(ClosedFor::Deleted) => return Err(self.deleted()),
                None if appender.writer.is_some() => return Ok(()),
                None => {}
            }
            let given_back = appender.give_up(self.durable_offset());
            (appender.generation, given_back)
        };
        self.shared.budget.give_back(given_back);
        let end = self.recover().await?;

        let observer = Arc::new(LedgerObserver::new(self.this.clone(), generation, end));
        let writer = self.shared.store.create(observer).await?;
        let mut list = self.list().clone();
        // Ledgers that never got an entry would pile up with each time the topic is loaded.
        let empty: Vec<LedgerId> = list
            .ledgers
            .extract_if(.., |ledger| {
                ledger.closed.is_some_and(|closed| closed.entries == 0)
            })
            .map(|ledger| ledger.id)
            .collect();
        list.ledgers.push(Ledger {
            id: writer.id(),
            base: end,
            closed: None,
        });
        self.put(&mut stored, &list).await?;
        {
            let mut appender = self.appender.lock();
            *self.list.write() = list;
            if appender.generation != generation {
                // It failed before it began; the next `prepare` recovers it.
                return Err(StoreError::Fenced {
                    ledger: writer.id(),
                }
                .into());
            }
            appender.begin(writer, end);
            appender.bytes_unclosed = 0;
        }
        for ledger in empty {
            self.shared.store.delete(ledger).await?;
        }
        Ok(())
    }

    /// Closes every ledger that no writer holds; returns the end of the topic.
    pub(super) async fn recover(&self) -> Result<u64, ManagedError> {
        loop {
            let unclosed = self.list().first_unclosed();
            let Some(ledger) = unclosed else { break };
            let end = self.shared.store.recover(ledger).await?;
            let now = self.shared.clock.now_ms();
            self.list.write().close(ledger, end, now);
        }
        let end = self.list().end().unwrap_or_default();
        let mut appender = self.appender.lock();
        appender.next = end;
        appender.bytes_unclosed = 0;
        self.durable.store(end, Ordering::Release);
        Ok(end)
    }

    /// Goes on in a new ledger. Appends never wait for it.
    pub(super) async fn roll(self: Arc<Self>) -> Result<(), ManagedError> {
        let mut stored = self.stored.clone().lock_owned().await;
        let (old, generation) = {
            let appender = self.appender.lock();
            let Some(writer) = appender.writer.clone() else {
                return Ok(());
            };
            (writer, appender.generation)
        };
        let observer = Arc::new(LedgerObserver::new(self.this.clone(), generation, u64::MAX));
        let new = self.shared.store.create(observer.clone()).await?;
        let mut list = self.list().clone();
        list.ledgers.push(Ledger {
            id: new.id(),
            base: self.durable_offset(),
            closed: None,
        });
        self.put(&mut stored, &list).await?;
        {
            let mut appender = self.appender.lock();
            let base = appender.next;
            if let Some(last) = list.ledgers.last_mut() {
                last.base = base;
            }
            *self.list.write() = list;
            if appender.generation != generation {
                return Ok(());
            }
            observer.set_base(base);
            appender.begin(new, base);
        }
        let end = match old.seal().await {
            Ok(end) => end,
            Err(error) => {
                // Its last entries will never be confirmed, so neither may those after them.
                self.fail(generation, Arc::new(error.clone()));
                return Err(error.into());
            }
        };
        {
            let mut appender = self.appender.lock();
            if appender.generation != generation {
                return Ok(());
            }
            let mut list = self.list.write();
            list.close(old.id(), end, self.shared.clock.now_ms());
            appender.bytes_unclosed = appender.bytes;
        }
        let list = self.list().clone();
        self.put(&mut stored, &list).await
    }

    /// Deletes all that every durable cursor has passed, the ledger being written too: appends go
    /// on in a new one.
    pub async fn truncate(&self) -> Result<(), ManagedError> {
        self.prepare().await?;
        let is_empty = {
            let list = self.list();
            list.ledgers
                .last()
                .is_none_or(|last| last.base >= self.durable_offset())
        };
        if !is_empty {
            self.uncancelled(|this| async move { this.roll().await })
                .await?;
        }
        self.trim(Retention::NONE).await.map(drop)
    }

    /// Called when `roll` failed: appends go on in the old ledger, and the next one tries again.
    pub(super) fn roll_failed(&self) {
        let mut appender = self.appender.lock();
        appender.is_rolling = false;
    }

    /// Deletes the ledgers that every durable cursor has passed and that the retention does not
    /// keep; returns how many. The ledger being written stays.
    pub async fn trim(&self, retention: Retention) -> Result<usize, ManagedError> {
        let now = self.shared.clock.now_ms();
        let acked = self.acked_below();
        if trimmable(&self.list(), acked, retention, now) == 0 {
            return Ok(0);
        }
        self.uncancelled(move |this| async move { this.trim_now(retention).await })
            .await
    }

    async fn trim_now(self: Arc<Self>, retention: Retention) -> Result<usize, ManagedError> {
        let mut stored = self.stored.clone().lock_owned().await;
        if self.appender.lock().is_deleted() {
            return Err(self.deleted());
        }
        let mut list = self.list().clone();
        let now = self.shared.clock.now_ms();
        let count = trimmable(&list, self.acked_below(), retention, now);
        if count == 0 {
            return Ok(0);
        }
        let gone: Vec<LedgerId> = list.ledgers[..count]
            .iter()
            .map(|ledger| ledger.id)
            .collect();
        list.remove_first(count);
        let mut ops = vec![Op::Put {
            key: factory::key(&self.name).into(),
            value: list.encode().into(),
            expected: Expected::Is(stored.version),
        }];
        let intent = self.deletion(&gone, stored.version);
        ops.push(intent.clone());
        stored.version = self.shared.metadata.commit(ops).await?;
        *self.list.write() = list;
        drop(stored);
        self.shared.carry_out(&gone, intent.key()).await?;
        Ok(count)
    }

    /// The lowest offset that a durable cursor has not acked; without cursors, the end.
    fn acked_below(&self) -> u64 {
        let cells = self.shared.state.cursors.of(self.topic);
        cells
            .iter()
            .map(|cell| cell.state.lock().acks.next())
            .min()
            .unwrap_or_else(|| self.durable_offset())
    }

    /// Says in the metadata which ledgers are to be deleted, so that a crash does not forget it.
    pub(super) fn deletion(&self, ledgers: &[LedgerId], version: Version) -> Op {
        let mut value = Vec::new();
        for ledger in ledgers {
            put_u64(&mut value, ledger.0 as u64);
        }
        Op::Put {
            key: format!("{}/{}-{}", factory::DELETIONS, self.topic, version.0).into(),
            value: value.into(),
            expected: Expected::Any,
        }
    }

    /// Ends the topic: it never takes entries again. Returns its last position.
    pub async fn terminate(&self) -> Result<Position, ManagedError> {
        self.uncancelled(|this| async move { this.terminate_now().await })
            .await
    }

    async fn terminate_now(self: Arc<Self>) -> Result<Position, ManagedError> {
        let mut stored = self.stored.clone().lock_owned().await;
        let writer = {
            let mut appender = self.appender.lock();
            match appender.closed {
                Some(ClosedFor::Deleted) => return Err(self.deleted()),
                Some(ClosedFor::Terminated) => return Ok(self.durable_position()),
                None => {}
            }
            appender.closed = Some(ClosedFor::Terminated);
            appender.writer.take()
        };
        let ended = self.end_for_good(&mut stored, writer).await;
        if ended.is_err() {
            let mut appender = self.appender.lock();
            appender.closed = None;
        }
        ended
    }

    async fn end_for_good(
        &self,
        stored: &mut Stored,
        writer: Option<Arc<dyn crate::LedgerWriter>>,
    ) -> Result<Position, ManagedError> {
        match writer {
            Some(writer) => {
                let end = writer.seal().await?;
                let now = self.shared.clock.now_ms();
                let mut appender = self.appender.lock();
                self.list.write().close(writer.id(), end, now);
                appender.bytes_unclosed = 0;
            }
            None => {
                self.recover().await?;
            }
        }
        let mut list = self.list().clone();
        list.is_terminated = true;
        self.put(stored, &list).await?;
        *self.list.write() = list;
        let end = self.list().end().unwrap_or_default();
        Ok(self.list().position_before(end))
    }

    /// Sets a property of the topic. Durable when it resolves.
    pub async fn set_property(&self, key: &str, value: &str) -> Result<(), ManagedError> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.change_properties(move |properties| {
            properties.insert(key, value);
        })
        .await
    }

    /// Changes the properties of the topic. Durable when it resolves.
    pub async fn change_properties(
        &self,
        change: impl FnOnce(&mut Properties) + Send + 'static,
    ) -> Result<(), ManagedError> {
        self.uncancelled(|this| async move {
            let mut stored = this.stored.clone().lock_owned().await;
            if this.appender.lock().is_deleted() {
                return Err(this.deleted());
            }
            let mut list: LedgerList = this.list().clone();
            change(&mut list.properties);
            this.put(&mut stored, &list).await?;
            *this.list.write() = list;
            Ok(())
        })
        .await
    }

    async fn put(&self, stored: &mut Stored, list: &LedgerList) -> Result<(), ManagedError> {
        let expected = Expected::Is(stored.version);
        let key = factory::key(&self.name);
        let put = self
            .shared
            .metadata
            .put(&key, list.encode().into(), expected);
        stored.version = put.await?;
        Ok(())
    }

    async fn uncancelled<T, F>(
        &self,
        change: impl FnOnce(Arc<Self>) -> F,
    ) -> Result<T, ManagedError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ManagedError>> + Send + 'static,
    {
        let this = self
            .this
            .upgrade()
            .expect("it is alive: we are inside of it");
        // Boxed, so that the caller has no room for it: thousands may open topics at once.
        let change = Box::pin(change(this));
        self.shared.uncancelled(change).await
    }
}
