//! Producers: messages to a topic or to the partitions of one.
//!
//! A message is encoded in the call that enqueues it, under the lock of its producer, straight
//! into the bytes that go out. When nothing is under way it leaves at once; while a frame is on
//! its way, messages gather in a batch that leaves with the receipt, or when it is full. So there
//! is no linger to choose: latency when idle, throughput under load.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use geminga_proto::MessageId;
use geminga_proto::pb::{CompressionType, ProducerAccessMode};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::client::{Shared, topic_name};
use crate::error::{Error, Result};
use crate::link;
use crate::message::Message;
use crate::routing::{HashingScheme, Router, Routing};
use crate::schema::Schema;
use crate::transaction::Transaction;
pub use receipt::Receipt;
pub(crate) use state::Core;

mod driver;
mod encode;
mod receipt;
mod slots;
mod state;

/// Messages that one frame may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batching {
    /// At most this many messages; 1 turns batching off.
    pub max_messages: usize,
    /// At most about this many bytes, before compression.
    pub max_bytes: usize,
    /// `None`: a batch leaves as soon as nothing is under way. Otherwise it waits for up to this
    /// long to be full.
    pub max_delay: Option<Duration>,
    /// A batch holds messages of one key only, as Key_Shared subscriptions need it.
    pub by_key: bool,
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            max_messages: 1000,
            max_bytes: 128 * 1024,
            max_delay: None,
            by_key: false,
        }
    }
}

impl Batching {
    /// Each message goes in a frame of its own.
    #[must_use]
    pub fn off() -> Self {
        Self {
            max_messages: 1,
            ..Self::default()
        }
    }
}

#[derive(Debug, Clone)]
struct Options {
    name: Option<String>,
    compression: CompressionType,
    batching: Batching,
    chunking: bool,
    send_timeout: Duration,
    window: usize,
    window_bytes: usize,
    initial_sequence_id: Option<u64>,
    properties: Vec<(String, String)>,
    access_mode: ProducerAccessMode,
    initial_subscription: Option<String>,
    schema: Option<Schema>,
}

/// Settings of a [`Producer`].
#[derive(Clone)]
#[must_use]
pub struct ProducerBuilder {
    shared: Arc<Shared>,
    topic: String,
    options: Options,
    routing: Routing,
    hashing: HashingScheme,
}

impl std::fmt::Debug for ProducerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProducerBuilder")
            .field("topic", &self.topic)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl ProducerBuilder {
    pub(crate) fn new(shared: Arc<Shared>, topic: String) -> Self {
        Self {
            shared,
            topic,
            options: Options {
                name: None,
                compression: CompressionType::None,
                batching: Batching::default(),
                chunking: false,
                send_timeout: Duration::from_secs(30),
                window: 1000,
                window_bytes: 64 * 1024 * 1024,
                initial_sequence_id: None,
                properties: Vec::new(),
                access_mode: ProducerAccessMode::Shared,
                initial_subscription: None,
                schema: None,
            },
            routing: Routing::default(),
            hashing: HashingScheme::default(),
        }
    }

    /// A name of its own; the broker makes one otherwise. Two producers of one name exclude each
    /// other.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.name = Some(name.into());
        self
    }

    /// How payloads are packed; not at all by default.
    pub fn compression(mut self, compression: CompressionType) -> Self {
        self.options.compression = compression;
        self
    }

    /// How messages are joined into frames.
    pub fn batching(mut self, batching: Batching) -> Self {
        self.options.batching = batching;
        self
    }

    /// Whether a payload that is too large for the broker is sent in pieces; needs
    /// [`Batching::off`]. False by default: it is an error then.
    pub fn chunking(mut self, chunking: bool) -> Self {
        self.options.chunking = chunking;
        self
    }

    /// How long a message may wait for its receipt; 30 s. Zero: for ever.
    pub fn send_timeout(mut self, limit: Duration) -> Self {
        self.options.send_timeout = limit;
        self
    }

    /// Messages without a receipt that a partition's producer may have; 1,000.
    pub fn window(mut self, messages: usize) -> Self {
        self.options.window = messages.max(1);
        self
    }

    /// Bytes without a receipt that a partition's producer may have; 64 MiB. One message may
    /// always go.
    pub fn window_bytes(mut self, bytes: usize) -> Self {
        self.options.window_bytes = bytes;
        self
    }

    /// How messages are spread over partitions.
    pub fn routing(mut self, routing: Routing) -> Self {
        self.routing = routing;
        self
    }

    /// How keys choose partitions; as Java producers do by default.
    pub fn hashing(mut self, hashing: HashingScheme) -> Self {
        self.hashing = hashing;
        self
    }

    /// The last sequence id that was used: the first message gets the next one.
    pub fn initial_sequence_id(mut self, id: u64) -> Self {
        self.options.initial_sequence_id = Some(id);
        self
    }

    /// A property that the broker shows in its statistics.
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.properties.push((name.into(), value.into()));
        self
    }

    /// Whether others may produce to the topic at the same time.
    pub fn access_mode(mut self, mode: ProducerAccessMode) -> Self {
        self.options.access_mode = mode;
        self
    }

    /// A durable subscription to be made at the topic's start if there is none of this name.
    pub fn initial_subscription(mut self, name: impl Into<String>) -> Self {
        self.options.initial_subscription = Some(name.into());
        self
    }

    /// The schema of its messages. The broker refuses one that does not suit the topic's.
    pub fn schema(mut self, schema: Schema) -> Self {
        self.options.schema = Some(schema);
        self
    }

    /// Opens the producer on all partitions.
    ///
    /// # Errors
    /// When a setting is wrong, when a broker refuses, or when none answers in time.
    pub async fn build(self) -> Result<Producer> {
        let options = self.options;
        if options.chunking && options.batching.max_messages > 1 {
            return Err(Error::Setting {
                setting: "chunking",
                reason: "needs `Batching::off()`",
            });
        }
        let topic = topic_name(&self.topic)?;
        let topics = self.shared.partitions_of(&topic).await?;
        let count = topics.len() as u64;
        let start = self.shared.random_below(count) as u32;
        let router = Router::new(
            self.routing,
            self.hashing,
            if count > 1 { start } else { 0 },
            (options.batching.max_messages.min(options.window) / 2) as u32,
        );
        let options = Arc::new(options);
        let mut producer = Producer {
            topic: topic.as_str().into(),
            cores: Vec::with_capacity(topics.len()),
            router: Mutex::new(router),
        };
        let mut opening = Vec::new();
        for topic in topics {
            let core = Arc::new(Core::new(self.shared.clone(), options.clone(), topic));
            let (opened, opens) = oneshot::channel();
            self.shared
                .tasks
                .spawn_cancellable("producer", link::drive(core.clone(), opened));
            producer.cores.push(core);
            opening.push(opens);
        }
        for opens in opening {
            // Dropping the producer on an error closes what is open already.
            opens.await.map_err(|_| Error::Closed)??;
        }
        Ok(producer)
    }
}

/// Sends messages to a topic. Its methods take `&self`: share it by `Arc`.
///
/// Dropping it closes it without waiting for what is under way; [`close`](Producer::close) waits.
pub struct Producer {
    topic: Arc<str>,
    cores: Vec<Arc<Core>>,
    router: Mutex<Router>,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

impl Producer {
    /// The full name of the topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The name that the broker knows it by.
    pub fn name(&self) -> String {
        self.cores[0].state.lock().name.clone().unwrap_or_default()
    }

    /// Partitions, 1 for a topic without.
    pub fn partitions(&self) -> usize {
        self.cores.len()
    }

    /// Whether all partitions have a broker now.
    pub fn is_connected(&self) -> bool {
        self.cores.iter().all(|core| core.is_connected())
    }

    /// The sequence id of the last message that the broker has, of the partition that is furthest;
    /// -1 when there is none.
    pub fn last_sequence_id(&self) -> i64 {
        let last = self
            .cores
            .iter()
            .map(|core| core.state.lock().last_sequence_published);
        last.max().unwrap_or(-1)
    }

    /// Sends a message and waits until the broker has it.
    ///
    /// # Errors
    /// When it is refused or too large, when no receipt comes in time, or the producer is closed.
    pub async fn send(&self, message: impl Into<Message>) -> Result<MessageId> {
        self.enqueue(message).await?.await
    }

    /// Puts a message on its way, waiting only for room in the window. The order of calls is the
    /// order of messages. The receipt resolves when the broker has it; dropping it changes nothing.
    ///
    /// # Errors
    /// When the message is too large, or the producer is closed.
    pub async fn enqueue(&self, message: impl Into<Message>) -> Result<Receipt> {
        let message = message.into();
        let core = self.route(&message);
        let mut message = Some(message);
        let slot = poll_fn(|cx| core.poll_enqueue(&mut message, None, true, Some(cx))).await?;
        Ok(Receipt {
            core: Some(core.clone()),
            slot,
        })
    }

    /// As [`enqueue`](Producer::enqueue), in a transaction: the message is seen when that is
    /// committed. It is never sent twice: when the connection is lost it fails, and with it the
    /// transaction.
    ///
    /// # Errors
    /// When the message is too large, the transaction has ended, or the producer is closed.
    pub async fn enqueue_in(
        &self,
        txn: &Transaction,
        message: impl Into<Message>,
    ) -> Result<Receipt> {
        let (core, slot) = self.take_in(txn, message.into(), true).await?;
        Ok(Receipt {
            core: Some(core),
            slot,
        })
    }

    /// As [`post`](Producer::post), in a transaction, whose commit waits for it.
    ///
    /// # Errors
    /// As [`enqueue_in`](Producer::enqueue_in).
    pub async fn post_in(&self, txn: &Transaction, message: impl Into<Message>) -> Result<()> {
        self.take_in(txn, message.into(), false).await.map(drop)
    }

    async fn take_in(
        &self,
        txn: &Transaction,
        message: Message,
        wants_receipt: bool,
    ) -> Result<(Arc<Core>, u32)> {
        let core = self.route(&message).clone();
        txn.open.join_topic(core.id, core.topic.as_str()).await?;
        let mut message = Some(message);
        let slot =
            poll_fn(|cx| core.poll_enqueue(&mut message, Some(&txn.open), wants_receipt, Some(cx)));
        let slot = slot.await?;
        Ok((core, slot))
    }

    /// As [`enqueue`](Producer::enqueue), without a receipt: cheaper. A failure comes out of the
    /// next [`flush`](Producer::flush).
    ///
    /// # Errors
    /// When the message is too large, or the producer is closed.
    pub async fn post(&self, message: impl Into<Message>) -> Result<()> {
        let message = message.into();
        let core = self.route(&message);
        let mut message = Some(message);
        poll_fn(|cx| core.poll_enqueue(&mut message, None, false, Some(cx))).await?;
        Ok(())
    }

    /// As [`enqueue`](Producer::enqueue), but gives the message back when there is no room.
    ///
    /// # Errors
    /// When the message is too large, or the producer is closed.
    pub fn try_enqueue(&self, message: impl Into<Message>) -> Result<Result<Receipt, Message>> {
        let message = message.into();
        let core = self.route(&message);
        let mut message = Some(message);
        match core.poll_enqueue(&mut message, None, true, None) {
            Poll::Ready(slot) => Ok(Ok(Receipt {
                core: Some(core.clone()),
                slot: slot?,
            })),
            Poll::Pending => match message {
                Some(message) => Ok(Err(message)),
                None => Err(Error::Closed),
            },
        }
    }

    /// Waits until everything that was enqueued before is done.
    ///
    /// # Errors
    /// The first failure of a message without a receipt since the last flush.
    pub async fn flush(&self) -> Result<()> {
        let targets: Vec<u64> = self.cores.iter().map(|core| core.begin_flush()).collect();
        let mut result = Ok(());
        for (core, target) in self.cores.iter().zip(targets) {
            let flushed = poll_fn(|cx| core.poll_flush(target, cx)).await;
            result = result.and(flushed);
        }
        result
    }

    /// Waits until everything is done, then closes.
    ///
    /// # Errors
    /// As [`flush`](Producer::flush). It is closed then too.
    pub async fn close(self) -> Result<()> {
        let flushed = self.flush().await;
        for core in &self.cores {
            if let Some(connection) = core.over(Error::Closed) {
                // The broker closes it anyway when the connection ends.
                _ = connection
                    .request("close producer", |request_id| {
                        driver::close_command(core.id, request_id)
                    })
                    .await;
            }
        }
        flushed
    }

    fn route(&self, message: &Message) -> &Arc<Core> {
        match &self.cores[..] {
            [only] => only,
            cores => {
                let index = self.router.lock().choose(message, cores.len() as u32);
                &cores[index as usize]
            }
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        for core in &self.cores {
            if let Some(connection) = core.over(Error::Closed) {
                connection.send(&driver::close_command(
                    core.id,
                    geminga_proto::command::NO_REQUEST,
                ));
            }
        }
    }
}
