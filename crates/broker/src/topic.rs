//! A loaded topic: its managed ledger, producers and subscriptions, under one lock.
//!
//! Entries are appended under the lock, so their order is that of the calls; the store tells what
//! is durable from its completion thread, and in that same call the receipts are queued and tailing
//! consumers served. Decisions are in `dispatcher` and `subscription`; this file holds the state.
//!
//! What must hold: no lock is held over an await; nothing here runs while the topic is idle.

pub(crate) mod compaction;
pub(crate) mod dedup;
pub(crate) mod dispatch;
pub(crate) mod inactive;
pub(crate) mod info;
pub(crate) mod load;
pub(crate) mod maintain;
pub(crate) mod nonpersistent;
pub(crate) mod policy;
pub(crate) mod producers;
pub(crate) mod publish;
mod quota;
pub(crate) mod seek;
mod shared_read;
pub(crate) mod stats;
pub(crate) mod subscribe;
mod throttle;
pub(crate) mod transaction;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::BytesMut;
use geminga_model::TopicName;
use geminga_storage::managed::ManagedLedger;
use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::broker::Core;
use crate::error::BrokerError;
use crate::policies::store::InForce;
use crate::producer::Producer;
use crate::replication::Replicator;
use crate::replication::snapshots::Snapshots;
use crate::subscription::Subscription;
use crate::transaction::buffer::Buffer;

use compaction::run::{CompactionState, CompactionStatus};
use compaction::view::View;
use dedup::Dedup;
use nonpersistent::Rate;
use producers::Access;
use publish::{Receipt, Run};
use shared_read::SharedRead;

pub(crate) struct Topic {
    pub(crate) name: TopicName,
    /// The name again, to be handed out without a copy.
    full_name: Arc<str>,
    pub(crate) ledger: Arc<ManagedLedger>,
    pub(crate) core: Arc<Core>,
    terminated: AtomicBool,
    pub(crate) in_force: RwLock<InForce>,
    shared_read: SharedRead,
    /// Held by whoever begins or ends replicators.
    pub(crate) replicating: tokio::sync::Mutex<()>,
    pub(crate) snapshots: Mutex<Snapshots>,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Open,
    /// Being unloaded or deleted: nobody may join any more.
    Closed,
}

pub(crate) struct State {
    pub(crate) life: Life,
    pub(crate) producers: HashMap<Arc<str>, Arc<Producer>>,
    pub(crate) access: Access,
    /// Appended and not yet durable, oldest first, and what their producers will be told.
    runs: VecDeque<Run>,
    receipts: VecDeque<Receipt>,
    /// Present where deduplication is on.
    pub(crate) dedup: Option<Box<Dedup>>,
    /// Where receipts are encoded.
    scratch: BytesMut,
    pub(crate) subscriptions: Vec<Subscription>,
    pub(crate) replicators: Vec<Arc<Replicator>>,
    /// Present while subscriptions are kept alike in other clusters.
    pub(crate) keeping_alike: Option<geminga_stdx::Tasks>,
    /// None as long as no transaction concerns the topic.
    pub(crate) transactions: Option<Box<Buffer>>,
    next_subscription: u32,
    /// When the last producer or consumer left.
    pub(crate) idle_since_ms: u64,
    /// The same, but not counting operators' questions.
    inactive_since_ms: u64,
    /// Bytes that may be published before the backlog quota is looked at.
    quota_left: Option<u64>,
    rates: Option<Box<throttle::Rates>>,
    pub(crate) counters: Counters,
    /// What readers of the compacted topic read first.
    pub(crate) view: Option<Arc<View>>,
    pub(crate) compaction: CompactionStatus,
    /// Messages of a non-persistent topic that a subscription did not get.
    pub(crate) dropped: Rate,
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counters {
    pub(crate) messages_in: u64,
    pub(crate) bytes_in: u64,
    pub(crate) entries_in: u64,
    pub(crate) chunks_in: u64,
    /// Of subscriptions that are gone.
    pub(crate) messages_out: u64,
    pub(crate) bytes_out: u64,
}

impl Topic {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(crate) fn is_terminated(&self) -> bool {
        self.terminated.load(Ordering::Acquire)
    }

    /// The lock, if the topic may still be used.
    pub(crate) fn open(&self) -> Result<MutexGuard<'_, State>, BrokerError> {
        let state = self.state.lock();
        match state.life {
            Life::Open => Ok(state),
            Life::Closed => Err(BrokerError::NotReady(format!(
                "Topic {} is temporarily unavailable",
                self.name
            ))),
        }
    }

    /// The partition number as MESSAGE carries it.
    pub(crate) fn partition(&self) -> Option<i32> {
        self.name.partition().map(|partition| partition as i32)
    }
}

impl State {
    pub(crate) fn subscription(&self, id: u32) -> Option<&Subscription> {
        self.subscriptions
            .iter()
            .find(|subscription| subscription.id == id)
    }

    pub(crate) fn subscription_mut(&mut self, id: u32) -> Option<&mut Subscription> {
        self.subscriptions
            .iter_mut()
            .find(|subscription| subscription.id == id)
    }

    pub(crate) fn subscription_named(&mut self, name: &str) -> Option<&mut Subscription> {
        self.subscriptions
            .iter_mut()
            .find(|subscription| &*subscription.name == name)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.producers.is_empty()
            && self.access.is_idle()
            && self.compaction.status != CompactionState::Running
            && self.runs.is_empty()
            && !self.replicators.iter().any(|r| r.is_behind())
            && self
                .subscriptions
                .iter()
                .all(|s| s.consumers().is_empty() && s.fence.is_none())
    }

    /// Whether nobody but other clusters uses the topic.
    pub(crate) fn is_for_replicators_only(&self) -> bool {
        self.producers.values().all(|p| p.is_replicator()) && self.consumers() == 0
    }

    pub(crate) fn consumers(&self) -> usize {
        self.subscriptions
            .iter()
            .map(|subscription| subscription.consumers().len())
            .sum()
    }

    fn touch_idle(&mut self, now_ms: u64) {
        if self.is_idle() {
            self.idle_since_ms = now_ms;
            self.inactive_since_ms = now_ms;
        }
    }
}
