//! A consumer of a subscription: who it is, where its messages go, and its figures.

use std::cell::Cell;
use std::sync::Arc;

use crate::dispatcher::ConsumerKey;
use crate::peer::Peer;

pub(crate) struct Consumer {
    pub(crate) key: ConsumerKey,
    /// The id that its connection knows it by.
    pub(crate) id: u64,
    pub(crate) name: Arc<str>,
    pub(crate) peer: Arc<Peer>,
    /// Present where the client counts its reconnects and redeliveries.
    pub(crate) epoch: Option<u64>,
    pub(crate) metadata: Vec<(String, String)>,
    pub(crate) connected_since_ms: u64,
    pub(crate) read_position_when_joining: geminga_model::Position,
    pub(crate) end_told: bool,
    pub(crate) counters: Cell<ConsumerCounters>,
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct ConsumerCounters {
    pub(crate) messages_out: u64,
    pub(crate) bytes_out: u64,
    pub(crate) entries_out: u64,
    pub(crate) redelivered: u64,
    pub(crate) acked: u64,
    pub(crate) last_flow_ms: u64,
    pub(crate) last_consumed_ms: u64,
    pub(crate) last_acked_ms: u64,
}

/// What a SUBSCRIBE asks for, checked as far as it can be without the topic.
#[derive(Clone)]
pub(crate) struct NewConsumer {
    pub(crate) key: ConsumerKey,
    pub(crate) id: u64,
    pub(crate) name: Arc<str>,
    pub(crate) peer: Arc<Peer>,
    pub(crate) priority: i32,
    pub(crate) epoch: Option<u64>,
    pub(crate) metadata: Vec<(String, String)>,
    pub(crate) kind: crate::config::SubscriptionType,
    pub(crate) key_shared: KeySharedPolicy,
    pub(crate) ranges: Vec<(i32, i32)>,
    pub(crate) read_compacted: bool,
}

/// What all consumers of a Key_Shared subscription must agree on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct KeySharedPolicy {
    pub(crate) sticky: bool,
    pub(crate) allow_out_of_order: bool,
}
