//! A function's state: a map in memory, and a topic that remembers every change.
//!
//! One value is shared by all instances of a function in this worker. A change made by a message is
//! applied when the message is processed and recorded before the message is acknowledged, so that a
//! worker that dies finds, by reading the topic, at least what its acknowledged messages did. A
//! record holds the value that a change led to, not the change, so the topic can be rewritten; and so a worker
//! that was replaced while it stood still must not write: who writes first from now on fences the one before.
//!
//! The state of an effectively-once instance is its own ([`FunctionState::open_alone`]). Its records
//! are part of transactions, and hold the value after the messages released so far: the function may
//! have seen later ones, whose changes belong to a later transaction. A map beside the first one
//! knows these values.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use geminga_client::{
    Batching, Client, Error, Message, MessageId, Receipt, ServerError, Transaction,
};
use geminga_stdx::Tasks;
use parking_lot::{Mutex, RwLock};

use crate::changelog::{Changelog, Made, Writer, is_fenced};

use crate::runtime::{StateChange, incremented};

/// The property that marks a value as a counter.
const COUNTER: &str = "geminga.counter";
/// The property that tells how often the value was changed.
const VERSION: &str = "geminga.version";
/// Values written in one turn of a rewriting: so long do other changes wait.
const REWRITE_AT_ONCE: usize = 256;
/// How long a transaction that writes all values may take: a successor waits for 90 s at most.
const REWRITE_MIN: Duration = Duration::from_secs(10);
const REWRITE_MAX: Duration = Duration::from_secs(60);

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
    changelog: Option<Changelog>,
    /// Held while values are read and enqueued, so that they are recorded in the order they took.
    recording: tokio::sync::Mutex<()>,
    /// Held while the topic is rewritten.
    rewriting: tokio::sync::Mutex<()>,
    /// Somebody else may change the state: nothing more may be written.
    closed: AtomicBool,
    /// Read while a change from outside is under way: it is whole before somebody else reads the state.
    outside: tokio::sync::RwLock<()>,
    tasks: Tasks,
    /// Of an effectively-once instance.
    alone: Option<Alone>,
}

/// What state has when one instance holds it alone.
struct Alone {
    /// The values after the messages released so far.
    released: Mutex<BTreeMap<String, Entry>>,
    /// Other instances of the function have state of their own: changes would be of no use.
    has_peers: bool,
}

/// Why a change from outside did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unchanged {
    /// Another crew has the state now.
    #[error("the function is being changed")]
    Closed,
    #[error("{0}")]
    Failed(String),
}

impl From<Error> for Unchanged {
    fn from(error: Error) -> Self {
        match error.server_error() {
            // One that holds it alone is about to run.
            Some(ServerError::ProducerBusy | ServerError::ProducerFenced) => Self::Closed,
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// How an instance takes its state for itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Taking {
    /// Waits for the present holder instead of fencing it.
    pub(crate) in_line: bool,
    /// There are other instances of the function.
    pub(crate) has_peers: bool,
}

/// The topic that remembers the state of `tenant/namespace/name`.
pub(crate) fn topic(tenant: &str, namespace: &str, name: &str) -> String {
    format!("persistent://{tenant}/{namespace}/{name}-state-changelog")
}

impl FunctionState {
    /// Reads the topic; after `records_max` records the topic is rewritten.
    pub(crate) async fn open(
        client: &Client,
        topic: &str,
        records_max: u64,
        writer: Writer,
        tasks: &Tasks,
    ) -> Result<Self, geminga_client::Error> {
        let mut map = BTreeMap::new();
        let take = |message| take_in(&mut map, message);
        let (batching, how) = (Batching::default(), (Made::ByFirstRecord, writer));
        let opening = Changelog::open(client, topic, batching, records_max, how, take);
        let changelog = opening.await?;
        Ok(Self {
            map: RwLock::new(map),
            changelog: Some(changelog),
            ..Self::in_memory(tasks)
        })
    }

    /// Takes the topic away from whoever has it, and reads all that was committed.
    pub(crate) async fn open_alone(
        client: &Client,
        topic: &str,
        records_max: u64,
        taking: Taking,
        tasks: &Tasks,
    ) -> Result<Self, geminga_client::Error> {
        let mut map = BTreeMap::new();
        let take = |message| take_in(&mut map, message);
        let batching = Batching::default();
        let opening =
            Changelog::open_alone(client, topic, batching, records_max, taking.in_line, take);
        let changelog = opening.await?;
        Ok(Self {
            alone: Some(Alone {
                released: Mutex::new(map.clone()),
                has_peers: taking.has_peers,
            }),
            map: RwLock::new(map),
            changelog: Some(changelog),
            ..Self::in_memory(tasks)
        })
    }

    /// State without a topic, for runs without a broker.
    pub(crate) fn in_memory(tasks: &Tasks) -> Self {
        Self {
            map: RwLock::default(),
            changelog: None,
            recording: tokio::sync::Mutex::new(()),
            rewriting: tokio::sync::Mutex::new(()),
            closed: AtomicBool::new(false),
            outside: tokio::sync::RwLock::default(),
            tasks: tasks.clone(),
            alone: None,
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<Entry> {
        self.map.read().get(key).cloned()
    }

    /// Every key and its value.
    pub(crate) fn all(&self) -> Vec<(String, Entry)> {
        let map = self.map.read();
        map.iter()
            .map(|(key, e)| (key.clone(), e.clone()))
            .collect()
    }

    pub(crate) fn apply(&self, changes: &[StateChange]) {
        let mut map = self.map.write();
        for change in changes {
            apply(&mut map, change);
        }
    }

    /// Puts the values that `changes` led to on their way to the topic.
    pub(crate) async fn record(
        self: &Arc<Self>,
        changes: &[StateChange],
    ) -> Result<Vec<Receipt>, Error> {
        let Some(changelog) = &self.changelog else {
            return Ok(Vec::new());
        };
        let in_order = self.recording.lock().await;
        let mut keys: Vec<&str> = changes.iter().map(StateChange::key).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut receipts = Vec::with_capacity(keys.len());
        for key in keys {
            let record = match self.get(key) {
                None => Message::tombstone().key(key),
                Some(entry) => record_of(key, entry),
            };
            receipts.push(changelog.enqueue(record).await?);
        }
        drop(in_order);
        let living = self.map.read().len();
        if changelog.begin_rewriting(living) {
            let state = self.clone();
            self.tasks.spawn_cancellable("state changelog", async move {
                let _one = state.rewriting.lock().await;
                if let Some(changelog) = &state.changelog {
                    let place = state.rewrite(changelog).await;
                    if let Err(error) = changelog.end_rewriting(place).await {
                        // The old records are still there, and the next rewriting tries again.
                        tracing::warn!(%error, "state changelog not rewritten");
                    }
                }
            });
        }
        Ok(receipts)
    }

    /// Ends what is written in the background; answers when nothing more is.
    pub(crate) async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let _none = self.outside.write().await;
        let _ended = self.rewriting.lock().await;
    }

    /// Whether somebody else holds the state now.
    pub(crate) fn is_fenced(&self) -> bool {
        self.changelog.as_ref().is_some_and(Changelog::is_lost)
    }

    /// Remembers an error that says so, and gives its text.
    pub(crate) fn note(&self, error: &Error) -> String {
        match &self.changelog {
            Some(changelog) if is_fenced(error) => {
                changelog.note(error);
                "another worker runs this instance now".to_owned()
            }
            _ => error.to_string(),
        }
    }

    /// Puts the values that a released message's `changes` led to on their way, in its transaction.
    pub(crate) async fn record_in(
        &self,
        txn: &Transaction,
        changes: &[StateChange],
    ) -> Result<(), String> {
        let (Some(changelog), Some(alone)) = (&self.changelog, &self.alone) else {
            return Err("state that is not held alone can be in no transaction".to_owned());
        };
        if alone.has_peers {
            return Err(
                "an EFFECTIVELY_ONCE function that keeps state needs `parallelism: 1`".to_owned(),
            );
        }
        let _in_order = self.recording.lock().await;
        let mut keys: Vec<&str> = changes.iter().map(StateChange::key).collect();
        keys.sort_unstable();
        keys.dedup();
        let records: Vec<Message> = {
            let mut released = alone.released.lock();
            for change in changes {
                apply(&mut released, change);
            }
            let record = |key: &str| match released.get(key) {
                None => Message::tombstone().key(key),
                Some(entry) => record_of(key, entry.clone()),
            };
            keys.into_iter().map(record).collect()
        };
        for record in records {
            // Its commit waits for it, and fails with it.
            let sent = changelog.enqueue_in(txn, record).await;
            drop(sent.map_err(|error| self.note(&error))?);
        }
        Ok(())
    }

    /// Takes back what messages changed that are not released.
    pub(crate) fn rewind(&self) {
        if let Some(alone) = &self.alone {
            let released = alone.released.lock().clone();
            *self.map.write() = released;
        }
    }

    /// Tells a successor of a transaction that has begun. The receipt says that it can know.
    pub(crate) async fn announce(&self, txn: &Transaction) -> Result<Option<Receipt>, String> {
        let Some(changelog) = &self.changelog else {
            return Ok(None);
        };
        let sent = changelog.announce(txn).await;
        sent.map(Some).map_err(|error| self.note(&error))
    }

    /// Puts a record into a transaction that has none, so that it can not be committed by one who
    /// does not hold the state any more.
    pub(crate) async fn touch(&self, txn: &Transaction) -> Result<(), String> {
        let Some(changelog) = &self.changelog else {
            return Ok(());
        };
        let record = Message::new(&b"held"[..]);
        let sent = changelog.enqueue_in(txn, record).await;
        sent.map(drop).map_err(|error| self.note(&error))
    }

    /// Whether the topic is to be written anew, by [`rewrite_alone`](Self::rewrite_alone).
    pub(crate) fn wants_rewriting(&self) -> bool {
        match (&self.changelog, &self.alone) {
            (Some(changelog), Some(alone)) => {
                changelog.wants_rewriting(alone.released.lock().len())
            }
            _ => false,
        }
    }

    /// Writes all values once more, as they are after the messages released so far, all of which must be
    /// committed. It is a transaction of its own: how long it takes grows with the state, and nobody's outputs
    /// wait for it. When it fails the old records are still there; an error says that they are
    /// somebody else's now.
    pub(crate) async fn rewrite_alone(&self, client: &Client) -> Result<(), String> {
        let (Some(changelog), Some(alone)) = (&self.changelog, &self.alone) else {
            return Ok(());
        };
        let living = alone.released.lock().len();
        if !changelog.begin_rewriting(living) {
            return Ok(());
        }
        let written = async {
            let in_order = self.recording.lock().await;
            let all: Vec<(String, Entry)> = {
                let released = alone.released.lock();
                let one = |(key, entry): (&String, &Entry)| (key.clone(), entry.clone());
                released.iter().map(one).collect()
            };
            let txn = client.transaction(time_for(&all)).await?;
            let place = async {
                // A successor aborts it then, instead of waiting for its time-out.
                changelog.announce(&txn).await?.await?;
                let records = all.into_iter().map(|(key, entry)| record_of(&key, entry));
                changelog.rewrite_in(&txn, records).await
            };
            let place = place.await;
            drop(in_order);
            match place {
                Ok(place) => {
                    txn.commit().await?;
                    place.await
                }
                Err(error) => {
                    // By its time-out, when this fails too.
                    _ = txn.abort().await;
                    Err(error)
                }
            }
        };
        let written = written.await;
        let Err(error) = changelog.end_rewriting(written).await else {
            return Ok(());
        };
        let why = self.note(&error);
        tracing::warn!(why, "state changelog not rewritten");
        match self.is_fenced() {
            true => Err(why),
            false => Ok(()),
        }
    }

    /// Writes every value once more. Changes go on meanwhile: what they record comes later and wins.
    async fn rewrite(&self, changelog: &Changelog) -> Result<MessageId, geminga_client::Error> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        let in_order = self.recording.lock().await;
        let place = changelog.place().await?;
        drop(in_order);
        let mut after: Option<String> = None;
        loop {
            if self.closed.load(Ordering::Acquire) {
                return Err(Error::Closed);
            }
            let in_order = self.recording.lock().await;
            let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let some: Vec<(String, Entry)> = {
                let map = self.map.read();
                let rest = map.range::<str, _>((from, Bound::Unbounded));
                rest.take(REWRITE_AT_ONCE)
                    .map(|(key, entry)| (key.clone(), entry.clone()))
                    .collect()
            };
            let Some((last, _)) = some.last() else {
                return Ok(place);
            };
            after = Some(last.clone());
            let mut receipts = Vec::with_capacity(some.len());
            for (key, entry) in some {
                receipts.push(changelog.enqueue(record_of(&key, entry)).await?);
            }
            drop(in_order);
            for receipt in receipts {
                receipt.await?;
            }
        }
    }

    /// A change from outside any message; durable when it resolves.
    pub(crate) async fn change(self: &Arc<Self>, change: StateChange) -> Result<(), Unchanged> {
        if let Some(why) = change.refusal() {
            return Err(Unchanged::Failed(why));
        }
        let _whole = self.outside.read().await;
        if self.closed.load(Ordering::Acquire) {
            return Err(Unchanged::Closed);
        }
        let changes = [change];
        self.apply(&changes);
        let receipts = match (&self.changelog, &self.alone) {
            (Some(changelog), Some(alone)) => {
                // In one turn: a message released in between must not get into this record.
                let _in_order = self.recording.lock().await;
                let key = changes[0].key();
                let value = {
                    let released = &mut *alone.released.lock();
                    changes.iter().for_each(|change| apply(released, change));
                    released.get(key).cloned()
                };
                let record = match value {
                    None => Message::tombstone().key(key),
                    Some(entry) => record_of(key, entry),
                };
                let sent = changelog.enqueue(record).await;
                vec![sent.map_err(|error| Unchanged::Failed(self.note(&error)))?]
            }
            _ => self.record(&changes).await?,
        };
        for receipt in receipts {
            receipt.await?;
        }
        Ok(())
    }
}

/// How long writing these may take, at a megabyte and ten thousand records a second, which is slow.
fn time_for(all: &[(String, Entry)]) -> Duration {
    let bytes: usize = all.iter().map(|(key, e)| key.len() + e.value.len()).sum();
    let ms = bytes / 1000 + all.len() / 10;
    let more = Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX));
    REWRITE_MIN.saturating_add(more).min(REWRITE_MAX)
}

/// Applies a record of the topic.
fn take_in(map: &mut BTreeMap<String, Entry>, message: geminga_client::ReceivedMessage) {
    let Some(key) = message.key.clone() else {
        return;
    };
    if message.null_value {
        map.remove(&key);
        return;
    }
    let counted = map.get(&key).map_or(0, |entry: &Entry| entry.version) + 1;
    let version = message.property(VERSION).and_then(|text| text.parse().ok());
    let entry = Entry {
        is_counter: message.property(COUNTER).is_some(),
        value: message.payload,
        version: version.unwrap_or(counted),
    };
    map.insert(key, entry);
}

fn record_of(key: &str, entry: Entry) -> Message {
    let record = Message::new(entry.value)
        .key(key)
        .property(VERSION, entry.version.to_string());
    if entry.is_counter {
        record.property(COUNTER, "1")
    } else {
        record
    }
}

fn apply(map: &mut BTreeMap<String, Entry>, change: &StateChange) {
    let key = change.key();
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
        let seconds = |count: usize| {
            let entry = map["n"].clone();
            time_for(&vec![("key".to_owned(), entry); count]).as_secs()
        };
        assert_eq!(
            [seconds(10), seconds(100_000), seconds(10_000_000)],
            [10, 21, 60]
        );
        assert_eq!((map["n"].is_counter, map["n"].version), (true, 2));
        assert!(!map["t"].is_counter && !map.contains_key("gone"));
    }
}
