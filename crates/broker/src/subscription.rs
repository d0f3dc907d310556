//! A subscription: a cursor, its consumers and the dispatcher that serves them.
//!
//! Lives inside the topic's lock. It asks the dispatcher what it wants, reads that from the cache,
//! and queues what the dispatcher places; what is not in the cache it returns as a [`ReadPlan`] for
//! the topic's read task, of which there is one at most for each subscription.
//!
//! What must hold: `read` is behind everything that was offered to the dispatcher from the tail;
//! after a rewind entries below `acks_until` may be acked already, above it none is.

mod ack;
mod ahead;
pub(crate) mod deliver;
mod membership;
mod nonpersistent;
pub(crate) mod stats;
mod transaction;

use std::sync::Arc;

use geminga_model::Position;
use geminga_storage::managed::Cursor;
use tokio::sync::Notify;

use crate::config::SubscriptionType;
use crate::consumer::{Consumer, KeySharedPolicy};
use crate::dispatcher::ConsumerKey;
use crate::dispatcher::shared::Shared;
use crate::dispatcher::single_active::SingleActive;
use crate::topic::nonpersistent::Rate;
use crate::transaction::pending_ack::PendingAcks;

pub(crate) use ack::AckRequest;
use ahead::Ahead;
pub(crate) use membership::JoinError;

pub(crate) enum Dispatch {
    /// No consumer is connected; the next one's type decides.
    None,
    Single(SingleActive),
    Many(Box<Shared>),
}

impl Dispatch {
    /// The consumer's connection should get no more for now.
    fn stop(&mut self, key: ConsumerKey) {
        match self {
            Dispatch::None => {}
            Dispatch::Single(single) => {
                if let Some(flow) = single.flow_mut(key) {
                    flow.writable = false;
                }
            }
            Dispatch::Many(many) => many.set_writable(key, false),
        }
    }
}

pub(crate) struct Subscription {
    pub(crate) id: u32,
    pub(crate) name: Arc<str>,
    pub(crate) cursor: Arc<Cursor>,
    pub(crate) durable: bool,
    /// The type of the consumers, or of the last ones.
    pub(crate) kind: Option<SubscriptionType>,
    key_shared: KeySharedPolicy,
    dispatch: Dispatch,
    /// By key, which is nearly their order of arrival.
    consumers: Vec<Consumer>,
    /// The next entry to read.
    read: Position,
    /// Entries before this may have been acked already.
    acks_until: Position,
    ahead: Ahead,
    /// Its consumers read the compacted view first.
    read_compacted: bool,
    /// The place that a new or moved subscription asked for, and the one in the log that it got.
    compacted_from: Option<(Position, Position)>,
    /// Nothing was read since the last rewind.
    rewound: bool,
    /// A read task runs.
    reading: bool,
    /// Nothing of what was just read for the replay queue could be placed: leave it alone once.
    replay_stuck: bool,
    /// Rises with each rewind: what was read for an older one is dropped.
    generation: u64,
    /// None as long as no transaction acks here.
    pending_acks: Option<Box<PendingAcks>>,
    /// A Failover subscription waits before its new active consumer gets messages.
    held: bool,
    /// Present during a seek: who subscribes meanwhile waits for it.
    pub(crate) fence: Option<Arc<Notify>>,
    /// Messages per entry, averaged: how many entries fill the permits.
    batch_average: f32,
    /// When the timer that is set for delayed entries will fire.
    timer_ms: Option<u64>,
    pub(crate) counters: Counters,
    /// Of a subscription that is kept alike in other clusters.
    pub(crate) snapshots: crate::replication::snapshots::Ahead,
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counters {
    pub(crate) messages_out: u64,
    pub(crate) bytes_out: u64,
    pub(crate) redelivered: u64,
    pub(crate) acked: u64,
    pub(crate) expired: u64,
    pub(crate) last_expire_ms: u64,
    pub(crate) last_flow_ms: u64,
    pub(crate) last_consumed_ms: u64,
    pub(crate) last_acked_ms: u64,
    pub(crate) last_mark_delete_ms: u64,
    pub(crate) markers_skipped: u64,
    /// Messages of a non-persistent topic that no consumer could take.
    pub(crate) dropped: Rate,
}

impl Subscription {
    /// `last` is the topic's last entry: later ones cannot have been acked yet.
    pub(crate) fn new(
        id: u32,
        name: Arc<str>,
        cursor: Arc<Cursor>,
        durable: bool,
        last: Position,
    ) -> Subscription {
        let read = cursor.mark_delete().next_in_ledger();
        Subscription {
            id,
            name,
            cursor,
            durable,
            kind: None,
            key_shared: KeySharedPolicy::default(),
            dispatch: Dispatch::None,
            consumers: Vec::new(),
            read,
            acks_until: last.next_in_ledger(),
            ahead: Ahead::default(),
            read_compacted: false,
            compacted_from: None,
            rewound: true,
            reading: false,
            replay_stuck: false,
            generation: 0,
            pending_acks: None,
            held: false,
            fence: None,
            batch_average: 1.0,
            timer_ms: None,
            counters: Counters::default(),
            snapshots: Default::default(),
        }
    }

    pub(crate) fn consumers(&self) -> &[Consumer] {
        &self.consumers
    }

    pub(crate) fn consumer(&self, key: ConsumerKey) -> Option<&Consumer> {
        self.consumers.get(place_of(&self.consumers, key)?)
    }

    pub(crate) fn consumer_mut(&mut self, key: ConsumerKey) -> Option<&mut Consumer> {
        let at = place_of(&self.consumers, key)?;
        self.consumers.get_mut(at)
    }

    pub(crate) fn reads_compacted(&self) -> bool {
        self.read_compacted
    }

    /// The place that was asked for; the cursor stands where the log begins at least.
    pub(crate) fn begin_at(&mut self, asked: Position, stands: Position) {
        self.compacted_from = Some((asked, stands));
    }

    pub(crate) fn read_position(&self) -> Position {
        self.read
    }

    /// Adds permits; false where the consumer is not (or no longer) here.
    pub(crate) fn add_permits(&mut self, key: ConsumerKey, messages: u32, now_ms: u64) -> bool {
        let Some(consumer) = self.consumer_mut(key) else {
            return false;
        };
        consumer.counters.get_mut().last_flow_ms = now_ms;
        self.counters.last_flow_ms = now_ms;
        match &mut self.dispatch {
            Dispatch::None => {}
            Dispatch::Single(single) => {
                if let Some(flow) = single.flow_mut(key) {
                    flow.add_permits(messages);
                }
            }
            Dispatch::Many(many) => many.add_permits(key, messages),
        }
        true
    }

    /// Starts again after the mark-delete position: what is unacked is delivered once more.
    pub(crate) fn rewind(&mut self) {
        self.generation += 1;
        self.ahead.clear();
        self.acks_until = self.acks_until.max(self.read);
        self.read = self.cursor.mark_delete().next_in_ledger();
        self.rewound = true;
        if let Dispatch::Many(many) = &mut self.dispatch {
            many.reset();
        }
        if let Some(pending) = &mut self.pending_acks {
            pending.unpark_all();
        }
    }

    /// The cursor was moved (seek, reset, skip): nothing that was known of its entries holds.
    pub(crate) fn moved(&mut self, last: Position) {
        self.acks_until = last.next_in_ledger();
        self.rewind();
    }

    /// Everything up to `through` was acked by us (expiry, skip).
    pub(crate) fn skipped_through(&mut self, through: Position) {
        let next = through.next_in_ledger();
        self.acks_until = self.acks_until.max(next);
        if self.read < next {
            self.generation += 1;
            self.read = next;
        }
        if let Dispatch::Many(many) = &mut self.dispatch {
            many.ack_through(through);
        }
    }

    /// The delay of a failover is over.
    pub(crate) fn release_hold(&mut self) {
        if self.held {
            self.held = false;
            self.rewind();
        }
    }

    /// A timer fired: moves due entries to the replay queue.
    pub(crate) fn wake_due(&mut self, due_before_ms: u64) {
        self.timer_ms = None;
        if let Dispatch::Many(many) = &mut self.dispatch {
            many.wake_due(due_before_ms);
        }
    }

    /// When the next delayed entry is due, if no timer is set for it yet.
    pub(crate) fn arm_timer(&mut self) -> Option<u64> {
        let Dispatch::Many(many) = &self.dispatch else {
            return None;
        };
        let next = many.next_due_ms()?;
        if self.timer_ms.is_some_and(|at| at <= next) {
            return None;
        }
        self.timer_ms = Some(next);
        Some(next)
    }
}

fn place_of(consumers: &[Consumer], key: ConsumerKey) -> Option<usize> {
    consumers
        .binary_search_by_key(&key, |consumer| consumer.key)
        .ok()
}
