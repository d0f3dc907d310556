//! A Pulsar client: lookup, producer, consumer, reader, transactions, over TCP, with TLS or
//! without, or a pipe in the process.
//!
//! The CLI, the functions worker and the tests use it; it works with any Pulsar broker. It knows
//! the broker only by the protocol.
//!
//! ```no_run
//! # async fn example() -> geminga_client::Result<()> {
//! use geminga_client::{Client, Message, SubType};
//!
//! let client = Client::builder("pulsar://127.0.0.1:6650").build();
//! let producer = client.producer("events").build().await?;
//! producer.send(Message::new("hello").key("k").property("a", "b")).await?;
//!
//! let mut consumer =
//!     client.consumer("events").subscription("s").sub_type(SubType::Shared).build().await?;
//! let message = consumer.recv().await?;
//! consumer.ack(&message.id);
//! # Ok(()) }
//! ```
//!
//! What must hold:
//! - Messages of one producer reach a partition in the order in which they were enqueued, across
//!   any number of reconnects, with the same sequence ids.
//! - A receipt means that the broker has it. An error means that it may or may not.
//! - In a transaction nothing is sent twice: there a lost connection is an error.
//! - Memory is bounded: producers by a window of messages and bytes, consumers by permits.
//!
//! The cost of a message has a budget, which `examples/throughput` measures against a broker that
//! only answers (both in the same process, over loopback; 100 bytes a message):
//!
//! | | a message | what it pays for |
//! |---|---|---|
//! | sent, in a frame of its own | 720 ns of CPU | its producer's lock, the frame built once in memory shared with its neighbours, one copy to the outbox |
//! | sent, batched | 250 ns | the same lock, one copy to the batch |
//! | with its receipt | 100 ns more | a slot in the producer's slab: no channel, no allocation |
//! | received and acknowledged, alone / in a batch | 680 / 285 ns | one entry of the inbox, taken and opened in the reader's task |
//!
//! Socket reads and writes, wake-ups of tasks, and the locks of connection and inbox are paid once
//! for all messages that are there together, not once for each. Allocations: memory for frames
//! comes in pieces of 64 KiB; a message without key and properties allocates nothing else.
#![warn(missing_docs)]

mod client;
mod connection;
mod consumer;
mod error;
mod link;
mod lookup;
mod message;
mod producer;
mod raw;
mod reader;
mod routing;
mod schema;
pub mod tls;
mod transaction;
pub mod transport;

pub use client::{Client, ClientBuilder};
pub use consumer::{
    Consumer, ConsumerBuilder, ConsumerHandle, InitialPosition, KeyShared, Pattern, SeekTo,
    Selection, SubType, Target, TopicSettings, Topics,
};
pub use error::{Error, Result};
pub use geminga_proto::MessageId;
pub use geminga_proto::pb::{CompressionType as Compression, ProducerAccessMode, ServerError};
pub use message::{Message, ReceivedMessage};
pub use producer::{Batching, Producer, ProducerBuilder, Receipt};
pub use raw::{RawMessage, RawProducer, RawReceipt};
pub use reader::{Reader, ReaderBuilder};
pub use routing::{HashingScheme, Routing};
pub use schema::{Schema, SchemaType};
pub use tls::{Tls, TlsSettings};
pub use transaction::{Transaction, TransactionId};
pub use transport::{Connector, Pipe, Tcp};
