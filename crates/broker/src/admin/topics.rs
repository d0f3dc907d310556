//! Topics as operators handle them: emptied, looked into, described; and the checks run at once.

use std::collections::BTreeMap;

use geminga_model::{Position, TopicName};
use geminga_storage::ReadLimits;
use geminga_storage::metadata::Expected;

use super::PeekedEntry;
use crate::broker::Broker;
use crate::error::BrokerError;
use crate::namespace::{Partitioned, partitioned_key};
use crate::topic::inactive::is_ours;

/// Before the name of a property that the user keeps with a topic.
const USER: &str = "user.";

impl Broker {
    /// Does now what is else done from time to time: expiry, quotas, deletion of what is not used.
    pub async fn run_checks(&self) {
        self.core.check_all().await;
    }

    /// Deletes all that is stored, acked or not: every subscription goes on with what comes next.
    pub async fn truncate(&self, name: &TopicName) -> Result<(), BrokerError> {
        let topic = self.existing(name).await?;
        for subscription in self.subscriptions(name).await? {
            self.skip_all(name, &subscription).await?;
        }
        let last = topic.ledger.durable_position();
        let now_ms = self.core.clock.now_ms();
        for replicator in &topic.lock().replicators {
            replicator.expire_through(last, now_ms)?;
        }
        // The deduplication's own cursor holds data back too.
        topic.maintain_dedup(true).await;
        topic.ledger.truncate().await?;
        Ok(())
    }

    /// The first entry published at or after a time; none when there is no such.
    pub async fn position_at(
        &self,
        name: &TopicName,
        time_ms: u64,
    ) -> Result<Option<Position>, BrokerError> {
        let position = self.existing(name).await?.position_of_time(time_ms).await?;
        Ok((position != Position::LATEST).then_some(position))
    }

    /// The `nth` entry that is stored, counted from 1, from the first or from the last on.
    pub async fn examine(
        &self,
        name: &TopicName,
        nth: u64,
        from_last: bool,
    ) -> Result<PeekedEntry, BrokerError> {
        let topic = self.existing(name).await?;
        let ledger = &topic.ledger;
        let all = ledger.entries();
        let none = || {
            BrokerError::PreconditionFailed(
                "Could not examine messages: the topic has none".to_owned(),
            )
        };
        if all == 0 {
            return Err(none());
        }
        let skipped = nth.max(1).min(all) - 1;
        let position = match from_last {
            true => ledger.place_of_entry(all - 1 - skipped),
            false => ledger.place_of_entry(skipped),
        };
        let entries = ledger
            .read(position, ReadLimits::new(1, usize::MAX))
            .await?;
        let entry = entries.into_iter().next().ok_or_else(none)?;
        Ok(PeekedEntry {
            position: entry.position,
            block: entry.data,
        })
    }

    /// About the bytes stored from an entry on.
    pub async fn bytes_from(
        &self,
        name: &TopicName,
        position: Position,
    ) -> Result<u64, BrokerError> {
        Ok(self.existing(name).await?.ledger.bytes_from(position))
    }

    /// What the user keeps with a topic, which is not partitioned.
    pub async fn topic_properties(
        &self,
        name: &TopicName,
    ) -> Result<BTreeMap<String, String>, BrokerError> {
        let stored = self.existing(name).await?.ledger.properties();
        let own =
            |(key, value): (String, String)| Some((key.strip_prefix(USER)?.to_owned(), value));
        Ok(stored.into_iter().filter_map(own).collect())
    }

    /// Adds properties to a topic, partitioned or not, and removes another.
    pub async fn change_topic_properties(
        &self,
        name: &TopicName,
        put: BTreeMap<String, String>,
        remove: Option<String>,
    ) -> Result<(), BrokerError> {
        let key = partitioned_key(name);
        if let Some((mut stored, version)) = self.core.catalog.get::<Partitioned>(&key).await? {
            if let Some(key) = remove {
                stored.properties.remove(&key);
            }
            stored.properties.extend(put);
            let expected = Expected::Is(version);
            return self.core.catalog.put(&key, &stored, expected).await;
        }
        let topic = self.existing(name).await?;
        topic
            .ledger
            .change_properties(move |stored| {
                if let Some(key) = remove {
                    stored.remove(&format!("{USER}{key}"));
                }
                for (key, value) in put {
                    stored.insert(format!("{USER}{key}"), value);
                }
            })
            .await?;
        Ok(())
    }

    pub async fn subscription_properties(
        &self,
        name: &TopicName,
        subscription: &str,
    ) -> Result<BTreeMap<String, String>, BrokerError> {
        let cursor = self.cursor(name, subscription).await?;
        let all = cursor.properties().into_iter();
        Ok(all.filter(|(key, _)| !is_ours(key)).collect())
    }

    /// Replaces them.
    pub async fn set_subscription_properties(
        &self,
        name: &TopicName,
        subscription: &str,
        properties: BTreeMap<String, String>,
    ) -> Result<(), BrokerError> {
        let cursor = self.cursor(name, subscription).await?;
        let mut new: geminga_storage::managed::Properties = properties.into_iter().collect();
        new.retain(|key, _| !is_ours(key));
        new.extend(
            cursor
                .properties()
                .into_iter()
                .filter(|(key, _)| is_ours(key)),
        );
        cursor.set_properties(new).await?;
        Ok(())
    }

    /// Acks everything up to an entry, as expired; a conflict when it was acked.
    pub async fn expire_through(
        &self,
        name: &TopicName,
        subscription: &str,
        through: Position,
    ) -> Result<(), BrokerError> {
        let topic = self.existing(name).await?;
        let cursor = self.cursor(name, subscription).await?;
        let through = through.min(topic.ledger.durable_position());
        let expired = {
            let mut state = topic.open()?;
            topic.skip_through(&mut state, subscription, through)?
        };
        if !expired {
            return Err(BrokerError::AlreadyExists(
                "Expire message by position not issued: nothing to expire".to_owned(),
            ));
        }
        cursor.durable().await?;
        Ok(())
    }

    async fn cursor(
        &self,
        name: &TopicName,
        subscription: &str,
    ) -> Result<std::sync::Arc<geminga_storage::managed::Cursor>, BrokerError> {
        let topic = self.existing(name).await?;
        let mut state = topic.open()?;
        let found = state.subscription_named(subscription);
        found
            .map(|found| found.cursor.clone())
            .ok_or_else(|| BrokerError::SubscriptionNotFound {
                topic: name.to_string(),
                subscription: subscription.to_owned(),
            })
    }
}
