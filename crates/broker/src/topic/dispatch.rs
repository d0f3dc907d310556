//! Serving the subscriptions of a topic: from the cache in place, else by a read task.

use std::sync::Arc;
use std::time::Duration;

use geminga_model::Position;
use geminga_storage::{Entry, ReadLimits};

use super::{State, Topic};
use crate::dispatcher::ConsumerKey;
use crate::rate::Allowance;
use crate::subscription::Subscription;
use crate::subscription::deliver::{Progress, ReadPlan, Source, runs};
use crate::timers::Alarm;
use crate::topic::compaction::view::View;
use crate::transaction::buffer::Buffer;

/// Wait before a failed read is tried again.
const RETRY: Duration = Duration::from_millis(500);

impl Topic {
    pub(super) fn source<'a>(
        &'a self,
        allowance: Allowance,
        transactions: Option<&'a Buffer>,
        view: Option<&'a Arc<View>>,
    ) -> Source<'a> {
        let config = &self.core.config;
        let policies = self.policies();
        let now_ms = self.core.clock.now_ms();
        Source {
            ledger: &self.ledger,
            partition: self.partition(),
            terminated: self.is_terminated(),
            now_ms,
            due_before_ms: self.due_before_ms(&policies, now_ms),
            entries_max: policies.read_entries_max.min(as_size(allowance.messages)),
            bytes_max: policies.read_bytes_max.min(as_size(allowance.bytes)),
            throttled: allowance.is_limited(),
            batch_index_acks: config.acknowledgment_at_batch_index_level_enabled,
            ahead_used: &self.core.ahead_used,
            snapshots_max: config.replicated_subscriptions_snapshot_max_cached_per_subscription,
            limit: transactions.map_or(Position::LATEST, Buffer::limit),
            transactions,
            view,
            size_max: self.unpacked_max(),
        }
    }

    /// What a batch may have unpacked.
    pub(super) fn unpacked_max(&self) -> usize {
        let max = self.core.config.max_message_size;
        max.max(geminga_proto::MAX_MESSAGE_SIZE)
    }

    pub(crate) fn dispatch_all(self: &Arc<Topic>, state: &mut State) {
        for at in 0..state.subscriptions.len() {
            self.dispatch_at(state, at);
        }
        state.wake_replicators();
    }

    pub(crate) fn dispatch(self: &Arc<Topic>, state: &mut State, id: u32) {
        if let Some(at) = state.subscriptions.iter().position(|s| s.id == id) {
            self.dispatch_at(state, at);
        }
    }

    fn dispatch_at(self: &Arc<Topic>, state: &mut State, at: usize) {
        if state.subscriptions[at].consumers().is_empty() {
            return;
        }
        loop {
            match self.step(state, at) {
                Progress::Idle => break,
                Progress::Again => {}
                Progress::Read { plan, generation } => {
                    let subscription = &mut state.subscriptions[at];
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
        self.arm_due(&mut state.subscriptions[at]);
    }

    fn arm_due(self: &Arc<Topic>, subscription: &mut Subscription) {
        if let Some(due_ms) = subscription.arm_timer() {
            let at_ms = self.alarm_ms(due_ms);
            self.core
                .timers
                .set(at_ms, Arc::downgrade(self), Alarm::Due(subscription.id));
        }
    }

    /// Dispatches what the rates allow.
    fn step(self: &Arc<Topic>, state: &mut State, at: usize) -> Progress {
        let Some(allowance) = self.dispatch_allowance(state, at) else {
            return Progress::Idle;
        };
        let State {
            subscriptions,
            transactions,
            view,
            ..
        } = &mut *state;
        let source = self.source(allowance, transactions.as_deref(), view.as_ref());
        let subscription = &mut subscriptions[at];
        let before = subscription.counters;
        let progress = subscription.dispatch(&source);
        let after = subscription.counters;
        let id = subscription.id;
        Topic::count_dispatched(
            state,
            id,
            after.messages_out - before.messages_out,
            after.bytes_out - before.bytes_out,
        );
        progress
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
                    if matches!(plan, ReadPlan::Compacted { .. })
                        && let Err(error) = self.begin_view().await
                    {
                        tracing::error!(topic = %self.name, %error, "the compacted view is lost");
                    }
                    None
                }
            };
            let mut state = self.lock();
            let Some(at) = state.subscriptions.iter().position(|s| s.id == id) else {
                return;
            };
            match entries {
                Some(entries) => self.read_ends(&mut state, at, &plan, generation, entries),
                None => state.subscriptions[at].read_failed(),
            }
            let next = loop {
                match self.step(&mut state, at) {
                    Progress::Idle => break None,
                    Progress::Again => {}
                    Progress::Read { plan, generation } => {
                        state.subscriptions[at].read_begins();
                        break Some((plan, generation));
                    }
                }
            };
            self.arm_due(&mut state.subscriptions[at]);
            drop(state);
            match next {
                Some(next) => (plan, generation) = next,
                None => return,
            }
        }
    }

    fn read_ends(
        self: &Arc<Topic>,
        state: &mut State,
        at: usize,
        plan: &ReadPlan,
        generation: u64,
        entries: Vec<Entry>,
    ) {
        // Where nothing may go out now, it is kept for later.
        let nothing = Allowance {
            messages: 0,
            bytes: 0,
        };
        let allowance = self.dispatch_allowance(state, at).unwrap_or(nothing);
        let State {
            subscriptions,
            transactions,
            view,
            ..
        } = &mut *state;
        let source = self.source(allowance, transactions.as_deref(), view.as_ref());
        let subscription = &mut subscriptions[at];
        let before = subscription.counters;
        subscription.read_ends(&source, plan, generation, entries);
        let after = subscription.counters;
        let id = subscription.id;
        Topic::count_dispatched(
            state,
            id,
            after.messages_out - before.messages_out,
            after.bytes_out - before.bytes_out,
        );
    }

    /// Whether another subscription may want what one reads.
    fn is_read_by_several(&self) -> bool {
        let state = self.lock();
        let used = state
            .subscriptions
            .iter()
            .filter(|s| !s.consumers().is_empty());
        used.take(2).count() > 1
    }

    async fn read_plan(
        &self,
        plan: &ReadPlan,
    ) -> Result<Vec<Entry>, geminga_storage::ManagedError> {
        match plan {
            ReadPlan::Tail { from, limits } => {
                let limits = ReadLimits::new(limits.0, limits.1);
                if self.is_read_by_several() {
                    self.shared_read.read(&self.ledger, *from, limits).await
                } else {
                    self.ledger.read(*from, limits).await
                }
            }
            ReadPlan::Compacted { from, limits, view } => {
                view.read(*from, ReadLimits::new(limits.0, limits.1)).await
            }
            ReadPlan::Replay(positions) => {
                let mut entries = Vec::with_capacity(positions.len());
                for (first, count) in runs(positions) {
                    let mut from = first;
                    let end = first.entry.0 + count as i64;
                    // A read may return fewer than asked for, bounded by bytes.
                    while from.entry.0 < end {
                        let left = (end - from.entry.0) as usize;
                        let limits = ReadLimits::new(left, self.policies().read_bytes_max);
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

    /// A connection takes more bytes again. Of its subscriptions the one furthest behind goes first:
    /// those that catch up side by side then stay together, and share what is read.
    pub(crate) fn resume(self: &Arc<Topic>, mut ids: Vec<u32>) {
        let mut state = self.lock();
        if ids.len() > 1 {
            ids.sort_by_cached_key(|id| state.subscription(*id).map(Subscription::read_position));
        }
        for id in ids {
            self.dispatch(&mut state, id);
        }
    }

    /// A timer that was set for a subscription.
    pub(crate) fn alarm(self: &Arc<Topic>, alarm: Alarm) {
        let now_ms = self.core.clock.now_ms();
        let due_before_ms = self.due_before_ms(&self.policies(), now_ms);
        if alarm == Alarm::Quota {
            return self.quota_alarm();
        }
        let mut state = self.lock();
        let id = match alarm {
            Alarm::Quota => return,
            Alarm::Publish => return self.publish_alarm(&mut state),
            Alarm::Dispatch => return self.dispatch_alarm(&mut state),
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

fn as_size(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
