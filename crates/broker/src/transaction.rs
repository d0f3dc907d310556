//! Transactions: messages and acks, on any topics, that happen together or not at all.
//!
//! `coordinator` decides (pure), `record` says what is stored, `buffer` and `pending_ack` are what a
//! topic and a subscription know of it (pure), `end` carries the outcome to them, and
//! `topic/transaction.rs` is the topic's side. Design and reasons: `docs/adr/0003-transactions.md`.
//!
//! What must hold:
//! - The outcome is one record; with it, in one batch, goes what the topics' keys become.
//! - Whatever a client was told of is durable, or is in the log before something durable that
//!   needs it: a topic's key before its entries, all acks before the outcome.
//! - Once a transaction is ending nothing joins it. Joining happens under the topic's lock, and who
//!   ends it takes each of these locks once before it writes the outcome.
//!
//! Budget of a transaction of one message and one ack:
//! - log records: 1 entry, 4 small (begin, topic's key, ack, end) and a share of two more (the
//!   cursor's delta, and one batch that deletes the keys of all that ended within 100 ms);
//! - waits for the disk: 3 (message, ack, end), each shared with everything else in flight;
//! - locks: the coordinators' at each step, the topic's at each ack and twice at the end.
//!
//! A topic that has no transaction pays one branch per run of messages and one per delivered entry.
//!
//! Lock order: a topic's lock before the coordinators'.

pub(crate) mod buffer;
pub(crate) mod coordinator;
pub(crate) mod end;
pub(crate) mod pending_ack;
pub(crate) mod record;
pub(crate) mod recover;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use geminga_model::TopicName;
use geminga_proto::message::Peek;
use geminga_storage::MetadataError;
use geminga_storage::managed::Cursor;
use geminga_storage::metadata::{Committed, Expected, MetadataStore};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::BrokerError;
use coordinator::{Coordinator, New, Open, Outcome, Refusal};
use record::{Record, Reserved, coordinator_key, json, record_key};

/// Where clients ask who the coordinators are.
pub(crate) const ASSIGN_TOPIC: &str = "persistent://pulsar/system/transaction_coordinator_assign";
/// Numbers reserved at once: one record for so many transactions.
const NUMBERS: u64 = 65_536;

/// A transaction's id as the wire has it: most and least bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TxnId {
    pub(crate) tc: u64,
    pub(crate) number: u64,
}

impl TxnId {
    /// Of the fields of a command.
    pub(crate) fn from_wire(most: Option<u64>, least: Option<u64>) -> Option<TxnId> {
        Some(TxnId {
            tc: most?,
            number: least?,
        })
    }

    pub(crate) fn of(head: &Peek<'_>) -> Option<TxnId> {
        TxnId::from_wire(head.txnid_most_bits, head.txnid_least_bits)
    }
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({},{})", self.tc, self.number)
    }
}

/// All coordinators of a broker, and what the ended transactions leave to be cleaned up.
pub(crate) struct Transactions {
    store: Arc<dyn MetadataStore>,
    is_enabled: bool,
    active_max: u64,
    coordinators: Mutex<BTreeMap<u64, Coordinator>>,
    /// One reservation of numbers at a time.
    reserving: tokio::sync::Mutex<()>,
    /// A time-out may have become earlier.
    deadlines: Notify,
    /// Some transaction has ended.
    ended: Notify,
    sweeps: Mutex<VecDeque<Sweep>>,
    swept: Notify,
}

/// Ack keys of an ended transaction that may go when the cursor is durable.
pub(crate) struct Sweep {
    pub(crate) txn: TxnId,
    pub(crate) topic: TopicName,
    pub(crate) subscription: Arc<str>,
    /// None when nothing was acked.
    pub(crate) cursor: Option<Arc<Cursor>>,
    pub(crate) keys: Vec<String>,
}

impl Transactions {
    pub(crate) fn check_enabled(&self) -> Result<(), BrokerError> {
        match self.is_enabled {
            true => Ok(()),
            false => Err(BrokerError::NotAllowed(
                "Transactions are not enabled on this broker".to_owned(),
            )),
        }
    }

    pub(crate) fn coordinator_ids(&self) -> Vec<u64> {
        self.coordinators.lock().keys().copied().collect()
    }

    /// Makes coordinators up to this many.
    pub(crate) fn scale(&self, count: u64) {
        let mut coordinators = self.coordinators.lock();
        for tc in 0..count {
            coordinators
                .entry(tc)
                .or_insert_with(|| Coordinator::new(0));
        }
    }

    /// Calls one coordinator.
    pub(crate) fn with<T>(
        &self,
        tc: u64,
        call: impl FnOnce(&mut Coordinator) -> T,
    ) -> Result<T, BrokerError> {
        self.check_enabled()?;
        let mut coordinators = self.coordinators.lock();
        match coordinators.get_mut(&tc) {
            Some(coordinator) => Ok(call(coordinator)),
            None => Err(BrokerError::CoordinatorNotFound(tc)),
        }
    }

    /// Begins a transaction of `owner`.
    pub(crate) async fn begin(
        &self,
        tc: u64,
        now_ms: u64,
        timeout_ms: u64,
        owner: Option<Arc<str>>,
    ) -> Result<TxnId, BrokerError> {
        loop {
            let max = self.active_max;
            let new = self.with(tc, |c| {
                let before = c.next_deadline_ms();
                let new = c.begin(now_ms, timeout_ms, max, NUMBERS)?;
                if let New::Number(number) = new {
                    c.set_owner(number, owner.clone());
                }
                Ok((new, c.next_deadline_ms() != before))
            })?;
            match new.map_err(|refusal| refused(tc, None, refusal))? {
                (New::Number(number), is_earliest) => {
                    let txn = TxnId { tc, number };
                    let record = Record {
                        started_ms: now_ms,
                        timeout_ms,
                        outcome: None,
                        owner: owner.as_deref().map(str::to_owned),
                    };
                    // Not waited for: whatever will need it comes after it in the log.
                    let put = self
                        .store
                        .put(&record_key(txn), json(&record)?, Expected::Any);
                    queued(put)?;
                    if is_earliest {
                        self.deadlines.notify_one();
                    }
                    return Ok(txn);
                }
                (New::Reserve(below), _) => {
                    let _one = self.reserving.lock().await;
                    // Somebody else may have done it meanwhile.
                    let again = self.with(tc, |c| c.is_exhausted())?;
                    if again {
                        let value = json(&Reserved { below })?;
                        self.store
                            .put(&coordinator_key(tc), value, Expected::Any)
                            .await?;
                        self.with(tc, |c| c.reserved(below))?;
                    }
                }
            }
        }
    }

    /// Adds a topic, unless the transaction is ending.
    pub(crate) fn add_partition(&self, txn: TxnId, topic: &Arc<str>) -> Result<(), BrokerError> {
        self.with(txn.tc, |c| c.add_partition(txn.number, topic))?
            .map(drop)
            .map_err(|refusal| refused(txn.tc, Some(txn), refusal))
    }

    /// Whether nothing of the transaction will ever be seen, whatever is sent in it.
    pub(crate) fn is_lost(&self, txn: TxnId) -> bool {
        self.with(txn.tc, |c| c.is_lost(txn.number))
            .is_ok_and(|lost| lost)
    }

    pub(crate) fn add_subscription(
        &self,
        txn: TxnId,
        topic: &str,
        subscription: &str,
    ) -> Result<(), BrokerError> {
        let name = (topic.into(), subscription.into());
        self.with(txn.tc, |c| c.add_subscription(txn.number, name))?
            .map(drop)
            .map_err(|refusal| refused(txn.tc, Some(txn), refusal))
    }

    /// What became of it: `Ok(None)` while it is open.
    pub(crate) fn outcome(&self, txn: TxnId) -> Result<Option<Outcome>, BrokerError> {
        let known = self.with(txn.tc, |c| match c.outcome(txn.number) {
            Some(outcome) => Some(Some(outcome)),
            None => c.get(txn.number).map(|_| None),
        })?;
        known.ok_or_else(|| BrokerError::TransactionNotFound(txn.to_string()))
    }

    pub(crate) fn find<T>(&self, txn: TxnId, read: impl FnOnce(&Open) -> T) -> Option<T> {
        let coordinators = self.coordinators.lock();
        coordinators.get(&txn.tc)?.get(txn.number).map(read)
    }

    /// Whether it is `owner`'s. One that is not open is for the caller to find out.
    pub(crate) fn is_of(&self, txn: TxnId, owner: Option<&str>) -> bool {
        let is_his = |open: &Open| open.owner.is_none() || open.owner.as_deref() == owner;
        self.find(txn, is_his).unwrap_or(true)
    }

    /// Waits until no outcome that concerns the topic is on its way to the disk.
    pub(crate) async fn decided(&self, topic: &TopicName) {
        loop {
            let ended = self.ended.notified();
            let mut ended = std::pin::pin!(ended);
            ended.as_mut().enable();
            let deciding = {
                let coordinators = self.coordinators.lock();
                coordinators.values().any(|c| c.is_deciding(topic.as_str()))
            };
            if !deciding {
                return;
            }
            ended.await;
        }
    }

    pub(crate) fn sweep(&self, sweep: Sweep) {
        self.sweeps.lock().push_back(sweep);
        self.swept.notify_one();
    }

    /// The subscription is about to be moved: what was acked before must not be acked again.
    pub(crate) fn settle(&self, topic: &TopicName, subscription: &str) -> Result<(), BrokerError> {
        let keys: Vec<String> = {
            let sweeps = self.sweeps.lock();
            sweeps
                .iter()
                .filter(|sweep| sweep.topic == *topic && &*sweep.subscription == subscription)
                .flat_map(|sweep| sweep.keys.iter().cloned())
                .collect()
        };
        for key in keys {
            queued(self.store.delete(&key, Expected::Any))?;
        }
        Ok(())
    }
}

/// Takes a change's place in the log without waiting for the disk; only a refusal is an error.
pub(crate) fn queued(mut change: Committed<'_>) -> Result<(), MetadataError> {
    let mut context = Context::from_waker(Waker::noop());
    match change.as_mut().poll(&mut context) {
        Poll::Ready(Err(error)) => Err(error),
        Poll::Ready(Ok(_)) | Poll::Pending => Ok(()),
    }
}

fn refused(tc: u64, txn: Option<TxnId>, refusal: Refusal) -> BrokerError {
    let txn = txn.map_or_else(String::new, |txn| txn.to_string());
    match refusal {
        Refusal::NotFound => BrokerError::TransactionNotFound(txn),
        Refusal::Ended => {
            BrokerError::InvalidTransaction(format!("the transaction {txn} is ending or has ended"))
        }
        Refusal::TooMany => BrokerError::TooManyTransactions(tc),
        Refusal::Full => BrokerError::NotAllowed(format!(
            "the transaction {txn} has too many topics or subscriptions"
        )),
    }
}
