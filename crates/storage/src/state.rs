//! The state machine of the embedded store: metadata and cursors, rebuilt from the state log.
//!
//! Every record begins with its kind. Records are appended while the lock of what they change is
//! held, so that the log's order is the order of the changes. Replaying records onto a snapshot
//! that has them already gives the same state: metadata records set whole values in order, and a
//! cursor's records carry its epoch, within which acks only add up.

use crate::codec::{Reader, put_bytes, put_u64};
use crate::error::StoreError;
use crate::ledger::StateMachine;
use crate::managed::cursor_table::CursorTable;
use crate::metadata::Op;
use crate::metadata::tree::Tree;
use parking_lot::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The first byte of a record. Persisted: never change a number.
pub(crate) mod kind {
    /// version, then per op: 0 key value | 1 key
    pub(crate) const METADATA_BATCH: u8 = 1;
    /// Nodes of a snapshot: key, value, version, created.
    pub(crate) const METADATA_NODES: u8 = 2;
    /// The highest version given out.
    pub(crate) const REVISION: u8 = 3;
    /// topic, cursor, epoch, name, properties, state: all of a cursor.
    pub(crate) const CURSOR: u8 = 4;
    /// topic, cursor, epoch, state: what was acked in addition.
    pub(crate) const ACKS: u8 = 5;
    /// topic, cursor
    pub(crate) const CURSOR_DELETED: u8 = 6;
    /// topic: all of its cursors are gone
    pub(crate) const TOPIC_DELETED: u8 = 7;
    /// topic, cursor, properties
    pub(crate) const PROPERTIES: u8 = 8;
}

/// Nodes in one record of a snapshot.
const NODES_A_RECORD: usize = 256;

/// All small state of one embedded store. Make one, open the store with it, then build
/// `EmbeddedMetadata` and `ManagedLedgers` on it.
#[derive(Default)]
pub struct State {
    pub(crate) tree: RwLock<Tree>,
    pub(crate) cursors: CursorTable,
    revision: AtomicU64,
}

impl State {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A number higher than any before, also after a restart once a record carries it.
    pub(crate) fn next_revision(&self) -> u64 {
        self.revision.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn saw_revision(&self, revision: u64) {
        self.revision.fetch_max(revision, Ordering::Relaxed);
    }

    fn apply_batch(&self, reader: &mut Reader<'_>) -> Result<(), StoreError> {
        let version = reader.u64()?;
        self.saw_revision(version);
        let mut tree = self.tree.write();
        while !reader.is_empty() {
            match reader.u8()? {
                0 => {
                    let key = reader.text()?;
                    tree.put(key, reader.bytes()?, version);
                }
                1 => {
                    tree.delete(reader.text()?);
                }
                _ => return Err(StoreError::bad_record("an unknown metadata operation")),
            }
        }
        Ok(())
    }
}

/// Spells a batch.
pub(crate) fn encode_batch(version: u64, ops: &[Op]) -> Vec<u8> {
    let mut out = vec![kind::METADATA_BATCH];
    put_u64(&mut out, version);
    for op in ops {
        match op {
            Op::Put { key, value, .. } => {
                out.push(0);
                put_bytes(&mut out, key.as_bytes());
                put_bytes(&mut out, value);
            }
            Op::Delete { key, .. } => {
                out.push(1);
                put_bytes(&mut out, key.as_bytes());
            }
        }
    }
    out
}

impl StateMachine for State {
    fn apply(&self, record: &[u8]) -> Result<(), StoreError> {
        let mut reader = Reader::new(record);
        match reader.u8()? {
            kind::METADATA_BATCH => self.apply_batch(&mut reader),
            kind::METADATA_NODES => {
                let highest = self.tree.write().decode_chunk(&mut reader)?;
                self.saw_revision(highest);
                Ok(())
            }
            kind::REVISION => {
                self.saw_revision(reader.u64()?);
                Ok(())
            }
            kind => {
                let highest = self.cursors.apply(kind, &mut reader)?;
                self.saw_revision(highest);
                Ok(())
            }
        }
    }

    fn snapshot(&self, out: &mut dyn FnMut(&[u8])) {
        let mut record = vec![kind::REVISION];
        put_u64(&mut record, self.revision.load(Ordering::Relaxed));
        out(&record);
        let mut after: Option<String> = None;
        loop {
            record.clear();
            record.push(kind::METADATA_NODES);
            let last = self
                .tree
                .read()
                .encode_chunk(after.as_deref(), NODES_A_RECORD, &mut record);
            if last.is_none() {
                break;
            }
            after = last;
            out(&record);
        }
        self.cursors.snapshot(out);
    }
}
