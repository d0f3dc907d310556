//! The seam to other clusters: what a replicator asks of whoever can reach them.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use geminga_model::{Position, TopicName};
use geminga_proto::pb;

pub use super::clusters::ClusterData;

/// What is on its way.
pub type Promise<'a, T> = Pin<Box<dyn Future<Output = Result<T, RemoteError>> + Send + 'a>>;

/// Why the other cluster did not do what it was asked for, in words for a log.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RemoteError(pub String);

/// A topic of another cluster.
#[derive(Debug, Clone)]
pub struct RemoteTopic {
    pub cluster: String,
    pub data: ClusterData,
    pub topic: TopicName,
    /// Of the topic that it is a partition of.
    pub partitions: Option<u32>,
    /// Whether it may be made there.
    pub create: bool,
    pub producer_name: String,
}

/// A message to be sent on, under its new headers.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Its place here.
    pub position: Position,
    pub sequence_id: u64,
    pub highest_sequence_id: Option<u64>,
    pub num_messages: i32,
    pub is_chunk: bool,
    pub is_marker: bool,
    pub headers: Bytes,
    /// As it is stored: not copied, not opened.
    pub payload: Bytes,
}

/// Reaches other clusters.
pub trait Remotes: Send + Sync + 'static {
    /// Opens a way to a topic there; one attempt.
    fn connect(&self, to: RemoteTopic) -> Promise<'static, Box<dyn RemoteProducer>>;
}

/// An open way to one topic of another cluster. Dropping it closes it.
pub trait RemoteProducer: Send {
    /// Queues a message. The caller bounds how many are under way.
    fn send(&mut self, message: Outgoing);

    /// How many more of the messages were confirmed, oldest first; at least one. Cancelling loses
    /// nothing. An error ends this way: what was not confirmed has to be sent again.
    fn confirmed(&mut self) -> Promise<'_, usize>;

    /// The version that the topic there has for a schema.
    fn register_schema(&mut self, schema: pb::Schema) -> Promise<'_, Bytes>;
}
