//! The Pulsar binary protocol, version 21: what goes over a connection and into an entry.
//!
//! It owns every byte layout that Pulsar's clients and brokers share: frames, commands, message
//! metadata, batches, chunks, compression, checksums, message ids, key hashes. It opens no socket
//! and spawns no task: bytes in, values out, and back.
//!
//! What must hold:
//! - A payload is never copied by the codec. A frame is cut out of the read buffer, its
//!   headers-and-payload block is one [`bytes::Bytes`] slice of it, and that slice is what a broker
//!   stores and sends again.
//! - Bytes from the network may be anything. They give an error, never a panic, and never an
//!   allocation larger than a limit the caller stated.
//! - Unknown command types and unknown fields are tolerated; that is how the protocol grows.
//!
//! Reading order: [`frame`] cuts and writes frames, [`command`] names what is in them,
//! [`send`] and [`message`] are the two decoders of the hot path, [`batch`] and [`compress`] open
//! payloads. [`pb`] holds the generated messages.

pub mod batch;
pub mod checksum;
pub mod command;
pub mod compress;
pub mod error;
pub mod frame;
pub mod hash;
pub mod instance_control;
pub mod key;
pub mod marker;
pub mod message;
pub mod message_id;
pub mod send;

pub(crate) mod required;
mod wire;

/// The messages of `pulsar/*.proto`, written by `cargo xtask codegen`.
#[rustfmt::skip]
pub mod generated;

pub use generated as pb;

pub use command::Command;
pub use error::{ChecksumError, CompressionError, FrameError, MessageError};
pub use message_id::MessageId;

/// The newest protocol version that this crate speaks.
pub const PROTOCOL_VERSION: i32 = 21;

/// The largest message (metadata and payload) accepted by default.
pub const MAX_MESSAGE_SIZE: usize = 5 * 1024 * 1024;

/// What a frame may be larger than the largest message: room for command and metadata.
pub const FRAME_PADDING: usize = 10 * 1024;
