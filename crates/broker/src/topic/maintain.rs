//! What is done to topics from time to time: retention, expiry, quotas, deletion, leaving memory.

use std::sync::Arc;
use std::time::Duration;

use geminga_model::Position;
use geminga_storage::managed::Retention;

use super::{State, Topic};
use crate::broker::Core;
use crate::error::BrokerError;

/// Up to so many loaded topics, each may be idle for the configured time.
const KEPT_IN_FULL: usize = 256;
/// How often idle topics are looked for while there are more.
const CROWDED_MS: u64 = 100;

/// How long a topic may be idle, in milliseconds, before it leaves memory: the less the more are
/// loaded, so that passing through many topics does not take memory for all of them at once.
fn idle_limit(configured: u64, loaded: usize) -> u64 {
    configured * KEPT_IN_FULL as u64 / loaded.max(KEPT_IN_FULL) as u64
}

/// How long to sleep between two looks, in milliseconds: so long that none of the intervals (0 = never)
/// is missed, nor a topic that has been idle for long enough.
fn shortest_step<const N: usize>(idle: u64, intervals: [u64; N]) -> u64 {
    let shortest = intervals.into_iter().filter(|ms| *ms > 0).min();
    shortest
        .map_or(idle / 2, |ms| ms.min(idle / 2))
        .clamp(50, 10_000)
}

/// What is due of the work that time asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Due {
    expiry: bool,
    quotas: bool,
    inactive: bool,
    subscriptions: bool,
    compaction: bool,
}

impl Due {
    const ALL: Due = Due {
        expiry: true,
        quotas: true,
        inactive: true,
        subscriptions: true,
        compaction: true,
    };
}

/// Something done every so often; an interval of 0 never comes.
struct Every {
    interval_ms: u64,
    since_ms: u64,
}

impl Every {
    fn new(interval_ms: u64) -> Every {
        Every {
            interval_ms,
            since_ms: 0,
        }
    }

    fn passes(&mut self, step_ms: u64) -> bool {
        self.since_ms += step_ms;
        let due = self.interval_ms > 0 && self.since_ms >= self.interval_ms;
        if due {
            self.since_ms = 0;
        }
        due
    }
}

impl Core {
    /// The task: one for all topics. A topic that is not in memory costs nothing here, unless a
    /// policy of it lets time do something to it.
    pub(crate) async fn maintain(self: Arc<Core>) {
        let config = &self.config;
        // May change while this runs.
        let frequency = || {
            self.settings
                .live()
                .broker_delete_inactive_topics_frequency_seconds
        };
        let idle = config.geminga_topic_idle_millis.max(100);
        let seconds = |seconds: u64| seconds.saturating_mul(1_000);
        let minutes = |minutes: u64| minutes.saturating_mul(60_000);
        let quotas = match config.backlog_quota_check_enabled {
            true => seconds(config.backlog_quota_check_interval_in_seconds),
            false => 0,
        };
        let trim = seconds(config.retention_check_interval_in_seconds);
        let expiry = minutes(config.message_expiry_check_interval_in_minutes);
        let subscriptions = minutes(config.subscription_expiry_check_interval_in_minutes);
        let compaction = seconds(config.broker_service_compaction_monitor_interval_in_seconds);
        // As short a step as the shortest interval, or that would pass by unseen.
        let every = [
            quotas,
            seconds(frequency()),
            trim,
            expiry,
            subscriptions,
            compaction,
        ];
        let longest_ms = shortest_step(idle, every);
        let mut trim = Every::new(trim);
        let mut expiry = Every::new(expiry);
        let mut quotas = Every::new(quotas);
        let mut inactive = Every::new(seconds(frequency()));
        let mut subscriptions = Every::new(subscriptions);
        let mut compaction = Every::new(compaction);
        let mut loaded = 0;
        loop {
            let crowded = loaded > KEPT_IN_FULL;
            let step_ms = if crowded {
                longest_ms.min(CROWDED_MS)
            } else {
                longest_ms
            };
            tokio::time::sleep(Duration::from_millis(step_ms)).await;
            let trim = trim.passes(step_ms);
            inactive.interval_ms = seconds(frequency());
            let due = Due {
                expiry: expiry.passes(step_ms),
                quotas: quotas.passes(step_ms),
                inactive: inactive.passes(step_ms),
                subscriptions: subscriptions.passes(step_ms),
                compaction: compaction.passes(step_ms),
            };
            loaded = self.look_at_loaded(due, trim, idle).await;
            if due != Due::default() {
                self.look_at_unloaded(due).await;
            }
        }
    }

    /// All periodic work now.
    pub(crate) async fn check_all(self: &Arc<Core>) {
        let idle = self.config.geminga_topic_idle_millis;
        self.look_at_loaded(Due::ALL, true, idle).await;
        self.look_at_unloaded(Due::ALL).await;
    }

    /// Returns how many there were.
    async fn look_at_loaded(self: &Arc<Core>, due: Due, trim: bool, idle_ms: u64) -> usize {
        let topics = self.loaded();
        let loaded = topics.len();
        let idle_ms = idle_limit(idle_ms, loaded);
        for topic in topics {
            topic.work(due).await;
            topic.shared_read.rest();
            let before_ms = self.clock.now_ms().saturating_sub(idle_ms);
            let leaves = topic.is_idle_since(before_ms) && !topic.waits_for_deletion();
            topic.maintain_dedup(leaves).await;
            if (trim || leaves)
                && let Err(error) = topic.trim().await
            {
                tracing::warn!(topic = %topic.name, %error, "old ledgers were not deleted");
            }
            if leaves {
                // It may not be looked at again before it is used again.
                topic.compact_by_threshold();
            }
            if leaves && topic.close_if_idle() {
                self.unload(&topic).await;
            }
        }
        loaded
    }

    async fn look_at_unloaded(self: &Arc<Core>, due: Due) {
        let names = match self.timed_topics().await {
            Ok(names) => names,
            Err(error) => {
                tracing::warn!(%error, "topics were not looked at");
                return;
            }
        };
        for name in names {
            if self.loaded_topic(&name).is_some() {
                continue;
            }
            match self.topic(&name, false).await {
                Ok(topic) => {
                    topic.work(due).await;
                    topic.maintain_dedup(true).await;
                    if !topic.waits_for_deletion() && topic.close_if_idle() {
                        self.unload(&topic).await;
                    }
                }
                // Deleted meanwhile.
                Err(BrokerError::TopicNotFound(_)) => {}
                Err(error) => {
                    tracing::warn!(topic = %name, %error, "the topic was not looked at");
                }
            }
        }
    }
}

impl Topic {
    /// Deletes ledgers that all subscriptions have acked and retention does not keep.
    pub(crate) async fn trim(&self) -> Result<(), BrokerError> {
        if !self.is_persistent() {
            return Ok(());
        }
        let own = self.policies().retention;
        let retention = Retention {
            time_ms: u64::try_from(own.retention_time_in_minutes)
                .ok()
                .map(|minutes| minutes.saturating_mul(60_000)),
            size_bytes: u64::try_from(own.retention_size_in_mb)
                .ok()
                .map(|mib| mib.saturating_mul(1 << 20)),
        };
        self.ledger.trim(retention).await?;
        self.trim_transactions()
    }

    /// What is due for this topic.
    async fn work(self: &Arc<Topic>, due: Due) {
        // Nothing of a non-persistent topic is there to be worked on.
        if !self.is_persistent() {
            return;
        }
        let policies = self.policies();
        let warn = |result: Result<(), BrokerError>, what: &str| {
            if let Err(error) = result {
                tracing::warn!(topic = %self.name, %error, "{what}");
            }
        };
        if due.expiry && policies.message_ttl_seconds > 0 {
            let expired = self.expire_all(policies.message_ttl_seconds).await;
            warn(expired, "messages were not expired");
        }
        if due.quotas {
            warn(self.enforce_quotas().await, "quotas were not enforced");
        }
        if due.subscriptions && policies.subscription_expiration_minutes > 0 {
            let done = self
                .expire_subscriptions(policies.subscription_expiration_minutes)
                .await;
            warn(done, "subscriptions were not expired");
        }
        if due.compaction {
            self.compact_by_threshold();
        }
        if due.inactive && policies.inactive_topic.delete_while_inactive {
            warn(
                self.delete_if_inactive(&policies).await,
                "the topic was not deleted",
            );
        }
    }

    /// Acks what is older than `seconds` for every durable subscription.
    pub(super) async fn expire_all(self: &Arc<Topic>, seconds: u64) -> Result<(), BrokerError> {
        let names: Vec<Arc<str>> = self
            .lock()
            .subscriptions
            .iter()
            .filter(|s| s.durable)
            .map(|s| s.name.clone())
            .collect();
        for name in names {
            self.expire(&name, seconds).await?;
        }
        let Some(through) = self.last_older_than(seconds).await? else {
            return Ok(());
        };
        let now_ms = self.core.clock.now_ms();
        let state = self.open()?;
        let through = through.min(state.read_limit());
        for replicator in &state.replicators {
            replicator.expire_through(through, now_ms)?;
        }
        Ok(())
    }

    /// Acks what is older than `seconds` for a subscription; false when there is nothing such.
    pub(crate) async fn expire(
        self: &Arc<Topic>,
        name: &str,
        seconds: u64,
    ) -> Result<bool, BrokerError> {
        self.require_persistent("Expire messages")?;
        let Some(through) = self.last_older_than(seconds).await? else {
            return Ok(false);
        };
        let mut state = self.open()?;
        self.skip_through(&mut state, name, through)
    }

    async fn last_older_than(&self, seconds: u64) -> Result<Option<Position>, BrokerError> {
        let now_ms = self.core.clock.now_ms();
        let before_ms = now_ms.saturating_sub(seconds.saturating_mul(1_000));
        Ok(match self.position_of_time(before_ms).await? {
            Position::LATEST => Some(self.ledger.durable_position()),
            kept => self.ledger.previous(kept),
        })
    }

    /// Acks everything up to an entry for a subscription, as expired; false when it was acked.
    pub(crate) fn skip_through(
        self: &Arc<Topic>,
        state: &mut State,
        name: &str,
        through: Position,
    ) -> Result<bool, BrokerError> {
        // What an open transaction holds back is nobody's to skip yet.
        let through = through.min(state.read_limit());
        let Some(subscription) = state.subscription_named(name) else {
            return Err(BrokerError::SubscriptionNotFound {
                topic: self.name.to_string(),
                subscription: name.to_owned(),
            });
        };
        let before = subscription.cursor.backlog();
        if subscription.cursor.mark_delete() >= through {
            return Ok(false);
        }
        subscription.cursor.ack_cumulative(through, None)?;
        subscription.skipped_through(through);
        subscription.counters.expired += before.saturating_sub(subscription.cursor.backlog());
        subscription.counters.last_expire_ms = self.core.clock.now_ms();
        let id = subscription.id;
        self.dispatch(state, id);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_interval_is_shorter_than_a_step() {
        for (idle, intervals, step) in [
            (30_000, [0, 0, 0], 10_000),
            (30_000, [60_000, 1_000, 0], 1_000),
            (400, [60_000, 1_000, 0], 200),
            (100, [1_000, 10, 0], 50),
        ] {
            assert_eq!(shortest_step(idle, intervals), step, "{idle} {intervals:?}");
        }
    }

    #[test]
    fn the_more_topics_are_loaded_the_sooner_idle_ones_leave() {
        let cases = [
            (0, 30_000),
            (256, 30_000),
            (512, 15_000),
            (10_000, 768),
            (1_000_000, 7),
        ];
        for (loaded, limit) in cases {
            assert_eq!(idle_limit(30_000, loaded), limit, "{loaded}");
        }
    }
}
