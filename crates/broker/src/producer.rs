//! A producer attached to a topic, and what it has in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::peer::Peer;
use crate::topic::nonpersistent::Rate;

/// How a producer wants to share the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AccessMode {
    Shared,
    Exclusive,
    ExclusiveWithFencing,
    WaitForExclusive,
}

impl AccessMode {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            AccessMode::Shared => "Shared",
            AccessMode::Exclusive => "Exclusive",
            AccessMode::ExclusiveWithFencing => "ExclusiveWithFencing",
            AccessMode::WaitForExclusive => "WaitForExclusive",
        }
    }

    pub(crate) fn is_exclusive(self) -> bool {
        self != AccessMode::Shared
    }
}

/// Whose messages a producer brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Client,
    /// Another cluster's. With `by_source` repeats are told by their place there.
    Replicator {
        by_source: bool,
    },
}

pub(crate) struct Producer {
    /// Never reused; tells a producer from its successor of the same name.
    pub(crate) key: u64,
    pub(crate) id: u64,
    pub(crate) name: Arc<str>,
    pub(crate) peer: Arc<Peer>,
    pub(crate) epoch: u64,
    pub(crate) access: AccessMode,
    pub(crate) encrypted: bool,
    pub(crate) origin: Origin,
    pub(crate) schema_version: Option<u64>,
    pub(crate) metadata: Vec<(String, String)>,
    pub(crate) connected_since_ms: u64,
    pub(crate) messages_in: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    /// Messages to a non-persistent topic that a consumer did not get.
    pub(crate) dropped: Mutex<Rate>,
}

impl Producer {
    /// Whether it takes over from `other`: the same producer of the same client, reconnected.
    pub(crate) fn succeeds(&self, other: &Producer) -> bool {
        self.name == other.name
            && self.id == other.id
            && Arc::ptr_eq(&self.peer, &other.peer)
            && self.epoch > other.epoch
    }

    pub(crate) fn is_replicator(&self) -> bool {
        self.origin != Origin::Client
    }

    pub(crate) fn count(&self, messages: u64, bytes: u64) {
        self.messages_in.fetch_add(messages, Ordering::Relaxed);
        self.bytes_in.fetch_add(bytes, Ordering::Relaxed);
    }
}
