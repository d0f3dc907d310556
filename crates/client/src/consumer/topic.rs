//! The consumer of one topic or partition: its link, permits, acks and redeliveries.
//!
//! Lock order: this state, then a connection's outbox or the inbox. A connection calls in here
//! without a lock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use geminga_model::name::TopicName;
use geminga_proto::{Command, MessageId, pb};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::acks::{Acks, Position};
use super::decode::{Entry, Opened, Opener, Start};
use super::inbox::Inbox;
use super::permits::Permits;
use super::settings::{Options, SeekTo};
use crate::client::Shared;
use crate::connection::Connection;
use crate::error::{Error, Result};
use crate::message::ReceivedMessage;
use crate::transaction::Transaction;

/// Acks that are sent at once, without waiting for more.
const ACKS_AT_ONCE: usize = 1000;

pub(crate) struct Topic {
    pub(super) id: u64,
    pub(super) index: usize,
    pub(super) name: TopicName,
    pub(super) shared: Arc<Shared>,
    pub(super) options: Arc<Options>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) state: Mutex<State>,
    /// The link changed: for the driver.
    pub(super) changed: Notify,
    /// There is something to wait for: for the driver's timers.
    pub(super) timing: Notify,
    /// The link opened or is over: for those who wait for it.
    pub(super) linked: Notify,
    pub(super) paused: Arc<AtomicBool>,
    /// Counts the jumps: what was delivered before one is stale. Changed only under the state.
    generation: AtomicU32,
}

pub(super) enum Link {
    Connecting,
    Open(Arc<Connection>),
    Over(Error),
}

pub(super) struct State {
    pub(super) link: Link,
    pub(super) assigned: Option<String>,
    /// It has or had a link.
    was_open: bool,
    /// Counts the times that the link opened.
    subscription: u32,
    /// The broker's counter of the same, for Exclusive and Failover.
    pub(super) epoch: u64,
    permits: Permits,
    pub(super) seeking: bool,
    /// Where a subscription that is not durable begins when the link opens again.
    pub(super) resume: Option<MessageId>,
    last_taken: Option<MessageId>,
    opener: Opener,
    acks: Acks,
    acks_due: Option<Instant>,
    nacks: BinaryHeap<Reverse<(Instant, Position)>>,
    active: bool,
    ended: bool,
}

impl Topic {
    pub(super) fn new(
        shared: Arc<Shared>,
        options: Arc<Options>,
        inbox: Arc<Inbox>,
        paused: Arc<AtomicBool>,
        name: TopicName,
        index: usize,
        permits: Permits,
    ) -> Self {
        let mut opener = Opener::new(name.as_str());
        opener.start = options.start;
        let state = State {
            link: Link::Connecting,
            assigned: None,
            was_open: false,
            subscription: 0,
            epoch: 0,
            permits,
            seeking: false,
            resume: options.start.map(|start| start.id),
            last_taken: None,
            opener,
            acks: Acks::new(options.batch_index_ack),
            acks_due: None,
            nacks: BinaryHeap::new(),
            active: false,
            ended: false,
        };
        Self {
            id: shared.next_id(),
            index,
            name,
            shared,
            options,
            inbox,
            state: Mutex::new(state),
            changed: Notify::new(),
            timing: Notify::new(),
            linked: Notify::new(),
            paused,
            generation: AtomicU32::new(0),
        }
    }

    /// Messages from the broker, in order.
    pub(crate) fn arrived(&self, from: &Connection, entries: &mut Vec<Entry>) {
        {
            let mut state = self.state.lock();
            if !state.is_linked_to(from) {
                return;
            }
            let (subscription, generation) = (state.subscription, self.generation());
            let (epoch, seeking) = (state.epoch, state.seeking);
            let (mut is_changed, permits) = (false, &mut state.permits);
            entries.retain_mut(|entry| {
                entry.topic = self.index;
                entry.subscription = subscription;
                entry.generation = generation;
                let stale = seeking || entry.epoch.is_some_and(|its| its < epoch);
                if stale || permits.is_growing() {
                    let peek = geminga_proto::message::peek(&entry.block);
                    let cost = entry.permits(peek.ok().as_ref());
                    match stale {
                        true => permits.returned(cost),
                        false => permits.arrived(cost, entry.block.len()),
                    }
                    is_changed = true;
                }
                !stale
            });
            if is_changed {
                self.give_due(&mut state);
            }
        }
        if !entries.is_empty() {
            self.inbox.push(entries);
        }
    }

    /// Opens an entry that the consumer took from the inbox, unless it is stale.
    pub(super) fn open(&self, entry: &Entry, emit: &mut impl FnMut(ReceivedMessage)) {
        let mut state = self.state.lock();
        if entry.subscription != state.subscription {
            return;
        }
        let peek = geminga_proto::message::peek(&entry.block);
        let cost = entry.permits(peek.as_ref().ok());
        state.permits.taken(cost, entry.block.len());
        self.give_due(&mut state);
        if entry.generation != self.generation() {
            return;
        }
        if peek.as_ref().is_ok_and(|peek| peek.has_encryption_keys) {
            tracing::warn!(topic = %self.name, id = %entry.id, "encrypted message is left alone");
            return;
        }
        let State { opener, acks, .. } = &mut *state;
        let mut last = None;
        let looks_at_acks = acks.has_partial_batches();
        let result = peek.and_then(|peek| {
            opener.open(
                entry,
                &peek,
                |position, index| looks_at_acks && acks.is_acked(position, index),
                &mut |message: ReceivedMessage| {
                    last = Some(message.id);
                    emit(message);
                },
            )
        });
        match result {
            Ok(Opened::Messages) => {}
            // Acknowledged with the last one.
            Ok(Opened::Chunk) => {}
            Ok(Opened::Chunked(before)) => acks.remember_chunks(entry.id.position(), before),
            Ok(Opened::Dropped(positions)) => {
                for (ledger, entry) in positions {
                    acks.ack(&MessageId::entry(ledger, entry));
                }
                self.acks_changed(&mut state);
            }
            Err(error) => {
                // As other clients do: a message that nobody can read is acknowledged, and the
                // broker hears why.
                tracing::warn!(topic = %self.name, id = %entry.id, %error, "broken message");
                self.discard(&state, entry, &error);
            }
        }
        if let Some(last) = last {
            if self.options.durable
                && state
                    .opener
                    .start
                    .is_some_and(|start| start.id.position() != last.position())
            {
                // A seek of another consumer may go before it later.
                state.opener.start = None;
            }
            state.last_taken = Some(last);
        }
    }

    fn discard(&self, state: &State, entry: &Entry, error: &geminga_proto::MessageError) {
        use geminga_proto::MessageError;
        use pb::command_ack::{AckType, ValidationError};
        let Link::Open(connection) = &state.link else {
            return;
        };
        let reason = match error {
            MessageError::Checksum(_) => ValidationError::ChecksumMismatch,
            MessageError::Compression(_) => ValidationError::DecompressionError,
            _ => ValidationError::BatchDeSerializeError,
        };
        let ack = pb::CommandAck {
            consumer_id: self.id,
            ack_type: AckType::Individual as i32,
            message_id: vec![entry.id.to_data()],
            validation_error: Some(reason as i32),
            ..Default::default()
        };
        connection.send(&ack.into());
    }

    /// Whether a message that was opened earlier is still to be delivered.
    pub(super) fn is_current(&self, generation: u32) -> bool {
        self.generation() == generation
    }

    fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    fn jump(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Gives the broker the permits that are free, when it is time.
    fn give_due(&self, state: &mut State) {
        if state.permits.are_due() {
            self.flow(state);
        }
    }

    fn flow(&self, state: &mut State) {
        if self.paused.load(Ordering::Relaxed) {
            return;
        }
        if let Link::Open(connection) = &state.link {
            let message_permits = state.permits.give();
            if message_permits == 0 {
                return;
            }
            let flow = pb::CommandFlow {
                consumer_id: self.id,
                message_permits,
            };
            connection.send(&flow.into());
        }
    }

    /// After a pause: the permits that gathered.
    pub(super) fn resume(&self) {
        self.flow(&mut self.state.lock());
    }

    pub(super) fn ack(&self, ids: &[MessageId]) {
        let mut state = self.state.lock();
        for id in ids {
            state.acks.ack(id);
        }
        self.acks_changed(&mut state);
    }

    pub(super) fn ack_cumulative(&self, id: &MessageId) {
        let mut state = self.state.lock();
        state.acks.ack_cumulative(id);
        self.acks_changed(&mut state);
    }

    fn acks_changed(&self, state: &mut State) {
        let waiting = state.acks.waiting();
        if waiting >= ACKS_AT_ONCE || self.options.ack_delay.is_zero() {
            self.send_acks(state);
        } else if waiting > 0 && state.acks_due.is_none() {
            state.acks_due = Some(Instant::now() + self.options.ack_delay);
            self.timing.notify_one();
        }
    }

    /// Sends what is acknowledged, if there is a link; otherwise it is sent when there is one.
    fn send_acks(&self, state: &mut State) {
        state.acks_due = None;
        if let Link::Open(connection) = &state.link {
            let connection = connection.clone();
            for command in state.acks.take(self.id) {
                connection.send(&command.into());
            }
        }
    }

    pub(super) fn flush_acks(&self) {
        self.send_acks(&mut self.state.lock());
    }

    /// Sends what is acknowledged and waits until the broker has stored it.
    pub(super) async fn flush_acks_durable(&self) -> Result<()> {
        let deadline = Instant::now() + self.shared.operation_timeout;
        loop {
            let connection = self.link().await?;
            let mut commands = self.state.lock().acks.take(self.id);
            let mut failure = None;
            while let Some(command) = commands.first() {
                let mut command = command.clone();
                let answer = connection
                    .request("ack", |request_id| {
                        command.request_id = Some(request_id);
                        command.into()
                    })
                    .await;
                if let Err(error) = answer {
                    failure = Some(error);
                    break;
                }
                commands.remove(0);
            }
            let Some(error) = failure else { return Ok(()) };
            self.state.lock().acks.put_back(commands);
            if !error.is_retriable() || Instant::now() >= deadline {
                return Err(error);
            }
            self.shared.sleep(Duration::from_millis(50)).await?;
        }
    }

    /// Acknowledges in a transaction, at once; one attempt.
    pub(super) async fn ack_in(&self, txn: &Transaction, ids: &[MessageId]) -> Result<()> {
        let open = &txn.open;
        let subscription = &self.options.subscription;
        open.join_subscription(self.id, self.name.as_str(), subscription)
            .await?;
        open.begin(1)?;
        // If this is dropped half-way, whether the acks arrived is not known.
        let mut pending = Acking {
            txn,
            result: Err(Error::Closed),
        };
        let commands = self.state.lock().acks.in_transaction(self.id, ids);
        pending.result = async {
            let connection = self.link().await?;
            for mut command in commands {
                command.txnid_most_bits = Some(open.id.most);
                command.txnid_least_bits = Some(open.id.least);
                let answer = connection.request("ack in a transaction", |request_id| {
                    command.request_id = Some(request_id);
                    command.into()
                });
                answer.await?;
            }
            Ok(())
        }
        .await;
        pending.result.clone()
    }

    /// Asks for a message again after a while.
    pub(super) fn nack(&self, id: &MessageId, delay: Duration) {
        if delay.is_zero() {
            self.redeliver(&[id.position()]);
            return;
        }
        let mut state = self.state.lock();
        state
            .nacks
            .push(Reverse((Instant::now() + delay, id.position())));
        drop(state);
        self.timing.notify_one();
    }

    /// Asks for messages again now; for everything unacknowledged where the kind of subscription
    /// knows no single messages.
    pub(super) fn redeliver(&self, positions: &[Position]) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let one_by_one = self.options.sub_type.acks_one_by_one();
        // The broker must not redeliver what is acknowledged already.
        self.send_acks(state);
        let Link::Open(connection) = &state.link else {
            // Everything unacknowledged comes again with the next link.
            return;
        };
        let mut command = pb::CommandRedeliverUnacknowledgedMessages {
            consumer_id: self.id,
            ..Default::default()
        };
        if one_by_one && !positions.is_empty() {
            for &position in positions {
                let chunks = state.acks.chunks_of(position).iter().copied();
                let all = chunks.chain([position]);
                command
                    .message_ids
                    .extend(all.map(|(ledger, entry)| MessageId::entry(ledger, entry).to_data()));
            }
        } else {
            self.jump();
            state.opener.clear();
            state.nacks.clear();
            if !one_by_one {
                state.epoch += 1;
                command.consumer_epoch = Some(state.epoch);
            }
        }
        connection.send(&command.into());
    }

    /// What the clock asks for: acks, redeliveries. Gives the time to look again.
    pub(super) fn tick(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut due = Vec::new();
        let next = {
            let mut state = self.state.lock();
            if state.acks_due.is_some_and(|at| now >= at) {
                self.send_acks(&mut state);
            }
            while let Some(Reverse((at, position))) = state.nacks.peek().copied() {
                if at > now {
                    break;
                }
                state.nacks.pop();
                due.push(position);
            }
            let nack = state.nacks.peek().map(|Reverse((at, _))| *at);
            state.acks_due.into_iter().chain(nack).min()
        };
        if !due.is_empty() {
            self.redeliver(&due);
        }
        next
    }

    /// Moves the subscription. The broker drops the link; it opens again at the new place.
    pub(super) async fn seek(&self, to: SeekTo) -> Result<()> {
        let connection = self.link().await?;
        let (subscription, before) = {
            let mut state = self.state.lock();
            let before = (state.opener.start, state.resume);
            self.jump();
            state.seeking = true;
            state.acks.clear();
            state.nacks.clear();
            state.opener.clear();
            state.last_taken = None;
            match to {
                SeekTo::Id(id) => {
                    state.opener.start = Some(Start {
                        id,
                        inclusive: true,
                    });
                    state.resume = Some(id.without_batch().without_chunk());
                }
                SeekTo::Time(_) => {
                    state.opener.start = None;
                    state.resume = Some(MessageId::EARLIEST);
                }
            }
            (state.subscription, before)
        };
        let seeking = Seeking(self);
        let answer = connection
            .request("seek", |request_id| {
                let mut seek = pb::CommandSeek {
                    consumer_id: self.id,
                    request_id,
                    ..Default::default()
                };
                match to {
                    SeekTo::Id(id) => {
                        seek.message_id = Some(id.without_batch().without_chunk().to_data());
                    }
                    SeekTo::Time(ms) => seek.message_publish_time = Some(ms),
                }
                seek.into()
            })
            .await;
        drop(seeking);
        if answer.is_err() {
            let mut state = self.state.lock();
            if state.subscription == subscription && matches!(state.link, Link::Open(_)) {
                // Refused: what was thrown away meanwhile comes again.
                (state.opener.start, state.resume) = before;
                drop(state);
                self.redeliver(&[]);
            }
        }
        answer.map(|_| ())
    }

    /// The last message of the topic, and how far the subscription is acknowledged.
    pub(super) async fn last_message_id(&self) -> Result<(MessageId, Option<MessageId>)> {
        let mut answer = self
            .request("last message id", |consumer_id, request_id| {
                pb::CommandGetLastMessageId {
                    consumer_id,
                    request_id,
                }
                .into()
            })
            .await;
        if matches!(&answer, Err(error) if error.is_retriable()) {
            answer = self
                .request("last message id", |consumer_id, request_id| {
                    pb::CommandGetLastMessageId {
                        consumer_id,
                        request_id,
                    }
                    .into()
                })
                .await;
        }
        match answer? {
            Command::GetLastMessageIdResponse(answer) => Ok((
                MessageId {
                    partition: self.name.partition().map_or(-1, |number| number as i32),
                    ..MessageId::from(&answer.last_message_id)
                },
                answer
                    .consumer_mark_delete_position
                    .as_ref()
                    .map(MessageId::from),
            )),
            other => Err(Error::UnexpectedAnswer(other.name())),
        }
    }

    /// Whether there is a message that was not taken yet.
    pub(super) async fn has_more(&self) -> Result<bool> {
        let (last, acknowledged) = self.last_message_id().await?;
        if last.entry_id < 0 {
            return Ok(false);
        }
        let state = self.state.lock();
        let key = |id: &MessageId| (id.ledger_id, id.entry_id, id.batch_index);
        if let Some(taken) = &state.last_taken {
            return Ok(key(&last) > key(taken));
        }
        Ok(match state.opener.start {
            Some(start) if start.id == MessageId::LATEST => {
                acknowledged.is_some_and(|acknowledged| last.position() > acknowledged.position())
            }
            Some(Start {
                id,
                inclusive: true,
            }) => last.position() >= id.position(),
            Some(Start {
                id,
                inclusive: false,
            }) => {
                last.position() > id.position()
                    || (last.position() == id.position() && last.batch_index > id.batch_index)
            }
            None => {
                acknowledged.is_none_or(|acknowledged| last.position() > acknowledged.position())
            }
        })
    }

    /// A request about this consumer.
    pub(super) async fn request(
        &self,
        what: &'static str,
        make: impl FnOnce(u64, u64) -> Command,
    ) -> Result<Command> {
        let connection = self.link().await?;
        connection
            .request(what, |request_id| make(self.id, request_id))
            .await
    }

    /// The open link, waited for.
    pub(super) async fn link(&self) -> Result<Arc<Connection>> {
        let limit = self.shared.operation_timeout;
        let linked = async {
            loop {
                let linked = self.linked.notified();
                match &self.state.lock().link {
                    Link::Open(connection) => return Ok(connection.clone()),
                    Link::Over(error) => return Err(error.clone()),
                    Link::Connecting => {}
                }
                linked.await;
            }
        };
        tokio::time::timeout(limit, linked)
            .await
            .unwrap_or(Err(Error::Timeout {
                what: "consumer's connection",
                after_ms: limit.as_millis() as u64,
            }))
    }

    /// The link is open: messages may come.
    pub(super) fn opened(&self, connection: Arc<Connection>) {
        {
            let mut state = self.state.lock();
            if matches!(state.link, Link::Over(_)) {
                return;
            }
            state.link = Link::Open(connection.clone());
            state.was_open = true;
            state.subscription += 1;
            if self.options.durable {
                // What was opened and not received is not acknowledged: it comes again. Where the
                // subscription is not durable it does not: the link began behind it.
                self.jump();
            }
            state.opener.clear();
            state.acks.forget_deliveries();
            state.nacks.clear();
            self.send_acks(&mut state);
            state.permits.renew(connection.max_message_size());
            self.flow(&mut state);
        }
        self.linked.notify_waiters();
        if !connection.is_open() {
            // It ended before it was our link, so nobody told us.
            self.disconnected(&connection);
        }
    }

    /// Where a subscription that is not durable begins: behind the last message that was opened. What came by
    /// the link before and is not opened by now comes again.
    pub(super) fn start_position(&self) -> Option<MessageId> {
        let mut state = self.state.lock();
        state.subscription += 1;
        if let Some(taken) = state.last_taken {
            state.opener.start = Some(Start {
                id: taken,
                inclusive: false,
            });
            return Some(taken.without_batch().without_chunk());
        }
        state.resume.map(|id| id.without_batch().without_chunk())
    }

    /// The connection is over; the driver makes a new link.
    pub(crate) fn disconnected(&self, from: &Connection) {
        let mut state = self.state.lock();
        if state.is_linked_to(from) {
            state.link = Link::Connecting;
            drop(state);
            self.changed.notify_one();
        }
    }

    /// The broker gives the topic up, or a seek moves the subscription.
    pub(crate) fn closed_by_broker(&self, from: &Connection, assigned: Option<String>) {
        self.state.lock().assigned = assigned;
        self.disconnected(from);
    }

    pub(crate) fn active_changed(&self, active: bool) {
        self.state.lock().active = active;
    }

    pub(super) fn is_active(&self) -> bool {
        self.state.lock().active
    }

    pub(crate) fn reached_end(&self) {
        self.state.lock().ended = true;
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state.lock().ended
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state.lock().link, Link::Over(_))
    }

    /// Whether no broker ever took this, so that it has no messages.
    pub(super) fn never_opened(&self) -> bool {
        !self.state.lock().was_open
    }

    pub(super) fn is_connected(&self) -> bool {
        matches!(self.state.lock().link, Link::Open(_))
    }

    /// Ends for good. Gives the connection that it was on.
    pub(super) fn over(&self, error: Error) -> Option<Arc<Connection>> {
        let link = {
            let mut state = self.state.lock();
            if matches!(state.link, Link::Over(_)) {
                return None;
            }
            self.send_acks(&mut state);
            std::mem::replace(&mut state.link, Link::Over(error))
        };
        self.changed.notify_one();
        self.linked.notify_waiters();
        match link {
            Link::Open(connection) => {
                connection.remove_consumer(self.id);
                Some(connection)
            }
            _ => None,
        }
    }
}

/// An acknowledgement that its transaction waits for.
struct Acking<'a> {
    txn: &'a Transaction,
    result: Result<()>,
}

impl Drop for Acking<'_> {
    fn drop(&mut self) {
        self.txn.open.settle(1, self.result.as_ref().err());
    }
}

/// While a seek is under way, what arrives is of the old place, and the broker drops the link. To
/// subscribe again before the answer would be a race with the move of the cursor.
struct Seeking<'a>(&'a Topic);

impl Drop for Seeking<'_> {
    fn drop(&mut self) {
        self.0.state.lock().seeking = false;
        self.0.changed.notify_one();
    }
}

impl State {
    fn is_linked_to(&self, connection: &Connection) -> bool {
        matches!(&self.link, Link::Open(ours) if std::ptr::eq(&**ours, connection))
    }
}
