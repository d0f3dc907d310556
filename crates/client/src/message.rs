//! Messages as users see them.

use std::sync::Arc;

use bytes::Bytes;
use geminga_proto::MessageId;

/// A message to be sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    pub(crate) payload: Bytes,
    pub(crate) key: Option<String>,
    pub(crate) key_is_base64: bool,
    pub(crate) ordering_key: Option<Bytes>,
    pub(crate) properties: Vec<(String, String)>,
    pub(crate) event_time: Option<u64>,
    pub(crate) deliver_at: Option<i64>,
    pub(crate) sequence_id: Option<u64>,
    pub(crate) null_value: bool,
    pub(crate) replicate_to: Vec<String>,
    pub(crate) schema_version: Option<Bytes>,
}

impl Message {
    /// A message with this payload.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self {
            payload: payload.into(),
            ..Self::default()
        }
    }

    /// A message without a value: in a compacted topic it deletes its key.
    #[must_use]
    pub fn tombstone() -> Self {
        Self {
            null_value: true,
            ..Self::default()
        }
    }

    /// The key: it chooses the partition and, in Key_Shared subscriptions, the consumer.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self.key_is_base64 = false;
        self
    }

    /// A key of bytes, sent as base64 as other clients do.
    #[must_use]
    pub fn key_bytes(mut self, key: &[u8]) -> Self {
        self.key = Some(geminga_proto::key::encode_base64(key));
        self.key_is_base64 = true;
        self
    }

    /// The key for Key_Shared subscriptions, where it differs from the partition's.
    #[must_use]
    pub fn ordering_key(mut self, key: impl Into<Bytes>) -> Self {
        self.ordering_key = Some(key.into());
        self
    }

    /// Adds a property.
    #[must_use]
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.push((name.into(), value.into()));
        self
    }

    /// Adds properties.
    #[must_use]
    pub fn properties<K: Into<String>, V: Into<String>>(
        mut self,
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.properties.extend(
            pairs
                .into_iter()
                .map(|(name, value)| (name.into(), value.into())),
        );
        self
    }

    /// When the event happened, in milliseconds since 1970.
    #[must_use]
    pub fn event_time(mut self, ms: u64) -> Self {
        self.event_time = Some(ms);
        self
    }

    /// Delivered to Shared subscriptions only from this time on, in milliseconds since 1970.
    /// Such a message is not batched.
    #[must_use]
    pub fn deliver_at(mut self, ms: i64) -> Self {
        self.deliver_at = Some(ms);
        self
    }

    /// The sequence id by which the broker knows duplicates; it must grow from message to message.
    #[must_use]
    pub fn sequence_id(mut self, id: u64) -> Self {
        self.sequence_id = Some(id);
        self
    }

    /// The clusters that get a copy, instead of those of the namespace; `__local__` alone is none.
    #[must_use]
    pub fn replicate_to<S: Into<String>>(mut self, clusters: impl IntoIterator<Item = S>) -> Self {
        self.replicate_to = clusters.into_iter().map(Into::into).collect();
        self
    }

    /// The version of its schema, where it is not its producer's: what [`Client::register_schema`] gives.
    /// Messages of different versions are in different batches.
    ///
    /// [`Client::register_schema`]: crate::Client::register_schema
    #[must_use]
    pub fn schema_version(mut self, version: Bytes) -> Self {
        self.schema_version = Some(version);
        self
    }

    /// The payload's length.
    #[must_use]
    pub fn len(&self) -> usize {
        self.payload.len()
    }

    /// Whether the payload is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.payload.is_empty()
    }

    /// Roughly what the message takes in memory and on the wire.
    pub(crate) fn cost(&self) -> usize {
        let properties: usize = self
            .properties
            .iter()
            .map(|(k, v)| k.len() + v.len() + 6)
            .sum();
        let clusters: usize = self.replicate_to.iter().map(|name| name.len() + 2).sum();
        let keys = self.key.as_ref().map_or(0, String::len)
            + self.ordering_key.as_ref().map_or(0, Bytes::len);
        self.payload.len() + keys + properties + clusters + 64
    }

    /// What stands before the payload takes no more, apart from what every message has there.
    pub(crate) fn head_len(&self) -> usize {
        // Of each text its tag and its length, and the same of the pair.
        const TEXT_BYTES: usize = 6;
        let properties = self.properties.iter();
        let properties: usize = properties
            .map(|(k, v)| k.len() + v.len() + 3 * TEXT_BYTES)
            .sum();
        let clusters = self.replicate_to.iter();
        let clusters: usize = clusters.map(|name| name.len() + TEXT_BYTES).sum();
        let key = self.key.as_ref().map_or(0, String::len);
        let ordering_key = self.ordering_key.as_ref().map_or(0, Bytes::len);
        properties + clusters + key + ordering_key + 2 * TEXT_BYTES
    }
}

impl From<&'static str> for Message {
    fn from(payload: &'static str) -> Self {
        Self::new(payload)
    }
}

impl From<Bytes> for Message {
    fn from(payload: Bytes) -> Self {
        Self::new(payload)
    }
}

/// A message as a consumer or reader gets it.
#[derive(Debug, Clone, PartialEq)]
pub struct ReceivedMessage {
    /// The full name of the topic or partition.
    pub topic: Arc<str>,
    /// Its place; acknowledge with it.
    pub id: MessageId,
    /// The payload: unpacked, out of its batch, put together from its chunks.
    pub payload: Bytes,
    /// The key.
    pub key: Option<String>,
    /// Whether `key` is base64 of a key of bytes.
    pub key_is_base64: bool,
    /// The key for Key_Shared subscriptions, where it differs.
    pub ordering_key: Option<Bytes>,
    /// Names and values, in the order sent.
    pub properties: Vec<(String, String)>,
    /// When the event happened, in milliseconds since 1970, if the producer said so.
    pub event_time: Option<u64>,
    /// When it was sent, in milliseconds since 1970.
    pub publish_time: u64,
    /// How often it was delivered before, in subscriptions where the broker counts that.
    pub redelivery_count: u32,
    /// Who sent it.
    pub producer_name: Arc<str>,
    /// The producer's sequence id.
    pub sequence_id: u64,
    /// The version of its schema.
    pub schema_version: Option<Bytes>,
    /// Whether it has no value (a tombstone).
    pub null_value: bool,
    /// The cluster it was replicated from.
    pub replicated_from: Option<String>,
    /// Position in the topic counted from its start, if the broker says so.
    pub index: Option<u64>,
}

impl ReceivedMessage {
    /// The value of a property.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<&str> {
        self.properties
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}
