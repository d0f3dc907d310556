//! From the log to the consumers' outboxes.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use geminga_model::Position;
use geminga_proto::message::{Peek, peek};
use geminga_proto::pb::MarkerType;
use geminga_proto::send::Delivery;
use geminga_storage::managed::ManagedLedger;
use geminga_storage::{Entry, ReadLimits};

use super::{Dispatch, Shared, Subscription, place_of};
use crate::consumer::{Consumer, ConsumerCounters};
use crate::dispatcher::{Candidate, Chunk, ConsumerKey, Verdict, Want};
use crate::outbox::Batch;
use crate::replication::subscriptions::snapshot_in;
use crate::topic::compaction::view::{View, survivors_of};
use crate::transaction::buffer::Buffer;

/// Passes of one `dispatch` call: it holds the topic's lock.
const PASSES_MAX: usize = 64;
/// The marker that says which places in several clusters are the same.
const SNAPSHOT: i32 = MarkerType::ReplicatedSubscriptionSnapshot as i32;
/// Bytes of a chunked message's name that are remembered: a producer's name and a number, usually.
const CHUNK_UUID_BYTES_MAX: usize = 2_048;
/// What one read of the store brings at least, if there is so much: see `ahead`.
const AHEAD_ENTRIES: usize = 4_096;
const AHEAD_BYTES: usize = 1 << 20;

/// What `dispatch` needs of the topic.
pub(crate) struct Source<'a> {
    pub(crate) ledger: &'a ManagedLedger,
    pub(crate) partition: Option<i32>,
    pub(crate) terminated: bool,
    pub(crate) now_ms: u64,
    /// Entries with a later time wait; `u64::MAX` where delays are not honoured.
    pub(crate) due_before_ms: u64,
    pub(crate) entries_max: usize,
    pub(crate) bytes_max: usize,
    /// A rate holds the dispatch back: little at a time, so that it is counted.
    pub(crate) throttled: bool,
    pub(crate) batch_index_acks: bool,
    /// Bytes that subscriptions keep of what was read ahead.
    pub(crate) ahead_used: &'a Arc<AtomicUsize>,
    pub(crate) view: Option<&'a Arc<View>>,
    /// What a batch may have unpacked.
    pub(crate) size_max: usize,
    /// Snapshots of other clusters that a subscription keeps.
    pub(crate) snapshots_max: usize,
    /// Nothing after this may be read yet.
    pub(crate) limit: Position,
    pub(crate) transactions: Option<&'a Buffer>,
}

impl Source<'_> {
    /// Entries delivered in one pass: with few at a time a hundred subscriptions spend their time on
    /// locks and wake-ups. What is in memory is not read, so `entries_max` is only for what is held back.
    fn tail_max(&self) -> usize {
        match self.throttled {
            true => self.entries_max,
            false => self.entries_max.max(AHEAD_ENTRIES),
        }
    }

    fn is_aborted(&self, position: Position, head: &Peek<'_>) -> bool {
        self.transactions
            .is_some_and(|buffer| buffer.is_aborted(position, head))
    }
}

/// What has to be read from the store.
#[derive(Clone)]
pub(crate) enum ReadPlan {
    Tail {
        from: Position,
        limits: (usize, usize),
    },
    Replay(Vec<Position>),
    /// From the compacted view.
    Compacted {
        from: Position,
        limits: (usize, usize),
        view: Arc<View>,
    },
}

pub(crate) enum Progress {
    /// Nothing more can be done now; an event will call again.
    Idle,
    /// More can be done at once, but others want the lock.
    Again,
    /// Not in the cache.
    Read { plan: ReadPlan, generation: u64 },
}

impl Subscription {
    /// Delivers what can be delivered from the cache.
    pub(crate) fn dispatch(&mut self, source: &Source<'_>) -> Progress {
        if self.reading || self.held || self.fence.is_some() || self.consumers.is_empty() {
            return Progress::Idle;
        }
        let mut past_replay = std::mem::take(&mut self.replay_stuck);
        let passes = if source.throttled { 1 } else { PASSES_MAX };
        for _ in 0..passes {
            self.refresh_writable();
            match self.want(source, past_replay) {
                Want::Nothing => {
                    return Progress::Idle;
                }
                Want::Replay(positions) => {
                    let Some(entries) = cached(source.ledger, &positions) else {
                        let plan = ReadPlan::Replay(positions);
                        return Progress::Read {
                            plan,
                            generation: self.generation,
                        };
                    };
                    past_replay = self.deliver_replay(source, &positions, &entries) == 0;
                }
                Want::Tail(count) => {
                    let view = source.view.filter(|_| self.read_compacted);
                    self.begin_compacted(view);
                    let view = view.filter(|view| self.read <= view.horizon);
                    if view.is_none()
                        && self.read > source.ledger.durable_position().min(source.limit)
                    {
                        if source.terminated && self.read <= source.limit {
                            self.announce_end();
                        }
                        return Progress::Idle;
                    }
                    if let Some(taken) = self.ahead.take(self.read) {
                        let held_back = self.is_held_back(taken.entries(1), source.limit);
                        if held_back {
                            self.ahead.put_back(taken, self.read);
                            return Progress::Idle;
                        }
                        self.deliver_tail(source, taken.entries(count));
                        self.ahead.put_back(taken, self.read);
                        continue;
                    }
                    if let Some(view) = view {
                        let plan = ReadPlan::Compacted {
                            from: self.read,
                            limits: (count.max(AHEAD_ENTRIES), source.bytes_max.min(AHEAD_BYTES)),
                            view: view.clone(),
                        };
                        return Progress::Read {
                            plan,
                            generation: self.generation,
                        };
                    }
                    let limits = ReadLimits::new(count, source.bytes_max.min(AHEAD_BYTES));
                    match source.ledger.read_cached(self.read, limits) {
                        Some(entries) if !entries.is_empty() => {
                            if self.is_held_back(&entries, source.limit) {
                                return Progress::Idle;
                            }
                            self.deliver_tail(source, &entries);
                        }
                        _ => {
                            let plan = ReadPlan::Tail {
                                from: self.read,
                                limits: (
                                    count.max(AHEAD_ENTRIES),
                                    source.bytes_max.min(AHEAD_BYTES),
                                ),
                            };
                            return Progress::Read {
                                plan,
                                generation: self.generation,
                            };
                        }
                    }
                }
            }
        }
        Progress::Again
    }

    /// Whether the next entry may not be read yet. The read position may be the end of a ledger
    /// before that entry's: then no comparison with the limit tells, and it moves to the entry.
    fn is_held_back(&mut self, next: &[Entry], limit: Position) -> bool {
        match next.first() {
            Some(entry) if entry.position > limit => {
                self.read = entry.position;
                true
            }
            _ => false,
        }
    }

    /// After a rewind to where the subscription began: that may be a place which only the view has.
    fn begin_compacted(&mut self, view: Option<&Arc<View>>) {
        if std::mem::take(&mut self.rewound)
            && view.is_some()
            && let Some((asked, stands)) = self.compacted_from
            && self.read == stands
        {
            self.read = self.read.min(asked);
        }
    }

    pub(crate) fn read_begins(&mut self) {
        self.reading = true;
    }

    /// A read task could not read; `dispatch` asks for it again.
    pub(crate) fn read_failed(&mut self) {
        self.reading = false;
    }

    /// A read task brings what it read; then `dispatch` goes on.
    pub(crate) fn read_ends(
        &mut self,
        source: &Source<'_>,
        plan: &ReadPlan,
        generation: u64,
        entries: Vec<Entry>,
    ) {
        self.reading = false;
        if self.generation != generation || self.fence.is_some() || self.held {
            return;
        }
        self.refresh_writable();
        match plan {
            ReadPlan::Tail { from, .. } if *from == self.read => {
                if entries.is_empty() && *from <= source.ledger.durable_position() {
                    // Trimmed meanwhile: go on with what is still there.
                    self.read = self.read.max(source.ledger.first_position());
                }
                self.deliver_tail(source, &entries);
                self.ahead.keep(entries, self.read, source.ahead_used);
            }
            ReadPlan::Compacted { from, view, .. } if *from == self.read => {
                if entries.is_empty() {
                    // The log goes on where the view ends.
                    self.read = view.horizon.next_in_ledger();
                }
                self.deliver_tail(source, &entries);
                self.ahead.keep(entries, self.read, source.ahead_used);
            }
            ReadPlan::Tail { .. } | ReadPlan::Compacted { .. } => {}
            ReadPlan::Replay(positions) => {
                self.replay_stuck = self.deliver_replay(source, positions, &entries) == 0;
            }
        }
    }

    fn want(&mut self, source: &Source<'_>, past_replay: bool) -> Want {
        let per_entry = self.batch_average.max(1.0);
        match &mut self.dispatch {
            Dispatch::None => Want::Nothing,
            Dispatch::Single(single) => match single.ready() {
                None => Want::Nothing,
                Some(flow) => {
                    let entries = (flow.permits() as f32 / per_entry).ceil() as usize;
                    Want::Tail(entries.clamp(1, source.tail_max()))
                }
            },
            Dispatch::Many(many) => {
                if !past_replay {
                    many.begin();
                    many.wake_due(source.due_before_ms);
                }
                match many.want(usize::MAX, past_replay) {
                    Want::Tail(permits) => {
                        let entries = (permits as f32 / per_entry).ceil() as usize;
                        Want::Tail(entries.clamp(1, source.tail_max()))
                    }
                    Want::Replay(mut positions) => {
                        positions.truncate(source.entries_max);
                        Want::Replay(positions)
                    }
                    Want::Nothing => Want::Nothing,
                }
            }
        }
    }

    fn deliver_tail(&mut self, source: &Source<'_>, entries: &[Entry]) {
        let mut acked_markers = Vec::new();
        let Subscription {
            dispatch,
            consumers,
            cursor,
            counters,
            read,
            acks_until,
            batch_average,
            pending_acks,
            read_compacted,
            snapshots,
            ..
        } = self;
        // What the compacted view has is not acked because the log no longer has it.
        let first = match read_compacted {
            true => source.ledger.first_position(),
            false => Position::EARLIEST,
        };
        let mut sender = Sender::new(consumers, source);
        let most = if source.throttled {
            source.entries_max
        } else {
            usize::MAX
        };
        for entry in entries.iter().take(most) {
            let position = entry.position;
            let next = position.next_in_ledger();
            if position > source.limit {
                break;
            }
            if position < *acks_until && position >= first && cursor.is_acked(position) {
                *read = next;
                continue;
            }
            let Ok(head) = peek(&entry.data) else {
                // Stored by us after a check, so this is damage; no client could read it either.
                tracing::error!(%position, "an entry's metadata cannot be read; skipped");
                *read = next;
                continue;
            };
            if head.marker_type.is_some() || source.is_aborted(position, &head) {
                acked_markers.push(position);
                // Each cluster's own are its own.
                if head.marker_type == Some(SNAPSHOT)
                    && head.replicated_from.is_none()
                    && let Some(snapshot) = snapshot_in(&entry.data)
                {
                    snapshots.add(snapshot, source.snapshots_max);
                }
                *read = next;
                continue;
            }
            let ack_set = match source.batch_index_acks && position < *acks_until {
                true => cursor.batch_ack_set(position),
                false => None,
            };
            let ack_set = match source.view {
                Some(view) if *read_compacted && position <= view.horizon => {
                    both(ack_set, survivors_of(&entry.data, source.size_max))
                }
                _ => ack_set,
            };
            let ack_set = match pending_acks {
                None => ack_set,
                Some(pending) => {
                    let Some(left) = pending.left(position, head.message_count(), ack_set) else {
                        if let Dispatch::Many(many) = dispatch {
                            pending.park(position, hash_of(many, &head));
                        }
                        *read = next;
                        continue;
                    };
                    left
                }
            };
            let messages = cost(&head, ack_set.as_deref());
            *batch_average = *batch_average * 0.9 + messages as f32 * 0.1;
            let verdict = match dispatch {
                Dispatch::None => break,
                Dispatch::Single(single)
                    if !single.takes_all()
                        && !single.takes(&geminga_proto::key::sticky_key(&head)) =>
                {
                    *read = next;
                    continue;
                }
                Dispatch::Single(single) => {
                    let Some(flow) = single.ready() else { break };
                    flow.spend(messages);
                    Verdict::Deliver {
                        consumer: flow.key,
                        redelivery_count: 0,
                    }
                }
                Dispatch::Many(many) => {
                    if !many.has_ready() {
                        break;
                    }
                    let candidate = candidate(
                        position,
                        &head,
                        messages,
                        |key| many.routing_hash(key),
                        many.routes_by_key(),
                    );
                    many.place_if(&candidate, source.due_before_ms, |key| sender.takes(key))
                }
            };
            *read = next;
            if let Verdict::Deliver {
                consumer,
                redelivery_count,
            } = verdict
            {
                let ack_set = ack_set.as_deref().unwrap_or(&[]);
                if !sender.send(consumer, entry, messages, redelivery_count, ack_set) {
                    dispatch.stop(consumer);
                }
            }
        }
        let sent = sender.finish();
        counters.messages_out += sent.messages;
        counters.bytes_out += sent.bytes;
        if sent.messages > 0 {
            counters.last_consumed_ms = source.now_ms;
        }
        if !acked_markers.is_empty() {
            counters.markers_skipped += acked_markers.len() as u64;
            if let Err(error) = cursor.ack(&acked_markers) {
                // They are skipped again at the next start.
                tracing::debug!(%error, "markers were not acked");
            }
        }
    }

    /// Offers entries of the replay queue again; returns how many were placed.
    fn deliver_replay(
        &mut self,
        source: &Source<'_>,
        positions: &[Position],
        entries: &[Entry],
    ) -> usize {
        let Subscription {
            dispatch,
            consumers,
            cursor,
            counters,
            pending_acks,
            ..
        } = self;
        let Dispatch::Many(many) = dispatch else {
            return 0;
        };
        let mut sender = Sender::new(consumers, source);
        let mut placed = 0;
        let mut found = entries.iter().peekable();
        for position in positions {
            let entry = loop {
                match found.peek() {
                    Some(entry) if entry.position < *position => _ = found.next(),
                    Some(entry) if entry.position == *position => break found.next(),
                    _ => break None,
                }
            };
            let trimmed = *position < source.ledger.first_position();
            if trimmed || cursor.is_acked(*position) {
                many.ack(*position);
                placed += 1;
                continue;
            }
            let Some(entry) = entry else {
                tracing::error!(%position, "an entry to be redelivered was not found");
                continue;
            };
            let Ok(head) = peek(&entry.data) else {
                tracing::error!(%position, "an entry's metadata cannot be read; skipped");
                many.ack(*position);
                placed += 1;
                continue;
            };
            let ack_set = match source.batch_index_acks {
                true => cursor.batch_ack_set(*position),
                false => None,
            };
            let ack_set = match pending_acks {
                None => ack_set,
                Some(pending) => {
                    let Some(left) = pending.left(*position, head.message_count(), ack_set) else {
                        if let Some((hash, _)) = many.park(*position) {
                            pending.park(*position, hash);
                        }
                        placed += 1;
                        continue;
                    };
                    left
                }
            };
            let messages = cost(&head, ack_set.as_deref());
            let candidate = candidate(
                *position,
                &head,
                messages,
                |key| many.routing_hash(key),
                many.routes_by_key(),
            );
            let verdict = many.place_if(&candidate, source.due_before_ms, |key| sender.takes(key));
            if let Verdict::Deliver {
                consumer,
                redelivery_count,
            } = verdict
            {
                placed += 1;
                if redelivery_count > 0 {
                    counters.redelivered += u64::from(messages);
                }
                let ack_set = ack_set.as_deref().unwrap_or(&[]);
                if !sender.send(consumer, entry, messages, redelivery_count, ack_set) {
                    many.set_writable(consumer, false);
                }
            }
        }
        let sent = sender.finish();
        counters.messages_out += sent.messages;
        counters.bytes_out += sent.bytes;
        if sent.messages > 0 {
            counters.last_consumed_ms = source.now_ms;
        }
        placed
    }

    /// Looks which connections take more. One that does not is told to call when it does.
    pub(super) fn refresh_writable(&mut self) {
        let consumers = &self.consumers;
        match &mut self.dispatch {
            Dispatch::None => {}
            Dispatch::Single(single) => {
                if let Some(key) = single.active()
                    && let Some(at) = place_of(consumers, key)
                    && let Some(flow) = single.flow_mut(key)
                {
                    flow.writable = consumers[at].peer.check_writable();
                }
            }
            // Of the others `place_if` asks when it chooses one.
            Dispatch::Many(many) => many.refresh_writable(|key| {
                place_of(consumers, key).is_some_and(|at| consumers[at].peer.check_writable())
            }),
        }
    }
}

/// The messages of an entry that are still to be acked: what it costs in permits.
fn cost(head: &Peek<'_>, ack_set: Option<&[i64]>) -> u32 {
    match ack_set {
        Some(words) => words
            .iter()
            .map(|word| word.count_ones())
            .sum::<u32>()
            .max(1),
        None => head.message_count(),
    }
}

/// What is left where one leaves out some and the other leaves out others.
fn both(one: Option<Vec<i64>>, other: Option<Vec<i64>>) -> Option<Vec<i64>> {
    match (one, other) {
        (Some(one), Some(other)) => Some(
            one.iter()
                .zip(&other)
                .map(|(one, other)| one & other)
                .collect(),
        ),
        (one, other) => one.or(other),
    }
}

/// The hash that the entry would wait with in the replay queue.
fn hash_of(many: &Shared, head: &Peek<'_>) -> u32 {
    match many.routes_by_key() {
        true => many.routing_hash(&geminga_proto::key::sticky_key(head)),
        false => 0,
    }
}

pub(super) fn candidate(
    position: Position,
    head: &Peek<'_>,
    messages: u32,
    hash: impl Fn(&[u8]) -> u32,
    by_key: bool,
) -> Candidate {
    let chunk = match (head.is_chunk() && !by_key, head.uuid) {
        // One with a longer name is given out chunk by chunk.
        (true, Some(uuid)) if uuid.len() <= CHUNK_UUID_BYTES_MAX => Some(Chunk {
            uuid: uuid.into(),
            id: head.chunk_id.unwrap_or(0),
            last: head.is_last_chunk(),
        }),
        _ => None,
    };
    Candidate {
        position,
        messages,
        hash: if by_key {
            hash(&geminga_proto::key::sticky_key(head))
        } else {
            0
        },
        deliver_at_ms: head
            .deliver_at_time
            .map_or(0, |at| u64::try_from(at).unwrap_or(0)),
        chunk,
    }
}

/// All of these from the cache, or nothing.
fn cached(ledger: &ManagedLedger, positions: &[Position]) -> Option<Vec<Entry>> {
    let mut entries = Vec::with_capacity(positions.len());
    for (first, count) in runs(positions) {
        let found = ledger.read_cached(first, ReadLimits::new(count, usize::MAX))?;
        let in_run = |entry: &&Entry| {
            entry.position.ledger == first.ledger
                && entry.position.entry.0 < first.entry.0 + count as i64
        };
        let before = entries.len();
        entries.extend(found.iter().filter(in_run).cloned());
        if entries.len() - before < count {
            return None;
        }
    }
    Some(entries)
}

/// Positions as (first, count) of consecutive ones.
pub(crate) fn runs(positions: &[Position]) -> Vec<(Position, usize)> {
    let mut runs: Vec<(Position, usize)> = Vec::new();
    for position in positions {
        if let Some((first, count)) = runs.last_mut()
            && first.ledger == position.ledger
            && first.entry.0 + *count as i64 == position.entry.0
        {
            *count += 1;
        } else {
            runs.push((*position, 1));
        }
    }
    runs
}

#[derive(Default)]
pub(super) struct Sent {
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

/// Queues entries; keeps the outbox of one consumer locked as long as it is the same.
pub(super) struct Sender<'a> {
    consumers: &'a [Consumer],
    /// The consumer found last, and where: the one that is asked is mostly the one that gets it.
    found: Cell<Option<(ConsumerKey, usize)>>,
    current: Option<Lane<'a>>,
    partition: Option<i32>,
    now_ms: u64,
    sent: Sent,
}

/// The consumer that gets entries now.
struct Lane<'a> {
    consumer: &'a Consumer,
    batch: Batch<'a>,
    counters: ConsumerCounters,
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        self.consumer.counters.set(self.counters);
    }
}

impl<'a> Sender<'a> {
    pub(super) fn new(consumers: &'a [Consumer], source: &Source<'_>) -> Sender<'a> {
        Sender {
            consumers,
            found: Cell::new(None),
            current: None,
            partition: source.partition,
            now_ms: source.now_ms,
            sent: Sent::default(),
        }
    }

    /// Whether the consumer's connection takes more; if not, it is told to call when it does.
    pub(super) fn takes(&self, key: ConsumerKey) -> bool {
        match &self.current {
            // What `send` said of it holds.
            Some(lane) if lane.consumer.key == key => true,
            _ => self
                .place_of(key)
                .is_some_and(|at| self.consumers[at].peer.check_writable()),
        }
    }

    fn place_of(&self, key: ConsumerKey) -> Option<usize> {
        match self.found.get() {
            Some((found, at)) if found == key => Some(at),
            _ => {
                let at = place_of(self.consumers, key)?;
                self.found.set(Some((key, at)));
                Some(at)
            }
        }
    }

    /// Queues an entry; false when the consumer's connection should get no more for now.
    pub(super) fn send(
        &mut self,
        key: ConsumerKey,
        entry: &Entry,
        messages: u32,
        redelivery_count: u32,
        ack_set: &[i64],
    ) -> bool {
        if self
            .current
            .as_ref()
            .is_none_or(|lane| lane.consumer.key != key)
        {
            // Unlocked before the next one is locked.
            self.current = None;
            let Some(at) = self.place_of(key) else {
                return false;
            };
            let consumer = &self.consumers[at];
            self.current = Some(Lane {
                consumer,
                batch: consumer.peer.outbox.batch(),
                counters: consumer.counters.get(),
            });
        }
        let Some(lane) = &mut self.current else {
            return false;
        };
        let Lane {
            consumer,
            batch,
            counters,
        } = lane;
        let (ledger_id, entry_id) = entry.position.to_wire();
        let delivery = Delivery {
            consumer_id: consumer.id,
            ledger_id,
            entry_id,
            partition: self.partition,
            redelivery_count,
            ack_set,
            consumer_epoch: consumer.epoch,
        };
        batch.head(|head| delivery.encode_frame(entry.data.len(), head));
        batch.block(&entry.data);
        counters.messages_out += u64::from(messages);
        counters.bytes_out += entry.data.len() as u64;
        counters.entries_out += 1;
        counters.last_consumed_ms = self.now_ms;
        if redelivery_count > 0 {
            counters.redelivered += u64::from(messages);
        }
        self.sent.messages += u64::from(messages);
        self.sent.bytes += entry.data.len() as u64;
        consumer.peer.takes_more(batch.added())
    }

    pub(super) fn finish(self) -> Sent {
        self.sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_in_runs() {
        let at = Position::new;
        let runs = runs(&[at(1, 1), at(1, 2), at(1, 4), at(2, 5), at(2, 6), at(2, 7)]);
        assert_eq!(runs, [(at(1, 1), 2), (at(1, 4), 1), (at(2, 5), 3)]);
    }
}
