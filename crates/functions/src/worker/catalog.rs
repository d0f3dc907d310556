//! The catalogue: which components there are, on a topic. The newest record of a key counts; a
//! record without a value removes it.

use std::collections::{BTreeMap, BTreeSet};

use geminga_client::{Batching, Client, Message, ReceivedMessage};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::changelog::Changelog;
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

/// The records by key, and the topic that remembers them.
pub(crate) struct Catalog {
    changelog: Changelog,
    living: Mutex<BTreeMap<String, Record>>,
    /// One record at a time, so that the topic has the order of the calls.
    writing: tokio::sync::Mutex<()>,
}

fn key(id: &ComponentId) -> String {
    id.to_string()
}

fn record_of(key: &str, record: &Record) -> Result<Message, WorkerError> {
    let bytes = serde_json::to_vec(record)
        .map_err(|error| WorkerError::Invalid(vec![error.to_string()]))?;
    Ok(Message::new(bytes).key(key))
}

impl Catalog {
    /// Reads the topic; after `records_max` records it is rewritten.
    pub(crate) async fn open(
        client: &Client,
        topic: &str,
        records_max: u64,
    ) -> Result<(Self, Vec<Record>), WorkerError> {
        let mut living: BTreeMap<String, Record> = BTreeMap::new();
        let take = |message: ReceivedMessage| {
            let Some(key) = message.key.clone() else {
                return;
            };
            if message.null_value {
                living.remove(&key);
                return;
            }
            match serde_json::from_slice(&message.payload) {
                Ok(record) => drop(living.insert(key, record)),
                // Another worker's record, such as Pulsar's own: not ours to run.
                Err(error) => tracing::warn!(key, %error, "record not understood"),
            }
        };
        let changelog = Changelog::open(client, topic, Batching::off(), records_max, take)
            .await
            .map_err(WorkerError::client(format!("catalogue `{topic}`")))?;
        let records = living.values().cloned().collect();
        let catalog = Self {
            changelog,
            living: Mutex::new(living),
            writing: tokio::sync::Mutex::new(()),
        };
        Ok((catalog, records))
    }

    /// Durable when it answers.
    pub(crate) async fn put(&self, id: &ComponentId, record: &Record) -> Result<(), WorkerError> {
        let _in_order = self.writing.lock().await;
        self.send(record_of(&key(id), record)?).await?;
        self.living.lock().insert(key(id), record.clone());
        self.rewrite_when_due().await;
        Ok(())
    }

    pub(crate) async fn remove(&self, id: &ComponentId) -> Result<(), WorkerError> {
        let _in_order = self.writing.lock().await;
        self.send(Message::tombstone().key(key(id))).await?;
        self.living.lock().remove(&key(id));
        self.rewrite_when_due().await;
        Ok(())
    }

    async fn send(&self, message: Message) -> Result<(), WorkerError> {
        let sent = async { self.changelog.enqueue(message).await?.await };
        sent.await
            .map(|_| ())
            .map_err(WorkerError::client("writing the catalogue"))
    }

    async fn rewrite_when_due(&self) {
        let living = self.living.lock().clone();
        if !self.changelog.begin_rewriting(living.len()) {
            return;
        }
        let rewritten = async {
            let place = self.changelog.place().await?;
            for (key, record) in &living {
                // What was written once can be written again.
                if let Ok(message) = record_of(key, record) {
                    self.changelog.enqueue(message).await?.await?;
                }
            }
            Ok(place)
        };
        if let Err(error) = self.changelog.end_rewriting(rewritten.await).await {
            tracing::warn!(%error, "catalogue not rewritten");
        }
    }
}
