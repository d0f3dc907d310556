//! Who gets which entry: pure decisions, one dispatcher per connected subscription.
//!
//! A dispatcher owns the consumers' permits, the entries that are out and unacked, and those waiting
//! to be sent again. It never reads, sends, sleeps or locks: `subscription` asks what it wants
//! ([`Want`]), reads those entries, and asks for a [`Verdict`] on each in order.
//!
//! What must hold: nothing is delivered to a consumer without permits; an entry is at one consumer
//! at a time until it is acked, redelivered or its consumer leaves; Key_Shared keeps the order per key.

pub(crate) mod delayed;
pub(crate) mod flow;
pub(crate) mod hash;
pub(crate) mod key_range;
pub(crate) mod key_shared;
mod pending;
pub(crate) mod replay;
pub(crate) mod round_robin;
pub(crate) mod shared;
pub(crate) mod single_active;

use geminga_model::Position;

pub(crate) use flow::{ConsumerKey, Flow};

/// What a dispatcher has to know of an entry to place it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) position: Position,
    /// Messages not yet acked in it: what it costs in permits.
    pub(crate) messages: u32,
    /// Sticky key hash; 0 where the dispatcher does not route by key.
    pub(crate) hash: u32,
    /// Milliseconds since 1970; 0 = deliver at once.
    pub(crate) deliver_at_ms: u64,
    pub(crate) chunk: Option<Chunk>,
}

/// A piece of a chunked message: all pieces of one `uuid` go to one consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) uuid: Box<str>,
    pub(crate) id: i32,
    pub(crate) last: bool,
}

/// What a dispatcher could place now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Want {
    Nothing,
    /// These entries again, in this order.
    Replay(Vec<Position>),
    /// Up to so many entries from the read position on.
    Tail(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Deliver {
        consumer: ConsumerKey,
        redelivery_count: u32,
    },
    /// Kept by the dispatcher (replay queue or delay heap); offered again when it asks.
    Later,
}

/// The limits of broker settings and policies that dispatch obeys. 0 = no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) unacked_per_consumer_max: u32,
    pub(crate) unacked_per_subscription_max: u32,
    pub(crate) round_robin_messages_max: u32,
    pub(crate) look_ahead_per_consumer_max: usize,
    pub(crate) look_ahead_per_subscription_max: usize,
}
