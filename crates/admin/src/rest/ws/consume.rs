//! A session that consumes or reads: a message a text, and commands for acks and permits.
//!
//! What must hold: the peer gets no more messages than it may have without an ack, or than it asked
//! for; a message that is not acked in time, or that is refused, comes again; one that came too
//! often goes to the dead letter topic before it is acked.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use geminga_client::{
    Batching, Client, Consumer, Error, Message, MessageId, Producer, Reader, ReceivedMessage,
};
use geminga_model::TopicName;
use std::time::Duration;
use tokio::time::Instant;

use super::json::{self, Command};
use super::params::Plan;
use super::wire::{Gone, INTERNAL, UNSUPPORTED, Wire};

/// Messages whose topics are remembered. In pull mode nothing else bounds those without an ack.
const REMEMBERED_MAX: usize = 50_000;

pub(super) enum Source {
    Consumer(Consumer),
    Reader(Reader),
}

impl Source {
    /// Cancel-safe.
    async fn next(&mut self) -> Result<ReceivedMessage, Error> {
        match self {
            Source::Consumer(consumer) => consumer.recv().await,
            Source::Reader(reader) => reader.next().await,
        }
    }

    fn has_reached_end(&self) -> bool {
        match self {
            Source::Consumer(consumer) => consumer.has_reached_end(),
            Source::Reader(reader) => reader.has_reached_end(),
        }
    }

    async fn close(self) -> Result<(), Error> {
        match self {
            Source::Consumer(consumer) => consumer.close().await,
            Source::Reader(reader) => reader.close().await,
        }
    }
}

/// Where messages go that came too often.
pub(super) struct DeadLetters {
    client: Client,
    topic: TopicName,
    subscription: String,
    max: u32,
    /// Made with the first of them.
    producer: Option<Producer>,
}

impl DeadLetters {
    pub(super) fn new(client: Client, topic: TopicName, subscription: String, max: u32) -> Self {
        Self {
            client,
            topic,
            subscription,
            max,
            producer: None,
        }
    }

    async fn put(&mut self, received: &ReceivedMessage) -> Result<(), Error> {
        let producer = match &mut self.producer {
            Some(producer) => producer,
            none => {
                let builder = self.client.producer(self.topic.as_str());
                none.insert(builder.batching(Batching::off()).build().await?)
            }
        };
        let mut message = Message::new(received.payload.clone())
            .properties(received.properties.iter().cloned())
            .property("REAL_TOPIC", &*received.topic)
            .property("REAL_SUBSCRIPTION", &self.subscription)
            .property("ORIGIN_MESSAGE_ID", received.id.to_string());
        if let Some(key) = &received.key {
            message = message.key(key);
        }
        if let Some(time) = received.event_time {
            message = message.event_time(time);
        }
        producer.send(message).await.map(drop)
    }
}

/// Messages that the peer has, by the text of their ids.
#[derive(Default)]
struct Delivered {
    by_id: HashMap<Arc<str>, (u64, Arc<str>, MessageId)>,
    /// In the order of delivery.
    by_age: BTreeMap<u64, (Arc<str>, Instant)>,
    next: u64,
}

impl Delivered {
    fn add(&mut self, text: &str, message: &ReceivedMessage) {
        self.take(text);
        if self.by_age.len() >= REMEMBERED_MAX
            && let Some((_, (text, _))) = self.by_age.pop_first()
        {
            self.by_id.remove(&text);
        }
        let text: Arc<str> = text.into();
        let entry = (self.next, message.topic.clone(), message.id);
        self.by_id.insert(text.clone(), entry);
        self.by_age.insert(self.next, (text, Instant::now()));
        self.next += 1;
    }

    fn take(&mut self, text: &str) -> Option<(Arc<str>, MessageId)> {
        let (number, topic, id) = self.by_id.remove(text)?;
        self.by_age.remove(&number);
        Some((topic, id))
    }

    /// When the oldest was delivered.
    fn oldest(&self) -> Option<Instant> {
        self.by_age.first_key_value().map(|(_, (_, at))| *at)
    }

    fn take_oldest(&mut self) -> Option<(Arc<str>, MessageId)> {
        let text = self
            .by_age
            .first_key_value()
            .map(|(_, (text, _))| text.clone())?;
        self.take(&text)
    }
}

pub(super) struct Receiver {
    source: Source,
    plan: Plan,
    dead_letters: Option<DeadLetters>,
    delivered: Delivered,
    /// Messages that the peer has not acked.
    pending: usize,
    /// Messages that it asked for, in pull mode.
    permits: u64,
    /// Nothing comes any more: it unsubscribed.
    ended: bool,
}

enum Event {
    Text(Option<axum::extract::ws::Utf8Bytes>),
    Message(Box<Result<ReceivedMessage, Error>>),
    AckTimeout,
}

impl Receiver {
    pub(super) fn new(source: Source, plan: Plan, dead_letters: Option<DeadLetters>) -> Self {
        Self {
            source,
            plan,
            dead_letters,
            delivered: Delivered::default(),
            pending: 0,
            permits: 0,
            ended: false,
        }
    }

    pub(super) async fn run(mut self, mut wire: Wire) {
        while self.turn(&mut wire).await.is_ok() {}
        // What the peer did not ack goes to others at once.
        if let Err(error) = self.source.close().await {
            tracing::debug!(%error, "the consumer of a WebSocket was closed already");
        }
    }

    fn may_send(&self) -> bool {
        match (self.ended, self.plan.pull) {
            (true, _) => false,
            (false, true) => self.permits > 0,
            (false, false) => self.pending < self.plan.pending_max,
        }
    }

    async fn turn(&mut self, wire: &mut Wire) -> Result<(), Gone> {
        let may_send = self.may_send();
        let overdue = self
            .plan
            .ack_timeout
            .and_then(|limit| Some(self.delivered.oldest()? + limit));
        let event = tokio::select! {
            text = wire.next() => Event::Text(text),
            message = self.source.next(), if may_send => Event::Message(Box::new(message)),
            () = tokio::time::sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => {
                Event::AckTimeout
            }
        };
        match event {
            Event::Text(text) => {
                let text = text.ok_or(Gone)?;
                match json::command(&text) {
                    Ok(command) => self.obey(wire, command).await,
                    Err(reason) => {
                        let reason = format!("Failed to de-serialize from JSON: {reason}");
                        wire.close(UNSUPPORTED, &reason).await;
                        Err(Gone)
                    }
                }
            }
            Event::Message(message) => match *message {
                Ok(message) => self.deliver(wire, message).await,
                Err(error) => {
                    wire.close(INTERNAL, &error.to_string()).await;
                    Err(Gone)
                }
            },
            Event::AckTimeout => {
                if let Some((topic, id)) = self.delivered.take_oldest() {
                    self.pending = self.pending.saturating_sub(1);
                    self.redeliver(&topic, id, Some(Duration::ZERO)).await;
                }
                Ok(())
            }
        }
    }

    async fn deliver(&mut self, wire: &mut Wire, message: ReceivedMessage) -> Result<(), Gone> {
        if let (Some(dead), Source::Consumer(consumer)) = (&mut self.dead_letters, &self.source)
            && message.redelivery_count > dead.max
        {
            let done = match dead.put(&message).await {
                Ok(()) => consumer.ack(&message).await,
                Err(error) => {
                    tracing::warn!(%error, topic = %dead.topic, "no dead letter was written");
                    consumer.nack(&message).await
                }
            };
            return done.map_err(|_| Gone);
        }
        let text = json::text_of(message.id);
        if matches!(self.source, Source::Consumer(_)) {
            self.delivered.add(&text, &message);
        }
        self.pending += 1;
        self.permits = self.permits.saturating_sub(1);
        wire.send(json::delivery(&text, &message)).await
    }

    async fn redeliver(&self, topic: &str, id: MessageId, delay: Option<Duration>) {
        let Source::Consumer(consumer) = &self.source else {
            return;
        };
        let done = match delay {
            Some(delay) => consumer.nack_after((topic, &id), delay).await,
            None => consumer.nack((topic, &id)).await,
        };
        if let Err(error) = done {
            tracing::debug!(%error, "a message was refused after its topic");
        }
    }

    async fn obey(&mut self, wire: &mut Wire, command: Command) -> Result<(), Gone> {
        let refusal = match (command, &self.source) {
            (Command::IsEndOfTopic, source) => {
                return wire
                    .send(json::end_of_topic(source.has_reached_end()))
                    .await;
            }
            // A reader has acked it already.
            (Command::Ack(_), Source::Reader(_)) => {
                self.pending = self.pending.saturating_sub(1);
                return Ok(());
            }
            (_, Source::Reader(_)) => "a reader takes only acks and `isEndOfTopic`".to_owned(),
            (Command::Permit(_), _) if !self.plan.pull => {
                "`permit` needs the parameter `pullMode=true`".to_owned()
            }
            (Command::Permit(count), _) => {
                self.permits = self.permits.saturating_add(count);
                return Ok(());
            }
            (Command::Unsubscribe, Source::Consumer(consumer)) => {
                match consumer.unsubscribe().await {
                    Ok(()) => {
                        self.ended = true;
                        return Ok(());
                    }
                    Err(error) => error.to_string(),
                }
            }
            (Command::Ack(text), Source::Consumer(consumer)) => match self.delivered.take(&text) {
                Some((topic, id)) => {
                    self.pending = self.pending.saturating_sub(1);
                    let acked = consumer.ack((&*topic, &id)).await;
                    return acked.map_err(|_| Gone);
                }
                None => match json::id_of(&text) {
                    Some(id) => {
                        self.pending = self.pending.saturating_sub(1);
                        match consumer.ack(&id).await {
                            Ok(()) => return Ok(()),
                            Err(error) => error.to_string(),
                        }
                    }
                    None => "`messageId` is not the id of a message".to_owned(),
                },
            },
            (Command::NegativeAck(text), Source::Consumer(consumer)) => {
                match self.delivered.take(&text) {
                    Some((topic, id)) => {
                        self.pending = self.pending.saturating_sub(1);
                        self.redeliver(&topic, id, None).await;
                        return Ok(());
                    }
                    None => match json::id_of(&text) {
                        Some(id) => {
                            self.pending = self.pending.saturating_sub(1);
                            match consumer.nack(&id).await {
                                Ok(()) => return Ok(()),
                                Err(error) => error.to_string(),
                            }
                        }
                        None => "`messageId` is not the id of a message".to_owned(),
                    },
                }
            }
        };
        wire.close(INTERNAL, &refusal).await;
        Err(Gone)
    }
}
