//! Consumers: messages of one topic, of several, of all partitions, or of all topics of a pattern.
//!
//! Entries come from the connections into one inbox, whole and packed. The consumer takes all that
//! are there at once and opens them in the task that reads it, so that unpacking is not on the
//! connection's time. Permits bound what the brokers send.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::{Deref, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use geminga_model::name::TopicName;
use geminga_proto::{MessageId, pb};
use parking_lot::RwLock;
use tokio::sync::oneshot;

use crate::client::{Shared, topic_name};
use crate::error::{Error, Result};
use crate::message::ReceivedMessage;
pub(crate) use decode::Entry;
use decode::Start;
use inbox::Inbox;
pub(crate) use topic::Topic;

mod acks;
mod decode;
mod driver;
mod inbox;
mod pattern;
mod topic;

/// Messages that wait in all topics of a consumer together.
const QUEUE_TOTAL_MAX: usize = 50_000;

/// How consumers of a subscription share its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SubType {
    /// One consumer.
    #[default]
    Exclusive,
    /// Messages are spread over the consumers.
    Shared,
    /// One consumer at a time; the others stand by.
    Failover,
    /// Messages of one key go to one consumer.
    KeyShared,
}

impl SubType {
    /// Whether the broker knows single messages of the subscription.
    pub(crate) fn acks_one_by_one(self) -> bool {
        matches!(self, SubType::Shared | SubType::KeyShared)
    }
}

/// How keys are spread in a Key_Shared subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyShared {
    /// The broker spreads them.
    AutoSplit {
        /// Whether a key may move before its messages are acknowledged.
        allow_out_of_order: bool,
    },
    /// This consumer takes these hashes.
    Sticky {
        /// Ranges of hashes.
        ranges: Vec<RangeInclusive<u16>>,
    },
}

/// Where a new subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InitialPosition {
    /// After what is there.
    #[default]
    Latest,
    /// With the first message that is kept.
    Earliest,
}

/// Where a seek goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTo {
    /// This message is the next one.
    Id(MessageId),
    /// The next message is the first that was published at this time or later, in milliseconds
    /// since 1970.
    Time(u64),
}

impl From<MessageId> for SeekTo {
    fn from(id: MessageId) -> Self {
        SeekTo::Id(id)
    }
}

/// What a consumer reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topics {
    /// These topics; partitioned ones with all their partitions.
    Names(Vec<String>),
    /// All topics of a namespace, now and later, whose full name matches.
    Pattern(String),
}

impl Topics {
    /// All topics that match, now and later: `tenant/namespace/regex`, with or without
    /// `persistent://`.
    #[must_use]
    pub fn pattern(pattern: impl Into<String>) -> Self {
        Topics::Pattern(pattern.into())
    }
}

impl From<&str> for Topics {
    fn from(topic: &str) -> Self {
        Topics::Names(vec![topic.to_owned()])
    }
}

impl From<String> for Topics {
    fn from(topic: String) -> Self {
        Topics::Names(vec![topic])
    }
}

impl From<&String> for Topics {
    fn from(topic: &String) -> Self {
        Topics::Names(vec![topic.clone()])
    }
}

impl From<&TopicName> for Topics {
    fn from(topic: &TopicName) -> Self {
        Topics::Names(vec![topic.to_string()])
    }
}

impl<S: Into<String>> From<Vec<S>> for Topics {
    fn from(topics: Vec<S>) -> Self {
        Topics::Names(topics.into_iter().map(Into::into).collect())
    }
}

impl<S: Into<String>, const N: usize> From<[S; N]> for Topics {
    fn from(topics: [S; N]) -> Self {
        Topics::Names(topics.into_iter().map(Into::into).collect())
    }
}

#[derive(Debug, Clone)]
struct Options {
    subscription: String,
    name: String,
    sub_type: SubType,
    durable: bool,
    initial_position: InitialPosition,
    start: Option<Start>,
    queue_size: usize,
    priority: i32,
    key_shared: KeyShared,
    read_compacted: bool,
    batch_index_ack: bool,
    ack_delay: Duration,
    nack_delay: Duration,
    discovery_interval: Duration,
    properties: Vec<(String, String)>,
    subscription_properties: Vec<(String, String)>,
}

/// Settings of a [`Consumer`].
#[derive(Clone)]
#[must_use]
pub struct ConsumerBuilder {
    shared: Arc<Shared>,
    topics: Topics,
    options: Options,
}

impl std::fmt::Debug for ConsumerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsumerBuilder")
            .field("topics", &self.topics)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl ConsumerBuilder {
    pub(crate) fn new(shared: Arc<Shared>, topics: Topics) -> Self {
        Self {
            topics,
            options: Options {
                subscription: String::new(),
                name: shared.random_name(5),
                sub_type: SubType::default(),
                durable: true,
                initial_position: InitialPosition::default(),
                start: None,
                queue_size: 1000,
                priority: 0,
                key_shared: KeyShared::AutoSplit {
                    allow_out_of_order: false,
                },
                read_compacted: false,
                batch_index_ack: false,
                ack_delay: Duration::from_millis(10),
                nack_delay: Duration::from_secs(60),
                discovery_interval: Duration::from_secs(60),
                properties: Vec::new(),
                subscription_properties: Vec::new(),
            },
            shared,
        }
    }

    /// The subscription's name; needed.
    pub fn subscription(mut self, name: impl Into<String>) -> Self {
        self.options.subscription = name.into();
        self
    }

    /// How its consumers share messages; Exclusive.
    pub fn sub_type(mut self, sub_type: SubType) -> Self {
        self.options.sub_type = sub_type;
        self
    }

    /// Where it begins if it is new; Latest.
    pub fn initial_position(mut self, position: InitialPosition) -> Self {
        self.options.initial_position = position;
        self
    }

    /// Whether the subscription outlives its consumers; true.
    pub fn durable(mut self, durable: bool) -> Self {
        self.options.durable = durable;
        self
    }

    pub(crate) fn start(mut self, id: MessageId, inclusive: bool) -> Self {
        self.options.start = Some(Start { id, inclusive });
        self
    }

    /// The consumer's own name; made up if not set.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.name = name.into();
        self
    }

    /// Messages that a topic's broker may send ahead; 1,000, and at least 1.
    pub fn receiver_queue_size(mut self, messages: usize) -> Self {
        self.options.queue_size = messages.max(1);
        self
    }

    /// Consumers of a lower number get messages first; 0.
    pub fn priority(mut self, level: i32) -> Self {
        self.options.priority = level;
        self
    }

    /// How keys are spread, with [`SubType::KeyShared`].
    pub fn key_shared(mut self, policy: KeyShared) -> Self {
        self.options.key_shared = policy;
        self
    }

    /// Whether only the last message of each key is read, where the topic is compacted.
    pub fn read_compacted(mut self, compacted: bool) -> Self {
        self.options.read_compacted = compacted;
        self
    }

    /// Whether the broker is told of single messages of batches; false. It needs a broker that has
    /// this switched on.
    pub fn batch_index_ack(mut self, enabled: bool) -> Self {
        self.options.batch_index_ack = enabled;
        self
    }

    /// How long acks are gathered; 10 ms. Zero: each is sent at once.
    pub fn ack_delay(mut self, delay: Duration) -> Self {
        self.options.ack_delay = delay;
        self
    }

    /// After what time a message that was refused comes again; 60 s.
    pub fn nack_delay(mut self, delay: Duration) -> Self {
        self.options.nack_delay = delay;
        self
    }

    /// How often new topics of a pattern are looked for; 60 s.
    pub fn discovery_interval(mut self, interval: Duration) -> Self {
        self.options.discovery_interval = interval;
        self
    }

    /// A property of the consumer, which the broker shows in its statistics.
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.properties.push((name.into(), value.into()));
        self
    }

    /// A property of the subscription, kept if this makes it.
    pub fn subscription_property(
        mut self,
        name: impl Into<String>,
        value: impl Into<String>,
    ) -> Self {
        self.options
            .subscription_properties
            .push((name.into(), value.into()));
        self
    }

    /// Subscribes to all topics.
    ///
    /// # Errors
    /// When a setting is wrong, when a broker refuses, or when none answers in time.
    pub async fn build(self) -> Result<Consumer> {
        if self.options.subscription.is_empty() {
            return Err(Error::Setting {
                setting: "subscription",
                reason: "is needed",
            });
        }
        let group = Arc::new(Group {
            shared: self.shared.clone(),
            options: Arc::new(self.options),
            inbox: Arc::default(),
            paused: Arc::default(),
            topics: RwLock::default(),
        });
        // From here on, an error drops the consumer, which closes what is open already.
        let consumer = Consumer {
            handle: ConsumerHandle {
                group: group.clone(),
            },
            entries: VecDeque::new(),
            ready: VecDeque::new(),
        };
        match self.topics {
            Topics::Names(names) => {
                if names.is_empty() {
                    return Err(Error::Setting {
                        setting: "topics",
                        reason: "are needed",
                    });
                }
                let mut topics = Vec::new();
                for name in names {
                    topics.extend(self.shared.partitions_of(&topic_name(&name)?).await?);
                }
                group.subscribe(topics).await?;
            }
            Topics::Pattern(text) => {
                let pattern = pattern::Pattern::parse(&text)?;
                let topics = pattern.find(&self.shared).await?;
                group.subscribe(topics).await?;
                pattern::keep_looking(pattern, &group);
            }
        }
        Ok(consumer)
    }
}

/// All topics of one consumer.
struct Group {
    shared: Arc<Shared>,
    options: Arc<Options>,
    inbox: Arc<Inbox>,
    paused: Arc<AtomicBool>,
    /// Topics are added and never removed: an entry knows its topic by its number.
    topics: RwLock<Vec<Arc<Topic>>>,
}

impl Group {
    /// Adds topics and waits until all of them are subscribed.
    async fn subscribe(&self, names: Vec<TopicName>) -> Result<()> {
        let mut opening = Vec::new();
        {
            let mut topics = self.topics.write();
            let total = (topics.len() + names.len()).max(1);
            let queue_size = self.options.queue_size.min(QUEUE_TOTAL_MAX / total).max(1) as u32;
            for name in names {
                if topics
                    .iter()
                    .any(|topic| topic.name == name && !topic.is_over())
                {
                    continue;
                }
                let topic = Arc::new(Topic::new(
                    self.shared.clone(),
                    self.options.clone(),
                    self.inbox.clone(),
                    self.paused.clone(),
                    name,
                    topics.len(),
                    queue_size,
                ));
                let (opened, opens) = oneshot::channel();
                self.shared
                    .tasks
                    .spawn_cancellable("consumer", driver::drive(topic.clone(), opened));
                topics.push(topic);
                opening.push(opens);
            }
        }
        for opens in opening {
            opens.await.map_err(|_| Error::Closed)??;
        }
        Ok(())
    }

    fn all(&self) -> Vec<Arc<Topic>> {
        self.topics.read().clone()
    }

    /// The topic of a message.
    fn topic(&self, target: &Target<'_>) -> Result<Arc<Topic>> {
        let topics = self.topics.read();
        let found = match (target.topic, &topics[..]) {
            (_, [only]) => Some(only),
            (Some(name), topics) => topics
                .iter()
                .rev()
                .find(|topic| topic.name.as_str() == name),
            // The partition tells them apart, if all topics are partitions of one.
            (None, topics) => {
                let mut same = topics.iter().filter(|topic| {
                    topic.name.partition().map_or(-1, |number| number as i32) == target.id.partition
                });
                same.next().filter(|_| same.next().is_none())
            }
        };
        found
            .cloned()
            .ok_or_else(|| Error::UnknownTopic(target.topic.unwrap_or("?").to_owned()))
    }
}

/// A message that is acknowledged or refused: a received message, or its id where the consumer
/// reads one topic.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    topic: Option<&'a str>,
    id: MessageId,
}

impl<'a> From<&'a MessageId> for Target<'a> {
    fn from(id: &'a MessageId) -> Self {
        Self {
            topic: None,
            id: *id,
        }
    }
}

impl<'a> From<&'a ReceivedMessage> for Target<'a> {
    fn from(message: &'a ReceivedMessage) -> Self {
        Self {
            topic: Some(&message.topic),
            id: message.id,
        }
    }
}

impl<'a> From<(&'a str, &'a MessageId)> for Target<'a> {
    fn from((topic, id): (&'a str, &'a MessageId)) -> Self {
        Self {
            topic: Some(topic),
            id: *id,
        }
    }
}

/// Reads messages. Everything but reading is in its [`ConsumerHandle`], to which it derefs.
///
/// Dropping it closes it.
pub struct Consumer {
    handle: ConsumerHandle,
    /// Taken from the inbox, not opened.
    entries: VecDeque<Entry>,
    /// Opened, with topic and generation.
    ready: VecDeque<(usize, u32, ReceivedMessage)>,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.handle.fmt(f)
    }
}

impl Deref for Consumer {
    type Target = ConsumerHandle;

    fn deref(&self) -> &ConsumerHandle {
        &self.handle
    }
}

impl Consumer {
    /// The next message. Cancel-safe: a message is not lost when the future is dropped.
    ///
    /// # Errors
    /// When the consumer is closed, or lost its place for good.
    pub async fn recv(&mut self) -> Result<ReceivedMessage> {
        loop {
            if let Some(message) = self.next_ready() {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// All messages that are here now, at most `max`, waiting for the first. Cancel-safe.
    ///
    /// # Errors
    /// As [`recv`](Consumer::recv).
    pub async fn recv_batch(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        let mut messages = Vec::new();
        if max == 0 {
            return Ok(messages);
        }
        messages.push(self.recv().await?);
        while messages.len() < max {
            match self.try_recv() {
                Some(message) => messages.push(message),
                None => break,
            }
        }
        Ok(messages)
    }

    /// The next message if it is here.
    pub fn try_recv(&mut self) -> Option<ReceivedMessage> {
        loop {
            if let Some(message) = self.next_ready() {
                return Some(message);
            }
            if self.entries.is_empty() && !self.handle.group.inbox.try_take(&mut self.entries) {
                return None;
            }
            self.open_next();
        }
    }

    /// Whether a message is here or on the broker that was not received yet.
    ///
    /// # Errors
    /// When a broker does not answer.
    pub async fn has_message_available(&self) -> Result<bool> {
        let waiting = |&(topic, generation, _): &(usize, u32, ReceivedMessage)| {
            let topics = self.handle.group.topics.read();
            topics
                .get(topic)
                .is_some_and(|topic| topic.is_current(generation))
        };
        if self.ready.iter().any(waiting) {
            return Ok(true);
        }
        for topic in self.handle.group.all() {
            if topic.has_more().await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What acknowledges, refuses and seeks; for other tasks. It does not keep the consumer open.
    #[must_use]
    pub fn handle(&self) -> ConsumerHandle {
        self.handle.clone()
    }

    /// Sends what is acknowledged and closes.
    ///
    /// # Errors
    /// When a broker does not answer. It is closed then too.
    pub async fn close(self) -> Result<()> {
        let mut result = Ok(());
        for topic in self.handle.group.all() {
            if let Some(connection) = topic.over(Error::Closed) {
                let closed = connection
                    .request("close consumer", |id| driver::close_command(topic.id, id))
                    .await;
                result = result.and(closed.map(|_| ()));
            }
        }
        self.handle.group.inbox.end(Error::Closed);
        result
    }

    fn next_ready(&mut self) -> Option<ReceivedMessage> {
        while let Some((topic, generation, message)) = self.ready.pop_front() {
            let topics = self.handle.group.topics.read();
            if topics
                .get(topic)
                .is_some_and(|topic| topic.is_current(generation))
            {
                return Some(message);
            }
        }
        None
    }

    async fn fill(&mut self) -> Result<()> {
        if self.entries.is_empty() {
            let (inbox, entries) = (&self.handle.group.inbox, &mut self.entries);
            poll_fn(|cx| inbox.poll_take(entries, cx)).await?;
        }
        self.open_next();
        Ok(())
    }

    fn open_next(&mut self) {
        let Some(entry) = self.entries.pop_front() else {
            return;
        };
        let topic = self.handle.group.topics.read().get(entry.topic).cloned();
        let Some(topic) = topic else { return };
        let (number, generation) = (entry.topic, entry.generation);
        let ready = &mut self.ready;
        topic.open(&entry, &mut |message| {
            ready.push_back((number, generation, message))
        });
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        for topic in self.handle.group.all() {
            if let Some(connection) = topic.over(Error::Closed) {
                let none = geminga_proto::command::NO_REQUEST;
                connection.send(&driver::close_command(topic.id, none));
            }
        }
        self.handle.group.inbox.end(Error::Closed);
    }
}

/// Acknowledges, refuses and seeks for a [`Consumer`]. Cheap to clone.
#[derive(Clone)]
pub struct ConsumerHandle {
    group: Arc<Group>,
}

impl std::fmt::Debug for ConsumerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer")
            .field("subscription", &self.group.options.subscription)
            .field("name", &self.group.options.name)
            .finish_non_exhaustive()
    }
}

impl ConsumerHandle {
    /// The subscription's name.
    #[must_use]
    pub fn subscription(&self) -> &str {
        &self.group.options.subscription
    }

    /// The consumer's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.group.options.name
    }

    /// The topics that are read now, partitions one by one.
    #[must_use]
    pub fn topics(&self) -> Vec<String> {
        let topics = self.group.topics.read();
        topics
            .iter()
            .filter(|topic| !topic.is_over())
            .map(|topic| topic.name.to_string())
            .collect()
    }

    /// Whether all topics have a broker now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.group
            .topics
            .read()
            .iter()
            .all(|topic| topic.is_connected())
    }

    /// Whether this is the active consumer, in Exclusive and Failover subscriptions.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.group
            .topics
            .read()
            .iter()
            .any(|topic| topic.is_active())
    }

    /// Whether all topics are terminated and read to their end.
    #[must_use]
    pub fn has_reached_end(&self) -> bool {
        self.group
            .topics
            .read()
            .iter()
            .all(|topic| topic.has_ended())
    }

    /// Acknowledges a message, by itself or by its id. Acks are gathered and sent together; after
    /// a lost connection some may have to be given again.
    ///
    /// # Errors
    /// When the message is not of a topic of this consumer.
    pub async fn ack<'a>(&self, message: impl Into<Target<'a>>) -> Result<()> {
        let target = message.into();
        self.group.topic(&target)?.ack([&target.id]);
        Ok(())
    }

    /// Acknowledges a message and waits until the broker has stored that.
    ///
    /// # Errors
    /// When the broker refuses or does not answer in time.
    pub async fn ack_durable<'a>(&self, message: impl Into<Target<'a>>) -> Result<()> {
        let target = message.into();
        let topic = self.group.topic(&target)?;
        topic.ack([&target.id]);
        topic.flush_acks_durable().await
    }

    /// Acknowledges several messages.
    ///
    /// # Errors
    /// When a message is not of a topic of this consumer; those before it are acknowledged.
    pub async fn ack_many<'a, T: Into<Target<'a>>>(
        &self,
        messages: impl IntoIterator<Item = T>,
    ) -> Result<()> {
        self.ack_all(messages)?;
        Ok(())
    }

    /// Acknowledges several messages and waits until the brokers have stored that.
    ///
    /// # Errors
    /// When a broker refuses or does not answer in time.
    pub async fn ack_many_durable<'a, T: Into<Target<'a>>>(
        &self,
        messages: impl IntoIterator<Item = T>,
    ) -> Result<()> {
        for topic in self.ack_all(messages)? {
            topic.flush_acks_durable().await?;
        }
        Ok(())
    }

    /// Acknowledges, and gives the topics that are concerned.
    fn ack_all<'a, T: Into<Target<'a>>>(
        &self,
        messages: impl IntoIterator<Item = T>,
    ) -> Result<Vec<Arc<Topic>>> {
        let mut concerned: Vec<Arc<Topic>> = Vec::new();
        for message in messages {
            let target = message.into();
            let topic = self.group.topic(&target)?;
            topic.ack([&target.id]);
            if !concerned.iter().any(|other| Arc::ptr_eq(other, &topic)) {
                concerned.push(topic);
            }
        }
        Ok(concerned)
    }

    /// Acknowledges all messages of the topic up to this one. Not for Shared and Key_Shared.
    ///
    /// # Errors
    /// When the subscription knows only single acks, or the message is of no topic of this
    /// consumer.
    pub async fn ack_cumulative<'a>(&self, message: impl Into<Target<'a>>) -> Result<()> {
        if self.group.options.sub_type.acks_one_by_one() {
            return Err(Error::Setting {
                setting: "sub_type",
                reason: "allows no cumulative acks",
            });
        }
        let target = message.into();
        self.group.topic(&target)?.ack_cumulative(&target.id);
        Ok(())
    }

    /// Sends the acks that are gathered, now.
    pub fn flush_acks(&self) {
        self.group.all().iter().for_each(|topic| topic.flush_acks());
    }

    /// Refuses a message: it comes again after the nack delay. In Exclusive and Failover
    /// subscriptions, so does everything after it that is not acknowledged.
    ///
    /// # Errors
    /// When the message is not of a topic of this consumer.
    pub async fn nack<'a>(&self, message: impl Into<Target<'a>>) -> Result<()> {
        self.nack_after(message, self.group.options.nack_delay)
            .await
    }

    /// As [`nack`](ConsumerHandle::nack), with a delay of its own; zero is at once.
    ///
    /// # Errors
    /// When the message is not of a topic of this consumer.
    pub async fn nack_after<'a>(
        &self,
        message: impl Into<Target<'a>>,
        delay: Duration,
    ) -> Result<()> {
        let target = message.into();
        self.group.topic(&target)?.nack(&target.id, delay);
        Ok(())
    }

    /// Asks for everything again that is delivered to this consumer and not acknowledged.
    pub async fn redeliver_unacknowledged(&self) {
        self.group
            .all()
            .iter()
            .for_each(|topic| topic.redeliver(&[]));
    }

    /// Moves the subscription, in all topics. The position is an id of the topic, so more than
    /// one topic can go only to a time, the earliest or the latest message.
    ///
    /// # Errors
    /// When the broker refuses or does not answer in time.
    pub async fn seek(&self, to: impl Into<SeekTo>) -> Result<()> {
        let to = to.into();
        let topics = self.group.all();
        if let SeekTo::Id(id) = to
            && topics.len() > 1
            && id != MessageId::EARLIEST
            && id != MessageId::LATEST
        {
            return self.group.topic(&Target::from(&id))?.seek(to).await;
        }
        for topic in topics {
            topic.seek(to).await?;
        }
        Ok(())
    }

    /// The last message on the broker: of the one topic, or the greatest id of several.
    ///
    /// # Errors
    /// When a broker refuses or does not answer in time.
    pub async fn last_message_id(&self) -> Result<MessageId> {
        let all = self.last_message_ids().await?;
        Ok(all
            .into_iter()
            .map(|(_, id)| id)
            .max()
            .unwrap_or(MessageId::EARLIEST))
    }

    /// The last message of each topic.
    ///
    /// # Errors
    /// When a broker refuses or does not answer in time.
    pub async fn last_message_ids(&self) -> Result<Vec<(String, MessageId)>> {
        let mut ids = Vec::new();
        for topic in self.group.all() {
            ids.push((topic.name.to_string(), topic.last_message_id().await?.0));
        }
        Ok(ids)
    }

    /// Deletes the subscription; the consumer gets nothing more.
    ///
    /// # Errors
    /// When the broker refuses, for example because it has other consumers.
    pub async fn unsubscribe(&self) -> Result<()> {
        for topic in self.group.all() {
            topic
                .request("unsubscribe", |consumer_id, request_id| {
                    pb::CommandUnsubscribe {
                        consumer_id,
                        request_id,
                        force: None,
                    }
                    .into()
                })
                .await?;
            topic.over(Error::Closed);
        }
        self.group.inbox.end(Error::Closed);
        Ok(())
    }

    /// Asks the brokers for no more messages. What is here or under way still comes.
    pub fn pause(&self) {
        self.group.paused.store(true, Ordering::Relaxed);
    }

    /// Goes on after a pause.
    pub fn resume(&self) {
        self.group.paused.store(false, Ordering::Relaxed);
        self.group.all().iter().for_each(|topic| topic.resume());
    }
}
