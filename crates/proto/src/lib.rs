//! The Pulsar binary protocol: messages, frames, checksums, batches, compression
