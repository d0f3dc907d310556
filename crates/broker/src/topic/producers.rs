//! Producers that join and leave a topic: names, successors and access modes.

use std::collections::VecDeque;
use std::sync::Arc;

use geminga_proto::pb::CommandProducerSuccess;

use super::publish::Closing;
use super::{Life, State, Topic};
use crate::error::BrokerError;
use crate::peer::Peer;
use crate::producer::{AccessMode, Producer};

/// Who may publish, beside the list of producers.
#[derive(Default)]
pub(crate) struct Access {
    /// The exclusive producer.
    owner: Option<(u64, Arc<str>)>,
    waiting: VecDeque<Waiting>,
    /// Rises with each exclusive owner; stored with the topic.
    pub(crate) epoch: Option<u64>,
    /// With sends not yet confirmed: closed afterwards.
    pub(super) closing: Vec<Closing>,
}

struct Waiting {
    producer: Arc<Producer>,
    request_id: u64,
}

impl Access {
    pub(super) fn new(epoch: Option<u64>) -> Access {
        Access {
            epoch,
            ..Access::default()
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.closing.is_empty()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

pub(crate) enum Attached {
    Now {
        topic_epoch: Option<u64>,
    },
    /// Told later by a second PRODUCER_SUCCESS.
    Queued,
}

pub(crate) enum AttachError {
    /// A producer of this name exists; if its connection is dead, try again.
    NameTaken(Arc<Peer>),
    Refused(BrokerError),
}

impl Topic {
    /// Adds a producer. `topic_epoch` is what an exclusive one was given before its reconnect.
    pub(crate) fn attach(
        self: &Arc<Topic>,
        producer: &Arc<Producer>,
        topic_epoch: Option<u64>,
        request_id: u64,
    ) -> Result<Attached, AttachError> {
        let refused = |error| Err(AttachError::Refused(error));
        let mut state = self.open().map_err(AttachError::Refused)?;
        if self.is_terminated() {
            return refused(BrokerError::Terminated(self.name.to_string()));
        }
        let max = self.policies().producers_max;
        if max > 0
            && !producer.is_replicator()
            && state.producers.len() >= max
            && !state.producers.contains_key(&producer.name)
        {
            return refused(BrokerError::ProducerBusy(format!(
                "Topic '{}' reached max producers limit",
                self.name
            )));
        }
        if let Some(other) = state.producers.get(&producer.name) {
            if !producer.succeeds(other) {
                return Err(AttachError::NameTaken(other.peer.clone()));
            }
            let other = other.clone();
            self.detach(&mut state, &other);
        }
        match access(&mut state, producer, topic_epoch) {
            Err(error) => return refused(error),
            Ok(Grant::Wait) => {
                state.access.waiting.push_back(Waiting {
                    producer: producer.clone(),
                    request_id,
                });
                return Ok(Attached::Queued);
            }
            Ok(Grant::Now) => {}
            Ok(Grant::Fence) => self.fence(&mut state),
        }
        let topic_epoch = self.admit(&mut state, producer, topic_epoch);
        Ok(Attached::Now { topic_epoch })
    }

    /// Removes a producer, connected or waiting. A waiting one may take over.
    pub(crate) fn detach(self: &Arc<Topic>, state: &mut State, producer: &Producer) {
        state
            .access
            .waiting
            .retain(|waiting| waiting.producer.key != producer.key);
        let here = state
            .producers
            .get(&producer.name)
            .is_some_and(|other| other.key == producer.key);
        if here {
            state.producers.remove(&producer.name);
        }
        if state
            .access
            .owner
            .as_ref()
            .is_some_and(|(key, _)| *key == producer.key)
        {
            state.access.owner = None;
        }
        if state.producers.is_empty() && state.access.owner.is_none() {
            self.promote(state);
        }
        state.touch_idle(self.core.clock.now_ms());
    }

    pub(crate) fn detach_gone(self: &Arc<Topic>, producer: &Producer) {
        let mut state = self.lock();
        self.detach(&mut state, producer);
        state
            .access
            .closing
            .retain(|closing| closing.producer().key != producer.key);
    }

    /// Closes a producer from our side: it may publish no longer.
    pub(crate) fn expel(self: &Arc<Topic>, producer: &Arc<Producer>) {
        let mut state = self.lock();
        self.drop_producer_in_order(&mut state, producer);
    }

    fn admit(
        &self,
        state: &mut State,
        producer: &Arc<Producer>,
        topic_epoch: Option<u64>,
    ) -> Option<u64> {
        state
            .producers
            .insert(producer.name.clone(), producer.clone());
        state.wake_replicators();
        if !producer.access.is_exclusive() {
            return None;
        }
        state.access.owner = Some((producer.key, producer.name.clone()));
        // A client may have named the last one there is.
        let next = || {
            state
                .access
                .epoch
                .map_or(0, |epoch| epoch.saturating_add(1))
        };
        let epoch = topic_epoch.unwrap_or_else(next);
        state.access.epoch = Some(epoch);
        Some(epoch)
    }

    /// Drops all producers without a word: their next SEND closes their connection.
    fn fence(self: &Arc<Topic>, state: &mut State) {
        for waiting in std::mem::take(&mut state.access.waiting) {
            let error = BrokerError::ProducerFenced("Fenced out".to_owned());
            let (id, key) = (waiting.producer.id, waiting.producer.key);
            let mut outbox = waiting.producer.peer.outbox.batch();
            outbox.job(Box::new(move |connection| {
                connection.producer_fenced(id, key)
            }));
            outbox.command(&geminga_proto::command::error(
                waiting.request_id,
                error.server_error(),
                error.to_string(),
            ));
        }
        for (_, producer) in state.producers.drain() {
            let (id, key) = (producer.id, producer.key);
            producer.peer.outbox.post(Box::new(move |connection| {
                connection.producer_fenced(id, key)
            }));
        }
        state.access.owner = None;
    }

    /// The topic is free: the first one that waits for it gets it.
    fn promote(self: &Arc<Topic>, state: &mut State) {
        if state.life != Life::Open {
            return;
        }
        while let Some(Waiting {
            producer,
            request_id,
        }) = state.access.waiting.pop_front()
        {
            let topic_epoch = self.admit(state, &producer, None);
            let (topic, next) = (self.clone(), producer.clone());
            let granted = producer.peer.outbox.post(Box::new(move |connection| {
                connection.producer_granted(&topic, next, request_id, topic_epoch);
            }));
            self.store_epoch(topic_epoch);
            if granted {
                return;
            }
            state.producers.remove(&producer.name);
            state.access.owner = None;
        }
    }

    /// Keeps the epoch with the topic. A crash before it is durable is harmless only for owners
    /// that were not yet told, so PRODUCER_SUCCESS waits for `store_epoch_durably`.
    fn store_epoch(self: &Arc<Topic>, epoch: Option<u64>) {
        let Some(epoch) = epoch else { return };
        let topic = self.clone();
        self.core.tasks.spawn_cancellable("store a topic epoch", async move {
            if let Err(error) = topic.store_epoch_durably(epoch).await {
                tracing::error!(topic = %topic.name, %error, "the topic epoch could not be stored");
            }
        });
    }

    pub(crate) async fn store_epoch_durably(&self, epoch: u64) -> Result<(), BrokerError> {
        if !self.is_persistent() {
            return Ok(());
        }
        self.ledger
            .set_property("topicEpoch", &epoch.to_string())
            .await?;
        Ok(())
    }

    /// Checks whether a name is free for `producer`, without adding it.
    pub(crate) fn success(
        producer: &Producer,
        request_id: u64,
        topic_epoch: Option<u64>,
        ready: bool,
    ) -> CommandProducerSuccess {
        CommandProducerSuccess {
            request_id,
            producer_name: producer.name.to_string(),
            last_sequence_id: Some(-1),
            schema_version: Some(crate::schema::version_bytes(producer.schema_version).into()),
            topic_epoch,
            producer_ready: Some(ready),
        }
    }
}

enum Grant {
    Now,
    /// Others go.
    Fence,
    Wait,
}

fn access(
    state: &mut State,
    producer: &Producer,
    topic_epoch: Option<u64>,
) -> Result<Grant, BrokerError> {
    let Access {
        owner,
        waiting,
        epoch,
        ..
    } = &state.access;
    let fenced = |text: String| Err(BrokerError::ProducerFenced(text));
    let taken = owner.is_some() || !waiting.is_empty();
    let owner_name = owner
        .as_ref()
        .map_or("a waiting one", |(_, name)| &**name)
        .to_owned();
    let stale = topic_epoch.is_some_and(|mine| epoch.is_some_and(|now| mine < now));
    let stale_text = || {
        format!(
            "Topic epoch has already moved. Current epoch: {}, Producer epoch: {}",
            epoch.unwrap_or(0),
            topic_epoch.unwrap_or(0)
        )
    };
    match producer.access {
        AccessMode::Shared if taken => Err(BrokerError::ProducerBusy(format!(
            "Topic has an existing exclusive producer: {owner_name}"
        ))),
        AccessMode::Shared => Ok(Grant::Now),
        AccessMode::Exclusive if taken => fenced(format!(
            "Topic has an existing exclusive producer: {owner_name}"
        )),
        AccessMode::Exclusive if !state.producers.is_empty() => {
            fenced("Topic has existing shared producers".to_owned())
        }
        AccessMode::WaitForExclusive if owner.is_some() || !state.producers.is_empty() => {
            Ok(Grant::Wait)
        }
        _ if stale => fenced(stale_text()),
        AccessMode::Exclusive | AccessMode::WaitForExclusive => Ok(Grant::Now),
        AccessMode::ExclusiveWithFencing => Ok(Grant::Fence),
    }
}
