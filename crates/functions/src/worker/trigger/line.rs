//! What the calls of one version of a function share: its producers, the reader of its outputs, and who waits for
//! which answer.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use geminga_client::{Batching, Client, Message, MessageId, Producer, Reader, ReceivedMessage};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::{Answered, Asked};
use crate::component::ComponentId;
use crate::error::WorkerError;
use crate::instance::sink::{FUNCTION, TRIGGER, pfn_id};
use crate::plan::topics_of;
use crate::runtime::wire_base64::from_base64;
use crate::worker::Inner;
use crate::worker::supervisor::Crew;

#[cfg(test)]
mod tests;

/// Without a call for so long, a function's producers and reader end.
const IDLE: Duration = Duration::from_secs(30);
/// Answers, and bytes of them, that came before their messages' ids are known.
const EARLY_MAX: usize = 4096;
const EARLY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What the calls of one version of a function share. Its task keeps it.
pub(super) struct Line {
    pub(super) id: ComponentId,
    pub(super) version: u64,
    answers: bool,
    /// Answers without a function's name may be its own.
    may_be_compat: bool,
    client: Client,
    producers: tokio::sync::Mutex<HashMap<String, Arc<Producer>>>,
    calls: Mutex<Calls>,
    stage: watch::Sender<Stage>,
    /// A call ended, or its message is sent.
    fewer: Notify,
}

/// How far a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum Stage {
    Open,
    /// A newer version has a line of its own: the calls under way are the last ones. What the old code
    /// left of them the new one answers.
    Retiring,
    /// Its function is gone.
    Ending,
    /// Nothing of it is on the broker any more.
    Gone,
}

/// Why a line ended.
#[derive(Clone)]
enum End {
    /// Nobody called for a while.
    Idle,
    /// The function was deleted.
    Deleted,
    /// The worker ends.
    Stopping,
    Broken(&'static str, geminga_client::Error),
}

/// The calls under way.
struct Calls {
    /// By what an answer to them names.
    waiting: HashMap<String, mpsc::Sender<Answered>>,
    /// Messages whose id is not known yet.
    sending: usize,
    early: VecDeque<(String, Answered)>,
    early_bytes: usize,
    last: Instant,
    /// It takes no more calls.
    ended: Option<End>,
}

impl Line {
    pub(super) async fn open(inner: &Arc<Inner>, crew: &Crew) -> Result<Arc<Self>, WorkerError> {
        let client = inner.config.client.clone();
        let (_, output) = topics_of(&crew.plan);
        let dead_letters = crew.plan.policy.dead_letter_topic.clone();
        let answers = output.is_some();
        let outputs = match output {
            Some(topic) => Some(newest(&client, &topic).await?),
            None => None,
        };
        let dead = match dead_letters.filter(|_| answers) {
            Some(topic) => Some(newest(&client, &topic).await?),
            None => None,
        };
        let line = Self {
            may_be_compat: crew.may_be_compat(),
            ..Self::new(crew.id.clone(), crew.version(), answers, client)
        };
        let line = Arc::new(line);
        // The worker ends: it is dropped where it stands.
        let kept = EndOnDrop(line.clone());
        inner.tasks.spawn_cancellable("function calls", async move {
            let line = &kept.0;
            let mut readers = [outputs, dead];
            let why = line.read(&mut readers).await;
            line.close(readers, why).await;
        });
        Ok(line)
    }

    /// Takes no more calls and leaves the broker. What can not be closed is closed with the connection.
    async fn close(&self, readers: [Option<Reader>; 2], why: End) {
        self.end(why);
        for reader in readers.into_iter().flatten() {
            let _ = reader.close().await;
        }
        self.all_sent().await;
        for (_, producer) in self.producers.lock().await.drain() {
            if let Some(producer) = Arc::into_inner(producer) {
                let _ = producer.close().await;
            }
        }
        self.stage.send_replace(Stage::Gone);
    }

    /// Waits until no call is sending: each has a producer in hand.
    async fn all_sent(&self) {
        while self.calls.lock().sending > 0 {
            self.fewer.notified().await;
        }
    }

    fn new(id: ComponentId, version: u64, answers: bool, client: Client) -> Self {
        Self {
            id,
            version,
            answers,
            may_be_compat: false,
            client,
            producers: tokio::sync::Mutex::default(),
            calls: Mutex::new(Calls {
                waiting: HashMap::new(),
                sending: 0,
                early: VecDeque::new(),
                early_bytes: 0,
                last: Instant::now(),
                ended: None,
            }),
            stage: watch::Sender::new(Stage::Open),
            fewer: Notify::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.calls.lock().ended.is_none()
    }

    /// Goes to a later stage.
    pub(super) fn turn(&self, to: Stage) {
        self.stage.send_if_modified(|stage| {
            let goes_on = *stage < to;
            if goes_on {
                *stage = to;
            }
            goes_on
        });
    }

    /// Takes no more calls. Whoever waits still learns that nothing will come.
    fn end(&self, why: End) {
        let mut calls = self.calls.lock();
        calls.ended.get_or_insert(why);
        calls.waiting.clear();
    }

    /// Reads answers until nobody calls any more, or they can not be read.
    async fn read(&self, [outputs, dead]: &mut [Option<Reader>; 2]) -> End {
        let mut stage = self.stage.subscribe();
        loop {
            let now = *stage.borrow_and_update();
            // Under the lock that calls begin under: none begins on a line that has decided to end.
            if let Some(why) = self.calls.lock().end_at(now) {
                return why;
            }
            tokio::select! {
                _ = stage.changed() => {}
                () = self.fewer.notified() => {}
                got = next(outputs) => match got {
                    Ok(messages) => messages.into_iter().for_each(|message| self.output(message)),
                    Err(error) => return End::Broken("reading the output", error),
                },
                got = next(dead) => match got {
                    Ok(messages) => messages.iter().for_each(|message| self.dead(message)),
                    Err(error) => return End::Broken("reading dead letters", error),
                },
                () = tokio::time::sleep(IDLE / 4) => {}
            }
        }
    }

    /// Whether it comes from this line's function, and not from another one with the same topics.
    fn is_own(&self, properties: &[(String, String)]) -> bool {
        // The last one is its instance's; code may copy what came with a message.
        match properties.iter().rev().find(|(name, _)| name == FUNCTION) {
            Some((_, name)) => *name == self.id.fqfn(),
            None => self.may_be_compat,
        }
    }

    fn output(&self, message: ReceivedMessage) {
        let Some(of) = message.property("__pfn_input_msg_id__") else {
            return;
        };
        if !self.is_own(&message.properties) {
            return;
        }
        let key = output_key(of);
        self.answer(key, || Answered::Output {
            payload: message.payload,
            key: message.key,
            properties: message.properties,
        });
    }

    fn dead(&self, message: &ReceivedMessage) {
        let Some(of) = message.property("ORIGIN_MESSAGE_ID") else {
            return;
        };
        if !self.is_own(&message.properties) {
            return;
        }
        self.answer(dead_key(of), || {
            let reason = message.property("geminga.reason");
            Answered::Failed(reason.unwrap_or("the function failed").to_owned())
        });
    }

    fn answer(&self, key: String, answer: impl FnOnce() -> Answered) {
        let mut calls = self.calls.lock();
        if let Some(waiting) = calls.waiting.get(&key) {
            // A second output finds the place taken: the first one is the answer.
            let _ = waiting.try_send(answer());
        } else if calls.sending > 0 {
            let answer = answer();
            calls.early_bytes += answer.len();
            calls.early.push_back((key, answer));
            while calls.early.len() > EARLY_MAX || calls.early_bytes > EARLY_BYTES_MAX {
                let Some((_, dropped)) = calls.early.pop_front() else {
                    break;
                };
                calls.early_bytes -= dropped.len();
            }
        }
    }

    async fn producer(&self, topic: &str) -> Result<Arc<Producer>, WorkerError> {
        let mut producers = self.producers.lock().await;
        if let Some(producer) = producers.get(topic) {
            return Ok(producer.clone());
        }
        if !self.is_open() {
            return Err(WorkerError::NotFound(self.id.clone()));
        }
        // Each call is an entry of its own: its id is known by no more than that.
        let made = self.client.producer(topic).batching(Batching::off());
        let made = made.build().await;
        let made = made.map_err(WorkerError::client(format!("writing `{topic}`")))?;
        let made = Arc::new(made);
        producers.insert(topic.to_owned(), made.clone());
        Ok(made)
    }

    pub(super) async fn call(
        &self,
        mut call: Call<'_>,
        topic: &str,
        asked: Asked,
    ) -> Result<Answered, WorkerError> {
        let producer = self.producer(topic).await?;
        let mut message = Message::new(asked.payload);
        for (name, value) in asked.properties {
            // Nobody else says for whom it is, and from whom its answer.
            if ![TRIGGER, FUNCTION].contains(&&*name) {
                message = message.property(name, value);
            }
        }
        if self.answers {
            message = message.property(TRIGGER, self.id.fqfn());
        }
        if let Some(key) = asked.key {
            message = message.key(key);
        }
        if let Some(ms) = asked.event_time_ms {
            message = message.event_time(ms);
        }
        let sent = producer.send(message).await;
        // Whoever closes it finds it used by nobody.
        drop(producer);
        if sent.is_err() {
            // One that was closed, by a topic that is gone: the next call makes another.
            self.producers.lock().await.remove(topic);
        }
        let id = sent.map_err(WorkerError::client(format!("writing `{topic}`")))?;
        if !self.answers {
            return Ok(Answered::Nothing);
        }
        let mut answers = call.sent(id);
        match answers.recv().await {
            Some(answer) => Ok(answer),
            None => {
                let ended = self.calls.lock().ended.clone();
                Err(match ended {
                    Some(End::Broken(what, error)) => WorkerError::client(what)(error),
                    Some(End::Deleted) => WorkerError::NotFound(self.id.clone()),
                    Some(End::Stopping | End::Idle) | None => WorkerError::Stopping,
                })
            }
        }
    }

    /// Its function was deleted before this had a place: it is at its end already.
    pub(super) fn comes_too_late(&self) {
        self.calls.lock().ended = Some(End::Deleted);
        self.turn(Stage::Ending);
    }

    /// Waits until nothing of it is on the broker.
    pub(super) async fn gone(&self) {
        let mut stage = self.stage.subscribe();
        let _ = stage.wait_for(|stage| *stage == Stage::Gone).await;
    }
}

/// A reader of what comes from now on.
async fn newest(client: &Client, topic: &str) -> Result<Reader, WorkerError> {
    let reader = client.reader(topic).start(MessageId::LATEST);
    let reader = reader.build().await;
    reader.map_err(WorkerError::client(format!("reading `{topic}`")))
}

/// What comes next, of a reader that there is.
async fn next(reader: &mut Option<Reader>) -> Result<Vec<ReceivedMessage>, geminga_client::Error> {
    match reader {
        Some(reader) => reader.next_batch(100).await,
        None => std::future::pending().await,
    }
}

/// What an output, or a dead letter, names of the message that it came of.
/// By what the id says, not by its bytes: Pulsar's own instance for Java writes the size of a batch too.
fn output_key(pfn: &str) -> String {
    let bytes = from_base64(pfn);
    match bytes.and_then(|bytes| MessageId::from_bytes(&bytes)) {
        Some(id) => format!(
            "output {}:{}:{}:{}",
            id.ledger_id, id.entry_id, id.partition, id.batch_index
        ),
        None => format!("output {pfn}"),
    }
}

fn dead_key(id: &str) -> String {
    format!("dead {id}")
}

/// All that answers to a message may name. Some number a batch of one message and others do not.
fn keys_of(id: MessageId) -> Vec<String> {
    let mut keys = Vec::new();
    for id in [id, id.without_batch()] {
        keys.push(output_key(&pfn_id(&id)));
        keys.push(dead_key(&id.to_string()));
    }
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// A call under way. It is forgotten when this is dropped.
pub(super) struct Call<'a> {
    line: &'a Line,
    /// Its id is not known yet.
    sending: bool,
    keys: Vec<String>,
}

impl<'a> Call<'a> {
    /// None when the line takes no more.
    pub(super) fn begin(line: &'a Line) -> Option<Self> {
        let mut calls = line.calls.lock();
        if calls.ended.is_some() {
            return None;
        }
        calls.sending += 1;
        calls.last = Instant::now();
        Some(Self {
            line,
            sending: true,
            keys: Vec::new(),
        })
    }

    /// Its message has this id: its answers.
    fn sent(&mut self, id: MessageId) -> mpsc::Receiver<Answered> {
        let (sender, answers) = mpsc::channel(1);
        self.keys = keys_of(id);
        let mut calls = self.line.calls.lock();
        let early = calls.early.iter().find(|(key, _)| self.keys.contains(key));
        if let Some((_, answer)) = early {
            let _ = sender.try_send(answer.clone());
        }
        if calls.ended.is_none() {
            for key in &self.keys {
                calls.waiting.insert(key.clone(), sender.clone());
            }
        }
        self.sending = false;
        calls.known();
        if calls.ended.is_some() {
            // The end may be waiting for it.
            self.line.fewer.notify_one();
        }
        answers
    }
}

impl Calls {
    /// Whether their line ends at this stage: from now on it takes no more.
    fn end_at(&mut self, stage: Stage) -> Option<End> {
        let is_idle = self.waiting.is_empty() && self.sending == 0;
        let why = match stage {
            Stage::Open if is_idle && self.last.elapsed() >= IDLE => End::Idle,
            Stage::Retiring if is_idle => End::Idle,
            Stage::Open | Stage::Retiring => return None,
            Stage::Ending | Stage::Gone => End::Deleted,
        };
        Some(self.ended.get_or_insert(why).clone())
    }

    /// One more message's id is known, or never will be.
    fn known(&mut self) {
        self.sending -= 1;
        if self.sending == 0 {
            self.early.clear();
            self.early_bytes = 0;
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut calls = self.line.calls.lock();
        if self.sending {
            calls.known();
        }
        for key in &self.keys {
            calls.waiting.remove(key);
        }
        calls.last = Instant::now();
        if calls.ended.is_some() || *self.line.stage.borrow() != Stage::Open {
            // It may have been the last one.
            self.line.fewer.notify_one();
        }
    }
}

/// Ends a line that was not ended before.
struct EndOnDrop(Arc<Line>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(End::Stopping);
    }
}
