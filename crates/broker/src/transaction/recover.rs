//! What a broker finds of transactions when it starts, and a topic when it is loaded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use geminga_model::{Position, TopicName};
use geminga_storage::metadata::{Expected, MetadataStore};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::buffer::Buffer;
use super::coordinator::{Coordinator, Outcome};
use super::pending_ack::PendingAck;
use super::record::{
    ACKS, COORDINATORS, OnTopic, RECORDS, Record, Reserved, TOPICS, json, parse, parse_ack_key,
    parse_record_key, parse_topic_key, topic_acks_path, topic_key, topic_path,
};
use super::{Sweep, Transactions, TxnId, queued};
use crate::config::BrokerConfig;
use crate::error::BrokerError;
use crate::topic::Topic;

/// Open transactions of a coordinator where nothing else is set: whoever is let in may begin some,
/// that never end, and each is kept in memory and on disk.
const ACTIVE_MAX: u64 = 1 << 20;
/// Keys read at once.
const PAGE: usize = 1_000;

/// Reads everything below a path.
async fn scan(
    store: &Arc<dyn MetadataStore>,
    path: &str,
) -> Result<Vec<(String, Bytes)>, BrokerError> {
    let mut found: Vec<(String, Bytes)> = Vec::new();
    loop {
        let after = found.last().map(|(key, _)| key.as_str());
        let page = store.scan(path, after, PAGE).await?;
        let is_last = page.len() < PAGE;
        found.extend(page.into_iter().map(|(key, found)| (key, found.value)));
        if is_last {
            return Ok(found);
        }
    }
}

fn unreadable(key: &str) -> BrokerError {
    BrokerError::Metadata(format!("`{key}` is not a key of a transaction"))
}

impl Transactions {
    /// Reads what is stored. Also returns the topics that have acks to take in.
    pub(crate) async fn recover(
        store: Arc<dyn MetadataStore>,
        config: &BrokerConfig,
        coordinators: u64,
    ) -> Result<(Transactions, BTreeSet<TopicName>), BrokerError> {
        let mut all: BTreeMap<u64, Coordinator> = BTreeMap::new();
        for (key, value) in scan(&store, COORDINATORS).await? {
            let tc = key.rsplit('/').next().and_then(|tc| tc.parse().ok());
            let reserved: Reserved = parse(&key, &value)?;
            let tc = tc.ok_or_else(|| unreadable(&key))?;
            all.insert(tc, Coordinator::new(reserved.below));
        }
        for (key, value) in scan(&store, RECORDS).await? {
            let txn = parse_record_key(&key).ok_or_else(|| unreadable(&key))?;
            let record: Record = parse(&key, &value)?;
            let coordinator = all.entry(txn.tc).or_insert_with(|| Coordinator::new(0));
            match record.outcome {
                Some(outcome) => coordinator.restore_ended(txn.number, outcome),
                None => {
                    coordinator.restore(txn.number, record.started_ms, record.timeout_ms);
                    coordinator.set_owner(txn.number, record.owner.map(Arc::from));
                }
            }
        }
        let transactions = Transactions {
            store,
            is_enabled: config.transaction_coordinator_enabled,
            active_max: match config.max_active_transactions_per_coordinator {
                0 => ACTIVE_MAX,
                max => max,
            },
            coordinators: Mutex::new(all),
            reserving: tokio::sync::Mutex::new(()),
            deadlines: Notify::new(),
            ended: Notify::new(),
            sweeps: Mutex::new(VecDeque::new()),
            swept: Notify::new(),
        };
        transactions.scale(coordinators);
        let mut topics = BTreeSet::new();
        for (key, value) in scan(&transactions.store, TOPICS).await? {
            let (topic, txn) = parse_topic_key(&key).ok_or_else(|| unreadable(&key))?;
            if let OnTopic::Open { .. } = parse(&key, &value)?
                && !transactions.rejoin(txn, |c| {
                    c.add_partition(txn.number, &topic.as_str().into()).is_ok()
                })
            {
                topics.insert(topic);
            }
        }
        for (key, _) in scan(&transactions.store, ACKS).await? {
            let (topic, name, txn) = parse_ack_key(&key).ok_or_else(|| unreadable(&key))?;
            let joined = transactions.rejoin(txn, |c| {
                let name = (topic.as_str().into(), name.into());
                c.add_subscription(txn.number, name).is_ok()
            });
            if !joined {
                topics.insert(topic);
            }
        }
        Ok((transactions, topics))
    }

    fn rejoin(&self, txn: TxnId, join: impl FnOnce(&mut Coordinator) -> bool) -> bool {
        let mut coordinators = self.coordinators.lock();
        coordinators.get_mut(&txn.tc).is_some_and(join)
    }

    /// As `outcome`, whether or not transactions are enabled; one that nothing is known of was
    /// aborted: its record goes last.
    fn fate(&self, txn: TxnId) -> Option<Outcome> {
        let coordinators = self.coordinators.lock();
        let Some(coordinator) = coordinators.get(&txn.tc) else {
            return Some(Outcome::Aborted);
        };
        match coordinator.get(txn.number) {
            Some(_) => None,
            None => Some(coordinator.outcome(txn.number).unwrap_or(Outcome::Aborted)),
        }
    }

    /// Forgets everything about a topic that is deleted.
    pub(crate) async fn forget_topic(&self, topic: &TopicName) -> Result<(), BrokerError> {
        for path in [topic_path(topic), topic_acks_path(topic)] {
            for (key, _) in scan(&self.store, &path).await? {
                self.store.delete(&key, Expected::Any).await?;
            }
        }
        Ok(())
    }

    /// Forgets the acks of a subscription that is deleted.
    pub(crate) async fn forget_subscription(
        &self,
        topic: &TopicName,
        subscription: &str,
    ) -> Result<(), BrokerError> {
        let path = super::record::subscription_path(topic, subscription);
        for (key, _) in scan(&self.store, &path).await? {
            self.store.delete(&key, Expected::Any).await?;
        }
        Ok(())
    }

    /// Entries of these transactions are gone from the topic.
    pub(crate) fn forget_aborted(
        &self,
        topic: &TopicName,
        txns: &[TxnId],
    ) -> Result<(), BrokerError> {
        for txn in txns {
            queued(self.store.delete(&topic_key(topic, *txn), Expected::Any))?;
        }
        Ok(())
    }

    /// What a topic that is being loaded has to know. Nobody uses it yet.
    pub(crate) async fn restore(&self, topic: &Arc<Topic>) -> Result<(), BrokerError> {
        self.decided(&topic.name).await;
        let on_topic = scan(&self.store, &topic_path(&topic.name)).await?;
        if !on_topic.is_empty() {
            let buffer = self.restore_buffer(topic, on_topic)?;
            topic.lock().transactions = (!buffer.is_empty()).then(|| Box::new(buffer));
        }
        for (key, value) in scan(&self.store, &topic_acks_path(&topic.name)).await? {
            let (_, name, txn) = parse_ack_key(&key).ok_or_else(|| unreadable(&key))?;
            let acks: Vec<PendingAck> = parse(&key, &value)?;
            let mut sweep = Sweep {
                txn,
                topic: topic.name.clone(),
                subscription: name.as_str().into(),
                cursor: None,
                keys: vec![key],
            };
            let mut state = topic.lock();
            match (state.subscription_named(&name), self.fate(txn)) {
                (Some(subscription), None) => {
                    subscription.restore_pending(txn, acks);
                    continue;
                }
                (Some(subscription), Some(Outcome::Committed)) => {
                    subscription.commit_acks(&acks);
                    sweep.cursor = Some(subscription.cursor.clone());
                }
                (Some(_), Some(Outcome::Aborted)) | (None, _) => {}
            }
            drop(state);
            self.sweep(sweep);
        }
        Ok(())
    }

    fn restore_buffer(
        &self,
        topic: &Arc<Topic>,
        found: Vec<(String, Bytes)>,
    ) -> Result<Buffer, BrokerError> {
        let mut buffer = Buffer::default();
        for (key, value) in found {
            let (_, txn) = parse_topic_key(&key).ok_or_else(|| unreadable(&key))?;
            match (parse(&key, &value)?, self.fate(txn)) {
                (
                    OnTopic::Aborted {
                        last: (ledger, entry),
                    },
                    _,
                ) => {
                    buffer.restore_aborted(txn, Position::new(ledger, entry));
                }
                (
                    OnTopic::Open {
                        after: (ledger, entry),
                    },
                    None,
                ) => {
                    buffer.begin(txn, Position::new(ledger, entry));
                }
                // A crash came between the outcome and this key.
                (OnTopic::Open { .. }, Some(Outcome::Committed)) => {
                    queued(self.store.delete(&key, Expected::Any))?;
                }
                (OnTopic::Open { .. }, Some(Outcome::Aborted)) => {
                    let last = topic.ledger.last_position();
                    buffer.restore_aborted(txn, last);
                    queued(
                        self.store
                            .put(&key, json(&OnTopic::aborted(last))?, Expected::Any),
                    )?;
                }
            }
        }
        Ok(buffer)
    }
}
