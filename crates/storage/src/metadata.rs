//! The contract of a metadata store: small versioned values under path-like keys.
//!
//! Keys are absolute paths (`/managed-ledgers/public/default/persistent/t`). A change takes its
//! place in the order when the method is *called*; the future says when it is durable. So callers
//! may fire many changes and wait for them together, and dropping a future does not undo a change.
//! A reader may see a change before it is durable; whatever is appended to the same log afterwards
//! becomes durable after it.

#[cfg(test)]
pub(crate) mod contract;
pub mod embedded;
pub(crate) mod tree;

pub use embedded::EmbeddedMetadata;

use crate::error::MetadataError;
use crate::ledger::BoxFuture;
use bytes::Bytes;
use std::sync::Arc;

pub const KEY_BYTES_MAX: usize = 4 << 10;
pub const VALUE_BYTES_MAX: usize = 1 << 20;
pub const BATCH_OPS_MAX: usize = 1024;

/// Rises with every change of the whole store, so a key that was deleted and made again never
/// returns to an old version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    pub value: Bytes,
    pub version: Version,
    /// The version at which the key was made. Unique in the store, so it can name the thing.
    pub created: Version,
}

/// What a change asks of the key's present state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    Any,
    Absent,
    Is(Version),
}

/// One change of an atomic batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Put {
        key: Arc<str>,
        value: Bytes,
        expected: Expected,
    },
    /// Deleting an absent key with `Any` succeeds.
    Delete { key: Arc<str>, expected: Expected },
}

impl Op {
    #[must_use]
    pub fn key(&self) -> &Arc<str> {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }
}

/// Resolves when a change is durable.
pub type Committed<'a> = BoxFuture<'a, Result<Version, MetadataError>>;

pub trait MetadataStore: Send + Sync + 'static {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Versioned>, MetadataError>>;

    /// Sets the value and returns the key's new version.
    fn put(&self, key: &str, value: Bytes, expected: Expected) -> Committed<'_>;

    /// Deletes the key; deleting an absent one with `Any` succeeds.
    fn delete(&self, key: &str, expected: Expected) -> Committed<'_>;

    /// All or nothing, with one version for all; checks see the state before the batch.
    /// Each key may occur once.
    fn commit(&self, ops: Vec<Op>) -> Committed<'_>;

    /// Names of the direct children of `path`, sorted: for `/a` and keys `/a/b`, `/a/c/d`: `b`, `c`.
    fn children(&self, path: &str) -> BoxFuture<'_, Result<Vec<String>, MetadataError>>;

    /// All keys and values below `path`, sorted, after `after` if given, at most `count_max`.
    fn scan(
        &self,
        path: &str,
        after: Option<&str>,
        count_max: usize,
    ) -> BoxFuture<'_, Result<Vec<(String, Versioned)>, MetadataError>>;

    /// Changes of keys that start with `prefix`, from now on, in order.
    fn watch(&self, prefix: &str) -> Watcher;
}

/// A change that a watcher sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub key: Arc<str>,
    pub version: Version,
    /// True when the key is gone.
    pub deleted: bool,
}

/// Yields changes; bounded: one that falls too far behind gets `Lagged` once and must read again.
pub struct Watcher {
    pub(crate) prefix: Box<str>,
    pub(crate) changes: tokio::sync::broadcast::Receiver<Change>,
}

impl Watcher {
    pub async fn next(&mut self) -> Result<Change, MetadataError> {
        use tokio::sync::broadcast::error::RecvError;
        loop {
            match self.changes.recv().await {
                Ok(change) if change.key.starts_with(&*self.prefix) => return Ok(change),
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => return Err(MetadataError::Lagged),
                Err(RecvError::Closed) => {
                    return Err(crate::StoreError::stopped("the metadata store is closed").into());
                }
            }
        }
    }
}
