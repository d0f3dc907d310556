//! Effects that happen once: outputs, state and acknowledgements of released messages in one
//! transaction. Design and reasons: `docs/adr/0006-effectively-once.md`.
//!
//! One transaction is being filled by the instance's loop, one before it is being committed by a task
//! beside it. What must hold:
//! - The one being filled is handed over only when the one before it is committed, so transactions
//!   are committed in the order in which their messages were released.
//! - Whatever fails ends the instance; it begins again from what is committed.
//! - Each transaction has a record in the state's topic, which only the holder of the state can write.
//! - That topic is written anew while nothing is filled or committed: what is written is committed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use geminga_client::{Client, Receipt, Transaction};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::refusals::is_refusal;
use super::source::{Acker, Incoming, Origin};
use super::state::FunctionState;
use super::{Fault, Gauge};

/// A transaction that is not ended in this time is aborted by the broker. So long can a dead worker
/// keep readers of its outputs waiting, when it has no successor: that one aborts it.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a transaction is kept open so that it ends with a whole batch of the input.
const PATIENCE: Duration = Duration::from_millis(200);

/// What an effectively-once instance has beside the others.
pub(crate) struct Once {
    pub(crate) client: Client,
    pub(crate) state: Arc<FunctionState>,
    filling: Option<Epoch>,
    /// The newest message taken of each topic: one that comes again means a new beginning.
    taken: HashMap<Arc<str>, (i64, i64, i32)>,
    /// A transaction is being committed, or the state's topic is being written anew.
    committing: Arc<AtomicBool>,
    /// The latter.
    rewriting: bool,
}

/// What the committer is given to do.
pub(crate) enum Job {
    Commit(Epoch),
    /// The state's topic has many more records than there are values.
    Rewrite,
}

/// The messages of one transaction.
pub(crate) struct Epoch {
    pub(crate) txn: Transaction,
    origins: Vec<Origin>,
    /// Messages, those without an acknowledgement included.
    count: usize,
    written: usize,
    /// The state's topic has a record of it.
    touched: bool,
    /// A successor knows of it when this is there.
    announced: Option<Receipt>,
    since: Instant,
}

impl Once {
    pub(crate) fn new(client: Client, state: Arc<FunctionState>) -> Self {
        Self {
            client,
            state,
            filling: None,
            taken: HashMap::new(),
            committing: Arc::default(),
            rewriting: false,
        }
    }

    /// Looks for messages that were taken before: the broker gives them again when the connection was
    /// lost or another consumer had them, and what was made of them is in doubt.
    pub(crate) fn check(&mut self, got: &[Incoming]) -> Result<(), Fault> {
        for incoming in got {
            let Origin::Topic { topic, id } = &incoming.origin else {
                continue;
            };
            let place = (id.ledger_id, id.entry_id, id.batch_index);
            let newest = self.taken.get_mut(topic);
            if newest.as_ref().is_some_and(|newest| place <= **newest) {
                return Err(Fault::Source(format!(
                    "message `{id}` came again: starting over from what is committed"
                )));
            }
            match newest {
                Some(newest) => *newest = place,
                None => drop(self.taken.insert(topic.clone(), place)),
            }
        }
        Ok(())
    }

    /// The transaction that a message is released into.
    pub(crate) async fn transaction(&mut self) -> Result<Transaction, Fault> {
        if let Some(epoch) = &self.filling {
            return Ok(epoch.txn.clone());
        }
        let begun = self.client.transaction(TIMEOUT).await;
        let txn = begun.map_err(|error| Fault::Commit(error.to_string()))?;
        let announced = self.state.announce(&txn).await.map_err(Fault::Commit)?;
        self.filling = Some(Epoch {
            txn: txn.clone(),
            origins: Vec::new(),
            count: 0,
            written: 0,
            touched: false,
            announced,
            since: Instant::now(),
        });
        Ok(txn)
    }

    /// A message has been released into the transaction.
    pub(crate) fn add(&mut self, origin: Option<Origin>, written: usize, touched: bool) {
        if let Some(epoch) = &mut self.filling {
            epoch.origins.extend(origin);
            epoch.count += 1;
            epoch.written += written;
            epoch.touched |= touched;
        }
    }

    /// Whether the committer has work: until it wakes the instance.
    pub(crate) fn is_committing(&self) -> bool {
        self.committing.load(Ordering::Acquire)
    }

    /// Whether messages are to wait before they are released: the state's topic is written anew, or is to be
    /// as soon as what was released is committed.
    pub(crate) fn holds(&self) -> bool {
        let rewriting = self.rewriting && self.committing.load(Ordering::Acquire);
        self.filling.is_none() && (rewriting || self.state.wants_rewriting())
    }

    /// Whether the transaction can go; `idle` says that nothing else is to be released soon.
    fn is_due(&self, idle: bool) -> bool {
        let Some(epoch) = &self.filling else {
            return false;
        };
        epoch.count > 0
            && !self.committing.load(Ordering::Acquire)
            && (idle || epoch.ends_a_batch() || epoch.since.elapsed() >= PATIENCE)
    }

    /// When to look again, if nothing else happens.
    pub(crate) fn due_at(&self) -> Option<Instant> {
        let epoch = self.filling.as_ref()?;
        let waits = epoch.count > 0 && !self.committing.load(Ordering::Acquire);
        waits.then_some(epoch.since + PATIENCE)
    }

    /// Hands the transaction to the committer, when it is time.
    pub(crate) async fn hand_over(&mut self, idle: bool, committer: &mpsc::Sender<Job>) {
        let committing = self.committing.load(Ordering::Acquire);
        self.rewriting &= committing;
        let job = if self.filling.is_none() && !committing && self.state.wants_rewriting() {
            self.rewriting = true;
            Job::Rewrite
        } else if self.is_due(idle)
            && let Some(epoch) = self.filling.take()
        {
            Job::Commit(epoch)
        } else {
            return;
        };
        self.committing.store(true, Ordering::Release);
        // When the committer is gone its fault is about to be seen.
        _ = committer.send(job).await;
    }

    /// The task that commits.
    pub(crate) fn committer(&self, acker: Arc<dyn Acker>, gauge: Arc<Gauge>) -> Committer {
        Committer {
            acker,
            gauge,
            client: self.client.clone(),
            state: self.state.clone(),
            committing: self.committing.clone(),
        }
    }
}

impl Epoch {
    fn ends_a_batch(&self) -> bool {
        match self.origins.last() {
            Some(Origin::Topic { id, .. }) => {
                id.batch_index < 0 || id.batch_index + 1 >= id.batch_size
            }
            _ => true,
        }
    }
}

/// Commits one transaction after the other.
pub(crate) struct Committer {
    acker: Arc<dyn Acker>,
    gauge: Arc<Gauge>,
    client: Client,
    state: Arc<FunctionState>,
    committing: Arc<AtomicBool>,
}

impl Committer {
    /// Runs until the instance lets go of its end, then commits what is left.
    pub(crate) async fn run(self, mut jobs: mpsc::Receiver<Job>) -> Result<(), Fault> {
        while let Some(job) = jobs.recv().await {
            match job {
                Job::Commit(epoch) => self.commit(epoch).await?,
                Job::Rewrite => {
                    let rewritten = self.state.rewrite_alone(&self.client).await;
                    rewritten.map_err(Fault::Commit)?;
                }
            }
            self.committing.store(false, Ordering::Release);
            self.gauge.woken.notify_one();
        }
        Ok(())
    }

    /// Places of messages, where some are remembered as refused.
    fn given_up(&self, origins: &[Origin]) -> Vec<String> {
        if self.gauge.refused.lock().is_empty() {
            return Vec::new();
        }
        let places = origins.iter().filter_map(|origin| match origin {
            Origin::Topic { topic, id } => Some(super::place_of(topic, &id.to_string())),
            _ => None,
        });
        places.collect()
    }

    async fn commit(&self, epoch: Epoch) -> Result<(), Fault> {
        let touch = async {
            match epoch.touched {
                true => Ok(()),
                false => self.state.touch(&epoch.txn).await,
            }
        };
        let announced = async {
            match epoch.announced {
                Some(receipt) => receipt.await.map(drop),
                None => Ok(()),
            }
        };
        let given_up = self.given_up(&epoch.origins);
        // Side by side: each waits for the disk.
        let acks = self.acker.ack_in(&epoch.txn, epoch.origins);
        let (acked, touched, announced) = tokio::join!(acks, touch, announced);
        acked.map_err(Fault::Acknowledge)?;
        touched.map_err(Fault::Commit)?;
        announced.map_err(|error| Fault::Commit(self.state.note(&error)))?;
        let committed = epoch.txn.commit().await;
        committed.map_err(|error| {
            if is_refusal(&error) {
                self.gauge.refusals.suspect_next(epoch.count);
            }
            Fault::Commit(self.state.note(&error))
        })?;
        self.gauge.forget_refused(&given_up);
        self.gauge.stats.written(epoch.written);
        self.gauge.stats.committed();
        self.gauge.out_of_flight(epoch.count);
        Ok(())
    }
}
