//! A warm process: one interpreter or tool that is sent message after message.
//!
//! One task owns the process, the bytes in both directions, and the messages in flight. It sends
//! frames while the process works on earlier ones, tells which message a death or a time-out is to
//! be blamed on, and starts the process again. What must hold: a message is blamed only when the
//! process certainly held it. Where the form of the conversation does not tell (`precise`), the
//! messages in flight are sent once more, one by one, until the culprit shows itself.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use geminga_stdx::tasks::OnError;
use geminga_stdx::{Backoff, Tasks};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use self::ending::End;
use self::pending::Pending;
use self::running::write_some;
use super::body::{Body, Launch, Launcher, Scoped};
use super::handle::{Ends, Handle, Waiting};
use super::process::Scope;
use super::stderr::{Rate, Tail};
use super::wire::{Codec, FromHost, WireError};
use super::{
    Broken, Delivery, Failure, FailureKind, Host, HostSpec, Level, LogLine, Outcome, Services,
    Verdict,
};

mod ending;
mod pending;
mod running;
mod starting;

/// The room of a read, at first and at most.
const READ_MIN: usize = 4 * 1024;
const READ_MAX: usize = 64 * 1024;
/// Bytes waiting to be written to a process before no further frame is made.
const WRITE_AHEAD_BYTES: usize = 256 * 1024;
/// How long the words of a failure on standard error are waited for, when the process lives on.
const FAILURE_WORDS: Duration = Duration::from_millis(5);
/// Questions of a host that may wait for somebody else's answer at once.
const QUESTIONS_MAX: usize = 64;
/// Changes of one key that are looked at for a question before others have their turn.
const QUESTION_LOOKS: usize = 10_000;
/// Deaths without a message done in between before the host counts as broken.
const DEATHS_MAX: u32 = 5;

/// Starts the first process, waits until it is ready, and leaves it to its task.
pub(crate) async fn start(
    launch: Arc<dyn Launch>,
    scope: Scope,
    spec: Arc<HostSpec>,
    services: Arc<dyn Services>,
    tasks: &Tasks,
) -> Result<Box<dyn Host>, Broken> {
    start_any(Arc::new(Scoped { launch, scope }), spec, services, tasks).await
}

/// The same for code of any kind: starts the first body, waits until it is ready, and leaves it to its task.
///
/// # Errors
/// When it does not become ready.
pub async fn start_any(
    launch: Arc<dyn Launcher>,
    spec: Arc<HostSpec>,
    services: Arc<dyn Services>,
    tasks: &Tasks,
) -> Result<Box<dyn Host>, Broken> {
    let window = spec.options.window.unwrap_or(launch.window()).max(1);
    let frame = spec
        .options
        .batch
        .unwrap_or(launch.frame())
        .clamp(1, window);
    let (handle, ends) = Handle::new(window);
    let Ends {
        deliveries,
        outcomes,
        waiting,
        stop,
        ended,
    } = ends;
    let bytes_per_second = spec.options.max_stderr_bytes;
    let mut warm = Warm {
        launch,
        spec,
        services,
        tasks: tasks.clone(),
        frame,
        queue: VecDeque::new(),
        base: 0,
        sent: 0,
        probe: 0,
        head_since: Instant::now(),
        pending_state: Pending::default(),
        ready_outcomes: Vec::new(),
        deliveries,
        outcomes,
        waiting,
        stop: Some(stop),
        stop_at: None,
        ever_done: false,
        deaths: 0,
        rate: Arc::new(Mutex::new(Rate::new(bytes_per_second))),
        dropped_before: 0,
    };
    let running = warm.launch_ready().await?;
    tasks.spawn("function host", OnError::Log, async move {
        let broken = warm.run(running).await;
        drop(warm);
        let _ = ended.send(broken);
        Ok::<(), std::convert::Infallible>(())
    });
    Ok(Box::new(handle))
}

struct Slot {
    delivery: Delivery,
    done: bool,
}

struct Warm {
    launch: Arc<dyn Launcher>,
    spec: Arc<HostSpec>,
    services: Arc<dyn Services>,
    tasks: Tasks,
    frame: usize,
    /// In flight, oldest first; the first has the number `base`.
    queue: VecDeque<Slot>,
    base: u64,
    /// How many of the queue the running process was sent.
    sent: usize,
    /// How many of the queue are to be sent one by one.
    probe: usize,
    head_since: Instant,
    pending_state: Pending,
    ready_outcomes: Vec<Outcome>,
    deliveries: mpsc::Receiver<Vec<Delivery>>,
    outcomes: mpsc::Sender<Vec<Outcome>>,
    waiting: Waiting,
    stop: Option<oneshot::Receiver<Duration>>,
    stop_at: Option<Instant>,
    ever_done: bool,
    deaths: u32,
    rate: Arc<Mutex<Rate>>,
    /// What was dropped of the output when the message in hand began, about.
    dropped_before: u64,
}

struct Running {
    process: Box<dyn Body>,
    reader: Box<dyn AsyncRead + Send + Unpin>,
    writer: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    codec: Box<dyn Codec>,
    input: BytesMut,
    /// What the next read has room for: little, until there is much to read. Most functions are idle.
    piece: usize,
    out: BytesMut,
    tail: Tail,
    heard: Arc<Notify>,
    log_ends: Vec<oneshot::Receiver<()>>,
    leaving: bool,
    /// What it said was not heard to the end, since it has answers to read first.
    behind: bool,
    /// When it ends: from when on nothing more is said to it.
    hang_up_at: Option<Instant>,
    /// It was seen to have ended.
    is_gone: bool,
    /// What was looked up for it elsewhere, by the number of the question.
    answers: mpsc::Receiver<(u64, Looked)>,
    answering: mpsc::Sender<(u64, Looked)>,
}

/// What became of a question that had to wait.
type Looked = Result<Option<Bytes>, String>;

impl Warm {
    async fn run(&mut self, first: Running) -> Broken {
        let mut next = Some(first);
        let seed = u64::from(self.spec.instance);
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(2), seed);
        loop {
            let mut running = match next.take() {
                Some(running) => running,
                None => match self.launch_unless_stopped().await {
                    None => return Broken::Stopped,
                    Some(Ok(running)) => running,
                    Some(Err(broken @ Broken::Deployment { .. })) => return broken,
                    Some(Err(broken)) => {
                        self.deaths += 1;
                        if self.deaths >= DEATHS_MAX || self.stop_at.is_some() {
                            return broken;
                        }
                        self.services.ended_idle(&broken.text());
                        tokio::time::sleep(backoff.next_delay()).await;
                        continue;
                    }
                },
            };
            self.head_since = Instant::now();
            let end = self.converse(&mut running).await;
            if matches!(end, End::Drained) {
                self.drain(running).await;
                return Broken::Stopped;
            }
            let done_before = self.deaths == 0;
            if let Some(broken) = self.bury(running, end).await {
                return broken;
            }
            if done_before {
                backoff.reset();
            } else {
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }

    async fn converse(&mut self, running: &mut Running) -> End {
        loop {
            self.send_ahead(running);
            if self.stop_at.is_some() && self.queue.is_empty() {
                return End::Drained;
            }
            if running.behind && running.may_ask() {
                if let Err(error) = self.hear(running).await {
                    return End::Misbehaved(error);
                }
                continue;
            }
            // Also of one that is sent nothing because it does not read its answers.
            let limit = self.spec.options.timeout();
            // While nobody takes its outcomes the process waits for the worker, and not the other way round.
            let waiting = self.waiting.clone();
            let is_full = self.stop_at.is_none() && !waiting.has_room();
            let limit = limit.filter(|_| !self.queue.is_empty() && !is_full);
            let time_out_at = limit.map(|limit| self.head_since + limit);
            let wake_at = [time_out_at, self.stop_at].into_iter().flatten().min();
            let stopping = self.stop_at.is_some();
            let mut event = Event::None;
            // Bytes are taken in all the same: who writes its questions in one go waits for nobody meanwhile.
            let has_space = running.may_ask() || running.input.len() < READ_MAX;
            let is_heard = has_space && !is_full;
            tokio::select! {
                read = async { running.input.reserve(running.piece); running.reader.read_buf(&mut running.input).await }, if is_heard => {
                    event = match read {
                        Ok(count @ 1..) => {
                            if count >= running.piece {
                                running.piece = (running.piece * 4).min(READ_MAX);
                            }
                            Event::Heard
                        }
                        _ => Event::Closed,
                    };
                }
                wrote = write_some(&mut running.writer, &running.out), if !running.out.is_empty() => {
                    event = Event::Wrote(wrote.ok());
                }
                grace = wait_stop(&mut self.stop), if self.stop.is_some() => {
                    self.stop = None;
                    self.stop_at = Some(Instant::now() + grace);
                }
                // It never ends: this side holds a sender.
                Some((ask, looked)) = running.answers.recv() => running.answer(ask, looked),
                batch = self.deliveries.recv(), if !stopping => match batch {
                    Some(batch) => self.take(batch, running),
                    // The handle is gone: nobody wants the outcomes.
                    None => return End::Drained,
                },
                () = waiting.room(), if is_full => {}
                () = sleep_until(wake_at), if wake_at.is_some() => {
                    let now = Instant::now();
                    if time_out_at.is_some_and(|at| at <= now) {
                        return End::TimedOut;
                    }
                    if self.stop_at.is_some_and(|at| at <= now) {
                        return End::Drained;
                    }
                }
            }
            if is_full {
                // Whatever it was that ended this wait: until now the process waited.
                self.head_since = Instant::now();
            }
            match event {
                Event::None => {}
                Event::Wrote(Some(count)) => {
                    let _ = running.out.split_to(count);
                }
                // It reads no more; its end, or the time-out, says the rest.
                Event::Wrote(None) => running.out.clear(),
                Event::Heard => {
                    if let Err(error) = self.hear(running).await {
                        return End::Misbehaved(error);
                    }
                }
                Event::Closed => return End::Closed,
            }
        }
    }

    fn take(&mut self, batch: Vec<Delivery>, running: &Running) {
        if self.queue.is_empty() {
            self.head_since = Instant::now();
        }
        for delivery in batch {
            let refused = running.codec.refuses(&delivery.message);
            self.queue.push_back(Slot {
                delivery,
                done: false,
            });
            if let Some(failure) = refused {
                let index = self.queue.len() - 1;
                self.queue[index].done = true;
                self.ready_outcomes.push(Outcome {
                    ticket: self.queue[index].delivery.ticket,
                    verdict: Verdict::Failed(failure),
                    outputs: Vec::new(),
                    state: Vec::new(),
                    took: Duration::ZERO,
                });
            }
        }
        self.hand_on();
        self.pop_done();
    }

    /// Makes frames of what was not sent yet, as far as the process should be ahead.
    fn send_ahead(&mut self, running: &mut Running) {
        let mut frame = Vec::new();
        while self.sent < self.queue.len() && running.out.len() < WRITE_AHEAD_BYTES {
            let mut end = if self.probe > 0 {
                if self.sent > 0 {
                    break;
                }
                1
            } else {
                // A busy host is sent whole frames: one for each message that it ends costs both sides
                // more than the work of a small function.
                if self.sent >= 2 * self.frame && self.queue.len() - self.sent < self.frame {
                    break;
                }
                (self.sent + self.frame).min(self.queue.len())
            };
            // A message that was refused holds a number, and its frame ends before it.
            if self.queue[self.sent].done {
                self.sent += 1;
                continue;
            }
            let rest = self.queue.range(self.sent..end);
            end = self.sent
                + frame_len(rest.map(|slot| (slot.done, slot.delivery.message.payload.len())));
            let first = self.base + self.sent as u64;
            let mut messages = self
                .queue
                .range(self.sent..end)
                .map(|s| &*s.delivery.message);
            running.codec.encode(first, &mut messages, &mut frame);
            self.sent = end;
            running.out.extend_from_slice(&frame);
            frame.clear();
        }
    }

    async fn hear(&mut self, running: &mut Running) -> Result<(), WireError> {
        running.behind = false;
        loop {
            if !running.may_ask() {
                running.behind = true;
                break;
            }
            let Some(said) = running.codec.decode(&mut running.input)? else {
                break;
            };
            self.take_in(said, running).await?;
            // A frame may hold thousands of outcomes, and others want this thread too.
            tokio::task::consume_budget().await;
        }
        self.hand_on();
        Ok(())
    }

    /// Does what it says or asks for.
    async fn take_in(&mut self, said: FromHost, running: &mut Running) -> Result<(), WireError> {
        match said {
            FromHost::Outcome {
                id,
                verdict,
                outputs,
            } => {
                self.settle(id, verdict, outputs, running).await?;
            }
            FromHost::StateGet { ask, key } => {
                let (value, looked) = self
                    .pending_state
                    .after(&key, self.services.state_get(&key));
                if looked > QUESTION_LOOKS {
                    tokio::task::yield_now().await;
                }
                let mut answer = Vec::new();
                running.codec.answer(ask, value.as_ref(), &mut answer);
                running.out.extend_from_slice(&answer);
            }
            FromHost::SchemaGet {
                ask,
                topic,
                version,
            } => {
                // A place is kept for the answer: who asks on without waiting for answers is no host.
                let Ok(place) = running.answering.clone().try_reserve_owned() else {
                    let why = format!("more than {QUESTIONS_MAX} questions at once");
                    return Err(WireError::Protocol(why));
                };
                let looking = self.services.schema(&topic, version);
                self.tasks
                    .spawn_cancellable("schema of a function's topic", async move {
                        place.send((ask, looking.await));
                    });
            }
            FromHost::State { message, change } => {
                // One that has ended takes no more: its change is the next one's.
                let message = message.filter(|&number| self.is_in_hand(number));
                // A message may not change more than it may publish.
                let limit = self.spec.options.max_output_bytes;
                self.pending_state.push(message, change, limit)?;
            }
            FromHost::Log { level, text } => self.services.log(LogLine {
                level,
                text,
                message_id: self.in_hand().map(|s| s.delivery.message.id.clone()),
            }),
            FromHost::Metric { name, value } => match value.parse() {
                Ok(value) => self.services.metric(&name, value),
                Err(_) => tracing::debug!(name, value, "a metric that is not a number"),
            },
            FromHost::Publish(output) => self.services.publish(output),
            FromHost::Acknowledge(id) => self.services.acknowledge(&id),
            FromHost::Leaving => running.leaving = true,
            // Outputs name it from now on; what topics are was said in the greeting.
            FromHost::Schema { .. } | FromHost::Pong | FromHost::Ready { .. } => {}
            FromHost::Fatal(reason) => return Err(WireError::Protocol(reason)),
        }
        Ok(())
    }

    /// What was changed of the state with no message in hand, at the start and at the end, is no message's.
    fn release_state(&mut self) {
        let changes = self.pending_state.take_all();
        if changes.is_empty() {
            return;
        }
        match super::unkept(&changes) {
            None => self.services.state_commit(changes),
            Some(failure) => self.services.log(LogLine {
                level: Level::Error,
                text: format!(
                    "changes to state outside a message are not kept: {}",
                    failure.reason
                ),
                message_id: None,
            }),
        }
    }

    async fn settle(
        &mut self,
        id: u64,
        mut verdict: Verdict,
        outputs: Vec<super::Output>,
        running: &mut Running,
    ) -> Result<(), WireError> {
        let index = usize::try_from(id.wrapping_sub(self.base)).unwrap_or(usize::MAX);
        if !self.is_in_hand(id) {
            return Err(WireError::Protocol(format!(
                "an outcome for message {id}, which is not in hand"
            )));
        }
        let limit = self.spec.options.max_output_bytes;
        let size: usize = outputs.iter().map(|o| o.payload.len()).sum();
        if size as u64 > limit {
            verdict = Verdict::Failed(Failure::new(
                FailureKind::Output,
                format!("more than {limit} bytes of output for one message"),
            ));
        }
        let mut state = self.pending_state.take(id);
        if !matches!(verdict, Verdict::Failed(_))
            && let Some(failure) = super::unkept(&state)
        {
            verdict = Verdict::Failed(failure);
        }
        let kept = if let Verdict::Failed(failure) = &mut verdict {
            state.clear();
            failure.stderr_tail = running.tail.take();
            if failure.stderr_tail.is_empty() {
                let _ = tokio::time::timeout(FAILURE_WORDS, running.heard.notified()).await;
                failure.stderr_tail = running.tail.take();
            }
            self.spec.options.sandbox.explain(failure);
            Vec::new()
        } else {
            self.ever_done = true;
            self.deaths = 0;
            self.services.state_apply(&state);
            outputs
        };
        let now = Instant::now();
        self.ready_outcomes.push(Outcome {
            ticket: self.queue[index].delivery.ticket,
            verdict,
            outputs: kept,
            state,
            took: now - self.head_since,
        });
        self.head_since = now;
        self.queue[index].done = true;
        self.pop_done();
        Ok(())
    }

    /// The oldest message that the process works on.
    fn in_hand(&self) -> Option<&Slot> {
        self.queue.front().filter(|_| self.sent > 0)
    }

    /// Whether the process was sent message `number` and has not said what became of it.
    fn is_in_hand(&self, number: u64) -> bool {
        let index = usize::try_from(number.wrapping_sub(self.base)).unwrap_or(usize::MAX);
        index < self.sent && !self.queue[index].done
    }

    fn pop_done(&mut self) {
        while self.queue.front().is_some_and(|slot| slot.done) {
            self.queue.pop_front();
            self.base += 1;
            self.sent = self.sent.saturating_sub(1);
            self.probe = self.probe.saturating_sub(1);
        }
    }

    fn hand_on(&mut self) {
        if !self.ready_outcomes.is_empty() {
            let outcomes = std::mem::take(&mut self.ready_outcomes);
            self.waiting.add(&outcomes);
            // It fits (see `start`); when the handle is gone nobody wants it.
            let _ = self.outcomes.try_send(outcomes);
        }
    }
}

/// How many of these a frame has. One that was refused is not sent; one that makes the frame large is its last, since
/// a frame is a copy.
fn frame_len(messages: impl Iterator<Item = (bool, usize)>) -> usize {
    let mut bytes = 0_usize;
    let its = messages.take_while(|(is_done, size)| {
        let fits = !is_done && bytes < WRITE_AHEAD_BYTES;
        bytes = bytes.saturating_add(*size);
        fits
    });
    its.count()
}

enum Event {
    None,
    Heard,
    Closed,
    Wrote(Option<usize>),
}

async fn wait_stop(stop: &mut Option<oneshot::Receiver<Duration>>) -> Duration {
    match stop {
        // A dropped handle asks for nothing to be finished.
        Some(stop) => stop.await.unwrap_or(Duration::ZERO),
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A counter's value, changed.
pub(crate) fn incremented(value: Option<&Bytes>, by: i64) -> Bytes {
    let now = value
        .and_then(|v| <[u8; 8]>::try_from(&v[..]).ok())
        .map_or(0, i64::from_be_bytes);
    Bytes::copy_from_slice(&now.wrapping_add(by).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_ends_with_a_large_message_and_before_one_that_was_refused() {
        let large = 5 * 1024 * 1024;
        for (messages, count) in [
            (&[(false, 100); 1000][..], 1000),
            (&[(false, large); 1000], 1),
            (&[(false, 100), (false, large), (false, 100)], 2),
            (&[(false, 100), (true, 100), (false, 100)], 1),
        ] {
            assert_eq!(frame_len(messages.iter().copied()), count);
        }
    }
}
