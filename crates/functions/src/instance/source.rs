//! Where an instance's messages come from, and how they are acknowledged there.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;

use geminga_client::{
    Client, Consumer, ConsumerHandle, MessageId, Schema, SeekTo, TopicSettings, Topics, Transaction,
};
use geminga_model::TopicName;
use parking_lot::Mutex;

use super::sink::TRIGGER;
use crate::plan::{InputPlan, Patterned, Subscription, Typed, dead_letter_ending, full_name};
use crate::runtime::{BoxFuture, Message};

/// Bytes that a source gives at once: what an instance finds too much comes to so much more at most, and to what
/// its last message adds.
pub(crate) const TAKE_MAX_BYTES: usize = 8 * 1024 * 1024;

/// A message and its place.
#[derive(Debug, Clone)]
pub(crate) struct Incoming {
    pub(crate) message: Arc<Message>,
    pub(crate) origin: Origin,
}

/// A message's place in its source.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    Topic {
        topic: Arc<str>,
        id: MessageId,
    },
    /// Everything before this byte of the file with this number is done.
    File {
        file: usize,
        offset: u64,
    },
    /// The messages that are done with a window.
    Window(Vec<Origin>),
}

impl Origin {
    /// Adds the places of single messages.
    pub(crate) fn flatten(self, all: &mut Vec<Origin>) {
        match self {
            Self::Window(origins) => all.extend(origins),
            one => all.push(one),
        }
    }
}

/// Gives messages.
pub(crate) trait Source: Send {
    /// Waits for messages, `max` at most, and about [`TAKE_MAX_BYTES`]. None at all means that there will never be more.
    /// Cancel-safe.
    fn next(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Incoming>, String>>;

    /// What acknowledges, from another task.
    fn acker(&self) -> Arc<dyn Acker>;

    /// Where a message goes that is given up, when the configuration does not say.
    fn dead_letter_topic(&self, message: &Message) -> Option<String>;

    /// Lets go of what it has; most have nothing.
    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

/// Acknowledges messages of a source.
pub(crate) trait Acker: Send + Sync {
    /// `durable` waits until the source will never give them again.
    fn ack(&self, origins: Vec<Origin>, durable: bool) -> BoxFuture<'_, Result<(), String>>;

    /// Acknowledges as part of a transaction.
    fn ack_in<'a>(
        &'a self,
        _txn: &'a Transaction,
        _origins: Vec<Origin>,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { Err("this source knows no transactions".to_owned()) })
    }
}

/// The newest message taken of each topic, by all instances of a component.
#[derive(Debug, Default)]
pub(crate) struct Taken(Mutex<HashMap<Arc<str>, (i64, i64)>>);

impl Taken {
    fn note(&self, topic: &Arc<str>, id: &MessageId) {
        let mut taken = self.0.lock();
        match taken.get_mut(topic) {
            Some(position) => *position = (*position).max(id.position()),
            None => drop(taken.insert(topic.clone(), id.position())),
        }
    }

    /// Whether messages of this topic came.
    pub(crate) fn knows(&self, topic: &str) -> bool {
        self.0.lock().contains_key(topic)
    }

    /// Whether everything up to `last` of `topic` was taken; `None` when none of it was.
    pub(crate) fn has(&self, topic: &str, last: &MessageId) -> Option<bool> {
        self.0
            .lock()
            .get(topic)
            .map(|taken| *taken >= last.position())
    }
}

/// A subscription to topics.
pub(crate) struct TopicSource {
    consumer: Consumer,
    subscription: String,
    taken: Arc<Taken>,
    by_pattern: ByPattern,
}

/// How messages of topics that a pattern means are read.
struct ByPattern {
    patterns: Vec<Patterned>,
    names: Vec<TopicName>,
    known: HashMap<Arc<str>, Option<Arc<str>>>,
}

impl ByPattern {
    fn of(plan: &Subscription) -> Self {
        let is_said = plan.patterns.iter().any(|it| it.input.is_some());
        let names = plan.topics.iter().filter_map(|name| name.parse().ok());
        Self {
            // Where nothing is said nothing is looked for.
            patterns: match is_said {
                true => plan.patterns.clone(),
                false => Vec::new(),
            },
            names: names.collect(),
            known: HashMap::new(),
        }
    }

    /// The input that says it, where it is a pattern. What is named has its own, or none.
    fn input(&mut self, topic: &Arc<str>) -> Option<Arc<str>> {
        if self.patterns.is_empty() {
            return None;
        }
        if let Some(known) = self.known.get(topic) {
            return known.clone();
        }
        let name = topic.parse::<TopicName>().ok()?;
        let input = match self.names.iter().any(|it| it.parent() == name.parent()) {
            true => None,
            false => {
                let mut patterns = self.patterns.iter();
                let first = patterns.find(|it| it.pattern.matches(&name));
                first.and_then(|it| it.input.clone())
            }
        };
        self.known.insert(topic.clone(), input.clone());
        input
    }
}

/// What the host says of topics.
#[derive(Debug, Clone, Default)]
pub(crate) struct Declared {
    pub(crate) output: Option<Schema>,
    /// By the names that the greeting has.
    pub(crate) inputs: BTreeMap<String, Schema>,
}

/// What is declared of inputs to the broker.
pub(crate) enum Declaring<'a> {
    /// Nothing: the subscription alone is wanted, and no message.
    Nothing,
    /// What the configuration says, and what the host says.
    Said(&'a Declared),
}

impl Declaring<'_> {
    fn schema(&self, input: &InputPlan) -> Option<Schema> {
        let Self::Said(declared) = self else {
            return None;
        };
        match &input.schema {
            Typed::Schema(schema) => Some(schema.clone()),
            Typed::Host | Typed::Derived => {
                let name = full_name(&input.text);
                declared.inputs.get(&name).cloned()
            }
            Typed::Bytes | Typed::OfTopic => None,
        }
    }
}

impl TopicSource {
    /// Subscribes; `properties` tell the broker who this is.
    pub(crate) async fn subscribe(
        client: &Client,
        plan: &Subscription,
        properties: &[(String, String)],
        taken: Arc<Taken>,
        declared: &Declaring<'_>,
    ) -> Result<Self, geminga_client::Error> {
        let mut builder = client
            .consumer(plan.selection())
            .subscription(plan.name.clone())
            .sub_type(plan.sub_type)
            .initial_position(plan.position)
            .paused(matches!(declared, Declaring::Nothing));
        for input in &plan.inputs {
            let topics = match input.is_pattern {
                true => Topics::pattern(input.text.clone()),
                false => Topics::Names(vec![input.text.clone()]),
            };
            let settings = TopicSettings {
                schema: declared.schema(input),
                // What the class alone says does not bind topics whose messages never had a schema.
                schema_optional: matches!(input.schema, Typed::Derived),
                ..input.settings.clone()
            };
            builder = builder.topic_settings(topics, settings);
        }
        for (name, value) in properties {
            builder = builder.property(name.clone(), value.clone());
        }
        let consumer = builder.build().await?;
        if plan.skip_to_latest {
            consumer.seek(SeekTo::Id(MessageId::LATEST)).await?;
        }
        Ok(Self {
            consumer,
            subscription: plan.name.clone(),
            taken,
            by_pattern: ByPattern::of(plan),
        })
    }

    pub(crate) fn handle(&self) -> ConsumerHandle {
        self.consumer.handle()
    }
}

impl Source for TopicSource {
    fn next(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Incoming>, String>> {
        Box::pin(async move {
            let received = self
                .consumer
                .recv_batch_within(max, TAKE_MAX_BYTES)
                .await
                .map_err(|e| e.to_string())?;
            let incoming = received.into_iter().map(|mut message| {
                // The mark is the worker's own: the function gets what the caller sent.
                let mark = message.properties.iter().position(|(n, _)| n == TRIGGER);
                let mark = mark.map(|at| message.properties.remove(at));
                self.taken.note(&message.topic, &message.id);
                let origin = Origin::Topic {
                    topic: message.topic.clone(),
                    id: message.id,
                };
                let ordering_key = message
                    .ordering_key
                    .map(|key| String::from_utf8_lossy(&key).into_owned());
                let message = Message {
                    input: self.by_pattern.input(&message.topic),
                    id: text_of(&message.id),
                    place: Some(message.id),
                    partition: message.id.partition,
                    topic: message.topic,
                    payload: message.payload,
                    key: message.key,
                    key_is_base64: message.key_is_base64,
                    ordering_key,
                    properties: message.properties,
                    event_time: message.event_time.unwrap_or(0),
                    publish_time: message.publish_time,
                    producer: message.producer_name,
                    sequence: message.sequence_id,
                    redelivery: message.redelivery_count,
                    schema_version: message.schema_version,
                    window: None,
                    triggered: mark.is_some(),
                };
                Incoming {
                    message: Arc::new(message),
                    origin,
                }
            });
            Ok(incoming.collect())
        })
    }

    fn acker(&self) -> Arc<dyn Acker> {
        Arc::new(TopicAcker(self.consumer.handle()))
    }

    fn dead_letter_topic(&self, message: &Message) -> Option<String> {
        let ending = dead_letter_ending(&self.subscription);
        Some(format!("{}{ending}", message.topic))
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Err(error) = self.consumer.close().await {
                tracing::debug!(%error, "consumer not closed in order");
            }
        })
    }
}

/// An id as Pulsar prints it, in memory that is taken once.
fn text_of(id: &MessageId) -> String {
    let mut text = String::with_capacity(24);
    // A string takes everything.
    let _ = write!(text, "{id}");
    text
}

struct TopicAcker(ConsumerHandle);

fn targets(origins: &[Origin]) -> impl Iterator<Item = (&str, &MessageId)> {
    origins.iter().filter_map(|origin| match origin {
        Origin::Topic { topic, id } => Some((&**topic, id)),
        Origin::File { .. } | Origin::Window(_) => None,
    })
}

impl Acker for TopicAcker {
    fn ack_in<'a>(
        &'a self,
        txn: &'a Transaction,
        origins: Vec<Origin>,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let acked = self.0.ack_many_in(txn, targets(&origins)).await;
            acked.map_err(|error| error.to_string())
        })
    }

    fn ack(&self, origins: Vec<Origin>, durable: bool) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let result = if durable {
                self.0.ack_many_durable(targets(&origins)).await
            } else {
                self.0.ack_many(targets(&origins)).await
            };
            result.map_err(|error| error.to_string())
        })
    }
}
