//! TC_CLIENT_CONNECT, NEW_TXN, ADD_PARTITION_TO_TXN, ADD_SUBSCRIPTION_TO_TXN, END_TXN and what
//! brokers ask of each other. Errors come in the response of the command; that transactions are off
//! comes as an ERROR, as Pulsar says it.

use geminga_proto::pb::{
    CommandAddPartitionToTxn, CommandAddPartitionToTxnResponse, CommandAddSubscriptionToTxn,
    CommandAddSubscriptionToTxnResponse, CommandEndTxn, CommandEndTxnOnPartition,
    CommandEndTxnOnPartitionResponse, CommandEndTxnOnSubscription,
    CommandEndTxnOnSubscriptionResponse, CommandEndTxnResponse, CommandNewTxn,
    CommandNewTxnResponse, CommandTcClientConnectRequest, CommandTcClientConnectResponse,
    TxnAction,
};

use super::Connection;
use crate::auth::Need;
use crate::error::BrokerError;
use crate::topic::subscribe::check_name;
use crate::transaction::TxnId;
use crate::transaction::coordinator::Outcome;

fn code(result: &Result<(), BrokerError>) -> (Option<i32>, Option<String>) {
    match result {
        Ok(()) => (None, None),
        Err(reason) => (Some(reason.server_error() as i32), Some(reason.to_string())),
    }
}

fn wire(most: Option<u64>, least: Option<u64>) -> TxnId {
    TxnId {
        tc: most.unwrap_or(0),
        number: least.unwrap_or(0),
    }
}

fn outcome(action: Option<i32>) -> Result<Outcome, BrokerError> {
    match action.map(TxnAction::try_from) {
        Some(Ok(TxnAction::Commit)) => Ok(Outcome::Committed),
        Some(Ok(TxnAction::Abort)) => Ok(Outcome::Aborted),
        Some(Err(_)) | None => Err(BrokerError::InvalidTransaction(
            "the action is neither commit nor abort".to_owned(),
        )),
    }
}

impl Connection {
    /// True when it has been refused.
    fn refuse_transactions(&self, request_id: u64) -> bool {
        let refusal = self.core.transactions.check_enabled().err();
        if let Some(reason) = &refusal {
            self.refuse(request_id, reason);
        }
        refusal.is_some()
    }

    /// Under which name this client's transactions are kept; none where nobody asks who it is.
    fn txn_owner(&self) -> Option<&str> {
        if !self.core.config.security.authentication_enabled {
            return None;
        }
        let session = &self.login.session;
        match session.is_internal {
            // No role has this name.
            true => Some(""),
            false => session.principal(),
        }
    }

    /// A transaction is its owner's, and the super users': numbers can be guessed.
    pub(super) fn check_txn_owner(&self, txn: TxnId) -> Result<(), BrokerError> {
        let security = &self.core.config.security;
        if !security.authentication_enabled || self.core.transactions.is_of(txn, self.txn_owner()) {
            return Ok(());
        }
        let session = &self.login.session;
        let is_super = security.authorization_enabled
            && self
                .core
                .security
                .authorize(session, &Need::SuperUser)
                .is_ok();
        match is_super {
            true => Ok(()),
            // As Pulsar: what is somebody else's is not there.
            false => Err(BrokerError::TransactionNotFound(format!(
                "the client is neither the owner of the transaction {txn} nor a super user"
            ))),
        }
    }

    pub(super) fn handle_tc_connect(&mut self, request: &CommandTcClientConnectRequest) {
        let request_id = request.request_id;
        if self.refuse_transactions(request_id) {
            return;
        }
        let (error, message) = code(&self.core.transactions.with(request.tc_id, |_| ()));
        self.peer.outbox.send(CommandTcClientConnectResponse {
            request_id,
            error,
            message,
        });
    }

    pub(super) fn handle_new_txn(&mut self, request: &CommandNewTxn) {
        let request_id = request.request_id;
        if self.refuse_transactions(request_id) {
            return;
        }
        let (tc, timeout_ms) = (request.tc_id(), request.txn_ttl_millis());
        let core = self.core.clone();
        let owner = self.txn_owner().map(std::sync::Arc::from);
        self.request("begin a transaction", async move {
            let now_ms = core.clock.now_ms();
            let result = core.transactions.begin(tc, now_ms, timeout_ms, owner).await;
            move |connection: &mut Connection| {
                let number = result.as_ref().ok().map(|txn| txn.number);
                let (error, message) = code(&result.map(drop));
                connection.peer.outbox.send(CommandNewTxnResponse {
                    request_id,
                    txnid_least_bits: Some(number.unwrap_or(0)),
                    txnid_most_bits: Some(tc),
                    error,
                    message,
                });
            }
        });
    }

    pub(super) fn handle_add_partition(&mut self, request: &CommandAddPartitionToTxn) {
        let request_id = request.request_id;
        if self.refuse_transactions(request_id) {
            return;
        }
        let txn = wire(request.txnid_most_bits, request.txnid_least_bits);
        let add = |name: &String| {
            let name = self.core.parse_topic(name)?;
            let transactions = &self.core.transactions;
            transactions.add_partition(txn, &name.as_str().into())
        };
        let result = self
            .check_txn_owner(txn)
            .and_then(|()| self.core.transactions.outcome(txn))
            .and_then(|_| request.partitions.iter().try_for_each(add));
        let (error, message) = code(&result);
        self.peer.outbox.send(CommandAddPartitionToTxnResponse {
            request_id,
            txnid_least_bits: Some(txn.number),
            txnid_most_bits: Some(txn.tc),
            error,
            message,
        });
    }

    pub(super) fn handle_add_subscription(&mut self, request: &CommandAddSubscriptionToTxn) {
        let request_id = request.request_id;
        if self.refuse_transactions(request_id) {
            return;
        }
        let txn = wire(request.txnid_most_bits, request.txnid_least_bits);
        let add = |named: &geminga_proto::pb::Subscription| {
            let name = self.core.parse_topic(&named.topic)?;
            check_name(&named.subscription)?;
            let transactions = &self.core.transactions;
            transactions.add_subscription(txn, name.as_str(), &named.subscription)
        };
        let result = self
            .check_txn_owner(txn)
            .and_then(|()| self.core.transactions.outcome(txn))
            .and_then(|_| request.subscription.iter().try_for_each(add));
        let (error, message) = code(&result);
        self.peer.outbox.send(CommandAddSubscriptionToTxnResponse {
            request_id,
            txnid_least_bits: Some(txn.number),
            txnid_most_bits: Some(txn.tc),
            error,
            message,
        });
    }

    pub(super) fn handle_end_txn(&mut self, request: &CommandEndTxn) {
        let request_id = request.request_id;
        if self.refuse_transactions(request_id) {
            return;
        }
        let txn = wire(request.txnid_most_bits, request.txnid_least_bits);
        let action = self
            .check_txn_owner(txn)
            .and_then(|()| outcome(request.txn_action));
        let core = self.core.clone();
        self.request("end a transaction", async move {
            let result = match action {
                Ok(outcome) => core.end_transaction(txn, outcome).await,
                Err(reason) => Err(reason),
            };
            move |connection: &mut Connection| {
                let (error, message) = code(&result);
                connection.peer.outbox.send(CommandEndTxnResponse {
                    request_id,
                    txnid_least_bits: Some(txn.number),
                    txnid_most_bits: Some(txn.tc),
                    error,
                    message,
                });
            }
        });
    }

    /// Every participant is on this broker, and END_TXN has told it already: what is asked is
    /// whether that is so.
    fn participant_end(
        &self,
        txn: TxnId,
        action: Option<i32>,
        topic: Option<&str>,
    ) -> Result<(), BrokerError> {
        let wanted = outcome(action)?;
        self.core.parse_topic(topic.unwrap_or_default())?;
        match self.core.transactions.outcome(txn) {
            Ok(Some(known)) if known == wanted => Ok(()),
            // Long ended, and forgotten.
            Err(BrokerError::TransactionNotFound(_)) => Ok(()),
            Ok(_) => Err(BrokerError::InvalidTransaction(format!(
                "the transaction {txn} has not ended so"
            ))),
            Err(error) => Err(error),
        }
    }

    pub(super) fn handle_end_on_partition(&mut self, request: &CommandEndTxnOnPartition) {
        let request_id = request.request_id;
        if self.refuse_transactions(request_id) {
            return;
        }
        let txn = wire(request.txnid_most_bits, request.txnid_least_bits);
        let topic = request.topic.as_deref();
        let (error, message) = code(&self.participant_end(txn, request.txn_action, topic));
        self.peer.outbox.send(CommandEndTxnOnPartitionResponse {
            request_id,
            txnid_least_bits: Some(txn.number),
            txnid_most_bits: Some(txn.tc),
            error,
            message,
        });
    }

    pub(super) fn handle_end_on_subscription(&mut self, request: &CommandEndTxnOnSubscription) {
        let request_id = request.request_id;
        if self.refuse_transactions(request_id) {
            return;
        }
        let txn = wire(request.txnid_most_bits, request.txnid_least_bits);
        let named = request.subscription.as_ref();
        let topic = named.map(|named| named.topic.as_str());
        let (error, message) = code(&self.participant_end(txn, request.txn_action, topic));
        self.peer.outbox.send(CommandEndTxnOnSubscriptionResponse {
            request_id,
            txnid_least_bits: Some(txn.number),
            txnid_most_bits: Some(txn.tc),
            error,
            message,
        });
    }
}
