//! Ending transactions: the outcome is stored, then everybody is told; and what is left is swept.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use geminga_model::{Position, TopicName};
use geminga_storage::ManagedError;
use geminga_storage::metadata::{Expected, Op};

use super::coordinator::{End, Outcome, SubscriptionName};
use super::record::{OnTopic, Record, json, record_key, topic_key};
use super::{Sweep, Transactions, TxnId, refused};
use crate::broker::Core;
use crate::error::BrokerError;
use crate::topic::{Life, Topic};

/// Changes of one batch; a transaction with more topics has its outcome first, and the rest after.
const OPS_MAX: usize = 500;
/// What ended within this time is swept together.
const SWEEP_DELAY: Duration = Duration::from_millis(100);

/// A participant as the first pass found it.
struct Part {
    name: TopicName,
    /// The last entry that can belong to the transaction.
    last: Position,
    subscriptions: Vec<Arc<str>>,
}

impl Core {
    /// Ends a transaction. Resolves when the outcome is durable and in force; asked again, it says
    /// the same.
    pub(crate) async fn end_transaction(
        self: &Arc<Core>,
        txn: TxnId,
        outcome: Outcome,
    ) -> Result<(), BrokerError> {
        loop {
            let ended = self.transactions.ended.notified();
            let mut ended = std::pin::pin!(ended);
            ended.as_mut().enable();
            let end = self
                .transactions
                .with(txn.tc, |c| c.end(txn.number, outcome))?
                .map_err(|refusal| refused(txn.tc, Some(txn), refusal))?;
            match end {
                End::Done => return Ok(()),
                End::UnderWay => ended.await,
                End::Begin {
                    partitions,
                    subscriptions,
                } => {
                    let done = self
                        .carry_out(txn, outcome, &partitions, &subscriptions)
                        .await;
                    if done.is_err() {
                        self.transactions.with(txn.tc, |c| c.failed(txn.number))?;
                        self.transactions.deadlines.notify_one();
                    }
                    self.transactions.ended.notify_waiters();
                    return done;
                }
            }
        }
    }

    async fn carry_out(
        self: &Arc<Core>,
        txn: TxnId,
        outcome: Outcome,
        partitions: &[Arc<str>],
        subscriptions: &[SubscriptionName],
    ) -> Result<(), BrokerError> {
        let parts = self.freeze(partitions, subscriptions).await?;
        let ops = self.outcome_ops(txn, outcome, partitions, &parts).await?;
        let transactions = &self.transactions;
        transactions.with(txn.tc, |c| c.deciding(txn.number))?;
        let mut ops = ops.into_iter();
        // The first one is the outcome; a batch of all of them where that is small enough.
        let first: Vec<Op> = match ops.len() {
            ..=OPS_MAX => ops.by_ref().collect(),
            _ => ops.by_ref().take(1).collect(),
        };
        transactions.store.commit(first).await?;
        transactions.with(txn.tc, |c| c.ended(txn.number, outcome))?;
        transactions.ended.notify_waiters();
        transactions.deadlines.notify_one();
        self.tell(txn, outcome, &parts).await;
        loop {
            let batch: Vec<Op> = ops.by_ref().take(OPS_MAX).collect();
            if batch.is_empty() {
                break;
            }
            // They say nothing that the outcome does not.
            if let Err(error) = transactions.store.commit(batch).await {
                tracing::error!(%txn, %error, "a transaction's keys were not cleaned up");
            }
        }
        transactions.swept.notify_one();
        Ok(())
    }

    /// Visits every topic once: whoever joined before has appended by then, and nobody joins now.
    async fn freeze(
        self: &Arc<Core>,
        partitions: &[Arc<str>],
        subscriptions: &[SubscriptionName],
    ) -> Result<Vec<Part>, BrokerError> {
        let mut names: BTreeMap<&str, Vec<Arc<str>>> = BTreeMap::new();
        for topic in partitions {
            names.entry(topic).or_default();
        }
        for (topic, subscription) in subscriptions {
            names.entry(topic).or_default().push(subscription.clone());
        }
        let mut parts = Vec::with_capacity(names.len());
        for (name, subscriptions) in names {
            let name = self.parse_topic(name)?;
            let topic = match self.topic(&name, false).await {
                Ok(topic) => topic,
                // Deleted meanwhile, or never made.
                Err(
                    BrokerError::TopicNotFound(_)
                    | BrokerError::NamespaceNotFound(_)
                    | BrokerError::NotAllowed(_),
                ) => continue,
                Err(error) => return Err(error),
            };
            let last = {
                let _frozen = topic.lock();
                topic.ledger.last_position()
            };
            parts.push(Part {
                name,
                last,
                subscriptions,
            });
        }
        Ok(parts)
    }

    async fn outcome_ops(
        &self,
        txn: TxnId,
        outcome: Outcome,
        partitions: &[Arc<str>],
        parts: &[Part],
    ) -> Result<Vec<Op>, BrokerError> {
        let (started_ms, timeout_ms) = self
            .transactions
            .find(txn, |open| (open.started_ms, open.timeout_ms))
            .unwrap_or_default();
        let record = Record {
            started_ms,
            timeout_ms,
            outcome: Some(outcome),
            // Whoever asks again learns the outcome and changes nothing.
            owner: None,
        };
        let mut ops = vec![Op::Put {
            key: record_key(txn).into(),
            value: json(&record)?,
            expected: Expected::Any,
        }];
        let expected = Expected::Any;
        let of_messages =
            |part: &&Part| partitions.iter().any(|name| **name == *part.name.as_str());
        for part in parts.iter().filter(of_messages) {
            let key: Arc<str> = topic_key(&part.name, txn).into();
            // Added, and then nothing was sent.
            if self.transactions.store.get(&key).await?.is_none() {
                continue;
            }
            ops.push(match outcome {
                Outcome::Committed => Op::Delete { key, expected },
                Outcome::Aborted => Op::Put {
                    key,
                    value: json(&OnTopic::aborted(part.last))?,
                    expected,
                },
            });
        }
        Ok(ops)
    }

    async fn tell(self: &Arc<Core>, txn: TxnId, outcome: Outcome, parts: &[Part]) {
        for part in parts {
            loop {
                let topic = match self.topic(&part.name, false).await {
                    Ok(topic) => topic,
                    Err(error) => {
                        // The next load finds the outcome.
                        tracing::debug!(%txn, topic = %part.name, %error, "not told of an outcome");
                        break;
                    }
                };
                if topic.transaction_ended(txn, outcome, part.last, &part.subscriptions) {
                    break;
                }
            }
        }
    }

    /// The task that aborts what takes too long.
    pub(crate) async fn time_out_transactions(self: Arc<Core>) {
        loop {
            let changed = self.transactions.deadlines.notified();
            let now_ms = self.clock.now_ms();
            let (overdue, next_ms) = self.transactions.overdue(now_ms);
            for txn in overdue {
                tracing::info!(%txn, "a transaction is aborted: its time is up");
                match self.end_transaction(txn, Outcome::Aborted).await {
                    Ok(()) => drop(
                        self.transactions
                            .with(txn.tc, |c| c.counters.timed_out += 1),
                    ),
                    // Ended by its client just now.
                    Err(BrokerError::InvalidTransaction(_)) => {}
                    Err(error) => {
                        tracing::warn!(%txn, %error, "a transaction could not be aborted");
                        tokio::time::sleep(SWEEP_DELAY).await;
                    }
                }
            }
            match next_ms {
                None => changed.await,
                Some(at_ms) => {
                    let wait = Duration::from_millis(at_ms.saturating_sub(now_ms).max(1));
                    drop(tokio::time::timeout(wait, changed).await);
                }
            }
        }
    }

    /// The task that deletes what ended transactions leave behind.
    pub(crate) async fn sweep_transactions(self: Arc<Core>) {
        loop {
            self.transactions.swept.notified().await;
            tokio::time::sleep(SWEEP_DELAY).await;
            if let Err(error) = self.transactions.sweep_now().await {
                tracing::warn!(%error, "ended transactions were not swept");
            }
        }
    }
}

impl Transactions {
    /// What is overdue, and when the next one after that will be.
    fn overdue(&self, now_ms: u64) -> (Vec<TxnId>, Option<u64>) {
        let coordinators = self.coordinators.lock();
        let mut overdue = Vec::new();
        let mut next_ms: Option<u64> = None;
        for (tc, coordinator) in coordinators.iter() {
            let numbers = coordinator.overdue(now_ms);
            overdue.extend(numbers.into_iter().map(|number| TxnId { tc: *tc, number }));
            let next = coordinator.next_deadline_ms();
            next_ms = [next_ms, next].into_iter().flatten().min();
        }
        (overdue, next_ms)
    }

    /// Deletes the keys of acks that are in their cursors for good, and the oldest outcomes.
    async fn sweep_now(&self) -> Result<(), BrokerError> {
        let (count, mut cursors) = {
            let sweeps = self.sweeps.lock();
            let cursors: Vec<_> = sweeps.iter().filter_map(|s| s.cursor.clone()).collect();
            (sweeps.len(), cursors)
        };
        cursors.sort_unstable_by_key(|cursor| Arc::as_ptr(cursor).addr());
        cursors.dedup_by(|a, b| Arc::ptr_eq(a, b));
        for cursor in cursors {
            match cursor.durable().await {
                // The subscription was deleted, and its acks with it.
                Ok(()) | Err(ManagedError::NoCursor { .. } | ManagedError::Deleted { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut ops: Vec<Op> = Vec::new();
        let mut delete = |key: String| {
            ops.push(Op::Delete {
                key: key.into(),
                expected: Expected::Any,
            });
        };
        let kept: HashSet<TxnId> = {
            let sweeps = self.sweeps.lock();
            let keys = sweeps.iter().take(count).flat_map(|sweep| &sweep.keys);
            keys.cloned().for_each(&mut delete);
            sweeps.iter().skip(count).map(|sweep| sweep.txn).collect()
        };
        {
            let mut coordinators = self.coordinators.lock();
            for (tc, coordinator) in coordinators.iter_mut() {
                let txn = |number| TxnId { tc: *tc, number };
                for number in coordinator.forget(|number| kept.contains(&txn(number))) {
                    delete(record_key(txn(number)));
                }
            }
        }
        // Acks first, records after them: the order in which a crash may cut them short.
        while !ops.is_empty() {
            let rest = ops.split_off(ops.len().min(OPS_MAX));
            self.store.commit(std::mem::replace(&mut ops, rest)).await?;
        }
        self.sweeps.lock().drain(..count);
        Ok(())
    }
}

impl Topic {
    /// Puts an outcome in force here. False when this topic is closed, and another one to be asked.
    fn transaction_ended(
        self: &Arc<Topic>,
        txn: TxnId,
        outcome: Outcome,
        last: Position,
        subscriptions: &[Arc<str>],
    ) -> bool {
        let mut state = self.lock();
        if state.life != Life::Open {
            return false;
        }
        if let Some(buffer) = &mut state.transactions {
            match outcome {
                Outcome::Committed => buffer.commit(txn),
                Outcome::Aborted => buffer.abort(txn, last),
            };
        }
        for name in subscriptions {
            let Some(subscription) = state.subscription_named(name) else {
                continue;
            };
            let Some((cursor, records)) = subscription.transaction_ended(txn, outcome) else {
                continue;
            };
            self.core.transactions.sweep(Sweep {
                txn,
                topic: self.name.clone(),
                subscription: name.clone(),
                cursor: Some(cursor),
                keys: (0..records)
                    .map(|n| super::record::ack_key(&self.name, name, txn, n))
                    .collect(),
            });
        }
        self.dispatch_all(&mut state);
        true
    }
}
