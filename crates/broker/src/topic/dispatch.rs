//! Serving the subscriptions of a topic: from the cache in place, else by a read task.

use std::sync::Arc;
use std::time::Duration;

use geminga_model::Position;
use geminga_storage::{Entry, ReadLimits};

use super::{State, Topic};
use crate::dispatcher::ConsumerKey;
use crate::subscription::deliver::{Progress, ReadPlan, Source, runs};
use crate::timers::Alarm;
use crate::transaction::buffer::Buffer;

/// Wait before a failed read is tried again.
const RETRY: Duration = Duration::from_millis(500);

impl Topic {
    fn source<'a>(&'a self, transactions: Option<&'a Buffer>) -> Source<'a> {
        let config = &self.core.config;
        let now_ms = self.core.clock.now_ms();
        Source {
            ledger: &self.ledger,
            partition: self.partition(),
            terminated: self.is_terminated(),
            now_ms,
            due_before_ms: self.due_before_ms(now_ms),
            entries_max: config.dispatcher_max_read_batch_size,
            bytes_max: config.dispatcher_max_read_size_bytes,
            batch_index_acks: config.acknowledgment_at_batch_index_level_enabled,
            ahead_used: &self.core.ahead_used,
            limit: transactions.map_or(Position::LATEST, Buffer::limit),
            transactions,
        }
    }

    pub(crate) fn dispatch_all(self: &Arc<Topic>, state: &mut State) {
        for at in 0..state.subscriptions.len() {
            self.dispatch_at(state, at);
        }
    }

    pub(crate) fn dispatch(self: &Arc<Topic>, state: &mut State, id: u32) {
        if let Some(at) = state.subscriptions.iter().position(|s| s.id == id) {
            self.dispatch_at(state, at);
        }
    }

    fn dispatch_at(self: &Arc<Topic>, state: &mut State, at: usize) {
        let State {
            subscriptions,
            transactions,
            ..
        } = state;
        let subscription = &mut subscriptions[at];
        if subscription.consumers().is_empty() {
            return;
        }
        let source = self.source(transactions.as_deref());
        loop {
            match subscription.dispatch(&source) {
                Progress::Idle => break,
                Progress::Again => {}
                Progress::Read { plan, generation } => {
                    subscription.read_begins();
                    let (topic, id) = (self.clone(), subscription.id);
                    self.core
                        .tasks
                        .spawn_cancellable("read for a subscription", async move {
                            topic.read_on(id, plan, generation).await;
                        });
                    break;
                }
            }
        }
        if let Some(due_ms) = subscription.arm_timer() {
            let at_ms = self.alarm_ms(due_ms);
            self.core
                .timers
                .set(at_ms, Arc::downgrade(self), Alarm::Due(subscription.id));
        }
    }

    /// Reads what is not in the cache and delivers it, until the subscription is idle or the cache
    /// has what it wants.
    async fn read_on(self: Arc<Topic>, id: u32, mut plan: ReadPlan, mut generation: u64) {
        loop {
            let entries = match self.read_plan(&plan).await {
                Ok(entries) => Some(entries),
                Err(error) => {
                    tracing::error!(topic = %self.name, %error, "a read for dispatch failed");
                    tokio::time::sleep(RETRY).await;
                    None
                }
            };
            let mut state = self.lock();
            let State {
                subscriptions,
                transactions,
                ..
            } = &mut *state;
            let Some(subscription) = subscriptions.iter_mut().find(|s| s.id == id) else {
                return;
            };
            let source = self.source(transactions.as_deref());
            match entries {
                Some(entries) => subscription.read_ends(&source, &plan, generation, entries),
                None => subscription.read_failed(),
            }
            let next = loop {
                match subscription.dispatch(&source) {
                    Progress::Idle => break None,
                    Progress::Again => {}
                    Progress::Read { plan, generation } => {
                        subscription.read_begins();
                        break Some((plan, generation));
                    }
                }
            };
            if let Some(due_ms) = subscription.arm_timer() {
                let at_ms = self.alarm_ms(due_ms);
                self.core
                    .timers
                    .set(at_ms, Arc::downgrade(&self), Alarm::Due(id));
            }
            drop(state);
            match next {
                Some(next) => (plan, generation) = next,
                None => return,
            }
        }
    }

    async fn read_plan(
        &self,
        plan: &ReadPlan,
    ) -> Result<Vec<Entry>, geminga_storage::ManagedError> {
        match plan {
            ReadPlan::Tail { from, limits } => {
                self.ledger
                    .read(*from, ReadLimits::new(limits.0, limits.1))
                    .await
            }
            ReadPlan::Replay(positions) => {
                let mut entries = Vec::with_capacity(positions.len());
                for (first, count) in runs(positions) {
                    let mut from = first;
                    let end = first.entry.0 + count as i64;
                    // A read may return fewer than asked for, bounded by bytes.
                    while from.entry.0 < end {
                        let left = (end - from.entry.0) as usize;
                        let limits =
                            ReadLimits::new(left, self.core.config.dispatcher_max_read_size_bytes);
                        let found = self.ledger.read(from, limits).await?;
                        let in_run = |entry: &Entry| {
                            entry.position.ledger == first.ledger && entry.position.entry.0 < end
                        };
                        let Some(last) = found.iter().rfind(|entry| in_run(entry)) else {
                            break;
                        };
                        from = last.position.next_in_ledger();
                        entries.extend(found.into_iter().filter(in_run));
                    }
                }
                Ok(entries)
            }
        }
    }

    /// A consumer's FLOW.
    pub(crate) fn flow(self: &Arc<Topic>, id: u32, key: ConsumerKey, messages: u32) {
        let mut state = self.lock();
        let now_ms = self.core.clock.now_ms();
        let Some(subscription) = state.subscription_mut(id) else {
            return;
        };
        if subscription.add_permits(key, messages, now_ms) {
            self.dispatch(&mut state, id);
        }
    }

    /// A connection takes more bytes again.
    pub(crate) fn resume(self: &Arc<Topic>, id: u32) {
        let mut state = self.lock();
        self.dispatch(&mut state, id);
    }

    /// A timer that was set for a subscription.
    pub(crate) fn alarm(self: &Arc<Topic>, alarm: Alarm) {
        let now_ms = self.core.clock.now_ms();
        let due_before_ms = self.due_before_ms(now_ms);
        let mut state = self.lock();
        let id = match alarm {
            Alarm::Due(id) => {
                let Some(subscription) = state.subscription_mut(id) else {
                    return;
                };
                subscription.wake_due(due_before_ms);
                id
            }
            Alarm::Failover(id) => {
                let Some(subscription) = state.subscription_mut(id) else {
                    return;
                };
                subscription.release_hold();
                id
            }
        };
        self.dispatch(&mut state, id);
    }
}
