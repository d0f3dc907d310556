//! Non-persistent topics: a message goes to whoever can take it now, and is gone.
//!
//! Such a topic is a [`Topic`] like any other (names, access modes, subscription types, policies and
//! figures are the same), with a ledger that stays empty: one in memory, shared by all of them, of
//! which nothing is ever stored. A SEND is offered to each subscription under the topic's lock and
//! confirmed at once. Every receipt and every delivered message has the id 0:0, acks mean nothing, and
//! what would need stored entries (last message id, terminate) is refused.
//!
//! What must hold: nothing is kept of a message after `publish_now`; a consumer without permits or
//! with a full connection costs nobody else anything.

use std::sync::Arc;

use geminga_model::{NamespaceName, Position, TopicName};
use geminga_proto::send::SendReceipt;
use geminga_storage::managed::{ManagedLedger, OpenOptions};
use geminga_storage::{Entry, ManagedConfig, Storage};

use super::publish::Batch;
use super::{State, Topic};
use crate::broker::Core;
use crate::error::BrokerError;
use crate::producer::Producer;
use crate::rate::Allowance;

/// The id of every message of every non-persistent topic.
const POSITION: Position = Position::new(0, 0);

/// How often the figures of a rate begin anew.
const WINDOW_MS: u64 = 60_000;

/// Messages a second, over the last minute or two.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Rate {
    from_ms: u64,
    count: u64,
    before: f64,
}

impl Rate {
    pub(crate) fn add(&mut self, count: u64, now_ms: u64) {
        self.turn(now_ms);
        self.count += count;
    }

    pub(crate) fn per_second(mut self, now_ms: u64) -> f64 {
        self.turn(now_ms);
        let share = (now_ms - self.from_ms) as f64 / WINDOW_MS as f64;
        let seconds = (now_ms - self.from_ms).max(1_000) as f64 / 1_000.0;
        if self.before == 0.0 {
            return self.count as f64 / seconds;
        }
        // The part of the window before that is still within a minute.
        self.before * (1.0 - share) + self.count as f64 / (WINDOW_MS / 1_000) as f64
    }

    fn turn(&mut self, now_ms: u64) {
        let now_ms = now_ms.max(self.from_ms);
        let passed = now_ms - self.from_ms;
        if passed < WINDOW_MS {
            return;
        }
        self.before = match passed < 2 * WINDOW_MS && self.from_ms > 0 {
            true => self.count as f64 / (passed as f64 / 1_000.0),
            false => 0.0,
        };
        (self.count, self.from_ms) = (0, now_ms);
    }
}

impl Topic {
    pub(crate) fn is_persistent(&self) -> bool {
        self.name.is_persistent()
    }

    /// Refuses what only stored entries make possible.
    pub(crate) fn require_persistent(&self, what: &str) -> Result<(), BrokerError> {
        if self.is_persistent() {
            return Ok(());
        }
        Err(BrokerError::NotAllowed(format!(
            "{what} is not supported on non-persistent topic"
        )))
    }

    /// Gives the batch to the consumers that take it now, and confirms it.
    pub(super) fn publish_now(
        self: &Arc<Topic>,
        state: &mut State,
        producer: &Arc<Producer>,
        batch: &Batch,
    ) {
        let now_ms = self.core.clock.now_ms();
        producer.count(batch.messages, batch.bytes as u64);
        state.counters.messages_in += batch.messages;
        state.counters.bytes_in += batch.bytes as u64;
        state.counters.entries_in += batch.entries.len() as u64;
        state.counters.chunks_in += batch.chunks;
        let entries: Vec<Entry> = batch
            .entries
            .iter()
            .map(|data| Entry {
                position: POSITION,
                data: data.clone(),
            })
            .collect();
        let source = self.source(Allowance::ANY, None, None);
        let mut dropped = 0;
        for subscription in &mut state.subscriptions {
            dropped += subscription.offer(&source, &entries);
        }
        if dropped > 0 {
            state.dropped.add(dropped, now_ms);
            producer.dropped.lock().add(dropped, now_ms);
        }
        let (ledger_id, entry_id) = POSITION.to_wire();
        producer.peer.outbox.batch().head(|head| {
            for receipt in &batch.receipts {
                let frame = SendReceipt {
                    producer_id: producer.id,
                    sequence_id: receipt.sequence_id,
                    highest_sequence_id: receipt.highest_sequence_id,
                    ledger_id,
                    entry_id,
                };
                frame.encode_frame(head);
            }
        });
    }
}

impl Core {
    /// What stands in the place of a log for all non-persistent topics.
    async fn empty_ledger(&self) -> Result<Arc<ManagedLedger>, BrokerError> {
        let made = self.empty_ledger.get_or_try_init(async || {
            let config = ManagedConfig::default();
            let storage = Storage::memory(config, self.clock.clone(), &self.tasks).await?;
            let options = OpenOptions {
                create: true,
                ..OpenOptions::default()
            };
            storage.topics.open("non-persistent", options).await
        });
        Ok(made.await?.clone())
    }

    pub(crate) async fn load_nonpersistent(
        self: &Arc<Core>,
        name: &TopicName,
        create: bool,
    ) -> Result<Arc<Topic>, BrokerError> {
        if !self.may_create(name, create).await? {
            return Err(BrokerError::TopicNotFound(name.to_string()));
        }
        let ledger = self.empty_ledger().await?;
        let in_force = self.effective_policies(name).await?;
        Ok(Topic::new(self, name.clone(), ledger, in_force))
    }

    /// The live non-persistent topics of a namespace, sorted: there are no others.
    pub(crate) fn nonpersistent_topics(&self, namespace: &NamespaceName) -> Vec<String> {
        let mut topics: Vec<String> = self
            .loaded()
            .iter()
            .map(|topic| &topic.name)
            .filter(|name| !name.is_persistent() && name.namespace_str() == namespace.as_str())
            .map(ToString::to_string)
            .collect();
        topics.sort_unstable();
        topics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_follows_what_happens_and_forgets_it() {
        let mut rate = Rate::default();
        let start = 1_000_000;
        assert_eq!(rate.per_second(start), 0.0);
        rate.add(10, start);
        assert_eq!(rate.per_second(start), 10.0);
        rate.add(50, start + 30_000);
        assert_eq!(rate.per_second(start + 30_000), 2.0);
        assert!(rate.per_second(start + 61_000) > 0.9);
        assert_eq!(rate.per_second(start + 500_000), 0.0);
    }
}
