//! A producer of ready-made messages: what a replicator sends on.
//!
//! It adds nothing and retries nothing: one link, messages out, receipts in, in order. Whoever uses
//! it keeps a window, and opens another one when this one is over. What must hold: memory is bounded
//! by the user's window, since a receipt is kept only for a message that was sent.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use geminga_model::name::TopicName;
use geminga_proto::send::{Send, SendReceipt};
use geminga_proto::{Command, command, pb};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::client::{Client, Shared, topic_name};
use crate::connection::{Connection, Producing};
use crate::error::{Error, Result};
use crate::schema;

/// A message whose headers are made: checksum, metadata size, metadata.
#[derive(Debug, Clone, Default)]
pub struct RawMessage {
    /// What the receipt names, unless the broker goes by the source position.
    pub sequence_id: u64,
    /// The last sequence id of a batch.
    pub highest_sequence_id: Option<u64>,
    /// Messages in a batch; 1 where it is none.
    pub num_messages: i32,
    /// It is a part of a larger message.
    pub is_chunk: bool,
    /// No client ever sees it.
    pub is_marker: bool,
    /// Everything before the payload.
    pub headers: Bytes,
    /// The payload as it is stored.
    pub payload: Bytes,
}

/// What the broker answered to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawReceipt {
    /// As in the message, or the source's ledger.
    pub sequence_id: u64,
    /// As in the message, or the source's entry.
    pub highest_sequence_id: Option<u64>,
}

/// One link of a producer of ready-made messages.
pub struct RawProducer {
    id: u64,
    connection: Arc<Connection>,
    inbox: Arc<Inbox>,
    topic: TopicName,
    head: BytesMut,
    /// Keeps the client's connections open.
    _shared: Arc<Shared>,
}

impl std::fmt::Debug for RawProducer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawProducer")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

/// What came from the broker and was not taken yet.
#[derive(Default)]
struct Inbox {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    receipts: VecDeque<RawReceipt>,
    over: Option<Error>,
}

impl Inbox {
    fn end(&self, error: Error) {
        self.state.lock().over.get_or_insert(error);
        self.changed.notify_one();
    }
}

impl Producing for Inbox {
    fn receipts(&self, _from: &Connection, receipts: &[SendReceipt]) {
        let receipt = |receipt: &SendReceipt| RawReceipt {
            sequence_id: receipt.sequence_id,
            highest_sequence_id: receipt.highest_sequence_id,
        };
        self.state
            .lock()
            .receipts
            .extend(receipts.iter().map(receipt));
        self.changed.notify_one();
    }

    fn send_failed(&self, _from: &Connection, _sequence: u64, error: Error) {
        self.end(error);
    }

    fn disconnected(&self, from: &Connection) {
        self.end(Error::Disconnected {
            address: from.address().to_owned(),
            reason: "the connection is over".to_owned(),
        });
    }

    fn closed_by_broker(&self, from: &Connection, _assigned: Option<String>) {
        self.end(Error::Disconnected {
            address: from.address().to_owned(),
            reason: "the broker closed the producer".to_owned(),
        });
    }
}

impl Client {
    /// Opens a producer of ready-made messages on a topic or one partition; one attempt.
    ///
    /// # Errors
    /// When the topic's broker is not reached, or refuses.
    pub async fn raw_producer(&self, topic: &str, name: &str) -> Result<RawProducer> {
        let topic = topic_name(topic)?;
        let shared = self.shared.clone();
        let id = shared.next_id();
        let broker = shared.lookup(&topic).await?;
        let connection = shared.broker_connection(&broker, id).await?;
        // Some topics take producers with a schema only.
        let schema = schema::current_schema(&connection, &topic).await?;
        let inbox = Arc::new(Inbox::default());
        connection.add_producer(id, inbox.clone())?;
        // Closes it when the next step is not reached.
        let producer = RawProducer {
            id,
            connection,
            inbox,
            topic,
            head: BytesMut::new(),
            _shared: shared,
        };
        let request = |request_id| {
            let command = pb::CommandProducer {
                topic: producer.topic.as_str().to_owned(),
                producer_id: id,
                request_id,
                producer_name: Some(name.to_owned()),
                user_provided_producer_name: Some(true),
                schema,
                ..Default::default()
            };
            Command::from(command)
        };
        match producer.connection.request("producer", request).await? {
            Command::ProducerSuccess(_) => Ok(producer),
            other => Err(Error::UnexpectedAnswer(other.name())),
        }
    }

    /// How many partitions a topic has, 0 when it is not partitioned, `None` when there is no such
    /// topic. It is not made by being asked for.
    ///
    /// # Errors
    /// When no broker answers, or it refuses.
    pub async fn partitions_if_exists(&self, topic: &str) -> Result<Option<u32>> {
        let topic = topic_name(topic)?;
        let connection = self.shared.any_connection().await?;
        let request = |request_id| {
            pb::CommandPartitionedTopicMetadata {
                topic: topic.as_str().to_owned(),
                request_id,
                metadata_auto_creation_enabled: Some(false),
                ..Default::default()
            }
            .into()
        };
        match connection.request("partition metadata", request).await {
            Ok(Command::PartitionedMetadataResponse(answer)) => Ok(Some(answer.partitions())),
            Ok(other) => Err(Error::UnexpectedAnswer(other.name())),
            Err(error) if schema::is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl RawProducer {
    /// Whether the broker tells repeats of a replicator by their place in the source.
    #[must_use]
    pub fn goes_by_source_position(&self) -> bool {
        self.topic.is_persistent() && self.connection.goes_by_source_position()
    }

    /// Queues a message. How it went is told by its receipt, or by the end of this producer.
    pub fn send(&mut self, message: &RawMessage) {
        let send = Send {
            producer_id: self.id,
            sequence_id: message.sequence_id,
            highest_sequence_id: message.highest_sequence_id,
            num_messages: message.num_messages,
            is_chunk: message.is_chunk,
            marker: message.is_marker,
            ..Send::default()
        };
        let block = message.headers.len() + message.payload.len();
        send.encode_frame(block, &mut self.head);
        self.head.extend_from_slice(&message.headers);
        let head = self.head.split().freeze();
        self.connection.send_frames([(&head, &message.payload)]);
    }

    /// The next receipts, at least one; the error that ends this producer when they are used up.
    ///
    /// # Errors
    /// When the link is over. Cancelling loses nothing.
    pub async fn receipts(&mut self) -> Result<Vec<RawReceipt>> {
        loop {
            {
                let mut state = self.inbox.state.lock();
                if !state.receipts.is_empty() {
                    return Ok(state.receipts.drain(..).collect());
                }
                if let Some(error) = &state.over {
                    return Err(error.clone());
                }
            }
            self.inbox.changed.notified().await;
        }
    }

    /// The version that the topic has for a schema, which it takes where it is new.
    ///
    /// # Errors
    /// When the topic does not take it, or the link is over.
    pub async fn register_schema(&self, schema: pb::Schema) -> Result<Bytes> {
        schema::register(&self.connection, &self.topic, schema).await
    }
}

impl Drop for RawProducer {
    fn drop(&mut self) {
        self.connection.remove_producer(self.id);
        let close = pb::CommandCloseProducer {
            producer_id: self.id,
            request_id: command::NO_REQUEST,
            ..Default::default()
        };
        self.connection.send(&close.into());
    }
}
