//! What a host may ask of its instance: state, logs, metrics, acknowledgements, publishing.
//!
//! Called from the host's task, so nothing here waits: what can not be taken at once is counted and
//! dropped, and said.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use geminga_client::{Client, Message as Sent, Producer, Schema};
use geminga_stdx::{Backoff, Random, Tasks};
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc;

use super::sink::{Sink, TopicSink, WriteError};
use super::source::{Declared, Taken};
use super::state::FunctionState;
use super::{Gauge, room};
use crate::runtime::{
    BoxFuture, Level, LogLine, Message, Output, SchemaOf, Services, StateChange, headers,
};

/// Log lines that may wait for the log topic.
const LOGS_WAITING: usize = 2000;
/// So many of them are under way together.
const LOGS_AT_ONCE: usize = 256;
/// Pauses between two tries to open the log topic.
const LOG_PAUSE_FIRST: Duration = Duration::from_millis(100);
const LOG_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Bytes of a log line; the rest is cut off.
const LOG_LINE_MAX_BYTES: usize = 64 * 1024;
/// What a log line costs beside its text.
const LOG_LINE_BYTES: usize = 256;
/// Publications outside a message that may wait.
const PUBLISH_WAITING: usize = 1000;
/// So many of them are under way together.
const PUBLISHED_AT_ONCE: usize = 256;

/// Why a change of the state comes to nothing.
pub(crate) const NO_STATE: &str =
    "the function changed its state, and `spread` in `customRuntimeOptions` says that it has none";

/// Takes log lines that are also wanted elsewhere, such as the terminal of `geminga run`.
pub(crate) type OnLog = Arc<dyn Fn(&LogLine) + Send + Sync>;

/// The services of one instance.
pub(crate) struct Context {
    pub(crate) gauge: Arc<Gauge>,
    /// It may be another one once: a host that warmed up beside its predecessor takes its place.
    state: RwLock<Option<Arc<FunctionState>>>,
    /// Changes at the start of a host that has no state yet; `None` once it was told what state it has.
    early: Mutex<Option<Vec<StateChange>>>,
    pub(crate) on_log: Option<OnLog>,
    /// What the host says of topics.
    declared: Mutex<Declared>,
    logs: Option<mpsc::Sender<Line>>,
    /// The log topic takes lines now.
    log_is_open: Arc<AtomicBool>,
    publications: Option<mpsc::Sender<(Output, room::Taken)>>,
    topics: Option<(Client, Arc<Taken>)>,
}

impl Context {
    pub(crate) fn new(
        gauge: Arc<Gauge>,
        state: Option<Arc<FunctionState>>,
        on_log: Option<OnLog>,
    ) -> Self {
        Self {
            gauge,
            state: RwLock::new(state),
            early: Mutex::new(Some(Vec::new())),
            on_log,
            declared: Mutex::default(),
            logs: None,
            log_is_open: Arc::default(),
            publications: None,
            topics: None,
        }
    }

    /// Tells the schemas of topics from which messages were taken, and of no others.
    pub(crate) fn schemas_by(&mut self, client: Client, taken: Arc<Taken>) {
        self.topics = Some((client, taken));
    }

    /// What the host has said of topics.
    pub(crate) fn declared(&self) -> Declared {
        self.declared.lock().clone()
    }

    /// From now on this is the function's state.
    pub(crate) fn set_state(&self, state: Option<Arc<FunctionState>>) {
        *self.state.write() = state;
        let early = self.early.lock().take().unwrap_or_default();
        if !early.is_empty() {
            self.state_commit(early);
        }
    }

    /// Sends log lines to a topic: the text, with level, instance and function as properties.
    pub(crate) fn log_to(
        &mut self,
        client: Client,
        topic: String,
        fqfn: String,
        instance: u32,
        tasks: &Tasks,
    ) {
        let (sender, mut lines) = mpsc::channel::<Line>(LOGS_WAITING);
        self.logs = Some(sender);
        let is_open = self.log_is_open.clone();
        tasks.spawn_cancellable("log topic", async move {
            let seed = Random::from_entropy().next_u64();
            let mut backoff = Backoff::new(LOG_PAUSE_FIRST, LOG_PAUSE_MAX, seed);
            let mut turn = VecDeque::new();
            // Lines wait meanwhile, as many as there is room for.
            loop {
                let opening = client.producer(&topic).property("function", fqfn.clone());
                let producer = match opening.build().await {
                    Ok(producer) => producer,
                    Err(error) => {
                        let pause = backoff.next_delay();
                        tracing::warn!(topic, %error, ?pause, "log topic not usable: tried again");
                        tokio::time::sleep(pause).await;
                        continue;
                    }
                };
                is_open.store(true, Ordering::Release);
                let head = |message: Sent| {
                    let message = message.property("instance", instance.to_string());
                    message.property("fqn", fqfn.clone())
                };
                let sent = post_lines(&producer, &mut lines, &mut turn, head, || backoff.reset());
                match sent.await {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(topic, %error, "log line not sent"),
                }
                is_open.store(false, Ordering::Release);
                tokio::time::sleep(backoff.next_delay()).await;
            }
        });
    }

    /// Publishes what code publishes outside a message, as outputs are: each once or not at all.
    pub(crate) fn publish_by(
        &mut self,
        mut sink: TopicSink,
        default: Option<String>,
        tasks: &Tasks,
    ) {
        let gauge = self.gauge.clone();
        let (sender, mut outputs) = mpsc::channel(PUBLISH_WAITING);
        self.publications = Some(sender);
        tasks.spawn_cancellable("function publications", async move {
            let of_no_message = Message::default();
            let lost = |why: String| {
                tracing::warn!(why, "not published");
                gauge
                    .stats
                    .system_exception(format!("not published, outside a message: {why}"));
            };
            let mut turn = Vec::new();
            while outputs.recv_many(&mut turn, PUBLISHED_AT_ONCE).await > 0 {
                let mut receipts = Vec::with_capacity(turn.len());
                let mut room = Vec::with_capacity(turn.len());
                for (mut output, taken) in turn.drain(..) {
                    room.push(taken);
                    output.topic = output.topic.or_else(|| default.clone());
                    match sink.write(&of_no_message, vec![output], None).await {
                        Ok(sent) => receipts.extend(sent),
                        Err(
                            WriteError::Message(why)
                            | WriteError::Spoiled(why)
                            | WriteError::Sink(why),
                        ) => lost(why),
                    }
                }
                for receipt in receipts {
                    if let Err(error) = receipt.await {
                        lost(error.to_string());
                    }
                }
            }
        });
    }
}

/// A log line, and its room until it is stored.
type Line = (LogLine, room::Taken);

/// Sends lines until there will be none; those of `turn`, which an earlier producer left, come first.
async fn post_lines(
    producer: &Producer,
    lines: &mut mpsc::Receiver<Line>,
    turn: &mut VecDeque<Line>,
    head: impl Fn(Sent) -> Sent,
    mut stored: impl FnMut(),
) -> Result<(), geminga_client::Error> {
    let mut some = Vec::new();
    while !turn.is_empty() || lines.recv_many(&mut some, LOGS_AT_ONCE).await > 0 {
        turn.extend(some.drain(..));
        let mut room = Vec::with_capacity(turn.len());
        while let Some((line, taken)) = turn.pop_front() {
            room.push(taken);
            let mut message =
                head(Sent::new(line.text.into_bytes())).property("loglevel", line.level.as_str());
            if let Some(id) = line.message_id {
                message = message.property("messageId", id);
            }
            producer.post(message).await?;
        }
        producer.flush().await?;
        stored();
    }
    Ok(())
}

/// Shortens a log line that is too long.
fn cut(text: &mut String) {
    let bytes = text.len();
    if bytes > LOG_LINE_MAX_BYTES {
        text.truncate(text.floor_char_boundary(LOG_LINE_MAX_BYTES));
        // What was read with it is not kept for it.
        *text = format!("{text}… ({bytes} bytes)");
    }
}

impl Services for Context {
    fn declared(&self, of: SchemaOf, schema: Schema) {
        let mut declared = self.declared.lock();
        match of {
            SchemaOf::Output => declared.output = Some(schema),
            SchemaOf::Input(topic) => drop(declared.inputs.insert(topic, schema)),
        }
    }

    fn log(&self, mut line: LogLine) {
        cut(&mut line.text);
        if let Some(on_log) = &self.on_log {
            on_log(&line);
        }
        tracing::debug!(
            level = line.level.as_str(),
            text = line.text,
            "function log"
        );
        let Some(logs) = &self.logs else { return };
        let room = self.gauge.logging.take(line.text.len() + LOG_LINE_BYTES);
        if room.is_none_or(|room| logs.try_send((line, room)).is_err())
            && self.gauge.stats.log_dropped() == 0
        {
            let why = match self.log_is_open.load(Ordering::Acquire) {
                true => "log lines come faster than the log topic takes them: some are dropped",
                false => "the log topic can not be opened: log lines are dropped until it can",
            };
            tracing::warn!("{why}");
        }
    }

    fn metric(&self, name: &str, value: f64) {
        self.gauge.stats.user_metric(name, value);
    }

    fn state_get(&self, key: &str) -> Option<Bytes> {
        let state = self.state.read();
        state.as_ref()?.get(key).map(|entry| entry.value)
    }

    fn state_apply(&self, changes: &[StateChange]) {
        if let Some(state) = &*self.state.read() {
            state.apply(changes);
        }
    }

    fn state_commit(&self, changes: Vec<StateChange>) {
        let state = self.state.read();
        let Some(state) = &*state else {
            match &mut *self.early.lock() {
                Some(early) => early.extend(changes),
                None => self.gauge.stats.system_exception(NO_STATE.to_owned()),
            }
            return;
        };
        state.apply(&changes);
        self.gauge.outside.lock().extend(changes);
        self.gauge.woken.notify_one();
    }

    fn acknowledge(&self, message_id: &str) {
        let origin = self.gauge.held.lock().remove(message_id);
        match origin {
            Some(origin) => {
                self.gauge.manual_acks.lock().push(origin);
                self.gauge.woken.notify_one();
            }
            None => self.log(LogLine {
                level: Level::Warn,
                text: format!("acknowledged `{message_id}`, which this instance does not hold"),
                message_id: None,
            }),
        }
    }

    fn publish(&self, output: Output) {
        let room = self.gauge.publishing.take(output.bytes());
        let taken = self
            .publications
            .as_ref()
            .zip(room)
            .is_some_and(|(p, room)| p.try_send((output, room)).is_ok());
        if !taken {
            self.gauge.stats.system_exception(
                "a publication outside a message was dropped: too many at once".to_owned(),
            );
        }
    }

    fn schema(
        &self,
        topic: &str,
        version: Option<Bytes>,
    ) -> BoxFuture<'static, Result<Option<Bytes>, String>> {
        let known = self
            .topics
            .as_ref()
            .filter(|(_, taken)| taken.knows(topic))
            .map(|(client, _)| client.clone());
        let topic = topic.to_owned();
        Box::pin(async move {
            let Some(client) = known else {
                return Err(format!("`{topic}` gave this function no message"));
            };
            let schema = match &version {
                Some(version) => client.schema_at(&topic, version).await,
                None => client.schema(&topic).await,
            };
            let schema = schema.map_err(|error| format!("schema of `{topic}`: {error}"))?;
            Ok(schema.map(|schema| headers::of_schema(&schema)))
        })
    }

    fn restarted(&self, reason: &str) {
        self.gauge.stats.restarted();
        self.log(LogLine {
            level: Level::Warn,
            text: format!("the process was started again: {reason}"),
            message_id: None,
        });
    }

    fn ended_idle(&self, why: &str) {
        self.gauge.stats.system_exception(why.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They were counted, and each could have 13 MiB.
    #[test]
    fn what_waits_is_bounded_in_bytes() {
        let gauge = Arc::new(Gauge::default());
        let mut context = Context::new(gauge.clone(), None, None);
        let (logs, mut lines) = mpsc::channel(LOGS_WAITING);
        let (publications, mut outputs) = mpsc::channel(PUBLISH_WAITING);
        (context.logs, context.publications) = (Some(logs), Some(publications));
        let line = |text: &str| LogLine {
            level: Level::Info,
            text: text.to_owned(),
            message_id: None,
        };
        let long = "ö".repeat(100_000);
        for _ in 0..400 {
            context.log(line(&long));
        }
        let (first, room) = lines.try_recv().expect("one");
        assert_eq!(
            first.text,
            format!("{}… (200000 bytes)", &long[..LOG_LINE_MAX_BYTES])
        );
        let mut kept = vec![room];
        kept.extend(std::iter::from_fn(|| lines.try_recv().ok()).map(|(_, room)| room));
        assert!((200..=256).contains(&kept.len()), "{}", kept.len());
        drop(kept);
        context.log(line("short"));
        assert_eq!(lines.try_recv().expect("one").0.text, "short");

        let large = Output {
            payload: vec![b'x'; 5 << 20].into(),
            ..Output::default()
        };
        for _ in 0..10 {
            context.publish(large.clone());
        }
        let kept: Vec<_> = std::iter::from_fn(|| outputs.try_recv().ok()).collect();
        assert_eq!(kept.len(), 3);
        assert!(gauge.stats.snapshot().total.system_exceptions > 0);
    }
}
