//! Sends messages through a function and waits for what came of each.
//!
//! The answer is found by the id of the message that was sent, which every output carries in its
//! properties; so any number of calls may be under way at once, beside other messages. Another function may
//! have the same topics: what is sent carries a mark, and an instance that sees it puts its function's name on
//! what comes of the message. Pulsar's own instances put no name there. The calls of a function share its
//! producers and one reader of its outputs, which end with the function, or when nobody calls for a while.
//!
//! What must hold: a reader begins before the first message is sent, so that no answer is missed; an
//! answer that comes before its message's id is known is kept, within bounds, while any is not known;
//! when the deletion of a function answers, nothing of its lines is on the broker.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use geminga_client::{Batching, Client, Message, MessageId, Producer, Reader, ReceivedMessage};
use geminga_model::TopicName;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::supervisor::Crew;
use super::{Inner, Worker};
use crate::component::ComponentId;
use crate::error::WorkerError;
use crate::instance::sink::{FUNCTION, TRIGGER, pfn_id};
use crate::plan::{Input, Plan, full_name};
use crate::runtime::wire_base64::from_base64;

/// Without a call for so long, a function's producers and reader end.
const IDLE: Duration = Duration::from_secs(30);
/// What the end of a function waits for theirs: its topics can be deleted then.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// Answers, and bytes of them, that came before their messages' ids are known.
const EARLY_MAX: usize = 4096;
const EARLY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A message for a function.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The input topic; needed when there are several.
    pub topic: Option<String>,
    pub payload: Bytes,
    pub key: Option<String>,
    pub properties: Vec<(String, String)>,
    pub event_time_ms: Option<u64>,
    /// How long an answer may take, from the call on.
    pub limit: Duration,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// The function has no output topic: the message was taken.
    Nothing,
    /// Its first output.
    Output {
        payload: Bytes,
        key: Option<String>,
        properties: Vec<(String, String)>,
    },
    /// It failed for good: the reason in its dead letter.
    Failed(String),
}

impl Answered {
    fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Output { payload, .. } => payload.len(),
            Self::Failed(why) => why.len(),
        }
    }
}

/// The lines to functions that are called.
#[derive(Default)]
pub(crate) struct Lines(Mutex<HashMap<ComponentId, Arc<Slot>>>);

/// A function's lines, and who makes one.
#[derive(Default)]
struct Slot {
    making: tokio::sync::Mutex<()>,
    /// The newest last; before it those whose last calls are under way.
    lines: Mutex<Vec<Weak<Line>>>,
}

/// What the calls of one version of a function share. Its task keeps it.
struct Line {
    id: ComponentId,
    version: u64,
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
enum Stage {
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

impl Lines {
    /// The function is gone: so are its producers and readers, and what is under way has no answer.
    pub(crate) async fn close(&self, id: &ComponentId) {
        // Together: a line that is being made finds its place taken from it.
        let Some(slot) = self.0.lock().remove(id) else {
            return;
        };
        for line in slot.lines() {
            line.turn(Stage::Ending);
        }
        let gone = async {
            let _none_is_made = slot.making.lock().await;
            for line in slot.lines() {
                let mut stage = line.stage.subscribe();
                let _ = stage.wait_for(|stage| *stage == Stage::Gone).await;
            }
        };
        let _ = tokio::time::timeout(CLOSE_LIMIT, gone).await;
    }

    /// A newer version takes the calls from now on.
    pub(crate) fn retire(&self, id: &ComponentId) {
        let slot = self.0.lock().get(id).cloned();
        for line in slot.map_or_else(Vec::new, |slot| slot.lines()) {
            line.turn(Stage::Retiring);
        }
    }

    fn slot(&self, id: &ComponentId) -> Arc<Slot> {
        let mut all = self.0.lock();
        all.retain(|_, slot| Arc::strong_count(slot) > 1 || !slot.lines().is_empty());
        all.entry(id.clone()).or_default().clone()
    }

    /// Puts a new line into its slot. One whose function was deleted meanwhile is at its end already.
    fn add(&self, slot: &Arc<Slot>, line: &Arc<Line>) {
        let all = self.0.lock();
        if !all
            .get(&line.id)
            .is_some_and(|known| Arc::ptr_eq(known, slot))
        {
            line.calls.lock().ended = Some(End::Deleted);
            line.turn(Stage::Ending);
        }
        let mut lines = slot.lines.lock();
        lines.retain(|line| line.strong_count() > 0);
        lines.push(Arc::downgrade(line));
    }
}

impl Slot {
    /// Those that are not gone.
    fn lines(&self) -> Vec<Arc<Line>> {
        self.lines.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// The line that takes calls of a version, or of a newer one.
    fn open(&self, version: u64) -> Option<Arc<Line>> {
        let line = self.lines.lock().last()?.upgrade()?;
        (line.version >= version && line.is_open()).then_some(line)
    }
}

impl Worker {
    /// The input topic, in full, that a message for a function goes to.
    ///
    /// # Errors
    /// When there is no such function, or `named` is not one of its inputs, or left out where there are several.
    pub fn input_topic(
        &self,
        id: &ComponentId,
        named: Option<&str>,
    ) -> Result<String, WorkerError> {
        input(&self.entry(id)?.crew.plan, named)
    }

    /// Sends a message through a function and gives what came of it.
    ///
    /// # Errors
    /// When the topic is not one of its inputs, or nothing comes within the limit.
    pub async fn trigger(&self, id: &ComponentId, asked: Asked) -> Result<Answered, WorkerError> {
        let limit = asked.limit;
        let answered = async {
            loop {
                let entry = self.entry(id)?;
                let topic = input(&entry.crew.plan, asked.topic.as_deref())?;
                entry.crew.may_ask(&topic)?;
                let line = self.line(id, &entry.crew).await?;
                // It may have ended since: then there is a newer one.
                if let Some(call) = Call::begin(&line) {
                    return line.call(call, &topic, asked).await;
                }
            }
        };
        match tokio::time::timeout(limit, answered).await {
            Ok(answered) => answered,
            Err(_) => Err(WorkerError::Timeout {
                what: "the function's answer",
                after_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }

    async fn line(&self, id: &ComponentId, crew: &Crew) -> Result<Arc<Line>, WorkerError> {
        let lines = &self.inner.lines;
        let slot = lines.slot(id);
        if let Some(line) = slot.open(crew.version()) {
            return Ok(line);
        }
        let one = slot.making.lock().await;
        if let Some(line) = slot.open(crew.version()) {
            return Ok(line);
        }
        let line = Line::open(&self.inner, crew).await?;
        lines.add(&slot, &line);
        drop(one);
        if self.entry(id).is_err() {
            // It was deleted before this had a place where that finds it.
            lines.close(id).await;
        }
        Ok(line)
    }
}

/// The input topic that is meant.
fn input(plan: &Plan, named: Option<&str>) -> Result<String, WorkerError> {
    let Input::Topics(inputs) = &plan.input else {
        return Err(WorkerError::Invalid(vec!["it reads no topic".to_owned()]));
    };
    let is_input = |name: &str| {
        let topic = name.parse::<TopicName>();
        topic.is_ok_and(|topic| inputs.selection().has(&topic).unwrap_or(false))
    };
    let why = match (named.map(full_name), &inputs.topics[..]) {
        (Some(topic), _) if is_input(&topic) => return Ok(topic),
        (None, [only]) if inputs.patterns.is_empty() => return Ok(only.clone()),
        (Some(_), _) => "Function in trigger function has unidentified topic",
        (None, []) => {
            "Function in trigger function has a pattern as its input: name a topic that matches"
        }
        (None, _) => "Function in trigger function has multiple input topics: name the topic",
    };
    Err(WorkerError::Invalid(vec![why.to_owned()]))
}

impl Line {
    async fn open(inner: &Arc<Inner>, crew: &Crew) -> Result<Arc<Self>, WorkerError> {
        let client = inner.config.client.clone();
        let (_, output) = super::topics_of(&crew.plan);
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

    fn is_open(&self) -> bool {
        self.calls.lock().ended.is_none()
    }

    /// Goes to a later stage.
    fn turn(&self, to: Stage) {
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

    async fn call(
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
struct Call<'a> {
    line: &'a Line,
    /// Its id is not known yet.
    sending: bool,
    keys: Vec<String>,
}

impl<'a> Call<'a> {
    /// None when the line takes no more.
    fn begin(line: &'a Line) -> Option<Self> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        let client = Client::builder("pulsar://127.0.0.1:1").build();
        let id = "function public/default/f".parse().expect("an id");
        Line::new(id, 1, true, client)
    }

    fn end_at(line: &Line, stage: Stage) -> bool {
        line.calls.lock().end_at(stage).is_some()
    }

    #[tokio::test]
    async fn a_line_that_has_decided_to_end_takes_no_more_calls() {
        for (stage, ends_busy, ends_idle) in [
            (Stage::Open, false, false),
            (Stage::Retiring, false, true),
            (Stage::Ending, true, true),
        ] {
            let line = line();
            let call = begin(&line);
            assert_eq!(end_at(&line, stage), ends_busy, "{stage:?}");
            drop(call);
            assert_eq!(end_at(&line, stage), ends_idle, "{stage:?}");
            assert_eq!(Call::begin(&line).is_none(), ends_idle, "{stage:?}");
        }
    }

    /// A deletion finds every line, however old; one that is made meanwhile has no place any more.
    #[tokio::test]
    async fn a_deletion_finds_every_line() {
        let (lines, old, new, late) = (
            Lines::default(),
            Arc::new(line()),
            Arc::new(line()),
            Arc::new(line()),
        );
        let slot = lines.slot(&old.id);
        lines.add(&slot, &old);
        lines.retire(&old.id);
        lines.add(&slot, &new);
        assert_eq!(
            (*old.stage.borrow(), *new.stage.borrow()),
            (Stage::Retiring, Stage::Open)
        );
        tokio::select! {
            biased;
            () = lines.close(&old.id) => panic!("nobody has closed them"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(
            (*old.stage.borrow(), *new.stage.borrow()),
            (Stage::Ending, Stage::Ending)
        );
        lines.add(&slot, &late);
        assert_eq!(*late.stage.borrow(), Stage::Ending);
        assert!(Call::begin(&late).is_none());
        assert!(!Arc::ptr_eq(&lines.slot(&old.id), &slot));
    }

    /// A deletion's answer waits for it: what sends has a producer, which would be there afterwards.
    #[tokio::test]
    async fn a_line_is_not_gone_while_a_call_is_sending() {
        for is_sent in [true, false] {
            let line = line();
            let (mut first, second) = (begin(&line), begin(&line));
            let mut closing = std::pin::pin!(line.close([None, None], End::Deleted));
            let mut is_pending = async || {
                tokio::select! {
                    biased;
                    () = &mut closing => false,
                    () = std::future::ready(()) => true,
                }
            };
            assert!(is_pending().await, "two are sending");
            drop(second);
            assert!(is_pending().await, "one is sending");
            assert!(*line.stage.borrow() < Stage::Gone && Call::begin(&line).is_none());
            if is_sent {
                // That nothing comes any more is known at once.
                assert_eq!(first.sent(id(1)).recv().await, None);
            } else {
                drop(first);
            }
            tokio::time::timeout(CLOSE_LIMIT, closing)
                .await
                .expect("gone");
            assert_eq!(*line.stage.borrow(), Stage::Gone);
        }
    }

    fn begin(line: &Line) -> Call<'_> {
        Call::begin(line).expect("open")
    }

    fn id(entry_id: i64) -> MessageId {
        format!("7:{entry_id}:-1").parse().expect("an id")
    }

    #[test]
    fn an_output_of_pulsars_own_instance_names_the_same_message() {
        let keys = keys_of("2:1:-1".parse().expect("an id"));
        // As the instance for Java writes it: with a batch of no messages.
        assert!(keys.contains(&output_key("CAIQATAA")), "{keys:?}");
        assert!(!keys.contains(&output_key("CAIQAjAA")), "another entry");
        assert!(!keys.contains(&output_key("no id")));
    }

    /// A function that has the same topics is not asked.
    #[test]
    fn an_answer_is_the_functions_own() {
        let own = "public/default/f";
        let other = "public/default/g";
        for (names, is_own, is_own_if_compat) in [
            (&[own][..], true, true),
            (&[other], false, false),
            (&[other, own], true, true),
            (&[own, other], false, false),
            // Pulsar's own instances do not say it.
            (&[], false, true),
        ] {
            let names = names.iter();
            let properties = names.map(|name| (FUNCTION.to_owned(), (*name).to_owned()));
            let properties: Vec<_> = properties.collect();
            let mut line = line();
            assert_eq!(line.is_own(&properties), is_own, "{properties:?}");
            line.may_be_compat = true;
            assert_eq!(line.is_own(&properties), is_own_if_compat, "{properties:?}");
        }
    }

    fn failed(line: &Line, entry: i64) {
        line.answer(dead_key(&id(entry).to_string()), || {
            Answered::Failed(entry.to_string())
        });
    }

    #[tokio::test]
    async fn an_answer_finds_its_call_whichever_comes_first() {
        let line = line();
        let (mut first, mut second) = (begin(&line), begin(&line));
        failed(&line, 2);
        let mut of_second = second.sent(id(2));
        assert_eq!(
            of_second.recv().await,
            Some(Answered::Failed("2".to_owned()))
        );
        let mut of_first = first.sent(id(1));
        failed(&line, 1);
        // The first answer is the answer.
        line.answer(dead_key(&id(1).to_string()), || Answered::Nothing);
        assert_eq!(
            of_first.recv().await,
            Some(Answered::Failed("1".to_owned()))
        );
        drop((first, second));
        failed(&line, 3);
        let calls = line.calls.lock();
        assert!(calls.waiting.is_empty() && calls.early.is_empty() && calls.sending == 0);
    }

    #[tokio::test]
    async fn early_answers_are_bounded_and_a_line_that_ends_says_so() {
        let line = line();
        let mut call = begin(&line);
        for entry in 0..10_000 {
            failed(&line, entry);
        }
        assert_eq!(line.calls.lock().early.len(), EARLY_MAX);
        let answers = begin(&line);
        drop(answers);
        assert_eq!(line.calls.lock().sending, 1);
        line.calls.lock().ended = Some(End::Idle);
        let mut answers = call.sent(id(-5));
        assert_eq!(answers.recv().await, None);
        assert_eq!(line.calls.lock().early_bytes, 0);
    }
}
