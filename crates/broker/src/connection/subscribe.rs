//! SUBSCRIBE, CLOSE_CONSUMER and UNSUBSCRIBE.

use std::sync::Arc;
use std::time::Duration;

use geminga_model::Position;
use geminga_model::name::NAME_BYTES_MAX;
use geminga_proto::command::success;
use geminga_proto::pb::command_subscribe::{InitialPosition, SubType};
use geminga_proto::pb::{
    CommandCloseConsumer, CommandSubscribe, CommandUnsubscribe, KeySharedMode,
};
use geminga_storage::managed::Initial;

use super::Connection;
use super::consume::{ConsumerSlot, OpenConsumer};
use crate::broker::Core;
use crate::config::SubscriptionType;
use crate::consumer::{KeySharedPolicy, NewConsumer};
use crate::dispatcher::ConsumerKey;
use crate::error::BrokerError;
use crate::peer::Peer;
use crate::topic::Topic;
use crate::topic::inactive::refuse_ours;
use crate::topic::subscribe::{Wanted, reader_start};

/// A consumer that has joined. It leaves again when this is dropped, unless the connection took it
/// over: that may have ended meanwhile, and its job is then never run.
struct Joined {
    open: Option<OpenConsumer>,
}

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            open.topic.leave(open.subscription, open.key);
        }
    }
}

impl Connection {
    pub(super) fn handle_subscribe(&mut self, request: CommandSubscribe) {
        let (id, request_id) = (request.consumer_id, request.request_id);
        match self.consumers.get(&id) {
            Some(ConsumerSlot::Opening(_)) => {
                let text = "Consumer is already present on the connection".to_owned();
                return self.refuse(request_id, &BrokerError::NotReady(text));
            }
            Some(ConsumerSlot::Open(_)) => return self.peer.outbox.send(success(request_id)),
            None => {}
        }
        let op = self.next_op();
        self.consumers.insert(id, ConsumerSlot::Opening(op));
        let (core, peer) = (self.core.clone(), self.peer.clone());
        self.request("open a consumer", async move {
            let result = subscribe(&core, &peer, request).await;
            move |connection: &mut Connection| connection.subscribed(id, op, request_id, result)
        });
    }

    fn subscribed(
        &mut self,
        id: u64,
        op: u64,
        request_id: u64,
        result: Result<Joined, BrokerError>,
    ) {
        let current =
            matches!(self.consumers.get(&id), Some(ConsumerSlot::Opening(at)) if *at == op);
        match result {
            Err(reason) => {
                if current {
                    self.consumers.remove(&id);
                    self.refuse(request_id, &reason);
                }
            }
            Ok(_) if !current => {}
            Ok(_) if self.peer.is_gone() => {
                self.consumers.remove(&id);
            }
            Ok(mut joined) => {
                let Some(open) = joined.open.take() else {
                    return;
                };
                self.peer.outbox.send(success(request_id));
                let (topic, subscription) = (open.topic.clone(), open.subscription);
                self.consumers.insert(id, ConsumerSlot::Open(open));
                topic.announce(subscription);
                self.check_rights_if_unsure();
            }
        }
    }

    /// We have closed it and told the client, which will subscribe again.
    pub(crate) fn consumer_closed(&mut self, id: u64, key: ConsumerKey) {
        if matches!(self.consumers.get(&id), Some(ConsumerSlot::Open(open)) if open.key == key) {
            self.consumers.remove(&id);
        }
    }

    pub(super) fn handle_close_consumer(&mut self, request: &CommandCloseConsumer) {
        // One that is still opening leaves as soon as it has joined.
        if let Some(ConsumerSlot::Open(open)) = self.consumers.remove(&request.consumer_id) {
            open.topic.leave(open.subscription, open.key);
        }
        self.peer.outbox.send(success(request.request_id));
    }

    pub(super) fn handle_unsubscribe(&mut self, request: &CommandUnsubscribe) {
        let (id, request_id, force) = (
            request.consumer_id,
            request.request_id,
            request.force.unwrap_or(false),
        );
        let Some(ConsumerSlot::Open(open)) = self.consumers.get(&id) else {
            let reason = BrokerError::Metadata("Consumer not found".to_owned());
            return self.refuse(request_id, &reason);
        };
        let open = open.clone();
        self.request("unsubscribe", async move {
            let result = open
                .topic
                .unsubscribe(open.subscription, open.key, force)
                .await;
            move |connection: &mut Connection| match result {
                Ok(()) => {
                    connection.consumer_closed(id, open.key);
                    connection.peer.outbox.send(success(request_id));
                }
                Err(reason) => connection.refuse(request_id, &reason),
            }
        });
    }

    pub(super) fn end_consumers(&mut self) {
        for (_, slot) in self.consumers.drain() {
            if let ConsumerSlot::Open(open) = slot {
                open.topic.leave(open.subscription, open.key);
            }
        }
    }

    /// The outbox has room again: dispatches to this connection's consumers. The first topic may
    /// fill it, so another one is first the next time.
    pub(super) fn resume_consumers(&mut self) {
        let open = self.consumers.values().filter_map(|slot| match slot {
            ConsumerSlot::Open(open) => Some(open),
            ConsumerSlot::Opening(_) => None,
        });
        let mut all: Vec<(&Arc<Topic>, u32)> =
            open.map(|open| (&open.topic, open.subscription)).collect();
        let place = |(topic, id): &(&Arc<Topic>, u32)| (Arc::as_ptr(topic) as usize, *id);
        all.sort_unstable_by_key(place);
        all.dedup_by_key(|one| place(one));
        let topics: Vec<&[(&Arc<Topic>, u32)]> =
            all.chunk_by(|a, b| Arc::ptr_eq(a.0, b.0)).collect();
        let first = self.turn % topics.len().max(1);
        self.turn = first + 1;
        for here in topics[first..].iter().chain(&topics[..first]) {
            if let Some((topic, _)) = here.first() {
                topic.resume(here.iter().map(|(_, id)| *id).collect());
            }
        }
    }
}

async fn subscribe(
    core: &Arc<Core>,
    peer: &Arc<Peer>,
    request: CommandSubscribe,
) -> Result<Joined, BrokerError> {
    let name = core.parse_topic(&request.topic)?;
    let kind = match request.sub_type() {
        SubType::Exclusive => SubscriptionType::Exclusive,
        SubType::Shared => SubscriptionType::Shared,
        SubType::Failover => SubscriptionType::Failover,
        SubType::KeyShared => SubscriptionType::KeyShared,
    };
    check(core, &request, kind)?;
    if request.read_compacted.unwrap_or(false) && !name.is_persistent() {
        return Err(BrokerError::NotAllowed(
            "readCompacted only allowed on persistent topics".to_owned(),
        ));
    }
    let durable = request.durable.unwrap_or(true);
    let create_topic = request.force_topic_creation.unwrap_or(true);
    let topic = core.topic(&name, create_topic).await?;
    core.consumer_schema(&topic, request.schema.as_ref())
        .await?;
    let start = request.start_message_id.as_ref().filter(|_| !durable);
    let initial = match (start, request.initial_position()) {
        (Some(id), _) => reader_start(Position::from_wire(id.ledger_id, id.entry_id)),
        (None, InitialPosition::Latest) => Initial::Latest,
        (None, InitialPosition::Earliest) => Initial::Earliest,
    };
    let properties = request
        .subscription_properties
        .iter()
        .map(|pair| (pair.key.clone(), pair.value.clone()))
        .collect();
    let wanted = Wanted {
        name: request.subscription.as_str().into(),
        durable,
        initial,
        properties,
        create: topic.policies().auto_subscription_creation,
    };
    let key_shared = request.key_shared_meta.clone().unwrap_or_default();
    let ranges = key_shared
        .hash_ranges
        .iter()
        .map(|range| (range.start, range.end))
        .collect();
    let key = ConsumerKey(core.next_id());
    let consumer = NewConsumer {
        key,
        id: request.consumer_id,
        name: request.consumer_name.clone().unwrap_or_default().into(),
        peer: peer.clone(),
        priority: request.priority_level.unwrap_or(0),
        epoch: request.consumer_epoch,
        metadata: request
            .metadata
            .iter()
            .map(|pair| (pair.key.clone(), pair.value.clone()))
            .collect(),
        kind,
        key_shared: KeySharedPolicy {
            sticky: key_shared.key_shared_mode() == KeySharedMode::Sticky,
            allow_out_of_order: key_shared.allow_out_of_order_delivery.unwrap_or(false),
        },
        ranges,
        read_compacted: request.read_compacted.unwrap_or(false),
    };
    let rollback = request
        .start_message_rollback_duration_sec
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs);
    let subscription = topic.subscribe(&wanted, consumer, rollback).await?;
    // It is switched on by a client, and off by an operator alone.
    if durable && request.replicate_subscription_state() && topic.is_persistent() {
        topic.set_replicated(&wanted.name, true).await?;
    }
    let open = OpenConsumer {
        topic,
        subscription,
        key,
    };
    Ok(Joined { open: Some(open) })
}

fn check(
    core: &Core,
    request: &CommandSubscribe,
    kind: SubscriptionType,
) -> Result<(), BrokerError> {
    let config = &core.config;
    let name = &request.subscription;
    // Pulsar's naming errors come out as ProducerBusy, for subscriptions too.
    if name.is_empty() {
        return Err(BrokerError::ProducerBusy(
            "Empty subscription name".to_owned(),
        ));
    }
    if name.starts_with("pulsar.repl") || name == "pulsar.dedup" {
        return Err(BrokerError::ProducerBusy(format!(
            "Subscription with reserved subscription name attempted: {name}"
        )));
    }
    if request.read_compacted.unwrap_or(false) && !kind.is_single_active() {
        return Err(BrokerError::NotAllowed(
            "readCompacted only allowed on failover or exclusive subscriptions".to_owned(),
        ));
    }
    if request.consumer_name().len() > NAME_BYTES_MAX {
        return Err(BrokerError::Metadata(format!(
            "Consumer name is longer than {NAME_BYTES_MAX} bytes"
        )));
    }
    refuse_ours(request.subscription_properties.iter().map(|pair| &pair.key))?;
    let metadata: usize = request
        .metadata
        .iter()
        .map(|pair| pair.key.len() + pair.value.len())
        .sum();
    if metadata > config.max_consumer_metadata_size {
        return Err(BrokerError::Metadata(
            "Consumer metadata size exceeds the limit".to_owned(),
        ));
    }
    Ok(())
}
