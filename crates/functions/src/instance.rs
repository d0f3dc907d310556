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

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use geminga_client::Transaction;
use geminga_model::ProcessingGuarantees;
use geminga_stdx::tasks::OnError;
use geminga_stdx::{Clock, Random, Tasks};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use self::commit::Commit;
use self::gather::Gather;
use self::guarantee::{Decision, Letter, decide};
use self::once::{Job, Once};
use self::order::Line;
use self::refusals::Refusals;
use self::room::Room;
use self::sink::{Sink, WriteError};
use self::source::{Incoming, Origin, Source};
use self::state::FunctionState;
use self::stats::Stats;
use self::window::{Added, Fired};
use crate::plan::Policy;
use crate::runtime::{
    Broken, Delivery, Failure, FailureKind, Host, Level, LogLine, Message, Outcome, Output,
    Services, StateChange, Verdict,
};
use crate::worker::rights::Limits;

pub(crate) mod commit;
pub(crate) mod context;
pub(crate) mod gather;
pub(crate) mod guarantee;
pub(crate) mod once;
pub(crate) mod order;
pub(crate) mod quantiles;
pub(crate) mod refusals;
pub(crate) mod room;
pub(crate) mod sink;
pub(crate) mod source;
pub(crate) mod state;
pub(crate) mod stats;
#[cfg(test)]
mod tests;
pub(crate) mod window;

/// Messages in flight where no host sets a window: a connector.
const WINDOW_PLAIN: usize = 1000;
/// Messages whose outputs may be on their way at once, beside those in the host. Of each its place and its
/// receipts are kept; the outputs are the producers', who bound their bytes.
const UNCOMMITTED_MAX: usize = 16_384;
/// Messages that a function with manual acks may hold.
const HELD_MAX: usize = 10_000;
/// How long the last publications of a broken instance are waited for.
const LAST_OF_BROKEN: Duration = Duration::from_secs(1);
/// Messages that are remembered as refused.
const REFUSED_MAX: usize = 1000;
/// How long a message is remembered as failing when it comes back from the broker.
const RETRY_MAX: Duration = Duration::from_secs(60);

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

struct Held {
    message: Arc<Message>,
    origin: Origin,
    /// Deliveries that failed, those before a restart included.
    attempts: u32,
    /// Of a window: its messages.
    parts: Vec<Arc<Message>>,
}

impl Held {
    /// The message for another try: it tells how many there were.
    fn again(&self) -> Arc<Message> {
        if self.message.redelivery == self.attempts {
            return self.message.clone();
        }
        let mut message = (*self.message).clone();
        message.redelivery = self.attempts;
        Arc::new(message)
    }
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
        let mut work = Work {
            line: Line::new(),
            retries: BTreeMap::new(),
            retry_number: 0,
            window,
            in_host: 0,
            random: Random::from_entropy(),
            commits: Some(commits),
            epochs: Some(epochs),
            rewind: None,
            fired: VecDeque::new(),
            clock: Clock::system(),
        };
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
        room
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
            let ticket = work.line.push(Held {
                message: message.clone(),
                origin: incoming.origin,
                attempts,
                parts: Vec::new(),
            });
            batch.push(Delivery { ticket, message });
        }
        self.deliver(batch, work).await
    }

    /// Puts messages into their windows.
    async fn gather(&mut self, got: &[Incoming], work: &mut Work) -> Result<(), Fault> {
        let now_ms = work.clock.now_ms();
        let mut fired = Vec::new();
        let mut aside = Vec::new();
        if let Some(gather) = &mut self.gather {
            for incoming in got {
                match gather.add(now_ms, incoming, &mut fired) {
                    Added::Held => {}
                    added => aside.push((incoming, added)),
                }
            }
        }
        self.fire(fired, work);
        for (incoming, added) in aside {
            self.gauge.in_flight.fetch_add(1, Ordering::AcqRel);
            let mut commit = Commit::of(self.acknowledging_origin(incoming.origin.clone()));
            if added == Added::Late {
                self.gauge.stats.late();
                let topic = self.gather.as_ref().and_then(Gather::late_topic);
                if let Some(topic) = topic.map(str::to_owned) {
                    let letter = Letter::copy(&incoming.message);
                    let sent = self
                        .sink
                        .dead_letter(&topic, letter, &incoming.message, None);
                    commit.receipts = sent.await.map_err(Fault::Sink)?;
                }
            }
            self.commit(commit, false, work).await;
        }
        Ok(())
    }

    /// Puts complete windows in line for the function.
    fn fire(&mut self, fired: Vec<Fired<Incoming>>, work: &mut Work) {
        for window in fired {
            let Some(gather) = &self.gather else { return };
            let (message, wrong) = gather.message(&window);
            let message = Arc::new(message);
            let done = window.done.iter().map(|incoming| incoming.origin.clone());
            let parts = window.items.into_iter().map(|incoming| incoming.message);
            self.gauge.in_flight.fetch_add(1, Ordering::AcqRel);
            let ticket = work.line.push(Held {
                message: message.clone(),
                origin: Origin::Window(done.collect()),
                attempts: 0,
                parts: parts.collect(),
            });
            match wrong {
                Some(why) => {
                    self.refuse(ticket, why, work);
                }
                None => work.fired.push_back(Delivery { ticket, message }),
            }
        }
    }

    /// A message that can not be given to the function.
    fn refuse(&self, ticket: u64, why: String, work: &mut Work) {
        let failure = Failure::new(FailureKind::Data, why);
        self.gauge.stats.failed(&failure, Duration::ZERO);
        let outcome = Outcome {
            ticket,
            verdict: Verdict::Failed(failure),
            outputs: Vec::new(),
            state: Vec::new(),
            took: Duration::ZERO,
        };
        work.line.finish(ticket, outcome);
    }

    /// When a window may be complete. Those that the host has no room for come first.
    fn next_tick(&self, work: &Work) -> Option<Instant> {
        if !work.fired.is_empty() {
            return None;
        }
        let at_ms = self.gather.as_ref()?.next_tick()?;
        let wait = at_ms.saturating_sub(work.clock.now_ms());
        Some(Instant::now() + Duration::from_millis(wait))
    }

    /// Hands over the windows that are complete, as far as the host has room.
    async fn deliver_windows(&mut self, work: &mut Work) -> Result<(), Fault> {
        let mut fired = Vec::new();
        if let Some(gather) = &mut self.gather
            && work.fired.is_empty()
        {
            gather.tick(work.clock.now_ms(), &mut fired);
        }
        self.fire(fired, work);
        let room = work.window.saturating_sub(work.in_host);
        let count = room.min(work.fired.len());
        if count == 0 {
            return Ok(());
        }
        let batch = work.fired.drain(..count).collect();
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

    /// Decides about a processed message: it is tried again, or waits in line for its release.
    fn settle(&mut self, mut outcome: Outcome, work: &mut Work) {
        let ticket = outcome.ticket;
        if work.rewind.is_some_and(|rewind| ticket > rewind.ticket) {
            // What it saw of the state lacks the failed message's changes.
            return;
        }
        if self.state.is_none() && !outcome.state.is_empty() {
            outcome.outputs.clear();
            outcome.verdict = Verdict::Failed(Failure::new(FailureKind::Data, context::NO_STATE));
        }
        if let Verdict::Failed(failure) = &outcome.verdict {
            self.gauge.stats.failed(failure, outcome.took);
            let held = work.line.get(ticket);
            let attempts = held.map_or(1, |held| held.attempts + 1);
            if let Decision::Retry(delay) = decide(&self.policy, &outcome.verdict, attempts) {
                if let Some(held) = held {
                    let reason = &failure.reason;
                    let text =
                        format!("not taken at attempt {attempts}, and tried again: {reason}");
                    self.tell(Level::Warn, &held.message, text);
                }
                let delay = jittered(delay, &mut work.random);
                let at = Instant::now() + delay.min(RETRY_MAX);
                self.gauge.stats.retried();
                if self.once.is_some() {
                    if let Some(held) = work.line.get_mut(ticket) {
                        held.attempts = attempts;
                    }
                    work.rewind = Some(Rewind { ticket, at });
                    return;
                }
                work.retry_number += 1;
                let key = (at, work.retry_number);
                let again = if self.policy.ordered {
                    if let Some(held) = work.line.get_mut(ticket) {
                        held.attempts = attempts;
                    }
                    Again::InLine(ticket)
                } else {
                    match work.line.take_out(ticket) {
                        Some(held) => Again::Outside(Held { attempts, ..held }),
                        None => return,
                    }
                };
                work.retries.insert(key, again);
                return;
            }
        } else {
            self.gauge.stats.processed(outcome.took);
        }
        work.line.finish(ticket, outcome);
    }

    /// Processes all from a failed message on again, on the state before it, once nothing of theirs is
    /// with the host. So the state changes in the order in which messages are released.
    async fn rewind(&mut self, work: &mut Work) -> Result<(), Fault> {
        let Some(rewind) = work.rewind else {
            return Ok(());
        };
        if work.in_host > 0 || rewind.at > Instant::now() {
            return Ok(());
        }
        work.rewind = None;
        if let Some(state) = &self.state {
            state.rewind();
        }
        let again = work.line.restart().map(|(ticket, held)| Delivery {
            ticket,
            message: held.again(),
        });
        let batch: Vec<_> = again.collect();
        if batch.is_empty() {
            return Ok(());
        }
        self.deliver(batch, work).await
    }

    async fn retry_due(&mut self, work: &mut Work) -> Result<(), Fault> {
        let now = Instant::now();
        let mut batch = Vec::new();
        while let Some(entry) = work.retries.first_entry() {
            if entry.key().0 > now || work.in_host + batch.len() >= work.window {
                break;
            }
            let ticket = match entry.remove() {
                Again::InLine(ticket) => ticket,
                Again::Outside(held) => work.line.push(held),
            };
            if let Some(held) = work.line.get(ticket) {
                batch.push(Delivery {
                    ticket,
                    message: held.again(),
                });
            }
        }
        if batch.is_empty() {
            // The host is full; its next outcome makes room.
            return Ok(());
        }
        self.deliver(batch, work).await
    }

    /// Sends what is done at the head of the line on its way.
    async fn release(&mut self, work: &mut Work) -> Result<(), Fault> {
        // Those behind a message that was given up are processed again first.
        let is_open = |work: &Work| work.rewind.is_none_or(|r| !work.line.is_past(r.ticket));
        while is_open(work)
            && let Some((held, outcome)) = work.line.pop_finished()
        {
            let attempts = held.attempts + 1;
            match decide(&self.policy, &outcome.verdict, attempts) {
                Decision::Publish => self.publish(held, outcome, work).await?,
                Decision::Acknowledge => {
                    self.transaction().await?;
                    let commit = Commit::of(self.acknowledging(&held, false));
                    self.commit(commit, false, work).await;
                }
                Decision::DeadLetter => {
                    let Verdict::Failed(failure) = &outcome.verdict else {
                        continue;
                    };
                    self.dead_letter(held, failure, attempts, work).await?;
                }
                // At-most-once: it is acknowledged already. A retry was decided before.
                Decision::Forget | Decision::Retry(_) => {
                    self.commit(Commit::of(None), false, work).await;
                }
            }
        }
        Ok(())
    }

    async fn publish(
        &mut self,
        held: Held,
        outcome: Outcome,
        work: &mut Work,
    ) -> Result<(), Fault> {
        let count = outcome.outputs.len();
        let txn = self.transaction().await?;
        let mut commit = Commit::of(self.acknowledging(&held, outcome.verdict == Verdict::Hold));
        let outputs = outcome.outputs;
        let refused = self.refused(&held.message);
        let written = match refused {
            Some(why) => Err(WriteError::Message(why)),
            None => self.sink.write(&held.message, outputs, txn.as_ref()).await,
        };
        match written {
            Ok(receipts) => {
                commit.receipts = receipts;
                commit.written = count;
                commit.message = Some(held.message.clone());
            }
            Err(WriteError::Sink(why)) => return Err(Fault::Sink(why)),
            Err(WriteError::Spoiled(why)) => {
                let place = place_of(&held.message.topic, &held.message.id);
                let mut refused = self.gauge.refused.lock();
                if refused.len() >= REFUSED_MAX {
                    // Others took them over long ago.
                    refused.clear();
                }
                refused.insert(place, why.clone());
                return Err(Fault::Sink(why));
            }
            Err(WriteError::Message(why)) => {
                if txn.is_some() && !outcome.state.is_empty() {
                    // Its changes do not happen, and those after it have seen them.
                    let at = work.rewind.map_or_else(Instant::now, |rewind| rewind.at);
                    let ticket = work.line.last_out();
                    work.rewind = Some(Rewind { ticket, at });
                }
                let failure = Failure::new(FailureKind::Data, why);
                self.gauge.stats.failed(&failure, Duration::ZERO);
                return match decide(
                    &self.policy,
                    &Verdict::Failed(failure.clone()),
                    held.attempts + 1,
                ) {
                    Decision::Forget => {
                        self.commit(Commit::of(None), false, work).await;
                        Ok(())
                    }
                    _ => {
                        let attempts = held.attempts + 1;
                        self.dead_letter(held, &failure, attempts, work).await
                    }
                };
            }
        }
        let changes = !outcome.state.is_empty();
        if let Some(state) = &self.state
            && changes
        {
            match &txn {
                Some(txn) => state
                    .record_in(txn, &outcome.state)
                    .await
                    .map_err(Fault::Commit)?,
                None => {
                    let recorded = state.record(&outcome.state).await;
                    let receipts = recorded.map_err(|error| Fault::Sink(state.note(&error)))?;
                    commit.receipts.extend(receipts);
                }
            }
        }
        self.commit(commit, changes, work).await;
        Ok(())
    }

    /// Says of a message, on the log topic, what became of it.
    fn tell(&self, level: Level, message: &Message, text: String) {
        if let Some(log) = &self.log {
            log.log(LogLine {
                level,
                text: format!("{} of {}: {text}", message.id, message.topic),
                message_id: Some(message.id.clone()),
            });
        }
    }

    /// Records changes of the state that are no message's.
    async fn record_outside(&mut self, work: &mut Work) -> Result<(), Fault> {
        let changes = std::mem::take(&mut *self.gauge.outside.lock());
        let Some(state) = self.state.clone().filter(|_| !changes.is_empty()) else {
            return Ok(());
        };
        let txn = self.transaction().await?;
        let mut commit = Commit::of(None);
        match &txn {
            Some(txn) => {
                let recorded = state.record_in(txn, &changes).await;
                recorded.map_err(Fault::Commit)?;
            }
            None => {
                let recorded = state.record(&changes).await;
                commit.receipts = recorded.map_err(|error| Fault::Sink(state.note(&error)))?;
            }
        }
        // It is waited for like a message, and counted out like one.
        self.gauge.in_flight.fetch_add(1, Ordering::AcqRel);
        self.commit(commit, true, work).await;
        Ok(())
    }

    /// The same for what the code said as it ended.
    async fn record_last(&mut self, work: &mut Work) -> Result<(), Fault> {
        if self.gauge.outside.lock().is_empty() {
            return Ok(());
        }
        while self.once.as_ref().is_some_and(Once::is_committing) {
            self.gauge.woken.notified().await;
        }
        self.record_outside(work).await?;
        if let (Some(once), Some(epochs)) = (&mut self.once, &work.epochs) {
            once.hand_over(true, epochs).await;
        }
        Ok(())
    }

    /// Why outputs of this message were refused before the instance began again, if they were.
    fn refused(&self, message: &Message) -> Option<String> {
        self.once.as_ref()?;
        let refused = self.gauge.refused.lock();
        if refused.is_empty() {
            return None;
        }
        refused.get(&place_of(&message.topic, &message.id)).cloned()
    }

    /// The transaction that effects go into; none where the guarantee needs none.
    async fn transaction(&mut self) -> Result<Option<Transaction>, Fault> {
        match &mut self.once {
            Some(once) => once.transaction().await.map(Some),
            None => Ok(None),
        }
    }

    /// A message is released: it is acknowledged with or after its effects.
    async fn commit(&mut self, commit: Commit, changes_state: bool, work: &mut Work) {
        match &mut self.once {
            Some(once) => once.add(commit.origin, commit.written, changes_state),
            None => work.commit(commit).await,
        }
    }

    async fn dead_letter(
        &mut self,
        held: Held,
        failure: &Failure,
        attempts: u32,
        work: &mut Work,
    ) -> Result<(), Fault> {
        let topic = self.policy.dead_letter_topic.clone().or_else(|| {
            let message = held.parts.first().unwrap_or(&held.message);
            let topic = self.source.dead_letter_topic(message)?;
            Some(match &self.limits {
                Some(limits) => limits.letters(topic),
                None => topic,
            })
        });
        let Some(topic) = topic else {
            return Err(Fault::Sink(format!("no dead-letter topic for `{failure}`")));
        };
        let txn = self.transaction().await?;
        let mut commit = Commit::of(self.acknowledging(&held, false));
        // Of a window each message is a letter.
        let whole = [held.message.clone()];
        let given_up = match held.parts.is_empty() {
            true => &whole[..],
            false => &held.parts[..],
        };
        for message in given_up {
            let reason = &failure.reason;
            let text =
                format!("given up after {attempts} attempts, and sent to `{topic}`: {reason}");
            self.tell(Level::Error, message, text);
            let letter = Letter::dead(message, failure, attempts);
            let sent = self.sink.dead_letter(&topic, letter, message, txn.as_ref());
            commit.receipts.extend(sent.await.map_err(Fault::Sink)?);
            commit.message = Some(message.clone());
            self.gauge.stats.dead_lettered();
        }
        self.commit(commit, false, work).await;
        Ok(())
    }

    /// What is to be acknowledged when `held` is done.
    fn acknowledging(&self, held: &Held, function_does: bool) -> Option<Origin> {
        match self.policy.guarantee {
            ProcessingGuarantees::AtmostOnce => None,
            ProcessingGuarantees::Manual if function_does => None,
            ProcessingGuarantees::Manual => {
                self.gauge.held.lock().remove(&held.message.id);
                Some(held.origin.clone())
            }
            _ => Some(held.origin.clone()),
        }
    }

    /// What is to be acknowledged of a message that was put aside.
    fn acknowledging_origin(&self, origin: Origin) -> Option<Origin> {
        (self.policy.guarantee != ProcessingGuarantees::AtmostOnce).then_some(origin)
    }

    async fn hand_over_manual_acks(&mut self, work: &mut Work) {
        let acks = std::mem::take(&mut *self.gauge.manual_acks.lock());
        for origin in acks {
            // It was counted out of flight when it was released.
            self.gauge.in_flight.fetch_add(1, Ordering::AcqRel);
            work.commit(Commit::of(Some(origin))).await;
        }
    }
}

/// What the loop keeps between its turns.
struct Work {
    line: Line<Held, Outcome>,
    /// By when, and a number that keeps equal times apart.
    retries: BTreeMap<(Instant, u64), Again>,
    retry_number: u64,
    window: usize,
    in_host: usize,
    random: Random,
    commits: Option<mpsc::Sender<Commit>>,
    /// The same for whole transactions.
    epochs: Option<mpsc::Sender<Job>>,
    /// Of an effectively-once instance: a message failed, and all from it on are processed again.
    rewind: Option<Rewind>,
    /// Windows that the host has no room for.
    fired: VecDeque<Delivery>,
    clock: Clock,
}

/// From which message on, and when.
#[derive(Debug, Clone, Copy)]
struct Rewind {
    ticket: u64,
    at: Instant,
}

enum Again {
    InLine(u64),
    Outside(Held),
}

impl Work {
    async fn commit(&mut self, commit: Commit) {
        if let Some(commits) = &self.commits {
            // When the committer is gone its fault is about to be seen.
            let _ = commits.send(commit).await;
        }
    }
}

fn place_of(topic: &str, id: &str) -> String {
    format!("{topic} {id}")
}

fn jittered(delay: Duration, random: &mut Random) -> Duration {
    let nanos = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(nanos - random.below(nanos / 4))
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
