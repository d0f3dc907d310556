//! The transaction coordinators of a cluster: which there are, a connection to each, and requests
//! that find their coordinator again after it has moved.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use geminga_model::name::TopicName;
use geminga_proto::pb::{self, ServerError};
use geminga_proto::{Command, command::NO_REQUEST};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::TransactionId;
use crate::client::{Shared, topic_name};
use crate::connection::Connection;
use crate::error::{Error, Result};

/// The topic whose partitions stand for the coordinators.
const ASSIGN_TOPIC: &str = "persistent://pulsar/system/transaction_coordinator_assign";

/// All coordinators.
pub(crate) struct Coordinators {
    shared: std::sync::Weak<Shared>,
    each: Vec<Coordinator>,
    /// Transactions are spread over them in turn.
    next: AtomicUsize,
}

struct Coordinator {
    id: u64,
    topic: TopicName,
    connecting: tokio::sync::Mutex<()>,
    connection: Mutex<Option<Arc<Connection>>>,
}

impl Shared {
    /// The coordinators, looked for at first use.
    pub(crate) async fn coordinators(self: &Arc<Self>) -> Result<Arc<Coordinators>> {
        let found = self.coordinators.get_or_try_init(|| async {
            let assign = topic_name(ASSIGN_TOPIC)?;
            let count = match self.partitions(&assign).await {
                Ok(count) => count,
                // A cluster that never had transactions may not even have the namespace.
                Err(error) if error.server_error().is_some() && !error.is_retriable() => 0,
                Err(error) => return Err(error),
            };
            if count == 0 {
                return Err(Error::NoTransactions);
            }
            let each = (0..count).map(|number| Coordinator {
                id: u64::from(number),
                topic: assign.with_partition(number),
                connecting: tokio::sync::Mutex::default(),
                connection: Mutex::default(),
            });
            let coordinators = Coordinators {
                shared: Arc::downgrade(self),
                each: each.collect(),
                next: AtomicUsize::new(0),
            };
            // That there is a topic does not mean that somebody answers for it.
            self.retry(|| coordinators.each[0].connection(self)).await?;
            Ok(Arc::new(coordinators))
        });
        found.await.cloned()
    }
}

impl Coordinator {
    /// The connection to the broker that has this coordinator; one attempt.
    async fn connection(&self, shared: &Shared) -> Result<Arc<Connection>> {
        let open = || {
            let connection = self.connection.lock();
            connection.clone().filter(|connection| connection.is_open())
        };
        if let Some(connection) = open() {
            return Ok(connection);
        }
        let _alone = self.connecting.lock().await;
        if let Some(connection) = open() {
            return Ok(connection);
        }
        let broker = shared.lookup(&self.topic).await?;
        let connection = shared.broker_connection(&broker, 0).await?;
        let answer = connection
            .request("connect to a transaction coordinator", |request_id| {
                pb::CommandTcClientConnectRequest {
                    request_id,
                    tc_id: self.id,
                }
                .into()
            })
            .await;
        match answer {
            Ok(_) => {}
            Err(error) if error.server_error() == Some(ServerError::NotAllowedError) => {
                return Err(Error::NoTransactions);
            }
            // It is being loaded.
            Err(error)
                if error.server_error() == Some(ServerError::TransactionCoordinatorNotFound) =>
            {
                return Err(Error::Disconnected {
                    address: connection.address().to_owned(),
                    reason: error.to_string(),
                });
            }
            Err(error) => return Err(error),
        }
        *self.connection.lock() = Some(connection.clone());
        Ok(connection)
    }

    fn forget(&self, connection: &Arc<Connection>) {
        let mut known = self.connection.lock();
        if known
            .as_ref()
            .is_some_and(|known| Arc::ptr_eq(known, connection))
        {
            *known = None;
        }
    }

    /// One attempt of a request. A coordinator that has moved counts as a lost connection.
    async fn ask(
        &self,
        shared: &Shared,
        what: &'static str,
        make: &(impl Fn(u64) -> Command + Sync),
    ) -> Result<Command> {
        let connection = self.connection(shared).await?;
        match connection.request(what, make).await {
            Err(error)
                if error.server_error() == Some(ServerError::TransactionCoordinatorNotFound) =>
            {
                self.forget(&connection);
                Err(Error::Disconnected {
                    address: connection.address().to_owned(),
                    reason: error.to_string(),
                })
            }
            answer => answer,
        }
    }
}

impl Coordinators {
    fn shared(&self) -> Result<Arc<Shared>> {
        self.shared.upgrade().ok_or(Error::Closed)
    }

    fn of(&self, txn: TransactionId) -> Result<&Coordinator> {
        let index = usize::try_from(txn.most).unwrap_or(usize::MAX);
        self.each.get(index).ok_or(Error::NoTransactions)
    }

    pub(super) async fn begin(&self, timeout: Duration) -> Result<TransactionId> {
        let shared = self.shared()?;
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let coordinator = &self.each[turn % self.each.len()];
        let make = |request_id| -> Command {
            pb::CommandNewTxn {
                request_id,
                txn_ttl_millis: Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
                tc_id: Some(coordinator.id),
            }
            .into()
        };
        // Asked again after a lost answer: one too many is empty, and ends by its time-out.
        let ask = || coordinator.ask(&shared, "new transaction", &make);
        match shared.retry(ask).await? {
            Command::NewTxnResponse(answer) => Ok(TransactionId {
                most: answer.txnid_most_bits(),
                least: answer.txnid_least_bits(),
            }),
            other => Err(Error::UnexpectedAnswer(other.name())),
        }
    }

    pub(super) async fn add_topic(&self, txn: TransactionId, topic: &str) -> Result<()> {
        let shared = self.shared()?;
        let coordinator = self.of(txn)?;
        let make = |request_id| -> Command {
            pb::CommandAddPartitionToTxn {
                request_id,
                txnid_least_bits: Some(txn.least),
                txnid_most_bits: Some(txn.most),
                partitions: vec![topic.to_owned()],
            }
            .into()
        };
        let ask = || coordinator.ask(&shared, "add a topic to a transaction", &make);
        shared.retry(ask).await.map(drop)
    }

    pub(super) async fn add_subscription(
        &self,
        txn: TransactionId,
        topic: &str,
        subscription: &str,
    ) -> Result<()> {
        let shared = self.shared()?;
        let coordinator = self.of(txn)?;
        let make = |request_id| -> Command {
            pb::CommandAddSubscriptionToTxn {
                request_id,
                txnid_least_bits: Some(txn.least),
                txnid_most_bits: Some(txn.most),
                subscription: vec![pb::Subscription {
                    topic: topic.to_owned(),
                    subscription: subscription.to_owned(),
                }],
            }
            .into()
        };
        let ask = || coordinator.ask(&shared, "add a subscription to a transaction", &make);
        shared.retry(ask).await.map(drop)
    }

    /// Ends a transaction, asking again over lost connections until `deadline`.
    pub(super) async fn end(
        &self,
        txn: TransactionId,
        action: pb::TxnAction,
        deadline: Instant,
    ) -> Result<()> {
        let shared = self.shared()?;
        let coordinator = self.of(txn)?;
        let make = |request_id| end_command(txn, action, request_id);
        let mut backoff = shared.new_backoff();
        // Whether an earlier request may have been carried out.
        let mut asked = false;
        loop {
            let error = match coordinator.ask(&shared, "end a transaction", &make).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if !error.is_retriable() {
                // Pulsar forgets what it has ended: after a lost answer this is no "no".
                let forgotten = error.server_error() == Some(ServerError::TransactionNotFound);
                return Err(match asked && forgotten {
                    true => Error::OutcomeUnknown(txn),
                    false => error,
                });
            }
            asked |= !matches!(error, Error::Connect { .. });
            let delay = backoff.next_delay();
            if Instant::now() + delay >= deadline {
                return Err(match asked {
                    true => Error::OutcomeUnknown(txn),
                    false => error,
                });
            }
            shared.sleep(delay).await?;
        }
    }

    /// Asks for an abort without waiting for it.
    pub(super) fn abort_later(&self, txn: TransactionId) {
        let connection = self.of(txn).ok().and_then(|c| c.connection.lock().clone());
        if let Some(connection) = connection {
            // Nobody waits for the answer; without it the transaction times out.
            _ = connection
                .begin_request(|request_id| end_command(txn, pb::TxnAction::Abort, request_id));
        }
    }
}

fn end_command(txn: TransactionId, action: pb::TxnAction, request_id: u64) -> Command {
    debug_assert_ne!(request_id, NO_REQUEST);
    pb::CommandEndTxn {
        request_id,
        txnid_least_bits: Some(txn.least),
        txnid_most_bits: Some(txn.most),
        txn_action: Some(action as i32),
    }
    .into()
}
