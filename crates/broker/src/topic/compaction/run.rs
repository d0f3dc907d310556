//! A run of the compaction: two passes over the topic, and the change to the new view.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use geminga_model::{Position, TopicName};
use geminga_proto::message::peek;
use geminga_storage::managed::{Initial, ManagedLedger, OpenOptions, Properties, TopicObserver};
use geminga_storage::{AppendError, Entry, ReadLimits, StoreError};
use serde::Serialize;
use tokio::sync::Notify;

use super::view::{PROPERTY, View, encode_entry, ledger_name};
use super::{CURSOR, Survivors};
use crate::broker::Core;
use crate::error::BrokerError;
use crate::topic::Topic;

const READ: ReadLimits = ReadLimits::new(1_000, 1 << 20);
/// Wait when the log takes no more just now.
const BUSY: Duration = Duration::from_millis(5);

/// What became of the last compaction since the topic was loaded, as Pulsar says it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CompactionStatus {
    pub status: CompactionState,
    pub last_error: String,
    #[serde(skip)]
    pub(crate) last: CompactionStats,
}

/// The runs that ended since the topic was loaded, in the topic's stats. Times are in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CompactionStats {
    pub last_compaction_removed_event_count: u64,
    pub last_compaction_succeed_timestamp: u64,
    pub last_compaction_failed_timestamp: u64,
    pub last_compaction_duration_time_in_mills: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CompactionState {
    #[default]
    NotRun,
    Running,
    Success,
    Error,
}

/// Wakes whoever waits for a view's entries.
#[derive(Default)]
struct Written {
    changed: Notify,
    failed: AtomicBool,
}

/// A run's right to be the only one of its topic, which may be loaded anew meanwhile.
struct Claim(Arc<Core>, TopicName);

impl Claim {
    fn new(topic: &Topic) -> Option<Claim> {
        let (core, name) = (topic.core.clone(), topic.name.clone());
        let is_new = core.compacting.lock().insert(name.clone());
        is_new.then(|| Claim(core, name))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.compacting.lock().remove(&self.1);
    }
}

impl TopicObserver for Written {
    fn durable(&self, _: Position) {
        self.changed.notify_waiters();
    }

    fn failed(&self, _: Arc<StoreError>) {
        self.failed.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }
}

impl Topic {
    pub(crate) fn compaction_status(&self) -> CompactionStatus {
        self.lock().compaction.clone()
    }

    /// Begins a run beside the caller; refused while one is under way.
    pub(crate) fn start_compaction(self: &Arc<Topic>) -> Result<(), BrokerError> {
        self.require_persistent("Compaction")?;
        let claim = {
            let mut state = self.open()?;
            let Some(claim) = Claim::new(self) else {
                return Err(BrokerError::AlreadyExists(
                    "Compaction already in progress".to_owned(),
                ));
            };
            state.compaction.status = CompactionState::Running;
            claim
        };
        let topic = self.clone();
        self.core
            .tasks
            .spawn_cancellable("compact a topic", async move {
                let _claim = claim;
                let began_ms = topic.core.clock.now_ms();
                let result = topic.compact().await;
                let now_ms = topic.core.clock.now_ms();
                let mut state = topic.lock();
                let status = &mut state.compaction;
                status.last.last_compaction_duration_time_in_mills =
                    now_ms.saturating_sub(began_ms);
                match result {
                    Ok(removed) => {
                        status.status = CompactionState::Success;
                        status.last_error.clear();
                        status.last.last_compaction_succeed_timestamp = now_ms;
                        status.last.last_compaction_removed_event_count = removed;
                    }
                    Err(error) => {
                        tracing::warn!(topic = %topic.name, %error, "the topic was not compacted");
                        status.status = CompactionState::Error;
                        status.last_error = error.to_string();
                        status.last.last_compaction_failed_timestamp = now_ms;
                    }
                }
                state.touch_idle(now_ms);
            });
        Ok(())
    }

    /// Begins a run when enough was written since the last one.
    pub(crate) fn compact_by_threshold(self: &Arc<Topic>) {
        let threshold = self.policies().compaction_threshold_bytes;
        if threshold == 0 || !self.is_persistent() {
            return;
        }
        let entries = self.ledger.entries();
        let waiting = match self.ledger.cursor(CURSOR) {
            Some(cursor) => cursor.backlog(),
            None => entries,
        };
        let bytes =
            self.ledger.size_bytes() as u128 * u128::from(waiting) / u128::from(entries.max(1));
        if waiting > 0 && bytes >= u128::from(threshold) {
            // Refused while one runs already.
            drop(self.start_compaction());
        }
    }

    /// Returns how many messages did not survive.
    async fn compact(self: &Arc<Topic>) -> Result<u64, BrokerError> {
        let cursor = self
            .ledger
            .open_cursor(CURSOR, Initial::Earliest, Properties::new())
            .await?;
        // A run of the topic as it was loaded before may have ended since.
        self.begin_view().await?;
        let end = self.ledger.durable_position().min(self.read_limit());
        let old = self.view();
        if end.entry.0 < 0 || old.as_ref().is_some_and(|old| old.horizon >= end) {
            return Ok(0);
        }
        let config = &self.core.config;
        let mut survivors =
            Survivors::new(config.topic_compaction_retain_null_key, self.unpacked_max());
        let mut pass = Pass::new(self, old.as_deref(), end);
        while let Some(entries) = pass.next().await? {
            entries.iter().for_each(|entry| survivors.note(entry));
        }
        let in_use = old.as_ref().map(|old| old.number);
        // What a run left that did not come to its end.
        self.core.delete_views(&self.name, in_use).await?;
        let number = in_use.map_or(0, |number| number + 1);
        if let Err(error) = self
            .change_view(number, &survivors, old.as_deref(), end)
            .await
        {
            self.core.delete_views(&self.name, in_use).await?;
            return Err(error);
        }
        cursor.ack_cumulative(end, None)?;
        self.core.delete_views(&self.name, Some(number)).await?;
        Ok(survivors.removed())
    }

    /// Writes the new view and makes it the topic's, over any crash.
    async fn change_view(
        self: &Arc<Topic>,
        number: u64,
        survivors: &Survivors,
        old: Option<&View>,
        end: Position,
    ) -> Result<(), BrokerError> {
        let view = self.write_view(number, survivors, old, end).await?;
        self.ledger.set_property(PROPERTY, &view.property()).await?;
        self.lock().view = Some(Arc::new(view));
        Ok(())
    }

    async fn write_view(
        self: &Arc<Topic>,
        number: u64,
        survivors: &Survivors,
        old: Option<&View>,
        end: Position,
    ) -> Result<View, BrokerError> {
        let options = OpenOptions {
            create: true,
            ..OpenOptions::default()
        };
        let name = ledger_name(&self.name, number);
        let ledger = self.core.ledgers.open(&name, options).await?;
        let written = Arc::new(Written::default());
        ledger.set_observer(written.clone());
        ledger.prepare().await?;
        let mut pass = Pass::new(self, old, end);
        while let Some(entries) = pass.next().await? {
            let run: Vec<Bytes> = entries
                .iter()
                .filter_map(|entry| {
                    let block = survivors.keep(entry)?;
                    Some(encode_entry(entry.position, &block))
                })
                .collect();
            append(&ledger, &written, &run).await?;
        }
        ledger.terminate().await?;
        Ok(View::new(number, end, ledger))
    }
}

/// Appends and waits until that is durable: a compaction never has more under way than one run.
async fn append(
    ledger: &ManagedLedger,
    written: &Written,
    run: &[Bytes],
) -> Result<(), BrokerError> {
    if run.is_empty() {
        return Ok(());
    }
    loop {
        match ledger.append(run) {
            Ok(_) => break,
            Err(AppendError::Busy) => tokio::time::sleep(BUSY).await,
            Err(error) => return Err(error.into()),
        }
    }
    let last = ledger.last_position();
    loop {
        let changed = written.changed.notified();
        if written.failed.load(Ordering::Acquire) {
            return Err(BrokerError::Persistence("storage failed".to_owned()));
        }
        if ledger.durable_position() >= last {
            return Ok(());
        }
        changed.await;
    }
}

/// All that is to be compacted, in order: the old view, and the log behind its horizon.
struct Pass<'a> {
    topic: &'a Topic,
    old: Option<&'a View>,
    next: Position,
    end: Position,
}

impl<'a> Pass<'a> {
    fn new(topic: &'a Topic, old: Option<&'a View>, end: Position) -> Pass<'a> {
        Pass {
            topic,
            old,
            next: Position::EARLIEST,
            end,
        }
    }

    async fn next(&mut self) -> Result<Option<Vec<Entry>>, BrokerError> {
        if let Some(old) = self.old {
            let entries = old.read(self.next, READ).await?;
            if let Some(last) = entries.last() {
                self.next = last.position.next_in_ledger();
                return Ok(Some(entries));
            }
            self.next = old.horizon.next_in_ledger();
            self.old = None;
        }
        let topic = self.topic;
        // A topic that is closed is not ours any more.
        drop(topic.open()?);
        let mut entries = topic.ledger.read(self.next, READ).await?;
        entries.retain(|entry| entry.position <= self.end);
        let Some(last) = entries.last() else {
            return Ok(None);
        };
        self.next = last.position.next_in_ledger();
        entries.retain(|entry| {
            peek(&entry.data).map_or(true, |head| !topic.is_aborted(entry.position, &head))
        });
        Ok(Some(entries))
    }
}
