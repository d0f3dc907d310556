//! A function's state: a map in memory, and a topic that remembers every change.
//!
//! One value is shared by all instances of a function in this worker. A change made by a message is
//! applied when the message is processed and recorded before the message is acknowledged, so that a
//! worker that dies finds, by reading the topic, at least what its acknowledged messages did.

use std::collections::BTreeMap;

use bytes::Bytes;
use geminga_client::{Client, Compression, Message, MessageId, Producer, Receipt};
use parking_lot::RwLock;

use crate::runtime::{StateChange, incremented};

/// The property that marks a value as a counter.
const COUNTER: &str = "geminga.counter";
/// Bytes of a key, and entries of one function: what state costs in memory is bounded.
const KEY_BYTES_MAX: usize = 1024;

/// A value and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) value: Bytes,
    pub(crate) is_counter: bool,
    /// How often it was changed.
    pub(crate) version: u64,
}

/// The state of one function.
pub(crate) struct FunctionState {
    map: RwLock<BTreeMap<String, Entry>>,
    /// `None`: nothing is remembered beyond this process.
    producer: Option<Producer>,
    /// Held while values are read and enqueued, so that they are recorded in the order they took.
    recording: tokio::sync::Mutex<()>,
}

/// The topic that remembers the state of `tenant/namespace/name`.
pub(crate) fn topic(tenant: &str, namespace: &str, name: &str) -> String {
    format!("persistent://{tenant}/{namespace}/{name}-state-changelog")
}

impl FunctionState {
    /// Reads the topic to its end.
    pub(crate) async fn open(client: &Client, topic: &str) -> Result<Self, geminga_client::Error> {
        // The producer first: it makes the topic when there is none.
        let producer = client
            .producer(topic)
            .compression(Compression::Lz4)
            .build()
            .await?;
        let mut reader = client
            .reader(topic)
            .start(MessageId::EARLIEST)
            .start_inclusive(true)
            .build()
            .await?;
        let mut map = BTreeMap::new();
        while reader.has_message_available().await? {
            for message in reader.next_batch(1000).await? {
                let Some(key) = message.key.clone() else {
                    continue;
                };
                if message.null_value {
                    map.remove(&key);
                    continue;
                }
                let version = map.get(&key).map_or(0, |entry: &Entry| entry.version) + 1;
                let is_counter = message.property(COUNTER).is_some();
                map.insert(
                    key,
                    Entry {
                        value: message.payload,
                        is_counter,
                        version,
                    },
                );
            }
        }
        reader.close().await?;
        Ok(Self {
            map: RwLock::new(map),
            producer: Some(producer),
            recording: tokio::sync::Mutex::new(()),
        })
    }

    /// State without a topic, for runs without a broker.
    pub(crate) fn in_memory() -> Self {
        Self {
            map: RwLock::default(),
            producer: None,
            recording: tokio::sync::Mutex::new(()),
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<Entry> {
        self.map.read().get(key).cloned()
    }

    pub(crate) fn apply(&self, changes: &[StateChange]) {
        let mut map = self.map.write();
        for change in changes {
            apply(&mut map, change);
        }
    }

    /// Puts the values that `changes` led to on their way to the topic.
    pub(crate) async fn record(&self, changes: &[StateChange]) -> Result<Vec<Receipt>, String> {
        let Some(producer) = &self.producer else {
            return Ok(Vec::new());
        };
        let _in_order = self.recording.lock().await;
        let mut keys: Vec<&str> = changes.iter().map(key_of).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut receipts = Vec::with_capacity(keys.len());
        for key in keys {
            let message = match self.get(key) {
                None => Message::tombstone().key(key),
                Some(entry) if entry.is_counter => {
                    Message::new(entry.value).key(key).property(COUNTER, "1")
                }
                Some(entry) => Message::new(entry.value).key(key),
            };
            let receipt = producer.enqueue(message).await.map_err(|e| e.to_string())?;
            receipts.push(receipt);
        }
        Ok(receipts)
    }

    /// A change from outside any message; durable when it resolves.
    pub(crate) async fn change(&self, change: StateChange) -> Result<(), String> {
        let changes = [change];
        self.apply(&changes);
        for receipt in self.record(&changes).await? {
            receipt.await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

fn key_of(change: &StateChange) -> &str {
    match change {
        StateChange::Put(key, _) | StateChange::Delete(key) | StateChange::Increment(key, _) => key,
    }
}

fn apply(map: &mut BTreeMap<String, Entry>, change: &StateChange) {
    let key = key_of(change);
    if key.len() > KEY_BYTES_MAX {
        tracing::warn!(
            bytes = key.len(),
            "state key longer than {KEY_BYTES_MAX} bytes: not kept"
        );
        return;
    }
    let before = map.get(key);
    let version = before.map_or(0, |entry| entry.version) + 1;
    let entry = match change {
        StateChange::Delete(key) => {
            map.remove(key);
            return;
        }
        StateChange::Put(_, value) => Entry {
            value: value.clone(),
            is_counter: false,
            version,
        },
        StateChange::Increment(_, by) => Entry {
            value: incremented(before.map(|entry| &entry.value), *by),
            is_counter: true,
            version,
        },
    };
    map.insert(key.to_owned(), entry);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_make_values_and_versions() {
        let mut map = BTreeMap::new();
        for change in [
            StateChange::Increment("n".into(), 5),
            StateChange::Increment("n".into(), -7),
            StateChange::Put("t".into(), Bytes::from_static(b"x")),
            StateChange::Put("gone".into(), Bytes::new()),
            StateChange::Delete("gone".into()),
        ] {
            apply(&mut map, &change);
        }
        assert_eq!(map["n"].value[..], (-2_i64).to_be_bytes());
        assert_eq!((map["n"].is_counter, map["n"].version), (true, 2));
        assert!(!map["t"].is_counter && !map.contains_key("gone"));
    }
}
