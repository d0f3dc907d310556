//! The way of a SEND: appended in one run per read of the socket, confirmed when durable.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use geminga_model::Position;
use geminga_proto::frame::encode_command;
use geminga_proto::message::peek;
use geminga_proto::pb::{CommandCloseProducer, CommandSendError, CommandSuccess, ServerError};
use geminga_proto::send::{Send, SendReceipt};
use geminga_storage::error::AppendError;
use geminga_storage::managed::ReadBuffer;

use super::dedup::{NotAllNew, Sequence, Verdict};
use super::{Life, State, Topic};
use crate::error::BrokerError;
use crate::peer::Peer;
use crate::producer::Producer;
use crate::transaction::TxnId;

/// So many are dispatched to without letting others at the topic in between.
const FEW_SUBSCRIPTIONS: usize = 8;
/// Room for encoded receipts that a topic keeps between commits.
const SCRATCH_KEPT: usize = 64 << 10;

/// What a SEND is answered with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Receipt {
    pub(crate) sequence_id: u64,
    pub(crate) highest_sequence_id: Option<u64>,
    pub(crate) counts: Counts,
}

/// What deduplication goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counts {
    /// It passes over markers, and all chunks of a message but its last.
    No,
    BySequence,
    /// The ids are a ledger and an entry of another cluster.
    BySource,
}

/// Consecutive entries of one producer that wait for the disk.
pub(crate) struct Run {
    producer: Arc<Producer>,
    /// None for duplicates and what is refused: that was not stored, and waits for the receipts before its own.
    first: Option<Position>,
    refused: Option<Refusal>,
    count: usize,
    bytes: usize,
    /// The highest sequence id in it, where deduplication is on.
    sequence_id: Option<Sequence>,
}

/// Why messages are not taken.
#[derive(Debug)]
struct Refusal {
    error: ServerError,
    text: String,
}

/// Entries that are to become one run.
struct Part<'a> {
    entries: &'a [Bytes],
    buffer: Option<&'a ReadBuffer>,
    receipts: &'a [Receipt],
    bytes: usize,
    messages: u64,
    chunks: u64,
}

/// Consecutive SENDs of one producer, gathered by its connection. Reused.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) producer: Option<Arc<Producer>>,
    pub(crate) transaction: Option<TxnId>,
    pub(crate) entries: Vec<Bytes>,
    /// What they were read into.
    pub(crate) buffer: Option<ReadBuffer>,
    pub(crate) receipts: Vec<Receipt>,
    pub(crate) bytes: usize,
    pub(crate) messages: u64,
    pub(crate) chunks: u64,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.producer = None;
        self.transaction = None;
        self.entries.clear();
        self.receipts.clear();
        (self.bytes, self.messages, self.chunks) = (0, 0, 0);
    }
}

impl Topic {
    /// Appends the batch and empties it. Its producer hears of it later: a receipt each, or, where
    /// it cannot be stored, that it is closed (so that it comes back and sends again, in order).
    pub(crate) fn publish(self: &Arc<Topic>, batch: &mut Batch) {
        let Some(producer) = batch.producer.take() else {
            return batch.clear();
        };
        let mut state = self.lock();
        let attached = state
            .producers
            .get(&producer.name)
            .is_some_and(|other| other.key == producer.key);
        if !attached || state.life != Life::Open {
            // Closed by us meanwhile: it has been told, and sends again after its reconnect.
            drop(state);
            return batch.clear();
        }
        if !self.is_persistent() {
            match batch
                .transaction
                .map(|_| self.require_persistent("A transaction"))
            {
                Some(Err(error)) => self.refuse(&mut state, &producer, &batch.receipts, &error),
                _ => self.publish_now(&mut state, &producer, batch),
            }
            drop(state);
            return batch.clear();
        }
        if let Some(txn) = batch.transaction
            && let Err(error) = self.admit_transaction(&mut state, txn)
        {
            // A client that comes back after a crash sends again what it was sending, in a transaction
            // that is no more; the Go client never gets over an error there. Nobody would see
            // the message, so it is not stored, and answered like a duplicate.
            if self.core.transactions.is_lost(txn) {
                self.answer_unstored(&mut state, &producer, &batch.receipts);
                drop(state);
                return batch.clear();
            }
            // Any other error makes the Java client close its connection.
            let error = BrokerError::NotAllowed(error.to_string());
            self.refuse(&mut state, &producer, &batch.receipts, &error);
            drop(state);
            return batch.clear();
        }
        let checked = match &state.dedup {
            Some(dedup) => dedup.check(&producer.name, &batch.receipts),
            None => Ok(None),
        };
        match checked {
            Ok(sequence_id) => {
                let part = Part {
                    entries: &batch.entries,
                    buffer: batch.buffer.as_ref(),
                    receipts: &batch.receipts,
                    bytes: batch.bytes,
                    messages: batch.messages,
                    chunks: batch.chunks,
                };
                self.append(&mut state, &producer, &part, sequence_id);
            }
            Err(NotAllNew) => self.publish_one_by_one(&mut state, &producer, batch),
        }
        drop(state);
        batch.clear();
    }

    /// Appends a run; false where it was not taken, and the producer has heard of it.
    fn append(
        self: &Arc<Topic>,
        state: &mut State,
        producer: &Arc<Producer>,
        part: &Part<'_>,
        sequence_id: Option<Sequence>,
    ) -> bool {
        match self.ledger.append_from(part.entries, part.buffer) {
            Ok(first) => {
                let count = part.entries.len();
                producer.peer.sends_begin(count);
                self.core.publishing.take(part.bytes);
                producer.count(part.messages, part.bytes as u64);
                state.counters.messages_in += part.messages;
                state.counters.bytes_in += part.bytes as u64;
                state.counters.entries_in += count as u64;
                state.counters.chunks_in += part.chunks;
                if let (Some(dedup), Some(sequence_id)) = (&mut state.dedup, sequence_id) {
                    let now_ms = self.core.clock.now_ms();
                    dedup.pushed(&producer.name, sequence_id, now_ms);
                }
                state.receipts.extend(part.receipts.iter().copied());
                self.count_published(state, &producer.peer, part.messages, part.bytes as u64);
                state.runs.push_back(Run {
                    producer: producer.clone(),
                    first: Some(first),
                    refused: None,
                    count,
                    bytes: part.bytes,
                    sequence_id,
                });
                return true;
            }
            Err(AppendError::Terminated) => {
                let error = BrokerError::Terminated(self.name.to_string());
                self.refuse(state, producer, part.receipts, &error);
            }
            Err(AppendError::Deleted) => self.failed("the topic was deleted"),
            Err(error) => {
                tracing::warn!(topic = %self.name, producer = %producer.name, %error,
                    "entries were not taken; the producer has to come back");
                self.drop_producer_in_order(state, producer);
            }
        }
        false
    }

    /// A batch with sequence ids that were taken before: only what is new is stored, and the answers
    /// keep their order.
    fn publish_one_by_one(
        self: &Arc<Topic>,
        state: &mut State,
        producer: &Arc<Producer>,
        batch: &Batch,
    ) {
        for (entry, receipt) in batch.entries.iter().zip(&batch.receipts) {
            let Some(dedup) = &state.dedup else {
                return;
            };
            match dedup.judge(&producer.name, receipt) {
                Verdict::New => {
                    let sequence_id = receipt.highest_counted();
                    let head = peek(entry).unwrap_or_default();
                    let part = Part {
                        entries: std::slice::from_ref(entry),
                        buffer: batch.buffer.as_ref(),
                        receipts: std::slice::from_ref(receipt),
                        bytes: entry.len(),
                        messages: u64::from(head.message_count()),
                        chunks: u64::from(head.is_chunk()),
                    };
                    if !self.append(state, producer, &part, sequence_id) {
                        return;
                    }
                }
                Verdict::Duplicate => {
                    push_unstored(state, producer, std::slice::from_ref(receipt), None);
                }
                Verdict::InFlight => {
                    let error = BrokerError::Persistence(
                        "Cannot determine whether the message is a duplicate at this time"
                            .to_owned(),
                    );
                    // At once: in its order there would be nothing left to determine.
                    let refusal = Refusal::of(&error);
                    producer.peer.outbox.send(refusal.answer(producer, receipt));
                }
            }
        }
        self.confirm_unstored(state);
    }

    /// Receipts without a place, in order with those of what was stored before.
    fn answer_unstored(&self, state: &mut State, producer: &Arc<Producer>, receipts: &[Receipt]) {
        push_unstored(state, producer, receipts, None);
        self.confirm_unstored(state);
    }

    /// An error for each, in order with the receipts of what came before: a client that hears of a later message
    /// first takes it for one of another connection, or for a gap.
    fn refuse(
        &self,
        state: &mut State,
        producer: &Arc<Producer>,
        receipts: &[Receipt],
        error: &BrokerError,
    ) {
        push_unstored(state, producer, receipts, Some(Refusal::of(error)));
        self.confirm_unstored(state);
    }

    /// Answers a SEND that its connection found wrong, in the same order.
    pub(crate) fn refuse_send(
        &self,
        producer: &Arc<Producer>,
        send: &Send,
        error: ServerError,
        text: String,
    ) {
        let receipt = Receipt {
            sequence_id: send.sequence_id,
            highest_sequence_id: send.highest_sequence_id,
            counts: Counts::No,
        };
        let refusal = Refusal { error, text };
        let mut state = self.lock();
        push_unstored(&mut state, producer, &[receipt], Some(refusal));
        self.confirm_unstored(&mut state);
    }

    /// What was not stored, and has nothing before it, has nothing to wait for.
    fn confirm_unstored(&self, state: &mut State) {
        if state.runs.front().is_some_and(|run| run.first.is_none()) {
            self.confirm(state, None);
        }
    }

    /// Told by the store: receipts go out, and tailing consumers get the entries.
    pub(crate) fn durable(self: &Arc<Topic>, through: Position) {
        let mut state = self.lock();
        let done = self.confirm(&mut state, Some(through));
        let interval = self.core.config.broker_deduplication_entries_interval;
        if let Some(dedup) = &mut state.dedup
            && dedup.count(done.entries, interval, self.core.clock.now_ms())
        {
            self.save_dedup(&mut state, through);
        }
        self.count_for_quota(&mut state, done.bytes as u64);
        self.close_when_done(&mut state);
        drop(state);
        // With many subscriptions the dispatch takes a while, and who publishes is not to wait for all of it.
        self.core.publishing.give_back(done.bytes);
        for (peer, count) in done.sends {
            peer.sends_end(count);
        }
        let mut state = self.lock();
        if state.subscriptions.len() <= FEW_SUBSCRIPTIONS {
            return self.dispatch_all(&mut state);
        }
        let all: Vec<u32> = state.subscriptions.iter().map(|s| s.id).collect();
        drop(state);
        for id in all {
            // By its id: others come and go meanwhile.
            self.dispatch(&mut self.lock(), id);
        }
        self.lock().wake_replicators();
    }

    /// Sends the receipts of all runs up to `through`, and of duplicates that waited for them.
    fn confirm(&self, state: &mut State, through: Option<Position>) -> Confirmed {
        let mut done = Confirmed::default();
        let mut last: Option<Arc<Peer>> = None;
        let State {
            runs,
            receipts,
            scratch,
            dedup,
            ..
        } = state;
        while let Some(run) = runs.front() {
            if run.last().is_some_and(|last| Some(last) > through) {
                break;
            }
            let Some(run) = runs.pop_front() else { break };
            let peer = &run.producer.peer;
            if !last.as_ref().is_some_and(|last| Arc::ptr_eq(last, peer))
                && let Some(last) = last.replace(peer.clone())
            {
                flush(&last, scratch);
            }
            if run.first.is_some() {
                done.bytes += run.bytes;
                done.entries += run.count;
                match done.sends.last_mut() {
                    Some((last, count)) if Arc::ptr_eq(last, peer) => *count += run.count,
                    _ => done.sends.push((peer.clone(), run.count)),
                }
            }
            if let (Some(dedup), Some(sequence_id)) = (dedup.as_mut(), run.sequence_id) {
                dedup.persisted(&run.producer.name, sequence_id);
            }
            run.encode(receipts.drain(..run.count), scratch);
        }
        if let Some(last) = last {
            flush(&last, scratch);
        }
        done
    }

    /// Told by the store: what is not yet durable never will be. The topic is closed; its clients
    /// come back, and find it opened again from what is stored.
    pub(crate) fn failed(self: &Arc<Topic>, reason: &str) {
        tracing::error!(topic = %self.name, reason, "storage failed; the topic is closed");
        let topic = self.clone();
        self.core
            .tasks
            .spawn_cancellable("close a failed topic", async move {
                topic.core.unload(&topic).await;
            });
    }

    /// Forgets what waits for the disk (the topic is closed); their producers send again.
    pub(super) fn forget_runs(&self, state: &mut State) {
        for closing in state.access.closing.drain(..) {
            closing.finish();
        }
        state.receipts.clear();
        for run in state.runs.drain(..) {
            if run.first.is_some() {
                self.core.publishing.give_back(run.bytes);
                run.producer.peer.sends_end(run.count);
            }
        }
    }

    /// Closes a producer from our side.
    pub(super) fn drop_producer(self: &Arc<Topic>, state: &mut State, producer: &Arc<Producer>) {
        self.detach(state, producer);
        tell_closed(producer);
    }

    /// Closes a producer from our side once it has the receipts of what was taken. A client that is
    /// told before forgets the producer, misses those receipts, and takes the next one that it gets
    /// for a gap (seen with the Java client).
    pub(super) fn drop_producer_in_order(
        self: &Arc<Topic>,
        state: &mut State,
        producer: &Arc<Producer>,
    ) {
        self.detach(state, producer);
        if has_sends_under_way(state, producer) {
            let closing = Closing::OnOurSide(producer.clone());
            state.access.closing.push(closing);
        } else {
            tell_closed(producer);
        }
    }

    /// CLOSE_PRODUCER is answered when all that it sent is confirmed.
    pub(crate) fn close_producer(self: &Arc<Topic>, producer: &Arc<Producer>, request_id: u64) {
        let mut state = self.lock();
        self.detach(&mut state, producer);
        let closing = Closing::Asked(producer.clone(), request_id);
        // Also when we were about to close it: the client no longer needs to be told.
        state
            .access
            .closing
            .retain(|other| other.producer().key != producer.key);
        if has_sends_under_way(&state, producer) {
            state.access.closing.push(closing);
        } else {
            closing.finish();
        }
    }

    fn close_when_done(&self, state: &mut State) {
        if state.access.closing.is_empty() {
            return;
        }
        let State { access, runs, .. } = state;
        access.closing.retain(|closing| {
            let key = closing.producer().key;
            let busy = runs.iter().any(|run| run.producer.key == key);
            if !busy {
                closing.finish();
            }
            busy
        });
    }
}

/// A producer that is closed as soon as what it sent is confirmed.
pub(super) enum Closing {
    /// By its client, with this request.
    Asked(Arc<Producer>, u64),
    /// By us: a run of it could not be taken.
    OnOurSide(Arc<Producer>),
}

impl Closing {
    pub(super) fn producer(&self) -> &Producer {
        match self {
            Closing::Asked(producer, _) | Closing::OnOurSide(producer) => producer,
        }
    }

    fn finish(&self) {
        match self {
            Closing::Asked(producer, request_id) => producer.peer.outbox.send(CommandSuccess {
                request_id: *request_id,
                schema: None,
            }),
            Closing::OnOurSide(producer) => tell_closed(producer),
        }
    }
}

fn has_sends_under_way(state: &State, producer: &Producer) -> bool {
    state
        .runs
        .iter()
        .any(|run| run.producer.key == producer.key)
}

fn tell_closed(producer: &Producer) {
    let (id, key) = (producer.id, producer.key);
    let mut outbox = producer.peer.outbox.batch();
    outbox.job(Box::new(move |connection| {
        connection.producer_closed(id, key)
    }));
    outbox.command(
        &CommandCloseProducer {
            producer_id: id,
            request_id: geminga_proto::command::NO_REQUEST,
            assigned_broker_service_url: None,
            assigned_broker_service_url_tls: None,
        }
        .into(),
    );
}

impl Refusal {
    fn of(error: &BrokerError) -> Self {
        Self {
            error: error.server_error(),
            text: error.to_string(),
        }
    }

    fn answer(&self, producer: &Producer, receipt: &Receipt) -> CommandSendError {
        let highest = receipt.highest_sequence_id.unwrap_or(0);
        CommandSendError {
            producer_id: producer.id,
            // Clients look for a batch by its last message then, as Pulsar's brokers name it.
            sequence_id: highest.max(receipt.sequence_id),
            error: self.error as i32,
            message: self.text.clone(),
        }
    }
}

/// What `confirm` did.
#[derive(Default)]
struct Confirmed {
    entries: usize,
    bytes: usize,
    /// How many SENDs of which connection.
    sends: Vec<(Arc<Peer>, usize)>,
}

impl Run {
    fn last(&self) -> Option<Position> {
        let first = self.first?;
        Some(Position::new(
            first.ledger.0,
            first.entry.0 + self.count as i64 - 1,
        ))
    }

    fn encode(&self, receipts: impl Iterator<Item = Receipt>, out: &mut BytesMut) {
        if let Some(refused) = &self.refused {
            for receipt in receipts {
                let answer = refused.answer(&self.producer, &receipt);
                encode_command(&answer.into(), out);
            }
            return;
        }
        let is_stored = self.first.is_some();
        let (ledger_id, mut entry_id) = self.first.unwrap_or(Position::EARLIEST).to_wire();
        for receipt in receipts {
            let frame = SendReceipt {
                producer_id: self.producer.id,
                sequence_id: receipt.sequence_id,
                highest_sequence_id: receipt.highest_sequence_id,
                ledger_id,
                entry_id,
            };
            frame.encode_frame(out);
            entry_id = entry_id.wrapping_add(u64::from(is_stored));
        }
    }
}

fn flush(peer: &Peer, frames: &mut BytesMut) {
    peer.outbox
        .batch()
        .head(|head| head.extend_from_slice(frames));
    frames.clear();
    // A burst leaves a large buffer behind; a topic should not keep it.
    if frames.capacity() > SCRATCH_KEPT {
        *frames = BytesMut::new();
    }
}

fn push_unstored(
    state: &mut State,
    producer: &Arc<Producer>,
    receipts: &[Receipt],
    refused: Option<Refusal>,
) {
    state.receipts.extend(receipts.iter().copied());
    state.runs.push_back(Run {
        producer: producer.clone(),
        first: None,
        refused,
        count: receipts.len(),
        bytes: 0,
        sequence_id: None,
    });
}
