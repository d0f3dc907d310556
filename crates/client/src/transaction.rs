//! Transactions: messages and acknowledgements, on any topics, that happen together or not at all.
//!
//! What must hold:
//! - A commit waits for everything that was sent and acknowledged in the transaction, and is refused
//!   when any of it failed: nothing is ever committed in part.
//! - An abort waits for it too: a message that Apache Pulsar stores after its topic has heard of the
//!   abort counts as open there for good, and holds back all that follow it on that topic.
//! - A message that may or may not have reached the broker is never sent again in a transaction,
//!   since it might then be there twice. A lost connection fails what was under way on it, and with
//!   it the transaction.
//! - The end is asked for again over lost connections until it is answered. Where no answer can be
//!   had, [`Error::OutcomeUnknown`] says so.
//! - A transaction that is dropped is aborted.

use std::collections::HashSet;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use geminga_proto::pb;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

pub(crate) use self::coordinators::Coordinators;
use crate::client::{Client, Shared};
use crate::error::{Error, Result};

mod coordinators;

/// A transaction's id: most and least bits, as Pulsar prints them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TransactionId {
    /// The coordinator.
    pub most: u64,
    /// Its number there.
    pub least: u64,
}

impl std::fmt::Display for TransactionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "({},{})", self.most, self.least)
    }
}

/// An open transaction. Cheap to clone; clones are the same transaction. Dropping the last one
/// aborts it.
#[derive(Clone)]
pub struct Transaction {
    pub(crate) open: Arc<Open>,
}

impl std::fmt::Debug for Transaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transaction")
            .field("id", &self.open.id)
            .finish_non_exhaustive()
    }
}

/// What a transaction's messages and acknowledgements share.
pub(crate) struct Open {
    pub(crate) id: TransactionId,
    shared: Arc<Shared>,
    coordinators: Arc<Coordinators>,
    state: Mutex<State>,
    /// Nothing is under way any more, or something failed.
    settled: Notify,
}

#[derive(Default)]
struct State {
    stage: Stage,
    /// Producers and consumers of which the coordinator knows.
    joined: HashSet<u64>,
    under_way: usize,
    failed: Option<Error>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    #[default]
    Open,
    Ending,
    Over,
}

impl Client {
    /// Whether the cluster has transactions.
    ///
    /// # Errors
    /// When no broker answers in time.
    pub async fn has_transactions(&self) -> Result<bool> {
        match self.shared.coordinators().await {
            Ok(_) => Ok(true),
            Err(Error::NoTransactions) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Aborts a transaction that somebody else began, and that will never end it: one who has died.
    ///
    /// # Errors
    /// When it is ended already, or is being ended; when the coordinator does not know it or does not
    /// answer in time.
    pub async fn abort_transaction(&self, id: TransactionId) -> Result<()> {
        let coordinators = self.shared.coordinators().await?;
        let deadline = Instant::now() + self.shared.operation_timeout;
        coordinators.end(id, pb::TxnAction::Abort, deadline).await
    }

    /// Begins a transaction, which the broker aborts by itself when it is not ended in time.
    ///
    /// # Errors
    /// When the broker has no transactions ([`Error::NoTransactions`]), or none answers in time.
    pub async fn transaction(&self, timeout: Duration) -> Result<Transaction> {
        let coordinators = self.shared.coordinators().await?;
        let id = coordinators.begin(timeout).await?;
        Ok(Transaction {
            open: Arc::new(Open {
                id,
                shared: self.shared.clone(),
                coordinators,
                state: Mutex::default(),
                settled: Notify::new(),
            }),
        })
    }
}

impl Transaction {
    /// The id that the coordinator gave it.
    #[must_use]
    pub fn id(&self) -> TransactionId {
        self.open.id
    }

    /// Makes everything in it happen. Waits until all of it has reached the brokers.
    ///
    /// # Errors
    /// When something in it failed (it is aborted then), when the coordinator has aborted it, or
    /// with [`Error::OutcomeUnknown`].
    pub async fn commit(&self) -> Result<()> {
        self.open.begin_end()?;
        if let Err(error) = self.open.all_settled().await {
            self.open.undo().await.unwrap_or_else(|why| {
                tracing::debug!(txn = %self.open.id, %why, "transaction not aborted: it will time out");
            });
            return Err(error);
        }
        self.open.end(pb::TxnAction::Commit).await
    }

    /// Undoes everything in it. Waits until all of it has reached the brokers, or has failed.
    ///
    /// # Errors
    /// When the coordinator does not know it any more, or does not answer in time. It is aborted by
    /// its time-out then.
    pub async fn abort(&self) -> Result<()> {
        self.open.begin_end()?;
        self.open.undo().await
    }
}

impl Open {
    /// Tells the coordinator of a topic that messages go to; once for each producer.
    pub(crate) async fn join_topic(&self, producer: u64, topic: &str) -> Result<()> {
        if self.is_joined(producer)? {
            return Ok(());
        }
        self.coordinators.add_topic(self.id, topic).await?;
        self.state.lock().joined.insert(producer);
        Ok(())
    }

    /// Tells the coordinator of a subscription; once for each consumer.
    pub(crate) async fn join_subscription(
        &self,
        consumer: u64,
        topic: &str,
        subscription: &str,
    ) -> Result<()> {
        if self.is_joined(consumer)? {
            return Ok(());
        }
        let added = self
            .coordinators
            .add_subscription(self.id, topic, subscription);
        added.await?;
        self.state.lock().joined.insert(consumer);
        Ok(())
    }

    fn is_joined(&self, id: u64) -> Result<bool> {
        let state = self.state.lock();
        if state.stage != Stage::Open {
            return Err(Error::TransactionOver);
        }
        Ok(state.joined.contains(&id))
    }

    /// Something is on its way; [`settle`](Self::settle) has to follow.
    pub(crate) fn begin(&self, count: usize) -> Result<()> {
        let mut state = self.state.lock();
        if state.stage != Stage::Open {
            return Err(Error::TransactionOver);
        }
        state.under_way += count;
        Ok(())
    }

    /// So many are done, or failed.
    pub(crate) fn settle(&self, count: usize, failure: Option<&Error>) {
        let mut state = self.state.lock();
        state.under_way = state.under_way.saturating_sub(count);
        if let Some(error) = failure {
            state.failed.get_or_insert_with(|| error.clone());
        }
        if state.under_way == 0 || state.failed.is_some() {
            self.settled.notify_one();
        }
    }

    fn begin_end(&self) -> Result<()> {
        let mut state = self.state.lock();
        if state.stage != Stage::Open {
            return Err(Error::TransactionOver);
        }
        state.stage = Stage::Ending;
        Ok(())
    }

    async fn all_settled(&self) -> Result<()> {
        loop {
            {
                let state = self.state.lock();
                if let Some(error) = &state.failed {
                    return Err(error.clone());
                }
                if state.under_way == 0 {
                    return Ok(());
                }
            }
            self.settled.notified().await;
        }
    }

    /// Waits until nothing is under way, whether it failed or not, and then asks for the abort.
    async fn undo(&self) -> Result<()> {
        let quiet = async {
            while self.state.lock().under_way > 0 {
                self.settled.notified().await;
            }
        };
        if tokio::time::timeout(self.shared.operation_timeout, quiet)
            .await
            .is_err()
        {
            tracing::debug!(txn = %self.id, "aborted with messages under way");
        }
        self.end(pb::TxnAction::Abort).await
    }

    async fn end(&self, action: pb::TxnAction) -> Result<()> {
        let deadline = Instant::now() + self.shared.operation_timeout;
        let result = self.coordinators.end(self.id, action, deadline).await;
        self.state.lock().stage = Stage::Over;
        result
    }
}

/// Runs futures side by side to the end of all. The first failure, if any.
pub(crate) async fn all<F: Future<Output = Result<()>>>(futures: Vec<F>) -> Result<()> {
    let mut running: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut result = Ok(());
    poll_fn(|cx| {
        running.retain_mut(|future| match future.as_mut().poll(cx) {
            Poll::Pending => true,
            Poll::Ready(done) => {
                if result.is_ok() {
                    result = done;
                }
                false
            }
        });
        match running.is_empty() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    result
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.state.get_mut().stage != Stage::Over {
            self.coordinators.abort_later(self.id);
        }
    }
}
