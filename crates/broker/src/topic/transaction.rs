//! A topic's side of transactions: who may publish and ack in one.

use std::sync::Arc;

use geminga_model::Position;
use geminga_proto::message::{Peek, peek};
use geminga_proto::pb::MessageIdData;
use geminga_storage::ReadLimits;
use geminga_storage::metadata::{Committed, Expected};

use super::{State, Topic};
use crate::dispatcher::ConsumerKey;
use crate::error::BrokerError;
use crate::subscription::AckRequest;
use crate::transaction::pending_ack::PendingAcks;
use crate::transaction::record::{OnTopic, ack_key, json, topic_key};
use crate::transaction::{TxnId, queued};

impl Topic {
    /// Lets a run of messages in. The topic's key takes its place in the log before their entries.
    pub(super) fn admit_transaction(
        &self,
        state: &mut State,
        txn: TxnId,
    ) -> Result<(), BrokerError> {
        let transactions = &self.core.transactions;
        transactions.add_partition(txn, &self.full_name)?;
        let buffer = state.transactions.get_or_insert_default();
        if !buffer.is_open(txn) {
            let after = self.ledger.last_position();
            let value = json(&OnTopic::open(after))?;
            let store = &self.core.catalog.store;
            queued(store.put(&topic_key(&self.name, txn), value, Expected::Any))?;
            buffer.begin(txn, after);
        }
        Ok(())
    }

    /// Takes acks that count when the transaction is committed. What it returns is durable when it
    /// resolves; none where the ack is ignored.
    pub(crate) fn ack_in_transaction(
        self: &Arc<Topic>,
        id: u32,
        key: ConsumerKey,
        cumulative: bool,
        ids: &[MessageIdData],
        txn: TxnId,
    ) -> Result<Option<Committed<'_>>, BrokerError> {
        let transactions = &self.core.transactions;
        transactions.check_enabled()?;
        self.require_persistent("A transaction")?;
        let request = AckRequest {
            cumulative,
            ids,
            batch_index: self.core.config.acknowledgment_at_batch_index_level_enabled,
            last: self.ledger.durable_position(),
            now_ms: self.core.clock.now_ms(),
        };
        let mut state = self.open()?;
        let Some(subscription) = state.subscription_mut(id) else {
            return Err(BrokerError::ConsumerNotFound);
        };
        let size = |position| self.batch_size(position);
        let acks = subscription.check_pending(txn, &request, size)?;
        if acks.is_empty() {
            return Ok(None);
        }
        transactions.add_subscription(txn, self.name.as_str(), &subscription.name)?;
        let value = json(&acks)?;
        let durable = subscription.durable;
        let name = subscription.name.clone();
        let (record, progress) = subscription.add_pending(txn, key, acks, request.now_ms);
        let stored = durable.then(|| {
            let key = ack_key(&self.name, &name, txn, record);
            self.core.catalog.store.put(&key, value, Expected::Any)
        });
        if progress {
            self.dispatch(&mut state, id);
        }
        Ok(stored)
    }

    /// How many messages an entry has, if it is in memory.
    fn batch_size(&self, position: Position) -> Option<u32> {
        let entries = self
            .ledger
            .read_cached(position, ReadLimits::new(1, usize::MAX))?;
        let entry = entries.first().filter(|entry| entry.position == position)?;
        peek(&entry.data).ok().map(|head| head.message_count())
    }

    /// The last entry that may be read, as far as open transactions go.
    pub(crate) fn read_limit(&self) -> Position {
        let state = self.lock();
        state.read_limit()
    }

    pub(crate) fn is_aborted(&self, position: Position, head: &Peek<'_>) -> bool {
        let state = self.lock();
        let buffer = state.transactions.as_ref();
        buffer.is_some_and(|buffer| buffer.is_aborted(position, head))
    }

    /// Looks at the acks of a subscription that wait for transactions.
    pub(crate) fn pending_acks<T>(
        &self,
        name: &str,
        look: impl FnOnce(Option<&PendingAcks>) -> T,
    ) -> Result<T, BrokerError> {
        let mut state = self.open()?;
        match state.subscription_named(name) {
            Some(subscription) => Ok(look(subscription.pending_acks())),
            None => Err(self.no_subscription(name)),
        }
    }

    pub(crate) fn is_acked(
        &self,
        name: &str,
        position: Position,
        batch_index: Option<u32>,
    ) -> Result<bool, BrokerError> {
        let mut state = self.open()?;
        let Some(subscription) = state.subscription_named(name) else {
            return Err(self.no_subscription(name));
        };
        let cursor = &subscription.cursor;
        let part = batch_index.and_then(|index| Some((index, cursor.batch_ack_set(position)?)));
        Ok(match part {
            Some((index, left)) => left
                .get(index as usize / 64)
                .is_none_or(|word| word >> (index % 64) & 1 == 0),
            None => cursor.is_acked(position),
        })
    }

    pub(crate) fn cumulative_ack(&self, name: &str, txn: TxnId) -> Option<Position> {
        self.pending_acks(name, |acks| acks?.cumulative_of(txn))
            .ok()?
    }

    fn no_subscription(&self, name: &str) -> BrokerError {
        BrokerError::SubscriptionNotFound {
            topic: self.name.to_string(),
            subscription: name.to_owned(),
        }
    }

    /// Forgets the aborted transactions whose entries were trimmed.
    pub(super) fn trim_transactions(&self) -> Result<(), BrokerError> {
        let gone = match &mut self.lock().transactions {
            None => return Ok(()),
            Some(buffer) => buffer.trim(self.ledger.first_position()),
        };
        self.core.transactions.forget_aborted(&self.name, &gone)
    }
}

impl State {
    pub(crate) fn read_limit(&self) -> Position {
        let open = self.transactions.as_ref();
        open.map_or(Position::LATEST, |buffer| buffer.limit())
    }
}
