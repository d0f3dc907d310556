//! The catalogue: which components there are, on a topic. The newest record of a key counts; a
//! record without a value removes it.

use std::collections::{BTreeMap, BTreeSet};

use geminga_client::{Batching, Client, Message, MessageId, Producer};
use serde::{Deserialize, Serialize};

use crate::component::{Component, ComponentId};
use crate::error::WorkerError;

/// What is kept of a component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) component: Component,
    pub(crate) version: u64,
    /// Its code in the package folder, if it was uploaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) package: Option<String>,
    /// Instances that were stopped by hand.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) stopped: BTreeSet<u32>,
}

/// Writes the catalogue.
pub(crate) struct Catalog {
    producer: Producer,
}

fn key(id: &ComponentId) -> String {
    id.to_string()
}

impl Catalog {
    /// Reads the topic to its end.
    pub(crate) async fn open(
        client: &Client,
        topic: &str,
    ) -> Result<(Self, Vec<Record>), WorkerError> {
        let failed = || format!("catalogue `{topic}`");
        let producer = client
            .producer(topic)
            .batching(Batching::off())
            .build()
            .await
            .map_err(WorkerError::client(failed()))?;
        let mut reader = client
            .reader(topic)
            .start(MessageId::EARLIEST)
            .start_inclusive(true)
            .build()
            .await
            .map_err(WorkerError::client(failed()))?;
        let mut records: BTreeMap<String, Record> = BTreeMap::new();
        while reader
            .has_message_available()
            .await
            .map_err(WorkerError::client(failed()))?
        {
            let batch = reader
                .next_batch(1000)
                .await
                .map_err(WorkerError::client(failed()))?;
            for message in batch {
                let Some(key) = message.key else { continue };
                if message.null_value {
                    records.remove(&key);
                    continue;
                }
                match serde_json::from_slice(&message.payload) {
                    Ok(record) => drop(records.insert(key, record)),
                    // Another worker's record, such as Pulsar's own: not ours to run.
                    Err(error) => tracing::warn!(key, %error, "record not understood"),
                }
            }
        }
        reader
            .close()
            .await
            .map_err(WorkerError::client(failed()))?;
        Ok((Self { producer }, records.into_values().collect()))
    }

    /// Durable when it answers.
    pub(crate) async fn put(&self, id: &ComponentId, record: &Record) -> Result<(), WorkerError> {
        let bytes = serde_json::to_vec(record)
            .map_err(|error| WorkerError::Invalid(vec![error.to_string()]))?;
        self.send(Message::new(bytes).key(key(id))).await
    }

    pub(crate) async fn remove(&self, id: &ComponentId) -> Result<(), WorkerError> {
        self.send(Message::tombstone().key(key(id))).await
    }

    async fn send(&self, message: Message) -> Result<(), WorkerError> {
        let sent = self.producer.send(message).await;
        sent.map(|_| ())
            .map_err(WorkerError::client("writing the catalogue"))
    }
}
