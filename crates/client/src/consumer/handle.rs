//! What acknowledges, refuses and seeks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use geminga_proto::{MessageId, pb};

use super::group::Group;
use super::settings::SeekTo;
use super::topic::Topic;
use crate::error::{Error, Result};
use crate::message::ReceivedMessage;
use crate::transaction::{Transaction, all};

/// A message that is acknowledged or refused: a received message, or its id where the consumer
/// reads one topic.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub(super) topic: Option<&'a str>,
    pub(super) id: MessageId,
}

impl Target<'_> {
    /// Whether another message is surely of the same topic.
    fn is_with(&self, other: &Target<'_>) -> bool {
        self.topic == other.topic && self.id.partition == other.id.partition
    }
}

impl<'a> From<&'a MessageId> for Target<'a> {
    fn from(id: &'a MessageId) -> Self {
        Self {
            topic: None,
            id: *id,
        }
    }
}

impl<'a> From<&'a ReceivedMessage> for Target<'a> {
    fn from(message: &'a ReceivedMessage) -> Self {
        Self {
            topic: Some(&message.topic),
            id: message.id,
        }
    }
}

impl<'a> From<(&'a str, &'a MessageId)> for Target<'a> {
    fn from((topic, id): (&'a str, &'a MessageId)) -> Self {
        Self {
            topic: Some(topic),
            id: *id,
        }
    }
}

/// Acknowledges, refuses and seeks for a [`Consumer`]. Cheap to clone.
#[derive(Clone)]
pub struct ConsumerHandle {
    pub(super) group: Arc<Group>,
}

impl std::fmt::Debug for ConsumerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer")
            .field("subscription", &self.group.options.subscription)
            .field("name", &self.group.options.name)
            .field("topics", &self.group.topics.read().len())
            .finish_non_exhaustive()
    }
}

impl ConsumerHandle {
    /// The subscription's name.
    #[must_use]
    pub fn subscription(&self) -> &str {
        &self.group.options.subscription
    }

    /// The consumer's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.group.options.name
    }

    /// The topics that are read now, partitions one by one.
    #[must_use]
    pub fn topics(&self) -> Vec<String> {
        let topics = self.group.topics.read();
        topics
            .iter()
            .filter(|topic| !topic.is_over())
            .map(|topic| topic.name.to_string())
            .collect()
    }

    /// Whether all topics have a broker now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.group
            .topics
            .read()
            .iter()
            .all(|topic| topic.is_connected())
    }

    /// Whether this is the active consumer, in Exclusive and Failover subscriptions.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.group
            .topics
            .read()
            .iter()
            .any(|topic| topic.is_active())
    }

    /// Whether all topics are terminated and read to their end.
    #[must_use]
    pub fn has_reached_end(&self) -> bool {
        self.group
            .topics
            .read()
            .iter()
            .all(|topic| topic.has_ended())
    }

    /// Acknowledges a message, by itself or by its id. Acks are gathered and sent together; after
    /// a lost connection some may have to be given again.
    ///
    /// # Errors
    /// When the message is not of a topic of this consumer.
    pub async fn ack<'a>(&self, message: impl Into<Target<'a>>) -> Result<()> {
        let target = message.into();
        self.group.topic(&target)?.ack(&[target.id]);
        Ok(())
    }

    /// Acknowledges a message and waits until the broker has stored that.
    ///
    /// # Errors
    /// When the broker refuses or does not answer in time.
    pub async fn ack_durable<'a>(&self, message: impl Into<Target<'a>>) -> Result<()> {
        let target = message.into();
        let topic = self.group.topic(&target)?;
        topic.ack(&[target.id]);
        topic.flush_acks_durable().await
    }

    /// Acknowledges several messages.
    ///
    /// # Errors
    /// When a message is not of a topic of this consumer; those before it are acknowledged.
    pub async fn ack_many<'a, T: Into<Target<'a>>>(
        &self,
        messages: impl IntoIterator<Item = T>,
    ) -> Result<()> {
        self.ack_all(messages)?;
        Ok(())
    }

    /// Acknowledges several messages and waits until the brokers have stored that.
    ///
    /// # Errors
    /// When a broker refuses or does not answer in time.
    pub async fn ack_many_durable<'a, T: Into<Target<'a>>>(
        &self,
        messages: impl IntoIterator<Item = T>,
    ) -> Result<()> {
        for topic in self.ack_all(messages)? {
            topic.flush_acks_durable().await?;
        }
        Ok(())
    }

    /// Acknowledges, and gives the topics that are concerned. Neighbours of one topic are taken
    /// together.
    fn ack_all<'a, T: Into<Target<'a>>>(
        &self,
        messages: impl IntoIterator<Item = T>,
    ) -> Result<Vec<Arc<Topic>>> {
        let mut concerned: Vec<Arc<Topic>> = Vec::new();
        let mut messages = messages.into_iter().map(Into::into).peekable();
        let mut run = Vec::new();
        while let Some(first) = messages.next() {
            let topic = self.group.topic(&first)?;
            run.push(first.id);
            while let Some(next) = messages.next_if(|next| next.is_with(&first)) {
                run.push(next.id);
            }
            topic.ack(&run);
            run.clear();
            if !concerned.iter().any(|other| Arc::ptr_eq(other, &topic)) {
                concerned.push(topic);
            }
        }
        Ok(concerned)
    }

    /// Acknowledges messages in a transaction: it counts when that is committed. Resolves when the
    /// brokers have stored it.
    ///
    /// # Errors
    /// When the transaction has ended, or a message is acknowledged already, by itself or in another
    /// transaction (`TransactionConflict`): then the transaction cannot be committed any more.
    pub async fn ack_many_in<'a, T: Into<Target<'a>>>(
        &self,
        txn: &Transaction,
        messages: impl IntoIterator<Item = T>,
    ) -> Result<()> {
        let concerned = self.by_topic(messages)?;
        // Begun together: each waits for its broker's disk.
        let acks = concerned.iter().map(|(topic, ids)| topic.ack_in(txn, ids));
        all(acks.collect()).await
    }

    /// The messages of each topic, in their order.
    fn by_topic<'a, T: Into<Target<'a>>>(
        &self,
        messages: impl IntoIterator<Item = T>,
    ) -> Result<Vec<(Arc<Topic>, Vec<MessageId>)>> {
        let mut concerned: Vec<(Arc<Topic>, Vec<MessageId>)> = Vec::new();
        let mut messages = messages.into_iter().map(Into::into).peekable();
        while let Some(first) = messages.next() {
            let topic = self.group.topic(&first)?;
            let known = concerned
                .iter()
                .position(|(other, _)| Arc::ptr_eq(other, &topic));
            let index = known.unwrap_or(concerned.len());
            if known.is_none() {
                concerned.push((topic, Vec::new()));
            }
            let ids = &mut concerned[index].1;
            ids.push(first.id);
            while let Some(next) = messages.next_if(|next| next.is_with(&first)) {
                ids.push(next.id);
            }
        }
        Ok(concerned)
    }

    /// Acknowledges a message in a transaction, as [`ack_many_in`](ConsumerHandle::ack_many_in).
    ///
    /// # Errors
    /// As there.
    pub async fn ack_in<'a>(
        &self,
        txn: &Transaction,
        message: impl Into<Target<'a>>,
    ) -> Result<()> {
        self.ack_many_in(txn, [message]).await
    }

    /// Acknowledges all messages of the topic up to this one. Not for Shared and Key_Shared.
    ///
    /// # Errors
    /// When the subscription knows only single acks, or the message is of no topic of this
    /// consumer.
    pub async fn ack_cumulative<'a>(&self, message: impl Into<Target<'a>>) -> Result<()> {
        if self.group.options.sub_type.acks_one_by_one() {
            return Err(Error::Setting {
                setting: "sub_type",
                reason: "allows no cumulative acks",
            });
        }
        let target = message.into();
        self.group.topic(&target)?.ack_cumulative(&target.id);
        Ok(())
    }

    /// Sends the acks that are gathered, now.
    pub fn flush_acks(&self) {
        self.group.all().iter().for_each(|topic| topic.flush_acks());
    }

    /// Refuses a message: it comes again after the nack delay. In Exclusive and Failover
    /// subscriptions, so does everything after it that is not acknowledged.
    ///
    /// # Errors
    /// When the message is not of a topic of this consumer.
    pub async fn nack<'a>(&self, message: impl Into<Target<'a>>) -> Result<()> {
        self.nack_after(message, self.group.options.nack_delay)
            .await
    }

    /// As [`nack`](ConsumerHandle::nack), with a delay of its own; zero is at once.
    ///
    /// # Errors
    /// When the message is not of a topic of this consumer.
    pub async fn nack_after<'a>(
        &self,
        message: impl Into<Target<'a>>,
        delay: Duration,
    ) -> Result<()> {
        let target = message.into();
        self.group.topic(&target)?.nack(&target.id, delay);
        Ok(())
    }

    /// Asks for everything again that is delivered to this consumer and not acknowledged.
    pub async fn redeliver_unacknowledged(&self) {
        self.group
            .all()
            .iter()
            .for_each(|topic| topic.redeliver(&[]));
    }

    /// Moves the subscription, in all topics. The position is an id of the topic, so more than
    /// one topic can go only to a time, the earliest or the latest message.
    ///
    /// # Errors
    /// When the broker refuses or does not answer in time.
    pub async fn seek(&self, to: impl Into<SeekTo>) -> Result<()> {
        let to = to.into();
        let topics = self.group.all();
        if let SeekTo::Id(id) = to
            && topics.len() > 1
            && id != MessageId::EARLIEST
            && id != MessageId::LATEST
        {
            return self.group.topic(&Target::from(&id))?.seek(to).await;
        }
        for topic in topics {
            topic.seek(to).await?;
        }
        Ok(())
    }

    /// The last message on the broker: of the one topic, or the greatest id of several.
    ///
    /// # Errors
    /// When a broker refuses or does not answer in time.
    pub async fn last_message_id(&self) -> Result<MessageId> {
        let all = self.last_message_ids().await?;
        Ok(all
            .into_iter()
            .map(|(_, id)| id)
            .max()
            .unwrap_or(MessageId::EARLIEST))
    }

    /// The last message of each topic.
    ///
    /// # Errors
    /// When a broker refuses or does not answer in time.
    pub async fn last_message_ids(&self) -> Result<Vec<(String, MessageId)>> {
        let mut ids = Vec::new();
        for topic in self.group.all() {
            ids.push((topic.name.to_string(), topic.last_message_id().await?.0));
        }
        Ok(ids)
    }

    /// Deletes the subscription; the consumer gets nothing more, and joins no new topics.
    ///
    /// # Errors
    /// When the broker refuses, for example because it has other consumers: then all goes on as before. When it
    /// refuses for a later one of several topics: those before it are gone, and no new ones are joined.
    pub async fn unsubscribe(&self) -> Result<()> {
        let (topics, _held) = self.group.hold();
        for topic in topics {
            topic
                .request("unsubscribe", |consumer_id, request_id| {
                    pb::CommandUnsubscribe {
                        consumer_id,
                        request_id,
                        force: None,
                    }
                    .into()
                })
                .await?;
            topic.over(Error::Closed);
            // What was unsubscribed is not found anew.
            self.group.ended.send_replace(true);
        }
        self.group.end();
        Ok(())
    }

    /// Asks the brokers for no more messages. What is here or under way still comes.
    pub fn pause(&self) {
        self.group.paused.store(true, Ordering::Relaxed);
    }

    /// Goes on after a pause.
    pub fn resume(&self) {
        self.group.paused.store(false, Ordering::Relaxed);
        self.group.all().iter().for_each(|topic| topic.resume());
    }
}
