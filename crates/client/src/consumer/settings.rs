//! What a consumer reads and how: its settings, and the builder.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use geminga_model::name::TopicName;
use geminga_proto::MessageId;

use super::Consumer;
use super::decode::Start;
use super::group::Group;
use super::handle::ConsumerHandle;
use super::pattern::{self, Wanted};
use crate::client::{Shared, topic_name};
use crate::error::{Error, Result};
use crate::schema::Schema;

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
    /// Topics by name and by patterns together.
    Selected(Selection),
}

/// Topics by name and by patterns. One that is named, or matches, more than once is read once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// These; partitioned ones with all their partitions.
    pub names: Vec<String>,
    /// And all that match, now and later, as [`Topics::pattern`].
    pub patterns: Vec<String>,
    /// Full names of topics that no pattern means.
    pub except: Vec<String>,
    /// No pattern means a topic whose name ends so.
    pub except_ending: Option<String>,
}

impl Selection {
    /// Whether a topic is one of these, by its name or by a pattern. A partition is its topic's.
    ///
    /// # Errors
    /// When a pattern is none.
    pub fn has(&self, topic: &TopicName) -> Result<bool> {
        let parent = topic.parent();
        let is_parent = |name: &String| topic_name(name).is_ok_and(|name| name.parent() == parent);
        Ok(self.names.iter().any(is_parent) || Wanted::parse(self)?.matches(topic))
    }
}

impl From<Topics> for Selection {
    fn from(topics: Topics) -> Self {
        match topics {
            Topics::Names(names) => Self {
                names,
                ..Self::default()
            },
            Topics::Pattern(pattern) => Self {
                patterns: vec![pattern],
                ..Self::default()
            },
            Topics::Selected(selection) => selection,
        }
    }
}

impl Topics {
    /// All topics that match, now and later: `tenant/namespace/regex`, with or without
    /// `persistent://`.
    #[must_use]
    pub fn pattern(pattern: impl Into<String>) -> Self {
        Topics::Pattern(pattern.into())
    }
}

impl From<Selection> for Topics {
    fn from(selection: Selection) -> Self {
        Topics::Selected(selection)
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

/// What the topics of one name or pattern have of their own; what is `None` is the consumer's.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TopicSettings {
    /// What the topic's messages are. The broker refuses a consumer whose schema does not suit the topic's.
    pub schema: Option<Schema>,
    /// A topic that refuses the schema and has none, since its messages never had one, is read without.
    pub schema_optional: bool,
    /// As [`ConsumerBuilder::receiver_queue_size`].
    pub queue_size: Option<usize>,
    /// As [`ConsumerBuilder::name`].
    pub name: Option<String>,
    /// As [`ConsumerBuilder::priority`].
    pub priority: Option<i32>,
    /// As [`ConsumerBuilder::read_compacted`].
    pub read_compacted: Option<bool>,
}

/// Topics that have settings of their own.
#[derive(Debug, Clone)]
pub(super) enum Which {
    Name(TopicName),
    Pattern(pattern::Pattern),
}

impl Which {
    fn has(&self, topic: &TopicName) -> bool {
        match self {
            Self::Name(name) => name.parent() == topic.parent(),
            Self::Pattern(pattern) => pattern.matches(topic),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) subscription: String,
    pub(super) name: String,
    pub(super) sub_type: SubType,
    pub(super) durable: bool,
    pub(super) create_topic: bool,
    pub(super) initial_position: InitialPosition,
    pub(super) start: Option<Start>,
    pub(super) queue_size: usize,
    pub(super) queue_bytes: usize,
    pub(super) priority: i32,
    pub(super) key_shared: KeyShared,
    pub(super) read_compacted: bool,
    pub(super) batch_index_ack: bool,
    pub(super) ack_delay: Duration,
    pub(super) nack_delay: Duration,
    pub(super) discovery_interval: Duration,
    pub(super) properties: Vec<(String, String)>,
    pub(super) subscription_properties: Vec<(String, String)>,
    pub(super) schema: Option<Schema>,
    pub(super) schema_optional: bool,
    pub(super) of_topics: Vec<(Which, TopicSettings)>,
}

impl Options {
    /// The settings for one topic; `None` when it has none of its own. A name counts before a pattern.
    pub(super) fn of(&self, topic: &TopicName) -> Option<Self> {
        let has = |named: bool| {
            let mut all = self.of_topics.iter();
            let is = |which: &Which| matches!(which, Which::Name(_)) == named && which.has(topic);
            all.find(|(which, _)| is(which))
        };
        let (_, own) = has(true).or_else(|| has(false))?.clone();
        Some(Self {
            schema: own.schema.or_else(|| self.schema.clone()),
            schema_optional: own.schema_optional,
            queue_size: own.queue_size.unwrap_or(self.queue_size),
            name: own.name.unwrap_or_else(|| self.name.clone()),
            priority: own.priority.unwrap_or(self.priority),
            read_compacted: own.read_compacted.unwrap_or(self.read_compacted),
            of_topics: Vec::new(),
            ..self.clone()
        })
    }
}

/// Bytes that wait in all topics of a consumer together: some messages of the largest size, and any number of usual
/// ones.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// Settings of a [`Consumer`].
#[derive(Clone)]
#[must_use]
pub struct ConsumerBuilder {
    shared: Arc<Shared>,
    topics: Topics,
    options: Options,
    /// By what they were called.
    of_topics: Vec<(Topics, TopicSettings)>,
    paused: bool,
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
                create_topic: true,
                initial_position: InitialPosition::default(),
                start: None,
                queue_size: 1000,
                queue_bytes: QUEUE_BYTES,
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
                schema: None,
                schema_optional: false,
                of_topics: Vec::new(),
            },
            of_topics: Vec::new(),
            paused: false,
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

    /// Whether the topic is made where there is none and the broker makes topics by itself; true.
    /// Otherwise building fails with `TopicNotFound`.
    pub fn create_topic(mut self, create: bool) -> Self {
        self.options.create_topic = create;
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

    /// Bytes that the brokers may send ahead, of all topics together; 64 MiB. One message of each topic always may.
    /// How large messages are is known from those that came, so where they grow at once what was permitted before
    /// is more. Topics that are not persistent are bounded by their count alone: what has no permit there is lost.
    pub fn receiver_queue_bytes(mut self, bytes: usize) -> Self {
        self.options.queue_bytes = bytes;
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

    /// How often new topics of a pattern are looked for; 60 s. A broker that can tells of them at once.
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

    /// What the messages are. A broker refuses a consumer whose schema does not suit the topic's, and gives it
    /// to a topic that has none and was never used. None by default: payloads are bytes.
    pub fn schema(mut self, schema: Schema) -> Self {
        self.options.schema = Some(schema);
        self
    }

    /// Gives some of its topics, by name or by a pattern, settings of their own. A partition has its topic's.
    pub fn topic_settings(mut self, topics: impl Into<Topics>, settings: TopicSettings) -> Self {
        self.of_topics.push((topics.into(), settings));
        self
    }

    /// Asks for no message until [`ConsumerHandle::resume`].
    pub fn paused(mut self, paused: bool) -> Self {
        self.paused = paused;
        self
    }

    /// Subscribes to all topics.
    ///
    /// # Errors
    /// When a setting is wrong, when a broker refuses, or when none answers in time.
    pub async fn build(mut self) -> Result<Consumer> {
        if self.options.subscription.is_empty() {
            return Err(Error::Setting {
                setting: "subscription",
                reason: "is needed",
            });
        }
        for (topics, settings) in self.of_topics {
            let selection = Selection::from(topics);
            for name in selection.names {
                let name = Which::Name(topic_name(&name)?);
                self.options.of_topics.push((name, settings.clone()));
            }
            for text in selection.patterns {
                let pattern = Which::Pattern(pattern::Pattern::parse(&text)?);
                self.options.of_topics.push((pattern, settings.clone()));
            }
        }
        let group = Arc::new(Group::new(self.shared.clone(), self.options));
        group
            .paused
            .store(self.paused, std::sync::atomic::Ordering::Relaxed);
        // From here on, an error drops the consumer, which closes what is open already.
        let consumer = Consumer {
            handle: ConsumerHandle {
                group: group.clone(),
            },
            entries: VecDeque::new(),
            ready: VecDeque::new(),
            origin: None,
        };
        let selection = Selection::from(self.topics);
        let wanted = Wanted::parse(&selection)?;
        if selection.names.is_empty() && wanted.is_empty() {
            return Err(Error::Setting {
                setting: "topics",
                reason: "are needed",
            });
        }
        let mut topics = Vec::new();
        for name in &selection.names {
            topics.extend(self.shared.partitions_of(&topic_name(name)?).await?);
        }
        topics.extend(wanted.find(&self.shared).await?);
        group.subscribe(topics).await?;
        if !wanted.is_empty() {
            pattern::keep_looking(wanted, &group);
        }
        Ok(consumer)
    }
}
