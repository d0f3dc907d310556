//! Readers: a topic from a place of one's own choice, without a subscription that stays.

use geminga_proto::MessageId;

use crate::client::Client;
use crate::consumer::{Consumer, ConsumerBuilder, InitialPosition, SeekTo, SubType};
use crate::error::Result;
use crate::message::ReceivedMessage;

/// Settings of a [`Reader`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ReaderBuilder {
    consumer: ConsumerBuilder,
    start: MessageId,
    inclusive: bool,
}

impl ReaderBuilder {
    pub(crate) fn new(client: &Client, topic: String) -> Self {
        let subscription = format!("reader-{}", client.shared.random_name(10));
        let consumer = client
            .consumer(topic)
            .subscription(subscription)
            .sub_type(SubType::Exclusive)
            .durable(false);
        Self {
            consumer,
            start: MessageId::LATEST,
            inclusive: false,
        }
    }

    /// Begins after this message; after what is there ([`MessageId::LATEST`]) unless set.
    pub fn start(mut self, id: MessageId) -> Self {
        self.start = id;
        self
    }

    /// Whether the message at the start is read too; false.
    pub fn start_inclusive(mut self, inclusive: bool) -> Self {
        self.inclusive = inclusive;
        self
    }

    /// Whether the topic is made where there is none and the broker makes topics by itself; true.
    /// Otherwise building fails with `TopicNotFound`.
    pub fn create_topic(mut self, create: bool) -> Self {
        self.consumer = self.consumer.create_topic(create);
        self
    }

    /// The reader's name, for the broker's statistics.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.consumer = self.consumer.name(name);
        self
    }

    /// The name of the subscription that stands for the reader while it is open.
    pub fn subscription(mut self, name: impl Into<String>) -> Self {
        self.consumer = self.consumer.subscription(name);
        self
    }

    /// Messages that the broker may send ahead; 1,000.
    pub fn receiver_queue_size(mut self, messages: usize) -> Self {
        self.consumer = self.consumer.receiver_queue_size(messages);
        self
    }

    /// Whether only the last message of each key is read, where the topic is compacted.
    pub fn read_compacted(mut self, compacted: bool) -> Self {
        self.consumer = self.consumer.read_compacted(compacted);
        self
    }

    /// Opens the reader.
    ///
    /// # Errors
    /// When the topic's name is wrong, when the broker refuses, or does not answer in time.
    pub async fn build(self) -> Result<Reader> {
        let position = match self.start {
            MessageId::EARLIEST => InitialPosition::Earliest,
            _ => InitialPosition::Latest,
        };
        let consumer = self
            .consumer
            .initial_position(position)
            .start(self.start, self.inclusive)
            .build()
            .await?;
        Ok(Reader { consumer })
    }
}

/// Reads a topic.
#[derive(Debug)]
pub struct Reader {
    consumer: Consumer,
}

impl Reader {
    /// The next message. Cancel-safe.
    ///
    /// # Errors
    /// When the reader is closed, or lost its place for good.
    pub async fn next(&mut self) -> Result<ReceivedMessage> {
        let message = self.consumer.recv().await?;
        // So that the broker's statistics show no backlog.
        self.consumer.ack_cumulative(&message).await?;
        Ok(message)
    }

    /// All messages that are here now, at most `max`, waiting for the first. Cancel-safe.
    ///
    /// # Errors
    /// As [`next`](Reader::next).
    pub async fn next_batch(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        let messages = self.consumer.recv_batch(max).await?;
        // Each topic has its own last message; a later ack of a topic covers the earlier ones.
        let mut acked: Vec<&str> = Vec::new();
        for message in messages.iter().rev() {
            if !acked.contains(&&*message.topic) {
                acked.push(&message.topic);
                self.consumer.ack_cumulative(message).await?;
            }
        }
        Ok(messages)
    }

    /// Whether there is a message that was not read yet.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn has_message_available(&self) -> Result<bool> {
        self.consumer.has_message_available().await
    }

    /// Goes to another place: the message of this id is the next one.
    ///
    /// # Errors
    /// When the broker refuses or does not answer in time.
    pub async fn seek(&self, to: impl Into<SeekTo>) -> Result<()> {
        self.consumer.seek(to).await
    }

    /// The last message on the broker.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn last_message_id(&self) -> Result<MessageId> {
        self.consumer.last_message_id().await
    }

    /// Whether the topic was terminated and all of it was read.
    #[must_use]
    pub fn has_reached_end(&self) -> bool {
        self.consumer.has_reached_end()
    }

    /// Whether the topic has a broker now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.consumer.is_connected()
    }

    /// Closes the reader.
    ///
    /// # Errors
    /// When the broker does not answer. It is closed then too.
    pub async fn close(self) -> Result<()> {
        self.consumer.close().await
    }
}
