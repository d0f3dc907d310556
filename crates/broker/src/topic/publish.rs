//! The way of a SEND: appended in one run per read of the socket, confirmed when durable.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use geminga_model::Position;
use geminga_proto::pb::{CommandCloseProducer, CommandSendError, CommandSuccess};
use geminga_proto::send::SendReceipt;
use geminga_storage::error::AppendError;

use super::{Life, State, Topic};
use crate::error::BrokerError;
use crate::peer::Peer;
use crate::producer::Producer;

/// Room for encoded receipts that a topic keeps between commits.
const SCRATCH_KEPT: usize = 64 << 10;

/// What a SEND is answered with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Receipt {
    pub(crate) sequence_id: u64,
    pub(crate) highest_sequence_id: Option<u64>,
}

/// Consecutive entries of one producer that wait for the disk.
pub(crate) struct Run {
    producer: Arc<Producer>,
    first: Position,
    count: usize,
    bytes: usize,
}

/// Consecutive SENDs of one producer, gathered by its connection. Reused.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) producer: Option<Arc<Producer>>,
    pub(crate) entries: Vec<Bytes>,
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
        match self.ledger.append(&batch.entries) {
            Ok(first) => {
                let count = batch.entries.len();
                producer.peer.sends_begin(count);
                self.core.publishing.take(batch.bytes);
                producer.count(batch.messages, batch.bytes as u64);
                state.counters.messages_in += batch.messages;
                state.counters.bytes_in += batch.bytes as u64;
                state.counters.entries_in += count as u64;
                state.counters.chunks_in += batch.chunks;
                state.receipts.extend(batch.receipts.iter().copied());
                state.runs.push_back(Run {
                    producer,
                    first,
                    count,
                    bytes: batch.bytes,
                });
            }
            Err(AppendError::Terminated) => {
                let error = BrokerError::Terminated(self.name.to_string());
                let mut outbox = producer.peer.outbox.batch();
                for receipt in &batch.receipts {
                    outbox.command(&send_error(&producer, receipt.sequence_id, &error).into());
                }
            }
            Err(AppendError::Deleted) => self.failed("the topic was deleted"),
            Err(error) => {
                tracing::warn!(topic = %self.name, producer = %producer.name, %error,
                    "entries were not taken; the producer has to come back");
                self.drop_producer_in_order(&mut state, &producer);
            }
        }
        drop(state);
        batch.clear();
    }

    /// Told by the store: receipts go out, and tailing consumers get the entries.
    pub(crate) fn durable(self: &Arc<Topic>, through: Position) {
        let mut freed = 0;
        let mut done: Vec<(Arc<Peer>, usize)> = Vec::new();
        let mut state = self.lock();
        {
            let State {
                runs,
                receipts,
                scratch,
                ..
            } = &mut *state;
            while let Some(run) = runs.front() {
                if run.last() > through {
                    break;
                }
                let Some(run) = runs.pop_front() else { break };
                let peer = &run.producer.peer;
                freed += run.bytes;
                match done.last_mut() {
                    Some((last, count)) if Arc::ptr_eq(last, peer) => *count += run.count,
                    last => {
                        if let Some((last, _)) = last {
                            flush(last, scratch);
                        }
                        done.push((peer.clone(), run.count));
                    }
                }
                run.encode(receipts.drain(..run.count), scratch);
            }
            if let Some((last, _)) = done.last() {
                flush(last, scratch);
            }
        }
        self.close_when_done(&mut state);
        self.dispatch_all(&mut state);
        drop(state);
        self.core.publishing.give_back(freed);
        for (peer, count) in done {
            peer.sends_end(count);
        }
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
            self.core.publishing.give_back(run.bytes);
            run.producer.peer.sends_end(run.count);
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
    fn drop_producer_in_order(self: &Arc<Topic>, state: &mut State, producer: &Arc<Producer>) {
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

impl Run {
    fn last(&self) -> Position {
        Position::new(
            self.first.ledger.0,
            self.first.entry.0 + self.count as i64 - 1,
        )
    }

    fn encode(&self, receipts: impl Iterator<Item = Receipt>, out: &mut BytesMut) {
        let (ledger_id, mut entry_id) = self.first.to_wire();
        for receipt in receipts {
            let frame = SendReceipt {
                producer_id: self.producer.id,
                sequence_id: receipt.sequence_id,
                highest_sequence_id: receipt.highest_sequence_id,
                ledger_id,
                entry_id,
            };
            frame.encode_frame(out);
            entry_id += 1;
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

pub(crate) fn send_error(
    producer: &Producer,
    sequence_id: u64,
    error: &BrokerError,
) -> CommandSendError {
    CommandSendError {
        producer_id: producer.id,
        sequence_id,
        error: error.server_error() as i32,
        message: error.to_string(),
    }
}
