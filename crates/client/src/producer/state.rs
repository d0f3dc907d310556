//! The producer of one topic or partition: what is under way, and what happens to it.
//!
//! All of it is one state under one lock, which is held for the encoding of a message and never
//! over an await. Frames stay in `pending` until their receipt comes; after a reconnect they are
//! sent again as they are, in order.
//!
//! Lock order: this state, then a connection's outbox. A connection calls in here without a lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use geminga_model::name::TopicName;
use geminga_proto::send::SendReceipt;
use geminga_proto::{FRAME_PADDING, MessageId, pb};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Options;
use super::encode::{Batch, Encoder, Frame, Receipts};
use super::slots::{NO_SLOT, Slots};
use crate::client::Shared;
use crate::connection::{Connection, Producing};
use crate::error::{Error, Result};
use crate::message::Message;
use crate::transaction::Open;

/// The producer of one topic or partition.
pub(crate) struct Core {
    pub(super) id: u64,
    pub(super) topic: TopicName,
    partition: i32,
    pub(super) shared: Arc<Shared>,
    pub(super) options: Arc<Options>,
    pub(super) state: Mutex<State>,
    /// The link changed: for the driver.
    pub(super) changed: Notify,
    /// There is something to wait for: for the driver's timers.
    pub(super) timing: Notify,
}

/// Whether there is a broker to send to.
pub(super) enum Link {
    Connecting,
    Open(Arc<Connection>),
    /// For good; with `Error::Closed` when it was meant.
    Over(Error),
}

pub(super) struct State {
    pub(super) link: Link,
    /// The broker said where to go next.
    pub(super) assigned: Option<String>,
    pub(super) name: Option<String>,
    pub(super) name_is_generated: bool,
    pub(super) epoch: u64,
    pub(super) topic_epoch: Option<u64>,
    pub(super) encoder: Encoder,
    batch: Batch,
    pending: VecDeque<Frame>,
    slots: Slots,
    pending_messages: usize,
    pending_bytes: usize,
    waiting_for_room: Vec<Waker>,
    flushing: Vec<Waker>,
    /// Messages that were enqueued, and that are done, ever.
    enqueued: u64,
    completed: u64,
    /// The first failure of a message without a receipt since the last flush.
    failure: Option<Error>,
    pub(super) next_sequence: Option<u64>,
    pub(super) last_sequence_published: i64,
    /// Where the id of a chunked message begins.
    first_chunk: Option<(i64, i64)>,
    /// The timers sleep until they are told of work.
    pub(super) timers_idle: bool,
}

impl Core {
    pub(super) fn new(shared: Arc<Shared>, options: Arc<Options>, topic: TopicName) -> Self {
        let id = shared.next_id();
        let encoder = Encoder::new(id, options.compression, options.chunking);
        let partition = topic.partition().map_or(-1, |number| number as i32);
        let state = State {
            link: Link::Connecting,
            assigned: None,
            name: options.name.clone(),
            name_is_generated: options.name.is_none(),
            epoch: 0,
            topic_epoch: None,
            encoder,
            batch: Batch::default(),
            pending: VecDeque::new(),
            slots: Slots::default(),
            pending_messages: 0,
            pending_bytes: 0,
            waiting_for_room: Vec::new(),
            flushing: Vec::new(),
            enqueued: 0,
            completed: 0,
            failure: None,
            next_sequence: options.initial_sequence_id.map(|id| id.wrapping_add(1)),
            last_sequence_published: options.initial_sequence_id.map_or(-1, |id| id as i64),
            first_chunk: None,
            timers_idle: false,
        };
        Self {
            id,
            topic,
            partition,
            shared,
            options,
            state: Mutex::new(state),
            changed: Notify::new(),
            timing: Notify::new(),
        }
    }

    /// Takes the message when there is room for it; gives the slot of its receipt.
    pub(super) fn poll_enqueue(
        &self,
        message: &mut Option<Message>,
        txn: Option<&Arc<Open>>,
        wants_receipt: bool,
        cx: Option<&mut Context<'_>>,
    ) -> Poll<Result<u32>> {
        let mut state = self.state.lock();
        if let Link::Over(error) = &state.link {
            return Poll::Ready(Err(error.clone()));
        }
        let cost = message.as_ref().map_or(0, Message::cost);
        if state.is_full(&self.options, cost) {
            if state.pending.is_empty() {
                // What fills the window waits for its own delay: no receipt will make room.
                state.flush_batch(self.shared.clock.now_ms());
            }
            if let Some(cx) = cx {
                state.waiting_for_room.push(cx.waker().clone());
            }
            return Poll::Pending;
        }
        let Some(message) = message.take() else {
            return Poll::Ready(Err(Error::Closed));
        };
        if let Err(error) = state.encoder.check_size(&message, cost) {
            return Poll::Ready(Err(error));
        }
        if let Some(txn) = txn {
            txn.begin(1)?;
        }
        let slot = if wants_receipt {
            state.slots.insert()
        } else {
            NO_SLOT
        };
        let now_ms = self.shared.clock.now_ms();
        let result = state.append(&self.options, message, txn, slot, cost, now_ms);
        if let Err(error) = result {
            if let Some(txn) = txn {
                // It was not taken, and who gave it is told: the transaction may go on without it.
                txn.settle(1, None);
            }
            if slot != NO_SLOT {
                state.slots.abandon(slot);
                state
                    .slots
                    .complete(slot, || Err(Error::Closed), &mut Vec::new());
            }
            return Poll::Ready(Err(error));
        }
        let wake_timers = std::mem::take(&mut state.timers_idle);
        drop(state);
        if wake_timers {
            self.timing.notify_one();
        }
        Poll::Ready(Ok(slot))
    }

    pub(super) fn poll_receipt(&self, slot: u32, cx: &mut Context<'_>) -> Poll<Result<MessageId>> {
        self.state.lock().slots.poll(slot, cx)
    }

    /// Takes the results of these slots, up to the first failure or the first that is not done: how many, and
    /// which of the two it was.
    pub(super) fn poll_receipts(
        &self,
        slots: impl Iterator<Item = u32>,
        cx: &mut Context<'_>,
    ) -> (usize, Poll<Result<()>>) {
        let mut state = self.state.lock();
        let mut taken = 0;
        for slot in slots {
            match state.slots.poll(slot, cx) {
                Poll::Pending => return (taken, Poll::Pending),
                Poll::Ready(result) => {
                    taken += 1;
                    if let Err(error) = result {
                        return (taken, Poll::Ready(Err(error)));
                    }
                }
            }
        }
        (taken, Poll::Ready(Ok(())))
    }

    pub(super) fn abandon_receipt(&self, slot: u32) {
        self.state.lock().slots.abandon(slot);
    }

    /// Sends what waits in the batch; the number that `completed` reaches when all is done.
    pub(super) fn begin_flush(&self) -> u64 {
        let mut state = self.state.lock();
        let now_ms = self.shared.clock.now_ms();
        state.flush_batch(now_ms);
        state.enqueued
    }

    pub(super) fn poll_flush(&self, target: u64, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = self.state.lock();
        if state.completed >= target {
            return Poll::Ready(state.failure.take().map_or(Ok(()), Err));
        }
        state.flushing.push(cx.waker().clone());
        Poll::Pending
    }

    /// Ends the producer for good: everything unanswered gets `error`.
    pub(super) fn over(&self, error: Error) -> Option<Arc<Connection>> {
        let mut wakers = Vec::new();
        let link = {
            let mut state = self.state.lock();
            if matches!(state.link, Link::Over(_)) {
                return None;
            }
            let link = std::mem::replace(&mut state.link, Link::Over(error.clone()));
            // A batch becomes a frame, so that there is one way to fail.
            state.flush_batch(self.shared.clock.now_ms());
            state.fail_while(&error, &mut wakers, |_| true);
            wakers.append(&mut state.waiting_for_room);
            wakers.append(&mut state.flushing);
            link
        };
        wakers.into_iter().for_each(Waker::wake);
        self.changed.notify_one();
        match link {
            Link::Open(connection) => {
                connection.remove_producer(self.id);
                Some(connection)
            }
            _ => None,
        }
    }

    /// The link is open: what is unanswered goes out again, then whatever comes.
    pub(super) fn linked(&self, connection: Arc<Connection>, success: &pb::CommandProducerSuccess) {
        let mut state = self.state.lock();
        if matches!(state.link, Link::Over(_)) {
            return;
        }
        state.encoder.set_name(&success.producer_name);
        if self.options.schema.is_some() {
            state
                .encoder
                .set_schema_version(success.schema_version.clone());
        }
        state.encoder.max_message_size = connection.max_message_size();
        state.name = Some(success.producer_name.clone());
        state.topic_epoch = success.topic_epoch.or(state.topic_epoch);
        state.epoch += 1;
        if state.next_sequence.is_none() {
            let last = success.last_sequence_id();
            state.next_sequence = Some(last.wrapping_add(1) as u64);
            state.last_sequence_published = last;
        }
        state.first_chunk = None;
        connection.send_frames(
            state
                .pending
                .iter()
                .map(|frame| (&frame.head, &frame.payload)),
        );
        state.link = Link::Open(connection.clone());
        if state.pending.is_empty() {
            state.flush_batch(self.shared.clock.now_ms());
        }
        drop(state);
        if !connection.is_open() {
            // It ended before it was our link, so nobody told us.
            self.disconnected(&connection);
        }
    }

    /// Fails what has waited too long; sends a batch that has waited long enough. Gives the time
    /// to look again, or `None` when there is nothing to wait for.
    pub(super) fn tick(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut wakers = Vec::new();
        let next = {
            let mut state = self.state.lock();
            let (delay, limit) = (self.options.batching.max_delay, self.options.send_timeout);
            let due = |created: Option<Instant>, after: Duration| {
                created.is_some_and(|created| now >= created + after)
            };
            if delay.is_some_and(|delay| due(state.batch.created, delay))
                || (!limit.is_zero() && due(state.batch.created, limit))
            {
                state.flush_batch(self.shared.clock.now_ms());
            }
            if !limit.is_zero() {
                let error = Error::Timeout {
                    what: "send",
                    after_ms: limit.as_millis() as u64,
                };
                state.fail_while(&error, &mut wakers, |frame| now >= frame.created + limit);
                state.after_completion(&self.options, &mut wakers);
            }
            let oldest = state
                .pending
                .front()
                .map(|frame| frame.created)
                .or(state.batch.created);
            let timeout = oldest.filter(|_| !limit.is_zero()).map(|created| {
                // No finer than an eighth of the limit, so that a busy producer is left alone.
                (created + limit).max(now + limit / 8)
            });
            let batch = state
                .batch
                .created
                .zip(delay)
                .map(|(created, delay)| created + delay);
            let next = timeout.into_iter().chain(batch).min();
            let nothing = next.is_none() || (delay.is_some() && batch.is_none());
            state.timers_idle = nothing && !(limit.is_zero() && delay.is_none());
            next
        };
        wakers.into_iter().for_each(Waker::wake);
        next
    }

    pub(super) fn is_connected(&self) -> bool {
        matches!(self.state.lock().link, Link::Open(_))
    }
}

impl Producing for Core {
    /// Receipts from the broker, in order.
    fn receipts(&self, from: &Connection, receipts: &[SendReceipt]) {
        let mut wakers = Vec::new();
        let mut out_of_step = None;
        {
            let mut state = self.state.lock();
            if !state.is_linked_to(from) {
                return;
            }
            for receipt in receipts {
                match state.pending.front() {
                    Some(frame) if frame.first_sequence == receipt.sequence_id => {
                        state.complete_front(receipt, self.partition, &mut wakers);
                    }
                    Some(frame) if frame.first_sequence < receipt.sequence_id => {
                        out_of_step = Some((frame.first_sequence, receipt.sequence_id));
                        break;
                    }
                    // Of a message that has timed out, or that was sent twice.
                    _ => {}
                }
            }
            if state.pending.is_empty() && self.options.batching.max_delay.is_none() {
                state.flush_batch(self.shared.clock.now_ms());
            }
            state.after_completion(&self.options, &mut wakers);
        }
        wakers.into_iter().for_each(Waker::wake);
        if let Some((waiting, got)) = out_of_step {
            // Only a new link brings both sides in step again; everything unanswered is sent anew.
            from.fail(Error::Disconnected {
                address: from.address().to_owned(),
                reason: format!("receipt for `{got}` while `{waiting}` waits"),
            });
        }
    }

    /// The broker refused a message.
    fn send_failed(&self, from: &Connection, sequence: u64, error: Error) {
        let fatal = matches!(
            error.server_error(),
            Some(pb::ServerError::TopicTerminatedError | pb::ServerError::ProducerFenced)
        );
        let only_this = matches!(
            error.server_error(),
            Some(
                pb::ServerError::NotAllowedError
                    | pb::ServerError::ChecksumError
                    | pb::ServerError::TransactionNotFound
                    | pb::ServerError::InvalidTxnStatus
                    | pb::ServerError::TransactionConflict
                    | pb::ServerError::TransactionCoordinatorNotFound
            )
        );
        if fatal {
            self.over(error);
        } else if only_this {
            let mut wakers = Vec::new();
            {
                let mut state = self.state.lock();
                if state.is_linked_to(from) {
                    state.fail_one(sequence, &error, &mut wakers);
                    if state.pending.is_empty() {
                        state.flush_batch(self.shared.clock.now_ms());
                    }
                    state.after_completion(&self.options, &mut wakers);
                }
            }
            wakers.into_iter().for_each(Waker::wake);
        } else {
            // What follows the failed message is already on its way. A new connection keeps the
            // order: the broker drops what is left on the old one.
            from.fail(Error::Disconnected {
                address: from.address().to_owned(),
                reason: error.to_string(),
            });
        }
    }

    /// The connection is over; the driver makes a new link.
    fn disconnected(&self, from: &Connection) {
        let mut state = self.state.lock();
        if state.is_linked_to(from) {
            state.link = Link::Connecting;
            let mut wakers = Vec::new();
            let error = Error::Disconnected {
                address: from.address().to_owned(),
                reason: "a message in a transaction is not sent twice".to_owned(),
            };
            state.fail_transactions(&error, &mut wakers);
            state.after_completion(&self.options, &mut wakers);
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
            self.changed.notify_one();
        }
    }

    /// The broker gives the topic up.
    fn closed_by_broker(&self, from: &Connection, assigned: Option<String>) {
        let mut state = self.state.lock();
        state.assigned = assigned;
        drop(state);
        self.disconnected(from);
    }
}

impl State {
    fn is_linked_to(&self, connection: &Connection) -> bool {
        matches!(&self.link, Link::Open(ours) if std::ptr::eq(&**ours, connection))
    }

    fn is_full(&self, options: &Options, cost: usize) -> bool {
        self.pending_messages >= options.window
            || (self.pending_messages > 0 && self.pending_bytes + cost > options.window_bytes)
    }

    /// Gives a message its sequence id and puts it on its way: into the batch, or into a frame.
    fn append(
        &mut self,
        options: &Options,
        message: Message,
        txn: Option<&Arc<Open>>,
        slot: u32,
        cost: usize,
        now_ms: u64,
    ) -> Result<()> {
        let batching = &options.batching;
        let sequence = message.sequence_id.or(self.next_sequence).unwrap_or(0);
        // Room for the metadata, in a batch that does not shrink.
        let max_bytes = batching
            .max_bytes
            .min(self.encoder.max_message_size.saturating_sub(FRAME_PADDING));
        let batchable = batching.max_messages > 1
            && message.deliver_at.is_none()
            && message.replicate_to.is_empty()
            && cost < max_bytes;
        // An idle producer sends at once; a batch of one would only cost more bytes.
        let idle = self.pending.is_empty()
            && self.batch.is_empty()
            && batching.max_delay.is_none()
            && matches!(self.link, Link::Open(_));
        if batchable && !idle {
            let full = self.batch.bytes() + cost > max_bytes;
            let other_key = batching.by_key && !self.batch.same_key(&message);
            let other_schema = !self.batch.same_schema(&message);
            let other_txn = !self.batch.same_transaction(txn);
            if !self.batch.is_empty() && (full || other_key || other_schema || other_txn) {
                self.flush_batch(now_ms);
            }
            if self.batch.is_empty() {
                self.batch.txn = txn.cloned();
            }
            self.encoder.push(&mut self.batch, message, sequence, slot);
            self.count_in(sequence, cost);
            if self.batch.count() >= batching.max_messages || self.batch.bytes() >= max_bytes {
                self.flush_batch(now_ms);
            }
            return Ok(());
        }
        self.flush_batch(now_ms);
        let first_new = self.pending.len();
        let pending = &mut self.pending;
        self.encoder
            .single(message, sequence, slot, txn, now_ms, |frame| {
                pending.push_back(frame)
            })?;
        self.count_in(sequence, cost);
        self.send_from(first_new);
        Ok(())
    }

    fn count_in(&mut self, sequence: u64, cost: usize) {
        self.next_sequence = Some(sequence.wrapping_add(1));
        self.pending_messages += 1;
        self.pending_bytes += cost;
        self.enqueued += 1;
    }

    /// Makes the batch a frame and sends it.
    fn flush_batch(&mut self, now_ms: u64) {
        if self.batch.is_empty() {
            return;
        }
        let first_new = self.pending.len();
        match self.encoder.batch(&mut self.batch, now_ms) {
            Ok(frame) => {
                self.pending.push_back(frame);
                self.send_from(first_new);
            }
            Err(unsent) => {
                let mut wakers = Vec::new();
                let count = unsent.slots.len();
                self.pending_messages -= count;
                self.pending_bytes -= unsent.cost;
                self.completed += count as u64;
                let txn = unsent.txn.as_deref();
                self.settle_failed(&unsent.slots, txn, &unsent.error, &mut wakers);
                wakers.append(&mut self.waiting_for_room);
                wakers.append(&mut self.flushing);
                wakers.into_iter().for_each(Waker::wake);
            }
        }
    }

    fn send_from(&self, first: usize) {
        if let Link::Open(connection) = &self.link {
            let frames = self.pending.range(first..);
            connection.send_frames(frames.map(|frame| (&frame.head, &frame.payload)));
        }
    }

    fn pop_front(&mut self) -> Option<Frame> {
        let frame = self.pending.pop_front()?;
        self.count_out(&frame);
        Some(frame)
    }

    fn count_out(&mut self, frame: &Frame) {
        self.pending_messages -= frame.messages;
        self.pending_bytes -= frame.cost;
        self.completed += frame.messages as u64;
    }

    fn complete_front(&mut self, receipt: &SendReceipt, partition: i32, wakers: &mut Vec<Waker>) {
        let Some(frame) = self.pop_front() else {
            return;
        };
        let id = MessageId {
            partition,
            ..MessageId::entry(receipt.ledger_id as i64, receipt.entry_id as i64)
        };
        if !frame.last_chunk {
            self.first_chunk.get_or_insert(id.position());
            return;
        }
        self.last_sequence_published = frame.last_sequence as i64;
        if let Some(txn) = &frame.txn {
            txn.settle(frame.messages, None);
        }
        match &frame.slots {
            Receipts::Single(slot) => {
                let first_chunk = frame.chunked.then(|| self.first_chunk.take()).flatten();
                self.slots
                    .complete(*slot, || Ok(MessageId { first_chunk, ..id }), wakers);
            }
            Receipts::Batch(slots) => {
                let batch_size = slots.len() as i32;
                for (index, &slot) in slots.iter().enumerate() {
                    let batch_index = index as i32;
                    self.slots.complete(
                        slot,
                        || {
                            Ok(MessageId {
                                batch_index,
                                batch_size,
                                ..id
                            })
                        },
                        wakers,
                    );
                }
            }
        }
    }

    /// Fails frames from the front as long as the test holds.
    fn fail_while(
        &mut self,
        error: &Error,
        wakers: &mut Vec<Waker>,
        test: impl Fn(&Frame) -> bool,
    ) {
        while self.pending.front().is_some_and(&test) {
            let Some(frame) = self.pop_front() else {
                return;
            };
            self.settle_failed(&frame.slots, frame.txn.as_deref(), error, wakers);
        }
    }

    /// Fails what the broker refused, wherever it is: Pulsar says so at once, and confirms what came before it later.
    fn fail_one(&mut self, sequence: u64, error: &Error, wakers: &mut Vec<Waker>) {
        // A batch is named by its last message, or where nobody looked into it by its first.
        let is_it = |frame: &Frame| [frame.first_sequence, frame.last_sequence].contains(&sequence);
        while let Some(at) = self.pending.iter().position(is_it) {
            let Some(frame) = self.pending.remove(at) else {
                return;
            };
            self.count_out(&frame);
            self.settle_failed(&frame.slots, frame.txn.as_deref(), error, wakers);
        }
    }

    /// Fails what is in transactions and may have reached the broker: sent again it might be there
    /// twice.
    fn fail_transactions(&mut self, error: &Error, wakers: &mut Vec<Waker>) {
        if self.pending.iter().all(|frame| frame.txn.is_none()) {
            return;
        }
        let (lost, kept) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition::<VecDeque<_>, _>(|frame| frame.txn.is_some());
        self.pending = kept;
        for frame in lost {
            self.count_out(&frame);
            self.settle_failed(&frame.slots, frame.txn.as_deref(), error, wakers);
        }
    }

    fn settle_failed(
        &mut self,
        receipts: &Receipts,
        txn: Option<&Open>,
        error: &Error,
        wakers: &mut Vec<Waker>,
    ) {
        if let Some(txn) = txn {
            txn.settle(receipts.len(), Some(error));
        }
        let single;
        let slots = match receipts {
            Receipts::Single(slot) => {
                single = [*slot];
                &single[..]
            }
            Receipts::Batch(slots) => slots,
        };
        for &slot in slots {
            if slot == NO_SLOT {
                self.failure.get_or_insert_with(|| error.clone());
            }
            self.slots.complete(slot, || Err(error.clone()), wakers);
        }
    }

    /// Wakes those who wait for room or for a flush, if there is a point in it.
    fn after_completion(&mut self, options: &Options, wakers: &mut Vec<Waker>) {
        // Not for each single place: a producer that fills its window wakes for a good part of it.
        if !self.waiting_for_room.is_empty()
            && self.pending_messages <= options.window * 3 / 4
            && self.pending_bytes <= options.window_bytes / 4 * 3
        {
            wakers.append(&mut self.waiting_for_room);
        }
        wakers.append(&mut self.flushing);
    }
}

impl Receipts {
    fn len(&self) -> usize {
        match self {
            Receipts::Single(_) => 1,
            Receipts::Batch(slots) => slots.len(),
        }
    }
}
