//! What operators ask about transactions, and do to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use geminga_model::{Position, TopicName};

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::topic::Topic;
use crate::transaction::coordinator::{Coordinator, Open, Outcome};
use crate::transaction::{ASSIGN_TOPIC, TxnId};

/// A coordinator's figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoordinatorStats {
    /// The last number given out.
    pub last_number: u64,
    /// Everything up to this number has ended.
    pub low_watermark: u64,
    pub ongoing: usize,
    pub created: u64,
    pub committed: u64,
    pub aborted: u64,
    pub timed_out: u64,
}

/// A transaction that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionInfo {
    pub coordinator: u64,
    pub number: u64,
    /// `OPEN`, `COMMITTING` or `ABORTING`.
    pub status: &'static str,
    pub started_ms: u64,
    pub timeout_ms: u64,
    /// Topics that it publishes to, and from which entry on its messages may be there.
    pub partitions: BTreeMap<String, Option<Position>>,
    /// Subscriptions that it acks, by topic; and up to where, if it acks cumulatively.
    pub subscriptions: BTreeMap<String, BTreeMap<String, Option<Position>>>,
}

/// What a topic knows of transactions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicTransactions {
    /// The last entry that may be read.
    pub max_read: Position,
    pub ongoing: usize,
    pub aborted: usize,
    pub low_watermarks: BTreeMap<u64, u64>,
}

fn status(open: &Open) -> &'static str {
    match open.ending {
        None => "OPEN",
        Some(Outcome::Committed) => "COMMITTING",
        Some(Outcome::Aborted) => "ABORTING",
    }
}

fn stats(coordinator: &Coordinator) -> CoordinatorStats {
    let counters = coordinator.counters;
    CoordinatorStats {
        last_number: coordinator.last_number(),
        low_watermark: coordinator.low_watermark(),
        ongoing: coordinator.active(),
        created: counters.created,
        committed: counters.committed,
        aborted: counters.aborted,
        timed_out: counters.timed_out,
    }
}

impl Broker {
    pub fn transaction_coordinators(&self) -> Result<Vec<u64>, BrokerError> {
        self.core.transactions.check_enabled()?;
        Ok(self.core.transactions.coordinator_ids())
    }

    pub fn transaction_coordinator(&self, id: u64) -> Result<CoordinatorStats, BrokerError> {
        self.core.transactions.with(id, |c| stats(c))
    }

    /// Makes more coordinators; there are never fewer.
    pub async fn scale_transaction_coordinators(&self, count: u32) -> Result<(), BrokerError> {
        self.core.transactions.check_enabled()?;
        let name = self.core.parse_topic(ASSIGN_TOPIC)?;
        let now = self.core.catalog.coordinators().await?;
        if count <= now {
            return Err(BrokerError::PreconditionFailed(format!(
                "Number of transaction coordinators must be more than {now}"
            )));
        }
        // First, so that clients find the new ones at work.
        self.core.transactions.scale(count.into());
        self.update_partitions(&name, count).await
    }

    pub async fn transaction(
        &self,
        coordinator: u64,
        number: u64,
    ) -> Result<TransactionInfo, BrokerError> {
        let found = self
            .core
            .transactions
            .with(coordinator, |c| c.get(number).cloned())?;
        let txn = TxnId {
            tc: coordinator,
            number,
        };
        let open = found.ok_or_else(|| BrokerError::TransactionNotFound(txn.to_string()))?;
        self.info(txn, &open).await
    }

    /// Transactions that have been open for at least `age_ms`, of one coordinator or of all.
    pub async fn slow_transactions(
        &self,
        coordinator: Option<u64>,
        age_ms: u64,
    ) -> Result<Vec<TransactionInfo>, BrokerError> {
        let now_ms = self.core.clock.now_ms();
        let ids = match coordinator {
            Some(id) => vec![id],
            None => self.transaction_coordinators()?,
        };
        let mut slow = Vec::new();
        for tc in ids {
            let found: Vec<(u64, Open)> = self.core.transactions.with(tc, |c| {
                c.iter()
                    .filter(|(_, open)| now_ms.saturating_sub(open.started_ms) >= age_ms)
                    .map(|(number, open)| (number, open.clone()))
                    .collect()
            })?;
            for (number, open) in found {
                slow.push(self.info(TxnId { tc, number }, &open).await?);
            }
        }
        Ok(slow)
    }

    async fn info(&self, txn: TxnId, open: &Open) -> Result<TransactionInfo, BrokerError> {
        let mut partitions = BTreeMap::new();
        for name in &open.partitions {
            let topic = self.transaction_topic(name).await?;
            let first = topic.and_then(|topic| topic.transaction(txn)?.0);
            partitions.insert(name.to_string(), first);
        }
        let mut subscriptions: BTreeMap<String, BTreeMap<String, Option<Position>>> =
            BTreeMap::new();
        for (name, subscription) in &open.subscriptions {
            let topic = self.transaction_topic(name).await?;
            let through = topic.and_then(|topic| topic.cumulative_ack(subscription, txn));
            subscriptions
                .entry(name.to_string())
                .or_default()
                .insert(subscription.to_string(), through);
        }
        Ok(TransactionInfo {
            coordinator: txn.tc,
            number: txn.number,
            status: status(open),
            started_ms: open.started_ms,
            timeout_ms: open.timeout_ms,
            partitions,
            subscriptions,
        })
    }

    async fn transaction_topic(&self, name: &str) -> Result<Option<Arc<Topic>>, BrokerError> {
        let name = self.core.parse_topic(name)?;
        match self.core.topic(&name, false).await {
            Ok(topic) => Ok(Some(topic)),
            Err(BrokerError::TopicNotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn abort_transaction(
        &self,
        coordinator: u64,
        number: u64,
    ) -> Result<(), BrokerError> {
        let txn = TxnId {
            tc: coordinator,
            number,
        };
        let core = self.core.clone();
        let (tell, told) = tokio::sync::oneshot::channel();
        // On a task of its own: a caller that goes away does not leave it half done.
        self.core
            .tasks
            .spawn_cancellable("abort a transaction", async move {
                // Nobody may be left to hear it.
                drop(tell.send(core.end_transaction(txn, Outcome::Aborted).await));
            });
        told.await
            .unwrap_or_else(|_| Err(BrokerError::NotReady("the broker is stopping".to_owned())))
    }

    pub async fn topic_transactions(
        &self,
        name: &TopicName,
    ) -> Result<TopicTransactions, BrokerError> {
        self.core.transactions.check_enabled()?;
        let topic = self.existing(name).await?;
        let (ongoing, aborted) = topic.transaction_counts();
        let mut low_watermarks = BTreeMap::new();
        for id in self.core.transactions.coordinator_ids() {
            low_watermarks.insert(id, self.transaction_coordinator(id)?.low_watermark);
        }
        Ok(TopicTransactions {
            max_read: topic.ledger.last_position().min(topic.read_limit()),
            ongoing,
            aborted,
            low_watermarks,
        })
    }

    /// Where a transaction begins on a topic, and whether it was aborted there.
    pub async fn transaction_on_topic(
        &self,
        name: &TopicName,
        coordinator: u64,
        number: u64,
    ) -> Result<Option<(Option<Position>, bool)>, BrokerError> {
        self.core.transactions.check_enabled()?;
        let txn = TxnId {
            tc: coordinator,
            number,
        };
        Ok(self.existing(name).await?.transaction(txn))
    }

    /// How many transactions have acks that wait on a subscription.
    pub async fn pending_transactions(
        &self,
        name: &TopicName,
        subscription: &str,
    ) -> Result<usize, BrokerError> {
        self.core.transactions.check_enabled()?;
        let topic = self.existing(name).await?;
        topic.pending_acks(subscription, |acks| {
            acks.map_or(0, |acks| acks.transactions())
        })
    }

    /// Up to where a transaction acks cumulatively; none when it does not ack there at all.
    pub async fn transaction_on_subscription(
        &self,
        name: &TopicName,
        subscription: &str,
        coordinator: u64,
        number: u64,
    ) -> Result<Option<Option<Position>>, BrokerError> {
        self.core.transactions.check_enabled()?;
        let txn = TxnId {
            tc: coordinator,
            number,
        };
        let topic = self.existing(name).await?;
        topic.pending_acks(subscription, |acks| {
            let acks = acks.filter(|acks| acks.has(txn))?;
            Some(acks.cumulative_of(txn))
        })
    }

    /// Whether an entry, or a message of its batch, waits for a transaction. None = it was acked.
    pub async fn is_ack_pending(
        &self,
        name: &TopicName,
        subscription: &str,
        position: Position,
        batch_index: Option<u32>,
    ) -> Result<Option<bool>, BrokerError> {
        self.core.transactions.check_enabled()?;
        let topic = self.existing(name).await?;
        if topic.is_acked(subscription, position, batch_index)? {
            return Ok(None);
        }
        let waits = topic.pending_acks(subscription, |acks| {
            acks.is_some_and(|acks| acks.waits(position, batch_index))
        })?;
        Ok(Some(waits))
    }
}

impl Topic {
    fn transaction(&self, txn: TxnId) -> Option<(Option<Position>, bool)> {
        let (after, aborted) = self.lock().transactions.as_ref()?.find(txn)?;
        Some((after.map(|after| self.ledger.next(after)), aborted))
    }

    fn transaction_counts(&self) -> (usize, usize) {
        let state = self.lock();
        let buffer = state.transactions.as_ref();
        buffer.map_or((0, 0), |buffer| (buffer.open_len(), buffer.aborted_len()))
    }
}
