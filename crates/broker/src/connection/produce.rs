//! PRODUCER, SEND and CLOSE_PRODUCER.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use geminga_model::name::NAME_BYTES_MAX;
use geminga_proto::frame::Frame;
use geminga_proto::marker::Marker;
use geminga_proto::message::{peek, verify_checksum, with_transaction};
use geminga_proto::pb::{
    CommandCloseProducer, CommandProducer, CommandSuccess, ProducerAccessMode, ServerError,
};
use geminga_proto::send::Send;
use geminga_storage::managed::Initial;
use tokio::time::Instant;

use super::{Closed, Connection};
use crate::auth::{Action, Need};
use crate::broker::Core;
use crate::error::BrokerError;
use crate::peer::Peer;
use crate::producer::{AccessMode, Origin, Producer};
use crate::replication::{is_replicator, source_position};
use crate::topic::Topic;
use crate::topic::policy::SendLimits;
use crate::topic::producers::{AttachError, Attached};
use crate::topic::publish::{Batch, Counts, Receipt};
use crate::topic::subscribe::Wanted;
use crate::transaction::TxnId;
use crate::transaction::pending_ack::BATCH_MESSAGES_MAX;

/// Entries of one run: one append, one lock.
const RUN_ENTRIES_MAX: usize = 4_096;
const RUN_BYTES_MAX: usize = 1 << 20;
/// Bytes of a producer's metadata.
const METADATA_BYTES_MAX: usize = 64 << 10;

pub(crate) enum ProducerSlot {
    /// The number of the request that opens it.
    Opening(u64),
    Open {
        topic: Arc<Topic>,
        producer: Arc<Producer>,
    },
}

impl Connection {
    pub(super) fn handle_producer(&mut self, request: CommandProducer) {
        let (id, request_id) = (request.producer_id, request.request_id);
        match self.producers.get(&id) {
            Some(ProducerSlot::Opening(_)) => {
                let text = "Producer is already present on the connection".to_owned();
                return self.refuse(request_id, &BrokerError::NotReady(text));
            }
            Some(ProducerSlot::Open { producer, .. }) => {
                let mut success = Topic::success(producer, request_id, None, true);
                success.last_sequence_id = None;
                return self.peer.outbox.send(success);
            }
            None => {}
        }
        self.recently_closed.remove(&id);
        let op = self.next_op();
        self.producers.insert(id, ProducerSlot::Opening(op));
        let (core, peer) = (self.core.clone(), self.peer.clone());
        self.request("open a producer", async move {
            let result = open_producer(&core, &peer, request).await;
            move |connection: &mut Connection| {
                connection.producer_opened(id, op, request_id, result)
            }
        });
    }

    fn producer_opened(
        &mut self,
        id: u64,
        op: u64,
        request_id: u64,
        result: Result<Opened, BrokerError>,
    ) {
        let current =
            matches!(self.producers.get(&id), Some(ProducerSlot::Opening(at)) if *at == op);
        match result {
            Err(reason) => {
                if current {
                    self.producers.remove(&id);
                    self.refuse(request_id, &reason);
                }
            }
            // It was granted before this came.
            Ok(mut opened) if self.is_open_producer(id, opened.producer.key) => {
                opened.is_taken = true;
            }
            Ok(_) if !current => {}
            Ok(_) if self.peer.is_gone() => {
                self.producers.remove(&id);
            }
            Ok(mut opened) => {
                opened.is_taken = true;
                let (topic, producer) = (opened.topic.clone(), opened.producer.clone());
                match opened.attached {
                    Attached::Now { topic_epoch } => {
                        self.producer_granted(&topic, producer, request_id, topic_epoch);
                    }
                    Attached::Queued => {
                        // Stays `Opening`: it may not send before it is granted.
                        let success = Topic::success(&producer, request_id, None, false);
                        self.peer.outbox.send(success);
                        self.waiting_producers.insert(id, (topic, producer));
                    }
                }
            }
        }
    }

    /// The producer may publish.
    pub(crate) fn producer_granted(
        &mut self,
        topic: &Arc<Topic>,
        producer: Arc<Producer>,
        request_id: u64,
        topic_epoch: Option<u64>,
    ) {
        self.waiting_producers.remove(&producer.id);
        if !matches!(
            self.producers.get(&producer.id),
            Some(ProducerSlot::Opening(_))
        ) {
            // Closed while it waited.
            return topic.detach_gone(&producer);
        }
        let mut success = Topic::success(&producer, request_id, topic_epoch, true);
        success.last_sequence_id = Some(topic.last_sequence_id(&producer.name));
        self.peer.outbox.send(success);
        let slot = ProducerSlot::Open {
            topic: topic.clone(),
            producer: producer.clone(),
        };
        self.producers.insert(producer.id, slot);
        self.check_rights_if_unsure();
    }

    /// We have closed it and told the client: its SENDs on the way are ignored.
    pub(crate) fn producer_closed(&mut self, id: u64, key: u64) {
        if self.remove_producer(id, key) {
            self.recently_closed.insert(id, Instant::now());
        }
    }

    /// Others took the topic: the client is not told, its next SEND closes the connection.
    pub(crate) fn producer_fenced(&mut self, id: u64, key: u64) {
        if self
            .waiting_producers
            .get(&id)
            .is_some_and(|(_, producer)| producer.key == key)
        {
            self.waiting_producers.remove(&id);
            self.producers.remove(&id);
        }
        self.remove_producer(id, key);
    }

    fn is_open_producer(&self, id: u64, key: u64) -> bool {
        matches!(self.producers.get(&id),
            Some(ProducerSlot::Open { producer, .. }) if producer.key == key)
    }

    fn remove_producer(&mut self, id: u64, key: u64) -> bool {
        let here = self.is_open_producer(id, key);
        if here {
            self.publish_batch();
            self.producers.remove(&id);
        }
        here
    }

    pub(super) fn handle_close_producer(&mut self, request: &CommandCloseProducer) {
        let id = request.producer_id;
        if let Some((topic, producer)) = self.waiting_producers.remove(&id) {
            topic.detach_gone(&producer);
        }
        match self.producers.remove(&id) {
            Some(ProducerSlot::Open { topic, producer }) => {
                topic.close_producer(&producer, request.request_id);
            }
            Some(ProducerSlot::Opening(_)) | None => {
                let success = CommandSuccess {
                    request_id: request.request_id,
                    schema: None,
                };
                self.peer.outbox.send(success);
            }
        }
    }

    pub(super) fn handle_send(&mut self, send: &Send, frame: &Frame<'_>) -> Result<(), Closed> {
        let transaction = TxnId::from_wire(send.txnid_most_bits, send.txnid_least_bits);
        let fits = self.batch.producer.as_ref().is_some_and(|producer| {
            producer.id == send.producer_id
                && self.batch.transaction == transaction
                && self.batch.entries.len() < RUN_ENTRIES_MAX
                && self.batch.bytes < RUN_BYTES_MAX
        });
        if !fits {
            self.publish_batch();
            let Some(ProducerSlot::Open { topic, producer }) =
                self.producers.get(&send.producer_id)
            else {
                if self.recently_closed.contains_key(&send.producer_id) {
                    return Ok(());
                }
                return Err(Closed::Protocol("a SEND for an unknown producer"));
            };
            self.batch.producer = Some(producer.clone());
            self.batch.transaction = transaction;
            self.batch_topic = Some(topic.clone());
            self.send_limits = topic.send_limits();
        }
        let seen = match self.check_send(send, frame.block()) {
            Ok(seen) => seen,
            Err((kind, text)) => {
                self.refuse_send(send, kind, text);
                return Ok(());
            }
        };
        if transaction.is_some() {
            self.txn_checked = transaction;
        }
        let mut block = frame.block_bytes();
        if let Some(txn) = transaction
            && !seen.names_transaction
            && let Ok(named) = with_transaction(&block, txn.tc, txn.number)
        {
            block = named;
        }
        let receipt = match receipt_of(&self.batch, send, &block, seen) {
            Ok(receipt) => receipt,
            Err(text) => {
                self.refuse_send(send, ServerError::PersistenceError, text.to_owned());
                return Ok(());
            }
        };
        let batch = &mut self.batch;
        batch.bytes += block.len();
        // What clusters tell each other is no message.
        let is_marker = send.marker && batch.producer.as_ref().is_some_and(|p| p.is_replicator());
        if !is_marker {
            batch.messages += u64::from(send.num_messages.max(1).unsigned_abs());
        }
        batch.chunks += u64::from(send.is_chunk);
        batch.entries.push(block);
        batch.receipts.push(receipt);
        Ok(())
    }

    /// Answers a SEND that is not taken, in order with the receipts of what came before it.
    fn refuse_send(&mut self, send: &Send, error: ServerError, text: String) {
        let (topic, producer) = (self.batch_topic.clone(), self.batch.producer.clone());
        self.publish_batch();
        if let (Some(topic), Some(producer)) = (topic, producer) {
            topic.refuse_send(&producer, send, error, text);
        }
    }

    /// What the metadata says that matters from here on, unless the message must be refused.
    fn check_send(&self, send: &Send, block: &[u8]) -> Result<Seen, (ServerError, String)> {
        if verify_checksum(block).is_err() {
            return Err((
                ServerError::ChecksumError,
                "Checksum failed on the broker".to_owned(),
            ));
        }
        if let Some(highest) = send.highest_sequence_id
            && highest < send.sequence_id
            && highest != 0
        {
            return Err((
                ServerError::MetadataError,
                "Invalid lowest or highest sequence id".to_owned(),
            ));
        }
        if send.message_id.is_some() {
            return Err((
                ServerError::NotAllowedError,
                "Only shadow topic supports sending messages with messageId".to_owned(),
            ));
        }
        let SendLimits {
            max_delay_ms,
            size_max,
            encryption_required,
        } = self.send_limits;
        let producer = self.batch.producer.as_ref();
        // What another cluster took is taken here too: refused, it would hold up all behind it.
        let is_replicator = producer.is_some_and(|producer| producer.is_replicator());
        if block.len() > size_max && !is_replicator {
            return Err((
                ServerError::NotAllowedError,
                format!("Message size exceeds the topic's limit of {size_max} bytes"),
            ));
        }
        let encrypted = producer.is_some_and(|producer| producer.encrypted);
        // What every consumer could not read is refused here; that also reads the delay.
        let Ok(head) = peek(block) else {
            return Err((
                ServerError::MetadataError,
                "Invalid message metadata".to_owned(),
            ));
        };
        let count = head.num_messages_in_batch.unwrap_or(1);
        // What is counted against rates and permits is what the client says.
        if count.max(send.num_messages) > BATCH_MESSAGES_MAX as i32 {
            let text = format!("A batch has more than {BATCH_MESSAGES_MAX} messages");
            return Err((ServerError::MetadataError, text));
        }
        if let Some(txn) = TxnId::from_wire(send.txnid_most_bits, send.txnid_least_bits) {
            if let Err(reason) = self.core.transactions.check_enabled() {
                return Err((reason.server_error(), reason.to_string()));
            }
            if self.txn_checked != Some(txn)
                && let Err(reason) = self.check_txn_owner(txn)
            {
                return Err((reason.server_error(), reason.to_string()));
            }
            if TxnId::of(&head).is_some_and(|named| named != txn) {
                let text = "The message's metadata names another transaction".to_owned();
                return Err((ServerError::MetadataError, text));
            }
        }
        if max_delay_ms > 0
            && !is_replicator
            && let Some(at) = head.deliver_at_time.and_then(|at| u64::try_from(at).ok())
            && at > self.core.clock.now_ms().saturating_add(max_delay_ms)
        {
            let text = format!("Exceeds max allowed delivery delay of {max_delay_ms} milliseconds");
            return Err((ServerError::NotAllowedError, text));
        }
        let is_marker = head.marker_type.is_some();
        if is_marker {
            self.check_marker(is_replicator, block)?;
        }
        if (encrypted || encryption_required) && !head.has_encryption_keys && !is_marker {
            return Err((
                ServerError::MetadataError,
                "Messages must be encrypted".to_owned(),
            ));
        }
        let is_part = head.is_chunk() && !head.is_last_chunk();
        Ok(Seen {
            counts: match is_part || is_marker {
                true => Counts::No,
                false => Counts::BySequence,
            },
            names_transaction: TxnId::of(&head).is_some(),
            is_known_marker: head.marker_type.is_some_and(Marker::is_one),
        })
    }

    /// A marker can ack for a subscription, and make one: it is another cluster's to write, and where
    /// rights count it must have the right to do that itself.
    fn check_marker(&self, is_replicator: bool, block: &[u8]) -> Result<(), (ServerError, String)> {
        if !is_replicator {
            let text = "Only another cluster may publish markers".to_owned();
            return Err((ServerError::NotAllowedError, text));
        }
        let Some(topic) = self.batch_topic.as_ref() else {
            return Ok(());
        };
        let marker = Marker::decode(&Bytes::copy_from_slice(block));
        let need = match &marker {
            Ok(Some(Marker::Update(update))) => Need::Subscription {
                topic: &topic.name,
                subscription: &update.subscription_name,
            },
            // One that cannot be read does nothing.
            Ok(_) | Err(_) => Need::Topic {
                topic: &topic.name,
                actions: &[Action::Consume],
            },
        };
        self.core
            .security
            .authorize(&self.login.session, &need)
            .map_err(|reason| (reason.server_error(), reason.to_string()))
    }

    pub(crate) fn publish_batch(&mut self) {
        let Some(topic) = self.batch_topic.take() else {
            return;
        };
        if self.batch.is_empty() {
            self.batch.clear();
        } else {
            topic.publish(&mut self.batch);
        }
    }

    pub(super) fn end_producers(&mut self) {
        for (_, (topic, producer)) in self.waiting_producers.drain() {
            topic.detach_gone(&producer);
        }
        for (_, slot) in self.producers.drain() {
            if let ProducerSlot::Open { topic, producer } = slot {
                topic.detach_gone(&producer);
            }
        }
    }
}

/// What was found in a message's metadata, which is read once.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Whether deduplication counts the message.
    counts: Counts,
    names_transaction: bool,
    is_known_marker: bool,
}

/// What a message is answered with. A replicator that names the place of each message in its own
/// cluster is answered with that place, and a marker with a number that no message has.
fn receipt_of(
    batch: &Batch,
    send: &Send,
    block: &[u8],
    seen: Seen,
) -> Result<Receipt, &'static str> {
    let plain = Receipt {
        sequence_id: send.sequence_id,
        highest_sequence_id: send.highest_sequence_id,
        counts: seen.counts,
    };
    let by_source = match batch.producer.as_ref().map(|producer| producer.origin) {
        None | Some(Origin::Client) => return Ok(plain),
        Some(Origin::Replicator { by_source }) => by_source,
    };
    if !by_source {
        // Its numbers are those of many producers.
        return Ok(Receipt {
            counts: Counts::No,
            ..plain
        });
    }
    if seen.is_known_marker {
        return Ok(Receipt {
            highest_sequence_id: Some(i64::MIN as u64),
            counts: Counts::No,
            ..plain
        });
    }
    match source_position(block) {
        Some((ledger, entry)) => Ok(Receipt {
            sequence_id: ledger,
            highest_sequence_id: Some(entry),
            counts: Counts::BySource,
        }),
        None => Err("A replicated message must name its position in its cluster"),
    }
}

/// A producer that is attached. It is detached when this is dropped, unless the connection took it
/// over: that may have ended meanwhile, and its job is then never run.
struct Opened {
    topic: Arc<Topic>,
    producer: Arc<Producer>,
    attached: Attached,
    is_taken: bool,
}

impl Drop for Opened {
    fn drop(&mut self) {
        if !self.is_taken {
            self.topic.detach_gone(&self.producer);
        }
    }
}

async fn open_producer(
    core: &Arc<Core>,
    peer: &Arc<Peer>,
    request: CommandProducer,
) -> Result<Opened, BrokerError> {
    let name = core.parse_topic(&request.topic)?;
    let given = request.producer_name.as_deref().unwrap_or_default();
    if given.len() > NAME_BYTES_MAX {
        return Err(BrokerError::Metadata(format!(
            "Producer name is longer than {NAME_BYTES_MAX} bytes"
        )));
    }
    let pairs = request.metadata.iter();
    let metadata: usize = pairs.map(|pair| pair.key.len() + pair.value.len()).sum();
    if metadata > METADATA_BYTES_MAX {
        return Err(BrokerError::Metadata(format!(
            "Producer metadata is larger than {METADATA_BYTES_MAX} bytes"
        )));
    }
    let topic = core.topic_to_publish(&name).await?;
    let origin = match is_replicator(given) {
        true => Origin::Replicator {
            by_source: topic.is_persistent() && peer.by_source.load(Ordering::Relaxed),
        },
        false => Origin::Client,
    };
    let access = match request.producer_access_mode() {
        ProducerAccessMode::Shared => AccessMode::Shared,
        ProducerAccessMode::Exclusive => AccessMode::Exclusive,
        ProducerAccessMode::WaitForExclusive => AccessMode::WaitForExclusive,
        ProducerAccessMode::ExclusiveWithFencing => AccessMode::ExclusiveWithFencing,
    };
    let encrypted = request.encrypted.unwrap_or(false);
    // What a replicator brings is looked at message by message.
    if topic.policies().encryption_required && !encrypted && origin == Origin::Client {
        return Err(BrokerError::Metadata(format!(
            "Encryption is required in {name}"
        )));
    }
    let schema_version = core.producer_schema(&name, request.schema.as_ref()).await?;
    if let Some(subscription) = request.initial_subscription_name.as_deref()
        && !subscription.is_empty()
    {
        let wanted = Wanted {
            name: subscription.into(),
            durable: true,
            initial: Initial::Earliest,
            properties: Default::default(),
            create: topic.policies().auto_subscription_creation,
        };
        topic
            .ensure_subscription(&wanted)
            .await
            .map_err(|reason| {
                match reason {
            BrokerError::SubscriptionNotFound { .. } => BrokerError::NotAllowed(
                "Could not create the initial subscription due to the auto subscription creation \
                 is not allowed."
                    .to_owned(),
            ),
            other => other,
        }
            })?;
    }
    if topic.is_persistent() {
        topic.check_quota_for_producer().await?;
        // One that comes back because its messages were not taken would come again and again:
        // refused here it waits longer each time, and its messages run into their own time-out.
        if core.ledgers.store().is_full() {
            let reason = "the disk is full: nothing is stored until there is room";
            return Err(BrokerError::Persistence(reason.to_owned()));
        }
        topic.ledger.prepare().await?;
    }
    let producer_name = match request.producer_name {
        Some(name) if !name.is_empty() => name,
        _ => core.producer_name(),
    };
    let producer = Arc::new(Producer {
        key: core.next_id(),
        id: request.producer_id,
        name: producer_name.into(),
        peer: peer.clone(),
        epoch: request.epoch.unwrap_or(0),
        access,
        encrypted,
        origin,
        schema_version,
        metadata: request
            .metadata
            .into_iter()
            .map(|pair| (pair.key, pair.value))
            .collect(),
        connected_since_ms: core.clock.now_ms(),
        messages_in: AtomicU64::new(0),
        bytes_in: AtomicU64::new(0),
        dropped: Default::default(),
    });
    topic.dedup_ready(&producer.name).await?;
    let timeout = Duration::from_millis(core.config.connection_liveness_check_timeout_millis);
    loop {
        match topic.attach(&producer, request.topic_epoch, request.request_id) {
            Ok(attached) => {
                let opened = Opened {
                    topic,
                    producer,
                    attached,
                    is_taken: false,
                };
                if let Attached::Now {
                    topic_epoch: Some(epoch),
                } = opened.attached
                {
                    opened.topic.store_epoch_durably(epoch).await?;
                }
                return Ok(opened);
            }
            Err(AttachError::Refused(reason)) => return Err(reason),
            Err(AttachError::NameTaken(other)) => {
                if Arc::ptr_eq(&other, peer) || other.is_alive(timeout).await {
                    return Err(BrokerError::ProducerBusy(format!(
                        "Producer with name '{}' is already connected to topic",
                        producer.name
                    )));
                }
                core.forget_peer(&topic, &other);
            }
        }
    }
}
