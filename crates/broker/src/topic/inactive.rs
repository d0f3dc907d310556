//! What nobody uses any more is deleted, where a policy says so: topics and subscriptions.
//!
//! Since when a subscription is not used is kept with its cursor, while it is not: written when its
//! last consumer leaves, removed when one comes. So nothing is deleted that was in use at a crash.

use std::sync::Arc;

use geminga_model::TopicName;

use super::{State, Topic};
use crate::broker::Core;
use crate::error::BrokerError;
use crate::namespace::{decode, ledger_name, ledger_path};
use crate::policies::store::topic_policies_path;
use crate::policies::{EffectivePolicies, InactiveTopicDeleteMode, Policies, effective};
use crate::subscription::Subscription;

/// The cursor property with the milliseconds since when nobody uses the subscription.
pub(crate) const UNUSED_SINCE: &str = "geminga.unusedSince";

/// Whether a property of a subscription is ours, not the user's.
pub(crate) fn is_ours(property: &str) -> bool {
    property.starts_with("geminga.")
}

/// Refuses properties by which the broker keeps what it must know of a subscription.
pub(crate) fn refuse_ours<'a>(
    names: impl IntoIterator<Item = &'a String>,
) -> Result<(), BrokerError> {
    match names.into_iter().find(|name| is_ours(name)) {
        Some(name) => Err(BrokerError::NotAllowed(format!(
            "the subscription property `{name}` is reserved"
        ))),
        None => Ok(()),
    }
}

fn is_deletable(state: &State, mode: InactiveTopicDeleteMode) -> bool {
    state.is_idle()
        && match mode {
            InactiveTopicDeleteMode::DeleteWhenNoSubscriptions => state.subscriptions.is_empty(),
            InactiveTopicDeleteMode::DeleteWhenSubscriptionsCaughtUp => state
                .subscriptions
                .iter()
                .all(|subscription| subscription.cursor.backlog() == 0),
        }
}

/// How long a topic must be inactive; none = for ever.
fn wait_ms(policies: &EffectivePolicies, has_data: bool) -> Option<u64> {
    let own = policies.inactive_topic.max_inactive_duration_seconds;
    let retained = match policies.retention.retention_time_in_minutes {
        _ if !has_data => 0,
        minutes => u64::try_from(minutes).ok()?.saturating_mul(60),
    };
    Some(own.max(retained).saturating_mul(1_000))
}

impl Core {
    /// The topics that are to be looked at though nobody uses them.
    pub(super) async fn timed_topics(&self) -> Result<Vec<TopicName>, BrokerError> {
        let config = self.settings.live();
        let is_timed =
            |own: &Policies, namespace: &Policies| effective(own, namespace, &config).is_timed();
        self.topics_where(|all| is_timed(&Policies::default(), all), is_timed)
            .await
    }

    /// The stored topics of namespaces of which `all` holds, and those of which it holds with
    /// policies of their own.
    pub(crate) async fn topics_where(
        &self,
        in_all: impl Fn(&Policies) -> bool + Send,
        in_one: impl Fn(&Policies, &Policies) -> bool + Send,
    ) -> Result<Vec<TopicName>, BrokerError> {
        let mut names = Vec::new();
        let namespaces = self.catalog.scan::<Policies>("/namespaces").await?;
        for (key, policies) in namespaces {
            let name = key.trim_start_matches("/namespaces/");
            let Ok(namespace) = self.parse_namespace(name) else {
                continue;
            };
            let all = in_all(&policies);
            let own = self
                .catalog
                .scan::<Policies>(&topic_policies_path(&namespace))
                .await?;
            if !all && own.is_empty() {
                continue;
            }
            let own: Vec<String> = own
                .iter()
                .filter(|(_, own)| in_one(own, &policies))
                .filter_map(|(key, _)| decode(key.rsplit('/').next()?))
                .collect();
            if !all && own.is_empty() {
                continue;
            }
            let stored = self.ledgers.list(&ledger_path(&namespace)).await?;
            let topics = stored
                .iter()
                .filter_map(|name| decode(name))
                .filter_map(|local| format!("persistent://{namespace}/{local}").parse().ok())
                .filter(|topic: &TopicName| {
                    all || own.iter().any(|local| local == topic.parent().local())
                });
            names.extend(topics);
        }
        Ok(names)
    }
}

impl Topic {
    /// Whether it stays in memory because it will be deleted when it was idle for long enough.
    pub(crate) fn waits_for_deletion(&self) -> bool {
        let policies = self.policies();
        let inactive = policies.inactive_topic;
        inactive.delete_while_inactive
            && wait_ms(&policies, self.ledger.entries() > 0).is_some()
            && is_deletable(&self.lock(), inactive.inactive_topic_delete_mode)
    }

    pub(super) async fn delete_if_inactive(
        self: &Arc<Topic>,
        policies: &EffectivePolicies,
    ) -> Result<(), BrokerError> {
        let Some(wait_ms) = wait_ms(policies, self.ledger.entries() > 0) else {
            return Ok(());
        };
        let now_ms = self.core.clock.now_ms();
        {
            let state = self.lock();
            let mode = policies.inactive_topic.inactive_topic_delete_mode;
            if !is_deletable(&state, mode)
                || state.inactive_since_ms.saturating_add(wait_ms) > now_ms
            {
                return Ok(());
            }
        }
        // Somebody may come between; then it is not idle, and stays.
        if !self.close_if_idle() {
            return Ok(());
        }
        tracing::info!(topic = %self.name, "deleted: nobody used the topic");
        self.core.unload(self).await;
        self.core.ledgers.delete(&ledger_name(&self.name)).await?;
        self.core.delete_views(&self.name, None).await?;
        if self.name.partition().is_none() {
            self.core.schemas.forget(&self.name).await?;
            self.core.delete_topic_policies(&self.name).await?;
        }
        self.core.watchers.changed(&self.name, false);
        Ok(())
    }

    pub(super) async fn expire_subscriptions(
        self: &Arc<Topic>,
        minutes: u32,
    ) -> Result<(), BrokerError> {
        let now_ms = self.core.clock.now_ms();
        let limit_ms = u64::from(minutes) * 60_000;
        let unused: Vec<_> = self
            .lock()
            .subscriptions
            .iter()
            .filter(|s| s.durable && s.consumers().is_empty() && s.fence.is_none())
            // It may be in use in another cluster.
            .filter(|s| !s.is_replicated())
            .map(|s| (s.name.clone(), s.cursor.clone()))
            .collect();
        for (name, cursor) in unused {
            let properties = cursor.properties();
            let since_ms = properties
                .get(UNUSED_SINCE)
                .and_then(|text| text.parse::<u64>().ok());
            match since_ms {
                // Its last use is not known: it begins now.
                None => self.mark_unused(&cursor, Some(now_ms)).await?,
                Some(since_ms) if since_ms + limit_ms > now_ms => {}
                Some(_) => {
                    tracing::info!(topic = %self.name, subscription = &*name,
                        "deleted: nobody used the subscription");
                    match self.delete_subscription(&name, false).await {
                        // A consumer came.
                        Err(BrokerError::PreconditionFailed(_)) | Ok(()) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(())
    }

    async fn mark_unused(
        &self,
        cursor: &geminga_storage::managed::Cursor,
        since_ms: Option<u64>,
    ) -> Result<(), BrokerError> {
        let mut properties = cursor.properties();
        match since_ms {
            Some(since_ms) => {
                properties.insert(UNUSED_SINCE.to_owned(), since_ms.to_string());
            }
            None => {
                properties.remove(UNUSED_SINCE);
            }
        }
        Ok(cursor.set_properties(properties).await?)
    }

    /// A consumer came to the subscription or its last one left.
    pub(super) fn note_use(self: &Arc<Topic>, subscription: &Subscription) {
        if !subscription.durable {
            return;
        }
        let is_used = !subscription.consumers().is_empty();
        let cursor = subscription.cursor.clone();
        let is_marked = cursor.properties().contains_key(UNUSED_SINCE);
        let counts = self.policies().subscription_expiration_minutes > 0;
        let since_ms = match (is_used, is_marked) {
            (true, true) => None,
            (false, false) if counts => Some(self.core.clock.now_ms()),
            _ => return,
        };
        let topic = self.clone();
        self.core
            .tasks
            .spawn_cancellable("note the use of a subscription", async move {
                if let Err(error) = topic.mark_unused(&cursor, since_ms).await {
                    tracing::debug!(topic = %topic.name, %error, "its use was not noted");
                }
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BrokerConfig;
    use crate::policies::{InactiveTopicPolicies, Retention};

    #[test]
    fn data_is_kept_for_its_retention() {
        let with = |minutes, seconds| {
            let own = Policies {
                retention: Some(Retention {
                    retention_time_in_minutes: minutes,
                    retention_size_in_mb: 1,
                }),
                inactive_topic: Some(InactiveTopicPolicies {
                    inactive_topic_delete_mode: InactiveTopicDeleteMode::DeleteWhenNoSubscriptions,
                    max_inactive_duration_seconds: seconds,
                    delete_while_inactive: true,
                }),
                ..Policies::default()
            };
            effective(&own, &Policies::default(), &BrokerConfig::default())
        };
        for (minutes, seconds, has_data, wait) in [
            (0, 60, true, Some(60_000)),
            (2, 60, true, Some(120_000)),
            (2, 60, false, Some(60_000)),
            (2, 500, true, Some(500_000)),
            (-1, 60, true, None),
            (-1, 60, false, Some(60_000)),
        ] {
            assert_eq!(wait_ms(&with(minutes, seconds), has_data), wait);
        }
    }
}
