//! A Pulsar client: lookup, producer, consumer, reader, over TCP or a pipe in the process.
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
//! - Memory is bounded: producers by a window of messages and bytes, consumers by permits.
//! - The cost of a message has a budget: at most one allocation to send it; no lock, wake-up or
//!   system call of its own once several are under way. See `connection`, `producer`, `consumer`.
#![warn(missing_docs)]

mod client;
mod connection;
mod consumer;
mod error;
mod lookup;
mod message;
mod producer;
mod reader;
mod routing;
pub mod transport;

pub use client::{Client, ClientBuilder};
pub use consumer::{
    Consumer, ConsumerBuilder, ConsumerHandle, InitialPosition, KeyShared, SeekTo, SubType, Target,
    Topics,
};
pub use error::{Error, Result};
pub use geminga_proto::MessageId;
pub use geminga_proto::pb::{CompressionType as Compression, ProducerAccessMode, ServerError};
pub use message::{Message, ReceivedMessage};
pub use producer::{Batching, Producer, ProducerBuilder, Receipt};
pub use reader::{Reader, ReaderBuilder};
pub use routing::{HashingScheme, Routing};
pub use transport::{Connector, Pipe, Tcp};
