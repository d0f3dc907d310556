//! One instance of a component: reads messages, has them processed, releases outputs in order,
//! acknowledges.
//!
//! The loop here owns the messages in flight. What must hold:
//! - At-least-once: a message is acknowledged after its outputs and its state changes are durable;
//!   a crash at any instruction leaves it with the broker. At-most-once: it is acknowledged before
//!   it is processed. Effectively-once: outputs, state and acknowledgements of many messages are
//!   one transaction (`once`).
//! - Outputs leave in the order in which their messages came. A message that is tried again leaves
//!   the line, unless order was asked for: then it holds the line up.
//! - Nothing is dropped: the loop takes no more than it can hold, and so the broker holds the rest.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use geminga_model::ProcessingGuarantees;
use geminga_stdx::Tasks;
use geminga_stdx::tasks::OnError;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use self::gather::Gather;
use self::once::Once;
use self::refusals::Refusals;
use self::room::Room;
use self::sink::Sink;
use self::source::{Incoming, Origin, Source};
use self::state::FunctionState;
use self::stats::Stats;
use self::work::{Again, Held, Work};
use crate::plan::Policy;
use crate::rights::Limits;
use crate::runtime::{
    Broken, Delivery, Failure, FailureKind, Host, Outcome, Output, Services, StateChange, Verdict,
};

pub(crate) mod commit;
pub(crate) mod context;
pub(crate) mod gather;
mod gathering;
pub(crate) mod guarantee;
pub(crate) mod once;
pub(crate) mod order;
pub(crate) mod quantiles;
pub(crate) mod refusals;
mod release;
mod retries;
pub(crate) mod room;
pub(crate) mod sink;
pub(crate) mod source;
pub(crate) mod state;
pub(crate) mod stats;
#[cfg(test)]
mod tests;
pub(crate) mod window;
mod work;

/// Messages in flight where no host sets a window: a connector.
const WINDOW_PLAIN: usize = 1000;
/// Messages whose outputs may be on their way at once, beside those in the host. Of each its place and its
/// receipts are kept; the outputs are the producers', who bound their bytes.
const UNCOMMITTED_MAX: usize = 16_384;
/// Messages that a function with manual acks may hold.
const HELD_MAX: usize = 10_000;
/// How long the last publications of a broken instance are waited for.
const LAST_OF_BROKEN: Duration = Duration::from_secs(1);
/// The same for log lines, of any.
const LAST_LOGS: Duration = Duration::from_secs(1);

/// What others may look at while an instance runs.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    pub(crate) stats: Stats,
    /// Received and not yet acknowledged, or given up.
    pub(crate) in_flight: AtomicUsize,
    /// The source has ended for good.
    pub(crate) ended: AtomicBool,
    /// Events the source will give in all, when it knows; 0 when not.
    pub(crate) total: AtomicU64,
    pub(crate) last_received: Mutex<Option<Instant>>,
    /// Messages that wait for the function's own acknowledgement, by id.
    pub(crate) held: Mutex<HashMap<String, Origin>>,
    /// Acknowledged by the function and not handed on yet.
    pub(crate) manual_acks: Mutex<Vec<Origin>>,
    pub(crate) woken: Notify,
    /// Changes of the state that are no message's, applied and not recorded yet.
    pub(crate) outside: Mutex<Vec<StateChange>>,
    /// Publications outside a message that are not stored yet.
    pub(crate) publishing: Room,
    /// Log lines that are not on the log topic yet.
    pub(crate) logging: Room,
    /// How effects happen once, of an instance that promises it.
    pub(crate) effectively_once: Mutex<Option<&'static str>>,
    /// Messages of which not all outputs can be written, and why: the transaction that has some of them is
    /// aborted, and the next time they are given up. Kept until that is committed: there may be several
    /// in one transaction.
    refused: Mutex<HashMap<String, String>>,
    /// Outputs that a topic refused for their size.
    pub(crate) refusals: Arc<Refusals>,
}

impl Gauge {
    /// These are acknowledged: what is remembered of them is of no more use.
    fn forget_refused(&self, done: &[String]) {
        let mut refused = self.refused.lock();
        for place in done {
            refused.remove(place);
        }
    }

    /// So many are acknowledged or given back. An instance that ended has set the count to 0.
    pub(crate) fn out_of_flight(&self, count: usize) {
        let less = |n: usize| Some(n.saturating_sub(count));
        let _ = self
            .in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }
}

/// Why an instance ended before it was told to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("{0}")]
    Host(Broken),
    #[error("reading: {0}")]
    Source(String),
    #[error("writing: {0}")]
    Sink(String),
    #[error("acknowledging: {0}")]
    Acknowledge(String),
    #[error("committing: {0}")]
    Commit(String),
}

/// Everything one instance needs; dropped when it ends.
pub(crate) struct Instance {
    pub(crate) source: Box<dyn Source>,
    /// `None`: the message itself is the output.
    pub(crate) host: Option<Box<dyn Host>>,
    pub(crate) sink: Box<dyn Sink>,
    pub(crate) state: Option<Arc<FunctionState>>,
    /// Effects are in transactions.
    pub(crate) once: Option<Once>,
    /// Messages are gathered in windows first.
    pub(crate) gather: Option<Gather>,
    pub(crate) policy: Policy,
    /// What it may reach, where somebody is asked.
    pub(crate) limits: Option<Limits>,
    /// Of a connector with a log topic: what becomes of messages that are not taken is said there.
    pub(crate) log: Option<Arc<dyn Services>>,
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) tasks: Tasks,
}

impl Instance {
    /// Runs until `stop` says so, the source has ended and all is done, or something breaks.
    /// `stop` carries the grace for messages in flight.
    pub(crate) async fn run(
        mut self,
        mut stop: watch::Receiver<Option<Duration>>,
    ) -> Result<(), Fault> {
        let window = self
            .host
            .as_ref()
            .map_or(WINDOW_PLAIN, |host| host.window());
        let gather = self.gather.as_ref();
        let window = gather.map_or(window, |gather| gather.at_once(window));
        let (commits, committing) = mpsc::channel(UNCOMMITTED_MAX);
        let (fault_in, mut fault) = watch::channel(None);
        let committer = commit::Committer {
            acker: self.source.acker(),
            syncer: self.sink.syncer(),
            gauge: self.gauge.clone(),
            state: self.state.clone(),
        };
        let committers = self.tasks.child();
        let (epochs, committing_epochs) = mpsc::channel(1);
        let once = self
            .once
            .as_ref()
            .map(|once| once.committer(self.source.acker(), self.gauge.clone()));
        committers.spawn("function commits", OnError::Log, async move {
            let done = match once {
                Some(once) => once.run(committing_epochs).await,
                None => committer.run(committing).await,
            };
            if let Err(why) = done {
                let _ = fault_in.send(Some(why));
            }
            Ok::<(), std::convert::Infallible>(())
        });
        let mut work = Work::new(window, commits, epochs);
        let result = self.serve(&mut work, &mut stop, &mut fault).await;
        let grace = (*stop.borrow())
            .unwrap_or(Duration::from_secs(5))
            .max(Duration::from_secs(1));
        if let Some(host) = &mut self.host {
            host.stop(if result.is_ok() {
                grace
            } else {
                Duration::ZERO
            })
            .await;
        }
        if result.is_ok() {
            let last = tokio::time::timeout(grace, self.record_last(&mut work)).await;
            let why = match last {
                Ok(Ok(())) => None,
                Ok(Err(fault)) => Some(fault.to_string()),
                Err(_) => Some("not in time".to_owned()),
            };
            if let Some(why) = why {
                let text =
                    format!("changes to state at the function's end are not recorded: {why}");
                tracing::warn!("{text}");
                self.gauge.stats.system_exception(text);
            }
        }
        let grace_of_last = if result.is_ok() {
            grace
        } else {
            LAST_OF_BROKEN
        };
        if tokio::time::timeout(grace_of_last, self.gauge.publishing.emptied())
            .await
            .is_err()
        {
            let text = "what was published outside a message, last of all, is not stored in time";
            tracing::warn!("{text}");
            self.gauge.stats.system_exception(text.to_owned());
        }
        // Those of the last moment too; where the log topic takes none, nobody waits for long.
        let logged = tokio::time::timeout(LAST_LOGS, self.gauge.logging.emptied());
        if logged.await.is_err() {
            tracing::warn!("the last log lines are not on the log topic in time");
        }
        work.commits = None;
        work.epochs = None;
        // What was released is still acknowledged; the rest goes back to the broker. A transaction
        // that was not handed over is aborted.
        self.once = None;
        if !committers.join(grace).await {
            committers.cancel();
        }
        self.source.close().await;
        self.sink.close().await;
        self.gauge.in_flight.store(0, Ordering::Relaxed);
        self.gauge.held.lock().clear();
        result
    }

    async fn serve(
        &mut self,
        work: &mut Work,
        stop: &mut watch::Receiver<Option<Duration>>,
        fault: &mut watch::Receiver<Option<Fault>>,
    ) -> Result<(), Fault> {
        let mut ended = false;
        let mut stop_at: Option<Instant> = None;
        loop {
            self.deliver_windows(work).await?;
            if !self.once.as_ref().is_some_and(Once::holds) {
                self.record_outside(work).await?;
                self.release(work).await?;
            }
            self.hand_over_manual_acks(work).await;
            self.rewind(work).await?;
            let idle = work.line.is_empty() && work.retries.is_empty();
            if let (Some(once), Some(epochs)) = (&mut self.once, &work.epochs) {
                once.hand_over(idle, epochs).await;
            }
            if let Some(fault) = fault.borrow().clone() {
                return Err(fault);
            }
            let gathered = ended
                && self
                    .gather
                    .as_ref()
                    .is_some_and(|gather| !gather.is_empty());
            let over = stop_at.is_some() || ended && !gathered;
            if over && idle && self.settled() {
                self.gauge.ended.store(ended, Ordering::Relaxed);
                return Ok(());
            }
            if let Some(why) = self.gather.as_ref().and_then(Gather::stuck)
                && idle
                && !ended
                && stop_at.is_none()
            {
                return Err(Fault::Source(why));
            }
            let room = self.room(work);
            let reading = !ended && stop_at.is_none() && room > 0 && work.rewind.is_none();
            let retry_at = work.retries.keys().next().map(|(at, _)| *at);
            let due_at = self.once.as_ref().and_then(Once::due_at);
            let tick_at = match stop_at {
                None => self.next_tick(work),
                Some(_) => None,
            };
            let rewind_at = work.rewind.filter(|_| work.in_host == 0).map(|r| r.at);
            let wake_at = [retry_at, stop_at, due_at, tick_at, rewind_at];
            let wake_at = wake_at.into_iter().flatten().min();
            tokio::select! {
                got = self.source.next(room), if reading => {
                    let got = got.map_err(Fault::Source)?;
                    if got.is_empty() {
                        ended = true;
                        if let Some(gather) = &mut self.gather {
                            gather.finish();
                        }
                    } else {
                        self.receive(got, work).await?;
                    }
                }
                outcomes = next_outcomes(&mut self.host), if work.in_host > 0 => {
                    for outcome in outcomes.map_err(Fault::Host)? {
                        work.in_host -= 1;
                        self.settle(outcome, work);
                    }
                }
                () = self.gauge.woken.notified() => {}
                () = sleep_until(wake_at), if wake_at.is_some() => {
                    if stop_at.is_some_and(|at| at <= Instant::now()) {
                        return Ok(());
                    }
                    self.retry_due(work).await?;
                }
                changed = fault.changed() => {
                    // The committer ends only with a fault, or when this loop lets it.
                    if changed.is_err() && fault.borrow().is_none() {
                        return Err(Fault::Acknowledge("the committer ended".to_owned()));
                    }
                }
                changed = stop.changed(), if stop_at.is_none() => {
                    let grace = stop.borrow().unwrap_or(Duration::ZERO);
                    if changed.is_err() || stop.borrow().is_some() {
                        stop_at = Some(Instant::now() + grace);
                        // A message that waits for its next try is not waited for: it goes back
                        // to the broker. In line, it keeps all behind it from leaving.
                        for again in std::mem::take(&mut work.retries).into_values() {
                            match again {
                                Again::Outside(_) => {
                                    self.gauge.out_of_flight(1);
                                }
                                Again::InLine(_) => stop_at = Some(Instant::now()),
                            }
                        }
                        if work.rewind.is_some() {
                            stop_at = Some(Instant::now());
                        }
                    }
                }
            }
        }
    }

    /// Whether everything released is acknowledged.
    fn settled(&self) -> bool {
        self.gauge.in_flight.load(Ordering::Acquire) == 0
    }

    fn room(&self, work: &Work) -> usize {
        let waiting = work.window.saturating_sub(work.line.len());
        let waiting = match &self.gather {
            Some(gather) => gather.messages_for(waiting),
            None => waiting,
        };
        let uncommitted = self.gauge.in_flight.load(Ordering::Relaxed);
        let mut room = waiting.min(UNCOMMITTED_MAX.saturating_sub(uncommitted));
        if self.policy.guarantee == ProcessingGuarantees::Manual {
            room = room.min(HELD_MAX.saturating_sub(self.gauge.held.lock().len()));
        }
        if let Some(gather) = &self.gather {
            room = room.min(gather.room());
        }
        match work.has_room(self.gather.is_some()) {
            true => room,
            false => 0,
        }
    }

    async fn receive(&mut self, got: Vec<Incoming>, work: &mut Work) -> Result<(), Fault> {
        if let Some(once) = &mut self.once {
            once.check(&got)?;
        }
        let published = got.last().map(|newest| newest.message.publish_time);
        self.gauge.stats.received(got.len(), published);
        *self.gauge.last_received.lock() = Some(Instant::now());
        if self.gather.is_none() {
            self.gauge.in_flight.fetch_add(got.len(), Ordering::AcqRel);
        }
        if self.policy.guarantee == ProcessingGuarantees::AtmostOnce {
            let origins = got.iter().map(|incoming| incoming.origin.clone()).collect();
            self.source
                .acker()
                .ack(origins, true)
                .await
                .map_err(Fault::Acknowledge)?;
        }
        if self.gather.is_some() {
            return self.gather(&got, work).await;
        }
        let mut batch = Vec::with_capacity(got.len());
        for incoming in got {
            if self.policy.guarantee == ProcessingGuarantees::Manual {
                let id = incoming.message.id.clone();
                self.gauge.held.lock().insert(id, incoming.origin.clone());
            }
            let attempts = incoming.message.redelivery;
            let message = incoming.message;
            let ticket = work.push(Held {
                message: message.clone(),
                origin: incoming.origin,
                attempts,
                parts: Vec::new(),
            });
            batch.push(Delivery { ticket, message });
        }
        self.deliver(batch, work).await
    }

    async fn deliver(&mut self, batch: Vec<Delivery>, work: &mut Work) -> Result<(), Fault> {
        if let Some(host) = &mut self.host {
            work.in_host += batch.len();
            return host.deliver(batch).await.map_err(Fault::Host);
        }
        let tries = self.policy.retries.is_some_and(|retries| retries > 0);
        for Delivery { ticket, message } in batch {
            // Only where it is to be tried again: the sink says so itself when it is written.
            if tries && let Some(why) = self.sink.refuses(&message) {
                let outcome = Outcome {
                    ticket,
                    verdict: Verdict::Failed(Failure::new(FailureKind::Temporary, why)),
                    outputs: Vec::new(),
                    state: Vec::new(),
                    took: Duration::ZERO,
                };
                self.settle(outcome, work);
                continue;
            }
            self.gauge.stats.processed(Duration::ZERO);
            let output = Output {
                payload: message.payload.clone(),
                ..Output::default()
            };
            work.line.finish(
                ticket,
                Outcome {
                    ticket,
                    verdict: Verdict::Done,
                    outputs: vec![output],
                    state: Vec::new(),
                    took: Duration::ZERO,
                },
            );
        }
        Ok(())
    }
}

fn place_of(topic: &str, id: &str) -> String {
    format!("{topic} {id}")
}

async fn next_outcomes(host: &mut Option<Box<dyn Host>>) -> Result<Vec<Outcome>, Broken> {
    match host {
        Some(host) => host.outcomes().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
