//! The metadata store of one machine: a map in memory, made durable by the state log.
//!
//! A change is one record. It takes effect and its record is queued under one short lock; callers
//! then wait for the log together, so many concurrent changes share one sync.

use super::{
    BATCH_OPS_MAX, Change, Committed, Expected, KEY_BYTES_MAX, MetadataStore, Op, VALUE_BYTES_MAX,
    Version, Versioned, Watcher,
};
use crate::error::MetadataError;
use crate::ledger::{BoxFuture, StateLog, Ticket};
use crate::state::{State, encode_batch};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::broadcast;

/// Changes that a watcher may be behind.
const WATCH_BACKLOG_MAX: usize = 4096;
/// Keys and values of one batch, together.
const BATCH_BYTES_MAX: usize = 2 << 20;

pub struct EmbeddedMetadata {
    state: Arc<State>,
    log: Arc<dyn StateLog>,
    changes: broadcast::Sender<Change>,
}

impl EmbeddedMetadata {
    /// `state` is the machine that `log`'s store was opened with.
    #[must_use]
    pub fn new(state: Arc<State>, log: Arc<dyn StateLog>) -> Self {
        let (changes, _) = broadcast::channel(WATCH_BACKLOG_MAX);
        Self {
            state,
            log,
            changes,
        }
    }

    fn apply(&self, ops: &[Op]) -> Result<(Version, Ticket), MetadataError> {
        check_limits(ops)?;
        let mut tree = self.state.tree.write();
        for op in ops {
            tree.check(op)?;
        }
        let version = self.state.next_revision();
        let ticket = self.log.append(encode_batch(version, ops).into())?;
        for op in ops {
            let (deleted, changed) = match op {
                Op::Put { key, value, .. } => {
                    tree.put(key, value, version);
                    (false, true)
                }
                Op::Delete { key, .. } => (true, tree.delete(key)),
            };
            // Sent under the lock, so that watchers see the order of the changes.
            if changed && self.changes.receiver_count() > 0 {
                let _ = self.changes.send(Change {
                    key: op.key().clone(),
                    version: Version(version),
                    deleted,
                });
            }
        }
        Ok((Version(version), ticket))
    }
}

fn check_limits(ops: &[Op]) -> Result<(), MetadataError> {
    let too_large = |what| Err(MetadataError::TooLarge { what });
    if ops.len() > BATCH_OPS_MAX {
        return too_large("operations of a batch");
    }
    let mut bytes = 0;
    for op in ops {
        if op.key().len() > KEY_BYTES_MAX || !op.key().starts_with('/') {
            return too_large("key");
        }
        if let Op::Put { value, .. } = op {
            if value.len() > VALUE_BYTES_MAX {
                return too_large("value");
            }
            bytes += value.len();
        }
        bytes += op.key().len();
    }
    if bytes > BATCH_BYTES_MAX {
        return too_large("bytes of a batch");
    }
    Ok(())
}

impl MetadataStore for EmbeddedMetadata {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Versioned>, MetadataError>> {
        let found = self.state.tree.read().get(key);
        Box::pin(std::future::ready(Ok(found)))
    }

    fn put(&self, key: &str, value: Bytes, expected: Expected) -> Committed<'_> {
        self.commit(vec![Op::Put {
            key: key.into(),
            value,
            expected,
        }])
    }

    fn delete(&self, key: &str, expected: Expected) -> Committed<'_> {
        self.commit(vec![Op::Delete {
            key: key.into(),
            expected,
        }])
    }

    fn commit(&self, ops: Vec<Op>) -> Committed<'_> {
        let applied = self.apply(&ops);
        Box::pin(async move {
            let (version, ticket) = applied?;
            self.log.durable(ticket).await?;
            Ok(version)
        })
    }

    fn children(&self, path: &str) -> BoxFuture<'_, Result<Vec<String>, MetadataError>> {
        let names = self.state.tree.read().children(path);
        Box::pin(std::future::ready(Ok(names)))
    }

    fn scan(
        &self,
        path: &str,
        after: Option<&str>,
        count_max: usize,
    ) -> BoxFuture<'_, Result<Vec<(String, Versioned)>, MetadataError>> {
        let found = self.state.tree.read().scan(path, after, count_max);
        Box::pin(std::future::ready(Ok(found)))
    }

    fn watch(&self, prefix: &str) -> Watcher {
        Watcher {
            prefix: prefix.into(),
            changes: self.changes.subscribe(),
        }
    }
}
